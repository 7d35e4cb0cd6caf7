"""What each research question needs: from parameters to the models and attacks, and from those to one errors table.

A study is a list of cells. A cell is one evaluation (a model under an attack) read for one main task; several cells
may share an evaluation, and several evaluations a model. Building the list is pure; `run` does the work.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import combinations

import pandas as pd

from mtrlib.metrics.estimates import CELL
from mtrlib.progress import bar
from mtrlib.specs import Evaluation, ModelSpec
from mtrlib.store import Store
from mtrlib.studies.parameters import Study
from mtrlib.tasks import canonical


@dataclass(frozen=True)
class Cell:
    """One cell of a table of the paper.

    Attributes
    ----------
    panel : which table or figure it belongs to.
    setting : the value that the panel varies, such as an eps.
    main : letter of the task that is read.
    images : how many of the attack's images count, the first ones.
    evaluation : the model, the attack and the epoch.
    """

    panel: str
    setting: str | float
    main: str
    images: int
    evaluation: Evaluation

    @property
    def auxiliary(self) -> str:
        """The other tasks of the model; `main` where there are none."""
        return self.evaluation.model.tasks.replace(self.main, "") or self.main

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

    Uniform weights do not tell main from auxiliary: s with d and d with s are one model, named in the paper's order. A
    step is the same share of the budget whatever `changes` there are.

    Parameters
    ----------
    tasks : letters; those of `p` by default.
    images : how many count, all by default. An attack that no other panel has is run on no more.
    epoch, encoder, changes : of the models, and of the attack.
    """
    tasks = canonical(tasks or p.tasks)
    if "eps_255" in changes:
        changes["step_size_255"] = p.step_size_255 * changes["eps_255"] / p.eps_255
    plain = p.attack(tasks[0])
    if plain.model_copy(update=changes) != plain or epoch is not None:
        changes["images"] = images or p.test_images
    for seed in p.seeds:
        for letters in [*tasks, *map("".join, combinations(tasks, 2))]:
            model = p.model(letters, seed, encoder=encoder)
            attacks = [(main, main) for main in letters] + [(main, letters) for main in letters if len(letters) > 1]
            for main, attacked in attacks:
                evaluation = p.evaluation(model, attacked, epoch, **changes)
                yield Cell(panel, setting, main, images or p.test_images, evaluation)


def matched_l2_eps_255(eps_255: float, size: int) -> float:
    """The length, in 255ths, of the largest perturbation in the linf ball of eps_255: eps * sqrt(3 H W)."""
    return eps_255 * math.sqrt(3 * size * size)


def models(cells: Iterable[Cell]) -> list[ModelSpec]:
    """The different models of a study, in the order of their first use."""
    used = ((cell.evaluation.model, cell.evaluation.source) for cell in cells)
    return list(dict.fromkeys(model for pair in used for model in pair if model is not None))


def evaluations(cells: Iterable[Cell]) -> list[Evaluation]:
    """The different evaluations of a study, those of one model and epoch together."""
    different = dict.fromkeys(cell.evaluation for cell in cells)
    place = {model: number for number, model in enumerate(models(cells))}
    return sorted(different, key=lambda evaluation: (place[evaluation.model], evaluation.epoch))


def plan(store: Store, cells: list[Cell]) -> pd.DataFrame:
    """What is trained and attacked, a row a kind of model (number of tasks, encoder, weights), with the models and
    attacks of that kind and how many of them the store has already, or were released."""
    wanted, rows = evaluations(cells), []
    for spec in models(cells):
        own = [e for e in wanted if e.model == spec]
        row = {"tasks": len(spec.tasks), "encoder": spec.encoder, "weights": spec.weights, "models": 1}
        row |= {"trained already": int(store.has_record(spec)), "attacks": len(own)}
        rows.append({**row, "attacked already": sum(map(store.has_errors, own))})
    return pd.DataFrame(rows).groupby(["tasks", "encoder", "weights"], sort=False).sum().reset_index()


def train(store: Store, cells: list[Cell]) -> pd.DataFrame:
    """Train the models that the store lacks and that were not released. Returns one row a model: tasks, encoder,
    weights, seed, the seconds it took when it was trained, and the last training loss of each task."""
    specs, rows = models(cells), []
    train_models(store, [spec for spec in specs if not store.has_record(spec)])
    for spec in specs:
        record = store.record(spec)
        losses = {f"loss {letter}": record["history"][-1][letter] for letter in spec.tasks}
        about = {name: getattr(spec, name) for name in ("tasks", "encoder", "weights", "seed")}
        rows.append({**about, "seconds": record["seconds"], **losses})
    return pd.DataFrame(rows)


def train_models(store: Store, specs: Iterable[ModelSpec]) -> None:
    """Train those of the models that the store lacks."""
    missing = [spec for spec in dict.fromkeys(specs) if not store.has_model(spec)]
    for number, spec in enumerate(missing, start=1):
        store.model(spec, description=f"model {number} of {len(missing)}: {spec.tasks}")


def attack(store: Store, wanted: list[Evaluation]) -> None:
    """Run the attacks that the store lacks, and train the models for them that it lacks."""
    missing = [e for e in wanted if not store.has_errors(e)]
    if missing:
        train_models(store, [spec for e in missing for spec in (e.model, e.source) if spec is not None])
        with bar(sum(e.attack.images * e.attack.steps for e in missing), "attacks", "image-step") as progress:
            for e in missing:
                advance = partial(_advance, progress, e.attack.steps)
                store.errors(e, advance=advance)


def run(store: Store, cells: list[Cell]) -> pd.DataFrame:
    """The errors table of a study; what the store lacks is attacked now.

    Returns
    -------
    The columns of `Store.errors`, for the rows of the cell's main task and images, and panel, setting, auxiliary,
    attacked ("single" or "joint"), clean_attacked_loss and adversarial_attacked_loss (summed over the attacked tasks);
    `main` is the main task of the cell.
    """
    wanted = evaluations(cells)
    attack(store, wanted)
    tables = {e: _with_attacked_losses(store.errors(e), e) for e in wanted}
    frames = []
    for cell in cells:
        rows = tables[cell.evaluation]
        rows = rows[rows.task == cell.main].head(cell.images)
        frames.append(rows.assign(**{name: getattr(cell, name) for name in CELL}))
    return pd.concat(frames, ignore_index=True)


def _advance(progress, steps: int, images: int) -> None:
    progress.update(steps * images)


def _with_attacked_losses(rows: pd.DataFrame, e: Evaluation) -> pd.DataFrame:
    """The losses that the attack raised, the sum over its tasks, beside the rows of each image."""
    attacked = rows[rows.task.isin(list(e.attack.tasks))].groupby("image_id")
    for kind in ("clean", "adversarial"):
        rows[f"{kind}_attacked_loss"] = rows.image_id.map(attacked[f"{kind}_loss"].sum())
    return rows
