"""From the files of a data set to its arrays: decoded once, in parallel, into the cache, and checked as they are read.

A reader says what there is as a `Source`: the images, and the parts that are decoded from their files. Images that
are not square are cut to the square at their centre, then resized. Colours are resampled bilinearly over the area
that a pixel covers (antialiased). Everything else takes the nearest pixel's raw value, the same pixel for every label
and mask: a mean would invent classes, and would mix invalid depths into valid ones.
"""

from __future__ import annotations

import os
import struct
import warnings
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, UnidentifiedImageError

from mtrlib.data import cache
from mtrlib.data.dataset import Dataset
from mtrlib.progress import bar
from mtrlib.tasks import Task

Arrays = dict[str, np.ndarray]
IMAGES = "rgb"  # the part of the images
COLOURS = ("8-bit RGB PNG", "8-bit RGBA PNG", "RGB JPEG")  # of an image; alpha is dropped
_PNG_COLOURS = {0: "grey", 2: "RGB", 3: "palette", 4: "grey with alpha", 6: "RGBA"}  # PNG colour types


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
    layout : name -> shape (of one image) and dtype of what it gives: "values", "mask" or both; for images also "sizes".
    decode : (files of one image, its (width, height) or None where it is not known yet) -> arrays as in `layout`;
        ValueError, naming the file, for a bad one.
    settings : what the arrays depend on beside the files and the layout.
    """

    files: list[tuple[File, ...]]
    layout: cache.Layout
    decode: Callable[[Sequence[File], tuple[int, int] | None], Arrays]
    settings: str = ""


class Source(NamedTuple):
    """A split of a data set, before it is decoded.

    Attributes
    ----------
    name, version : of the data set; another version leaves its cached arrays behind.
    where, split : the folder and split, for messages.
    ids : names of the images.
    parts : `IMAGES` first, then the targets of each letter and, where masks have files of their own, others.
    masks : letter -> the part that holds its mask, or None; for letters whose mask is not in their own part.
    tasks : definitions of the letters.
    """

    name: str
    version: str
    where: Path
    split: str
    ids: tuple[str, ...]
    parts: dict[str, Part]
    masks: dict[str, str | None]
    tasks: dict[str, Task]


def load(source: Source, on_bad: str = "raise") -> Dataset:
    """Load images and labels, from the cache where they are in it.

    Each part is an entry of the cache: another task set reuses those that it shares, and another limit the rows that it
    shares. A row is decoded anew when the path, size or time of its files changes, and so are those behind it. Where
    images are left out, the entries are copied without them.

    Parameters
    ----------
    source : what to load.
    on_bad : "raise" stops at the first image that lacks a file or has a bad one; "skip" leaves such images out, lists
        them in `bad` (a text an image) and warns of how many of how many.

    Raises
    ------
    ValueError : for a bad file, with its full path, what was expected and what was found.
    """
    bad: dict[int, list[str]] = {}
    for part in source.parts.values():
        for row, file in ((row, file) for row, files in enumerate(part.files) for file in files if file.bytes < 0):
            bad.setdefault(row, []).append(missing(file, source.ids[row]))
    if bad and on_bad == "raise":
        raise ValueError(bad[min(bad)][0])

    entries: dict[str, Path] = {}
    number = len(source.ids)
    images = source.parts[IMAGES].files  # every label depends on the size of its image
    sizes = np.zeros((number, 2), dtype=np.int32)  # of the images, once those are decoded
    for name, part in source.parts.items():
        made_from = [source.version, name, str(part.layout), part.settings]
        of_rows = [str(files) for files in zip(images, part.files, strict=True)]
        layout: cache.Layout = {key: ((number, *shape), dtype) for key, (shape, dtype) in part.layout.items()}
        fill = _filler(name, part, sizes, on_bad)
        entries[name] = cache.entry(f"{source.name}-{name}", made_from, layout, fill, of_rows)
        arrays, notes = cache.read(entries[name], number)
        for row, note in notes.items():
            if on_bad == "raise":
                raise ValueError(note)
            bad.setdefault(row, []).append(note)
        if name == IMAGES:
            sizes = arrays["sizes"].numpy()

    good = [row for row in range(number) if row not in bad]
    left_out = tuple(" ".join(bad[row]) for row in sorted(bad))
    if bad:
        what = f"{source.where} ({source.split}, {''.join(source.tasks)})"
        summary = f"{len(bad)} of {number} frames left out of {what}, first: {left_out[0]}"
        if not good:
            raise ValueError(summary)
        warnings.warn(summary, stacklevel=3)
        entries = {name: cache.rows(folder, good) for name, folder in entries.items()}
    arrays = {name: cache.read(folder, len(good))[0] for name, folder in entries.items()}
    owners = {letter: source.masks.get(letter, letter) for letter in source.tasks}
    return Dataset(
        name=source.name,
        images=arrays[IMAGES]["values"],
        targets={letter: arrays[letter]["values"] for letter in source.tasks},
        masks={letter: None if owner is None else arrays[owner].get("mask") for letter, owner in owners.items()},
        ids=tuple(source.ids[row] for row in good),
        class_names=source.tasks["s"].class_names if "s" in source.tasks else (),
        bad=left_out,
        tasks=source.tasks,
    )


def decoded(name: str, part: Part, sizes: np.ndarray, first: int = 0) -> Iterator[Arrays | str | None]:
    """Each image's arrays of a part, from the row `first` on, in order, decoded in parallel; what is wrong with a bad
    file; None where a file is missing or the image itself is bad. Shows progress.

    sizes : (N, 2) width and height of the images in pixels, 0 where one is bad; unused for the images themselves.
    """

    def decode(row: int) -> Arrays | str | None:
        if any(file.bytes < 0 for file in part.files[row]) or (name != IMAGES and not sizes[row].any()):
            return None
        try:
            return part.decode(part.files[row], None if name == IMAGES else tuple(sizes[row].tolist()))
        except ValueError as error:
            return str(error)

    workers = min(16, os.cpu_count() or 1)  # threads: PIL frees the interpreter as it decodes
    executor = ThreadPoolExecutor(workers)
    try:
        with bar(total=len(part.files) - first, description=f"decoding {name}", unit="frame") as progress:
            for start in range(first, len(part.files), 16 * workers):  # so that few decoded images wait in memory
                for arrays in executor.map(decode, range(start, min(start + 16 * workers, len(part.files)))):
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
        raise unreadable(path, error) from None


def unreadable(path: str | Path, error: OSError) -> OSError:
    """One line for a file that is there and cannot be read: that is no bad file, and is never left out."""
    return OSError(f"{path} cannot be read: {error.strerror or error}.")


def missing(file: File, name: str) -> str:
    """What to say of a file that is not there."""
    return f"{file.path} is missing: {name} has no {file.what}."


def images(files: list[File], size: int | None, read: Callable[[str], Image.Image] | None = None) -> Part:
    """The part of the images, of which `read` gives one as RGB; None reads PNG and JPEG files."""

    def decode(group: Sequence[File], _: tuple[int, int] | None) -> Arrays:
        image = read(group[0].path) if read else read_image(group[0].path, COLOURS).convert("RGB")
        return {"values": np.asarray(square(image, size)).transpose(2, 0, 1), "sizes": np.array(image.size)}

    edge = size or 0
    layout = {"values": ((3, edge, edge), np.uint8), "sizes": ((2,), np.int32)}
    return Part([(file,) for file in files], layout, decode)


def square(image: Image.Image, size: int | None) -> Image.Image:
    """The square at the centre, resized to `size`; the image as it is for None."""
    if size is None:
        return image
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return image.crop((left, top, left + side, top + side)).resize((size, size), Image.Resampling.BILINEAR)


def nearest(values: np.ndarray, size: int | None) -> np.ndarray:
    """(H, W, ...) -> (size, size, ...): of the square at the centre, the pixels that the new ones' centres fall in; all
    of them for None."""
    if size is None:
        return values
    height, width = values.shape[:2]
    side = min(height, width)
    index = (2 * np.arange(size) + 1) * side // (2 * size)
    return values[np.ix_((height - side) // 2 + index, (width - side) // 2 + index)]


def read_image(path: str, kinds: Sequence[str], size: tuple[int, int] | None = None) -> Image.Image:
    """A whole image of one of `kinds` and, unless None, of `size` (width, height); else ValueError naming the file.

    PNG checksums are checked. A file of more pixels than PIL's MAX_IMAGE_PIXELS is bad. A file that may not be read, or
    a disk that fails, is no bad file: that is an OSError.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise unreadable(path, error) from error
    allowed = " or ".join(kinds)
    try:
        with Image.open(BytesIO(data), formats=("PNG", "JPEG")) as image:
            pixels, kind = image.width * image.height, _kind(image, data)
            if Image.MAX_IMAGE_PIXELS and pixels > Image.MAX_IMAGE_PIXELS:
                raise Image.DecompressionBombError(f"{pixels} pixels, PIL allows {Image.MAX_IMAGE_PIXELS}")
            found = image.size
            image.verify()  # checksums of a PNG; the image cannot be used afterwards
        image = Image.open(BytesIO(data), formats=("PNG", "JPEG"))
        image.load()
    except UnidentifiedImageError as error:
        raise ValueError(f"{path} should be {allowed}. Found {len(data)} bytes of no image.") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ValueError(f"{path} is too large an image: {error}.") from error
    except (OSError, SyntaxError, ValueError, EOFError, LookupError, struct.error, zlib.error) as error:
        raise ValueError(f"{path} is truncated or damaged: {error}.") from error
    if kind not in kinds:
        raise ValueError(f"{path} should be {allowed}. Found {kind}.")
    if size is not None and found != size:
        raise ValueError(f"{path} should be {size[0]} x {size[1]} like its image. Found {found[0]} x {found[1]}.")
    return image


def _filler(name: str, part: Part, sizes: np.ndarray, on_bad: str) -> Callable[..., dict[int, str]]:
    """What decodes a part of all images, or of those from a row on, into its arrays; rows of bad files stay zero, and
    notes say what is wrong."""

    def fill(arrays: dict[str, np.memmap], first: int) -> dict[int, str]:
        notes = {}
        for row, found in enumerate(decoded(name, part, sizes, first), start=first):
            if isinstance(found, str):
                if on_bad == "raise":
                    raise ValueError(found)
                notes[row] = found
            elif found is not None:
                for key, values in found.items():
                    arrays[key][row] = values
        return notes

    return fill


def _kind(image: Image.Image, data: bytes) -> str:
    """Bit depth, colours and format. The header of a PNG has the truth: PIL opens 16-bit RGB as 8-bit RGB."""
    if image.format != "PNG":
        return f"{image.mode} JPEG"
    header, bits, colour = data[12:16], *data[24:26]
    return f"{bits}-bit {_PNG_COLOURS.get(colour, 'unknown')} PNG" if header == b"IHDR" else "PNG without a header"
