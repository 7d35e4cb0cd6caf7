"""From the definitions to what the paper's code does, one change at a time, and back: how vulnerabilities, their order
and the verdicts on claims of RQ1 and RQ3 move (paper, Tables 1 and 2; arXiv 2110.15053).

A rung is a set of `fidelity.CHANGES`. One ladder adds them in their order; the other begins with all of them and takes
them away in the same order, so that every change is seen among definitions and among published behaviours.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable

import numpy as np
import pandas as pd

from mtrlib import claims, fidelity, metrics, tables
from mtrlib.fidelity import CHANGES
from mtrlib.parameters import Fidelity
from mtrlib.progress import bar
from mtrlib.specs import Evaluation
from mtrlib.store import Store
from mtrlib.studies import Cell
from mtrlib.tasks import canonical

TABLES = {
    ("uniform", "pgd"): "Table 1 A",
    ("published", "pgd"): "Table 1 B",
    ("uniform", "wgd"): "Table 2 A, WGD",
    ("published", "wgd"): "Table 2 B, WGD",
    ("uniform", "l2"): "l2, 8/255",
}
DEFINITIONS, PUBLISHED = frozenset(), frozenset(CHANGES)
MUCH, WITHIN = 1.5, 0.2  # how RQ3 reads "much stronger" and "as vulnerable"
_L2 = {"l2": {"norm": "l2"}}
_BUDGET = 4.0  # of PGD with "eps 4", in 255ths


def rungs() -> dict[tuple[str, int], frozenset[str]]:
    """The rungs by ladder ("adding" from the definitions, "undoing" from all published behaviours) and number."""
    names = list(CHANGES)
    found = {("adding", number): frozenset(names[:number]) for number in range(len(names) + 1)}
    return found | {("undoing", number): frozenset(names[number:]) for number in range(len(names) + 1)}


def cells(p: Fidelity, changes: Iterable[str] = ()) -> list[Cell]:
    """What a rung attacks: panel "uniform" or "published" weights, setting "pgd", "wgd" or "l2".

    WGD on one task is PGD with WGD's budget; only joint WGD is another attack. Changes that only read a run otherwise
    give the same cells.
    """
    changes = fidelity.check(changes)
    found = []

    def cell(panel, setting, model, main, attacked, **attack) -> None:
        if setting != "wgd" and "eps 4" in changes:
            attack["eps_255"] = _BUDGET
        images = p.panel_images if setting == "l2" else p.test_images
        third = "third" in changes and model.weights == "published"
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
    wanted = {(c.evaluation, _of_the_run(c, rung)) for rung in rungs().values() for c in cells(p, rung)}
    missing = [(e, changes) for e, changes in sorted(wanted, key=str) if not _file(store, e, changes).exists()]
    if missing:
        with bar(sum(e.attack.images * e.attack.steps for e, _ in missing), "attacks", "image-step") as progress:
            for e, changes in missing:
                measured(store, e, changes)
                progress.update(e.attack.images * e.attack.steps)
    frames, known = [], {}
    names = ["definitions", *CHANGES]
    for (ladder, number), changes in rungs().items():
        if changes not in known:
            known[changes] = vulnerabilities(store, p, changes)
        change = names[number] if ladder == "adding" or number else "all published"
        frames.append(known[changes].assign(ladder=ladder, number=number, change=change))
    return pd.concat(frames, ignore_index=True)


def measured(store: Store, evaluation: Evaluation, changes: frozenset[str]) -> pd.DataFrame:
    """`fidelity.errors` of a model of the store, kept in its folder `fidelity` by content."""
    path = _file(store, evaluation, changes)
    if not path.exists():
        spec, attack = evaluation.model, evaluation.attack
        model, data = store.model(spec, evaluation.epoch), store.data(spec, "test", attack.images)
        rows = fidelity.errors(model, data, attack, changes, precision=spec.precision, device=store.device)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        rows.to_parquet(temporary, index=False)
        os.replace(temporary, path)
    return pd.read_parquet(path)


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


def verdicts(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of `claims` for one rung of `run`: RQ1's claims 1.1 to 1.3 and RQ3's 3.1 to 3.3, of which Auto-PGD is no
    part, since the published code has none. Claim 3.2 is asked of joint attacks and of single-task models apart."""
    pairs = table[table.main != table.auxiliary]
    compared = tables.against_single_task(table[(table.panel == "uniform") & (table.setting != "wgd")])
    shares = tables.share_less_vulnerable(compared)
    weighted = tables.against(pairs[pairs.setting != "l2"], "panel", "uniform")
    lowered = tables.share_less_vulnerable(weighted)
    stronger = tables.against(table[table.setting != "l2"], "setting", "pgd")
    alone = tables.mean_ratio(stronger[stronger.main == stronger.auxiliary], by=["attacked"])
    together = tables.mean_ratio(stronger[stronger.attacked == "joint"], by=["attacked"])
    same = tables.mean_ratio(weighted[weighted.setting == "wgd"], by=["setting", "attacked"])
    single = compared[(compared.setting == "pgd") & (compared.attacked == "single")]
    told = {
        "1.1": claims.shares(shares[shares.setting == "l2"], "1.1", 0.5, "above"),
        "1.2": claims.shares(shares[shares.setting == "pgd"], "1.2", claims.RELIABLE, "below"),
        "1.3": claims.never_helps(single, "1.3"),
        "3.1": claims.shares(lowered[lowered.setting == "pgd"], "3.1", claims.RELIABLE, "above"),
        "3.2 two tasks": claims.stronger(together, "3.2", MUCH),
        "3.2 one task": claims.stronger(alone, "3.2", MUCH),
        "3.3": claims.equivalent(same, "3.3", WITHIN),
    }
    return pd.concat([rows.assign(claim=claim) for claim, rows in told.items()], ignore_index=True)


def climb(table: pd.DataFrame) -> pd.DataFrame:
    """`verdicts` of every rung of `run`, with its ladder, number and change."""
    rows = []
    for (ladder, number, change), rung in table.groupby(["ladder", "number", "change"], sort=False):
        rows.append(verdicts(rung).assign(ladder=ladder, step=number, change=change))
    return pd.concat(rows, ignore_index=True)


def grid(climbed: pd.DataFrame, ladder: str) -> pd.DataFrame:
    """One verdict a claim and rung of a ladder, of all that `climb` has on it: claims as rows, changes as columns."""
    rows = climbed[climbed.ladder == ladder]
    answers = rows.groupby(["claim", "change"], sort=False).verdict.agg(lambda told: claims.all_of(list(told)))
    return answers.unstack("change").loc[:, list(dict.fromkeys(rows.change))]


def only(climbed: pd.DataFrame) -> pd.Series:
    """For each claim where it stands, from its verdicts at the two ends: in words."""
    ends = pd.DataFrame(
        {"definitions": grid(climbed, "adding").iloc[:, 0], "published": grid(climbed, "undoing").iloc[:, 0]}
    )
    words = {(True, True): "under both", (True, False): "under the definitions only"}
    words |= {(False, True): "under the published behaviour only", (False, False): "under neither"}
    stands = ends == claims.AGREES
    return pd.Series([words[row] for row in stands.itertuples(index=False, name=None)], index=ends.index)


def effects(table: pd.DataFrame) -> pd.DataFrame:
    """What each change does to each table: vulnerabilities with it over those without, and the order of the cells.

    Returns
    -------
    One row a ladder, change and table: ratio (geometric mean over cells), low, high, cells, as `tables.mean_ratio`, and
    tau, tau_low, tau_high, as `agreement` of both. With and without differ in this one change; on the ladder "adding"
    the rest is as defined, but for earlier changes; on "undoing" it is as published, but for earlier ones.
    """
    rows = []
    for ladder, found in table.groupby("ladder", sort=False):
        for number, change in enumerate(CHANGES, start=1):
            before, after = (found[found.number == n] for n in (number - 1, number))
            without, having = (before, after) if ladder == "adding" else (after, before)
            for name in TABLES.values():
                one, other = having[having.table == name], without[without.table == name]
                ratio = _ratio(one, other)
                rows.append({"ladder": ladder, "change": change, "table": name, **ratio, **agreement(one, other)})
    return pd.DataFrame(rows)


def from_definitions(table: pd.DataFrame) -> pd.DataFrame:
    """As `effects`, of each rung against the definitions: columns ladder, number, change, table and those of there."""
    definitions = table[(table.ladder == "adding") & (table.number == 0)]
    rows = []
    for (ladder, number, change, name), rung in table.groupby(["ladder", "number", "change", "table"], sort=False):
        other = definitions[definitions.table == name]
        where = {"ladder": ladder, "number": number, "change": change, "table": name}
        rows.append({**where, **_ratio(rung, other), **agreement(rung, other)})
    return pd.DataFrame(rows)


def agreement(one: pd.DataFrame, other: pd.DataFrame) -> dict[str, float]:
    """Kendall's tau of the cells of two tables, over the pairs of cells of the same main task (tasks differ by more
    than anything else does): tau, and tau_low and tau_high over resampled images. 1 is the same order."""
    keys = ["attacked", "main", "auxiliary"]
    one, other = (rows.sort_values(keys) for rows in (one, other))
    main = one.main.to_numpy()
    first, second = np.triu_indices(len(main), 1)
    pairs = main[first] == main[second]
    first, second = first[pairs], second[pairs]

    def tau(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return np.mean(np.sign(x[first] - x[second]) * np.sign(y[first] - y[second]), axis=0)

    drawn = tau(*(np.stack(rows.replicates.to_list()) for rows in (one, other)))
    low, high = metrics.interval(drawn)
    value = tau(one.value.to_numpy(), other.value.to_numpy())
    return {"tau": float(value), "tau_low": float(low), "tau_high": float(high)}


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
        model, data = store.model(spec), store.data(spec, "test", p.test_images)
        try:
            other = fidelity.by_position(model, spec.tasks[::-1])
        except ValueError:
            other = None
        for task in spec.tasks:
            row = {"pair": spec.tasks, "task": task, "loads": "fails" if other is None else "with swapped heads"}
            for end, network in (("", model), ("_swapped", other)):
                if network is not None:
                    options = {"precision": spec.precision, "device": store.device}
                    found = _read(fidelity.errors(network, data, p.attack(task), **options), task, DEFINITIONS)
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
            found = measured(store, c.evaluation, DEFINITIONS).query("counted == 'masked'")
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
    matter = {"start": True, "batch l2": attack.norm == "l2", "class weights": "s" in attack.tasks}
    matter["constant WGD"] = attack.name == "wgd"
    return frozenset(name for name, does in matter.items() if does and name in changes)


def _file(store: Store, evaluation: Evaluation, changes: frozenset[str]):
    content = json.dumps([evaluation.key, sorted(changes), fidelity.BATCH])
    return store.path / "fidelity" / f"{hashlib.sha256(content.encode()).hexdigest()[:16]}.parquet"


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


def _ratio(one: pd.DataFrame, other: pd.DataFrame) -> dict[str, float]:
    """How many times those of `other` the vulnerabilities of `one` are, as `tables.mean_ratio`."""
    both = pd.concat([one.assign(side="one"), other.assign(side="other")])
    found = tables.mean_ratio(tables.against(both, "side", "other", cells=("side", *tables.CELL)), by=["side"])
    return found.iloc[0].drop("side").to_dict()
