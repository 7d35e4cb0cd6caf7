"""Any folder of images and labels that a file `dataset.yaml` in it describes:

    images: images/{id}.png             # PNG, JPEG, or NPY: (H, W, 3), uint8 or float in [0, 1]
    tasks:
      - letter: s
        kind: classes
        classes: [floor, wall, ball]    # or their number
        files: plan/{id}.png
        invalid: 255                    # pixels without a label
        values: [10, 20, 30]            # raw value of each class, unless 0, 1, 2; or `shift`, or `colors`
      - letter: h                       # a new task
        name: height
        kind: regression
        files: height/{id}.npy
        scale: 0.5                      # target = scale * raw + offset
        error: absolute error
    splits: {train: "a_*", test: "b_*"} # patterns of ids, lists, list files, or {ratio: 0.8}

`description` says what each field means. Sizes are as in `decoding`; labels may be PNG or NPY but not JPEG, which
would blur them. `nyuv2` and `cityscapes` are descriptions too.
"""

from __future__ import annotations

import reprlib
import threading
import tokenize
import zipfile
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image

from mtrlib import machine
from mtrlib.data import decoding, description
from mtrlib.data.decoding import Arrays, File, Part, Source
from mtrlib.data.description import Description, Label
from mtrlib.tasks import Task

_VERSION = "folder 2"
# numpy parses the header of an array with `ast`. Threads that do so at once disturb each other: a SystemError now and
# then, seen with Python 3.11 (and reported as python/cpython issue 106905).
_PARSING = threading.Lock()
_GREY = ("8-bit grey PNG", "16-bit grey PNG")
# Of classes also palettes, whose pixels are read as they are, and grey of one bit. Grey of two or four bits is not
# read: Pillow stretches it to eight.
_PALETTES = tuple(f"{bits}-bit palette PNG" for bits in (1, 2, 4, 8))
_CLASSES = ("1-bit grey PNG", *_PALETTES)
# Of colours all that Pillow reads as it shows it; optimisers of PNG files choose among these.
_COLOURS = ("8-bit RGB PNG", "8-bit RGBA PNG", *(f"{bits}-bit grey PNG" for bits in (1, 2, 4, 8)), *_PALETTES)


def tasks(root: Path | None) -> dict[str, Task]:
    """Definitions, from the description."""
    return _described(_root(root)).definitions


def digest(root: Path) -> str:
    """What names the content of the description."""
    return description.digest(root, _described(_root(root)).splits)


def source(root: Path, *, letters: str, split: str, size: int | None, limit: int | None = None) -> Source:
    """What `decoding` reads."""
    return described("folder", _described(_root(root)), root, letters, split, size, limit)


def described(
    name: str, what: Description, root: Path, letters: str, split: str, size: int | None, limit: int | None = None
) -> Source:
    """What `decoding` reads of a folder in which lies what a description says; `name` is that of the data set.

    ValueError for a pattern that matches nothing and a path that leaves the root.
    """
    machine.folder(root, "the data (root)")
    images = description.find(what, root, split)[:limit]

    def files(kind: str, pattern: str) -> list[File]:
        names = [pattern.replace("{split}", folder).replace("{id}", image) for image, folder in images]
        found = [decoding.find(kind, path) for path in description.places(root, names)]
        if all(file.bytes < 0 for file in found):
            raise ValueError(
                f"{root} should hold {kind} {pattern}. Found no {found[0].path} nor any other for {split}."
            )
        return found

    parts = {decoding.IMAGES: decoding.images(files("images", what.images), size, read_image)}
    labels = {label.letter: label for label in what.tasks}
    for letter in letters:
        parts[letter] = label_part(labels[letter], files(f"labels of {letter}", labels[letter].files), size)
    return Source(
        name=name,
        version=_VERSION,
        where=root,
        split=split,
        ids=tuple(f"{folder}/{image}" if folder else image for image, folder in images),
        parts=parts,
        masks={},
        tasks={letter: labels[letter].task for letter in letters},
    )


def label_part(
    label: Label, files: list[File], size: int | None, kinds: Sequence[str] = (), table: dict[int, int] | None = None
) -> Part:
    """The part of one task. `kinds`, where given, are the PNG files that it may have. `table`, where given, says what
    each raw value stands for, in the place of the label's own: raw -> class, below 0 for none."""
    edge = size or 0
    shape, dtype = ((edge, edge), np.uint8) if label.kind == "classes" else ((label.channels, edge, edge), np.float32)
    layout = {"values": (shape, dtype)}
    if label.invalid is not None or label.shift is not None:
        layout["mask"] = ((edge, edge), np.bool_)
    table = label.table if table is None else table

    def decode(group: Sequence[File], image_size: tuple[int, int] | None) -> Arrays:
        return _target(label, group[0].path, read_label(label, group[0].path, image_size, kinds), size, table)

    return Part([(file,) for file in files], layout, decode, f"{label.model_dump(exclude={'files', 'name'})} {table}")


def read_image(path: str) -> Image.Image:
    """An image of any of the formats, as RGB; ValueError naming the file for a bad one."""
    if not path.lower().endswith(".npy"):
        return decoding.read_image(path, decoding.COLOURS).convert("RGB")
    values = _array(path)
    if values.ndim != 3 or values.shape[2] != 3:
        raise ValueError(f"{path} should be an array (H, W, 3). Found {values.shape}.")
    if values.dtype != np.uint8:
        if not (values.dtype.kind == "f" and np.isfinite(values).all() and 0 <= values.min() <= values.max() <= 1):
            found = f"{values.dtype}, {values.min()} to {values.max()}"
            raise ValueError(f"{path} should hold uint8, or floats in [0, 1]. Found {found}.")
        values = np.rint(values * 255).astype(np.uint8)
    return Image.fromarray(np.ascontiguousarray(values))


def read_label(label: Label, path: str, image_size: tuple[int, int] | None, kinds: Sequence[str] = ()) -> np.ndarray:
    """Raw values, (H, W, C); ValueError naming the file for a bad one, a PNG that is none of `kinds`, where those are
    given, or another size than that of its image."""
    channels = 3 if label.colors else 1 if label.kind == "classes" else label.channels
    if path.lower().endswith(".npy"):
        raw = _array(path)
        raw = raw[..., None] if raw.ndim == 2 else raw
        if raw.ndim != 3 or raw.shape[2] != channels:
            raise ValueError(f"{path} should be an array (H, W, {channels}). Found {raw.shape}.")
        if image_size is not None and raw.shape[:2] != image_size[::-1]:
            size = f"{image_size[0]} x {image_size[1]}"
            raise ValueError(f"{path} should be {size} like its image. Found {raw.shape[1]} x {raw.shape[0]}.")
        return raw
    if channels > 3:
        raise ValueError(f"{path} should be an array in a .npy file: a PNG has no {channels} channels.")
    one = (*_GREY, *_CLASSES) if label.kind == "classes" else _GREY
    kinds = kinds or (_COLOURS if label.colors else one if channels == 1 else ("8-bit RGB PNG",))
    opened = decoding.read_image(path, kinds, image_size)
    image = np.asarray(opened.convert("RGBA").convert("RGB") if label.colors else opened)
    return (image[..., None] if image.ndim == 2 else image[..., :channels]).astype(np.int32)


def _target(label: Label, path: str, raw: np.ndarray, size: int | None, table: dict[int, int] | None) -> Arrays:
    """(H, W, C) raw values -> target and mask at `size`, after a look at every pixel."""
    if label.invalid is None:
        absent = np.zeros(raw.shape, dtype=bool)
    elif isinstance(label.invalid, list):
        absent = raw == np.array(label.invalid)
    else:
        absent = np.isnan(raw) if np.isnan(label.invalid) else raw == label.invalid
    valid = ~absent.all(axis=-1, keepdims=True)
    if raw.dtype == np.float16:
        raw = raw.astype(np.float32)  # whose products do not overflow or round away
    with np.errstate(over="ignore", invalid="ignore"):
        wrong = ~(np.abs(raw * label.scale + label.offset) <= np.finfo(np.float32).max) & valid  # targets are float32
    _refuse(wrong, path, raw, "numbers")
    shift = label.shift or 0
    if label.shift is not None:
        raw = raw.astype(np.float64)  # whole numbers of eight bits do not go below 0
        valid &= (raw + shift >= 0) | (raw != np.floor(raw))
    if table is not None:
        classes, unknown = _classes(raw, table)
        _refuse(unknown & valid, path, raw, f"one of {reprlib.repr(label.colors or list(table))}")
        raw, valid = classes, valid & (classes >= 0)
    raw = np.where(valid, raw, -shift)
    mask = {} if label.invalid is label.shift is None else {"mask": decoding.nearest(valid[..., 0], size)}
    if label.kind == "regression":
        target = decoding.nearest(raw, size) * label.scale + label.offset
        return {"values": target.transpose(2, 0, 1).astype(np.float32), **mask}
    last = label.task.channels - 1
    wrong = (raw + shift < 0) | (raw + shift > last) | (raw != np.floor(raw))
    if wrong.any():
        raise ValueError(f"{path} should hold classes {-shift} to {last - shift}. Found {raw[wrong].max():g}.")
    return {"values": decoding.nearest((raw + shift)[..., 0], size).astype(np.uint8), **mask}


def _classes(raw: np.ndarray, table: dict[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """(H, W, 1) or, of colours, (H, W, 3) raw values -> classes and whether the table lacks them, (H, W, 1) each."""
    if raw.shape[2] == 3:
        colours = ((raw >= 0) & (raw <= 255) & (raw == np.floor(raw))).all(axis=-1, keepdims=True)
        raw = np.where(colours, np.where(colours, raw, 0).astype(np.int64) @ [[1 << 16], [1 << 8], [1]], -1)
    known = np.array(sorted(table))
    place = np.searchsorted(known, raw).clip(max=len(known) - 1)
    return np.array([table[value] for value in known.tolist()])[place], known[place] != raw


def _refuse(wrong: np.ndarray, path: str, raw: np.ndarray, what: str) -> None:
    """ValueError for the first pixel that is wrong, (H, W, C), or (H, W, 1) where all channels are together."""
    if wrong.any():
        row, column = np.argwhere(wrong)[0][:2]
        found = raw[wrong][0] if wrong.shape == raw.shape else raw[row, column].tolist()
        raise ValueError(f"{path} should hold {what}. Found {found} in row {row}, column {column}.")


def _array(path: str) -> np.ndarray:
    try:
        with open(path, "rb"), _PARSING:  # open says why a file cannot be read
            values = np.load(path, mmap_mode="r", allow_pickle=False)  # a map: no more than the file has
    except OSError as error:
        raise decoding.unreadable(path, error) from error
    except (ValueError, EOFError, OverflowError, SyntaxError, zipfile.BadZipFile, tokenize.TokenError) as error:
        raise ValueError(f"{path} is truncated or damaged: {' '.join(str(error).split())}.") from error
    if isinstance(values, np.lib.npyio.NpzFile):
        values.close()
    if not isinstance(values, np.ndarray) or values.dtype.kind not in "biuf" or not values.size:
        raise ValueError(f"{path} should be an array of numbers. Found {getattr(values, 'dtype', type(values))}.")
    return values


def _root(root: Path | None) -> Path:
    if root is None:
        raise ValueError("Parameter root should be the folder of the data. Found root = None.")
    return root


def _described(root: Path) -> Description:
    machine.folder(root, "the data (root)")
    try:
        status = (root / description.FILE).stat()
    except OSError:
        return description.read(root)  # says what is wrong
    return _read(root, status.st_mtime_ns, status.st_size)


@lru_cache(maxsize=8)
def _read(root: Path, modified: int, size: int) -> Description:
    return description.read(root)
