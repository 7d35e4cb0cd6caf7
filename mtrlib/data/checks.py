"""What is in the files of a data set, and what of it would stop a run: every file is read once, at its own size."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import repeat
from pathlib import Path

import numpy as np
import pandas as pd

from mtrlib.data import decoding, loading
from mtrlib.data.dataset import SPLITS
from mtrlib.data.decoding import Arrays, Source
from mtrlib.tasks import Task, distinct

IMAGES = "images"
_SHOWN = 12  # classes that have a line of their own


def check(name: str, root: str | Path, letters: str | None = None) -> pd.DataFrame:
    """Read every file of both splits.

    Parameters
    ----------
    name, root : as in `data.load`; not "rooms", which has no files.
    letters : tasks to look at. None looks at all: of a "folder" each must have files, since its description names it;
        of the others those without any file are reported and stop nothing, since few have all of them.

    Returns
    -------
    A row a split and task, and one for the images:
    split, task (a letter, or "images"), name;
    files, missing, bad : how many were found, are missing (where others are there) and cannot be used;
    read : of how many the columns to the right tell, those of bad images left out;
    low, high : of the targets at valid pixels; valid : share of valid pixels;
    classes : dict of the pixels of each class, by name; None where there are none;
    stops : whether a run would stop there, with the default `on_bad`; problem : the first reason, else empty.

    Raises
    ------
    ValueError : for a root or a description that cannot be read at all.
    """
    if name not in (named := [each for each in loading.NAMES if each != "rooms"]):
        allowed = ", ".join(named)
        raise ValueError(f"Parameter name should be one of {allowed}, a data set with files. Found name = {name!r}.")
    defined = loading.tasks(name, root)
    chosen = "".join(defined) if letters is None else letters
    rows = []
    for split in SPLITS:
        sources, faults = {}, {}
        for letter in chosen:
            try:
                sources[letter] = loading.source(name, root, letter, split, None)
            except ValueError as error:
                faults[letter] = str(error)
        if not sources:  # nothing at all: one reason will do
            rows.append(_row(split, IMAGES, "", stops=True, problem=next(iter(faults.values()))))
            continue
        first = next(iter(sources.values()))
        images, sizes = _images(split, first)
        rows.append(images)
        for letter in chosen:
            required = letters is not None or name == "folder"
            if letter in faults:
                rows.append(_row(split, letter, defined[letter].name, stops=required, problem=faults[letter]))
            else:
                rows.append(_label(split, letter, sources[letter], sizes, required))
    return pd.DataFrame(rows)


def class_shares(table: pd.DataFrame) -> str:
    """Of each split and task with classes in what `check` gives: how many of the classes occur, in how many images, and
    the shares of the most frequent ones, a line each."""
    lines = []
    for row in table.dropna(subset="classes").itertuples():
        found = sorted(((count, name) for name, count in row.classes.items() if count), key=lambda pair: -pair[0])
        total = sum(count for count, _ in found)
        images = "1 image" if row.read == 1 else f"{row.read} images"
        lines.append(f"{row.task}, {row.split}: {len(found)} of {len(row.classes)} classes occur in {images}")
        lines += [f"    {name} {100 * count / total:.3g} %" for count, name in found[:_SHOWN]]
        if others := [count for count, _ in found[_SHOWN:]]:
            named = "1 other" if len(others) == 1 else f"{len(others)} others, together"
            lines.append(f"    and {named} {100 * sum(others) / total:.3g} %")
    return "\n".join(lines)


def _row(split: str, task: str, name: str, **found) -> dict:
    nothing = {
        **dict.fromkeys(("files", "missing", "bad", "read"), 0),
        **dict.fromkeys(("low", "high", "valid"), np.nan),
    }
    return {
        **{"split": split, "task": task, "name": name, **nothing, "classes": None, "stops": False, "problem": ""},
        **found,
    }


def _images(split: str, source: Source) -> tuple[dict, np.ndarray]:
    """The row of the images, and their widths and heights, (N, 2), 0 for bad ones."""
    part = source.parts[decoding.IMAGES]
    sizes = np.zeros((len(source.ids), 2), dtype=int)
    low, high, problems = [], [], _missing(source, decoding.IMAGES)
    missing = len(problems)
    for row, found in enumerate(decoding.decoded(decoding.IMAGES, part, sizes)):
        if isinstance(found, str):
            problems.append(found)
        elif found is not None:
            sizes[row] = found["sizes"]
            low.append(found["values"].min())
            high.append(found["values"].max())
    counts = {"files": len(source.ids) - missing, "missing": missing, "bad": len(problems) - missing, "read": len(low)}
    ends = {"low": min(low, default=np.nan), "high": max(high, default=np.nan), "valid": 1.0}
    return _row(split, IMAGES, "", **counts, **ends, stops=bool(problems), problem=(problems or [""])[0]), sizes


def _label(split: str, letter: str, source: Source, sizes: np.ndarray, required: bool) -> dict:
    """The row of one task."""
    task = source.tasks[letter]
    absent = _missing(source, letter)
    number = len(source.ids)
    if len(absent) == number:
        found = f"{source.where} has no files of {letter}, such as {source.parts[letter].files[0][0].path}."
        return _row(split, letter, task.name, stops=required, problem=found)
    bad, low, high, read, pixels, valid = [], [], [], 0, 0, 0
    counts = np.zeros(task.channels, dtype=np.int64)
    for arrays in _with_masks(letter, source, sizes):
        if isinstance(arrays, str):
            bad.append(arrays)
        elif arrays is not None:
            values, mask = arrays["values"], arrays["mask"]
            read, pixels, valid = read + 1, pixels + mask.size, valid + int(mask.sum())
            chosen = values[..., mask]
            if chosen.size:
                low.append(chosen.min())
                high.append(chosen.max())
            if task.kind == "classes":
                counts += np.bincount(chosen, minlength=task.channels)
    problems = absent + bad
    return _row(
        split,
        letter,
        task.name,
        **{"files": number - len(absent), "missing": len(absent), "bad": len(bad), "read": read},
        **{"low": min(low, default=np.nan), "high": max(high, default=np.nan), "valid": valid / max(pixels, 1)},
        classes=_named(task, counts) if task.kind == "classes" else None,
        stops=bool(problems),
        problem=(problems or [""])[0],
    )


def _missing(source: Source, name: str) -> list[str]:
    groups = zip(source.parts[name].files, source.ids, strict=True)
    return [decoding.missing(file, image) for files, image in groups for file in files[:1] if file.bytes < 0]


def _with_masks(letter: str, source: Source, sizes: np.ndarray) -> Iterator[Arrays | str | None]:
    """Each image's "values" and "mask" of a task, whichever part has the mask; texts and None as `decoding.decoded`."""
    owner = source.masks.get(letter, letter)
    labels = decoding.decoded(letter, source.parts[letter], sizes)
    apart = owner not in (None, letter)
    masks = decoding.decoded(owner, source.parts[owner], sizes) if apart else repeat({})
    for label, mask in zip(labels, masks, strict=apart):
        wrong = next((found for found in (label, mask) if not isinstance(found, dict)), label)
        if not isinstance(wrong, dict):
            yield wrong
        else:
            both = {**label, **mask}
            yield {"mask": np.ones(label["values"].shape[-2:], dtype=bool), **both}


def _named(task: Task, counts: np.ndarray) -> dict[str, int]:
    names = distinct(task.class_names or map(str, range(task.channels)))
    return dict(zip(names, counts.tolist(), strict=True))
