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

from mtrlib.progress import bar
from mtrlib.specs import AttackSpec, Evaluation, ModelSpec
from mtrlib.store import Store
from mtrlib.studies.parameters import RQ1, RQ2, RQ3, RQ4, NewDataset, Study
from mtrlib.tasks import canonical


@dataclass(frozen=True)
class Cell:
    """One cell of a table of the paper.

    Attributes
    ----------
    panel : which table or figure it belongs to.
    setting : the value that the panel varies, such as an eps.
    main, auxiliary : letters; the same letter is the single-task model.
    attacked : "single" (only the main task is attacked) or "joint" (both are).
    images : how many of the attack's images count, the first ones.
    evaluation : the model, the attack and the epoch.
    """

    panel: str
    setting: str | float
    main: str
    auxiliary: str
    attacked: str
    images: int
    evaluation: Evaluation


def rq1(p: RQ1) -> list[Cell]:
    """Everything that RQ1 needs: the table main x auxiliary, all pairs of `p.figure_tasks` (panel "pairs"), and the
    panels on norm, eps, attack steps, encoders and epochs.

    Those two and "encoders" use all test images, the others the first `p.panel_images`. A step is the same share of the
    budget in every panel.
    """

    def cells(
        panel: str,
        setting: str | float,
        images: int,
        tasks: str = p.tasks,
        epoch: int | None = None,
        encoder: str | None = None,
        **changes,
    ) -> Iterator[Cell]:
        for seed in p.seeds:
            for model, attacked, mains in _pairs(p, tasks, seed, encoder):
                base = p.attack(attacked)
                wanted = {**base.model_dump(), **changes}
                wanted["step_size_255"] = base.step_size_255 * wanted["eps_255"] / base.eps_255
                if wanted != base.model_dump() or epoch is not None:
                    wanted["images"] = images
                at = model.epochs if epoch is None else epoch
                evaluation = Evaluation(model=model, attack=AttackSpec(**wanted), epoch=at)
                for main in mains:
                    auxiliary = model.tasks.replace(main, "") or main
                    kind = "single" if len(attacked) == 1 else "joint"
                    yield Cell(panel, setting, main, auxiliary, kind, images, evaluation)

    matched = matched_l2_eps_255(p.eps_255, p.size)
    found = [*cells("table", "linf", p.test_images)]
    found += cells("pairs", "linf", p.test_images, tasks=p.figure_tasks)
    found += cells("norm", "linf", p.panel_images)
    found += cells("norm", "l2, nominal", p.panel_images, norm="l2")
    found += cells("norm", "l2, matched", p.panel_images, norm="l2", eps_255=matched)
    for eps in p.eps_panel:
        found += cells("eps", eps, p.panel_images, eps_255=float(eps))
    for steps in p.steps_panel:
        found += cells("steps", steps, p.panel_images, steps=steps)
    for encoder in p.encoders:
        found += cells("encoders", encoder, p.test_images, encoder=encoder)
    checkpoints = p.model(p.tasks[0]).checkpoints
    for epoch in checkpoints:
        found += cells("epochs", epoch, p.panel_images, epoch=None if epoch == checkpoints[-1] else epoch)
    return found


def rq2(p: RQ2) -> list[Cell]:
    """Everything that RQ2 needs.

    Panels: "linf" and "l2" (of the matched budget), every set of tasks of one model of all tasks, the budget in 255ths
    of linf as setting; "chains", models of the beginnings of `p.orders`, each attacked on all of its tasks.
    """
    tasks = canonical(p.tasks)
    found = []

    def cell(panel, setting, model, attacked, **changes) -> Cell:
        evaluation = Evaluation(model=model, attack=p.attack(attacked, **changes), epoch=model.epochs)
        kind = "single" if len(attacked) == 1 else "joint"
        return Cell(panel, setting, attacked[0], attacked[1:] or attacked, kind, changes["images"], evaluation)

    for seed in p.seeds:
        model = p.model(tasks, seed)
        for eps in dict.fromkeys((p.eps_255, *p.eps_panel)):
            images = p.test_images if eps == p.eps_255 else p.panel_images
            step = p.step_size_255 / p.eps_255
            for norm in ("linf", "l2"):
                budget = eps if norm == "linf" else matched_l2_eps_255(eps, p.size)
                attack = {"norm": norm, "eps_255": budget, "step_size_255": step * budget, "images": images}
                found += [cell(norm, eps, model, attacked, **attack) for attacked in subsets(tasks)]
        beginnings = (canonical(chain[:k]) for chain in p.orders for k in range(1, len(chain) + 1))
        for begun in dict.fromkeys(beginnings):
            found.append(cell("chains", p.eps_255, p.model(begun, seed), begun, images=p.test_images))
    return found


def rq4(p: RQ4) -> list[Cell]:
    """Everything that RQ4 needs: the table main x auxiliary of the expensive value and of its proxies.

    Panels: "target", PGD on the trained models; "early", after the first third of the training; "fgsm", one step;
    "surrogate", PGD on the cheaper encoder. The other proxies need no attack, or fewer images of the target's.
    """
    found = []
    variants = {"target": {}, "early": {}, "fgsm": {"name": "fgsm"}, "surrogate": {}}
    for panel, changes in variants.items():
        for seed in p.seeds:
            for model, attacked, mains in _pairs(p, p.tasks, seed, p.surrogate if panel == "surrogate" else None):
                epoch = model.checkpoints[0] if panel == "early" else model.epochs
                evaluation = Evaluation(model=model, attack=p.attack(attacked, **changes), epoch=epoch)
                kind = "single" if len(attacked) == 1 else "joint"
                for main in mains:
                    auxiliary = model.tasks.replace(main, "") or main
                    found.append(Cell(panel, "linf", main, auxiliary, kind, p.test_images, evaluation))
    return found


def new_dataset(p: NewDataset) -> list[Cell]:
    """The table main x auxiliary alone, as panel "table"."""
    found = []
    for seed in p.seeds:
        for model, attacked, mains in _pairs(p, p.tasks, seed):
            evaluation = Evaluation(model=model, attack=p.attack(attacked), epoch=model.epochs)
            kind = "single" if len(attacked) == 1 else "joint"
            for main in mains:
                auxiliary = model.tasks.replace(main, "") or main
                found.append(Cell("table", "linf", main, auxiliary, kind, p.test_images, evaluation))
    return found


def subsets(tasks: str) -> list[str]:
    """Every set of one or more of the tasks, in the paper's order."""
    letters = canonical(tasks)
    return ["".join(chosen) for size in range(1, len(letters) + 1) for chosen in combinations(letters, size)]


# With one attacked task the weights that these give it change nothing: they are the attack on the right.
ALONE = {"wgd": "pgd", "wgd_inverse": "pgd", "dgba": "pgd", "wgd_apgd": "apgd"}


def rq3(p: RQ3) -> list[Cell]:
    """Everything that RQ3 needs.

    Panels: for each way to weight the tasks, under its name, the table main x auxiliary with the attack as setting;
    "dense", attacks for dense classes on s alone; "masking <weights>", what the search for masked gradients compares.
    The single-task models stand in the table of every weighting.
    """
    tasks = canonical(p.tasks)

    def cell(panel, setting, model, main, attacked, attack, images, source=None) -> Cell:
        auxiliary = model.tasks.replace(main, "") or main
        kind = "single" if len(attacked) == 1 else "joint"
        evaluation = Evaluation(model=model, attack=attack, epoch=model.epochs, source=source)
        return Cell(panel, setting, main, auxiliary, kind, images, evaluation)

    found = []
    for seed in p.seeds:
        alone = {main: p.model(main, seed) for main in tasks}
        for weights in p.weightings:
            for name in p.attacks:
                for main in tasks:
                    of_one = p.attack(main, name=ALONE.get(name, name))
                    found.append(cell(weights, name, alone[main], main, main, of_one, p.test_images))
                    for auxiliary in tasks.replace(main, ""):
                        if not p.has_weights(weights, main + auxiliary):
                            continue
                        model = p.pair(main + auxiliary, seed, weights)
                        found.append(cell(weights, name, model, main, main, of_one, p.test_images))
                        of_both = p.attack(model.tasks, name=name)
                        found.append(cell(weights, name, model, main, model.tasks, of_both, p.test_images))
        if "s" in tasks:
            for name in ("pgd", "apgd", "segpgd", "cospgd"):
                for pair in ("s", *(canonical("s" + auxiliary) for auxiliary in tasks.replace("s", ""))):
                    of_s = p.attack("s", name=name)
                    found.append(cell("dense", name, p.model(pair, seed), "s", "s", of_s, p.test_images))
    for pair in p.searched:
        for weights in [weights for weights in ("uniform", "published") if p.has_weights(weights, pair)]:
            model = p.pair(pair, p.seeds[0], weights)
            letters = model.tasks
            source = p.pair(pair, max(p.seeds) + 1, "uniform")
            few = {"images": p.panel_images}
            compared = {
                "pgd": p.attack(letters),
                "many steps": p.attack(letters, steps=p.many_steps, **few),
                "one step": p.attack(letters, name="fgsm", **few),
                "apgd": p.attack(letters, name="apgd"),
                "square": p.attack(letters, name="square", steps=p.square_queries, **few),
            }
            for name, eps in {"4 eps": 4 * p.eps_255, "16 eps": 16 * p.eps_255, "eps 1": 255.0}.items():
                compared[name] = p.attack(letters, eps_255=eps, step_size_255=eps / 4, **few)
            for setting, attack in compared.items():
                panel = f"masking {weights}"
                found.append(cell(panel, setting, model, pair[0], letters, attack, p.panel_images))
            found.append(cell(panel, "transfer", model, pair[0], letters, compared["pgd"], p.panel_images, source))
    return found


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
    """One row a model: what is trained, what is attacked, and what of it the store has already, or was released."""
    rows = []
    for spec in models(cells):
        wanted = [e for e in evaluations(cells) if e.model == spec]
        rows.append(
            {
                "tasks": spec.tasks,
                "encoder": spec.encoder,
                "weights": spec.weights,
                "seed": spec.seed,
                "epochs": spec.epochs,
                "images": spec.images,
                "attacks": len(wanted),
                "trained already": store.has_record(spec),
                "attacked already": sum(store.has_errors(e.model, e.attack, e.epoch, e.source) for e in wanted),
            }
        )
    return pd.DataFrame(rows)


def train(store: Store, cells: list[Cell]) -> pd.DataFrame:
    """Train the models that the store lacks and that were not released. Returns one row a model: tasks, encoder,
    weights, seed, the seconds it took when it was trained, and the last training loss of each task."""
    rows = []
    wanted = models(cells)
    train_models(store, [spec for spec in wanted if not store.has_record(spec)])
    for spec in wanted:
        record = store.record(spec)
        last = record["history"][-1]
        losses = {f"loss {letter}": last[letter] for letter in spec.tasks}
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
    missing = [e for e in wanted if not store.has_errors(e.model, e.attack, e.epoch, e.source)]
    if missing:
        train_models(store, [spec for e in missing for spec in (e.model, e.source) if spec is not None])
        with bar(sum(e.attack.images * e.attack.steps for e in missing), "attacks", "image-step") as progress:
            for e in missing:
                advance = partial(_advance, progress, e.attack.steps)
                store.errors(e.model, e.attack, e.epoch, advance, e.source)


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
    tables = {e: _with_attacked_losses(store.errors(e.model, e.attack, e.epoch, source=e.source), e) for e in wanted}
    frames = []
    for cell in cells:
        rows = tables[cell.evaluation]
        rows = rows[rows.task == cell.main].head(cell.images)
        frames.append(
            rows.assign(
                panel=cell.panel,
                setting=cell.setting,
                main=cell.main,
                auxiliary=cell.auxiliary,
                attacked=cell.attacked,
            )
        )
    return pd.concat(frames, ignore_index=True)


def _advance(progress, steps: int, images: int) -> None:
    progress.update(steps * images)


def _with_attacked_losses(rows: pd.DataFrame, e: Evaluation) -> pd.DataFrame:
    """The losses that the attack raised, the sum over its tasks, beside the rows of each image."""
    attacked = rows[rows.task.isin(list(e.attack.tasks))].groupby("image_id")
    for kind in ("clean", "adversarial"):
        rows[f"{kind}_attacked_loss"] = rows.image_id.map(attacked[f"{kind}_loss"].sum())
    return rows


def _pairs(p: Study, tasks: str, seed: int, encoder: str | None = None) -> Iterator[tuple[ModelSpec, str, str]]:
    """Every model of one or two tasks, what is attacked, and the main tasks read from it. Uniform weights do not tell
    main from auxiliary: s with d and d with s are one model, named in the paper's order."""
    tasks = canonical(tasks)
    for letter in tasks:
        yield p.model(letter, seed, encoder=encoder), letter, letter
    for first, second in combinations(tasks, 2):
        pair = p.model(first + second, seed, encoder=encoder)
        yield from ((pair, first, first), (pair, second, second), (pair, first + second, first + second))
