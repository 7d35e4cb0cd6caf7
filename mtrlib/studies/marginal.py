"""RQ2: the vulnerability of task sets, what each added task contributes, and what the theory predicts (paper, RQ2,
definitions 1 and 3, theorems 2 and 4; supplement, figures 12 and 13).

A weighting says how the losses of N attacked tasks make one: "sum", or "mean" with weights 1 / N. Both have the same
attack, so a set is attacked once.
"""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pandas as pd
from scipy.stats import binomtest, rankdata

from mtrlib import attacks, metrics
from mtrlib.claims import questions
from mtrlib.metrics import estimates, theory
from mtrlib.specs import ModelSpec
from mtrlib.store import Store
from mtrlib.tasks import canonical

WEIGHTINGS = ("sum", "mean")
HOLDS = 0.9  # share of the measured rise of all tasks from which on the first order holds


def vulnerabilities(errors: pd.DataFrame, *, replicates: int = 1000) -> pd.DataFrame:
    """Adversarial vulnerability (definition 1) of each attacked task set, in the unit of the losses.

    Parameters
    ----------
    errors : as `studies.run` gives it for `studies.rq2`.
    replicates : of the bootstrap over images and, where there are several, seeds.

    Returns
    -------
    One row a panel, setting, set and weighting: panel, setting, tasks (the set, in the paper's order), weighting,
    value, low, high (95 %) and replicates.
    """
    rows = []
    for (panel, setting, tasks), group in errors.groupby(["panel", "setting", "attacked_tasks"], sort=False):
        group = group.drop_duplicates(["seed", "image_id"])
        clean, attacked = (
            group.pivot(index="seed", columns="image_id", values=f"{kind}_attacked_loss").to_numpy()
            for kind in ("clean", "adversarial")
        )
        drawn = metrics.bootstrap(clean, attacked, metrics.ABSOLUTE, replicates=replicates)
        value = np.mean([metrics.adversarial_vulnerability(c, a) for c, a in zip(clean, attacked, strict=True)])
        for weighting in WEIGHTINGS:
            scale = 1 / len(tasks) if weighting == "mean" else 1.0
            low, high = metrics.interval(scale * drawn)
            about = {"panel": panel, "setting": setting, "tasks": canonical(tasks), "weighting": weighting}
            ends = {"value": scale * value, "low": float(low), "high": float(high)}
            rows.append({**about, **ends, "replicates": scale * drawn})
    return pd.DataFrame(rows)


def marginals(table: pd.DataFrame, chains: list[str] | None = None) -> pd.DataFrame:
    """Marginal vulnerability (definition 3) of adding a task to a set that is attacked.

    Parameters
    ----------
    table : as `vulnerabilities` gives it; of one panel, in which every set stands once a setting and weighting.
    chains : orders in which tasks are added; None for every set and every task that it lacks.

    Returns
    -------
    One row a setting, weighting and step: setting, weighting, before (the set), added, difference (the marginal
    vulnerability), difference_low, difference_high (95 %, paired over images) and difference_replicates.
    """
    rows = []
    for (setting, weighting), group in table.groupby(["setting", "weighting"], sort=False):
        of = group.set_index("tasks")
        letters = canonical("".join(set("".join(of.index))))
        if chains is None:
            steps = [(before, added) for before in of.index for added in letters if added not in before]
        else:
            steps = [(chain[:k], chain[k]) for chain in chains for k in range(1, len(chain))]
        for before, added in dict.fromkeys((canonical(before), added) for before, added in steps):
            after = of.loc[canonical(before + added)]
            drawn = after.replicates - of.replicates[before]
            low, high = metrics.interval(drawn)
            rows.append(
                {
                    "setting": setting,
                    "weighting": weighting,
                    "before": before,
                    "added": added,
                    "difference": after.value - of.value[before],
                    "difference_low": float(low),
                    "difference_high": float(high),
                    "difference_replicates": drawn,
                }
            )
    return pd.DataFrame(rows)


def orders(table: pd.DataFrame) -> pd.DataFrame:
    """Every order in which the tasks can be added: how often a step raises the vulnerability, and how many orders only
    ever raise or only ever lower it.

    Parameters
    ----------
    table : as `vulnerabilities` gives it, of one panel.

    Returns
    -------
    One row a setting and weighting: setting, weighting, orders, rising and monotone (shares), each with _low and _high:
    95 %, the wider of that over images and Wilson's for as many independent cases as there are different steps (orders
    are made of the same steps).
    """
    rows = []
    for (setting, weighting), group in table.groupby(["setting", "weighting"], sort=False):
        of = group.set_index("tasks")
        chains = [[canonical("".join(order[:k])) for k in range(1, len(order) + 1)] for order in _orders(of.index)]
        values = {tasks: np.concatenate([[of.value[tasks]], of.replicates[tasks]]) for tasks in of.index}
        steps = np.diff(np.stack([[values[tasks] for tasks in chain] for chain in chains]), axis=1) > 0
        rising = steps.mean(axis=(0, 1))
        monotone = (steps.all(axis=1) | ~steps.any(axis=1)).mean(axis=0)
        row = {"setting": setting, "weighting": weighting, "orders": len(chains)}
        different = len(chains[0]) * 2 ** (len(chains[0]) - 1) - len(chains[0])
        for name, shares in (("rising", rising), ("monotone", monotone)):
            low, high = metrics.interval(shares[1:])
            wilson = binomtest(round(shares[0] * different), different).proportion_ci(0.95, "wilson")
            ends = {f"{name}_low": min(float(low), wilson.low), f"{name}_high": max(float(high), wilson.high)}
            row |= {name: shares[0], **ends}
        rows.append(row)
    return pd.DataFrame(rows)


def gradients(store: Store, spec: ModelSpec, sets: list[str], images: int, batch: int = 32) -> theory.Gradients:
    """Statistics of the input gradients of a model's tasks at the first test images, in float32, and of their sums over
    each of `sets`."""
    combinations = np.array([[float(letter in tasks) for letter in spec.tasks] for tasks in sets])

    def measure() -> pd.DataFrame:
        model, data = store.model(spec), store.data(spec, "test", images)

        def batches():
            for start in range(0, len(data), batch):
                points, targets, masks = data.batch(slice(start, start + batch), store.device)
                yield attacks.task_losses(model, targets, masks, spec.tasks), points

        return theory.to_table(theory.statistics(batches(), combinations))

    about = {"sets": sets, "images": images, "batch": batch}
    return theory.from_table(store.table("gradients", about, [(spec, spec.epochs)], measure))


def assumptions(found: theory.Gradients, tasks: str) -> pd.DataFrame:
    """What theorem 2 assumes of the gradients, and what they are, one row a task.

    Returns
    -------
    task, mean_share: ||E r||^2 / E||r||^2, which is 1 / N for N independent images where the mean is zero; expected:
    that 1 / N; relative_variance: the task's variance over the mean one, 1 where all are equal; correlation: mean over
    the other tasks of the absolute correlation, 0 where tasks are independent.
    """
    power, covered = np.diag(found.moments), np.diag(found.covariances)
    correlation = np.abs(found.covariances / np.sqrt(np.outer(covered, covered)))
    count = len(tasks)
    others = (correlation.sum(axis=1) - 1) / max(count - 1, 1)
    return pd.DataFrame(
        {
            "task": list(tasks),
            "mean_share": (power - covered) / power,
            "expected": 1 / len(found.norms["linf"]),
            "relative_variance": covered / covered.mean(),
            "correlation": others if count > 1 else np.nan,
        }
    )


def predictions(
    table: pd.DataFrame, found: theory.Gradients, tasks: str, sets: list[str], norm: str, eps: float
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """What the theory predicts beside what was measured, for one norm and budget.

    Parameters
    ----------
    table : as `vulnerabilities` gives it, of one panel and setting.
    found : as `gradients` gives it for `sets`.
    tasks, sets : letters of the model, in the order of `found`, and the attacked sets.
    norm, eps : of the attack, in image units.

    Returns
    -------
    Of sets: tasks, weighting, measured, first_order (lemma 2), theorem_2 ("mean" only; K, which depends on the attacked
    tasks, is the mean of the measured vulnerabilities of the single tasks of the set), printed_low and printed_high
    (the same with the theorem as printed, over all orders of the tasks), relative and factor (measured and theorem_2
    over K), replicates and relative_replicates.
    Of marginals: weighting, before, added, measured, first_order, theorem_2, theorem_4 (the bound) and tight (the
    bound by the triangle inequality alone), with replicates of the measured one.
    """
    first = dict(zip(sets, theory.first_order(found.joint[norm], eps), strict=True))
    place = {letter: row for row, letter in enumerate(tasks)}
    of_sets, of_steps = [], []
    for weighting, group in table.groupby("weighting", sort=False):
        value, drawn = group.set_index("tasks").value, group.set_index("tasks").replicates
        mean = weighting == "mean"
        scale = {s: 1 / len(s) if mean else 1.0 for s in sets}
        predicted = {}
        for s in sets:
            constant = np.mean([value[letter] for letter in s])
            factor = theory.theorem_2(found.covariances, [place[letter] for letter in s])
            predicted[s] = (scale[s] * first[s], constant * factor if mean else np.nan)
            about = {"tasks": s, "weighting": weighting, "measured": value[s], "first_order": predicted[s][0]}
            printed = [
                constant * theory.theorem_2(found.covariances, [place[letter] for letter in order], as_printed=True)
                for order in (permutations(s) if mean else [])
            ]
            ends = (np.nanmin(printed), np.nanmax(printed)) if np.isfinite(printed).any() else (np.nan, np.nan)
            about |= dict(zip(("printed_low", "printed_high"), ends, strict=True))
            about |= {"theorem_2": predicted[s][1], "relative": value[s] / constant, "factor": factor}
            relative = drawn[s] / np.mean([drawn[letter] for letter in s], axis=0)
            of_sets.append({**about, "replicates": drawn[s], "relative_replicates": relative})
        for row in marginals(group).itertuples():
            after = canonical(row.before + row.added)
            before, added = [place[letter] for letter in row.before], place[row.added]
            weights = None if mean else np.ones(len(tasks))
            of_steps.append(
                {
                    "weighting": weighting,
                    "before": row.before,
                    "added": row.added,
                    "measured": row.difference,
                    "first_order": predicted[after][0] - predicted[row.before][0],
                    "theorem_2": predicted[after][1] - predicted[row.before][1],
                    "theorem_4": theory.marginal_bound(found.norms[norm], before, added, eps, weights),
                    "tight": theory.tight_marginal_bound(found.norms[norm], added, eps, scale[after]),
                    "replicates": row.difference_replicates,
                }
            )
    return pd.DataFrame(of_sets), pd.DataFrame(of_steps)


def bounds(errors: pd.DataFrame, found: theory.Gradients, tasks: str) -> pd.DataFrame:
    """Measured marginals less theorem 4's bound, at the budgets at which the first order gives at least `HOLDS` of the
    measured rise of all tasks: the theorem is about the first order.

    Parameters
    ----------
    errors : as `studies.run` gives it for `studies.rq2`, of the model whose gradients are `found`, and of one seed.
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
        excess = pd.DataFrame(after.to_numpy() - before.to_numpy(), after.index, after.columns)
        parts[f"{panel}, eps {setting:g}/255"] = estimates.uncertainty(excess.sub(limits, axis=0))
    return pd.concat(parts, names=["panel"]) if parts else pd.DataFrame()


def agreement(steps: pd.DataFrame) -> pd.DataFrame:
    """How well each prediction orders the measured marginals, and whether theorem 4 does so better.

    Parameters
    ----------
    steps : marginals as `predictions` gives them, of one or more norms (column `norm`).

    Returns
    -------
    One row a norm, weighting and prediction: norm, weighting, prediction, correlation (Spearman's) with low and high
    (95 %, over images of the measured values and over marginals; predictions are held), lead (theorem 4's correlation
    minus this one) with lead_low and lead_high, marginals (their number), above (how many are measured above the
    prediction: violations of a bound), surely_above and surely_below (how many of them by their whole interval, widened
    for their number) and ratio (median of prediction over measured, where that is above 0).
    """
    rows = []
    for (norm, weighting), group in steps.groupby(["norm", "weighting"], sort=False):
        measured, drawn = group.measured.to_numpy(), np.stack(group.replicates.to_list(), axis=1)
        number = len(group)
        chosen = np.random.default_rng(0).integers(number, size=(len(drawn), number))
        drawn = np.take_along_axis(drawn, chosen, axis=1)

        def correlations(values, measured=measured, drawn=drawn, chosen=chosen):
            return _spearman(measured[None], values[None])[0], _spearman(drawn, values[chosen])

        level = 1 - 0.05 / number
        ends = [metrics.interval(replicates, level) for replicates in group.replicates]
        lows, highs = (np.array([float(end[k]) for end in ends]) for k in (0, 1))
        best, best_drawn = correlations(group.theorem_4.to_numpy())
        for prediction in ("first_order", "theorem_2", "theorem_4", "tight"):
            values = group[prediction].to_numpy()
            if np.isnan(values).any():  # theorem 2 is of weights 1/N only
                continue
            point, of_draws = correlations(values)
            low, high = metrics.interval(of_draws)
            lead_low, lead_high = metrics.interval(best_drawn - of_draws)
            positive = measured > 0
            ratio = np.median(values[positive] / measured[positive]) if positive.any() else np.nan
            about = {"norm": norm, "weighting": weighting, "prediction": prediction}
            ends = {"correlation": point, "low": float(low), "high": float(high), "lead": best - point}
            ends |= {"lead_low": float(lead_low), "lead_high": float(lead_high)}
            counts = {"marginals": number, "above": int((measured > values).sum())}
            counts |= {"surely_above": int((lows > values).sum()), "surely_below": int((highs <= values).sum())}
            rows.append({**about, **ends, **counts, "ratio": ratio})
    return pd.DataFrame(rows)


def expansion(store: Store, spec: ModelSpec, errors: pd.DataFrame, images: int) -> pd.DataFrame:
    """The Taylor expansion of the summed loss of all tasks beside its measured rise, on the first test images.

    Parameters
    ----------
    store, spec : where the model of all tasks is, and which.
    errors : as `studies.run` gives it for `studies.rq2`.
    images : how many.

    Returns
    -------
    One row a norm and budget: norm, eps_255 (of linf), measured (mean rise of the loss), first_order, second_order (the
    sum of both terms), and the two over the measured one.
    """
    own = errors[(errors.model_id == spec.key) & (errors.attacked_tasks == spec.tasks) & (errors.panel != "chains")]
    groups = {budget: group.head(images) for budget, group in own.groupby(["panel", "setting"], sort=False)}
    budgets = [(norm, float(group.eps_255.iloc[0])) for (norm, _), group in groups.items()]

    def measure() -> pd.DataFrame:
        points, targets, masks = store.data(spec, "test", images).batch(slice(None), store.device)
        losses = attacks.task_losses(store.model(spec), targets, masks, spec.tasks)
        terms = [theory.second_order(losses, points, eps / 255, norm) for norm, eps in budgets]
        means = [(first.mean().item(), (first + second).mean().item()) for first, second in terms]
        return pd.DataFrame(means, columns=["first_order", "second_order"])

    terms = store.table("expansion", {"budgets": budgets, "images": images}, [(spec, spec.epochs)], measure)
    rows = []
    for ((norm, setting), group), (one, two) in zip(groups.items(), terms.to_numpy().tolist(), strict=True):
        measured = (group.adversarial_attacked_loss - group.clean_attacked_loss).mean()
        about = {"norm": norm, "eps_255": setting, "measured": measured, "first_order": one, "second_order": two}
        rows.append({**about, "first over measured": one / measured, "second over measured": two / measured})
    return pd.DataFrame(rows)


def fewer_or_alike(of_sets: pd.DataFrame) -> pd.DataFrame:
    """Whether more tasks, and less correlated ones, mean a less vulnerable set, as theorem 2 says of weights 1/N.

    Parameters
    ----------
    of_sets : sets as `predictions` gives them, with a column `norm`.

    Returns
    -------
    One row a norm and question: norm, question, correlation (Spearman's, over the sets of two and more tasks) with low
    and high (95 %, over images and sets). "more tasks": of the vulnerability relative to the mean of the set's single
    tasks with the number of tasks, below 0 if theorem 2 is right; "less correlated": of the same with theorem 2's
    factor, above 0 if it is.
    """
    rows = []
    chosen = of_sets[(of_sets.weighting == "mean") & (of_sets.tasks.str.len() > 1)]
    for norm, group in chosen.groupby("norm", sort=False):
        drawn = np.stack(group.relative_replicates.to_list(), axis=1)
        index = np.random.default_rng(0).integers(len(group), size=(len(drawn), len(group)))
        drawn = np.take_along_axis(drawn, index, axis=1)
        for question, values in (("more tasks", group.tasks.str.len()), ("less correlated", group.factor)):
            values = values.to_numpy(float)
            point = _spearman(group.relative.to_numpy()[None], values[None])[0]
            low, high = metrics.interval(_spearman(drawn, values[index]))
            rows.append(
                {"norm": norm, "question": question, "correlation": point, "low": float(low), "high": float(high)}
            )
    return pd.DataFrame(rows)


def _spearman(one: np.ndarray, two: np.ndarray) -> np.ndarray:
    """(R, n), (R, n) -> (R,); NaN where all values of a row are the same."""
    one, two = (rankdata(values, axis=1) for values in (one, two))
    one, two = (values - values.mean(axis=1, keepdims=True) for values in (one, two))
    with np.errstate(invalid="ignore", divide="ignore"):
        return (one * two).sum(axis=1) / np.sqrt((one**2).sum(axis=1) * (two**2).sum(axis=1))


def _orders(sets: pd.Index) -> list[tuple[str, ...]]:
    return list(permutations(canonical("".join(set("".join(sets))))))
