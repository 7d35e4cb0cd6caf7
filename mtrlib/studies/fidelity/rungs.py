"""What one reads off the `ladder`: the verdict of every rung on claims of RQ1 and RQ3, what each change does to the
tables and to the order of their cells, and the two figures of both (paper, Tables 1 and 2; arXiv 2110.15053)."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from mtrlib.claims import AGREES, DISAGREES, OPEN, judging
from mtrlib.claims.judging import shares, values
from mtrlib.claims.questions import against
from mtrlib.figures.style import panels, reach, styled
from mtrlib.metrics import estimates, tables
from mtrlib.metrics.estimates import by, mean_ratios, part
from mtrlib.studies.fidelity.changes import CHANGES, TITLES
from mtrlib.studies.fidelity.ladder import RUNG, TABLES

CLAIMS = {
    "1.1": "1.1 l2: auxiliary tasks help",
    "1.2": "1.2 l-infinity: not reliably",
    "1.3": "1.3 l-infinity: never",
    "3.1": "3.1 weights help against PGD",
    "3.2 two tasks": "3.2 WGD is much stronger",
    "3.2 one task": "3.2 also on one task",
    "3.3": "3.3 weights do not help against WGD",
}
# Whether a claim stands under the definitions, and under the published behaviour.
_STANDS = {(True, True): "both", (True, False): "definitions only", (False, True): "published behaviour only"}
_STANDS |= {(False, False): "neither"}
_LOOKS = {AGREES: ("A", "#0072B2", "white"), DISAGREES: ("D", "#E69F00", "black"), OPEN: ("?", "0.92", "0.35")}


def findings(rung: pd.DataFrame) -> pd.DataFrame:
    """What RQ1's claims 1.1 to 1.3 and RQ3's 3.1 to 3.3 say of one rung (its log ratios, as `ladder.run` gives them,
    indexed by panel to auxiliary), by the rules of all claims; Auto-PGD is no part, since the published code has none,
    and claim 3.2 is asked of joint attacks and of single-task models apart."""
    known, where = pd.Series(True, rung.index), ("setting", "attacked")
    pairs = rung[rung.index.get_level_values("main") != rung.index.get_level_values("auxiliary")]
    against_alone = against(part(rung, panel="uniform"), known, auxiliary="")
    weighted = against(part(pairs, setting="pgd"), known, panel="uniform")
    linf, single = part(rung, setting=["pgd", "wgd"]), rung.index.difference(pairs.index)
    answers = {
        "1.1": shares("1.1", by(part(against_alone, setting="l2"), *where)),
        "1.2": shares("1.2", by(part(against_alone, setting="pgd"), *where)),
        "1.3": shares("1.3", by(part(against_alone, setting="pgd", attacked="single"), *where)),
        "3.1": shares("3.1", by(weighted, *where)),
    }
    stronger = {"3.2 two tasks": part(linf, attacked="joint"), "3.2 one task": linf[linf.index.isin(single)]}
    for claim, rows in stronger.items():
        answers[claim] = values("3.2", by(mean_ratios(rows, ["setting"], same_models=True, setting="pgd"), "setting"))
    same = mean_ratios(part(pairs, setting="wgd"), ["setting"], panel="uniform")
    answers["3.3"] = values("3.3", by(same, "setting"))
    return pd.concat([judging.frame(rows).assign(claim=claim) for claim, rows in answers.items()], ignore_index=True)


def climb(logs: pd.DataFrame) -> pd.DataFrame:
    """`findings` of every rung, with its ladder, step and change; logs as `ladder.run` gives them."""
    rungs = logs.groupby(level=["ladder", "number", "change"], sort=False)
    parts = [findings(r.droplevel(RUNG)).assign(ladder=of[0], step=of[1], change=of[2]) for of, r in rungs]
    return pd.concat(parts, ignore_index=True)


def grid(climbed: pd.DataFrame, ladder: str) -> pd.DataFrame:
    """One verdict a claim and rung of a ladder, of all that `climb` has on it: claims as rows, changes as columns."""
    rows = climbed[climbed.ladder == ladder]
    answers = rows.groupby(["claim", "change"], sort=False)[["decides", "verdict"]].apply(judging.verdict)
    return answers.unstack("change").loc[:, list(dict.fromkeys(rows.change))]


def ends(climbed: pd.DataFrame) -> pd.DataFrame:
    """One row a claim: its verdict under the definitions and under all published behaviours, under which it stands
    ("both", "definitions only", "published behaviour only", "neither", or "open" where one of the
    two verdicts is that), and the changes on each ladder that the verdict differs with from that without."""
    grids, rows = {ladder: grid(climbed, ladder) for ladder in ("adding", "undoing")}, []
    for claim in grids["adding"].index:
        lines = {ladder: answers.loc[claim] for ladder, answers in grids.items()}
        defined, published = (line.iloc[0] for line in lines.values())
        row = {"claim": CLAIMS[claim], "definitions": defined, "published behaviour": published}
        row["stands under"] = OPEN if OPEN in row.values() else _STANDS[defined == AGREES, published == AGREES]
        for ladder, line in lines.items():
            steps = zip(CHANGES, line, line.iloc[1:], strict=False)
            row[f"verdict turns, {ladder}"] = "; ".join(TITLES[change] for change, one, two in steps if one != two)
        rows.append(row)
    return pd.DataFrame(rows)


def effects(logs: pd.DataFrame) -> pd.DataFrame:
    """What each change does to each table: errors under attack over clean ones with it, over those without, and the
    order of the cells. With and without differ in this one change; on the ladder "adding" the rest is as defined, but
    for earlier changes; on "undoing" it is as published, but for earlier ones.

    Returns one row a ladder, change and table: ratio (geometric mean over images and cells), low, high (95 %), cells,
    and tau, tau_low, tau_high (`agreement`).
    """
    rows = []
    for ladder in dict.fromkeys(logs.index.get_level_values("ladder")):
        for number, change in enumerate(CHANGES, start=1):
            numbers = (number, number - 1) if ladder == "adding" else (number - 1, number)  # with it and without
            for name in TABLES.values():
                both = (_table(logs, ladder, of, name) for of in numbers)
                rows.append({"ladder": ladder, "change": change, "table": name, **agreement(*both)})
    return pd.DataFrame(rows)


def summary(effects: pd.DataFrame) -> str:
    """Which changes move which table, a line a table, and how many of so many intervals leave 1 out by chance."""
    lines = []
    for name, rows in effects[(effects.low > 1) | (effects.high < 1)].groupby("table", sort=False):
        moved = "; ".join(
            f"{TITLES[row.change]} {tables.number(row.ratio)} {tables.interval(row.low, row.high)} ({row.ladder})"
            for row in rows.itertuples()
        )
        lines.append(f"{name}: moved by {moved}")
    several = (effects.low < effects.high).sum()
    lines.append(f"Of {several} intervals of 95 %, {0.05 * several:.0f} may leave 1 out by chance.")
    return "\n".join(lines)


def apart(logs: pd.DataFrame) -> pd.DataFrame:
    """The published end against the definitions: one row a table, columns as those of `effects`."""
    tables = {name: [_table(logs, ladder, 0, name) for ladder in ("undoing", "adding")] for name in TABLES.values()}
    return pd.DataFrame([{"table": name, **agreement(*both)} for name, both in tables.items()])


def agreement(one: pd.DataFrame, other: pd.DataFrame) -> dict[str, float]:
    """How two tables of log ratios, of the same cells and models, differ: ratio of the first over the second, low and
    high; cells; and Kendall's tau of the cells, over the pairs of cells of the same main task (tasks differ by more
    than anything else does), with tau_low and tau_high. 1 is the same order. Intervals are 95 %, over images and seeds.
    """
    other = other.loc[one.index]
    difference = pd.DataFrame(one.to_numpy() - other.to_numpy(), one.index, one.columns)
    ratio = np.exp(estimates.interval(estimates.columnwise(difference, pd.Series.mean))).iloc[0]
    main = one.index.get_level_values("main").to_numpy()
    first, second = np.nonzero(np.triu(main[:, None] == main, 1))
    signs = [np.sign(frame.to_numpy()[first] - frame.to_numpy()[second]) for frame in (one, other)]
    size = np.sqrt((signs[0] ** 2).sum(axis=0) * (signs[1] ** 2).sum(axis=0))
    with np.errstate(invalid="ignore", divide="ignore"):
        taus = pd.DataFrame([(signs[0] * signs[1]).sum(axis=0) / size], columns=one.columns)
    tau = estimates.interval(taus).iloc[0]
    row = {"ratio": ratio.value, "low": ratio.low, "high": ratio.high, "cells": int(difference.value.count())}
    return row | {"tau": tau.value, "tau_low": max(tau.low, -1), "tau_high": min(tau.high, 1)}


def _table(logs: pd.DataFrame, ladder: str, number: int, name: str) -> pd.DataFrame:
    return part(logs, ladder=ladder, number=number, table=name).droplevel(RUNG)


@styled()
def verdict_grid(climbed: pd.DataFrame) -> Figure:
    """The verdict on each claim (rows) on each rung (columns), definitions left, all published behaviours right:
    above, changes come in by their order; below, in reverse, which is the ladder "undoing" read from right to left.

    `climbed` is that of `climb`. A cell has a colour and a letter: A agrees, D disagrees, ? open.
    """
    answers = {"published changes come in one by one": (grid(climbed, "adding"), list(CHANGES))}
    undoing = grid(climbed, "undoing").iloc[:, ::-1]
    answers["the same changes, the last one first"] = (undoing, list(CHANGES)[::-1])
    figure, axes = panels(2, 1, (12.5, 0.44 * len(undoing) + 2.0))
    for axis, (how, (verdicts, order)) in zip(axes.flat, answers.items(), strict=True):
        for (row, column), verdict in np.ndenumerate(verdicts.to_numpy()):
            letter, colour, ink = _LOOKS[verdict]
            corner = (column - 0.5, row - 0.5)
            axis.add_patch(plt.Rectangle(corner, 1, 1, facecolor=colour, edgecolor="white", lw=2))
            axis.text(column, row, letter, ha="center", va="center", color=ink, weight="bold")
        labels = ["definitions", *(f"+ {TITLES[name]}" for name in order)]
        labels[-1] += "\n= published"
        axis.set_xticks(range(len(labels)), labels, rotation=35, ha="right", rotation_mode="anchor")
        axis.set_yticks(range(len(verdicts)), [CLAIMS[claim] for claim in verdicts.index])
        axis.set(xlim=(-0.5, len(labels) - 0.5), ylim=(len(verdicts) - 0.5, -0.5))
        axis.set_title(f"From the definitions on: {how}", loc="left", fontsize=12)
        axis.tick_params(length=0)
        axis.spines[:].set_visible(False)
    patches = [plt.Rectangle((0, 0), 1, 1, color=colour) for _, colour, _ in _LOOKS.values()]
    words = [f"{letter}: {answer}" for answer, (letter, *_) in _LOOKS.items()]
    figure.legend(patches, words, loc="outside upper center", ncols=3, frameon=False, title="the paper's claim")
    return figure


@styled()
def effect_sizes(effects: pd.DataFrame, names: list[str]) -> Figure:
    """What each change does to the vulnerabilities of the tables `names`, as ratios with 95 % intervals: filled where
    the rest is (mostly) as defined, open where it is as published; two tables a row. `effects` is that of `effects`."""
    figure, axes = panels(len(names), min(len(names), 2), (3.8, 5.0), (3.2, 0.4), sharey=True)
    looks = {"adding": ("black", -0.15, "among definitions"), "undoing": ("white", 0.15, "among published behaviours")}
    for axis, name in zip(axes.flat, names, strict=False):
        of_table = effects[effects.table == name]
        axis.axvline(1, color="0.6", linewidth=1)
        for ladder, (fill, shift, label) in looks.items():
            rows = of_table[of_table.ladder == ladder]
            place = [list(CHANGES).index(change) + shift for change in rows.change]
            style = {"fmt": "o", "color": "black", "markerfacecolor": fill, "capsize": 2, "label": label}
            axis.errorbar(rows.ratio, place, xerr=reach(rows, "ratio"), **style)
        low, high = min(0.2, 0.8 * of_table.ratio.min()), max(5, 1.25 * of_table.ratio.max())
        ticks = [tick for tick in (0.02, 0.1, 0.25, 0.5, 1, 2, 4, 10, 50) if low <= tick <= high]
        axis.set(xscale="log", xlim=(low, high), title=name)
        axis.set_xlabel("vulnerability with the change\nover without it (ratio)")
        axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axis.xaxis.set_minor_formatter(NullFormatter())
    axes[0][0].set_yticks(range(len(CHANGES)), [TITLES[change] for change in CHANGES])
    axes[0][0].invert_yaxis()
    figure.legend(*axes[0][0].get_legend_handles_labels(), loc="outside upper center", ncols=2, frameon=False)
    return figure
