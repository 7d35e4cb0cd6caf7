"""RQ4: does a cheap proxy choose the auxiliary task? (paper, RQ4 and Table 3; arXiv 2110.15053)

A table of cells (main, auxiliary) has the expensive value, the *target*, and one column a proxy. What counts is whether
the proxy orders the auxiliary tasks of one main task: cells of tasks whose values have different sizes correlate by
that alone, so correlations are given pooled and within main tasks."""

from __future__ import annotations

import warnings
from functools import lru_cache

import numpy as np
import pandas as pd
import torch
from pydantic import model_validator
from torch.utils.flop_counter import FlopCounterMode

from mtrlib import models
from mtrlib.metrics import estimates
from mtrlib.metrics.correlation import within
from mtrlib.specs import ModelSpec
from mtrlib.store import Store
from mtrlib.studies import measurements
from mtrlib.studies.parameters import Encoder, Study
from mtrlib.studies.study import Cell, table
from mtrlib.tasks import Task

CELL = ["main", "auxiliary"]
# The target and each proxy, and the panel of `cells` whose models and attacks it needs.
PROXIES = {"target": "target", "early stopping": "early", "cheaper encoder": "surrogate", "clean error": "target"}
PROXIES |= {"first order": "target", "one step": "fgsm", "fewer images": "target"}


class RQ4(Study):
    """Parameters of the notebook `rq4_task_selection`: `surrogate` is the cheaper encoder."""

    surrogate: Encoder

    @model_validator(mode="after")
    def _choice(self) -> RQ4:
        if len(self.tasks) < 3:
            raise ValueError("tasks should name at least three tasks: with two there is no auxiliary task to choose")
        if self.surrogate == self.encoder:
            raise ValueError(f"surrogate should be another encoder than {self.encoder!r}")
        if self.epochs < 2:
            raise ValueError("epochs should be at least 2, for a checkpoint before the last")
        return self

    @property
    def used(self) -> list[str]:
        return [self.encoder, self.surrogate]


def cells(p: RQ4) -> list[Cell]:
    """Everything that RQ4 needs: the table main x auxiliary of the expensive value and of its proxies.

    Panels: "target", PGD on the trained models; "early", after the first third of the training; "fgsm", one step;
    "surrogate", PGD on the cheaper encoder. The other proxies need no attack, or fewer images of the target's.
    """
    early = p.model(p.tasks[0]).checkpoints[0]
    panels = {"target": {}, "early": {"epoch": early}, "fgsm": {"name": "fgsm"}, "surrogate": {"encoder": p.surrogate}}
    return [cell for panel, changes in panels.items() for cell in table(p, panel, "linf", **changes)]


def frames(store: Store, cells: list[Cell], errors: pd.DataFrame, panel_images: int) -> dict[str, pd.DataFrame]:
    """The target and each proxy of each cell, by name, as `metrics.estimates` gives them, indexed by main and
    auxiliary: relative task vulnerabilities, errors and the first order. `errors` are what `studies.run` gives for the
    cells; `panel_images` are those of the proxy "fewer images"."""
    single = errors[errors.attacked == "single"]
    of_panel = {panel: rows for panel, rows in single.groupby("panel")}
    target = of_panel["target"]
    images = target.image_id.unique()
    named = [name for name in PROXIES if name not in ("clean error", "first order", "fewer images")]
    quantities = {name: estimates.estimates(of_panel[PROXIES[name]], "ratio", CELL) for name in named}
    for name in ("clean error", "adversarial error"):
        quantities[name] = estimates.estimates(target, name.replace(" ", "_"), CELL)
    chosen = [cell for cell in cells if cell.panel == "target" and cell.attacked == "single"]
    quantities["first order"] = first_order(store, chosen, images=len(images))
    few = target[target.image_id.isin(images[:panel_images])]
    return quantities | {"fewer images": estimates.estimates(few, "ratio", CELL)}


def pivot(frames: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """The values of `frames` as one table: a row a cell that all have: main, auxiliary, and for each name its value."""
    return pd.concat({name: frame.value for name, frame in frames.items()}, axis=1, join="inner").reset_index()


def printed(matrices: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """As `pivot`, from matrices main x auxiliary as `published.vulnerability` gives them."""
    parts = {name: matrix.stack().dropna().rename_axis(CELL) for name, matrix in matrices.items()}
    return pd.concat(parts, axis=1, join="inner").reset_index()


def first_order(store: Store, cells: list[Cell], *, images: int) -> pd.DataFrame:
    """First-order vulnerability from gradients alone, relative to the clean loss: the mean over the first test images
    of `measurements.relative_slopes`, of cells of one panel, attacked "single". No attack is run."""
    parts = []
    for cell in cells:
        spec = cell.evaluation.model
        relative = measurements.relative_slopes(store, spec, cell.main, cell.evaluation.attack, images)
        where = {"main": cell.main, "auxiliary": cell.auxiliary, "seed": spec.seed, "image_id": range(len(relative))}
        parts.append(pd.DataFrame({**where, "clean_error": relative, "adversarial_error": relative}))
    return estimates.estimates(pd.concat(parts), "clean_error", CELL)


def costs(store: Store, cells: list[Cell], panel_images: int) -> pd.DataFrame:
    """What the target and each proxy cost: one row a proxy: proxy, PFLOP (operations of the convolutions in training
    and attacks), share (of the target's), training seconds (that it took here), and its share. `panel_images` are those
    of the proxy "fewer images"."""
    rows = []
    for proxy, panel in PROXIES.items():
        evaluations = dict.fromkeys(cell.evaluation for cell in cells if cell.panel == panel)
        flops = seconds = 0.0
        for e in {e.model: e for e in evaluations}.values():
            record, forward = store.record(e.model), forward_operations(e.model)
            flops += 3 * forward * record["images"] * e.epoch
            seconds += sum(row["seconds"] for row in record["history"][: e.epoch])
            # Without an attack: one pass, or a gradient of each task.
            passes = {"clean error": 1, "first order": 2 * len(e.model.tasks)}.get(proxy, 0)
            flops += forward * e.attack.images * passes
        for e in evaluations if proxy not in ("clean error", "first order") else ():
            images = panel_images if proxy == "fewer images" else e.attack.images
            steps = 1 if e.attack.name == "fgsm" else e.attack.steps
            flops += forward_operations(e.model) * images * (2 * steps + 1) * e.attack.restarts
        rows.append({"proxy": proxy, "PFLOP": flops / 1e15, "training seconds": seconds})
    table = pd.DataFrame(rows)
    table.insert(2, "share", table.PFLOP / table.PFLOP[0])
    return table.assign(**{"share of seconds": table["training seconds"] / table["training seconds"][0]})


def forward_operations(spec: ModelSpec, definitions: dict[str, Task] | None = None) -> int:
    """Floating-point operations of one forward pass of one image through all decoders; `definitions` of the tasks are
    read from its data unless given."""
    definitions = definitions or spec.data.tasks
    if spec.architecture != "hard":
        return _whole(spec.architecture, spec.encoder, spec.data.size, tuple(definitions[t] for t in spec.tasks))
    encoder, decoders = _operations(spec.encoder, spec.data.size, tuple(definitions.values()))
    return encoder + sum(decoders[letter] for letter in spec.tasks)


@lru_cache
def _operations(encoder: str, size: int, tasks: tuple[Task, ...]) -> tuple[int, dict[str, int]]:
    """Of the encoder and of each task's decoder, counted on tensors that have shapes and no content."""
    definitions = {task.letter: task for task in tasks}
    with torch.device("meta"), torch.no_grad():
        model = models.build(encoder, "".join(definitions), definitions=definitions).eval().to("meta")
        with FlopCounterMode(display=False) as counter:
            model(torch.zeros(1, 3, size, size))
    counts = {name: sum(of.values()) for name, of in counter.get_flop_counts().items()}
    decoders = {letter: counts[f"MultiTaskModel.decoders.{letter}"] for letter in definitions}
    return counts["Global"] - sum(decoders.values()), decoders


@lru_cache
def _whole(architecture: str, encoder: str, size: int, tasks: tuple[Task, ...]) -> int:
    """Of all of a network whose tasks cannot be counted one by one."""
    letters, definitions = "".join(task.letter for task in tasks), {task.letter: task for task in tasks}
    with torch.device("meta"), torch.no_grad():
        model = models.build(encoder, letters, definitions=definitions, architecture=architecture).eval()
        with FlopCounterMode(display=False) as counter:
            model(torch.zeros(1, 3, size, size))
    return counter.get_total_flops()


def correlations(values: pd.DataFrame, target: str, proxies: list[str]) -> pd.DataFrame:
    """How each proxy correlates with the target, both columns of `values` (as `pivot` gives it).

    Returns one row a proxy and group: proxy, target, group ("pooled"; "within", the mean over main tasks; or a main
    task, of three cells at least), cells, pearson, spearman, p (of Pearson's, as Table 3 prints it; "within": of
    Spearman's, by permutation within main tasks), and of "within" low and high: Spearman's less what chance gives in 95
    of 100 cases.
    """
    from scipy.stats import ConstantInputWarning, pearsonr, spearmanr  # takes long to import

    groups = {"pooled": values, **{m: cells for m, cells in values.groupby("main", sort=False) if len(cells) > 2}}
    rows = []
    for proxy in proxies:
        of_proxy = []
        for group, cells in groups.items():
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ConstantInputWarning)  # NaN
                pearson, p = pearsonr(cells[proxy], cells[target])
                spearman = spearmanr(cells[proxy], cells[target]).statistic
            row = {"group": group, "cells": len(cells), "pearson": pearson, "spearman": spearman, "p": p}
            of_proxy.append(row)
        if len(groups) > 1:
            one, two = (values.set_index(CELL)[[name]].set_axis([("", "")], axis=1) for name in (proxy, target))
            value, chance = within(one, two)
            pearson = pd.Series([row["pearson"] for row in of_proxy[1:]]).mean()
            row = {"group": "within", "cells": len(values), "pearson": pearson, "spearman": value}
            if len(chance):
                row["p"] = (np.abs(chance) >= abs(value) - 1e-9).mean()
                row["low"], row["high"] = value - np.quantile(chance, [0.975, 0.025])
            of_proxy.insert(1, row)
        rows += [{"proxy": proxy, "target": target, **row} for row in of_proxy]
    columns = ["proxy", "target", "group", "cells", "pearson", "spearman", "p", "low", "high"]
    return pd.DataFrame(rows, columns=columns)


def choices(frames: dict[str, pd.DataFrame], target: str, proxies: list[str]) -> pd.DataFrame:
    """What choosing by the proxy costs: for each main task the auxiliary task with the lowest proxy is taken, of
    `frames`, as that function gives them; cells without an auxiliary task are left out.

    Returns one row a proxy, and "chance": regret (mean over main tasks of target chosen over best target, minus 1) with
    low and high (95 %; the choices are held), top_1 and top_2 (share of main tasks whose best auxiliary task is the
    proxy's first, or among its first two), mains. Ties of a proxy count as chance among them would.
    """
    cells, rows = frames[target], []
    cells = cells[cells.index.get_level_values("main") != cells.index.get_level_values("auxiliary")]
    for proxy, scores in {**{name: frames[name].value for name in proxies}, "chance": 0 * cells.value}.items():
        regrets, tops = [], []
        for _, group in cells.groupby(level="main", sort=False):
            lowest, highest = (scores[group.index].rank(method=method).to_numpy() for method in ("min", "max"))
            # The chance of each task to be the first, and among the first two, ties broken at random.
            shares = [np.clip((count - lowest + 1) / (highest - lowest + 1), 0, 1) for count in (1, 2)]
            regrets.append(shares[0] @ group / group.min() - 1)
            tops.append([share[group.value.to_numpy().argmin()] for share in shares])
        ends = estimates.interval(pd.DataFrame(regrets).mean().to_frame().T).iloc[0]
        top_1, top_2 = np.mean(tops, axis=0)
        row = {"proxy": proxy, "regret": ends.value, "low": ends.low, "high": ends.high}
        rows.append({**row, "top_1": top_1, "top_2": top_2, "mains": len(tops)})
    return pd.DataFrame(rows)
