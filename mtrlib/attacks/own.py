"""An attack of the user's own: a trial before anything is computed, and what every one of its results is held to."""

from collections.abc import Callable
from functools import wraps

import torch
from torch import Tensor

from mtrlib.attacks.ball import length
from mtrlib.attacks.losses import Losses

_TRIAL = {"linf": 8 / 255, "l2": 0.5, "l1": 5.0}


def held(attack: Callable[..., Tensor], name: str) -> Callable[..., Tensor]:
    """The attack, each result of which is checked: ValueError of one line for another shape or dtype, values outside
    [0, 1] or that are no numbers, a perturbation above the budget, a result that still has a graph, images that were
    changed in place, and for whatever the attack raises."""

    @wraps(attack)
    def checked(losses: Losses, images: Tensor, *, eps: float, norm: str, **settings) -> Tensor:
        before, what = images.clone(), f"The attack {name} should give images"
        try:
            points = attack(losses, images, eps=eps, norm=norm, **settings)
        except Exception as error:  # of whatever type: it is not ours
            told = f"{type(error).__name__}: {' '.join(str(error).split())}"
            raise ValueError(f"The attack {name} fails on {tuple(images.shape)} with norm {norm!r}: {told}") from error
        if not isinstance(points, Tensor) or points.shape != images.shape or points.dtype != images.dtype:
            found = f"{points.dtype} {tuple(points.shape)}" if isinstance(points, Tensor) else type(points).__name__
            raise ValueError(f"{what}, {images.dtype} {tuple(images.shape)}. Found {found}.")
        if points.requires_grad:
            raise ValueError(f"{what} without a graph: end it with .detach().")
        if not torch.equal(before, images):
            raise ValueError(f"The attack {name} should leave its images as they are. It has changed them in place.")
        if not (points.min() >= 0 and points.max() <= 1):
            found = f"from {points.min().item():.4g} to {points.max().item():.4g}"
            raise ValueError(f"{what} in [0, 1]. Found values {found}.")
        size = length(points.double() - images.double(), norm).amax().item()
        if size > eps * (1 + 1e-3) + 1e-6:
            raise ValueError(f"{what} within eps = {eps:.4g} in {norm}. Found a change of {size:.4g}.")
        return points

    return checked


def tried(attack: Callable[..., Tensor], name: str, norm: str) -> Callable[..., Tensor]:
    """`held`, once two small images were attacked so, by losses (2, B) whose gradient is nowhere 0."""
    draw = torch.Generator().manual_seed(0)
    images, slopes = torch.rand(2, 3, 16, 16, generator=draw), torch.randn(2, 3, 16, 16, generator=draw)

    def losses(points: Tensor) -> Tensor:
        return torch.stack([(points * slope).sum(dim=(1, 2, 3)).exp().log1p() for slope in slopes / 100])

    attack, eps = held(attack, name), _TRIAL[norm]
    generator = torch.Generator().manual_seed(0)
    attack(losses, images, eps=eps, step_size=eps / 4, steps=2, norm=norm, restarts=1, generator=generator)
    return attack
