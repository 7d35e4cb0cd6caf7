"""Figures of vulnerabilities and errors: tables of cells, panels of a study, architectures, ratios, proxies."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter, LogLocator, NullFormatter, NullLocator

from mtrlib.figures.style import colour, letters_of, mark, marker_of, named, panels, reach, styled, task_marks
from mtrlib.metrics import tables
from mtrlib.models.own import short
from mtrlib.tasks import TASKS, Task

UNITS = dict.fromkeys(("clean error", "adversarial error"), "in the unit of the task")
UNITS |= {"first order": "relative increase of the loss"}
VULNERABILITY = "relative task vulnerability"  # the unit of all others
ATTACKED = {
    "own": "the task itself attacked (shape: the other task)",
    "other": "the other task attacked",
    "joint": "both attacked",
}
_FILLS = {"own": ("0.75", "0.75"), "other": (None, None), "joint": (None, "white")}  # line and inside; None: the task's


@styled()
def heat_maps(matrices: dict[str, pd.DataFrame], label: str) -> Figure:
    """Matrices main x auxiliary, two a row, each with its numbers; one colour scale for all of them says how many times
    the single-task model of the row a number is. It is logarithmic and ends at two times and at half at the latest.
    Matrices come by title, as `tables.matrix` and `published.vulnerability` give them; `label` is their unit.
    """
    # Each row relative to its single-task model: tasks differ by far more than their auxiliary tasks change.
    ratios = {title: _log_ratios(matrix.to_numpy(float)) for title, matrix in matrices.items()}
    largest = max((np.nanmax(np.abs(ratio), initial=0.0) for ratio in ratios.values()), default=0.0)
    limit = min(max(largest, 0.05), 1.0)
    figure, axes = panels(len(matrices), min(len(matrices), 2), (4.8, 4.2), (1, 0.4))
    for axis, (title, matrix) in zip(axes.flat, matrices.items(), strict=False):
        picture = axis.imshow(ratios[title], cmap="PuOr_r", vmin=-limit, vmax=limit)
        for (row, column), value in np.ndenumerate(matrix.to_numpy(float)):
            if np.isfinite(value):
                ink = "white" if abs(ratios[title][row, column]) > 0.6 * limit else "black"
                text = {"color": ink, "weight": "bold" if row == column else "normal"}
                axis.text(column, row, tables.number(value), ha="center", va="center", **text)
        axis.set_xticks(range(len(matrix.columns)), matrix.columns)
        axis.set_yticks(range(len(matrix.index)), matrix.index)
        axis.set(xlabel="auxiliary task (diagonal: none)", ylabel="main task", title=title)
        axis.spines[:].set_visible(False)
    ends = "both" if largest > limit else "neither"
    colour_bar = figure.colorbar(picture, ax=axes, shrink=0.6, extend=ends, label="times the single-task model")
    ticks = limit * np.linspace(-1, 1, 5)
    colour_bar.set_ticks(ticks, labels=[f"{2**tick:.2f}" for tick in ticks])
    figure.suptitle(label, fontsize=12)
    return figure


def _log_ratios(values: np.ndarray) -> np.ndarray:
    """log2 of each number over the diagonal's of its row; nan, and so no colour, where one of them is not above 0."""
    values = np.where(np.isfinite(values) & (values > 0), values, np.nan)
    return np.log2(values / np.diag(values)[:, None])


@styled()
def errors(alone: pd.DataFrame, pairs: pd.DataFrame, tasks: dict[str, Task] | None = None) -> Figure:
    """The error of each main task under attack, by auxiliary task (the supplement's figures 1 to 11), three a row.

    `alone` and `pairs` are the errors of single-task and two-task models, as `tables.mean_errors` gives them. A filled
    mark is an attack on the main task alone, an open one on both; the line is the single-task model.
    """
    tasks = TASKS if tasks is None else tasks
    mains = list(dict.fromkeys(alone.main))
    figure, axes = panels(len(mains), 2 if len(mains) == 4 else min(len(mains), 3), (3.7, 3.1), (1.8, 0))
    for axis, main in zip(axes.flat, mains, strict=False):
        single = alone[alone.main == main].iloc[0]
        axis.axhspan(single.low, single.high, color="0.9", zorder=0)
        axis.axhline(single.value, color="0.4", linewidth=1, zorder=1)
        letters = [letter for letter in mains if letter != main]
        for (auxiliary, attacked), cell in pairs[pairs.main == main].groupby(["auxiliary", "attacked"], sort=False):
            fill, shift = ("white", 0.15) if attacked == "joint" else (colour(auxiliary), -0.15)
            look = {"fmt": marker_of(auxiliary), "color": colour(auxiliary), "markerfacecolor": fill}
            axis.errorbar(letters.index(auxiliary) + shift, cell.value, yerr=reach(cell, "value"), **look)
        axis.set_xticks(range(len(letters)), letters)
        axis.set(xlabel="auxiliary task", xlim=(-0.6, len(letters) - 0.4), title=named(main, tasks))
        axis.set_ylabel(tasks[main].unit if main in tasks else "error")
    marks = {"filled: main task attacked": "0.4", "open: both attacked": "white"}
    handles = [mark(name, color="0.4", marker="o", markerfacecolor=fill) for name, fill in marks.items()]
    handles.append(mark("single-task model", color="0.4", linewidth=1, linestyle="-"))
    figure.legend(handles=handles, loc="outside lower center", ncols=3)
    return figure


@styled()
def lines(
    table: pd.DataFrame, xlabel: str, ylabel: str, *, log: bool = False, tasks: dict[str, Task] | None = None
) -> Figure:
    """One panel a main task, a line an auxiliary task over the settings of a study's panel, with 95 % intervals.
    `table` is as `tables.vulnerabilities` gives it, of one panel; `log` is for both axes."""
    mains = letters_of(table.main)
    figure, axes = panels(len(mains), len(mains), (3.6, 3.6), (1.6, 0), sharex=True)
    for axis, main in zip(axes[0], mains, strict=True):
        rows = table[(table.main == main) & (table.attacked == "single")]
        order = [main, *letters_of(set(rows.auxiliary) - {main})]
        for offset, auxiliary in enumerate(order):
            line = rows[rows.auxiliary == auxiliary].sort_values("setting")
            x = line.setting.to_numpy(float)
            beside = x * (1 + 0.02 * (offset - len(order) / 2))
            look = {"linewidth": 2.5, "linestyle": "-"} if auxiliary == main else {"linewidth": 1.5, "linestyle": "--"}
            look |= {"color": colour(auxiliary), "marker": marker_of(auxiliary)}
            axis.errorbar(beside, line.value, yerr=reach(line, "value"), **look)
        if log:
            axis.set(xscale="log", yscale="log")
            axis.yaxis.set_major_formatter(LogFormatter(labelOnlyBase=False))
            axis.yaxis.set_minor_formatter(LogFormatter(labelOnlyBase=False, minor_thresholds=(1, 0.4)))
        axis.set_xticks(x, [f"{value:g}" for value in x])
        axis.xaxis.set_minor_locator(NullLocator())
        own = main in (tasks or {}) and not tasks[main].is_papers
        axis.set(title=f"main task {named(main, tasks) if own else main}", xlabel=xlabel)
    axes[0][0].set_ylabel(ylabel)
    handles = task_marks(letters_of(table.auxiliary), tasks, linestyle="-")
    figure.legend(handles=handles, loc="outside right upper", title="auxiliary task\n(solid: none)")
    return figure


@styled()
def by_setting(
    table: pd.DataFrame, label: str, names: dict[str, str], *, tasks: dict[str, Task] | None = None
) -> Figure:
    """One panel a main task: the values of each setting, such as an architecture, with their 95 % intervals; a mark an
    auxiliary task, looking as in all figures, and what was attacked by its filling.

    Parameters
    ----------
    table : rows with panel ("own", "other", "joint"), setting, main, auxiliary, value, low and high.
    label : of the axis of the values.
    names : what settings are called.
    """
    tasks, settings = TASKS if tasks is None else tasks, list(dict.fromkeys(table.setting))
    mains = letters_of(table.main)
    figure, axes = panels(len(mains), len(mains), (4.2, 4.6), (0, 1.0))
    several = table.panel.nunique() > 1  # one kind of attack, or none, needs no grey
    for axis, main in zip(axes[0], mains, strict=True):
        rows = table[table.main == main]
        kinds = list(dict.fromkeys(zip(rows.panel, rows.auxiliary, strict=True)))
        for (panel, setting, auxiliary), cell in rows.groupby(["panel", "setting", "auxiliary"], sort=False):
            line, inside = (each or colour(auxiliary) for each in _FILLS[panel if several else "other"])
            shift = (kinds.index((panel, auxiliary)) + 1) / (len(kinds) + 1) - 0.5
            look = {"fmt": marker_of(auxiliary), "color": line, "markerfacecolor": inside}
            axis.errorbar(settings.index(setting) + shift, cell.value, yerr=reach(cell, "value"), **look)
        for edge in range(1, len(settings)):
            axis.axvline(edge - 0.5, color="0.9", linewidth=1, zorder=0)
        axis.set_xticks(range(len(settings)), [names.get(each, each) for each in settings], rotation=40, ha="right")
        axis.set(xlim=(-0.5, len(settings) - 0.5), title=named(main, tasks))
    axes[0][0].set_ylabel(label)
    inks = {"own": "0.75", "other": "0.3", "joint": "white"}
    shown = [each for each in ATTACKED if several and (table.panel == each).any()]
    handles = [mark(ATTACKED[each], color="0.3", marker="o", markerfacecolor=inks[each]) for each in shown]
    handles += task_marks(letters_of(table.auxiliary), tasks)
    figure.legend(handles=handles, loc="outside lower center", ncols=3)
    return figure


@styled()
def bars(table: pd.DataFrame, label: str, value: str, xlabel: str, line: float | None = None) -> Figure:
    """A value with its 95 % interval (columns low and high) for each name in the column `label`; a `line` at a number
    to compare with."""
    figure, axis = plt.subplots(figsize=(7.2, 0.42 * len(table) + 1.2))
    axis.errorbar(table[value], range(len(table)), xerr=reach(table, value), fmt="o", color="black")
    axis.set_yticks(range(len(table)), table[label])
    axis.invert_yaxis()
    axis.set(xlabel=xlabel)
    if line is not None:
        axis.axvline(line, color="0.6", linewidth=1, zorder=0)
    return figure


@styled()
def ratios(table: pd.DataFrame, label: str, xlabel: str) -> Figure:
    """Ratios with their 95 % intervals, a line each, single (filled) and joint attacks (open) side by side.

    `table` is as `tables.mean_ratio` gives it, grouped by `label`, the column that names the lines, and "attacked".
    """
    names = list(dict.fromkeys(table[label]))
    figure, axis = plt.subplots(figsize=(7.2, 0.42 * len(names) + 1.6))
    axis.axvline(1, color="0.6", linewidth=1)
    for attacked, fill, shift in (("single", "black", -0.12), ("joint", "white", 0.12)):
        rows = table[table.attacked == attacked]
        place = [names.index(name) + shift for name in rows[label]]
        style = {"fmt": "o", "color": "black", "markerfacecolor": fill}
        axis.errorbar(rows.ratio, place, xerr=reach(rows, "ratio"), label=attacked, **style)
    axis.set_yticks(range(len(names)), [short(str(name)) for name in names])
    axis.invert_yaxis()
    axis.set(xscale="log", xlabel=xlabel)
    low, high = max(axis.get_xlim()[0], 0.1), min(axis.get_xlim()[1], 10)  # few cells have intervals without end
    axis.set_xlim(low, high)
    if table.low.min() < low or table.high.max() > high:
        axis.set_xlabel(f"{xlabel}\nintervals that reach further are cut at the edge")
    fine, coarse = (0.5, 0.6, 0.7, 0.8, 0.9, 1, 1.1, 1.2, 1.4, 1.6, 1.8, 2, 2.5), (0.1, 0.2, 0.5, 1, 2, 5, 10, 20)
    ticks = [tick for tick in (fine if high / low < 3 else coarse) if low <= tick <= high]
    axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axis.xaxis.set_minor_locator(NullLocator())
    axis.legend(title="attack", loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


@styled()
def proxies(cells: pd.DataFrame, target: str, names: list[str], tasks: dict[str, Task] | None = None) -> Figure:
    """The column `target` over each proxy of `names`, three panels a row, both logarithmic where they are above 0.

    `cells` are as `selection.pivot` gives them. The colour is the main task, the marker the auxiliary one ("x" without
    one); rings mark each main task's choice by the proxy, squares the best one.
    """
    figure, axes = panels(len(names), 3, (3.5, 3.4), (1, 0), sharey=True)
    for axis, name in zip(axes.flat, names, strict=False):
        for main, group in cells.groupby("main", sort=False):
            for auxiliary, x, y in zip(group.auxiliary, group[name], group[target], strict=True):
                axis.plot(x, y, "x" if auxiliary == main else marker_of(auxiliary), color=colour(main), markersize=7)
            pairs = group[group.auxiliary != main]
            for column, ring in ((name, "o"), (target, "s")):
                best = pairs.loc[pairs[column].idxmin()]
                axis.plot(best[name], best[target], ring, markersize=14, mfc="none", mec=colour(main), mew=1.2)
        if (cells[[name, target]] > 0).all(axis=None):
            axis.set(xscale="log", yscale="log")
            for side, column in ((axis.xaxis, name), (axis.yaxis, target)):
                decades = np.log10(cells[column].max() / cells[column].min())
                side.set_major_locator(LogLocator(subs=(1, 2, 5) if decades < 1.5 else (1,)))
                side.set_major_formatter("{x:g}")
                side.set_minor_formatter(NullFormatter())
        axis.set_xlabel(f"{name}\n({UNITS.get(name, VULNERABILITY)})")
    for row in axes:
        row[0].set_ylabel(f"{target}\n({UNITS.get(target, VULNERABILITY)})")
    mains = letters_of(cells.main)
    handles = [mark(f"main {named(x, tasks)}", color=colour(x), marker="o") for x in mains]
    handles += [mark(f"with {x}", color="0.4", marker=marker_of(x)) for x in mains]
    handles.append(mark("alone", color="0.4", marker="x"))
    rings = {"the proxy's choice": "o", "the best choice": "s"}
    handles += [mark(what, marker=ring, markersize=13, mfc="none", mec="0.4") for what, ring in rings.items()]
    figure.legend(handles=handles, loc="outside right upper")
    return figure
