"""RQ2: what the theory predicts of marginal vulnerabilities, beside what was measured (paper, theorems 2 and 4).

In all functions `errors` are of the model whose `gradients` (as `rq2.gradients` gives them) are beside them, and of one
seed, as `studies.run` gives them for `rq2.cells`; `sets` is what `task_sets.vulnerabilities` makes of them; `tasks` and
`order` are letters of the model and the attacked sets, in the order of the gradients."""

from itertools import permutations

import numpy as np
import pandas as pd

from mtrlib.claims import task_sets
from mtrlib.metrics import estimates, theory
from mtrlib.metrics.correlation import spearman
from mtrlib.tasks import canonical

PREDICTIONS = ("first_order", "theorem_2", "theorem_4", "tight")
HOLDS = 0.9  # share of the measured rise of all tasks from which on the first order holds
_ENDS = ("correlation", "low", "high", "lead", "lead_low", "lead_high")


def against_theory(
    errors: pd.DataFrame, gradients: theory.Gradients, tasks: str, order: list[str], budgets: dict[str, float]
) -> dict[str, pd.DataFrame]:
    """What the theory predicts beside what was measured, at the main budget of each norm (in image units), and how well
    it does: "sets" and "steps" (`predictions`), "agreement" and "fewer" (`fewer_or_alike`), with a column norm."""
    of_norm = {}
    for norm, eps in budgets.items():
        sets = task_sets.vulnerabilities(errors, norm)
        of_sets, of_steps = predictions(sets, gradients, tasks, order, norm, eps)
        of_norm[norm] = {"sets": of_sets, "steps": of_steps, "agreement": agreement(sets, of_steps)}
        of_norm[norm]["fewer"] = fewer_or_alike(sets, of_sets)
    return {
        name: pd.concat([of[name].reset_index().assign(norm=norm) for norm, of in of_norm.items()], ignore_index=True)
        for name in ("sets", "steps", "agreement", "fewer")
    }


def predictions(
    sets: pd.DataFrame, gradients: theory.Gradients, tasks: str, order: list[str], norm: str, eps: float
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """What the theory predicts beside what was measured, for one norm and budget.

    Returns two frames. Of sets, indexed by weighting and tasks: measured, first_order (lemma 2), theorem_2 ("mean"
    only; K, which depends on the attacked tasks, is the mean of the measured vulnerabilities of the single tasks of the
    set), printed_low and printed_high (the same with the theorem as printed, over all orders of the tasks), relative
    and factor (measured and theorem_2 over K). Of marginals, indexed by weighting, before and added: measured, low,
    high (95 %), first_order, theorem_2, theorem_4 (the bound) and tight (the bound by the triangle inequality alone).
    """
    first = pd.Series(theory.first_order(gradients.joint[norm], eps), order)[sets.index]
    factors = {}
    for names in sets.index:
        orders = [[tasks.index(letter) for letter in each] for each in permutations(names)]
        printed = pd.Series([theory.theorem_2(gradients.covariances, rows, as_printed=True) for rows in orders])
        factors[names] = theory.theorem_2(gradients.covariances, orders[0]), printed.min(), printed.max()
    factors = pd.DataFrame.from_dict(factors, orient="index", columns=["theorem_2", "printed_low", "printed_high"])
    norms, of_sets, of_steps = gradients.norms[norm], {}, {}
    for weighting in ("sum", "mean"):
        mean, scaled = weighting == "mean", _weighted(sets, weighting)
        share = pd.Series(1 / sets.index.str.len() if mean else 1.0, sets.index)
        constant = pd.Series({names: scaled.value[list(names)].mean() for names in sets.index})
        table = pd.DataFrame({"measured": scaled.value, "first_order": first * share})
        table[factors.columns] = factors.mul(constant, axis=0) if mean else np.nan
        of_sets[weighting] = table.assign(relative=scaled.value / constant, factor=factors.theorem_2)
        steps = estimates.interval(_rises(scaled)).rename(columns={"value": "measured"})
        befores, after = steps.index.get_level_values("before"), [canonical(b + added) for b, added in steps.index]
        for name in ("first_order", "theorem_2"):
            steps[name] = table[name][after].to_numpy() - table[name][befores].to_numpy()
        steps["theorem_4"] = _theorem_4(norms, steps.index, tasks, eps, None if mean else np.ones(len(tasks)))
        added = zip(steps.index.get_level_values("added"), share[after], strict=True)
        steps["tight"] = [theory.tight_marginal_bound(norms, tasks.index(x), eps, weight) for x, weight in added]
        of_steps[weighting] = steps
    return pd.concat(of_sets, names=["weighting", "tasks"]), pd.concat(of_steps, names=["weighting"])


def bounds(errors: pd.DataFrame, gradients: theory.Gradients, tasks: str) -> pd.DataFrame:
    """Measured marginals less theorem 4's bound, at the budgets at which the first order gives at least `HOLDS` of the
    measured rise of all tasks: the theorem is about the first order. With gradients of all sets.

    Returns what `estimates.uncertainty` does, indexed by panel, setting, before and added; above 0 the bound is broken.
    """
    parts, weights = {}, np.ones(len(tasks))
    for (panel, setting), rows in errors[errors.panel.isin(["linf", "l2"])].groupby(["panel", "setting"], sort=False):
        eps, sets = rows.eps_255.iloc[0] / 255, task_sets.vulnerabilities(rows, panel)
        if max(theory.first_order(gradients.joint[panel], eps)) >= HOLDS * sets.value[canonical(tasks)]:
            rises = _rises(sets)
            limits = _theorem_4(gradients.norms[panel], rises.index, tasks, eps, weights)
            parts[f"{panel}, eps {setting:g}/255"] = estimates.uncertainty(rises.sub(limits, axis=0))
    return pd.concat(parts, names=["panel"]) if parts else pd.DataFrame()


def alike(errors: pd.DataFrame, found: theory.Gradients, tasks: str) -> pd.DataFrame:
    """Whether sets whose gradients correlate less are less vulnerable than others of their size, under linf and with
    weights 1/N: Spearman's correlation of their vulnerability with theorem 2's factor, mean over the sizes.

    Parameters and return value: as of `bounds`, one row; above 0 if theorem 2 is right. Its error has a part "sets"
    more: what the correlation of so few sets is by chance, of variance 1 / (n - 1) each (Spearman's of n pairs in
    random order). Empty where no size has three sets.
    """
    sets = task_sets.vulnerabilities(errors, "linf")
    several = [s for s in sets.index if len(s) > 1]
    relative = pd.DataFrame({s: sets.loc[s] / sets.loc[list(s)].sum() for s in several}).T
    place = {letter: row for row, letter in enumerate(tasks)}
    factor = pd.Series({s: theory.theorem_2(found.covariances, [place[x] for x in s]) for s in several}, dtype=float)
    sizes = [rows for rows in relative.groupby(relative.index.str.len()).groups.values() if len(rows) > 2]
    if not sizes:
        return pd.DataFrame()

    def within(column: pd.Series) -> float:
        return float(np.mean([spearman(column[rows], factor[rows]) for rows in sizes]))

    table = estimates.uncertainty(estimates.columnwise(relative.dropna(axis=1), within))
    chance = np.sum([1 / (len(rows) - 1) for rows in sizes]) / len(sizes) ** 2
    return table.assign(sets=chance, error=np.hypot(table.error, chance**0.5))


def agreement(sets: pd.DataFrame, of_steps: pd.DataFrame) -> pd.DataFrame:
    """How well each prediction of `predictions` orders the measured marginals, and whether theorem 4 does so better.

    Returns a frame indexed by weighting and prediction: correlation (Spearman's) with low and high (95 %, over images;
    predictions are held), lead (theorem 4's correlation minus this one) with lead_low and lead_high, marginals (their
    number), above (how many are measured above the prediction: violations of a bound), surely_above and surely_below
    (how many of them surely, by Holm's tests of all) and ratio (median of prediction over measured, where that is above
    0).
    """
    rows = {}
    for weighting, group in of_steps.groupby(level="weighting", sort=False):
        rises, group = _rises(_weighted(sets, weighting)), group.droplevel("weighting")
        known = [name for name in PREDICTIONS if group[name].notna().all()]  # theorem 2 is of weights 1/N only
        correlations = {name: _correlation(rises, group[name]) for name in known}
        for name, own in correlations.items():
            lead = pd.DataFrame(correlations["theorem_4"].to_numpy() - own.to_numpy(), columns=own.columns)
            side = estimates.holm(estimates.uncertainty(rises.sub(group[name], axis=0))).side
            ends = (end for frame in (own, lead) for end in estimates.interval(frame).iloc[0])
            row = dict(zip(_ENDS, ends, strict=True))
            row |= {"marginals": len(group), "above": (group.measured > group[name]).sum()}
            row |= {"surely_above": (side > 0).sum(), "surely_below": (side < 0).sum()}
            rows[weighting, name] = row | {"ratio": (group[name] / group.measured)[group.measured > 0].median()}
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis(["weighting", "prediction"])


def fewer_or_alike(sets: pd.DataFrame, of_sets: pd.DataFrame) -> pd.DataFrame:
    """Whether more tasks, and less correlated ones, mean a less vulnerable set, as theorem 2 says of weights 1/N;
    `of_sets` as `predictions` gives it.

    Returns a frame indexed by question: correlation (Spearman's, over the sets of two and more tasks) with low and high
    (95 %, over images). "more tasks": of the vulnerability relative to the mean of the set's single tasks with the
    number of tasks, below 0 if theorem 2 is right; "less correlated": of the same with theorem 2's factor, above 0 if
    it is.
    """
    scaled, several = _weighted(sets, "mean"), [names for names in sets.index if len(names) > 1]
    relative = pd.DataFrame({names: scaled.loc[names] / scaled.loc[list(names)].mean() for names in several}).T
    factor = of_sets.loc["mean"].factor[several]
    parts = {"more tasks": _correlation(relative, relative.index.str.len())}
    parts["less correlated"] = _correlation(relative, factor)
    table = estimates.interval(pd.concat(parts, names=["question"]).droplevel(1))
    return table.rename(columns={"value": "correlation"})


def _theorem_4(norms: np.ndarray, steps: pd.MultiIndex, tasks: str, eps: float, weights: np.ndarray | None) -> list:
    places = [([tasks.index(letter) for letter in before], tasks.index(added)) for before, added in steps]
    return [theory.marginal_bound(norms, *place, eps, weights) for place in places]


def _correlation(frame: pd.DataFrame, values: pd.Series | pd.Index) -> pd.DataFrame:
    return estimates.columnwise(frame, lambda column: spearman(column, values))


def _weighted(sets: pd.DataFrame, weighting: str) -> pd.DataFrame:
    return sets.div(sets.index.str.len(), axis=0) if weighting == "mean" else sets


def _rises(sets: pd.DataFrame) -> pd.DataFrame:
    (before, after), _ = task_sets.marginals(sets)
    return after - before


# What findings take beside the errors: of gradients, by the name that they take it under.
OF_GRADIENTS = {"bounds": bounds, "alike": alike}
