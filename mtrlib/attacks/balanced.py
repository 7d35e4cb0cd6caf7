"""Attacks that weight the tasks anew in every step, for each image by itself: WGD, the paper's own (arXiv 2110.15053,
RQ3, definition 5), and DGBA (Zhang et al. 2023, arXiv 2305.12066)."""

from functools import partial

import torch
from torch import Tensor

from mtrlib.attacks.gradient import pgd
from mtrlib.attacks.losses import Losses

RATES = ("definition", "inverse")


def wgd(losses: Losses, images: Tensor, *, rate: str = "definition", **settings) -> Tensor:
    """Weighted gradient descent: `pgd` along the gradient of sum_i r_i(t) L_i, r from `task_attack_rates`.

    L_i(0) is the loss at the start of the run. With one attacked task this is `pgd`. The point kept is that with the
    highest unweighted sum of losses. Parameters and result as in `pgd`, and `rate` as in `task_attack_rates`.
    """
    return pgd(losses, images, weigh=partial(task_attack_rates, rate=_checked(rate)), **settings)


def dgba(losses: Losses, images: Tensor, **settings) -> Tensor:
    """Dynamic gradient balancing: each step maximises, to first order, the mean over tasks of (L_i(x + step) - L_i(x))
    / L_i(x).

    That is a step along sum_i gradient(L_i) / L_i, L_i being the loss at the current point, which solves the linear
    programme of the paper coordinate by coordinate. A task whose loss is 0 takes no part in that step. The point kept
    is that with the highest unweighted sum of losses. Parameters and result as in `pgd`.
    """
    return pgd(losses, images, weigh=_one_over, **settings)


def task_attack_rates(losses: Tensor, first: Tensor, rate: str = "definition") -> Tensor:
    """The weights of the tasks in a step of `wgd`, for the `weigh` of `pgd` and `apgd`.

    Parameters
    ----------
    losses, first : (T, B), losses L_i(t) of the current point and L_i(0) of the start; at least 0.
    rate : "definition", r_i(t) = L~_i(t) / mean_j L~_j(t) with L~_i(t) = L_i(t) / L_i(0), as the paper prints it: the
        task whose loss has grown most gets the most weight. "inverse", the same with 1 / L~: the task that lags does,
        as in GradNorm, from which the paper takes the idea.

    Returns
    -------
    (T, B), with mean 1 over the tasks. A task with L_i(0) = 0, or a loss that is no number, counts as unchanged.
    """
    tiny = torch.finfo(losses.dtype).tiny
    grown = losses.clamp(min=tiny) / first.clamp(min=tiny)
    grown = torch.where((first > tiny) & first.isfinite() & ~grown.isnan(), grown.clamp(tiny**0.5, tiny**-0.5), 1.0)
    grown = grown if _checked(rate) == "definition" else 1 / grown
    if len(losses) == 1:  # L~ / L~, without rounding
        return torch.ones_like(losses)
    return grown / grown.mean(dim=0)


def _one_over(losses: Tensor, first: Tensor) -> Tensor:
    return torch.where(losses > 1e-12, 1 / losses.clamp(min=1e-12), 0.0)


def _checked(rate: str) -> str:
    if rate not in RATES:
        raise ValueError(f"Parameter rate should be one of {', '.join(RATES)}. Found rate = {rate!r}.")
    return rate
