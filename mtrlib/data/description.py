"""What a data set holds, as a value that a YAML file can say: images, tasks, splits. `fields.yaml` explains each field.

Every fault is one line with the file and the value, found before anything is decoded.
"""

from __future__ import annotations

import hashlib
import re
import reprlib
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from mtrlib import machine
from mtrlib.tasks import TASKS, Task

FILE = "dataset.yaml"
FORMATS = {"images": (".png", ".jpg", ".jpeg", ".npy"), "labels": (".png", ".npy")}

_SHOWN = reprlib.Repr()  # of what was found: a few lines of YAML can stand for billions of values
_SHOWN.maxlevel = 2
_SHOWN.maxstring = _SHOWN.maxother = _SHOWN.maxlong = 200


def _pattern(formats: str):
    def check(value: str) -> str:
        if leaves(value) or "\\" in value:
            raise ValueError("a path should not leave the folder of the data")
        times = [value.count(f"{{{name}}}") for name in ("id", "split", "folder")]
        if times[0] != 1 or max(times) > 1 or re.search(r"[{}]", re.sub(r"{(id|split|folder)}", "", value)):
            raise ValueError("a pattern should hold {id} once, may hold {split} and {folder} once, and no other braces")
        if PurePosixPath(value).suffix.lower() not in FORMATS[formats]:
            raise ValueError(f"a pattern of {formats} should end in one of {', '.join(FORMATS[formats])}")
        return value

    return Annotated[str, AfterValidator(check)]


class _Entry(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=True)


_Colour = Annotated[list[Annotated[int, Field(ge=0, le=255)]], Field(min_length=3, max_length=3)]
_Of = TypeVar("_Of")
_ForEach = Annotated[list[_Of], Field(min_length=2, max_length=255)]  # class
_Whole = Annotated[int, Field(ge=-(2**53), le=2**53)]


class Label(_Entry):
    """One task, of classes or of regression."""

    letter: str
    name: str = ""
    kind: Literal["classes", "regression"]
    classes: Annotated[int, Field(ge=2, le=255)] | _ForEach[str] | None = None
    channels: int = Field(1, ge=1, le=64)
    files: _pattern("labels")
    png: Literal["8-bit grey", "16-bit grey", "8-bit RGB"] | None = None
    scale: float = Field(1.0, allow_inf_nan=False)
    offset: float = Field(0.0, allow_inf_nan=False)
    values: _ForEach[_Whole] | None = None
    void: list[_Whole] = []
    shift: Annotated[int, Field(ge=-(2**16), le=2**16)] | None = None
    colors: _ForEach[_Colour] | None = None
    invalid: float | _Colour | None = None
    loss: str = ""
    error: str = ""

    @model_validator(mode="after")
    def _consistent(self) -> Label:
        if wrong := self._wrong():
            raise ValueError(f"task {self.letter}: {wrong}")
        return self

    def _wrong(self) -> str | None:
        """The first of the fields that contradict each other."""
        given = [name for name in ("values", "shift", "colors") if getattr(self, name) is not None]
        if (self.kind == "classes") != (self.classes is not None):
            return "classes should be given where the kind is classes, and only there"
        if self.kind == "classes" and self.model_fields_set & {"channels", "scale", "offset"}:
            return "classes have no channels, scale or offset"
        if given and self.kind != "classes":
            return f"{given[0]} should be given of classes alone"
        if len(given) > 1:
            return f"one of values, shift and colors will do, found {' and '.join(given)}"
        if self.void and not self.values:
            return "void should be given beside values"
        if isinstance(self.invalid, list) and not self.colors:
            return "invalid should be a number, or a colour where colors are given"
        raw, number = self.values or self.colors or [], self.task.channels  # the task checks itself, too
        if raw and len(raw) != number:
            return f"{given[0]} should have one for each class, found {len(raw)} of them and {number} classes"
        every = [*raw, *self.void, [self.invalid] * 3 if self.colors and self.invalid in range(256) else self.invalid]
        twice = [one for one in [*raw, *self.void] if every.count(one) > 1]
        return f"{given[0]} and invalid should all differ, found {twice[0]} twice" if twice else None

    @property
    def table(self) -> dict[int, int] | None:
        """Raw value -> class, -1 for none, where that is no range; a colour is one number, 65536 r + 256 g + b."""
        codes = [(r << 16) + (g << 8) + b for r, g, b in self.colors] if self.colors else self.values
        return codes and {code: index for index, code in enumerate(codes)} | dict.fromkeys(self.void, -1)

    @property
    def masked(self) -> bool:
        """Whether some pixels may have no label."""
        return self.invalid is not None or self.shift is not None or bool(self.void)

    @property
    def task(self) -> Task:
        """The definition of the task."""
        names = self.classes if isinstance(self.classes, list) else [f"class {i}" for i in range(self.classes or 0)]
        name = self.name or (TASKS[self.letter].name if self.letter in TASKS else self.letter)
        channels = self.channels if self.kind == "regression" else len(names)
        return Task(self.letter, name, "", channels, self.kind, self.loss, self.error, tuple(names))


class Splits(_Entry):
    """Which images are in which split: `ratio`, or both `train` and `test`."""

    train: str | list[str] | None = None
    test: str | list[str] | None = None
    ratio: Annotated[float, Field(gt=0, lt=1)] | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Splits:
        if (self.train is None, self.test is None, self.ratio is None) not in ((0, 0, 1), (1, 1, 0)):
            raise ValueError("splits should have train and test, or ratio alone")
        for value in (self.train, self.test):
            if isinstance(value, str) and leaves(value):
                raise ValueError(f"a path should not leave the folder of the data, found {value!r}")
        return self


class Description(_Entry):
    """A data set: the pattern of its images, its tasks and its splits."""

    images: _pattern("images")
    ids: Literal["{id}", "{split}/{id}"] | None = None
    tasks: Annotated[list[Label], Field(min_length=1)]
    splits: Splits

    @model_validator(mode="after")
    def _consistent(self) -> Description:
        letters = [label.letter for label in self.tasks]
        if twice := sorted({letter for letter in letters if letters.count(letter) > 1}):
            raise ValueError(f"tasks should have different letters, found {twice[0]!r} twice")
        for part in ("{split}", "{folder}"):
            if part not in self.images and any(part in label.files for label in self.tasks):
                raise ValueError(f"patterns of labels may hold {part} where that of the images does")
        if "{split}" in self.images:
            named = (self.splits.train, self.splits.test)
            if not all(isinstance(name, str) for name in named):
                raise ValueError("splits should name what {split} stands for, a text each for train and test")
            train, test = map(PurePosixPath, named)
            if train.is_relative_to(test) or test.is_relative_to(train):
                raise ValueError(f"splits should name two folders apart, found '{train}' and '{test}'")
        return self

    @property
    def definitions(self) -> dict[str, Task]:
        """Definitions of the tasks, by letter."""
        return {label.letter: label.task for label in self.tasks}

    def name(self, places: dict[str, str]) -> str:
        """What names the image of which the patterns hold these `places`: split, folder and id."""
        return (self.ids or ("{split}/{id}" if "{split}" in self.images else "{id}")).format_map(places)


def read(root: Path) -> Description:
    """The description of a folder; ValueError of one line for one that is missing or wrong."""
    path = machine.folder(root, "the data (root)") / FILE
    return parsed(path, text(path))


@lru_cache(maxsize=8)
def parsed(path: Path, content: str) -> Description:
    """The description that is the content of a file; errors as of `read`."""
    try:
        values = yaml.safe_load(content)
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # of dates and numbers that are none, and of depth
        raise ValueError(f"{path} is no YAML: {' '.join(str(error).split())}.") from None
    if not isinstance(values, dict):
        raise ValueError(f"{path} should hold images, tasks and splits. Found {_SHOWN.repr(values)}.")
    try:
        return Description(**{str(name): value for name, value in values.items()})
    except ValidationError as error:
        raise ValueError(f"{path}: {_sentence(error.errors()[0])}") from None


@lru_cache
def shipped(name: str) -> dict[str, Description]:
    """Descriptions that come with this package, of one data set by its layouts."""
    values = yaml.safe_load(text(Path(__file__).with_name(f"{name}.yaml")))
    return {layout: Description(**what) for layout, what in values.items()}


def digest(texts: Iterable[str]) -> str:
    """16 hexadecimal digits that name the text of a description and of the lists of ids that it names."""
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:16]


def leaves(path: str) -> bool:
    """Whether a path leaves the folder that it starts from, links aside."""
    return path.startswith("/") or ".." in PurePosixPath(path).parts


def text(path: Path) -> str:
    """The text of a file; ValueError of one line where it cannot be read."""
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
    found = "" if isinstance(fault["input"], dict) or fault["type"] == "missing" else _SHOWN.repr(fault["input"])
    return (f"{where}: " if where else "") + f"{message}." + (f" Found {found}." if found else "")
