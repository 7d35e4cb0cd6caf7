"""What all attacks share: the ball around each image, steps and projections in its norm, the best point kept."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from mtrlib.attacks.losses import Losses, refuse_inference

NORMS = ("linf", "l2")
Weigh = Callable[[Tensor, Tensor], Tensor]


def ascent(losses: Losses, images: Tensor, weigh: Weigh | None, first: Tensor | None) -> tuple[Tensor, Tensor]:
    """The losses at `images`, (T, B), and the gradient of their weighted sum, (B, 3, H, W).

    `weigh` takes the losses and the first ones of the run, both (T, B), to weights (T, B); None for 1. Weights are not
    differentiated.
    """
    images = images.detach().requires_grad_()
    with torch.enable_grad():
        rows = checked(losses(images), images)
        now = rows.detach()
        weighted = rows if weigh is None else weigh(now, now if first is None else first) * rows
        (gradient,) = torch.autograd.grad(weighted.sum(), images)
    return now, gradient


def score(losses: Losses, images: Tensor) -> Tensor:
    """(B,): the sum of the losses over the attacked tasks, without a gradient; as `joint` gives it."""
    with torch.no_grad():
        return joint(checked(losses(images), images))


def joint(rows: Tensor) -> Tensor:
    """(T, B) -> (B,): the sum over the tasks; -inf, which is no gain, where that is not a number."""
    return rows.sum(dim=0).nan_to_num(nan=-float("inf"), posinf=float("inf"), neginf=-float("inf"))


def checked(rows: Tensor, images: Tensor) -> Tensor:
    """The rows, if they are (T, B)."""
    if rows.dim() != 2 or rows.shape[1] != images.shape[0]:
        raise ValueError(
            f"Parameter losses should return (T, B) for B = {images.shape[0]} images. Found {tuple(rows.shape)}."
        )
    return rows


def nothing_yet(images: Tensor) -> tuple[Tensor, Tensor]:
    """The best point and its loss before an attack begins; any loss that is a number is better."""
    return images, images.new_full(images.shape[:1], -float("inf"), dtype=torch.float64)


def check(images: Tensor, eps: float, step_size: float, steps: int, norm: str, restarts: int) -> None:
    refuse_inference(images)
    if images.dim() != 4 or not images.is_floating_point():
        raise ValueError(f"Parameter images should be float (B, 3, H, W). Found {images.dtype} {tuple(images.shape)}.")
    if images.numel() and not (images.min() >= 0 and images.max() <= 1):
        raise ValueError(
            f"Parameter images should lie in [0, 1]. Found values from {images.min().item()} to {images.max().item()}."
        )
    if norm not in NORMS:
        raise ValueError(f"Parameter norm should be one of {', '.join(NORMS)}. Found norm = {norm!r}.")
    for name, value in {"eps": eps, "step_size": step_size, "steps": steps, "restarts": restarts}.items():
        least = 1 if name == "restarts" else 0
        if not least <= value < float("inf"):
            raise ValueError(f"Parameter {name} should be finite and at least {least}. Found {name} = {value!r}.")


def keep(best: Tensor, best_loss: Tensor, current: Tensor, loss: Tensor) -> tuple[Tensor, Tensor]:
    """Image by image, the point with the higher loss; a loss that is not a number never wins."""
    better = loss > best_loss
    return torch.where(spread(better), current, best), torch.where(better, loss.to(best_loss.dtype), best_loss)


def direction(gradient: Tensor, norm: str) -> Tensor:
    """The steepest ascent of length one in the norm, image by image; zero for an image without gradient.

    A value of the gradient that is not a number counts as none."""
    gradient = wide(gradient).nan_to_num()
    if norm == "linf":
        return gradient.sign()
    largest = gradient.abs().amax(dim=(1, 2, 3), keepdim=True)  # first, so that squares neither vanish nor overflow
    gradient = gradient / torch.where(largest > 0, largest, 1)
    size = length(gradient)
    return gradient / torch.where(size > 0, size, 1)


def of_unit_sum(gradient: Tensor) -> Tensor:
    """The gradient of each image over the sum of its absolute values; zero stays zero."""
    gradient = wide(gradient).nan_to_num()
    largest = torch.finfo(gradient.dtype).max / gradient[0].numel()  # so that the sum does not overflow
    gradient = gradient.clamp(-largest, largest)
    total = gradient.abs().sum(dim=(1, 2, 3), keepdim=True)
    return gradient / torch.where(total > 0, total, 1)


def project(
    moved: Tensor, images: Tensor, eps: float, norm: str, lower: Tensor | float, upper: Tensor | float
) -> Tensor:
    """The point of the ball and of [0, 1] for `moved`: in l2 first into the ball, then into the range."""
    if norm == "l2":
        change = wide(moved) - images
        moved = images + change * (eps * (1 - 1e-6) / length(change).clamp(min=1e-30)).clamp(max=1)
    return torch.clamp(moved, lower, upper).to(images.dtype)


def box(images: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """The lowest and highest values within eps of the images and in [0, 1] that the dtype has: rounding never adds."""
    eps = _rounded_down(eps, images.dtype)
    lower, upper = (images - eps).clamp(min=0), (images + eps).clamp(max=1)
    exact = images.double()
    lower = torch.where(exact - lower.double() > eps, torch.nextafter(lower, images), lower)
    upper = torch.where(upper.double() - exact > eps, torch.nextafter(upper, images), upper)
    return lower, upper


def _rounded_down(eps: float, dtype: torch.dtype) -> float:
    """The largest number of the dtype that is at most eps."""
    value = torch.tensor(eps, dtype=dtype)
    if value.double() > eps:
        value = torch.nextafter(value, torch.zeros_like(value))
    return value.item()


def inside(best: Tensor, images: Tensor, eps: float, norm: str) -> Tensor:
    """In l2, take back what rounding added to the length of a perturbation: shrink it and, where that is rounded up
    again, leave out its largest changes until the rest is inside."""
    if norm == "linf":
        return best
    change = best.double() - images.double()
    size = length(change)
    shrunk = (images.double() + change * (eps * (1 - 1e-4) / size.clamp(min=1e-300))).clamp(0, 1).to(best.dtype)
    best = torch.where(size > eps, shrunk, best)
    good = length(best.double() - images.double()) <= eps
    if good.all():
        return best
    squares, order = (best.double() - images.double()).square().flatten(1).sort(dim=1)
    fits = squares.cumsum(dim=1) <= eps**2 * (1 - 1e-12)
    fits = torch.zeros_like(fits).scatter(1, order, fits).view_as(best)
    return torch.where(good | fits, best, images)


def random_start(images: Tensor, eps: float, norm: str, generator: torch.Generator | None) -> Tensor:
    """(1, 3, H, W): a point drawn uniformly from the ball around zero."""
    device = images.device if generator is None else generator.device
    shape = (1, *images.shape[1:])
    if norm == "linf":
        noise = torch.rand(shape, generator=generator, device=device) * 2 - 1
    else:
        noise = torch.randn(shape, generator=generator, device=device)
        radius = torch.rand((), generator=generator, device=device) ** (1 / noise.numel())
        noise = noise / length(noise) * radius
    return (eps * noise).to(images)


def wide(values: Tensor) -> Tensor:
    """In float32 at least: squares and sums of half precision vanish and overflow."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def length(values: Tensor) -> Tensor:
    """(B, 3, H, W) -> (B, 1, 1, 1): the Euclidean length of each image."""
    return values.square().sum(dim=(1, 2, 3), keepdim=True).sqrt()


def spread(values: Tensor) -> Tensor:
    return values.view(-1, 1, 1, 1)
