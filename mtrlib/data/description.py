"""What a data set holds, as a value that a YAML file can say: images, tasks, splits (`folder` has an example).

Every fault is one line with the file and the value, found before anything is decoded.
"""

from __future__ import annotations

import hashlib
import os
import posixpath
import re
import reprlib
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from mtrlib.tasks import TASKS, Task

FILE = "dataset.yaml"
FORMATS = {"images": (".png", ".jpg", ".jpeg", ".npy"), "labels": (".png", ".npy")}

_SHOWN = reprlib.Repr()  # of what was found: a few lines of YAML can stand for billions of values
_SHOWN.maxlevel = 2
_SHOWN.maxstring = _SHOWN.maxother = _SHOWN.maxlong = 200


def _pattern(formats: str):
    def check(value: str) -> str:
        path = PurePosixPath(value)
        if path.is_absolute() or ".." in path.parts or "\\" in value:
            raise ValueError("a path should not leave the folder of the data")
        if (
            value.count("{id}") != 1
            or value.count("{split}") > 1
            or re.search(r"[{}]", re.sub(r"{id}|{split}", "", value))
        ):
            raise ValueError("a pattern should hold {id} once, may hold {split} once, and no other braces")
        if path.suffix.lower() not in FORMATS[formats]:
            raise ValueError(f"a pattern of {formats} should end in one of {', '.join(FORMATS[formats])}")
        return value

    return Annotated[str, AfterValidator(check)]


class _Entry(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=True)


_Colour = Annotated[list[Annotated[int, Field(ge=0, le=255)]], Field(min_length=3, max_length=3)]


class Label(_Entry):
    """One task.

    Attributes
    ----------
    letter : one ASCII letter; a letter of the paper's tasks may be defined anew.
    name : shown in figures; by default that of the paper, or the letter.
    kind : "classes" or "regression".
    classes : of classes, their number or the list of their names.
    channels : of regression.
    files : pattern of the label files, PNG (8 or 16 bits; grey for classes or one channel, RGB for two, the first, or
        three) or NPY, (H, W) or (H, W, C).
    scale, offset : the target of regression is scale * raw + offset.
    values : of classes, the raw value of each in the order of `classes`, such as [0, 255]; by default 0, 1, 2, ...
    shift : of classes, in the place of `values`: the class is raw + shift, and a pixel where that is negative has no
        label; with -1 those are the pixels of raw value 0.
    colors : of classes, in the place of `values`: the colour [r, g, b] of each, 0 to 255. Labels are then PNG in RGB,
        RGBA, palette or grey, read as RGB, or NPY, (H, W, 3).
    invalid : raw value of a pixel without a label, in all channels; ".nan" for not a number. With `colors` it may be
        a colour. A raw value that is neither this nor that of a class is an error.
    loss, error : names as in `tasks.LOSSES` and `tasks.ERRORS`; by default the paper's.
    """

    letter: str
    name: str = ""
    kind: Literal["classes", "regression"]
    classes: Annotated[int, Field(ge=2, le=255)] | Annotated[list[str], Field(min_length=2, max_length=255)] | None = (
        None
    )
    channels: int = Field(1, ge=1, le=64)
    files: _pattern("labels")
    scale: float = Field(1.0, allow_inf_nan=False)
    offset: float = Field(0.0, allow_inf_nan=False)
    values: (
        Annotated[list[Annotated[int, Field(ge=-(2**53), le=2**53)]], Field(min_length=2, max_length=255)] | None
    ) = None
    shift: Annotated[int, Field(ge=-(2**16), le=2**16)] | None = None
    colors: Annotated[list[_Colour], Field(min_length=2, max_length=255)] | None = None
    invalid: float | _Colour | None = None
    loss: str = ""
    error: str = ""

    @model_validator(mode="after")
    def _consistent(self) -> Label:
        if (self.kind == "classes") != (self.classes is not None):
            raise ValueError(f"task {self.letter}: classes should be given where the kind is classes, and only there")
        if self.kind == "classes" and self.model_fields_set & {"channels", "scale", "offset"}:
            raise ValueError(f"task {self.letter}: classes have no channels, scale or offset")
        self._check_raw()
        self.task  # noqa: B018  (its own check)
        return self

    def _check_raw(self) -> None:
        """Of what classes are in the files: ValueError for fields that contradict each other."""
        given = [name for name in ("values", "shift", "colors") if getattr(self, name) is not None]
        if given and self.kind != "classes":
            raise ValueError(f"task {self.letter}: {given[0]} should be given of classes alone")
        if len(given) > 1:
            raise ValueError(
                f"task {self.letter}: one of values, shift and colors will do, found {' and '.join(given)}"
            )
        if isinstance(self.invalid, list) and not self.colors:
            raise ValueError(f"task {self.letter}: invalid should be a number, or a colour where colors are given")
        raw = self.values or self.colors or []
        if raw and len(raw) != self.task.channels:
            found = f"{len(raw)} of them and {self.task.channels} classes"
            raise ValueError(f"task {self.letter}: {given[0]} should have one for each class, found {found}")
        every = [*raw, [self.invalid] * 3 if self.colors and not isinstance(self.invalid, list) else self.invalid]
        if twice := [one for one in raw if every.count(one) > 1]:
            raise ValueError(f"task {self.letter}: {given[0]} and invalid should all differ, found {twice[0]} twice")

    @property
    def table(self) -> dict[int, int] | None:
        """Raw value -> class, where that is no range; a colour is one number, 65536 r + 256 g + b."""
        codes = [(r << 16) + (g << 8) + b for r, g, b in self.colors] if self.colors else self.values
        return None if codes is None else {code: index for index, code in enumerate(codes)}

    @property
    def task(self) -> Task:
        """The definition of the task."""
        names = self.classes if isinstance(self.classes, list) else [f"class {i}" for i in range(self.classes or 0)]
        name = self.name or (TASKS[self.letter].name if self.letter in TASKS else self.letter)
        channels = self.channels if self.kind == "regression" else len(names)
        return Task(self.letter, name, "", channels, self.kind, self.loss, self.error, tuple(names))


class Splits(_Entry):
    """Which images are in which split: `ratio`, or both `train` and `test`.

    Attributes
    ----------
    train, test : where the patterns hold {split}, what it stands for; else a pattern of ids with * and ?, the path of a
        text file with an id a line (ending in .txt), or a list of ids.
    ratio : share of the images to train, by a hash of their ids, so that it holds when images are added.
    """

    train: str | list[str] | None = None
    test: str | list[str] | None = None
    ratio: Annotated[float, Field(gt=0, lt=1)] | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Splits:
        given = (self.train is not None, self.test is not None, self.ratio is not None)
        if given not in ((True, True, False), (False, False, True)):
            raise ValueError("splits should have train and test, or ratio alone")
        return self


class Description(_Entry):
    """A data set: the pattern of its images, its tasks and its splits. Suffixes of files match patterns in any case."""

    images: _pattern("images")
    tasks: Annotated[list[Label], Field(min_length=1)]
    splits: Splits

    @model_validator(mode="after")
    def _consistent(self) -> Description:
        letters = [label.letter for label in self.tasks]
        twice = sorted({letter for letter in letters if letters.count(letter) > 1})
        if twice:
            raise ValueError(f"tasks should have different letters, found {twice[0]!r} twice")
        patterns = [self.images, *(label.files for label in self.tasks)]
        by_folder = ["{split}" in pattern for pattern in patterns]
        if any(by_folder) and not by_folder[0]:
            raise ValueError("patterns of labels may hold {split} where that of the images does")
        if by_folder[0] and not (isinstance(self.splits.train, str) and isinstance(self.splits.test, str)):
            raise ValueError("splits should name what {split} stands for, a text each for train and test")
        if by_folder[0]:
            train, test = PurePosixPath(self.splits.train), PurePosixPath(self.splits.test)
            if train.is_relative_to(test) or test.is_relative_to(train):
                raise ValueError(f"splits should name two folders apart, found '{train}' and '{test}'")
        for value in (self.splits.train, self.splits.test):
            if isinstance(value, str) and (value.startswith("/") or ".." in PurePosixPath(value).parts):
                raise ValueError(f"a path should not leave the folder of the data, found {value!r}")
        return self

    @property
    def definitions(self) -> dict[str, Task]:
        """Definitions of the tasks, by letter."""
        return {label.letter: label.task for label in self.tasks}


def read(root: Path) -> Description:
    """The description of a folder; ValueError of one line for one that is missing or wrong."""
    path = root / FILE
    text = _text(path)
    try:
        values = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # of dates and numbers that are none, and of depth
        raise ValueError(f"{path} is no YAML: {' '.join(str(error).split())}.") from None
    if not isinstance(values, dict):
        raise ValueError(f"{path} should hold images, tasks and splits. Found {_SHOWN.repr(values)}.")
    try:
        return Description(**{str(name): value for name, value in values.items()})
    except ValidationError as error:
        raise ValueError(f"{path}: {_sentence(error.errors()[0])}") from None


def digest(root: Path, splits: Splits) -> str:
    """16 hexadecimal digits that name the content of a folder's description and of the lists of ids that it names."""
    lists = [value for value in (splits.train, splits.test) if isinstance(value, str) and value.endswith(".txt")]
    content = "\0".join(_text(root / name) for name in (FILE, *lists))
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def find(description: Description, root: Path, split: str) -> list[tuple[str, str]]:
    """The images of a split: their ids, in natural order (2 before 10), and what {split} stands for.

    ValueError for a pattern that matches nothing, an id that a list has twice, and an image that is in both splits.
    """
    chosen = getattr(description.splits, split)
    folder = chosen if "{split}" in description.images else ""
    found = _matching(root, description.images.replace("{split}", folder))
    if not found:
        raise ValueError(f"{root} should hold images {description.images}. Found none for {split}.")
    if folder:
        return [(name, folder) for name in found]
    ids = _chosen(description.splits, root, split, found)
    if not ids:
        wanted = f"ratio {description.splits.ratio}" if chosen is None else repr(chosen)
        raise ValueError(f"{root}: splits.{split} should match images. Found {wanted} and ids such as {found[0]!r}.")
    if len(set(ids)) < len(ids):
        twice, times = Counter(ids).most_common(1)[0]
        raise ValueError(f"{root}: splits.{split} should name an image once. Found {twice!r} {times} times.")
    other = _chosen(description.splits, root, "test" if split == "train" else "train", found)
    if both := set(ids) & set(other):
        raise ValueError(f"{root}: splits should share no image. Found {min(both)!r} in both, of {len(both)} such.")
    return [(name, "") for name in ids]


def _chosen(splits: Splits, root: Path, split: str, found: list[str]) -> list[str]:
    """The ids of a split, out of those found or as a list names them."""
    chosen = getattr(splits, split)
    if splits.ratio is not None:
        share = {name: int(hashlib.sha256(os.fsencode(name)).hexdigest()[:12], 16) / 16**12 for name in found}
        return [name for name in found if (share[name] < splits.ratio) == (split == "train")]
    if isinstance(chosen, str) and not chosen.endswith(".txt"):
        return [name for name in found if fnmatchcase(name, chosen)]
    ids = chosen if isinstance(chosen, list) else _text(inside(root, chosen)).split("\n")
    return [posixpath.normpath(name.strip()) for name in ids if name.strip()]  # one name for one image


def places(root: Path, names: Iterable[str]) -> list[Path]:
    """`inside` of each name; its suffix may be in upper case where the name has it in lower case, and the other way.

    ValueError where two files are called so.
    """
    listed: dict[Path, dict[str, list[str]]] = {}
    found = []
    for path in (inside(root, name) for name in names):
        if path.parent not in listed:
            spellings = listed[path.parent] = {}
            with suppress(OSError):  # of a folder that is not there, or that may not be listed
                for each in sorted(os.listdir(path.parent)):
                    spellings.setdefault(_lowered(each), []).append(each)
        called = listed[path.parent].get(_lowered(path.name), [path.name])
        if len(called) > 1:
            raise _alike(root, *((path.parent / each).relative_to(root).as_posix() for each in called))
        if called[0] != path.name:
            path = inside(root, (path.parent / called[0]).relative_to(root).as_posix())
        found.append(path)
    return found


def inside(root: Path, name: str) -> Path:
    """`root / name`; ValueError for a path that leaves the root, by itself or through a link."""
    path = root / name
    if not os.path.realpath(path).startswith(os.path.realpath(root).rstrip(os.sep) + os.sep):
        raise ValueError(f"{path} should not leave the folder of the data. Found {os.path.realpath(path)}.")
    return path


def _matching(root: Path, pattern: str) -> list[str]:
    """The ids of the files that match, in natural order; an id may hold slashes, and suffixes match in any case."""
    before, after = _lowered(pattern).split("{id}")
    start = root / before.rpartition("/")[0]
    inside(root, f"{before.rpartition('/')[0]}/.")
    ids: dict[str, str] = {}
    for folder, _, files in os.walk(start):
        for name in files:
            path = Path(folder, name).relative_to(root).as_posix()
            lowered = _lowered(path)
            if lowered.startswith(before) and lowered.endswith(after) and len(lowered) > len(before) + len(after):
                found = lowered[len(before) : len(lowered) - len(after)]
                if found in ids:
                    raise _alike(root, *sorted((path, ids[found])))
                ids[found] = path
    # Every second part is a number in ASCII digits, which are not the only ones that Python knows.
    return sorted(ids, key=lambda name: [int(p) if i % 2 else p for i, p in enumerate(re.split("([0-9]+)", name))])


def _lowered(path: str) -> str:
    """A path with its suffix in lower case."""
    suffix = PurePosixPath(path).suffix
    return path.removesuffix(suffix) + suffix.lower()


def _alike(root: Path, one: str, other: str, *_: str) -> ValueError:
    return ValueError(f"{root} should have files whose names differ by more than case. Found {one} and {other}.")


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ValueError(f"{path} cannot be read: {reason}.") from None


def _sentence(fault: dict[str, Any]) -> str:
    kinds = re.compile(r"(constrained|function|list\[).*|str|float")  # of a field that may be of several
    where = ".".join(str(part) for part in fault["loc"] if not kinds.fullmatch(str(part)))
    message = fault["msg"].removeprefix("Value error, ").rstrip(".")
    message = re.sub(r"\b(loss|error)_name\b", r"\1", message)  # as the file has them
    found = (
        ""
        if isinstance(fault["input"], dict) or fault["type"] == "missing"
        else f" Found {_SHOWN.repr(fault['input'])}."
    )
    return f"{where}: {message}.{found}" if where else f"{message}."
