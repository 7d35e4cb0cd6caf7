"""What the paper's published code does where it differs from the definitions, one named change at a time.

The paper: arXiv 2110.15053. The code: its authors' public repository, folder MTVulnerability, whose behaviour is
described here and not copied. Nothing else in the library takes a change; `ladder` climbs from none of them to all.
That the code sums errors over pixels instead of averaging them is no change: ratios of images of one size stay.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from mtrlib import attacks, machine
from mtrlib.attacks.ball import Weigh, around, ascent, direction, keep, nothing_yet, score
from mtrlib.data import Dataset
from mtrlib.models import MultiTaskModel
from mtrlib.specs import AttackSpec
from mtrlib.store import evaluation
from mtrlib.tasks import definitions, mean_over_valid, parse, under_mask

# In the order of the ladder. What is not changed is as the library defines it.
CHANGES = {
    "start": "attacks begin at x + eps everywhere, not at a random point of the ball",
    "baseline": "the clean error is read at the first point of the attack, not at the image",
    "last": "the last point is scored, not the strongest",
    "early": "it is scored before its last update",
    "means": "a ratio of means instead of the mean of ratios, with the mIoU of a whole batch",
    "unmasked": "errors count pixels without a valid label",
    "class weights": "attacked losses are means over all pixels, valid or not, and that of s is weighted by class",
    "batch l2": "an l2 perturbation is scaled by the length of its whole batch",
    "constant WGD": "WGD weighs a task with 1 / L_i(0) from its second step on",
    "eps 4": "PGD in l-infinity has eps = 4/255, all other attacks keep theirs",
    "third": "under PGD weighted models have a third of the epochs of uniform ones",
}
# What figures and tables call them.
TITLES = {
    "start": "start at x + eps",
    "baseline": "clean error at the start point",
    "last": "last point, not best",
    "early": "scored a step early",
    "means": "ratio of means",
    "unmasked": "unlabelled pixels count",
    "class weights": "class-weighted losses",
    "batch l2": "l2 length of a whole batch",
    "constant WGD": "constant WGD weights",
    "eps 4": "PGD at eps 4/255",
    "third": "weighted models: 1/3 of epochs",
}
BATCH = 32  # images, as the published jobs attack them: several changes look at whole batches

# Weights of the classes in the loss of s, as the file semseg_prior_factor.npy of the public code has them: background
# and sixteen kinds of objects; "uncertain" is masked.
BACKGROUND = 0.542
OBJECTS = (
    9.167,
    7.331,
    7.162,
    8.723,
    7.613,
    8.237,
    9.149,
    8.822,
    9.086,
    8.914,
    9.177,
    9.035,
    8.604,
    9.170,
    9.147,
    9.137,
)
_SURROUNDINGS = {"background", "floor", "ceiling", "wall", "door", "window", "column", "uncertain"}


def check(changes: Iterable[str]) -> frozenset[str]:
    """The names of changes as a set, if all of them are in `CHANGES`."""
    changes = frozenset(changes)
    if changes - set(CHANGES):
        unknown = ", ".join(sorted(changes - set(CHANGES)))
        raise ValueError(f"Parameter changes should be out of {', '.join(CHANGES)}. Found {unknown}.")
    return changes


def class_weights(class_names: tuple[str, ...]) -> Tensor:
    """(C,): the weights of the classes in the loss of s. Those of Taskonomy are the published ones; of other classes
    walls, floors and the like have that of the background, and the rest the mean of the published objects, 8.65:
    an approximation, since the published ones come from how often a class is seen there."""
    if class_names[:2] == ("uncertain", "background") and len(class_names) == len(OBJECTS) + 2:
        return torch.tensor([0.0, BACKGROUND, *OBJECTS])
    objects = sum(OBJECTS) / len(OBJECTS)
    return torch.tensor([BACKGROUND if name in _SURROUNDINGS else objects for name in class_names])


def task_losses(
    model: MultiTaskModel, targets: dict, masks: dict, tasks: str, changes: frozenset[str], weights: Tensor
) -> attacks.Losses:
    """As `attacks.task_losses`; with "class weights" each loss is the mean over all pixels of mask times loss and, of
    s, weight of the label, `weights` being (C,)."""
    if "class weights" not in changes:
        return attacks.task_losses(model, targets, masks, tasks)
    defined = definitions(model)
    targets = {letter: under_mask(targets[letter], masks[letter]) for letter in tasks}

    def losses(images: Tensor) -> Tensor:
        outputs = model(images, tasks)
        rows = []
        for letter in tasks:
            pixels, mask = defined[letter].pixel_loss(outputs[letter], targets[letter]), masks[letter]
            pixels = pixels if mask is None else torch.where(mask, pixels, 0.0)
            if letter == "s":
                pixels = pixels * weights.to(pixels.device)[targets["s"].long()]
            rows.append(mean_over_valid(pixels, None))
        return torch.stack(rows)

    return losses


def constant_rates(losses: Tensor, first: Tensor) -> Tensor:
    """(T, B) weights of the published WGD, for `weigh`: 1 in the first step, where both losses are one tensor, and then
    1 / L_i(0), with L_i(0) the mean of task i over the batch at the start."""
    if losses is first:
        return torch.ones_like(losses)
    return (1 / first.mean(dim=1, keepdim=True)).expand_as(losses)


def trajectory(
    losses: attacks.Losses,
    images: Tensor,
    *,
    eps: float,
    step_size: float,
    steps: int,
    norm: str = "linf",
    changes: Iterable[str] = (),
    weigh: Weigh | None = None,
    generator: torch.Generator | None = None,
) -> dict[str, Tensor]:
    """One run of `attacks.pgd` (with `weigh`, of WGD) and the points at which one may read it.

    Parameters
    ----------
    losses, images, eps, step_size, steps, norm, generator : as in `attacks.pgd`.
    changes : of them "start" and "batch l2" change the run. The latter, with B images in the batch, leaves the range of
        images alone and has no step size: the change moves along eps / 2B times the gradient of the summed losses and
        is scaled to the length eps, of the batch as a whole. (In the published range, [-1, 1], both are twice that.)
    weigh : weights of the tasks, as in `attacks.apgd`.

    Returns
    -------
    dict of (B, 3, H, W), in [0, 1] but for "batch l2": "first", where the run begins; "best", the strongest of its
    steps + 1 points; "best, early", that of all but the last of them; "last"; "last, early", after steps - 1 updates.
    """
    changes = check(changes)
    ball = around(images, eps, norm, step_size=step_size, steps=steps)
    if steps < 1 or not eps > 0:
        raise ValueError(f"Parameters steps and eps should be above 0. Found steps = {steps}, eps = {eps}.")
    images = ball.images
    whole_batch = norm == "l2" and "batch l2" in changes
    if "start" in changes:
        current = (images + eps).clamp(max=1) if whole_batch else ball.project(images + eps)
    else:
        current = ball.project(images + ball.noise(generator))
    points = {"first": current}
    best, best_loss = nothing_yet(images)
    first = None
    for _ in range(steps):
        rows, gradient = ascent(losses, current, weigh, first)
        first = rows if first is None else first
        best, best_loss = keep(best, best_loss, current, rows.sum(dim=0))
        points |= {"last, early": current, "best, early": best}
        if whole_batch:
            change = current + gradient * (eps / (2 * len(images))) - images
            current = images + change * (eps / change.norm().clamp(min=1e-30))
        else:
            current = ball.project(current + step_size * direction(gradient, norm))
    best, _ = keep(best, best_loss, current, score(losses, current))
    points |= {"last": current, "best": best}
    return points if whole_batch else {name: ball.inside(point) for name, point in points.items()}


def errors(
    model: MultiTaskModel,
    data: Dataset,
    attack: AttackSpec,
    changes: Iterable[str] = (),
    *,
    precision: str = "float32",
    device: torch.device | str = "cpu",
) -> pd.DataFrame:
    """Attack the images of `data` in batches of `BATCH` and measure every point of the run.

    Parameters
    ----------
    model, data, precision, device : as in `evaluation.errors`.
    attack : "pgd" or "wgd".
    changes : those that change the run: "start", "batch l2", "class weights" and "constant WGD".

    Returns
    -------
    One row an image, task of the model, point ("clean" and those of `trajectory`) and way to count ("masked", valid
    pixels only, or "all"): point, counted, task, image_id, batch, error, loss (of valid pixels, unweighted), and of s
    intersection and union, lists of pixels by class.
    """
    changes = check(changes)
    if attack.name not in ("pgd", "wgd"):
        raise ValueError(
            f"Parameter attack should be pgd or wgd: the published code has no other. Found {attack.name}."
        )
    rates = constant_rates if "constant WGD" in changes else attacks.task_attack_rates
    attacked = evaluation.for_attack(model.eval(), precision)
    weights, kind = class_weights(data.class_names), torch.device(device).type
    frames = []
    for number, start in enumerate(range(0, len(data), BATCH)):
        images, targets, masks = data.batch(slice(start, start + BATCH), device)
        with torch.autocast(kind, torch.bfloat16, enabled=precision == "bfloat16"):
            points = trajectory(
                task_losses(attacked, targets, masks, attack.tasks, changes, weights),
                images,
                eps=attack.eps_255 / 255,
                step_size=attack.step_size_255 / 255,
                steps=attack.steps,
                norm=attack.norm,
                changes=changes,
                weigh=rates if attack.name == "wgd" else None,
                generator=torch.Generator().manual_seed(attack.seed),
            )
        ids = data.ids[start : start + BATCH]
        for name, point in {"clean": images, **points}.items():
            for rows in _measure(model, point, targets, masks, data.class_names):
                frames.append(pd.DataFrame({"point": name, "image_id": ids, "batch": number, **rows}))
    return pd.concat(frames, ignore_index=True)


def all_heads(clean_loss, adversarial_loss) -> float:
    """The published adversarial vulnerability of a batch: |mean over images of adversarial - clean loss|, summed over
    all heads of the model, attacked or not, before the absolute value. Definition 1 has the mean of absolute changes
    of the attacked ones, `metrics.adversarial_vulnerability`. Both losses are (T, N), a row a head."""
    clean, adversarial = np.asarray(clean_loss, float), np.asarray(adversarial_loss, float)
    if clean.shape != adversarial.shape or clean.ndim != 2:
        raise ValueError(f"Losses should both be (T, N). Found {clean.shape} and {adversarial.shape}.")
    return float(abs((adversarial - clean).mean(axis=1).sum()))


def by_position(model: MultiTaskModel, tasks: str) -> MultiTaskModel:
    """The model as it is loaded where heads are stored by position (the published Xception) and the attack orders the
    tasks differently from the training: decoder i serves task i of `tasks`.

    Raises ValueError where a head is of another shape than its new task needs: then loading fails.
    """
    if set(parse(tasks)) != set(model.tasks):
        raise ValueError(f"Parameter tasks should be the letters of {model.tasks!r} in some order. Found {tasks!r}.")
    for stored, letter in zip(model.tasks, tasks, strict=True):
        if _shapes(model, stored) != _shapes(model, letter):
            raise ValueError(f"The head of {stored} does not have the shape of one for {letter}.")
    loaded = MultiTaskModel(model.encoder, dict(zip(tasks, model.decoders.values(), strict=True)), model.definitions)
    loaded.mean, loaded.deviation = model.mean, model.deviation
    return loaded.train(model.training)


def fit_by_position(model: MultiTaskModel, tasks: str) -> bool:
    """Whether `by_position` loads the model, trained or not."""
    return all(_shapes(model, stored) == _shapes(model, task) for stored, task in zip(model.tasks, tasks, strict=True))


def _shapes(model: MultiTaskModel, task: str) -> list[torch.Size]:
    return [parameter.shape for parameter in model.decoders[task].parameters()]


@torch.no_grad()
def _measure(model: MultiTaskModel, images: Tensor, targets: dict, masks: dict, class_names: tuple[str, ...]):
    with machine.exact():
        outputs = model(images)
    for letter in model.tasks:
        task, output, target, mask = definitions(model)[letter], outputs[letter], targets[letter], masks[letter]
        loss = task.loss(output, target, mask).cpu().numpy()
        for counted in ("masked", "all"):
            label, valid = (
                (target, mask) if counted == "masked" else (_uncertain_is_background(letter, target, class_names), None)
            )
            rows = {"counted": counted, "task": letter, "loss": loss}
            rows["error"] = task.error(output, label, valid).cpu().numpy()
            if letter == "s":
                count = partial(_count, classes=len(class_names), valid=valid)
                both, either = count(output.argmax(dim=1), label.long())
                rows |= {"intersection": both.tolist(), "union": either.tolist()}
            yield rows


def _uncertain_is_background(letter: str, target: Tensor, class_names: tuple[str, ...]) -> Tensor:
    if letter != "s" or not {"uncertain", "background"} <= set(class_names):
        return target
    uncertain, background = (class_names.index(name) for name in ("uncertain", "background"))
    return torch.where(target == uncertain, background, target)


def _count(predicted: Tensor, label: Tensor, classes: int, valid: Tensor | None) -> tuple[Tensor, Tensor]:
    """(B, H, W) indices -> (B, C) pixels of the intersection and of the union of each class."""
    kinds = torch.arange(classes, device=label.device).view(-1, 1, 1, 1)
    seen, true = predicted == kinds, label == kinds  # (C, B, H, W)
    if valid is not None:
        seen, true = seen & valid, true & valid
    return tuple(pixels.sum(dim=(2, 3)).T for pixels in (seen & true, seen | true))
