"""The authors' checkpoints: their ResNets, by the names that their code gives to layers and tasks."""

import re
from pathlib import Path

import torch

from mtrlib.models.building import build
from mtrlib.models.checkpoints import faults, state_dict
from mtrlib.models.network import MultiTaskModel
from mtrlib.tasks import TASKS

# Letters of the tasks by their names there, which are their folders' in Taskonomy but for two.
_LETTERS = {"segmentsemantic": "s", "autoencoder": "A"}
_LETTERS |= {task.domain: letter for letter, task in TASKS.items() if letter not in "sA"}
_RESNETS = ("resnet18", "resnet50", "resnet152", "wide_resnet50_2")


def load_published(path: str | Path) -> MultiTaskModel:
    """A ResNet of the paper's authors from one of their checkpoints, in evaluation mode, on the CPU.

    The file is read as tensors and plain values only: nothing in it is run. Names and shapes decide which ResNet it is,
    its tasks and the number of classes of s; heads are found by name, in any order.

    Parameters
    ----------
    path : what `torch.save` wrote: a state dict, or a dict that has one under "state_dict". Names are those of the
        published code, such as "encoder.conv1.weight" and "task_to_decoder.normal.upconv0.weight", all of them with or
        without "module." before. Counters of batch norm (num_batches_tracked), which nothing here uses, may be missing.
        A ValueError for anything else lists every entry that is missing, of no use or of a wrong shape.

    Returns
    -------
    The model takes images in [0, 1] as all models do, and normalises them to the [-1, 1] that it was trained on.
    """
    content = state_dict(path)
    if all(name.startswith("module.") for name in content):
        content = {name.removeprefix("module."): value for name, value in content.items()}
    names = list(dict.fromkeys(name.split(".")[1] for name in content if name.startswith("task_to_decoder.")))
    unknown = [name for name in names if name not in _LETTERS]
    if unknown or not names:
        raise ValueError(
            f"{path} should have decoders of tasks out of {', '.join(_LETTERS)}. Found {', '.join(unknown) or 'none'}."
        )
    tasks = "".join(_LETTERS[name] for name in names)
    theirs = {
        re.sub(r"^task_to_decoder\.([^.]+)", lambda m: f"decoders.{_LETTERS[m[1]]}", name): name for name in content
    }
    state = {name: content[theirs[name]] for name in theirs}
    head = state.get("decoders.s.conv_decode4.weight")
    classes = None if head is None or head.dim() != 4 else max(len(head), 1)
    with torch.device("meta"):
        expected = {name: build(name, tasks, classes=classes).state_dict() for name in _RESNETS}
    wrong = {name: faults(state, expected[name], theirs) for name in _RESNETS}
    encoder = min(_RESNETS, key=lambda name: len(wrong[name]))
    if wrong[encoder]:
        lines = "\n  ".join(["", *wrong[encoder]])
        raise ValueError(f"{path} should hold a model of {names}. Nearest to {encoder}, it has{lines}")
    model = build(encoder, tasks, classes=classes)
    counters = {name: torch.tensor(0) for name in expected[encoder] if name not in state}
    model.load_state_dict(state | counters)
    model.mean.fill_(0.5)
    model.deviation.fill_(0.5)
    return model.eval()
