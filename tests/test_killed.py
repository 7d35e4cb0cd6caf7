"""kill -9 at any moment, and several processes at once: the tables are those of an undisturbed run, nothing is half
written, no lock stays."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest
from filelock import FileLock
from oracles import script
from safetensors import safe_open

from mtrlib import data, sealed
from mtrlib.specs import AttackSpec, DataSpec, ModelSpec
from mtrlib.store import Store

KILLS = 30
MODELS = [ModelSpec(data=DataSpec(size=16), tasks=tasks, images=16, epochs=2, batch_size=8) for tasks in ("s", "sd")]
ATTACKS = [AttackSpec(tasks="s", steps=steps, images=24) for steps in (4, 6)]
NOTEBOOK = "new_dataset"  # it writes its data set first
TINY = {"size": 16, "train_images": 16, "test_images": 6, "panel_images": 4, "epochs": 2, "batch_size": 8, "steps": 2}
TINY |= {"tasks": "sd", "shown": 1, "replicates": 1000}
STAGES = (
    "example/*/*",
    "cache/*/*",
    "store/models/*/*/*",
    "store/errors/*/*",
    "out/*",
)  # what it writes, in this order
# Forks, for each line of its input, a process that trains and attacks everything and decodes a folder, in little steps:
# what the imports take is spent once.
SERVER = """
import os, sys, traceback, warnings
warnings.simplefilter("error")
import torch
torch.set_num_threads(1)
from pathlib import Path
from mtrlib import data, training
from mtrlib.store import Store
from test_killed import ATTACKS, MODELS
training.SAVE_EVERY = 0.0
fit = training.fit

def run(folder, example):
    def counted(spec, *rest):
        with open(folder / "log", "a") as file:
            file.write(spec.key + "\\n")
        return fit(spec, *rest)
    training.fit = counted
    os.environ["MTRLIB_CACHE"] = str(folder / "cache")
    store = Store(folder / "store", device="cpu")
    for split in ("train", "test"):
        data.load("folder", tasks="sdn", split=split, size=16, root=example)
    for spec in MODELS:
        for attack in ATTACKS:
            store.errors(spec, attack)

import torch._dynamo, mtrlib.data.decoding, mtrlib.data.folder, mtrlib.data.rooms  # what a run imports late
MODELS[0].data.tasks
training.optimizer_of(MODELS[0], dict(training.build(MODELS[0], MODELS[0].data.tasks).named_parameters()))
print(0, flush=True)  # ready
for line in sys.stdin:
    command, argument = line.rstrip("\\n").split(" ", 1)
    if command == "wait":
        print(os.waitpid(int(argument), 0)[1], flush=True)
    else:
        child = os.fork()
        if child:
            print(child, flush=True)
            continue
        try:
            run(Path(argument), sys.argv[1])
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

    def start(self, folder: Path) -> int:
        """Begin a run, or go on with it. Returns its process."""
        folder.mkdir(exist_ok=True)
        return self._ask(f"run {folder}")

    def wait(self, process: int) -> int:
        """How it ended: 0, or the number of the signal, or else."""
        return self._ask(f"wait {process}")

    def _ask(self, line: str) -> int:
        self.process.stdin.write(f"{line}\n")
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
def undisturbed(tmp_path_factory, server) -> tuple[Path, float]:
    """The folder of a run that nothing disturbed, and the seconds that it took."""
    folder, begun = tmp_path_factory.mktemp("undisturbed"), time.monotonic()
    assert server.wait(server.start(folder)) == 0
    return folder, time.monotonic() - begun


def test_killed_again_and_again_it_ends_with_the_same_tables(undisturbed, server, tmp_path):
    """Each kill lets the run go on for a random part of what the whole takes; after a finished one all begins anew."""
    expected, seconds = undisturbed
    moments, killed, runs, stages = random.Random(0), 0, 1, Counter()
    while killed < KILLS or (len(stages) < 3 and killed < 3 * KILLS):
        folder = tmp_path / str(runs)
        process = server.start(folder)
        time.sleep(moments.uniform(0, 0.04 if killed < 8 else 0.3) * seconds)  # decoding comes first, and is short
        os.kill(process, signal.SIGKILL)
        status = server.wait(process)
        if status == signal.SIGKILL:
            killed += 1
            stages.update(_stage(folder))
            whole(folder)
        else:
            assert status == 0
            _same(folder, expected)
            runs += 1
    folder.mkdir(exist_ok=True)
    assert server.wait(server.start(folder)) == 0
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
    expected, _ = undisturbed
    processes = [server.start(tmp_path) for _ in range(4)]
    assert [server.wait(process) for process in processes] == [0] * 4
    assert sorted((tmp_path / "log").read_text().split()) == sorted(spec.key for spec in MODELS)
    _same(tmp_path, expected)
    whole(tmp_path)


def test_a_lock_of_a_killed_process_is_free(tmp_path):
    """Held when it is killed; taken at once afterwards."""
    held = "import sys, time; from mtrlib import sealed\nwith sealed.locked(sealed.Path(sys.argv[1])):\n"
    held += "    print('held', flush=True)\n    time.sleep(600)"
    command = [sys.executable, "-c", held, str(tmp_path / "lock")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[1])
    assert process.stdout.readline() == "held\n"
    process.kill()
    process.communicate()
    begun = time.monotonic()
    with sealed.locked(tmp_path / "lock"):
        assert time.monotonic() - begun < 5


def test_what_a_killed_process_was_writing_does_not_stay(tmp_path):
    store, spec = Store(tmp_path, device="cpu"), MODELS[0]
    folder = store.folder(spec)
    folder.mkdir(parents=True)
    for path in (tmp_path / "format", folder / "spec.json", folder / "resume.safetensors", folder / "record.json"):
        sealed.partial(path).write_bytes(b"half")
    store.model(spec)
    assert not [path for path in tmp_path.rglob("*") if path.name.startswith(".")]


def kill(process: subprocess.Popen, memory) -> None:
    """The kernel, too, which has a group of its own."""
    os.kill(process.pid, signal.SIGSTOP)  # so that it starts nothing more
    for each in memory.family(process.pid):
        os.kill(each, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL


def written(folder: Path) -> dict[str, bytes]:
    """The tables of a run that came to its end; nothing else is to lie about."""
    executed = nbformat.read(folder / "executed.ipynb", as_version=4)
    assert [cell for cell in executed.cells if cell.cell_type == "code"][-1].outputs, "the sentinel did not run"
    kept = [path for name in ("example", "cache", "store") for path in (folder / name).rglob("*")]
    assert not [path for path in kept if path.name.startswith(".") or {".partial", ".damaged-1"} & set(path.suffixes)]
    for path in kept:
        if path.name.endswith("lock"):
            with FileLock(path, timeout=0):
                pass
    return {path.name: path.read_bytes() for path in (folder / "out").glob("*.csv")}


def test_a_notebook_repeats_its_tables_also_when_it_is_killed_at_every_stage(tmp_path, monkeypatch):
    """Two undisturbed runs from two empty stores, and one that is killed five times, once while it writes each of its
    folders: as soon as a number of files drawn at random is there."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    memory = script("memory")
    undisturbed, again, folder = (tmp_path / name for name in ("undisturbed", "again", "killed"))
    for each in (undisturbed, again, folder):
        each.mkdir()

    def notebook(folder: Path) -> subprocess.Popen:
        return memory.begin(NOTEBOOK, folder, **TINY)

    assert notebook(undisturbed).wait() == 0
    assert notebook(again).wait() == 0
    expected = written(undisturbed)
    assert sorted(expected) == [f"{NOTEBOOK}_checked.csv", f"{NOTEBOOK}_vulnerability.csv"]
    assert written(again) == expected
    moments = random.Random(0)
    for stage in STAGES:
        number = moments.randrange(len(list(undisturbed.glob(stage))) // 2)  # it goes on until the signal is there
        process = notebook(folder)
        while len(list(folder.glob(stage))) <= number:
            assert process.poll() is None, f"it ended before {number} files {stage} were there"
            time.sleep(0.005)
        kill(process, memory)
        whole(folder)
    assert notebook(folder).wait() == 0
    assert written(folder) == expected


HALF = """
import os, signal, sys
from pathlib import Path
from mtrlib import data
write = Path.write_bytes
def killed(path, content):
    if "train_0002.npy" in path.name:
        write(path, content[: len(content) // 2])
        os.kill(os.getpid(), signal.SIGKILL)
    return write(path, content)
Path.write_bytes = killed
data.write_example(sys.argv[1], 4, 2)
"""


def test_an_example_whose_writer_is_killed_within_a_file_has_no_half_of_one(tmp_path):
    folder = tmp_path / "example"
    done = subprocess.run([sys.executable, "-c", HALF, str(folder)], cwd=Path(__file__).parents[1])
    assert done.returncode == -signal.SIGKILL
    assert (folder / "inverse" / "train_0001.npy").exists()
    assert not (folder / "inverse" / "train_0002.npy").exists()
    whole(folder)
    data.write_example(folder, 4, 2)
    files = [path.name for path in folder.rglob("*") if path.is_file()]
    assert len(files) == 1 + 5 * 6
    assert not [name for name in files if name.startswith(".")]
