"""RQ2: its study, marginal vulnerabilities, predictions and verdicts."""

from itertools import combinations

import numpy as np
import pandas as pd
import pytest

from mtrlib import batch, claims, machine
from mtrlib.claims import task_sets
from mtrlib.metrics import theory
from mtrlib.specs import AttackSpec, Evaluation
from mtrlib.store import Store
from mtrlib.studies import parameters, predictions, rq2, study


@pytest.fixture
def p() -> rq2.RQ2:
    values = batch.read(machine.root() / "params" / "smoke")["rq2_marginal_vulnerability"]
    return parameters.check(values, rq2.RQ2)


def changed(p, **values) -> rq2.RQ2:
    return rq2.RQ2(**{**p.model_dump(), **values})


def test_five_tasks_have_thirty_one_sets(p):
    p = changed(p, tasks="EnDds", chains=["sdDnE"])
    cells = rq2.cells(p)
    linf = [cell for cell in cells if cell.panel == "linf" and cell.setting == p.eps_255]
    assert len(linf) == len({cell.evaluation.attack.tasks for cell in linf}) == 31
    assert {cell.evaluation.model.tasks for cell in linf} == {"sdDnE"}
    trained = {cell.evaluation.model.tasks for cell in cells if cell.panel == "chains"}
    assert trained == {"s", "sd", "sdD", "sdDn", "sdDnE"}


def test_every_attack_is_on_the_tasks_that_it_says_with_a_matched_budget(p):
    for cell in rq2.cells(p):
        attack = cell.evaluation.attack
        assert attack.tasks[0] == cell.main
        assert attack.eps_255 == pytest.approx(cell.setting * (np.sqrt(3) * p.size if cell.panel == "l2" else 1))
        assert attack.step_size_255 / attack.eps_255 == pytest.approx(p.step_size_255 / p.eps_255)


def test_chains_keep_the_letters_of_the_tasks(p):
    """So that tasks can be changed alone; one order of all of them is always among those drawn."""
    assert changed(p, chains=["nds", "sdn"]).orders == ["nds", "sdn"]
    assert changed(p, chains=["nEds", "EDs"]).orders == ["nds"]
    assert changed(p, tasks="sE", chains=["nds"]).orders == ["sE"]
    with pytest.raises(ValueError, match="different ASCII letters"):
        changed(p, chains=["ss"])


def errors_of(rises: dict[str, float], images: int = 30, noise: float = 0.0) -> pd.DataFrame:
    """By attacked set, errors in which the attacked loss rises by a known amount."""
    g = np.random.default_rng(0)
    frames = []
    for tasks, rise in rises.items():
        clean = g.uniform(0.5, 1, images)
        rows = {"clean_attacked_loss": clean, "adversarial_attacked_loss": clean + rise + noise * g.normal(size=images)}
        about = {"panel": "linf", "setting": 8.0, "attacked_tasks": tasks, "seed": 0, "image_id": range(images)}
        frames.append(pd.DataFrame({**rows, **about}))
    return pd.concat(frames)


RISES = {"s": 1.0, "d": 0.2, "n": 0.5, "sd": 1.1, "sn": 1.4, "dn": 0.38, "sdn": 1.5}


def test_vulnerabilities_and_marginals_by_hand():
    table = rq2.vulnerabilities(errors_of(RISES))
    summed = table[table.weighting == "sum"].set_index("tasks").value
    mean = table[table.weighting == "mean"].set_index("tasks").value
    assert summed.to_dict() == pytest.approx(RISES)
    assert mean["sn"] == pytest.approx(0.7)
    (before, after), single = task_sets.marginals(task_sets.vulnerabilities(errors_of(RISES), "linf"))
    steps = (after - before).value
    assert len(steps) == 3 * 2 + 3
    assert steps["n", "d"] == pytest.approx(-0.12)
    assert steps["dn", "s"] == pytest.approx(1.12)
    assert single.value.to_dict() == pytest.approx({"s": 1.0, "d": 0.2, "n": 0.5})


def test_the_absolute_change_counts():
    table = rq2.vulnerabilities(errors_of({"s": -0.3}))
    assert table.value.to_list() == pytest.approx([0.3, 0.3])


def test_predictions_of_gradients_that_are_known():
    """Orthogonal gradients of norms 3 and 4: 5 together in l2, 7 in linf if they touch different values."""
    norms = np.array([[3.0, 4.0]] * 4)
    joint = {"linf": np.array([[3.0, 4.0, 7.0]] * 4), "l2": np.array([[3.0, 4.0, 5.0]] * 4)}
    covariances = np.array([[9.0, 0.0], [0.0, 16.0]])
    found = theory.Gradients(
        norms={"linf": norms, "l2": norms},
        joint=joint,
        moments=covariances,
        covariances=covariances,
    )
    sets = task_sets.vulnerabilities(errors_of({"s": 3.2, "d": 4.4, "sd": 5.5}), "linf")
    of_sets, added = predictions.predictions(sets, found, "sd", ["s", "d", "sd"], "l2", 1.0)
    assert of_sets.first_order["sum", "sd"] == pytest.approx(5)
    assert of_sets.first_order["mean", "sd"] == pytest.approx(2.5)
    assert of_sets.theorem_2["mean", "sd"] == pytest.approx(3.8 / np.sqrt(2))
    assert np.isnan(of_sets.theorem_2["sum", "sd"])
    assert added.measured["sum", "s", "d"] == pytest.approx(2.3)
    assert added.first_order["sum", "s", "d"] == pytest.approx(2)
    assert added.theorem_4["sum", "s", "d"] == pytest.approx(2 * 4 + 1 * 3)
    assert added.theorem_4["mean", "s", "d"] == pytest.approx(4 + 3)
    assert added.tight["sum", "s", "d"] == pytest.approx(4)
    assert added.tight["mean", "s", "d"] == pytest.approx(2)


def of_steps(sets: pd.DataFrame, **predictions) -> pd.DataFrame:
    """The measured marginals of summed losses, beside predictions computed from them."""
    (before, after), _ = task_sets.marginals(sets)
    steps = pd.DataFrame({"measured": (after - before).value})
    steps = steps.assign(**{name: function(steps.measured) for name, function in predictions.items()})
    return pd.concat({"sum": steps}, names=["weighting"])


def test_more_and_less_correlated_tasks():
    sets = rq2.subsets("sdDnE")
    rises = {s: 1 + 0.01 * k / len(sets) for k, s in enumerate(sets)}  # 1 / N of it falls with N
    frame = task_sets.vulnerabilities(errors_of(rises, noise=0.001), "linf")
    relative = frame.value / [len(s) for s in frame.index]
    of_sets = pd.concat({"mean": pd.DataFrame({"factor": relative**0.5})}, names=["weighting"])
    found = predictions.fewer_or_alike(frame, of_sets)
    assert found.correlation["less correlated"] > 0.9
    assert found.high["more tasks"] < -0.8


@pytest.mark.parametrize(("sign", "verdict"), [(1, "agrees"), (-1, "disagrees")])
def test_sets_of_one_size_are_compared_by_how_their_gradients_correlate(sign, verdict):
    """Three single tasks alike; a set's vulnerability is its gradients' correlation, or against it. The number of
    tasks, which lowers all of them alike, has no part in it."""
    letters = "sdDn"
    covariances = np.eye(4) + 0.1 * np.abs(np.subtract.outer(np.arange(4), np.arange(4)))
    covariances = (covariances + covariances.T) / 2
    mean = {s: np.mean([covariances[letters.index(a), letters.index(b)] for a, b in combinations(s, 2)] or [0.0])
            for s in rq2.subsets(letters)}  # fmt: skip
    rises = {s: len(s) * (1 + sign * value) if len(s) > 1 else 1.0 for s, value in mean.items()}
    errors = errors_of(rises, noise=0.001)
    empty = dict.fromkeys(("norms", "joint"), {}) | {"moments": np.eye(4)}
    found = predictions.alike(errors, theory.Gradients(**empty, covariances=covariances), letters)
    assert found.value.to_list() == pytest.approx([sign], abs=0.1)
    told = claims.findings("rq2", errors.assign(clean_error=1.0, adversarial_error=1.0), alike=found)
    assert told[told["where"].str.contains("one size")].verdict.to_list() == [verdict]


def test_three_sets_say_nothing_of_how_gradients_correlate_however_many_images():
    """Of three tasks one size has three sets: of their 6 orders one agrees wholly by chance, whatever the noise."""
    letters = "sdD"
    covariances = np.eye(3) + 0.1 * np.abs(np.subtract.outer(np.arange(3), np.arange(3)))
    rises = {s: 2 + covariances[letters.index(s[0]), letters.index(s[1])] if len(s) == 2 else 1.0
             for s in rq2.subsets(letters)}  # fmt: skip
    errors = errors_of(rises, noise=0.0)
    empty = dict.fromkeys(("norms", "joint"), {}) | {"moments": np.eye(3)}
    table = predictions.alike(errors, theory.Gradients(**empty, covariances=covariances), letters)
    assert table.error.to_list() == pytest.approx([0.5**0.5], rel=1e-6)
    told = claims.findings("rq2", errors.assign(clean_error=1.0, adversarial_error=1.0), alike=table)
    told = told[told["where"].str.contains("one size")]
    assert told[["high", "verdict", "needs"]].to_numpy().tolist() == [[1.0, "open", "never at a sensible size"]]


def test_agreement_finds_the_prediction_that_orders_the_marginals():
    g = np.random.default_rng(0)
    rises = {s: len(s) ** 2 * 1.0 + 0.1 * k for k, s in enumerate(rq2.subsets("sdn"))}
    sets = task_sets.vulnerabilities(errors_of(rises, noise=0.001), "linf")
    by = {"theorem_4": lambda m: 2 * m, "tight": lambda m: m - 0.5, "first_order": lambda m: m}
    found = predictions.agreement(sets, of_steps(sets, **by, theorem_2=lambda m: g.permutation(m))).loc["sum"]
    assert found.correlation["theorem_4"] == pytest.approx(1)
    assert (found.above["theorem_4"], found.surely_below["theorem_4"]) == (0, 9)
    assert found.surely_above["tight"] == 9
    assert found.ratio["theorem_4"] == pytest.approx(2)
    assert found.lead_low["theorem_2"] > 0


@pytest.mark.parametrize(("noise", "surely"), [(0.5, 0), (0.001, 9)])
def test_a_bound_that_noise_alone_breaks_is_not_told(noise, surely):
    rises = {s: 3.0 * len(s) for s in rq2.subsets("sdn")}
    sets = task_sets.vulnerabilities(errors_of(rises, noise=noise), "linf")
    by = dict.fromkeys(("theorem_4", "tight", "first_order"), lambda m: m - 0.01)
    found = predictions.agreement(sets, of_steps(sets, **by, theorem_2=lambda m: m * np.nan)).loc["sum"]
    assert "theorem_2" not in found.index
    assert (found.above["theorem_4"], found.surely_above["theorem_4"]) == (9, surely)


def test_assumptions_by_hand():
    """Gradients with a mean of their own, of two tasks with variances 1 and 3 and a correlation of -.5."""
    covariances = np.array([[1.0, -0.5 * np.sqrt(3)], [-0.5 * np.sqrt(3), 3.0]])
    norms = {"linf": np.ones((10, 2)), "l2": np.ones((10, 2))}
    moments = covariances + np.diag([1.0, 0.0])
    found = rq2.assumptions(theory.Gradients(norms, norms, moments, covariances), "sd")
    assert found.mean_share.to_list() == pytest.approx([0.5, 0])
    assert found.expected.to_list() == pytest.approx([0.1, 0.1])
    assert found.relative_variance.to_list() == pytest.approx([0.5, 1.5])
    assert found.correlation.to_list() == pytest.approx([0.5, 0.5])


def test_gradients_of_a_model_do_not_depend_on_the_batch_and_the_expansion_holds_at_small_budgets(tiny, tmp_path):
    store = Store(tmp_path)
    sets = rq2.subsets(tiny.tasks)
    one, two = (rq2.gradients(store, tiny, sets, 7, batch=batch) for batch in (7, 2))
    np.testing.assert_allclose(one.joint["l2"], two.joint["l2"], rtol=1e-3)
    np.testing.assert_allclose(one.norms["linf"], one.joint["linf"][:, :2], rtol=1e-6)
    frames = []
    for eps in (8.0, 0.05):
        attack = AttackSpec(tasks="sd", eps_255=eps, step_size_255=eps / 4, steps=12, images=7)
        run = Evaluation(model=tiny, attack=attack, epoch=tiny.epochs)
        frames.append(study.run(store, [study.Cell("linf", eps, "s", 7, run)]))
    found = rq2.expansion(store, tiny, pd.concat(frames), 7).set_index("eps_255")
    assert abs(found["first over measured"][0.05] - 1) < 0.05
    assert abs(found["first over measured"][0.05] - 1) < abs(found["first over measured"][8.0] - 1)
