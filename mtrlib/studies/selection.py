"""RQ4: does a cheap proxy choose the auxiliary task? (paper, RQ4 and Table 3; arXiv 2110.15053)

A table of cells (main, auxiliary) has the expensive value, the *target*, and one column a proxy. What counts is whether
the proxy orders the auxiliary tasks of one main task: cells of tasks whose values have different sizes correlate by
that alone, so correlations are given pooled and within main tasks.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial

import numpy as np
import pandas as pd
import torch
from scipy.stats import pearsonr, rankdata
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from mtrlib import attacks, metrics, models
from mtrlib.metrics import theory
from mtrlib.specs import AttackSpec, ModelSpec
from mtrlib.store import Store
from mtrlib.studies.cells import Cell
from mtrlib.tasks import Task

CELL = ["main", "auxiliary"]
# The target and each proxy, and the panel of `studies.rq4` whose models and attacks it needs.
PROXIES = {"target": "target", "early stopping": "early", "cheaper encoder": "surrogate", "clean error": "target"}
PROXIES |= {"first order": "target", "one step": "fgsm", "fewer images": "target"}


def pivot(tables: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """One table out of several that have a value for each cell.

    Parameters
    ----------
    tables : by name, with columns main, auxiliary, value and replicates, as `tables.vulnerabilities` gives them.

    Returns
    -------
    One row a cell that all have: main, auxiliary, and for each name its value and "<name> replicates".
    """
    parts = []
    for name, table in tables.items():
        columns = {"value": name, "replicates": f"{name} replicates"}
        parts.append(table.set_index(CELL)[list(columns)].rename(columns=columns))
    return pd.concat(parts, axis=1, join="inner").reset_index()


def printed(matrices: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """As `pivot`, from matrices main x auxiliary as `published.vulnerability` gives them; no images are resampled."""
    parts = {}
    for name, matrix in matrices.items():
        long = matrix.stack().dropna().rename("value").rename_axis(CELL).reset_index()
        parts[name] = long.assign(replicates=[np.full(1000, value) for value in long.value])
    return pivot(parts)


def first_order(store: Store, cells: list[Cell], *, images: int, replicates: int = 1000) -> pd.DataFrame:
    """First-order vulnerability from gradients alone, relative to the clean loss: the mean over images of
    eps ||r||_q / L, r the gradient of the main task's loss L (`theory`, lemma 2). No attack is run.

    Parameters
    ----------
    store, cells : where the models are; of `studies.rq4`, of one panel, attacked "single".
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

    found: dict[tuple[str, str], list[np.ndarray]] = {}
    for cell in cells:
        spec, attack = cell.evaluation.model, cell.evaluation.attack
        about = {"main": cell.main, "norm": attack.norm, "eps_255": attack.eps_255, "images": images}
        make = partial(measure, spec, cell.main, attack)
        relative = store.table("first order", about, [(spec, spec.epochs)], make).relative
        found.setdefault((cell.main, cell.auxiliary), []).append(relative.to_numpy())
    rows = []
    for cell, values in found.items():
        value, drawn = metrics.mean_of(np.stack(values), replicates=replicates)
        rows.append({**dict(zip(CELL, cell, strict=True)), "value": value, "replicates": drawn})
    return pd.DataFrame(rows)


def costs(store: Store, cells: list[Cell], panel_images: int) -> pd.DataFrame:
    """What the target and each proxy cost: operations of the convolutions in training and attacks, and the seconds that
    training took here.

    Parameters
    ----------
    store, cells : where the models are; those of `studies.rq4`.
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


def forward_operations(spec: ModelSpec) -> int:
    """Floating-point operations of one forward pass of one image through all decoders."""
    encoder, decoders = _operations(spec.encoder, spec.data.size, tuple(spec.data.tasks.values()))
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


def correlations(cells: pd.DataFrame, target: str, proxies: list[str], seed: int = 0) -> pd.DataFrame:
    """How each proxy correlates with the target.

    Parameters
    ----------
    cells : as `pivot` gives it.
    target, proxies : names of its columns.
    seed : of the resampling of cells.

    Returns
    -------
    One row a proxy and group: proxy, target, group ("pooled"; "within", the mean over main tasks; or a main task),
    cells, pearson and spearman, each with _low and _high (95 %, over images and over cells within their main task; a
    main task of fewer than three cells has no correlation), and p, of Pearson's as Table 3 prints it ("pooled" and main
    tasks).
    """
    rows = []
    generator = np.random.default_rng(seed)
    places = {main: np.flatnonzero(cells.main == main) for main in dict.fromkeys(cells.main)}
    number = len(cells[f"{target} replicates"].iloc[0])
    chosen = {main: place[generator.integers(len(place), size=(number, len(place)))] for main, place in places.items()}
    chosen["pooled"] = np.concatenate(list(chosen.values()), axis=1)
    places["pooled"] = np.arange(len(cells))
    for proxy in proxies:
        values = [cells[name].to_numpy(float) for name in (proxy, target)]
        drawn = [np.stack(cells[f"{name} replicates"].to_list(), axis=1) for name in (proxy, target)]
        found = {}
        for group, place in places.items():
            if len(place) >= 3:
                point = np.concatenate(_both(*(value[None, place] for value in values)))
                found[group] = point, _both(*(np.take_along_axis(draw, chosen[group], axis=1) for draw in drawn))
        of_mains = [found[group] for group in found if group != "pooled"]
        if of_mains:
            found["within"] = tuple(_mean_of_finite(np.array([pair[k] for pair in of_mains])) for k in (0, 1))
        for group in sorted(found, key=lambda group: group not in ("pooled", "within")):
            point, of_draws = found[group]
            row = {"proxy": proxy, "target": target, "group": group, "cells": len(places.get(group, cells))}
            for k, name in enumerate(("pearson", "spearman")):
                low, high = metrics.interval(of_draws[k])
                row |= {name: float(point[k]), f"{name}_low": float(low), f"{name}_high": float(high)}
            if group != "within":
                row["p"] = float(pearsonr(*(value[places[group]] for value in values)).pvalue)
            rows.append(row)
    return pd.DataFrame(rows)


def choices(cells: pd.DataFrame, target: str, proxies: list[str]) -> pd.DataFrame:
    """What choosing by the proxy costs: for each main task the auxiliary task with the lowest proxy is taken.

    Parameters
    ----------
    cells : as `pivot` gives it; rows without an auxiliary task are left out.
    target, proxies : names of its columns.

    Returns
    -------
    One row a proxy, and "chance": regret (mean over main tasks of target chosen over best target, minus 1) with low and
    high (95 %, over images), top_1 and top_2 (share of main tasks whose best auxiliary task is the proxy's first, or
    among its first two), mains. Ties of a proxy count as chance among them would.
    """
    pairs = cells[cells.main != cells.auxiliary]
    groups = [group for _, group in pairs.groupby("main", sort=False)]
    rows = []
    for proxy in [*proxies, "chance"]:
        regrets, firsts, seconds, of_draws = [], [], [], []
        for group in groups:
            value = group[target].to_numpy(float)
            drawn = np.stack(group[f"{target} replicates"].to_list(), axis=1)
            score = np.zeros(len(group)) if proxy == "chance" else group[proxy].to_numpy(float)
            share = _share_of_first(score, 1)
            regrets.append(share @ value / value.min() - 1)
            of_draws.append(drawn @ share / drawn.min(axis=1) - 1)
            best = value.argmin()
            firsts.append(share[best])
            seconds.append(_share_of_first(score, 2)[best])
        low, high = metrics.interval(np.mean(of_draws, axis=0))
        row = {"proxy": proxy, "regret": np.mean(regrets), "low": float(low), "high": float(high)}
        rows.append({**row, "top_1": np.mean(firsts), "top_2": np.mean(seconds), "mains": len(groups)})
    return pd.DataFrame(rows)


def _mean_of_finite(values: np.ndarray) -> np.ndarray:
    """The mean over the first axis of what is finite, else NaN: a draw may take one cell again and again."""
    finite = np.isfinite(values)
    count = finite.sum(axis=0)
    return np.where(count > 0, np.where(finite, values, 0).sum(axis=0) / np.maximum(count, 1), np.nan)


def _share_of_first(score: np.ndarray, count: int) -> np.ndarray:
    """The chance of each entry to be among the `count` lowest, ties broken at random."""
    count = min(count, len(score))
    last = np.sort(score)[count - 1]
    sure, tied = score < last, score == last
    return sure + tied * (count - sure.sum()) / tied.sum()


def _both(one: np.ndarray, two: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pearson's and Spearman's correlation of each row."""
    return _pearson(one, two), _pearson(rankdata(one, axis=1), rankdata(two, axis=1))


def _pearson(one: np.ndarray, two: np.ndarray) -> np.ndarray:
    one, two = (values - values.mean(axis=1, keepdims=True) for values in (one, two))
    with np.errstate(invalid="ignore", divide="ignore"):
        return (one * two).sum(axis=1) / np.sqrt((one**2).sum(axis=1) * (two**2).sum(axis=1))
