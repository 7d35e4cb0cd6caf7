"""Gradient ascent on the joint loss: FGSM (Goodfellow et al. 2015, arXiv 1412.6572, section 4), BIM (Kurakin et al.
2017, arXiv 1607.02533, section 2.2), MIM (Dong et al. 2018, arXiv 1710.06081, algorithm 1) and PGD (Madry et al. 2018,
arXiv 1706.06083, section 2.1), the attack of the paper's RQ1."""

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
