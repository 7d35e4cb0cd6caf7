"""A new model of any architecture: how tasks share a network, by name (the taxonomy of Vandenhende et al. 2021, arXiv
2004.13379)."""

import copy
from collections import OrderedDict
from collections.abc import Callable, Collection
from dataclasses import replace
from functools import partial

import torch
from torch import nn

from mtrlib.models import encoders, own, stages
from mtrlib.models.cross_stitch import CrossStitch
from mtrlib.models.heads import HEADS
from mtrlib.models.mtan import MTAN
from mtrlib.models.mti_net import MTINet
from mtrlib.models.nddr import NDDR
from mtrlib.models.network import MultiTaskModel, decoder_of, widths_of
from mtrlib.models.pad_net import WIDTH, PADNet
from mtrlib.tasks import TASKS, Task, parse

SOFT = ("cross_stitch", "nddr")  # an encoder a task, which starts from the trained single-task model
ARCHITECTURES = ("hard", *SOFT, "mtan", "pad_net", "mti_net")


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
    known(architecture, definitions, frozen=frozen, head=head)
    whole = [letter for letter, task in definitions.items() if task.per_image]
    if whole and architecture != "hard":
        found = f"Found {architecture!r} and {''.join(whole)!r} of whole images."
        raise ValueError(f"Parameter architecture should be hard where a task is of whole images. {found}")
    decoder = _decoders(architecture, encoder, body, latent)
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
    kinds = {"hard": MultiTaskModel, "cross_stitch": CrossStitch, "nddr": NDDR, "mtan": MTAN, "mti_net": MTINet}
    kinds["pad_net"] = partial(PADNet, channels=latent)
    shared = {letter: copy.deepcopy(body) for letter in decoders} if architecture in SOFT else body
    model = kinds[architecture](shared, decoders, definitions)
    for child, part in model.named_children():
        if child not in ("encoder", "decoders"):
            _initialise_sharing(part, generator)
    model.frozen = frozen
    return model.to(memory_format=torch.channels_last).train()


def _decoders(name: str, encoder: str, body: nn.Module, latent: int) -> Callable[[int], nn.Module]:
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


def _initialise_sharing(part: nn.Module, generator: torch.Generator | None) -> None:
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
