"""`load(name, ...) -> Dataset`, and what can be said of a data set without loading it.

`rooms` is rendered. All others have a reader, which gives a `decoding.Source`: `taskonomy` its own, the rest `folder`,
by a description.
"""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from mtrlib import machine, rooms
from mtrlib.data import cityscapes, decoding, description, folder, taskonomy
from mtrlib.data.decoding import Source
from mtrlib.dataset import SPLITS, Dataset, papers
from mtrlib.tasks import Task, parse

NAMES = ("rooms", "taskonomy", "nyuv2", "cityscapes", *description.DESCRIBED)


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
    positive(size=size, limit=1 if limit is None else limit)
    if name == "rooms":
        return rooms.load(tasks=tasks, split=split, size=size, limit=limit, seed=seed)
    return decoding.load(source(name, root, tasks, split, size, limit), on_bad=on_bad)


def tasks(name: str, root: str | Path | None = None) -> dict[str, Task]:
    """Definitions of the tasks that a data set has labels of, by letter, without loading it.

    `root` is its folder: "folder" and "cityscapes" need it, since their tasks or classes depend on what lies there.
    """
    if _one_of("name", name, NAMES) == "rooms":
        return papers(rooms.TASKS, rooms.CLASSES)
    return _reader(name, None if root is None else _folder(root))[0]


def letters(name: str, root: str | Path | None = None) -> str:
    """Letters of the tasks that a data set has labels of."""
    return "".join(tasks(name, root))


def positive(**parameters: int) -> None:
    """ValueError for the first parameter that is no whole number above 0."""
    for name, value in parameters.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"Parameter {name} should be a positive integer. Found {name} = {value!r}.")


def source(
    name: str, root: str | Path | None, tasks: str, split: str, size: int | None, limit: int | None = None
) -> Source:
    """What `decoding.load` and `checks.check` read; parameters as in `load`, size None for images as they are."""
    if root is None:
        raise ValueError(f"Parameter root should be the folder of the {name} files. Found root = None.")
    root = machine.folder(_folder(root), "the data (root)")
    defined, read = _reader(name, root)
    parse(tasks, "".join(defined), name)
    found = read(root, tasks, split, limit)
    for each in found.ids:
        _utf8(root / each)
    return found._replace(name=name, where=root, split=split, size=size, tasks={x: defined[x] for x in tasks})


def _reader(name: str, root: Path | None) -> tuple[dict[str, Task], Callable[..., Source]]:
    """Definitions of the tasks of a data set, and what gives the source of (root, letters, split, limit)."""
    if name == "taskonomy":
        return taskonomy.TASKS, taskonomy.source
    if name == "cityscapes":
        return cityscapes.description(root).definitions, cityscapes.source
    what = description.of(name, root)
    return what.definitions, partial(folder.source, what)


def _folder(root: str | Path) -> Path:
    return _utf8(Path(root).expanduser().absolute())


def _utf8(path: Path) -> Path:
    """The path; ValueError for one that is no UTF-8: no table could hold it."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise ValueError(f"Folders and files of the data should have names in UTF-8. Found {str(path)!a}.") from None
    return path


def _one_of(parameter: str, value: str, allowed: Sequence[str]) -> str:
    if value not in allowed:
        raise ValueError(f"Parameter {parameter} should be one of {', '.join(allowed)}. Found {parameter} = {value!r}.")
    return value
