"""Taskonomy (arXiv 1804.08328) and Omnidata (arXiv 2110.04994) as published: images and the labels of all eleven tasks.

Layout: `<root>[/<building>]/<domain>/point_<p>_view_<v>_domain_<domain>.png`, or as Omnidata's with the domain first,
`<root>/<domain>[/taskonomy]/<building>/point_...`. Folders `rgb` are looked for in the root, else in its sub-folders,
else in theirs; what lies above and below one is the building. The frames are those of `rgb`, by building, point and
view. Domains are those of `tasks.TASKS` and mask_valid. As in the paper's published code, points below 1200 train.

rgb may be a JPEG named .png as in Omnidata's BlendedMVS; `_LABELS` has the files and targets of labels. k, e, A have
labels everywhere, s where it is not "uncertain", d and D where their own raw depth is below 64500, all others where
geometry is valid: where depth_euclidean is below 64500 (depth_zbuffer where a frame lacks the former) and
mask_valid above 0, of the files that a frame has; where no frame has any the mask is None. This is the published code
without its bugs: its E is not clipped (up to 319), its s counts "uncertain" as background in the error, and its p is
read as grey and shifted by about (123, 120), which leaves nearly constant targets. As there, normals are not rescaled
to unit length, and d and D do not look at mask_valid.
"""

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from mtrlib import tasks
from mtrlib.data import decoding, listing, pixels
from mtrlib.data.decoding import Arrays, File, Part, Source

CLASSES = (
    *("uncertain", "background", "bottle", "chair", "couch", "potted plant", "bed", "dining table", "toilet"),
    *("tv", "microwave", "oven", "toaster", "sink", "refrigerator", "book", "clock", "vase"),
)
TASKS = tasks.TASKS | {"s": replace(tasks.TASKS["s"], class_names=CLASSES)}
_FIRST_TEST_POINT = 1200
_FIRST_INVALID_DEPTH = 64500
_FILE_NAME = re.compile(r"(point_([0-9]{1,18})_view_([0-9]{1,18}))_domain_(\w+)\.png")
_ALSO = {"mask_valid": ("depth_zbuffer",)}  # what files of a domain are called, too: masks as they are published
_Frame = tuple[Path, str, str]  # folders above and below that of a domain, and "point_p_view_v" as files spell it


_GREY, _GREY16, _RGB = (f"{kind} PNG" for kind in ("8-bit grey", "16-bit grey", "8-bit RGB"))
_FULL = {"k": 0.005, "K": 1, "e": 0.08, "E": 0.00625}  # shares of 16 bits: -1 to 1 are 0 to this, clipped above
_LABELS: dict[str, tuple[tuple[str, ...], Callable[[np.ndarray], np.ndarray]]] = {  # raw values are (C, H, W)
    "s": ((_GREY, *pixels.PALETTES), lambda raw: raw[0]),  # of a palette the indices
    **dict.fromkeys("dD", ((_GREY16,), lambda raw: np.log1p(raw, dtype=np.float64) / np.log(2**16))),
    "n": ((_RGB,), lambda raw: raw / 127.5 - 1),
    **{x: ((_GREY16,), lambda raw, full=full: np.clip(raw / 65535 / full * 2 - 1, -1, 1)) for x, full in _FULL.items()},
    "p": ((_RGB,), lambda raw: (raw[:2] - np.float32(127)) / 128),  # the two principal curvatures, 127 for none
    "r": ((_RGB, _GREY), lambda raw: raw / 127.5 - 1),  # read as grey
    "A": (pixels.IMAGES, lambda raw: raw.astype(np.float32) / 127.5 - 1),
}


def source(root: Path, letters: str, split: str, limit: int | None) -> Source:
    """What `decoding` reads; ids are "building/point_p_view_v", without the building where it is the root itself.

    ValueError for a root or split without frames.
    """
    frames = _frames(root, split)[:limit]
    parts, masks = {decoding.IMAGES: decoding.images(_find(frames, "rgb"))}, {}
    for letter in letters:
        files = [(file,) for file in _find(frames, TASKS[letter].domain)]
        parts[letter] = Part(files, partial(_decode, letter), masked=letter in "sdD")
    if masked := [letter for letter in letters if letter in "nEKpr"]:
        each = zip(*(_find(frames, name) for name in ("depth_euclidean", "depth_zbuffer", "mask_valid")), strict=True)
        pairs = [(euclidean if euclidean.bytes >= 0 else depth, marked) for euclidean, depth, marked in each]
        valid = [tuple(file for file in pair if file.bytes >= 0) for pair in pairs]
        if any(valid):
            parts["valid"], masks = Part(valid, partial(_decode, "valid"), masked=True), dict.fromkeys(masked, "valid")
    ids = tuple((above.relative_to(root) / below / stem).as_posix() for above, below, stem in frames)
    return Source(ids, parts, masks)


def _frames(root: Path, split: str) -> list[_Frame]:
    """The frames of a split, in order."""
    places = ([path for path in root.glob(where) if path.is_dir()] for where in ("rgb", "*/rgb", "*/*/rgb"))
    places = ([path for path in some if not any(map(listing.stray, path.relative_to(root).parts))] for some in places)
    found = next(filter(None, places), [])
    names = [(rgb, path, _FILE_NAME.fullmatch(path.name)) for rgb in found for path in listing.walk(rgb)]
    named = [(rgb, path.parent.relative_to(rgb).as_posix(), name) for rgb, path, name in names if name]
    frames = sorted((rgb.parent, *at, int(of[2]), int(of[3]), of[1]) for rgb, *at, of in named if of[4] == "rgb")
    if not frames:
        wanted = "[<building>/]rgb/point_<p>_view_<v>_domain_rgb.png, or rgb/[taskonomy/]<building>/point_..."
        raise ValueError(f"{root} should hold files {wanted}. Found no such file in {len(found)} folders rgb.")
    points = [point for _, _, point, *_ in frames]
    chosen = [(*place, stem) for *place, point, _, stem in frames if (point < _FIRST_TEST_POINT) == (split == "train")]
    if not chosen:
        rule = f"train is point < {_FIRST_TEST_POINT}, test the others"
        found = f"{len(frames)} frames of points {min(points)} to {max(points)}"
        raise ValueError(f"{root} has no frames to {split}: {rule}. Found {found}.")
    return chosen


def _find(frames: Sequence[_Frame], domain: str) -> list[File]:
    """The file of a domain of each frame, there or not; in the first spelling of its folder and files that is there.

    ValueError for a folder of the domain whose files are all called otherwise.
    """
    folders = ("segment_semantic", "segmentsemantic") if domain == "segment_semantic" else (domain,)
    names = (*folders, *_ALSO.get(domain, ()))
    places = {}
    for above, below in {(above, below) for above, below, _ in frames}:
        there = [folder for folder in (above / name / below for name in folders) if folder.is_dir()]
        listed = [(folder, name) for folder in there for name in sorted(os.listdir(folder)) if not listing.stray(name)]
        files = ((folder, match) for folder, name in listed if (match := _FILE_NAME.fullmatch(name)))
        spelled = [(folder, match[4]) for folder, match in files if match[4] in names]
        if listed and not spelled:
            folder, name = listed[0]
            raise ValueError(f"{folder} should hold files point_<p>_view_<v>_domain_{domain}.png. Found {name}.")
        places[above, below] = (spelled or [(above / domain / below, domain)])[0]
    paths = ((*places[above, below], stem) for above, below, stem in frames)
    return [decoding.find(domain, f"{folder}{os.sep}{stem}_domain_{name}.png") for folder, name, stem in paths]


def _decode(part: str, files: Sequence[File], image_size: tuple[int, ...], size: int | None) -> Arrays:
    """One frame of a letter, or of "valid". image_size : width and height of its rgb, in pixels."""
    if part == "valid":
        mask = np.ones((image_size[1], image_size[0]) if size is None else (size, size), dtype=bool)
        for file in files:
            marks = file.what == "mask_valid"
            kinds = (_GREY, "1-bit grey PNG") if marks else (_GREY16,)
            raw = pixels.nearest(np.asarray(pixels.read_image(file.path, kinds, image_size)), size)
            mask &= raw > 0 if marks else raw < _FIRST_INVALID_DEPTH
        return {"mask": mask}
    kinds, target = _LABELS[part]
    if part == "A":
        image = pixels.square(pixels.read_colours(files[0].path)[0], size)
        return {"values": target(np.asarray(image).transpose(2, 0, 1))}
    image = pixels.read_image(files[0].path, kinds, image_size)
    raw = np.asarray(image.convert("L") if part == "r" else image)
    if part == "s" and raw.max() >= len(CLASSES):
        raise ValueError(f"{files[0].path} should hold classes 0 to {len(CLASSES) - 1}. Found {raw.max()}.")
    raw = pixels.nearest(raw, size)
    raw = raw[None] if raw.ndim == 2 else raw.transpose(2, 0, 1)
    mask = {"mask": raw[0] > 0 if part == "s" else raw[0] < _FIRST_INVALID_DEPTH} if part in "sdD" else {}
    return {"values": target(raw), **mask}
