"""The notebook `constrained_attacks`: its parameters, a model of two tasks of a table, and the search of rooms that
break a model, with the room rendered again and every label with it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import pandas as pd
import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from mtrlib import attacks
from mtrlib.models import MultiTaskModel
from mtrlib.rooms import changes
from mtrlib.studies.parameters import Count, Parameters, Positive, Several
from mtrlib.tasks import definitions

_ROUNDED = 1e-5  # m that float32 may add to an intrusion


class ConstrainedAttacks(Parameters):
    """Parameters of the notebook `constrained_attacks`. `loans` train the model of the table and `attacked_loans` are
    attacked within `eps_loans`, a share of the range of each feature. `rooms` of the test images are searched, by
    `changes` of them; images by perturbations of `basis` and `cells`, with other tasks kept but for `slack`.
    `population` and `generations` are of every search."""

    loans: int = Field(ge=20)
    attacked_loans: Count
    eps_loans: Positive
    rooms: Count
    changes: Several[Literal[tuple(changes.REACH)]]
    basis: Literal["tiles", "cosines"]
    cells: Count
    slack: float = Field(ge=0)
    population: int = Field(ge=2)
    generations: Count

    @model_validator(mode="after")
    def _sizes(self) -> ConstrainedAttacks:
        if self.data != "rooms":
            raise ValueError(f"data should be rooms, which can be rendered again, found {self.data!r}")
        if len(self.tasks) != 2:
            raise ValueError(f"tasks should name two tasks, found {self.tasks!r}")
        if self.rooms > self.test_images:
            raise ValueError(f"rooms should be at most test_images = {self.test_images}")
        return self

    @property
    def budget(self) -> dict[str, int]:
        """Of every search."""
        return {"population": self.population, "generations": self.generations}


def fit_table(domain: attacks.Domain, values: Tensor, targets: dict[str, Tensor], seed: int = 0) -> nn.Module:
    """A small network of both tasks of `data.loans`: values (N, F) -> (N, 3), two logits of default and the loss. It is
    trained on their cross-entropy and absolute error by 200 steps of Adam, each on all rows."""

    class Scaled(nn.Module):
        def forward(self, values: Tensor) -> Tensor:
            return 2 * domain.to_unit(values).flatten(1) - 1

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers = [nn.Linear(len(domain.names), 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 3)]
    model = nn.Sequential(Scaled(), *layers).double()
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    for _ in range(200):
        outputs = model(values)
        lost = (outputs[:, 2] - targets["loss"]).abs().mean()
        optimizer.zero_grad()
        (F.cross_entropy(outputs[:, :2], targets["default"]) + lost).backward()
        optimizer.step()
    return model.requires_grad_(False)


def of_table(model: nn.Module, targets: dict[str, Tensor]) -> tuple[attacks.OfRows, attacks.OfRows]:
    """What `attacks.caa` takes of a model of `fit_table`: the losses of default and of the loss, (2, M), and whether
    the default is predicted wrongly, (M,)."""

    def losses(values: Tensor, of: Tensor) -> Tensor:
        outputs = model(values)
        crossed = F.cross_entropy(outputs[:, :2], targets["default"][of], reduction="none")
        return torch.stack([crossed, (outputs[:, 2] - targets["loss"][of]).abs()])

    return losses, lambda values, of: model(values)[:, :2].argmax(dim=1) != targets["default"][of]


def search_rooms(
    model: MultiTaskModel,
    rooms: dict[str, Tensor],
    *,
    size: int,
    tasks: str,
    changed: list[str],
    device: torch.device | str = "cpu",
    **settings,
) -> tuple[list[attacks.Front], Callable[[int, Tensor], dict[str, Tensor]]]:
    """Search rooms for changes that raise the reported errors of some tasks, each an objective of its own, measured
    against the labels of the changed room. Nothing leaves the room or cuts deeper into something else than it did, and
    light and camera stay in their ranges (`rooms.changes`).

    Parameters
    ----------
    rooms : N of them, as `rooms.draw` gives them; `size` is that of their images.
    changed : names of `rooms.REACH`.
    settings : population, generations, seed and soft of `attacks.search`.

    Returns
    -------
    fronts : of each room; objectives (K, T) are the errors, negative.
    decoded : the number of a room and genes (K, G) -> K changed rooms.
    """
    counts = {name: len(changes.REACH[name]) for name in changed}
    before, total = changes.intrusion(rooms), sum(counts.values())

    def decode(of: Tensor, genes: Tensor) -> dict[str, Tensor]:
        own = {name: values[of] for name, values in rooms.items()}
        return changes.change(own, dict(zip(counts, genes.split(list(counts.values()), dim=1), strict=True)))

    def evaluate(genes: Tensor) -> tuple[Tensor, Tensor]:
        of = torch.arange(len(genes)).repeat_interleave(genes.shape[1])
        made = decode(of, genes.flatten(0, 1))
        penalties = (changes.intrusion(made) - before[of] - _ROUNDED).clamp(min=0).sum(dim=1)
        errors = room_errors(model, made, size, tasks, device)
        return -errors.T.unflatten(0, genes.shape[:2]), penalties.view(genes.shape[:2])

    ends = -torch.ones(len(before), total), torch.ones(len(before), total)
    fronts = attacks.search(evaluate, *ends, torch.zeros(len(before), 1, total), **settings)
    return fronts, lambda number, genes: decode(torch.full((len(genes),), number), genes)


@torch.no_grad()
def room_errors(model: MultiTaskModel, rooms: dict[str, Tensor], size: int, tasks: str, device="cpu") -> Tensor:
    """(T, N): the errors of a model in rooms, rendered now with their labels."""
    images, targets, _ = changes.labelled(rooms, size, tasks).batch(slice(None), device)
    outputs = model.eval()(images, tasks)
    return torch.stack([definitions(model)[letter].error(outputs[letter], targets[letter]) for letter in tasks]).cpu()


def front_points(fronts: dict[str, attacks.Front], tasks: str) -> pd.DataFrame:
    """The points of fronts by their title, a row each: title and the error of each task, by its letter."""
    tables = [
        pd.DataFrame(-front.objectives[:, : len(tasks)].numpy(), columns=list(tasks)) for front in fronts.values()
    ]
    return pd.concat(
        [table.assign(title=title) for title, table in zip(fronts, tables, strict=True)], ignore_index=True
    )
