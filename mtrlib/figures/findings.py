"""The findings of a notebook in one figure."""

from textwrap import fill

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from mtrlib.claims.judging import in_words
from mtrlib.figures.style import mark, styled

LOOKS = {"agrees": ("#0072B2", "o"), "disagrees": ("#E69F00", "X"), "open": ("0.55", "D")}
SHARES = {"all": (0.99, 1.02), "none": (-0.02, 0.01), "at least one": (0.01, 1.02)}
# By what a finding is: ends of the axis, its name and its ticks.
AXES = {
    "share": (0, 1, "share (bar: surely so, to not surely otherwise)", {k / 4: f"{25 * k} %" for k in range(5)}),
    "times": (0.1, 10, "times, 95 % interval (cut at the edges)", {x: f"{x:g}" for x in (0.1, 0.2, 0.5, 1, 2, 5, 10)}),
    "correlation": (-1, 1, "rank correlation, 95 % interval", {x / 2: f"{x / 2:g}" for x in range(-2, 3)}),
    "number": (-1, 2, "number, 95 % interval (cut at the edges)", {x / 2: f"{x / 2:g}" for x in range(-2, 5)}),
}


@styled()
def findings(table: pd.DataFrame) -> Figure:
    """Every finding that decides a claim: its name, below it estimate and interval against what is asked (the shaded
    side). It is as narrow as a phone can show.

    Shares, ratios (on a logarithmic axis from a tenth to ten), correlations and other numbers (from -1 to 2) have an
    axis each. The colour and the mark are the verdict's. `table` is as `claims.findings` gives it.
    """
    rows = table[table.decides].sort_values("number", kind="stable", ignore_index=True)
    share, times = rows.asked.str.contains("%") | rows.asked.isin(list(SHARES)), rows.asked.str.endswith("times")
    ranked = rows["where"].str.contains("rank correlation")
    kinds = np.select([share, times, ranked], ["share", "times", "correlation"], "number")
    parts = {kind: rows[kinds == kind] for kind in AXES if (kinds == kind).any()}
    labels = {
        kind: [fill(f"{r.number}  {in_words(r.where)}", 80) for r in part.itertuples()] for kind, part in parts.items()
    }
    # Where each line ends, in half inches from the top of its axis: a second line of a label takes its room.
    ends = {kind: np.cumsum([1 + 0.35 * label.count("\n") for label in of_kind]) for kind, of_kind in labels.items()}
    ratios = [at[-1] + 1 for at in ends.values()] or [1]
    size = (6.2, 0.5 * sum(ratios) + 0.4 * len(ratios) + 0.6)
    figure, axes = plt.subplots(len(ratios), figsize=size, squeeze=False, height_ratios=ratios)
    for axis, (kind, part) in zip(axes[:, 0], parts.items(), strict=False):
        low, high, name, ticks = AXES[kind]
        edges = (-0.02, 1.02) if kind == "share" else (low, high)
        for place, row, label in zip(ends[kind], part.itertuples(), labels[kind], strict=True):
            colour, marker = LOOKS[row.verdict]
            left, right = _asked(row.asked, low, high)
            axis.barh(place, right - left, left=left, height=0.45, color="0.88", zorder=1)
            bar = np.clip(np.nan_to_num([row.low, row.high], nan=low, posinf=high, neginf=low), *edges)
            axis.plot(bar, [place, place], color=colour, linewidth=2.5, solid_capstyle="butt", zorder=3)
            axis.plot(np.clip(row.estimate, low, high), place, marker, color=colour, ms=8, mec="white", zorder=4)
            axis.annotate(label, (0, place - 0.25), (5, 1), ("axes fraction", "data"), "offset points", fontsize=10)
        axis.set(xlim=edges, ylim=(ends[kind][-1] + 0.4, 0), yticks=[])
        axis.set_xlabel(name)
        if kind == "times":
            axis.set_xscale("log")
            axis.xaxis.set_minor_formatter(NullFormatter())
        axis.set_xticks(list(ticks), list(ticks.values()))
    line = {"linestyle": "-", "linewidth": 2.5}
    handles = [mark(verdict, color=colour, marker=marker, **line) for verdict, (colour, marker) in LOOKS.items()]
    handles.append(plt.Rectangle((0, 0), 1, 1, color="0.9", label="what the claim asks"))
    figure.legend(handles=handles, loc="outside upper center", ncols=4, fontsize=10, columnspacing=1.2)
    return figure


def _asked(asked: str, low: float, high: float) -> tuple[float, float]:
    """The side that the claim asks for, such as "above 50%"; a thick edge where it is one point."""
    if asked in SHARES:
        return SHARES[asked]
    side, number = asked.removesuffix(" times").rsplit(" ", 1)
    threshold = float(number.rstrip("%")) / 100 if "%" in number else float(number)
    return (max(threshold, low), high) if side in ("above", "at least") else (low, threshold)
