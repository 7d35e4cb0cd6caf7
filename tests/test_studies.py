import numpy as np
import pandas as pd
import pytest
import yaml

from mtrlib import claims, machine, parameters, studies, tables


@pytest.fixture
def p() -> parameters.RQ1:
    path = machine.root() / "params" / "smoke" / "rq1_auxiliary_tasks.yaml"
    return parameters.check(yaml.safe_load(path.read_text()), parameters.RQ1)


def changed(p, **values) -> parameters.RQ1:
    return parameters.RQ1(**{**p.model_dump(), **values})


def test_five_tasks_need_fifteen_models(p):
    p = changed(p, tasks="sdDnE")
    cells = studies.rq1(p)
    assert len(studies.models(cells)) == 5 + 10
    table = [cell for cell in cells if cell.panel == "table"]
    assert len(table) == 5 + 20 + 20
    assert len({(cell.main, cell.auxiliary, cell.attacked) for cell in table}) == 45


def test_the_order_of_the_tasks_does_not_matter(p):
    orders = [studies.models(studies.rq1(changed(p, tasks=tasks))) for tasks in ("sdn", "nds")]
    assert {spec.key for spec in orders[0]} == {spec.key for spec in orders[1]}


def test_cells_attack_what_they_say(p):
    for cell in studies.rq1(p):
        attacked = set(cell.evaluation.attack.tasks)
        assert attacked == ({cell.main} if cell.attacked == "single" else {cell.main, cell.auxiliary})
        assert set(cell.evaluation.model.tasks) == {cell.main, cell.auxiliary}


def test_panels_vary_one_thing(p):
    cells = [cell for cell in studies.rq1(p) if (cell.main, cell.auxiliary, cell.attacked) == ("s", "d", "joint")]
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
    cells = studies.rq1(p)
    table = {cell.evaluation for cell in cells if cell.panel == "table"}
    for panel in ("norm", "eps", "steps", "epochs"):
        assert table & {cell.evaluation for cell in cells if cell.panel == panel}


def errors_of(factors: dict[tuple[str, str], float], images: int = 40, panel: str = "table") -> pd.DataFrame:
    """An errors table in which a model's error grows by a known factor."""
    g = np.random.default_rng(0)
    clean = g.uniform(0.5, 1.5, images)
    noise = g.normal(0, 0.01, images)
    frames = []
    for (main, auxiliary), factor in factors.items():
        for attacked in ("single",) if main == auxiliary else ("single", "joint"):
            rows = {"clean_error": clean, "adversarial_error": clean * (factor + noise)}
            keys = {"panel": panel, "setting": "linf", "attacked": attacked, "main": main, "auxiliary": auxiliary}
            frames.append(pd.DataFrame({**rows, **keys, "seed": 0, "image_id": range(images)}))
    return pd.concat(frames, ignore_index=True)


FACTORS = {("s", "s"): 3.0, ("s", "d"): 2.0, ("d", "d"): 3.0, ("d", "s"): 4.0}


def test_vulnerabilities_differences_and_shares_of_known_errors():
    table = tables.vulnerabilities(errors_of(FACTORS))
    single = tables.matrix(table)
    assert single.loc["s", "s"] == pytest.approx(2.0, abs=0.01)
    assert single.loc["s", "d"] == pytest.approx(1.0, abs=0.01)
    assert single.loc["d", "s"] == pytest.approx(3.0, abs=0.01)
    assert (table.low <= table.value).all()
    assert (table.value <= table.high).all()
    compared = tables.against_single_task(table)
    assert len(compared) == 4
    helped = compared[compared.main == "s"]
    assert (helped.difference_high < -0.99).all()
    shares = tables.share_less_vulnerable(compared)
    assert shares.share.tolist() == [0.5, 0.5]
    assert shares.cells.tolist() == [2, 2]
    assert (shares.low == 0).all(), "two cells: their resampling alone spans everything"
    assert (shares.high == 1).all()
    assert "replicates" not in tables.shown(table)


def test_verdicts_need_the_whole_interval():
    assert claims.verdict(0.6, 0.9, 0.5, "above") == "agrees"
    assert claims.verdict(0.6, 0.9, 0.5, "below") == "disagrees"
    assert claims.verdict(0.4, 0.9, 0.5, "above") == "cannot tell at this size"
    assert claims.verdict(float("nan"), 0.9, 0.5, "above") == "cannot tell at this size"
    assert claims.all_of(["agrees", "disagrees", "cannot tell at this size"]) == "disagrees"
    assert claims.all_of(["agrees", "cannot tell at this size"]) == "cannot tell at this size"
    assert claims.all_of(["agrees"]) == "agrees"


def test_claims_on_known_errors():
    compared = tables.against_single_task(tables.vulnerabilities(errors_of(FACTORS)))
    verdicts = claims.never_helps(compared[compared.attacked == "single"], "1.3").set_index("where").verdict
    assert verdicts.to_dict() == {"main s": "disagrees", "main d": "agrees"}
    shares = claims.shares(tables.share_less_vulnerable(compared), "1.2", 0.95, "below")
    assert (shares.verdict == "cannot tell at this size").all()
    assert "2 cells" in shares.measured[0]
    assert shares["where"].tolist() == ["linf, single", "linf, joint"]
    told = claims.summary([shares], "RQ1").set_index("number")
    assert told.claim["1.2"].startswith("Under l-infinity attacks")
    assert told.verdict.to_list().count("not measured here") == 5
    assert "Claim 1.2" in claims.sentence(shares)


def test_growth_of_a_quadratic_error_is_two():
    frames = [
        errors_of({("s", "s"): 1 + 0.001 * eps**2}).assign(panel="eps", setting=float(eps)) for eps in (4, 8, 16, 32)
    ]
    growth = claims.growth(tables.vulnerabilities(pd.concat(frames)))
    assert growth.exponent[0] == pytest.approx(2, abs=0.15)
    assert growth.low[0] < growth.exponent[0] < growth.high[0]
