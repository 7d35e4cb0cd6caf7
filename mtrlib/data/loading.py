"""Data sets of images with dense labels, all in one shape: `load(name, ...) -> Dataset`.

`rooms` is rendered here and needs no files. `taskonomy`, `nyuv2` and `cityscapes` read what is published under those
names; `folder` reads any folder that a file `dataset.yaml` describes. Those that read files give what is to be decoded
as a `decoding.Source`; loading and checking are the same for all.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from mtrlib import rooms
from mtrlib.data import decoding, folder, nyuv2, taskonomy
from mtrlib.data.dataset import SPLITS, Dataset, papers
from mtrlib.tasks import Task, parse

NAMES = ("rooms", "taskonomy", "nyuv2", "cityscapes", "folder")


def load(
    name: str,
    *,
    tasks: str,
    split: str,
    size: int,
    root: str | Path | None = None,
    limit: int | None = None,
    seed: int = 0,
    on_bad: str = "raise",
) -> Dataset:
    """Load a data set.

    Parameters
    ----------
    name : one of `NAMES`; "rooms" is rendered and needs no files.
    tasks : letters of the labels to load, such as "sd".
    split : "train" or "test"; of rooms and taskonomy the two never share a room or a building's point.
    size : height and width of the images, in pixels.
    root : folder of the files; required by every data set but rooms.
    limit : number of images; None for all of them (for rooms, 1,024 to train and 256 to test).
    seed : of the rooms; a data set of files ignores it.
    on_bad : "raise" stops at the first file that cannot be read, "skip" leaves its frame out and says so in `bad`.

    Raises
    ------
    ValueError : for a parameter out of its range, with those allowed, and for a bad file, named in full.
    """
    _one_of("name", name, NAMES)
    parse(tasks)
    _one_of("split", split, SPLITS)
    _one_of("on_bad", on_bad, ("raise", "skip"))
    for parameter, value in (("size", size), ("limit", limit)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise ValueError(f"Parameter {parameter} should be a positive integer. Found {parameter} = {value!r}.")
    if name == "rooms":
        return rooms.load(tasks=tasks, split=split, size=size, limit=limit, seed=seed)
    return decoding.load(source(name, root, tasks, split, size, limit), on_bad=on_bad)


def tasks(name: str, root: str | Path | None = None) -> dict[str, Task]:
    """Definitions of the tasks that a data set has labels of, by letter, without loading it.

    `root` is its folder: "folder" and "cityscapes" need it, since their tasks or classes depend on what lies there.
    """
    if _one_of("name", name, NAMES) == "rooms":
        return papers(rooms.TASKS, rooms.CLASSES)
    return _reader(name).tasks(None if root is None else _folder(root))


def classes(name: str, root: str | Path | None = None) -> tuple[str, ...]:
    """Names of the classes of s in a data set, by index, without loading it; none where it has no s."""
    defined = tasks(name, root)
    return defined["s"].class_names if "s" in defined else ()


def letters(name: str, root: str | Path | None = None) -> str:
    """Letters of the tasks that a data set has labels of."""
    return "".join(tasks(name, root))


def digest(name: str, root: str | Path | None = None) -> str | None:
    """What names the content of the description of a "folder" data set; None for all others, which have none."""
    return folder.digest(_folder(root)) if name == "folder" and root is not None else None


def source(name: str, root: str | Path | None, tasks: str, split: str, size: int | None, limit: int | None = None):
    """What `decoding.load` and `checks.check` read, a `decoding.Source`; parameters as in `load`, size None for images
    as they are."""
    if root is None:
        raise ValueError(f"Parameter root should be the folder of the {name} files. Found root = None.")
    root = _folder(root)
    parse(tasks, letters(name, root), name)
    found = _reader(name).source(root, letters=tasks, split=split, size=size, limit=limit)
    for each in found.ids:
        _named(root, each)
    return found


def _folder(root: str | Path) -> Path:
    """The whole path; ValueError for one that is no UTF-8."""
    root = Path(root).expanduser().absolute()
    _named(root, "")
    return root


def _named(root: Path, name: str) -> None:
    """ValueError for a folder, or the name of something in it, that is no UTF-8: no table could hold it."""
    try:
        str(root / name).encode()
    except UnicodeEncodeError:
        raise ValueError(f"{str(root)!a} and what is in it should have names in UTF-8. Found {name!a}.") from None


def _reader(name: str) -> ModuleType:
    if name == "cityscapes":
        from mtrlib.data import cityscapes  # here: it imports torchvision, which takes longer than all the rest

        return cityscapes
    return {"folder": folder, "nyuv2": nyuv2, "taskonomy": taskonomy}[name]


def _one_of(parameter: str, value: str, allowed: Sequence[str]) -> str:
    if value not in allowed:
        raise ValueError(f"Parameter {parameter} should be one of {', '.join(allowed)}. Found {parameter} = {value!r}.")
    return value
