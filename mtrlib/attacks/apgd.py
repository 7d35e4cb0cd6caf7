"""Auto-PGD (Croce and Hein 2020, arXiv 2003.01690, section 3 and algorithm 1): PGD with momentum whose step size is
halved, image by image, when the loss has stopped rising; it then starts again from the best point."""

import torch
from torch import Tensor

from mtrlib.attacks.ball import Weigh, around, ascent, direction, joint, keep, nothing_yet, per_image, score, wide
from mtrlib.attacks.losses import Losses


def apgd(
    losses: Losses,
    images: Tensor,
    *,
    eps: float,
    step_size: float | None = None,
    steps: int,
    norm: str = "linf",
    restarts: int = 1,
    random_start: bool = True,
    generator: torch.Generator | None = None,
    rho: float = 0.75,
    momentum: float = 0.75,
    weigh: Weigh | None = None,
) -> Tensor:
    """Auto-PGD on the joint loss.

    Parameters and result as in `pgd`; `step_size` is without effect, since the first step has the length 2 eps. Costs
    as much as `pgd` with as many steps. The loss that steers the step size and the choice of the best point is the
    unweighted sum.

    Parameters
    ----------
    rho : the step is halved at a checkpoint where the loss rose in at most this share of the steps since the last one,
        or where neither the step nor the best loss has changed since.
    momentum : share of the new step, from 0 to 1; the rest is that of the last change.
    """
    ball = around(images, eps, norm, steps=steps, restarts=restarts)
    for name, value in {"rho": rho, "momentum": momentum}.items():
        if not 0 <= value <= 1:
            raise ValueError(f"Parameter {name} should be from 0 to 1. Found {name} = {value!r}.")
    strongest, checkpoints = nothing_yet(ball.images), _checkpoints(steps)
    for current in ball.starts(restarts, random_start, generator):
        previous, last_check = current, 0
        first, gradient = ascent(losses, current, weigh, None)
        loss = joint(first)
        best, best_loss, best_gradient = current, loss, gradient
        size = per_image(torch.full_like(loss, 2 * eps, dtype=wide(current).dtype))
        rises, halved, loss_at_check = torch.zeros_like(loss), torch.ones_like(loss, dtype=torch.bool), loss
        for step in range(1, steps + 1):
            target = ball.project(current + size * direction(gradient, norm))
            share = 1.0 if step == 1 else momentum
            moved = current + share * (target - current) + (1 - share) * (current - previous)
            current, previous, before = ball.project(moved), current, loss
            if step == steps:  # nobody needs the last gradient
                loss = score(losses, current)
            else:
                rows, gradient = ascent(losses, current, weigh, first, step / steps)
                loss = joint(rows)
            rises = rises + (loss > before)
            better = loss > best_loss
            best = torch.where(per_image(better), current, best)
            best_gradient = torch.where(per_image(better), gradient, best_gradient)
            best_loss = torch.where(better, loss, best_loss)
            if step in checkpoints:
                stalled = ~halved & (best_loss <= loss_at_check)
                halved = (rises <= rho * (step - last_check)) | stalled
                size = torch.where(per_image(halved), size / 2, size)
                current = torch.where(per_image(halved), best, current)
                gradient = torch.where(per_image(halved), best_gradient, gradient)
                rises, loss_at_check, last_check = torch.zeros_like(rises), best_loss, step
        strongest = keep(*strongest, best, best_loss)
    return ball.inside(strongest[0])


def _checkpoints(steps: int) -> frozenset[int]:
    """The steps p_j N of the paper: p_1 = 0.22, and each interval 0.03 shorter than the one before, but at least 0.06;
    in whole steps, as its authors count them."""
    length, shortest, less = (max(int(part * steps), 1) for part in (0.22, 0.06, 0.03))
    checkpoints, at = set(), length
    while at <= steps:
        checkpoints.add(at)
        length = max(length - less, shortest)
        at += length
    return frozenset(checkpoints)
