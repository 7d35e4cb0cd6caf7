"""From a model, images and an attack to the errors of each image: everything after this is cheap and recomputed."""

from __future__ import annotations

import warnings
from collections.abc import Callable

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

    Parameters
    ----------
    model : in evaluation mode.
    batch : images, targets and masks as `Dataset.batch` gives them, on the device of the model.
    attack, precision : what to do, and the precision of the convolutions while doing it.
    generator : of the random starts.
    without_gradient : a list that gains a tensor (B,) bool, true where the first gradient that the attack takes is zero
        (or not a number) in every pixel; none of an attack that takes no gradients.
    """
    images, targets, masks = batch
    model = for_attack(model, precision)
    losses = task_losses(model, targets, masks, attack)
    if without_gradient is not None:
        losses = _watched(losses, without_gradient)
    with torch.autocast(images.device.type, torch.bfloat16, enabled=precision == "bfloat16"):
        return attacks.NAMED[attack.name](
            losses,
            images,
            eps=attack.eps_255 / 255,
            step_size=attack.step_size_255 / 255,
            steps=attack.steps,
            norm=attack.norm,
            restarts=attack.restarts,
            generator=generator,
        )


def task_losses(model: MultiTaskModel, targets: dict, masks: dict, attack: AttackSpec) -> attacks.Losses:
    """The losses that an attack maximises."""
    dense = attack.name if attack.name in attacks.DENSE else "cross_entropy"
    return attacks.task_losses(model, targets, masks, attack.tasks, dense=dense, steps=max(attack.steps, 1))


def for_attack(model: MultiTaskModel, precision: str) -> MultiTaskModel:
    """A copy of the model that gives the same outputs with less work, for the many passes of an attack.

    Batch norms, which in evaluation mode are affine, are folded into the convolutions before them (exact but for
    rounding). With "bfloat16" the weights of the convolutions are cast once, to be run under autocast, which then casts
    activations only.
    """
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

    With a `source` the images are made to attack that model and then shown to `model`: a transfer attack.

    The attack computes in `precision`; errors and losses, clean and adversarial, are always measured in float32, and
    the clean ones on the images as they are. Where more than a tenth of the images has no gradient for the attack to
    follow, a warning says how many.

    Returns
    -------
    One row an image and trained task: task, image_id, clean_error, adversarial_error, clean_loss, adversarial_loss.
    """
    for network in (model, source):
        if network is not None:
            network.eval()
    frames, without_gradient = [], []
    for start in range(0, len(data), batch_size):
        batch = data.batch(slice(start, start + batch_size), device)
        ids = data.ids[start : start + batch_size]
        generator = torch.Generator().manual_seed(attack.seed)  # anew: an image's start is the same in every batch
        attacked_model = model if source is None else source
        adversarial = attack_batch(attacked_model, batch, attack, precision, generator, without_gradient)
        clean, attacked = (_measure(model, images, *batch[1:]) for images in (batch[0], adversarial))
        for letter in model.tasks:
            columns = {"task": letter, "image_id": ids}
            for kind in ("error", "loss"):
                for name, measured in (("clean", clean), ("adversarial", attacked)):
                    columns[f"{name}_{kind}"] = measured[letter][kind].cpu().numpy()
            frames.append(pd.DataFrame(columns))
        advance(len(ids))
    if without_gradient and (count := int(torch.cat(without_gradient).sum())) > len(data) / 10:
        warnings.warn(
            f"The attack {attack.name} on {attack.tasks!r} of a model of {model.tasks!r} finds no gradient at "
            f"{count} of {len(data)} images: their errors under attack say little.",
            stacklevel=2,
        )
    return pd.concat(frames, ignore_index=True)


def _watched(losses: attacks.Losses, without_gradient: list[Tensor]) -> attacks.Losses:
    """The same losses; `without_gradient` gains where the first gradient taken of them is none, NaN being none as
    for attacks. No pass is added."""
    watching = True

    def watched(images: Tensor) -> Tensor:
        nonlocal watching
        if watching and images.requires_grad:
            watching = False
            images.register_hook(lambda grad: without_gradient.append(~grad.nan_to_num().flatten(1).any(dim=1)))
        return losses(images)

    return watched


@torch.no_grad()
def _measure(model: MultiTaskModel, images: Tensor, targets: dict, masks: dict) -> dict[str, dict[str, Tensor]]:
    with machine.exact():
        outputs = model(images)
    defined = definitions(model)
    return {
        t: {
            "error": defined[t].error(outputs[t], targets[t], masks[t]),
            "loss": defined[t].loss(outputs[t], targets[t], masks[t]),
        }
        for t in model.tasks
    }
