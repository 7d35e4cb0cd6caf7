"""What all figures share: a task has one colour and marker everywhere (Okabe and Ito's colours first, which the
colour-blind can tell apart), panels stand in rows, legends name tasks."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from functools import wraps
from pathlib import Path
from string import ascii_letters

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.colors import hsv_to_rgb, to_hex
from matplotlib.figure import Figure

from mtrlib.tasks import TASKS, Task, canonical

_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_COLOURS += ("#7F3C8D", "#000000", "#A5AA99", "#8C510A", "#666666")
_ORDER = "sdDnEkKeprA"
COLOURS = dict(zip(_ORDER, _COLOURS, strict=True))
MARKERS = dict(zip(_ORDER, "osD^vPX*<>h", strict=True))
# Of the letters that are not the paper's: a hue of its own for each of the 52 there are, and seven markers.
_NEW_COLOURS = tuple(to_hex(hsv_to_rgb((0.61803 * k % 1, 0.75, 0.9 - 0.2 * (k % 3)))) for k in range(52))
_NEW_MARKERS = "pd8H1X3"
STYLE = {"font.size": 12, "axes.spines.top": False, "axes.spines.right": False, "figure.dpi": 100}
STYLE |= {"text.parse_math": False}  # names come from users: a dollar is a dollar


def colour(letter: str) -> str:
    """The colour of a task, the same in every figure."""
    return COLOURS.get(letter) or _NEW_COLOURS[ascii_letters.index(letter)]


def marker_of(letter: str) -> str:
    """The marker of a task, the same in every figure."""
    return MARKERS.get(letter) or _NEW_MARKERS[ascii_letters.index(letter) % len(_NEW_MARKERS)]


def write(folder: Path, name: str, **figures: Figure) -> None:
    """Write figures as `<folder>/<name>_<figure>.png`, at 100 dots an inch, and as `.svg`, each whole or not at
    all; the same figure gives the same bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    for title, figure in figures.items():
        for kind, options in (("png", {"dpi": 100}), ("svg", {"metadata": {"Date": None}})):
            path = folder / f"{name}_{title}.{kind}"
            temporary = path.with_name(f".{path.name}.{os.getpid()}")
            with plt.rc_context({"svg.hashsalt": title}):
                figure.savefig(temporary, format=kind, **options)
            os.replace(temporary, path)


def styled(draw: Callable[..., Figure]) -> Callable[..., Figure]:
    """Draw in the one style, and close: a notebook shows the figure that it is given once, not twice."""

    @wraps(draw)
    def drawing(*arguments, **keywords) -> Figure:
        with plt.rc_context(STYLE):
            figure = draw(*arguments, **keywords)
        plt.close(figure)
        return figure

    return drawing


def panels(
    count: int, columns: int, panel: tuple[float, float], margin: tuple[float, float] = (0, 0), **options
) -> tuple[Figure, np.ndarray]:
    """A figure of `count` panels in rows, and its axes, (rows, columns). Sizes (width, height) are in inches."""
    rows = -(-count // columns)
    size = (panel[0] * columns + margin[0], panel[1] * rows + margin[1])
    figure, axes = plt.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained", **options)
    for axis in axes.flat[count:]:
        axis.set_visible(False)
    return figure, axes


def letters_of(tasks: Iterable[str]) -> list[str]:
    """The letters of task sets, once each, in the canonical order."""
    return list(canonical("".join(set("".join(tasks)))))


def named(letter: str, tasks: dict[str, Task] | None = None) -> str:
    """Letter and name; `tasks` are the definitions of the data set, the paper's where there are none."""
    task = (TASKS if tasks is None else tasks).get(letter)
    return letter if task is None or task.name == letter else f"{letter}: {task.name}"


def mark(label: str, **look) -> plt.Line2D:
    """One entry of a legend: a mark without a line, unless `look` says otherwise."""
    return plt.Line2D([], [], label=label, **{"linestyle": "", **look})


def task_marks(letters: list[str], tasks: dict[str, Task] | None = None, **look) -> list[plt.Line2D]:
    """Their entries of a legend."""
    return [mark(named(x, tasks), color=colour(x), marker=marker_of(x), **look) for x in letters]


def reach(table: pd.DataFrame, value: str) -> list[np.ndarray]:
    """How far the intervals (columns low and high) reach from a value, to both sides."""
    return [np.maximum(table[value] - table.low, 0), np.maximum(table.high - table[value], 0)]
