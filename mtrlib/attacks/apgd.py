"""Auto-PGD (Croce and Hein 2020, arXiv 2003.01690, section 3 and algorithm 1): PGD with momentum whose step size is
halved, image by image, when the loss has stopped rising; it then starts again from the best point. In l1 its steps are
sparse instead, and become sparser (Croce and Hein 2021, arXiv 2103.01208, section 3)."""

from collections.abc import Sequence

import torch
from torch import Tensor

from mtrlib.attacks.ball import Ball, Weigh, around, ascent, joint, keep, nothing_yet, per_image, score, wide
from mtrlib.attacks.losses import Losses

SHRINKING = ((2.0, 0.3), (1.5, 0.3), (1.0, 0.4))


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
    stages: Sequence[tuple[float, float]] = ((1.0, 1.0),),
) -> Tensor:
    """Auto-PGD on the joint loss.

    Parameters and result as in `pgd`; `step_size` is without effect, since the first step has the length 2 eps (in l1
    eps). Costs as much as `pgd` with as many steps. The loss that steers the step size and the choice of the best point
    is the unweighted sum.

    Parameters
    ----------
    rho : the step is halved at a checkpoint where the loss rose in at most this share of the steps since the last one,
        or where neither the step nor the best loss has changed since.
    momentum : share of the new step, from 0 to 1; the rest is that of the last change. Neither is of use in l1.
    stages : radii in multiples of eps, and the share of the steps spent in the ball of each, which begin at the best
        point of the stage before, brought into the ball: what is found with more room is often better than what is
        found within eps. `SHRINKING` is that of SEA (Croce, Singh and Hein 2024, arXiv 2306.12941, section 3.2). The
        last radius is eps; a stage costs one forward pass more.
    """
    ball = around(images, eps, norm, steps=steps, restarts=restarts)
    for name, value in {"rho": rho, "momentum": momentum}.items():
        if not 0 <= value <= 1:
            raise ValueError(f"Parameter {name} should be from 0 to 1. Found {name} = {value!r}.")
    shares = [share for _, share in stages]
    if not stages or stages[-1][0] != 1 or min(shares) <= 0 or abs(sum(shares) - 1) > 1e-6:
        raise ValueError(
            f"Parameter stages should be (radius, share), shares above 0 of sum 1, the last radius 1. Found {stages}."
        )
    balls = [around(images, radius * eps, norm, steps=steps) for radius, _ in stages[:-1]] + [ball]
    strongest = nothing_yet(ball.images)
    for current in balls[0].starts(restarts, random_start, generator):
        first, done = None, 0
        for number, stage in enumerate(balls, start=1):
            end = steps if stage is ball else int(steps * sum(shares[:number]) + 1e-6)
            if end > done or stage is ball:
                start = current if number == 1 else stage.project(current)
                current, loss, first = _climb(losses, stage, start, weigh, first, (done, end, steps), rho, momentum)
                done = end
        strongest = keep(*strongest, current, loss)
    return ball.inside(strongest[0])


Part = tuple[int, int, int]  # the steps done before a stage and after it, and all


def _climb(
    losses: Losses, ball: Ball, current: Tensor, weigh: Weigh | None, first: Tensor | None, part: Part, *rates: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The best point of one stage, its loss (B,), and the losses (T, B) at the start of the run, which are `first` or
    those of `current`; `rates` are rho and momentum."""
    done, steps, whole, (rho, momentum) = part[0], part[1] - part[0], part[2], rates
    sparse = ball.norm == "l1"
    checkpoints = set(range(0, steps + 1, max(int(0.04 * steps), 1))) if sparse else _checkpoints(steps)
    previous, last_check = current, 0
    rows, gradient = ascent(losses, current, weigh, first, done / max(whole, 1))
    first, loss = rows if first is None else first, joint(rows)
    best, best_loss, best_gradient = current, loss, gradient
    longest = ball.eps if sparse else 2 * ball.eps
    size = per_image(torch.full_like(loss, longest, dtype=wide(current).dtype))
    rises, halved, loss_at_check = torch.zeros_like(loss), torch.ones_like(loss, dtype=torch.bool), loss
    changed = (current != ball.images).flatten(1).float().mean(dim=1)
    changed, share_of_values = (torch.ones_like(changed), 0.2) if done == 0 else (changed, changed / 1.5)
    for step in range(1, steps + 1):
        target = ball.project(current + ball.step(current, gradient, size, share_of_values))
        share = 1.0 if step == 1 or sparse else momentum
        moved = current + share * (target - current) + (1 - share) * (current - previous)
        current, previous, before = target if sparse else ball.project(moved), current, loss
        if step == steps:  # nobody needs the last gradient
            loss = score(losses, current)
        else:
            rows, gradient = ascent(losses, current, weigh, first, (done + step) / whole)
            loss = joint(rows)
        rises = rises + (loss > before)
        better = loss > best_loss
        best = torch.where(per_image(better), current, best)
        best_gradient = torch.where(per_image(better), gradient, best_gradient)
        best_loss = torch.where(better, loss, best_loss)
        if step in checkpoints:
            if sparse:  # "halved" where it starts again, with steps of full length in fewer values
                now = (best != ball.images).flatten(1).float().mean(dim=1)
                halved = now < 0.95 * changed
                shorter = (size / 1.5).clamp(min=longest / 10)
                size = torch.where(per_image(halved), torch.full_like(size, longest), shorter)
                changed, share_of_values = now, now / 1.5
            else:
                stalled = ~halved & (best_loss <= loss_at_check)
                halved = (rises <= rho * (step - last_check)) | stalled
                size = torch.where(per_image(halved), size / 2, size)
            current = torch.where(per_image(halved), best, current)
            gradient = torch.where(per_image(halved), best_gradient, gradient)
            rises, loss_at_check, last_check = torch.zeros_like(rises), best_loss, step
    return best, best_loss, first


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
