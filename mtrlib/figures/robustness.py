"""The figure of robust training: what it costs and what it gives."""

import pandas as pd
from matplotlib.figure import Figure

from mtrlib.figures.style import mark, named, panels, reach, styled
from mtrlib.tasks import TASKS, Task

_INKS = ("black", "#0072B2", "#D55E00", "#009E73", "#CC79A7")


@styled()
def trade_off(table: pd.DataFrame, x: str, y: str, tasks: dict[str, Task] | None = None) -> Figure:
    """Error `y` over error `x`, a panel a main task, a mark a way to train, with 95 % intervals; on the line both are
    the same, so that nothing lies below it.

    `table` has a row a way to train (column panel) and main task, with columns such as "clean", "clean low" and "clean
    high" for "clean", in the unit of the task.
    """
    tasks = TASKS if tasks is None else tasks
    names, mains = list(dict.fromkeys(table.panel)), list(dict.fromkeys(table.main))
    looks = {name: {"color": _INKS[k % 5], "marker": "osD^vPX"[k % 7]} for k, name in enumerate(names)}
    figure, axes = panels(len(mains), min(len(mains), 3), (3.7, 3.6), (2.2, 0))
    for axis, main in zip(axes.flat, mains, strict=False):
        rows = table[table.main == main]
        far = [reach(rows.rename(columns={f"{v} low": "low", f"{v} high": "high"}), v) for v in (x, y)]
        axis.errorbar(rows[x], rows[y], xerr=far[0], yerr=far[1], fmt="none", ecolor="0.7", zorder=1)
        for row in rows.to_dict("records"):
            axis.plot(row[x], row[y], markersize=8, zorder=2, **looks[row["panel"]])
        axis.axline((rows[x].min(), rows[x].min()), slope=1, color="0.4", linewidth=1, zorder=0)
        axis.set(xlabel=f"error, {x}", title=named(main, tasks))
        axis.set_ylabel(f"error, {y}\n({tasks[main].unit if main in tasks else 'unit of the task'})")
    handles = [mark(name, **look) for name, look in looks.items()]
    handles.append(mark("nothing added", color="0.4", linewidth=1, linestyle="-"))
    figure.legend(handles=handles, loc="outside right upper", title="trained")
    return figure
