"""The findings of a notebook in one figure."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from mtrlib.figures.style import mark, styled

LOOKS = {"agrees": ("#0072B2", "o"), "disagrees": ("#E69F00", "X"), "open": ("0.55", "D")}


@styled
def findings(table: pd.DataFrame) -> Figure:
    """Every finding that decides a claim, one line each: estimate and interval against what is asked (the shaded side).

    Shares stand left, from 0 to 100 %; ratios and other numbers right, their axis logarithmic and cut at a tenth and
    ten. The colour and the mark are the verdict's. `table` is as `claims.findings` gives it.
    """
    rows = table[table.decides].sort_values("number", kind="stable", ignore_index=True)
    share = rows.asked.str.contains("%") | rows.asked.isin(["all", "none", "at least one"])
    parts = [part for part in (rows[share], rows[~share]) if len(part)]
    height = 0.3 * sum(map(len, parts)) + 0.9 * max(len(parts), 1) + 0.5
    ratios = [len(part) + 1 for part in parts] or [1]
    figure, axes = plt.subplots(
        len(ratios), 1, figsize=(11, height), layout="constrained", squeeze=False, height_ratios=ratios
    )
    for axis, part in zip(axes[:, 0], parts, strict=False):
        is_share = share[part.index[0]]
        low, high = (0, 1) if is_share else (0.1, 10)
        for place, row in enumerate(part.itertuples()):
            colour, marker = LOOKS[row.verdict]
            _asked(axis, place, row.asked, low, high)
            ends = np.nan_to_num([row.low, row.high], nan=low, posinf=high, neginf=low)
            ends = np.clip(ends, *((-0.02, 1.02) if is_share else (low, high)))
            axis.plot(ends, [place, place], color=colour, linewidth=2.5, solid_capstyle="butt", zorder=3)
            at = np.clip(row.estimate, low, high)
            axis.plot(at, place, marker, color=colour, markersize=8, mec="white", zorder=4)
        labels = [f"{row.number}  {row.where}" for row in part.itertuples()]
        axis.set_yticks(range(len(part)), labels, fontsize=9)
        axis.set_ylim(len(part) - 0.5, -0.5)
        axis.grid(axis="y", visible=False)
        if is_share:
            axis.set(xlim=(-0.02, 1.02), xlabel="share (bar: surely so, to not surely otherwise)")
            axis.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "25 %", "50 %", "75 %", "100 %"])
        else:
            axis.set(xscale="log", xlim=(low, high), xlabel="ratio or number, 95 % interval (cut at the edges)")
            axis.set_xticks([0.1, 0.2, 0.5, 1, 2, 5, 10], ["0.1", "0.2", "0.5", "1", "2", "5", "10"])
            axis.xaxis.set_minor_formatter(NullFormatter())
    looks = {"linestyle": "-", "linewidth": 2.5}
    handles = [mark(verdict, color=colour, marker=marker, **looks) for verdict, (colour, marker) in LOOKS.items()]
    handles.append(plt.Rectangle((0, 0), 1, 1, color="0.9", label="what the claim asks"))
    figure.legend(handles=handles, loc="outside upper center", ncols=4, frameon=False)
    return figure


def _asked(axis, place: int, asked: str, low: float, high: float) -> None:
    """The side that the claim asks for, shaded behind a line; a thick edge where it is one point."""
    words = {"all": (0.99, 1.02), "none": (-0.02, 0.01), "at least one": (0.01, 1.02)}
    if asked in words:
        ends = words[asked]
    else:
        *side, number = asked.removesuffix(" times").split(" ")
        threshold = float(number.rstrip("%")) / 100 if "%" in number else float(number)
        ends = (threshold, high) if side in (["above"], ["at", "least"]) else (low, threshold)
        ends = (max(ends[0], low), ends[1])
    axis.barh(place, ends[1] - ends[0], left=ends[0], height=0.8, color="0.9", zorder=1)
