"""Gradient ascent on the joint loss: FGSM (Goodfellow et al. 2015, arXiv 1412.6572, section 4), BIM (Kurakin et al.
2017, arXiv 1607.02533, section 2.2), MIM (Dong et al. 2018, arXiv 1710.06081, algorithm 1) and PGD (Madry et al. 2018,
arXiv 1706.06083, section 2.1), the attack of the paper's RQ1.

Two weight the tasks anew in every step, for each image by itself: WGD, the paper's own (arXiv 2110.15053, RQ3,
definition 5), and DGBA (Zhang et al. 2023, arXiv 2305.12066)."""

from functools import partial

import torch
from torch import Tensor

from mtrlib.attacks.ball import Weigh, around, ascent, keep, nothing_yet, of_unit_sum, score
from mtrlib.attacks.losses import Losses


def pgd(
    losses: Losses,
    images: Tensor,
    *,
    eps: float,
    step_size: float,
    steps: int,
    norm: str = "linf",
    restarts: int = 1,
    random_start: bool = True,
    generator: torch.Generator | None = None,
    decay: float | None = None,
    weigh: Weigh | None = None,
    last: bool = False,
) -> Tensor:
    """Projected gradient descent: ascend the joint loss by steps of fixed length, stay in the ball and in [0, 1].

    The point with the highest joint loss of each image is kept, the start and the last iterate included, so more
    steps or restarts are never weaker. An image whose gradient is zero stays where it is in that step.

    Parameters
    ----------
    losses : (B, 3, H, W) in [0, 1] -> (T, B); the sum over rows is maximised.
    images : (B, 3, H, W), in [0, 1].
    eps : budget in image units: the largest change of a value (linf), the Euclidean length of an image's whole
        perturbation (l2), or the sum of its absolute changes (l1).
    step_size : length of a step in the same unit and norm.
    steps : number of steps; each costs one forward and one backward pass. One forward pass more scores the last.
    norm : "linf" (steps along the sign of the gradient), "l2" (along the gradient, normalised for each image) or "l1"
        (each step shared by the hundredth of the values with the largest derivatives, as in SLIDE, Tramer and Boneh
        2019, arXiv 1904.13000, among those that the range leaves room).
    restarts : number of runs, each from a start of its own.
    random_start : start from a random point of the ball; else the first run starts from the image itself.
    generator : of the random starts. One a restart serves every image: it has the same start in whatever batch it
        comes.
    decay : at least 0, how much of the earlier directions is kept (see `mim`); None for steps along the gradient alone.
    weigh : weights of the tasks in each step, from their losses at the current point and at the start, both (T, B),
        such as `task_attack_rates`; None for 1.
    last : give the last point of the last run, whatever was met on the way, and spare its score: for training.

    Returns
    -------
    Adversarial images (B, 3, H, W), in [0, 1] and within eps of `images`.
    """
    ball = around(images, eps, norm, step_size=step_size, steps=steps, restarts=restarts)
    if decay is not None and not decay >= 0:
        raise ValueError(f"Parameter decay should be at least 0. Found decay = {decay!r}.")
    best = nothing_yet(ball.images)
    for current in ball.starts(restarts, random_start, generator):
        first, velocity = None, 0.0
        for step in range(steps):
            rows, gradient = ascent(losses, current, weigh, first, step / steps)
            first = rows if first is None else first
            best = best if last else keep(*best, current, rows.sum(dim=0))
            if decay is not None:
                velocity = gradient = decay * velocity + of_unit_sum(gradient)
            current = ball.project(current + ball.step(current, gradient, step_size))
        best = (current, best[1]) if last else keep(*best, current, score(losses, current))
    return ball.inside(best[0])


def bim(losses: Losses, images: Tensor, *, random_start: bool = False, **settings) -> Tensor:
    """The basic iterative method: `pgd` from the image itself."""
    return pgd(losses, images, random_start=random_start, **settings)


def fgsm(losses: Losses, images: Tensor, *, eps: float, random_start: bool = False, **settings) -> Tensor:
    """The fast gradient method: one step of length eps from the image itself, if that raises the joint loss.
    `step_size` and `steps` may be left out and are without effect."""
    return pgd(losses, images, eps=eps, random_start=random_start, **settings | {"step_size": eps, "steps": 1})


def mim(losses: Losses, images: Tensor, *, decay: float = 1.0, random_start: bool = False, **settings) -> Tensor:
    """The momentum iterative method, MI-FGSM: `pgd` along g <- decay g + gradient / ||gradient||_1."""
    return pgd(losses, images, decay=decay, random_start=random_start, **settings)


def wgd(losses: Losses, images: Tensor, *, rate: str = "definition", **settings) -> Tensor:
    """Weighted gradient descent: `pgd` along the gradient of sum_i r_i(t) L_i, r from `task_attack_rates`.

    L_i(0) is the loss at the start of the run. With one attacked task this is `pgd`. The point kept is that with the
    highest unweighted sum of losses. Parameters and result as in `pgd`, and `rate` as in `task_attack_rates`.
    """
    _checked(rate)
    return pgd(losses, images, weigh=partial(task_attack_rates, rate=rate), **settings)


def dgba(losses: Losses, images: Tensor, **settings) -> Tensor:
    """Dynamic gradient balancing: each step maximises, to first order, the mean over tasks of (L_i(x + step) - L_i(x))
    / L_i(x).

    That is a step along sum_i gradient(L_i) / L_i, L_i being the loss at the current point, which solves the linear
    programme of the paper coordinate by coordinate. A task whose loss is 0 takes no part in that step. The point kept
    is that with the highest unweighted sum of losses. Parameters and result as in `pgd`.
    """

    def one_over(rows: Tensor, first: Tensor) -> Tensor:
        return torch.where(rows > 1e-12, 1 / rows.clamp(min=1e-12), 0.0)

    return pgd(losses, images, weigh=one_over, **settings)


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
    _checked(rate)
    if len(losses) == 1:  # L~ / L~, without rounding
        return torch.ones_like(losses)
    tiny = torch.finfo(losses.dtype).tiny
    grown = losses.clamp(min=tiny) / first.clamp(min=tiny)
    grown = torch.where((first > tiny) & first.isfinite() & ~grown.isnan(), grown.clamp(tiny**0.5, tiny**-0.5), 1.0)
    grown = grown if rate == "definition" else 1 / grown
    return grown / grown.mean(dim=0)


def _checked(rate: str) -> None:
    if rate not in ("definition", "inverse"):
        raise ValueError(f"Parameter rate should be one of definition, inverse. Found rate = {rate!r}.")
