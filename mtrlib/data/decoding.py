"""From the files of a data set to its arrays: decoded once, in parallel, into the cache, and checked as they are read.

A reader says what there is as a `Source`: the images, and the parts that are decoded from their files.
"""

from __future__ import annotations

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
from mtrlib.progress import bar
from mtrlib.tasks import Task

Arrays = dict[str, np.ndarray]
IMAGES = "rgb"  # the part of the images
_VERSION = "decoding 1"  # of what files are decoded to: another leaves all cached arrays behind


class File(NamedTuple):
    """A file: what it holds, where, its size (-1: there is no such file) and time of change in ns."""

    what: str
    path: str
    bytes: int
    modified: int


class Part(NamedTuple):
    """What is decoded together, and cached as one entry.

    Attributes
    ----------
    files : by image, those that it is decoded from.
    decode : (files of one image, its (width, height) or None where it is not known yet, size) -> arrays, of `size`
        pixels or, for None, of all that there are: "values" of the images, (3, H, W), and of tasks, (H, W) of classes,
        else (C, H, W); "mask", (H, W), where `masked`; "sizes" of the images, (width, height) before they are resized.
        ValueError, naming the file, for a bad one.
    masked : whether it gives masks.
    settings : what the arrays depend on beside all this.
    """

    files: list[tuple[File, ...]]
    decode: Callable[[Sequence[File], tuple[int, int] | None, int | None], Arrays]
    masked: bool = False
    settings: str = ""


class Source(NamedTuple):
    """A split of a data set, before it is decoded: what a reader gives, and what `loading.source` adds to it.

    Attributes
    ----------
    ids : names of the images.
    parts : `IMAGES` first, then the targets of each letter and, where masks have files of their own, others.
    masks : letter -> the part that holds its mask, where that is another than its own.
    name, where, split : of the data set, its folder, and the split.
    size : height and width to decode to, in pixels; None for images as they are, which only `checks` reads.
    tasks : definitions of the letters.
    """

    ids: tuple[str, ...]
    parts: dict[str, Part]
    masks: dict[str, str] = {}
    name: str = ""
    where: Path = Path()
    split: str = ""
    size: int | None = None
    tasks: dict[str, Task] = {}


def load(source: Source, on_bad: str = "raise") -> Dataset:
    """Images and labels, from the cache where they are in it; `on_bad` and errors as in `data.load`.

    Each part is an entry of the cache: another task set reuses those that it shares, and another limit the rows that it
    shares. A row is decoded anew when the path, size or time of its files changes. Where images are left out, a warning
    says how many of how many.
    """
    bad: dict[int, list[str]] = {}
    for name in source.parts:
        for row, note in missing(source, name).items():
            bad.setdefault(row, []).append(note)
    if bad and on_bad == "raise":
        raise ValueError(bad[min(bad)][0])

    number, found = len(source.ids), {}
    images = source.parts[IMAGES].files  # every label depends on the size of its image
    sizes = np.zeros((number, 2), dtype=np.int32)  # of the images, once those are decoded
    for name, part in source.parts.items():
        layout = _layout(source, name)
        made_from = [_VERSION, name, str({key: layout[key][0][1:] for key in layout}), part.settings]
        of_rows = [str(files) for files in zip(images, part.files, strict=True)]
        fill = partial(_fill, source, name, sizes, on_bad)
        entry = cache.entry(f"{source.name}-{name}", made_from, layout, fill, of_rows)
        found[name], notes = cache.read(entry, number)
        for row, note in notes.items():
            if on_bad == "raise":
                raise ValueError(note)
            bad.setdefault(row, []).append(note)
        if name == IMAGES:
            sizes = found[name]["sizes"].numpy()

    if bad:
        left_out = tuple(" ".join(bad[row]) for row in sorted(bad))
        what = f"{source.where} ({source.split}, {''.join(source.tasks)})"
        summary = f"{len(bad)} of {number} frames left out of {what}, first: {left_out[0]}"
        if len(bad) == number:
            raise ValueError(summary)
        warnings.warn(summary, stacklevel=3)
        return replace(load(_select(source, [row for row in range(number) if row not in bad])), bad=left_out)
    return Dataset(
        name=source.name,
        images=found[IMAGES]["values"],
        targets={letter: found[letter]["values"] for letter in source.tasks},
        masks={letter: found[source.masks.get(letter, letter)].get("mask") for letter in source.tasks},
        ids=source.ids,
        class_names=source.tasks["s"].class_names if "s" in source.tasks else (),
        tasks=source.tasks,
    )


def decoded(
    source: Source, name: str, sizes: np.ndarray, rows: Sequence[int] | None = None
) -> Iterator[Arrays | str | None]:
    """The arrays of a part of some images, or of all, in order, decoded in parallel; what is wrong with a bad file;
    None where a file is missing or the image itself is bad. Shows progress.

    sizes : (N, 2) width and height of the images in pixels, 0 where one is bad; unused for the images themselves.
    """
    part = source.parts[name]

    def decode(row: int) -> Arrays | str | None:
        if any(file.bytes < 0 for file in part.files[row]) or (name != IMAGES and not sizes[row].any()):
            return None
        try:
            return part.decode(part.files[row], None if name == IMAGES else tuple(sizes[row].tolist()), source.size)
        except ValueError as error:
            return str(error)

    rows = range(len(part.files)) if rows is None else rows
    workers = min(16, os.cpu_count() or 1)  # threads: PIL frees the interpreter as it decodes
    executor = ThreadPoolExecutor(workers)
    try:
        with bar(total=len(rows), description=f"decoding {name}", unit="frame") as progress:
            for start in range(0, len(rows), 16 * workers):  # so that few decoded images wait in memory
                for arrays in executor.map(decode, rows[start : start + 16 * workers]):
                    progress.update(1)
                    yield arrays
    finally:
        executor.shutdown(cancel_futures=True)


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

    def decode(group: Sequence[File], _: tuple[int, int] | None, size: int | None) -> Arrays:
        image = pixels.read_colours(group[0].path)
        return {"values": np.asarray(pixels.square(image, size)).transpose(2, 0, 1), "sizes": np.array(image.size)}

    return Part([(file,) for file in files], decode)


def _select(source: Source, rows: list[int]) -> Source:
    """Some of the images alone."""
    parts = {name: part._replace(files=[part.files[row] for row in rows]) for name, part in source.parts.items()}
    return source._replace(ids=tuple(source.ids[row] for row in rows), parts=parts)


def _layout(source: Source, name: str) -> cache.Layout:
    """Shapes and dtypes of the arrays of a part."""
    number, square, task = len(source.ids), (source.size, source.size), source.tasks.get(name)
    layout: cache.Layout = {}
    if name == IMAGES:
        layout = {"values": ((number, 3, *square), np.uint8), "sizes": ((number, 2), np.int32)}
    elif task:
        classes = ((number, *square), np.uint8)
        layout = {"values": classes if task.kind == "classes" else ((number, task.channels, *square), np.float32)}
    return layout | ({"mask": ((number, *square), np.bool_)} if source.parts[name].masked else {})


def _fill(source: Source, name: str, sizes: np.ndarray, on_bad: str, arrays: Arrays, rows: list[int]) -> dict[int, str]:
    """Decode a part of some images; rows of bad files stay zero, and notes say what is wrong."""
    notes = {}
    for row, found in zip(rows, decoded(source, name, sizes, rows), strict=True):
        if isinstance(found, str):
            if on_bad == "raise":
                raise ValueError(found)
            notes[row] = found
        elif found is not None:
            for key, values in found.items():
                arrays[key][row] = values
    return notes
