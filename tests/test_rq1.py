import numpy as np
import pandas as pd
import pytest
from oracles import errors_of

from mtrlib import batch, machine, studies
from mtrlib.metrics import tables
from mtrlib.studies import parameters, rq1


@pytest.fixture
def p() -> rq1.RQ1:
    values = batch.read(machine.root() / "params" / "smoke")["rq1_auxiliary_tasks"]
    return parameters.check(values, rq1.RQ1)


def changed(p, **values) -> rq1.RQ1:
    return rq1.RQ1(**{**p.model_dump(), **values})


def test_five_tasks_need_fifteen_models(p):
    p = changed(p, tasks="sdDnE", more_tasks="")
    cells = rq1.cells(p)
    assert len(studies.models(cells)) == 5 + 10
    table = [cell for cell in cells if cell.panel == "table"]
    assert len(table) == 5 + 20 + 20
    assert len({(cell.main, cell.auxiliary, cell.attacked) for cell in table}) == 45


def test_more_tasks_add_their_pairs_and_nothing_else(p):
    """Figures 1 to 11: all sets of one and two tasks; what the data set has no labels of is left out."""
    without, cells = rq1.cells(changed(p, more_tasks="")), rq1.cells(changed(p, more_tasks="DE"))
    assert len(studies.models(cells)) == 5 + 10
    pairs = [cell for cell in cells if cell.panel == "pairs"]
    assert {(cell.main, cell.auxiliary) for cell in pairs} == {(m, a) for m in "sdDnE" for a in "sdDnE"}
    assert [cell for cell in cells if cell.panel != "pairs"] == [cell for cell in without if cell.panel != "pairs"]


def test_the_order_of_the_tasks_does_not_matter(p):
    orders = [studies.models(rq1.cells(changed(p, tasks=tasks))) for tasks in ("sdn", "nds")]
    assert {spec.key for spec in orders[0]} == {spec.key for spec in orders[1]}


def test_cells_attack_what_they_say(p):
    for cell in rq1.cells(p):
        attacked = set(cell.evaluation.attack.tasks)
        assert attacked == ({cell.main} if cell.attacked == "single" else {cell.main, cell.auxiliary})
        assert set(cell.evaluation.model.tasks) == {cell.main, cell.auxiliary}


def test_panels_vary_one_thing(p):
    cells = [cell for cell in rq1.cells(p) if (cell.main, cell.auxiliary, cell.attacked) == ("s", "d", "joint")]
    by_panel = {}
    for cell in cells:
        by_panel.setdefault(cell.panel, []).append(cell.evaluation)
    attacks = {panel: [e.attack for e in evaluations] for panel, evaluations in by_panel.items()}
    assert [a.eps_255 for a in attacks["eps"]] == p.eps_panel
    assert [a.step_size_255 / a.eps_255 for a in attacks["eps"]] == pytest.approx([0.25] * len(p.eps_panel))
    assert [a.steps for a in attacks["steps"]] == p.steps_panel
    assert [a.norm for a in attacks["norm"]] == ["linf", "l2", "l2"]
    assert attacks["norm"][2].eps_255 == pytest.approx(8 * np.sqrt(3 * p.size**2))
    assert [e.epoch for e in by_panel["epochs"]] == list(by_panel["epochs"][0].model.checkpoints)


def test_panels_reuse_the_evaluations_of_the_table(p):
    cells = rq1.cells(p)
    table = {cell.evaluation for cell in cells if cell.panel == "table"}
    for panel in ("norm", "eps", "steps", "epochs"):
        assert table & {cell.evaluation for cell in cells if cell.panel == panel}


FACTORS = {("s", "s"): 3.0, ("s", "d"): 2.0, ("d", "d"): 3.0, ("d", "s"): 4.0}


def test_vulnerabilities_differences_and_shares_of_known_errors():
    table = tables.vulnerabilities(errors_of(FACTORS))
    single = tables.matrix(table)
    assert single.loc["s", "s"] == pytest.approx(2.0, abs=0.01)
    assert single.loc["s", "d"] == pytest.approx(1.0, abs=0.01)
    assert single.loc["d", "s"] == pytest.approx(3.0, abs=0.01)
    assert (table.low <= table.value).all()
    assert (table.value <= table.high).all()


def test_pairs_are_compared_with_the_single_task_model_from_two_seeds_on():
    one = tables.against_single_task(errors_of(FACTORS))
    assert len(one) == 4
    assert set(one.surely) == {""}
    three = tables.against_single_task(pd.concat([errors_of(FACTORS).assign(seed=seed) for seed in range(3)]))
    assert three.set_index("main").surely.to_dict() == {"s": "less", "d": "more"}
    assert three.set_index("main").ratio.to_dict() == pytest.approx({"s": 2 / 3, "d": 4 / 3}, rel=0.02)


def test_small_numbers_keep_their_digits_and_an_interval_without_end_is_told_in_words():
    values = [0.0004321, 0.056, 0.0999, 0.1, 12.345, 1234.5, 1.2e-6, 0, -0.00123, float("inf")]
    told = ["0.00043", "0.056", "0.100", "0.10", "12.35", "1,234", "1.2e-06", "0", "-0.0012", "infinite"]
    assert [tables.number(value) for value in values] == told
    cell = {"main": "s", "auxiliary": "s", "attacked": "single", "value": 0.0004, "low": 0.0001, "high": 0.001}
    shown = tables.with_interval(pd.DataFrame([{**cell, "left_out": 0}]))
    assert shown.loc["s", "s"] == "0.00040 [0.00010, 0.0010]"


def test_several_seeds_are_averaged_and_widen_the_interval():
    one = errors_of({("s", "s"): 2.0})
    three = pd.concat([errors_of({("s", "s"): f}).assign(seed=seed) for seed, f in enumerate((2.0, 3.0, 4.0))])
    narrow, wide = tables.vulnerabilities(one).iloc[0], tables.vulnerabilities(three).iloc[0]
    assert wide.value == pytest.approx(2.0, abs=0.01)
    assert wide.images == narrow.images == 40
    assert wide.high - wide.low > 20 * (narrow.high - narrow.low)


def test_tables_say_how_many_images_were_left_out():
    """Three images of cell (s, d) have no clean error, and so no ratio."""
    errors = errors_of(FACTORS)
    cell = (errors.main == "s") & (errors.auxiliary == "d") & (errors.attacked == "single")
    errors.loc[cell & (errors.image_id < 3), "clean_error"] = 0.0
    table = tables.vulnerabilities(errors)
    assert table.set_index(["main", "auxiliary", "attacked"]).left_out[("s", "d", "single")] == 3
    text = tables.with_interval(table)
    assert text.loc["s", "d"].endswith("], 3 left out")
    assert text.loc["d", "s"].endswith("]")
