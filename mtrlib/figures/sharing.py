"""Numbers of each task by architecture."""

import pandas as pd
from matplotlib.figure import Figure

from mtrlib.figures.style import colour, letters_of, mark, marker_of, named, panels, reach, styled, task_marks
from mtrlib.tasks import TASKS, Task

ATTACKED = {"own": "the task itself attacked", "other": "the other task attacked", "joint": "both attacked"}
_FILLS = {"own": ("0.75", "0.75"), "other": (None, None), "joint": (None, "white")}  # line and inside; None: the task's


@styled()
def by_setting(
    table: pd.DataFrame, label: str, names: dict[str, str], *, log: bool = True, tasks: dict[str, Task] | None = None
) -> Figure:
    """One panel a main task: the values of each setting, such as an architecture, with their 95 % intervals; a mark an
    auxiliary task, looking as in all figures, and what was attacked by its filling.

    Parameters
    ----------
    table : rows with panel ("own", "other", "joint"), setting, main, auxiliary, value, low and high.
    label : of the axis of the values, logarithmic unless `log` is false.
    names : what settings are called.
    """
    tasks, settings = TASKS if tasks is None else tasks, list(dict.fromkeys(table.setting))
    mains = letters_of(table.main)
    figure, axes = panels(len(mains), len(mains), (4.2, 3.8), (0, 1.0), sharey=log)
    for axis, main in zip(axes[0], mains, strict=True):
        rows = table[table.main == main]
        kinds = list(dict.fromkeys(zip(rows.panel, rows.auxiliary, strict=True)))
        for (panel, setting, auxiliary), cell in rows.groupby(["panel", "setting", "auxiliary"], sort=False):
            line, inside = (each or colour(auxiliary) for each in _FILLS[panel])
            shift = (kinds.index((panel, auxiliary)) + 1) / (len(kinds) + 1) - 0.5
            look = {"fmt": marker_of(auxiliary), "color": line, "markerfacecolor": inside}
            axis.errorbar(settings.index(setting) + shift, cell.value, yerr=reach(cell, "value"), **look)
        for edge in range(1, len(settings)):
            axis.axvline(edge - 0.5, color="0.9", linewidth=1, zorder=0)
        axis.set_xticks(range(len(settings)), [names.get(each, each) for each in settings], rotation=40, ha="right")
        axis.set(xlim=(-0.5, len(settings) - 0.5), title=named(main, tasks), yscale="log" if log else "linear")
    axes[0][0].set_ylabel(label)
    inks = {"own": "0.75", "other": "0.3", "joint": "white"}
    shown = [each for each in ATTACKED if (table.panel == each).any()]
    handles = [mark(ATTACKED[each], color="0.3", marker="o", markerfacecolor=inks[each]) for each in shown]
    handles += task_marks(letters_of(table.auxiliary), tasks)
    figure.legend(handles=handles, loc="outside lower center", ncols=3)
    return figure
