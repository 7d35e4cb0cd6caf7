"""What all attacks share: the ball around each image, steps and projections in its norm, the best point kept."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from mtrlib.attacks.losses import Losses, refuse_inference

NORMS = ("linf", "l2")
BALLS = (*NORMS, "l1")
Weigh = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class Ball:
    """The points within eps of each image, in `norm`, and in [0, 1]; `around` makes it. The lowest and highest values
    that the dtype of the images has in it are `lower` and `upper`, (B, 3, H, W)."""

    images: Tensor
    eps: float
    norm: str
    lower: Tensor
    upper: Tensor

    def project(self, moved: Tensor) -> Tensor:
        """The point of the ball for `moved`: in l2 first within eps, then into [0, 1]; in l1 the nearest that is in
        both (Croce and Hein 2021, arXiv 2103.01208, proposition 2.1)."""
        if self.norm == "l1":
            change = moved.double() - self.images
            moved = self.images + _within_l1(change, torch.where(change > 0, 1 - self.images, self.images), self.eps)
        if self.norm == "l2":
            change = wide(moved) - self.images
            moved = self.images + change * (self.eps * (1 - 1e-6) / length(change).clamp(min=1e-30)).clamp(max=1)
        return torch.clamp(moved, self.lower, self.upper).to(self.images.dtype)

    def holds(self, points: Tensor) -> Tensor:
        """(B,): whether points lie in the ball, but for what rounding added and `inside` takes back."""
        if self.norm == "linf":
            return ((points >= self.lower) & (points <= self.upper)).flatten(1).all(dim=1)
        return (length(points.double() - self.images.double(), self.norm) <= 1.01 * self.eps).flatten()

    def starts(self, restarts: int, random_start: bool, generator: torch.Generator | None) -> Iterator[Tensor]:
        """Where the runs of an attack begin; nowhere with a budget of 0."""
        for restart in range(restarts if self.eps else 0):
            random = random_start or restart > 0
            yield self.project(self.images + self.noise(generator)) if random else self.images

    def noise(self, generator: torch.Generator | None) -> Tensor:
        """(1, 3, H, W): a change drawn uniformly from the ball around zero."""
        device = self.images.device if generator is None else generator.device
        shape = (1, *self.images.shape[1:])
        if self.norm == "linf":
            noise = torch.rand(shape, generator=generator, device=device) * 2 - 1
        elif self.norm == "l1":  # n + 1 exponential numbers over their sum: without the last, uniform in the simplex
            parts = -(1 - torch.rand((self.images[0].numel() + 1,), generator=generator, device=device)).log()
            signs = torch.randint(2, shape, generator=generator, device=device) * 2 - 1
            noise = signs * (parts[:-1] / parts.sum()).view(shape)
        else:
            noise = torch.randn(shape, generator=generator, device=device)
            radius = torch.rand((), generator=generator, device=device) ** (1 / noise.numel())
            noise = noise / length(noise) * radius
        return (self.eps * noise).to(self.images)

    def inside(self, points: Tensor) -> Tensor:
        """In l2 and l1, take back what rounding added to the length of a perturbation: shrink it and, where that is
        rounded up again, leave out its largest changes until the rest is inside."""
        if self.norm == "linf":
            return points
        images = self.images.double()
        change = points.double() - images
        size = length(change, self.norm)
        shrunk = (images + change * (self.eps * (1 - 1e-4) / size.clamp(min=1e-300))).clamp(0, 1)
        points = torch.where(size > self.eps, shrunk.to(points.dtype), points)
        change = points.double() - images
        good = length(change, self.norm) <= self.eps
        if good.all():
            return points
        power = 1 if self.norm == "l1" else 2
        parts, order = change.abs().pow(power).flatten(1).sort(dim=1)
        fits = parts.cumsum(dim=1) <= self.eps**power * (1 - 1e-12)
        fits = torch.zeros_like(fits).scatter(1, order, fits).view_as(points)
        return torch.where(good | fits, points, self.images)

    def step(self, points: Tensor, gradient: Tensor, size: Tensor | float, share: Tensor | float = 0.01) -> Tensor:
        """The change of length `size` along `direction`. In l1 `share` of the values (one number or (B,); at least one
        value) change alike, those with the largest derivatives that the range leaves room for a tenth of it."""
        if self.norm != "l1":
            return size * direction(gradient, self.norm)
        gradient = wide(gradient).nan_to_num()
        number = (torch.as_tensor(share, device=points.device) * gradient[0].numel()).long().clamp(min=1)
        change = size / per_image(number).to(gradient)
        room = torch.where(gradient > 0, self.upper - points, points - self.lower)
        steep = torch.where(room > change / 10, gradient.abs(), 0)
        least = steep.flatten(1).sort(dim=1, descending=True).values
        least = per_image(least.gather(1, number.expand(len(least)).unsqueeze(1) - 1))
        return torch.where((steep >= least) & (steep > 0), gradient.sign() * change, 0)


def around(images: Tensor, eps: float, norm: str, *, steps: int, step_size: float = 0.0, restarts: int = 1) -> Ball:
    """The ball, once the parameters of an attack are checked: ValueError for one out of its range."""
    refuse_inference(images)
    if images.dim() != 4 or not images.is_floating_point():
        raise ValueError(f"Parameter images should be float (B, 3, H, W). Found {images.dtype} {tuple(images.shape)}.")
    if images.numel() and not (images.min() >= 0 and images.max() <= 1):
        raise ValueError(
            f"Parameter images should lie in [0, 1]. Found values from {images.min().item()} to {images.max().item()}."
        )
    if norm not in BALLS:
        raise ValueError(f"Parameter norm should be one of {', '.join(BALLS)}. Found norm = {norm!r}.")
    for name, value in {"eps": eps, "step_size": step_size, "steps": steps, "restarts": restarts}.items():
        least = 1 if name == "restarts" else 0
        if not least <= value < float("inf"):
            raise ValueError(f"Parameter {name} should be finite and at least {least}. Found {name} = {value!r}.")
    images = images.detach()
    return Ball(images, eps, norm, *_box(images, eps if norm == "linf" else float("inf")))


def _box(images: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """The lowest and highest values within eps of the images and in [0, 1] that the dtype has: rounding never adds."""
    rounded = torch.tensor(eps, dtype=images.dtype)
    eps = (rounded if rounded.double() <= eps else torch.nextafter(rounded, torch.zeros_like(rounded))).item()
    lower, upper = (images - eps).clamp(min=0), (images + eps).clamp(max=1)
    lower = torch.where(images.double() - lower.double() > eps, torch.nextafter(lower, images), lower)
    upper = torch.where(upper.double() - images.double() > eps, torch.nextafter(upper, images), upper)
    return lower, upper


def _within_l1(change: Tensor, room: Tensor, eps: float) -> Tensor:
    """sign(u_i) min(max(|u_i| - t, 0), room_i), with the least t >= 0 that leaves at most eps of each image's sum: as t
    falls the sum grows linearly between |u_i| and |u_i| - room_i, where value i begins and ends to count."""
    size, room = change.abs().flatten(1), room.double().flatten(1)
    bends, order = torch.cat([size, size - room], dim=1).sort(dim=1, descending=True)
    begins = torch.where(order < size.shape[1], 1.0, -1.0).to(size)
    counting, above = begins.cumsum(dim=1), (begins * bends).cumsum(dim=1)
    eps = eps * (1 - 1e-6)
    last = ((above - counting * bends < eps).sum(dim=1, keepdim=True) - 1).clamp(min=0)
    threshold = (above.gather(1, last) - eps) / counting.gather(1, last).clamp(min=1)
    threshold = torch.where(torch.minimum(size, room).sum(dim=1, keepdim=True) > eps, threshold.clamp(min=0), 0)
    return change.sign() * torch.minimum((size - threshold).clamp(min=0), room).view_as(change)


def ascent(
    losses: Losses, images: Tensor, weigh: Weigh | None, first: Tensor | None, progress: float = 0.0
) -> tuple[Tensor, Tensor]:
    """The losses at `images`, (T, B), and the gradient of their sum weighted by `weigh` (see `pgd`), (B, 3, H, W).
    `first` are the losses at the start of the run, None there; losses that are `scheduled` are given the share of it
    done."""
    images = images.detach().requires_grad_()
    with torch.enable_grad():
        rows = losses(images, progress=progress) if getattr(losses, "scheduled", False) else losses(images)
        now = checked(rows, images).detach()
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
    return images.clone(), images.new_full(images.shape[:1], -float("inf"), dtype=torch.float64)


def keep(best: Tensor, best_loss: Tensor, current: Tensor, loss: Tensor) -> tuple[Tensor, Tensor]:
    """Image by image, the point with the higher loss; a loss that is not a number never wins."""
    better = loss > best_loss
    return torch.where(per_image(better), current, best), torch.where(better, loss.to(best_loss.dtype), best_loss)


def direction(gradient: Tensor, norm: str) -> Tensor:
    """The steepest ascent of length one in the norm, image by image; zero for an image without gradient. A value that
    is not a number counts as 0."""
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


def wide(values: Tensor) -> Tensor:
    """In float32 at least: squares and sums of half precision vanish and overflow."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def length(values: Tensor, norm: str = "l2") -> Tensor:
    """(B, 3, H, W) -> (B, 1, 1, 1): the length of each image in the norm."""
    every = {"dim": (1, 2, 3), "keepdim": True}
    if norm == "linf":
        return values.abs().amax(**every)
    return values.abs().sum(**every) if norm == "l1" else values.square().sum(**every).sqrt()


def per_image(values: Tensor) -> Tensor:
    """(B,) -> (B, 1, 1, 1), beside images."""
    return values.view(-1, 1, 1, 1)
