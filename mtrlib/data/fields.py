"""The parts of a description: a label, depth, splits. `fields.yaml` explains each field."""

import re
from pathlib import PurePosixPath
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from mtrlib.data import derived, pixels
from mtrlib.tasks import KINDS, TASKS, Task, parse


def leaves(path: str) -> bool:
    """Whether a path leaves the folder that it starts from, links aside."""
    return path.startswith("/") or ".." in PurePosixPath(path).parts


def pattern_of(what: str, *suffixes: str, table: bool = False):
    """The type of a pattern of paths, or of the path of a `table` (CSV) of all images."""

    def check(value: str) -> str:
        if leaves(value) or "\\" in value:
            raise ValueError("a path should not leave the folder of the data")
        if table and value.lower().endswith(".csv") and not re.search("[{}]", value):
            return value
        names = re.findall("{(id|split|folder)}", value)
        if names.count("id") != 1 or len(names) != len({*names}) or len(re.findall("[{}]", value)) != 2 * len(names):
            raise ValueError("a pattern should hold {id} once, may hold {split} and {folder} once, and no other braces")
        if PurePosixPath(value).suffix.lower() not in suffixes:
            raise ValueError(f"a pattern of {what} should end in one of {', '.join(suffixes)}; {pixels.convert(value)}")
        return value

    return Annotated[str, AfterValidator(check)]


_Colour = Annotated[list[Annotated[int, Field(ge=0, le=255)]], Field(min_length=3, max_length=3)]
_PER_CLASS = Field(min_length=2, max_length=255)
_Camera = Annotated[list[Annotated[float, Field(allow_inf_nan=False)]], Field(min_length=4, max_length=4)] | str
_Share = Annotated[float, Field(gt=0, lt=1)]
_Whole = Annotated[int, Field(ge=-(2**53), le=2**53)]


class Entry(BaseModel):
    """A frozen part, of right types and known fields."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=True)


class Label(Entry):
    """One task, of a kind of `tasks.KINDS`, of each pixel or of whole images."""

    letter: str
    name: str = ""
    kind: Literal[KINDS]
    per: Literal["pixel", "image"] = "pixel"
    classes: Annotated[int, Field(ge=2, le=255)] | Annotated[list[str], _PER_CLASS] | None = None
    channels: int = Field(1, ge=1, le=64)
    files: pattern_of("labels", ".png", ".npy", table=True)
    png: Literal["8-bit grey", "16-bit grey", "8-bit RGB"] | None = None
    scale: float = Field(1.0, allow_inf_nan=False)
    offset: float = Field(0.0, allow_inf_nan=False)
    values: Annotated[list[_Whole], _PER_CLASS] | None = None
    void: list[_Whole] = []
    shift: Annotated[int, Field(ge=-(2**16), le=2**16)] | None = None
    colors: Annotated[list[_Colour], _PER_CLASS] | None = None
    invalid: float | _Colour | None = None
    within: Annotated[list[float], Field(min_length=2, max_length=2)] | None = None
    loss: str = ""
    error: str = ""
    unit: str = ""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        classes, labels, named = self.kind in ("classes", "ordinal"), self.kind == "labels", self.classes is not None
        twice_told = labels and named and (isinstance(self.classes, int) or self.channels > 1)
        wrong_file = self.is_table if self.per == "pixel" else self.files.lower().endswith(".png")
        number = self.task.classes  # the task checks itself, too
        given = [name for name in ("values", "shift", "colors") if getattr(self, name) is not None]
        names, raw = " and ".join(given), self.values or self.colors or []
        of_numbers = self.model_fields_set & {"channels", "scale", "offset", "within"}
        colour = isinstance(self.invalid, list)
        every = [*raw, *self.void, [self.invalid] * 3 if self.colors and not colour else self.invalid]
        twice = next((one for one in every if every.count(one) > 1), None)
        counted = f"found {len(raw)} of them and {number} classes"
        faults = {
            "classes should be given where the kind is classes, and only there": classes != named and not labels,
            "labels have names as classes or a number as channels": twice_told,
            "files of whole images should be NPY or CSV, and CSV of these alone": wrong_file,
            "unit should be given of regression alone": self.unit and self.kind != "regression",
            "classes have no channels, scale, offset or within": classes and of_numbers,
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
    def is_table(self) -> bool:
        """Whether one text file has what all images are."""
        return self.files.lower().endswith(".csv")

    @property
    def masked(self) -> bool:
        """Whether some pixels may have no label."""
        return self.invalid is not None or self.shift is not None or bool(self.void)

    @property
    def task(self) -> Task:
        """The definition of the task."""
        names = self.classes if isinstance(self.classes, list) else [f"class {i}" for i in range(self.classes or 0)]
        name = self.name or (TASKS[self.letter].name if self.letter in TASKS else self.letter)
        channels = (len(names) or self.channels) - (self.kind == "ordinal")
        of = {"class_names": tuple(names), "per_image": self.per == "image", "target_unit": self.unit}
        return Task(self.letter, name, "", channels, self.kind, self.loss, self.error, **of)


class Match(Entry):
    """Images and depth that were taken at times of their own."""

    within: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    lists: Annotated[list[str], Field(min_length=2, max_length=2)] | None = None


class Depth(Entry):
    """Measured depth, and the tasks whose labels are derived from it (`derived`)."""

    files: pattern_of("depth", ".png", ".npy")
    mask: pattern_of("masks", ".png", ".npy") | None = None
    match: Match | None = None
    scale: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    invalid: list[float] = [0.0]
    camera: _Camera | Annotated[dict[str, _Camera], Field(min_length=1)]
    letters: str
    metres: bool = False

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        parse(self.letters, derived.LETTERS, "derived labels")
        for name in self.named:
            if leaves(name):
                raise ValueError(f"a path should not leave the folder of the data, found {name!r}")
            if re.search("[{}]", re.sub("{(split|folder)}", "", name)):
                raise ValueError(f"a path may hold {{split}} and {{folder}}, and no other braces, found {name!r}")
        for camera in self.cameras.values():
            if isinstance(camera, list) and min(camera[:2]) <= 0:
                raise ValueError(f"camera should be fx, fy, cx, cy, the first two above 0, found {camera}")
        return self

    @property
    def cameras(self) -> dict[str, list[float] | str]:
        """Cameras, or files of them, by the pattern of the paths whose they are."""
        return self.camera if isinstance(self.camera, dict) else {"*": self.camera}

    @property
    def named(self) -> list[str]:
        """Text files that the description names beside the lists of ids."""
        lists = self.match and self.match.lists
        return [*(camera for camera in self.cameras.values() if isinstance(camera, str)), *(lists or [])]

    @property
    def definitions(self) -> dict[str, Task]:
        """Definitions of the tasks, by letter: the paper's, unless d and D are in metres."""
        own = {letter: TASKS[letter] for letter in self.letters}
        named = {"d": "z-depth in metres", "D": "distance in metres"}
        return own | {x: Task(x, name, "", 1, target_unit="m") for x, name in named.items() if self.metres and x in own}


class Splits(Entry):
    """Which images are in which split: `ratio`, both `train` and `test`, or a share of each video or of the folders."""

    train: str | list[str] | None = None
    test: _Share | str | list[str] | None = None
    ratio: _Share | None = None
    by: Literal["time", "folder"] | None = None
    gap: Annotated[int, Field(ge=0)] | _Share = 0
    folder: str | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        given = self.train is not None, isinstance(self.test, float), self.test is not None, self.ratio is not None
        both, share, ratio = (1, 0, 1, 0), (0, 1, 1, 0), (0, 0, 0, 1)
        if given not in {None: (both, ratio), "time": (share,), "folder": (both, share)}[self.by]:
            raise ValueError("splits should have train and test, or ratio alone, or by and a share as test")
        if (self.gap and self.by != "time") or (self.folder and not self.by):
            raise ValueError("splits should have gap beside by: time alone, and folder beside by")
        for value in (self.train, self.test):
            if isinstance(value, str) and leaves(value):
                raise ValueError(f"a path should not leave the folder of the data, found {value!r}")
        return self

    @property
    def lists(self) -> list[str]:
        """The text files among what is `train` and `test`."""
        return [value for value in (self.train, self.test) if isinstance(value, str) and value.endswith(".txt")]
