"""From the definitions to what the paper's code does, one change at a time, and back: the vulnerabilities of Tables 1
and 2 on every rung (arXiv 2110.15053). `rungs` reads them.

A rung is a set of `fidelity.CHANGES`. One ladder adds them in their order; the other begins with all of them and takes
them away in the same order, so that every change is seen among definitions and among published behaviours.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pandas as pd

from mtrlib import metrics, training
from mtrlib.metrics import tables
from mtrlib.progress import bar
from mtrlib.specs import Evaluation
from mtrlib.store import Store
from mtrlib.studies import fidelity
from mtrlib.studies.cells import Cell
from mtrlib.studies.fidelity import CHANGES
from mtrlib.studies.parameters import Fidelity
from mtrlib.tasks import canonical

TABLES = {
    ("uniform", "pgd"): "Table 1 A",
    ("published", "pgd"): "Table 1 B",
    ("uniform", "wgd"): "Table 2 A, WGD",
    ("published", "wgd"): "Table 2 B, WGD",
    ("uniform", "l2"): "l2, 8/255",
}
_L2 = {"l2": {"norm": "l2"}}
_CODE = ("attacks", "fidelity")  # that decides a run, beside what decides its model
_BUDGET = 4.0  # of PGD with "eps 4", in 255ths


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
        evaluation = Evaluation(model=model, attack=p.attack(attacked, images=images, **attack), epoch=epoch)
        auxiliary = model.tasks.replace(main, "") or main
        found.append(Cell(panel, setting, main, auxiliary, _kind(attacked), images, evaluation))

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
        evaluation = Evaluation(model=model, attack=p.attack(model.tasks[0]), epoch=model.epochs)
        found.append(Cell("swapped", "pgd", model.tasks[0], model.tasks[1], "single", p.test_images, evaluation))
    return found


def run(store: Store, p: Fidelity) -> pd.DataFrame:
    """The vulnerabilities of all rungs; what the store lacks is attacked now.

    Returns
    -------
    As `tables.vulnerabilities`, for each rung: ladder, number, change (the one that was added or undone), table, panel,
    setting, attacked, main, auxiliary, value, low, high, replicates.
    """
    wanted = {(c.evaluation, _of_the_run(c, rung)) for rung in steps().values() for c in cells(p, rung)}
    missing = [(e, changes) for e, changes in sorted(wanted, key=str) if not store.has_table(*_run(e, changes), _CODE)]
    if missing:
        with bar(sum(e.attack.images * e.attack.steps for e, _ in missing), "attacks", "image-step") as progress:
            for e, changes in missing:
                measured(store, e, changes)
                progress.update(e.attack.images * e.attack.steps)
    frames, known = [], {}
    names = ["definitions", *CHANGES]
    for (ladder, number), changes in steps().items():
        if changes not in known:
            known[changes] = vulnerabilities(store, p, changes)
        change = names[number] if ladder == "adding" or number else "all published"
        frames.append(known[changes].assign(ladder=ladder, number=number, change=change))
    return pd.concat(frames, ignore_index=True)


def measured(store: Store, evaluation: Evaluation, changes: frozenset[str], heads: str | None = None) -> pd.DataFrame:
    """`fidelity.errors` of a model of the store, kept there in the folder `fidelity`; `heads` are the tasks that its
    heads serve where they are loaded by position."""
    spec, attack = evaluation.model, evaluation.attack

    def make() -> pd.DataFrame:
        model, data = store.model(spec, evaluation.epoch), store.data(spec, "test", attack.images)
        model = model if heads is None else fidelity.by_position(model, heads)
        return fidelity.errors(model, data, attack, changes, precision=spec.precision, device=store.device)

    return store.table(*_run(evaluation, changes, heads), make, _CODE)


def vulnerabilities(store: Store, p: Fidelity, changes: frozenset[str]) -> pd.DataFrame:
    """The vulnerabilities of one rung, as `run` returns them. All cells of as many images share their draws."""
    groups: dict[tuple, list[tuple[Cell, pd.DataFrame]]] = {}
    for c in cells(p, changes):
        rows = _read(measured(store, c.evaluation, _of_the_run(c, changes)), c.main, changes)
        groups.setdefault((c.panel, c.setting, c.attacked, c.main, c.auxiliary), []).append((c, rows))
    found = []
    for key, seeds in groups.items():
        clean, adversarial = (np.stack([rows[kind].error for _, rows in seeds]) for kind in ("clean", "adversarial"))
        if "means" in changes and key[3] == "s":
            value, drawn = _of_batches([rows for _, rows in seeds], p.replicates)
        else:
            reduction = "ratio_of_means" if "means" in changes else "per_image"
            pairs = zip(clean, adversarial, strict=True)
            value = np.mean([metrics.relative_task_vulnerability(c, a, reduction) for c, a in pairs])
            drawn = metrics.bootstrap(clean, adversarial, reduction, replicates=p.replicates)
        low, high = metrics.interval(drawn)
        row = {"value": float(value), "low": float(low), "high": float(high), "images": clean.shape[1]}
        found.append({"table": TABLES[key[:2]], **dict(zip(tables.CELL, key, strict=True)), **row, "replicates": drawn})
    return pd.DataFrame(found)


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
            evaluation = Evaluation(model=spec, attack=p.attack(task), epoch=spec.epochs)
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


def _kind(attacked: str) -> str:
    return "single" if len(attacked) == 1 else "joint"


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


def _of_batches(seeds: list[dict[str, pd.DataFrame]], replicates: int) -> tuple[float, np.ndarray]:
    """The ratio of means for s, whose errors are 1 - mIoU of whole batches, and its replicates: those of the images
    drawn, in the order of `metrics.bootstrap`, each counted in its batch as often as it was drawn."""
    number = len(seeds[0]["clean"])
    generator = np.random.default_rng(0)
    counts = generator.multinomial(number, np.full(number, 1 / number), size=replicates)
    counts = np.concatenate([np.ones((1, number), int), counts])
    by_seed = []
    for rows in seeds:
        clean, adversarial = (_batch_errors(rows[kind], counts) for kind in ("clean", "adversarial"))
        by_seed.append((adversarial - clean) / clean)
    by_seed = np.stack(by_seed, axis=1)
    value, drawn = by_seed[0].mean(), by_seed[1:]
    many = len(seeds)
    shares = np.ones((replicates, 1))
    if many > 1:
        shares = generator.multinomial(many, np.full(many, 1 / many), size=replicates) / many
    return float(value), (drawn * shares).sum(axis=1)


def _batch_errors(rows: pd.DataFrame, counts: np.ndarray) -> np.ndarray:
    """(R, N) how often each image counts -> (R,): mean over the images of 1 - mIoU of their batch, over the classes
    that are labelled or predicted in it."""
    total = np.zeros(len(counts))
    batch = rows.batch.to_numpy()
    for number in np.unique(batch):
        here = batch == number
        both, either = (counts[:, here] @ np.stack(rows[name].to_numpy()[here]) for name in ("intersection", "union"))
        seen = either > 0
        iou = np.where(seen, both / np.maximum(either, 1), 0).sum(axis=1) / np.maximum(seen.sum(axis=1), 1)
        total += counts[:, here].sum(axis=1) * (1 - iou)
    return total / counts.sum(axis=1)
