"""What the printed tables say by themselves: cells that cannot be right, and which claims follow from them.

Nothing here is trained or attacked; the tables are those of `published.vulnerability` (arXiv 2110.15053).
"""

import numpy as np
import pandas as pd

from mtrlib.claims import judging, published, questions
from mtrlib.claims.judging import AGREES, DISAGREES, NOT_MEASURED, OPEN
from mtrlib.metrics import estimates

FOLLOWS, DOES_NOT, NO_TABLE = "follows", "does not follow", "no printed table"


def equal_cells(table: str = "4", other: str = "6") -> pd.DataFrame:
    """Cells that two printed tables, of different networks, have in common: the supplement's Table 4 is of Xception,
    Table 6 of ResNet-152.

    Returns
    -------
    One row a cell of main and auxiliary task: clean, single and joint, true where that number is the same, and
    clean_times_100, true where it is a hundred times the other's up to rounding.
    """
    ways = {"clean": "none", "single": "single", "joint": "joint"}
    one, two = (
        pd.DataFrame({way: published.vulnerability(name, of).T.unstack() for way, of in ways.items()})
        for name in (table, other)
    )
    same = (one == two).assign(clean_times_100=(one.clean / 100 - two.clean).abs() <= 0.00501)
    return same[same.any(axis=1)].rename_axis(["main", "auxiliary"]).reset_index()


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
    """For every claim, whether it follows from the printed tables, by the rules that judge our own: number, claim,
    verdict (`FOLLOWS`, `DOES_NOT`, `OPEN`, or `NO_TABLE` where nothing is printed that the rules could be asked of) and
    what was computed, the findings that decide it."""
    tables = findings()
    words = {AGREES: FOLLOWS, DISAGREES: DOES_NOT, OPEN: OPEN, NOT_MEASURED: NO_TABLE}
    rows = []
    for number, claim in published.claims().claim.items():
        own = tables[(tables.number == number) & tables.decides]
        verdict = judging.verdict(own)
        computed = " ".join(judging.lines(own[own.verdict == verdict]))
        rows.append({"number": number, "claim": claim, "verdict": words[verdict], "computed": computed})
    return pd.DataFrame(rows)


def findings() -> pd.DataFrame:
    """The findings of the printed tables. Each number is the mean of ratios (adversarial - clean) / clean, so its log
    ratio is taken as log(1 + number); it has no interval. Table 2 does not say what was attacked: it stands for single
    and joint attacks alike."""
    encoders = {("encoders", name): table for name, table in published.ENCODERS.items()}
    auxiliaries = _cells({("table", "linf"): "1A", **encoders})
    weighted = {"uniform": "A", "published": "B"}
    weights = _cells(
        {(panel, "pgd"): f"1{part}" for panel, part in weighted.items()}
        | {(panel, attack): f"2{part} {attack}" for panel, part in weighted.items() for attack in ("apgd", "wgd")}
    )
    small, large = (np.log1p(_column(published.vulnerability(table))) for table in ("2", "3"))
    clean = _column(published.vulnerability("3", "none"))
    rows = [*questions.of_auxiliaries(auxiliaries, auxiliaries.value.notna())]
    rows += questions.of_weights(weights, weights.value.notna())
    about = ", resnet18 for resnet50"
    rows += questions.of_proxies({"cheaper encoder": small, "clean error": clean}, large, 0, about)
    return judging.frame(rows)


def _cells(tables: dict[tuple[str, str], str]) -> pd.DataFrame:
    """Log ratios of printed tables, by panel and setting, as `estimates` gives ours, but of one column."""
    parts = {}
    for where, table in tables.items():
        for attacked in ("single", "joint"):
            matrix = published.vulnerability(table, "as_published" if " " in table else attacked)
            alone = np.eye(len(matrix), dtype=bool)
            parts[*where, attacked] = np.log1p(matrix.where(~alone) if attacked == "joint" else matrix).stack().dropna()
    return pd.concat(parts).rename_axis(estimates.CELL).to_frame("value")


def _column(matrix: pd.DataFrame) -> pd.DataFrame:
    """A printed table as `correlation.within` takes it."""
    frame = matrix.stack().dropna().rename_axis(["main", "auxiliary"]).to_frame()
    return frame.set_axis(pd.MultiIndex.from_tuples([("printed", 0)]), axis=1)
