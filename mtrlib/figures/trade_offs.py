"""One error over another: what robust training costs and gives; what an adversary gains and gives up."""

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from mtrlib.claims.judging import words
from mtrlib.figures.style import COLOURS, mark, named, panels, reach, styled
from mtrlib.tasks import TASKS, Task

_INKS = ("black", "#E69F00", "#56B4E9", "#117733", "#882255", "#999933")  # ways to train, not tasks
_ERRORS = {"clean": "without attack", "pgd": "under PGD", "sea": "under SEA"}


@styled()
def trade_off(table: pd.DataFrame, x: str, y: str, tasks: dict[str, Task] | None = None) -> Figure:
    """Error `y` over error `x`, a panel a main task, a mark a way to train, with 95 % intervals; on the line both are
    the same, so that nothing lies below it.

    `table` has a row a way to train (column panel) and main task, with columns such as "clean", "clean low" and "clean
    high" for "clean", in the unit of the task.
    """
    tasks = TASKS if tasks is None else tasks
    names, mains = list(dict.fromkeys(table.panel)), list(dict.fromkeys(table.main))
    looks = {name: {"color": _INKS[k % len(_INKS)], "marker": "osD^vPX"[k % 7]} for k, name in enumerate(names)}
    figure, axes = panels(len(mains), min(len(mains), 3), (4.0, 3.6), (0, 1.0))
    for axis, main in zip(axes.flat, mains, strict=False):
        rows = table[table.main == main]
        far = [reach(rows.rename(columns={f"{v} low": "low", f"{v} high": "high"}), v) for v in (x, y)]
        axis.errorbar(rows[x], rows[y], xerr=far[0], yerr=far[1], fmt="none", ecolor="0.7", zorder=1)
        for row in rows.to_dict("records"):
            axis.plot(row[x], row[y], markersize=8, zorder=2, **looks[row["panel"]])
        axis.axline((rows[x].min(), rows[x].min()), slope=1, color="0.4", linewidth=1, zorder=0)
        axis.xaxis.set_major_locator(MaxNLocator(4))
        axis.set(xlabel=f"error {_ERRORS.get(x, x)}", title=named(main, tasks))
        axis.set_ylabel(f"error {_ERRORS.get(y, y)}\n({tasks[main].unit if main in tasks else 'unit of the task'})")
    handles = [mark(words().get(name, name), **look) for name, look in looks.items()]
    handles.append(mark("nothing added", color="0.4", linewidth=1, linestyle="-"))
    figure.legend(handles=handles, loc="outside lower center", ncols=min(len(mains), 3))
    return figure


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
