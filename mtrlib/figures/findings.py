"""The findings of a notebook in one figure."""

from textwrap import fill

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from mtrlib.figures.style import mark, styled

LOOKS = {"agrees": ("#0072B2", "o"), "disagrees": ("#E69F00", "X"), "open": ("0.55", "D")}
SHARES = {"all": (0.99, 1.02), "none": (-0.02, 0.01), "at least one": (0.01, 1.02)}
# By what a finding is: ends of the axis, its name and its ticks.
AXES = {
    "share": (0, 1, "share (bar: surely so, to not surely otherwise)", {k / 4: f"{25 * k} %" for k in range(5)}),
    "times": (0.1, 10, "times, 95 % interval (cut at the edges)", {x: f"{x:g}" for x in (0.1, 0.2, 0.5, 1, 2, 5, 10)}),
    "number": (-1, 2, "number, 95 % interval (cut at the edges)", {x / 2: f"{x / 2:g}" for x in range(-2, 5)}),
}


@styled()
def findings(table: pd.DataFrame) -> Figure:
    """Every finding that decides a claim, one line each: estimate and interval against what is asked (the shaded side).

    Shares, ratios (on a logarithmic axis from a tenth to ten) and other numbers (from -1 to 2) have an axis each. The
    colour and the mark are the verdict's. `table` is as `claims.findings` gives it.
    """
    rows = table[table.decides].sort_values("number", kind="stable", ignore_index=True)
    share, times = rows.asked.str.contains("%") | rows.asked.isin(list(SHARES)), rows.asked.str.endswith("times")
    kinds = np.select([share, times], ["share", "times"], "number")
    parts = {kind: rows[kinds == kind] for kind in AXES if (kinds == kind).any()}
    ratios = [len(part) + 1 for part in parts.values()] or [1]
    size = (11, 0.34 * len(rows) + 0.9 * len(ratios) + 0.5)
    figure, axes = plt.subplots(len(ratios), figsize=size, squeeze=False, height_ratios=ratios)
    for axis, (kind, part) in zip(axes[:, 0], parts.items(), strict=False):
        low, high, name, ticks = AXES[kind]
        edges = (-0.02, 1.02) if kind == "share" else (low, high)
        for place, row in enumerate(part.itertuples()):
            colour, marker = LOOKS[row.verdict]
            left, right = _asked(row.asked, low, high)
            axis.barh(place, right - left, left=left, height=0.8, color="0.9", zorder=1)
            ends = np.clip(np.nan_to_num([row.low, row.high], nan=low, posinf=high, neginf=low), *edges)
            axis.plot(ends, [place, place], color=colour, linewidth=2.5, solid_capstyle="butt", zorder=3)
            axis.plot(np.clip(row.estimate, low, high), place, marker, color=colour, ms=8, mec="white", zorder=4)
        labels = [fill(f"{row.number}  {row.where}", 80) for row in part.itertuples()]
        axis.set_yticks(range(len(part)), labels, fontsize=9)
        axis.set(xlim=edges, ylim=(len(part) - 0.5, -0.5))
        axis.grid(axis="y", visible=False)
        axis.set_xlabel(name)
        if kind == "times":
            axis.set_xscale("log")
            axis.xaxis.set_minor_formatter(NullFormatter())
        axis.set_xticks(list(ticks), list(ticks.values()))
    line = {"linestyle": "-", "linewidth": 2.5}
    handles = [mark(verdict, color=colour, marker=marker, **line) for verdict, (colour, marker) in LOOKS.items()]
    handles.append(plt.Rectangle((0, 0), 1, 1, color="0.9", label="what the claim asks"))
    figure.legend(handles=handles, loc="outside upper center", ncols=4)
    return figure


def _asked(asked: str, low: float, high: float) -> tuple[float, float]:
    """The side that the claim asks for, such as "above 50%"; a thick edge where it is one point."""
    if asked in SHARES:
        return SHARES[asked]
    side, number = asked.removesuffix(" times").rsplit(" ", 1)
    threshold = float(number.rstrip("%")) / 100 if "%" in number else float(number)
    return (max(threshold, low), high) if side in ("above", "at least") else (low, threshold)
