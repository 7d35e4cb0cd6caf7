"""RQ3: do task weights help? Its parameters and cells (paper, RQ3; Tables 1 B and 2). `masking` has the search for
masked gradients."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import permutations, product
from typing import Annotated

from pydantic import Field, model_validator

from mtrlib.specs import FIXED, WEIGHTS, Evaluation, ModelSpec, Tasks
from mtrlib.studies.parameters import Attack, Count, Different, Positive, Several, Study, Weights
from mtrlib.studies.study import Cell
from mtrlib.tasks import canonical
from mtrlib.training.weights import published

# With one attacked task the weights that these give it change nothing: they are the attack on the right.
ALONE = {"wgd": "pgd", "wgd_inverse": "pgd", "dgba": "pgd", "wgd_apgd": "apgd"}


class Searched(Study):
    """Parameters of a search for masked gradients: `many_steps` and `square_queries` of its strongest PGD and of its
    Square."""

    many_steps: Count
    square_queries: Count

    @model_validator(mode="after")
    def _strong(self) -> Searched:
        if self.eps_255 >= 255 / 16:
            so = "so that 16 times it is less than 1"
            raise ValueError(f"eps_255 should be below 255 / 16, {so}, found {self.eps_255}")
        if self.many_steps <= self.steps:
            raise ValueError(f"many_steps should be more than steps = {self.steps}, found {self.many_steps}")
        return self


class RQ3(Searched):
    """Parameters of the notebook `rq3_task_weights`. Pairs that no weights are published for are left out of that
    weighting (`has_weights`).

    attacks : of `attacks.NAMED`, or of your own, "<file>.py:<function>": those that are compared on every model; PGD,
        Auto-PGD and both WGDs among them.
    balancers : weights beside the uniform and the published ones, of `specs.WEIGHTS` or "<file>.py:<function>".
    own_weights : weights of your own, by pair, main task first: {"sd": [1.0, 0.1]} weighs s with 1 and d with .1. Those
        pairs make one weighting more, "own".
    masked_pairs : pairs, main task first, whose models are searched for masked gradients; those that are not of `tasks`
        are left out, so that `tasks` can be changed alone: `searched` has what remains, or the first pair.
    """

    attacks: Different[Attack]
    balancers: Different[Weights]
    own_weights: dict[str, Annotated[list[Positive], Field(min_length=2, max_length=2)]]
    masked_pairs: Several[Tasks]

    @model_validator(mode="after")
    def _pairs(self) -> RQ3:
        if not {"pgd", "apgd", "wgd", "wgd_inverse"} <= set(self.attacks):
            raise ValueError(f"attacks should have pgd, apgd, wgd and wgd_inverse among them, found {self.attacks}")
        if fixed := [name for name in self.balancers if name in FIXED or re.fullmatch(r"[\d.e:+-]+", name)]:
            allowed = ", ".join(name for name in WEIGHTS if name not in FIXED)
            raise ValueError(f"balancers should be out of {allowed}, or <file>.py:<function>, found {fixed[0]!r}")
        for pair in self.own_weights:
            if len(pair) != 2 or len(set(pair) & set(self.tasks)) != 2:
                raise ValueError(f"own_weights should be by pairs of letters out of {self.tasks!r}, found {pair!r}")
        for pair in self.masked_pairs:
            if len(pair) != 2:
                raise ValueError(f"masked_pairs should be pairs of letters, found {pair!r}")
        if len(set(map(canonical, self.masked_pairs))) < len(self.masked_pairs):
            raise ValueError(f"masked_pairs should name each pair in one order only, found {self.masked_pairs}")
        return self

    def needed(self) -> Iterator[object]:
        yield from super().needed()
        yield from (self.attack(self.tasks, name=name) for name in self.attacks)
        yield from (self.model(self.tasks[:2], weights=weights) for weights in self.balancers)

    @property
    def weightings(self) -> list[str]:
        """The ways to weight the tasks: uniform, published where a pair of `tasks` has such weights, own where
        `own_weights` has any, `balancers`."""
        printed = any(self.has_weights("published", "".join(pair)) for pair in permutations(self.tasks, 2))
        named = {"uniform": True, "published": printed, "own": bool(self.own_weights)}
        return [*(name for name, given in named.items() if given), *self.balancers]

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
        pairs = map("".join, permutations(self.tasks, 2))
        without = ", ".join(pair for pair in pairs if not self.has_weights("published", pair))
        about = "(main task first): left out of the weighting published."
        return without and f"No weights are published for {without} {about}"

    @property
    def searched(self) -> list[tuple[str, str]]:
        """What is searched for masked gradients: weights and pair, of `masked_pairs` those of `tasks` (the first two
        tasks where there are none), in uniform and, where they have them, in published weights."""
        pairs = [pair for pair in self.masked_pairs if set(pair) <= set(self.tasks)] or [self.tasks[:2]]
        return [(w, pair) for pair in pairs for w in ("uniform", "published") if self.has_weights(w, pair)]

    def pair(self, tasks: str, seed: int, weights: str) -> ModelSpec:
        """The model of a pair, its main task first. Published and own weights tell main from auxiliary task; in all
        others both orders are one model, named in the paper's order."""
        if weights == "own":
            return self.model(tasks, seed, ":".join(map(str, self.own_weights[tasks])))
        return self.model(tasks if weights == "published" else canonical(tasks), seed, weights)


def cells(p: RQ3) -> list[Cell]:
    """Everything that RQ3 needs.

    Panels: for each way to weight the tasks, under its name, the table main x auxiliary with the attack as setting;
    "dense", attacks for dense classes on s alone; "masking <weights>", what the search for masked gradients compares.
    The single-task models stand in the table of every weighting.
    """
    every, tasks = [], canonical(p.tasks)

    def cell(panel: str, setting: str, main: str, run: Evaluation, images: int = p.test_images) -> None:
        every.append(Cell(panel, setting, main, images, run))

    for seed in p.seeds:
        for weights, name, main in product(p.weightings, p.attacks, tasks):
            on_one = ALONE.get(name, name)
            cell(weights, name, main, p.evaluation(p.model(main, seed), main, name=on_one))
            for auxiliary in tasks.replace(main, ""):
                if p.has_weights(weights, main + auxiliary):
                    pair = p.pair(main + auxiliary, seed, weights)
                    cell(weights, name, main, p.evaluation(pair, main, name=on_one))
                    cell(weights, name, main, p.evaluation(pair, pair.tasks, name=name))
        for name in ("pgd", "apgd", "segpgd", "cospgd") if "s" in tasks else ():
            for letters in ("s", *(canonical("s" + auxiliary) for auxiliary in tasks.replace("s", ""))):
                cell("dense", name, "s", p.evaluation(p.model(letters, seed), "s", name=name))
    for weights, pair in p.searched:
        model, source = p.pair(pair, p.seeds[0], weights), p.pair(pair, max(p.seeds) + 1, "uniform")
        every += searches(p, weights, model, source)
    return every


def searches(p: Searched, name: str, model: ModelSpec, source: ModelSpec) -> Iterator[Cell]:
    """What the search for masked gradients compares on a model, as panel "masking <name>"; `source` is the model that
    transfer attacks are made on."""
    few = {"images": p.panel_images}
    compared = {"pgd": {}, "many steps": {"steps": p.many_steps, **few}, "one step": {"name": "fgsm", **few}}
    compared |= {"apgd": {"name": "apgd"}, "square": {"name": "square", "steps": p.square_queries, **few}}
    for setting, eps in {"4 eps": 4 * p.eps_255, "16 eps": 16 * p.eps_255, "eps 1": 255.0}.items():
        compared[setting] = {"eps_255": eps, "step_size_255": eps / 4, **few}
    for setting, changes in {**compared, "transfer": {"source": source}}.items():
        run = p.evaluation(model, model.tasks, **changes)
        yield Cell(f"masking {name}", setting, model.tasks[0], p.panel_images, run)
