"""RQ6: its cells, and its claims from errors whose truth is known."""

from itertools import permutations

import numpy as np
import pandas as pd
import pytest
from oracles import errors_of

from mtrlib import claims, figures, studies
from mtrlib.claims import judging, published
from mtrlib.claims.sharing import SEPARATE
from mtrlib.models import ARCHITECTURES
from mtrlib.store import Store
from mtrlib.studies import results, rq6
from mtrlib.studies.rq4 import forward_operations

# How many times its clean error a task's error is under an attack on the other task, on itself and on both.
TRUTH = {SEPARATE: (1.1, 3.0, None), "hard": (2.0, 3.0, 3.3), "cross_stitch": (1.4, 3.0, 3.3), "nddr": (1.45, 3.0, 3.3)}
TRUTH |= {"mtan": (1.7, 3.0, 3.3), "pad_net": (2.6, 3.0, 3.3), "mti_net": (2.7, 3.0, 3.3)}
CLEAN = {"pad_net": 0.8, "mti_net": 0.8}


@pytest.fixture
def p(tmp_path) -> rq6.RQ6:
    values = {"data": "rooms", "root": "", "on_bad": "raise", "size": 16, "train_images": 16, "test_images": 4}
    values |= {"tasks": "sdn", "encoder": "resnet18_tiny", "pretrained": False, "optimizer": "adamw", "epochs": 6}
    values |= {"batch_size": 8, "learning_rate": 0.01, "momentum": 0.9, "weight_decay": 0.02, "schedule": "cosine"}
    values |= {"precision": "float32", "eps_255": 8.0, "step_size_255": 2.0, "steps": 2, "restarts": 1}
    values |= {"store": str(tmp_path / "store"), "released": "", "output": str(tmp_path / "out")}
    values |= {"seeds": [0], "panel_images": 4, "architectures": list(ARCHITECTURES), "equal": "compute"}
    return rq6.RQ6(**values)


def changed(p: rq6.RQ6, **values) -> rq6.RQ6:
    return rq6.RQ6(**{**p.model_dump(), **values})


def made(truth=TRUTH, clean=CLEAN, seeds=4, images=40, spread=0.02) -> pd.DataFrame:
    """Errors of every cell of s, d, n, with noise of images and of trainings."""
    g, rows = np.random.default_rng(0), []
    hard = np.exp(g.normal(0, 0.3, images))
    for (setting, times), seed in ((each, seed) for each in truth.items() for seed in range(seeds)):
        for main, other in permutations("sdn", 2):
            luck = np.exp(g.normal(0, spread, 2))
            for panel, factor in zip(("other", "own", "joint"), times, strict=True):
                alone = setting == SEPARATE and panel == "own"
                if factor is None or (alone and other != min(set("sdn") - {main})):
                    continue
                cell = {"panel": panel, "setting": setting, "attacked": "joint" if panel == "joint" else "single"}
                cell |= {"main": main, "auxiliary": main if alone else other, "seed": seed, "image_id": range(images)}
                errors = {"clean_error": 0.1 * clean.get(setting, 1.0) * hard * luck[0]}
                errors["adversarial_error"] = errors["clean_error"] * factor * luck[1]
                rows.append(pd.DataFrame({**cell, **errors}))
    return pd.concat(rows, ignore_index=True)


def told(errors: pd.DataFrame) -> dict[str, str]:
    found = claims.findings("rq6", errors)
    return {number: judging.verdict(rows) for number, rows in found.groupby("number")}


def swapped(one: str, other: str) -> dict:
    return {**TRUTH, one: TRUTH[other], other: TRUTH[one]}


def test_every_claim_is_judged_by_what_the_errors_are_made_of():
    found = claims.findings("rq6_architectures", made())
    assert list(found) == judging.COLUMNS
    assert told(made()) == {"6.1": "agrees", "6.2": "agrees", "6.3": "agrees", "6.4": "disagrees"} | dict.fromkeys(
        ["6.5", "6.6"], "agrees"
    )
    text = judging.sentences(found, "6.1", "6.3")
    assert (
        "One shared encoder: 100% of the cells are hurt more by an attack on the other task than separate networks"
        in text
    )
    assert "PAD-Net: in 100% of the cells more of an attack reaches the other task than with a shared encoder" in text


def test_what_is_made_the_other_way_round_is_judged_so():
    """Less spread with more sharing; distillation that stops it, and costs clean performance; each by its own claim."""
    distils_less = TRUTH | {"pad_net": (1.3, 3.0, 3.3), "mti_net": (1.3, 3.0, 3.3)}
    verdicts = told(made(distils_less, clean={"pad_net": 1.2, "mti_net": 1.2}))
    assert (verdicts["6.3"], verdicts["6.4"], verdicts["6.6"]) == ("disagrees", "agrees", "disagrees")
    assert verdicts["6.1"] == "agrees"
    one_way = told(made({**TRUTH, "pad_net": (1.3, 3.0, 3.3)}))
    assert (one_way["6.3"], one_way["6.4"]) == ("disagrees", "disagrees"), "both kinds have to"
    assert told(made(swapped("hard", "cross_stitch")))["6.2"] == "disagrees"
    reverse = {name: (3 - times[0], *times[1:]) for name, times in TRUTH.items()}
    assert told(made(reverse))["6.1"] == "disagrees"
    protects = {name: (a, b if name == SEPARATE else 1.5, c and 1.6) for name, (a, b, c) in TRUTH.items()}
    assert told(made(protects))["6.5"] == "disagrees"
    only_itself = {name: (a, b if name == SEPARATE else 1.5, c) for name, (a, b, c) in TRUTH.items()}
    rows = claims.findings("rq6", made(only_itself)).set_index("where")
    assert rows.loc["mtan, single: cells less vulnerable than a network of its own"].verdict == "disagrees"
    assert rows.loc["mtan, joint: cells less vulnerable than a network of its own"].verdict == "agrees"


def test_what_reaches_the_other_task_is_a_share_of_what_an_attack_does_to_its_own():
    """A network that has learned less is hurt less by any attack, also where more of it reaches the other task."""
    found = claims.findings("rq6", made(TRUTH | {"pad_net": (1.6, 1.8, 1.9), "mti_net": (1.6, 1.8, 1.9)}))
    rows = found[found.number == "6.3"]
    assert judging.verdict(rows) == "agrees"
    beside = rows[~rows.decides]
    assert beside["where"].str.contains("cells hurt more by an attack").all()
    assert set(beside.verdict) == {"disagrees"}
    helps = made(TRUTH | {"pad_net": (0.9, 3.0, 3.3), "mti_net": (0.9, 3.0, 3.3)})
    assert (told(helps)["6.3"], told(helps)["6.4"]) == ("disagrees", "agrees"), "an attack that helps reaches nothing"


def test_more_sharing_more_spread_is_asked_of_the_order_too():
    """A shared encoder spreads more than separate networks; what lies between does not lie between."""
    truth = {**TRUTH, SEPARATE: (1.8, 3.0, None), "cross_stitch": (1.2, 3.0, 3.3), "nddr": (1.2, 3.0, 3.3)}
    rows = claims.findings("rq6", made(truth | {"mtan": (1.2, 3.0, 3.3), "hard": (2.1, 3.0, 3.3)}))
    rows = rows[(rows.number == "6.1") & rows.decides].set_index("asked")
    assert rows.loc["above 50%"].verdict == "agrees"
    assert rows.loc["above 0"].verdict == "open"
    assert rows.loc["above 0"].estimate < 0.5


def test_where_architectures_do_not_matter_or_one_training_speaks_nothing_is_claimed():
    alike = {name: (1.5, 3.0, times[2] and 3.0) for name, times in TRUTH.items()}
    verdicts = told(made(alike, clean={}, spread=0.005))
    assert verdicts == {"6.5": "agrees"} | dict.fromkeys(["6.2", "6.3", "6.4", "6.6"], "disagrees") | {
        "6.1": "disagrees"
    }
    assert set(told(made(seeds=1)).values()) == {"open"}


def test_cells_not_learned_are_left_out_and_panels_that_lack_are_not_judged():
    errors = made().assign(constant_error=1.0)
    errors.loc[errors.main == "n", "constant_error"] = 0.05
    found = claims.findings("rq6", errors)
    assert found[found.number == "6.2"]["where"].str.contains("2 of 6 cells not learned, of main n").all()
    assert set(claims.findings("rq6", made()[lambda rows: rows.panel == "own"]).number) == {"6.5", "6.6"}
    few = made({name: TRUTH[name] for name in (SEPARATE, "hard", "pad_net")})
    assert set(claims.findings("rq6", few).number) == {"6.1", "6.3", "6.4", "6.5", "6.6"}


def test_cells_read_a_task_and_attack_it_the_other_or_both(p):
    cells = rq6.cells(p)
    keys = [(c.panel, c.setting, c.main, c.auxiliary) for c in cells]
    assert len(keys) == len(set(keys)) == 3 + 6 + 6 * 6 * 3
    for cell in cells:
        e = cell.evaluation
        wanted = {"own": {cell.main}, "other": {cell.auxiliary}, "joint": {cell.main, cell.auxiliary}}[cell.panel]
        assert set(e.attack.tasks) == wanted
        if cell.setting == SEPARATE:
            assert (e.model.tasks, e.model.architecture) == (cell.main, "hard")
            assert (e.source and e.source.tasks) == (cell.auxiliary if cell.panel == "other" else None)
        else:
            assert (set(e.model.tasks), e.model.architecture) == ({cell.main, cell.auxiliary}, cell.setting)
    hard = [m for m in studies.models(cells) if len(m.tasks) == 2 and m.architecture == "hard"]
    assert hard == [p.model(pair) for pair in ("sd", "sn", "dn")], "those that other notebooks train"


def test_equal_compute_counts_all_networks_of_a_pair(p):
    hard = forward_operations(p.model("sd"))
    alone = sum(forward_operations(p.model(letter)) for letter in "sd")
    assert p.epochs_of("hard") == 6
    assert p.epochs_of(SEPARATE) == round(6 * hard / alone) < 6
    stitched = forward_operations(p.of("cross_stitch", "sd"))
    assert p.epochs_of("cross_stitch") == round(6 * hard / (stitched + alone))
    assert {spec.epochs for spec in p.of("cross_stitch", "sd").starts} == {p.epochs_of("cross_stitch")}
    table = rq6.budgets(changed(p, epochs=300)).set_index("architecture")
    assert table.training.tolist() == pytest.approx([1.0] * len(table), abs=0.01)
    assert {changed(p, equal="epochs").epochs_of(name) for name in p.settings} == {6}
    with pytest.raises(ValueError, match="architectures should have hard among them"):
        changed(p, architectures=["mtan"])


def test_the_whole_study_runs_and_its_table_says_what_spreads(p):
    p = changed(p, tasks="sd", epochs=2, architectures=["hard", "cross_stitch", "pad_net"])
    cells, store = rq6.cells(p), Store(p.store)
    errors = studies.run(store, cells)
    assert len(errors) == 4 * len(cells)
    spread = rq6.spread(errors)
    assert (spread[spread.panel == "own"].share == 1).all()
    by_hand = errors[(errors.panel == "other") & (errors.setting == SEPARATE) & (errors.main == "s")]
    wanted = np.log(by_hand.adversarial_error / by_hand.clean_error).mean()
    row = spread[(spread.panel == "other") & (spread.setting == SEPARATE) & (spread.main == "s")]
    assert row.value.item() == pytest.approx(wanted, abs=1e-6)
    assert list(rq6.matrix(spread)) == p.settings
    assert set(claims.findings("rq6", errors).verdict) <= {"open"}, "one training"


def test_the_tables_of_models_tell_them_apart(p, tmp_path):
    """Of one architecture and as many epochs there is no such column."""
    cells = rq6.cells(p)
    table = studies.plan(Store(tmp_path / "none"), cells)
    specs = studies.models(cells)
    assert set(table.architecture) == {spec.architecture for spec in specs}
    assert len(table) == len({(len(spec.tasks), spec.architecture, spec.epochs) for spec in specs})
    alike = [cell for cell in cells if cell.evaluation.model == specs[0]]
    assert not {"architecture", "epochs", "recipe"} & set(studies.plan(Store(tmp_path / "none"), alike).columns)


def test_the_table_of_claims_shows_the_question_where_it_was_measured(tmp_path):
    errors = errors_of({("s", "s"): 2.0, ("s", "d"): 3.0})
    claims.findings("rq1", errors).to_csv(tmp_path / "rq1_findings.csv", index=False)
    assert not results.side_by_side(tmp_path)[""].str.startswith("6.").any()
    claims.findings("rq6", made()).to_csv(tmp_path / "rq6_findings.csv", index=False)
    table = results.side_by_side(tmp_path).set_index("")
    assert table.rooms["6.1"] == "✓ agrees"
    assert set(published.claims("RQ6").index) <= set(table.index)


def test_the_figure_has_a_mark_for_every_cell_in_the_place_of_its_architecture():
    spread = rq6.spread(made(seeds=2, images=8))
    figure = figures.by_setting(spread, "log ratio", judging.words())
    (left, *_), number = figure.axes, len(TRUTH)
    assert [axis.get_title()[0] for axis in figure.axes] == list("sdn")
    assert [tick.get_text() for tick in left.get_xticklabels()][:3] == [
        "separate networks",
        "one shared encoder",
        "cross-stitch",
    ]
    marks = [container[0].get_xydata()[0] for container in left.containers]
    rows = spread[spread.main == "s"]
    assert len(marks) == len(rows)
    places = [round(x) for x, _ in marks]
    assert places == [list(TRUTH).index(setting) for setting in rows.setting]
    assert [y for _, y in marks] == pytest.approx(rows.value.tolist())
    assert len({x for x, _ in marks}) == len(marks), "none covers another"
    assert left.get_xlim() == (-0.5, number - 0.5)


@pytest.mark.parametrize(("rq", "said"), [("RQ1", "As the paper says"), ("RQ5", "As claimed"), ("RQ6", "As claimed")])
def test_an_answer_names_the_paper_only_where_it_asked(rq, said):
    assert claims.answer(judging.frame([]), rq).startswith(f"{said}: nothing.")
