"""RQ5, which is not the paper's: does robust training survive a strong evaluation? Its parameters and cells.

Ways to train are named as panels, evaluations as settings: "pgd", and "sea", the strong one. `claims.robust_training`
reads them.
"""

from __future__ import annotations

from itertools import product
from math import ceil
from typing import Literal

import pandas as pd
from pydantic import Field, model_validator

from mtrlib.metrics import tables
from mtrlib.specs import Adversarial, ModelSpec
from mtrlib.studies.parameters import Count, Different, Positive, Several
from mtrlib.studies.rq3 import Searched, searches
from mtrlib.studies.rq4 import forward_operations
from mtrlib.studies.study import Cell
from mtrlib.tasks import canonical
from mtrlib.training import adversarial

MODEL = ["panel", "main", "auxiliary"]


class RQ5(Searched):
    """Parameters of the notebook `rq5_adversarial_training`. The first of `tasks` is the main one, which GAT attacks;
    models are trained against the same budget, `eps_255`, as they are attacked with.

    recipes : ways to train a model of all tasks against attacks, PGD's among them.
    inner_steps, inner_step_size_255 : of the attack in training; fast training takes one step, of 1.25 budgets.
    curriculum : whether the budget grows over the first two thirds of a training.
    gat_auxiliary, curvature : whether GAT's auxiliary tasks learn from clean images alone or from "both", and whether
        its curvature term is a further loss.
    self_supervised : auxiliary tasks without labels, each beside the main task alone.
    few_images : of the training data, for GAT on few of them; 0 leaves that out.
    sea_steps : of each of SEA's runs; `steps` are PGD's.
    """

    recipes: Several[Literal["pgd_at", "trades", "fast", "half", "gat"]]
    inner_steps: Count
    inner_step_size_255: Positive
    curriculum: bool
    gat_auxiliary: Literal["clean", "both"]
    curvature: bool
    self_supervised: Different[Literal["rotation", "jigsaw"]]
    few_images: int = Field(ge=0)
    sea_steps: Count

    @model_validator(mode="after")
    def _recipes(self) -> RQ5:
        if not {"pgd_at", "gat"} <= set(self.recipes):
            raise ValueError(f"recipes should have pgd_at and gat among them, found {self.recipes}")
        if self.train_images and self.few_images >= self.train_images:
            raise ValueError(
                f"few_images should be below train_images = {self.train_images}, 0 for none, found {self.few_images}"
            )
        return self

    @property
    def main(self) -> str:
        """The letter of the main task."""
        return self.tasks[0]

    @property
    def sets(self) -> list[str]:
        """The auxiliary tasks with labels that GAT has beside the main one: each, and all."""
        others = canonical(self.tasks[1:])
        return list(dict.fromkeys([*others, others]))

    def trained(self, recipe: str, tasks: str, seed: int, attacked: str | None = None, **own) -> ModelSpec:
        """A model of `tasks` trained against attacks on them, or on `attacked`; `own` fields are of the recipe."""
        inner = {"steps": self.inner_steps, "step_size_255": self.inner_step_size_255}
        if recipe == "fast":
            inner = {}
        if recipe == "gat":
            own = {"auxiliary": self.gat_auxiliary, "curvature": self.curvature, **own}
        how = {"recipe": recipe, "tasks": attacked, "norm": "linf", "eps_255": self.eps_255, **inner, **own}
        plain = self.model(tasks, seed, "MGDA" if recipe == "gat" else "uniform")
        return ModelSpec(**{**dict(plain), "adversarial": Adversarial(curriculum=self.curriculum, **how)})


def models(p: RQ5, seed: int) -> list[tuple[str, ModelSpec]]:
    """The models of one seed with the panels that they stand in.

    "plain" and each of the recipes: models of all tasks. "against <task>": PGD's, attacked on that task alone. Of the
    main task alone, "gat" with each set of auxiliary tasks, "gat with <self-supervised task>", and what these are
    compared with: the same training without auxiliary task, "same epochs" and "same cost", which has as many epochs
    more as it needs to cost no less than the most expensive of them. On few images the same, "few gat" and so on.
    """
    every = canonical(p.tasks)
    first = p.main + canonical(p.tasks[1:])
    found = [("plain", p.model(every, seed))]
    found += [(recipe, p.trained(recipe, first if recipe == "gat" else every, seed)) for recipe in p.recipes]
    found += [(f"against {task}", p.trained("pgd_at", every, seed, task)) for task in every]
    guided = [("gat", p.trained("gat", p.main + auxiliary, seed)) for auxiliary in p.sets]
    found += [one for one in guided if one not in found]
    alone = p.trained("half", p.main, seed)  # GAT's loss of the main task, without any other
    for name in p.self_supervised:
        guided.append((f"gat with {name}", p.trained("gat", p.main, seed, self_supervised=name)))
        found.append(guided[-1])
    most = max(operations(spec) for _, spec in guided)
    longer = alone.model_copy(update={"epochs": ceil(p.epochs * most / operations(alone))})
    baselines = [("same epochs", alone), ("same cost", longer)]
    found += baselines
    for panel, spec in [*guided, *baselines] if p.few_images else ():
        if not panel.startswith("gat with "):
            found.append((f"few {panel}", spec.model_copy(update={"images": p.few_images})))
    return found


def operations(spec: ModelSpec) -> float:
    """Of the whole training, an image, with the decoders that are run: an attack on one task runs one."""
    parts = adversarial.decoded_passes(spec)
    return spec.epochs * sum(n * forward_operations(spec.model_copy(update={"tasks": run})) for n, run in parts)


def cells(p: RQ5) -> list[Cell]:
    """Everything that RQ5 needs: each task of each of `models`, or the main task where it is compared for that, under
    both evaluations; and "masking <panel>", the search for masked gradients on every robust model of the first seed."""
    every: list[Cell] = []
    strong = {"pgd": {}, "sea": {"name": "sea", "steps": p.sea_steps}}
    for seed in p.seeds:
        for panel, spec in models(p, seed):
            whole = set(spec.tasks) == set(p.tasks) and not panel.startswith("few ")
            for main, (setting, changes) in product(spec.tasks if whole else p.main, strong.items()):
                every.append(Cell(panel, setting, main, p.test_images, p.evaluation(spec, main, **changes)))
    source = p.model(canonical(p.tasks), max(p.seeds) + 1)
    for panel, spec in zip(*robustly_trained(p), strict=True):
        every += searches(p, panel, spec, source)
    return every


def costs(p: RQ5) -> pd.DataFrame:
    """What each way to train costs, one row a model of a seed: panel, tasks, epochs, images (None: all) and cost, times
    that of plain training of all tasks on all images."""
    plain, rows = operations(p.model(p.tasks)), []
    for panel, spec in models(p, p.seeds[0]):
        row = {"panel": panel, "tasks": spec.tasks, "epochs": spec.epochs, "images": spec.images}
        less = (spec.images or 1) / (p.train_images or spec.images or 1)
        rows.append({**row, "cost": operations(spec) / plain * less})
    return pd.DataFrame(rows)


def table(errors: pd.DataFrame) -> pd.DataFrame:
    """Errors of each model and task of `studies.run`, in the unit of the task: panel, main, auxiliary, and without
    attack ("clean"), under "pgd" and under "sea" the mean over images and seeds with its 95 % interval ("clean low",
    "clean high" and so on)."""
    own, parts = errors[~errors.panel.str.startswith("masking")], []
    for name, setting in {"clean": "sea", "pgd": "pgd", "sea": "sea"}.items():
        quantity = "clean_error" if name == "clean" else "adversarial_error"
        values = tables.values(own[own.setting == setting], quantity, MODEL).set_index(MODEL)
        parts.append(values.set_axis([name, f"{name} low", f"{name} high"], axis=1))
    return pd.concat(parts, axis=1).reset_index()


def robustly_trained(p: RQ5) -> tuple[list[str], list[ModelSpec]]:
    """The panels and models that are searched for masked gradients."""
    panels, specs = zip(*models(p, p.seeds[0])[1:], strict=True)
    return list(panels), list(specs)


def wide(table: pd.DataFrame) -> pd.DataFrame:
    """Rows of `table` as they are read: a row a way to train and its tasks, columns the errors of each task without
    attack and under both, with their intervals, as text."""
    tasks = [canonical("".join({*m, *a})) for m, a in zip(table.main, table.auxiliary, strict=True)]
    texts = {"panel": table.panel, "tasks": tasks}
    for name in ("clean", "pgd", "sea"):
        ends = zip(*(table[column] for column in (name, f"{name} low", f"{name} high")), strict=True)
        texts[name] = [f"{tables.number(value)} {tables.interval(low, high)}" for value, low, high in ends]
    rows = pd.DataFrame({**texts, "main": table.main}).set_index(["panel", "tasks", "main"])
    frame = rows.unstack("main", fill_value="").swaplevel(axis=1)
    frame = frame.reindex(rows.index.droplevel("main").unique())[list(dict.fromkeys(table.main))]
    return frame.set_axis([" ".join(names) for names in frame.columns], axis=1).reset_index()
