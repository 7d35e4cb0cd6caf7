"""Any folder of images and labels that a file `dataset.yaml` in it describes: `description` says what it may hold.

`example.yaml`, `nyuv2.yaml` and `cityscapes.yaml`, beside this file, are such descriptions. Labels may be PNG or NPY
but not JPEG, which would blur them.
"""

from __future__ import annotations

import reprlib
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np

from mtrlib.data import decoding, listing, pixels
from mtrlib.data.decoding import Arrays, File, Part, Source
from mtrlib.data.description import Description, Label

_GREY = ("8-bit grey PNG", "16-bit grey PNG")
# Of classes also palettes, whose pixels are read as they are, and grey of one bit. Grey of two or four bits is not
# read: Pillow stretches it to eight.
_CLASSES = (*_GREY, "1-bit grey PNG", *pixels.PALETTES)
# Of colours all that Pillow reads as it shows it; optimisers of PNG files choose among these.
_COLOURS = ("8-bit RGB PNG", "8-bit RGBA PNG", *(f"{bits}-bit grey PNG" for bits in (1, 2, 4, 8)), *pixels.PALETTES)


def source(what: Description, root: Path, letters: str, split: str, limit: int | None) -> Source:
    """What `decoding` reads of a folder in which lies what a description says.

    ValueError for a pattern that matches nothing and a path that leaves the root.
    """
    images = listing.find(what, root, split)[:limit]

    def files(kind: str, pattern: str) -> list[File]:
        found = [decoding.find(kind, path) for path in listing.paths(root, map(pattern.format_map, images))]
        if all(file.bytes < 0 for file in found):
            nothing = f"Found no {found[0].path} nor any other for {split}."
            raise ValueError(f"{root} should hold {kind} {pattern}. {nothing}")
        return found

    parts = {decoding.IMAGES: decoding.images(files("images", what.images))}
    labels = {label.letter: label for label in what.tasks}
    for letter in letters:
        label = labels[letter]
        found = [(file,) for file in files(f"labels of {letter}", label.files)]
        settings = str(label.model_dump(exclude={"files", "name"}))
        parts[letter] = Part(found, partial(_decode, label), label.masked, settings)
    return Source(tuple(map(what.name, images)), parts)


def read_label(label: Label, path: str, image_size: tuple[int, int] | None) -> np.ndarray:
    """Raw values, (H, W, C); ValueError naming the file for a bad one, or another size than that of its image."""
    channels = 3 if label.colors else 1 if label.kind == "classes" else label.channels
    if path.lower().endswith(".npy"):
        raw = pixels.read_array(path)
        raw = raw[..., None] if raw.ndim == 2 else raw
        if raw.ndim != 3 or raw.shape[2] != channels:
            raise ValueError(f"{path} should be an array (H, W, {channels}). Found {raw.shape}.")
        if image_size is not None and raw.shape[:2] != image_size[::-1]:
            size = f"{image_size[0]} x {image_size[1]}"
            raise ValueError(f"{path} should be {size} like its image. Found {raw.shape[1]} x {raw.shape[0]}.")
        return raw
    if channels > 3:
        raise ValueError(f"{path} should be an array in a .npy file: a PNG has no {channels} channels.")
    one = _CLASSES if label.kind == "classes" else _GREY
    kinds = _COLOURS if label.colors else one if channels == 1 else ("8-bit RGB PNG",)
    kinds = (f"{label.png} PNG",) if label.png else kinds
    opened = pixels.read_image(path, kinds, image_size)
    image = np.asarray(opened.convert("RGBA").convert("RGB") if label.colors else opened)
    return (image[..., None] if image.ndim == 2 else image[..., :channels]).astype(np.int32)


def _decode(label: Label, files: Sequence[File], image_size: tuple[int, int] | None, size: int | None) -> Arrays:
    """The target and mask of one image at `size`, after a look at every pixel."""
    path = files[0].path
    raw = read_label(label, path, image_size)
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
    shift, table = label.shift or 0, label.table
    if label.shift is not None:
        raw = raw.astype(np.float64)  # whole numbers of eight bits do not go below 0
        valid &= (raw + shift >= 0) | (raw != np.floor(raw))
    if table is not None:
        classes, unknown = _classes(raw, table)
        _refuse(unknown & valid, path, raw, f"one of {reprlib.repr(label.colors or list(table))}")
        raw, valid = classes, valid & (classes >= 0)
    raw = np.where(valid, raw, -shift)
    mask = {} if not label.masked else {"mask": pixels.nearest(valid[..., 0], size)}
    if label.kind == "regression":
        target = pixels.nearest(raw, size) * label.scale + label.offset
        return {"values": target.transpose(2, 0, 1).astype(np.float32), **mask}
    last = label.task.channels - 1
    wrong = (raw + shift < 0) | (raw + shift > last) | (raw != np.floor(raw))
    if wrong.any():
        raise ValueError(f"{path} should hold classes {-shift} to {last - shift}. Found {raw[wrong].max():g}.")
    return {"values": pixels.nearest((raw + shift)[..., 0], size).astype(np.uint8), **mask}


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
