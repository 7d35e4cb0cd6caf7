"""The numbers and claims that the paper prints, as tables of the shape of ours.

Transcribed from the paper (arXiv 2110.15053), its Tables 1 to 3, and its supplement, Tables 1 to 6 and appendix B.
Figures 12 and 13 of the supplement (orders of tasks) are read off the pictures, to about 2 %.
"""

from importlib.resources import files

import numpy as np
import pandas as pd

from mtrlib.tasks import TASKS, Task

# The encoders of the supplement's Tables 2 to 6.
ENCODERS = {"resnet18": "2", "resnet50": "3", "xception_small": "4", "wide_resnet50_2": "5", "resnet152": "6"}
OTHERS = ("RQ5", "RQ6")  # the questions whose claims are other papers' or nobody's
ATTACKED = {"single": "main", "joint": "both", "as_published": "as_published", "none": "none"}


def read(name: str) -> pd.DataFrame:
    """One of the transcribed files, as it is: "vulnerability_tables", "selection_table3", "settings_supplement_table1",
    "orders_supplement" or "claims"."""
    path = files("mtrlib.claims") / f"{name}.csv"
    if not path.is_file():
        raise ValueError(f"There is no published table {name!r}. There are: {', '.join(_names())}.")
    with path.open() as file:
        return pd.read_csv(file, dtype={"id": str, "table": str})


def vulnerability(table: str = "1A", attacked: str = "single", tasks: str | None = None) -> pd.DataFrame:
    """A printed table of vulnerabilities, main tasks as rows, auxiliary tasks as columns: as `tables.matrix`.

    Parameters
    ----------
    table : "1A", "1B", "2A", "2B" of the paper, "2" to "6" of the supplement. Table 2 has two attacks: "2A apgd".
    attacked : "single" (only the main task), "joint" (main and auxiliary), "as_published" (Table 2, which does not
        say) or "none" (the clean error, in the units of the printed table).
    tasks : letters to show; None for all that are printed.

    Returns
    -------
    DataFrame, float; the diagonal is the single-task model; NaN where the paper prints nothing.
    """
    if attacked not in ATTACKED:
        raise ValueError(f"Parameter attacked should be one of {', '.join(ATTACKED)}. Found attacked = {attacked!r}.")
    rows = read("vulnerability_tables")
    name, _, attack = table.partition(" ")
    rows = rows[(rows.table == name) & (rows.attacked == ATTACKED[attacked])]
    if attack:
        rows = rows[rows.attack == attack]
    if rows.empty or rows.duplicated(["main", "auxiliary"]).any():
        raise ValueError(f"There is no single published table {table!r} with attacked = {attacked!r}.")
    letters = [letter for letter in (tasks or TASKS) if tasks or letter in set(rows.main)]
    return rows.pivot(index="main", columns="auxiliary", values="value").reindex(index=letters, columns=letters)


def beside(measured: pd.DataFrame, tasks: dict[str, Task], printed: dict[str, pd.DataFrame]) -> dict[str, pd.DataFrame]:
    """Printed matrices in the shape of a measured one, to stand beside it: numbers of the paper's own tasks alone.

    Parameters
    ----------
    measured : main x auxiliary, as `tables.matrix` gives it.
    tasks : definitions of the data set, by letter. Under a letter that it defines anew nothing printed stands.
    printed : by title. Those of which nothing is left are left out.
    """
    own = [letter for letter in measured.index if letter in tasks and tasks[letter].is_papers]
    shaped = {title: matrix.reindex(index=own, columns=own) for title, matrix in printed.items()}
    return {title: matrix.reindex_like(measured) for title, matrix in shaped.items() if matrix.notna().any(axis=None)}


def more_vulnerable(table: str) -> pd.Series:
    """How many two-task cells of a printed table are more vulnerable than the single-task model, by way to attack."""
    counts = {}
    alone = np.diag(vulnerability(table))
    for attacked in ("single", "joint"):
        pairs = vulnerability(table, attacked).to_numpy(float)[~np.eye(len(alone), dtype=bool)]
        more = pairs > np.repeat(alone, len(alone) - 1)
        counts[attacked] = f"{more.sum()} of {np.isfinite(pairs).sum()}"
    return pd.Series(counts)


def ratio(table: str, baseline: str, attacked: str = "single") -> pd.Series:
    """How many times another printed table the vulnerabilities of a printed table are, over the two-task cells.

    Parameters
    ----------
    table, baseline : as in `vulnerability`, such as "2A apgd" and "1A"; Table 2 does not say what was attacked, so its
        numbers stand for single and joint attacks alike.
    attacked : "single" or "joint", of a Table 1.

    Returns
    -------
    Series : ratio (geometric mean), lowest, highest, cells.
    """
    one, two = (vulnerability(name, "as_published" if name.startswith("2") else attacked) for name in (table, baseline))
    pair = np.log((one / two).to_numpy(float)[~np.eye(len(one), dtype=bool)])
    values = {"ratio": pair.mean(), "lowest": pair.min(), "highest": pair.max()}
    return pd.Series({**{name: float(np.exp(value)) for name, value in values.items()}, "cells": len(pair)})


# Printed tables over others, as `ratios` takes them: adaptive attacks over PGD, weighted over uniform models.
ADAPTIVE = {
    f"{name} over pgd, {way}": (f"2A {name}", "1A", way) for name in ("apgd", "wgd") for way in ("single", "joint")
}
WEIGHTED = {f"pgd, {way}": ("1B", "1A", way) for way in ("single", "joint")}
WEIGHTED |= {name: (f"2B {name}", f"2A {name}") for name in ("apgd", "wgd")}


def ratios(of: dict[str, tuple[str, ...]]) -> pd.DataFrame:
    """`ratio` of several pairs of tables, a row each under its title."""
    return pd.DataFrame({title: ratio(*names) for title, names in of.items()}).T


def orders() -> pd.DataFrame:
    """Figures 12 and 13 of the supplement: the adversarial vulnerability of models of one to five tasks.

    Returns
    -------
    One row a point: order (of the six, the tasks in the order of their adding), tasks (of the model, in the paper's
    order), added (the last of them), unweighted (figure 12), weighted (figure 13, weights 1/N) and
    weighted_over_unweighted, which would be 1 if figure 13 were figure 12 divided by the number of tasks.
    """
    rows = read("orders_supplement").pivot(index=["order", "tasks"], columns="figure", values="value")
    rows = rows.rename(columns={12: "unweighted", 13: "weighted"}).rename_axis(columns=None).reset_index()
    number = rows.tasks.str.len()
    rows["added"] = [order[k - 1] for order, k in zip(rows.order, number, strict=True)]
    rows["weighted_over_unweighted"] = rows.weighted * number / rows.unweighted
    drawn = read("orders_supplement").order.drop_duplicates()
    place = rows.order.map({order: k for k, order in enumerate(drawn)})
    return rows.assign(place=place, number=number).sort_values(["place", "number"]).drop(columns=["place", "number"])


def falling_steps() -> pd.DataFrame:
    """How many steps of `orders` lower the vulnerability, by what is added: as claim 2.3 asks."""
    rows = orders()
    steps = rows.groupby("order", sort=False)[["unweighted", "weighted"]].diff().join(rows[["order", "tasks", "added"]])
    steps = steps.dropna().drop_duplicates(["tasks", "added"])  # two orders share steps
    kinds = steps.added.isin(["s", "E"]).map({True: "s or E", False: "another task"})
    counts = {}
    for name, group in steps.groupby(kinds):
        counts[name] = {column: f"{(group[column] < 0).sum()} of {len(group)}" for column in ("unweighted", "weighted")}
    return pd.DataFrame(counts).T.rename_axis("added task")


def claims(rq: str | None = None) -> pd.DataFrame:
    """The paper's claims, one row each, by number: claim, where it stands, what the printed tables themselves say
    (printed_evidence), what to measure. `rq` such as "RQ1" takes those of one question, as those of `OTHERS`."""
    table = read("claims").set_index("id")
    return table[~table.rq.isin(OTHERS)] if rq is None else table[table.rq == rq]


def _names() -> list[str]:
    return sorted(entry.name[:-4] for entry in files("mtrlib.claims").iterdir() if entry.name.endswith(".csv"))
