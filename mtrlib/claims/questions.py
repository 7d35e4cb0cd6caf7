"""What the paper claims, asked of an errors table: findings with their verdicts, claim by claim.

Claims and their numbers: `published.claims`. Rules, thresholds and margins: rules.csv. The unit of every comparison is
the log ratio of an image, log(adversarial / clean error).
"""

from collections.abc import Callable, Iterator

import numpy as np
import pandas as pd

from mtrlib.claims import judging
from mtrlib.claims.judging import shares, values
from mtrlib.claims.robust_training import rq5
from mtrlib.claims.sharing import rq6
from mtrlib.claims.task_sets import rq2
from mtrlib.metrics import estimates
from mtrlib.metrics.estimates import against, by, pairs, part

PAPERS = ("resnet18", "resnet50", "xception_small", "wide_resnet50_2", "resnet152")  # the supplement's Tables 2 to 6
LARGE = ("resnet50", "resnet152")  # the encoders of claim 1.5
ADAPTIVE = (("apgd", "single"), ("apgd", "joint"), ("wgd", "joint"))  # WGD on one task is PGD


def findings(notebook: str, errors: pd.DataFrame, level: float = 0.05, **more: pd.DataFrame) -> pd.DataFrame:
    """The findings of a notebook's claims, from the errors table of its study alone.

    Parameters
    ----------
    notebook : "rq1" to "rq6", or the notebook's whole name.
    errors : as `studies.run` gives it. Claims whose panels it lacks are left out. A column constant_error, the error of
        the best constant predictor, says which cells were learned; without it all were.
    level : of the tests of one claim together: how often a false verdict is allowed.
    more : of RQ2, `bounds` and `alike`: what `predictions` gives for Theorems 4 and 2, of gradients, which no errors
        table has.

    Returns
    -------
    number, where, estimate with low and high, asked (what the claim says), decides, verdict ("agrees", "disagrees",
    "open") and needs (what would close an open one). Shares lie in [0, 1]; what is asked in "times" is a ratio.
    """
    name = notebook.split("_")[0]
    if name not in QUESTIONS:
        raise ValueError(f"Parameter notebook should be one of {', '.join(QUESTIONS)}. Found notebook = {notebook!r}.")
    with judging.at_level(level):
        return judging.frame(list(QUESTIONS[name](errors, **more)))


def rq1(errors: pd.DataFrame) -> Iterator[dict]:
    yield from of_auxiliaries(estimates.estimates(errors), estimates.learned(errors))
    yield from _growth(errors[errors.panel == "eps"])


def of_auxiliaries(frame: pd.DataFrame, known: pd.Series) -> Iterator[dict]:
    """The findings of RQ1 from log ratios alone, such as printed ones."""
    table = against(frame, known, auxiliary="")
    main = by(part(table, panel="table"), "setting", "attacked")
    norms = part(table, panel="norm")
    yield from shares("1.1", by(part(norms, setting="l2, matched"), "setting", "attacked"))
    yield from shares("1.1", by(part(norms, setting="l2, nominal"), "setting", "attacked"), decides=False)
    yield from shares("1.2", main)
    epochs = part(table, panel="epochs", attacked="single")
    yield from shares("1.2", by(epochs, "setting", name=lambda n: f"after epoch {n:g}"), decides=False)
    yield from shares("1.3", main)
    budgets = part(table, panel="eps")
    above = budgets[[setting > 4 for setting in budgets.index.get_level_values("setting")]]
    yield from shares("1.4", by(above, "setting", "attacked", name=lambda n, how: f"eps {n:g}/255, {how}"))
    large = part(table, panel="encoders", attacked="single")
    decisive = large[[stands_for(name) in LARGE for name in large.index.get_level_values("setting")]]
    yield from shares("1.5", by(decisive, "setting", name=encoder))
    yield from shares("1.5", by(large.drop(decisive.index), "setting", name=encoder), decides=False)
    yield from _steps(part(frame, panel="steps"), known)


def rq3(errors: pd.DataFrame) -> Iterator[dict]:
    own = errors[~errors.panel.astype(str).str.match(r"(masking .*|dense)$")]
    known = estimates.learned(own)
    yield from of_weights(estimates.estimates(own), known)
    clean = pairs(np.log(estimates.estimates(own[(own.setting == "pgd") & (own.attacked == "single")], "clean_error")))
    yield from shares("3.5", by(part(against(clean, known, panel="uniform"), panel="published"), "panel"))


def of_weights(frame: pd.DataFrame, known: pd.Series) -> Iterator[dict]:
    """The findings of RQ3 from log ratios alone, such as printed ones."""
    two = pairs(frame)
    table = against(two, known, panel="uniform")
    weighted = part(table, panel="published")
    yield from shares("3.1", by(part(weighted, setting="pgd"), "attacked"))
    others = part(table, setting="pgd").drop(weighted.index, errors="ignore")
    yield from shares("3.1", by(others, "panel", "attacked"), decides=False)
    for panel in ("uniform", "published"):
        yield from values("3.2", _means(two, known, panel, same_models=True, setting="pgd"))
        tasks = {}
        for main in part(two, panel=panel).index.unique("main"):
            of_main = _means(part(two, main=main), known, panel, same_models=True, setting="pgd")
            tasks |= {f"{where}, main {main}": table for where, table in of_main.items()}
        yield from values("3.2", tasks, decides=False)
    yield from values("3.3", _means(two, known, "published", panel="uniform"))
    alone = against(frame, known, auxiliary="")
    best = [part(alone, panel=["uniform", "published"], setting=name, attacked=how) for name, how in ADAPTIVE]
    yield from shares("3.4", by(pd.concat(best), "panel", "setting", "attacked", "main"))
    yield from shares("3.6", by(part(alone, panel="published", setting="pgd", main="s"), "attacked"))


def rq4(errors: pd.DataFrame) -> Iterator[dict]:
    single = errors[errors.attacked == "single"].assign(half=lambda rows: pd.factorize(rows.image_id)[0] % 2)
    target = single[single.panel == "target"]
    if target.empty:
        return
    cell = ["main", "auxiliary"]
    known = estimates.learned(target, cell)
    known = known.index[known]

    def apart(panel: str, quantity: str = "log_ratio") -> pd.DataFrame:
        frame = estimates.estimates(single[single.panel == panel], quantity, ["half", *cell])
        return frame.filter(like="seed ").unstack("half").reindex(known)

    frames = {name: apart(panel) for name, panel in PROXIES.items() if (single.panel == panel).any()}
    frames["clean error"] = apart("target", "clean_error")
    yield from of_proxies(frames, apart("target"), target.seed.nunique(), _standing(single))


def of_proxies(frames: dict[str, pd.DataFrame], truth: pd.DataFrame, seeds: int, standing: str = "") -> Iterator[dict]:
    """The findings of RQ4 from proxies and the target as `correlation.within` takes them; printed ones have 0 seeds."""
    for name, rule in {"early stopping": "4.1", "cheaper encoder": "4.2", "clean error": "4.3"}.items():
        if name in frames:
            where = f"{name} as proxy of the vulnerability{standing if rule == '4.2' else ''}"
            yield from judging.correlation(rule, where, frames[name], truth, seeds=seeds)
    regrets = {f"choice by {name}": _regret(proxy, truth) for name, proxy in frames.items()}
    yield from values("4.4", {where: table.dropna(subset="value") for where, table in regrets.items()})


QUESTIONS: dict[str, Callable[..., Iterator[dict]]] = {"rq1": rq1, "rq2": rq2, "rq3": rq3, "rq4": rq4, "rq5": rq5}
QUESTIONS |= {"rq6": rq6}
PROXIES = {"early stopping": "early", "cheaper encoder": "surrogate", "one step": "fgsm"}  # and their panels


def stands_for(name: str) -> str:
    """The paper's encoder that a smaller one of ours stands for: "resnet50" for "resnet50_small"."""
    return name if name in PAPERS else str(name).removesuffix("_small").removesuffix("_tiny")


def encoder(name: str) -> str:
    """The name of an encoder as findings have it: "(a stand-in)" behind one that is none of the paper's."""
    return str(name) if name in PAPERS else f"{name} (a stand-in)"


def _means(frame: pd.DataFrame, known: pd.Series, shown: str, /, same_models=False, **baseline) -> dict:
    """The mean over the learned cells of a panel against their baseline, by adaptive attack."""
    tables, learned = {}, frame[known.reindex(frame.index).to_numpy(bool)]
    for name, attacked in ADAPTIVE:
        chosen = part(learned, setting=[name, *filter(None, [baseline.get("setting")])], attacked=attacked)
        table = part(estimates.mean_ratios(chosen, ["panel"], same_models=same_models, **baseline), panel=shown)
        if len(table):
            tables[f"{shown} weights, {name}, {attacked}, mean of {table.cells.item()} cells"] = table
    return tables


def _growth(errors: pd.DataFrame) -> Iterator[dict]:
    """How fast the error grows with eps: the slope of log(mean adversarial - mean clean error) over log(eps)."""
    alone = errors[(errors.main == errors.auxiliary) & (errors.attacked == "single")]
    if alone.empty or alone.setting.nunique() < 2:
        return
    rise = estimates.estimates(alone, "adversarial_error", ["main", "setting"])
    rise = rise - estimates.estimates(alone, "clean_error", ["main", "setting"])
    logs = np.log(rise.where(rise > 0))
    tables = {}
    for main, rows in logs.groupby(level="main", sort=False):
        x = np.log(rows.index.get_level_values("setting").to_numpy(float))
        x = (x - x.mean()) / ((x - x.mean()) ** 2).sum()
        tables[f"main {main}"] = estimates.uncertainty(estimates.columnwise(rows, lambda column, x=x: x @ column))
    yield from values("1.4 growth", tables, decides=False)


def _steps(frame: pd.DataFrame, known: pd.Series) -> Iterator[dict]:
    """Claim 1.6: how the log ratios of a main task's models spread, and how soon attacks reach 95 % of their own."""
    frame = frame[known.reindex(frame.index).to_numpy(bool)].droplevel("panel")
    settings = sorted(set(frame.index.get_level_values("setting")))
    if len(settings) < 2:
        return
    spread = part(frame, attacked="single").groupby(level=["setting", "main"], sort=False).std()
    ratio = np.log(part(spread, setting=settings[-1]).droplevel(0)) - np.log(
        part(spread, setting=settings[0]).droplevel(0)
    )
    ratio = ratio[np.isfinite(ratio.value)]
    if len(ratio):
        yield from values("1.6 spread", {f"{settings[-1]} steps over {settings[0]}": _one(ratio)})
    wide = {attacked: part(frame, attacked=attacked).droplevel("attacked") for attacked in ("single", "joint")}
    reached = {attacked: _reached(rows, settings) for attacked, rows in wide.items() if len(rows)}
    if len(reached) == 2:
        both = reached["joint"].index.intersection(reached["single"].index)
        later = np.log(reached["joint"].loc[both]) - np.log(reached["single"].loc[both])
        if len(later):
            yield from values("1.6 plateau", {f"mean of {len(later)} two-task cells": _one(later)})


def _one(rows: pd.DataFrame) -> pd.DataFrame:
    return estimates.uncertainty(estimates.columnwise(rows, pd.Series.mean))


def _reached(rows: pd.DataFrame, settings: list) -> pd.DataFrame:
    """Steps at which the log ratio of a cell is 95 % of its last one, with straight lines between the settings."""
    final = part(rows, setting=settings[-1]).droplevel("setting")
    shares = [part(rows, setting=s).droplevel("setting").reindex(final.index) / final for s in settings]
    steps, before, found = 0.0, final * 0, final * np.nan
    for setting, share in zip(settings, shares, strict=True):
        crossing = steps + (0.95 - before) / (share - before) * (setting - steps)
        found = found.where(found.notna() | (share < 0.95), crossing)
        steps, before = setting, share
    return found.dropna(how="all")


def _standing(errors: pd.DataFrame) -> str:
    """Which encoder stands for which, where the errors say."""
    if "encoder" not in errors:
        return ""
    names = errors.groupby("panel").encoder.first().reindex(["surrogate", "target"]).dropna()
    return f", {' for '.join(map(encoder, names))}"


def _regret(proxy: pd.DataFrame, truth: pd.DataFrame) -> pd.DataFrame:
    """The regret of the auxiliary task with the lowest proxy over that of chance: how much higher its log ratio
    is than the best one's, mean over main tasks. Each training chooses by half of the images, and is judged by the
    other trainings on the other half (of one training, by itself)."""
    proxy, truth = (pairs(frame).dropna(axis=1, how="all").dropna() for frame in (proxy, truth))
    cells, found = proxy.index.intersection(truth.index), {}
    for seed, half in proxy:
        others = [name for name in truth if name[0] != seed and name[1] != half]
        log, seen = truth.loc[cells, others or list(truth)].mean(axis=1), proxy.loc[cells, (seed, half)]
        of_main = log.groupby(level="main")
        chosen = log[seen == seen.groupby(level="main").transform("min")].groupby(level="main").mean()
        found[seed, half] = (chosen - of_main.min()).mean() / (of_main.mean() - of_main.min()).mean()
    by_seed = pd.Series(found).groupby(level=0).mean()
    table = estimates.uncertainty(pd.DataFrame([{"value": by_seed.mean(), **by_seed}]))
    return table.assign(error=table.error.where(table.seeds != 1, np.inf))
