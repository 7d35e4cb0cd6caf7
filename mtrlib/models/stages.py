"""An encoder in its stages, for networks that do something between them; and the small parts that these share."""

import copy
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from mtrlib.models import encoders

NUMBER = 4  # of stages, behind the stem
# The parts that end the stages of our encoders.
_ENDS = (("layer1", "layer2", "layer3", "layer4"), ("block1", "block2", "block3", "relu3"))


def split(encoder: nn.Module) -> list[list[nn.Module]]:
    """The parts of an encoder in the order in which they run: those of its stem, and of each of its four stages."""
    network, own = encoder, set(encoder._modules)
    ends: tuple[str, ...] = next((names for names in _ENDS if own.issuperset(names)), ())
    if hasattr(encoder, "network"):  # of timm
        network = encoder.network
        ends = tuple(getattr(network, "return_layers", ()))[-NUMBER:]
    if len(ends) < NUMBER:
        raise ValueError(
            f"The encoder should have {NUMBER} stages that run one after another, as {', '.join(encoders.ENCODERS)} "
            f"and most convolutional networks of timm have. Found {type(network).__name__}."
        )
    names, parts = list(network._modules), list(network._modules.values())
    places = [0, names.index(ends[0]), *(names.index(end) + 1 for end in ends)]
    return [parts[start:end] for start, end in zip(places, places[1:], strict=False)]


def run(parts: Iterable[nn.Module], features: Tensor) -> Tensor:
    """Some parts of an encoder, one after another."""
    for part in parts:
        features = part(features)
    return features


@torch.no_grad()
def shapes(encoder: nn.Module) -> list[tuple[int, int]]:
    """Channels, and pixels of the image to one of the map, height and width alike: after the stem and each stage."""
    parts = split(copy.deepcopy(encoder).to("meta").eval())  # tensors that have shapes and no content
    features, found = torch.zeros(1, 3, 64, 64, device="meta"), []
    for part in parts:
        features = run(part, features)
        found.append((features.shape[1], 64 // features.shape[2]))
    return found


def block(before: int, after: int, basic: bool = False) -> nn.Module:
    """A residual block of torchvision: a bottleneck, with a quarter of the channels inside, or a basic one."""
    from torchvision.models import resnet  # here: it takes longer to import than torch

    shortcut = nn.Sequential(nn.Conv2d(before, after, 1, bias=False), nn.BatchNorm2d(after))
    kind, planes = (resnet.BasicBlock, after) if basic else (resnet.Bottleneck, after // 4)
    return kind(before, planes, downsample=None if before == after else shortcut)


def convolution(before: int, after: int, last: nn.Module, momentum: float = 0.1) -> list[nn.Module]:
    """A 1 x 1 convolution without bias, batch norm, and what comes last."""
    return [nn.Conv2d(before, after, 1, bias=False), nn.BatchNorm2d(after, momentum=momentum), last]
