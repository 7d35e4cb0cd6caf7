"""From the errors table to the tables that are read: vulnerabilities with intervals, beside the paper's, and shares."""

import json
import os
import sys
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from mtrlib import machine
from mtrlib.metrics import estimates
from mtrlib.metrics.estimates import CELL
from mtrlib.tasks import Task, canonical


def vulnerabilities(errors: pd.DataFrame, reduction: str = "per_image", by: Sequence[str] = CELL) -> pd.DataFrame:
    """Relative task vulnerability of each cell of a study, with its 95 % interval.

    Parameters
    ----------
    errors : as `studies.run` gives it.
    reduction : as in `metrics.relative_task_vulnerability`.
    by : the columns that make a cell.

    Returns
    -------
    The columns of `by`, value, low, high, images, left_out (images without a ratio, each seed's counted), clean_error
    and adversarial_error (means over images and seeds). With one seed the interval is that of these trained models.
    """
    by, quantity = list(by), {"per_image": "ratio"}.get(reduction, reduction)
    groups = errors.assign(left_out=~(errors.clean_error > 0)).groupby(by, sort=False, dropna=False)
    counts = groups.agg(images=("image_id", "nunique"), left_out=("left_out", "sum"))
    parts = [estimates.interval(estimates.estimates(errors, quantity, by), quantity=quantity), counts]
    return pd.concat([*parts, groups[["clean_error", "adversarial_error"]].mean()], axis=1).reset_index()


def values(errors: pd.DataFrame, quantity: str, by: Sequence[str] = CELL) -> pd.DataFrame:
    """Any quantity of `estimates` of each cell, such as "adversarial_error": the columns of `by`, value, low, high."""
    return estimates.interval(estimates.estimates(errors, quantity, by), quantity=quantity).reset_index()


def skills(errors: pd.DataFrame, tasks: dict[str, Task] | None = None) -> pd.DataFrame:
    """How much of the best constant's error the single-task models take away, a row a main task: clean_error,
    constant_error (means over images and seeds), skill (1 - their ratio) and learned (whether the cell counts in
    verdicts). Of `tasks`, the definitions of the data set, those that are not the paper's have their name and the unit
    of their error beside the letter. Empty where the errors have no column constant_error."""
    known = errors if "constant_error" in errors else errors[:0].assign(constant_error=0.0)
    alone = known[known.main == known.auxiliary].drop_duplicates(["main", "seed", "image_id"])
    table = alone.groupby("main", sort=False)[["clean_error", "constant_error"]].mean()
    table["skill"] = 1 - table.clean_error / table.constant_error
    table = table.assign(learned=table.clean_error <= estimates.LEARNED * table.constant_error).reset_index()
    own = {letter: task for letter, task in (tasks or {}).items() if not task.is_papers}
    if own.keys() & set(table.main):
        for place, about in enumerate(("name", "unit"), start=1):
            table.insert(place, about, [getattr(own.get(letter), about, "") for letter in table.main])
    return table


def against_single_task(errors: pd.DataFrame) -> pd.DataFrame:
    """How many times the error under attack of a single-task model that of each two-task model is.

    Returns
    -------
    One row a two-task cell of `errors`: panel, setting, attacked, main, auxiliary, ratio (geometric mean over images),
    low and high (all cells together right in 95 of 100 studies, by Holm) and surely: "less" or "more" vulnerable, or ""
    where that is open, as it is from one seed. A single-task model can be attacked in one way only: joint cells are
    compared with that, too.
    """
    rows, alone = estimates.beside(estimates.estimates(errors), auxiliary="")
    table = estimates.holm(estimates.compared(rows, alone))
    ends = np.exp(table[["value", "low", "high"]]).rename(columns={"value": "ratio"})
    return ends.assign(surely=table.side.map({-1: "less", 0: "", 1: "more"})).reset_index()


def ratios(errors: pd.DataFrame, by: Sequence[str], *, same_models: bool = False, **baseline: str) -> pd.DataFrame:
    """How many times the error of a baseline, such as setting="pgd", the error under attack of some cells is.

    Parameters and source: `estimates.mean_ratios`, of the log ratios of `errors`.

    Returns
    -------
    The columns of `by`, ratio, low, high (95 %), cells.
    """
    table = estimates.mean_ratios(estimates.estimates(errors), by, same_models=same_models, **baseline)
    ends = np.exp(estimates.interval(table)).rename(columns={"value": "ratio"})
    return ends.assign(cells=table.cells).reset_index()


def worst_case(errors: pd.DataFrame, name: str = "worst case") -> pd.DataFrame:
    """The errors with one setting more: of all settings of a cell, for each image, the one whose attack raised the loss
    of the attacked tasks most. It is what `attacks.ensemble` gives, from attacks that have been run already.

    Parameters
    ----------
    errors : as `studies.run` gives it, of panels whose settings are attacks.
    name : of the new setting.
    """
    errors = errors.reset_index(drop=True)
    cell = ["panel", "attacked", "main", "auxiliary", "seed", "image_id"]
    worst = errors.loc[errors.groupby(cell, sort=False).adversarial_attacked_loss.idxmax()]
    return pd.concat([errors, worst.assign(setting=name)], ignore_index=True)


def matrix(table: pd.DataFrame, attacked: str = "single", column: str = "value") -> pd.DataFrame:
    """One panel and setting as the paper prints it: main tasks as rows, auxiliary tasks as columns.

    The diagonal is the single-task model, attacked in the one way that there is.
    """
    rows = table[(table.attacked == attacked) | (table.main == table.auxiliary)]
    if rows.duplicated(["main", "auxiliary"]).any():
        raise ValueError("Parameter table should hold one panel and setting. Found several values for a cell.")
    letters = list(canonical("".join(set(rows.main))))
    return rows.pivot(index="main", columns="auxiliary", values=column).reindex(index=letters, columns=letters)


def with_interval(table: pd.DataFrame, attacked: str = "single") -> pd.DataFrame:
    """As `matrix`, each cell as text: the value and, in brackets, its 95 % interval; then how many images were left out
    of it for want of a ratio, if any."""
    text = [
        f"{number(row.value)} {interval(row.low, row.high)}" + (f", {row.left_out} left out" if row.left_out else "")
        for row in table.itertuples()
    ]
    return matrix(table.assign(text=text), attacked, "text").fillna("")


def concat(matrices: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """Matrices side by side under their titles."""
    return pd.concat(matrices, axis=1)


def digits(value: object) -> str:
    """A number in four significant digits, or whole from 10,000 on, for `Styler.format`; anything else as it is."""
    return format(value, ".4g" if abs(value) < 1e4 else ",.0f") if isinstance(value, float) else str(value)


def number(value: float, sign: bool = False) -> str:
    """A number in words for people: two decimals between .1 and 100, whole above, and two significant digits below, so
    that no small number is shown as 0. With `sign`, its sign always. "infinite" for one that is, "unknown" for NaN."""
    if not np.isfinite(value):
        return "unknown" if np.isnan(value) else f"{'-' if value < 0 else ''}infinite"
    if value == 0:
        return "0"
    size = np.floor(np.log10(abs(value)))
    form = ".1e" if size < -4 else f",.{0 if size >= 2 else 2 if size >= -1 else 1 - int(size)}f"
    return format(value, f"{'+' if sign else ''}{form}")


def interval(low: float, high: float, sign: bool = False) -> str:
    """The ends of an interval in brackets, each as `number` writes it."""
    return f"[{number(low, sign)}, {number(high, sign)}]"


def show(table: pd.DataFrame, caption: str = "", folded: str = ""):
    """A table as notebooks display it: numbers in four digits, whole texts, no index that is only counted.

    folded : what the table is; it then stands below that line, closed until a reader clicks on it.
    """
    from IPython.display import HTML  # the command line has no use for these
    from pandas.io.formats.style import Styler

    table = table if table.index.is_unique else table.reset_index(drop=True)
    # What shows the same is the same HTML, in every run and where another processor rounds the last digit otherwise.
    name = f"{zlib.crc32(table.map(digits).to_csv().encode()):08x}"
    styled = Styler(table, uuid=name, cell_ids=False, caption=caption or None).format(digits, na_rep="")
    styled = styled.set_table_styles([{"selector": "th, td", "props": "text-align: left; vertical-align: top"}])
    styled = styled.hide(axis="index") if isinstance(table.index, pd.RangeIndex) else styled
    if not folded:
        return styled
    return HTML(f"<details><summary>{folded}, {len(table)} rows</summary>{styled.to_html()}</details>")


def show_whole() -> None:
    """From here on a notebook shows every row, column and text of a table, where pandas would put an ellipsis."""
    for limit in ("max_rows", "max_columns", "max_colwidth"):
        pd.set_option(f"display.{limit}", None)
    pd.set_option("styler.render.max_elements", sys.maxsize)


def write(folder: Path, name: str, **frames: pd.DataFrame) -> pd.DataFrame:
    """Write tables as `<folder>/<name>_<table>.csv`, each whole or not at all, and what they were computed by as
    `<folder>/machine.json`. Returns what was written."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for title, frame in frames.items():
        path = folder / f"{name}_{title}.csv"
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        frame.to_csv(temporary, index=False)
        os.replace(temporary, path)
        rows.append({"file": path.name, "rows": len(frame)})
    temporary = folder / f".machine.json.{os.getpid()}"
    temporary.write_text(json.dumps(machine.describe(), indent=1) + "\n")
    os.replace(temporary, folder / "machine.json")
    return pd.DataFrame(rows)
