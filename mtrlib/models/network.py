"""Multi-task networks: one shared encoder, one decoder for each task (paper, section "Models"; arXiv 2110.15053).

The encoders are those of `encoders`. The decoder is that of Taskonomy as the authors use it: 2 x 2 transposed
convolutions of stride 2, as many as bring the latent back to the size of the image (five from stride 32), no skip
connections; those of `*_tiny` encoders are as much narrower as these. `xception_small` has one of its own.
"""

from __future__ import annotations

import copy
import re
from collections import OrderedDict
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from mtrlib.models import encoders
from mtrlib.models.encoders import ENCODERS
from mtrlib.tasks import TASKS, Task, parse

__all__ = ["ENCODERS", "MultiTaskModel", "build", "load_published"]

# Names of tasks in published checkpoints, where they are not their folder names in Taskonomy.
_PUBLISHED_NAMES = {"segmentsemantic": "s", "autoencoder": "A"}
_PUBLISHED_NAMES |= {task.domain: letter for letter, task in TASKS.items() if letter not in "sA"}
_RESNETS = ("resnet18", "resnet50", "resnet152", "wide_resnet50_2")


class MultiTaskModel(nn.Module):
    """A shared encoder and one decoder a task; decoders are named by letter, so their order never matters.

    Parameters
    ----------
    encoder : (B, 3, H, W) -> (B, C, H / stride, W / stride).
    decoders : by task letter, (B, C, H / stride, W / stride) -> (B, channels, H, W).
    definitions : of the tasks of the decoders, by letter; None for the paper's.
    """

    def __init__(self, encoder: nn.Module, decoders: dict[str, nn.Module], definitions: dict[str, Task] | None = None):
        super().__init__()
        self.definitions = {letter: (definitions or TASKS)[letter] for letter in decoders}
        self.encoder = encoder
        self.decoders = nn.ModuleDict(decoders)
        # The mean and deviation of ImageNet's training images, in [0, 1] units.
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("deviation", torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1), persistent=False)

    @property
    def tasks(self) -> str:
        """Letters of the tasks it has decoders for."""
        return "".join(self.decoders)

    def forward(self, images: Tensor, tasks: str | None = None) -> dict[str, Tensor]:
        """Outputs by task letter.

        Parameters
        ----------
        images : (B, 3, H, W), in [0, 1]; normalised inside.
        tasks : letters of the decoders to run; None for all.

        Returns
        -------
        dict of (B, channels, H, W): logits for classes, values else.
        """
        tasks = self.tasks if tasks is None else tasks
        if set(tasks) - set(self.tasks):
            raise ValueError(f"Parameter tasks should be letters out of {self.tasks!r}. Found tasks = {tasks!r}.")
        latent = self.encode(images)
        return {letter: self.decoders[letter](latent) for letter in tasks}

    def encode(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) images in [0, 1] -> (B, C, H / stride, W / stride): what all decoders share."""
        return self.encoder((images - self.mean) / self.deviation)


def build(
    encoder: str,
    tasks: str,
    *,
    definitions: dict[str, Task] | None = None,
    classes: int | None = None,
    seed: int | None = None,
    pretrained: bool = False,
) -> MultiTaskModel:
    """A new model with random weights.

    Parameters
    ----------
    encoder : one of `ENCODERS`, or "timm/<name>" for a network of timm.
    tasks : letters of its tasks.
    definitions : of the tasks, by letter, such as `data.tasks` gives them; None for the paper's.
    classes : number of classes of s; None for that of its definition (the paper's: Taskonomy's 18).
    seed : of the weights, the same on every machine; None draws from torch's global generator. With a seed, the
        encoder and each decoder have their weights from streams of their own: models that share a seed and a task
        start from the same encoder and the same decoder of that task. Networks of timm keep its own way to draw them.
    pretrained : begin from timm's trained weights; for "timm/<name>" only.
    """
    definitions = TASKS if definitions is None else definitions
    parse(tasks, "".join(definitions))
    definitions = {letter: definitions[letter] for letter in tasks}
    if classes is not None and "s" in tasks:
        definitions["s"] = replace(definitions["s"], channels=classes, class_names=())
    with torch.random.fork_rng(devices=[], enabled=seed is not None):
        if seed is not None:
            torch.manual_seed(seed * 1000)
        body, latent = encoders.build(encoder, pretrained)
    decoders = {letter: _decoder(encoder, latent, task.channels) for letter, task in definitions.items()}
    if seed is not None:
        if not encoder.startswith(encoders.TIMM):
            _initialise(body, torch.Generator().manual_seed(seed * 1000))
        for letter, decoder in decoders.items():
            _initialise(decoder, torch.Generator().manual_seed(seed * 1000 + ord(letter)))
    return MultiTaskModel(body, decoders, definitions).to(memory_format=torch.channels_last)


def folded(model: MultiTaskModel) -> MultiTaskModel:
    """A copy in which batch norms are folded into the convolution before them; the same outputs but for rounding.

    Parameters
    ----------
    model : in evaluation mode. Networks of timm stay as they are: only in the encoders and decoders here does a batch
        norm that follows a convolution in its module also follow it in the forward pass.
    """
    model = copy.deepcopy(model)
    foreign = {part for module in model.modules() if isinstance(module, encoders.Timm) for part in module.modules()}
    for module in set(model.modules()) - foreign:
        for name, after in pairwise(module._modules):
            convolution, norm = module._modules[name], module._modules[after]
            holder, place = (convolution, "1") if isinstance(convolution, encoders.Separable) else (module, name)
            convolution = holder._modules[place]
            if isinstance(convolution, (nn.Conv2d, nn.ConvTranspose2d)) and isinstance(norm, nn.BatchNorm2d):
                up = isinstance(convolution, nn.ConvTranspose2d)
                holder._modules[place] = fuse_conv_bn_eval(convolution, norm, transpose=up)
                module._modules[after] = nn.Identity()
    return model


def load_published(path: str | Path) -> MultiTaskModel:
    """A ResNet of the paper's authors from one of their checkpoints, in evaluation mode, on the CPU.

    The file is read as tensors and plain values only: nothing in it is run. Which ResNet it is, its tasks and the
    number of classes of s are told from the names and shapes; heads are found by name, in any order.

    Parameters
    ----------
    path : what `torch.save` wrote: a state dict, or a dict that has one under "state_dict". Names are those of the
        published code, such as "encoder.conv1.weight" and "task_to_decoder.normal.upconv0.weight", all of them with or
        without "module." before. Counters of batch norm (num_batches_tracked), which nothing here uses, may be missing.

    Returns
    -------
    The model takes images in [0, 1] as all models do, and normalises them to the [-1, 1] that it was trained on.

    Raises
    ------
    ValueError : for a file that holds anything else, with every entry that is missing, of no use or of a wrong shape.
    """
    found = _state_dict(Path(path))
    if all(name.startswith("module.") for name in found):
        found = {name.removeprefix("module."): value for name, value in found.items()}
    names = list(dict.fromkeys(name.split(".")[1] for name in found if name.startswith("task_to_decoder.")))
    unknown = [name for name in names if name not in _PUBLISHED_NAMES]
    if unknown or not names:
        allowed = ", ".join(_PUBLISHED_NAMES)
        raise ValueError(
            f"{path} should have decoders of tasks out of {allowed}. Found {', '.join(unknown) or 'none'}."
        )
    tasks = "".join(_PUBLISHED_NAMES[name] for name in names)
    state, published_as = {}, {}
    for name, value in found.items():
        ours = name
        if name.startswith("task_to_decoder."):
            task, _, rest = name.removeprefix("task_to_decoder.").partition(".")
            ours = f"decoders.{_PUBLISHED_NAMES[task]}.{rest}"
        state[ours], published_as[ours] = value, name
    head = state.get("decoders.s.conv_decode4.weight")
    classes = None if head is None or head.dim() != 4 else max(len(head), 1)
    with torch.device("meta"):
        candidates = {name: build(name, tasks, classes=classes).state_dict() for name in _RESNETS}
    faults = {name: _differences(state, wanted) for name, wanted in candidates.items()}
    encoder = min(faults, key=lambda name: len(faults[name]))
    if faults[encoder]:
        told = "\n".join(f"  {fault} {published_as.get(name, name)}{more}" for fault, name, more in faults[encoder])
        raise ValueError(f"{path} should hold a model of {names}. Nearest to {encoder}, it has\n{told}")
    model = build(encoder, tasks, classes=classes)
    model.load_state_dict(state | _counters(candidates[encoder], state))
    model.mean.fill_(0.5)
    model.deviation.fill_(0.5)
    return model.eval()


def _state_dict(path: Path) -> dict[str, Tensor]:
    try:
        there = path.is_file()
    except (OSError, ValueError):  # no name of a file at all
        there = False
    if not there:
        raise ValueError(f"Parameter path should be a checkpoint. There is no file {path}.")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # of whatever type: the file may hold anything
        refused = re.search(r"GLOBAL (\S+)", str(error))
        what = f" It asks for {refused[1]}." if refused else ""
        raise ValueError(f"{path} should hold tensors and plain values only; nothing in it was run.{what}") from error
    if isinstance(content, dict) and "state_dict" in content:
        content = content["state_dict"]
    if (
        not isinstance(content, dict)
        or not content
        or not all(isinstance(name, str) and isinstance(value, Tensor) for name, value in content.items())
    ):
        raise ValueError(f'{path} should be a state dict, or a dict with one under "state_dict".')
    return content


def _differences(state: dict[str, Tensor], wanted: dict[str, Tensor]) -> list[tuple[str, str, str]]:
    """(fault, name, more) for each entry of a state dict that is not as wanted."""
    missing = [name for name in wanted if name not in state and not name.endswith("num_batches_tracked")]
    faults = [("missing", name, f" {tuple(wanted[name].shape)}") for name in missing]
    faults += [("of no use", name, "") for name in state if name not in wanted]
    for name in wanted:
        if name in state and state[name].shape != wanted[name].shape:
            found, allowed = tuple(state[name].shape), tuple(wanted[name].shape)
            faults.append(("of a wrong shape", name, f": {found} instead of {allowed}"))
        elif name in state and wanted[name].is_floating_point() and not _finite(state[name]):
            faults.append(("no finite numbers", name, ""))
    return faults


def _finite(value: Tensor) -> bool:
    return value.layout is torch.strided and value.is_floating_point() and bool(value.isfinite().all())


def _counters(wanted: dict[str, Tensor], state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: torch.tensor(0) for name in wanted if name not in state}


def _decoder(encoder: str, latent: int, channels: int) -> nn.Module:
    """At each stage up by two and, but for the last, a 3 x 3 convolution; then the 3 x 3 head. Names as published."""
    if encoder == "xception_small":
        return encoders.XceptionDecoder(channels)
    stages = encoders.stride(encoder).bit_length() - 1
    widths = (256, 128, 64, 48, 32)[5 - stages :]
    if encoder.endswith(("_small", "_tiny")):
        widths = (128, 64, 32) if encoder.endswith("_small") else (32, 16, 8)
    layers: dict[str, nn.Module] = {}
    for stage, width in enumerate(widths):
        before = latent if stage == 0 else widths[stage - 1]
        layers[f"upconv{stage}"] = encoders.Upsampling(before, width)
        layers[f"bn_upconv{stage}"] = nn.BatchNorm2d(width)
        layers[f"relu_upconv{stage}"] = nn.ReLU(inplace=True)
        if stage < len(widths) - 1:
            layers[f"conv_decode{stage}"] = nn.Conv2d(width, width, 3, padding=1)
            layers[f"bn_decode{stage}"] = nn.BatchNorm2d(width)
            layers[f"relu_decode{stage}"] = nn.ReLU(inplace=True)
    layers[f"conv_decode{len(widths) - 1}"] = nn.Conv2d(widths[-1], channels, 3, padding=1)
    return nn.Sequential(OrderedDict(layers))


def _initialise(module: nn.Module, generator: torch.Generator) -> None:
    """From one generator: Kaiming's normal weights for convolutions, small ones for a head (its outputs start near
    zero), zero biases; batch norm stays as torch sets it."""
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
