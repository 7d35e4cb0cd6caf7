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
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from mtrlib import machine
from mtrlib.data import derived
from mtrlib.tasks import TASKS, Task, parse

FILE = "dataset.yaml"
_SHOWN = reprlib.Repr()  # of what was found: a few lines of YAML can stand for billions of values
_SHOWN.maxlevel = 2
_SHOWN.maxstring = _SHOWN.maxother = _SHOWN.maxlong = 200


def _pattern(what: str, *suffixes: str):
    def check(value: str) -> str:
        if leaves(value) or "\\" in value:
            raise ValueError("a path should not leave the folder of the data")
        names = re.findall("{(id|split|folder)}", value)
        if names.count("id") != 1 or len(names) != len({*names}) or len(re.findall("[{}]", value)) != 2 * len(names):
            raise ValueError("a pattern should hold {id} once, may hold {split} and {folder} once, and no other braces")
        if PurePosixPath(value).suffix.lower() not in suffixes:
            raise ValueError(f"a pattern of {what} should end in one of {', '.join(suffixes)}")
        return value

    return Annotated[str, AfterValidator(check)]


_Colour = Annotated[list[Annotated[int, Field(ge=0, le=255)]], Field(min_length=3, max_length=3)]
_PER_CLASS = Field(min_length=2, max_length=255)
_Whole = Annotated[int, Field(ge=-(2**53), le=2**53)]


class _Entry(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=True)


class Label(_Entry):
    """One task, of classes or of regression."""

    letter: str
    name: str = ""
    kind: Literal["classes", "regression"]
    classes: Annotated[int, Field(ge=2, le=255)] | Annotated[list[str], _PER_CLASS] | None = None
    channels: int = Field(1, ge=1, le=64)
    files: _pattern("labels", ".png", ".npy")
    png: Literal["8-bit grey", "16-bit grey", "8-bit RGB"] | None = None
    scale: float = Field(1.0, allow_inf_nan=False)
    offset: float = Field(0.0, allow_inf_nan=False)
    values: Annotated[list[_Whole], _PER_CLASS] | None = None
    void: list[_Whole] = []
    shift: Annotated[int, Field(ge=-(2**16), le=2**16)] | None = None
    colors: Annotated[list[_Colour], _PER_CLASS] | None = None
    invalid: float | _Colour | None = None
    loss: str = ""
    error: str = ""

    @model_validator(mode="after")
    def _consistent(self) -> Label:
        classes, number = self.kind == "classes", self.task.channels  # the task checks itself, too
        given = [name for name in ("values", "shift", "colors") if getattr(self, name) is not None]
        names, raw = " and ".join(given), self.values or self.colors or []
        of_numbers = self.model_fields_set & {"channels", "scale", "offset"}
        colour = isinstance(self.invalid, list)
        every = [*raw, *self.void, [self.invalid] * 3 if self.colors and not colour else self.invalid]
        twice = next((one for one in every if every.count(one) > 1), None)
        counted = f"found {len(raw)} of them and {number} classes"
        faults = {
            "classes should be given where the kind is classes, and only there": classes != (self.classes is not None),
            "classes have no channels, scale or offset": classes and of_numbers,
            f"{names} should be given of classes alone": given and not classes,
            f"one of values, shift and colors will do, found {names}": len(given) > 1,
            "void should be given beside values": self.void and not self.values,
            "invalid should be a number, or a colour where colors are given": colour and not self.colors,
            f"{names} should have one for each class, {counted}": {*given} - {"shift"} and len(raw) != number,
            f"{names} and invalid should all differ, found {twice} twice": twice is not None,
        }
        for fault in (fault for fault, is_there in faults.items() if is_there):
            raise ValueError(f"task {self.letter}: {fault}")
        return self

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


class Depth(_Entry):
    """Measured depth, and the tasks whose labels are derived from it (`derived`)."""

    files: _pattern("depth", ".png", ".npy")
    scale: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    invalid: list[float] = [0.0]
    camera: Annotated[list[Annotated[float, Field(allow_inf_nan=False)]], Field(min_length=4, max_length=4)] | str
    letters: str
    metres: bool = False

    @model_validator(mode="after")
    def _consistent(self) -> Depth:
        parse(self.letters, derived.LETTERS, "derived labels")
        if isinstance(self.camera, str) and leaves(self.camera):
            raise ValueError(f"a path should not leave the folder of the data, found {self.camera!r}")
        if isinstance(self.camera, list) and min(self.camera[:2]) <= 0:
            raise ValueError(f"camera should be fx, fy, cx, cy, the first two above 0, found {self.camera}")
        return self

    @property
    def definitions(self) -> dict[str, Task]:
        """Definitions of the tasks, by letter: the paper's, unless d and D are in metres."""
        own = {letter: TASKS[letter] for letter in self.letters}
        named = {"d": "z-depth in metres", "D": "distance in metres"}
        return own | {x: Task(x, name, "", 1) for x, name in named.items() if self.metres and x in own}


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
    """A data set: the pattern of its images, its tasks, what is derived from its depth, and its splits."""

    images: _pattern("images", ".png", ".jpg", ".jpeg", ".npy")
    ids: Literal["{id}", "{split}/{id}"] | None = None
    tasks: list[Label] = []
    depth: Depth | None = None
    splits: Splits

    @model_validator(mode="after")
    def _consistent(self) -> Description:
        letters = [*(label.letter for label in self.tasks), *(self.depth.letters if self.depth else "")]
        if not letters:
            raise ValueError("tasks should name at least one, or depth what is derived from it")
        if twice := sorted({letter for letter in letters if letters.count(letter) > 1}):
            raise ValueError(f"tasks should have different letters, found {twice[0]!r} twice")
        for part in ("{split}", "{folder}"):
            if part not in self.images and any(part in of.files for of in (*self.tasks, *filter(None, [self.depth]))):
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
    try:
        return Description.model_validate(values)
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
        raise ValueError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}.") from None


def _sentence(fault: dict[str, Any]) -> str:
    kinds = re.compile(r"(constrained|function|list\[).*|str|float")  # of a field that may be of several
    where = ".".join(str(part) for part in fault["loc"] if not kinds.fullmatch(str(part)))
    message = re.sub(r"\b(loss|error)_name\b", r"\1", fault["msg"].removeprefix("Value error, ").rstrip("."))
    found = "" if isinstance(fault["input"], dict) or fault["type"] == "missing" else _SHOWN.repr(fault["input"])
    return (f"{where}: " if where else "") + f"{message}." + (f" Found {found}." if found else "")
