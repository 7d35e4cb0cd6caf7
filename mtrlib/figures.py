"""The figures of the notebooks. A task has one colour and marker everywhere (Okabe and Ito's colours first, which the
colour-blind can tell apart); axes carry units; text is readable at half size."""

from __future__ import annotations

from itertools import cycle, permutations
from pathlib import Path
from string import ascii_letters

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, NullLocator

from mtrlib.tasks import TASKS, Task, canonical

_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_COLOURS += ("#7F3C8D", "#000000", "#A5AA99", "#8C510A", "#666666")
_ORDER = "sdDnEkKeprA"
COLOURS = dict(zip(_ORDER, _COLOURS, strict=True))
MARKERS = dict(zip(_ORDER, "osD^vPX*<>h", strict=True))
# Of the letters that are not the paper's: Paul Tol's muted colours, and 63 pairs for the 52 letters there are.
_NEW_COLOURS = ("#332288", "#88CCEE", "#44AA99", "#117733", "#999933", "#DDCC77", "#CC6677", "#882255", "#AA4499")
_NEW_MARKERS = "pd8H1X3"
_STYLE = {"font.size": 12, "axes.spines.top": False, "axes.spines.right": False, "figure.dpi": 100}
_CLASS_COLOURS = plt.get_cmap("tab20").colors


def colour(letter: str) -> str:
    """The colour of a task, the same in every figure."""
    return COLOURS.get(letter) or _NEW_COLOURS[ascii_letters.index(letter) % len(_NEW_COLOURS)]


def marker_of(letter: str) -> str:
    """The marker of a task, the same in every figure."""
    return MARKERS.get(letter) or _NEW_MARKERS[ascii_letters.index(letter) % len(_NEW_MARKERS)]


def heat_maps(matrices: dict[str, pd.DataFrame], label: str) -> Figure:
    """Matrices main x auxiliary, two a row, each with its numbers and a logarithmic colour scale of its own.

    Parameters
    ----------
    matrices : by title, as `tables.matrix` and `published.vulnerability` give them.
    label : what the numbers are, with the unit.
    """
    with plt.rc_context(_STYLE):
        columns = min(len(matrices), 2)
        rows = -(-len(matrices) // columns)
        size = (4.8 * columns, 4.2 * rows + 0.6)
        figure, axes = plt.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained")
        for axis, (title, matrix) in zip(axes.flat, matrices.items(), strict=True):
            values = matrix.to_numpy(float)
            # Each row relative to its single-task model: tasks differ by far more than their auxiliary tasks change.
            with np.errstate(divide="ignore", invalid="ignore"):
                ratio = np.log2(values / np.diag(values)[:, None])
            ratio[~np.isfinite(ratio)] = np.nan  # no colour where a vulnerability is not above 0
            limit = max(np.nanmax(np.abs(ratio), initial=0.0), 0.05)
            axis.imshow(ratio, cmap="PuOr_r", vmin=-limit, vmax=limit)
            for (row, column), value in np.ndenumerate(values):
                if np.isfinite(value):
                    dark = abs(ratio[row, column]) > 0.6 * limit
                    text = {"color": "white" if dark else "black", "weight": "bold" if row == column else "normal"}
                    axis.text(column, row, f"{value:.2f}", ha="center", va="center", **text)
            axis.set_xticks(range(len(matrix.columns)), matrix.columns)
            axis.set_yticks(range(len(matrix.index)), matrix.index)
            axis.set(xlabel="auxiliary task (diagonal: none)", ylabel="main task", title=title)
            axis.spines[:].set_visible(False)
        figure.suptitle(f"{label}\norange: above the single-task model of the row, violet: below", fontsize=12)
    return _closed(figure)


def errors(alone: pd.DataFrame, pairs: pd.DataFrame) -> Figure:
    """The error of each main task under attack, by auxiliary task (the supplement's figures 1 to 11), three a row.

    Parameters
    ----------
    alone, pairs : the errors of single-task models and of two-task models, as `tables.mean_errors` gives them. A filled
        mark is an attack on the main task alone, an open one on both; the line is the single-task model.
    """
    mains = list(dict.fromkeys(alone.main))
    with plt.rc_context(_STYLE):
        columns = min(len(mains), 3)
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
            axis.set(xlabel="auxiliary task", ylabel=TASKS[main].unit if main in TASKS else "error", title=_named(main))
            axis.set_xlim(-0.6, len(letters) - 0.4)
        fill = {"filled: main task attacked": "0.4", "open: both attacked": "white"}
        handles = [
            plt.Line2D([], [], color="0.4", marker="o", markerfacecolor=face, linestyle="", label=label)
            for label, face in fill.items()
        ]
        handles.append(plt.Line2D([], [], color="0.4", linewidth=1, label="single-task model"))
        figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False)
    return _closed(figure)


def lines(table: pd.DataFrame, xlabel: str, ylabel: str, *, log: bool = False) -> Figure:
    """One panel a main task, a line an auxiliary task over the settings of a study's panel, with 95 % intervals.

    Parameters
    ----------
    table : as `tables.vulnerabilities` gives it, of one panel.
    xlabel, ylabel : names of the axes, with units.
    log : both axes logarithmic.
    """
    mains = _letters(table.main)
    with plt.rc_context(_STYLE):
        size = (3.6 * len(mains) + 1.6, 3.6)
        figure, axes = plt.subplots(1, len(mains), figsize=size, sharex=True, layout="constrained", squeeze=False)
        for axis, main in zip(axes[0], mains, strict=True):
            rows = table[(table.main == main) & (table.attacked == "single")]
            order = [main, *_letters(set(rows.auxiliary) - {main})]
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
            axis.set_xticks(x, [f"{value:g}" for value in x])
            axis.xaxis.set_minor_locator(NullLocator())
            axis.set(title=f"main task {main}", xlabel=xlabel)
        axes[0][0].set_ylabel(ylabel)
        _task_legend(figure, _letters(table.auxiliary))
    return _closed(figure)


def chains(table: pd.DataFrame, orders: list[str], *, background: bool = True) -> Figure:
    """Adversarial vulnerability as tasks are added, a panel a weighting: one line an order, and at each step the colour
    and marker of the task that it adds.

    Parameters
    ----------
    table : as `marginal.vulnerabilities` gives it, of one panel and setting.
    orders : the orders to draw in black.
    background : draw all orders of the tasks in grey, and their mean.
    """
    styles = ["-", "--", "-.", ":", (0, (5, 1)), (0, (1, 3))]
    weightings = list(dict.fromkeys(table.weighting))
    drawn = "".join(orders) + ("".join(table.tasks) if background else "")
    letters = _letters(drawn)
    styled = list(zip(orders, cycle(styles), strict=False))
    with plt.rc_context(_STYLE):
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
            plt.Line2D([], [], color=colour(x), marker=marker_of(x), linestyle="", label=_named(x)) for x in letters
        ]
        handles += [plt.Line2D([], [], color="black", linestyle=style, label=order) for order, style in styled]
        if background:
            handles.append(plt.Line2D([], [], color="0.5", linewidth=4, label="mean of all orders"))
        figure.legend(handles=handles, loc="outside right upper", frameon=False, title="task added, order")
    return _closed(figure)


def proxies(cells: pd.DataFrame, target: str, names: list[str]) -> Figure:
    """The target over each proxy, three panels a row, both logarithmic where they are above 0.

    Parameters
    ----------
    cells : as `selection.pivot` gives it. The colour is the main task, the marker the auxiliary one ("x" without one);
        rings mark each main task's choice by the proxy, squares the best one.
    target, names : the column on the vertical axis, those on the horizontal ones.
    """
    mains = _letters(cells.main)
    with plt.rc_context(_STYLE):
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
                axis.xaxis.set_minor_formatter(NullFormatter())
                axis.yaxis.set_minor_formatter(NullFormatter())
            axis.set(xlabel=name)
        for row in axes:
            row[0].set_ylabel(target)
        colours = [plt.Line2D([], [], color=colour(x), marker="o", linestyle="", label=f"main {x}") for x in mains]
        shapes = [plt.Line2D([], [], color="0.4", marker=marker_of(x), linestyle="", label=f"with {x}") for x in mains]
        shapes.append(plt.Line2D([], [], color="0.4", marker="x", linestyle="", label="alone"))
        for ring, what in (("o", "the proxy's choice"), ("s", "the best choice")):
            shapes.append(
                plt.Line2D([], [], marker=ring, markersize=13, mfc="none", mec="0.4", linestyle="", label=what)
            )
        figure.legend(handles=colours + shapes, loc="outside right upper", frameon=False)
    return _closed(figure)


def bars(table: pd.DataFrame, label: str, value: str, xlabel: str) -> Figure:
    """A value with its 95 % interval (columns low and high) for each name in the column `label`."""
    with plt.rc_context(_STYLE):
        figure, axis = plt.subplots(figsize=(7.2, 0.42 * len(table) + 1.2), layout="constrained")
        ends = [np.maximum(table[value] - table.low, 0), np.maximum(table.high - table[value], 0)]
        axis.errorbar(table[value], range(len(table)), xerr=ends, fmt="o", color="black", capsize=2)
        axis.set_yticks(range(len(table)), table[label])
        axis.invert_yaxis()
        axis.set(xlabel=xlabel)
    return _closed(figure)


def predicted(steps: pd.DataFrame, names: dict[str, str]) -> Figure:
    """Measured marginal vulnerability over what the theory predicts, a column a prediction and a row a norm, with the
    line of equality; the colour is that of the added task.

    Parameters
    ----------
    steps : marginals as `marginal.predictions` gives them, of one weighting, with a column `norm`.
    names : columns to draw, with their titles.
    """
    norms = list(dict.fromkeys(steps.norm))
    letters = _letters(steps.added)
    with plt.rc_context(_STYLE):
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
            plt.Line2D([], [], color=colour(x), marker=marker_of(x), linestyle="", label=_named(x)) for x in letters
        ]
        figure.legend(handles=handles, loc="outside right upper", frameon=False, title="task added")
    return _closed(figure)


def ratios(table: pd.DataFrame, label: str, xlabel: str) -> Figure:
    """Ratios with their 95 % intervals, a line each, single (filled) and joint attacks (open) side by side.

    Parameters
    ----------
    table : as `tables.mean_ratio` gives it, grouped by `label` and "attacked".
    label : the column that names the lines.
    xlabel : what over what.
    """
    names = list(dict.fromkeys(table[label]))
    with plt.rc_context(_STYLE):
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
        fine, coarse = (0.5, 0.6, 0.7, 0.8, 0.9, 1, 1.1, 1.2, 1.4, 1.6, 1.8, 2, 2.5), (0.1, 0.2, 0.5, 1, 2, 5, 10, 20)
        ticks = [tick for tick in (fine if high / low < 3 else coarse) if low <= tick <= high]
        axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axis.xaxis.set_minor_locator(NullLocator())
        axis.legend(title="attack", frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    return _closed(figure)


def climb(curves: pd.DataFrame) -> Figure:
    """How attacks climb, a panel a model: the best joint loss so far by step, a line an attack. Lines have styles and
    shades of grey, since colours mean tasks.

    Parameters
    ----------
    curves : as `masking.curves` gives it.
    """
    groups = list(curves.groupby(["weights", "tasks"], sort=False))
    styles = ["-", "--", "-.", ":", (0, (1, 3)), (0, (5, 4)), (0, (7, 2, 1, 2, 1, 2))]
    with plt.rc_context(_STYLE):
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
    return _closed(figure)


def images(
    rows: dict[str, dict[str, torch.Tensor]], classes: tuple[str, ...], tasks: dict[str, Task] | None = None
) -> Figure:
    """A grid of pictures: a row each entry, a column each of its pictures.

    Parameters
    ----------
    rows : by title of the row, then of the column. Under a task letter stands a target or an output: (H, W) class
        indices, or (C, H, W) values, or logits of classes; under any other name (3, H, W) colours in [0, 1]. NaN is
        white: see `labels`. The title of a column is written where it differs from that of the row above.
    classes : names of the classes of s.
    tasks : definitions of the tasks, as `Dataset.tasks`; None for the paper's. Values of a channel whose definition is
        not the paper's are shown over the range that all pictures of the task have, those of three in their colours.
    """
    tasks = TASKS if tasks is None else tasks
    names = {letter: task.class_names for letter, task in tasks.items() if task.kind == "classes"} | {"s": classes}
    limits = _limits(rows, tasks)
    with plt.rc_context(_STYLE):
        width = max(len(row) for row in rows.values())
        size = (2.1 * width + 0.4, 2.25 * len(rows) + 0.5)
        figure, axes = plt.subplots(len(rows), width, figsize=size, squeeze=False, layout="constrained")
        for axis in axes.flat:
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set_visible(False)
        shown: dict[str, set[int]] = {}
        above: list[str] = []
        for number, (name, row) in enumerate(rows.items()):
            axes[number][0].set_ylabel(name)
            for column, (title, picture) in enumerate(row.items()):
                if above[column : column + 1] != [title]:
                    full = f"{title}: {tasks[title].name}" if title in tasks else title
                    axes[number][column].set_title(full, fontsize=11)
                if title in names:
                    picture = picture.argmax(dim=0) if picture.dim() == 3 else picture
                    shown.setdefault(title, set()).update(picture[~picture.isnan()].unique().tolist())
                values = picture.detach().float().cpu().numpy()
                _show(axes[number][column], title, values, tasks.get(title), len(names.get(title, ())), limits)
            above = list(row)
        for place, (letter, found) in zip(("center", "left", "right"), shown.items(), strict=False):
            indices = sorted(int(index) for index in found)
            patches = [plt.Rectangle((0, 0), 1, 1, color=_class_colour(index)) for index in indices]
            named = [names[letter][index] if index < len(names[letter]) else str(index) for index in indices]
            style = {"ncols": 6 if len(shown) == 1 else 3, "frameon": False, "title": f"classes of {letter}"}
            figure.legend(patches, named, loc=f"outside lower {place}", **style)
    return _closed(figure)


def labels(
    targets: dict[str, torch.Tensor], masks: dict[str, torch.Tensor | None], row: int
) -> dict[str, torch.Tensor]:
    """Targets of one image for `images`, with NaN where there is no label; targets and masks as in `Dataset`."""
    return {
        letter: values[row] if masks[letter] is None else values[row].float().where(masks[letter][row], torch.nan)
        for letter, values in targets.items()
    }


def write(folder: Path, name: str, **figures: Figure) -> None:
    """Write figures as `<folder>/<name>_<figure>.png`, at 100 dots an inch, and as `.svg`; the same figure gives the
    same bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    for title, figure in figures.items():
        figure.savefig(folder / f"{name}_{title}.png", dpi=100)
        with plt.rc_context({"svg.hashsalt": title}):
            figure.savefig(folder / f"{name}_{title}.svg", metadata={"Date": None})


def _letters(found) -> list[str]:
    return list(canonical("".join(set(found))))


def _named(letter: str) -> str:
    return f"{letter}: {TASKS[letter].name}" if letter in TASKS else letter


def _class_colour(index: int) -> tuple[float, float, float]:
    return _CLASS_COLOURS[index % len(_CLASS_COLOURS)]


def _limits(rows: dict[str, dict[str, torch.Tensor]], tasks: dict[str, Task]) -> dict[str, tuple[float, float]]:
    """The range of values of the tasks of one channel: fixed for the paper's, measured for others."""
    limits = {}
    for title, task in tasks.items():
        pictures = [row[title].detach().float() for row in rows.values() if title in row]
        if task.kind == "regression" and task.channels == 1 and pictures:
            limits[title] = (0.54, 0.73) if title in "dD" else (-1.0, 1.0)
            if task != TASKS.get(title):
                known = [picture[~picture.isnan()] for picture in pictures]
                ends = [(picture.min().item(), picture.max().item()) for picture in known if len(picture)] or [(0, 1)]
                limits[title] = min(low for low, _ in ends), max(high for _, high in ends)
    return limits


def _show(axis, title: str, picture: np.ndarray, task: Task | None, classes: int, limits: dict) -> None:
    if task is not None and task.kind == "classes":
        classes = max(classes, int(np.nanmax(picture, initial=0)) + 1)
        colours = ListedColormap([_class_colour(index) for index in range(classes)])
        axis.imshow(picture, cmap=colours, vmin=-0.5, vmax=classes - 0.5, interpolation="nearest")
    elif title in limits:
        low, high = limits[title]
        axis.imshow(picture[0], cmap="cividis", interpolation="nearest", vmin=low, vmax=high)
    elif task is not None:  # [-1, 1]
        padded = np.pad(picture[:3], ((0, max(3 - len(picture), 0)), (0, 0), (0, 0)))  # two channels: red and green
        colours = np.nan_to_num(padded.transpose(1, 2, 0) / 2 + 0.5, nan=1.0)
        axis.imshow(colours.clip(0, 1), interpolation="nearest")
    else:
        axis.imshow(picture.transpose(1, 2, 0).clip(0, 1), interpolation="nearest")


def _task_legend(figure: Figure, letters: list[str]) -> None:
    handles = [plt.Line2D([], [], color=colour(x), marker=marker_of(x), label=_named(x)) for x in letters]
    figure.legend(handles=handles, loc="outside right upper", frameon=False, title="auxiliary task\n(solid: none)")


def _closed(figure: Figure) -> Figure:
    plt.close(figure)  # a notebook shows the returned figure once, not twice
    return figure
