"""MTI-Net (Vandenhende et al. 2020, arXiv 2001.06902): as PAD-Net, at four scales of the encoder, from coarse to fine;
what the tasks have in common at one scale goes into the features of the next."""

from typing import Any

import torch
from torch import Tensor, nn

from mtrlib.models import stages
from mtrlib.models.elsewhere import resized
from mtrlib.models.network import MultiTaskModel
from mtrlib.models.pad_net import WIDTH, Distillation
from mtrlib.tasks import Task

_SQUEEZED = 16  # channels to one of the inner map that weighs channels (squeeze and excitation)


class Propagation(nn.Module):
    """Features of all tasks at one scale, (B, C, H, W) by letter -> as many for each, of what they have in common: the
    tasks compete for every value, and each weighs the channels of the result by itself."""

    def __init__(self, letters: str, channels: int):
        super().__init__()
        self.letters = sorted(letters)
        width = len(self.letters) * channels
        inner = max(width // 4, 1)
        layers = stages.block(width, inner, basic=True), stages.block(inner, inner, basic=True)
        self.attention = nn.Sequential(*layers, nn.Conv2d(inner, width, 1))
        self.shared = stages.block(width, channels, basic=True)
        self.weigh = nn.ModuleDict({letter: _weights(channels) for letter in self.letters})

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        together = torch.cat([features[letter] for letter in self.letters], dim=1)
        shares = self.attention(together).unflatten(1, (len(self.letters), -1)).softmax(dim=1).flatten(1, 2)
        shared = self.shared(shares * together)
        return {letter: weigh(shared) * shared + features[letter] for letter, weigh in self.weigh.items()}


class MTINet(MultiTaskModel):
    """The features of all tasks are made at every scale, whichever are asked for; messages go to these only, and first
    predictions, at every scale, are made in training only. A decoder takes the features of all scales, resized to the
    finest."""

    exchanges = True

    def __init__(self, encoder: nn.Module, decoders: dict[str, nn.Module], definitions: dict[str, Task] | None = None):
        super().__init__(encoder, decoders, definitions)
        channels, known = [channels for channels, _ in stages.shapes(encoder)[1:]], self.definitions.items()
        widths = [min(WIDTH, each) for each in channels]
        self.initial, self.first, self.distillation = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        for before, width, coarser in zip(channels, widths, [*widths[1:], 0], strict=True):
            initial = {t: _features(before + coarser, width) for t in self.tasks}
            self.initial.append(nn.ModuleDict(initial))
            self.first.append(nn.ModuleDict({t: nn.Conv2d(width, task.channels, 1) for t, task in known}))
            self.distillation.append(Distillation(self.tasks, width))
        self.propagation = nn.ModuleList(Propagation(self.tasks, width) for width in widths[1:])

    def encode(self, images: Tensor) -> Any:
        """(B, 3, H, W) images in [0, 1] -> the map behind each stage, from fine to coarse."""
        stem, *parts = stages.split(self.encoder)
        features, found = stages.run(stem, self.normalised(images)), []
        for part in parts:
            features = stages.run(part, features)
            found.append(features)
        return found

    def decode(self, latent: Any, tasks: str, early: list[dict[str, Tensor]] | None = None) -> dict[str, Tensor]:
        size, scales, coarser = latent[0].shape[2:], [], {}
        for place in reversed(range(len(latent))):
            here = latent[place]
            known = {t: [resized(each, here.shape[2:])] for t, each in coarser.items()}
            features = {
                letter: initial(torch.cat([here, *known.get(letter, [])], dim=1))
                for letter, initial in self.initial[place].items()
            }
            if early is not None:
                early.append({letter: self.first[place][letter](features[letter]) for letter in tasks})
            scales.append(self.distillation[place](features, tasks))
            coarser = self.propagation[place - 1](features) if place else {}
        fine = {t: [resized(scale[t], size) for scale in reversed(scales)] for t in tasks}
        return {letter: self.decoders[letter](torch.cat(fine[letter], dim=1)) for letter in tasks}


def _features(before: int, after: int) -> nn.Module:
    return nn.Sequential(stages.block(before, after, basic=True), stages.block(after, after, basic=True))


def _weights(channels: int) -> nn.Module:
    inner = max(channels // _SQUEEZED, 1)
    return nn.Sequential(
        nn.AdaptiveAvgPool2d(1), nn.Conv2d(channels, inner, 1), nn.ReLU(), nn.Conv2d(inner, channels, 1), nn.Sigmoid()
    )
