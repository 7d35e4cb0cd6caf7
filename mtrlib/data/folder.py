"""Any folder of images and labels that a file `dataset.yaml` in it describes: `description` says what it may hold.

`example.yaml`, `nyuv2.yaml` and `cityscapes.yaml`, beside this file, are such descriptions. Labels may be PNG or NPY
but not JPEG, which would blur them.
"""

import reprlib
from collections.abc import Sequence
from fnmatch import fnmatchcase
from functools import cache, partial
from pathlib import Path

import numpy as np
import torch

from mtrlib.data import decoding, derived, listing, pixels
from mtrlib.data.decoding import Arrays, File, Part, Source
from mtrlib.data.description import Description, text
from mtrlib.data.fields import Depth, Label

_GREY = ("8-bit grey PNG", "16-bit grey PNG")
_ONE = (*_GREY, "1-bit grey PNG")  # of depth and its mask
# Of classes also palettes, whose pixels are read as they are, and grey of one bit. Grey of two or four bits is not
# read: Pillow stretches it to eight.
_CLASSES = (*_GREY, "1-bit grey PNG", *pixels.PALETTES)


def source(what: Description, root: Path, letters: str, split: str, limit: int | None) -> Source:
    """What `decoding` reads of a folder in which lies what a description says.

    ValueError for a pattern that matches nothing and a path that leaves the root.
    """
    images = listing.find(what, root, split)[:limit]

    def find(kind: str, pattern: str) -> list[File]:
        files = [decoding.find(kind, path) for path in listing.paths(root, pattern, images)]
        if all(file.bytes < 0 for file in files):
            nothing = f"Found no {files[0].path} nor any other for {split}{listing.instead(root, pattern, images)}."
            raise ValueError(f"{root} should hold {kind} {pattern}. {nothing}")
        return files

    @cache
    def measured() -> list[tuple[File, ...]]:
        depth = what.depth
        kinds = {"depth": "{depth}" if depth.match else depth.files, "images": what.images, "mask": depth.mask}
        groups = list(zip(*(find(kind, pattern) for kind, pattern in kinds.items() if pattern), strict=True))
        for row, group in enumerate(groups):
            if isinstance(camera := _camera(depth, root, group[1].path), str):
                file = listing.inside(root, camera.format_map(images[row]))
                groups[row] = (*group, decoding.find("camera", file))
        return groups

    parts = {decoding.IMAGES: decoding.images(find("images", what.images))}
    labels = {label.letter: label for label in what.tasks}
    for letter in letters:
        if what.depth and letter in what.depth.letters:
            settings = str((what.depth.model_dump(exclude={"files", "mask", "match", "letters"}), derived.VERSION))
            decode = partial(_derive, what.depth, root, letter)
            parts[letter] = Part(measured(), decode, letter not in derived.FROM_IMAGE, settings)
            continue
        label = labels[letter]
        named = f"labels of {letter}"
        lines = listing.table(root, label.files, named, map(what.name, images)) if label.is_table else None
        files = [(file,) for file in lines or find(named, label.files)]
        settings = str(label.model_dump(exclude={"files", "name", "unit", *(["per"] * (label.per == "pixel"))}))
        parts[letter] = Part(files, partial(_decode, label), label.masked, settings)
    return Source(tuple(map(what.name, images)), parts)


def read_label(label: Label, path: str, image_size: tuple[int, ...] | None) -> np.ndarray:
    """Raw values, (H, W, C), of whole images (1, 1, C); ValueError naming the file for a bad one, or another size than
    that of its image."""
    classes = bool(label.task.classes)
    channels = 3 if label.colors else 1 if classes else label.task.channels
    if label.per == "image":
        values = pixels.read_array(path)
        if values.size != channels or values.ndim > 1:
            raise ValueError(f"{path} should be an array ({channels},). Found {values.shape}.")
        return values.reshape(1, 1, channels)
    if path.lower().endswith(".npy"):
        return pixels.like_image(path, pixels.channels_last(path, pixels.read_array(path), channels), image_size)
    if channels > 3:
        raise ValueError(f"{path} should be an array in a .npy file: a PNG has no {channels} channels.")
    grey = _CLASSES if classes else _ONE if label.kind == "labels" else _GREY
    kinds = pixels.COLOURS if label.colors else grey if channels == 1 else ("8-bit RGB PNG",)
    image = pixels.read_image(path, (f"{label.png} PNG",) if label.png else kinds, hint=pixels.SEGMENTS * classes)
    raw = np.asarray(image.convert("RGBA").convert("RGB") if label.colors else image)
    raw = pixels.like_image(path, raw, image_size)
    return (raw[..., None] if raw.ndim == 2 else raw[..., :channels]).astype(np.int32)


def _decode(label: Label, files: Sequence[File], image_size: tuple[int, ...] | None, size: int | None) -> Arrays:
    """The target and mask of one image at `size`, after a look at every pixel."""
    path = files[0].path
    raw = _of_line(label, files[0]) if label.is_table else read_label(label, path, image_size)
    not_a_number = isinstance(label.invalid, float) and np.isnan(label.invalid)
    absent = False if label.invalid is None else np.isnan(raw) if not_a_number else raw == label.invalid
    valid = ~np.broadcast_to(absent, raw.shape).all(axis=-1, keepdims=True)
    if raw.dtype == np.float16:
        raw = raw.astype(np.float32)  # whose products do not overflow or round away
    with np.errstate(over="ignore", invalid="ignore"):
        wrong = ~(np.abs(raw * label.scale + label.offset) <= np.finfo(np.float32).max) & valid  # targets are float32
    _refuse(wrong, path, raw, "numbers")
    if label.within and valid.any():
        low, high = (end(raw[valid[..., 0]]) * label.scale + label.offset for end in (np.min, np.max))
        if min(low, high) < label.within[0] or max(low, high) > label.within[1]:
            unit = "another unit takes `scale` and `offset`, as in docs/datasets.yaml"
            wanted = "{} in {:g} to {:g}".format(label.task.name, *label.within)
            raise ValueError(f"{path} should hold {wanted}. Found {low:g} to {high:g}: {unit}.")
    size = None if label.per == "image" else size
    if label.task.classes:
        raw, valid = _classes(label, path, raw, valid)
    values = pixels.nearest(np.where(valid, raw, 0), size)
    if label.task.classes:
        target = values[..., 0].astype(np.uint8)
    else:
        target = (values * label.scale + label.offset).transpose(2, 0, 1)
        target = (target > 0.5 if label.kind == "labels" else target).astype(np.float32)
    arrays = {"values": target} | ({"mask": pixels.nearest(valid[..., 0], size)} if label.masked else {})
    return {key: each.reshape(each.shape[:-2]) for key, each in arrays.items()} if label.per == "image" else arrays


def _of_line(label: Label, file: File) -> np.ndarray:
    """Raw values in a line of a table, (1, 1, C): numbers, or names of classes for their index."""
    names = label.classes if label.task.classes and isinstance(label.classes, list) and label.table is None else []
    words = [word.strip() for word in file.what.split(",")]
    wanted = 1 if label.task.classes else label.task.channels
    try:
        raw = [names.index(word) - (label.shift or 0) if word in names else float(word) for word in words]
        return np.array(raw).reshape(1, 1, wanted)
    except ValueError:
        allowed = f", or one of {reprlib.repr(names)}" if names else ""
        raise ValueError(f"{file.path} should hold {wanted} numbers{allowed}. Found {reprlib.repr(words)}.") from None


def _derive(
    depth: Depth, root: Path, letter: str, files: Sequence[File], image_size: tuple, size: int | None
) -> Arrays:
    """The target and mask of one image that its depth gives; without a size at that of the depth, up to 240 pixels."""
    paths = {file.what: file.path for file in files}
    path, raw = paths["depth"], _numbers(paths["depth"])
    if image_size[2:] > (4,) and (raw.shape[0] > raw.shape[1]) != (image_size[1] > image_size[0]):  # the camera's, too
        raise ValueError(f"{path} should lie as its image is seen, which EXIF turns. Found an array {raw.shape}.")
    metres = raw.astype(np.float64) * depth.scale
    metres[np.isin(raw, depth.invalid) | ~np.isfinite(metres) | (metres < 0)] = 0
    if depth.mask:
        mask = _numbers(paths["mask"])
        pixels.refuse_other_size(paths["mask"], mask.shape[::-1], raw.shape[::-1], "depth")
        metres[~(mask > 0)] = 0
    size = size or min(240, *raw.shape)
    camera = _matrix(paths["camera"]) if "camera" in paths else _camera(depth, root, paths["images"])
    image = np.asarray(pixels.square(pixels.read_colours(paths["images"])[0], size)).transpose(2, 0, 1)
    view = derived.median(metres, size), derived.rays(camera, size, *raw.shape[::-1]), torch.from_numpy(image.copy())
    target, mask = derived.targets(letter, torch.from_numpy(view[0]).float(), *view[1:], metres=depth.metres)[letter]
    return {"values": target.numpy()} | ({} if letter in derived.FROM_IMAGE else {"mask": mask.numpy()})


def _numbers(path: str) -> np.ndarray:
    """One number a pixel, (H, W)."""
    raw = pixels.read_array(path) if path.lower().endswith(".npy") else np.asarray(pixels.read_image(path, _ONE))
    if raw.ndim == 3 and raw.shape[2] == 1:
        raw = raw[..., 0]
    if raw.ndim != 2:
        raise ValueError(f"{path} should hold one number a pixel. Found an array {raw.shape}.")
    return raw


def _camera(depth: Depth, root: Path, image: str) -> list[float] | str:
    """The camera of an image, or its file's name: the first whose pattern fits the path from the root's name on."""
    path = Path(image).relative_to(root.parent).as_posix()
    for pattern, camera in depth.cameras.items():
        if fnmatchcase(path, pattern):
            return camera
    raise ValueError(f"{image} should have a camera. Found those of {', '.join(depth.cameras)}.")


def _matrix(path: str) -> tuple[float, ...]:
    """fx, fy, cx, cy in a file that has these four, or a matrix of 3 x 3 numbers or 4 x 4."""
    try:
        numbers = [float(word) for word in text(Path(path)).replace(",", " ").split()]
    except ValueError as error:
        raise ValueError(f"{path} should hold a camera's matrix of 3 x 3 numbers: {error}".rstrip(".") + ".") from None
    side = {4: 0, 9: 3, 16: 4}.get(len(numbers))  # of the matrix
    if side is None or not (np.isfinite(numbers).all() and numbers[0] > 0 and numbers[side + 1] > 0):
        raise ValueError(f"{path} should hold a camera's matrix of 3 x 3 numbers. Found {len(numbers)}.")
    return numbers[0], numbers[side + 1], numbers[2], numbers[side + 2 if side else 3]


def _classes(label: Label, path: str, raw: np.ndarray, valid: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(H, W, 1) or, of colours, (H, W, 3) raw values -> classes and whether a pixel has one, (H, W, 1) each."""
    if table := label.table:
        codes = raw
        if label.colors:
            colours = ((raw >= 0) & (raw <= 255) & (raw == np.floor(raw))).all(axis=-1, keepdims=True)
            codes = np.where(colours, np.where(colours, raw, 0).astype(np.int64) @ [[1 << 16], [1 << 8], [1]], -1)
        known = np.array(sorted(table))
        place = np.searchsorted(known, codes).clip(max=len(known) - 1)
        _refuse((known[place] != codes) & valid, path, raw, f"one of {reprlib.repr(label.colors or list(table))}")
        classes = np.array([table[value] for value in known.tolist()])[place]
        return classes, valid & (classes >= 0)
    shift, last = label.shift or 0, label.task.classes - 1
    classes = raw.astype(np.float64) + shift  # whole numbers of eight bits do not go below 0
    if label.shift is not None:
        valid = valid & ((classes >= 0) | (classes != np.floor(classes)))
    wrong = ((classes < 0) | (classes > last) | (classes != np.floor(classes))) & valid
    if wrong.any():
        raise ValueError(f"{path} should hold classes {-shift} to {last - shift}. Found {raw[wrong].max():g}.")
    return classes, valid


def _refuse(wrong: np.ndarray, path: str, raw: np.ndarray, what: str) -> None:
    """ValueError for the first pixel that is wrong, (H, W, C), or (H, W, 1) where all channels are together."""
    if wrong.any():
        row, column = np.argwhere(wrong)[0][:2]
        found = raw[wrong][0] if wrong.shape == raw.shape else raw[row, column].tolist()
        raise ValueError(f"{path} should hold {what}. Found {found} in row {row}, column {column}.")
