"""Pareto fronts: what an adversary gains on one task and has to give up on another."""

import pandas as pd
from matplotlib.figure import Figure

from mtrlib.figures.style import COLOURS, mark, named, panels, styled
from mtrlib.tasks import Task


@styled()
def fronts(points: pd.DataFrame, before: pd.DataFrame, tasks: dict[str, Task]) -> Figure:
    """Errors of two tasks against each other, a panel each title.

    Parameters
    ----------
    points : columns title and the letters of the two tasks, a row each point of a front.
    before : the same, a row each title: the errors where nothing was changed.
    tasks : the definitions of the two, by letter; the first goes across.
    """
    (one, first), (two, second) = tasks.items()
    titles = list(dict.fromkeys(points.title))
    figure, axes = panels(len(titles), min(len(titles), 4), (3.1, 3.0), (0.4, 0.4))
    for axis, title in zip(axes.flat, titles, strict=False):
        own, start = (table[table.title == title].sort_values(one) for table in (points, before))
        axis.step(own[one], own[two], where="pre", color=COLOURS["d"], alpha=0.5)
        axis.plot(own[one], own[two], "o", color=COLOURS["d"], markersize=5)
        axis.plot(start[one], start[two], "X", color="black", markersize=9)
        axis.set_title(title, fontsize=11)
        axis.set_xlabel(f"{named(one, tasks)}\n({first.unit})", fontsize=10)
    for line in axes:
        line[0].set_ylabel(f"{named(two, tasks)}\n({second.unit})", fontsize=10)
    marks = [mark("as drawn", color="black", marker="X"), mark("found", color=COLOURS["d"], marker="o")]
    figure.legend(handles=marks, loc="outside lower center", ncols=2)
    return figure
