"""NDDR-CNN (Gao et al. 2019, arXiv 1801.08297): an encoder a task; after the stem and each stage a task goes on with a
1 x 1 convolution, batch norm and ReLU of the maps of all tasks. They start from trained single-task models."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from mtrlib.models import stages
from mtrlib.models.cross_stitch import OWN, CrossStitch


class Reduction(nn.Module):
    """Maps of all tasks, (B, C, H, W) by letter, to as many channels of each; they enter in the order of their letters,
    at first mostly the task's own, unchanged."""

    def __init__(self, letters: Iterable[str], channels: int):
        super().__init__()
        self.letters = sorted(letters)
        width = len(self.letters) * channels
        layers = {t: nn.Sequential(*stages.convolution(width, channels, nn.ReLU(), 0.05)) for t in self.letters}
        self.layers = nn.ModuleDict(layers)
        self.initialise()

    def initialise(self) -> None:
        """The diagonal start: .9 of the own map and of the others, together, .1."""
        for letter, (layer, *_) in self.layers.items():
            channels, number = layer.out_channels, len(self.letters)
            shares = [OWN if other == letter else (1 - OWN) / max(number - 1, 1) for other in self.letters]
            start = torch.cat([share * torch.eye(channels) for share in shares], dim=1)
            with torch.no_grad():
                layer.weight.copy_(start[:, :, None, None])

    def forward(self, maps: dict[str, Tensor], tasks: Iterable[str]) -> dict[str, Tensor]:
        together = torch.cat([maps[letter] for letter in self.letters], dim=1)
        return {letter: self.layers[letter](together) for letter in tasks}


class NDDR(CrossStitch):
    """As `CrossStitch`, with `Reduction` as what mixes."""

    unit, first = Reduction, 0
