"""Taskonomy (arXiv 1804.08328) and Omnidata (arXiv 2110.04994) as published: images and the labels of all eleven tasks.

Layout: `<root>[/<building>]/<domain>/point_<p>_view_<v>_domain_<domain>.png`. The root is a building where it has a
folder `rgb`; otherwise each sub-folder that has one is. The frames are those of `rgb`, by building, point and view.
Domains are those of `tasks.TASKS` and mask_valid. As in the paper's published code, points below 1200 are to train.

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
the files that a frame has; where no frame has any the mask is None. This is the published code without its bugs: its E
is not clipped (up to 319), its s counts "uncertain" as background in the error, and its p is read as grey and shifted
by about (123, 120), which leaves nearly constant targets; the two principal curvatures are in the first two channels,
with 127 for none. As there, normals are not rescaled to unit length, and d and D do not look at mask_valid.

rgb may also be RGBA, or an RGB JPEG named .png, as in Omnidata's BlendedMVS; labels are PNG alone.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from mtrlib import tasks
from mtrlib.data import decoding, pixels
from mtrlib.data.decoding import Arrays, File, Part, Source

CLASSES = (
    *("uncertain", "background", "bottle", "chair", "couch", "potted plant", "bed", "dining table", "toilet"),
    *("tv", "microwave", "oven", "toaster", "sink", "refrigerator", "book", "clock", "vase"),
)

TASKS = tasks.TASKS | {"s": replace(tasks.TASKS["s"], class_names=CLASSES)}
_FIRST_TEST_POINT = 1200
_FIRST_INVALID_DEPTH = 64500
_CLIPPED = {"k": 0.005, "e": 0.08, "E": 0.00625}  # of the full 16-bit range: the values that the task tells apart
_MASKED = "nEKpr"  # by geometry
_NO_CURVATURE = 127

_GREY16 = ("16-bit grey PNG",)
_KINDS = {
    **dict.fromkeys("dDkKeE", _GREY16),
    "s": ("8-bit grey PNG", *pixels.PALETTES),
    "n": ("8-bit RGB PNG",),
    "p": ("8-bit RGB PNG",),
    "r": ("8-bit RGB PNG", "8-bit grey PNG"),
    "A": pixels.COLOURS,
    "mask_valid": ("8-bit grey PNG", "1-bit grey PNG"),
}
_Frame = tuple[Path, int, int, str]  # building, point, view and "point_p_view_v" as its files spell it
_FILE_NAME = re.compile(r"(point_([0-9]{1,18})_view_([0-9]{1,18}))_domain_(\w+)\.png")


def source(root: Path, letters: str, split: str, limit: int | None) -> Source:
    """What `decoding` reads; the module's docstring says what it is.

    Ids are "building/point_p_view_v", without the building where it is the root itself. ValueError for a root or split
    without frames.
    """
    frames = _frames(root, split)[:limit]
    images = _find(frames, "rgb")
    found = {letter: images if letter == "A" else _find(frames, TASKS[letter].domain) for letter in letters}
    parts = {decoding.IMAGES: decoding.images(images)}
    for letter, files in found.items():
        parts[letter] = Part([(file,) for file in files], partial(_decode, letter), masked=letter in "sdD")
    masked = [letter for letter in letters if letter in _MASKED]
    if masked:
        euclidean = found.get("D") or _find(frames, "depth_euclidean")
        depth = found.get("d") or _find(frames, "depth_zbuffer")
        groups = zip(euclidean, depth, _find(frames, "mask_valid"), strict=True)
        pairs = [(first if first.bytes >= 0 else second, marked) for first, second, marked in groups]
        valid = [tuple(file for file in pair if file.bytes >= 0) for pair in pairs]
        if any(valid):
            parts["valid"] = Part(valid, partial(_decode, "valid"), masked=True)
    ids = tuple(stem if building == root else f"{building.name}/{stem}" for building, *_, stem in frames)
    return Source(ids, parts, dict.fromkeys(masked, "valid") if "valid" in parts else {})


def _frames(root: Path, split: str) -> list[_Frame]:
    """The frames of a split, in order."""
    roots = [root] if (root / "rgb").is_dir() else root.iterdir()
    buildings = [folder for folder in roots if (folder / "rgb").is_dir()]
    names = [(each, name) for each in buildings for name in map(_FILE_NAME.fullmatch, os.listdir(each / "rgb")) if name]
    frames = sorted((each, int(name[2]), int(name[3]), name[1]) for each, name in names if name[4] == "rgb")
    if not frames:
        named, found = "[<building>/]rgb/point_<p>_view_<v>_domain_rgb.png", f"in {len(buildings)} folders rgb"
        raise ValueError(f"{root} should hold files {named}. Found no such file {found}.")
    chosen = [frame for frame in frames if (frame[1] < _FIRST_TEST_POINT) == (split == "train")]
    if not chosen:
        points = [point for _, point, *_ in frames]
        rule = f"train is point < {_FIRST_TEST_POINT}, test the others"
        found = f"{len(frames)} frames of points {min(points)} to {max(points)}"
        raise ValueError(f"{root} has no frames to {split}: {rule}. Found {found}.")
    return chosen


def _find(frames: Sequence[_Frame], domain: str) -> list[File]:
    """The file of a domain of each frame, whether or not it is there."""
    places = {building: _spelling(building, domain) for building in {building for building, *_ in frames}}
    files = [(*places[building], stem) for building, *_, stem in frames]
    return [decoding.find(domain, f"{folder}{os.sep}{stem}_domain_{suffix}.png") for folder, suffix, stem in files]


def _spelling(building: Path, domain: str) -> tuple[Path, str]:
    """The folder of a domain, and the domain's name in its files, as the first of them has it."""
    spellings = (domain, "segmentsemantic") if domain == "segment_semantic" else (domain,)
    for folder in (building / spelling for spelling in spellings):
        for name in map(_FILE_NAME.fullmatch, os.listdir(folder) if folder.is_dir() else ()):
            if name and name[4] in spellings:
                return folder, name[4]
    return building / domain, domain


def _decode(part: str, files: Sequence[File], image_size: tuple[int, int], size: int | None) -> Arrays:
    """One frame of a letter, or of "valid". image_size : width and height of its rgb, in pixels."""
    if part == "valid":
        mask = np.ones((image_size[1], image_size[0]) if size is None else (size, size), dtype=bool)
        for file in files:
            kinds = _KINDS["mask_valid"] if file.what == "mask_valid" else _GREY16
            raw = pixels.nearest(np.asarray(pixels.read_image(file.path, kinds, image_size)), size)
            mask &= raw > 0 if file.what == "mask_valid" else raw < _FIRST_INVALID_DEPTH
        return {"mask": mask}
    path = files[0].path
    image = pixels.read_image(path, _KINDS[part], image_size)
    if part == "A":
        colours = np.asarray(pixels.square(image.convert("RGB"), size), dtype=np.float32)
        return {"values": colours.transpose(2, 0, 1) / 127.5 - 1}
    whole = np.asarray(image.convert("L") if part == "r" else image)
    if part == "s" and whole.max() >= len(CLASSES):
        raise ValueError(f"{path} should hold classes 0 to {len(CLASSES) - 1}. Found {whole.max()}.")
    raw = pixels.nearest(whole, size)
    if part == "s":
        return {"values": raw, "mask": raw > 0}
    raw = raw[None] if raw.ndim == 2 else raw.transpose(2, 0, 1)
    if part in "nr":
        return {"values": raw / 127.5 - 1}
    if part == "p":
        return {"values": (raw[:2] - np.float32(_NO_CURVATURE)) / 128}
    if part in "dD":
        return {"values": np.log1p(raw, dtype=np.float64) / np.log(2**16), "mask": raw[0] < _FIRST_INVALID_DEPTH}
    return {"values": np.clip(raw / 65535 / _CLIPPED.get(part, 1) * 2 - 1, -1, 1)}
