"""Whole multi-task networks of other code, where a description of the names in its checkpoints suffices: a ResNet,
dilated (Yu et al. 2017, arXiv 1705.09914), and a head of DeepLabv3 (Chen et al. 2017, arXiv 1706.05587) a task."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
import yaml
from pydantic import BaseModel, Field, ValidationError, field_validator
from torch import Tensor, nn

from mtrlib.models import encoders, own
from mtrlib.models.checkpoints import faults, state_dict
from mtrlib.models.network import MultiTaskModel
from mtrlib.tasks import TASKS, Task

SHIPPED = ("libmtl", "vandenhende")  # names of the descriptions that are here
_RESNETS = ("resnet18", "resnet50", "resnet152", "wide_resnet50_2")


def load_described(
    path: str | Path, names: str | Path, *, task: str | None = None, definitions: dict[str, Task] | None = None
) -> MultiTaskModel:
    """A whole network of other code from its checkpoint, in evaluation mode, on the CPU: a ResNet of torchvision,
    dilated, whose last map a DeepLabHead of torchvision takes for each task.

    The file is read as tensors and plain values only: nothing in it is run. Names and shapes decide which ResNet it is
    (18, 50, 152 or wide 50-2), its tasks and how many classes they have; the description says what these cannot.

    Parameters
    ----------
    path : what `torch.save` wrote: a state dict, or a dict that has one under "state_dict" or "model", all its names
        with or without "module." before. Counters of batch norm, which nothing here uses, may be missing.
    names : the description: "libmtl", "vandenhende", or the path of a YAML file like these two.
    task : of a network of one task whose names do not say which: its name in the description.
    definitions : of tasks, by letter, such as `data.tasks` gives them, in the place of the description's.

    Returns
    -------
    The model takes images (B, 3, H, W) in [0, 1], H and W multiples of the stride, and normalises them as that code
    does. Outputs are that code's, resized to the image, (B, channels, H, W), by letter; vectors that it brings to
    length 1 before it compares them are that long.

    A ValueError of one line for a checkpoint with any entry that is missing, of no use or of a wrong shape, such as one
    of other decoders, architectures or backbones.
    """
    told, state = _description(names), state_dict(path)
    if all(name.startswith("module.") for name in state):
        state = {name.removeprefix("module."): value for name, value in state.items()}
    state = {name: value for name, value in state.items() if name not in told.unused}
    alone = told.single is not None and any(name.startswith(told.single) for name in state)
    behind = (name.removeprefix(told.decoders) for name in state if name.startswith(told.decoders))
    found = [task] if alone else list(dict.fromkeys(name.split(".")[0] for name in behind))
    if not found or set(found) - set(told.tasks) or (task is not None and not alone):
        allowed = f"decoders of tasks out of {', '.join(told.tasks)}, or one, of the parameter task"
        listed = "one" if alone else ", ".join(found) or "none"
        raise ValueError(f"{path} should have {allowed}. Found {listed}, and task = {task!r}.")
    before = {told.tasks[name].letter: told.single if alone else f"{told.decoders}{name}." for name in found}
    tasks = {told.tasks[name].letter: told.tasks[name] for name in found}
    for letter, known in tasks.items():
        last = state.get(f"{before[letter]}4.weight")
        if known.kind != "regression" and last is not None:
            known = replace(known, channels=max([1, *last.shape[:1]]))
        tasks[letter] = (definitions or {}).get(letter, known)

    def theirs(name: str) -> str:
        part, rest = name.split(".", 1)
        return told.encoder + rest if part == "encoder" else before[rest[0]] + rest[2:]

    wrong, models, same = {}, {}, {name: name for name in state}
    for resnet in _RESNETS:
        with torch.device("meta"):  # shapes without content
            models[resnet] = _network(resnet, told, tasks)
        expected = {theirs(name): value for name, value in models[resnet].state_dict().items()}
        wrong[resnet] = faults(state, expected, same)
        if not wrong[resnet]:
            break
    resnet = min(wrong, key=lambda name: len(wrong[name]))
    if lines := wrong[resnet]:
        listed = "; ".join([*lines[:3], *([f"{len(lines) - 3} more"] if len(lines) > 3 else [])])
        raise ValueError(f"{path} should hold what {names} describes. Nearest to {resnet}, it has {listed}.")
    model, zero = models[resnet].to_empty(device="cpu"), torch.tensor(0)  # zero: a counter that is missing
    model.load_state_dict({name: state.get(theirs(name), zero) for name in model.state_dict()})
    model.mean.copy_(torch.tensor(told.mean).view(1, 3, 1, 1))
    model.deviation.copy_(torch.tensor(told.deviation).view(1, 3, 1, 1))
    return model.to(memory_format=torch.channels_last).eval()


class DeepLab(nn.Sequential):
    """The head of DeepLabv3 by torchvision's names, (B, latent, h, w) -> (B, channels, stride h, stride w): its map is
    resized (bilinear), and where it is of vectors, `unit`, these are brought to length 1."""

    def __init__(self, latent: int, channels: int, stride: int, align_corners: bool, unit: bool):
        from torchvision.models.segmentation.deeplabv3 import DeepLabHead  # here: it takes longer to import than torch

        super().__init__(*DeepLabHead(latent, channels))
        self.stride, self.align_corners, self.unit = stride, align_corners, unit

    def forward(self, latent: Tensor) -> Tensor:
        size = [n * self.stride for n in latent.shape[2:]]
        maps = F.interpolate(super().forward(latent).float(), size, mode="bilinear", align_corners=self.align_corners)
        return F.normalize(maps, dim=1) if self.unit else maps


def _network(resnet: str, told: Names, tasks: dict[str, Task]) -> MultiTaskModel:
    body, latent = encoders.build(resnet)
    rate = 1
    for stage in [body.layer3, body.layer4][told.stride.bit_length() - 4 :]:  # both, the last or none
        for part in (each for each in stage.modules() if isinstance(each, nn.Conv2d)):
            if part.kernel_size == (3, 3):  # what halved the map comes first, and looks as far as the stage before
                part.dilation = part.padding = (rate, rate) if part.stride == (2, 2) else (2 * rate, 2 * rate)
            part.stride = (1, 1)
        rate *= 2
    unit = {each.letter for name, each in told.tasks.items() if name in told.unit}
    options = {"stride": told.stride, "align_corners": told.align_corners}
    heads = {letter: DeepLab(latent, task.channels, unit=letter in unit, **options) for letter, task in tasks.items()}
    return MultiTaskModel(body, heads, tasks)


class Names(BaseModel, frozen=True, extra="forbid", allow_inf_nan=False):
    """What a description says; `libmtl.yaml` and `vandenhende.yaml` explain each field."""

    encoder: str
    decoders: str
    single: str | None = None
    stride: Literal[8, 16, 32]
    align_corners: bool
    mean: list[float] = Field(min_length=3, max_length=3)
    deviation: list[float] = Field(min_length=3, max_length=3)
    unused: list[str] = []
    unit: list[str] = []
    tasks: dict[str, Any]

    @field_validator("tasks")
    @classmethod
    def _defined(cls, given: dict[str, Any]) -> dict[str, Task]:
        new = {"name": "", "domain": "", "channels": 1}
        try:
            return {
                name: replace(TASKS[fields["letter"]], **fields) if fields["letter"] in TASKS else Task(**new | fields)
                for name, fields in given.items()
            }
        except (KeyError, TypeError) as error:  # no letter, or fields that no task has
            raise ValueError(own.said(error)) from error


def _description(names: str | Path) -> Names:
    path = Path(__file__).with_name(f"{names}.yaml") if names in SHIPPED else Path(names)
    if not path.is_file():
        allowed = f"one of {', '.join(SHIPPED)}, or a YAML file"
        raise ValueError(f"Parameter names should be {allowed}. Found names = {str(names)!r}.")
    try:
        return Names.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (yaml.YAMLError, ValueError) as error:
        first = error.errors()[0] if isinstance(error, ValidationError) else None
        told = " ".join([*map(str, first["loc"]), first["msg"]]) if first else own.said(error)
        told = told.replace("Value error, ", "").rstrip(".")
        raise ValueError(f"{path} should be a description like libmtl.yaml: {told}.") from error
