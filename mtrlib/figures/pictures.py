"""Pictures of images, targets and outputs."""

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from mtrlib.figures.style import panels, styled
from mtrlib.tasks import TASKS, Task, distinct

_CLASSES = plt.get_cmap("tab20")  # the colours of classes, again from the first one after the 20th


@styled()
def images(
    rows: dict[str, dict[str, Tensor]],
    classes: tuple[str, ...],
    tasks: dict[str, Task] | None = None,
    notes: dict[str, str] | None = None,
) -> Figure:
    """A grid of pictures: a row each entry, a column each of its pictures.

    Parameters
    ----------
    rows : by title of the row, then of the column (written where it differs from that of the row above). Under a task
        letter stands a target or an output: (H, W) class indices, or (C, H, W) values, or logits of classes or labels,
        and without H and W what is written, of a task of whole images; under any other name (3, H, W) colours in
        [0, 1]. NaN is white, see `labels`. One channel of a task that is not the paper's is shown over the range that
        all its pictures have.
    classes : names of the classes of s.
    notes : a second line of the titles of columns, by task letter.
    """
    tasks = TASKS if tasks is None else tasks
    of_pixels = {letter: task for letter, task in tasks.items() if task.classes and not task.per_image}
    names = {letter: task.class_names for letter, task in of_pixels.items()} | {"s": classes}
    width = max(map(len, rows.values()))
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
                named = f"{title}: {tasks[title].name}" if title in tasks else title
                line[column].set_title("\n".join([named, *filter(None, [(notes or {}).get(title)])]), fontsize=11)
            if title in names:
                picture = _predicted(picture, tasks.get(title))
                shown.setdefault(title, set()).update(picture[~picture.isnan()].int().unique().tolist())
            _show(line[column], picture, tasks.get(title), [each[title] for each in rows.values() if title in each])
        above = list(row)
    for place, (letter, indices) in zip(("center", "left", "right"), shown.items(), strict=False):
        known, indices = dict(enumerate(distinct(names[letter]))), sorted(indices)
        patches = [plt.Rectangle((0, 0), 1, 1, color=_CLASSES(index % 20)) for index in indices]
        style = {"ncols": (6 if width > 3 else 4) if len(shown) == 1 else 3, "title": f"classes of {letter}"}
        labels = [known.get(index, str(index)) for index in indices]
        figure.legend(patches, labels, loc=f"outside lower {place}", **style)
    return figure


def labels(targets: dict[str, Tensor], masks: dict[str, Tensor | None], row: int) -> dict[str, Tensor]:
    """Targets of one image for `images`, with NaN where there is no label; targets and masks as in `Dataset`."""
    return {
        letter: values[row] if masks[letter] is None else values[row].float().where(masks[letter][row], torch.nan)
        for letter, values in targets.items()
    }


def _show(axis, picture: Tensor, task: Task | None, of_task: list[Tensor]) -> None:
    """One picture; `of_task` are all of its task, which one channel of a task that is not the paper's ranges over."""
    if task is not None and (task.per_image or task.kind == "labels"):
        picture = _predicted(picture, task)
    if task is not None and task.per_image:
        axis.text(0.5, 0.5, _written(picture, task), ha="center", va="center", wrap=True)
        return
    values, style = picture.detach().float().cpu().numpy(), {}
    if task is not None and task.classes:
        values, style = values % 20, {"cmap": _CLASSES, "vmin": -0.5, "vmax": 19.5}
    elif task is not None and task.channels == 1:
        low, high = (0.54, 0.73) if task.letter in "dD" else (-1.0, 1.0)
        if task.kind == "labels":
            low, high = 0, 1
        elif task != TASKS.get(task.letter):
            every = torch.cat([each[~each.isnan()] for each in of_task]).detach().float()
            low, high = (every.min().item(), every.max().item()) if len(every) else (0, 1)
        values, style = values[0], {"cmap": "cividis", "vmin": low, "vmax": high}
    else:
        if task is not None:  # [-1, 1], of labels [0, 1]; two channels: red and green
            values = np.pad(values[:3], ((0, max(3 - len(values), 0)), (0, 0), (0, 0)))
            values = np.nan_to_num(values if task.kind == "labels" else values / 2 + 0.5, nan=1.0)
        values = values.transpose(1, 2, 0).clip(0, 1)
    axis.imshow(values, interpolation="nearest", **style)


def _predicted(picture: Tensor, task: Task | None) -> Tensor:
    """What logits stand for: the class, the rank, or 0 and 1 of each label; a target stays as it is."""
    of_pixel = picture.dim() - 2 * (task is None or not task.per_image)
    if task is not None and task.kind == "labels":
        return (picture > 0).float().where(~picture.isnan(), torch.nan)
    if task is not None and task.kind == "ordinal" and of_pixel:
        return (picture > 0).sum(dim=0)
    return picture.argmax(dim=0) if of_pixel and (task is None or task.classes) else picture


def _written(picture: Tensor, task: Task) -> str:
    """The class, the labels or the values of a whole image; nothing where there is no label."""
    values = picture.float().flatten()
    if values.isnan().any():
        return ""
    names = distinct(task.class_names or map(str, range(task.classes or task.channels)))
    if task.kind == "labels":
        return ", ".join(name for name, there in zip(names, values, strict=True) if there > 0) or "none"
    return names[int(values[0])] if task.classes else ", ".join(f"{value:.3g}" for value in values.tolist())
