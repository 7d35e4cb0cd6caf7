"""kill -9 at any moment, and several processes at once: the tables are those of an undisturbed run, nothing is half
written, no lock stays."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from collections import Counter
from functools import cache
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest
from filelock import FileLock, Timeout
from matplotlib.figure import Figure
from oracles import script
from safetensors import safe_open

from mtrlib import batch, data, figures, machine
from mtrlib.batch import report
from mtrlib.claims import judging
from mtrlib.data import sealed
from mtrlib.metrics.tables import write as write_tables
from mtrlib.specs import AttackSpec, DataSpec, ModelSpec
from mtrlib.store import Store

KILLS = 30
SMALL = {"encoder": "resnet18_tiny", "images": 16, "epochs": 2, "batch_size": 8}
MODELS = [ModelSpec(data=DataSpec(size=16), tasks=tasks, **SMALL) for tasks in ("s", "sd")]
ATTACKS = [AttackSpec(tasks="s", steps=steps, images=24) for steps in (4, 6)]
NOTEBOOK = "new_dataset"  # it writes its data set first
TINY = {"size": 16, "train_images": 16, "test_images": 6, "panel_images": 4, "epochs": 2, "batch_size": 8, "steps": 2}
TINY |= {"tasks": "sd", "shown": 1}
STAGES = ("example", "cache", "store/models", "store/errors", "out")  # what it writes, in this order
# Forks, for each line of its input, a process of its own: what the imports take is spent once. A process kills itself
# where it is told to, which is the same place on any machine.
SERVER = """
import itertools, json, os, resource, signal, sys, threading, traceback, warnings
warnings.simplefilter("error")
import torch
torch.set_num_threads(1)
from collections import Counter
from pathlib import Path
from mtrlib import data, training
from mtrlib.store import evaluation
from mtrlib.store import Store
from oracles import run_cells
from test_killed import ATTACKS, MODELS, WRITERS, notebook_values
from mtrlib.training import fitting
fitting.SAVE_EVERY = 0.0
fit, measure = training.fit, evaluation.errors

def run(folder, last, part=None):
    # Trains and attacks everything and decodes a folder; kills itself at its call of any function of that number, or at
    # that number of those that a part of it ("training", "attack") makes.
    calls, within = itertools.count(1), {"training": itertools.count(1), "attack": itertools.count(1)}
    def called(frame, event, argument):
        if event.endswith("call") and next(calls) == last and not part:
            os.kill(os.getpid(), signal.SIGKILL)
    def counted(name, function):
        def called_within(frame, event, argument):
            called(frame, event, argument)
            if event.endswith("call") and next(within[name]) == last and part == name:
                os.kill(os.getpid(), signal.SIGKILL)
        def call(*given, **options):
            before = sys.getprofile()
            sys.setprofile(before and called_within)
            result = function(*given, **options)
            sys.setprofile(before)
            return result
        return call
    def logged(spec, *rest):
        with open(folder / "log", "a") as file:
            file.write(spec.key + "\\n")
        return fit(spec, *rest)
    training.fit, evaluation.errors = counted("training", logged), counted("attack", measure)
    store = Store(folder / "store", device="cpu")
    if last is not None:
        threading.setprofile(called)
        sys.setprofile(called)
    for split in ("train", "test"):
        data.load("folder", tasks="sdn", split=split, size=16, root=sys.argv[1])
    decoded = next(calls)
    for spec in MODELS:
        for attack in ATTACKS:
            store.errors(spec, attack)
    sys.setprofile(None)
    (folder / "calls").write_text(" ".join(str(next(count)) for count in (calls, *within.values())) + f" {decoded}")

def notebook(folder, stage, last):
    # Runs the cells of the notebook; kills itself in a file of that stage and number, or before it gets its name.
    events, write, replace = Counter(), Path.write_bytes, os.replace
    def count(path):
        part = next((each for each in (stage or []) if Path(path).is_relative_to(folder / each)), None)
        events[part] += 1
        return [part] == stage and events[part] == last
    def write_bytes(path, content):
        if count(path):
            write(path, content[: len(content) // 2])
            os.kill(os.getpid(), signal.SIGKILL)
        return write(path, content)
    def renamed(source, target):
        if count(target):
            os.kill(os.getpid(), signal.SIGKILL)
        return replace(source, target)
    Path.write_bytes, os.replace = write_bytes, renamed
    run_cells("new_dataset", notebook_values(folder))
    (folder / "events").write_text(json.dumps({part: events[part] for part in stage}))

def write(folder, name, last, limit):
    # Writes files; the system kills it as the last of them, whatever opens that, grows beyond the limit in bytes.
    def opened(event, arguments):
        if event == "open" and last in Path(str(arguments[0])).name:
            signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    if last is not None:
        sys.addaudithook(opened)
    WRITERS[name](folder)

# Imported late otherwise.
import matplotlib.pyplot, torch._dynamo, mtrlib.data.decoding, mtrlib.data.folder, mtrlib.rooms.rendering
from mtrlib import figures, studies
from mtrlib.metrics import tables
from mtrlib.claims import judging
from mtrlib.metrics.tables import write as write_tables
MODELS[0].data.tasks
training.optimizer_of(MODELS[0], dict(training.build(MODELS[0], MODELS[0].data.tasks).named_parameters()))
print(0, flush=True)  # ready
for line in sys.stdin:
    command, first, *rest = json.loads(line)
    if command == "wait":
        print(os.waitstatus_to_exitcode(os.waitpid(first, 0)[1]), flush=True)
    else:
        child = os.fork()
        if child:
            print(child, flush=True)
            continue
        try:
            os.environ["MTRLIB_CACHE"] = first + "/cache"
            os.dup2(2, 1)
            {"run": run, "notebook": notebook, "write": write}[command](Path(first), *rest)
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
"""


class Server:
    """Starts runs, each in a process of its own."""

    def __init__(self, example: Path):
        here = Path(__file__).parent
        environment = {**os.environ, "PYTHONPATH": f"{here}{os.pathsep}{here.parent}", "OMP_NUM_THREADS": "1"}
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.process = subprocess.Popen([sys.executable, "-c", SERVER, str(example)], env=environment, **pipes)

    def start(self, what: str, folder: Path, *rest) -> int:
        """Begin a run, or go on with it. Returns its process."""
        folder.mkdir(exist_ok=True)
        return self._ask(what, str(folder), *rest)

    def wait(self, process: int) -> int:
        """How it ended: 0, or the number of the signal, negative, or else."""
        return self._ask("wait", process)

    def _ask(self, *line) -> int:
        self.process.stdin.write(f"{json.dumps(line)}\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    made = Server(data.write_example(tmp_path_factory.mktemp("example") / "example", 64, 32))
    assert made.process.stdout.readline() == "0\n"
    yield made
    made.process.stdin.close()
    made.process.stdout.close()
    assert made.process.wait(timeout=60) == 0


def tables(folder: Path) -> pd.DataFrame:
    store = Store(folder / "store", device="cpu")
    return pd.concat([store.errors(spec, attack) for spec in MODELS for attack in ATTACKS], ignore_index=True)


def arrays(folder: Path) -> dict[str, bytes]:
    found = sorted((folder / "cache").glob("*/*.npy"))
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


def whole(folder: Path) -> None:
    """Every file that has its name at this moment can be read to its end."""
    for path in folder.rglob("*"):
        if not path.is_file() or path.name.startswith(".") or ".partial" in str(path):
            continue
        if path.suffix == ".safetensors":
            with safe_open(path, "pt") as file:
                assert sum(file.get_tensor(name).numel() for name in file.keys()) > 0  # noqa: SIM118
        elif path.suffix == ".parquet" or path.name in ("record.json", "manifest.json"):
            sealed.read(path)
        elif path.suffix == ".npy":
            assert np.load(path).size > 0


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, server) -> tuple[Path, int, int, int, int]:
    """The folder of a run that nothing disturbed, and how many functions it called in all, in training, in attacks and
    until it had decoded."""
    folder = tmp_path_factory.mktemp("undisturbed")
    assert server.wait(server.start("run", folder, 0)) == 0
    return folder, *map(int, (folder / "calls").read_text().split())


def test_killed_again_and_again_it_ends_with_the_same_tables(undisturbed, server, tmp_path):
    """Each kill lets the run go on for a random part of all its calls, or of those of trainings or attacks; after a
    finished one all begins anew."""
    expected, calls, training, attacking, decoded = undisturbed
    moments, killed, runs, stages = random.Random(0), 0, 1, Counter()
    while killed < KILLS:
        folder = tmp_path / str(runs)
        part = (None, "training", "attack")[killed % 3] if killed > 8 else None  # what is decoded is so but once
        rest = {None: (calls - decoded) // 2, "training": training // 4, "attack": attacking // 4}[part]
        most = decoded if killed < 8 else rest
        status = server.wait(server.start("run", folder, moments.randint(1, most), part))
        if status == -signal.SIGKILL:
            killed += 1
            stages.update(_stage(folder))
            whole(folder)
        else:
            assert status == 0
            _same(folder, expected)
            runs += 1
    assert server.wait(server.start("run", folder, None)) == 0
    _same(folder, expected)
    assert len(stages) == 3, f"kills miss what they should hit: {stages}"


def _stage(folder: Path) -> list[str]:
    """What a run was at when it was killed; nothing yet where it had hardly begun."""
    trained, measured = (
        len(list(folder.glob(pattern))) for pattern in ("store/*/*/*/record.json", "store/*/*/*.parquet")
    )
    if not (folder / "store" / "format").exists():
        return ["decoding"] if (folder / "cache").exists() else []
    return ["attack" if measured < len(ATTACKS) * trained else "training"]


def _same(folder: Path, expected: Path) -> None:
    pd.testing.assert_frame_equal(tables(folder), tables(expected), check_exact=True)
    assert arrays(folder) == arrays(expected)
    assert not list(folder.rglob("*.damaged*"))


def test_four_at_once_train_each_model_once(undisturbed, server, tmp_path):
    expected, *_ = undisturbed
    processes = [server.start("run", tmp_path, None) for _ in range(4)]
    assert [server.wait(process) for process in processes] == [0] * 4
    assert sorted((tmp_path / "log").read_text().split()) == sorted(spec.key for spec in MODELS)
    _same(tmp_path, expected)
    whole(tmp_path)


def test_a_lock_of_a_killed_process_is_free(tmp_path):
    """Held when it is killed; taken afterwards without waiting."""
    held = "import sys, time; from mtrlib.data import sealed\nwith sealed.locked(sealed.Path(sys.argv[1])):\n"
    held += "    print('held', flush=True)\n    time.sleep(600)"
    command = [sys.executable, "-c", held, str(tmp_path / "lock")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[1])
    assert process.stdout.readline() == "held\n"
    with pytest.raises(Timeout):
        FileLock(tmp_path / "lock").acquire(timeout=0)
    process.kill()
    process.communicate()
    with FileLock(tmp_path / "lock", timeout=0):
        pass


def test_what_a_killed_process_was_writing_does_not_stay(tmp_path):
    store, spec = Store(tmp_path, device="cpu"), MODELS[0]
    folder = store.folder(spec)
    folder.mkdir(parents=True)
    for path in (tmp_path / "format", folder / "spec.json", folder / "resume.safetensors", folder / "record.json"):
        sealed.partial(path).write_bytes(b"half")
    store.model(spec)
    assert not [path for path in tmp_path.rglob("*") if path.name.startswith(".")]


def notebook_values(folder: Path) -> dict:
    """The parameters of a run of the notebook whose files all lie in the folder; as `begin` of benchmarks/memory.py."""
    smoke = batch.read(machine.root() / "params" / "smoke")[NOTEBOOK]
    where = {"store": str(folder / "store"), "output": str(folder / "out"), "root": str(folder / "example")}
    return {**smoke, **TINY, **where}


def written(folder: Path) -> dict[str, bytes]:
    """The tables of a run that came to its end; nothing else is to lie about."""
    kept = [path for name in ("example", "cache", "store") for path in (folder / name).rglob("*")]
    assert not [path for path in kept if path.name.startswith(".") or {".partial", ".damaged-1"} & set(path.suffixes)]
    for path in kept:
        if path.name.endswith("lock"):
            with FileLock(path, timeout=0):
                pass
    return {path.name: path.read_bytes() for path in (folder / "out").glob("*.csv")}


@pytest.fixture(scope="module")
def notebook(tmp_path_factory, server) -> tuple[dict[str, bytes], dict[str, int]]:
    """The tables of the notebook's cells, and how many files it writes and renames in each of its stages."""
    folder = tmp_path_factory.mktemp("notebook")
    assert server.wait(server.start("notebook", folder, STAGES, 0)) == 0
    tables = written(folder)
    names = ("against_single_task", "checked", "vulnerability")
    assert sorted(tables) == [f"{NOTEBOOK}_{name}.csv" for name in names]
    return tables, json.loads((folder / "events").read_text())


def test_a_notebook_repeats_its_tables_also_when_it_is_killed_at_every_stage(notebook, server, tmp_path):
    """Again from an empty store, and once more with six kills, the first while each of its folders is written."""
    expected, events = notebook
    again, folder = tmp_path / "again", tmp_path / "killed"
    assert server.wait(server.start("notebook", again, [], 0)) == 0
    assert written(again) == expected
    moments = random.Random(0)
    for stage in STAGES:
        last = moments.randint(1, max(1, events[stage] // 2))
        status = server.wait(server.start("notebook", folder, [stage], last))
        assert status == -signal.SIGKILL, f"it ended before {last} files of {stage} were there"
        whole(folder)
    assert server.wait(server.start("notebook", folder, [], 0)) == 0
    assert written(folder) == expected


# Read by a kernel as it starts: kills papermill and itself in the middle of the first errors.
DIES = """
import os, signal
from pathlib import Path
write = Path.write_bytes
def killed(path, content):
    if "store/errors" in str(path):
        write(path, content[: len(content) // 2])
        os.kill(os.getppid(), signal.SIGKILL)
        os.kill(os.getpid(), signal.SIGKILL)
    return write(path, content)
Path.write_bytes = killed
"""


def test_papermill_and_its_kernel_are_killed_and_the_next_ones_end_with_the_same_tables(
    notebook, tmp_path, monkeypatch
):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    memory, folder, startup = script("memory"), tmp_path / "run", tmp_path / "ipython" / "profile_default" / "startup"
    folder.mkdir()
    startup.mkdir(parents=True)
    (startup / "dies.py").write_text(DIES)
    with monkeypatch.context() as patch:
        patch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
        assert memory.begin(NOTEBOOK, folder, **TINY).wait() == -signal.SIGKILL
    assert list(folder.glob("store/models/*/*/record.json"))
    assert not list(folder.glob("store/errors/*/*.parquet"))
    whole(folder)
    assert memory.begin(NOTEBOOK, folder, **TINY).wait() == 0
    executed = nbformat.read(folder / "executed.ipynb", as_version=4)
    assert [cell for cell in executed.cells if cell.cell_type == "code"][-1].outputs, "the sentinel did not run"
    assert written(folder) == notebook[0]


def results(folder: Path) -> None:
    """A small folder of results but for its page."""
    row = ("3.1", "a: x", 1.0, 0.0, 2.0, "above 4", True, "disagrees", "")
    write_tables(folder, "rq3", findings=pd.DataFrame([row], columns=judging.COLUMNS))
    figure = Figure()
    figure.subplots().plot([0, 1])
    figures.write(folder, "rq3", pgd=figure)


def page(folder: Path, notebook: bool = False) -> None:
    """One with its page, and with a notebook that the page shows."""
    results(folder)
    if notebook:
        cells = [nbformat.v4.new_markdown_cell("# tour", id="0")]
        (folder / "tour.ipynb").write_text(nbformat.writes(nbformat.v4.new_notebook(cells=cells)))
    report.write(folder)


WRITERS = {
    "results": results,
    "page": page,
    "report": lambda folder: page(folder, notebook=True),
    "example": lambda folder: data.write_example(folder, 4, 2),
}


@pytest.mark.parametrize(
    "name, last",
    [
        *[("results", file) for file in ("rq3_findings.csv", "rq3_pgd.png", "rq3_pgd.svg")],
        *[("page", "index.html"), ("report", "tour.html")],
        *[("example", file) for file in ("images/train_0001.png", "inverse/train_0001.npy")],
    ],
)
def test_a_writer_that_is_killed_within_a_file_leaves_no_half_of_one(server, written_once, tmp_path, name, last):
    """By the system, in the middle of a file, whatever writes it. The next one ends with the same files."""
    expected, folder = written_once(name), tmp_path / name
    assert (
        server.wait(server.start("write", folder, name, Path(last).name, len(expected[last]) // 2)) == -signal.SIGXFSZ
    )
    (half,) = [path for path in folder.rglob(".*") if Path(last).name in path.name and path.stat().st_size]
    assert half.stat().st_size == len(expected[last]) // 2
    left = contents(folder)
    assert last not in left
    mark = left.pop("dataset.yaml", b"not yet complete")  # of the example: its first file, and again its last
    assert b"not yet complete" in mark
    assert left == {file: expected[file] for file in left}
    assert server.wait(server.start("write", folder, name, None, None)) == 0
    assert contents(folder) == expected
    if name == "example":
        assert not list(folder.rglob(".*"))


@pytest.fixture(scope="module")
def written_once(server, tmp_path_factory):
    """A function of a writer: its files, where nothing disturbs it."""

    @cache
    def made(name: str) -> dict[str, bytes]:
        folder = tmp_path_factory.mktemp("written") / name
        assert server.wait(server.start("write", folder, name, None, None)) == 0
        return contents(folder)

    return made


def contents(folder: Path) -> dict[str, bytes]:
    """The files that have their names."""
    found = [path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(".")]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in found}
