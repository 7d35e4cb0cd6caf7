"""Taskonomy (arXiv 1804.08328) and Omnidata (arXiv 2110.04994) as published: images and the labels s, d, D, n, E.

Layout: `<root>[/<building>]/<domain>/point_<p>_view_<v>_domain_<domain>.png`. The root is a building where it has a
folder `rgb`; otherwise the buildings are those of its sub-folders that have one, and others are ignored. The
frames are those of `rgb`, in the order of building name, point and view. Domains are segment_semantic (folders
and files may say segmentsemantic), depth_zbuffer, depth_euclidean, normal, edge_occlusion, and as a mask mask_valid.

Split (as the paper's published code): train has the points below 1200 of every building, test the others.

Labels, from the raw values of the files:

====== ============================================ ============================== ===========================
letter file                                         target                         valid where
====== ============================================ ============================== ===========================
s      8-bit grey, or palette (its indices), 0..17  raw                            raw > 0 (0 is "uncertain")
d, D   16-bit grey                                  log(1 + raw) / log(2^16)       raw < 64500, own file
n      8-bit RGB                                    2 raw / 255 - 1                geometry is valid
E      16-bit grey                                  2 (raw / 65535) / .00625 - 1,  geometry is valid
                                                    clipped to [-1, 1]
====== ============================================ ============================== ===========================

Geometry is valid where depth_euclidean < 64500 (depth_zbuffer where a frame lacks the former) and mask_valid > 0, of
the files that a frame has: none of them is required, and where no frame has any the mask is None. As in the
published code, with its bugs left out: its E is not clipped (up to 319), and its s counts "uncertain" as
background in the error. As there, normals are not rescaled to unit length, and d and D do not look at mask_valid.

Sizes: images that are not square are cut to the square at their centre, then resized to `size`. RGB is resampled
bilinearly over the area that a pixel covers (antialiased). Everything else takes the nearest pixel's raw value, the
same pixel for every label and mask: a mean would invent classes, and would mix invalid depths into valid ones.

Files: each is checked for its bit depth and colours (rgb also as RGBA, whose alpha is dropped, or as an RGB JPEG named
.png, as in Omnidata's BlendedMVS; labels as PNG only), for a size equal to that of its rgb, and for being whole (PNG
checksums included). A file of more pixels than PIL's MAX_IMAGE_PIXELS is bad. A file that may not be read, or
a disk that fails, is no bad frame: its OSError goes through.
"""

from __future__ import annotations

import os
import re
import struct
import warnings
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, UnidentifiedImageError

from mtrlib.data import Dataset, cache
from mtrlib.progress import bar
from mtrlib.tasks import TASKS as ALL_TASKS

TASKS = "sdDnE"
CLASSES = (
    *("uncertain", "background", "bottle", "chair", "couch", "potted plant", "bed", "dining table", "toilet"),
    *("tv", "microwave", "oven", "toaster", "sink", "refrigerator", "book", "clock", "vase"),
)

_FIRST_TEST_POINT = 1200
_FIRST_INVALID_DEPTH = 64500
_EDGE_RANGE = 0.00625  # of the full 16-bit range: the edges that E tells apart
_VERSION = "taskonomy 1"  # of what decoding gives; another one leaves the cached arrays behind

_GREY16 = ("16-bit grey PNG",)
_PALETTES = tuple(f"{bits}-bit palette PNG" for bits in (8, 4, 2, 1))  # the same indices in fewer bits
_KINDS = {
    "rgb": ("8-bit RGB PNG", "8-bit RGBA PNG", "RGB JPEG"),
    "segment_semantic": ("8-bit grey PNG", *_PALETTES),
    "depth_zbuffer": _GREY16,
    "depth_euclidean": _GREY16,
    "edge_occlusion": _GREY16,
    "normal": ("8-bit RGB PNG",),
    "mask_valid": ("8-bit grey PNG", "1-bit grey PNG"),
}
_SPELLINGS = {"segment_semantic": ("segment_semantic", "segmentsemantic")}
_FILE_NAME = re.compile(r"(point_([0-9]{1,18})_view_([0-9]{1,18}))_domain_(\w+)\.png")
_COLOURS = {0: "grey", 2: "RGB", 3: "palette", 4: "grey with alpha", 6: "RGBA"}  # PNG colour types


class _File(NamedTuple):
    domain: str
    path: str
    bytes: int  # -1: there is no such file
    modified: int  # ns


class _Frame(NamedTuple):
    building: Path
    name: str  # "building/point_p_view_v"
    stem: str  # "point_p_view_v", as its files say it
    point: int


_Group = list[tuple[_File, ...]]  # by frame, the files that one part of the data is decoded from


def load(root: Path, *, tasks: str, split: str, size: int, limit: int | None = None, on_bad: str = "raise") -> Dataset:
    """Load images and labels; the module's docstring says what they are. `mtrlib.data.load` checks the parameters.

    Files are decoded once, in parallel, into an entry of `mtrlib.data.cache` for each domain: another task set
    reuses those that it shares. An entry is made anew when the path, size or time of a file changes. Where frames
    are left out, the entries are copied without them.

    Parameters
    ----------
    root : folder of the buildings, or of the domains of one.
    tasks : letters out of `TASKS`.
    split : "train" or "test".
    size : height and width of images and labels, in pixels.
    limit : take this many frames, the first in order, before bad ones are left out; None for all.
    on_bad : "raise" stops at the first frame that lacks a file of `tasks` or has a bad one; "skip" leaves such frames
        out, lists them in `bad` (a text a frame) and warns of how many of how many.

    Returns
    -------
    Dataset, memory-mapped; ids are "building/point_p_view_v", without the building where it is the root itself.

    Raises
    ------
    ValueError : for tasks that this reader does not give, a root or split without frames, and a bad file, with its
        full path, what was expected and what was found.
    """
    if set(tasks) - set(TASKS):
        raise ValueError(f"Parameter tasks should be letters out of {TASKS!r} for taskonomy. Found tasks = {tasks!r}.")
    root = root.expanduser().absolute()
    frames = _frames(root, split)[:limit]
    sources = _sources(frames, tasks)
    bad: dict[int, list[str]] = {}
    for group in sources.values():
        for row, file in ((row, file) for row, files in enumerate(group) for file in files if file.bytes < 0):
            bad.setdefault(row, []).append(f"{file.path} is missing: {frames[row].name} has no {file.domain}.")
    if bad and on_bad == "raise":
        raise ValueError(bad[min(bad)][0])

    entries: dict[str, Path] = {}
    images = str(sources["rgb"])  # every label depends on the size of its image
    sizes = np.zeros((len(frames), 2), dtype=np.int32)  # of the rgb files, once those are decoded
    for part, group in sources.items():
        made_from = [_VERSION, part, str(size), images, str(group)]
        fill = partial(_fill, part, group, sizes, size, on_bad)
        entries[part] = cache.entry(f"taskonomy-{part}", made_from, _layout(part, len(frames), size), fill)
        arrays, notes = cache.read(entries[part])
        for row, note in notes.items():
            if on_bad == "raise":
                raise ValueError(note)
            bad.setdefault(row, []).append(note)
        if part == "rgb":
            sizes = arrays["sizes"].numpy()

    good = [row for row in range(len(frames)) if row not in bad]
    left_out = tuple(" ".join(bad[row]) for row in sorted(bad))
    if bad:
        summary = f"{len(bad)} of {len(frames)} frames left out of {root} ({split}, {tasks}), first: {left_out[0]}"
        if not good:
            raise ValueError(summary)
        warnings.warn(summary, stacklevel=3)
        entries = {part: cache.rows(folder, good) for part, folder in entries.items()}
    arrays = {part: cache.read(folder)[0] for part, folder in entries.items()}
    shared = arrays["valid"]["mask"] if "valid" in arrays else None
    return Dataset(
        name="taskonomy",
        images=arrays["rgb"]["values"],
        targets={letter: arrays[_part(letter)]["values"] for letter in tasks},
        masks={letter: arrays[_part(letter)].get("mask", shared) for letter in tasks},
        ids=tuple(frames[row].name for row in good),
        class_names=CLASSES,
        bad=left_out,
    )


def _part(letter: str) -> str:
    """The part of the data, and the entry of the cache, that holds the target of a task."""
    return ALL_TASKS[letter].domain


def _frames(root: Path, split: str) -> list[_Frame]:
    """The frames of a split, in order."""
    if not root.is_dir():
        raise ValueError(f"Parameter root should be a folder of Taskonomy files. Found no folder {root}.")
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


def _sources(frames: Sequence[_Frame], tasks: str) -> dict[str, _Group]:
    """The files that each part of the data is decoded from; rgb first, then in the order of the tasks.

    Parts are the domains of rgb and the tasks, and "valid", the mask of n and E, where a frame has a file for it.
    """
    found = {domain: _find(frames, domain) for domain in ("rgb", *map(_part, tasks))}
    sources: dict[str, _Group] = {domain: [(file,) for file in files] for domain, files in found.items()}
    if set(tasks) & set("nE"):
        masks = ("depth_euclidean", "depth_zbuffer", "mask_valid")
        groups = zip(*(found.get(domain) or _find(frames, domain) for domain in masks), strict=True)
        valid = [
            tuple(file for file in (euclidean if euclidean.bytes >= 0 else z, marked) if file.bytes >= 0)
            for euclidean, z, marked in groups
        ]
        if any(valid):
            sources["valid"] = valid
    return sources


def _find(frames: Sequence[_Frame], domain: str) -> list[_File]:
    """The file of a domain of each frame, whether or not it is there."""
    starts = {building: _spelling(building, domain) for building in {frame.building for frame in frames}}
    files = []
    for frame in frames:
        folder, suffix = starts[frame.building]
        path = f"{folder}{os.sep}{frame.stem}_domain_{suffix}.png"
        try:
            status = os.stat(path)
            files.append(_File(domain, path, status.st_size, status.st_mtime_ns))
        except (FileNotFoundError, NotADirectoryError):
            files.append(_File(domain, path, -1, 0))
    return files


def _spelling(building: Path, domain: str) -> tuple[Path, str]:
    """The folder of a domain, and the domain's name in its files, as the first of them has it."""
    spellings = _SPELLINGS.get(domain, (domain,))
    for folder in (building / spelling for spelling in spellings):
        for name in map(_FILE_NAME.fullmatch, os.listdir(folder) if folder.is_dir() else ()):
            if name and name[4] in spellings:
                return folder, name[4]
    return building / domain, domain


def _layout(part: str, number: int, size: int) -> cache.Layout:
    """The arrays of a part: "values" (N, C, S, S), or (N, S, S) for s, and "mask" (N, S, S), where it has them."""
    layout: cache.Layout = {}
    if part in ("valid", *map(_part, "sdD")):
        layout["mask"] = ((number, size, size), np.bool_)
    if part == _part("s"):
        layout["values"] = ((number, size, size), np.uint8)
    elif part == "rgb":
        layout |= {"values": ((number, 3, size, size), np.uint8), "sizes": ((number, 2), np.int32)}
    elif part != "valid":
        layout["values"] = ((number, 3 if part == _part("n") else 1, size, size), np.float32)
    return layout


def _fill(
    part: str, group: _Group, sizes: np.ndarray, size: int, on_bad: str, arrays: dict[str, np.memmap]
) -> dict[int, str]:
    """Decode one part of all frames into `arrays`; the rows of bad files stay zero. Returns what is wrong with them.

    sizes : (N, 2) width and height of the rgb files in pixels, 0 where that is bad; unused for rgb itself.
    """

    def decode(row: int) -> str | None:
        if any(file.bytes < 0 for file in group[row]) or (part != "rgb" and not sizes[row].any()):
            return None  # left out in any case: its file is missing, or its image is bad
        try:
            for name, values in _decode(part, group[row], tuple(sizes[row].tolist()), size).items():
                arrays[name][row] = values
        except ValueError as error:
            return str(error)
        return None

    notes = {}
    executor = ThreadPoolExecutor(min(16, os.cpu_count() or 1))  # threads: PIL frees the interpreter as it decodes
    try:
        with bar(total=len(group), description=f"decoding {part}", unit="frame") as progress:
            for row, note in enumerate(executor.map(decode, range(len(group)))):
                progress.update(1)
                if note is not None and on_bad == "raise":
                    raise ValueError(note)
                if note is not None:
                    notes[row] = note
    finally:
        executor.shutdown(cancel_futures=True)
    return notes


def _decode(part: str, files: Sequence[_File], rgb_size: tuple[int, int], size: int) -> dict[str, np.ndarray]:
    """One frame of one part, as in `_layout` without N. rgb_size : width and height of its rgb, in pixels."""
    if part == "rgb":
        image = _read(files[0], None).convert("RGB")
        side = min(image.size)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        square = image.crop((left, top, left + side, top + side)).resize((size, size), Image.Resampling.BILINEAR)
        return {"values": np.asarray(square).transpose(2, 0, 1), "sizes": np.array(image.size)}
    images = [np.asarray(_read(file, rgb_size)) for file in files]
    if part == _part("s") and images[0].max() >= len(CLASSES):
        raise ValueError(f"{files[0].path} should hold classes 0 to {len(CLASSES) - 1}. Found {images[0].max()}.")
    raws = [_nearest(image, size) for image in images]
    if part == "valid":
        mask = np.ones((size, size), dtype=bool)
        for file, raw in zip(files, raws, strict=True):
            mask &= raw > 0 if file.domain == "mask_valid" else raw < _FIRST_INVALID_DEPTH
        return {"mask": mask}
    (raw,) = raws
    if part == _part("s"):
        return {"values": raw, "mask": raw > 0}
    if part == _part("n"):
        return {"values": raw.transpose(2, 0, 1) / 127.5 - 1}
    if part == _part("E"):
        return {"values": np.clip(raw[None] / 65535 / _EDGE_RANGE * 2 - 1, -1, 1)}
    return {"values": np.log1p(raw[None], dtype=np.float64) / np.log(2**16), "mask": raw < _FIRST_INVALID_DEPTH}


def _nearest(image: np.ndarray, size: int) -> np.ndarray:
    """(H, W, ...) -> (size, size, ...): of the square at the centre, the pixels that the new ones' centres fall in."""
    height, width = image.shape[:2]
    side = min(height, width)
    index = (2 * np.arange(size) + 1) * side // (2 * size)
    return image[np.ix_((height - side) // 2 + index, (width - side) // 2 + index)]


def _read(file: _File, size: tuple[int, int] | None) -> Image.Image:
    """A whole image of the right kind and, unless None, of `size` (width, height); else ValueError naming the file."""
    data = Path(file.path).read_bytes()
    allowed = " or ".join(_KINDS[file.domain])
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
        raise ValueError(f"{file.path} should be {allowed}. Found {len(data)} bytes of no image.") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ValueError(f"{file.path} is too large an image: {error}.") from error
    except (OSError, SyntaxError, ValueError, EOFError, LookupError, struct.error, zlib.error) as error:
        raise ValueError(f"{file.path} is truncated or damaged: {error}.") from error
    if kind not in _KINDS[file.domain]:
        raise ValueError(f"{file.path} should be {allowed}. Found {kind}.")
    if size is not None and found != size:
        raise ValueError(f"{file.path} should be {size[0]} x {size[1]} like its rgb. Found {found[0]} x {found[1]}.")
    return image


def _kind(image: Image.Image, data: bytes) -> str:
    """Bit depth, colours and format. The header of a PNG has the truth: PIL opens 16-bit RGB as 8-bit RGB."""
    if image.format != "PNG":
        return f"{image.mode} JPEG"
    header, bits, colour = data[12:16], *data[24:26]
    return f"{bits}-bit {_COLOURS.get(colour, 'unknown')} PNG" if header == b"IHDR" else "PNG without a header"
