"""What the notebooks take as parameters, and the check that their first cell makes.

Papermill passes any name and any type on; YAML 1.1 reads `1e-4` and `8/255` as text and `no` as false. Here a wrong
type, a value out of range, an unknown task letter and an unknown name stop the notebook at once.
"""

from __future__ import annotations

import re
import types
from collections.abc import Collection
from itertools import permutations
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from mtrlib import attacks, machine
from mtrlib.data import NAMES, letters
from mtrlib.data import tasks as defined
from mtrlib.metrics import tables
from mtrlib.models import encoders
from mtrlib.specs import FIXED, WEIGHTS, AttackSpec, DataSpec, ModelSpec, Optimizer, Tasks
from mtrlib.studies import kernel
from mtrlib.tasks import Task, canonical, parse
from mtrlib.training.weights import published, task_weights

Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]
Place = Annotated[str, AfterValidator(machine.expanded)]


kernel.faults_in_one_line()  # of the first cell too, which imports this


def _different(values: list) -> list:
    if len(set(values)) < len(values):
        raise ValueError(f"the values should differ, found {values}")
    return values


class Parameters(BaseModel):
    """Parameters that all notebooks share: data, model, training, and where results go.

    `pretrained` lets the encoders that timm has weights for begin from them; others begin from random ones. `store`
    holds trained models and errors, `released` is a file of released errors that are found in place of them, or "",
    `output` holds the notebook's tables; relative paths start at the repository, and ~, $NAME and ${NAME} are expanded.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    data: Literal[NAMES]
    root: Place
    on_bad: Literal["raise", "skip"]
    size: int = Field(ge=8, le=1024)
    train_images: int = Field(ge=0)
    test_images: Count
    tasks: Tasks
    encoder: Annotated[str, AfterValidator(encoders.known)]
    pretrained: bool
    optimizer: Optimizer
    epochs: Count
    batch_size: int = Field(ge=2)
    learning_rate: Positive
    momentum: float = Field(ge=0, lt=1)
    weight_decay: float = Field(ge=0)
    schedule: Literal["cosine", "step"]
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
        for kind in ("store", "output"):
            machine.folder(machine.place(getattr(self, kind)), f"the {kind}", made=True)
        used = [self.encoder, *getattr(self, "encoders", []), getattr(self, "surrogate", "")]
        if self.pretrained and not any(name.startswith(encoders.TIMM) for name in used):
            raise ValueError(f"pretrained should be false unless an encoder is timm/<name>, found {self.encoder!r}")
        try:
            self.model(self.tasks)
        except ValidationError as error:
            raise ValueError(error.errors()[0]["msg"].removeprefix("Value error, ")) from None
        return self

    @property
    def folder(self) -> Path | None:
        """The folder of the data set's files."""
        return machine.place(self.root) if self.root else None

    @property
    def definitions(self) -> dict[str, Task]:
        """Definitions of the tasks that the data set has labels of, by letter."""
        return defined(self.data, self.folder)

    def model(self, tasks: str, seed: int = 0, weights: str = "uniform", encoder: str | None = None) -> ModelSpec:
        """The specification of a model of `tasks`, trained as these parameters say; `encoder` takes another."""
        names = "optimizer epochs batch_size learning_rate momentum weight_decay schedule".split()
        encoder = encoder or self.encoder
        return ModelSpec(
            data=DataSpec(name=self.data, root=self.root or None, size=self.size, on_bad=self.on_bad),
            tasks=tasks,
            images=self.train_images or None,
            encoder=encoder,
            pretrained=self.pretrained and encoder.startswith(encoders.TIMM),
            seed=seed,
            weights=weights,
            precision=machine.precision() if self.precision == "auto" else self.precision,
            **{name: getattr(self, name) for name in names},
        )

    def attack(self, tasks: str, **changes: Any) -> AttackSpec:
        """The specification of the attack on `tasks`, with some fields changed."""
        names = ("eps_255", "step_size_255", "steps")
        values = {"tasks": tasks, "images": self.test_images, **{name: getattr(self, name) for name in names}}
        return AttackSpec(**{**values, **changes})


class Tour(Parameters):
    """Parameters of the notebook `tour`."""

    shown: int = Field(ge=1, le=8)


class Study(Parameters):
    """Parameters that the notebooks of the research questions share: seeds of the models, and the sizes of tables and
    of their bootstrap. Panels beside the main table use the first `panel_images` of the test images."""

    seeds: Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1), AfterValidator(_different)]
    restarts: Count
    panel_images: Count
    replicates: int = Field(ge=1000)

    @model_validator(mode="after")
    def _sizes(self) -> Study:
        if len(self.tasks) < 2:
            raise ValueError("tasks should name at least two tasks, a main and an auxiliary one")
        if self.panel_images > self.test_images:
            raise ValueError(f"panel_images should be at most test_images = {self.test_images}")
        return self

    def attack(self, tasks: str, **changes: Any) -> AttackSpec:
        return super().attack(tasks, **{"restarts": self.restarts, **changes})


class RQ1(Study):
    """Parameters of the notebook `rq1_auxiliary_tasks`.

    more_tasks : letters beside `tasks` whose models of one and two tasks are compared by their errors; those that the
        data set has no labels of are left out, so that `data` can be changed alone.
    eps_panel, steps_panel, encoders : what the panels vary.
    """

    more_tasks: Annotated[str, AfterValidator(lambda letters: letters and parse(letters))]
    eps_panel: Annotated[list[Positive], Field(min_length=1), AfterValidator(_different)]
    steps_panel: Annotated[list[Count], Field(min_length=1), AfterValidator(_different)]
    encoders: Annotated[
        list[Annotated[str, AfterValidator(encoders.known)]], Field(min_length=1), AfterValidator(_different)
    ]

    @model_validator(mode="after")
    def _panels(self) -> RQ1:
        for encoder in self.encoders:
            self.model(self.tasks, encoder=encoder)
        if len(self.steps_panel) < 2:
            raise ValueError("steps_panel should have at least two numbers of steps to compare")
        if max(self.eps_panel) <= 4 or len(self.eps_panel) < 2:
            raise ValueError("eps_panel should have at least two budgets, one of them above 4")
        return self

    @property
    def figure_tasks(self) -> str:
        """`tasks` and those of `more_tasks` that the data set has."""
        given = set(self.more_tasks) & set(letters(self.data, self.folder))
        return canonical("".join({*self.tasks, *given}))


class NewDataset(Study):
    """Parameters of the notebook `new_dataset`: `example` writes the example into `root` first; `shown` images stand in
    its figure."""

    example: bool
    shown: int = Field(ge=1, le=8)

    @model_validator(mode="after")
    def _own(self) -> NewDataset:
        if self.example and self.data != "folder":
            raise ValueError(f"example should be false to read your own data, found true for data {self.data!r}")
        return self


class RQ4(Study):
    """Parameters of the notebook `rq4_task_selection`: `surrogate` is the cheaper encoder."""

    surrogate: Annotated[str, AfterValidator(encoders.known)]

    @model_validator(mode="after")
    def _choice(self) -> RQ4:
        if len(self.tasks) < 3:
            raise ValueError("tasks should name at least three tasks: with two there is no auxiliary task to choose")
        if self.surrogate == self.encoder:
            raise ValueError(f"surrogate should be another encoder than {self.encoder!r}")
        if self.epochs < 2:
            raise ValueError("epochs should be at least 2, for a checkpoint before the last")
        self.model(self.tasks, encoder=self.surrogate)
        return self


class RQ2(Study):
    """Parameters of the notebook `rq2_marginal_vulnerability`.

    chains : orders of tasks; a model is trained of every beginning of each. Letters that are not among `tasks` are left
        out, so that `tasks` can be changed alone: `orders` has what remains.
    eps_panel : budgets, in 255ths, at which predictions are compared, beside `eps_255`.
    gradient_images : test images at which gradients are taken.
    """

    chains: Annotated[list[Tasks], Field(min_length=1), AfterValidator(_different)]
    eps_panel: Annotated[list[Positive], Field(min_length=1), AfterValidator(_different)]
    gradient_images: int = Field(ge=2)

    @property
    def orders(self) -> list[str]:
        """The chains with letters of `tasks` only, of two tasks or more; one of them has all tasks."""
        kept = ["".join(letter for letter in chain if letter in self.tasks) for chain in self.chains]
        whole = [] if any(len(order) == len(self.tasks) for order in kept) else [canonical(self.tasks)]
        return list(dict.fromkeys(order for order in kept + whole if len(order) > 1))


class RQ3(Study):
    """Parameters of the notebook `rq3_task_weights`. Pairs that no weights are published for are left out of that
    weighting (`has_weights`).

    attacks : of `attacks.NAMED`, those that are compared on every model; PGD, Auto-PGD and both WGDs among them.
    balancers : weights beside the uniform and the published ones, of `specs.WEIGHTS`.
    own_weights : weights of your own, by pair, main task first: {"sd": [1.0, 0.1]} weighs s with 1 and d with .1. Those
        pairs make one weighting more, "own".
    masked_pairs : pairs, main task first, whose models are searched for masked gradients; those that are not of `tasks`
        are left out, so that `tasks` can be changed alone: `searched` has what remains, or the first pair.
    many_steps, square_queries : of the strongest PGD and of Square in that search.
    """

    attacks: Annotated[list[Literal[tuple(attacks.NAMED)]], AfterValidator(_different)]
    balancers: Annotated[list[Literal[tuple(w for w in WEIGHTS if w not in FIXED)]], AfterValidator(_different)]
    own_weights: dict[str, Annotated[list[Positive], Field(min_length=2, max_length=2)]] = {}
    masked_pairs: Annotated[list[Tasks], Field(min_length=1), AfterValidator(_different)]
    many_steps: Count
    square_queries: Count

    @model_validator(mode="after")
    def _pairs(self) -> RQ3:
        if not {"pgd", "apgd", "wgd", "wgd_inverse"} <= set(self.attacks):
            raise ValueError(f"attacks should have pgd, apgd, wgd and wgd_inverse among them, found {self.attacks}")
        for pair in self.own_weights:
            if len(pair) != 2 or len(set(pair) & set(self.tasks)) != 2:
                raise ValueError(f"own_weights should be by pairs of letters out of {self.tasks!r}, found {pair!r}")
        for pair in self.masked_pairs:
            if len(pair) != 2:
                raise ValueError(f"masked_pairs should be pairs of letters, found {pair!r}")
        if len({canonical(pair) for pair in self.masked_pairs}) < len(self.masked_pairs):
            raise ValueError(f"masked_pairs should name each pair in one order only, found {self.masked_pairs}")
        if self.eps_255 >= 255 / 16:
            raise ValueError(
                f"eps_255 should be below 255 / 16, so that 16 times it is less than 1, found {self.eps_255}"
            )
        if self.many_steps <= self.steps:
            raise ValueError(f"many_steps should be more than steps = {self.steps}, found {self.many_steps}")
        return self

    @property
    def weightings(self) -> list[str]:
        """The ways to weight the tasks: uniform, published where a pair of `tasks` has such weights, own where
        `own_weights` has any, `balancers`."""
        pairs = ("".join(pair) for pair in permutations(self.tasks, 2))
        printed = ["published"] if any(self.has_weights("published", pair) for pair in pairs) else []
        return ["uniform", *printed, *(["own"] if self.own_weights else []), *self.balancers]

    def has_weights(self, weights: str, pair: str) -> bool:
        """Whether a pair, its main task first, has weights of that name: the published ones are of the paper's own
        tasks, and not of all of them."""
        if weights != "published":
            return weights != "own" or pair in self.own_weights
        known = self.definitions
        return pair in published().index and all(known[letter].is_papers for letter in pair)

    @property
    def without_published(self) -> str:
        """A line that says which pairs no weights are published for; empty where there are none."""
        pairs = ["".join(pair) for pair in permutations(self.tasks, 2)]
        without = [pair for pair in pairs if not self.has_weights("published", pair)]
        told = (
            f"No weights are published for {', '.join(without)} (main task first): left out of the weighting published."
        )
        return told if without else ""

    @property
    def searched(self) -> list[str]:
        """The pairs of `masked_pairs` that are of `tasks`; their first two where there are none."""
        return [pair for pair in self.masked_pairs if set(pair) <= set(self.tasks)] or [self.tasks[:2]]

    def pair(self, tasks: str, seed: int, weights: str) -> ModelSpec:
        """The model of a pair, its main task first. Published and own weights tell main from auxiliary task; in all
        others both orders are one model, named in the paper's order."""
        if weights == "own":
            return self.model(tasks, seed, ":".join(map(str, self.own_weights[tasks])))
        return self.model(tasks if weights == "published" else canonical(tasks), seed, weights)


class Fidelity(Study):
    """Parameters of the notebook `fidelity`: `swapped` names pairs whose heads are loaded by position, in the other
    order."""

    swapped: Annotated[list[Tasks], Field(min_length=1), AfterValidator(_different)]

    @model_validator(mode="after")
    def _published(self) -> Fidelity:
        if self.restarts != 1:
            raise ValueError(f"restarts should be 1, as in the published code, found {self.restarts}")
        if self.eps_255 <= 4:
            raise ValueError(f"eps_255 should be above 4, the budget of the published jobs, found {self.eps_255}")
        if self.steps < 2:
            raise ValueError("steps should be at least 2, so that one can be left out")
        for pair in self.swapped:
            if len(pair) != 2:
                raise ValueError(f"swapped should be pairs of letters, found {pair!r}")
            self.model(pair)
        for main, auxiliary in permutations(self.tasks, 2):
            task_weights("published", main + auxiliary)
        return self

    def pair(self, tasks: str, seed: int, weights: str) -> ModelSpec:
        """The model of a pair, as in `RQ3.pair`."""
        return self.model(tasks if weights == "published" else canonical(tasks), seed, weights)


def check(namespace: dict[str, Any], kind: type[Parameters]) -> Any:
    """The parameters of a notebook, validated: call it as `check(globals(), RQ1)` in the first cell after them.

    Parameters
    ----------
    namespace : the notebook's globals. Every name in it that a person or papermill set counts as a parameter (not
        modules, functions, classes, or names that begin with an underscore).
    kind : the class that says what is allowed.

    In a notebook, later cells fail while parameters are others than those checked, see `kernel`.

    Raises
    ------
    ValueError : with a line for each fault: what was found and what is allowed.
    """
    tables.show_whole()
    declared = kind.model_fields
    names = {
        name
        for name, value in namespace.items()
        if not name.startswith("_") and not callable(value) and not isinstance(value, types.ModuleType)
    }
    names -= {"In", "Out", "annotations"}
    # Cells run again: what later cells have set is no parameter (`kernel` adds what cells of parameters set).
    later = namespace.get("_checked_names", names)
    faults = [
        f"Unknown parameter {name} = {namespace[name]!r}. Allowed: {', '.join(declared)}."
        for name in sorted((names & later) - set(declared))
    ]
    try:
        parameters = kind(**{name: namespace[name] for name in declared if name in namespace})
    except ValidationError as error:
        faults += [_sentence(fault, declared) for fault in error.errors()]
    if kernel.watch(namespace, declared, checked=not faults) or not faults:
        namespace.setdefault("_checked_names", names)
    if faults:
        raise ValueError("\n".join(faults))
    return parameters


def _sentence(fault: dict, declared: Collection[str]) -> str:
    name = ".".join(str(part) for part in fault["loc"])
    if fault["type"] == "missing":
        return f"Parameter {name} is missing."
    found = fault["input"]
    message = fault["msg"].removeprefix("Value error, ").rstrip(".")
    if message.startswith("Parameter "):  # it says all that there is to say, but perhaps by another name
        own = not name or message.startswith(f"Parameter {fault['loc'][0]} ")
        return f"{message}." if own else f"Parameter {name}: {message.removeprefix('Parameter ')}."
    if not name:  # of several parameters: it names them
        return f"{'Parameter ' * (message.split()[0] in declared)}{message}."
    hint = ""
    if isinstance(found, str) and fault["type"] in ("float_type", "int_type"):
        hint = " (without quotes it is a number)" * bool(re.fullmatch(r"[-+]?[0-9]+(\.[0-9]*)?", found))
        if re.search(r"[0-9.](e|/)", found, re.IGNORECASE):
            right = "1.0e-4, and budgets in 255ths" if fault["type"] == "float_type" else "whole numbers out"
            hint = f" (YAML reads 1e-4 and 8/255 as text: write {right})"
    if isinstance(found, bool):
        quotes = ": put them in quotes" if fault["type"] in ("string_type", "literal_error") else ""
        hint = f" (YAML reads yes, no, on and off as true and false{quotes})"
    return f"Parameter {name}: {message}. Found {found!r}{hint}."
