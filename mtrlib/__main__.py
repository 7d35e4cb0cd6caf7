"""The command `mtrlib`, or `python -m mtrlib`: what the batch engine and a person may run by hand. See `--help`."""

import argparse
import os
import platform
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from datetime import datetime
from importlib import import_module
from pathlib import Path
from typing import Any, TextIO

from mtrlib import __version__

# Each command imports what it needs: help is there at once, and `plan` loads nothing that only training does.


def plan(options: argparse.Namespace) -> int:
    from mtrlib.batch import cost

    needs = _needs(options)
    table = cost.estimate(needs)
    shown = table.drop(columns=["images", "image_operations", "attack_operations"]).to_string(index=False)
    sys.stdout.write("\n".join([*[shown] * (len(table) > 0), cost.summary(needs, table), ""]))
    return 0


def job(options: argparse.Namespace) -> int:
    """One job on a GPU of its own, where there is one, with a line at its start and its end; where the store has what
    that takes, with how long all that is left would take one job after another."""
    from mtrlib import batch, machine
    from mtrlib.batch import cost

    store = str(next(iter(_read(options).values())).get("store"))  # before parameters are checked, since that asks CUDA
    with machine.gpu(machine.place(store) / "batch" / "gpus") as gpu:
        needs = _needs(options)
        of = [options.notebook] if options.command == "notebook" else options.keys
        title = batch.title(needs, options.command, of)
        left = cost.estimate(needs).seconds.sum(skipna=False) / 3600
        about = f"on {platform.node()}, GPU {gpu}, {os.environ.get('OMP_NUM_THREADS')} threads"
        hours = f"; left for all models about {left:.2g} hours of jobs one after another" if left > 0 else ""
        _say(options, f"{_now()} begins {title} {about}{hours}")
        getattr(batch, options.command)(needs, options.notebook if options.command == "notebook" else of)
        _say(options, f"{_now()} ends {title}")
    return 0


def decide(options: argparse.Namespace) -> int:
    from mtrlib.batch.decide import decide

    table = decide(_read(options), options.hours, options.precision)
    sys.stdout.write(f"{table.to_string(index=False)}\nSpent {table.hours.sum():.2g} of {options.hours:g} hours.\n")
    return 0


def release(options: argparse.Namespace) -> int:
    from mtrlib import batch, machine
    from mtrlib.store import released

    needs = _needs(options)
    path = machine.folder(machine.place(options.results), "the results", made=True) / "errors.parquet"
    runs = batch.evaluations(needs, needs.models)
    count = released.write(path, needs.store, needs.models.values(), runs, add=options.add)
    size = path.stat().st_size / 1e6
    sys.stdout.write("{}: {} models, {} attacks, {} other tables, {:.1f} MB\n".format(path, *count, size))
    return 0


def release_models(options: argparse.Namespace) -> int:
    from mtrlib import machine
    from mtrlib.batch import board

    needs, folder = _needs(options), machine.place(options.results)
    named = dict(each.rpartition("=")[::2] for each in options.named)
    if unknown := {key for key in named.values() if key not in needs.models} | {"" for name in named if not name}:
        allowed = f"NAME=KEY, with keys that `mtrlib plan {options.folder}` prints"
        raise ValueError(f"Models should be given as {allowed}. Found no model {', '.join(sorted(unknown))}.")
    for name, key in named.items():
        board.release(needs.store, needs.models[key], name, folder)
        sys.stdout.write(f"{folder / name}.safetensors\n")
    return 0


def check_data(options: argparse.Namespace) -> int:
    from mtrlib import data, machine
    from mtrlib.data import checks

    root = machine.folder(Path(machine.expanded(options.root)).absolute(), "the data (root)")
    table = data.check(options.data, root, options.tasks)
    shown = table.drop(columns=["classes", "stops", "problem", "warning"])
    lines = [shown.to_string(index=False, na_rep="", float_format="{:.4g}".format), checks.class_shares(table)]
    labels = table[table.task != checks.IMAGES]
    absent = labels[(labels.files == 0) & ~labels.stops]  # stop nothing, since nobody asked for them
    for split, rows in absent.groupby("split", sort=False):
        lines.append(f"{split}: no files of {', '.join(rows.task)}: they cannot be used. {rows.problem.iloc[0]}")
    usable = [letter for letter in labels.task.unique() if letter not in set(absent.task)]
    few = len(absent) > 0 and len(usable) < 2  # a run takes two
    lines += [*table.warning]
    some = f" of {', '.join(usable)}; one of another task would stop" if len(absent) else ""
    verdict = f"Nothing would stop a run{some}."
    if few:
        verdict = f"A run would stop: it should have two tasks with files. Found {', '.join(usable) or 'none'}."
    lines.append("A run would stop." if table.stops.any() else verdict)
    sys.stdout.write("\n".join([*filter(None, lines), ""]))
    sys.stderr.writelines(f"{problem}\n" for problem in dict.fromkeys(table[table.stops].problem))
    if options.sheet:
        sys.stdout.write(f"{_sheet(Path(machine.expanded(options.sheet)), options.data, root, table)}\n")
    return int(table.stops.any() or few)


def _sheet(path: Path, name: str, root: Path, table) -> str:
    """Write a picture of the first frames of both splits that can be read, and say where."""
    import warnings

    import torch

    from mtrlib import data, figures

    rows: dict = {}
    defined, table = data.tasks(name, root), table[table["read"] > 0]
    for split, of_split in table[table.task.isin([*defined])].groupby("split", sort=False):
        for letter in of_split.task:  # each by itself: a frame may lack others
            with warnings.catch_warnings(action="ignore"), suppress(ValueError):  # of frames left out, and of all
                some = data.load(name, tasks=letter, split=split, size=128, root=root, limit=8, on_bad="skip")
                for row, frame in enumerate(some.ids):
                    pictures = rows.setdefault((split, frame), {"image": some.images[row] / 255})
                    pictures |= figures.labels(some.targets, some.masks, row)
    if not rows:
        return f"{path} is not drawn: none of the first frames can be read."
    shown = [letter for letter in defined if any(letter in row for row in rows.values())]
    nothing = torch.full((3, 128, 128), torch.nan)
    none = {x: nothing[0] if defined[x].classes else nothing[: defined[x].channels] for x in shown}
    none |= {x: nothing[0, 0, 0] for x in shown if defined[x].per_image}
    rows = {
        f"{split} {number}\n{frame[-20:]}": {x: pictures.get(x, none.get(x)) for x in ["image", *shown]}
        for number, ((split, frame), pictures) in enumerate(rows.items(), 1)
    }
    ends = table.groupby("task").agg({"low": "min", "high": "max"})
    notes = {task: f"{low:.3g} to {high:.3g}" for task, low, high in ends.itertuples()}
    notes |= {letter: f"{task.classes} classes" for letter, task in defined.items() if task.classes}
    path.parent.mkdir(parents=True, exist_ok=True)
    figures.images(rows, defined["s"].class_names if "s" in defined else (), defined, notes).savefig(path, format="png")
    return f"{path} shows {len(rows)} of the frames; pixels without a label are white."


def page(options: argparse.Namespace) -> int:
    """The page of a report or of a board."""
    from mtrlib import machine

    write = import_module(f"mtrlib.batch.{options.command}").write
    sys.stdout.write(f"{write(machine.folder(Path(machine.expanded(options.results)), f'the {options.command}'))}\n")
    return 0


def completion(options: argparse.Namespace) -> int:
    import shtab

    sys.stdout.write(shtab.complete(_parser(folders=shtab.DIRECTORY), options.shell))
    return 0


ARGUMENTS: dict[str, dict[str, Any]] = {
    "folder": {"help": "of the parameters, such as params/smoke"},
    "notebook": {"help": "its name, without .ipynb"},
    "keys": {"nargs": "*", "metavar": "KEY", "help": "of a model"},
    "named": {"nargs": "+", "metavar": "NAME=KEY", "help": "of a model, such as rooms/sd-v1=8f9928b3a28ebd1c"},
    "results": {"help": "the folder of results, such as results/laptop"},
    "data": {"help": "the name of the data set, such as taskonomy or folder"},
    "root": {"help": "the folder of its files"},
    "--sheet": {"metavar": "FILE.png", "help": "a picture of up to 8 frames a split to write, with their labels"},
    "--tasks": {"help": "letters of the tasks to look at; by default all that have files"},
    "--notebooks": {"help": "names, separated by commas; all that have a file in the folder"},
    "--precision": {"default": "auto", "choices": ("auto", "float32", "bfloat16")},
    "--add": {"action": "store_true", "help": "keep what the file has of others, such as other seeds"},
    "--hours": {"type": float, "required": True, "help": "to spend on this machine"},
    "--log": {"help": "a file that takes the output; stderr gets the first and the last line"},
    "shell": {"choices": ("bash", "zsh", "tcsh", "fish")},
}
FOLDERS = ("folder", "results", "root")
_CHOSEN, _CHECKED = ("folder", "--notebooks", "--precision"), ("data", "root", "--tasks", "--sheet")
COMMANDS: dict[str, tuple[Callable, str, tuple[str, ...]]] = {  # what runs, what it does, and its arguments
    "plan": (plan, "print what the notebooks of a folder of parameters need, and what it costs", _CHOSEN),
    "train": (job, "train models: those of the keys that `plan` prints, or all", (*_CHOSEN, "keys", "--log")),
    "evaluate": (job, "run the attacks on models: those of the keys, or all", (*_CHOSEN, "keys", "--log")),
    "notebook": (job, "run one notebook", (*_CHOSEN, "notebook", "--log")),
    "decide": (decide, "add seeds where they decide most, until the hours are spent", (*_CHOSEN, "--hours")),
    "release": (
        release,
        "write the errors that notebooks need into one file, errors.parquet",
        (*_CHOSEN, "results", "--add"),
    ),
    "release-models": (release_models, "write trained models for models.load", (*_CHOSEN, "results", "named")),
    "board": (page, "write index.html beside the entries of a board, *.json", ("results",)),
    "check-data": (check_data, "read all files of a data set: what would stop a run?", _CHECKED),
    "report": (page, "write index.html beside executed notebooks, their tables and figures", ("results",)),
    "completion": (completion, 'print what completes commands: eval "$(mtrlib completion bash)"', ("shell",)),
}


def _parser(folders: dict | None = None) -> argparse.ArgumentParser:
    """The parser of all commands; `folders` says how shells complete those arguments that are folders."""
    parser = argparse.ArgumentParser(prog="mtrlib", description=__doc__)
    parser.add_argument("--version", action="version", version=f"mtrlib {__version__}")
    commands = parser.add_subparsers(required=True, metavar="command", dest="command")
    for name, (run, text, taken) in COMMANDS.items():
        command = commands.add_parser(name, help=text, description=text)
        for argument in taken:
            added: Any = command.add_argument(argument, **ARGUMENTS[argument])
            if argument in FOLDERS:
                added.complete = folders  # what shtab reads
        command.set_defaults(run=run)
    return parser


def main(arguments: list[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    with _logged(getattr(options, "log", None)) as options.outside:
        try:
            return options.run(options)
        except Exception as error:
            text = str(error)
            if not isinstance(error, ValueError | OSError):
                if options.outside is None:
                    raise
                traceback.print_exc()
                text = f"{type(error).__name__}: {error}"
            _say(options, text)
            return 2


def _read(options: argparse.Namespace) -> dict[str, dict]:
    from mtrlib import batch, machine

    if not machine.is_repository(machine.root()):
        wanted = "in the repository of mtrlib, which holds the folders notebooks and params"
        raise ValueError(f"This command should be run {wanted}. Found no such folder from {machine.root()} upwards.")
    return batch.read(options.folder, options.notebooks and options.notebooks.split(","))


def _needs(options: argparse.Namespace):
    from mtrlib import batch

    return batch.needs(_read(options), options.precision)


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
