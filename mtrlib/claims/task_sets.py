"""Claims of RQ2, on the vulnerability of sets of attacked tasks and what each added task contributes."""

from collections.abc import Iterator
from itertools import permutations

import numpy as np
import pandas as pd

from mtrlib.claims import judging
from mtrlib.claims.judging import shares, values
from mtrlib.metrics import estimates
from mtrlib.tasks import canonical

SETS = ("panel", "setting", "attacked_tasks")


def rq2(errors: pd.DataFrame, bounds: pd.DataFrame | None = None, alike: pd.DataFrame | None = None) -> Iterator[dict]:
    for panel in ("linf", "l2"):
        sets = vulnerabilities(errors, panel)
        if sets is None:
            continue
        steps, firsts = marginals(sets)
        rises = estimates.compared(np.log(steps[1]), np.log(steps[0]), same_models=True)
        yield from shares("2.1 rising", {f"{panel}, summed": rises})
        yield from _orders(panel, rises)
        if panel == "linf":
            yield from _theory(steps, firsts, sets)
    if bounds is not None and len(bounds):
        yield from shares("2.2 bound", estimates.by(bounds, "panel"))
    if alike is not None:
        yield from values("2.5 alike", {"linf, 1/N": alike})
    chains = vulnerabilities(errors, "chains")
    if chains is not None:
        (before, after), _ = marginals(chains)
        number = after.index.get_level_values("before").str.len().to_numpy()
        added = np.where(after.index.get_level_values("added").isin(list("sE")), "s or E", "another task")
        plain = estimates.compared(np.log(after), np.log(before))
        mean = plain.assign(value=plain.value + np.log(number / (number + 1)))
        falls = {f"1/N, adding {what}": mean[added == what] for what in ("another task", "s or E")}
        yield from shares("2.3 falls", {where: rows for where, rows in falls.items() if "another" in where})
        yield from shares("2.3 does not", {where: rows for where, rows in falls.items() if "another" not in where})
        yield from shares("2.3 does not", {"summed": plain})


def sets(errors: pd.DataFrame) -> pd.DataFrame:
    """Adversarial vulnerabilities (definition 1) of the attacked sets, in the unit of the losses, as `estimates` gives
    them; indexed by panel, setting and tasks (the set, in the paper's order)."""
    rows = errors.drop_duplicates([*SETS, "seed", "image_id"])
    frame = estimates.estimates(rows, "absolute", SETS)
    index = frame.index.to_frame(index=False).rename(columns={"attacked_tasks": "tasks"})
    return frame.set_axis(pd.MultiIndex.from_frame(index.assign(tasks=index.tasks.map(canonical))))


def vulnerabilities(errors: pd.DataFrame, panel: str) -> pd.DataFrame | None:
    """`sets` of a panel of RQ2, at its main budget, the one with the most images; indexed by tasks. None without that
    panel."""
    rows = errors[errors.panel == panel]
    if rows.empty:
        return None
    budget = rows.groupby("setting", sort=False).image_id.nunique().idxmax()
    return sets(rows[rows.setting == budget]).droplevel(["panel", "setting"])


def marginals(sets: pd.DataFrame) -> tuple[tuple[pd.DataFrame, pd.DataFrame], pd.DataFrame]:
    """The sets before and after each step that adds a task, indexed by before and added; and those of one task."""
    steps = [
        (before, added, canonical(before + added))
        for before in sets.index
        for added in canonical("".join(set("".join(sets.index))))
        if added not in before and canonical(before + added) in sets.index
    ]
    index = pd.MultiIndex.from_tuples([step[:2] for step in steps], names=["before", "added"])
    before, after = (sets.loc[[step[k] for step in steps]].set_axis(index) for k in (0, 2))
    return (before, after), sets[sets.index.str.len() == 1]


def _orders(panel: str, rises: pd.DataFrame) -> Iterator[dict]:
    """Of all orders, those of which no step lowers the vulnerability by more than the margin."""
    rule = judging.rules().loc["2.1 monotone"]
    falls = estimates.holm(rises, -np.log1p(float(rule.margin)))
    point, side = (falls.value < -np.log1p(float(rule.margin))).to_dict(), falls.side.to_dict()
    letters = canonical("".join(rises.index.get_level_values("added").unique()))
    orders = [
        [(canonical(order[:k]), order[k]) for k in range(1, len(order))]
        for order in map("".join, permutations(letters))
    ]
    kept = [[not point[step] for step in order] for order in orders]
    broken = [[side[step] < 0 for step in order] for order in orders]
    sure = [[side[step] > 0 for step in order] for order in orders]
    ends = np.mean([all(order) for order in sure]), 1 - np.mean([any(order) for order in broken])
    told = judging.decide(*ends, rule.side, float(rule.threshold))
    about = f"{panel}, summed: {rule['what']}"
    needs = judging.NEVER if told == judging.OPEN else ""
    yield judging._finding(rule, about, np.mean([all(order) for order in kept]), *ends, True, told, needs)


def _theory(steps: tuple, single: pd.DataFrame, sets: pd.DataFrame) -> Iterator[dict]:
    """Claims 2.2, 2.4 and 2.5 on the sets of one model."""
    before, after = steps
    rise = pd.DataFrame(after.to_numpy() - before.to_numpy(), after.index, after.columns)
    added = single.loc[after.index.get_level_values("added")].to_numpy()
    largest = np.stack([single.loc[list(tasks)].to_numpy().max(axis=0) for tasks in after.index.get_level_values(0)])
    number = after.index.get_level_values("before").str.len().to_numpy(float)
    columns = {name: k for k, name in enumerate(rise.columns)}

    def explained(column: pd.Series, *predictors) -> float:
        design = np.column_stack([np.ones(len(column)), *predictors])
        rest = column - design @ np.linalg.lstsq(design, column.to_numpy(), rcond=None)[0]
        return 1 - (rest**2).sum() / ((column - column.mean()) ** 2).sum()

    def governed(column: pd.Series) -> float:
        return explained(column, added[:, columns[column.name]], largest[:, columns[column.name]])

    r2 = estimates.columnwise(rise.dropna(axis=1), governed)
    lead = estimates.columnwise(rise.dropna(axis=1), lambda column: governed(column) - explained(column, number))
    yield from values("2.2 governed", {"linf, summed": estimates.uncertainty(r2)})
    yield from values("2.2 number", {"linf, summed": estimates.uncertainty(lead)})
    if "s" in single.index:
        first = estimates.columnwise(rise.dropna(axis=1), lambda column: _first(column, single[column.name]))
        yield from values("2.4", {"linf, losses as they are": estimates.uncertainty(first)})
    if len(single) > 2:
        size = sets.index.str.len().to_numpy()

        def slope(column: pd.Series) -> float:
            means = np.log((column / size).groupby(size).mean())
            return np.polyfit(np.log2(means.index.to_numpy(float)), means.to_numpy(), 1)[0]

        slopes = estimates.columnwise(sets.dropna(axis=1), slope)
        yield from values("2.5", {"linf, 1/N": estimates.uncertainty(slopes)})


def _first(rise: pd.Series, single: pd.Series) -> float:
    """Share of all orders in which the step that adds s raises the vulnerability most."""
    letters, rises = canonical("".join(single.index)), rise.to_dict()
    wins = []
    for order in map("".join, permutations(letters)):
        steps = {order[0]: single[order[0]]}
        steps |= {order[k]: rises[canonical(order[:k]), order[k]] for k in range(1, len(order))}
        wins.append(max(steps, key=steps.get) == "s")
    return float(np.mean(wins))
