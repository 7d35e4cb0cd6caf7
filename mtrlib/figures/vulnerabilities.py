"""Figures of vulnerabilities and errors: tables of cells, panels of a study, ratios, proxies."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter, LogLocator, NullFormatter, NullLocator

from mtrlib.figures.style import STYLE, closed, colour, letters_of, marker_of, named, task_legend
from mtrlib.metrics import tables
from mtrlib.tasks import TASKS, Task


def heat_maps(matrices: dict[str, pd.DataFrame], label: str) -> Figure:
    """Matrices main x auxiliary, two a row, each with its numbers; one colour scale for all of them says how many times
    the single-task model of the row a number is. It is logarithmic and ends at two times and at half at the latest.

    Parameters
    ----------
    matrices : by title, as `tables.matrix` and `published.vulnerability` give them.
    label : what the numbers are, with the unit.
    """
    # Each row relative to its single-task model: tasks differ by far more than their auxiliary tasks change.
    ratios = {title: _log_ratios(matrix.to_numpy(float)) for title, matrix in matrices.items()}
    largest = max((np.nanmax(np.abs(ratio), initial=0.0) for ratio in ratios.values()), default=0.0)
    limit = min(max(largest, 0.05), 1.0)
    with plt.rc_context(STYLE):
        columns = min(len(matrices), 2)
        rows = -(-len(matrices) // columns)
        size = (4.8 * columns + 1, 4.2 * rows + 0.4)
        figure, axes = plt.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained")
        for axis in axes.flat[len(matrices) :]:
            axis.set_visible(False)
        for axis, (title, matrix) in zip(axes.flat, matrices.items(), strict=False):
            picture = axis.imshow(ratios[title], cmap="PuOr_r", vmin=-limit, vmax=limit)
            for (row, column), value in np.ndenumerate(matrix.to_numpy(float)):
                if np.isfinite(value):
                    dark = abs(ratios[title][row, column]) > 0.6 * limit
                    text = {"color": "white" if dark else "black", "weight": "bold" if row == column else "normal"}
                    axis.text(column, row, tables.number(value), ha="center", va="center", **text)
            axis.set_xticks(range(len(matrix.columns)), matrix.columns)
            axis.set_yticks(range(len(matrix.index)), matrix.index)
            axis.set(xlabel="auxiliary task (diagonal: none)", ylabel="main task", title=title)
            axis.spines[:].set_visible(False)
        ends = "both" if largest > limit else "neither"
        colour_bar = figure.colorbar(picture, ax=axes, shrink=0.6, extend=ends, label="times the single-task model")
        ticks = limit * np.array([-1, -0.5, 0, 0.5, 1])
        colour_bar.set_ticks(ticks, labels=[f"{2**tick:.2f}" for tick in ticks])
        figure.suptitle(label, fontsize=12)
    return closed(figure)


def _log_ratios(values: np.ndarray) -> np.ndarray:
    """log2 of each number over the diagonal's of its row; nan, and so no colour, where one of them is not above 0."""
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = np.log2(values / np.diag(values)[:, None])
    return np.where(np.isfinite(ratios) & (values > 0), ratios, np.nan)


def errors(alone: pd.DataFrame, pairs: pd.DataFrame, tasks: dict[str, Task] | None = None) -> Figure:
    """The error of each main task under attack, by auxiliary task (the supplement's figures 1 to 11), three a row.

    Parameters
    ----------
    alone, pairs : the errors of single-task models and of two-task models, as `tables.mean_errors` gives them. A filled
        mark is an attack on the main task alone, an open one on both; the line is the single-task model.
    tasks : definitions of the data set's tasks, for their names and units; None for the paper's.
    """
    known = TASKS if tasks is None else tasks
    mains = list(dict.fromkeys(alone.main))
    with plt.rc_context(STYLE):
        columns = 2 if len(mains) == 4 else min(len(mains), 3)
        rows = -(-len(mains) // columns)
        size = (3.7 * columns + 1.8, 3.1 * rows)
        figure, axes = plt.subplots(rows, columns, figsize=size, layout="constrained", squeeze=False)
        for axis in axes.flat[len(mains) :]:
            axis.set_visible(False)
        for axis, main in zip(axes.flat, mains, strict=False):
            single = alone[alone.main == main].iloc[0]
            axis.axhspan(single.low, single.high, color="0.9", zorder=0)
            axis.axhline(single.value, color="0.4", linewidth=1, zorder=1)
            letters = [letter for letter in mains if letter != main]
            for row in pairs[pairs.main == main].to_dict("records"):
                joint = row["attacked"] == "joint"
                shade = colour(row["auxiliary"])
                axis.errorbar(
                    letters.index(row["auxiliary"]) + (0.15 if joint else -0.15),
                    row["value"],
                    yerr=[[max(row["value"] - row["low"], 0)], [max(row["high"] - row["value"], 0)]],
                    fmt=marker_of(row["auxiliary"]),
                    color=shade,
                    markerfacecolor="white" if joint else shade,
                    capsize=2,
                )
            axis.set_xticks(range(len(letters)), letters)
            unit = known[main].unit if main in known else "error"
            axis.set(xlabel="auxiliary task", ylabel=unit, title=named(main, tasks))
            axis.set_xlim(-0.6, len(letters) - 0.4)
        fill = {"filled: main task attacked": "0.4", "open: both attacked": "white"}
        handles = [
            plt.Line2D([], [], color="0.4", marker="o", markerfacecolor=face, linestyle="", label=label)
            for label, face in fill.items()
        ]
        handles.append(plt.Line2D([], [], color="0.4", linewidth=1, label="single-task model"))
        figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False)
    return closed(figure)


def lines(
    table: pd.DataFrame, xlabel: str, ylabel: str, *, log: bool = False, tasks: dict[str, Task] | None = None
) -> Figure:
    """One panel a main task, a line an auxiliary task over the settings of a study's panel, with 95 % intervals.

    Parameters
    ----------
    table : as `tables.vulnerabilities` gives it, of one panel.
    xlabel, ylabel : names of the axes, with units.
    log : both axes logarithmic.
    tasks : definitions of the data set's tasks, for their names and units; None for the paper's.
    """
    mains = letters_of(table.main)
    with plt.rc_context(STYLE):
        size = (3.6 * len(mains) + 1.6, 3.6)
        figure, axes = plt.subplots(1, len(mains), figsize=size, sharex=True, layout="constrained", squeeze=False)
        for axis, main in zip(axes[0], mains, strict=True):
            rows = table[(table.main == main) & (table.attacked == "single")]
            order = [main, *letters_of(set(rows.auxiliary) - {main})]
            for offset, auxiliary in enumerate(order):
                line = rows[rows.auxiliary == auxiliary].sort_values("setting")
                x = line.setting.to_numpy(float)
                shift = 1 + 0.02 * (offset - len(order) / 2)
                axis.errorbar(
                    x * shift,
                    line.value,
                    yerr=[np.maximum(line.value - line.low, 0), np.maximum(line.high - line.value, 0)],
                    color=colour(auxiliary),
                    marker=marker_of(auxiliary),
                    linewidth=2.5 if auxiliary == main else 1.5,
                    linestyle="-" if auxiliary == main else "--",
                    capsize=2,
                )
            if log:
                axis.set(xscale="log", yscale="log")
                axis.yaxis.set_major_formatter(LogFormatter(labelOnlyBase=False))
                axis.yaxis.set_minor_formatter(LogFormatter(labelOnlyBase=False, minor_thresholds=(1, 0.4)))
            axis.set_xticks(x, [f"{value:g}" for value in x])
            axis.xaxis.set_minor_locator(NullLocator())
            axis.set(title=f"main task {main}", xlabel=xlabel)
        axes[0][0].set_ylabel(ylabel)
        task_legend(figure, letters_of(table.auxiliary), tasks)
    return closed(figure)


def bars(table: pd.DataFrame, label: str, value: str, xlabel: str) -> Figure:
    """A value with its 95 % interval (columns low and high) for each name in the column `label`."""
    with plt.rc_context(STYLE):
        figure, axis = plt.subplots(figsize=(7.2, 0.42 * len(table) + 1.2), layout="constrained")
        ends = [np.maximum(table[value] - table.low, 0), np.maximum(table.high - table[value], 0)]
        axis.errorbar(table[value], range(len(table)), xerr=ends, fmt="o", color="black", capsize=2)
        axis.set_yticks(range(len(table)), table[label])
        axis.invert_yaxis()
        axis.set(xlabel=xlabel)
    return closed(figure)


def ratios(table: pd.DataFrame, label: str, xlabel: str) -> Figure:
    """Ratios with their 95 % intervals, a line each, single (filled) and joint attacks (open) side by side.

    Parameters
    ----------
    table : as `tables.mean_ratio` gives it, grouped by `label` and "attacked".
    label : the column that names the lines.
    xlabel : what over what.
    """
    names = list(dict.fromkeys(table[label]))
    with plt.rc_context(STYLE):
        figure, axis = plt.subplots(figsize=(7.2, 0.42 * len(names) + 1.6), layout="constrained")
        axis.axvline(1, color="0.6", linewidth=1)
        for offset, (attacked, fill) in enumerate((("single", "black"), ("joint", "white"))):
            rows = table[table.attacked == attacked]
            place = [names.index(name) + 0.24 * (offset - 0.5) for name in rows[label]]
            ends = [np.maximum(rows.ratio - rows.low, 0), np.maximum(rows.high - rows.ratio, 0)]
            style = {"fmt": "o", "color": "black", "markerfacecolor": fill, "capsize": 2}
            axis.errorbar(rows.ratio, place, xerr=ends, label=attacked, **style)
        axis.set_yticks(range(len(names)), names)
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
        axis.legend(title="attack", frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    return closed(figure)


def proxies(cells: pd.DataFrame, target: str, names: list[str], tasks: dict[str, Task] | None = None) -> Figure:
    """The target over each proxy, three panels a row, both logarithmic where they are above 0.

    Parameters
    ----------
    cells : as `selection.pivot` gives it. The colour is the main task, the marker the auxiliary one ("x" without one);
        rings mark each main task's choice by the proxy, squares the best one.
    target, names : the column on the vertical axis, those on the horizontal ones.
    tasks : definitions of the data set's tasks, for their names and units; None for the paper's.
    """
    mains = letters_of(cells.main)
    with plt.rc_context(STYLE):
        rows = -(-len(names) // 3)
        size = (11.5, 3.4 * rows)
        figure, axes = plt.subplots(rows, 3, figsize=size, sharey=True, layout="constrained", squeeze=False)
        for axis in axes.flat[len(names) :]:
            axis.set_visible(False)
        for axis, name in zip(axes.flat, names, strict=False):
            for main, group in cells.groupby("main", sort=False):
                for row in group.to_dict("records"):
                    marker = "x" if row["auxiliary"] == main else marker_of(row["auxiliary"])
                    axis.plot(row[name], row[target], marker, color=colour(main), markersize=7)
                pairs = group[group.auxiliary != main]
                for column, ring in ((name, "o"), (target, "s")):
                    best = pairs.loc[pairs[column].idxmin()]
                    axis.plot(best[name], best[target], ring, markersize=14, mfc="none", mec=colour(main), mew=1.2)
            if (cells[name] > 0).all() and (cells[target] > 0).all():
                axis.set(xscale="log", yscale="log")
                for side, values in ((axis.xaxis, cells[name]), (axis.yaxis, cells[target])):
                    decades = np.log10(values.max() / values.min())
                    side.set_major_locator(LogLocator(subs=(1, 2, 5) if decades < 1.5 else (1,)))
                    side.set_major_formatter("{x:g}")
                    side.set_minor_formatter(NullFormatter())
            axis.set(xlabel=f"{name}\n({_unit(name)})")
        for row in axes:
            row[0].set_ylabel(f"{target}\n({_unit(target)})")
        colours = [
            plt.Line2D([], [], color=colour(x), marker="o", linestyle="", label=f"main {named(x, tasks)}")
            for x in mains
        ]
        shapes = [plt.Line2D([], [], color="0.4", marker=marker_of(x), linestyle="", label=f"with {x}") for x in mains]
        shapes.append(plt.Line2D([], [], color="0.4", marker="x", linestyle="", label="alone"))
        for ring, what in (("o", "the proxy's choice"), ("s", "the best choice")):
            shapes.append(
                plt.Line2D([], [], marker=ring, markersize=13, mfc="none", mec="0.4", linestyle="", label=what)
            )
        figure.legend(handles=colours + shapes, loc="outside right upper", frameon=False)
    return closed(figure)


def _unit(name: str) -> str:
    other = {"clean error": "in the unit of the task", "adversarial error": "in the unit of the task"}
    other["first order"] = "relative increase of the loss"
    return other.get(name, "relative task vulnerability")
