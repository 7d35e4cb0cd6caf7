"""Figures of the theory and of attacks: orders of tasks, predictions against measurement, how losses rise."""

from collections.abc import Iterable
from itertools import accumulate, cycle, permutations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from mtrlib.figures.style import colour, letters_of, mark, marker_of, panels, styled, task_marks
from mtrlib.models.own import short
from mtrlib.tasks import Task, canonical


@styled()
def chains(
    table: pd.DataFrame, orders: list[str], *, background: bool = True, tasks: dict[str, Task] | None = None
) -> Figure:
    """Adversarial vulnerability as tasks are added, a panel a weighting: one line an order, and at each step the colour
    and marker of the task that it adds. `table` is as `marginal.vulnerabilities` gives it, of one panel and setting;
    `orders` are drawn in black over all orders of the tasks and their mean in grey, the `background`.
    """
    groups = list(table.groupby("weighting", sort=False))
    letters = letters_of([*orders, *(table.tasks if background else ())])
    numbers = range(1, len(letters) + 1)
    styles = dict(zip(orders, cycle(["-", "--", "-.", ":", (0, (5, 1)), (0, (1, 3))]), strict=False))
    figure, axes = panels(len(groups), len(groups), (4.6, 4.0), (2.2, 0))
    for axis, (weighting, rows) in zip(axes[0], groups, strict=True):
        value = rows.set_index("tasks").value.to_dict()
        if background:
            every = np.array([_path(value, order) for order in permutations(letters)])
            axis.plot(numbers, every.T, color="0.85", linewidth=1, zorder=0)
            axis.plot(numbers, every.mean(axis=0), color="0.5", linewidth=4, zorder=1)
        for order, style in styles.items():
            path = _path(value, order)
            axis.plot(numbers[: len(order)], path, color="black", linestyle=style, linewidth=1.3, zorder=2)
            for x, y, letter in zip(numbers, path, order, strict=False):
                axis.plot(x, y, marker=marker_of(letter), color=colour(letter), markersize=8, zorder=3)
        axis.set_xticks(numbers)
        axis.set(xlabel="attacked tasks", title={"sum": "losses summed", "mean": "weights 1/N"}[weighting])
    axes[0][0].set_ylabel("adversarial vulnerability\n(unit of the losses)")
    handles = task_marks(letters, tasks)
    handles += [mark(order, color="black", linestyle=style) for order, style in styles.items()]
    if background:
        handles.append(mark("mean of all orders", color="0.5", linewidth=4, linestyle="-"))
    figure.legend(handles=handles, loc="outside right upper", title="task added, order")
    return figure


def _path(value: dict[str, float], order: Iterable[str]) -> list[float]:
    """The values of the task sets that an order goes through."""
    return [value[canonical(tasks)] for tasks in accumulate(order)]


@styled()
def predicted(steps: pd.DataFrame, names: dict[str, str], tasks: dict[str, Task] | None = None) -> Figure:
    """Measured marginal vulnerability over what the theory predicts, a column a prediction and a row a norm, with the
    line of equality; the colour is that of the added task. `steps` are as `marginal.predictions` gives them, of one
    weighting, with a column `norm`; `names` are the columns to draw, with their titles.
    """
    groups = list(steps.groupby("norm", sort=False))
    letters = letters_of(steps.added)
    figure, axes = panels(len(groups) * len(names), len(names), (3.4, 3.2), (1.8, 0))
    for line, (norm, rows) in zip(axes, groups, strict=True):
        for axis, (name, title) in zip(line, names.items(), strict=True):
            for letter in letters:
                own = rows[rows.added == letter]
                axis.plot(own[name], own.measured, marker_of(letter), color=colour(letter), alpha=0.8)
            both = rows[[name, "measured"]]
            ends = [both.min(axis=None), both.max(axis=None)]
            axis.plot(ends, ends, color="0.6", linewidth=1, zorder=0)
            axis.set(title=f"{title}, {norm}")
        line[0].set_ylabel("measured")
    figure.supxlabel("predicted marginal vulnerability (unit of the losses)", fontsize=12)
    figure.legend(handles=task_marks(letters, tasks), loc="outside right upper", title="task added")
    return figure


@styled()
def curves(table: pd.DataFrame) -> Figure:
    """The best joint loss so far by step of an attack, a panel a model, a line an attack. Lines have styles and shades
    of grey, since colours mean tasks. `table` is as `masking.curves` gives it."""
    groups = list(table.groupby(["weights", "tasks"], sort=False))
    styles = ["-", "--", "-.", ":", (0, (1, 3)), (0, (5, 4)), (0, (7, 2, 1, 2, 1, 2))]
    figure, axes = panels(len(groups), len(groups), (4.2, 3.8), (1.8, 0))
    for axis, ((weights, tasks), rows) in zip(axes[0], groups, strict=True):
        for number, (attack, line) in enumerate(rows.groupby("attack", sort=False)):
            style = {"color": str(0.55 * (number % 3) / 2), "linestyle": styles[number % 7], "linewidth": 2}
            axis.plot(line.step, line.best, label=short(attack), marker="osD^vP*"[number % 7], markevery=0.2, **style)
        axis.set(title=f"{tasks}, {weights} weights", xlabel="attack steps")
    axes[0][0].set_ylabel("joint loss, best so far\n(mean over images)")
    figure.legend(*axes[0][0].get_legend_handles_labels(), loc="outside right upper", title="attack")
    return figure
