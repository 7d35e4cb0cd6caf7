"""Losses for attacks, from a model and a batch; for dense classes also those of SegPGD and CosPGD."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps

import torch
from torch import Tensor, nn

from mtrlib.tasks import definitions, mean_over_valid, under_mask

Losses = Callable[[Tensor], Tensor]
DENSE = ("cross_entropy", "segpgd", "cospgd")


def task_losses(
    model: Callable, targets: dict[str, Tensor], masks: dict | None, tasks: str, *, dense: str = "cross_entropy"
) -> Losses:
    """The losses that an attack maximises, from a model and a batch.

    Parameters
    ----------
    model : (images, tasks) -> dict of outputs by task letter: a `models.MultiTaskModel`, with its definitions of tasks,
        or any function, for the paper's. A network is run as in evaluation mode and left in the mode it was in.
    targets, masks : by task letter, as in `Task.loss`; masks (or a mask) may be None.
    tasks : letters of the attacked tasks; no other decoder is run.
    dense : what the gradient of a task of classes is taken of:
        "cross_entropy", the mean over the valid pixels;
        "segpgd" (Gu et al. 2022, arXiv 2207.12391, algorithm 1), the mean with weight 1 - lambda on pixels that are
        still classified correctly and lambda on the others, lambda = (t - 1) / (2 T) at gradient t of T;
        "cospgd" (Agnihotri et al. 2024, arXiv 2302.02213, algorithm 1), the mean with the cosine of each pixel's
        softmax with its one-hot label as weight.
        Weights are not differentiated, and values are always the cross-entropy's: by these the best point is kept.

    Returns
    -------
    losses : (B, 3, H, W) -> (T, B), in the order of `tasks`. Those of "segpgd" are `scheduled`: attacks say how far
        they are with every gradient, by the keyword progress = (t - 1) / T; without it, it is 0.
    """
    if dense not in DENSE:
        raise ValueError(f"Parameter dense should be one of {', '.join(DENSE)}. Found dense = {dense!r}.")
    defined = definitions(model)
    masks = masks or dict.fromkeys(tasks)
    targets = {letter: under_mask(targets[letter], masks[letter]) for letter in tasks}
    refuse_inference(*targets.values(), *(model.parameters() if isinstance(model, nn.Module) else ()))

    def losses(images: Tensor, progress: float = 0.0) -> Tensor:
        with _evaluating(model):
            outputs = model(images, tasks)
        rows = []
        for letter in tasks:
            task, output, target, mask = defined[letter], outputs[letter], targets[letter], masks[letter]
            pixels = task.pixel_loss(output, target)
            row = mean_over_valid(pixels, mask)
            if dense != "cross_entropy" and task.kind == "classes":
                surrogate = mean_over_valid(pixels * _weights(dense, output.detach(), target, progress), mask)
                row = row.detach() + (surrogate - surrogate.detach()).nan_to_num()  # 0, also where both are infinite
            rows.append(row)
        return torch.stack(rows)

    losses.scheduled = dense == "segpgd"
    return losses


def recorded(losses: Losses) -> tuple[Losses, list[Tensor]]:
    """The same losses, and a list that gains one (T, B) tensor at each call: the way of an attack."""
    history: list[Tensor] = []

    @wraps(losses)
    def recording(images: Tensor, **progress: float) -> Tensor:
        rows = losses(images, **progress)
        history.append(rows.detach())
        return rows

    return recording, history


def refuse_inference(*tensors: Tensor) -> None:
    """ValueError where no gradient can be taken: in `torch.inference_mode`, or of tensors made there."""
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


def _weights(dense: str, output: Tensor, target: Tensor, progress: float) -> Tensor:
    """(B, H, W): the weights of the pixels in the surrogate losses."""
    if dense == "segpgd":
        return torch.where(output.argmax(dim=1) == target, 1 - progress / 2, progress / 2)
    # The cosine of a softmax with a one-hot label: its value at the label over its length, both up to one factor.
    logits = output.float()
    chosen = logits.gather(1, target.long().clamp(0, output.shape[1] - 1).unsqueeze(1)).squeeze(1)
    return torch.exp(chosen - torch.logsumexp(2 * logits, dim=1) / 2)
