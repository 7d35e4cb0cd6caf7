"""What one reads off the `ladder`: the verdict of every rung on claims of RQ1 and RQ3, what each change does to the
tables and to the order of their cells, and the two figures of both (paper, Tables 1 and 2; arXiv 2110.15053)."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from mtrlib.claims import AGREES, DISAGREES, OPEN, judging
from mtrlib.claims.judging import shares, values
from mtrlib.claims.questions import against, by, part
from mtrlib.figures.style import STYLE
from mtrlib.metrics import estimates, tables
from mtrlib.metrics.estimates import mean_ratios
from mtrlib.studies.fidelity import CHANGES, TITLES
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


def findings(rung: pd.DataFrame) -> pd.DataFrame:
    """What RQ1's claims 1.1 to 1.3 and RQ3's 3.1 to 3.3 say of one rung, by the rules of all claims; Auto-PGD is no
    part, since the published code has none, and claim 3.2 is asked of joint attacks and of single-task models apart.

    Parameters
    ----------
    rung : log ratios, as `ladder.run` gives them, indexed by panel to auxiliary.
    """
    known = pd.Series(True, rung.index)
    pairs = rung[rung.index.get_level_values("main") != rung.index.get_level_values("auxiliary")]
    against_alone = against(part(rung, panel="uniform"), known, auxiliary="")
    weighted = against(part(pairs, setting="pgd"), known, panel="uniform")
    linf, single = part(rung, setting=["pgd", "wgd"]), rung.index.difference(pairs.index)
    stronger = {"3.2 two tasks": part(linf, attacked="joint"), "3.2 one task": linf[linf.index.isin(single)]}
    found = {
        "1.1": shares("1.1", by(part(against_alone, setting="l2"), "setting", "attacked")),
        "1.2": shares("1.2", by(part(against_alone, setting="pgd"), "setting", "attacked")),
        "1.3": shares("1.3", by(part(against_alone, setting="pgd", attacked="single"), "setting", "attacked")),
        "3.1": shares("3.1", by(weighted, "setting", "attacked")),
    }
    for claim, rows in stronger.items():
        found[claim] = values("3.2", by(mean_ratios(rows, ["setting"], same_models=True, setting="pgd"), "setting"))
    same = mean_ratios(part(pairs, setting="wgd"), ["setting"], panel="uniform")
    found["3.3"] = values("3.3", by(same, "setting"))
    return pd.concat([judging.frame(rows).assign(claim=claim) for claim, rows in found.items()], ignore_index=True)


def climb(logs: pd.DataFrame) -> pd.DataFrame:
    """`findings` of every rung, with its ladder, step and change; logs as `ladder.run` gives them."""
    rungs = logs.groupby(level=["ladder", "number", "change"], sort=False)
    parts = [
        findings(rung.droplevel(RUNG)).assign(ladder=ladder, step=number, change=change)
        for (ladder, number, change), rung in rungs
    ]
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
    adding, undoing = (grid(climbed, ladder) for ladder in ("adding", "undoing"))
    words = {(True, True): "both", (True, False): "definitions only"}
    words |= {(False, True): "published behaviour only", (False, False): "neither"}
    rows = []
    for claim, added in adding.iterrows():
        defined, published = added.iloc[0], undoing.loc[claim].iloc[0]
        stands = words[defined == AGREES, published == AGREES]
        turns = {
            f"verdict turns, {name}": "; ".join(
                TITLES[change] for change, one, two in zip(CHANGES, line, line.iloc[1:], strict=False) if one != two
            )
            for name, line in (("adding", added), ("undoing", undoing.loc[claim]))
        }
        unknown = OPEN in (defined, published)
        row = {"claim": CLAIMS[claim], "definitions": defined, "published behaviour": published}
        rows.append({**row, "stands under": OPEN if unknown else stands, **turns})
    return pd.DataFrame(rows)


def effects(logs: pd.DataFrame) -> pd.DataFrame:
    """What each change does to each table: errors under attack over clean ones with it, over those without, and the
    order of the cells.

    Returns
    -------
    One row a ladder, change and table: ratio (geometric mean over images and cells), low, high (95 %), cells, and tau,
    tau_low, tau_high (`agreement`). With and without differ in this one change; on the ladder "adding" the rest is as
    defined, but for earlier changes; on "undoing" it is as published, but for earlier ones.
    """
    rows = []
    for ladder in dict.fromkeys(logs.index.get_level_values("ladder")):
        for number, change in enumerate(CHANGES, start=1):
            with_it, without = (number, number - 1) if ladder == "adding" else (number - 1, number)
            for name in TABLES.values():
                one, other = (_table(logs, ladder, n, name) for n in (with_it, without))
                rows.append({"ladder": ladder, "change": change, "table": name, **agreement(one, other)})
    return pd.DataFrame(rows)


def told(effects: pd.DataFrame) -> str:
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
    rows = []
    for name in TABLES.values():
        published, defined = (_table(logs, ladder, 0, name) for ladder in ("undoing", "adding"))
        rows.append({"table": name, **agreement(published, defined)})
    return pd.DataFrame(rows)


def agreement(one: pd.DataFrame, other: pd.DataFrame) -> dict[str, float]:
    """How two tables of log ratios, of the same cells and models, differ: ratio of the first over the second, low and
    high; cells; and Kendall's tau of the cells, over the pairs of cells of the same main task (tasks differ by more
    than anything else does), with tau_low and tau_high. 1 is the same order. Intervals are 95 %, over images and seeds.
    """
    other = other.loc[one.index]
    difference = pd.DataFrame(one.to_numpy() - other.to_numpy(), one.index, one.columns)
    ratio = np.exp(estimates.interval(estimates.columnwise(difference, pd.Series.mean))).iloc[0]
    main = one.index.get_level_values("main").to_numpy()
    first, second = np.triu_indices(len(main), 1)
    first, second = first[main[first] == main[second]], second[main[first] == main[second]]
    signs = [np.sign(frame.to_numpy()[first] - frame.to_numpy()[second]) for frame in (one, other)]
    size = np.sqrt((signs[0] ** 2).sum(axis=0) * (signs[1] ** 2).sum(axis=0))
    with np.errstate(invalid="ignore", divide="ignore"):
        taus = pd.DataFrame([(signs[0] * signs[1]).sum(axis=0) / size], columns=one.columns)
    tau = estimates.interval(taus).iloc[0]
    row = {"ratio": ratio.value, "low": ratio.low, "high": ratio.high, "cells": int(difference.value.count())}
    return row | {"tau": tau.value, "tau_low": max(tau.low, -1), "tau_high": min(tau.high, 1)}


def _table(logs: pd.DataFrame, ladder: str, number: int, name: str) -> pd.DataFrame:
    return part(logs, ladder=ladder, number=number, table=name).droplevel(RUNG)


def verdict_grid(climbed: pd.DataFrame) -> Figure:
    """The verdict on each claim (rows) on each rung (columns), definitions left, all published behaviours right:
    above, changes come in by their order; below, in reverse, which is the ladder "undoing" read from right to left.

    `climbed` is that of `climb`. A cell has a colour and a letter: A agrees, D disagrees, ? open.
    """
    looks = {AGREES: ("A", "#0072B2", "white"), DISAGREES: ("D", "#E69F00", "black")}
    looks[OPEN] = ("?", "0.92", "0.35")
    grids = {ladder: grid(climbed, ladder) for ladder in ("adding", "undoing")}
    names = list(CHANGES)
    with plt.rc_context(STYLE):
        size = (12.5, 0.44 * 2 * len(grids["adding"]) + 4.0)
        figure, axes = plt.subplots(2, 1, figsize=size, layout="constrained")
        for axis, (ladder, answers) in zip(axes, grids.items(), strict=True):
            answers = answers.iloc[:, ::-1] if ladder == "undoing" else answers
            for (row, column), answer in np.ndenumerate(answers.to_numpy()):
                letter, colour, ink = looks[answer]
                axis.add_patch(
                    plt.Rectangle((column - 0.5, row - 0.5), 1, 1, facecolor=colour, edgecolor="white", lw=2)
                )
                axis.text(column, row, letter, ha="center", va="center", color=ink, weight="bold")
            order = names if ladder == "adding" else names[::-1]
            labels = ["definitions", *(f"+ {TITLES[name]}" for name in order[:-1])]
            labels.append(f"+ {TITLES[order[-1]]}\n= published")
            axis.set_xticks(range(len(labels)), labels, rotation=35, ha="right", rotation_mode="anchor")
            axis.set_yticks(range(len(answers)), [CLAIMS[claim] for claim in answers.index])
            axis.set(xlim=(-0.5, len(labels) - 0.5), ylim=(len(answers) - 0.5, -0.5))
            how = (
                "published changes come in one by one" if ladder == "adding" else "the same changes, the last one first"
            )
            axis.set_title(f"From the definitions on: {how}", loc="left", fontsize=12)
            axis.tick_params(length=0)
            axis.spines[:].set_visible(False)
        patches = [plt.Rectangle((0, 0), 1, 1, color=colour) for _, colour, _ in looks.values()]
        words = [f"{letter}: {answer}" for answer, (letter, *_) in looks.items()]
        figure.legend(patches, words, loc="outside upper center", ncols=3, frameon=False, title="the paper's claim")
    plt.close(figure)
    return figure


def effect_sizes(effects: pd.DataFrame, names: list[str]) -> Figure:
    """What each change does to the vulnerabilities of the tables `names`, as ratios with 95 % intervals: filled where
    the rest is (mostly) as defined, open where it is as published; two tables a row. `effects` is that of `effects`."""
    with plt.rc_context(STYLE):
        columns = min(len(names), 2)
        rows = -(-len(names) // columns)
        size = (3.8 * columns + 3.2, 5.0 * rows + 0.4)
        figure, axes = plt.subplots(rows, columns, figsize=size, sharey=True, layout="constrained", squeeze=False)
        for axis in axes.flat[len(names) :]:
            axis.set_visible(False)
        for axis, name in zip(axes.flat, names, strict=False):
            axis.axvline(1, color="0.6", linewidth=1)
            for ladder, fill, shift in (("adding", "black", -0.15), ("undoing", "white", 0.15)):
                rows = effects[(effects.table == name) & (effects.ladder == ladder)]
                place = [list(CHANGES).index(change) + shift for change in rows.change]
                ends = [np.maximum(rows.ratio - rows.low, 0), np.maximum(rows.high - rows.ratio, 0)]
                label = {"adding": "among definitions", "undoing": "among published behaviours"}[ladder]
                style = {"fmt": "o", "color": "black", "markerfacecolor": fill, "capsize": 2}
                axis.errorbar(rows.ratio, place, xerr=ends, label=label, **style)
            axis.set_xscale("log")
            found = effects[effects.table == name].ratio
            axis.set_xlim(min(0.2, 0.8 * found.min()), max(5, 1.25 * found.max()))
            low, high = axis.get_xlim()
            ticks = [tick for tick in (0.02, 0.1, 0.25, 0.5, 1, 2, 4, 10, 50) if low <= tick <= high]
            axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
            axis.xaxis.set_minor_formatter(NullFormatter())
            axis.set(title=name, xlabel="vulnerability with the change\nover without it (ratio)")
        axes[0][0].set_yticks(range(len(CHANGES)), [TITLES[change] for change in CHANGES])
        axes[0][0].invert_yaxis()
        figure.legend(*axes[0][0].get_legend_handles_labels(), loc="outside upper center", ncols=2, frameon=False)
    plt.close(figure)
    return figure
