"""From the errors table to the tables that are read: vulnerabilities with intervals, beside the paper's, and shares."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from mtrlib import machine, metrics
from mtrlib.tasks import canonical

CELL = ("panel", "setting", "attacked", "main", "auxiliary")


def vulnerabilities(
    errors: pd.DataFrame, reduction: str = "per_image", *, replicates: int = 1000, by: Sequence[str] = CELL
) -> pd.DataFrame:
    """Relative task vulnerability of each cell of a study, with its 95 % bootstrap interval.

    Parameters
    ----------
    errors : as `studies.run` gives it.
    reduction : as in `metrics.relative_task_vulnerability`.
    replicates : of the bootstrap over images and, where there are several, seeds.
    by : the columns that make a cell.

    Returns
    -------
    The columns of `by`, value, low, high, images, left_out (images without a ratio, each seed's counted), clean_error,
    adversarial_error (means over images and seeds), and replicates, an array a row. Replicate r of every row that has
    the same number of images and seeds comes from the same draw, so rows may be compared replicate by replicate.
    """
    rows = []
    for cell, group in errors.groupby(list(by), sort=False):
        clean, adversarial = (_by_seed(group, f"{kind}_error") for kind in ("clean", "adversarial"))
        value = np.mean(
            [metrics.relative_task_vulnerability(c, a, reduction) for c, a in zip(clean, adversarial, strict=True)]
        )
        drawn = metrics.bootstrap(clean, adversarial, reduction, replicates=replicates)
        low, high = metrics.interval(drawn)
        rows.append(
            {
                **dict(zip(by, cell, strict=True)),
                "value": value,
                "low": float(low),
                "high": float(high),
                "images": clean.shape[1],
                "left_out": metrics.left_out(clean, adversarial),
                "clean_error": metrics.mean(clean),
                "adversarial_error": metrics.mean(adversarial),
                "replicates": drawn,
            }
        )
    return pd.DataFrame(rows)


def mean_errors(
    errors: pd.DataFrame, column: str = "adversarial_error", *, replicates: int = 1000, by: Sequence[str] = CELL
) -> pd.DataFrame:
    """The mean of "clean_error" or "adversarial_error" of each cell: the columns of `by`, value, low, high (95 %) and
    replicates, of the draws of `vulnerabilities`. Parameters as there."""
    rows = []
    for cell, group in errors.groupby(list(by), sort=False):
        value, drawn = metrics.mean_of(_by_seed(group, column), replicates=replicates)
        low, high = metrics.interval(drawn)
        row = {"value": value, "low": float(low), "high": float(high), "replicates": drawn}
        rows.append({**dict(zip(by, cell, strict=True)), **row})
    return pd.DataFrame(rows)


def against_single_task(table: pd.DataFrame) -> pd.DataFrame:
    """The two-task cells of `vulnerabilities`, each beside the single-task model of the same main task.

    Returns
    -------
    The two-task rows with single_task (its value), difference (two-task minus single-task vulnerability: below 0, the
    auxiliary task helps), difference_low, difference_high (95 %, paired over images) and difference_replicates.
    A single-task model can be attacked in one way only: joint cells are compared with that, too.
    """
    keys = ["panel", "setting", "main"]
    alone = table[table.main == table.auxiliary].set_index(keys)
    rows = []
    for row in table[table.main != table.auxiliary].to_dict("records"):
        single = alone.loc[tuple(row[key] for key in keys)]
        value, difference = _less(row["value"], single.value), _less(row["replicates"], single.replicates)
        low, high = metrics.interval(difference)
        rows.append(
            {
                **row,
                "single_task": single.value,
                "difference": value,
                "difference_low": float(low),
                "difference_high": float(high),
                "difference_replicates": difference,
            }
        )
    return pd.DataFrame(rows)


def worst_case(errors: pd.DataFrame, name: str = "worst case") -> pd.DataFrame:
    """The errors with one setting more: of all settings of a cell, for each image, the one whose attack raised the loss
    of the attacked tasks most. It is what `attacks.ensemble` gives, from attacks that have been run already.

    Parameters
    ----------
    errors : as `studies.run` gives it, of panels whose settings are attacks.
    name : of the new setting.
    """
    errors = errors.reset_index(drop=True)
    cell = ["panel", "attacked", "main", "auxiliary", "seed", "image_id"]
    worst = errors.loc[errors.groupby(cell, sort=False).adversarial_attacked_loss.idxmax()]
    return pd.concat([errors, worst.assign(setting=name)], ignore_index=True)


def against(table: pd.DataFrame, column: str, baseline: str | float, cells: Sequence[str] = CELL) -> pd.DataFrame:
    """Each cell beside the cell that differs from it in one column only.

    Parameters
    ----------
    table : as `vulnerabilities` gives it.
    column : the column that differs, such as "panel" where panels are ways to weight the tasks.
    baseline : its value in the cell to compare with.
    cells : the columns that make a cell.

    Returns
    -------
    The rows with another value and a baseline, with baseline (its value), difference (value minus baseline),
    difference_low, difference_high (95 %, paired over images), difference_replicates and baseline_replicates.
    """
    keys = [key for key in cells if key != column]
    base = table[table[column] == baseline].set_index(keys)
    rows = []
    for row in table[table[column] != baseline].to_dict("records"):
        key = tuple(row[k] for k in keys)
        if key in base.index:
            other = base.loc[key]
            value, difference = _less(row["value"], other.value), _less(row["replicates"], other.replicates)
            low, high = metrics.interval(difference)
            rows.append(
                {
                    **row,
                    "baseline": other.value,
                    "difference": value,
                    "difference_low": float(low),
                    "difference_high": float(high),
                    "difference_replicates": difference,
                    "baseline_replicates": other.replicates,
                }
            )
    new = [f"difference{end}" for end in ("", "_low", "_high", "_replicates")]
    return pd.DataFrame(rows, columns=[*table.columns, "baseline", *new, "baseline_replicates"])


def mean_ratio(compared: pd.DataFrame, by: Sequence[str]) -> pd.DataFrame:
    """How many times the baseline the vulnerabilities of a group of cells are: the geometric mean over its cells.

    The 95 % interval covers two: that of resampled images (and seeds) and cells, and Student's over the cells, since
    resampling few of them says too little; one cell has none. Cells are taken as independent, though they share models.
    A cell in which a vulnerability is not above 0, or both are infinite, has no ratio and is left out (of that
    replicate). One that is infinite counts: the ratio is infinite, or 0 where that is the baseline, with an interval
    from 0 to infinity unless all cells are so; NaN where cells of both kinds meet.

    Parameters
    ----------
    compared : as `against` gives it.
    by : the columns that make a group.

    Returns
    -------
    The columns of `by`, ratio, low, high, cells (those that have a ratio).
    """
    from scipy.stats import t as student  # takes long to import

    rows = []
    for group, cells in compared.groupby(list(by), sort=False):
        value = _log_ratio(cells.value.to_numpy(float), cells.baseline.to_numpy(float))
        drawn = _log_ratio(np.stack(cells.replicates.to_list()), np.stack(cells.baseline_replicates.to_list()))
        number, size = drawn.shape
        counts = np.random.default_rng(0).multinomial(number, np.full(number, 1 / number), size=size).T
        present = ~np.isnan(drawn) * counts
        value = value[~np.isnan(value)]
        with np.errstate(invalid="ignore", divide="ignore"):  # no cell at all; inf - inf
            means = np.where(present, drawn * counts, 0).sum(axis=0) / present.sum(axis=0)
            middle = value.mean() if len(value) else np.nan
        low, high = metrics.interval(means)
        if len(value) < 2 or np.isnan(middle):
            low = high = np.nan
        elif np.isinf(middle):  # other cells say nothing of how far it is spread
            low, high = (low, high) if (value == middle).all() else (-np.inf, np.inf)
        else:
            spread = student.ppf(0.975, len(value) - 1) * value.std(ddof=1) / np.sqrt(len(value))
            low, high = np.minimum(low, middle - spread), np.maximum(high, middle + spread)
        named = dict(zip(by, group, strict=True))
        ends = {"low": float(np.exp(low)), "high": float(np.exp(high))}
        rows.append({**named, "ratio": float(np.exp(middle)), **ends, "cells": len(value)})
    return pd.DataFrame(rows, columns=[*by, "ratio", "low", "high", "cells"])


def share_less_vulnerable(compared: pd.DataFrame, by: Sequence[str] = ("panel", "setting", "attacked")) -> pd.DataFrame:
    """Share of the two-task cells that are less vulnerable than their single-task model.

    The 95 % interval covers two: that of resampled images (and seeds) and cells, and Wilson's for a share of so many
    cells. The claims are about tasks, of which the cells are a sample: few cells give a wide interval, also where all
    of them agree. Cells are taken as independent, though they share models and main tasks.

    Parameters
    ----------
    compared : as `against_single_task` gives it.
    by : the columns that make a group.

    Returns
    -------
    The columns of `by`, share, low, high, cells.
    """
    from scipy.stats import binomtest  # takes long to import

    rows = []
    for group, cells in compared.groupby(list(by), sort=False):
        less = np.stack(cells.difference_replicates.to_list()) < 0  # (cells, R)
        number, size = less.shape
        drawn = np.random.default_rng(0).multinomial(number, np.full(number, 1 / number), size=size)
        low, high = metrics.interval((less.T * drawn).sum(axis=1) / number)
        helped = int((cells.difference < 0).sum())
        wilson = binomtest(helped, number).proportion_ci(0.95, "wilson")
        rows.append(
            {
                **dict(zip(by, group, strict=True)),
                "share": helped / number,
                "low": min(float(low), wilson.low),
                "high": max(float(high), wilson.high),
                "cells": len(cells),
            }
        )
    return pd.DataFrame(rows)


def matrix(table: pd.DataFrame, attacked: str = "single", column: str = "value") -> pd.DataFrame:
    """One panel and setting as the paper prints it: main tasks as rows, auxiliary tasks as columns.

    The diagonal is the single-task model, attacked in the one way that there is.
    """
    rows = table[(table.attacked == attacked) | (table.main == table.auxiliary)]
    if rows.duplicated(["main", "auxiliary"]).any():
        raise ValueError("Parameter table should hold one panel and setting. Found several values for a cell.")
    letters = list(canonical("".join(set(rows.main))))
    return rows.pivot(index="main", columns="auxiliary", values=column).reindex(index=letters, columns=letters)


def with_interval(table: pd.DataFrame, attacked: str = "single") -> pd.DataFrame:
    """As `matrix`, each cell as text: the value and, in brackets, its 95 % interval; then how many images were left out
    of it for want of a ratio, if any."""
    text = [
        f"{number(row.value)} {interval(row.low, row.high)}" + (f", {row.left_out} left out" if row.left_out else "")
        for row in table.itertuples()
    ]
    return matrix(table.assign(text=text), attacked, "text").fillna("")


def concat(matrices: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """Matrices side by side under their titles."""
    return pd.concat(matrices, axis=1)


def shown(table: pd.DataFrame) -> pd.DataFrame:
    """The table without its replicates: what is displayed and written to CSV."""
    return table.drop(columns=[column for column in table.columns if column.endswith("replicates")])


def digits(value: object) -> str:
    """A number in four significant digits, or whole from 10,000 on, for `Styler.format`; anything else as it is."""
    return format(value, ".4g" if abs(value) < 1e4 else ",.0f") if isinstance(value, float) else str(value)


def number(value: float, sign: bool = False) -> str:
    """A number in words for people: two decimals between .1 and 100, whole above, and two significant digits below, so
    that no small number is shown as 0. With `sign`, its sign always. "infinite" for one that is, "unknown" for NaN."""
    if not np.isfinite(value):
        return "unknown" if np.isnan(value) else f"{'-' if value < 0 else ''}infinite"
    if value == 0:
        return "0"
    size = np.floor(np.log10(abs(value)))
    form = ".1e" if size < -4 else f",.{0 if size >= 2 else 2 if size >= -1 else 1 - int(size)}f"
    return format(value, f"{'+' if sign else ''}{form}")


def interval(low: float, high: float, sign: bool = False) -> str:
    """The ends of an interval in brackets, each as `number` writes it."""
    return f"[{number(low, sign)}, {number(high, sign)}]"


def show_whole() -> None:
    """From here on a notebook shows every row, column and text of a table, where pandas would put an ellipsis."""
    for limit in ("max_rows", "max_columns", "max_colwidth"):
        pd.set_option(f"display.{limit}", None)
    pd.set_option("styler.render.max_elements", sys.maxsize)


def write(folder: Path, name: str, **frames: pd.DataFrame) -> pd.DataFrame:
    """Write tables as `<folder>/<name>_<table>.csv`, each whole or not at all, and what they were computed by as
    `<folder>/machine.json`. Returns what was written."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for title, frame in frames.items():
        path = folder / f"{name}_{title}.csv"
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        shown(frame).to_csv(temporary, index=False)
        os.replace(temporary, path)
        rows.append({"file": path.name, "rows": len(frame)})
    temporary = folder / f".machine.json.{os.getpid()}"
    temporary.write_text(json.dumps(machine.describe(), indent=1) + "\n")
    os.replace(temporary, folder / "machine.json")
    return pd.DataFrame(rows)


def _less(one: np.ndarray | float, other: np.ndarray | float) -> np.ndarray | float:
    """one - other; NaN, without a warning, where both are infinite."""
    with np.errstate(invalid="ignore"):
        return one - other


def _log_ratio(value: np.ndarray, baseline: np.ndarray) -> np.ndarray:
    positive = (value > 0) & (baseline > 0)
    with np.errstate(invalid="ignore", divide="ignore"):  # NaN of two that are infinite, -inf beside such a baseline
        return np.log(np.where(positive, value, np.nan) / np.where(positive, baseline, np.nan))


def _by_seed(group: pd.DataFrame, column: str) -> np.ndarray:
    """(S, N): a row a seed, images in one order."""
    return group.pivot(index="seed", columns="image_id", values=column).to_numpy()
