"""Square Attack (Andriushchenko et al. 2020, arXiv 1912.00049, algorithms 1 to 3): random search with squares of
shrinking size. It sees losses only, no gradients: where it finds more than gradient attacks do, gradients mislead."""

import math
from functools import partial

import torch
from torch import Tensor

from mtrlib.attacks.ball import around, direction, keep, length, nothing_yet, score, wide
from mtrlib.attacks.losses import Losses

_HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)  # of 10,000 queries: where p is halved


def square(
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
    p: float = 0.8,
) -> Tensor:
    """Random search in squares: a change is kept where it raises the joint loss of the image. Squares and their signs
    are drawn once for all images, so an image's result does not depend on its batch. Every run starts from random
    stripes (linf) or windows (l2, l1).

    Parameters
    ----------
    step_size, random_start : without effect; the rest, and the result, as in `pgd`.
    steps : number of queries, each one forward pass of all images; one more scores the start.
    p : share of the image that the first squares cover, above 0 and at most 1.
    """
    ball = around(images, eps, norm, steps=steps, restarts=restarts)
    if not 0 < p <= 1:
        raise ValueError(f"Parameter p should be above 0 and at most 1. Found p = {p!r}.")
    start, changed = (_stripes, _recoloured) if norm == "linf" else (partial(f, norm) for f in (_windows, _mass_moved))
    best = nothing_yet(ball.images)
    for _ in range(restarts if eps else 0):
        draw = _Draws(ball.images, generator)
        points = ball.project(ball.images + start(ball.images, eps, draw))
        current = points, score(losses, points)
        for query in range(steps):
            side = _side(p, query / steps, images.shape[2:])
            moved = ball.project(ball.images + changed(current[0] - ball.images, eps, side, draw))
            current = keep(*current, moved, score(losses, moved))
        best = keep(*best, *current)
    return ball.inside(best[0])


class _Draws:
    """Random numbers for all images at once. Places are drawn on the CPU: no query waits for the accelerator."""

    def __init__(self, images: Tensor, generator: torch.Generator | None):
        self.like = images
        seed = torch.randint(2**62, (), generator=generator, device=generator.device if generator else "cpu")
        self.generator = torch.Generator().manual_seed(int(seed))

    def number(self, end: int) -> int:
        return int(torch.randint(end, (), generator=self.generator))

    def signs(self, *shape: int) -> Tensor:
        return (2 * torch.randint(2, shape, generator=self.generator) - 1).to(self.like)

    def place(self, side: int) -> tuple[slice, slice]:
        top, left = (self.number(n - side + 1) for n in self.like.shape[2:])
        return slice(top, top + side), slice(left, left + side)

    def bump(self, side: int) -> Tensor:
        """(1, 3, side, side): `_bump` on its side or not, of a random sign in each channel."""
        bump = _bump(side)
        bump = bump.T if self.number(2) else bump
        return bump.to(self.like.device) * self.signs(1, self.like.shape[1], 1, 1)


def _side(p: float, progress: float, size: torch.Size) -> int:
    """Side of the squares when `progress` of the queries is done; p is halved at fixed shares of them."""
    p = p / 2 ** sum(progress * 10_000 > part for part in _HALVINGS)
    return min(max(round(math.sqrt(p * size[0] * size[1])), 1), *size)


def _stripes(images: Tensor, eps: float, draw: _Draws) -> Tensor:
    return eps * draw.signs(1, images.shape[1], 1, images.shape[3])


def _recoloured(change: Tensor, eps: float, side: int, draw: _Draws) -> Tensor:
    """linf: one square gets the value eps or -eps in each channel."""
    rows, columns = draw.place(side)
    change = change.clone()
    change[:, :, rows, columns] = eps * draw.signs(1, change.shape[1], 1, 1)
    return change


def _windows(norm: str, images: Tensor, eps: float, draw: _Draws) -> Tensor:
    """l2, l1: a grid of five by five windows of `_bump`, of random signs, with the length eps in all."""
    change = torch.zeros_like(wide(images[:1]))
    side = max(min(images.shape[2:]) // 5, 1)
    top, left = ((n - n // side * side) // 2 for n in images.shape[2:])
    for row in range(top, images.shape[2] - side + 1, side):
        for column in range(left, images.shape[3] - side + 1, side):
            change[:, :, row : row + side, column : column + side] = draw.bump(side)
    change = direction(change, "l2")
    return eps * (change if norm == "l2" else change / length(change, norm).clamp(min=1e-12))


def _mass_moved(norm: str, change: Tensor, eps: float, side: int, draw: _Draws) -> Tensor:
    """l2, l1: one window gets a bump, with the mass (the sum of squares, or of absolute values) that it and a second
    window had, which is emptied, and what is left of the budget."""
    power = 2 if norm == "l2" else 1

    def mass_of(values: Tensor) -> Tensor:
        return values.square() if power == 2 else values.abs()

    change = wide(change)
    side = min(max(side, 3) | 1, *change.shape[2:])  # odd, if the image has room
    (rows, columns), (other_rows, other_columns) = draw.place(side), draw.place(side)
    unused = (eps**power - mass_of(change).sum(dim=(1, 2, 3), keepdim=True)).clamp(min=0)
    mask = torch.zeros_like(change[:1])
    mask[:, :, rows, columns] = 1
    mask[:, :, other_rows, other_columns] = 1
    mass = (mass_of(change) * mask).sum(dim=(2, 3), keepdim=True) + unused / change.shape[1]
    window = change[:, :, rows, columns]
    old = window / mass_of(window).sum(dim=(2, 3), keepdim=True).pow(1 / power).clamp(min=1e-12)
    new = draw.bump(side) + old
    new = new / mass_of(new).sum(dim=(2, 3), keepdim=True).pow(1 / power).clamp(min=1e-12)
    change = change.clone()
    change[:, :, other_rows, other_columns] = 0
    change[:, :, rows, columns] = new * mass.pow(1 / power)
    return change


def _bump(side: int) -> Tensor:
    """(side, side) of length 1: a positive bump beside a negative one, each highest in its middle."""
    half = side // 2
    window = torch.cat([_rings(half, side), -_rings(side - half, side)])
    return window / window.norm().clamp(min=1e-12)


def _rings(height: int, width: int) -> Tensor:
    """Nested rectangles around the middle, the k-th of which adds 1 / k^2."""
    values = torch.zeros(height, width)
    row, column = height // 2, width // 2
    for k in range(max(height, width) // 2 + 1):
        values[max(row - k, 0) : row + k + 1, max(column - k, 0) : column + k + 1] += 1 / (k + 1) ** 2
    return values
