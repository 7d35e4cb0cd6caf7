"""Which files there are of what a description says: ids, splits, and names that never leave the folder."""

from __future__ import annotations

import hashlib
import os
import posixpath
import re
from collections import Counter, defaultdict
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath

from mtrlib.data.description import Description, Splits, text

Places = dict[str, str]  # what {split}, {folder} and {id} stand for, of one image


def find(what: Description, root: Path, split: str) -> list[Places]:
    """The images of a split, in the natural order of their ids (2 before 10), which may hold slashes.

    ValueError for a pattern that matches nothing, an id that a list has twice, and an image that is in both splits.
    """
    folder = getattr(what.splits, split) if "{split}" in what.images else ""
    pattern = what.images.replace("{split}", folder)
    like = re.escape(_lowered(pattern)).replace(r"\{id\}", "(?P<id>.+)").replace(r"\{folder\}", "(?P<folder>[^/]+)")
    images: dict[str, Places] = {}
    for path in _files(root, pattern):
        if match := re.fullmatch(like, _lowered(path), re.DOTALL):
            place = images.setdefault(match["id"], match.groupdict() | {"path": path})
            if place["path"] != path:
                raise _alike(root, place["path"], path)
    if not images:
        raise ValueError(f"{root} should hold images {what.images}. Found none for {split}.")
    natural = {name: [int(p) if i % 2 else p for i, p in enumerate(re.split("([0-9]+)", name))] for name in images}
    ids = every = sorted(images, key=natural.get)  # [0-9]: Python knows other digits, too
    if not folder:
        ids = _chosen(what.splits, root, split, every)
        if not ids:
            found = f"ratio {what.splits.ratio}" if what.splits.ratio else repr(getattr(what.splits, split))
            found = f"{found} and ids such as {every[0]!r}"
            raise ValueError(f"{root}: splits.{split} should match images. Found {found}.")
        twice, times = Counter(ids).most_common(1)[0]
        if times > 1:
            raise ValueError(f"{root}: splits.{split} should name an image once. Found {twice!r} {times} times.")
        if both := {*ids} & {*_chosen(what.splits, root, "test" if split == "train" else "train", every)}:
            raise ValueError(f"{root}: splits should share no image. Found {min(both)!r} in both, of {len(both)} such.")
    return [{"split": folder, "folder": "", **images.get(name, {"id": name})} for name in ids]


def paths(root: Path, pattern: str, images: list[Places]) -> list[Path]:
    """The file of each image, there or not; its suffix may be in upper case where the pattern has it in lower case, and
    the other way. ValueError where two files are called so, and for one out of the root, by itself or through a link.
    """
    spelled = defaultdict(list)
    for path in _files(root, pattern.replace("{split}", images[0]["split"])):
        spelled[_lowered(path)].append(path)
    there = []
    for name in map(pattern.format_map, images):
        called = spelled.get(_lowered(name), [name])
        if len(called) > 1:
            raise _alike(root, *called[:2])
        there.append(_inside(root, called[0]))
    return there


def _chosen(splits: Splits, root: Path, split: str, ids: list[str]) -> list[str]:
    """The ids of a split, out of those there are or as a list names them."""
    chosen = getattr(splits, split)
    if splits.ratio is not None:
        share = {name: int(hashlib.sha256(os.fsencode(name)).hexdigest()[:12], 16) / 16**12 for name in ids}
        return [name for name in ids if (share[name] < splits.ratio) == (split == "train")]
    if isinstance(chosen, str) and not chosen.endswith(".txt"):
        return [name for name in ids if fnmatchcase(name, chosen)]
    listed = chosen if isinstance(chosen, list) else text(_inside(root, chosen)).split("\n")
    return [posixpath.normpath(name.strip()) for name in listed if name.strip()]  # one name for one image


def _files(root: Path, pattern: str) -> list[str]:
    """All files, seen from the root, below the folder in which a pattern starts."""
    start = pattern.partition("{")[0].rpartition("/")[0]
    walk = os.walk(_inside(root, start) if start else root)
    return sorted(Path(folder, name).relative_to(root).as_posix() for folder, _, names in walk for name in names)


def _inside(root: Path, name: str | Path) -> Path:
    path = root / name
    if not os.path.realpath(path).startswith(os.path.realpath(root).rstrip(os.sep) + os.sep):
        raise ValueError(f"{path} should not leave the folder of the data. Found {os.path.realpath(path)}.")
    return path


def _lowered(path: str) -> str:
    """A path with its suffix in lower case."""
    return str(PurePosixPath(path).with_suffix(PurePosixPath(path).suffix.lower()))


def _alike(root: Path, one: str, other: str) -> ValueError:
    what = "files whose names differ by more than case" if one.lower() == other.lower() else "one image of an id"
    return ValueError(f"{root} should have {what}. Found {one} and {other}.")
