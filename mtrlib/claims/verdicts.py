"""Verdicts on the rungs of the fidelity ladder, from their tables: "agrees", "disagrees" or "open".

A verdict needs the whole interval on one side of what the claim says. The verdicts of RQ1 to RQ4: `questions`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from mtrlib import metrics
from mtrlib.claims.judging import AGREES, DISAGREES, NOT_MEASURED, OPEN
from mtrlib.metrics import tables

_RATIO = ("ratio", "low", "high", "cells")
NOT_CLAIMED = "(shown for comparison)"
NOTHING = 1e4  # an interval of a ratio whose ends are so many times apart, a hundred to each side, says nothing
RELIABLE = 0.95  # share of cells from which on "reliably" would hold


def verdict(low: float, high: float, threshold: float, claimed: str) -> str:
    """Whether a value with the interval [low, high] is on the claimed side of a threshold.

    Parameters
    ----------
    low, high : ends of the interval of the measured value.
    threshold : what it is compared with.
    claimed : "above" or "below", the side that the claim says.
    """
    if claimed not in ("above", "below"):
        raise ValueError(f"Parameter claimed should be above or below. Found claimed = {claimed!r}.")
    if not (np.isfinite(low) and np.isfinite(high)) or low <= threshold <= high:
        return OPEN
    return AGREES if (low > threshold) == (claimed == "above") else DISAGREES


def all_of(verdicts: list[str]) -> str:
    """The verdict on a claim that says several things at once: one that fails is enough."""
    verdicts = [verdict for verdict in verdicts if verdict != NOT_CLAIMED]
    if not verdicts:
        return NOT_MEASURED
    if DISAGREES in verdicts:
        return DISAGREES
    return OPEN if OPEN in verdicts else AGREES


def shares(shares: pd.DataFrame, number: str, threshold: float, claimed: str, label: str = "{}") -> pd.DataFrame:
    """Claims on the share of less vulnerable cells: a row for each row of `tables.share_less_vulnerable`.

    `label` formats the setting, such as "eps {:g}/255"; threshold and claimed as in `verdict`.
    """
    rows = []
    for row in shares.itertuples():
        rows.append(
            _row(
                number,
                f"{label.format(row.setting)}, {row.attacked}",
                f"{row.share:.0%} of {row.cells} cells less vulnerable",
                f"[{row.low:.0%}, {row.high:.0%}]",
                f"{claimed} {threshold:.0%}",
                verdict(row.low, row.high, threshold, claimed),
            )
        )
    return pd.DataFrame(rows)


def never_helps(compared: pd.DataFrame, number: str) -> pd.DataFrame:
    """The claim that no auxiliary task lowers the vulnerability of a main task: one row a main task.

    Intervals of the differences are widened for the number of cells that are looked at (Bonferroni). The claim fails
    where one lies below 0 and holds where all lie above.
    """
    rows = []
    for main, cells in compared.groupby("main", sort=False):
        lowers, raises = _surely(cells, len(compared))
        answer = DISAGREES if lowers else AGREES if raises == len(cells) else OPEN
        measured = f"{(cells.difference < 0).sum()} of {len(cells)} auxiliary tasks lower it"
        surely = f"({lowers} clearly, {raises} clearly raise it)"
        rows.append(_row(number, f"main {main}", measured, surely, "none", answer))
    return pd.DataFrame(rows)


def every_helps(compared: pd.DataFrame, number: str, by: Sequence[str] = ("setting", "attacked")) -> pd.DataFrame:
    """The claim that every cell is less vulnerable than what it is compared with: one row a group of cells.

    Intervals of the differences are widened for the number of cells of all groups (Bonferroni). The claim holds where
    all lie below 0 and fails where one lies above.

    Parameters
    ----------
    compared : as `tables.against` gives it.
    """
    rows = []
    for group, cells in compared.groupby(list(by), sort=False):
        lowers, raises = _surely(cells, len(compared))
        answer = DISAGREES if raises else AGREES if lowers == len(cells) else OPEN
        measured = f"{(cells.difference < 0).sum()} of {len(cells)} cells less vulnerable"
        where = ", ".join(map(str, group))
        rows.append(_row(number, where, measured, f"({lowers} clearly, {raises} clearly more)", "every one", answer))
    return pd.DataFrame(rows)


def stronger(ratios: pd.DataFrame, number: str, threshold: float) -> pd.DataFrame:
    """The claim that attacks are much stronger than another: one row for each row of `tables.mean_ratio`, whose first
    columns name the attack; "much" is a ratio of at least `threshold`."""
    rows = []
    for row in ratios.to_dict("records"):
        where = ", ".join(str(value) for key, value in row.items() if key not in _RATIO)
        answer = verdict(row["low"], row["high"], threshold, "above")
        rows.append(_row(number, where, *_ratio(row), f"above {threshold:g}", answer))
    return pd.DataFrame(rows)


def equivalent(ratios: pd.DataFrame, number: str, margin: float) -> pd.DataFrame:
    """The claim that two vulnerabilities are the same: it holds where the whole interval of their ratio lies within
    1 / (1 + margin) and 1 + margin, and fails where it lies outside. One row for each row of `tables.mean_ratio`."""
    rows = []
    inner, outer = 1 / (1 + margin), 1 + margin
    for row in ratios.to_dict("records"):
        where = ", ".join(str(value) for key, value in row.items() if key not in _RATIO)
        low, high = row["low"], row["high"]
        answer = AGREES if inner < low and high < outer else DISAGREES if high < inner or low > outer else OPEN
        rows.append(_row(number, where, *_ratio(row), f"{inner:.2f} to {outer:.2f}", answer))
    return pd.DataFrame(rows)


def _surely(cells: pd.DataFrame, looked_at: int) -> tuple[int, int]:
    """How many cells lie below what they are compared with, and how many above, with their whole interval; the
    intervals are widened for the number of cells that are looked at (Bonferroni)."""
    ends = [metrics.interval(drawn, 1 - 0.05 / looked_at) for drawn in cells.difference_replicates]
    return sum(high < 0 for _, high in ends), sum(low > 0 for low, _ in ends)


def _ratio(row: dict) -> tuple[str, str]:
    """What a row of `tables.mean_ratio` says, and its interval; that nothing is known where it says nothing."""
    cells = f"in the mean of {row['cells']} cells"
    low, high = row["low"], row["high"]
    if np.isinf(row["ratio"]):
        return f"infinite {cells}", tables.interval(low, high)
    if not (np.isfinite(low) and np.isfinite(high) and low > 0 and high < NOTHING * low):
        return f"of the ratio {cells} nothing is known", ""
    return f"{tables.number(row['ratio'])} times {cells}", tables.interval(low, high)


def _row(number: str, where: str, measured: str, interval: str, asked: str, answer: str) -> dict[str, str]:
    told = {"number": number, "where": where, "measured": measured, "interval": interval}
    return {**told, "asked": asked, "verdict": answer}
