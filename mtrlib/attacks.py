"""Attacks on the images of a batch, as pure functions of a loss: they know no model, task or data set.

`pgd` is projected gradient descent (Madry et al. 2018, arXiv 1706.06083; with restarts and the best iterate kept), the
attack of the paper's RQ1. The adversary maximises the sum over the attacked tasks: one task ("single") or all of them
("joint"; paper, "Adversarial attacks").

A loss is a callable from images (B, 3, H, W), in [0, 1], to (T, B): one row an attacked task, one column an image,
where no column depends on another image. Each image is then attacked by itself: its result does not change with the
batch around it. Budgets and steps are in image units.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from mtrlib.tasks import TASKS

Losses = Callable[[Tensor], Tensor]
NORMS = ("linf", "l2")


def task_losses(
    model: Callable, targets: dict[str, Tensor], masks: dict[str, Tensor | None] | None, tasks: str
) -> Losses:
    """The losses that an attack maximises, from a model and a batch.

    Parameters
    ----------
    model : (images, tasks) -> dict of outputs by task letter; a `models.MultiTaskModel`.
    targets, masks : by task letter, B first; masks (or a mask) may be None.
    tasks : letters of the attacked tasks; no other decoder is run.

    Returns
    -------
    losses : (B, 3, H, W) -> (T, B), in the order of `tasks`.
    """

    def losses(images: Tensor) -> Tensor:
        outputs = model(images, tasks)
        return torch.stack([TASKS[t].loss(outputs[t], targets[t], masks[t] if masks else None) for t in tasks])

    return losses


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
    _check(images, eps, step_size, steps, norm, restarts)
    images = images.detach()
    if eps == 0:
        return images.clone()
    lower, upper = _box(images, eps if norm == "linf" else float("inf"))
    best, best_loss = images, images.new_full(images.shape[:1], -float("inf"), dtype=torch.float64)
    for restart in range(restarts):
        current = images
        if random_start or restart > 0:
            current = _project(images + _random_start(images, eps, norm, generator), images, eps, norm, lower, upper)
        for _ in range(steps):
            current = current.detach().requires_grad_()
            with torch.enable_grad():
                loss = _joint(losses, current)
                (gradient,) = torch.autograd.grad(loss.sum(), current)
            best, best_loss = _keep(best, best_loss, current.detach(), loss.detach())
            moved = current.detach() + step_size * _direction(gradient, norm)
            current = _project(moved, images, eps, norm, lower, upper)
        with torch.no_grad():
            best, best_loss = _keep(best, best_loss, current, _joint(losses, current))
    return _inside(best, images, eps, norm)


def _check(images: Tensor, eps: float, step_size: float, steps: int, norm: str, restarts: int) -> None:
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


def _joint(losses: Losses, images: Tensor) -> Tensor:
    """(B,): the sum over the attacked tasks."""
    rows = losses(images)
    if rows.dim() != 2 or rows.shape[1] != images.shape[0]:
        raise ValueError(
            f"Parameter losses should return (T, B) for B = {images.shape[0]} images. Found {tuple(rows.shape)}."
        )
    return rows.sum(dim=0)


def _keep(best: Tensor, best_loss: Tensor, current: Tensor, loss: Tensor) -> tuple[Tensor, Tensor]:
    """Image by image, the point with the higher loss; a loss that is not a number never wins."""
    better = loss > best_loss
    return torch.where(_spread(better), current, best), torch.where(better, loss.to(best_loss.dtype), best_loss)


def _direction(gradient: Tensor, norm: str) -> Tensor:
    """The steepest ascent of length one in the norm, image by image; zero for an image without gradient."""
    gradient = gradient.nan_to_num()
    if norm == "linf":
        return gradient.sign()
    largest = gradient.abs().amax(dim=(1, 2, 3), keepdim=True)  # first, so that squares neither vanish nor overflow
    gradient = gradient / torch.where(largest > 0, largest, 1)
    length = _length(gradient)
    return gradient / torch.where(length > 0, length, 1)


def _project(
    moved: Tensor, images: Tensor, eps: float, norm: str, lower: Tensor | float, upper: Tensor | float
) -> Tensor:
    """The point of the ball and of [0, 1] for `moved`: in l2 first into the ball, then into the range."""
    if norm == "l2":
        change = moved - images
        length = _length(change)
        moved = images + change * (eps * (1 - 1e-6) / length.clamp(min=1e-30)).clamp(max=1)
    return torch.clamp(moved, lower, upper)


def _box(images: Tensor, eps: float) -> tuple[Tensor, Tensor]:
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


def _inside(best: Tensor, images: Tensor, eps: float, norm: str) -> Tensor:
    """In l2, take back what rounding added to the length of a perturbation."""
    if norm == "linf":
        return best
    length = _length((best - images).double())
    shrunk = torch.clamp(images + (best - images) * (eps * (1 - 1e-4) / length.clamp(min=1e-30)).to(best.dtype), 0, 1)
    best = torch.where(length > eps, shrunk, best)
    return torch.where(_length((best - images).double()) > eps, images, best)


def _random_start(images: Tensor, eps: float, norm: str, generator: torch.Generator | None) -> Tensor:
    """(1, 3, H, W): a point drawn uniformly from the ball around zero."""
    device = images.device if generator is None else generator.device
    shape = (1, *images.shape[1:])
    if norm == "linf":
        noise = torch.rand(shape, generator=generator, device=device) * 2 - 1
    else:
        noise = torch.randn(shape, generator=generator, device=device)
        radius = torch.rand((), generator=generator, device=device) ** (1 / noise.numel())
        noise = noise / _length(noise) * radius
    return (eps * noise).to(images)


def _length(values: Tensor) -> Tensor:
    """(B, 3, H, W) -> (B, 1, 1, 1): the Euclidean length of each image."""
    return values.square().sum(dim=(1, 2, 3), keepdim=True).sqrt()


def _spread(values: Tensor) -> Tensor:
    return values.view(-1, 1, 1, 1)
