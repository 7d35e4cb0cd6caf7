"""RQ3: its study, tables, verdicts and the search for masked gradients."""

import numpy as np
import pandas as pd
import pytest
import torch
from oracles import errors_of

from mtrlib import attacks, batch, machine, studies
from mtrlib.metrics import tables
from mtrlib.specs import AttackSpec, Evaluation, ModelSpec
from mtrlib.store import Store, evaluation
from mtrlib.studies import masking, measurements, parameters, rq1, rq3
from mtrlib.training import weights


@pytest.fixture
def p() -> rq3.RQ3:
    values = batch.read(machine.root() / "params" / "smoke")["rq3_task_weights"]
    return parameters.check(values, rq3.RQ3)


def changed(p, **values) -> rq3.RQ3:
    return rq3.RQ3(**{**p.model_dump(), **values})


def test_published_weights_tell_main_from_auxiliary_and_others_do_not(p):
    p = changed(p, tasks="nds", balancers=["gradnorm"], masked_pairs=["ds"])
    trained = [(spec.weights, spec.tasks, spec.seed) for spec in studies.models(rq3.cells(p))]
    assert len(trained) == len(set(trained))
    of = {
        weights: {tasks for w, tasks, _ in trained if w == weights} for weights in ("uniform", "published", "gradnorm")
    }
    assert of["uniform"] == {"s", "d", "n", "sd", "sn", "dn"}
    assert of["published"] == {"sd", "ds", "sn", "ns", "dn", "nd"}
    assert of["gradnorm"] == {"sd", "sn", "dn"}
    assert ("uniform", "sd", 1) in trained, "the source of transfer attacks, of another seed"


def test_tasks_without_published_weights_are_left_out_of_that_weighting_alone(p):
    some = changed(p, tasks="dsK", masked_pairs=["dK", "sd"], balancers=["gradnorm"])
    assert some.weightings == ["uniform", "published", "gradnorm"]
    assert some.without_published.startswith("No weights are published for dK, sK, Kd, Ks (main task first)")
    cells = rq3.cells(some)
    of = {w: {c.main + c.auxiliary for c in cells if c.panel == w} for w in some.weightings}
    assert of["uniform"] == of["gradnorm"] == {main + other for main in "dsK" for other in "dsK"}
    assert of["published"] == {"ss", "dd", "KK", "sd", "ds"}
    searched = [(spec.weights, spec.tasks) for spec in masking.models(some)]
    assert searched == [("uniform", "dK"), ("uniform", "sd"), ("published", "sd")]
    none = changed(p, tasks="KA", masked_pairs=["sd"], balancers=[])
    assert none.weightings == ["uniform"]
    assert {spec.weights for spec in studies.models(rq3.cells(none))} == {"uniform"}
    assert not p.without_published


def test_weights_of_your_own_are_one_weighting_more(p):
    own = changed(p, tasks="dK", masked_pairs=["dK"], balancers=[], own_weights={"dK": [1, 0.25]})
    assert own.weightings == ["uniform", "own"]
    cells = [cell for cell in rq3.cells(own) if cell.panel == "own"]
    (model,) = {cell.evaluation.model for cell in cells if cell.main != cell.auxiliary}
    assert model.tasks == "dK", "main task first"
    assert weights.task_weights(model.weights, model.tasks) == (1.0, 0.25)
    assert weights.balancer(model.weights, model.tasks) is None
    with pytest.raises(ValueError, match="one number a task of 's'"):
        ModelSpec(**{**dict(model), "tasks": "s"})
    for wrong in ("1:0", "1:x", "1:inf", "none"):
        with pytest.raises(ValueError, match="or positive numbers such as"):
            ModelSpec(**{**dict(model), "weights": wrong})


def test_uniform_models_are_those_of_rq1(p):
    values = batch.read(machine.root() / "params" / "smoke")["rq1_auxiliary_tasks"]
    of_rq1 = parameters.check(values, rq1.RQ1)
    shared = {spec.key for spec in studies.models(rq1.cells(of_rq1))} & {
        spec.key for spec in studies.models(rq3.cells(p))
    }
    assert len(shared) == 3, "the models of s, d and both, which RQ1 leaves in the store"


def test_cells_attack_what_they_say_with_the_same_budget_and_epoch(p):
    for cell in rq3.cells(p):
        e = cell.evaluation
        assert set(e.attack.tasks) == ({cell.main} if cell.attacked == "single" else {cell.main, cell.auxiliary})
        assert e.epoch == p.epochs
        if not cell.panel.startswith("masking"):
            assert (e.attack.eps_255, e.attack.steps) == (p.eps_255, p.steps)
            assert e.model.weights == (
                cell.panel if cell.auxiliary != cell.main and cell.panel != "dense" else "uniform"
            )


def test_attacks_that_are_the_same_on_one_task_are_run_once(p):
    cells = [c for c in rq3.cells(p) if (c.panel, c.main, c.auxiliary, c.attacked) == ("uniform", "s", "d", "single")]
    assert len(cells) == len(p.attacks)
    assert {cell.evaluation.attack.name for cell in cells} == {"pgd", "apgd", "mim"}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"attacks": ["pgd", "apgd"]}, "pgd, apgd, wgd and wgd_inverse"),
        ({"attacks": ["pgd", "apgd", "wgd", "deepfool"]}, "deepfool"),
        ({"balancers": ["uniform"]}, "gradnorm"),
        ({"own_weights": {"sE": [1.0, 0.1]}}, "out of 'sd', found 'sE'"),
        ({"own_weights": {"sd": [1.0]}}, "own_weights.sd: List should have at least 2"),
        ({"own_weights": {"sd": [1.0, 0.0]}}, "own_weights.sd.1: Input should be greater than 0"),
        ({"masked_pairs": ["s"]}, "pairs of letters, found 's'"),
        ({"masked_pairs": ["sd", "ds"]}, "one order only"),
        ({"many_steps": 5}, "many_steps should be more than steps"),
        ({"tasks": "s"}, "at least two tasks"),
    ],
)
def test_parameters_that_make_no_sense_are_refused(p, values, message):
    with pytest.raises(ValueError, match=message):
        parameters.check({**p.model_dump(), **values}, rq3.RQ3)


def attacked_errors(factors: dict[str, dict], images: int = 40) -> pd.DataFrame:
    """By attack, errors that grow by known factors; the attacked loss is the error."""
    frames = [errors_of(by_cell, images).assign(setting=name, panel="uniform") for name, by_cell in factors.items()]
    return pd.concat(frames).assign(adversarial_attacked_loss=lambda rows: rows.adversarial_error)


def test_the_worst_case_takes_for_each_image_the_attack_that_raised_the_loss_most():
    errors = attacked_errors({"pgd": {("s", "s"): 2.0}, "apgd": {("s", "s"): 2.0}})
    for name, better in (("pgd", errors.image_id % 2 == 0), ("apgd", errors.image_id % 2 == 1)):
        chosen = (errors.setting == name) & better
        errors.loc[chosen, ["adversarial_error", "adversarial_attacked_loss"]] += 1
    errors.loc[errors.setting == "pgd", "adversarial_error"] -= 0.25  # chosen by the loss, reported is the error
    found = tables.worst_case(errors)
    worst = found[found.setting == "worst case"].set_index("image_id").sort_index()
    assert len(found) == len(errors) + 40
    by_hand = errors.sort_values("adversarial_attacked_loss").groupby("image_id").last()
    pd.testing.assert_series_equal(worst.adversarial_error, by_hand.adversarial_error)


def test_the_worst_case_of_runs_is_that_of_the_ensemble(tiny, tmp_path):
    """What the table picks from stored attacks is what `attacks.ensemble` finds."""
    store = Store(tmp_path)
    members = ("pgd", "mim")
    frames = []
    for name in members:
        attack = AttackSpec(name=name, tasks="s", steps=3, images=6)
        rows = store.errors(tiny, attack)
        rows = rows[rows.task == "s"]
        keys = {"panel": "uniform", "setting": name, "auxiliary": "d", "attacked": "single"}
        frames.append(rows.assign(**keys, adversarial_attacked_loss=rows.adversarial_loss))
    worst = tables.worst_case(pd.concat(frames))
    worst = worst[worst.setting == "worst case"].set_index("image_id").adversarial_loss
    model, data = store.model(tiny), store.data(tiny, "test", 6)
    images, targets, masks = data.batch(slice(None))
    losses = attacks.task_losses(model, targets, masks, "s")
    folded = attacks.task_losses(evaluation.for_attack(model, "float32"), targets, masks, "s")  # as the store attacks
    keywords = {"eps": 8 / 255, "step_size": 2 / 255, "steps": 3}
    found = {}
    for name in members:  # the ensemble's members draw their starts one after the other: give each the store's own
        found[name] = attacks.NAMED[name](folded, images, generator=torch.Generator().manual_seed(0), **keywords)
    members = [lambda *_, found=found[name], **__: found for name in members]
    best = losses(attacks.ensemble(losses, images, attacks=members, **keywords))[0]
    np.testing.assert_allclose(worst.loc[list(data.ids)], best.detach(), rtol=1e-4)


TWO_BY_TWO = {("s", "s"): 3.0, ("s", "d"): 2.0, ("d", "d"): 3.0, ("d", "s"): 2.0}


@pytest.mark.filterwarnings("error")
def test_ratios_of_known_errors():
    """Errors grow by 2 under PGD, by 3 under Auto-PGD: a ratio of 1.5 in each of the four pairs."""
    errors = attacked_errors({"pgd": TWO_BY_TWO, "apgd": dict.fromkeys(TWO_BY_TWO, 3.0)})
    ratios = tables.ratios(
        errors[errors.main != errors.auxiliary], ["setting", "attacked"], same_models=True, setting="pgd"
    )
    assert ratios.setting.to_list() == ["apgd", "apgd"]
    assert ratios.ratio.to_list() == pytest.approx([1.5, 1.5], rel=0.02)
    assert ratios.cells.to_list() == [2, 2]
    assert (ratios.low > 1.45).all()
    assert (ratios.high < 1.55).all()


def test_weights_are_compared_at_the_same_attack_and_cell():
    uniform = attacked_errors({"pgd": TWO_BY_TWO})
    weighted = attacked_errors({"pgd": {("s", "d"): 1.5, ("d", "s"): 4.0}}).assign(panel="published")
    found = tables.ratios(pd.concat([uniform, weighted]), ["attacked", "main"], panel="uniform")
    assert (found.cells == 1).all()
    found = found[found.attacked == "single"].set_index("main")
    assert found.ratio.to_dict() == pytest.approx({"s": 0.75, "d": 2.0}, rel=0.02)
    assert found.high.eq(np.inf).all(), "one training says nothing of the next"


def masking_errors(gains: dict[str, float], noise: float = 0.01, images: int = 40) -> pd.DataFrame:
    g = np.random.default_rng(0)
    frames = []
    for setting, gain in gains.items():
        rows = {"image_id": range(images), "clean_attacked_loss": 1.0}
        rows["adversarial_attacked_loss"] = 1 + gain + noise * g.normal(size=images)
        about = {"panel": "masking uniform", "setting": setting, "weights": "uniform", "trained_tasks": "sd"}
        frames.append(pd.DataFrame({**rows, **about}))
    return pd.concat(frames)


HEALTHY = {"pgd": 2.0, "many steps": 2.1, "one step": 1.0, "apgd": 2.2, "square": 0.5, "transfer": 0.4}
HEALTHY |= {"4 eps": 5.0, "16 eps": 9.0, "eps 1": 9.0}


def test_a_model_with_honest_gradients_passes_every_check():
    found = masking.checks(masking_errors(HEALTHY))
    assert len(found) == len(masking.CHECKS)
    assert set(found.result) == {"passes"}
    asked = found.set_index("check").asked
    assert asked["more steps are at least as strong"] == "above -0.0200", "a hundredth of PGD's gain"
    assert asked["the loss saturates up to eps 1"] == "within -0.8998 and 0.8998", "a tenth of the gain before"


@pytest.mark.parametrize(
    ("sign", "check"),
    [
        ({"square": 2.5}, "white-box is at least as strong as no gradients"),
        ({"transfer": 2.5}, "white-box is at least as strong as transfer"),
        ({"one step": 2.4}, "iterative is at least as strong as one step"),
        ({"many steps": 1.5}, "more steps are at least as strong"),
        ({"4 eps": 1.5}, "a larger budget is at least as strong"),
        ({"eps 1": 7.0}, "the loss saturates up to eps 1"),
        ({"eps 1": 18.0}, "the loss saturates up to eps 1"),
    ],
)
def test_each_sign_of_masked_gradients_fails_its_check(sign, check):
    found = masking.checks(masking_errors({**HEALTHY, **sign}))
    assert set(found[found.result == "fails"].check) == {check}


def test_noise_alone_decides_nothing():
    found = masking.checks(masking_errors({**HEALTHY, "many steps": 2.0}, noise=1.0)).set_index("check")
    assert found.result["more steps are at least as strong"] == "open"


def test_zero_gradients_are_counted(tiny, tmp_path):
    store = Store(tmp_path)
    found = masking.zero_gradients(store, [tiny], 4)
    assert found["images without a gradient"][0] == 0
    model = store.model(tiny)
    for decoder in model.decoders.values():
        torch.nn.init.zeros_(decoder[-1].weight)
    flat = masking.zero_gradients(store, [tiny], 3)
    assert flat["images without a gradient"][0] == 1


def test_a_gradient_that_is_not_a_number_is_none(tiny, tmp_path, monkeypatch):
    """Of every pixel of one image, and of half of those of the others."""
    images = torch.rand(4, 3, 8, 8)
    factors = torch.ones_like(images)
    factors[0], factors[1:, :, :4] = torch.nan, torch.nan
    monkeypatch.setattr(measurements, "_losses", lambda *_: (lambda x: (x * factors).sum(dim=(1, 2, 3))[None], images))
    found = masking.zero_gradients(Store(tmp_path), [tiny], 4)
    assert found["images without a gradient"][0] == 0.25
    assert found["values without, in the others"][0] == 0.5


def test_curves_begin_at_the_start_and_never_fall(tiny, tmp_path):
    store = Store(tmp_path)
    wanted = [AttackSpec(name=name, tasks="sd", steps=4, images=4) for name in ("pgd", "apgd")]
    curves = masking.curves(store, [tiny], wanted)
    assert len(curves) == 2 * 5
    for _, line in curves.groupby("attack"):
        assert (np.diff(line.best) >= 0).all()
        assert (line.best >= line.loss - 1e-6).all()


def test_a_transfer_attack_is_made_on_its_source(tiny, tmp_path):
    store = Store(tmp_path)
    attack = AttackSpec(tasks="s", steps=4, images=6)
    other = ModelSpec(**{**dict(tiny), "seed": 1})
    white = store.errors(tiny, attack)
    transferred = store.errors(Evaluation(model=tiny, attack=attack, source=other))
    itself = store.errors(Evaluation(model=tiny, attack=attack, source=tiny))
    np.testing.assert_allclose(white.adversarial_loss, itself.adversarial_loss)
    np.testing.assert_allclose(white.clean_loss, transferred.clean_loss)
    of_s = white.task == "s"
    assert transferred[of_s].adversarial_loss.mean() < white[of_s].adversarial_loss.mean()
    assert set(transferred.attack) == {f"pgd on {other.key}"}
    assert store.has_errors(Evaluation(model=tiny, attack=attack, source=other))
    with pytest.raises(ValueError, match="source"):
        Evaluation(model=tiny, attack=attack, source=ModelSpec(**{**dict(tiny), "tasks": "d"}))
