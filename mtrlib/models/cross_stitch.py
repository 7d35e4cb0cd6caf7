"""Cross-stitch networks (Misra et al. 2016, arXiv 1604.03539): an encoder a task; after each stage every channel of a
task goes on as a learned mixture of that channel of all tasks. They start from trained single-task models."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from mtrlib.models import stages
from mtrlib.models.network import MultiTaskModel
from mtrlib.tasks import Task

OWN = 0.9  # of a mixture at first; the other tasks share the rest


class Stitch(nn.Module):
    """Maps of all tasks, (B, C, H, W) by letter, to mixtures of them. Rows and columns of `weights`, (T, T, C), are
    tasks in the order of their letters, so that the order in which a model names them never matters."""

    def __init__(self, letters: Iterable[str], channels: int):
        super().__init__()
        self.letters = sorted(letters)
        own = torch.eye(number := len(self.letters))
        weights = OWN * own + (1 - OWN) / max(number - 1, 1) * (1 - own)
        self.weights = nn.Parameter(weights[:, :, None].repeat(1, 1, channels))

    def forward(self, maps: dict[str, Tensor], tasks: Iterable[str]) -> dict[str, Tensor]:
        def mixed(letter: str) -> Tensor:
            row = self.weights[self.letters.index(letter)][:, None, :, None, None]
            return sum(share * maps[other] for share, other in zip(row, self.letters, strict=True))

        return {letter: mixed(letter) for letter in tasks}


class CrossStitch(MultiTaskModel):
    """`encoder` has one encoder by letter; those of all tasks run, whichever are asked for, but the last mixture and
    the decoder run for these only."""

    exchanges = True
    unit: Any = Stitch  # what mixes
    first = 1  # the part of the encoders, of stem and stages, behind which it begins

    def __init__(
        self, own: dict[str, nn.Module], decoders: dict[str, nn.Module], definitions: dict[str, Task] | None = None
    ):
        super().__init__(nn.ModuleDict(own), decoders, definitions)
        channels = [channels for channels, _ in stages.shapes(next(iter(own.values())))]
        self.units = nn.ModuleList(self.unit(own, each) for each in channels[self.first :])

    def encode(self, images: Tensor) -> Any:
        """(B, 3, H, W) images in [0, 1] -> by letter (B, C, H / stride, W / stride), before the last mixture."""
        maps = dict.fromkeys(self.tasks, self.normalised(images))
        parts = {letter: stages.split(encoder) for letter, encoder in self.encoder.items()}
        for place in range(stages.NUMBER + 1):
            maps = {letter: stages.run(parts[letter][place], each) for letter, each in maps.items()}
            if self.first <= place < stages.NUMBER:
                maps = self.units[place - self.first](maps, self.tasks)
        return maps

    def decode(self, latent: Any, tasks: str, early: list[dict[str, Tensor]] | None = None) -> dict[str, Tensor]:
        mixed = self.units[-1](latent, tasks)
        return {letter: self.decoders[letter](mixed[letter]) for letter in tasks}

    def start_from(self, alone: dict[str, MultiTaskModel]) -> None:
        """Take encoder and decoder of each task from its single-task model, by letter."""
        for letter in self.tasks:
            self.encoder[letter].load_state_dict(alone[letter].encoder.state_dict())
            self.decoders[letter].load_state_dict(alone[letter].decoders[letter].state_dict())
