"""What a run is made of, as frozen and validated values: a model and how it was trained, an attack and on what.

A specification says everything that decides the bytes of a result on one machine; its content is its key in the store.
"""

from __future__ import annotations

import hashlib
import json
from math import ceil
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from mtrlib import attacks, data, machine
from mtrlib.data import NAMES
from mtrlib.models import encoders
from mtrlib.tasks import Task, parse

# Part of every key. To be raised when a field of a specification comes to mean something else; what the code makes of a
# specification is watched by the store, which keeps the results of each code apart (`sources`).
VERSION = 4

Tasks = Annotated[str, AfterValidator(parse)]
Norm = Literal["linf", "l2"]
Precision = Literal["float32", "bfloat16"]
Optimizer = Literal["adamw", "sgd"]


FIXED = ("uniform", "published")
# Those of torchjd that need no choice of which task counts more or less; with its defaults, but for what has none.
AGGREGATORS = (
    "AlignedMTL",
    "CAGrad",
    "ConFIG",
    "DualProj",
    "ExcessMTL",
    "GradDrop",
    "GradVac",
    "IMTLG",
    "Mean",
    "MGDA",
)
AGGREGATORS += ("PCGrad", "Random", "Sum", "UPGrad")
WEIGHTS = (*FIXED, "gradnorm", *AGGREGATORS)


def known(weights: str) -> str:
    """The name of a scheme, or weights of one's own, one a task, such as "1.0:0.1"; ValueError for anything else."""
    if weights in WEIGHTS or (":" in weights and all(_positive(part) for part in weights.split(":"))):
        return weights
    allowed = f"one of {', '.join(WEIGHTS)}, or positive numbers such as 1.0:0.1"
    raise ValueError(f"Parameter weights should be {allowed}. Found weights = {weights!r}.")


def _positive(text: str) -> bool:
    try:
        return 0 < float(text) < float("inf")
    except ValueError:
        return False


def key_of(content: dict[str, Any]) -> str:
    """16 hexadecimal digits that name a content, as JSON knows it."""
    text = json.dumps({"version": VERSION, **content}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


class Spec(BaseModel):
    """A frozen value that refuses unknown names and wrong types."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    @property
    def key(self) -> str:
        """16 hexadecimal digits that name the content."""
        return key_of(self.model_dump(mode="json"))


class DataSpec(Spec):
    """A data set, as `data.load` takes it: its name, folder, what to do with bad files, image size in pixels and (rooms
    only) seed. `digest` names the content of its description, where it has one: read from the file unless given."""

    name: Literal[NAMES] = "rooms"
    root: str | None = None
    digest: str | None = None
    on_bad: Literal["raise", "skip"] = "raise"
    size: int = Field(64, ge=8, le=1024)
    seed: int = Field(0, ge=0)

    @model_validator(mode="before")
    @classmethod
    def _read_digest(cls, values: Any) -> Any:
        if isinstance(values, dict) and isinstance(root := values.get("root"), str) and root:
            values = {**values, "root": machine.expanded(root)}  # what decides the bytes, not how it was written
            if values.get("name") in NAMES and values.get("digest") is None:
                return {**values, "digest": data.digest(values["name"], machine.place(values["root"]))}
        return values

    @property
    def folder(self) -> Path | None:
        """The folder of its files; a relative `root` starts at the repository."""
        return machine.place(self.root) if self.root else None

    @property
    def tasks(self) -> dict[str, Task]:
        """Definitions of the tasks that it has labels of, by letter."""
        return data.tasks(self.name, self.folder)


class ModelSpec(Spec):
    """A model and its training.

    Attributes
    ----------
    data, images : the training data and how many of its images (None: all).
    tasks : letters of the tasks it learns; the first is the main one.
    encoder : one of `encoders.ENCODERS`, or "timm/<name>".
    pretrained : begin from the weights that timm has for its network; for "timm/<name>" only.
    weights : how the task losses are weighted, one of `WEIGHTS`, or numbers, one a task, such as "1.0:0.1".
    seed : of the first weights and the order of the images.
    optimizer : "adamw", or "sgd" with Nesterov's momentum (the supplement names SGD and its momentum only).
    epochs, batch_size, learning_rate, momentum, weight_decay : of the optimizer; momentum is Adam's first beta.
    schedule : "cosine", to zero after one epoch of warm-up; "step", divided by 10 after 2/3, 4/5 and 14/15 of the
        epochs (the supplement's 100, 120 and 140 of 150).
    precision : of convolutions in training and under attack; weights, losses and errors are always float32.
    """

    data: DataSpec
    tasks: Tasks
    images: int | None = Field(None, ge=1)
    encoder: Annotated[str, AfterValidator(encoders.known)] = "resnet18_small"
    pretrained: bool = False
    weights: Annotated[str, AfterValidator(known)] = "uniform"
    seed: int = Field(0, ge=0)
    optimizer: Optimizer = "adamw"
    epochs: int = Field(20, ge=1)
    batch_size: int = Field(8, ge=2)
    learning_rate: float = Field(0.005, gt=0)
    momentum: float = Field(0.9, ge=0, lt=1)
    weight_decay: float = Field(0.02, ge=0)
    schedule: Literal["cosine", "step"] = "cosine"
    precision: Precision = "float32"

    @model_validator(mode="after")
    def _consistent(self) -> ModelSpec:
        parse(self.tasks, data.letters(self.data.name, self.data.folder), self.data.name)
        stride = encoders.stride(self.encoder)
        if self.data.size % stride or self.data.size < 2 * stride:
            raise ValueError(
                f"size should be a multiple of {stride} from {2 * stride} on for {self.encoder}. "
                f"Found {self.data.size}."
            )
        if self.pretrained and not self.encoder.startswith(encoders.TIMM):
            raise ValueError(f"pretrained should be false for {self.encoder}: only timm/<name> has trained weights")
        if ":" in self.weights and self.weights.count(":") != len(self.tasks) - 1:
            raise ValueError(f"weights should have one number a task of {self.tasks!r}. Found {self.weights!r}.")
        return self

    @property
    def checkpoints(self) -> tuple[int, ...]:
        """The epochs whose weights are kept: after one and two thirds of the training, and at its end."""
        return tuple(sorted({ceil(self.epochs * third / 3) for third in (1, 2, 3)}))


class AttackSpec(Spec):
    """An attack and the images it is run on.

    Attributes
    ----------
    name : one of `attacks.NAMED`.
    tasks : letters of the attacked tasks: the adversary maximises the sum of their losses.
    norm : "linf" or "l2".
    eps_255, step_size_255 : budget and step in 255ths of the image range. An l2 budget is the length of the whole
        perturbation of one image.
    steps, restarts : of the attack; the steps of "square" are its queries. "fgsm", "apgd" and "square" have no use for
        step_size_255.
    seed : of the random start.
    images : how many test images, the first ones.
    """

    name: Literal[tuple(attacks.NAMED)] = "pgd"
    tasks: Tasks
    norm: Norm = "linf"
    eps_255: float = Field(8.0, ge=0)
    step_size_255: float = Field(2.0, ge=0)
    steps: int = Field(25, ge=0)
    restarts: int = Field(1, ge=1)
    seed: int = Field(0, ge=0)
    images: int = Field(256, ge=1)


class Evaluation(Spec):
    """One attack on one model, after `epoch` of its training; with a `source`, made on that trained model."""

    model: ModelSpec
    attack: AttackSpec
    epoch: int
    source: ModelSpec | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Evaluation:
        if self.source is not None and (
            set(self.attack.tasks) - set(self.source.tasks) or self.source.data != self.model.data
        ):
            raise ValueError(f"the source should have the attacked tasks, {self.attack.tasks!r}, and the same data")
        if set(self.attack.tasks) - set(self.model.tasks):
            raise ValueError(
                f"attacked tasks should be out of the model's, {self.model.tasks!r}. Found {self.attack.tasks!r}."
            )
        if self.epoch not in self.model.checkpoints:
            raise ValueError(f"epoch should be one of {self.model.checkpoints}. Found {self.epoch}.")
        return self
