"""Figures of the theory and of attacks: orders of tasks, predictions against measurement, how attacks climb."""

from __future__ import annotations

from itertools import cycle, permutations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from mtrlib.figures.style import STYLE, closed, colour, letters_of, marker_of, named
from mtrlib.tasks import Task, canonical


def chains(
    table: pd.DataFrame, orders: list[str], *, background: bool = True, tasks: dict[str, Task] | None = None
) -> Figure:
    """Adversarial vulnerability as tasks are added, a panel a weighting: one line an order, and at each step the colour
    and marker of the task that it adds.

    Parameters
    ----------
    table : as `marginal.vulnerabilities` gives it, of one panel and setting.
    orders : the orders to draw in black.
    background : draw all orders of the tasks in grey, and their mean.
    tasks : definitions of the data set's tasks, for their names and units; None for the paper's.
    """
    styles = ["-", "--", "-.", ":", (0, (5, 1)), (0, (1, 3))]
    weightings = list(dict.fromkeys(table.weighting))
    drawn = "".join(orders) + ("".join(table.tasks) if background else "")
    letters = letters_of(drawn)
    styled = list(zip(orders, cycle(styles), strict=False))
    with plt.rc_context(STYLE):
        size = (4.6 * len(weightings) + 2.2, 4.0)
        figure, axes = plt.subplots(1, len(weightings), figsize=size, layout="constrained", squeeze=False)
        for axis, weighting in zip(axes[0], weightings, strict=True):
            value = table[table.weighting == weighting].set_index("tasks").value

            def line(order: tuple[str, ...] | str, value=value) -> list[float]:
                return [value[canonical("".join(order[:k]))] for k in range(1, len(order) + 1)]

            if background:
                everything = np.array([line(order) for order in permutations(canonical("".join(letters)))])
                numbers = np.arange(1, everything.shape[1] + 1)
                axis.plot(numbers, everything.T, color="0.85", linewidth=1, zorder=0)
                axis.plot(numbers, everything.mean(axis=0), color="0.5", linewidth=4, zorder=1)
            for order, style in styled:
                points = line(order)
                axis.plot(range(1, len(order) + 1), points, color="black", linestyle=style, linewidth=1.3, zorder=2)
                for k, letter in enumerate(order, start=1):
                    axis.plot(k, points[k - 1], marker=marker_of(letter), color=colour(letter), markersize=8, zorder=3)
            axis.set_xticks(range(1, len(letters) + 1))
            axis.set(xlabel="attacked tasks", title={"sum": "losses summed", "mean": "weights 1/N"}[weighting])
        axes[0][0].set_ylabel("adversarial vulnerability\n(unit of the losses)")
        handles = [
            plt.Line2D([], [], color=colour(x), marker=marker_of(x), linestyle="", label=named(x, tasks))
            for x in letters
        ]
        handles += [plt.Line2D([], [], color="black", linestyle=style, label=order) for order, style in styled]
        if background:
            handles.append(plt.Line2D([], [], color="0.5", linewidth=4, label="mean of all orders"))
        figure.legend(handles=handles, loc="outside right upper", frameon=False, title="task added, order")
    return closed(figure)


def predicted(steps: pd.DataFrame, names: dict[str, str], tasks: dict[str, Task] | None = None) -> Figure:
    """Measured marginal vulnerability over what the theory predicts, a column a prediction and a row a norm, with the
    line of equality; the colour is that of the added task.

    Parameters
    ----------
    steps : marginals as `marginal.predictions` gives them, of one weighting, with a column `norm`.
    names : columns to draw, with their titles.
    tasks : definitions of the data set's tasks, for their names and units; None for the paper's.
    """
    norms = list(dict.fromkeys(steps.norm))
    letters = letters_of(steps.added)
    with plt.rc_context(STYLE):
        size = (3.4 * len(names) + 1.8, 3.2 * len(norms))
        figure, axes = plt.subplots(len(norms), len(names), figsize=size, layout="constrained", squeeze=False)
        for row, norm in enumerate(norms):
            for column, (name, title) in enumerate(names.items()):
                axis, group = axes[row][column], steps[steps.norm == norm]
                for letter in letters:
                    rows = group[group.added == letter]
                    axis.plot(rows[name], rows.measured, marker_of(letter), color=colour(letter), alpha=0.8)
                ends = [min(group[name].min(), group.measured.min()), max(group[name].max(), group.measured.max())]
                axis.plot(ends, ends, color="0.6", linewidth=1, zorder=0)
                axis.set(title=f"{title}, {norm}")
            axes[row][0].set_ylabel("measured")
        figure.supxlabel("predicted marginal vulnerability (unit of the losses)", fontsize=12)
        handles = [
            plt.Line2D([], [], color=colour(x), marker=marker_of(x), linestyle="", label=named(x, tasks))
            for x in letters
        ]
        figure.legend(handles=handles, loc="outside right upper", frameon=False, title="task added")
    return closed(figure)


def climb(curves: pd.DataFrame) -> Figure:
    """How attacks climb, a panel a model: the best joint loss so far by step, a line an attack. Lines have styles and
    shades of grey, since colours mean tasks.

    Parameters
    ----------
    curves : as `masking.curves` gives it.
    """
    groups = list(curves.groupby(["weights", "tasks"], sort=False))
    styles = ["-", "--", "-.", ":", (0, (1, 3)), (0, (5, 4)), (0, (7, 2, 1, 2, 1, 2))]
    with plt.rc_context(STYLE):
        size = (4.2 * len(groups) + 1.8, 3.8)
        figure, axes = plt.subplots(1, len(groups), figsize=size, layout="constrained", squeeze=False)
        for axis, ((weights, tasks), rows) in zip(axes[0], groups, strict=True):
            for number, (attack, line) in enumerate(rows.groupby("attack", sort=False)):
                shade = str(0.55 * (number % 3) / 2)
                style = {"color": shade, "linestyle": styles[number % len(styles)], "linewidth": 2}
                axis.plot(line.step, line.best, label=attack, marker="osD^vP*"[number % 7], markevery=0.2, **style)
            axis.set(title=f"{tasks}, {weights} weights", xlabel="attack steps")
        axes[0][0].set_ylabel("joint loss, best so far\n(mean over images)")
        handles, labels = axes[0][0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside right upper", frameon=False, title="attack")
    return closed(figure)
