"""What all figures share: a task has one colour and marker everywhere (Okabe and Ito's colours first, which the
colour-blind can tell apart), panels stand in rows, legends name tasks."""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from string import ascii_letters

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.colors import hsv_to_rgb, to_hex
from matplotlib.figure import Figure

from mtrlib.tasks import TASKS, Task, canonical

_COLOURS = "#0072B2 #D55E00 #009E73 #CC79A7 #E69F00 #56B4E9 #7F3C8D #000000 #A5AA99 #8C510A #666666"
COLOURS = dict(zip("sdDnEkKeprA", _COLOURS.split(), strict=True))
MARKERS = dict(zip(COLOURS, "osD^vPX*<>h", strict=True))
STYLE = {"font.size": 12, "axes.spines.top": False, "axes.spines.right": False, "figure.dpi": 100}
STYLE |= {"legend.frameon": False, "errorbar.capsize": 2, "figure.constrained_layout.use": True}
STYLE |= {"text.parse_math": False}  # names come from users: a dollar is a dollar


def colour(letter: str) -> str:
    """The colour of a task, the same in every figure; letters that are not the paper's have a hue of their own each."""
    k = ascii_letters.index(letter)
    return COLOURS.get(letter) or to_hex(hsv_to_rgb((0.61803 * k % 1, 0.75, 0.9 - 0.2 * (k % 3))))


def marker_of(letter: str) -> str:
    """The marker of a task, the same in every figure; letters that are not the paper's share seven."""
    return MARKERS.get(letter) or "pd8H1X3"[ascii_letters.index(letter) % 7]


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


@contextmanager
def styled() -> Iterator[None]:
    """Draws a figure in the one style, and closes it: a notebook shows what it is given once, not twice."""
    with plt.rc_context(STYLE):
        yield
    plt.close()


def panels(
    count: int, columns: int, panel: tuple[float, float], margin: tuple[float, float] = (0, 0), **options
) -> tuple[Figure, np.ndarray]:
    """A figure of `count` panels in rows, and its axes, (rows, columns). Sizes (width, height) are in inches."""
    rows = -(-count // columns)
    size = (panel[0] * columns + margin[0], panel[1] * rows + margin[1])
    figure, axes = plt.subplots(rows, columns, figsize=size, squeeze=False, **options)
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
