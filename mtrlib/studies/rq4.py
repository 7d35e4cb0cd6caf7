"""RQ4: does a cheap proxy choose the auxiliary task? (paper, RQ4 and Table 3; arXiv 2110.15053)

A table of cells (main, auxiliary) has the expensive value, the *target*, and one column a proxy. What counts is whether
the proxy orders the auxiliary tasks of one main task: cells of tasks whose values have different sizes correlate by
that alone, so correlations are given pooled and within main tasks.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import lru_cache, partial
from typing import Annotated

import numpy as np
import pandas as pd
import torch
from pydantic import AfterValidator, model_validator
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from mtrlib import attacks, models
from mtrlib.metrics import estimates, theory
from mtrlib.metrics.correlation import within
from mtrlib.models import encoders
from mtrlib.specs import AttackSpec, ModelSpec
from mtrlib.store import Store
from mtrlib.studies.parameters import Study
from mtrlib.studies.study import Cell, table
from mtrlib.tasks import Task

CELL = ["main", "auxiliary"]
# The target and each proxy, and the panel of `cells` whose models and attacks it needs.
PROXIES = {"target": "target", "early stopping": "early", "cheaper encoder": "surrogate", "clean error": "target"}
PROXIES |= {"first order": "target", "one step": "fgsm", "fewer images": "target"}
ERRORS = ("clean error", "adversarial error")


class RQ4(Study):
    """Parameters of the notebook `rq4_task_selection`: `surrogate` is the cheaper encoder."""

    surrogate: Annotated[str, AfterValidator(encoders.known)]

    @model_validator(mode="after")
    def _choice(self) -> RQ4:
        if len(self.tasks) < 3:
            raise ValueError("tasks should name at least three tasks: with two there is no auxiliary task to choose")
        if self.surrogate == self.encoder:
            raise ValueError(f"surrogate should be another encoder than {self.encoder!r}")
        if self.epochs < 2:
            raise ValueError("epochs should be at least 2, for a checkpoint before the last")
        self.model(self.tasks, encoder=self.surrogate)
        return self


def cells(p: RQ4) -> list[Cell]:
    """Everything that RQ4 needs: the table main x auxiliary of the expensive value and of its proxies.

    Panels: "target", PGD on the trained models; "early", after the first third of the training; "fgsm", one step;
    "surrogate", PGD on the cheaper encoder. The other proxies need no attack, or fewer images of the target's.
    """
    early = p.model(p.tasks[0]).checkpoints[0]
    panels = {"target": {}, "early": {"epoch": early}, "fgsm": {"name": "fgsm"}, "surrogate": {"encoder": p.surrogate}}
    return [cell for panel, changes in panels.items() for cell in table(p, panel, "linf", **changes)]


def frames(store: Store, cells: list[Cell], errors: pd.DataFrame, panel_images: int) -> dict[str, pd.DataFrame]:
    """The target and each proxy of each cell, by name: relative task vulnerabilities, errors and the first order.

    Parameters
    ----------
    store, cells : where the models are; those of `cells`.
    errors : as `studies.run` gives it for them.
    panel_images : images of the proxy "fewer images".

    Returns
    -------
    By name, as `metrics.estimates` gives them, indexed by main and auxiliary.
    """
    single = errors[errors.attacked == "single"]
    target = single[single.panel == "target"]
    images = target.image_id.unique()
    found = {
        name: estimates.estimates(single[single.panel == panel], "ratio", CELL)
        for name, panel in PROXIES.items()
        if name not in ("clean error", "first order", "fewer images")
    }
    found |= {name: estimates.estimates(target, name.replace(" ", "_"), CELL) for name in ERRORS}
    chosen = [cell for cell in cells if cell.panel == "target" and cell.attacked == "single"]
    found["first order"] = first_order(store, chosen, images=len(images))
    few = target[target.image_id.isin(images[:panel_images])]
    return found | {"fewer images": estimates.estimates(few, "ratio", CELL)}


def pivot(frames: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """The values of `frames` as one table: a row a cell that all have: main, auxiliary, and for each name its value."""
    return pd.concat({name: frame.value for name, frame in frames.items()}, axis=1, join="inner").reset_index()


def printed(matrices: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """As `pivot`, from matrices main x auxiliary as `published.vulnerability` gives them."""
    parts = {name: matrix.stack().dropna().rename_axis(CELL) for name, matrix in matrices.items()}
    return pd.concat(parts, axis=1, join="inner").reset_index()


def first_order(store: Store, cells: list[Cell], *, images: int) -> pd.DataFrame:
    """First-order vulnerability from gradients alone, relative to the clean loss: the mean over images of
    eps ||r||_q / L, r the gradient of the main task's loss L (`theory`, lemma 2). No attack is run.

    Parameters
    ----------
    store, cells : where the models are; of `cells`, of one panel, attacked "single".
    images : the first test images, at which gradients are taken.
    """

    def measure(spec: ModelSpec, main: str, attack: AttackSpec) -> pd.DataFrame:
        model, data, parts = store.model(spec), store.data(spec, "test", images), []
        for start in range(0, len(data), 64):
            points, targets, masks = data.batch(slice(start, start + 64), store.device)
            losses = attacks.task_losses(model, targets, masks, main)
            with torch.no_grad():
                clean = losses(points)[0]
            slope = theory.dual(theory.gradients(losses, points)[0].flatten(1), attack.norm)
            parts.append(attack.eps_255 / 255 * slope / clean)
        return pd.DataFrame({"relative": torch.cat(parts).cpu().numpy()})

    parts = []
    for cell in cells:
        spec, attack = cell.evaluation.model, cell.evaluation.attack
        about = {"main": cell.main, "norm": attack.norm, "eps_255": attack.eps_255, "images": images}
        make = partial(measure, spec, cell.main, attack)
        relative = store.table("first order", about, [(spec, spec.epochs)], make).relative.to_numpy()
        where = {"main": cell.main, "auxiliary": cell.auxiliary, "seed": spec.seed, "image_id": range(len(relative))}
        parts.append(pd.DataFrame({**where, "clean_error": relative, "adversarial_error": relative}))
    return estimates.estimates(pd.concat(parts), "clean_error", CELL)


def costs(store: Store, cells: list[Cell], panel_images: int) -> pd.DataFrame:
    """What the target and each proxy cost: operations of the convolutions in training and attacks, and the seconds that
    training took here.

    Parameters
    ----------
    store, cells : where the models are; those of `cells`.
    panel_images : images of the proxy "fewer images".

    Returns
    -------
    One row a proxy: proxy, PFLOP, share (of the target's), training seconds, and its share.
    """
    by_panel = {panel: [c for c in cells if c.panel == panel] for panel in ("target", "early", "fgsm", "surrogate")}
    rows = []
    for proxy, panel in PROXIES.items():
        flops = seconds = 0.0
        trained, attacked = set(), set()
        for cell in by_panel[panel]:
            e = cell.evaluation
            spec, forward = e.model, forward_operations(e.model)
            if spec not in trained:
                trained.add(spec)
                record = store.record(spec)
                flops += 3 * forward * record["images"] * e.epoch
                seconds += sum(row["seconds"] for row in record["history"][: e.epoch])
                if proxy in ("clean error", "first order"):  # one pass, or a gradient of each task
                    flops += forward * e.attack.images * (1 if proxy == "clean error" else 2 * len(spec.tasks))
            if e not in attacked and proxy not in ("clean error", "first order"):
                attacked.add(e)
                images = panel_images if proxy == "fewer images" else e.attack.images
                steps = 1 if e.attack.name == "fgsm" else e.attack.steps
                flops += forward * images * (2 * steps + 1) * e.attack.restarts
        rows.append({"proxy": proxy, "PFLOP": flops / 1e15, "training seconds": seconds})
    table = pd.DataFrame(rows)
    table.insert(2, "share", table.PFLOP / table.PFLOP[0])
    return table.assign(**{"share of seconds": table["training seconds"] / table["training seconds"][0]})


def forward_operations(spec: ModelSpec, definitions: dict[str, Task] | None = None) -> int:
    """Floating-point operations of one forward pass of one image through all decoders; `definitions` of the tasks are
    read from its data unless given."""
    definitions = definitions or spec.data.tasks
    encoder, decoders = _operations(spec.encoder, spec.data.size, tuple(definitions.values()))
    return encoder + sum(decoders[letter] for letter in spec.tasks)


@lru_cache
def _operations(encoder: str, size: int, tasks: tuple[Task, ...]) -> tuple[int, dict[str, int]]:
    """Of the encoder and of each task's decoder, counted on tensors that have shapes and no content."""

    def count(module: Callable[[Tensor], Tensor], given: Tensor) -> tuple[int, Tensor]:
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            result = module(given)
        return counter.get_total_flops(), result

    definitions = {task.letter: task for task in tasks}
    with torch.device("meta"):
        model = models.build(encoder, "".join(definitions), definitions=definitions).eval()
        body, latent = count(model.encode, torch.zeros(1, 3, size, size))
        return body, {letter: count(decoder, latent)[0] for letter, decoder in model.decoders.items()}


def correlations(values: pd.DataFrame, target: str, proxies: list[str]) -> pd.DataFrame:
    """How each proxy correlates with the target.

    Parameters
    ----------
    values : as `pivot` gives it.
    target, proxies : names of its columns.

    Returns
    -------
    One row a proxy and group: proxy, target, group ("pooled"; "within", the mean over main tasks; or a main task, of
    three cells at least), cells, pearson, spearman, p (of Pearson's, as Table 3 prints it; "within": of Spearman's, by
    permutation within main tasks), and of "within" low and high: Spearman's less what chance gives in 95 of 100 cases.
    """
    rows = []
    for proxy in proxies:
        groups = {"pooled": values, **{m: cells for m, cells in values.groupby("main", sort=False) if len(cells) > 2}}
        found = pd.DataFrame(
            [
                {"group": group, "cells": len(cells), **_both(cells[proxy], cells[target])}
                for group, cells in groups.items()
            ]
        )
        if len(found) > 1:
            one, two = (values.set_index(CELL)[[name]].set_axis([("", "")], axis=1) for name in (proxy, target))
            value, chance = within(one, two)
            row = {"group": "within", "cells": len(values), "pearson": found.pearson[1:].mean(), "spearman": value}
            if len(chance):
                row |= {"p": (np.abs(chance) >= abs(value) - 1e-9).mean()}
                row |= dict(zip(("low", "high"), value - np.quantile(chance, [0.975, 0.025]), strict=True))
            found = pd.concat([found[:1], pd.DataFrame([row]), found[1:]])
        rows.append(found.assign(proxy=proxy, target=target))
    columns = ["proxy", "target", "group", "cells", "pearson", "spearman", "p", "low", "high"]
    return pd.concat(rows, ignore_index=True).reindex(columns=columns)


def choices(frames: dict[str, pd.DataFrame], target: str, proxies: list[str]) -> pd.DataFrame:
    """What choosing by the proxy costs: for each main task the auxiliary task with the lowest proxy is taken.

    Parameters
    ----------
    frames : as `frames` gives them; cells without an auxiliary task are left out.
    target, proxies : their names.

    Returns
    -------
    One row a proxy, and "chance": regret (mean over main tasks of target chosen over best target, minus 1) with low and
    high (95 %; the choices are held), top_1 and top_2 (share of main tasks whose best auxiliary task is the proxy's
    first, or among its first two), mains. Ties of a proxy count as chance among them would.
    """
    cells = frames[target]
    cells = cells[cells.index.get_level_values("main") != cells.index.get_level_values("auxiliary")]
    groups, rows = [group for _, group in cells.groupby(level="main", sort=False)], []
    for proxy in [*proxies, "chance"]:
        regrets, firsts, seconds = [], [], []
        for group in groups:
            score = np.zeros(len(group)) if proxy == "chance" else frames[proxy].value[group.index].to_numpy()
            share, best = _share_of_first(score, 1), group.value.to_numpy().argmin()
            regrets.append(share @ group / group.min() - 1)
            firsts.append(share[best])
            seconds.append(_share_of_first(score, 2)[best])
        ends = estimates.interval(pd.DataFrame(regrets).mean().to_frame().T).iloc[0]
        row = {"proxy": proxy, "regret": ends.value, "low": ends.low, "high": ends.high}
        rows.append({**row, "top_1": np.mean(firsts), "top_2": np.mean(seconds), "mains": len(groups)})
    return pd.DataFrame(rows)


def _share_of_first(score: np.ndarray, count: int) -> np.ndarray:
    """The chance of each entry to be among the `count` lowest, ties broken at random."""
    count = min(count, len(score))
    last = np.sort(score)[count - 1]
    sure, tied = score < last, score == last
    return sure + tied * (count - sure.sum()) / tied.sum()


def _both(one: pd.Series, two: pd.Series) -> dict[str, float]:
    from scipy.stats import ConstantInputWarning, pearsonr, spearmanr  # takes long to import

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConstantInputWarning)  # NaN
        pearson, p = pearsonr(one, two)
        return {"pearson": pearson, "spearman": spearmanr(one, two).statistic, "p": p}
