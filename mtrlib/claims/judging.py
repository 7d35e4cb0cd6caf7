"""How a verdict is reached: from estimates with their errors to findings, by the rules of rules.csv.

A rule compares an interval with what the claim asks. The interval of a share of cells lies between the cells that are
surely so and those that are not surely not so: the tasks of the paper are all there are, not a sample.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from importlib.resources import files
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.special import ndtri, stdtrit

from mtrlib import machine
from mtrlib.claims import published
from mtrlib.metrics import estimates, tables
from mtrlib.metrics.correlation import within

AGREES, DISAGREES, OPEN = "agrees", "disagrees", "open"
NOT_MEASURED = "not measured here"
WORDS = {AGREES: "as claimed", DISAGREES: "against the claim", OPEN: OPEN}
NOT_DECIDING = ", for comparison only"
COLUMNS = ["number", "where", "estimate", "low", "high", "asked", "decides", "verdict", "needs"]
WHOLE = {("at least", 1.0): "all", ("at most", 0.0): "none", ("above", 0.0): "at least one"}  # shares in a word
NEVER = "never at a sensible size"
SEEDS, IMAGES = (2, 3, 5, 8, 12, 20, 30, 50), (1, 2, 4, 8, 16)  # sizes to hope for: trainings, times the images
_POWER = float(ndtri(0.8))
_LEVEL = ContextVar("level", default=0.05)  # of the tests of one claim together


@contextmanager
def at_level(level: float) -> Iterator[None]:
    """Findings made inside are tested at this level."""
    if not 0 < level < 1:
        raise ValueError(f"Parameter level should lie between 0 and 1. Found level = {level}.")
    before = _LEVEL.set(level)
    try:
        yield
    finally:
        _LEVEL.reset(before)


@cache
def rules() -> pd.DataFrame:
    """The rules by name: claim, what is measured, which cells count (lower or higher by more than the margin), unit,
    and the side of the threshold that the claim says."""
    with (files("mtrlib.claims") / "rules.csv").open() as file:
        return pd.read_csv(file, dtype={"rule": str, "claim": str}, keep_default_na=False).set_index("rule")


def decide(low: float, high: float, side: str, threshold: float) -> str:
    """The verdict on a number between low and high that should be "above", "below", "at least" or "at most" a
    threshold; a number that is just the threshold is neither above nor below it."""
    if not low <= high + 1e-9:
        return OPEN
    low, high = low - threshold, high - threshold
    low, high = (0.0 if abs(end) < 1e-9 else end for end in (low, high))
    holds, fails = {
        "above": (low > 0, high <= 0),
        "below": (high < 0, low >= 0),
        "at least": (low >= 0, high < 0),
        "at most": (high <= 0, low > 0),
    }[side]
    return AGREES if holds else DISAGREES if fails else OPEN


def shares(name: str, groups: dict[str, pd.DataFrame], *, decides: bool = True) -> list[dict]:
    """Findings on shares of cells, one a group of cells; Holm over the cells of all groups.

    Parameters
    ----------
    name : of the rule.
    groups : by where: rows as `estimates.compared` gives them, logarithms; a column `learned`, if there is one, says
        which of them count.
    """
    rule, groups = rules().loc[name], {where: rows for where, rows in groups.items() if len(rows)}
    counted = {where: rows[rows.learned] if "learned" in rows else rows for where, rows in groups.items()}
    if not any(map(len, counted.values())):
        return []
    direction = -1 if rule.cells == "lower" else 1
    threshold = direction * np.log1p(float(rule.margin))
    judged = estimates.holm(pd.concat(counted), threshold, _LEVEL.get())
    findings = []
    for where, rows in judged.groupby(level=0, sort=False):
        sides = direction * rows.side.to_numpy()
        points = direction * (rows.value - threshold).to_numpy() > 0
        ends = (sides > 0).mean(), 1 - (sides < 0).mean()
        told = decide(*ends, rule.side, float(rule.threshold))

        def settled(known, points=points, sides=sides):
            now = np.where(sides != 0, sides, np.where(known, np.where(points, 1, -1), 0))
            return decide((now > 0).mean(), 1 - (now < 0).mean(), rule.side, float(rule.threshold)) != OPEN

        needs = _needs(settled, rows, threshold, len(judged)) if told == OPEN else ""
        left = groups[where][~groups[where].learned] if "learned" in rows else groups[where][:0]
        about = f"{where}: {rule['what']}" + _left_out(left, groups[where])
        findings.append(_finding(rule, about, points.mean(), *ends, decides, told, needs))
    return findings


def values(name: str, tables: dict[str, pd.DataFrame], *, decides: bool = True) -> list[dict]:
    """Findings on single numbers, one a table of one row (as `estimates.uncertainty` gives it; logarithms where the
    rule's unit is "times"); Holm over all of them."""
    rule, tables = rules().loc[name], {where: rows for where, rows in tables.items() if len(rows)}
    if not tables:
        return []
    scale = np.log if rule.unit == "times" else float
    back = np.exp if rule.unit == "times" else float
    threshold = float(scale(float(rule.threshold)))
    judged, findings = estimates.holm(pd.concat(tables), threshold, _LEVEL.get()), []
    for where, row in zip(tables, judged.itertuples(), strict=True):
        told = decide(row.low, row.high, rule.side, threshold) if row.side else OPEN
        told = told if row.error > 0 or np.isnan(row.value) else decide(row.value, row.value, rule.side, threshold)
        needs = _needs(np.all, judged.loc[[where]], threshold, len(judged)) if told == OPEN else ""
        ends = np.clip([row.low, row.high], -1, 1) if rule.unit == "correlation" else (row.low, row.high)
        numbers = (float(back(number)) for number in (row.value, *ends))
        findings.append(_finding(rule, f"{where}: {rule['what']}", *numbers, decides, told, needs))
    return findings


def correlation(
    name: str, where: str, proxy: pd.DataFrame, target: pd.DataFrame, *, seeds: int, decides=True
) -> list[dict]:
    """A finding on the rank correlation within main tasks, pooled over them, by permutation within main tasks.

    proxy, target : as `correlation.within` takes them. The interval is the correlation less the
    quantiles of what chance gives. One seed gives no verdict: its noise is in both. Of printed numbers (no
    seeds) the value is taken as it is.
    """
    rule, (value, chance) = rules().loc[name], within(proxy, target)
    if np.isnan(value):
        return []
    far, near = np.quantile(chance, [1 - _LEVEL.get() / 2, _LEVEL.get() / 2])
    low, high = {0: (value, value), 1: (-1.0, 1.0)}.get(seeds, (max(value - far, -1.0), min(value - near, 1.0)))
    told = decide(low, high, rule.side, float(rule.threshold)) if seeds != 1 else OPEN
    mains = target.index.get_level_values("main").nunique()
    enough = mains * (far / max(abs(value), 1e-9))  # the spread of chance falls with the cells
    needs = "3 seeds" if seeds == 1 else f"{int(np.ceil(enough))} tasks" if enough <= 11 else NEVER
    return [_finding(rule, f"{where}: {rule['what']}", value, low, high, decides, told, needs if told == OPEN else "")]


def frame(findings: list[dict]) -> pd.DataFrame:
    """Findings as a table with the columns of `COLUMNS`, claim by claim."""
    table = pd.DataFrame(findings, columns=COLUMNS).astype({"decides": bool})
    return table.sort_values("number", kind="stable", ignore_index=True)


def verdict(findings: pd.DataFrame) -> str:
    """The verdict on a claim: of its deciding findings one that disagrees is enough, and all have to agree."""
    told = list(findings[findings.decides].verdict)
    if not told:
        return NOT_MEASURED
    return DISAGREES if DISAGREES in told else OPEN if OPEN in told else AGREES


def sentences(findings: pd.DataFrame, *numbers: str) -> str:
    """The findings of some claims in words, a line each under the claim and its verdict; those that decide first."""
    told = []
    for number in numbers:
        rows = findings[findings.number == number]
        told += [f"Claim {number}: {verdict(rows)}", *(f"  {line}" for line in lines(rows))]
    return "\n".join(told)


def lines(rows: pd.DataFrame) -> list[str]:
    """Findings in words, those that decide first."""
    rows = rows.sort_values("decides", ascending=False, kind="stable")
    return [sentence(row) for row in rows.itertuples()]


def sentence(row) -> str:
    """A finding in English: where, what was measured with its interval, what the claim needs, and the verdict."""
    where, _, what = in_words(row.where).partition(": ")
    of_claim = rules()[rules().claim == row.number].itertuples()
    known = ((rule.sentence, what[len(rule.what) :]) for rule in of_claim if what.startswith(rule.what))
    said, left_out = next(known, (f"{what} {{}}", ""))
    value, interval = numbers(row)
    needs = "" if not row.needs else f" ({row.needs})" if row.needs == NEVER else f" (needs {row.needs})"
    shown = "" if row.decides else NOT_DECIDING
    where = where if "_" in where.split(" ")[0] else where[0].upper() + where[1:]
    text = f"{where}: {said.format(value)}{interval}{left_out}"
    return f"{text}. The claim needs {_needed(row.asked)}: {WORDS[row.verdict]}{needs}{shown}."


def numbers(row) -> tuple[str, str]:
    """The number of a finding as text, and what is known of it in brackets, or ""."""
    if "%" in row.asked or row.asked in WHOLE.values():
        if row.low == row.high == row.estimate:
            return f"{row.estimate:.0%}", ""
        sure = f"surely {row.low:.0%} to {row.high:.0%}" if (row.low, row.high) != (0, 1) else "nothing is sure yet"
        return f"{row.estimate:.0%}", f" ({sure})"
    value = tables.number(row.estimate) + " times" * row.asked.endswith(" times")
    if row.low == row.high:
        return value, ""
    if not (np.isfinite(row.low) and np.isfinite(row.high)):
        return value, " (of one training)"
    return value, f" (95 % interval {tables.number(row.low)} to {tables.number(row.high)})"


def in_words(where: str) -> str:
    """Where a finding is, such as "pgd_at, main s: ...", with words for short names."""
    names, colon, what = where.partition(": ")
    return ", ".join(words().get(token, token) for token in names.split(", ")) + colon + what


@cache
def words() -> dict[str, str]:
    """What the short names in `where` mean, in words."""
    with (files("mtrlib.claims") / "words.csv").open() as file:
        return pd.read_csv(file).set_index("token").words.to_dict()


def released(findings: str | Path) -> pd.DataFrame:
    """Findings as written to a file; of a notebook, such as "rq1", those of the released results of the tier laptop.
    ValueError where they are not: results are in the repository, not in the installed package."""
    path = findings if isinstance(findings, Path) else machine.root() / f"results/laptop/{findings}_findings.csv"
    if not path.is_file():
        raise ValueError(f"Released findings should be in results/laptop of the repository of mtrlib. Found no {path}.")
    return pd.read_csv(path, dtype={"number": str, "needs": str}).fillna({"needs": ""})


def answer(findings: pd.DataFrame, rq: str) -> str:
    """The answer to a research question in a line a verdict: its claims, by what findings say of them."""
    told = {number: verdict(findings[findings.number == number]) for number in published.claims(rq).index}
    lines = []
    said = ("As claimed", "Against the claim") if rq in published.OTHERS else ("As the paper says", "Against the paper")
    words = dict(zip((*said, "Open", "Not measured"), (AGREES, DISAGREES, OPEN, NOT_MEASURED), strict=True))
    for word, verdict_ in words.items():
        named = [f"{published.claims(rq).claim[n]} ({n})" for n, each in told.items() if each == verdict_]
        lines += [f"{word}: {'; '.join(named) or 'nothing'}."] if named or verdict_ in (AGREES, DISAGREES) else []
    return "\n".join(lines)


def summary(findings: pd.DataFrame, rq: str) -> pd.DataFrame:
    """One row a claim of a research question: number, claim, printed tables (what they say by themselves), measured
    (its findings) and the verdict."""
    claims = published.claims(rq)
    rows = [
        {
            "number": number,
            "claim": claim.claim,
            "printed tables": claim.printed_evidence,
            "measured": " ".join(lines(findings[findings.number == number])),
            "verdict": verdict(findings[findings.number == number]),
        }
        for number, claim in claims.iterrows()
    ]
    return pd.DataFrame(rows)


def _finding(rule, where, estimate, low, high, decides, told, needs) -> dict:
    row = (rule.claim, where, estimate, low, high, _asked(rule), decides, told, needs)
    return dict(zip(COLUMNS, row, strict=True))


def _asked(rule) -> str:
    """What the claim asks, as "below 95 %" or "above 1.5 times"."""
    number = float(rule.threshold)
    if rule.unit == "share":
        return WHOLE.get((rule.side, number), f"{rule.side} {number:.0%}")
    return f"{rule.side} {number:.3g}{' times' if rule.unit == 'times' else ''}"


def _needed(asked: str) -> str:
    """What is asked, such as "above 50%", in words."""
    side, _, number = asked.rpartition(" ") if not asked.endswith(" times") else asked[:-6].rpartition(" ")
    named = {"above": "more than", "below": "less than"}.get(side, side)
    return asked if asked in WHOLE.values() else f"{named} {number}{' times' * asked.endswith(' times')}"


def _left_out(left: pd.DataFrame, rows: pd.DataFrame) -> str:
    if left.empty:
        return ""
    cells = left.index.to_frame()
    return f" ({len(left)} of {len(rows)} cells not learned, of main {', '.join(dict.fromkeys(cells.main))})"


def _needs(settled, rows: pd.DataFrame, threshold: float, family: int) -> str:
    """The smallest study that would close an open finding: after which `settled` is true of the rows that are decided
    then in 4 of 5 cases, if what is seen is true. Of one training nobody knows: three first."""
    value, training, images, error, had, given = (
        rows[name].to_numpy() for name in ("value", "training", "images", "error", "seeds", "freedom")
    )
    away, unknown = np.abs(value - threshold), np.isinf(error)
    stays = rows.sets.to_numpy() if "sets" in rows else 0.0  # the sets of tasks are all there are
    reaches = {}
    for seeds in SEEDS:
        freedom = np.minimum(given * (max(seeds - 1, 1) / np.maximum(had - 1, 1)), 1e6)
        reaches[seeds] = (away / (_POWER - stdtrit(freedom, _LEVEL.get() / 2 / family))) ** 2
    for seeds, times in sorted(product(SEEDS, IMAGES), key=lambda size: (size[0] * size[1], size[0])):
        left = training * had / seeds + images / times + stays
        larger = (had <= seeds) & ((had < seeds) | (times > 1))  # at its own size it is open
        if settled(np.where(unknown, seeds >= 3, larger & (left < reaches[seeds]))):
            return f"{seeds} seeds" + (f", {times} times the images" if times > 1 else "")
    return NEVER
