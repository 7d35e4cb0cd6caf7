"""The worst case of runs that climb different losses, and of one without gradients, chosen by the reported error: SEA
(Croce, Singh and Hein 2024, arXiv 2306.12941, section 3.3) for tasks of classes and of regression, with Square."""

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from mtrlib.attacks.apgd import SHRINKING, apgd
from mtrlib.attacks.ball import around, joint, keep, nothing_yet
from mtrlib.attacks.ensemble import ensemble
from mtrlib.attacks.losses import Losses, variant
from mtrlib.attacks.square import square

CLIMBED = ("saturating", "masked", "balanced", "cosine", "error")


def sea(
    losses: Losses,
    images: Tensor,
    *,
    steps: int,
    errors: Losses | None = None,
    each: bool = False,
    queries: int | None = None,
    **settings,
) -> Tensor:
    """For each image the point with the highest reported error among the results of `runs`. It is never better for the
    model than the image.

    Parameters and result as in `pgd`, each run with as many steps, and `each` as in `ensemble`.

    Parameters
    ----------
    losses : of `task_losses`, whichever `dense` they have; or a callable of one's own, which one run climbs.
    errors : of images, (T, B), as in `ensemble`; None for `relative_errors`.
    queries : of Square; None for 2 a step, which cost about as much as one of the other runs.
    """
    errors = relative_errors(losses, images) if errors is None else errors
    members = runs(losses, 2 * steps if queries is None else queries)
    return ensemble(losses, images, attacks=members, errors=errors, each=each, steps=steps, **settings)


def runs(losses: Losses, queries: int) -> list[Callable[..., Tensor]]:
    """The members of `sea`, each with the parameters of `pgd`; `lowest_miou` chooses among their results.

    They are Auto-PGD in shrinking balls on each loss of `CLIMBED`, which gives of all points that it met in the ball
    the one with the highest sum of `relative_errors`, and Square on these."""
    climbed = CLIMBED if hasattr(losses, "dense") else CLIMBED[:1]

    def queried(losses: Losses, images: Tensor, **settings) -> Tensor:
        return square(relative_errors(losses, images), images, **settings | {"steps": queries})

    return [*(partial(_climbing, dense) for dense in climbed), queried]


def _climbing(dense: str, losses: Losses, images: Tensor, *, eps: float, norm: str = "linf", **settings) -> Tensor:
    ball, best, relative = around(images, eps, norm, steps=1), nothing_yet(images.detach()), _relative(losses, images)

    def watch(points: Tensor, errors: Tensor) -> None:
        nonlocal best
        best = keep(*best, points, torch.where(ball.holds(points), joint(relative(errors)), -math.inf))

    climbed = variant(losses, dense, watch=watch)
    points = apgd(climbed, images, eps=eps, norm=norm, stages=SHRINKING, **settings)
    return ball.inside(best[0]) if hasattr(losses, "dense") else points


def relative_errors(losses: Losses, images: Tensor) -> Losses:
    """The reported error of each task over that of the unattacked image (where that is 0, the error itself), whose sum
    over tasks compares errors in different units; of a callable of one's own, the losses."""
    relative, errors = _relative(losses, images), variant(losses, "error")
    return lambda points: relative(errors(points))


def _relative(losses: Losses, images: Tensor) -> Callable[[Tensor], Tensor]:
    if not hasattr(losses, "dense"):
        return lambda errors: errors
    with torch.no_grad():
        clean = variant(losses, "error")(images)
    return lambda errors: errors / torch.where(clean > 0, clean, 1)


def overlaps(output: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
    """(3, B, C): of each image and class the pixels that label and prediction share, those of either, and those of the
    label. Parameters as in `Task.loss`."""
    valid = torch.ones_like(target, dtype=torch.bool) if mask is None else mask
    classes = torch.arange(output.shape[1], device=output.device).view(-1, 1, 1)
    found, label = ((each.unsqueeze(1) == classes) & valid.unsqueeze(1) for each in (output.argmax(dim=1), target))
    return torch.stack([each.sum(dim=(2, 3)) for each in (found & label, found | label, label)])


def lowest_miou(counts: Tensor, *, generator: torch.Generator | None = None, rounds: int = 100) -> tuple[Tensor, float]:
    """Which run to take for each image, so that the mean IoU of the whole set falls lowest: a greedy search.

    It begins with the run of the lowest mIoU for all images, and changes the run of one image after the other, in
    random order, where that lowers the mIoU, until a round changes none (or `rounds` of them). The mIoU does not split
    over images, so the worst of each image need not be the worst of the set.

    Parameters
    ----------
    counts : (R, 3, N, C), `overlaps` of the results of each of R runs.

    Returns
    -------
    The index of a run for each image, (N,), and the mIoU, in [0, 1], over the classes that the labels have.
    """
    counts = counts.double().cpu()[..., counts[0, 2].sum(dim=0).cpu() > 0].transpose(1, 2)  # (R, N, 3, C)

    def miou(total: Tensor) -> Tensor:
        return (total[..., 0, :] / total[..., 1, :]).mean(dim=-1)

    run = miou(counts.sum(dim=1)).argmin()
    chosen, total = run.repeat(counts.shape[1]), counts[run].sum(dim=0)
    lowest = miou(total)
    for _ in range(rounds):
        before = chosen.clone()
        for image in torch.randperm(len(chosen), generator=generator).tolist():
            others = total - counts[chosen[image], image] + counts[:, image]
            reached, run = miou(others).min(dim=0)
            if reached < lowest - 1e-12:
                chosen[image], total, lowest = run, others[run], reached
        if torch.equal(chosen, before):
            break
    return chosen, lowest.item()
