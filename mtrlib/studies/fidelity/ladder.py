"""From the definitions to what the paper's code does, one change at a time, and back: the vulnerabilities of Tables 1
and 2 on every rung (arXiv 2110.15053). `rungs` reads them.

A rung is a set of `CHANGES`. One ladder adds them in their order; the other begins with all of them and takes them away
in the same order, so that every change is seen among definitions and among published behaviours."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from contextlib import suppress
from itertools import permutations

import numpy as np
import pandas as pd
from pydantic import model_validator

from mtrlib import metrics, training
from mtrlib.machine import bar
from mtrlib.metrics import estimates
from mtrlib.specs import ModelSpec, Tasks
from mtrlib.store import Store
from mtrlib.studies.fidelity import changes as published
from mtrlib.studies.fidelity.changes import CHANGES, measured
from mtrlib.studies.parameters import Several, Study
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
_OF_AN_IMAGE = ("image_id", "batch")
_MEASURED = ("error", "intersection", "union")  # the last two of s alone
_BUDGET = 4.0  # of PGD with "eps 4", in 255ths


class Fidelity(Study):
    """Parameters of the notebook `fidelity`: `swapped` names pairs whose heads are loaded by position, in the other
    order."""

    swapped: Several[Tasks]

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


def steps() -> dict[tuple[str, int], frozenset[str]]:
    """The rungs by ladder ("adding" from the definitions, "undoing" from all published behaviours) and number."""
    names = list(CHANGES)
    adding = {("adding", number): frozenset(names[:number]) for number in range(len(names) + 1)}
    return adding | {("undoing", number): frozenset(names[number:]) for number in range(len(names) + 1)}


def cells(p: Fidelity, changes: Iterable[str] = ()) -> list[Cell]:
    """What a rung attacks: panel "uniform" or "published" weights, setting "pgd", "wgd" or "l2".

    WGD on one task is PGD with WGD's budget; only joint WGD is another attack. Changes that only read a run otherwise
    give the same cells. What budget and epochs the published jobs have is known of PGD in l-infinity (Table 1) alone.
    """
    changes, every, tasks = published.check(changes), [], canonical(p.tasks)

    def cell(panel: str, setting: str, model: ModelSpec, main: str, attacked: str, name: str = "pgd") -> None:
        attack = {"name": name, "images": p.panel_images if setting == "l2" else p.test_images}
        attack |= {"norm": "l2"} if setting == "l2" else {}
        attack |= {"eps_255": _BUDGET} if setting == "pgd" and "eps 4" in changes else {}
        third = setting == "pgd" and "third" in changes and model.weights == "published"
        evaluation = p.evaluation(model, attacked, model.checkpoints[0] if third else None, **attack)
        every.append(Cell(panel, setting, main, attack["images"], evaluation))

    for seed in p.seeds:
        for main in tasks:
            for setting in ("pgd", "wgd", "l2"):
                cell("uniform", setting, p.model(main, seed), main, main)
            for pair in (main + auxiliary for auxiliary in tasks.replace(main, "")):
                both = {"uniform": p.model(canonical(pair), seed), "published": p.model(pair, seed, "published")}
                for weights, model in both.items():
                    for attacked in (main, model.tasks):
                        cell(weights, "pgd", model, main, attacked)
                        if weights == "uniform":
                            cell(weights, "l2", model, main, attacked)
                    cell(weights, "wgd", model, main, model.tasks, "wgd")
    return every


def trained(p: Fidelity) -> list[Cell]:
    """Cells of all models of the notebook, for `studies.plan` and `studies.train`: those of RQ3 of the same parameters,
    and the pairs whose heads are swapped."""
    pairs = [p.model(canonical(pair)) for pair in p.swapped]
    swaps = [Cell("swapped", "pgd", m.tasks[0], p.test_images, p.evaluation(m, m.tasks[0])) for m in pairs]
    return cells(p) + swaps


def run(store: Store, p: Fidelity) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The vulnerabilities of all rungs, and the logarithms that they are compared by; what the store lacks is attacked
    now.

    Returns relative task vulnerabilities and log ratios of errors as `metrics.estimates` gives them, as each rung reads
    its runs; both indexed by ladder, number, change (the one that was added or undone), table, panel, setting,
    attacked, main and auxiliary.
    """
    rungs, names = steps(), ["definitions", *CHANGES]
    runs = {(c.evaluation, _of_the_run(c, rung)) for rung in rungs.values() for c in cells(p, rung)}
    missing = [(e, of) for e, of in sorted(runs, key=str) if not store.has_table(*published.run(e, of), published.CODE)]
    if missing:
        with bar(sum(e.attack.images * e.attack.steps for e, _ in missing), "attacks", "image-step") as progress:
            for e, changes in missing:
                measured(store, e, changes)
                progress.update(e.attack.images * e.attack.steps)
    tables = _errors(store, {changes: cells(p, changes) for changes in set(rungs.values())})
    known = {changes: read(table, changes) for changes, table in tables.items()}
    frames = ({}, {})
    for (ladder, number), changes in rungs.items():
        change = names[number] if ladder == "adding" or number else "all published"
        for frame, kept in zip(known[changes], frames, strict=True):
            for name, rows in frame.groupby(level=["panel", "setting"], sort=False):
                kept[ladder, number, change, TABLES[name]] = rows
    vulnerabilities, logs = (pd.concat(kept, names=RUNG) for kept in frames)
    return vulnerabilities, logs


def errors(store: Store, p: Fidelity, changes: frozenset[str]) -> pd.DataFrame:
    """The errors table of one rung, at the points that it reads: columns panel to auxiliary, seed, image_id, batch,
    clean_error and adversarial_error, and of s clean_ and adversarial_ intersection and union."""
    return _errors(store, {changes: cells(p, changes)})[changes]


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
    """What heads by position do, to each pair of `p.swapped` that is loaded in the other order than trained.

    Returns one row a pair and task: loads ("with swapped heads" or "fails"), clean_error and vulnerability (of PGD on
    that task, by definition) of the model and, ending in _swapped, of the one with its heads swapped.
    """
    rows = []
    for pair in p.swapped:
        spec = p.model(canonical(pair))
        untrained, turned, ends = training.build(spec, spec.data.tasks), spec.tasks[::-1], {"": None}
        with suppress(ValueError):
            published.by_position(untrained, turned)
            ends["_swapped"] = turned
        for task in spec.tasks:
            row = {"pair": spec.tasks, "task": task, "loads": "with swapped heads" if "_swapped" in ends else "fails"}
            for end, heads in ends.items():
                kinds = _read(measured(store, p.evaluation(spec, task), frozenset(), heads), task, frozenset())
                clean, adversarial = kinds["clean"].error, kinds["adversarial"].error
                row[f"clean_error{end}"] = clean.mean()
                row[f"vulnerability{end}"] = metrics.relative_task_vulnerability(clean, adversarial)
            rows.append(row)
    return pd.DataFrame(rows)


def heads(store: Store, p: Fidelity) -> pd.DataFrame:
    """Adversarial vulnerability, by definition and over all heads, of the two-task cells of Table 1 A under the attack
    by definition: main, auxiliary, attacked, definition, all_heads (mean over batches, and seeds), ratio."""
    rows = []
    for c in (c for c in cells(p) if (c.panel, c.setting) == ("uniform", "pgd") and c.main != c.auxiliary):
        masked = measured(store, c.evaluation, frozenset()).query("counted == 'masked'")
        loss = masked.pivot(index=["batch", "image_id"], columns=["point", "task"], values="loss")
        clean, adversarial, attacked = loss["clean"], loss["best"], list(c.evaluation.attack.tasks)
        batches = clean.index.unique("batch")
        row = {name: getattr(c, name) for name in ("main", "auxiliary", "attacked")}
        of_attacked = (losses[attacked].sum(axis=1) for losses in (clean, adversarial))
        row["definition"] = metrics.adversarial_vulnerability(*of_attacked)
        row["all_heads"] = np.mean([all_heads(clean.loc[batch].T, adversarial.loc[batch].T) for batch in batches])
        rows.append(row)
    table = pd.DataFrame(rows).groupby(["main", "auxiliary", "attacked"], sort=False).mean().reset_index()
    return table.assign(ratio=table.all_heads / table.definition)


def all_heads(clean_loss, adversarial_loss) -> float:
    """The published adversarial vulnerability of a batch: |mean over images of adversarial - clean loss|, summed over
    all heads of the model, attacked or not, before the absolute value. Definition 1 has the mean of absolute changes
    of the attacked ones, `metrics.adversarial_vulnerability`. Both losses are (T, N), a row a head."""
    clean, adversarial = np.asarray(clean_loss, float), np.asarray(adversarial_loss, float)
    if clean.shape != adversarial.shape or clean.ndim != 2:
        raise ValueError(f"Losses should both be (T, N). Found {clean.shape} and {adversarial.shape}.")
    return float(abs((adversarial - clean).mean(axis=1).sum()))


def _of_the_run(c: Cell, changes: frozenset[str]) -> frozenset[str]:
    """Those of the changes that make another run of this cell's attack."""
    attack, data = c.evaluation.attack, c.evaluation.model.data
    matter = {"start": True, "batch l2": attack.norm == "l2", "constant WGD": attack.name == "wgd"}
    matter["class weights"] = "s" in attack.tasks or data.name != "rooms"  # which alone has no masks
    return frozenset(name for name in changes if matter.get(name))


def _errors(store: Store, rungs: dict[frozenset[str], list[Cell]]) -> dict[frozenset[str], pd.DataFrame]:
    """`errors` of several rungs, by their changes, from their cells; a run that several of them read is read once."""
    parts: dict = {changes: [{} for _ in of] for changes, of in rungs.items()}
    readers = defaultdict(list)
    for changes, of in rungs.items():
        for c, part in zip(of, parts[changes], strict=True):
            part |= {name: getattr(c, name) for name in estimates.CELL} | {"seed": c.evaluation.model.seed}
            readers[c.evaluation, _of_the_run(c, changes)].append((c.main, changes, part))
    for (evaluation, changes_of_run), read_by in readers.items():
        rows = measured(store, evaluation, changes_of_run)
        places = rows.groupby(["task", "counted", "point"], sort=False).indices
        columns = {name: rows[name].to_numpy() for name in (*_OF_AN_IMAGE, *_MEASURED) if name in rows}
        for main, changes, part in read_by:
            at = {kind: places[main, *where] for kind, where in _points(changes).items()}
            part |= {name: columns[name][at["clean"]] for name in _OF_AN_IMAGE}
            part |= {f"{kind}_{n}": columns[n][at[kind]] for kind in at for n in _MEASURED if n in columns}
    return {changes: _stacked(of) for changes, of in parts.items()}


def _stacked(parts: list[dict]) -> pd.DataFrame:
    """A table of the columns of several, one below the other: arrays of one length in each, or one value of all of its
    rows; NaN in columns that only others have."""
    counts, columns = [len(part["image_id"]) for part in parts], {}
    for name in dict.fromkeys(name for part in parts for name in part):
        given = [part.get(name, np.nan) for part in parts]
        if any(isinstance(each, np.ndarray) for each in given):
            given = [np.broadcast_to(each, n) for each, n in zip(given, counts, strict=True)]
            columns[name] = np.concatenate(given)
        else:
            columns[name] = np.repeat(given, counts)
    return pd.DataFrame(columns)


def _points(changes: frozenset[str]) -> dict[str, tuple[str, str]]:
    """The way to count and the point that a rung reads, by "clean" and "adversarial"."""
    counted = "all" if "unmasked" in changes else "masked"
    adversarial = ("last" if "last" in changes else "best") + (", early" if "early" in changes else "")
    return {"clean": (counted, "first" if "baseline" in changes else "clean"), "adversarial": (counted, adversarial)}


def _read(rows: pd.DataFrame, main: str, changes: frozenset[str]) -> dict[str, pd.DataFrame]:
    """The rows of the main task at the two points that a rung reads, by "clean" and "adversarial"."""
    rows = rows[rows.task == main]
    return {
        kind: rows[(rows.counted == counted) & (rows.point == point)]
        for kind, (counted, point) in _points(changes).items()
    }


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
    for here in (rows.batch.to_numpy() == number for number in np.unique(rows.batch)):
        both, either = (counts[:, here] @ np.stack(rows[f"{kind}_{n}"][here]) for n in ("intersection", "union"))
        number = np.maximum((either > 0).sum(axis=1), 1)
        total += counts[:, here].sum(axis=1) * (1 - (both / np.maximum(either, 1)).sum(axis=1) / number)
    return total / counts.sum(axis=1)
