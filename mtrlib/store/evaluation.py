"""From a model, images and an attack to the errors of each image: everything after this is cheap and recomputed."""

import warnings
from collections.abc import Callable
from functools import wraps

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from mtrlib import attacks, machine, models
from mtrlib.data import Dataset
from mtrlib.models import MultiTaskModel
from mtrlib.specs import AttackSpec
from mtrlib.tasks import definitions


def attack_batch(
    model: MultiTaskModel,
    batch: tuple,
    attack: AttackSpec,
    precision: str,
    generator: torch.Generator,
    without_gradient: list[Tensor] | None = None,
) -> Tensor:
    """The attacked images of one batch, (B, 3, H, W), in [0, 1].

    `batch` is images, targets and masks as `Dataset.batch` gives them, on the device of the model; `generator` is of
    the random starts. `without_gradient` gains a tensor (B,) bool, true where the first gradient that the attack takes
    is zero (or not a number) in every pixel; none of an attack that takes no gradients.
    """
    images, targets, masks = batch
    losses = task_losses(for_attack(model, precision), targets, masks, attack)
    if without_gradient is not None:
        losses = _watched(losses, without_gradient)
    options = {"steps": attack.steps, "norm": attack.norm, "restarts": attack.restarts, "generator": generator}
    budget = {"eps": attack.eps_255 / 255, "step_size": attack.step_size_255 / 255}
    with torch.autocast(images.device.type, torch.bfloat16, enabled=precision == "bfloat16"):
        return attack.function(losses, images, **budget, **options)


def task_losses(model: MultiTaskModel, targets: dict, masks: dict, attack: AttackSpec) -> attacks.Losses:
    """The losses that an attack maximises."""
    dense = attack.name if attack.name in attacks.DENSE else "cross_entropy"
    return attacks.task_losses(model, targets, masks, attack.tasks, dense=dense)


def for_attack(model: MultiTaskModel, precision: str) -> MultiTaskModel:
    """A copy of the model that gives the same outputs with less work: batch norms are folded into the convolutions
    before them (exact but for rounding); for "bfloat16" the weights of convolutions are cast once, not by autocast."""
    model = models.folded(model)
    if precision == "bfloat16":
        for module in model.modules():
            if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
                module.to(torch.bfloat16)
    return model


def errors(
    model: MultiTaskModel,
    data: Dataset,
    attack: AttackSpec,
    *,
    precision: str = "float32",
    device: torch.device | str = "cpu",
    batch_size: int = 64,
    advance: Callable[[int], object] = lambda images: None,
    source: MultiTaskModel | None = None,
) -> pd.DataFrame:
    """Attack every image of `data` and measure each trained task, without and under attack.

    With a `source` the images are made to attack that model and then shown to `model`: a transfer attack. The attack
    computes in `precision`; errors and losses are measured in float32. Where more than a tenth of the images has no
    gradient for the attack to follow, a warning says how many.

    Returns
    -------
    One row an image and trained task: task, image_id, clean_error, adversarial_error, clean_loss, adversarial_loss.
    """
    for network in (model, source or model):
        network.eval()
    frames, without_gradient = [], []
    for start in range(0, len(data), batch_size):
        batch = data.batch(slice(start, start + batch_size), device)
        ids = data.ids[start : start + batch_size]
        generator = torch.Generator().manual_seed(attack.seed)  # anew: an image's start is the same in every batch
        adversarial = attack_batch(source or model, batch, attack, precision, generator, without_gradient)
        columns = {"task": [task for task in model.tasks for _ in ids], "image_id": ids * len(model.tasks)}
        clean, attacked = (_measure(model, images, *batch[1:]) for images in (batch[0], adversarial))
        for kind in ("error", "loss"):
            columns |= {f"clean_{kind}": clean[kind], f"adversarial_{kind}": attacked[kind]}
        frames.append(pd.DataFrame(columns))
        advance(len(ids))
    if without_gradient and (count := int(torch.cat(without_gradient).sum())) > len(data) / 10:
        what = f"The attack {attack.name} on {attack.tasks!r} of a model of {model.tasks!r}"
        where = f"{count} of {len(data)} images: their errors under attack say little"
        warnings.warn(f"{what} finds no gradient at {where}.", stacklevel=2)
    return pd.concat(frames, ignore_index=True)


def _watched(losses: attacks.Losses, without_gradient: list[Tensor]) -> attacks.Losses:
    """The same losses; `without_gradient` gains where the first gradient taken of them is none, NaN being none as
    for attacks. No pass is added."""
    watching = True

    @wraps(losses)
    def watched(images: Tensor, **progress: float) -> Tensor:
        nonlocal watching
        if watching and images.requires_grad:
            watching = False
            images.register_hook(lambda grad: without_gradient.append(~grad.nan_to_num().flatten(1).any(dim=1)))
        return losses(images, **progress)

    return watched


@torch.no_grad()
def _measure(model: MultiTaskModel, images: Tensor, targets: dict, masks: dict) -> dict[str, np.ndarray]:
    """The error and the loss of each task and image, (T * B,), task by task."""
    with machine.exact():
        outputs = model(images)
    defined = definitions(model)
    tasks = [(defined[t], outputs[t], targets[t], masks[t]) for t in model.tasks]
    measured = {kind: [getattr(task, kind)(*of) for task, *of in tasks] for kind in ("error", "loss")}
    return {kind: torch.cat(of_tasks).cpu().numpy() for kind, of_tasks in measured.items()}


def constant_errors(train: Dataset, test: Dataset) -> pd.DataFrame:
    """The errors of the best constant predictor of each task: what a model that has learned nothing reaches.

    Of classes it is the most frequent one, of ordinal ones that or the median, whichever errs less on the training
    images; of labels all, none or those that more than half of the valid pixels have; of values the mean or the median
    of each channel over these pixels.

    Returns
    -------
    One row a test image and task: task, image_id, constant_error, in the unit of the task's error.
    """
    frames = []
    for letter, target in train.targets.items():
        task = train.tasks[letter]
        _, target, mask = task.maps(target, target, train.masks[letter])
        _, of_test, under_test = task.maps(test.targets[letter], test.targets[letter], test.masks[letter])
        flat = target.flatten(2) if target.dim() == 4 else target.flatten(1)
        every = torch.ones(len(target), flat.shape[-1], dtype=torch.bool, device=flat.device)
        valid = every if mask is None else mask.flatten(1)
        if task.classes:
            most = torch.bincount(flat[valid].long(), minlength=task.classes).argmax()
            constants = [torch.nn.functional.one_hot(most, task.classes)]
            if task.kind == "ordinal":
                above = torch.arange(task.channels, device=flat.device)
                constants = [(each > above).float() - 0.5 for each in (most, flat[valid].long().median())]
        else:
            pixels = flat.transpose(0, 1)[:, valid]
            mean = pixels.mean(dim=1)
            if task.kind == "labels":
                constants = [mean - 0.5, torch.ones_like(mean), -torch.ones_like(mean)]
            else:
                constants = [mean, pixels.median(dim=1).values]

        def error(constant: Tensor, to: Tensor, under: Tensor | None, task=task) -> Tensor:
            return task.error(constant.float()[None, :, None, None].expand(len(to), -1, *to.shape[-2:]), to, under)

        best = min(constants, key=lambda constant, of=(target, mask): error(constant, *of).nanmean().item())
        errors = error(best, of_test, under_test).cpu().numpy()
        frames.append(pd.DataFrame({"task": letter, "image_id": test.ids, "constant_error": errors}))
    return pd.concat(frames, ignore_index=True)
