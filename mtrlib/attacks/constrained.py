"""Attacks that keep constraints: on tables in the order of CAA (Simonetto et al. 2024, arXiv 2406.00775), clean errors,
then the gradient, then the search on what is left; on images by few numbers, with other tasks kept."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from mtrlib.attacks.apgd import apgd
from mtrlib.attacks.ball import around, checked, length
from mtrlib.attacks.constraints import Domain
from mtrlib.attacks.losses import Losses, variant
from mtrlib.attacks.search import Front, search

_MARGIN = 0.95  # of the budget, for the gradient: what constraints decide moves too (as in CAPGD)
OfRows = Callable[[Tensor, Tensor], Tensor]


class Attacked(NamedTuple):
    """What `caa` found, row by row."""

    values: Tensor  # (B, F): what breaks the model and keeps all constraints; the row itself where nothing was found
    found_by: list[str]  # "clean" (the row itself), "gradient", "search", or "" where nothing was found
    queries: Tensor  # (B,), points of each row at which the model was asked, those of the gradient included


def caa(
    losses: OfRows,
    rows: Tensor,
    domain: Domain,
    broken: OfRows,
    *,
    eps: float,
    norm: str = "linf",
    steps: int = 10,
    population: int = 40,
    generations: int = 25,
    seed: int = 0,
    soft: bool = False,
) -> Attacked:
    """Attack rows of a table within its `domain`: those that are broken already, then those that gradient ascent breaks
    (Auto-PGD on the sum of losses less the summed penalties, as CAPGD), then those that `search` does.

    Parameters
    ----------
    losses : values (M, F) and of which row each is a version, (M,) -> (T, M): what is raised.
    rows : (B, F) float64, in the ranges of the domain.
    broken : the same as for `losses` -> (M,) bool: whether the adversary has what it wants.
    eps, norm : the budget of a row, in shares of the ranges of its features, all features counted.
    steps : of the gradient.
    population, generations, seed, soft : as in `search`.
    """
    if (out := domain.penalties(rows)[:, -1] > 0).any():
        found = f"{int(out.sum())} of {len(rows)} that do not, the first at {int(out.nonzero()[0])}"
        raise ValueError(f"Parameter rows should keep ranges and whole numbers of the domain. Found {found}.")
    unit, every = domain.to_unit(rows), torch.arange(len(rows))

    def tried(points: Tensor, of: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        values = domain.decode(points, rows[of])
        distance = length((domain.to_unit(values) - unit[of]).double(), norm).flatten()
        over = (distance - eps * (1 + 1e-9)).clamp(min=0)
        return values, distance, domain.penalties(values).sum(dim=1) + over

    best, found_by = rows.clone(), [""] * len(rows)
    nearest = torch.full((len(rows),), torch.inf, dtype=torch.float64)

    def keep(name: str, values: Tensor, of: Tensor, distance: Tensor, penalty: Tensor) -> None:
        good = (penalty == 0) & broken(values, of)
        before = nearest.clone()
        nearest.scatter_reduce_(0, of[good], distance[good].double(), "amin")
        for i in (good & (distance < before[of]) & (distance == nearest[of])).nonzero().flatten().tolist():
            best[of[i]], found_by[of[i]] = values[i], name

    def climbed(points: Tensor) -> Tensor:
        values, distance, penalty = tried(points, every)
        with torch.no_grad():
            keep("gradient", values, every, distance, penalty)
        return torch.cat([losses(values, every), -penalty[None]])

    with torch.no_grad():
        keep("clean", rows, every, torch.zeros(len(rows)), domain.penalties(rows).sum(dim=1))
    points = apgd(climbed, unit, eps=_MARGIN * eps, steps=steps, norm=norm, random_start=False)
    with torch.no_grad():
        left = (nearest == torch.inf).nonzero().flatten()
        queries = torch.full((len(rows),), steps + 2)
        if len(left):
            free = domain.mutable.nonzero().flatten()
            box = around(unit[left], eps, "linf", steps=0)

            def evaluate(genes: Tensor) -> tuple[Tensor, Tensor]:
                of = left.repeat_interleave(genes.shape[1])
                points = unit[of]
                points[..., free] = genes.flatten(0, 1)[:, None, None]
                points = around(unit[of], eps, norm, steps=0).project(points)
                values, distance, penalty = tried(points, of)
                keep("search", values, of, distance, penalty)
                objectives = torch.cat([-losses(values, of), distance[None]])
                return objectives.T.unflatten(0, genes.shape[:2]), penalty.view(genes.shape[:2])

            starts = torch.stack([unit[left], points[left]], dim=1)[:, :, 0, 0, free]
            budget = {"population": population, "generations": generations, "seed": seed, "soft": soft}
            fronts = search(evaluate, box.lower[..., free][:, 0, 0], box.upper[..., free][:, 0, 0], starts, **budget)
            queries[left] += torch.tensor([front.queries for front in fronts])
    return Attacked(best, found_by, queries)


def search_images(
    losses: Losses,
    images: Tensor,
    *,
    eps: float,
    attacked: int = 1,
    slack: float = 0.05,
    basis: str = "tiles",
    cells: int = 4,
    norm: str = "linf",
    **budget,
) -> tuple[Tensor, list[Front]]:
    """Search perturbations of few numbers: raise the reported errors of some tasks and keep those of others. No
    gradient is taken.

    Parameters
    ----------
    losses : images -> (T, B), the attacked tasks and then the kept ones; of `task_losses` their reported errors count.
    images, eps, norm : as in `pgd`.
    attacked : how many rows are raised, each an objective of its own beside the distance in `norm`; the error of each
        other row is to be at most 1 + `slack` times that of the clean image.
    basis, cells : what the genes are, three times cells x cells numbers from -1 to 1 in parts of eps: "tiles", a colour
        change for each of as many tiles; "cosines", the lowest of the discrete cosine transform of each channel, cut at
        eps.
    budget : population, generations, seed, soft, as in `search`.

    Returns
    -------
    Images, (B, 3, H, W), in [0, 1] and within eps: the point with the highest sum of attacked errors among those that
    keep the others, the image itself where nothing is above it. And each image's front; `decoded` gives its images.
    """
    if attacked < 1 or not slack >= 0:
        raise ValueError(
            f"Parameter attacked should be at least 1, slack at least 0. Found attacked = {attacked}, slack = {slack}."
        )
    ball, errors = around(images, eps, norm, steps=0), variant(losses, "error")
    points_of = partial(decoded, images, eps=eps, norm=norm, basis=basis, cells=cells)
    with torch.no_grad():
        clean = checked(errors(ball.images), ball.images)

        def evaluate(genes: Tensor) -> tuple[Tensor, Tensor]:
            objectives, penalties = [], []
            for each in genes.unbind(dim=1):  # one candidate of every image, as the losses are of these images
                points = points_of(each)
                rows = errors(points).double()
                distance = length((points - ball.images).double(), norm).flatten()
                objectives.append(torch.cat([-rows[:attacked], distance[None]]).T)
                penalties.append((rows[attacked:] - (1 + slack) * clean[attacked:].double()).clamp(min=0).sum(dim=0))
            return torch.stack(objectives, dim=1), torch.stack(penalties, dim=1)

        number = 3 * cells**2
        end, clean_genes = torch.ones(len(images), number), torch.zeros(len(images), number)
        fronts = search(evaluate, -end, end, clean_genes[:, None], **budget)
        best = [f.genes[f.objectives[:, :-1].sum(dim=1).argmin()] if len(f.genes) else clean_genes[0] for f in fronts]
        return points_of(torch.stack(best)), fronts


def decoded(
    images: Tensor, genes: Tensor, *, eps: float, norm: str = "linf", basis: str = "tiles", cells: int = 4
) -> Tensor:
    """The images (B, 3, H, W) that genes (B, 3 `cells`^2) of `search_images` stand for."""
    ball, (height, width) = around(images, eps, norm, steps=0), images.shape[2:]
    maps = genes.to(images).unflatten(1, (3, cells, cells))
    if basis == "tiles":
        change = torch.nn.functional.interpolate(maps, (height, width))
    elif basis == "cosines":
        rows, columns = (
            torch.cos(torch.pi * torch.arange(cells)[None] * (torch.arange(n)[:, None] + 0.5) / n).to(images)
            for n in (height, width)
        )
        change = (rows @ maps @ columns.T).clamp(-1, 1)
    else:
        raise ValueError(f"Parameter basis should be one of tiles, cosines. Found basis = {basis!r}.")
    return ball.inside(ball.project(images + eps * change))
