"""Figures of the theory and of attacks: orders of tasks, predictions against measurement, how losses rise."""

from __future__ import annotations

from itertools import cycle, permutations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from mtrlib.figures.style import colour, letters_of, mark, marker_of, panels, styled, task_marks
from mtrlib.tasks import Task, canonical


@styled
def chains(
    table: pd.DataFrame, orders: list[str], *, background: bool = True, tasks: dict[str, Task] | None = None
) -> Figure:
    """Adversarial vulnerability as tasks are added, a panel a weighting: one line an order, and at each step the colour
    and marker of the task that it adds. `table` is as `marginal.vulnerabilities` gives it, of one panel and setting;
    `orders` are drawn in black over all orders of the tasks and their mean in grey, the `background`.
    """
    weightings = list(dict.fromkeys(table.weighting))
    letters = letters_of([*orders, *(table.tasks if background else ())])
    styles = list(zip(orders, cycle(["-", "--", "-.", ":", (0, (5, 1)), (0, (1, 3))]), strict=False))
    figure, axes = panels(len(weightings), len(weightings), (4.6, 4.0), (2.2, 0))
    for axis, weighting in zip(axes[0], weightings, strict=True):
        value = table[table.weighting == weighting].set_index("tasks").value

        def line(order: tuple[str, ...] | str, value=value) -> list[float]:
            return [value[canonical("".join(order[:k]))] for k in range(1, len(order) + 1)]

        if background:
            everything = np.array([line(order) for order in permutations(canonical("".join(letters)))])
            numbers = np.arange(1, everything.shape[1] + 1)
            axis.plot(numbers, everything.T, color="0.85", linewidth=1, zorder=0)
            axis.plot(numbers, everything.mean(axis=0), color="0.5", linewidth=4, zorder=1)
        for order, style in styles:
            points = line(order)
            axis.plot(range(1, len(order) + 1), points, color="black", linestyle=style, linewidth=1.3, zorder=2)
            for k, letter in enumerate(order, start=1):
                axis.plot(k, points[k - 1], marker=marker_of(letter), color=colour(letter), markersize=8, zorder=3)
        axis.set_xticks(range(1, len(letters) + 1))
        axis.set(xlabel="attacked tasks", title={"sum": "losses summed", "mean": "weights 1/N"}[weighting])
    axes[0][0].set_ylabel("adversarial vulnerability\n(unit of the losses)")
    handles = task_marks(letters, tasks) + [mark(order, color="black", linestyle=style) for order, style in styles]
    if background:
        handles.append(mark("mean of all orders", color="0.5", linewidth=4, linestyle="-"))
    figure.legend(handles=handles, loc="outside right upper", frameon=False, title="task added, order")
    return figure


@styled
def predicted(steps: pd.DataFrame, names: dict[str, str], tasks: dict[str, Task] | None = None) -> Figure:
    """Measured marginal vulnerability over what the theory predicts, a column a prediction and a row a norm, with the
    line of equality; the colour is that of the added task. `steps` are as `marginal.predictions` gives them, of one
    weighting, with a column `norm`; `names` are the columns to draw, with their titles.
    """
    norms = list(dict.fromkeys(steps.norm))
    letters = letters_of(steps.added)
    figure, axes = panels(len(norms) * len(names), len(names), (3.4, 3.2), (1.8, 0))
    for row, norm in zip(axes, norms, strict=True):
        group = steps[steps.norm == norm]
        for axis, (name, title) in zip(row, names.items(), strict=True):
            for letter in letters:
                rows = group[group.added == letter]
                axis.plot(rows[name], rows.measured, marker_of(letter), color=colour(letter), alpha=0.8)
            ends = [min(group[name].min(), group.measured.min()), max(group[name].max(), group.measured.max())]
            axis.plot(ends, ends, color="0.6", linewidth=1, zorder=0)
            axis.set(title=f"{title}, {norm}")
        row[0].set_ylabel("measured")
    figure.supxlabel("predicted marginal vulnerability (unit of the losses)", fontsize=12)
    handles = task_marks(letters, tasks)
    figure.legend(handles=handles, loc="outside right upper", frameon=False, title="task added")
    return figure


@styled
def curves(table: pd.DataFrame) -> Figure:
    """The best joint loss so far by step of an attack, a panel a model, a line an attack. Lines have styles and shades
    of grey, since colours mean tasks. `table` is as `masking.curves` gives it."""
    groups = list(table.groupby(["weights", "tasks"], sort=False))
    styles = ["-", "--", "-.", ":", (0, (1, 3)), (0, (5, 4)), (0, (7, 2, 1, 2, 1, 2))]
    figure, axes = panels(len(groups), len(groups), (4.2, 3.8), (1.8, 0))
    for axis, ((weights, tasks), rows) in zip(axes[0], groups, strict=True):
        for number, (attack, line) in enumerate(rows.groupby("attack", sort=False)):
            style = {"color": str(0.55 * (number % 3) / 2), "linestyle": styles[number % len(styles)], "linewidth": 2}
            axis.plot(line.step, line.best, label=attack, marker="osD^vP*"[number % 7], markevery=0.2, **style)
        axis.set(title=f"{tasks}, {weights} weights", xlabel="attack steps")
    axes[0][0].set_ylabel("joint loss, best so far\n(mean over images)")
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper", frameon=False, title="attack")
    return figure
