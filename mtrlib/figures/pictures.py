"""Pictures of images, targets and outputs."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure

from mtrlib.figures.style import panels, styled
from mtrlib.tasks import TASKS, Task, distinct

_CLASS_COLOURS = plt.get_cmap("tab20").colors


@styled
def images(
    rows: dict[str, dict[str, torch.Tensor]], classes: tuple[str, ...], tasks: dict[str, Task] | None = None
) -> Figure:
    """A grid of pictures: a row each entry, a column each of its pictures.

    Parameters
    ----------
    rows : by title of the row, then of the column (written where it differs from that of the row above). Under a task
        letter stands a target or an output: (H, W) class indices, or (C, H, W) values, or logits of classes; under any
        other name (3, H, W) colours in [0, 1]. NaN is white, see `labels`. One channel of a task that is not the
        paper's is shown over the range that all its pictures have.
    classes : names of the classes of s.
    """
    tasks = TASKS if tasks is None else tasks
    names = {letter: task.class_names for letter, task in tasks.items() if task.kind == "classes"} | {"s": classes}
    names = {letter: distinct(of_task) for letter, of_task in names.items()}
    limits = _limits(rows, tasks)
    width = max(len(row) for row in rows.values())
    figure, axes = panels(len(rows) * width, width, (2.1, 2.25), (0.4, 0.5))
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
        axis.spines[:].set_visible(False)
    shown: dict[str, set[int]] = {}
    above: list[str] = []
    for line, (name, row) in zip(axes, rows.items(), strict=True):
        line[0].set_ylabel(name)
        for column, (title, picture) in enumerate(row.items()):
            if above[column : column + 1] != [title]:
                line[column].set_title(f"{title}: {tasks[title].name}" if title in tasks else title, fontsize=11)
            if title in names:
                picture = picture.argmax(dim=0) if picture.dim() == 3 else picture
                shown.setdefault(title, set()).update(picture[~picture.isnan()].unique().tolist())
            values = picture.detach().float().cpu().numpy()
            _show(line[column], values, tasks.get(title), len(names.get(title, ())), limits.get(title))
        above = list(row)
    for place, letter in zip(("center", "left", "right"), shown, strict=False):
        indices = sorted(map(int, shown[letter]))
        patches = [plt.Rectangle((0, 0), 1, 1, color=_class_colour(index)) for index in indices]
        named = [names[letter][index] if index < len(names[letter]) else str(index) for index in indices]
        style = {"ncols": 6 if len(shown) == 1 else 3, "frameon": False, "title": f"classes of {letter}"}
        figure.legend(patches, named, loc=f"outside lower {place}", **style)
    return figure


def labels(
    targets: dict[str, torch.Tensor], masks: dict[str, torch.Tensor | None], row: int
) -> dict[str, torch.Tensor]:
    """Targets of one image for `images`, with NaN where there is no label; targets and masks as in `Dataset`."""
    return {
        letter: values[row] if masks[letter] is None else values[row].float().where(masks[letter][row], torch.nan)
        for letter, values in targets.items()
    }


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
                values = torch.cat([picture[~picture.isnan()] for picture in pictures])
                limits[title] = (values.min().item(), values.max().item()) if len(values) else (0, 1)
    return limits


def _show(axis, picture: np.ndarray, task: Task | None, classes: int, limits: tuple[float, float] | None) -> None:
    style = {"interpolation": "nearest"}
    if task is not None and task.kind == "classes":
        classes = max(classes, int(np.nanmax(picture, initial=0)) + 1)
        style |= {"cmap": ListedColormap(list(map(_class_colour, range(classes)))), "vmin": -0.5, "vmax": classes - 0.5}
    elif limits:
        picture = picture[0]
        style |= {"cmap": "cividis", "vmin": limits[0], "vmax": limits[1]}
    else:
        if task is not None:  # [-1, 1]; two channels: red and green
            padded = np.pad(picture[:3], ((0, max(3 - len(picture), 0)), (0, 0), (0, 0)))
            picture = np.nan_to_num(padded / 2 + 0.5, nan=1.0)
        picture = picture.transpose(1, 2, 0).clip(0, 1)
    axis.imshow(picture, **style)
