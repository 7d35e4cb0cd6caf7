"""Data sets of images with dense labels, all in one shape: `load(name, ...) -> Dataset`.

`rooms` is rendered here and needs no files; `taskonomy` reads the published layout of Taskonomy and Omnidata.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor

from mtrlib.tasks import parse

NAMES = ("rooms", "taskonomy")
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
    """

    name: str
    images: Tensor
    targets: dict[str, Tensor]
    masks: dict[str, Tensor | None]
    ids: tuple[str, ...]
    class_names: tuple[str, ...]
    bad: tuple[str, ...] = ()

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
    name : "rooms" (rendered, needs no files) or "taskonomy".
    tasks : letters of the labels to load, such as "sd".
    split : "train" or "test"; the two never share a room or a building's point.
    size : height and width of the images, in pixels.
    root : folder of the files; required by every data set but rooms.
    limit : number of images; None for all of them (for rooms, 1,024 to train and 256 to test).
    seed : of the rooms; a data set of files ignores it.
    on_bad : "raise" stops at the first file that cannot be read, "skip" leaves its frame out and says so in `bad`.

    Raises
    ------
    ValueError : for a parameter out of its range, with those allowed, and for a bad file, named in full.
    """
    parse(tasks)
    _one_of("split", split, SPLITS)
    _one_of("on_bad", on_bad, ("raise", "skip"))
    for parameter, value in (("size", size), ("limit", limit)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise ValueError(f"Parameter {parameter} should be a positive integer. Found {parameter} = {value!r}.")
    reader = _reader(name)
    if name == "rooms":
        return reader.load(tasks=tasks, split=split, size=size, limit=limit, seed=seed)
    if root is None:
        raise ValueError(f"Parameter root should be the folder of the {name} files. Found root = None.")
    return reader.load(Path(root), tasks=tasks, split=split, size=size, limit=limit, on_bad=on_bad)


def classes(name: str) -> tuple[str, ...]:
    """Names of the classes of s in the data set `name`, by index, without loading it."""
    return _reader(name).CLASSES


def letters(name: str) -> str:
    """Letters of the tasks that the data set `name` has labels of."""
    return _reader(name).TASKS


def _reader(name: str) -> ModuleType:
    _one_of("name", name, NAMES)
    return import_module(f"mtrlib.data.{name}")


def _one_of(parameter: str, value: str, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise ValueError(f"Parameter {parameter} should be one of {', '.join(allowed)}. Found {parameter} = {value!r}.")
