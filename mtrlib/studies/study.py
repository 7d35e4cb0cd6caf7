"""What each research question needs: from parameters to the models and attacks, and from those to one errors table.

A study is a list of cells. A cell is one evaluation (a model under an attack) read for one main task; several cells
may share an evaluation, and several evaluations a model. Building the list is pure; `run` does the work."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import pandas as pd

from mtrlib.machine import bar
from mtrlib.metrics.estimates import CELL
from mtrlib.specs import Evaluation, ModelSpec
from mtrlib.store import Store
from mtrlib.studies.parameters import Study
from mtrlib.tasks import canonical


@dataclass(frozen=True)
class Cell:
    """One cell of a table of the paper: the panel (which table or figure it belongs to), the setting (the value that
    the panel varies, such as an eps), the letter of the task that is read, how many of the attack's images count (the
    first ones), and the evaluation: the model, the attack and the epoch."""

    panel: str
    setting: str | float
    main: str
    images: int
    evaluation: Evaluation

    @property
    def auxiliary(self) -> str:
        """The other tasks of the model, and what is attacked in the source alone; `main` where there are none."""
        tasks = dict.fromkeys(self.evaluation.model.tasks + self.evaluation.attack.tasks)
        return "".join(letter for letter in tasks if letter != self.main) or self.main

    @property
    def attacked(self) -> str:
        """ "single" (one task is attacked, mostly the main one) or "joint" (several are)."""
        return "single" if len(self.evaluation.attack.tasks) == 1 else "joint"


def table(
    p: Study,
    panel: str,
    setting: str | float,
    tasks: str = "",
    *,
    images: int = 0,
    epoch: int | None = None,
    encoder: str | None = None,
    **changes,
) -> Iterator[Cell]:
    """The cells main x auxiliary of all models of one or two tasks, for every seed.

    Uniform weights do not tell main from auxiliary: s with d and d with s are one model, named in the paper's order.
    `tasks` are letters, those of `p` by default; `images` how many count, all by default (an attack that no other panel
    has is run on no more); `epoch` and `encoder` are of the models, `changes` of the attack, whose step stays the same
    share of the budget.
    """
    tasks, images, plain = canonical(tasks or p.tasks), images or p.test_images, p.attack(p.tasks[0])
    if "eps_255" in changes:
        changes["step_size_255"] = p.step_size_255 * changes["eps_255"] / p.eps_255
    if plain.model_copy(update=changes) != plain or epoch is not None:
        changes["images"] = images
    for seed in p.seeds:
        for letters in [*tasks, *map("".join, combinations(tasks, 2))]:
            model = p.model(letters, seed, encoder=encoder)
            attacks = [(main, main) for main in letters] + [(main, letters) for main in letters if len(letters) > 1]
            for main, attacked in attacks:
                yield Cell(panel, setting, main, images, p.evaluation(model, attacked, epoch, **changes))


def matched_l2_eps_255(eps_255: float, size: int) -> float:
    """The length, in 255ths, of the largest perturbation in the linf ball of eps_255: eps * sqrt(3 H W)."""
    return eps_255 * math.sqrt(3 * size * size)


def models(cells: Iterable[Cell]) -> list[ModelSpec]:
    """The different models of a study, in the order of their first use, each behind those that it starts from."""
    used = (model for cell in cells for model in (cell.evaluation.model, cell.evaluation.source) if model is not None)
    return list(dict.fromkeys(each for model in used for each in (*model.starts, model)))


def evaluations(cells: Iterable[Cell]) -> list[Evaluation]:
    """The different evaluations of a study, those of one model and epoch together."""
    place = {model: number for number, model in enumerate(models(cells))}
    different = dict.fromkeys(cell.evaluation for cell in cells)
    return sorted(different, key=lambda evaluation: (place[evaluation.model], evaluation.epoch))


def plan(store: Store, cells: list[Cell]) -> pd.DataFrame:
    """What is trained and attacked, a row a kind of model (number of tasks, encoder, weights, and what else models
    differ in, see `_ways`), with the models and attacks of that kind and how many of them the store has already, or
    were released."""
    runs, rows, ways = evaluations(cells), [], _ways(cells)
    for spec in models(cells):
        own = [e for e in runs if e.model == spec]
        counts = {"models": 1, "trained already": int(store.has_record(spec)), "attacks": len(own)}
        counts["attacked already"] = sum(map(store.has_errors, own))
        kind = {"tasks": len(spec.tasks), "encoder": spec.encoder, "weights": spec.weights, **ways[spec]}
        rows.append({**kind, **counts})
    return pd.DataFrame(rows).groupby(list(kind), sort=False).sum().reset_index()


def _ways(cells: list[Cell]) -> dict[ModelSpec, dict[str, str | int]]:
    """By model, the recipe it was trained by against attacks, its architecture and its epochs, as far as models differ
    in them."""
    ways = {
        "recipe": lambda spec: "none" if spec.adversarial is None else spec.adversarial.recipe,
        "architecture": lambda spec: spec.architecture,
        "epochs": lambda spec: spec.epochs,
    }
    specs = models(cells)
    differ = {name: of for name, of in ways.items() if len({of(spec) for spec in specs}) > 1}
    return {spec: {name: of(spec) for name, of in differ.items()} for spec in specs}


def train(store: Store, cells: list[Cell]) -> pd.DataFrame:
    """Train the models that the store lacks and that were not released. Returns one row a model: tasks, encoder,
    weights, seed, the seconds it took when it was trained, and the last training loss of each task."""
    specs, rows, ways = models(cells), [], _ways(cells)
    train_models(store, [spec for spec in specs if not store.has_record(spec)])
    for spec in specs:
        record = store.record(spec)
        row = {name: getattr(spec, name) for name in ("tasks", "encoder", "weights", "seed")} | ways[spec]
        losses = {f"loss {letter}": record["history"][-1][letter] for letter in spec.tasks}
        rows.append({**row, "seconds": record["seconds"], **losses})
    return pd.DataFrame(rows)


def train_models(store: Store, specs: Iterable[ModelSpec]) -> None:
    """Train those of the models that the store lacks."""
    missing = [spec for spec in dict.fromkeys(specs) if not store.has_model(spec)]
    for number, spec in enumerate(missing, start=1):
        store.model(spec, description=f"model {number} of {len(missing)}: {spec.tasks}")


def attack(store: Store, runs: list[Evaluation]) -> None:
    """Run the attacks that the store lacks, and train the models for them that it lacks."""
    missing = [e for e in runs if not store.has_errors(e)]
    if missing:
        train_models(store, [spec for e in missing for spec, _ in e.attacked])
        with bar(sum(e.attack.images * e.attack.steps for e in missing), "attacks", "image-step") as progress:
            for e in missing:
                store.errors(e, advance=lambda images, steps=e.attack.steps: progress.update(steps * images))


def run(store: Store, cells: list[Cell]) -> pd.DataFrame:
    """The errors table of a study; what the store lacks is attacked now.

    Returns the columns of `Store.errors`, for the rows of the cell's main task and images, and panel, setting,
    auxiliary, attacked ("single" or "joint"), clean_attacked_loss and adversarial_attacked_loss (summed over the
    attacked tasks); `main` is the main task of the cell. constant_error, that of the best constant predictor of the
    main task, where errors were not released without it.
    """
    runs = evaluations(cells)
    attack(store, runs)
    whole = pd.concat([store.errors(e).assign(run=number) for number, e in enumerate(runs)], ignore_index=True)
    raised = pd.Series([task in set_ for task, set_ in zip(whole.task, whole.attacked_tasks, strict=True)])
    own = raised.groupby(whole.run).transform("any")  # else the attack is on a task of its source alone
    for kind in ("clean", "adversarial"):
        losses = whole[f"{kind}_loss"].where(raised).groupby([whole.run, whole.image_id])
        whole[f"{kind}_attacked_loss"] = losses.transform("sum").where(own)
    places, number = whole.groupby(["run", "task"]).indices, {e: k for k, e in enumerate(runs)}
    rows = [places[number[cell.evaluation], cell.main][: cell.images] for cell in cells]
    errors = whole.drop(columns="run").take(np.concatenate(rows)).reset_index(drop=True)
    counts = list(map(len, rows))
    for name in CELL:
        errors[name] = pd.Series([getattr(cell, name) for cell in cells]).repeat(counts).array

    predicted = [(cell.evaluation.model.data, cell.main, cell.evaluation.model.images) for cell in cells]
    most: dict[tuple, int] = {}
    for cell, of in zip(cells, predicted, strict=True):
        most[of] = max(most.get(of, 0), cell.evaluation.attack.images)
    constants = {of: store.constant_errors(*of, images) for of, images in most.items()}
    known = [constants[of] for of in predicted]
    if any(each is not None for each in known):
        images = np.split(errors.image_id, np.cumsum(counts)[:-1])
        parts = [np.full(len(i), np.nan) if k is None else k[i] for k, i in zip(known, images, strict=True)]
        errors["constant_error"] = np.concatenate(parts)
    return errors
