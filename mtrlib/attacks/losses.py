"""Losses for attacks, from a model and a batch: those of training, the reported errors, and those made for maps of
classes (SegPGD, CosPGD, and those of SEA, Croce, Singh and Hein 2024, arXiv 2306.12941), with counterparts for
regression."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial, wraps

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mtrlib.tasks import ERRORS, Task, definitions, mean_over_valid, under_mask

Losses = Callable[[Tensor], Tensor]
_OF_CLASSES = ("segpgd", "cospgd", "dlr", "margin")
DENSE = ("cross_entropy", *_OF_CLASSES, "saturating", "masked", "balanced", "cosine", "error")
_BANDS = 8


def task_losses(
    model: Callable,
    targets: dict[str, Tensor],
    masks: dict | None,
    tasks: str,
    *,
    dense: str = "cross_entropy",
    counts: dict[str, Tensor] | None = None,
) -> Losses:
    """The losses that an attack maximises, from a model and a batch.

    Parameters
    ----------
    model : (images, tasks) -> dict of outputs by task letter: a `models.MultiTaskModel`, with its definitions of tasks,
        or any function, for the paper's. A network is run as in evaluation mode and left in the mode it was in.
    targets, masks : by task letter, as in `Task.loss`; masks (or a mask) may be None.
    tasks : letters of the attacked tasks; no other decoder is run.
    dense : what is climbed. An image reports a mean over pixels; but a pixel that is wrong already, or is one of a
        small object, counts for more or less in it than it pulls. Of classes and, in their sense, of regression,
        where a pixel is broken whose loss is above that of the best constant map of its label:
        "cross_entropy", the training loss of the task, whichever it is;
        "error", what is reported (`Task.error`), by which the best point is kept; the gradient is that of the error
        for regression, of the training loss for classes, whose error has none;
        "saturating": the Jensen-Shannon divergence of softmax and label, log 2 + (p log p - (1 + p) log(1 + p)) / 2
        with p that of the label; for regression l / (l + c), l the loss and c that of the constant map. Both are
        bounded, and a pixel pulls less the more it is broken;
        "masked": the gradient is of the pixels that are still right (not yet broken) alone, of others it is 0;
        "balanced": masked, and each class of the label (of regression each of 8 equal bands of its range, such as of
        depth, or where it has several channels each side of each axis) pulls as much, however small it is, as in mIoU;
        "cosine": as "cospgd"; for regression with the cosine, at least 0, of the vectors (output - m, c), (label - m,
        c), m being the label's mean and c its standard deviation, without which a single channel has a sign alone.
        Tasks of labels and ordinal ones keep their training loss in all these, in "error" its gradient.
        These four are for the tasks of classes, and the others keep their training loss:
        "segpgd" (Gu et al. 2022, arXiv 2207.12391, algorithm 1), the mean with weight 1 - lambda on pixels that are
        still classified correctly and lambda on the others, lambda = (t - 1) / (2 T) at gradient t of T;
        "cospgd" (Agnihotri et al. 2024, arXiv 2302.02213, algorithm 1), the mean with the cosine of each pixel's
        softmax with its one-hot label as weight;
        "margin", the highest logit of another class less that of the label; "dlr", the same over the highest less
        the third (Croce and Hein 2020, arXiv 2003.01690, equation 6), which no scale of the logits changes.
        Weights and masks are not differentiated and act on the gradient alone: values, by which the best point is kept
        and steps adapt, are those of the training loss (of "balanced" with its classes balanced).
    counts : by letters of tasks of classes, (C,), the pixels of each class in a whole set, for "balanced" in its sense:
        as SEA balances, for the mIoU of a set. None for those of each image, for the mIoU of each.

    Returns
    -------
    losses : (B, 3, H, W) -> (T, B), in the order of `tasks`. They take the keyword `dense` for another (`variant`), and
        `watch`, a function that is given the images and their reported errors, (T, B), at every call.
        Those of "segpgd" are `scheduled`: attacks say how far they are with every gradient, by the keyword progress =
        (t - 1) / T; without it, it is 0.
    """
    _checked(dense)
    defined = definitions(model)
    masks = masks or dict.fromkeys(tasks)
    targets = {letter: under_mask(targets[letter], masks[letter]) for letter in tasks}
    refuse_inference(*targets.values(), *(model.parameters() if isinstance(model, nn.Module) else ()))

    def losses(
        images: Tensor, progress: float = 0.0, dense: str = dense, watch: Callable[..., object] | None = None
    ) -> Tensor:
        with evaluating(model):
            outputs = model(images, tasks)

        def rows(dense: str) -> Tensor:
            given = ((defined[t], outputs[t], targets[t], masks[t], progress, (counts or {}).get(t)) for t in tasks)
            return torch.stack([_row(dense, *each) for each in given])

        if watch is not None:
            with torch.no_grad():
                watch(images.detach(), rows("error"))
        return rows(dense)

    losses.dense, losses.scheduled = dense, dense == "segpgd"
    return losses


def variant(losses: Losses, dense: str, **keywords: object) -> Losses:
    """The losses with another `dense` of `task_losses` and, where one is given, a `watch`; a callable of one's own,
    which has neither, as it is."""
    if not hasattr(losses, "dense"):
        return losses
    other = wraps(losses)(partial(losses, dense=_checked(dense), **keywords))
    other.dense, other.scheduled = dense, dense == "segpgd"
    return other


def mapped(losses: Losses, change: Callable[[Tensor, Tensor], Tensor]) -> Losses:
    """The losses, in all their variants, with the rows that `change` makes of rows, (T, B), and images."""

    @wraps(losses)
    def changed(images: Tensor, **keywords: object) -> Tensor:
        return change(losses(images, **keywords), images)

    return changed


def recorded(losses: Losses) -> tuple[Losses, list[Tensor]]:
    """The same losses, and a list that gains one (T, B) tensor at each call: the way of an attack."""
    history: list[Tensor] = []

    def record(rows: Tensor, images: Tensor) -> Tensor:
        history.append(rows.detach())
        return rows

    return mapped(losses, record), history


def refuse_inference(*tensors: Tensor) -> None:
    """ValueError where no gradient can be taken: in `torch.inference_mode`, or of tensors made there."""
    if torch.is_inference_mode_enabled() or any(tensor.is_inference() for tensor in tensors):
        raise ValueError(
            "Attacks and gradients should be computed outside torch.inference_mode(), from a model, images and targets "
            "made outside of it (torch.no_grad() does no harm). Found inference mode, or a tensor made in it."
        )


@contextmanager
def evaluating(model: Callable) -> Iterator[None]:
    """A network in evaluation mode, each of its modules in its own mode again afterwards."""
    training = [part for part in model.modules() if part.training] if isinstance(model, nn.Module) else []
    for part in training:
        part.training = False
    try:
        yield
    finally:
        for part in training:
            part.training = True


def _checked(dense: str) -> str:
    if dense not in DENSE:
        raise ValueError(f"Parameter dense should be one of {', '.join(DENSE)}. Found dense = {dense!r}.")
    return dense


def _row(
    dense: str, task: Task, output: Tensor, target: Tensor, mask: Tensor | None, progress: float, counts: Tensor | None
) -> Tensor:
    """(B,): the values of one task, with the gradient of `dense`."""
    output, target, mask = task.maps(output, target, mask)
    pixels = task.pixel_loss(output, target, mask)
    row, classes, regression = mean_over_valid(pixels, mask), task.kind == "classes", task.kind == "regression"
    if dense == "cross_entropy" or (not classes and (dense in _OF_CLASSES or (not regression and dense != "error"))):
        return row
    if dense in ("margin", "dlr"):
        return mean_over_valid(_margin(output.float(), target.long().unsqueeze(1), dense == "dlr"), mask)
    if dense == "saturating":
        if not classes:
            return mean_over_valid(pixels / (pixels + _constant(task, target, mask)), mask)
        p = torch.exp(-pixels.clamp(max=80))  # beyond, neither p nor its gradient is a number worth keeping
        return mean_over_valid(math.log(2) + (p * p.log() - (1 + p) * p.log1p()) / 2, mask)
    if dense == "error":
        row = task.error(output, target, mask).nan_to_num()  # without a valid pixel 0, as its loss
        if task.error_name == "angle":  # whose derivative has no end where the angle is 0 or 180 degrees
            pixels = F.cosine_similarity(output.float(), target, dim=1).clamp(1e-6 - 1, 1 - 1e-6).acos().rad2deg()
        elif regression:
            pixels = ERRORS[task.error_name][1](output.float(), target)
    else:
        if dense == "balanced":
            pixels = pixels * _shares(*_groups(target, mask, output.shape[1] * classes), mask, counts)
            row = mean_over_valid(pixels, mask)
        weights = _weights(dense, task, output.detach(), target, mask, progress)
        pixels = pixels * weights
    surrogate = mean_over_valid(pixels, mask)
    return row.detach() + (surrogate - surrogate.detach()).nan_to_num()  # 0, also where both are infinite


def _margin(logits: Tensor, label: Tensor, ratio: bool) -> Tensor:
    """(B, C, H, W), (B, 1, H, W) -> (B, H, W): "margin", or "dlr", the same with fewer than three classes."""
    others = logits.scatter(1, label, -math.inf).amax(dim=1)
    margin = others - logits.gather(1, label).squeeze(1)
    if not ratio or logits.shape[1] < 3:
        return margin
    highest = logits.topk(3, dim=1).values
    return margin / (highest[:, 0] - highest[:, 2]).clamp(min=1e-12)


def _weights(dense: str, task: Task, output: Tensor, target: Tensor, mask: Tensor | None, progress: float) -> Tensor:
    """(B, H, W): the weights of the pixels in the surrogate losses."""
    classes = task.kind == "classes"
    if dense == "segpgd":
        return torch.where(output.argmax(dim=1) == target, 1 - progress / 2, progress / 2)
    if dense in ("masked", "balanced"):
        if classes:
            return (output.argmax(dim=1) == target).float()
        return (task.pixel_loss(output, target) <= _constant(task, target, mask)).float()
    if classes:
        # The cosine of a softmax with a one-hot label: its value at the label over its length, both up to one factor.
        logits = output.float()
        chosen = logits.gather(1, target.long().clamp(0, output.shape[1] - 1).unsqueeze(1)).squeeze(1)
        return torch.exp(chosen - torch.logsumexp(2 * logits, dim=1) / 2)
    centre = _centre(target, mask)
    one, other = output.float() - centre, target.float() - centre
    c = mean_over_valid(other.square().sum(dim=1), mask).view(-1, 1, 1)  # squared
    c = torch.where(c > 0, c, 1)
    lengths = (one.square().sum(dim=1) + c) * (other.square().sum(dim=1) + c)
    return (((one * other).sum(dim=1) + c) / lengths.sqrt()).clamp(min=0)


def _centre(target: Tensor, mask: Tensor | None) -> Tensor:
    """(B, C, 1, 1): the mean of the label's channels over its valid pixels."""
    means = [mean_over_valid(channel.float(), mask) for channel in target.unbind(dim=1)]
    return torch.stack(means, dim=1)[:, :, None, None]


def _constant(task: Task, target: Tensor, mask: Tensor | None) -> Tensor:
    """(B, 1, 1): the loss of the label's mean as its map; 1 for a label that is constant itself."""
    loss = mean_over_valid(task.pixel_loss(_centre(target, mask).expand_as(target), target), mask)
    return torch.where(loss > 0, loss, 1).view(-1, 1, 1)


def _groups(target: Tensor, mask: Tensor | None, classes: int) -> tuple[Tensor, int]:
    """(B, H, W), and how many there may be: the pixels that "balanced" takes as one; `classes` is 0 for regression."""
    if classes:
        return target.long(), classes
    if target.shape[1] > 1:
        away = target - _centre(target, mask)
        axis = away.abs().argmax(dim=1, keepdim=True)
        return (2 * axis + (away.gather(1, axis) > 0)).squeeze(1), 2 * target.shape[1]
    values = target[:, 0]
    valid = torch.ones_like(values, dtype=torch.bool) if mask is None else mask
    low = torch.where(valid, values, math.inf).amin(dim=(1, 2), keepdim=True)
    high = torch.where(valid, values, -math.inf).amax(dim=(1, 2), keepdim=True)
    place = (values - low) / (high - low).clamp(min=1e-12)
    return (place * _BANDS).nan_to_num().clamp(0, _BANDS - 1).long(), _BANDS


def _shares(groups: Tensor, number: int, mask: Tensor | None, counts: Tensor | None) -> Tensor:
    """(B, H, W): weights with mean 1 over the valid pixels of the image, or of the set that has `counts` (number,) of
    each group, and the same sum in every group that has any."""
    index = groups.flatten(1)
    valid = torch.ones_like(index, dtype=torch.float) if mask is None else mask.flatten(1).float()
    of_image = torch.zeros(len(index), number, device=index.device).scatter_add_(1, index, valid)
    counts = of_image if counts is None else counts.to(of_image).expand_as(of_image)
    one = counts.sum(dim=1, keepdim=True) / (counts > 0).sum(dim=1, keepdim=True).clamp(min=1)
    return (one / counts.gather(1, index).clamp(min=1)).view_as(groups)
