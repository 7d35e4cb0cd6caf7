"""A new model of any architecture."""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from torch import nn

from mtrlib.models import architectures, encoders, own
from mtrlib.models.heads import HEADS
from mtrlib.models.network import MultiTaskModel
from mtrlib.tasks import TASKS, Task, parse


def build(
    encoder: str | nn.Module | Callable[[], nn.Module],
    tasks: str,
    *,
    definitions: dict[str, Task] | None = None,
    classes: int | None = None,
    seed: int | None = None,
    pretrained: bool | str = False,
    frozen: bool = False,
    head: str = "convolutions",
    architecture: str = "hard",
) -> MultiTaskModel:
    """A new model with random weights.

    Parameters
    ----------
    encoder : one of `ENCODERS`, "timm/<name>" for a network of timm, or one of your own (`elsewhere.brought`): a class,
        function or network, or "<file>.py:<name>".
    tasks : letters of its tasks.
    definitions : of the tasks, by letter, such as `data.tasks` gives them; None for the paper's.
    classes : number of classes of s; None for that of its definition (the paper's: Taskonomy's 18).
    seed : of the weights, the same on every machine; None draws from torch's global generator. Models that share a seed
        start from the same encoder, and from the same decoder of a task. Networks of timm and of your own draw theirs
        in their own way.
    pretrained : begin from timm's trained weights, for "timm/<name>" only; or the path of a file of weights.
    frozen : the encoder keeps its weights and statistics, also in training: only the decoders learn. Of "hard" only.
    head : "convolutions", the decoder of Taskonomy; of "hard" also "linear" or "dense", see `heads`.
    architecture : how tasks share: "hard", one encoder; in the encoders "cross_stitch", "nddr" and "mtan"; between
        decoders "pad_net" and "mti_net". All but hard need two tasks, and all but hard and pad_net an encoder with four
        stages, as ours and most convolutional ones of timm have.
    """
    encoder, pretrained = own.pinned(encoder), own.pinned_weights(pretrained)
    definitions = TASKS if definitions is None else definitions
    definitions = {letter: definitions[letter] for letter in parse(tasks, "".join(definitions))}
    if classes is not None and "s" in tasks:
        definitions["s"] = replace(definitions["s"], channels=classes, class_names=())
    with torch.random.fork_rng(devices=[], enabled=seed is not None):
        if seed is not None:
            torch.manual_seed(seed * 1000)
        body, latent = encoders.build(encoder, pretrained)
    if head not in HEADS:
        raise ValueError(f"Parameter head should be one of {', '.join(HEADS)}. Found head = {head!r}.")
    architectures.known(architecture, definitions, frozen=frozen, head=head)
    whole = [letter for letter, task in definitions.items() if task.per_image]
    if whole and architecture != "hard":
        found = f"Found {architecture!r} and {''.join(whole)!r} of whole images."
        raise ValueError(f"Parameter architecture should be hard where a task is of whole images. {found}")
    decoder = architectures.decoders(architecture, encoder, body, latent)
    decoder = partial(HEADS[head], encoder, latent) if HEADS[head] else decoder
    decoders = {
        letter: _head(latent, task.channels) if task.per_image else decoder(task.channels)
        for letter, task in definitions.items()
    }
    if seed is not None:
        if encoder in encoders.ENCODERS and not pretrained:
            _initialise(body, torch.Generator().manual_seed(seed * 1000))
        for letter, decoder in decoders.items():
            _initialise(decoder, torch.Generator().manual_seed(seed * 1000 + ord(letter)))
    generator = None if seed is None else torch.Generator().manual_seed(seed * 1000 + 1)
    body.requires_grad_(not frozen)
    model = architectures.network(architecture, body, decoders, definitions, latent, generator)
    model.frozen = frozen
    return model.to(memory_format=torch.channels_last).train()


def _head(latent: int, channels: int) -> nn.Module:
    """(B, latent, h, w) -> (B, channels)."""
    layers = {"pool": nn.AdaptiveAvgPool2d(1), "linear": nn.Conv2d(latent, channels, 1), "flatten": nn.Flatten()}
    return nn.Sequential(OrderedDict(layers))


def _initialise(module: nn.Module, generator: torch.Generator) -> None:
    """Kaiming's normal weights for convolutions, small ones for a head (its outputs start near zero), zero biases."""
    convolutions = [part for part in module.modules() if isinstance(part, (nn.Conv2d, nn.ConvTranspose2d))]
    for part in convolutions:
        if isinstance(part, nn.Conv2d):
            nn.init.kaiming_normal_(part.weight, mode="fan_out", nonlinearity="relu", generator=generator)
        else:  # stride 2 and kernel 2: each output pixel sees each input channel once
            nn.init.normal_(part.weight, std=(2 / part.in_channels) ** 0.5, generator=generator)
        if part.bias is not None:
            nn.init.zeros_(part.bias)
    if convolutions[-1].bias is not None:  # the head of a decoder
        nn.init.normal_(convolutions[-1].weight, std=0.01, generator=generator)
