"""From the files of a data set to its arrays: decoded once, in parallel, into the cache, and checked as they are read.

A reader says what there is as a `Source`: the images, and the parts that are decoded from their files.
"""

import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mtrlib.data import cache, pixels
from mtrlib.dataset import Dataset
from mtrlib.machine import bar
from mtrlib.tasks import Task

Arrays = dict[str, np.ndarray]
IMAGES = "rgb"  # the part of the images
_VERSION = "decoding 2"  # of what files are decoded to: another leaves all cached arrays behind


class File(NamedTuple):
    what: str  # it holds
    path: str
    bytes: int  # -1: there is no such file
    modified: int  # in ns


class Part(NamedTuple):
    """What is decoded together, and cached as one entry.

    `decode` takes the files of one image, its (width, height, EXIF orientation), None where they are not known yet, and
    the size to decode to, None for that of the files. It gives "values", of images (3, H, W), of tasks (H, W) of
    classes, else (C, H, W), of whole images without H and W; "mask", (H, W) or (), where `masked`; of images "sizes",
    those three, as it is seen and before it is resized. ValueError, naming the file, for a bad one.
    """

    files: list[tuple[File, ...]]  # by image
    decode: Callable[[Sequence[File], tuple[int, ...] | None, int | None], Arrays]
    masked: bool = False
    settings: str = ""  # what the arrays depend on beside all this


class Source(NamedTuple):
    """A split of a data set, before it is decoded. Readers give all up to `name`, `loading.source` the rest."""

    ids: tuple[str, ...]  # of the images
    parts: dict[str, Part]  # `IMAGES` first, then those of letters, then masks in files of their own
    masks: dict[str, str] = {}  # letter -> the part that holds its mask, where that is another than its own
    name: str = ""
    where: Path = Path()  # its folder
    split: str = ""
    size: int | None = None  # height and width to decode to, in pixels; None, in `checks` alone, for files as they are
    tasks: dict[str, Task] = {}


def load(source: Source, on_bad: str = "raise") -> Dataset:
    """Images and labels, from the cache where they are in it; `on_bad` and errors as in `data.load`.

    Each part is an entry of the cache: another task set reuses those that it shares, and another limit the rows that it
    shares. A row is decoded anew when the path, size or time of its files changes. Where images are left out, a warning
    says how many of how many.
    """
    bad: dict[int, list[str]] = {}  # by row

    def add(notes: dict[int, str]) -> None:
        if notes and on_bad == "raise":
            raise ValueError(notes[min(notes)])
        for row, note in notes.items():
            bad.setdefault(row, []).append(note)

    for name in source.parts:
        add(missing(source, name))
    number, arrays = len(source.ids), {}
    sizes = np.zeros((number, 3), dtype=np.int32)  # of the images, once those are decoded
    for name, part in source.parts.items():
        layout = _layout(source, name)
        made_from = [_VERSION, name, str({key: shape[1:] for key, (shape, _) in layout.items()}), part.settings]
        of_rows = [str(files) for files in zip(source.parts[IMAGES].files, part.files, strict=True)]
        fill = partial(_fill, source, name, sizes, on_bad)
        entry = cache.entry(f"{source.name}-{name}", made_from, layout, fill, of_rows)
        arrays[name], notes = cache.read(entry, number)
        add(notes)
        if name == IMAGES:
            sizes = arrays[name]["sizes"].numpy()
    if bad:
        left_out = tuple(" ".join(bad[row]) for row in sorted(bad))
        what = f"{source.where} ({source.split}, {''.join(source.tasks)})"
        summary = f"{len(bad)} of {number} frames left out of {what}, first: {left_out[0]}"
        if len(bad) == number:
            raise ValueError(summary)
        warnings.warn(summary, stacklevel=3)
        good = [row for row in range(number) if row not in bad]
        parts = {name: part._replace(files=[part.files[row] for row in good]) for name, part in source.parts.items()}
        return replace(load(source._replace(ids=tuple(source.ids[row] for row in good), parts=parts)), bad=left_out)
    targets = {letter: arrays[letter]["values"] for letter in source.tasks}
    masks = {letter: arrays[source.masks.get(letter, letter)].get("mask") for letter in source.tasks}
    names = source.tasks["s"].class_names if "s" in source.tasks else ()
    return Dataset(source.name, arrays[IMAGES]["values"], targets, masks, source.ids, names, tasks=source.tasks)


def decoded(
    source: Source, name: str, sizes: np.ndarray, rows: Sequence[int] | None = None
) -> Iterator[Arrays | str | None]:
    """Of some images, or all, in order: the arrays of a part, what is wrong with a bad file, or None where a file is
    missing or the image itself is bad, whose row of `sizes`, (N, 3), is 0 then."""
    part = source.parts[name]
    rows = range(len(part.files)) if rows is None else rows

    def decode(row: int) -> Arrays | str | None:
        if any(file.bytes < 0 for file in part.files[row]) or (name != IMAGES and not sizes[row].any()):
            return None
        try:
            return part.decode(part.files[row], None if name == IMAGES else tuple(sizes[row].tolist()), source.size)
        except ValueError as error:
            return str(error)

    workers = min(16, os.cpu_count() or 1)  # threads: PIL frees the interpreter as it decodes
    progress = bar(total=len(rows), description=f"decoding {name}", unit="frame")
    with ThreadPoolExecutor(workers) as executor, progress:
        for start in range(0, len(rows), 16 * workers):  # so that few decoded images wait in memory
            for arrays in executor.map(decode, rows[start : start + 16 * workers]):
                progress.update(1)
                yield arrays


def find(what: str, path: str | Path) -> File:
    """A file, whether or not it is there."""
    try:
        status = os.stat(path)
        return File(what, str(path), status.st_size, status.st_mtime_ns)
    except (FileNotFoundError, NotADirectoryError):
        return File(what, str(path), -1, 0)
    except OSError as error:
        raise pixels.unreadable(path, error) from None


def missing(source: Source, name: str) -> dict[int, str]:
    """What to say of each image, by row, whose file of a part is not there."""
    files = ((row, file) for row, group in enumerate(source.parts[name].files) for file in group if file.bytes < 0)
    return {row: f"{file.path} is missing: {source.ids[row]} has no {file.what}." for row, file in files}


def images(files: list[File]) -> Part:
    """The part of the images, (3, H, W), in [0, 255]."""

    def decode(group: Sequence[File], _: tuple[int, ...] | None, size: int | None) -> Arrays:
        image, orientation = pixels.read_colours(group[0].path)
        values = np.asarray(pixels.square(image, size)).transpose(2, 0, 1)
        return {"values": values, "sizes": np.array([*image.size, orientation])}

    return Part([(file,) for file in files], decode)


def _layout(source: Source, name: str) -> cache.Layout:
    """Shapes and dtypes of the arrays of a part."""
    number, square, task = len(source.ids), (source.size, source.size), source.tasks.get(name)
    if name == IMAGES:
        return {"values": ((number, 3, *square), np.uint8), "sizes": ((number, 3), np.int32)}
    layout, square = {}, () if task and task.per_image else square
    if task:
        index, values = ((number, *square), np.uint8), ((number, task.channels, *square), np.float32)
        layout["values"] = index if task.classes else values
    return layout | ({"mask": ((number, *square), np.bool_)} if source.parts[name].masked else {})


def _fill(source: Source, name: str, sizes: np.ndarray, on_bad: str, arrays: Arrays, rows: list[int]) -> dict[int, str]:
    """Decode a part of some images; rows of bad files stay zero, and notes say what is wrong."""
    notes = {}
    for row, image in zip(rows, decoded(source, name, sizes, rows), strict=True):
        if isinstance(image, dict):
            for key, values in image.items():
                arrays[key][row] = values
        elif image and on_bad == "raise":
            raise ValueError(image)
        elif image:
            notes[row] = image
    return notes
