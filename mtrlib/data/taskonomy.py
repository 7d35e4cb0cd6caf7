"""Taskonomy (arXiv 1804.08328) and Omnidata (arXiv 2110.04994) as published: images and the labels of all eleven tasks.

Layout: `<root>[/<building>]/<domain>/point_<p>_view_<v>_domain_<domain>.png`. The root is a building where it has a
folder `rgb`; otherwise the buildings are those of its sub-folders that have one, and others are ignored. The
frames are those of `rgb`, in the order of building name, point and view. Domains are those of `tasks.TASKS`
(segment_semantic may also be spelt segmentsemantic), and as a mask mask_valid.

Split (as the paper's published code): train has the points below 1200 of every building, test the others.

Labels, from the raw values of the files:

====== ============================================ ============================== ===========================
letter file                                         target                         valid where
====== ============================================ ============================== ===========================
s      8-bit grey, or palette (its indices), 0..17  raw                            raw > 0 (0 is "uncertain")
d, D   16-bit grey                                  log(1 + raw) / log(2^16)       raw < 64500, own file
n      8-bit RGB                                    2 raw / 255 - 1                geometry is valid
k      16-bit grey                                  2 (raw / 65535) / .005 - 1,    everywhere
                                                    clipped to [-1, 1]
K      16-bit grey                                  2 (raw / 65535) - 1            geometry is valid
e      16-bit grey                                  2 (raw / 65535) / .08 - 1,     everywhere
                                                    clipped to [-1, 1]
E      16-bit grey                                  2 (raw / 65535) / .00625 - 1,  geometry is valid
                                                    clipped to [-1, 1]
p      8-bit RGB, red and green                     (raw - 127) / 128              geometry is valid
r      8-bit RGB or grey, read as grey              2 raw / 255 - 1                geometry is valid
A      the image                                    raw / 127.5 - 1                everywhere
====== ============================================ ============================== ===========================

Geometry is valid where depth_euclidean < 64500 (depth_zbuffer where a frame lacks the former) and mask_valid > 0, of
the files that a frame has: none of them is required, and where no frame has any the mask is None. As in the
published code, with its bugs left out: its E is not clipped (up to 319), its s counts "uncertain" as background in the
error, and its p is read as grey and shifted by about (123, 120), which leaves nearly constant targets. Here p has the
two principal curvatures, which Taskonomy keeps in the first two channels with 127 for no curvature. As there, normals
are not rescaled to unit length, and d and D do not look at mask_valid.

Sizes and files: as in `decoding`; each file is checked for its bit depth and colours (rgb also as RGBA, or as an RGB
JPEG named .png, as in Omnidata's BlendedMVS; labels as PNG only) and for a size equal to that of its rgb.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mtrlib import machine
from mtrlib.data import decoding
from mtrlib.data.decoding import Arrays, File, Part, Source
from mtrlib.tasks import TASKS, Task

CLASSES = (
    *("uncertain", "background", "bottle", "chair", "couch", "potted plant", "bed", "dining table", "toilet"),
    *("tv", "microwave", "oven", "toaster", "sink", "refrigerator", "book", "clock", "vase"),
)

_FIRST_TEST_POINT = 1200
_FIRST_INVALID_DEPTH = 64500
_CLIPPED = {"k": 0.005, "e": 0.08, "E": 0.00625}  # of the full 16-bit range: the values that the task tells apart
_MASKED = "nEKpr"  # by geometry
_NO_CURVATURE = 127
_VERSION = "taskonomy 2"

_GREY16 = ("16-bit grey PNG",)
_PALETTES = tuple(f"{bits}-bit palette PNG" for bits in (8, 4, 2, 1))  # the same indices in fewer bits
_KINDS = {
    **dict.fromkeys("dDkKeE", _GREY16),
    "s": ("8-bit grey PNG", *_PALETTES),
    "n": ("8-bit RGB PNG",),
    "p": ("8-bit RGB PNG",),
    "r": ("8-bit RGB PNG", "8-bit grey PNG"),
    "A": decoding.COLOURS,
}
_SPELLINGS = {"segment_semantic": ("segment_semantic", "segmentsemantic")}
_FILE_NAME = re.compile(r"(point_([0-9]{1,18})_view_([0-9]{1,18}))_domain_(\w+)\.png")


class _Frame(NamedTuple):
    building: Path
    name: str  # "building/point_p_view_v"
    stem: str  # "point_p_view_v", as its files say it
    point: int


def tasks(root: Path | None = None) -> dict[str, Task]:
    """Definitions: the paper's, wherever the files are."""
    return TASKS | {"s": replace(TASKS["s"], class_names=CLASSES)}


def source(root: Path, *, letters: str, split: str, size: int | None, limit: int | None = None) -> Source:
    """What `decoding` reads; the module's docstring says what it is.

    Ids are "building/point_p_view_v", without the building where it is the root itself. ValueError for a root or split
    without frames.
    """
    frames = _frames(root, split)[:limit]
    images = _find(frames, "rgb")
    parts = {decoding.IMAGES: decoding.images(images, size)}
    found = {letter: images if letter == "A" else _find(frames, TASKS[letter].domain) for letter in letters}
    for letter, files in found.items():
        parts[letter] = Part([(file,) for file in files], _layout(letter, size or 0), _decoder(letter, size))
    masks = {letter: None for letter in letters if letter in "keA"}
    if set(letters) & set(_MASKED):
        shown = ("depth_euclidean", "depth_zbuffer", "mask_valid")
        given = (found.get("D") or _find(frames, shown[0]), found.get("d") or _find(frames, shown[1]))
        groups = zip(*given, _find(frames, shown[2]), strict=True)
        valid = [
            tuple(file for file in (euclidean if euclidean.bytes >= 0 else z, marked) if file.bytes >= 0)
            for euclidean, z, marked in groups
        ]
        if any(valid):
            parts["valid"] = Part(valid, {"mask": ((size or 0, size or 0), np.bool_)}, _decoder("valid", size))
        masks |= {letter: "valid" if any(valid) else None for letter in letters if letter in _MASKED}
    defined = tasks()
    return Source(
        name="taskonomy",
        version=_VERSION,
        where=root,
        split=split,
        ids=tuple(frame.name for frame in frames),
        parts=parts,
        masks=masks,
        tasks={letter: defined[letter] for letter in letters},
    )


def _frames(root: Path, split: str) -> list[_Frame]:
    """The frames of a split, in order."""
    machine.folder(root, "the data (root)")
    roots = [root] if (root / "rgb").is_dir() else sorted(root.iterdir())
    buildings = [folder for folder in roots if (folder / "rgb").is_dir()]
    frames = []
    for building in buildings:
        prefix = "" if building == root else f"{building.name}/"
        names = [match for match in map(_FILE_NAME.fullmatch, os.listdir(building / "rgb")) if match]
        for point, _, stem in sorted((int(name[2]), int(name[3]), name[1]) for name in names if name[4] == "rgb"):
            frames.append(_Frame(building, prefix + stem, stem, point))
    if not frames:
        raise ValueError(
            f"{root} should hold files [<building>/]rgb/point_<p>_view_<v>_domain_rgb.png. "
            f"Found no such file in {len(buildings)} folders rgb."
        )
    chosen = [frame for frame in frames if (frame.point < _FIRST_TEST_POINT) == (split == "train")]
    if not chosen:
        points = [frame.point for frame in frames]
        raise ValueError(
            f"{root} has no frames to {split}: train is point < {_FIRST_TEST_POINT}, test the others. "
            f"Found {len(frames)} frames of points {min(points)} to {max(points)}."
        )
    return chosen


def _find(frames: Sequence[_Frame], domain: str) -> list[File]:
    """The file of a domain of each frame, whether or not it is there."""
    starts = {building: _spelling(building, domain) for building in {frame.building for frame in frames}}
    files = []
    for frame in frames:
        folder, suffix = starts[frame.building]
        files.append(decoding.find(domain, f"{folder}{os.sep}{frame.stem}_domain_{suffix}.png"))
    return files


def _spelling(building: Path, domain: str) -> tuple[Path, str]:
    """The folder of a domain, and the domain's name in its files, as the first of them has it."""
    spellings = _SPELLINGS.get(domain, (domain,))
    for folder in (building / spelling for spelling in spellings):
        for name in map(_FILE_NAME.fullmatch, os.listdir(folder) if folder.is_dir() else ()):
            if name and name[4] in spellings:
                return folder, name[4]
    return building / domain, domain


def _layout(letter: str, size: int) -> dict:
    if letter == "s":
        return {"values": ((size, size), np.uint8), "mask": ((size, size), np.bool_)}
    mask = {"mask": ((size, size), np.bool_)} if letter in "dD" else {}
    return {"values": ((TASKS[letter].channels, size, size), np.float32), **mask}


def _decoder(part: str, size: int | None):
    return lambda files, image_size: _decode(part, files, image_size, size)


def _decode(part: str, files: Sequence[File], image_size: tuple[int, int], size: int | None) -> Arrays:
    """One frame of a letter, or of "valid", as in `_layout`. image_size : width and height of its rgb, in pixels."""
    if part == "valid":
        mask = np.ones((image_size[1], image_size[0]) if size is None else (size, size), dtype=bool)
        for file in files:
            raw = decoding.nearest(np.asarray(decoding.read_image(file.path, _mask_kinds(file), image_size)), size)
            mask &= raw > 0 if file.what == "mask_valid" else raw < _FIRST_INVALID_DEPTH
        return {"mask": mask}
    path = files[0].path
    image = decoding.read_image(path, _KINDS[part], image_size)
    if part == "A":
        colours = np.asarray(decoding.square(image.convert("RGB"), size), dtype=np.float32)
        return {"values": colours.transpose(2, 0, 1) / 127.5 - 1}
    whole = np.asarray(image.convert("L") if part == "r" else image)
    if part == "s" and whole.max() >= len(CLASSES):
        raise ValueError(f"{path} should hold classes 0 to {len(CLASSES) - 1}. Found {whole.max()}.")
    raw = decoding.nearest(whole, size)
    if part == "s":
        return {"values": raw, "mask": raw > 0}
    if part == "n":
        return {"values": raw.transpose(2, 0, 1) / 127.5 - 1}
    if part == "p":
        return {"values": (raw[..., :2].transpose(2, 0, 1) - np.float32(_NO_CURVATURE)) / 128}
    if part == "r":
        return {"values": raw[None] / 127.5 - 1}
    if part in "dD":
        return {"values": np.log1p(raw[None], dtype=np.float64) / np.log(2**16), "mask": raw < _FIRST_INVALID_DEPTH}
    return {"values": np.clip(raw[None] / 65535 / _CLIPPED.get(part, 1) * 2 - 1, -1, 1)}


def _mask_kinds(file: File) -> tuple[str, ...]:
    return ("8-bit grey PNG", "1-bit grey PNG") if file.what == "mask_valid" else _GREY16
