"""What a data set holds, as a value that a YAML file can say: images, tasks, splits. `fields.yaml` explains each field.

Every fault is one line with the file and the value, found before anything is decoded.
"""

import hashlib
import re
import reprlib
from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any, Literal, Self

import yaml
from pydantic import ValidationError, model_validator

from mtrlib import machine
from mtrlib.data.fields import Depth, Entry, Label, Splits, pattern_of
from mtrlib.tasks import Task

FILE = "dataset.yaml"
DESCRIBED = ("seven_scenes", "tum_rgbd", "scannet", "diode", "folder")  # whose descriptions choose and name files
SHIPPED = ("nyuv2", "cityscapes", *DESCRIBED[:-1])
_SHOWN = reprlib.Repr()  # of what was found: a few lines of YAML can stand for billions of values
_SHOWN.maxlevel = 2
_SHOWN.maxstring = _SHOWN.maxother = _SHOWN.maxlong = 200


class Description(Entry):
    """A data set: the pattern of its images, its tasks, what is derived from its depth, and its splits."""

    like: str | None = None
    images: pattern_of("images", ".png", ".jpg", ".jpeg", ".npy")
    ids: Literal["{id}", "{split}/{id}", "{folder}/{id}"] | None = None
    tasks: list[Label] = []
    depth: Depth | None = None
    splits: Splits

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        letters = [*(label.letter for label in self.tasks), *(self.depth.letters if self.depth else "")]
        if not letters:
            raise ValueError("tasks should name at least one, or depth what is derived from it")
        if twice := sorted({letter for letter in letters if letters.count(letter) > 1}):
            raise ValueError(f"tasks should have different letters, found {twice[0]!r} twice")
        depth = [self.depth.files, self.depth.mask or "", *self.depth.named] if self.depth else []
        for part in ("{split}", "{folder}"):
            others = (self.ids or "", *(label.files for label in self.tasks), *depth)
            if part not in self.images and any(part in other for other in others):
                raise ValueError(f"patterns of labels may hold {part} where that of the images does")
        if "{split}" in self.images:
            named = (self.splits.train, self.splits.test)
            if self.splits.by or not all(isinstance(name, str) for name in named):
                raise ValueError("splits should name what {split} stands for, a text each for train and test")
            train, test = map(PurePosixPath, named)
            if train.is_relative_to(test) or test.is_relative_to(train):
                raise ValueError(f"splits should name two folders apart, found '{train}' and '{test}'")
        return self

    @property
    def definitions(self) -> dict[str, Task]:
        """Definitions of the tasks, by letter."""
        return {label.letter: label.task for label in self.tasks} | (self.depth.definitions if self.depth else {})

    def name(self, places: dict[str, str]) -> str:
        """What names the image of which the patterns hold these `places`: split, folder and id."""
        return (self.ids or ("{split}/{id}" if "{split}" in self.images else "{id}")).format_map(places)


def read(root: Path) -> Description:
    """The description of a folder; ValueError of one line for one that is missing or wrong."""
    path = machine.folder(root, "the data (root)") / FILE
    return parsed(path, text(path))


def parsed(path: Path, content: str) -> Description:
    """The description that is the content of a file; errors as of `read`."""
    try:
        values = yaml.safe_load(content)
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # of dates and numbers that are none, and of depth
        raise ValueError(f"{path} is no YAML: {' '.join(str(error).split())}.") from None
    if not isinstance(values, dict):
        raise ValueError(f"{path} should hold images, tasks and splits. Found {_SHOWN.repr(values)}.")
    like, whats, faults = values.get("like"), [], []
    if like is not None and like not in SHIPPED:
        raise ValueError(f"{path}: like should be one of {', '.join(SHIPPED)}. Found {_SHOWN.repr(like)}.")
    for base in _layouts(like).values() if like else [{}]:
        parts = base.get("depth"), values.get("depth")
        depth = {"depth": parts[0] | parts[1]} if all(isinstance(part, dict) for part in parts) else {}
        try:
            whats.append(Description.model_validate(base | values | depth))
        except ValidationError as error:
            faults.append(error)
    if not whats:
        raise ValueError(f"{path}: {_sentence(faults[0].errors()[0])}")
    return chosen(whats, path.parent)


@lru_cache
def shipped(name: str) -> dict[str, Description]:
    """Descriptions that come with this package, of one data set by its layouts."""
    return {layout: Description(**what) for layout, what in _layouts(name).items()}


def chosen(layouts: Iterable[Description], root: Path | None) -> Description:
    """The first of the layouts of a data set whose lists and images a folder has; else the first."""
    layouts = list(layouts)
    if len(layouts) == 1 or root is None:
        return layouts[0]
    return next((what for what in layouts if _fits(what, root)), layouts[0])


def digest(texts: Iterable[str]) -> str:
    """16 hexadecimal digits that name the text of a description and of the files that it names."""
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:16]


def of(name: str, root: Path | None) -> Description:
    """That of a "folder", or of a data set whose descriptions ship with the package, in the layout that lies there."""
    if name == "folder" and root is None:
        raise ValueError("Parameter root should be the folder of the data. Found root = None.")
    return read(root) if name == "folder" else chosen(shipped(name).values(), root)


def digest_of(name: str, root: str | Path | None) -> str | None:
    """The digest of all that decides a data set beside its images and labels: its description and the text files of
    ids, cameras, times and labels that this names. None for a data set that is not one of `DESCRIBED`."""
    if name not in DESCRIBED or root is None:
        return None
    root = machine.folder(Path(root).expanduser().absolute(), "the data (root)")
    what = of(name, root)
    own = [root / FILE] if name == "folder" else []
    shipped = [] if own and not what.like else [what.model_dump_json(exclude_unset=True)]
    named = [*(what.depth.named if what.depth else []), *(label.files for label in what.tasks if label.is_table)]
    files = [file for pattern in named for file in sorted(_paths(root, pattern))]
    return digest([*map(text, (*own, *(root / file for file in what.splits.lists))), *shipped, *map(text, files)])


def text(path: Path) -> str:
    """The text of a file; ValueError of one line where it cannot be read."""
    try:
        return path.read_text(encoding="utf-8-sig")  # with a byte order mark or without
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}.") from None


def _layouts(name: str) -> dict[str, dict]:
    return yaml.safe_load(text(Path(__file__).with_name(f"{name}.yaml")))


def _fits(what: Description, root: Path) -> bool:
    splits = (what.splits.train, what.splits.test) if "{split}" in what.images else ("",)
    images = [what.images.replace("{split}", split) for split in splits]
    lists = all((root / name).is_file() for name in what.splits.lists)
    return lists and all(next(_paths(root, name), None) for name in images)


def _paths(root: Path, pattern: str) -> Iterator[Path]:
    """The files that a pattern stands for, whatever is in its braces."""
    anything = re.sub("{.+?}", "*", re.sub("(^|/){id}", r"\1**/*", pattern))
    return (path for path in ([root / pattern] if anything == pattern else root.glob(anything)) if path.is_file())


def _sentence(fault: dict[str, Any]) -> str:
    kinds = re.compile(r"(constrained|function|list\[|dict\[).*|str|int|float")  # of a field that may be of several
    where = ".".join(str(part) for part in fault["loc"] if not kinds.fullmatch(str(part)))
    message = re.sub(r"\b(loss|error)_name\b", r"\1", fault["msg"].removeprefix("Value error, ").rstrip("."))
    found = "" if isinstance(fault["input"], dict) or fault["type"] == "missing" else _SHOWN.repr(fault["input"])
    return (f"{where}: " if where else "") + f"{message}." + (f" Found {found}." if found else "")
