"""What the printed tables say by themselves: cells that cannot be right, and which claims follow from them.

Nothing here is trained or attacked; the tables are those of `published.vulnerability` (arXiv 2110.15053).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd

from mtrlib.claims import published

FOLLOWS, DOES_NOT, FIGURES, THEORY = "follows", "does not follow", "figures only", "theory, no table"
STATED = "stated only"  # the number of the claim is printed, what it was computed from is not
MUCH, WITHIN, RELIABLE = 1.5, 0.2, 0.95  # how the words of claims 3.2, 3.3 and 1.2 are read
_IN_FIGURES = ("1.1", "1.4", "1.6", "2.1", "2.3")


def equal_cells(table: str = "4", other: str = "6") -> pd.DataFrame:
    """Cells that two printed tables, of different networks, have in common: the supplement's Table 4 is of Xception,
    Table 6 of ResNet-152.

    Returns
    -------
    One row a cell of main and auxiliary task: clean, single and joint, true where that number is the same, and
    clean_times_100, true where it is a hundred times the other's up to rounding.
    """
    ways = {"clean": "none", "single": "single", "joint": "joint"}
    both = {way: [published.vulnerability(name, of) for name in (table, other)] for way, of in ways.items()}
    rows = []
    for main in both["single"][0].index:
        for auxiliary in both["single"][0].columns:
            pairs = {way: [matrix.loc[main, auxiliary] for matrix in matrices] for way, matrices in both.items()}
            row = {way: one == two for way, (one, two) in pairs.items()}
            one, two = pairs["clean"]
            row["clean_times_100"] = abs(one / 100 - two) <= 0.00501
            if any(row.values()):
                rows.append({"main": main, "auxiliary": auxiliary, **row})
    return pd.DataFrame(rows)


def wgd_on_one_task() -> pd.DataFrame:
    """The single-task models, on which WGD is PGD: what is printed for PGD (Table 1 A; supplement Table 2), for WGD and
    for Auto-PGD (Table 2 A and B, the same models and attacks twice), a row a main task, and ratios.

    wgd_over_pgd and wgd_over_pgd_supplement should be 1; wgd_twice and apgd_twice (B over A) differ from 1 by what two
    runs of one attack differ.
    """
    names = {"pgd": ("1A", "single"), "pgd_supplement": ("2", "single")}
    names |= {f"{attack}_{part}": (f"2{part} {attack}", "as_published") for attack in ("wgd", "apgd") for part in "AB"}
    printed = {name: published.vulnerability(*of) for name, of in names.items()}
    table = pd.DataFrame({name: np.diag(matrix) for name, matrix in printed.items()}, index=printed["pgd"].index)
    table["wgd_over_pgd"] = table.wgd_A / table.pgd
    table["wgd_over_pgd_supplement"] = table.wgd_A / table.pgd_supplement
    table["wgd_twice"], table["apgd_twice"] = table.wgd_B / table.wgd_A, table.apgd_B / table.apgd_A
    return table.rename_axis("main").reset_index()


def table_1a_again() -> pd.DataFrame:
    """The supplement's Table 2 over Table 1 A: both are of ResNet-18 with uniform weights under PGD. The published jobs
    of the first have eps = 8/255, those of the models of Table 1 have 4/255.

    Returns
    -------
    One row a main task and way to attack: lowest, mean (geometric) and highest ratio of its cells, and their number.
    """
    rows = []
    for attacked in ("single", "joint"):
        ratio = published.vulnerability("2", attacked) / published.vulnerability("1A", attacked)
        for main, cells in ratio.iterrows():
            cells = cells.dropna()
            values = {"lowest": cells.min(), "mean": np.exp(np.log(cells).mean()), "highest": cells.max()}
            rows.append({"main": main, "attacked": attacked, **values, "cells": len(cells)})
    return pd.DataFrame(rows)


def sentences() -> dict[str, str]:
    """What a reader should see in `equal_cells`, `wgd_on_one_task` and `table_1a_again`, in words."""
    same, alone, again = equal_cells(), wgd_on_one_task(), table_1a_again()
    pairs = ", ".join(same.auxiliary + " with " + same.main)
    cells = f"{len(same)} of 25 cells of Table 4 are those of Table 6, single and joint: {pairs} (auxiliary with main)."
    cells += f"\nClean errors: {same.clean.sum()} the same, {same.clean_times_100.sum()} a hundred times as large."
    lines = [
        f"WGD over {what} on one task, which should be 1: {alone[column].min():.1f} to {alone[column].max():.1f}"
        for what, column in (("PGD of Table 1 A", "wgd_over_pgd"), ("the supplement's PGD", "wgd_over_pgd_supplement"))
    ]
    twice = (alone.apgd_twice - 1).abs().max()
    lines.append(f"Auto-PGD, printed twice for the same single-task models, differs from itself by up to {twice:.0%}.")
    means = again[again.main != "s"]["mean"]
    over = f"Supplement Table 2 over Table 1 A, means by main task but s: {means.min():.2f} to {means.max():.2f}."
    return {"equal cells": cells, "wgd on one task": "\n".join(lines), "table 1 A again": over}


def follows() -> pd.DataFrame:
    """For every claim, whether it follows from the printed tables, computed from them: number, claim, verdict (one of
    `FOLLOWS`, `DOES_NOT`, `FIGURES`, `STATED`, `THEORY`) and what was computed."""
    rows = []
    for number, claim in published.claims().claim.items():
        if number in _IN_FIGURES:
            verdict, computed = FIGURES, ""
        elif number == "4.1":
            verdict, computed = STATED, _early()
        elif number in _COMPUTED:
            holds, computed = _COMPUTED[number]()
            verdict = FOLLOWS if holds else DOES_NOT
        else:
            verdict, computed = THEORY, ""
        rows.append({"number": number, "claim": claim, "verdict": verdict, "computed": computed})
    return pd.DataFrame(rows)


def _less(table: str, attacked: str = "single") -> pd.DataFrame:
    """True where a two-task cell of a printed table is below the single-task model of its row, which is printed with
    the attacks on one task."""
    alone = published.vulnerability(table, "as_published" if " " in table else "single")
    matrix = alone if " " in table else published.vulnerability(table, attacked)
    less = matrix.lt(np.diag(alone), axis=0)
    return less & ~np.eye(len(less), dtype=bool)


def _not_reliable() -> tuple[bool, str]:
    counts = {attacked: int(_less("1A", attacked).to_numpy().sum()) for attacked in ("single", "joint")}
    told = ", ".join(f"{count} of 20 cells less vulnerable ({attacked})" for attacked, count in counts.items())
    return max(counts.values()) / 20 < RELIABLE, told


def _never_helps() -> tuple[bool, str]:
    helpers = _less("1A").sum(axis=1)
    return not helpers.any(), "auxiliary tasks that lower it: " + ", ".join(f"{m} {n}" for m, n in helpers.items())


def _large_encoders() -> tuple[bool, str]:
    counts = {
        name: 20 - int(_less(table).to_numpy().sum()) for table, name in (("3", "ResNet-50"), ("6", "ResNet-152"))
    }
    told = ", ".join(f"{name} {count} of 20" for name, count in counts.items())
    share = sum(counts.values()) / 40
    return round(share, 1) >= 0.8, f"more vulnerable: {told}, {share:.1%} together"


def _weights_lower() -> tuple[bool, str]:
    lower = sum(
        int((published.vulnerability("1B", way) < published.vulnerability("1A", way)).to_numpy().sum())
        for way in ("single", "joint")
    )
    return lower == 40, f"lower in {lower} of 40 cells"


def _stronger() -> tuple[bool, str]:
    ways = [(attack, attacked) for attack in ("apgd", "wgd") for attacked in ("single", "joint")]
    ratios = {way: published.ratio(f"2A {way[0]}", "1A", way[1]).ratio for way in ways}
    told = ", ".join(f"{attack} {ratio:.2f} times PGD's {attacked}" for (attack, attacked), ratio in ratios.items())
    return min(ratios.values()) >= MUCH, told


def _as_vulnerable() -> tuple[bool, str]:
    ratios = {attack: published.ratio(f"2B {attack}", f"2A {attack}").ratio for attack in ("apgd", "wgd")}
    told = "weighted over uniform: " + ", ".join(f"{attack} {ratio:.2f}" for attack, ratio in ratios.items())
    return all(1 / (1 + WITHIN) < ratio < 1 + WITHIN for ratio in ratios.values()), told


def _some_helps() -> tuple[bool, str]:
    without = []
    for table in ("2A apgd", "2B apgd", "2A wgd", "2B wgd"):
        none = [main for main, helped in _less(table).any(axis=1).items() if not helped]
        without += [f"{table}: {', '.join(none)}"] if none else []
    return not without, "no auxiliary task helps in " + "; ".join(without) if without else "one helps everywhere"


def _early() -> str:
    row = published.read("selection_table3").set_index("proxy").loc["50 epochs"]
    return f"printed as r = {row.pearson}, p = {row.p_value:.3f}"


def _pearson(one: pd.DataFrame, two: pd.DataFrame) -> float:
    return float(np.corrcoef(one.to_numpy().ravel(), two.to_numpy().ravel())[0, 1])


def _surrogate() -> tuple[bool, str]:
    found = {
        way: _pearson(published.vulnerability("2", way), published.vulnerability("3", way))
        for way in ("joint", "single")
    }
    told = "supplement Tables 2 and 3, pooled: " + ", ".join(f"r = {r:.2f} ({way})" for way, r in found.items())
    return max(found.values()) >= 0.935, told


def _clean_predicts() -> tuple[bool, str]:
    clean, vulnerability = published.vulnerability("2", "none"), published.vulnerability("2")
    pooled = _pearson(clean, vulnerability)
    within = [_pearson(clean.loc[[main]], vulnerability.loc[[main]]) for main in clean.index]
    told = f"clean error and vulnerability: r = {pooled:.2f}; within main tasks {min(within):.2f} to {max(within):.2f}"
    return pooled > 0 and min(within) > 0, f"supplement Table 2, {told}"


_COMPUTED: dict[str, Callable[[], tuple[bool, str]]] = {
    "1.2": _not_reliable,
    "1.3": _never_helps,
    "1.5": _large_encoders,
    "3.1": _weights_lower,
    "3.2": _stronger,
    "3.3": _as_vulnerable,
    "3.4": _some_helps,
    "4.2": _surrogate,
    "4.3": _clean_predicts,
}
