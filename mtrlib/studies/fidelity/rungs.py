"""What one reads off the `ladder`: the verdict of every rung on claims of RQ1 and RQ3, what each change does to the
tables and to the order of their cells, and the two figures of both (paper, Tables 1 and 2; arXiv 2110.15053)."""

from __future__ import annotations

import warnings
from contextlib import contextmanager

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from mtrlib import metrics
from mtrlib.claims import verdicts as claims
from mtrlib.figures.style import STYLE
from mtrlib.metrics import tables
from mtrlib.studies.fidelity import CHANGES, TITLES
from mtrlib.studies.fidelity.ladder import TABLES

MUCH, WITHIN = 1.5, 0.2  # how RQ3 reads "much stronger" and "as vulnerable"
CLAIMS = {
    "1.1": "1.1 l2: auxiliary tasks help",
    "1.2": "1.2 l-infinity: not reliably",
    "1.3": "1.3 l-infinity: never",
    "3.1": "3.1 weights help against PGD",
    "3.2 two tasks": "3.2 WGD is much stronger",
    "3.2 one task": "3.2 also on one task",
    "3.3": "3.3 weights do not help against WGD",
}


def verdicts(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of `claims` for one rung of `run`: RQ1's claims 1.1 to 1.3 and RQ3's 3.1 to 3.3, of which Auto-PGD is no
    part, since the published code has none. Claim 3.2 is asked of joint attacks and of single-task models apart."""
    pairs = table[table.main != table.auxiliary]
    compared = tables.against_single_task(table[(table.panel == "uniform") & (table.setting != "wgd")])
    shares = tables.share_less_vulnerable(compared)
    weighted = tables.against(pairs[pairs.setting != "l2"], "panel", "uniform")
    stronger = tables.against(table[table.setting != "l2"], "setting", "pgd")
    with _no_ratio_is_nan():
        alone = tables.mean_ratio(stronger[stronger.main == stronger.auxiliary], by=["attacked"])
        together = tables.mean_ratio(stronger[stronger.attacked == "joint"], by=["attacked"])
        same = tables.mean_ratio(weighted[weighted.setting == "wgd"], by=["setting", "attacked"])
    single = compared[(compared.setting == "pgd") & (compared.attacked == "single")]
    told = {
        "1.1": claims.shares(shares[shares.setting == "l2"], "1.1", 0.5, "above"),
        "1.2": claims.shares(shares[shares.setting == "pgd"], "1.2", claims.RELIABLE, "below"),
        "1.3": claims.never_helps(single, "1.3"),
        "3.1": claims.every_helps(weighted[weighted.setting == "pgd"], "3.1"),
        "3.2 two tasks": claims.stronger(together, "3.2", MUCH),
        "3.2 one task": claims.stronger(alone, "3.2", MUCH),
        "3.3": claims.equivalent(same, "3.3", WITHIN),
    }
    return pd.concat([rows.assign(claim=claim) for claim, rows in told.items()], ignore_index=True)


def climb(table: pd.DataFrame) -> pd.DataFrame:
    """`verdicts` of every rung of `run`, with its ladder, number and change."""
    rows = []
    for (ladder, number, change), rung in table.groupby(["ladder", "number", "change"], sort=False):
        rows.append(verdicts(rung).assign(ladder=ladder, step=number, change=change))
    return pd.concat(rows, ignore_index=True)


def grid(climbed: pd.DataFrame, ladder: str) -> pd.DataFrame:
    """One verdict a claim and rung of a ladder, of all that `climb` has on it: claims as rows, changes as columns."""
    rows = climbed[climbed.ladder == ladder]
    answers = rows.groupby(["claim", "change"], sort=False).verdict.agg(lambda told: claims.all_of(list(told)))
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
        stands = words[defined == claims.AGREES, published == claims.AGREES]
        turns = {
            f"verdict turns, {name}": "; ".join(
                TITLES[change] for change, one, two in zip(CHANGES, line, line.iloc[1:], strict=False) if one != two
            )
            for name, line in (("adding", added), ("undoing", undoing.loc[claim]))
        }
        unknown = claims.OPEN in (defined, published)
        row = {"claim": CLAIMS[claim], "definitions": defined, "published behaviour": published}
        rows.append({**row, "stands under": claims.OPEN if unknown else stands, **turns})
    return pd.DataFrame(rows)


def effects(table: pd.DataFrame) -> pd.DataFrame:
    """What each change does to each table: vulnerabilities with it over those without, and the order of the cells.

    Returns
    -------
    One row a ladder, change and table: ratio (geometric mean over cells), low, high, cells, as `tables.mean_ratio`, and
    tau, tau_low, tau_high, as `agreement` of both. With and without differ in this one change; on the ladder "adding"
    the rest is as defined, but for earlier changes; on "undoing" it is as published, but for earlier ones.
    """
    rows = []
    for ladder, found in table.groupby("ladder", sort=False):
        for number, change in enumerate(CHANGES, start=1):
            before, after = (found[found.number == n] for n in (number - 1, number))
            without, having = (before, after) if ladder == "adding" else (after, before)
            for name in TABLES.values():
                one, other = having[having.table == name], without[without.table == name]
                ratio = _ratio(one, other)
                rows.append({"ladder": ladder, "change": change, "table": name, **ratio, **agreement(one, other)})
    return pd.DataFrame(rows)


def apart(table: pd.DataFrame) -> pd.DataFrame:
    """The published end against the definitions: one row a table, columns as those of `effects`."""
    ends = [table[(table.ladder == ladder) & (table.number == 0)] for ladder in ("undoing", "adding")]
    rows = []
    for name in TABLES.values():
        published, defined = (end[end.table == name] for end in ends)
        rows.append({"table": name, **_ratio(published, defined), **agreement(published, defined)})
    return pd.DataFrame(rows)


def agreement(one: pd.DataFrame, other: pd.DataFrame) -> dict[str, float]:
    """Kendall's tau of the cells of two tables, over the pairs of cells of the same main task (tasks differ by more
    than anything else does): tau, and tau_low and tau_high over resampled images. 1 is the same order."""
    keys = ["attacked", "main", "auxiliary"]
    one, other = (rows.sort_values(keys) for rows in (one, other))
    main = one.main.to_numpy()
    first, second = np.triu_indices(len(main), 1)
    pairs = main[first] == main[second]
    first, second = first[pairs], second[pairs]

    def tau(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        x, y = np.sign(x[first] - x[second]), np.sign(y[first] - y[second])
        size = np.sqrt((x**2).sum(axis=0) * (y**2).sum(axis=0))
        return np.where(size > 0, (x * y).sum(axis=0) / np.maximum(size, 1), np.nan)

    drawn = tau(*(np.stack(rows.replicates.to_list()) for rows in (one, other)))
    with _no_ratio_is_nan():
        low, high = metrics.interval(drawn)
    value = tau(one.value.to_numpy(), other.value.to_numpy())
    return {"tau": float(value), "tau_low": float(low), "tau_high": float(high)}


def verdict_grid(climbed: pd.DataFrame) -> Figure:
    """The verdict on each claim (rows) on each rung (columns), definitions left, all published behaviours right:
    above, changes come in by their order; below, in reverse, which is the ladder "undoing" read from right to left.

    `climbed` is that of `climb`. A cell has a colour and a letter: A agrees, D disagrees, ? open.
    """
    looks = {claims.AGREES: ("A", "#0072B2", "white"), claims.DISAGREES: ("D", "#E69F00", "black")}
    looks[claims.OPEN] = ("?", "0.92", "0.35")
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


@contextmanager
def _no_ratio_is_nan():
    """The vulnerabilities of an attack that does next to nothing may all be 0 or less: NaN then, without a word."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        yield


def _ratio(one: pd.DataFrame, other: pd.DataFrame) -> dict[str, float]:
    """How many times those of `other` the vulnerabilities of `one` are, as `tables.mean_ratio`."""
    both = pd.concat([one.assign(side="one"), other.assign(side="other")])
    with _no_ratio_is_nan():
        found = tables.mean_ratio(tables.against(both, "side", "other", cells=("side", *tables.CELL)), by=["side"])
    return found.iloc[0].drop("side").to_dict()
