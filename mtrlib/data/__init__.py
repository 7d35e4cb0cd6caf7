"""Data sets of images with dense labels, all in one shape: `load(name, ...) -> Dataset`.

`rooms` is rendered here and needs no files. `taskonomy`, `nyuv2` and `cityscapes` read what is published under those
names; `folder` reads any folder that a file `dataset.yaml` describes. Those that read files give what is to be decoded
as a `decoding.Source`; loading and checking are the same for all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pandas as pd
import torch
from torch import Tensor

from mtrlib.tasks import TASKS, Task, parse

NAMES = ("rooms", "taskonomy", "nyuv2", "cityscapes", "folder")
SPLITS = ("train", "test")


@dataclass(frozen=True)
class Dataset:
    """Images and labels, in memory, memory-mapped or on an accelerator.

    Attributes
    ----------
    name : the name it was loaded by.
    images : (N, 3, H, W), uint8, sRGB in [0, 255].
    targets : by task letter; classes (N, H, W) uint8 indices, others (N, C, H, W) float32.
    masks : by task letter; (N, H, W) bool, true where the label is valid, or None where every pixel is.
    ids : N names of the images, unique within the data set.
    class_names : names of the classes of s, by index.
    bad : files left out because they could not be read (only where the reader was told to skip them).
    tasks : definitions of the tasks that it holds labels of, by letter; the paper's where none are given, with the
        classes of s as named.
    """

    name: str
    images: Tensor
    targets: dict[str, Tensor]
    masks: dict[str, Tensor | None]
    ids: tuple[str, ...]
    class_names: tuple[str, ...]
    bad: tuple[str, ...] = ()
    tasks: dict[str, Task] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.tasks:
            object.__setattr__(self, "tasks", _papers("".join(self.targets), self.class_names))

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def nbytes(self) -> int:
        """Size of all tensors in bytes."""
        tensors = [self.images, *self.targets.values(), *(mask for mask in self.masks.values() if mask is not None)]
        return sum(tensor.nbytes for tensor in tensors)

    def batch(
        self, index: Tensor | slice, device: torch.device | str | None = None
    ) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor | None]]:
        """Images as float in [0, 1] (B, 3, H, W), channels last, with their targets and masks (B first), on `device`.

        A tensor as index lies on the device of the data.
        """
        images = self.images[index].to(device).contiguous(memory_format=torch.channels_last).float() / 255
        targets = {letter: values[index].to(device) for letter, values in self.targets.items()}
        masks = {letter: None if mask is None else mask[index].to(device) for letter, mask in self.masks.items()}
        return images, targets, masks

    def to(self, device: torch.device | str) -> Dataset:
        """The same data set with every tensor on `device`."""
        return replace(
            self,
            images=self.images.to(device),
            targets={letter: values.to(device) for letter, values in self.targets.items()},
            masks={letter: None if mask is None else mask.to(device) for letter, mask in self.masks.items()},
        )

    def select(self, tasks: str) -> Dataset:
        """The same images with the labels of `tasks` alone."""
        return replace(
            self,
            targets={letter: self.targets[letter] for letter in tasks},
            masks={letter: self.masks[letter] for letter in tasks},
            tasks={letter: self.tasks[letter] for letter in tasks},
        )


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
        return _reader(name).load(tasks=tasks, split=split, size=size, limit=limit, seed=seed)
    return import_module("mtrlib.data.decoding").load(source(name, root, tasks, split, size, limit), on_bad=on_bad)


def tasks(name: str, root: str | Path | None = None) -> dict[str, Task]:
    """Definitions of the tasks that a data set has labels of, by letter, without loading it.

    `root` is its folder: "folder" and "cityscapes" need it, since their tasks or classes depend on what lies there.
    """
    reader = _reader(name)
    if name == "rooms":
        return _papers(reader.TASKS, reader.CLASSES)
    return reader.tasks(None if root is None else _folder(root))


def classes(name: str, root: str | Path | None = None) -> tuple[str, ...]:
    """Names of the classes of s in a data set, by index, without loading it; none where it has no s."""
    defined = tasks(name, root)
    return defined["s"].class_names if "s" in defined else ()


def letters(name: str, root: str | Path | None = None) -> str:
    """Letters of the tasks that a data set has labels of."""
    return "".join(tasks(name, root))


def digest(name: str, root: str | Path | None = None) -> str | None:
    """What names the content of the description of a "folder" data set; None for all others, which have none."""
    return _reader(name).digest(_folder(root)) if name == "folder" and root is not None else None


def check(name: str, root: str | Path, letters: str | None = None) -> pd.DataFrame:
    """Every file of a data set read once and what was found, a row a split and task; see `checks.check`."""
    return import_module("mtrlib.data.checks").check(name, root, letters)


def write_example(folder: str | Path, train: int = 256, test: int = 64, seed: int = 0) -> Path:
    """A small "folder" data set, written unless it is there already; see `example.write_example`."""
    return import_module("mtrlib.data.example").write_example(folder, train, test, seed)


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


def _papers(letters: str, class_names: tuple[str, ...]) -> dict[str, Task]:
    """The paper's definitions of some letters, with other classes of s unless there are none."""
    defined = {letter: TASKS[letter] for letter in letters}
    if "s" in defined and class_names:
        defined["s"] = replace(defined["s"], channels=len(class_names), class_names=class_names)
    return defined


def _reader(name: str) -> ModuleType:
    _one_of("name", name, NAMES)
    return import_module(f"mtrlib.data.{name}")


def _one_of(parameter: str, value: str, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise ValueError(f"Parameter {parameter} should be one of {', '.join(allowed)}. Found {parameter} = {value!r}.")
