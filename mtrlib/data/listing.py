"""Which files there are of what a description says: ids, splits, and names that never leave the folder."""

import hashlib
import os
import posixpath
import re
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath

from mtrlib.data import pixels
from mtrlib.data.decoding import File
from mtrlib.data.description import FILE, Description, text
from mtrlib.data.fields import Depth, Splits

Places = dict[str, str]  # what {split}, {folder} and {id} stand for, and the path, of one image
_STRAY = ("thumbs.db", "desktop.ini", "icon\r", "@eadir", "lost+found", "__macosx", "$recycle.bin")


def stray(name: str) -> bool:
    """Whether systems and editors leave files or folders of this name behind anywhere; hidden ones are of them."""
    return name.startswith(".") or name.endswith("~") or name.lower() in _STRAY


def walk(folder: str | Path, above: tuple[str, ...] = ()) -> Iterator[Path]:
    """All files below a folder, by name, but stray ones; none where there is no such folder. Links to folders are
    followed; ValueError for one that leads back to a folder that it lies in."""
    real = os.path.realpath(folder)
    if real in above:
        raise ValueError(f"{folder} should not be a link to a folder that it lies in. Found {real}.")
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name) if os.path.isdir(folder) else []:
        if not stray(entry.name):
            yield from walk(entry.path, (*above, real)) if entry.is_dir() else [Path(entry.path)]


def find(what: Description, root: Path, split: str) -> list[Places]:
    """The images of a split, in the natural order of their ids (2 before 10), which may hold slashes, or of time.

    ValueError for a pattern that matches nothing, an id that a list has twice, and an image that is in both splits.
    """
    folder = getattr(what.splits, split) if "{split}" in what.images else ""
    in_folder = what.ids == "{folder}/{id}"
    images: dict[str, Places] = {}
    for found in _matches(root, what.images.replace("{split}", folder)):
        name = f"{found['folder']}/{found['id']}" if in_folder else found["id"]
        if (place := images.setdefault(name, found))["path"] != found["path"]:
            raise _alike(root, place["path"], found["path"])
    if not images:
        there = instead(root, what.images.replace("{split}", folder))
        raise ValueError(f"{root} should hold images {what.images}. Found none for {split}{there}.")
    natural = {name: [int(p) if i % 2 else p for i, p in enumerate(re.split("([0-9]+)", name))] for name in images}
    images = {name: images[name] for name in sorted(images, key=natural.get)}  # [0-9]: Python knows other digits, too
    if what.depth and what.depth.match:
        images = _matched(what.depth, root, folder, images)
    ids = [*images]
    if not folder:
        ids = _chosen(what.splits, root, split, images)
        if not ids:
            wanted = what.splits.model_dump(exclude_defaults=True)
            found = repr(wanted[split]) if {*wanted} == {"train", "test"} else str(wanted)
            found += f" and {len(images)} ids such as {next(iter(images))!r}"
            raise ValueError(f"{root}: splits.{split} should match images. Found {found}.")
        if twice := _twice(ids):
            raise ValueError(
                "{}: splits.{} should name an image once. Found {!r} {} times.".format(root, split, *twice)
            )
        if both := {*ids} & {*_chosen(what.splits, root, "test" if split == "train" else "train", images)}:
            raise ValueError(f"{root}: splits should share no image. Found {min(both)!r} in both, of {len(both)} such.")
    for name in (name for name in ids if name not in images):  # which a list names
        of_folder, name_there = posixpath.split(name) if in_folder else ("", name)
        images[name] = {"folder": of_folder, "id": name_there, "depth": f"depth of {name}"}
    return [images[name] | {"split": folder} for name in ids]


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
        there.append(inside(root, called[0]))
    return there


def table(root: Path, name: str, what: str, ids: Iterable[str]) -> list[File]:
    """The line of each image in a text file, there or not: the name of the image, a comma, and what then is in
    `File.what`. Other lines, such as names of columns, are passed over; ValueError for an image that has two."""
    path, lines = inside(root, name), _lines(root, name)
    found = [tuple(map(str.strip, line.partition(",")[::2])) for line in lines]
    if twice := _twice(image for image, _ in found):
        raise ValueError("{0} should have one line of an image. Found {2} of {1!r}.".format(path, *twice))
    values = dict(found)
    return [File(values.get(i, what), f"{path}, line of {i}", len(values[i]) if i in values else -1, 0) for i in ids]


def instead(root: Path, pattern: str, images: Sequence[Places] = ()) -> str:
    """What is there in the place of a pattern's files, to end a sentence: one that only its suffix tells from what is
    looked for, and how to convert it; else what lies in the folder. Looked for are labels of `images`, or images."""
    labels, own = {_stem(pattern.format_map(image)) for image in images}, {image.get("path") for image in images}
    like = re.compile(re.sub(r"\\{\w+\\}", ".+", re.escape(_stem(pattern))))
    read = (".png", ".npy") if images else (".png", ".npy", ".jpg", ".jpeg")
    for path in _files(root, pattern):
        suffix = PurePosixPath(path).suffix.lower()
        if images:
            is_alike = _stem(path) in labels and path not in own
        else:
            is_alike = like.fullmatch(_stem(path)) and suffix in (*read, *pixels.READ)
        if is_alike:
            return f", but {path}" + ("" if suffix in read else f": {pixels.convert(path)}")
    folder = root / pattern.partition("{")[0].rpartition("/")[0]
    folder = next(each for each in (folder, *folder.parents) if each.is_dir())
    names = sorted(name for name in os.listdir(folder) if not stray(name))
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"; {folder} holds {', '.join(map(repr, names[:3])) or 'nothing'}{more}"


def _chosen(splits: Splits, root: Path, split: str, images: dict[str, Places]) -> list[str]:
    """The ids of a split, out of those there are or as a list names them."""
    chosen = getattr(splits, split)
    if splits.by:
        return _grouped(splits, root, split, images)
    if splits.ratio is not None:
        share = {name: int(hashlib.sha256(os.fsencode(name)).hexdigest()[:12], 16) / 16**12 for name in images}
        return [name for name in images if (share[name] < splits.ratio) == (split == "train")]
    if isinstance(chosen, str) and not chosen.endswith(".txt"):
        return [name for name in images if fnmatchcase(name, chosen)]
    return [posixpath.normpath(name) for name in _listed(root, chosen)]  # one name for one image


def _grouped(splits: Splits, root: Path, split: str, images: dict[str, Places]) -> list[str]:
    """The ids of a split by time, out of each folder, or by folder: those at the end, or as a list names them."""
    groups = defaultdict(list)
    begins = {posixpath.dirname(place["path"]): "" for place in images.values()}
    for path in begins if splits.folder else ():
        begins[path] = next((path[:end] for end in range(len(path) + 1) if fnmatchcase(path[:end], splits.folder)), "")
    for name, place in images.items():
        path = posixpath.dirname(place["path"])
        groups[begins[path] or place["folder"] or path].append(name)

    def part(of: list[str]) -> list[str]:
        first = len(of) - max(1, round(splits.test * len(of)))
        gap = int(splits.gap * len(of)) if isinstance(splits.gap, float) else splits.gap
        return of[first:] if split == "test" else of[: max(0, first - gap)]

    if splits.by == "time":
        return [name for names in groups.values() for name in part(names)]
    if isinstance(splits.test, float):
        return [name for folder in part([*groups]) for name in groups[folder]]
    entries = _listed(root, getattr(splits, split))
    loose = re.compile("(?:.*/)?([A-Za-z]{3})[A-Za-z]*[-_]?0*([0-9]+)")  # by it "sequence1" is the folder seq-01
    kinds = {match.groups() for entry in entries if (match := loose.fullmatch(entry))}

    def is_named(folder: str) -> bool:
        match = loose.fullmatch(folder)
        return any(fnmatchcase(folder, entry) for entry in entries) or bool(match and match.groups() in kinds)

    return [name for folder, names in groups.items() if is_named(folder) for name in names]


def _listed(root: Path, chosen: str | list[str]) -> list[str]:
    """What a list, the text file of one, or a pattern alone names."""
    if isinstance(chosen, str):
        return _lines(root, chosen) if chosen.endswith(".txt") else [chosen]
    return [name.strip() for name in chosen if name.strip()]


def _lines(root: Path, name: str) -> list[str]:
    """The lines of a text file that hold something, without comments."""
    lines = re.sub(r"(?m)(^|\s)#.*", "", text(inside(root, name))).split("\n")
    return [line.strip() for line in lines if line.strip()]


def _matched(depth: Depth, root: Path, split: str, images: dict[str, Places]) -> dict[str, Places]:
    """The images to which depth was taken within some seconds, with its path, in the order of time in each folder.

    Pairs are made from the closest on; no file is in two, and an image without a partner is none of the data.
    """
    taken, other = depth.match.lists or ("", "")
    measured = _times(root, other.replace("{split}", split), _matches(root, depth.files.replace("{split}", split)))
    within = depth.match.within + 1e-6  # the times of today are doubles to 2e-7
    pairs = []
    for folder, time, path in _times(root, taken.replace("{split}", split), images.values()):
        near = bisect_left(measured, (folder, time - within)), bisect_left(measured, (folder, time + within))
        pairs += [(abs(time - second), folder, time, path, each) for _, second, each in measured[slice(*near)]]
    partners = {}
    for _, folder, time, path, each in sorted(pairs):
        if path not in partners and each not in partners:
            partners |= {path: (folder, time, each), each: None}
    kept = [name for name, place in images.items() if place["path"] in partners]
    if not kept:
        raise ValueError(f"{root} should hold depth within {depth.match.within} s of an image. Found none.")
    kept.sort(key=lambda name: partners[images[name]["path"]])
    return {name: images[name] | {"depth": partners[images[name]["path"]][-1]} for name in kept}


def _times(root: Path, name: str, places: Iterable[Places]) -> list[tuple[str, float, str]]:
    """Folder, seconds and path of the files there are: as lists say, or as their ids where there is no list."""
    of = {place["path"]: place for place in places}
    lists = {place["folder"]: name.replace("{folder}", place["folder"]) for place in of.values()}
    lists = {folder: path for folder, path in lists.items() if path and (root / path).is_file()}
    times = {path: place["id"] for path, place in of.items() if place["folder"] not in lists}
    try:
        for path in lists.values():
            lines = (line.replace(",", " ").split() for line in _lines(root, path))
            times |= {posixpath.join(posixpath.dirname(path), words[1]): words[0] for words in lines}
        return sorted((of[path]["folder"], float(time), path) for path, time in times.items() if path in of)
    except (ValueError, IndexError) as error:
        raise ValueError(f"{root / name} should have times in seconds and paths: {error}.") from None


def _matches(root: Path, pattern: str) -> Iterator[Places]:
    """What {folder} and {id} stand for, and the path, of each file of a pattern."""
    like = re.escape(_lowered(pattern)).replace(r"\{id\}", "(?P<id>.+)").replace(r"\{folder\}", "(?P<folder>[^/]+)")
    for path in _files(root, pattern):
        if match := re.fullmatch(like, _lowered(path), re.DOTALL):
            yield {"folder": "", **match.groupdict(), "path": path}


def _files(root: Path, pattern: str) -> list[str]:
    """All files, seen from the root, below the folder in which a pattern starts."""
    start = pattern.partition("{")[0].rpartition("/")[0]
    return sorted(path.relative_to(root).as_posix() for path in walk(inside(root, start) if start else root))


def inside(root: Path, name: str | Path) -> Path:
    """The path; ValueError for one that leaves a folder of a `dataset.yaml`, which may be anybody's, also through a
    link. Files of a hub's snapshot are links into the hub's own folder; other data sets may be linked together."""
    path, home = root / name, os.path.realpath(root)
    for folder in Path(home).parents:
        home = str(folder.parent) if folder.name == "snapshots" and (folder.parent / "blobs").is_dir() else home
    if (root / FILE).is_file() and not os.path.realpath(path).startswith(home.rstrip(os.sep) + os.sep):
        raise ValueError(f"{path} should not leave the folder of the data. Found {os.path.realpath(path)}.")
    return path


def _twice(names: Iterable[str]) -> tuple[str, int] | None:
    """The most frequent name, and how often it is there; None where that is once."""
    return next((each for each in Counter(names).most_common(1) if each[1] > 1), None)


def _stem(path: str) -> str:
    return str(PurePosixPath(path).with_suffix(""))


def _lowered(path: str) -> str:
    """A path with its suffix in lower case."""
    return _stem(path) + PurePosixPath(path).suffix.lower()


def _alike(root: Path, one: str, other: str) -> ValueError:
    what = "files whose names differ by more than case" if one.lower() == other.lower() else "one image of an id"
    return ValueError(f"{root} should have {what}. Found {one} and {other}.")
