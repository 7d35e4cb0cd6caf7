"""What all notebooks take as parameters, and the check that their first cell makes: a wrong type, a value out of range,
an unknown task letter and an unknown name stop the notebook at once. Papermill passes any name and any type on, and
YAML 1.1 reads `1e-4` and `8/255` as text and `no` as false."""

from __future__ import annotations

import re
import types
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BeforeValidator, Field, ValidationError, model_validator

from mtrlib import machine
from mtrlib.data import NAMES, digest
from mtrlib.data import tasks as defined
from mtrlib.metrics import tables
from mtrlib.models import encoders, own
from mtrlib.models.heads import HEADS
from mtrlib.specs import AttackSpec, DataSpec, Evaluation, ModelSpec, Place, Tasks, Training, known, known_attack
from mtrlib.studies import kernel
from mtrlib.tasks import Task, parse

kernel.faults_in_one_line()  # of the first cell too, which imports this


def different(values: list) -> list:
    if len(set(values)) < len(values):
        raise ValueError(f"the values should differ, found {values}")
    return values


T = TypeVar("T")
Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]
Different = Annotated[list[T], AfterValidator(different)]
Several = Annotated[list[T], Field(min_length=1), AfterValidator(different)]


def _as_given(check: Callable[[str], object]) -> Any:
    """A text that `check` takes once `own.pinned` knows it; kept as it was given, so that it names itself elsewhere."""

    def checked(name: str) -> str:
        check(own.pinned(name))
        return name

    return Annotated[str, BeforeValidator(lambda given: given if isinstance(given, str) else own.pinned(given)),
                     AfterValidator(checked)]  # fmt: skip


def _weights(given: Any) -> bool | str:
    if not isinstance(given, bool | str):
        raise ValueError("should be a valid boolean or a file of weights")
    own.pinned_weights(given)
    return given


Encoder = _as_given(encoders.known)
Attack = _as_given(known_attack)
Weights = _as_given(known)


class Parameters(Training, serialize_by_alias=True):
    """Parameters that all notebooks share: data, model, training, and where results go.

    `pretrained` lets the encoders that timm has weights for begin from them; others begin from random ones. A path lets
    `encoder` begin from the weights of that file. `frozen` keeps it as it begins; `head` is of `heads.HEADS`. `store`
    holds trained models and errors, `released` is a file of released errors that are found in place of them, or "",
    `output` holds the notebook's tables; relative paths start at the repository, and ~, $NAME and ${NAME} are expanded.
    """

    data: Literal[NAMES]
    root: Place
    on_bad: Literal["raise", "skip"]
    size: int = Field(ge=8, le=1024)
    train_images: int = Field(ge=0)
    test_images: Count
    tasks: Tasks
    encoder: Encoder
    pretrained: Annotated[bool | str, BeforeValidator(_weights)]
    frozen: bool = False
    head: Literal[tuple(HEADS)] = "convolutions"
    precision: Literal["auto", "float32", "bfloat16"]
    eps_255: Positive
    step_size_255: Positive
    steps: Count
    store: Place
    released: Place
    output: Place

    @model_validator(mode="after")
    def _files(self) -> Parameters:
        if self.data != "rooms" and not self.root:
            raise ValueError(f"root should be the folder of the {self.data} files, found {self.root!r}")
        for kind, path in (("store", self.store), ("output", self.output)):
            machine.folder(machine.place(path), f"the {kind}", made=True)
        if self.pretrained is True and not any(name.startswith(encoders.TIMM) for name in self.used):
            raise ValueError(f"pretrained should be false unless an encoder is timm/<name>, found {self.encoder!r}")
        try:
            list(self.needed())
        except ValidationError as error:
            raise ValueError(error.errors()[0]["msg"].removeprefix("Value error, ")) from None
        return self

    @property
    def used(self) -> list[str]:
        """The encoders of the models."""
        return [self.encoder]

    def needed(self) -> Iterator[object]:
        """Specifications of each kind that a run needs: what is wrong in one is said before anything is computed."""
        yield from (self.model(self.tasks, encoder=encoder) for encoder in self.used)
        yield self.attack(self.tasks)

    @property
    def folder(self) -> Path | None:
        """The folder of the data set's files."""
        return machine.place(self.root) if self.root else None

    @property
    def definitions(self) -> dict[str, Task]:
        """Definitions of the tasks that the data set has labels of, by letter."""
        return self.described()[1]

    def described(self) -> tuple[str | None, dict[str, Task]]:
        """The digest of the data set's description and the definitions of its tasks."""
        return digest(self.data, self.folder), defined(self.data, self.folder)

    def model(self, tasks: str, seed: int = 0, weights: str = "uniform", encoder: str | None = None) -> ModelSpec:
        """The specification of a model of `tasks`, trained as these parameters say; `encoder` takes another."""
        encoder, (description, known) = encoder or self.encoder, self.described()
        begin = self.pretrained is True and str(encoder).startswith(encoders.TIMM)
        if isinstance(self.pretrained, str) and encoder == self.encoder:  # a file of weights fits one encoder
            begin = self.pretrained
        parse(tasks, "".join(known), self.data)
        data = {"name": self.data, "root": self.root or None, "size": self.size, "on_bad": self.on_bad}
        return ModelSpec(
            data=DataSpec(**data, digest=description),
            tasks=tasks,
            images=self.train_images or None,
            encoder=encoder,
            pretrained=begin,
            frozen=self.frozen,
            head=self.head,
            seed=seed,
            weights=weights,
            precision=machine.precision() if self.precision == "auto" else self.precision,
            **{name: getattr(self, name) for name in Training.model_fields},
        )

    def attack(self, tasks: str, **changes: Any) -> AttackSpec:
        """The specification of the attack on `tasks`, with some fields changed."""
        given = {name: getattr(self, name) for name in AttackSpec.model_fields if name in type(self).model_fields}
        given["name"] = getattr(self, "attack_name", "pgd")
        return AttackSpec(**{**given, "tasks": tasks, "images": self.test_images, **changes})

    def evaluation(
        self, model: ModelSpec, attacked: str, epoch: int | None = None, source: ModelSpec | None = None, **changes: Any
    ) -> Evaluation:
        """The evaluation of a model, at its last epoch by default, under the attack on `attacked`; `source` is the
        model that the attack is made on, where it is another."""
        attack = self.attack(attacked, **changes)
        return Evaluation(model=model, attack=attack, epoch=epoch or model.epochs, source=source)


class Study(Parameters):
    """Parameters that the notebooks of the research questions share: seeds of the models, restarts of attacks, and the
    images of panels beside the main table, the first `panel_images` of the test images."""

    seeds: Several[Annotated[int, Field(ge=0)]]
    restarts: Count
    panel_images: Count

    @model_validator(mode="after")
    def _sizes(self) -> Study:
        if len(self.tasks) < 2:
            raise ValueError("tasks should name at least two tasks, a main and an auxiliary one")
        if self.panel_images > self.test_images:
            raise ValueError(f"panel_images should be at most test_images = {self.test_images}")
        return self


def check(namespace: dict[str, Any], kind: type[Parameters]) -> Any:
    """The parameters of a notebook, validated: call it as `check(globals(), RQ1)` in the first cell after them. In a
    notebook, later cells fail while parameters are others than those checked, see `kernel`.

    Every name in `namespace` that a person or papermill set counts as a parameter (not modules, functions, classes, or
    names that begin with an underscore); `kind` says what is allowed. ValueError with a line for each fault: what was
    found and what is allowed.
    """
    tables.show_whole()
    declared = {field.alias or name: field for name, field in kind.model_fields.items()}
    values = {name: namespace[name] for name in declared if name in namespace}
    no_values = (types.ModuleType, Callable)
    names = {name for name, value in namespace.items() if name[0] != "_" and not isinstance(value, no_values)}
    names -= {"In", "Out", "annotations"}
    # Cells run again: what later cells have set is no parameter (`kernel` adds what cells of parameters set).
    unknown = sorted((names & namespace.get("_checked_names", names)) - set(declared))
    allowed = f"Allowed: {', '.join(declared)}"
    faults = [f"Unknown parameter {name} = {namespace[name]!r}. {allowed}." for name in unknown]
    needed = (name for name, field in declared.items() if field.is_required() or name in Training.model_fields)
    faults += [f"Parameter {name} is missing." for name in needed if name not in values]
    try:
        parameters = kind(**values)
    except ValidationError as error:
        faults += [_sentence(fault, declared) for fault in error.errors() if fault["type"] != "missing"]
    if kernel.watch(namespace, declared, checked=not faults) or not faults:
        namespace.setdefault("_checked_names", names)
    if faults:
        raise ValueError("\n".join(faults))
    return parameters


def _sentence(fault: dict, declared: Collection[str]) -> str:
    """A fault that pydantic found, in a line: the parameter, what it should be and what was found, and why YAML may
    have read it so."""
    name, value = ".".join(map(str, fault["loc"])), fault["input"]
    message = fault["msg"].removeprefix("Value error, ").rstrip(".")
    if message.startswith("Parameter "):  # it says all that there is to say, but perhaps by another name
        own = not name or message.startswith(f"Parameter {fault['loc'][0]} ")
        return f"{message}." if own else f"Parameter {name}: {message.removeprefix('Parameter ')}."
    if not name:  # of several parameters: it names them
        return f"{'Parameter ' * (message.split()[0] in declared)}{message}."
    hint, number = "", fault["type"] in ("float_type", "int_type") and isinstance(value, str)
    if number and re.search(r"[0-9.](e|/)", value, re.IGNORECASE):
        right = "1.0e-4, and budgets in 255ths" if fault["type"] == "float_type" else "whole numbers out"
        hint = f" (YAML reads 1e-4 and 8/255 as text: write {right})"
    elif number and re.fullmatch(r"[-+]?[0-9]+(\.[0-9]*)?", value):
        hint = " (without quotes it is a number)"
    elif isinstance(value, bool):
        quotes = ": put them in quotes" if fault["type"] in ("string_type", "literal_error") else ""
        hint = f" (YAML reads yes, no, on and off as true and false{quotes})"
    return f"Parameter {name}: {message}. Found {value!r}{hint}."
