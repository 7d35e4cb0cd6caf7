"""Losses for attacks, from a model and a batch; for dense classes also those of SegPGD and CosPGD."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from mtrlib.tasks import definitions, mean_over_valid, under_mask

Losses = Callable[[Tensor], Tensor]
DENSE = ("cross_entropy", "segpgd", "cospgd")


def task_losses(
    model: Callable,
    targets: dict[str, Tensor],
    masks: dict[str, Tensor | None] | None,
    tasks: str,
    *,
    dense: str = "cross_entropy",
    steps: int = 1,
) -> Losses:
    """The losses that an attack maximises, from a model and a batch.

    Parameters
    ----------
    model : (images, tasks) -> dict of outputs by task letter: a `models.MultiTaskModel`, whose definitions of the tasks
        are used, or any function, for the paper's. A network in training mode is run as in evaluation mode and left
        in the mode it was in.
    targets, masks : by task letter, B first; masks (or a mask) may be None. Under a mask a target may hold anything.
    tasks : letters of the attacked tasks; no other decoder is run.
    dense : what the gradient of a task of classes is taken of:
        "cross_entropy", the mean over the valid pixels;
        "segpgd" (Gu et al. 2022, arXiv 2207.12391, algorithm 1), the mean with weight 1 - lambda on pixels that are
        still classified correctly and lambda on the others, lambda = (t - 1) / (2 T) at gradient t of T = `steps`;
        "cospgd" (Agnihotri et al. 2024, arXiv 2302.02213, algorithm 1), the mean with the cosine of each pixel's
        softmax with its one-hot label as weight.
        Weights are not differentiated. Values are those of the cross-entropy in any case: attacks keep their best
        point by the loss that is measured in the end.
    steps : gradients that an attack takes in one run, for "segpgd"; its count starts again after as many. Make new
        losses for every attack.

    Returns
    -------
    losses : (B, 3, H, W) -> (T, B), in the order of `tasks`.
    """
    if dense not in DENSE:
        raise ValueError(f"Parameter dense should be one of {', '.join(DENSE)}. Found dense = {dense!r}.")
    gradients = 0
    defined = definitions(model)
    masks = {letter: masks[letter] if masks else None for letter in tasks}
    targets = {letter: under_mask(targets[letter], masks[letter]) for letter in tasks}
    refuse_inference(*targets.values(), *(model.parameters() if isinstance(model, nn.Module) else ()))

    def losses(images: Tensor) -> Tensor:
        nonlocal gradients
        with _evaluating(model):
            outputs = model(images, tasks)
        rows = []
        for letter in tasks:
            task, output, target, mask = defined[letter], outputs[letter], targets[letter], masks[letter]
            pixels = task.pixel_loss(output, target)
            row = mean_over_valid(pixels, mask)
            if dense != "cross_entropy" and task.kind == "classes" and images.requires_grad:
                if dense == "segpgd":
                    weight = _segpgd_weight(output, target, (gradients % steps) / (2 * steps))
                else:
                    weight = _cospgd_weight(output, target)
                surrogate = mean_over_valid(pixels * weight, mask)
                row = row.detach() + (surrogate - surrogate.detach()).nan_to_num()  # 0, also where both are infinite
            rows.append(row)
        gradients += images.requires_grad
        return torch.stack(rows)

    return losses


def recorded(losses: Losses) -> tuple[Losses, list[Tensor]]:
    """The same losses, and a list that gains one (T, B) tensor at each call: how an attack climbs."""
    history: list[Tensor] = []

    def recording(images: Tensor) -> Tensor:
        rows = losses(images)
        history.append(rows.detach())
        return rows

    return recording, history


def refuse_inference(*tensors: Tensor) -> None:
    """Raises ValueError where no gradient can be taken: in `torch.inference_mode`, or of tensors made there."""
    if torch.is_inference_mode_enabled() or any(tensor.is_inference() for tensor in tensors):
        raise ValueError(
            "Attacks and gradients should be computed outside torch.inference_mode(), from a model, images and targets "
            "made outside of it (torch.no_grad() does no harm). Found inference mode, or a tensor made in it."
        )


@contextmanager
def _evaluating(model: Callable) -> Iterator[None]:
    """A network in evaluation mode, each of its modules in its own mode again afterwards."""
    training = [part for part in model.modules() if part.training] if isinstance(model, nn.Module) else []
    for part in training:
        part.training = False
    try:
        yield
    finally:
        for part in training:
            part.training = True


def _segpgd_weight(output: Tensor, target: Tensor, share: float) -> Tensor:
    correct = output.detach().argmax(dim=1) == target
    return torch.where(correct, 1 - share, share)


def _cospgd_weight(output: Tensor, target: Tensor) -> Tensor:
    """The cosine of a softmax with a one-hot label: its value at the label over its length, both up to one factor."""
    logits = output.detach().float()
    chosen = logits.gather(1, target.long().clamp(0, output.shape[1] - 1).unsqueeze(1)).squeeze(1)
    return torch.exp(chosen - torch.logsumexp(2 * logits, dim=1) / 2)
