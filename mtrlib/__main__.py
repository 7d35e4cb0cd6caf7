"""python -m mtrlib check-data NAME ROOT: what is in the files of a data set, and what of it would stop a run."""

from __future__ import annotations

import argparse
import sys

import pandas as pd

from mtrlib import data


def main(arguments: list[str] | None = None) -> int:
    """Run a command. Returns 0, or 1 where something would stop a run."""
    parser = argparse.ArgumentParser(prog="python -m mtrlib", description="Multi-task models under attack.")
    commands = parser.add_subparsers(dest="command", required=True)
    check = commands.add_parser("check-data", help="read every file of a data set and say what would stop a run")
    check.add_argument("name", choices=data.NAMES[1:], help="the data set")
    check.add_argument("root", help="the folder of its files")
    check.add_argument("--tasks", help="letters of the tasks to look at; by default all that have files")
    options = parser.parse_args(arguments)
    try:
        table = data.check(options.name, options.root, options.tasks)
    except (ValueError, OSError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    sys.stdout.write(f"{_text(table)}\n")
    stopping = table[table.stops]
    for problem in dict.fromkeys(stopping.problem):
        sys.stderr.write(f"{problem}\n")
    sys.stdout.write(f"{'A run would stop.' if len(stopping) else 'Nothing would stop a run.'}\n")
    return 1 if len(stopping) else 0


def _text(table: pd.DataFrame) -> str:
    """The table, and below it the share of each class."""
    shown = table.drop(columns=["classes", "stops", "problem"])
    lines = [shown.to_string(index=False, na_rep="", float_format="{:.4g}".format)]
    for row in table.dropna(subset="classes").itertuples():
        total = max(sum(row.classes.values()), 1)
        shares = ", ".join(f"{name} {100 * count / total:.3g} %" for name, count in row.classes.items())
        lines.append(f"classes of {row.task}, {row.split}: {shares}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
