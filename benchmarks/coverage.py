"""Whether verdicts can be trusted: made errors tables of known truth through the library's own claims.

    python benchmarks/coverage.py [--tables 200] [--output coverage.csv]

The log ratio of an image is that of its cell and the terms of `TERMS`: of the image, of image and model, of the
training, of what all trainings of a seed share, and of the rest. "heavy" draws the terms of images from Student's t
with 3 degrees of freedom, and clean errors that come near 0, as those of occlusion edges do. Columns of the table:

    covered   share of nominal 95 % intervals that hold the truth, of all images and trainings; of one number, or of a
              finding (all findings of a call together, by Holm)
    false     share of tables with a verdict on the claim that is not that of the same table without any noise
    decided   share of tables with a verdict at all: where there is something to find, the power
"""

from __future__ import annotations

import argparse
from functools import cache
from itertools import combinations, product
from pathlib import Path

import attack_cost
import numpy as np
import pandas as pd
from scipy.stats import t as student

from mtrlib import claims
from mtrlib.claims import judging
from mtrlib.metrics import estimates
from mtrlib.tasks import canonical

TASKS = "sdnDE"
TRAINING = {
    "s": 0.035,
    "n": 0.078,
    "d": 0.23,
    "D": 0.15,
    "E": 0.2,
}  # sd of a training's log ratio, on rooms
TRUTHS = {"no effect": (1, 1), "raised by 10 %": (1.0999, 1.0999), "lowered by 10 %": (0.9, 0.9), "mixed": (0.7, 1.3)}
TERMS = (  # whose it is, seeds and images it differs over, standard deviation (of seeds alone: times TRAINING)
    ("main", "image", 0.5),
    ("training", "image", 0.25),
    ("model", "image", 0.17),
    ("cell", "image", 0.1),
    ("training", "seed", 0.8),
    ("model", "seed", 0.5),
    ("cell", "seed", 0.3),
    ("main", "seed", 0.5),  # what all models of a seed share
    ("training", "both", 0.1),
    ("cell", "both", 0.05),
)
CLEAN = (("main", "image", 0.5), ("training", "image", 0.1), ("training", "seed", 0.2))  # of the log clean error
LOAD = -0.5  # of the log clean error on the log ratio: what is large already grows less
PANELS = {  # by design: panel, setting, the zoo of models, log of the attack's strength
    "rq1": (
        ("table", "linf", "main", 1.5),
        ("norm", "l2, matched", "main", 1.2),
        *(("eps", eps, "main", 0.5 + 1.2 * np.log(eps / 4)) for eps in (4.0, 8.0, 16.0)),
        ("encoders", "resnet50", "large", 1.5),
        *(("steps", steps, "main", strength) for steps, strength in ((5, 1.0), (15, 1.4), (25, 1.5))),
    ),
    "rq3": tuple(
        (weights, attack, weights, strength)
        for weights in ("uniform", "published")
        for attack, strength in (("pgd", 1.5), ("apgd", 1.6))
    ),
    "rq4": (
        ("target", "linf", "main", 1.5),
        ("early", "linf", "early", 1.2),
        ("surrogate", "linf", "small", 1.4),
        ("fgsm", "linf", "main", 0.8),
    ),
}
LEVELS = ["panel", "setting", "attacked", "main", "auxiliary"]


@cache
def cells(design: str, tasks: str, truth: str) -> pd.DataFrame:
    """The cells of a study: `LEVELS`, whose training and model they are, and log, the true mean log ratio."""
    rows, effects = [], np.log(TRUTHS.get(truth, (1, 1)))
    for (panel, setting, zoo, log), main, auxiliary in product(PANELS[design], tasks, tasks):
        later, own = tasks.index(auxiliary) > tasks.index(main), "main" if main == auxiliary else zoo
        if design == "rq4":  # the target has an order; what a proxy sees of it
            seen = truth != "all alike" and (panel == "target" or truth == "proxies know")
            log = log + seen * 0.25 * ((tasks.index(auxiliary) + 2 * tasks.index(main)) % len(tasks))
            own = zoo
        elif main != auxiliary and zoo != "uniform":
            log = log + effects[int(later)]
        for attacked in ("single", "joint") if main != auxiliary and design != "rq4" else ("single",):
            training = "main" if own == "early" else own  # an early stop is the same training
            whose = training + main + auxiliary, own + main + auxiliary
            rows.append((panel, setting, attacked, main, auxiliary, *whose, log))
    table = pd.DataFrame(rows, columns=[*LEVELS, "training", "model", "log"])
    return table.assign(cell=np.arange(len(table)))


@cache
def sets(tasks: str, chains: bool) -> pd.DataFrame:
    """The sets of tasks of RQ2, attacked in one model of all, or each in its own (`chains`)."""
    every = [canonical("".join(names)) for k in range(1, len(tasks) + 1) for names in combinations(tasks, k)]
    size = dict(zip(TASKS, (3.0, 1.0, 0.6, 0.8, 1.5), strict=True))
    table = pd.DataFrame({"attacked_tasks": every, "panel": "chains" if chains else "linf", "setting": 8.0})
    table = table.assign(attacked="joint", main="d", auxiliary=[name[-1] for name in every])
    log = [0.9 * np.log(sum(size[letter] for letter in name)) for name in every]
    model = table.attacked_tasks if chains else "one"
    return table.assign(training=model, model=model, log=log, cell=np.arange(len(table)))


@cache
def frame(design: str, tasks: str, truth: str, seeds: int, images: int) -> pd.DataFrame:
    """The errors table but for its errors."""
    table = sets(tasks, truth == "chains") if design == "rq2" else cells(design, tasks, truth)
    about = table[[name for name in (*LEVELS, "attacked_tasks") if name in table]]
    about = about.loc[np.repeat(about.index, seeds * images)].reset_index(drop=True)
    one = {"seed": np.repeat(np.arange(seeds), images), "image_id": np.tile(np.arange(images), seeds)}
    return about.assign(**{name: np.tile(values, len(table)) for name, values in one.items()})


def simulate(g, design: str, tasks: str, truth: str, seeds: int, images: int, heavy=False, noise=1.0) -> pd.DataFrame:
    """An errors table of a study with a known truth; without noise it is the truth."""
    table = sets(tasks, truth == "chains") if design == "rq2" else cells(design, tasks, truth)
    of_main = table.main.map(TRAINING).to_numpy()

    def drawn(terms) -> np.ndarray:
        total = np.zeros((len(table), seeds, images))
        for owner, over, spread in terms:
            codes, names = pd.factorize(table[owner])
            shape = (len(names), 1 if over == "image" else seeds, 1 if over == "seed" else images)
            scale = noise * spread * (of_main[:, None, None] if over == "seed" else 1.0)
            total += scale * draw(g, shape, heavy and over != "seed")[codes]
        return total

    clean = drawn(CLEAN)
    if heavy:
        codes, names = pd.factorize(table.main)
        clean += noise * (1 - g.standard_exponential((len(names), 1, images))[codes])
    log = table.log.to_numpy()[:, None, None] + drawn(TERMS)
    errors = frame(design, tasks, truth, seeds, images)
    if design == "rq2":
        losses = {"clean_attacked_loss": 1.0, "adversarial_attacked_loss": 1.0 + np.exp(log).ravel()}
        return errors.assign(clean_error=1.0, adversarial_error=1.0, **losses)
    log += LOAD * clean
    return errors.assign(clean_error=np.exp(clean - 3).ravel(), adversarial_error=np.exp(clean - 3 + log).ravel())


def draw(g, shape: tuple[int, ...], heavy: bool) -> np.ndarray:
    """Numbers of mean 0 and about unit variance: normal, or of Student's t with 3 degrees of freedom, cut at 6."""
    return np.clip(g.standard_t(3, shape) / np.sqrt(3), -6, 6) if heavy else g.standard_normal(shape)


@cache
def moment(quantity: str, main: str, heavy: bool) -> float:
    """What noise makes of a mean: E exp of the noise in the clean error, the adversarial error or their ratio."""
    log, clean = {"clean_error": (0, 1), "adversarial_error": (1, 1), "ratio": (1, 0)}[quantity]
    terms = [(over, log * spread) for _, over, spread in TERMS]
    terms += [(over, (clean + log * LOAD) * spread) for _, over, spread in CLEAN]
    near = np.exp(clean + log * LOAD) / (1 + clean + log * LOAD) if heavy else 1.0
    return near * float(np.prod([
        np.exp(spread * (TRAINING[main] if over == "seed" else 1) * drawn_once(heavy and over != "seed")).mean()
        for over, spread in terms
    ]))  # fmt: skip


@cache
def drawn_once(heavy: bool) -> np.ndarray:
    return draw(np.random.default_rng(1), (500_000,), heavy)


def truth_of(quantity: str, index: pd.MultiIndex, logs: pd.Series, heavy: bool) -> np.ndarray:
    """The mean over all images and trainings of a quantity of cells."""
    log, of = logs.loc[index].to_numpy(), lambda what: np.array([moment(what, main, heavy) for main in mains])  # noqa: E731
    mains = index.get_level_values("main")
    clean, adversarial = of("clean_error"), of("adversarial_error") * np.exp(log)
    return {
        "log_ratio": lambda: log,
        "ratio": lambda: of("ratio") * np.exp(log) - 1,
        "ratio_of_means": lambda: adversarial / clean - 1,
        "clean_error": lambda: np.exp(-3) * clean,
        "adversarial_error": lambda: np.exp(-3) * adversarial,
    }[quantity]()


def intervals(g, tables: int, tasks: str, seeds: int, images: int, heavy: bool) -> list[dict]:
    """Coverage of the 95 % intervals of single numbers, of weights and attacks with a mixed effect."""
    hits: dict[str, list[float]] = {}
    known = cells("rq3", tasks, "mixed").set_index(LEVELS).log

    def count(what: str, table: pd.DataFrame, truth) -> None:
        if "low" not in table:
            reach = student.isf(0.025, table.freedom) * table.error
            table = pd.DataFrame({"low": table.value - reach, "high": table.value + reach})
        hits.setdefault(what, []).append(float(np.mean((table.low <= truth) & (truth <= table.high))))

    for _ in range(tables):
        errors = simulate(g, "rq3", tasks, "mixed", seeds, images, heavy)
        errors = errors[errors.attacked == "single"]
        cell = estimates.estimates(errors)
        plain = cell[cell.index.get_level_values("setting") == "pgd"]
        pairs = cell[cell.index.get_level_values("main") != cell.index.get_level_values("auxiliary")]
        weights = estimates.beside(plain[plain.index.isin(pairs.index)], panel="uniform")
        attacks = estimates.beside(pairs, setting="pgd")
        alone = estimates.beside(plain, auxiliary="")
        true = {k: known.loc[a.index].to_numpy() - known.loc[b.index].to_numpy()
                for k, (a, b) in {"weights": weights, "attacks": attacks, "alone": alone}.items()}  # fmt: skip
        count("two models", estimates.compared(*weights), true["weights"])
        count("a model and that of one task", estimates.compared(*alone), true["alone"])
        count("two attacks on the same models", estimates.compared(*attacks, same_models=True), true["attacks"])
        for what, (a, b), truth in (("models", weights, true["weights"]), ("attacks", attacks, true["attacks"])):
            mean = pd.DataFrame(a.to_numpy() - b.to_numpy(), columns=a.columns).mean().to_frame().T
            count(f"mean over cells of two {what}", estimates.uncertainty(mean), truth.mean())
        for quantity in [name for name in estimates.QUANTITIES if name != "absolute"]:
            table = estimates.estimates(errors, quantity)
            count(quantity, estimates.interval(table, quantity=quantity), truth_of(quantity, table.index, known, heavy))
    about = {"truth": "mixed", "tasks": len(tasks), "seeds": seeds, "images": images}
    about |= {"errors": "heavy" if heavy else "normal", "tables": tables}
    return [{"of": what, **about, "covered": np.mean(h)} for what, h in hits.items()]


def verdicts(g, tables: int, design: str, truth: str, tasks: str, seeds: int, images: int, heavy: bool) -> list[dict]:
    """Coverage of the findings of a study, and by claim false verdicts and decided ones."""
    with np.errstate(divide="ignore", invalid="ignore"):  # models that are all alike do not spread, nor is one best
        sure = claims.findings(design, simulate(g, design, tasks, truth, 3, 4, noise=0.0))
    right = {number: judging.verdict(rows) for number, rows in sure.groupby("number")}
    true = sure.set_index(["number", "where"]).estimate
    hits, told = {}, {}
    for _ in range(tables):
        found = claims.findings(design, simulate(g, design, tasks, truth, seeds, images, heavy))
        for name, rows in found.groupby("number"):
            told.setdefault(name, []).append(judging.verdict(rows))
        found = found.set_index(["number", "where"])
        known = true.reindex(found.index).dropna()
        found = found.loc[known.index]
        inside = (found.low - 1e-9 <= known) & (known <= found.high + 1e-9)
        for (name, where), hit in inside.items():
            hits.setdefault(f"{name}, {where.split(': ')[-1]}", []).append(hit)
    about = {"truth": truth, "tasks": len(tasks), "seeds": seeds, "images": images}
    about |= {"errors": "heavy" if heavy else "normal", "tables": tables}
    rows = [{"of": what, **about, "covered": np.mean(h)} for what, h in hits.items()]
    for name, found in told.items():
        decided = [verdict for verdict in found if verdict != judging.OPEN]
        so = right.get(name, judging.OPEN)
        so = judging.DISAGREES if so == judging.OPEN else so  # tasks that are all alike: there is nothing to know
        wrong = [verdict for verdict in decided if verdict != so]
        rows.append({"of": f"claim {name}", **about, "false": len(wrong) / tables, "decided": len(decided) / tables})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tables", type=int, default=200, help="made tables a setting")
    parser.add_argument("--output", type=Path, help="a CSV")
    options = parser.parse_args()
    g, rows = np.random.default_rng(0), []
    for setting in SIZES:
        rows += intervals(g, options.tables, *setting)
    for setting in STUDIES:
        rows += verdicts(g, options.tables, *setting)
    table = pd.DataFrame(rows)
    print(table.to_string(index=False, float_format="{:.3f}".format))
    if options.output:
        attack_cost.write(table, options.output)


SIZES = (  # tasks, seeds, images, heavy
    (TASKS, 2, 64, True),
    ("sdn", 3, 12, True),
    ("sdn", 3, 256, False),
    (TASKS, 3, 64, True),
    ("sd", 5, 64, True),
)
STUDIES = (  # design, truth, tasks, seeds, images, heavy
    ("rq1", "no effect", "sdn", 1, 64, True),
    ("rq1", "mixed", TASKS, 2, 64, True),
    ("rq1", "no effect", "sdn", 3, 12, True),
    ("rq1", "lowered by 10 %", "sdn", 3, 64, True),
    ("rq1", "mixed", "sdn", 3, 64, True),
    ("rq1", "mixed", "sdn", 10, 64, True),
    ("rq3", "mixed", "sdn", 2, 64, True),
    ("rq3", "no effect", "sdn", 3, 64, True),
    ("rq3", "lowered by 10 %", "sdn", 5, 64, True),
    ("rq4", "proxies know", "sdn", 3, 64, True),
    ("rq4", "proxies know nothing", "sdn", 3, 64, True),
    ("rq4", "all alike", TASKS, 3, 64, True),
    ("rq2", "one model", "sdn", 3, 64, True),
    ("rq2", "chains", "sdn", 5, 64, True),
)

if __name__ == "__main__":
    main()
