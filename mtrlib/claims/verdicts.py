"""Verdicts on the paper's claims, computed from the tables: "agrees", "disagrees" or "cannot tell at this size".

A verdict needs the whole interval on one side of what the claim says. Claims and their numbers: `published.claims`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from mtrlib import metrics
from mtrlib.claims import published
from mtrlib.metrics import tables

AGREES, DISAGREES, CANNOT_TELL = "agrees", "disagrees", "cannot tell at this size"
_GROUPS = {"pooled": "all main tasks together", "within": "within each main task"}
_RATIO = ("ratio", "low", "high", "cells")
NOT_CLAIMED = "(shown for comparison)"
LARGE = ("resnet50", "resnet152")  # the encoders of claim 1.5
CHEAP = ("resnet18", "resnet50")  # those of claim 4.2: the proxy and what it stands for
NOTHING = 1e4  # an interval of a ratio whose ends are so many times apart, a hundred to each side, says nothing
RELIABLE = 0.95  # share of cells from which on "reliably" would hold


def verdict(low: float, high: float, threshold: float, claimed: str) -> str:
    """Whether a value with the interval [low, high] is on the claimed side of a threshold.

    Parameters
    ----------
    low, high : ends of the interval of the measured value.
    threshold : what it is compared with.
    claimed : "above" or "below", the side that the claim says.
    """
    if claimed not in ("above", "below"):
        raise ValueError(f"Parameter claimed should be above or below. Found claimed = {claimed!r}.")
    if not (np.isfinite(low) and np.isfinite(high)) or low <= threshold <= high:
        return CANNOT_TELL
    return AGREES if (low > threshold) == (claimed == "above") else DISAGREES


def all_of(verdicts: list[str]) -> str:
    """The verdict on a claim that says several things at once: one that fails is enough."""
    verdicts = [verdict for verdict in verdicts if verdict != NOT_CLAIMED]
    if not verdicts:
        return "not measured here"
    if DISAGREES in verdicts:
        return DISAGREES
    return CANNOT_TELL if CANNOT_TELL in verdicts else AGREES


def shares(shares: pd.DataFrame, number: str, threshold: float, claimed: str, label: str = "{}") -> pd.DataFrame:
    """Claims on the share of less vulnerable cells: a row for each row of `tables.share_less_vulnerable`.

    `label` formats the setting, such as "eps {:g}/255"; threshold and claimed as in `verdict`.
    """
    rows = []
    for row in shares.itertuples():
        rows.append(
            _row(
                number,
                f"{label.format(row.setting)}, {row.attacked}",
                f"{row.share:.0%} of {row.cells} cells less vulnerable",
                f"[{row.low:.0%}, {row.high:.0%}]",
                f"{claimed} {threshold:.0%}",
                verdict(row.low, row.high, threshold, claimed),
            )
        )
    return pd.DataFrame(rows)


def never_helps(compared: pd.DataFrame, number: str) -> pd.DataFrame:
    """The claim that no auxiliary task lowers the vulnerability of a main task: one row a main task.

    Intervals of the differences are widened for the number of cells that are looked at (Bonferroni). The claim fails
    where one lies below 0 and holds where all lie above.
    """
    rows = []
    for main, cells in compared.groupby("main", sort=False):
        lowers, raises = _surely(cells, len(compared))
        answer = DISAGREES if lowers else AGREES if raises == len(cells) else CANNOT_TELL
        measured = f"{(cells.difference < 0).sum()} of {len(cells)} auxiliary tasks lower it"
        surely = f"({lowers} clearly, {raises} clearly raise it)"
        rows.append(_row(number, f"main {main}", measured, surely, "none", answer))
    return pd.DataFrame(rows)


def every_helps(compared: pd.DataFrame, number: str, by: Sequence[str] = ("setting", "attacked")) -> pd.DataFrame:
    """The claim that every cell is less vulnerable than what it is compared with: one row a group of cells.

    Intervals of the differences are widened for the number of cells of all groups (Bonferroni). The claim holds where
    all lie below 0 and fails where one lies above.

    Parameters
    ----------
    compared : as `tables.against` gives it.
    """
    rows = []
    for group, cells in compared.groupby(list(by), sort=False):
        lowers, raises = _surely(cells, len(compared))
        answer = DISAGREES if raises else AGREES if lowers == len(cells) else CANNOT_TELL
        measured = f"{(cells.difference < 0).sum()} of {len(cells)} cells less vulnerable"
        where = ", ".join(map(str, group))
        rows.append(_row(number, where, measured, f"({lowers} clearly, {raises} clearly more)", "every one", answer))
    return pd.DataFrame(rows)


def some_helps(compared: pd.DataFrame, number: str, by: Sequence[str] = ("panel", "setting", "main")) -> pd.DataFrame:
    """The claim that for every main task some auxiliary task lowers the vulnerability: one row a group of cells.

    Choosing the best of several auxiliary tasks is paid for by intervals widened for their number (Bonferroni). The
    claim holds where one lies below 0 and fails where all lie above.
    """
    rows = []
    for group, cells in compared.groupby(list(by), sort=False):
        lowers, raises = _surely(cells, len(cells))
        answer = AGREES if lowers else DISAGREES if raises == len(cells) else CANNOT_TELL
        best = int(cells.difference.argmin())
        change, drawn = cells.difference.iloc[best], cells.difference_replicates.iloc[best]
        alone, form = cells.replicates.iloc[best] - drawn, "{:+.3g}"
        if cells.single_task.iloc[best] > 0 and (alone > 0).all():  # else a share of it means nothing
            change, drawn, form = change / cells.single_task.iloc[best], drawn / alone, "{:+.0%}"
        low, high = metrics.interval(drawn, 1 - 0.05 / len(cells))
        measured = f"best auxiliary task {cells.auxiliary.iloc[best]}, {form.format(change)}"
        interval = f"[{form.format(low)}, {form.format(high)}]"
        rows.append(_row(number, ", ".join(map(str, group)), measured, interval, "below 0", answer))
    return pd.DataFrame(rows)


def stronger(ratios: pd.DataFrame, number: str, threshold: float) -> pd.DataFrame:
    """The claim that attacks are much stronger than another: one row for each row of `tables.mean_ratio`, whose first
    columns name the attack; "much" is a ratio of at least `threshold`."""
    rows = []
    for row in ratios.to_dict("records"):
        where = ", ".join(str(value) for key, value in row.items() if key not in _RATIO)
        answer = verdict(row["low"], row["high"], threshold, "above")
        rows.append(_row(number, where, *_ratio(row), f"above {threshold:g}", answer))
    return pd.DataFrame(rows)


def equivalent(ratios: pd.DataFrame, number: str, margin: float) -> pd.DataFrame:
    """The claim that two vulnerabilities are the same: it holds where the whole interval of their ratio lies within
    1 / (1 + margin) and 1 + margin, and fails where it lies outside. One row for each row of `tables.mean_ratio`."""
    rows = []
    inner, outer = 1 / (1 + margin), 1 + margin
    for row in ratios.to_dict("records"):
        where = ", ".join(str(value) for key, value in row.items() if key not in _RATIO)
        low, high = row["low"], row["high"]
        answer = AGREES if inner < low and high < outer else DISAGREES if high < inner or low > outer else CANNOT_TELL
        rows.append(_row(number, where, *_ratio(row), f"{inner:.2f} to {outer:.2f}", answer))
    return pd.DataFrame(rows)


def orders(table: pd.DataFrame, number: str, often: float) -> pd.DataFrame:
    """Claim 2.1, from `marginal.orders` with a column `norm`: steps often raise the vulnerability (at least `often` of
    them), and it is not monotone in the number of tasks (fewer than `often` of the orders)."""
    rows = []
    for row in table.to_dict("records"):
        for name, what, claimed in (
            ("rising", "steps raise it", "above"),
            ("monotone", "orders are monotone", "below"),
        ):
            low, high = row[f"{name}_low"], row[f"{name}_high"]
            answer = verdict(low, high, often, claimed) if row["weighting"] == "sum" else NOT_CLAIMED
            where = f"{row['norm']}, {'1/N' if row['weighting'] == 'mean' else 'summed'}"
            measured = f"{row[name]:.0%} of the {what}"
            rows.append(_row(number, where, measured, f"[{low:.0%}, {high:.0%}]", f"{claimed} {often:.0%}", answer))
    return pd.DataFrame(rows)


def falling(table: pd.DataFrame, number: str, often: float) -> pd.DataFrame:
    """Claim 2.3, from `tables.share_less_vulnerable` over steps that add a task: with weights 1/N most steps lower the
    vulnerability unless they add s or E; with weights 1 most do not."""
    rows = []
    for row in table.itertuples():
        claimed = "above" if row.weighting == "mean" and row.added_is == "another task" else "below"
        where = f"{row.model}, {'1/N' if row.weighting == 'mean' else 'summed'}, adding {row.added_is}"
        measured = f"{row.share:.0%} of {row.cells} steps lower it"
        answer = verdict(row.low, row.high, often, claimed)
        interval = f"[{row.low:.0%}, {row.high:.0%}]"
        rows.append(_row(number, where, measured, interval, f"{claimed} {often:.0%}", answer))
    return pd.DataFrame(rows)


def governed(agreement: pd.DataFrame, number: str, threshold: float) -> pd.DataFrame:
    """Claim 2.2, from `marginal.agreement`: the bound of theorem 4 orders the marginals (rank correlation of at least
    `threshold`), better than theorem 2 does, and is never broken."""
    rows = []
    for row in agreement.itertuples():
        where = f"{row.norm}, {'1/N' if row.weighting == 'mean' else 'summed'}"
        if row.prediction == "theorem_4":
            answer = verdict(row.low, row.high, threshold, "above")
            measured = f"rank correlation with Theorem 4's bound: {tables.number(row.correlation)}"
            interval = tables.interval(row.low, row.high)
            rows.append(_row(number, where, measured, interval, f"above {threshold:g}", answer))
            held = AGREES if row.surely_below == row.marginals else DISAGREES if row.surely_above else CANNOT_TELL
            broken = f"bound broken by {row.above} of {row.marginals} marginals"
            surely = f"({row.surely_above} clearly, {row.surely_below} clearly hold)"
            rows.append(_row(number, where, broken, surely, "none", held))
        if row.prediction == "theorem_2":
            answer = verdict(row.lead_low, row.lead_high, 0.0, "above")
            measured = f"ahead of Theorem 2's prediction by {tables.number(row.lead, sign=True)}"
            interval = tables.interval(row.lead_low, row.lead_high, sign=True)
            rows.append(_row(number, where, measured, interval, "above 0", answer))
    return pd.DataFrame(rows)


def correlates(found: pd.DataFrame, number: str, threshold: float, claimed: bool = True) -> pd.DataFrame:
    """The claim that a proxy correlates with its target (RQ4), from rows of `selection.correlations`: pooled, Pearson's
    of at least `threshold`; within main tasks, where alone it can guide a choice, Spearman's above 0. Where the claim
    is not about such a proxy (not `claimed`), the numbers alone."""
    rows = []
    for row in found[found.group.isin(["pooled", "within"])].to_dict("records"):
        kind, bound = ("pearson", threshold) if row["group"] == "pooled" else ("spearman", 0.0)
        low, high = row[f"{kind}_low"], row[f"{kind}_high"]
        where = f"{row['proxy']} as proxy of {row['target']}, {_GROUPS[row['group']]}"
        name = {"pearson": "Pearson's r", "spearman": "Spearman's r"}[kind]
        answer = verdict(low, high, bound, "above") if claimed else NOT_CLAIMED
        measured = f"{name} {tables.number(row[kind])}"
        rows.append(_row(number, where, measured, tables.interval(low, high), f"above {bound:g}", answer))
    return pd.DataFrame(rows)


def surrogate(found: pd.DataFrame, number: str, threshold: float, cheap: str, expensive: str) -> pd.DataFrame:
    """Claim 4.2, `correlates` of the cheaper encoder: it is about `CHEAP`, ResNet-18 for ResNet-50, by their names. Of
    any other two the numbers stand without a verdict, and stand-ins are called so."""
    rows = correlates(found, number, threshold, claimed=(cheap, expensive) == CHEAP)
    return rows.assign(where=rows["where"] + f", {encoder(cheap)} for {encoder(expensive)}")


def encoder(name: str) -> str:
    """The name of an encoder as findings have it: "(a stand-in)" behind one that is none of the paper's."""
    return str(name) if name in published.ENCODERS else f"{name} (a stand-in)"


def more_vulnerable(shares: pd.DataFrame, number: str, half: float = 0.5) -> pd.DataFrame:
    """Claim 1.5, from `tables.share_less_vulnerable` with the encoder as setting: with the large encoders most two-task
    models are more vulnerable (the paper: 80 %). Rows of encoders that are not in `LARGE`, by name, give the number
    without a verdict of their own; stand-ins, such as "resnet50_small", are called so.
    """
    rows = []
    for row in shares.itertuples():
        low, high = 1 - row.high, 1 - row.low
        answer = verdict(low, high, half, "above") if row.setting in LARGE else NOT_CLAIMED
        measured = f"{1 - row.share:.0%} of {row.cells} cells more vulnerable"
        where, interval = f"{encoder(row.setting)}, {row.attacked}", f"[{low:.0%}, {high:.0%}]"
        rows.append(_row(number, where, measured, interval, f"above {half:.0%}", answer))
    return pd.DataFrame(rows)


def plateau(table: pd.DataFrame, number: str, full: int) -> pd.DataFrame:
    """Claim 1.6 on two-task models: joint attacks reach their final strength in fewer steps than single ones.

    Compares, at each smaller number of steps, the share of the vulnerability at `full` steps that is reached (mean
    over cells), joint minus single, with a paired interval.
    """
    pairs = table[table.main != table.auxiliary]
    reached = {}
    for (steps, attacked), cells in pairs.groupby(["setting", "attacked"], sort=False):
        final = pairs[(pairs.setting == full) & (pairs.attacked == attacked)].set_index(["main", "auxiliary"])
        cells = cells.set_index(["main", "auxiliary"])
        parts = [cells.replicates[cell] / final.replicates[cell] for cell in cells.index]
        points = [cells.value[cell] / final.value[cell] for cell in cells.index]
        reached[steps, attacked] = np.mean(points), np.mean(parts, axis=0)
    rows = []
    for steps in dict.fromkeys(steps for steps, _ in reached if steps != full):
        (single, single_drawn), (joint, joint_drawn) = reached[steps, "single"], reached[steps, "joint"]
        low, high = metrics.interval(joint_drawn - single_drawn)
        measured = f"of {full}: joint attacks reach {joint:.0%} of their final strength, single ones {single:.0%},"
        rows.append(
            _row(
                number,
                f"{steps} steps",
                measured,
                f"a difference of [{100 * low:+.1f}, {100 * high:+.1f}] points",
                "above 0",
                verdict(float(low), float(high), 0.0, "above"),
            )
        )
    return pd.DataFrame(rows)


def spread(table: pd.DataFrame, number: str) -> pd.DataFrame:
    """Claim 1.6 on models: with more steps they differ more. The spread is the standard deviation over the auxiliary
    tasks (the single-task model included) of one main task's vulnerability, averaged over main tasks; the most steps
    against the fewest, as a ratio with a paired interval. Everything grows with the steps, so the spread is taken both
    as it is and relative to the mean of the main task."""
    single = table[table.attacked == "single"]
    few, many = single.setting.min(), single.setting.max()
    rows = []
    for kind in ("absolute", "relative"):
        value, drawn = {}, {}
        for steps in (few, many):
            groups = [cells for _, cells in single[single.setting == steps].groupby("main")]
            points = [cells.value.to_numpy()[:, None] for cells in groups]
            replicates = [np.stack(cells.replicates.to_list()) for cells in groups]
            for target, values in ((value, points), (drawn, replicates)):
                scales = [v.mean(axis=0) if kind == "relative" else 1.0 for v in values]
                target[steps] = np.mean([v.std(axis=0) / s for v, s in zip(values, scales, strict=True)], axis=0)
        low, high = metrics.interval(drawn[many] / drawn[few])
        ratio = f"at {many} steps {tables.number((value[many] / value[few])[0])} times that at {few}"
        answer = verdict(float(low), float(high), 1.0, "above")
        where = f"{kind} spread over models"
        rows.append(_row(number, where, ratio, tables.interval(low, high), "above 1", answer))
    return pd.DataFrame(rows)


def growth(table: pd.DataFrame) -> pd.DataFrame:
    """How the error grows with eps: the slope of log(mean adversarial - mean clean error) over log(eps), one row a main
    task, from the single-task models; 1 is linear growth. With a 95 % interval from the replicates, and growth, which
    says in words on which side of 1 it lies.

    `table` is that of `tables.vulnerabilities` with "ratio_of_means": the mean clean error in it is the same for every
    eps, so it changes no slope. An increase that is not positive has no logarithm and gives NaN.
    """
    words = {AGREES: "faster than linear", DISAGREES: "slower than linear", CANNOT_TELL: CANNOT_TELL}
    rows = []
    for main, cells in table[table.main == table.auxiliary].groupby("main", sort=False):
        x = np.log(cells.setting.to_numpy(float))
        drawn = _log(np.stack(cells.replicates.to_list()))
        slopes = ((x - x.mean()) @ (drawn - drawn.mean(axis=0))) / ((x - x.mean()) ** 2).sum()
        low, high = metrics.interval(slopes)
        logs = _log(cells.value.to_numpy())
        exponent = (x - x.mean()) @ (logs - logs.mean()) / ((x - x.mean()) ** 2).sum()
        ends = {"low": float(low), "high": float(high)}
        rows.append({"main": main, "exponent": exponent, **ends, "growth": words[verdict(low, high, 1.0, "above")]})
    return pd.DataFrame(rows)


def summary(rows: list[pd.DataFrame], rq: str) -> pd.DataFrame:
    """One row a claim of a research question: the claim, what the paper's own printed tables say, what was measured
    (findings with their intervals, what the claim asks and their verdicts, separated by "; ") and the verdict on all of
    it; claims without rows are "not measured here"."""
    told = pd.concat(rows, ignore_index=True)
    claims = published.claims(rq)[["claim", "printed_evidence"]]
    parts = pd.Series([_finding(row) for row in told.itertuples()])
    measured = parts.groupby(told["number"]).agg("; ".join)
    verdicts = told.groupby("number")["verdict"].agg(lambda verdicts: all_of(list(verdicts)))
    table = claims.assign(measured=measured, verdict=verdicts).fillna({"measured": "", "verdict": "not measured here"})
    return table.rename(columns={"printed_evidence": "printed tables"}).reset_index(names="number")


def sentence(*rows: pd.DataFrame) -> str:
    """The verdicts of claims in words, a line each under the number of the claim."""
    lines = []
    found = pd.concat(rows)
    if found.empty:
        return "Not measured here."
    for number, told in found.groupby("number"):
        lines.append(f"Claim {number}")
        lines += [f"  {_finding(row)}" for row in told.itertuples()]
    return "\n".join(lines)


def _surely(cells: pd.DataFrame, looked_at: int) -> tuple[int, int]:
    """How many cells lie below what they are compared with, and how many above, with their whole interval; the
    intervals are widened for the number of cells that are looked at (Bonferroni)."""
    ends = [metrics.interval(drawn, 1 - 0.05 / looked_at) for drawn in cells.difference_replicates]
    return sum(high < 0 for _, high in ends), sum(low > 0 for low, _ in ends)


def _log(values: np.ndarray) -> np.ndarray:
    return np.log(np.where(values > 0, values, np.nan))


def _finding(row) -> str:
    asked = "" if row.verdict == NOT_CLAIMED else f", the claim needs {row.asked}:"
    return f"{row.where}: {row.measured} {row.interval}".rstrip() + f"{asked} {row.verdict}"


def _ratio(row: dict) -> tuple[str, str]:
    """What a row of `tables.mean_ratio` says, and its interval; that nothing is known where it says nothing."""
    cells = f"in the mean of {row['cells']} cells"
    low, high = row["low"], row["high"]
    if np.isinf(row["ratio"]):
        return f"infinite {cells}", tables.interval(low, high)
    if not (np.isfinite(low) and np.isfinite(high) and low > 0 and high < NOTHING * low):
        return f"of the ratio {cells} nothing is known", ""
    return f"{tables.number(row['ratio'])} times {cells}", tables.interval(low, high)


def _row(number: str, where: str, measured: str, interval: str, asked: str, answer: str) -> dict[str, str]:
    told = {"number": number, "where": where, "measured": measured, "interval": interval}
    return {**told, "asked": asked, "verdict": answer}
