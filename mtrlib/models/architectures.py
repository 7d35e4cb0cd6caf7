"""How tasks share a network, by name (the taxonomy of Vandenhende et al. 2021, arXiv 2004.13379)."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection
from functools import partial

import torch
from torch import nn

from mtrlib.models import stages
from mtrlib.models.cross_stitch import CrossStitch
from mtrlib.models.mtan import MTAN
from mtrlib.models.mti_net import MTINet
from mtrlib.models.nddr import NDDR
from mtrlib.models.network import MultiTaskModel, decoder_of, widths_of
from mtrlib.models.pad_net import WIDTH, PADNet
from mtrlib.tasks import Task

SOFT = ("cross_stitch", "nddr")  # an encoder a task, which starts from the trained single-task model
DISTILLED = ("pad_net", "mti_net")  # decoders that tell each other
ARCHITECTURES = ("hard", *SOFT, "mtan", *DISTILLED)


def known(name: str, tasks: Collection[str], frozen: bool = False, head: str = "convolutions") -> str:
    """The name of an architecture, if it is one, and tasks and head are such as it takes. Else a ValueError."""
    if name not in ARCHITECTURES:
        allowed = ", ".join(ARCHITECTURES)
        raise ValueError(f"Parameter architecture should be one of {allowed}. Found architecture = {name!r}.")
    if name != "hard" and len(tasks) < 2:
        raise ValueError(f"tasks should be two at least for the architecture {name}. Found {''.join(tasks)!r}.")
    if name != "hard" and (frozen or head != "convolutions"):
        allowed = f"false and convolutions for {name}: only hard takes others"
        raise ValueError(f"frozen and head should be {allowed}. Found {frozen} and {head!r}.")
    return name


def decoders(name: str, encoder: str, body: nn.Module, latent: int) -> Callable[[int], nn.Module]:
    """The function of a number of channels that gives a decoder: the same for all architectures but for what it takes.
    That of mti_net joins four scales by a 1 x 1 convolution and goes up from the finest with the last widths of the
    others' decoders."""
    if name != "mti_net":
        return partial(decoder_of, encoder, min(WIDTH, latent) if name == "pad_net" else latent)
    shapes, widths = stages.shapes(body)[1:], (WIDTH, *widths_of(encoder))
    steps = shapes[0][1].bit_length() - 1
    before, joined = widths[-1 - steps], sum(min(WIDTH, channels) for channels, _ in shapes)

    def made(channels: int) -> nn.Module:
        join = stages.convolution(joined, before, nn.ReLU())
        return nn.Sequential(*join, decoder_of(encoder, before, channels, widths[len(widths) - steps :]))

    return made


def network(
    name: str,
    body: nn.Module,
    heads: dict[str, nn.Module],
    definitions: dict[str, Task],
    latent: int,
    generator: torch.Generator | None,
) -> MultiTaskModel:
    """The network of an architecture from an encoder that gives `latent` channels, and decoders; what it adds draws its
    weights from the generator."""
    if name == "hard":
        model = MultiTaskModel(body, heads, definitions)
    elif name in SOFT:
        own = {letter: copy.deepcopy(body) for letter in heads}
        model = (NDDR if name == "nddr" else CrossStitch)(own, heads, definitions)
    elif name == "pad_net":
        model = PADNet(body, heads, definitions, channels=latent)
    else:
        model = (MTAN if name == "mtan" else MTINet)(body, heads, definitions)
    for child, part in model.named_children():
        if child not in ("encoder", "decoders"):
            _initialise(part, generator)
    return model


def _initialise(part: nn.Module, generator: torch.Generator | None) -> None:
    """As in encoders and decoders; those convolutions that have a bias give numbers, which begin near zero."""
    for module in part.modules():
        if isinstance(module, nn.Conv2d) and module.bias is not None:
            nn.init.normal_(module.weight, std=0.01, generator=generator)
            nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu", generator=generator)
    for module in part.modules():
        if hasattr(module, "initialise"):
            module.initialise()
