"""Auto-PGD (Croce and Hein 2020, arXiv 2003.01690, section 3 and algorithm 1): PGD with momentum whose step size is
halved, image by image, when the loss has stopped rising; it then starts again from the best point."""

from __future__ import annotations

import torch
from torch import Tensor

from mtrlib.attacks import ball
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
    weigh: ball.Weigh | None = None,
) -> Tensor:
    """Auto-PGD on the joint loss.

    Parameters and result as in `pgd`; `step_size` is without effect, since the first step has the length 2 eps. Costs
    as much as `pgd` with as many steps.

    Parameters
    ----------
    rho : the step is halved at a checkpoint where the loss rose in at most this share of the steps since the last one,
        or where neither the step nor the best loss has changed since.
    momentum : share of the new step, from 0 to 1; the rest is that of the last change.
    weigh : weights of the tasks from their losses at the current point and at the start, both (T, B), such as
        `task_attack_rates` for WGD with adaptive steps; None for 1. The loss that steers the step size and the choice
        of the best point is the unweighted sum.
    """
    ball.check(images, eps, 0.0, steps, norm, restarts)
    for name, value in {"rho": rho, "momentum": momentum}.items():
        if not 0 <= value <= 1:
            raise ValueError(f"Parameter {name} should be from 0 to 1. Found {name} = {value!r}.")
    images = images.detach()
    if eps == 0:
        return images.clone()
    best, best_loss = ball.nothing_yet(images)
    for restart in range(restarts):
        start = images
        if random_start or restart > 0:
            start = images + ball.random_start(images, eps, norm, generator)
        found, loss = _run(losses, images, start, eps, steps, norm, rho, momentum, weigh)
        best, best_loss = ball.keep(best, best_loss, found, loss)
    return ball.inside(best, images, eps, norm)


def _run(
    losses: Losses,
    images: Tensor,
    start: Tensor,
    eps: float,
    steps: int,
    norm: str,
    rho: float,
    momentum: float,
    weigh: ball.Weigh | None,
) -> tuple[Tensor, Tensor]:
    """One run: the best point and its loss."""
    limits = ball.box(images, eps if norm == "linf" else float("inf"))
    current = previous = ball.project(start, images, eps, norm, *limits)
    if steps == 0:
        return current, ball.score(losses, current)
    first, gradient = ball.ascent(losses, current, weigh, None)
    loss = ball.joint(first)
    best, best_loss, best_gradient = current, loss, gradient
    size = ball.spread(torch.full_like(loss, 2 * eps, dtype=ball.wide(images).dtype))
    rises, halved, loss_at_check = torch.zeros_like(loss), torch.ones_like(loss, dtype=torch.bool), loss
    checkpoints, last_check = _checkpoints(steps), 0
    for step in range(1, steps + 1):
        target = ball.project(current + size * ball.direction(gradient, norm), images, eps, norm, *limits)
        share = 1.0 if step == 1 else momentum
        moved = current + share * (target - current) + (1 - share) * (current - previous)
        current, previous = ball.project(moved, images, eps, norm, *limits), current
        before = loss
        if step == steps:  # nobody needs the last gradient
            loss = ball.score(losses, current)
        else:
            rows, gradient = ball.ascent(losses, current, weigh, first)
            loss = ball.joint(rows)
        rises = rises + (loss > before)
        better = loss > best_loss
        best = torch.where(ball.spread(better), current, best)
        best_gradient = torch.where(ball.spread(better), gradient, best_gradient)
        best_loss = torch.where(better, loss, best_loss)
        if step in checkpoints:
            stalled = ~halved & (best_loss <= loss_at_check)
            halved = (rises <= rho * (step - last_check)) | stalled
            size = torch.where(ball.spread(halved), size / 2, size)
            current = torch.where(ball.spread(halved), best, current)
            gradient = torch.where(ball.spread(halved), best_gradient, gradient)
            rises, loss_at_check, last_check = torch.zeros_like(rises), best_loss, step
    return best, best_loss


def _checkpoints(steps: int) -> frozenset[int]:
    """The steps p_j N of the paper: p_1 = 0.22, and each interval 0.03 shorter than the one before, but at least 0.06;
    in whole steps, as its authors count them."""
    share = [max(int(part * steps), 1) for part in (0.22, 0.06, 0.03)]
    length, shortest, less = share
    found, at = [], length
    while at <= steps:
        found.append(at)
        length = max(length - less, shortest)
        at += length
    return frozenset(found)
