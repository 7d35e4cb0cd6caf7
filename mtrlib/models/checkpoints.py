"""Weights from files: read as tensors and plain values only, and fitted to the names of an encoder."""

import os
import re
from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from mtrlib.models import own


def starting_weights(name: str) -> dict[str, Tensor]:
    """The state dict that `own.pinned_weights` has named so, read again: ValueError where the file has changed."""
    given = own.find(name)
    if not isinstance(given, Path):
        return given
    if own.pinned_weights(str(given)) != name:
        raise ValueError(f"The file of weights {given} has changed since it was named.")
    if given.suffix == ".safetensors":
        return load_file(given)
    return state_dict(given)


def fitted(network: nn.Module, name: str) -> nn.Module:
    """The network with the `starting_weights` of that name. ValueError of one line, with what is missing or of another
    shape, unless all that it has are there (counters of batch norms may be missing)."""
    wanted = network.state_dict()
    behind = stripped(starting_weights(name), wanted)
    found = {key: behind[key] for key in wanted if key in behind}
    if wrong := faults(found, wanted, {key: key for key in wanted}):
        told = "; ".join([*wrong[:3], *([f"{len(wrong) - 3} more"] if len(wrong) > 3 else [])])
        raise ValueError(f"The weights {name} should be of this encoder. They are not: {told}.")
    network.load_state_dict(wanted | found)
    return network


def stripped(state: dict[str, Tensor], wanted: Iterable[str]) -> dict[str, Tensor]:
    """The entries of a checkpoint behind the prefix under which most of the `wanted` names stand, such as none,
    "module.", "backbone." or "encoder.backbone.", without it: of a multi-task model those of its encoder."""
    wanted = set(wanted)
    ends = {key.split(".", 1)[0] for key in wanted}
    parts = [key.split(".") for key in state]
    prefixes = {".".join([*part[:at], ""]) for part in parts for at in range(1, len(part)) if part[at] in ends} | {""}
    cut = [{k.removeprefix(each): v for k, v in state.items() if k.startswith(each)} for each in sorted(prefixes)]
    return max(cut, key=lambda entries: len(wanted & entries.keys()))


def state_dict(path: str | Path) -> dict[str, Tensor]:
    """What a file holds, as `load_published` takes it."""
    if not os.path.isfile(path):
        raise ValueError(f"Parameter path should be a checkpoint. There is no file {path}.")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # of whatever type: the file may hold anything
        refused = re.search(r"GLOBAL (\S+)", str(error))
        what = f" It asks for {refused[1]}." if refused else ""
        raise ValueError(f"{path} should hold tensors and plain values only; nothing in it was run.{what}") from error
    for held in ("state_dict", "model", "model_state_dict"):
        if isinstance(content, dict) and isinstance(content.get(held), dict):
            content = content[held]
    entries = content.items() if isinstance(content, dict) else ()
    if not entries or not all(isinstance(name, str) and isinstance(value, Tensor) for name, value in entries):
        raise ValueError(f'{path} should be a state dict, or a dict with one under "state_dict".')
    return content


def faults(state: dict[str, Tensor], expected: dict[str, Tensor], theirs: dict[str, str]) -> list[str]:
    """What is wrong with a state dict, a line an entry; `theirs` are the names of its entries in the file."""
    missing = [name for name in expected if name not in state and not name.endswith("num_batches_tracked")]
    found = [f"missing {name} {tuple(expected[name].shape)}" for name in missing]
    found += [f"of no use {theirs[name]}" for name in state if name not in expected]
    for name in (name for name in expected if name in state):
        value, shape = state[name], expected[name].shape
        if value.shape != shape:
            found.append(f"of a wrong shape {theirs[name]}: {tuple(value.shape)} instead of {tuple(shape)}")
        elif expected[name].is_floating_point() and not _finite(value):
            found.append(f"no finite numbers {theirs[name]}")
    return found


def _finite(value: Tensor) -> bool:
    return value.layout is torch.strided and value.is_floating_point() and bool(value.isfinite().all())
