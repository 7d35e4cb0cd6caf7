"""What a run is made of, as frozen and validated values: a model and how it was trained, an attack and on what.

A specification says everything that decides the bytes of a result on one machine; its content is its key in the store.
"""

import hashlib
import json
from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache
from math import ceil, inf
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import torch
from pydantic import AfterValidator, BaseModel, BeforeValidator, Field, model_validator

from mtrlib import attacks, data, machine
from mtrlib.models import building, encoders, heads, own
from mtrlib.tasks import Task, parse

# Part of every key. To be raised when a field of a specification comes to mean something else; what the code makes of a
# specification is watched by the store, which keeps the results of each code apart (`sources`).
VERSION = 4
FIXED = ("uniform", "published")
# Those of torchjd that need no choice of which task counts more or less; with its defaults, but for what has none.
_NAMES = "AlignedMTL CAGrad ConFIG DualProj ExcessMTL GradDrop GradVac IMTLG Mean MGDA PCGrad Random Sum UPGrad"
AGGREGATORS = tuple(_NAMES.split())
WEIGHTS = (*FIXED, "gradnorm", *AGGREGATORS)


def known(weights: str) -> str:
    """The name of a scheme, or weights of one's own, one a task, such as "1.0:0.1", or, with its digest, a function of
    the user's; ValueError for anything else."""
    if own.is_own(weights):
        return weights
    with suppress(ValueError):  # of what is no number
        if weights in WEIGHTS or (":" in weights and all(0 < float(each) < inf for each in weights.split(":"))):
            return weights
    allowed = f"one of {', '.join(WEIGHTS)}, <file>.py:<function>, or positive numbers such as 1.0:0.1"
    raise ValueError(f"Parameter weights should be {allowed}. Found weights = {weights!r}.")


def fixed(weights: str) -> bool:
    """Whether the weights of a scheme are numbers that are known beforehand, and ask no gradient."""
    return weights in FIXED or (":" in weights and not own.is_own(weights))


def known_attack(name: str) -> str:
    """The name of an attack, of `attacks.NAMED` or, with its digest, of the user's own; ValueError for another."""
    if name not in attacks.NAMED and not own.is_own(name):
        allowed = f"one of {', '.join(attacks.NAMED)}, or <file>.py:<function>"
        raise ValueError(f"Parameter attack should be {allowed}. Found attack = {name!r}.")
    return name


def key_of(content: dict[str, Any]) -> str:
    """16 hexadecimal digits that name a content, as JSON knows it."""
    text = json.dumps({"version": VERSION, **content}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


Tasks = Annotated[str, AfterValidator(parse)]
Place = Annotated[str, AfterValidator(machine.expanded)]  # without ~ and $NAME: what decides, not how it was written
Brought = BeforeValidator(own.pinned)  # what the user brings, by its name


class Spec(BaseModel, frozen=True, extra="forbid", strict=True, allow_inf_nan=False):
    """A frozen value that refuses unknown names and wrong types; `key` names its content."""

    @property
    def key(self) -> str:
        return key_of(self.model_dump(mode="json"))


class DataSpec(Spec):
    """A data set, as `data.load` takes it; `digest` is that of its description, if it has one (`data.digest`)."""

    name: Literal[data.NAMES] = "rooms"  # type: ignore[valid-type]
    root: Place | None = None
    digest: str | None = None
    on_bad: Literal["raise", "skip"] = "raise"
    size: int = Field(default=64, ge=8, le=1024)
    seed: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _described(self) -> Self:
        if self.name in data.DESCRIBED and self.digest is None:
            raise ValueError(f'digest should be that of the description, data.digest("{self.name}", root). Found None.')
        return self

    @property
    def folder(self) -> Path | None:
        """The folder of its files; a relative `root` starts at the repository."""
        return machine.place(self.root) if self.root else None

    @property
    def tasks(self) -> dict[str, Task]:
        """Definitions of the tasks that it has labels of, by letter."""
        return data.tasks(self.name, self.folder)


class Training(Spec):
    """How a model is trained; the supplement names SGD, its momentum and when its rate falls."""

    optimizer: Literal["adamw", "sgd"] = "adamw"  # sgd with Nesterov's momentum
    epochs: int = Field(default=20, ge=1)
    batch_size: int = Field(default=8, ge=2)
    learning_rate: float = Field(default=0.005, gt=0)
    momentum: float = Field(default=0.9, ge=0, lt=1)  # of adamw its first beta
    weight_decay: float = Field(default=0.02, ge=0)
    # cosine: to zero after one epoch of warm-up; step: a tenth after 2/3, 4/5 and 14/15 (100, 120 and 140 of 150) each.
    schedule: Literal["cosine", "step"] = "cosine"


_BETA = {"trades": 6.0, "half": 0.5, "gat": 0.5}


class Adversarial(Spec):
    """Adversarial training: on what perturbed images each step learns (`training.adversarial`)."""

    # pgd_at (Madry et al. 2018), trades (Zhang et al. 2019), fast (Wong et al. 2020), half clean and half perturbed,
    # gat (Ghamizi et al. 2023): the attack is on the main task alone, the encoder's gradients are balanced.
    recipe: Literal["pgd_at", "trades", "fast", "half", "gat"] = "pgd_at"
    tasks: Tasks | None = None  # attacked in training; None: all of the model's, of gat the main one
    attack: Literal["pgd", "dgba", "min_max"] = "pgd"  # on the sum of losses, balanced, or on the one hurt least
    norm: Literal[attacks.BALLS] = "linf"  # type: ignore[valid-type]
    eps_255: float = Field(default=4.0, ge=0)  # as in AttackSpec
    steps: int = Field(default_factory=lambda given: 1 if given.get("recipe") == "fast" else 5, ge=1)
    step_size_255: float = Field(
        default_factory=lambda given: 1.25 * given.get("eps_255", 0) if given.get("recipe") == "fast" else 1.0, ge=0
    )
    # The share of a loss that is taken on perturbed images, in [0, 1]; of trades the weight of the outputs' distance.
    beta: float = Field(default_factory=lambda given: _BETA.get(given.get("recipe", ""), 1.0), ge=0)
    curriculum: bool = False  # eps and step grow in proportion from 0 over the first two thirds of the epochs
    # Of gat: the auxiliary losses on clean images (its code), or on clean and perturbed ones (its figure); a further
    # loss, the curvature measure of the tasks' input gradients; a head more in training, which no result has.
    auxiliary: Literal["clean", "both"] = "clean"
    curvature: bool = False
    self_supervised: Literal["", "rotation", "jigsaw"] = ""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.recipe == "fast" and (self.steps, self.attack) != (1, "pgd"):
            raise ValueError(f"fast takes one step of pgd. Found steps = {self.steps}, attack = {self.attack!r}.")
        if self.recipe in ("pgd_at", "fast") and self.beta != 1:
            raise ValueError(f"beta should be 1 for {self.recipe}: half has a share. Found {self.beta}.")
        if self.recipe in ("half", "gat") and self.beta > 1:
            raise ValueError(f"beta should be a share in [0, 1] for {self.recipe}. Found {self.beta}.")
        if self.recipe != "gat" and (self.auxiliary != "clean" or self.curvature or self.self_supervised):
            raise ValueError(f"auxiliary, curvature, self_supervised are for gat alone. Found {self.recipe!r}.")
        return self


class ModelSpec(Training):
    """A model and its training; its weights are kept after `checkpoints`, one and two thirds of the epochs and all."""

    data: DataSpec
    tasks: Tasks  # letters of the tasks it learns; the first is the main one
    images: int | None = Field(default=None, ge=1)  # of the training data, the first ones; None: all
    # Of `encoders.ENCODERS`, timm/<name>, or the user's own ("<file>.py:<name>", a class, function or network).
    encoder: Annotated[str, Brought, AfterValidator(encoders.known)] = "resnet18_small"
    # From the weights that timm has, for timm/<name> only; or from those of a file or a state dict, kept with a digest.
    pretrained: Annotated[bool | str, BeforeValidator(own.pinned_weights)] = False
    frozen: bool = Field(default=False, exclude_if=lambda frozen: not frozen)  # only the decoders learn
    head: Literal[tuple(heads.HEADS)] = Field(default="convolutions", exclude_if=lambda head: head == "convolutions")  # type: ignore[valid-type]
    weights: Annotated[str, Brought, AfterValidator(known)] = "uniform"  # of the task losses
    seed: int = Field(default=0, ge=0)  # of the first weights and the order of the images
    # Of convolutions in training and under attack; weights, losses and errors are always float32.
    precision: Literal["float32", "bfloat16"] = "float32"
    architecture: Literal[building.ARCHITECTURES] = Field(default="hard", exclude_if=lambda name: name == "hard")  # type: ignore[valid-type]
    adversarial: Adversarial | None = Field(default=None, exclude_if=lambda value: value is None)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.data.name != "folder":  # whose letters stand in a file
            parse(self.tasks, data.letters(self.data.name), self.data.name)
        if own.is_own(self.encoder) and not own.is_own(self.encoder, here=True):
            return self  # of another process: nothing of it can be known
        stride = encoders.stride(self.encoder)
        if self.data.size % stride or self.data.size < 2 * stride:
            allowed = f"a multiple of {stride} from {2 * stride} on for {self.encoder}"
            raise ValueError(f"size should be {allowed}. Found {self.data.size}.")
        encoders.refuse_unfit(self.encoder, self.data.size)
        if isinstance(self.pretrained, str) and own.is_own(self.pretrained, here=True):
            encoders.build(self.encoder, self.pretrained)  # the weights fit, or it is said
        if self.pretrained is True and not self.encoder.startswith(encoders.TIMM):
            raise ValueError(f"pretrained should be false for {self.encoder}: only timm/<name> has trained weights")
        if self.frozen and not (self.pretrained or own.is_own(self.encoder)):
            raise ValueError("frozen should be false for an encoder that begins from random weights, not pretrained")
        if self.frozen and not fixed(self.weights):
            raise ValueError(f"weights should be fixed for a frozen encoder: it has no gradient. Found {self.weights}.")
        if own.is_own(self.weights, here=True):
            found = own.weigh(self.weights, *(torch.linspace(low, 1, len(self.tasks)) for low in (0.5, 0.9, 0.2)))
            if not (found.isfinite() & (found >= 0)).all():
                raise ValueError(f"weights should be finite and at least 0. {self.weights} gives {found.tolist()}.")
        elif fixed(self.weights) and self.weights.count(":") not in (0, len(self.tasks) - 1):
            raise ValueError(f"weights should have one number a task of {self.tasks!r}. Found {self.weights!r}.")
        building.known(self.architecture, self.tasks, self.frozen, self.head)
        if self.architecture != "hard" and not fixed(self.weights):
            allowed = f"fixed ones, such as uniform, for {self.architecture}: others weigh gradients of one shared map"
            raise ValueError(f"weights should be {allowed}. Found {self.weights!r}.")
        if self.adversarial is not None:
            if self.architecture != "hard":
                raise ValueError(f"adversarial should be none for {self.architecture}: only hard is trained so.")
            self._trained_robustly(self.adversarial)
        return self

    def _trained_robustly(self, how: Adversarial) -> None:
        main, gat = self.tasks[0], how.recipe == "gat"
        if gat and (how.tasks or main) != main:
            raise ValueError(f"tasks of gat should be the main one, {main!r}. Found {how.tasks!r}.")
        if set(how.tasks or "") - set(self.tasks):
            raise ValueError(f"tasks attacked in training should be out of {self.tasks!r}. Found {how.tasks!r}.")
        if gat and self.weights not in AGGREGATORS:
            allowed = f"MGDA, or one of {', '.join(AGGREGATORS)}"
            raise ValueError(f"weights of gat should be {allowed}. Found {self.weights!r}.")
        if how.recipe in ("trades", "half") and not (fixed(self.weights) or self.weights in AGGREGATORS):
            allowed = "fixed ones or an aggregator: others look at one pass alone"
            raise ValueError(f"weights of {how.recipe} should be {allowed}. Found {self.weights!r}.")
        if how.curvature and len(self.tasks) == 1 and not how.self_supervised:
            raise ValueError("curvature should have an auxiliary task beside the main one. Found none.")

    @property
    def starts(self) -> list[Self]:
        """The single-task models that it starts from, trained as long: of cross_stitch and nddr."""
        letters, alone = self.tasks if self.architecture in building.SOFT else "", {"architecture": "hard"}
        return [self.model_copy(update={"tasks": letter, "weights": "uniform", **alone}) for letter in letters]

    @property
    def checkpoints(self) -> tuple[int, ...]:
        return tuple(sorted({ceil(self.epochs * third / 3) for third in (1, 2, 3)}))


_tried = lru_cache(lambda attack, norm: attacks.tried(own.find(attack), attack, norm))


class AttackSpec(Spec):
    """An attack and the images it is run on."""

    # Of `attacks.NAMED`; "<file>.py:<function>", or a function, with the keywords of `pgd`: kept with a digest.
    name: Annotated[str, Brought, AfterValidator(known_attack)] = "pgd"
    tasks: Tasks  # letters of the attacked tasks: the adversary maximises the sum of their losses
    norm: Literal[attacks.BALLS] = "linf"  # type: ignore[valid-type]
    # In 255ths of the image range; of l2 and l1 the length of an image's whole perturbation.
    eps_255: float = Field(default=8.0, ge=0)
    step_size_255: float = Field(default=2.0, ge=0)  # of no use to fgsm, apgd, square and sea
    steps: int = Field(default=25, ge=0)  # of square its queries, of ensemble and sea of each of their attacks
    restarts: int = Field(default=1, ge=1)
    seed: int = Field(default=0, ge=0)  # of the random start
    images: int = Field(default=256, ge=1)  # test images, the first ones

    @model_validator(mode="after")
    def _tried(self) -> Self:
        if own.is_own(self.name, here=True):
            _tried(self.name, self.norm)
        return self

    @property
    def function(self) -> Callable[..., torch.Tensor]:
        """The attack; each result of one of the user's own is checked (`attacks.held`)."""
        return attacks.NAMED.get(self.name) or attacks.held(own.find(self.name), self.name)


class Evaluation(Spec):
    """One attack on one model, after `epoch` of its training (the last unless given); with a `source`, made on that
    trained model, which has the attacked tasks; the other need not."""

    model: ModelSpec
    attack: AttackSpec
    epoch: int = Field(default_factory=lambda given: given["model"].epochs)
    source: ModelSpec | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        attacked = set(self.attack.tasks)
        if self.source is not None and (attacked - set(self.source.tasks) or self.source.data != self.model.data):
            raise ValueError(f"the source should have the attacked tasks, {self.attack.tasks!r}, and the same data")
        if self.source is None and attacked - set(self.model.tasks):
            allowed = f"out of the model's, {self.model.tasks!r}"
            raise ValueError(f"attacked tasks should be {allowed}. Found {self.attack.tasks!r}.")
        if self.epoch not in self.model.checkpoints:
            raise ValueError(f"epoch should be one of {self.model.checkpoints}. Found {self.epoch}.")
        return self

    @property
    def attacked(self) -> list[tuple[ModelSpec, int]]:
        """The models that it is of, with their epochs: the model and, where there is one, the source."""
        return [(self.model, self.epoch), *([] if self.source is None else [(self.source, self.source.epochs)])]

    @property
    def columns(self) -> dict[str, Any]:
        """What names it in the errors table; attack is "pgd on <model id>" with a source."""
        model, attack, on = self.model, self.attack, "" if self.source is None else f" on {self.source.key}"
        columns: dict[str, Any] = {"model_id": model.key, "trained_tasks": model.tasks, "main": model.tasks[0]}
        columns |= model.model_dump(include={"encoder", "weights", "seed"})
        columns |= {"epoch": self.epoch, "attack": attack.name + on}
        columns |= attack.model_dump(include={"norm", "eps_255", "steps"})
        return columns | {"attacked_tasks": attack.tasks}
