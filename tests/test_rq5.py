"""RQ5: what is claimed of robust training, from errors whose truth is known; its study."""

import numpy as np
import pandas as pd
import pytest

from mtrlib import batch, claims, machine, studies
from mtrlib.batch import cost
from mtrlib.claims import judging, published
from mtrlib.metrics import tables
from mtrlib.store import Store
from mtrlib.studies import masking, parameters, results, rq5

MAINS = {"s": "dn", "d": "sn", "n": "sd"}
ALL = [(main, others) for main, others in MAINS.items()]
PANELS = {name: ALL for name in ("plain", "pgd_at", "trades", "against s", "against d")}
PANELS |= {"gat": [*ALL, ("s", "d"), ("s", "n")], "few gat": [("s", "d")], "gat with rotation": [("s", "s")]}
PANELS |= {f"{few}{name}": [("s", "s")] for few in ("", "few ") for name in ("same cost", "same epochs")}
# Panel: clean error, error under PGD, and how many times that SEA's is.
TRUTH = {"plain": (0.1, 0.6, 1.02), "pgd_at": (0.13, 0.2, 1.3), "trades": (0.12, 0.2, 1.3), "gat": (0.13, 0.15, 1.3)}
TRUTH |= {"against s": (0.12, 0.2, 1.3), "against d": (0.12, 0.2, 1.3), "few gat": (0.2, 0.25, 1.3)}
TRUTH |= {"gat with rotation": (0.13, 0.22, 1.3), "same cost": (0.13, 0.22, 1.3), "same epochs": (0.13, 0.25, 1.3)}
TRUTH |= {"few same cost": (0.2, 0.35, 1.3), "few same epochs": (0.2, 0.35, 1.3)}


def made(truth=TRUTH, seeds=4, images=24, spread=0.02, of=lambda panel, main, auxiliary: 1.0, **columns):
    """Errors of every panel, with noise of images and of trainings; `of` multiplies the errors under attack."""
    g, rows = np.random.default_rng(0), []
    hard = np.exp(g.normal(0, 0.2, images))
    for panel, (clean, attacked, strong) in truth.items():
        for (main, auxiliary), seed in ((cell, seed) for cell in PANELS[panel] for seed in range(seeds)):
            luck = np.exp(g.normal(0, spread))
            for setting, times in (("pgd", 1.0), ("sea", strong)):
                cell = {"panel": panel, "setting": setting, "attacked": "single", "main": main, "auxiliary": auxiliary}
                errors = {"clean_error": clean * hard * luck}
                errors["adversarial_error"] = attacked * times * of(panel, main, auxiliary) * hard * luck
                rows.append(pd.DataFrame({**cell, "seed": seed, "image_id": range(images), **errors, **columns}))
    return pd.concat(rows, ignore_index=True)


def told(errors: pd.DataFrame) -> dict[str, str]:
    found = claims.findings("rq5", errors)
    return {number: judging.verdict(rows) for number, rows in found.groupby("number")}


def only(found: pd.DataFrame, number: str, where: str) -> pd.Series:
    (row,) = (row for row in found[found.number == number].itertuples() if row.where.startswith(f"{where}: "))
    return row


def swapped(one: str, other: str) -> dict:
    return {**TRUTH, one: TRUTH[other], other: TRUTH[one]}


def test_every_claim_agrees_where_the_errors_are_made_so():
    expected = dict.fromkeys(["5.1", "5.2", "5.3", "5.5", "5.6", "5.7", "5.8"], "agrees")
    assert told(made()) == {**expected, "5.4": "disagrees"}
    found = claims.findings("rq5_adversarial_training", made())
    assert list(found) == judging.COLUMNS
    assert only(found, "5.1", "pgd_at, main s").estimate == pytest.approx((0.26 - 0.13) / (0.612 - 0.1), rel=0.1)
    assert only(found, "5.2", "pgd_at, mean of 3 tasks").estimate == pytest.approx(1.3, rel=0.03)
    assert only(found, "5.3", "same cost, mean of 3 sets").estimate == pytest.approx(0.15 / 0.22, rel=0.03)
    assert only(found, "5.3", "same epochs, gat, auxiliary d").estimate == pytest.approx(0.15 / 0.25, rel=0.05)
    assert only(found, "5.6", "trades").estimate == pytest.approx(0.2 / 0.15, rel=0.05)
    others = set(found[found.number == "5.6"]["where"].str.split(":").str[0])
    assert others == {"pgd_at", "trades", "against s"}, "on the same tasks, attacked on the main one at least"
    assert only(found, "5.7", "trained against one task").estimate == 1
    assert only(found, "5.8", "plain").verdict == "disagrees"


@pytest.mark.parametrize(
    ("truth", "numbers"),
    [
        (swapped("plain", "pgd_at"), {"5.1", "5.2"}),
        (swapped("gat", "same cost"), {"5.3"}),
        (swapped("few gat", "few same cost"), {"5.5"}),
        (swapped("gat", "trades"), {"5.6"}),
        ({**TRUTH, **{f"against {x}": TRUTH["plain"] for x in "sd"}}, {"5.7"}),
        ({name: (clean, attacked, 1.0) for name, (clean, attacked, _) in TRUTH.items()}, {"5.8"}),
    ],
)
def test_the_other_way_round_the_claims_disagree(truth, numbers):
    verdicts = told(made(truth))
    assert {number for number in numbers if verdicts[number] != "disagrees"} == set()
    assert told(made())[next(iter(numbers))] == "agrees"


def test_what_the_same_cost_gives_decides_and_not_what_the_same_epochs_give():
    found = claims.findings("rq5", made({**TRUTH, "same cost": TRUTH["gat"]}))
    assert only(found, "5.3", "same cost, mean of 3 sets").verdict == "disagrees"
    assert only(found, "5.3", "same epochs, mean of 3 sets").verdict == "agrees"
    assert judging.verdict(found[found.number == "5.3"]) == "disagrees"


def test_one_training_says_nothing_of_another_but_two_attacks_on_it_can_be_compared():
    verdicts = told(made(seeds=1))
    assert verdicts.pop("5.8") == "agrees"
    assert set(verdicts.values()) == {"open"}
    assert set(told(made(spread=0.5)).values()) > {"open"}


def test_a_model_that_learned_nothing_is_not_robust():
    """Its error under attack is that without: the constant's."""
    truth = {**TRUTH, "pgd_at": (0.3, 0.31, 1.0)}
    errors = made(truth, constant_error=0.31)
    found = claims.findings("rq5", errors)
    assert not found[found.number == "5.1"]["where"].str.startswith("pgd_at").any()
    assert told(errors.drop(columns="constant_error"))["5.1"] == "agrees"


def test_what_protects_the_attacked_task_alone_does_not_protect_the_others():
    """Each of the two models is robust on the task that it was attacked on."""
    own = lambda panel, main, auxiliary: 3.0 if panel.startswith("against") and main != panel[-1] else 1.0  # noqa: E731
    assert told(made(of=own))["5.7"] == "disagrees"
    assert told(made(of=lambda *of: 4 - own(*of)))["5.7"] == "agrees"


def test_claims_whose_panels_are_lacking_are_left_out():
    errors = made()
    some = errors[errors.panel.isin(["plain", "pgd_at"])]
    assert set(told(some)) == {"5.1", "5.2", "5.8"}
    assert set(told(errors[errors.panel != "plain"])) == {"5.3", "5.4", "5.5", "5.6", "5.8"}
    assert told(errors[errors.setting == "pgd"]) == {}
    assert told(errors.assign(panel="masking pgd_at")) == {}


def test_its_claims_stand_below_the_papers_where_they_were_measured_and_nowhere_else(tmp_path):
    row = dict(zip(judging.COLUMNS, ("1.2", "linf: x", 1.0, 1.0, 1.0, "above 4", True, "agrees", ""), strict=True))
    tables.write(tmp_path, "rq1", findings=pd.DataFrame([row]))
    papers = results.side_by_side(tmp_path)
    assert list(papers.iloc[:, 0]) == list(published.claims().sort_index().index)
    answer = results.answer(results.read(tmp_path))
    tables.write(tmp_path, "rq5", findings=claims.findings("rq5", made()))
    both = results.side_by_side(tmp_path)
    pd.testing.assert_frame_equal(both.head(len(papers)), papers)
    assert list(both.iloc[len(papers) :, 0]) == [f"5.{k}" for k in range(1, 9)]
    assert dict(zip(both.iloc[:, 0], both.rooms, strict=True))["5.4"] == "✗ disagrees"
    assert results.answer(results.read(tmp_path)) == answer, "it counts the paper's claims"
    assert results.claims(results.read(tmp_path), "RQ5").count("**✓ agrees: 5.") == 7


def test_findings_are_sentences():
    text = claims.sentences(claims.findings("rq5", made()), "5.1", "5.3", "5.8")
    assert "PGD training, main s: the strong attack adds 0.26 times what it adds after plain training" in text
    assert (
        "At the same or a higher cost of training, mean of 3 sets: the error under the strong attack is 0.68 times"
        in text
    )
    assert "The claim needs at most 0.5 times: as claimed." in text


@pytest.fixture(scope="module")
def p() -> rq5.RQ5:
    """Three tasks of which d is the main one."""
    values = batch.read(machine.root() / "params" / "smoke")["rq5_adversarial_training"]
    return parameters.check({**values, "tasks": "dsn", "seeds": [0, 3], "precision": "float32"}, rq5.RQ5)


def test_its_models_are_the_recipes_one_attacked_task_and_gat_beside_none(p):
    models = rq5.models(p, 0)
    of = {(panel, spec.tasks): spec for panel, spec in models}
    assert len(of) == len(models) == len({spec.key for _, spec in models})
    assert of["plain", "sdn"].adversarial is None
    assert {of[recipe, "sdn"].adversarial.recipe for recipe in p.recipes if recipe != "gat"} == set(p.recipes) - {"gat"}
    assert {panel: of[panel, "sdn"].adversarial.tasks for panel in ("against s", "against d", "against n")} == {
        f"against {letter}": letter for letter in "sdn"
    }
    assert {tasks for panel, tasks in of if panel == "gat"} == {"ds", "dn", "dsn"}, "the main task first"
    assert all(of["gat", tasks].weights == "MGDA" for tasks in ("ds", "dn", "dsn"))
    for name in ("rotation", "jigsaw"):
        assert of[f"gat with {name}", "d"].adversarial.self_supervised == name
    guided, alone, longer = of["gat", "ds"], of["same epochs", "d"], of["same cost", "d"]
    assert alone.adversarial.beta == guided.adversarial.beta, "the same loss of the main task"
    assert (alone.adversarial.steps, alone.adversarial.eps_255) == (p.inner_steps, p.eps_255)
    assert longer == alone.model_copy(update={"epochs": longer.epochs})
    assert {spec.images for (panel, _), spec in of.items() if panel.startswith("few ")} == {p.few_images}
    assert {panel for panel, _ in of if panel.startswith("few ")} == {"few gat", "few same epochs", "few same cost"}


def test_the_same_cost_is_no_lower_than_that_of_gat_and_an_epoch_less_is(p):
    p = p.model_copy(update={"epochs": 20})
    rows = rq5.costs(p).set_index(["panel", "tasks"])
    most = rows.cost[[panel.startswith("gat") for panel in rows.index.get_level_values("panel")]].max()
    longer = rows.loc[("same cost", "d")]
    assert longer.cost >= most > longer.cost * (longer.epochs - 1) / longer.epochs
    assert longer.epochs > 20
    assert rows.cost["plain", "sdn"] == pytest.approx(1)
    assert rows.cost["few gat", "ds"] == pytest.approx(rows.cost["gat", "ds"] * p.few_images / p.train_images)


def test_an_attack_on_one_task_runs_one_decoder(p):
    """Two inner steps of two passes; three for the clean images, with all decoders, three for perturbed ones."""
    spec = p.trained("gat", "dsn", 0)
    of = {tasks: cost.operations(spec.model_copy(update={"tasks": tasks})) for tasks in ("d", "dsn")}
    assert rq5.operations(spec) == spec.epochs * (4 * of["d"] + 3 * of["dsn"] + 3 * of["d"])
    alone = p.trained("half", "d", 0)
    assert rq5.operations(alone) == alone.epochs * 10 * of["d"]
    assert rq5.operations(p.model("dsn")) == p.epochs * 3 * of["dsn"]


def test_its_cells_are_both_evaluations_and_the_search_on_every_robust_model(p):
    cells = rq5.cells(p)
    keys = [(c.panel, c.setting, c.main, c.auxiliary, c.evaluation.model.seed) for c in cells]
    assert len(keys) == len(set(keys))
    own = [c for c in cells if not c.panel.startswith("masking")]
    assert {(c.setting, c.evaluation.attack.name, c.evaluation.attack.steps) for c in own} == {
        ("pgd", "pgd", p.steps),
        ("sea", "sea", p.sea_steps),
    }
    assert {c.evaluation.attack.eps_255 for c in own} == {p.eps_255}
    assert all(c.attacked == "single" and c.evaluation.attack.tasks == c.main for c in own)
    read = {panel: {c.main for c in own if c.panel == panel} for panel in dict.fromkeys(c.panel for c in own)}
    assert read["pgd_at"] == read["against s"] == set("sdn")
    assert read["same cost"] == read["few gat"] == read["gat with rotation"] == {"d"}
    assert {c.main for c in own if c.panel == "gat" and c.auxiliary == "s"} == {"d"}, "GAT protects its main task"
    robust = {spec for _, spec in rq5.models(p, 0)[1:]}
    searched = [c for c in cells if c.panel.startswith("masking")]
    assert {c.evaluation.model for c in searched} == robust
    assert {c.setting for c in searched} == {of for _, *names in masking.CHECKS for of in names} - {"strongest"} | {
        "apgd"
    }
    assert {c.evaluation.source.adversarial for c in searched if c.setting == "transfer"} == {None}


def test_with_two_tasks_no_model_stands_twice(p):
    cells = rq5.cells(p.model_copy(update={"tasks": "sd", "few_images": 0}))
    keys = [(c.panel, c.setting, c.main, c.auxiliary, c.evaluation.model.seed) for c in cells]
    assert len(keys) == len(set(keys))
    assert not [key for key in keys if key[0].startswith("few")]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"recipes": ["trades"]}, "recipes should have pgd_at and gat among them"),
        ({"recipes": ["pgd_at", "gat", "free"]}, "recipes.2: Input should be 'pgd_at'"),
        ({"few_images": 64}, "few_images should be below train_images = 64"),
        ({"many_steps": 5}, "many_steps should be more than steps = 5"),
        ({"eps_255": 16.0}, "eps_255 should be below 255 / 16"),
        ({"self_supervised": ["depth"]}, "self_supervised.0: Input should be 'rotation' or 'jigsaw'"),
    ],
)
def test_what_is_wrong_is_said(p, changes, message):
    with pytest.raises(ValueError, match=message):
        parameters.check({**p.model_dump(), **changes}, rq5.RQ5)


def test_the_notebook_from_training_to_verdicts(tmp_path, run_cells):
    """And what it plans: recipes stand in their own rows, and cost counts them."""
    values = batch.read(machine.root() / "params" / "smoke")["rq5_adversarial_training"]
    values |= {"train_images": 16, "test_images": 4, "panel_images": 4, "epochs": 1, "few_images": 0, "steps": 2}
    values |= {"recipes": ["pgd_at", "gat"], "self_supervised": [], "sea_steps": 1, "many_steps": 3, "inner_steps": 1}
    values |= {"store": str(tmp_path / "store"), "output": str(tmp_path / "out"), "square_queries": 2}
    left = run_cells("rq5_adversarial_training", values)
    written = {path.name for path in (tmp_path / "out").glob("rq5_*")}
    assert {"rq5_errors.csv", "rq5_findings.csv", "rq5_verdicts.csv", "rq5_masking.csv", "rq5_errors.png"} <= written
    table = left["table"].set_index(["panel", "main", "auxiliary"])
    assert (table.sea >= table.clean - 1e-6).all()
    errors = left["errors"]
    of = errors[(errors.panel == "pgd_at") & (errors.main == "s") & (errors.setting == "sea")]
    assert table.sea["pgd_at", "s", "d"] == pytest.approx(of.adversarial_error.mean())
    assert len(left["checks"]) == len(masking.CHECKS) * len(left["searched"])
    assert list(left["verdicts"].number) == [f"5.{k}" for k in range(1, 9)]
    needs = batch.needs({"rq5_adversarial_training": left["p"].model_dump()})
    rows = cost.estimate(needs).set_index("key")
    assert rows.trained.all()
    spec = next(spec for spec in needs.models.values() if spec.adversarial)
    assert rows.image_operations[spec.key] > 3 * spec.epochs * cost.operations(spec)
    assert set(studies.plan(Store(tmp_path / "store"), left["cells"]).recipe) == {"none", "pgd_at", "gat", "half"}
    assert ", pgd_at, seed 0" in batch.title(needs, "train", [spec.key])
