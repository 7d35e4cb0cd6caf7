"""What all figures share: a task has one colour and marker everywhere (Okabe and Ito's colours first, which the
colour-blind can tell apart)."""

from __future__ import annotations

import os
from pathlib import Path
from string import ascii_letters

import matplotlib.pyplot as plt
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


def letters_of(found) -> list[str]:
    return list(canonical("".join(set(found))))


def named(letter: str, tasks: dict[str, Task] | None = None) -> str:
    """Letter and name; `tasks` are the definitions of the data set, the paper's where there are none."""
    task = (TASKS if tasks is None else tasks).get(letter)
    return letter if task is None or task.name == letter else f"{letter}: {task.name}"


def task_legend(figure: Figure, letters: list[str], tasks: dict[str, Task] | None = None) -> None:
    handles = [plt.Line2D([], [], color=colour(x), marker=marker_of(x), label=named(x, tasks)) for x in letters]
    figure.legend(handles=handles, loc="outside right upper", frameon=False, title="auxiliary task\n(solid: none)")


def closed(figure: Figure) -> Figure:
    plt.close(figure)  # a notebook shows the returned figure once, not twice
    return figure
