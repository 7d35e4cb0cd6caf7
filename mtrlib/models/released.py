"""Released networks, found by name: weights in bfloat16, as safetensors, beside a JSON that says what they are."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from mtrlib import machine
from mtrlib.data import sealed
from mtrlib.models.building import build
from mtrlib.models.network import MultiTaskModel
from mtrlib.tasks import Task

FOLDER = "results/models"


def names(folder: str | Path = FOLDER) -> list[str]:
    """The names of all released networks, such as "rooms/sdDnE-v1"; a relative folder starts at the repository."""
    place = machine.place(folder)
    return sorted(path.relative_to(place).with_suffix("").as_posix() for path in place.rglob("*.json"))


def about(name: str, folder: str | Path = FOLDER) -> dict[str, Any]:
    """What is known of a released network: encoder, tasks (their definitions), sha256 (of its weights), and what `save`
    was told. ValueError, with all names, for one that is not there."""
    if name not in (known := names(folder)):
        allowed = f"one of {', '.join(known) or 'none'}, in {machine.place(folder)}"
        raise ValueError(f"Parameter name should be {allowed}. Found name = {name!r}.")
    return json.loads(machine.place(folder).joinpath(f"{name}.json").read_text(encoding="utf-8"))


def load(name: str, folder: str | Path = FOLDER) -> MultiTaskModel:
    """A released network in evaluation mode, frozen, on the CPU, its weights as float32.

    Nothing in its files is run. ValueError for a name that is not there, and for weights that are not those of the
    sha256 beside them.
    """
    known, path = about(name, folder), machine.place(folder) / f"{name}.safetensors"
    content = load_tensors(sealed.read(path, known["sha256"]))
    tasks = (Task(**each | {"class_names": tuple(each["class_names"])}) for each in known["tasks"])
    definitions = {task.letter: task for task in tasks}
    model = build(known["encoder"], "".join(definitions), definitions=definitions)
    model.load_state_dict(content)  # converts
    return model.eval().requires_grad_(False)


def save(model: MultiTaskModel, encoder: str, name: str, folder: str | Path = FOLDER, **told: Any) -> MultiTaskModel:
    """Write a model of an `encoder` (as `build` takes it) for `load`, in bfloat16, and load it again; `told` is of its
    JSON."""
    path = machine.place(folder) / f"{name}.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    state = {key: value.cpu().contiguous() for key, value in model.state_dict().items()}
    rounded = {key: value.to(torch.bfloat16) if value.is_floating_point() else value for key, value in state.items()}
    sha256 = sealed.write(path, save_tensors(rounded))
    known = {"encoder": encoder, "tasks": [asdict(task) for task in model.definitions.values()], "sha256": sha256}
    sealed.write(path.with_suffix(".json"), (json.dumps(known | told, indent=1) + "\n").encode())
    return load(name, folder)
