"""MTAN (Liu et al. 2019, arXiv 1803.10704): a shared encoder, and a task's own attention to each of its stages."""

from typing import Any

import torch
from torch import Tensor, nn

from mtrlib.models import stages
from mtrlib.models.network import MultiTaskModel
from mtrlib.tasks import Task


class MTAN(MultiTaskModel):
    """Of each stage a task sees the map before the last block and, from the second on, what it made of the stages
    before; a mask of that, in [0, 1], picks from the map behind the last block. What it picked goes on through a
    bottleneck that all tasks share. Only the attention of the tasks asked for is run."""

    def __init__(self, encoder: nn.Module, decoders: dict[str, nn.Module], definitions: dict[str, Task] | None = None):
        super().__init__(encoder, decoders, definitions)
        (_, *channels), (_, *strides) = zip(*stages.shapes(encoder), strict=True)

        def masks() -> nn.ModuleList:
            layers = []
            for place, width in enumerate(channels):
                first = stages.convolution(width * (2 if place else 1), width // 4, nn.ReLU())
                layers.append(nn.Sequential(*first, *stages.convolution(width // 4, width, nn.Sigmoid())))
            return nn.ModuleList(layers)

        self.attention = nn.ModuleDict({letter: masks() for letter in self.tasks})
        self.refine = nn.ModuleList(
            nn.Sequential(stages.block(before, after), nn.MaxPool2d(far // near) if far > near else nn.Identity())
            for before, after, near, far in zip(channels, channels[1:], strides, strides[1:], strict=False)
        )

    def encode(self, images: Tensor) -> Any:
        """(B, 3, H, W) images in [0, 1] -> of each stage the maps before and behind its last block; a stage that has
        no two blocks alike counts as behind both."""
        stem, *parts = stages.split(self.encoder)
        features, found = stages.run(stem, self.normalised(images)), []
        for part in parts:
            *blocks, last = part[-1] if isinstance(part[-1], nn.Sequential) else part[-1:]
            before = stages.run([*part[:-1], *blocks], features)
            features = last(before)
            found.append((before if before.shape == features.shape else features, features))
        return found

    def decode(self, latent: Any, tasks: str, early: list[dict[str, Tensor]] | None = None) -> dict[str, Tensor]:
        outputs = {}
        for letter in tasks:
            refined: list[Tensor] = []
            for place, (before, behind) in enumerate(latent):
                mask = self.attention[letter][place](torch.cat([before, *refined], dim=1))
                refined = [mask * behind]
                if place < len(self.refine):
                    refined = [self.refine[place](*refined)]
            outputs[letter] = self.decoders[letter](*refined)
        return outputs
