"""Which files there are of what a description says: ids, splits, and names that never leave the folder."""

from __future__ import annotations

import hashlib
import os
import posixpath
import re
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath

from mtrlib.data.description import Description, Splits, text

Places = dict[str, str]  # what {split}, {folder} and {id} stand for, of one image


def find(what: Description, root: Path, split: str) -> list[Places]:
    """The images of a split, in the natural order of their ids (2 before 10).

    ValueError for a pattern that matches nothing, an id that a list has twice, and an image that is in both splits.
    """
    splits, places = what.splits, {"split": "", "folder": ""}
    if "{split}" in what.images:
        places["split"] = getattr(splits, split)
    found = _matching(root, what.images.replace("{split}", places["split"]))
    if not found:
        raise ValueError(f"{root} should hold images {what.images}. Found none for {split}.")
    if places["split"]:
        return [places | found[name] for name in found]
    ids = _chosen(splits, root, split, list(found))
    if not ids:
        wanted = f"ratio {splits.ratio}" if splits.ratio else repr(getattr(splits, split))
        some = next(iter(found))
        raise ValueError(f"{root}: splits.{split} should match images. Found {wanted} and ids such as {some!r}.")
    twice, times = Counter(ids).most_common(1)[0]
    if times > 1:
        raise ValueError(f"{root}: splits.{split} should name an image once. Found {twice!r} {times} times.")
    if both := set(ids) & set(_chosen(splits, root, "test" if split == "train" else "train", list(found))):
        raise ValueError(f"{root}: splits should share no image. Found {min(both)!r} in both, of {len(both)} such.")
    return [places | found.get(name, {"id": name}) for name in ids]


def _chosen(splits: Splits, root: Path, split: str, found: list[str]) -> list[str]:
    """The ids of a split, out of those found or as a list names them."""
    chosen = getattr(splits, split)
    if splits.ratio is not None:
        share = {name: int(hashlib.sha256(os.fsencode(name)).hexdigest()[:12], 16) / 16**12 for name in found}
        return [name for name in found if (share[name] < splits.ratio) == (split == "train")]
    if isinstance(chosen, str) and not chosen.endswith(".txt"):
        return [name for name in found if fnmatchcase(name, chosen)]
    ids = chosen if isinstance(chosen, list) else text(_inside(root, chosen)).split("\n")
    return [posixpath.normpath(name.strip()) for name in ids if name.strip()]  # one name for one image


def _matching(root: Path, pattern: str) -> dict[str, Places]:
    """What a pattern matches, by id, which may hold slashes, in natural order; suffixes match in any case."""
    groups = {"id": "(?P<id>.+)", "folder": "(?P<folder>[^/]+)"}
    parts = re.split(r"{(id|folder)}", _lowered(pattern))  # every second part is a name
    like = re.compile("".join(groups[p] if i % 2 else re.escape(p) for i, p in enumerate(parts)), re.DOTALL)
    start = parts[0].rpartition("/")[0]
    _inside(root, f"{start}/.")
    found: dict[str, Places] = {}
    for folder, _, files in os.walk(root / start):
        for name in files:
            path = Path(folder, name).relative_to(root).as_posix()
            if match := like.fullmatch(_lowered(path)):
                if match["id"] in found:
                    raise _alike(root, *sorted((path, found[match["id"]]["path"])))
                found[match["id"]] = match.groupdict() | {"path": path}
    natural = {name: [int(p) if i % 2 else p for i, p in enumerate(re.split("([0-9]+)", name))] for name in found}
    return {name: found[name] for name in sorted(found, key=natural.get)}  # [0-9]: Python knows other digits, too


def paths(root: Path, names: Iterable[str]) -> list[Path]:
    """Those in the root; a suffix may be in upper case where the name has it in lower case, and the other way.

    ValueError where two files are called so, and for a path that leaves the root, by itself or through a link.
    """
    listed: dict[Path, dict[str, list[str]]] = {}
    found = []
    for path in (_inside(root, name) for name in names):
        if path.parent not in listed:
            spellings = listed[path.parent] = {}
            with suppress(OSError):  # of a folder that is not there, or that may not be listed
                for each in sorted(os.listdir(path.parent)):
                    spellings.setdefault(_lowered(each), []).append(each)
        called = listed[path.parent].get(_lowered(path.name), [path.name])
        if len(called) > 1:
            raise _alike(root, *((path.parent / each).relative_to(root).as_posix() for each in called[:2]))
        found.append(path if called[0] == path.name else _inside(root, path.parent.relative_to(root) / called[0]))
    return found


def _inside(root: Path, name: str | Path) -> Path:
    path = root / name
    if not os.path.realpath(path).startswith(os.path.realpath(root).rstrip(os.sep) + os.sep):
        raise ValueError(f"{path} should not leave the folder of the data. Found {os.path.realpath(path)}.")
    return path


def _lowered(path: str) -> str:
    """A path with its suffix in lower case."""
    suffix = PurePosixPath(path).suffix
    return path.removesuffix(suffix) + suffix.lower()


def _alike(root: Path, one: str, other: str) -> ValueError:
    what = "files whose names differ by more than case" if one.lower() == other.lower() else "one image of an id"
    return ValueError(f"{root} should have {what}. Found {one} and {other}.")
