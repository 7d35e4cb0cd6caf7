"""`python -m mtrlib`: what the batch engine runs, and what a person may run by hand. See `--help`."""

from __future__ import annotations

import argparse
import os
import platform
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from datetime import datetime
from pathlib import Path
from typing import TextIO

# Each command imports what it needs: help is there at once, and `plan` loads nothing that only training does.


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m mtrlib", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="command")
    add_batch(commands)
    add_release(commands)
    add_data(commands)
    options = parser.parse_args(arguments)
    with _logged(getattr(options, "log", None)) as options.outside:
        try:
            return options.run(options)
        except Exception as error:
            if not isinstance(error, ValueError | OSError):
                if options.outside is None:
                    raise
                traceback.print_exc()
                error = f"{type(error).__name__}: {error}"
            _say(options, str(error))
            return 2


def add_batch(commands) -> None:
    """The commands of the batch engine."""
    texts = {
        plan: "print what the notebooks of a folder of parameters need, and what it costs",
        train: "train models: those of the keys that `plan` prints, or all",
        evaluate: "run the attacks on models: those of the keys, or all",
        notebook: "run one notebook",
    }
    for run, text in texts.items():
        command = commands.add_parser(run.__name__, help=text, description=text)
        command.add_argument("folder", help="of the parameters, such as params/smoke")
        if run is notebook:
            command.add_argument("name", help="of the notebook, without .ipynb")
        if run is not plan:
            command.add_argument("--log", help="a file that takes the output; stderr gets the first and the last line")
        if run in (train, evaluate):
            command.add_argument("keys", nargs="*", metavar="KEY", help="of a model")
        command.add_argument("--notebooks", help="names, separated by commas; all that have a file in the folder")
        command.add_argument("--precision", default="auto", choices=("auto", "float32", "bfloat16"))
        command.set_defaults(run=run)


def add_release(commands) -> None:
    """The command that releases errors."""
    text = "write the errors that the notebooks of a folder of parameters need into one file, errors.parquet"
    command = commands.add_parser("release", help=text, description=text)
    command.add_argument("folder", help="of the parameters, such as params/laptop; the store has all that they need")
    command.add_argument("results", help="the folder of the file, such as results/laptop")
    command.add_argument("--notebooks", help="names, separated by commas; all that have a file in the folder")
    command.add_argument("--precision", default="auto", choices=("auto", "float32", "bfloat16"))
    command.set_defaults(run=release)


def add_data(commands) -> None:
    """The commands that look at files and write the page of results."""
    text = "read every file of a data set and say what would stop a run"
    command = commands.add_parser("check-data", help=text, description=text)
    command.add_argument("name", help="of the data set, such as taskonomy or folder")
    command.add_argument("root", help="the folder of its files")
    command.add_argument("--tasks", help="letters of the tasks to look at; by default all that have files")
    command.set_defaults(run=check_data)
    text = "write index.html into a folder of results, and its notebooks as HTML"
    command = commands.add_parser("report", help=text, description=text)
    command.add_argument("folder", help="with executed notebooks, their tables and figures, such as results/laptop")
    command.set_defaults(run=page)


def check_data(options: argparse.Namespace) -> int:
    """1 where something would stop a run, or where fewer than two of the tasks could be used."""
    from mtrlib import data, machine
    from mtrlib.data import checks

    root = machine.folder(Path(machine.expanded(options.root)).absolute(), "the data (root)")
    table = data.check(options.name, root, options.tasks)
    shown = table.drop(columns=["classes", "stops", "problem"])
    lines = [shown.to_string(index=False, na_rep="", float_format="{:.4g}".format), checks.class_shares(table)]
    labels = table[table.task != checks.IMAGES]
    absent = labels[(labels.files == 0) & ~labels.stops]  # stop nothing, since nobody asked for them
    for split, rows in absent.groupby("split", sort=False):
        lines.append(f"{split}: no files of {', '.join(rows.task)}: they cannot be used. {rows.problem.iloc[0]}")
    usable = [letter for letter in labels.task.unique() if letter not in set(absent.task)]
    stops = table.stops.any()
    if stops:
        lines.append("A run would stop.")
    elif len(absent) and len(usable) < 2:
        stops = True
        lines.append(f"A run would stop: it should have two tasks with files. Found {', '.join(usable) or 'none'}.")
    elif len(absent):
        lines.append(f"Nothing would stop a run of {', '.join(usable)}; one of another task would stop.")
    else:
        lines.append("Nothing would stop a run.")
    sys.stdout.write("\n".join([*filter(None, lines), ""]))
    for problem in dict.fromkeys(table[table.stops].problem):
        sys.stderr.write(f"{problem}\n")
    return int(stops)


def page(options: argparse.Namespace) -> int:
    from mtrlib import machine
    from mtrlib.batch import report

    sys.stdout.write(f"{report.write(machine.folder(Path(machine.expanded(options.folder)), 'results'))}\n")
    return 0


def release(options: argparse.Namespace) -> int:
    from mtrlib import batch, machine
    from mtrlib.store import released

    needs = batch.needs(_read(options), options.precision)
    path = machine.folder(machine.place(options.results), "the results", made=True) / "errors.parquet"
    evaluations = [e for found in needs.evaluations.values() for e in found]
    count = released.write(path, needs.store, needs.models.values(), evaluations)
    size = path.stat().st_size / 1e6
    sys.stdout.write("{}: {} models, {} attacks, {} other tables, {:.1f} MB\n".format(path, *count, size))
    return 0


def plan(options: argparse.Namespace) -> int:
    from mtrlib import batch
    from mtrlib.batch import cost

    needs = batch.needs(_read(options), options.precision)
    table = cost.estimate(needs)
    lines = [table.drop(columns=["images", "image_operations", "attack_operations"]).to_string(index=False)] * (
        len(table) > 0
    )
    sys.stdout.write("\n".join([*lines, cost.summary(needs, table), ""]))
    return 0


def train(options: argparse.Namespace) -> int:
    return _job(options, "train", *options.keys)


def evaluate(options: argparse.Namespace) -> int:
    return _job(options, "evaluate", *options.keys)


def notebook(options: argparse.Namespace) -> int:
    return _job(options, "notebook", options.name)


def _read(options: argparse.Namespace) -> dict[str, dict]:
    from mtrlib import batch, machine

    if not machine.is_repository(machine.root()):
        raise ValueError(
            "This command should be run in the repository of mtrlib, which holds the folders notebooks and params. "
            f"Found no such folder from {machine.root()} upwards."
        )
    return batch.read(options.folder, options.notebooks and options.notebooks.split(","))


def _job(options: argparse.Namespace, kind: str, *of: str) -> int:
    """One job on a GPU of its own, where there is one, with a line at its start and its end; where the store has what
    that takes, with how long all that is left would take one job after another."""
    from mtrlib import batch, machine
    from mtrlib.batch import cost

    values = _read(options)
    store = str(next(iter(values.values())).get("store"))  # before parameters are checked, since that asks CUDA
    with machine.gpu(machine.place(store) / "batch" / "gpus") as gpu:
        needs = batch.needs(values, options.precision)
        title = batch.title(needs, kind, of)
        left = cost.estimate(needs).seconds.sum(skipna=False) / 3600
        about = f"on {platform.node()}, GPU {gpu}, {os.environ.get('OMP_NUM_THREADS')} threads"
        hours = f"; left for all models about {left:.2g} hours of jobs one after another" if left > 0 else ""
        _say(options, f"{_now()} begins {title} {about}{hours}")
        if kind == "notebook":
            batch.notebook(needs, *of)
        else:
            {"train": batch.train, "evaluate": batch.evaluate}[kind](needs, of)
        _say(options, f"{_now()} ends {title}")
    return 0


def _now() -> str:
    return datetime.now().isoformat(timespec="milliseconds")


@contextmanager
def _logged(path: str | None) -> Iterator[TextIO | None]:
    """With a path, what is written to stdout and stderr, also by other programs, goes to the end of that file instead.
    Yields what still writes to the old stderr; None without a path."""
    if path is None:
        yield None
        return
    from mtrlib import machine

    place = Path(machine.expanded(path))
    place.parent.mkdir(parents=True, exist_ok=True)
    before = [os.dup(number) for number in (1, 2)]
    with open(place, "a", buffering=1) as file, open(before[1], "w", closefd=False) as outside:
        try:
            for number in (1, 2):
                os.dup2(file.fileno(), number)
            with redirect_stdout(file), redirect_stderr(file):
                yield outside
        finally:
            for number, old in zip((1, 2), before, strict=True):
                os.dup2(old, number)
                os.close(old)


def _say(options: argparse.Namespace, text: str) -> None:
    """A line to stderr; with a log to that, and its last line also to the old stderr, with the name of the log."""
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()
    if options.outside is not None:
        last = (text.strip().splitlines() or [""])[-1]
        options.outside.write(f"{last} (log: {options.log})\n")
        options.outside.flush()


if __name__ == "__main__":
    sys.exit(main())
