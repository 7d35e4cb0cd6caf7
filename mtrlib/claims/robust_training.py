"""What is asked of robust training (RQ5), which is not the paper's question: what is said of GAT (Ghamizi et al. 2023,
arXiv 2302.02907), of adversarial training, and of weak evaluations (Croce et al. 2024, arXiv 2306.12941).

The unit is the logarithm of the mean error under attack, or of what the attack adds to it: relative to the clean error,
a model that has learned little would look robust. Panels and settings are those of `rq5.cells`.
"""

from collections.abc import Callable, Iterator
from itertools import product

import numpy as np
import pandas as pd

from mtrlib.claims.judging import shares, values
from mtrlib.metrics import estimates
from mtrlib.metrics.estimates import against, beside, by, matched, paired, part

STRONG, WEAK = "sea", "pgd"  # the evaluations, by setting
ONE = "against "  # begins the panels of models that were attacked on one task in training
BASELINES = {"same cost": True, "same epochs": False}  # of GAT, trained without an auxiliary task; which decides
GAT = {"5.3": ("", "gat"), "5.4": ("", "gat with "), "5.5": ("few ", "few gat")}  # claims, and how panels begin


def rq5(errors: pd.DataFrame) -> Iterator[dict]:
    own = errors[~errors.panel.astype(str).str.startswith("masking")]
    known = estimates.learned(own)
    hurt, clean = (np.log(estimates.estimates(own, f"{kind}_error")) for kind in ("adversarial", "clean"))
    rise, strong = np.log((np.exp(hurt) - np.exp(clean)).where(hurt > clean)), part(hurt, setting=STRONG)

    whole = [name for name in strong.index.unique("panel") if not name.startswith("few ")]
    rises = against(part(rise, setting=STRONG, panel=whole), known, panel="plain")
    rises = rises[_where(rises, lambda panel, main: not panel.startswith(ONE))]
    yield from _told("5.1", by(rises[rises.learned], "panel", "main", name="{}, main {}".format))
    costs = _means(*beside(part(clean, setting=STRONG, panel=whole), panel="plain"), known)
    yield from _told("5.2", {f"{panel}, mean of {n} tasks": table for panel, (n, table) in costs.items()})

    baselines = part(strong, panel=[f"{few}{name}" for few in ("", "few ") for name in BASELINES])
    of_main = part(strong, main=list(baselines.index.unique("main")))  # GAT attacks one task alone
    yield from _auxiliaries(of_main, known)
    others = against(part(of_main, panel=[name for name in whole if name != "plain"]), known, panel="gat")
    others = others[_where(others, lambda panel, main: panel == f"{ONE}{main}" or not panel.startswith(ONE))]
    yield from values("5.6", by(others[others.learned], "panel"))

    others = _where(strong, lambda panel, main: panel == "plain" or panel.startswith(ONE) and panel != f"{ONE}{main}")
    protected = against(strong[others], known, panel="plain")
    yield from shares("5.7", {"trained against one task": protected})
    yield from shares("5.7", by(protected, "panel"), decides=False)

    more = against(part(hurt, setting=[STRONG, WEAK]), known, same_models=True, setting=WEAK)
    robust = _where(more, lambda panel, main: panel != "plain")
    yield from shares("5.8", {"trained against attacks": more[robust]})
    yield from shares("5.8", {"plain": more[~robust]}, decides=False)


def _auxiliaries(strong: pd.DataFrame, known: pd.Series) -> Iterator[dict]:
    """GAT with auxiliary tasks over the same training without one: the mean over them, then each."""
    for (rule, (few, begins)), (name, decides) in product(GAT.items(), BASELINES.items()):
        rows = strong[_where(strong, lambda panel, _, b=begins: panel == b or b[-1] == " " and panel.startswith(b))]
        rows, alone = paired(rows, strong, panel=f"{few}{name}", auxiliary=lambda of: of.main)
        each = matched(rows, alone, known)
        tables = by(each[each.learned], "panel", "auxiliary", name=f"{name}, {{}}, auxiliary {{}}".format)
        if begins[-1] == " ":  # its auxiliary task is in the panel's name
            tables = by(each[each.learned], "panel", name=f"{name}, {{}}".format)
        for n, mean in _means(rows, alone, known, "setting").values():
            where = f"{name}, mean of {n} sets" if n > 1 else next(iter(tables))
            yield from values(rule, {where: mean}, decides=decides)
        yield from values(rule, tables if len(tables) > 1 else {}, decides=False)


def _told(rule: str, tables: dict[str, pd.DataFrame]) -> Iterator[dict]:
    """Findings on recipes, of which PGD's decides."""
    for decides in (True, False):
        chosen = {where: table for where, table in tables.items() if where.startswith("pgd_at, ") is decides}
        yield from values(rule, chosen, decides=decides)


def _means(rows, base, known: pd.Series, level: str = "panel") -> dict[str, tuple[int, pd.DataFrame]]:
    """How many cells were learned, and the mean of their differences to their baselines, by a level of the index."""
    both = known.reindex(rows.index).to_numpy(bool) & known.reindex(base.index).to_numpy(bool)
    difference = pd.DataFrame(rows[both].to_numpy() - base[both].to_numpy(), rows.index[both], rows.columns)
    found = {}
    for name, cells in difference.groupby(level=level, sort=False):
        table = estimates.uncertainty(estimates.columnwise(cells, pd.Series.mean))
        found[name] = len(cells), table.assign(error=table.error.where(table.seeds != 1, np.inf))
    return found


def _where(table: pd.DataFrame, condition: Callable[[str, str], bool]) -> np.ndarray:
    """The rows whose panel and main task meet a condition."""
    levels = (table.index.get_level_values(name) for name in ("panel", "main"))
    return np.array([condition(*of) for of in zip(*levels, strict=True)], bool)
