"""The losses that attacks on maps climb, beside plain formulas, pixel by pixel."""

import math
from dataclasses import replace

import numpy as np
import oracles
import pytest
import torch

from mtrlib import attacks
from mtrlib.tasks import TASKS

SIZE = (2, 5, 6)  # images, height, width


def shifted(images: torch.Tensor, tasks: str) -> dict[str, torch.Tensor]:
    """Outputs that are linear in each pixel, with rows that no two pixels share: 4 classes, depth, normals."""
    g = torch.Generator().manual_seed(1)
    outputs = {}
    for letter, channels in {"s": 4, "d": 1, "n": 3}.items():
        start, slope = torch.randn(1, channels, 5, 6, generator=g), torch.randn(1, channels, 1, 1, generator=g)
        outputs[letter] = (start + slope * images.mean(dim=1, keepdim=True)) * (2 if letter == "s" else 0.4) + 0.5
    return {letter: outputs[letter] for letter in tasks}


@pytest.fixture
def batch():
    g = torch.Generator().manual_seed(0)
    targets = {"s": torch.randint(0, 3, SIZE, generator=g), "d": torch.rand(2, 1, 5, 6, generator=g)}
    targets["n"] = torch.rand(2, 3, 5, 6, generator=g)
    masks = {letter: torch.rand(SIZE, generator=g) > 0.3 for letter in "sdn"}
    return torch.rand(2, 3, 5, 6, generator=g), targets, masks


def gradients(row: torch.Tensor, outputs: torch.Tensor) -> list[torch.Tensor]:
    return list(torch.autograd.grad(row.sum(), outputs)[0])


def given(outputs: torch.Tensor, letter: str, targets: dict, masks: dict, dense: str) -> torch.Tensor:
    """(B,): the row of one task, whose outputs are what the attack moves."""
    losses = attacks.task_losses(lambda images, tasks: {letter: outputs}, targets, masks, letter, dense=dense)
    return losses(torch.zeros(2, 3, 5, 6))[0]


@pytest.mark.parametrize("dense", ["masked", "balanced", "cosine"])
@pytest.mark.parametrize("letter", "sdn")
def test_the_gradient_is_that_of_the_pixels_weighted_by_hand_and_the_value_that_without_a_mask(batch, letter, dense):
    images, targets, masks = batch
    outputs = shifted(images, letter)[letter].requires_grad_()
    row = given(outputs, letter, targets, masks, dense)
    pixels, classes = TASKS[letter].pixel_loss(outputs, targets[letter]), letter == "s"
    for i, found in enumerate(gradients(row, outputs)):
        mask = masks[letter][i]
        values, label = outputs[i][:, mask].detach().numpy(), targets[letter][i][..., mask].numpy()
        weights = oracles.pixel_weights(dense, values, label, classes)
        assert 0 < (weights > 0).sum() < len(weights) or dense == "cosine"
        weighted = (pixels[i][mask] * torch.from_numpy(weights)).sum() / mask.sum()
        torch.testing.assert_close(found, torch.autograd.grad(weighted.float(), outputs, retain_graph=True)[0][i])
        if dense == "balanced":
            groups = label if classes else oracles.groups_of(label)
            of_group = [pixels[i][mask][torch.from_numpy(groups == group)].mean() for group in set(groups.tolist())]
            assert row[i].item() == pytest.approx(torch.stack(of_group).mean().item(), rel=1e-5)
        else:
            assert row[i].item() == pytest.approx(pixels[i][mask].mean().item(), rel=1e-5)


@pytest.mark.parametrize("dense", ["saturating", "margin", "dlr"])
def test_losses_of_classes_by_their_definitions(batch, dense):
    images, targets, masks = batch
    outputs = shifted(images, "s")["s"]
    row = given(outputs, "s", targets, masks, dense)
    by_hand = {
        "saturating": oracles.js_of_pixel,
        "dlr": oracles.dlr_of_pixel,
        "margin": lambda z, y: np.delete(z, y).max() - z[y],
    }[dense]
    for i in range(2):
        pixels = [
            by_hand(outputs[i, :, y, x].double().numpy(), int(targets["s"][i, y, x]))
            for y, x in masks["s"][i].nonzero().tolist()
        ]
        assert row[i].item() == pytest.approx(np.mean(pixels), rel=1e-5)
    if dense == "dlr":
        torch.testing.assert_close(given(7 * outputs, "s", targets, masks, dense), row)


def test_the_saturating_loss_of_regression_is_a_half_where_a_pixel_errs_as_the_constant_map(batch):
    images, targets, masks = batch
    for letter in "dn":
        target, mask = targets[letter][:1], masks[letter][0]
        valid = target[0][:, mask]
        limit = (valid - valid.mean(dim=1, keepdim=True)).abs().mean()
        row = given((target + limit).expand(2, -1, -1, -1), letter, {letter: target.expand(2, -1, -1, -1)},
                    {letter: mask.expand(2, -1, -1)}, "saturating")  # fmt: skip
        torch.testing.assert_close(row, torch.tensor([0.5, 0.5]))


@pytest.mark.parametrize("letter", "sd")
def test_what_is_broken_pulls_less_and_less(letter):
    """One pixel, ever more wrong: plain losses pull as before, saturating ones stop."""
    away = torch.tensor([0.2, 1, 5, 50, 500])
    pulls = []
    for by in away:
        outputs = torch.stack([torch.zeros(1, 5, 6), by.expand(1, 5, 6)], 1) if letter == "s" else by.expand(1, 1, 5, 6)
        outputs = outputs.clone().requires_grad_()
        target = torch.zeros(1, 5, 6, dtype=torch.long) if letter == "s" else torch.linspace(0, 1, 30).view(1, 1, 5, 6)
        losses = attacks.task_losses(lambda *_, o=outputs: {letter: o}, {letter: target}, None, letter,
                                     dense="saturating")  # fmt: skip
        pulls.append(torch.autograd.grad(losses(torch.zeros(1, 3, 5, 6)).sum(), outputs)[0].abs().sum().item())
    assert all(math.isfinite(pull) for pull in pulls)
    assert pulls[1] > 10 * pulls[-2] >= 10 * pulls[-1]


@pytest.mark.parametrize("error", ["squared error", "absolute error", "angle"])
def test_the_reported_error_of_regression_is_climbed(batch, error):
    images, targets, masks = batch
    task = replace(TASKS["n"], error_name=error)
    outputs = shifted(images, "n")["n"].requires_grad_()

    def model(images, tasks):
        return {"n": outputs}

    model.definitions = {"n": task}
    row = attacks.task_losses(model, targets, masks, "n", dense="error")(images)[0]
    plain = task.error(outputs, targets["n"], masks["n"])
    assert torch.equal(row, plain)
    for found, by_hand in zip(gradients(row, outputs), gradients(plain, outputs), strict=True):
        torch.testing.assert_close(found, by_hand)


def test_an_angle_of_nothing_has_a_gradient_that_is_a_number(batch):
    _, targets, masks = batch
    model = lambda *_: {"n": outputs}  # noqa: E731
    model.definitions = {"n": replace(TASKS["n"], error_name="angle")}
    for sign in (1, -1):
        outputs = (sign * targets["n"]).requires_grad_()
        row = attacks.task_losses(model, targets, masks, "n", dense="error")(torch.zeros(2, 3, 5, 6))[0]
        assert torch.stack(gradients(row, outputs)).isfinite().all()


def test_by_the_reported_error_of_classes_the_best_point_is_kept(batch):
    """Its value is 1 - mIoU, 0 where nothing is labelled; its gradient that of cross-entropy."""
    images, targets, masks = batch
    masks["s"][1] = False
    outputs = shifted(images, "s")["s"].requires_grad_()
    row = given(outputs, "s", targets, masks, "error")
    assert row[0] == TASKS["s"].error(outputs, targets["s"], masks["s"])[0]
    assert row[1] == 0
    plain = given(outputs, "s", targets, masks, "cross_entropy")
    torch.testing.assert_close(gradients(row, outputs)[0], gradients(plain, outputs)[0])


def test_every_attack_is_given_another_variant_of_the_same_losses(batch):
    images, targets, masks = batch
    losses = attacks.task_losses(shifted, targets, masks, "sd")
    for dense in attacks.DENSE:
        made = attacks.task_losses(shifted, targets, masks, "sd", dense=dense)
        other = attacks.variant(attacks.variant(losses, "segpgd"), dense)
        assert torch.equal(other(images), made(images))
        assert other.scheduled == made.scheduled == (dense == "segpgd")
    seen, history = attacks.recorded(losses)
    attacks.variant(seen, "error")(images)
    assert torch.equal(history[0], attacks.variant(losses, "error")(images))
    own = lambda points: points.sum(dim=(1, 2, 3))[None]  # noqa: E731
    assert attacks.variant(own, "error") is own
    with pytest.raises(ValueError, match="dense should be one of"):
        attacks.variant(losses, "focal")


@pytest.mark.parametrize("dense", attacks.DENSE)
def test_labels_without_anything_to_tell_are_no_trouble(dense):
    """A constant label, an image without a valid pixel, a perfect map: numbers everywhere."""
    targets = {"s": torch.zeros(3, 4, 4, dtype=torch.long), "d": torch.full((3, 1, 4, 4), 0.5)}
    targets["n"] = torch.full((3, 3, 4, 4), 0.5)
    mask = torch.ones(3, 4, 4, dtype=torch.bool)
    mask[1] = False

    def model(images, tasks):
        away = images - 0.5
        return {"s": 100 * torch.cat([away, away[:, :1]], dim=1), "d": 0.5 + away[:, :1], "n": 0.5 + away}

    points = torch.tensor([0.7, 0.7, 0.5]).view(3, 1, 1, 1).expand(3, 3, 4, 4).clone().requires_grad_()
    rows = attacks.task_losses(model, targets, dict.fromkeys("sdn", mask), "sdn", dense=dense)(points)
    (gradient,) = torch.autograd.grad(rows.sum(), points)
    assert rows.isfinite().all()
    assert gradient.isfinite().all()
    assert (gradient[1] == 0).all()


def test_classes_are_balanced_in_the_image_or_in_a_set_of_known_counts(batch):
    """Weights N / (K N_y) over the set; with an image's own counts they are those without."""
    images, targets, masks = batch
    outputs = shifted(images, "s")["s"].requires_grad_()
    model = lambda *_: {"s": outputs}  # noqa: E731

    def balanced(counts):
        losses = attacks.task_losses(model, targets, masks, "s", dense="balanced", counts=counts)
        return losses(images)[0]

    own = torch.bincount(targets["s"][0][masks["s"][0]], minlength=4)
    torch.testing.assert_close(balanced({"s": own})[0], balanced(None)[0])
    counts = torch.tensor([10, 1000, 90, 0])
    row = balanced({"s": counts})
    pixels = TASKS["s"].pixel_loss(outputs, targets["s"])
    weights = 1100 / 3 / counts.clamp(min=1)[targets["s"]]
    right = outputs.argmax(dim=1) == targets["s"]
    for i, found in enumerate(gradients(row, outputs)):
        weighted = (pixels * weights)[i][masks["s"][i]]
        torch.testing.assert_close(row[i], weighted.mean())
        masked = (weighted * right[i][masks["s"][i]]).mean()
        torch.testing.assert_close(found, torch.autograd.grad(masked, outputs, retain_graph=True)[0][i])
