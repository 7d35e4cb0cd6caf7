"""Attacks that choose among tasks: one is raised and others are kept (after the stealthy multi-task attack, arXiv
2411.17936), the least hurt leads (min-max), or an output is moved to a map that the adversary wants.

A task's rise is R_i = (L_i(x + d) - L_i(x)) / L_i(x), or the change of the loss itself where L_i(x) is 0.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from mtrlib.attacks.ball import around, checked, keep, nothing_yet
from mtrlib.attacks.gradient import pgd
from mtrlib.attacks.losses import Losses, mapped


def min_max(losses: Losses, images: Tensor, *, beta: float = 50.0, **settings) -> Tensor:
    """`pgd` on the lowest rise among the tasks: max over d of min over weights w in the simplex of sum_i w_i R_i. Steps
    go along the gradient with weights softmax(-beta R / max |R|), the minimum smoothed, the same for small rises as for
    large ones; the point kept is that with the highest lowest rise. Parameters and result as in `pgd`; beta is above 0.
    """
    if not 0 < beta < float("inf"):
        raise ValueError(f"Parameter beta should be finite and above 0. Found beta = {beta!r}.")
    rise = _rises(losses, images)

    def least(rows: Tensor, points: Tensor) -> Tensor:
        rows = rise(rows, points)
        sharp = beta / rows.detach().abs().amax(dim=0).clamp(min=1e-12)
        smooth = -torch.logsumexp(-sharp * rows, dim=0) / sharp
        return (rows.amin(dim=0).detach() + smooth - smooth.detach())[None]

    return pgd(mapped(losses, least), images, **settings)


def stealthy(
    losses: Losses,
    images: Tensor,
    *,
    eps: float,
    norm: str = "linf",
    generator: torch.Generator | None = None,
    gamma: float = 1.0,
    searches: int = 5,
    slack: float = 0.0,
    **settings,
) -> Tensor:
    """Raise the first row of the losses and no other: `pgd` on R_1 - sum_i gamma_i R_i, with weights gamma that are
    searched for each image and kept task. After each run a task that rose by more than `slack` weighs more, another
    less, by a factor of 8 at first, whose logarithm is halved from run to run.

    Of all points that the runs met, the one with the highest R_1 is kept where no other task has R_i above `slack`; the
    image itself is one. With `variant(losses, "error")` both are the reported errors. Other parameters, and the result,
    as in `pgd`; it costs as much as `searches` of it.

    Parameters
    ----------
    losses : images -> (T, B): the task to raise, then those to keep; such as of `task_losses` for "sdn": s.
    gamma : the weights to begin with, above 0.
    slack : the rise of a kept task that goes unnoticed, at least 0.
    """
    if not (gamma > 0 and searches >= 1 and slack >= 0):
        found = f"gamma = {gamma!r}, searches = {searches!r}, slack = {slack!r}"
        raise ValueError(f"Parameter gamma should be above 0, searches at least 1, slack at least 0. Found {found}.")
    ball, rise = around(images, eps, norm, steps=1), _rises(losses, images)
    images, factor = ball.images, 8.0
    best = keep(*nothing_yet(images), images, images.new_zeros(len(images)))
    with torch.no_grad():
        weights = gamma * torch.ones_like(losses(images)[1:])

    def raised(rows: Tensor, points: Tensor) -> Tensor:
        nonlocal best
        rows = rise(rows, points)
        kept = (rows[1:] <= slack).all(dim=0)
        best = keep(*best, points.detach(), torch.where(kept, rows[0].detach(), -float("inf")))
        return (rows[0] - (weights * rows[1:]).sum(dim=0))[None]

    for _ in range(searches):
        points = pgd(mapped(losses, raised), images, eps=eps, norm=norm, generator=generator, **settings)
        with torch.no_grad():
            weights = torch.where(rise(losses(points), points)[1:] > slack, weights * factor, weights / factor)
        factor = factor**0.5
    points = ball.inside(best[0])
    with torch.no_grad():  # what rounding took back may count
        kept = (rise(losses(points), points)[1:] <= slack).all(dim=0)
    return torch.where(kept.view(-1, 1, 1, 1), points, images)


def towards(losses: Losses) -> Losses:
    """The losses with the other sign: with targets that the adversary wants, such as a depth map that is scaled,
    flipped or without an object (Wong et al. 2020, arXiv 2006.08602), `pgd` and `apgd` bring the outputs near to them.
    """
    return mapped(losses, lambda rows, points: -rows)


def _rises(losses: Losses, images: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    """The function that gives R_i of points, (T, B), from their losses."""
    with torch.no_grad():
        clean = checked(losses(images), images)
    clean = torch.where(clean.isfinite(), clean, 0)
    unit = torch.where(clean > 0, clean, 1)
    return lambda rows, points: (checked(rows, points) - clean) / unit
