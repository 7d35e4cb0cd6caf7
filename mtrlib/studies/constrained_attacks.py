"""The notebook `constrained_attacks`: its parameters, a model of two tasks of a table, and the search of rooms that
break a model, with the room rendered again and every label with it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import pandas as pd
import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from mtrlib import attacks
from mtrlib.data.loans import loans
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


class Loans(NamedTuple):
    """Loans under attack."""

    compared: pd.DataFrame  # a row each count of rows, a column each of clean, PGD, CAA
    one: pd.DataFrame  # a loan before and after, a row a feature
    found: attacks.Attacked  # what `attacks.caa` gave


def attack_loans(p: ConstrainedAttacks, domain: attacks.Domain) -> Loans:
    """Train on loans, attack others by PGD on the loss of default, which knows no constraints, and by `attacks.caa`,
    and count how many rows the model has wrong and how many of these keep each constraint."""
    model = fit_table(domain, *loans(p.loans))
    rows, targets = loans(p.attacked_loans, seed=1)
    losses, wrong = of_table(model, targets)
    every, budget = torch.arange(len(rows)), {"eps": p.eps_loans, "steps": p.steps}

    def values(points: Tensor) -> Tensor:
        return domain.low + points.flatten(1) * (domain.high - domain.low)

    def default(points: Tensor) -> Tensor:
        return losses(values(points), every)[:1]

    moved = values(attacks.pgd(default, domain.to_unit(rows), step_size=p.eps_loans / 4, **budget))
    found = attacks.caa(losses, rows, domain, wrong, **budget, **p.budget)
    names, counts = [*domain.constraints, "ranges and whole numbers"], {}
    for name, each in {"clean": rows, "PGD": moved, "CAA": found.values}.items():
        kept = (domain.penalties(each) == 0)[wrong(each, every)]
        counts[name] = [len(kept), *kept.sum(dim=0).tolist(), int(kept.all(dim=1).sum())]
    index = ["wrong", *(f"of these keep {name}" for name in names), "of these keep all"]
    shown = next((k for k, by in enumerate(found.found_by) if by in ("search", "gradient")), 0)
    one = {"feature": domain.names, "loan": rows[shown], "PGD": moved[shown], "CAA": found.values[shown]}
    return Loans(pd.DataFrame(counts, index=pd.Index(index, name="loans")), pd.DataFrame(one), found)


class Images(NamedTuple):
    """Images searched with the second task kept and without."""

    shown: dict[str, Tensor]  # (N, 3, H, W) by name: clean, kept, not kept
    errors: pd.DataFrame  # a row an image, columns (task, name)
    queries: int


def attack_images(p: ConstrainedAttacks, model: MultiTaskModel, scenes: dict[str, Tensor], device) -> Images:
    """Raise the error of the first task in rooms' images by `attacks.search_images`, with the other kept but for
    `slack`, and without minding it."""
    images, targets, masks = changes.labelled(scenes, p.size, p.tasks).batch(slice(None), device)
    errors = attacks.variant(attacks.task_losses(model, targets, masks, p.tasks), "error")
    settings = {"eps": p.eps_255 / 255, "basis": p.basis, "cells": p.cells, **p.budget}
    kept, fronts = attacks.search_images(errors, images, slack=p.slack, **settings)
    shown = {"clean": images, "kept": kept}
    shown["not kept"], _ = attacks.search_images(errors, images, slack=1e9, **settings)
    with torch.no_grad():
        found = {name: errors(each).cpu().numpy() for name, each in shown.items()}
    columns = {(letter, name): found[name][k] for k, letter in enumerate(p.tasks) for name in found}
    return Images(shown, pd.DataFrame(columns), fronts[0].queries)


class Rooms(NamedTuple):
    """Rooms searched by each kind of change, and by all."""

    reached: pd.DataFrame  # a row a kind of change and task: means over rooms of the highest errors, and
    # beyond: how many rooms are beyond the highest error of all that were drawn
    points: pd.DataFrame  # of the fronts where all is changed: title, the error of each task
    before: pd.DataFrame  # the same of the rooms as drawn
    worst: list[dict[str, Tensor]]  # of each room that in which the first task errs most


def attack_rooms(p: ConstrainedAttacks, model: MultiTaskModel, drawn: dict[str, Tensor], device) -> Rooms:
    """Search the first `rooms` of those drawn by `search_rooms`, and draw as many changes at random."""
    settings = {"size": p.size, "tasks": p.tasks, "device": device}
    before, rows = room_errors(model, drawn, **settings), []
    chosen = {name: values[: p.rooms] for name, values in drawn.items()}
    for name, changed in ({name: [name] for name in p.changes} | {"all": p.changes}).items():
        fronts, decoded = search_rooms(model, chosen, changed=changed, **settings, **p.budget)
        as_many = {"population": fronts[0].queries, "generations": 1}
        random, _ = search_rooms(model, chosen, changed=changed, **settings, **as_many)
        for k, letter in enumerate(p.tasks):
            at_random, searched = (torch.stack([-f.objectives[:, k].min() for f in each]) for each in (random, fronts))
            row = {"changed": name, "task": letter, "as drawn": before[k, : p.rooms].mean().item()}
            row |= {"at random": at_random.mean().item(), "searched": searched.mean().item()}
            rows.append({**row, "beyond": int((searched > before[k].max()).sum())})
    titles = [f"room {k + 1}" for k in range(p.rooms)]
    start = pd.DataFrame(before[:, : p.rooms].T.numpy(), columns=list(p.tasks)).assign(title=titles)
    worst = [decoded(k, front.genes[front.objectives[:, :1].argmin(dim=0)]) for k, front in enumerate(fronts)]
    return Rooms(pd.DataFrame(rows), front_points(dict(zip(titles, fronts, strict=True)), p.tasks), start, worst)


def pictures(
    p: ConstrainedAttacks, model: MultiTaskModel, named: dict[str, dict[str, Tensor]], device
) -> dict[str, dict[str, Tensor]]:
    """Rows for `figures.images`: labels and predictions of the first of each of some rooms."""
    shown = {}
    for name, room in named.items():
        first = {key: values[:1] for key, values in room.items()}
        (image,), targets, _ = changes.labelled(first, p.size, p.tasks).batch(slice(None), device)
        with torch.no_grad():
            outputs = model.eval()(image[None], p.tasks)
        for kind, maps in {"": targets, "\npredicted": outputs}.items():
            shown[f"{name}{kind}"] = {"image": image, **{letter: maps[letter][0] for letter in p.tasks}}
    return shown


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
    errors = {title: -front.objectives[:, : len(tasks)].numpy() for title, front in fronts.items()}
    tables = [pd.DataFrame(rows, columns=list(tasks)).assign(title=title) for title, rows in errors.items()]
    return pd.concat(tables, ignore_index=True)
