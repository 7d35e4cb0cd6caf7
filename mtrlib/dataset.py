"""Images with dense labels, in one shape whatever they were read from."""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any, Self

import torch
from torch import Tensor

from mtrlib.tasks import TASKS, Task

SPLITS = ("train", "test")


@dataclass(frozen=True)
class Dataset:
    """Images and labels, in memory, memory-mapped or on an accelerator.

    Attributes
    ----------
    name : the name it was loaded by.
    images : (N, 3, H, W), uint8, sRGB in [0, 255].
    targets : by task letter; classes (N, H, W) uint8 indices, others (N, C, H, W) float32; (N,) and (N, C) of tasks of
        whole images.
    masks : by task letter; (N, H, W) bool, or (N,), true where the label is valid, or None where every one is.
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
            object.__setattr__(self, "tasks", papers(self.targets, self.class_names))

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

    def to(self, device: torch.device | str) -> Self:
        """The same data set with every tensor on `device`."""
        targets = {letter: values.to(device) for letter, values in self.targets.items()}
        masks = {letter: None if mask is None else mask.to(device) for letter, mask in self.masks.items()}
        return replace(self, images=self.images.to(device), targets=targets, masks=masks)

    def select(self, tasks: str) -> Self:
        """The same images with the labels of `tasks` alone."""
        parts = ("targets", "masks", "tasks")
        kept: dict[str, Any] = {name: {letter: getattr(self, name)[letter] for letter in tasks} for name in parts}
        return replace(self, **kept)


def papers(letters: Iterable[str], class_names: tuple[str, ...]) -> dict[str, Task]:
    """The paper's definitions of some letters, with other classes of s unless there are none."""
    defined = {letter: TASKS[letter] for letter in letters}
    if "s" in defined and class_names:
        defined["s"] = replace(defined["s"], channels=len(class_names), class_names=class_names)
    return defined
