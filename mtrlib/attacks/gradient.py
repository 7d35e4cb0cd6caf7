"""Gradient ascent on the joint loss: FGSM (Goodfellow et al. 2015, arXiv 1412.6572, section 4), BIM (Kurakin et al.
2017, arXiv 1607.02533, section 2.2), MIM (Dong et al. 2018, arXiv 1710.06081, algorithm 1) and PGD (Madry et al. 2018,
arXiv 1706.06083, section 2.1), the attack of the paper's RQ1."""

from __future__ import annotations

import torch
from torch import Tensor

from mtrlib.attacks import ball
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
) -> Tensor:
    """Projected gradient descent: ascend the joint loss by steps of fixed length, stay in the ball and in [0, 1].

    The point with the highest joint loss of each image is kept, the start and the last iterate included, so more
    steps or restarts are never weaker. An image whose gradient is zero stays where it is in that step.

    Parameters
    ----------
    losses : (B, 3, H, W) in [0, 1] -> (T, B); the sum over rows is maximised.
    images : (B, 3, H, W), in [0, 1].
    eps : budget in image units: the largest change of a value (linf), the Euclidean length of an image's whole
        perturbation (l2).
    step_size : length of a step in the same unit and norm.
    steps : number of steps; each costs one forward and one backward pass. One forward pass more scores the last.
    norm : "linf" (steps along the sign of the gradient) or "l2" (along the gradient, normalised for each image).
    restarts : number of runs, each from a start of its own.
    random_start : start from a random point of the ball; else the first run starts from the image itself.
    generator : of the random starts. One start is drawn a restart and serves every image, so that an image has the
        same start in whatever batch it comes.

    Returns
    -------
    (B, 3, H, W), of the dtype and on the device of the images, in [0, 1] and at most eps from them.
    """
    return climb(losses, images, eps, step_size, steps, norm, restarts, random_start, generator)


def bim(
    losses: Losses,
    images: Tensor,
    *,
    eps: float,
    step_size: float,
    steps: int,
    norm: str = "linf",
    restarts: int = 1,
    random_start: bool = False,
    generator: torch.Generator | None = None,
) -> Tensor:
    """The basic iterative method, or I-FGSM: `pgd` from the image itself. Parameters and result as there."""
    return climb(losses, images, eps, step_size, steps, norm, restarts, random_start, generator)


def fgsm(
    losses: Losses,
    images: Tensor,
    *,
    eps: float,
    step_size: float | None = None,
    steps: int = 1,
    norm: str = "linf",
    restarts: int = 1,
    random_start: bool = False,
    generator: torch.Generator | None = None,
) -> Tensor:
    """The fast gradient method: one step of length eps from the image itself, if that raises the joint loss.

    Parameters and result as in `pgd`; `step_size` and `steps` are without effect.
    """
    return climb(losses, images, eps, eps, 1, norm, restarts, random_start, generator)


def mim(
    losses: Losses,
    images: Tensor,
    *,
    eps: float,
    step_size: float,
    steps: int,
    norm: str = "linf",
    restarts: int = 1,
    random_start: bool = False,
    generator: torch.Generator | None = None,
    decay: float = 1.0,
) -> Tensor:
    """The momentum iterative method, MI-FGSM: steps along g <- decay g + gradient / ||gradient||_1.

    Parameters and result as in `pgd`, and `decay`, at least 0: how much of the earlier directions is kept.
    """
    if not decay >= 0:
        raise ValueError(f"Parameter decay should be at least 0. Found decay = {decay!r}.")
    return climb(losses, images, eps, step_size, steps, norm, restarts, random_start, generator, decay=decay)


def climb(
    losses: Losses,
    images: Tensor,
    eps: float,
    step_size: float,
    steps: int,
    norm: str,
    restarts: int,
    random_start: bool,
    generator: torch.Generator | None,
    *,
    decay: float | None = None,
    weigh: ball.Weigh | None = None,
) -> Tensor:
    """The loop under the attacks that take steps of fixed length: with momentum, or over weighted losses."""
    ball.check(images, eps, step_size, steps, norm, restarts)
    images = images.detach()
    if eps == 0:
        return images.clone()
    limits = ball.box(images, eps if norm == "linf" else float("inf"))
    best, best_loss = ball.nothing_yet(images)
    for restart in range(restarts):
        current = images
        if random_start or restart > 0:
            start = images + ball.random_start(images, eps, norm, generator)
            current = ball.project(start, images, eps, norm, *limits)
        first, velocity = None, 0.0
        for _ in range(steps):
            rows, direction = ball.ascent(losses, current, weigh, first)
            first = rows if first is None else first
            best, best_loss = ball.keep(best, best_loss, current, rows.sum(dim=0))
            if decay is not None:
                velocity = direction = decay * velocity + ball.of_unit_sum(direction)
            moved = current + step_size * ball.direction(direction, norm)
            current = ball.project(moved, images, eps, norm, *limits)
        best, best_loss = ball.keep(best, best_loss, current, ball.score(losses, current))
    return ball.inside(best, images, eps, norm)
