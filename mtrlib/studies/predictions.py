"""RQ2: what the theory predicts of marginal vulnerabilities, beside what was measured (paper, theorems 2 and 4)."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pandas as pd

from mtrlib.claims import questions
from mtrlib.metrics import estimates, theory
from mtrlib.metrics.correlation import spearman
from mtrlib.tasks import canonical

WEIGHTINGS = ("sum", "mean")
PREDICTIONS = ("first_order", "theorem_2", "theorem_4", "tight")
HOLDS = 0.9  # share of the measured rise of all tasks from which on the first order holds


def against_theory(
    errors: pd.DataFrame, found: theory.Gradients, tasks: str, order: list[str], budgets: dict[str, float]
) -> dict[str, pd.DataFrame]:
    """What the theory predicts beside what was measured, and how well it does, with a column norm in each table.

    Parameters
    ----------
    errors : as `studies.run` gives it for `rq2.cells`, of the model whose gradients are `found`, and of one seed.
    found : as `rq2.gradients` gives it.
    tasks, order : letters of the model and the attacked sets, in the order of `found`.
    budgets : eps of the main budget in each norm, in image units.

    Returns
    -------
    "sets", "steps", "agreement" and "fewer": `predictions`, `agreement` and `fewer_or_alike`.
    """
    parts: dict[str, list[pd.DataFrame]] = {}
    for norm, eps in budgets.items():
        sets = questions.vulnerabilities(errors, norm)
        of_sets, of_steps = predictions(sets, found, tasks, order, norm, eps)
        named = {"sets": of_sets, "steps": of_steps, "agreement": agreement(sets, of_steps)}
        named["fewer"] = fewer_or_alike(sets, of_sets)
        for name, table in named.items():
            parts.setdefault(name, []).append(table.reset_index().assign(norm=norm))
    return {name: pd.concat(tables, ignore_index=True) for name, tables in parts.items()}


def predictions(
    sets: pd.DataFrame, found: theory.Gradients, tasks: str, order: list[str], norm: str, eps: float
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """What the theory predicts beside what was measured, for one norm and budget.

    Parameters
    ----------
    sets : as `questions.vulnerabilities` gives it, indexed by tasks.
    found, tasks, order, norm, eps : as in `against_theory`.

    Returns
    -------
    Of sets, indexed by weighting and tasks: measured, first_order (lemma 2), theorem_2 ("mean" only; K, which depends
    on the attacked tasks, is the mean of the measured vulnerabilities of the single tasks of the set), printed_low and
    printed_high (the same with the theorem as printed, over all orders of the tasks), relative and factor (measured and
    theorem_2 over K).
    Of marginals, indexed by weighting, before and added: measured, low, high (95 %), first_order, theorem_2, theorem_4
    (the bound) and tight (the bound by the triangle inequality alone).
    """
    first = pd.Series(theory.first_order(found.joint[norm], eps), order)[sets.index]
    place = {letter: row for row, letter in enumerate(tasks)}
    factor = {s: theory.theorem_2(found.covariances, [place[x] for x in s]) for s in sets.index}
    of_sets, of_steps = {}, {}
    for weighting in WEIGHTINGS:
        mean, scaled = weighting == "mean", _weighted(sets, weighting)
        scale = 1 / sets.index.str.len() if mean else np.ones(len(sets))
        constant = pd.Series({s: scaled.value[list(s)].mean() for s in sets.index})
        table = pd.DataFrame({"measured": scaled.value, "first_order": first * scale})
        table["theorem_2"] = constant * pd.Series(factor) if mean else np.nan
        printed = {
            s: [constant[s] * theory.theorem_2(found.covariances, [place[x] for x in p], as_printed=True)
                for p in (permutations(s) if mean else [])]
            for s in sets.index
        }  # fmt: skip
        table["printed_low"] = [np.nanmin(p) if np.isfinite(p).any() else np.nan for p in printed.values()]
        table["printed_high"] = [np.nanmax(p) if np.isfinite(p).any() else np.nan for p in printed.values()]
        of_sets[weighting] = table.assign(relative=scaled.value / constant, factor=pd.Series(factor))
        steps = estimates.interval(_rises(scaled)).rename(columns={"value": "measured"})
        after = [canonical(before + added) for before, added in steps.index]
        for name in ("first_order", "theorem_2"):
            steps[name] = table[name][after].to_numpy() - table[name][steps.index.get_level_values("before")].to_numpy()
        weights, norms = None if mean else np.ones(len(tasks)), found.norms[norm]
        steps["theorem_4"] = [
            theory.marginal_bound(norms, [place[x] for x in before], place[added], eps, weights)
            for before, added in steps.index
        ]
        scale = dict(zip(sets.index, scale, strict=True))
        steps["tight"] = [
            theory.tight_marginal_bound(norms, place[added], eps, scale[canonical(before + added)])
            for before, added in steps.index
        ]
        of_steps[weighting] = steps
    return pd.concat(of_sets, names=["weighting", "tasks"]), pd.concat(of_steps, names=["weighting"])


def bounds(errors: pd.DataFrame, found: theory.Gradients, tasks: str) -> pd.DataFrame:
    """Measured marginals less theorem 4's bound, at the budgets at which the first order gives at least `HOLDS` of the
    measured rise of all tasks: the theorem is about the first order.

    Parameters
    ----------
    errors : as `studies.run` gives it for `rq2.cells`, of the model whose gradients are `found`, and of one seed.
    found, tasks : as in `predictions`, with gradients of all sets.

    Returns
    -------
    As `estimates.uncertainty`, indexed by panel, setting, before and added; above 0 the bound is broken.
    """
    parts, place = {}, {letter: row for row, letter in enumerate(tasks)}
    for (panel, setting), rows in errors[errors.panel.isin(["linf", "l2"])].groupby(["panel", "setting"], sort=False):
        eps, sets = rows.eps_255.iloc[0] / 255, questions.vulnerabilities(rows, panel)
        first = max(theory.first_order(found.joint[panel], eps))
        if first < HOLDS * sets.value[canonical(tasks)]:
            continue
        (before, after), _ = questions.marginals(sets)
        limits = [
            theory.marginal_bound(found.norms[panel], [place[x] for x in b], place[added], eps, np.ones(len(tasks)))
            for b, added in after.index
        ]
        parts[f"{panel}, eps {setting:g}/255"] = estimates.uncertainty((after - before).sub(limits, axis=0))
    return pd.concat(parts, names=["panel"]) if parts else pd.DataFrame()


def agreement(sets: pd.DataFrame, of_steps: pd.DataFrame) -> pd.DataFrame:
    """How well each prediction orders the measured marginals, and whether theorem 4 does so better.

    Parameters
    ----------
    sets, of_steps : as `predictions` takes and gives them.

    Returns
    -------
    Indexed by weighting and prediction: correlation (Spearman's) with low and high (95 %, over images; predictions are
    held), lead (theorem 4's correlation minus this one) with lead_low and lead_high, marginals (their number), above
    (how many are measured above the prediction: violations of a bound), surely_above and surely_below (how many of them
    surely, by Holm's tests of all) and ratio (median of prediction over measured, where that is above 0).
    """
    rows = {}
    for weighting, group in of_steps.groupby(level="weighting", sort=False):
        rises, group = _rises(_weighted(sets, weighting)), group.droplevel("weighting")
        correlations = {
            name: estimates.columnwise(rises, lambda column, name=name, g=group: spearman(column, g[name]))
            for name in PREDICTIONS
            if group[name].notna().all()  # theorem 2 is of weights 1/N only
        }
        for name, found in correlations.items():
            above = estimates.holm(estimates.uncertainty(rises.sub(group[name], axis=0))).side
            lead = pd.DataFrame(correlations["theorem_4"].to_numpy() - found.to_numpy(), columns=found.columns)
            ends, lead_ends = (estimates.interval(frame).iloc[0].to_list() for frame in (found, lead))
            positive = group.measured > 0
            row = dict(
                zip(("correlation", "low", "high", "lead", "lead_low", "lead_high"), ends + lead_ends, strict=True)
            )
            row |= {"marginals": len(group), "above": (group.measured > group[name]).sum()}
            row |= {"surely_above": (above > 0).sum(), "surely_below": (above < 0).sum()}
            rows[weighting, name] = row | {"ratio": (group[name] / group.measured)[positive].median()}
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis(["weighting", "prediction"])


def fewer_or_alike(sets: pd.DataFrame, of_sets: pd.DataFrame) -> pd.DataFrame:
    """Whether more tasks, and less correlated ones, mean a less vulnerable set, as theorem 2 says of weights 1/N.

    Parameters
    ----------
    sets, of_sets : as `predictions` takes and gives them.

    Returns
    -------
    Indexed by question: correlation (Spearman's, over the sets of two and more tasks) with low and high (95 %, over
    images). "more tasks": of the vulnerability relative to the mean of the set's single tasks with the number of tasks,
    below 0 if theorem 2 is right; "less correlated": of the same with theorem 2's factor, above 0 if it is.
    """
    scaled, several = _weighted(sets, "mean"), [s for s in sets.index if len(s) > 1]
    relative = pd.DataFrame({s: scaled.loc[s] / scaled.loc[list(s)].mean() for s in several}).T
    values = {"more tasks": relative.index.str.len(), "less correlated": of_sets.loc["mean"].factor[several]}
    parts = {
        question: estimates.columnwise(relative, lambda column, v=value: spearman(column, v))
        for question, value in values.items()
    }
    found = estimates.interval(pd.concat(parts, names=["question"]).droplevel(1))
    return found.rename(columns={"value": "correlation"})


def _weighted(sets: pd.DataFrame, weighting: str) -> pd.DataFrame:
    return sets.div(sets.index.str.len(), axis=0) if weighting == "mean" else sets


def _rises(sets: pd.DataFrame) -> pd.DataFrame:
    (before, after), _ = questions.marginals(sets)
    return after - before
