"""The published behaviours, each held against the definition on a case worked out by hand."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from mtrlib import attacks, data, metrics, models
from mtrlib.claims import printed, published
from mtrlib.specs import AttackSpec
from mtrlib.studies import fidelity
from mtrlib.studies.fidelity import CHANGES, changes, trajectory

LINF = {"eps": 8 / 255, "step_size": 2 / 255, "steps": 5}


def linear(slopes: torch.Tensor) -> attacks.Losses:
    """(T, 3, H, W) -> losses whose gradient is the slope of the task, the same for every image; at least 1."""
    return lambda images: torch.einsum("tchw,bchw->tb", slopes, images) + slopes.abs().sum(dim=(1, 2, 3))[:, None] + 1


def slopes(tasks: int = 1, size: int = 4, seed: int = 0) -> torch.Tensor:
    return torch.randn(tasks, 3, size, size, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def images() -> torch.Tensor:
    return torch.rand(3, 3, 4, 4, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_without_a_change_it_is_the_attack_of_the_library(images, norm):
    losses = linear(slopes(2))
    eps = {"linf": 8 / 255, "l2": 0.5}[norm]
    settings = {"eps": eps, "step_size": eps / 4, "steps": 5, "norm": norm}
    ours = trajectory(losses, images, **settings, generator=torch.Generator().manual_seed(3))
    theirs = attacks.pgd(losses, images, **settings, generator=torch.Generator().manual_seed(3))
    assert torch.equal(ours["best"], theirs)
    weighed = trajectory(
        losses, images, **settings, weigh=attacks.task_attack_rates, generator=torch.Generator().manual_seed(3)
    )
    theirs = attacks.wgd(losses, images, **settings, generator=torch.Generator().manual_seed(3))
    assert torch.equal(weighed["best"], theirs)


def test_the_published_start_is_x_plus_eps_everywhere(images):
    first = trajectory(linear(slopes()), images, **LINF, changes=["start"])["first"]
    torch.testing.assert_close(first, (images + 8 / 255).clamp(max=1))
    other = trajectory(linear(slopes()), images, **LINF, generator=torch.Generator().manual_seed(0))["first"]
    assert (other < images).any(), "a random start goes both ways"


def test_the_published_start_in_l2_lies_on_the_ball(images):
    """48 values, each moved by the same: 0.1 / sqrt(48), and cut at 1."""
    run = trajectory(linear(slopes()), images, eps=0.1, step_size=0.02, steps=2, norm="l2", changes=["start"])
    torch.testing.assert_close(run["first"], (images + 0.1 / 48**0.5).clamp(max=1), rtol=1e-5, atol=1e-6)


def test_read_before_the_update_scores_one_step_less():
    """From 0.5 + 8/255, against the gradient's positive sign, the loss falls by 2/255 a step where the slope is -1."""
    grey = torch.full((1, 3, 4, 4), 0.5)
    run = trajectory(linear(-torch.ones(1, 3, 4, 4)), grey, **LINF, changes=["start"])
    for name, updates in {"first": 0, "last": 5, "last, early": 4, "best": 5, "best, early": 4}.items():
        torch.testing.assert_close(run[name], grey + 8 / 255 - 2 * updates / 255)


def test_the_last_point_may_be_weaker_than_the_best():
    """The loss -|x - 0.5| of each value is highest in the middle: steps of 6/255 from 8/255 above jump over it."""

    def losses(images):
        return -(images - 0.5).abs().sum(dim=(1, 2, 3))[None]

    grey = torch.full((1, 3, 4, 4), 0.5)
    run = trajectory(losses, grey, eps=8 / 255, step_size=6 / 255, steps=3, changes=["start"])
    points = {"first": 8, "last, early": -4, "last": 2, "best, early": 2, "best": 2}
    for name, away in points.items():
        torch.testing.assert_close(run[name], grey + away / 255, rtol=0, atol=1e-6)
    run = trajectory(losses, grey, eps=8 / 255, step_size=6 / 255, steps=4, changes=["start"])
    torch.testing.assert_close(run["last"], grey - 4 / 255)
    torch.testing.assert_close(run["best"], grey + 2 / 255)


def test_an_l2_perturbation_has_the_length_eps_over_the_whole_batch(images):
    """No matter how many images, and out of [0, 1] where they are white."""
    for batch in (images, torch.ones(20, 3, 4, 4)):
        run = trajectory(
            linear(slopes()), batch, eps=8 / 255, step_size=0.1, steps=3, norm="l2", changes=["batch l2"],
            generator=torch.Generator().manual_seed(0),
        )  # fmt: skip
        for name in ("last", "last, early"):
            assert (run[name] - batch).norm().item() == pytest.approx(8 / 255, rel=1e-5)
    assert run["last"].max() > 1
    run = trajectory(linear(slopes()), images, eps=8 / 255, step_size=0.01, steps=3, norm="l2")
    lengths = (run["best"] - images).flatten(1).norm(dim=1)
    assert (lengths > 0.9 * 8 / 255).all(), "by definition every image has the budget to itself"


def test_one_step_of_the_published_l2_attack_by_hand():
    """Grey images, slope 1: from x + eps along eps / 2B times the gradient, both the same everywhere, and scaled."""
    grey = torch.full((2, 3, 4, 4), 0.5)
    run = trajectory(linear(torch.ones(1, 3, 4, 4)), grey, eps=0.2, step_size=9.0, steps=1, norm="l2",
                     changes=["batch l2", "start"])  # fmt: skip
    torch.testing.assert_close(run["first"], grey + 0.2)
    torch.testing.assert_close(run["last"], grey + 0.2 / 96**0.5)
    half = torch.zeros(1, 3, 4, 4)
    half[:, 0] = 1
    run = trajectory(linear(half), grey, eps=0.2, step_size=9.0, steps=1, norm="l2", changes=["batch l2", "start"])
    change = torch.full((2, 3, 4, 4), 0.2) + half * 0.2 / 4
    torch.testing.assert_close(run["last"], grey + 0.2 * change / change.norm())


def test_the_published_wgd_has_one_constant_weight_a_task():
    first = torch.tensor([[1.0, 3.0], [10.0, 30.0]])
    assert torch.equal(fidelity.constant_rates(first, first), torch.ones(2, 2))
    for now in (first * 2, torch.tensor([[5.0, 1.0], [2.0, 2.0]])):
        assert torch.allclose(fidelity.constant_rates(now, first), torch.tensor([[0.5, 0.5], [0.05, 0.05]]))
    assert torch.allclose(
        attacks.task_attack_rates(first * torch.tensor([[3.0], [1.0]]), first)[:, 0], torch.tensor([1.5, 0.5])
    )


def test_the_published_wgd_on_one_task_is_pgd(images):
    runs = [
        trajectory(linear(slopes()), images, **LINF, weigh=weigh, generator=torch.Generator().manual_seed(0))
        for weigh in (None, fidelity.constant_rates)
    ]
    assert torch.equal(runs[0]["last"], runs[1]["last"])
    two = [
        trajectory(linear(slopes(2) * torch.tensor([1.0, 50.0]).view(2, 1, 1, 1)), images, **LINF, weigh=weigh,
                   generator=torch.Generator().manual_seed(0))
        for weigh in (None, fidelity.constant_rates)
    ]  # fmt: skip
    assert not torch.equal(two[0]["last"], two[1]["last"]), "on two it is another attack"


def test_losses_are_averaged_over_all_pixels_and_that_of_s_is_weighted_by_class():
    """Four pixels, logits 0 of two classes: cross-entropy log 2 at each; one is masked, one is an object. Of d the
    error is 1 at each; three are masked."""

    def model(images, tasks):
        return {"s": torch.zeros(1, 2, 2, 2), "d": torch.zeros(1, 1, 2, 2)}

    targets = {"s": torch.tensor([[[0, 0], [1, 0]]]), "d": torch.ones(1, 1, 2, 2)}
    masks = {"s": torch.tensor([[[True, True], [True, False]]]), "d": torch.tensor([[[True, False], [False, False]]])}
    weights = fidelity.class_weights(("wall", "chair"))
    assert weights.tolist() == pytest.approx([0.542, 8.654625])
    image = torch.zeros(1, 3, 2, 2)
    changed = fidelity.task_losses(model, targets, masks, "sd", frozenset({"class weights"}), weights)(image)
    by_hand = np.log(2) * (0.542 + 0.542 + 8.654625) / 4
    assert changed.flatten().tolist() == pytest.approx([by_hand, 0.25])
    plain = fidelity.task_losses(model, targets, masks, "sd", frozenset(), weights)(image)
    assert plain.flatten().tolist() == pytest.approx([np.log(2), 1.0])


def test_taskonomys_classes_have_the_published_weights():
    weights = fidelity.class_weights(data.tasks("taskonomy")["s"].class_names)
    assert weights[:2].tolist() == pytest.approx([0, 0.542])
    assert len(weights) == 18
    assert 7.1 < weights[2:].min() < weights[2:].max() < 9.2


def test_all_heads_count_and_images_may_cancel():
    clean = np.array([[1.0, 1.0], [2.0, 2.0]])
    adversarial = np.array([[2.0, 0.5], [2.0, 5.0]])
    assert fidelity.all_heads(clean, adversarial) == pytest.approx(abs(0.25 + 1.5))
    assert metrics.adversarial_vulnerability(clean[0], adversarial[0]) == pytest.approx(0.75)
    with pytest.raises(ValueError, match="should both be"):
        fidelity.all_heads(clean[0], adversarial)


def test_heads_by_position_are_swapped_where_the_order_differs():
    model = models.build("resnet18_small", "Ed", seed=0).eval()
    images = torch.rand(2, 3, 16, 16)
    right, swapped = model(images), fidelity.by_position(model, "dE")(images)
    assert torch.equal(swapped["d"], right["E"])
    assert torch.equal(swapped["E"], right["d"])
    assert torch.equal(fidelity.by_position(model, "Ed")(images)["E"], right["E"])
    with pytest.raises(ValueError, match="head of s does not have the shape of one for d"):
        fidelity.by_position(models.build("resnet18_small", "sd", seed=0), "ds")
    with pytest.raises(ValueError, match="letters of 'Ed'"):
        fidelity.by_position(model, "Es")


@pytest.mark.parametrize("name", ["pgd", "wgd"])
def test_measured_points_are_those_of_the_library(name):
    """The best point and the clean image, valid pixels: what `evaluation.errors` measures."""
    from mtrlib.store import evaluation

    rooms = data.load("rooms", tasks="sd", split="test", size=16, limit=40)
    model = models.build("resnet18_small", "sd", classes=len(rooms.class_names), seed=0).eval().requires_grad_(False)
    attack = AttackSpec(name=name, tasks="sd", steps=3, images=40)
    theirs = evaluation.errors(model, rooms, attack, batch_size=32)
    ours = fidelity.errors(model, rooms, attack)
    assert sorted(ours.batch.unique()) == [0, 1]
    ours = ours[ours.counted == "masked"]
    for point, kind in (("clean", "clean"), ("best", "adversarial")):
        merged = ours[ours.point == point].merge(theirs, on=["task", "image_id"])
        assert len(merged) == 80
        np.testing.assert_array_equal(merged.error, merged[f"{kind}_error"])
        np.testing.assert_array_equal(merged.loss, merged[f"{kind}_loss"])


def test_tasks_are_those_that_the_model_was_built_with():
    """A depth that its data set defines by squared loss and absolute error is attacked and measured as such."""
    from mtrlib.store import evaluation

    rooms = data.load("rooms", tasks="sd", split="test", size=16, limit=8)
    defined = rooms.tasks | {"d": replace(rooms.tasks["d"], loss_name="squared", error_name="absolute error")}
    model = models.build("resnet18_small", "sd", definitions=defined, seed=0).eval().requires_grad_(False)
    attack = AttackSpec(tasks="sd", steps=2, images=8)
    theirs = evaluation.errors(model, rooms, attack, batch_size=32)
    ours = fidelity.errors(model, rooms, attack)
    merged = ours[(ours.counted == "masked") & (ours.point == "best")].merge(theirs, on=["task", "image_id"])
    np.testing.assert_array_equal(merged.error, merged.adversarial_error)
    images, targets, masks = rooms.batch(slice(None))
    weights = torch.ones(len(rooms.class_names))
    weighted = fidelity.task_losses(model, targets, masks, "sd", frozenset({"class weights"}), weights)(images)
    plain = fidelity.task_losses(model, targets, masks, "sd", frozenset(), weights)(images)
    torch.testing.assert_close(weighted, plain)


def test_errors_of_all_pixels_count_what_has_no_label():
    """A depth of 2 where the truth is 1, but 4 under the mask: 1 for valid pixels, (3 + 9) / 4 for all."""
    names = ("uncertain", "background", "chair")

    def model(images, tasks=None):
        return {
            "d": torch.full((1, 1, 2, 2), 2.0),
            "s": torch.nn.functional.one_hot(torch.tensor([[[1, 1], [2, 1]]]), 3).permute(0, 3, 1, 2).float(),
        }

    model.tasks = "sd"
    targets = {"d": torch.tensor([[[[1.0, 1.0], [1.0, 5.0]]]]), "s": torch.tensor([[[1, 1], [1, 0]]])}
    mask = torch.tensor([[[True, True], [True, False]]])
    rows = {
        (row["task"], row["counted"]): row
        for row in changes._measure(model, torch.zeros(1, 3, 2, 2), targets, {"s": mask, "d": mask}, names)
    }
    assert rows["d", "masked"]["error"].tolist() == [1.0]
    assert rows["d", "all"]["error"].tolist() == [(3 * 1 + 9) / 4]
    # Background: two of three valid pixels; with the uncertain one as background three of four.
    assert rows["s", "masked"]["error"].tolist() == pytest.approx([1 - 2 / 3])
    assert rows["s", "all"]["error"].tolist() == pytest.approx([1 - 3 / 4])
    assert rows["s", "masked"]["intersection"] == [[0, 2, 0]]
    assert rows["s", "masked"]["union"] == [[0, 3, 1]]
    assert rows["s", "all"]["union"] == [[0, 4, 1]]


def test_a_change_that_does_not_exist_is_refused(images):
    assert len(CHANGES) == 11
    with pytest.raises(ValueError, match="should be out of start, baseline.* Found strat"):
        trajectory(linear(slopes()), images, **LINF, changes=["strat"])
    with pytest.raises(ValueError, match="steps = 0"):
        trajectory(linear(slopes()), images, eps=0.1, step_size=0.1, steps=0)


def test_five_cells_of_the_xception_are_those_of_the_resnet_152():
    """Two tables of different networks, of 25 cells each: the pairs whose heads fail to load by position."""
    found = printed.equal_cells().set_index(["main", "auxiliary"])
    assert list(found.index) == [("d", "s"), ("D", "s"), ("D", "n"), ("E", "s"), ("E", "n")]
    assert found.single.all()
    assert found.joint.all()
    assert (found.clean | found.clean_times_100).all()
    for one, two in (("2", "3"), ("2", "5"), ("3", "4"), ("3", "6"), ("5", "6")):
        assert printed.equal_cells(one, two).empty, "no other tables have a cell in common"


def test_wgd_and_pgd_differ_where_they_are_one_attack():
    found = printed.wgd_on_one_task().set_index("main")
    assert found.wgd_over_pgd.round(1).to_dict() == {"s": 1.1, "d": 2.4, "D": 2.4, "n": 1.7, "E": 4.0}
    assert (found.wgd_over_pgd_supplement > 1.1).all(), "eps = 8/255 does not explain it"
    assert (found.wgd_twice - 1).abs().max() < 0.005
    assert found.apgd_twice["E"] == pytest.approx(68.06 / 81.77)


def test_the_same_models_are_more_vulnerable_in_the_supplement():
    found = printed.table_1a_again()
    assert (found[found.main != "s"]["mean"] > 1.2).all()
    assert (found[found.main == "s"]["mean"] < 1).all()
    assert found.cells.sum() == 25 + 20


def test_what_follows_from_the_printed_tables():
    """By the rules that judge our own tables: a cell counts as lower from 10 % of the error under attack on."""
    found = printed.follows().set_index("number")
    verdicts = found.verdict
    assert list(verdicts[verdicts == printed.DOES_NOT].index) == ["1.3", "1.5", "3.1", "3.4", "4.3", "4.4"]
    assert list(verdicts[verdicts == printed.FOLLOWS].index) == ["1.2", "3.2", "3.3", "4.2"]
    assert set(verdicts) == {printed.DOES_NOT, printed.FOLLOWS, printed.NO_TABLE}
    assert "E: 0% of the auxiliary tasks lower the vulnerability. The claim needs at" in found.computed["3.4"]


def test_printed_findings_are_those_of_plain_arithmetic():
    rows = printed.findings().set_index(["number", "where"]).estimate
    what = "cells less vulnerable than the single-task model"
    for attacked in ("single", "joint"):
        times = 1 + published.vulnerability("1A", attacked)
        alone = 1 + np.diag(published.vulnerability("1A", "single"))
        pairs = ~np.eye(5, dtype=bool)
        lower = times.div(alone, axis=0).to_numpy()[pairs] < 1 / 1.1
        assert rows["1.2", f"linf, {attacked}: {what}"] == lower.mean()
    over = (1 + published.vulnerability("2A apgd", "as_published")) / (1 + published.vulnerability("1A", "joint"))
    mean = np.exp(np.log(over.to_numpy()[~np.eye(5, dtype=bool)]).mean())
    where = "uniform weights, apgd, joint, mean of 20 cells: error under attack, over PGD's"
    assert rows["3.2", where] == pytest.approx(mean)
    ranks = [
        spearmanr(*(published.vulnerability("3", how).loc[main] for how in ("none", "single"))).statistic
        for main in "sdDnE"
    ]
    where = "clean error as proxy of the vulnerability: rank correlation within main tasks"
    assert rows["4.3", where] == pytest.approx(np.mean(ranks))
