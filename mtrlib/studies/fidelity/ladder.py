"""From the definitions to what the paper's code does, one change at a time, and back: the vulnerabilities of Tables 1
and 2 on every rung (arXiv 2110.15053). `rungs` reads them.

A rung is a set of `fidelity.CHANGES`. One ladder adds them in their order; the other begins with all of them and takes
them away in the same order, so that every change is seen among definitions and among published behaviours.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import permutations
from typing import Annotated

import numpy as np
import pandas as pd
from pydantic import AfterValidator, Field, model_validator

from mtrlib import metrics, training
from mtrlib.metrics import estimates
from mtrlib.progress import bar
from mtrlib.specs import Evaluation, ModelSpec, Tasks
from mtrlib.store import Store
from mtrlib.studies import fidelity
from mtrlib.studies.fidelity import CHANGES
from mtrlib.studies.parameters import Study, different
from mtrlib.studies.study import Cell
from mtrlib.tasks import canonical
from mtrlib.training.weights import task_weights

TABLES = {
    ("uniform", "pgd"): "Table 1 A",
    ("published", "pgd"): "Table 1 B",
    ("uniform", "wgd"): "Table 2 A, WGD",
    ("published", "wgd"): "Table 2 B, WGD",
    ("uniform", "l2"): "l2, 8/255",
}
RUNG = ["ladder", "number", "change", "table"]
_L2 = {"l2": {"norm": "l2"}}
_CODE = ("attacks", "fidelity")  # that decides a run, beside what decides its model
_BUDGET = 4.0  # of PGD with "eps 4", in 255ths


class Fidelity(Study):
    """Parameters of the notebook `fidelity`: `swapped` names pairs whose heads are loaded by position, in the other
    order."""

    swapped: Annotated[list[Tasks], Field(min_length=1), AfterValidator(different)]

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
        """The model of a pair, as in `rq3.RQ3.pair`."""
        return self.model(tasks if weights == "published" else canonical(tasks), seed, weights)


def steps() -> dict[tuple[str, int], frozenset[str]]:
    """The rungs by ladder ("adding" from the definitions, "undoing" from all published behaviours) and number."""
    names = list(CHANGES)
    found = {("adding", number): frozenset(names[:number]) for number in range(len(names) + 1)}
    return found | {("undoing", number): frozenset(names[number:]) for number in range(len(names) + 1)}


def cells(p: Fidelity, changes: Iterable[str] = ()) -> list[Cell]:
    """What a rung attacks: panel "uniform" or "published" weights, setting "pgd", "wgd" or "l2".

    WGD on one task is PGD with WGD's budget; only joint WGD is another attack. Changes that only read a run otherwise
    give the same cells. What budget and epochs the published jobs have is known of PGD in l-infinity (Table 1) alone.
    """
    changes = fidelity.check(changes)
    found = []

    def cell(panel, setting, model, main, attacked, **attack) -> None:
        if setting == "pgd" and "eps 4" in changes:
            attack["eps_255"] = _BUDGET
        images = p.panel_images if setting == "l2" else p.test_images
        third = setting == "pgd" and "third" in changes and model.weights == "published"
        epoch = model.checkpoints[0] if third else model.epochs
        evaluation = p.evaluation(model, attacked, epoch, images=images, **attack)
        found.append(Cell(panel, setting, main, images, evaluation))

    tasks = canonical(p.tasks)
    for seed in p.seeds:
        for main in tasks:
            alone = p.model(main, seed)
            for setting in ("pgd", "wgd", "l2"):
                cell("uniform", setting, alone, main, main, **_L2.get(setting, {}))
            for auxiliary in tasks.replace(main, ""):
                for weights in ("uniform", "published"):
                    pair = p.pair(main + auxiliary, seed, weights)
                    for attacked in (main, pair.tasks):
                        cell(weights, "pgd", pair, main, attacked)
                        if weights == "uniform":
                            cell(weights, "l2", pair, main, attacked, **_L2["l2"])
                    cell(weights, "wgd", pair, main, pair.tasks, name="wgd")
    return found


def trained(p: Fidelity) -> list[Cell]:
    """Cells of all models of the notebook, for `studies.plan` and `studies.train`: those of RQ3 of the same parameters,
    and the pairs whose heads are swapped."""
    found = cells(p)
    for pair in p.swapped:
        model = p.model(canonical(pair))
        evaluation = p.evaluation(model, model.tasks[0])
        found.append(Cell("swapped", "pgd", model.tasks[0], p.test_images, evaluation))
    return found


def run(store: Store, p: Fidelity) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The vulnerabilities of all rungs, and the logarithms that they are compared by; what the store lacks is attacked
    now.

    Returns
    -------
    Two frames as `metrics.estimates` gives them, as each rung reads its runs: relative task vulnerabilities, and log
    ratios of errors. Both are indexed by ladder, number, change (the one that was added or undone), table, panel,
    setting, attacked, main and auxiliary.
    """
    runs = {(c.evaluation, _of_the_run(c, rung)) for rung in steps().values() for c in cells(p, rung)}
    missing = [(e, changes) for e, changes in sorted(runs, key=str) if not store.has_table(*_run(e, changes), _CODE)]
    if missing:
        with bar(sum(e.attack.images * e.attack.steps for e, _ in missing), "attacks", "image-step") as progress:
            for e, changes in missing:
                measured(store, e, changes)
                progress.update(e.attack.images * e.attack.steps)
    names, known, frames = ["definitions", *CHANGES], {}, ({}, {})
    for (ladder, number), changes in steps().items():
        if changes not in known:
            known[changes] = read(errors(store, p, changes), changes)
        change = names[number] if ladder == "adding" or number else "all published"
        for frame, kept in zip(known[changes], frames, strict=True):
            for name, rows in frame.groupby(level=["panel", "setting"], sort=False):
                kept[ladder, number, change, TABLES[name]] = rows
    vulnerabilities, logs = (pd.concat(kept, names=RUNG) for kept in frames)
    return vulnerabilities, logs


def measured(store: Store, evaluation: Evaluation, changes: frozenset[str], heads: str | None = None) -> pd.DataFrame:
    """`fidelity.errors` of a model of the store, kept there in the folder `fidelity`; `heads` are the tasks that its
    heads serve where they are loaded by position."""
    spec, attack = evaluation.model, evaluation.attack

    def make() -> pd.DataFrame:
        model, data = store.model(spec, evaluation.epoch), store.data(spec, "test", attack.images)
        model = model if heads is None else fidelity.by_position(model, heads)
        return fidelity.errors(model, data, attack, changes, precision=spec.precision, device=store.device)

    return store.table(*_run(evaluation, changes, heads), make, _CODE)


def errors(store: Store, p: Fidelity, changes: frozenset[str]) -> pd.DataFrame:
    """The errors table of one rung, at the points that it reads: columns panel to auxiliary, seed, image_id, batch,
    clean_error and adversarial_error, and of s clean_ and adversarial_ intersection and union."""
    parts = []
    for c in cells(p, changes):
        rows = _read(measured(store, c.evaluation, _of_the_run(c, changes)), c.main, changes)
        about = {"panel": c.panel, "setting": c.setting, "attacked": c.attacked, "main": c.main}
        about |= {"auxiliary": c.auxiliary, "seed": c.evaluation.model.seed}
        about |= {name: rows["clean"][name].to_numpy() for name in ("image_id", "batch")}
        read = [name for name in ("error", "intersection", "union") if name in rows["clean"]]
        values = {f"{kind}_{name}": rows[kind][name].to_numpy() for kind in rows for name in read}
        parts.append(pd.DataFrame({**about, **values}))
    return pd.concat(parts, ignore_index=True)


def read(errors: pd.DataFrame, changes: frozenset[str]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The relative task vulnerabilities and log ratios of a rung's cells, by its reduction: both of them frames of
    `metrics.estimates`. Under "means" the logarithm is that of mean errors, and s counts by whole batches."""
    if "means" not in changes:
        return estimates.estimates(errors, "ratio"), estimates.estimates(errors, "log_ratio")
    frame = estimates.estimates(errors, "ratio_of_means")
    for cell, rows in errors[errors.main == "s"].groupby(list(estimates.CELL), sort=False):
        frame.iloc[frame.index.get_loc(cell)] = _of_batches(rows, np.unique(errors.image_id))
    with np.errstate(invalid="ignore", divide="ignore"):
        return frame, np.log1p(frame)


def swapped(store: Store, p: Fidelity) -> pd.DataFrame:
    """What heads by position do: each pair of `p.swapped`, and its two tasks, loaded in the other order than trained.

    Returns
    -------
    One row a pair and task: loads ("with swapped heads" or "fails"), clean_error and vulnerability (of PGD on that
    task, by definition) of the model and, ending in _swapped, of the one with its heads swapped.
    """
    rows = []
    for pair in p.swapped:
        spec = p.model(canonical(pair))
        loads = fidelity.fit_by_position(training.build(spec, spec.data.tasks), spec.tasks[::-1])
        for task in spec.tasks:
            evaluation = p.evaluation(spec, task)
            row = {"pair": spec.tasks, "task": task, "loads": "with swapped heads" if loads else "fails"}
            for end, heads in {"": None, "_swapped": spec.tasks[::-1]}.items():
                if heads is None or loads:
                    found = _read(measured(store, evaluation, frozenset(), heads), task, frozenset())
                    clean, adversarial = found["clean"].error, found["adversarial"].error
                    row[f"clean_error{end}"] = clean.mean()
                    row[f"vulnerability{end}"] = metrics.relative_task_vulnerability(clean, adversarial)
            rows.append(row)
    return pd.DataFrame(rows)


def heads(store: Store, p: Fidelity) -> pd.DataFrame:
    """Adversarial vulnerability, by definition and over all heads, of the two-task cells of Table 1 A under the attack
    by definition: main, auxiliary, attacked, definition, all_heads (mean over batches, and seeds)."""
    rows = []
    for c in cells(p):
        if (c.panel, c.setting) == ("uniform", "pgd") and c.main != c.auxiliary:
            found = measured(store, c.evaluation, frozenset()).query("counted == 'masked'")
            loss = found.pivot(index=["batch", "image_id"], columns=["point", "task"], values="loss")
            clean, adversarial = loss["clean"], loss["best"]
            parts = [
                fidelity.all_heads(clean.loc[batch].T, adversarial.loc[batch].T)
                for batch in clean.index.unique("batch")
            ]
            attacked = list(c.evaluation.attack.tasks)
            value = metrics.adversarial_vulnerability(clean[attacked].sum(axis=1), adversarial[attacked].sum(axis=1))
            where = {"main": c.main, "auxiliary": c.auxiliary, "attacked": c.attacked}
            rows.append({**where, "definition": value, "all_heads": np.mean(parts)})
    found = pd.DataFrame(rows).groupby(["main", "auxiliary", "attacked"], sort=False).mean().reset_index()
    return found.assign(ratio=found.all_heads / found.definition)


def _of_the_run(c: Cell, changes: frozenset[str]) -> frozenset[str]:
    """Those of the changes that make another run of this cell's attack."""
    attack = c.evaluation.attack
    has_masks = c.evaluation.model.data.name != "rooms"
    weighted = "s" in attack.tasks or has_masks
    matter = {"start": True, "batch l2": attack.norm == "l2", "class weights": weighted}
    matter["constant WGD"] = attack.name == "wgd"
    return frozenset(name for name, does in matter.items() if does and name in changes)


def _run(evaluation: Evaluation, changes: frozenset[str], heads: str | None = None) -> tuple[str, dict, list]:
    """What names a run in the store."""
    about = {"evaluation": evaluation.model_dump(mode="json"), "changes": sorted(changes), "batch": fidelity.BATCH}
    return "fidelity", {**about, "heads": heads}, [(evaluation.model, evaluation.epoch)]


def _read(rows: pd.DataFrame, main: str, changes: frozenset[str]) -> dict[str, pd.DataFrame]:
    """The rows of the main task at the two points that a rung reads, by "clean" and "adversarial"."""
    rows = rows[(rows.task == main) & (rows.counted == ("all" if "unmasked" in changes else "masked"))]
    clean = "first" if "baseline" in changes else "clean"
    adversarial = ("last" if "last" in changes else "best") + (", early" if "early" in changes else "")
    return {"clean": rows[rows.point == clean], "adversarial": rows[rows.point == adversarial]}


def _of_batches(rows: pd.DataFrame, images: np.ndarray) -> np.ndarray:
    """The ratio of means for s, whose errors are 1 - mIoU of whole batches, in the columns of `estimates.estimates` of
    a table of `images`: what is left out for the jackknife is left out of its batch."""
    by_seed = []
    for _, of_seed in rows.groupby("seed"):
        block = np.searchsorted(images, of_seed.image_id) % estimates.BLOCKS
        kept = block != np.arange(min(len(images), estimates.BLOCKS))[:, None]  # (K, N)
        counts = np.concatenate([np.ones((1, len(block)), int), kept])
        clean, adversarial = (_batch_errors(of_seed, kind, counts) for kind in ("clean", "adversarial"))
        by_seed.append((adversarial - clean) / clean)
    value, *without = np.where(np.append(True, ~kept.all(axis=1)), np.mean(by_seed, axis=0), np.nan)
    return np.array([value, *(seed[0] for seed in by_seed), *without])


def _batch_errors(rows: pd.DataFrame, kind: str, counts: np.ndarray) -> np.ndarray:
    """(R, N) how often each image counts -> (R,): mean over the images of 1 - mIoU of their batch, over the classes
    that are labelled or predicted in it."""
    total = np.zeros(len(counts))
    batch = rows.batch.to_numpy()
    for number in np.unique(batch):
        here = batch == number
        both, either = (
            counts[:, here] @ np.stack(rows[f"{kind}_{name}"].to_numpy()[here]) for name in ("intersection", "union")
        )
        seen = either > 0
        iou = np.where(seen, both / np.maximum(either, 1), 0).sum(axis=1) / np.maximum(seen.sum(axis=1), 1)
        total += counts[:, here].sum(axis=1) * (1 - iou)
    return total / counts.sum(axis=1)
