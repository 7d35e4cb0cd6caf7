"""Peak memory of attacks against the number of images and steps, of reading a data set from the cache, of notebooks.

    python benchmarks/memory.py [--size 64] [--batch 32]
    python benchmarks/memory.py --notebooks [tour rq1_auxiliary_tasks ...]

With `--notebooks` those that are named, or all, run at the smoke tier, each from an empty store and cache in a folder
that is removed. Printed is the most resident memory, file pages among it, of papermill and of the kernel, each as Linux
itself keeps it (VmHWM), read every 50 ms: what a process takes on in the last 50 ms of its life may be missed. Else:

Each number is measured in a process of its own, on the CPU: the peak of its resident memory less what it was before.
An attack works batch by batch, so neither images nor steps should matter. A cache entry is a map: what is read of it
may stay in memory while there is room, as file pages that the system takes back; the anonymous memory is what a run
needs.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path

from mtrlib import batch, data, machine, models
from mtrlib.data import cache
from mtrlib.specs import AttackSpec
from mtrlib.store import evaluation  # before PyTorch: see mtrlib

# isort: split
import numpy as np
import torch
import yaml


def attack(images: int, steps: int, size: int, batch: int, encoder: str = "resnet18_small") -> float:
    """Peak MB of anonymous memory that an attack on so many images adds."""
    torch.set_num_threads(1)
    rooms = data.load("rooms", tasks="sd", split="test", size=size, limit=images)
    model = models.build(encoder, "sd", definitions=rooms.tasks, seed=0).eval().requires_grad_(False)
    spec = AttackSpec(tasks="sd", steps=steps, images=images)
    warm = rooms.batch(slice(0, batch))
    evaluation.attack_batch(model, warm, spec.model_copy(update={"steps": 1}), "float32", torch.Generator())
    return _peak(lambda: evaluation.errors(model, rooms, spec, batch_size=batch))


def streaming(megabytes: int, size: int, batch: int) -> float:
    """Peak MB of anonymous memory that batches of a cache entry of so many MB add, read in a random order."""
    number = megabytes * 1_000_000 // (3 * size * size)

    def fill(arrays: dict[str, np.memmap]) -> dict[int, str]:
        for start in range(0, number, 1000):
            arrays["values"][start : start + 1000] = 7
        return {}

    layout: cache.Layout = {"values": ((number, 3, size, size), np.dtype(np.uint8))}
    made = cache.entry("memory", [str(megabytes), str(size)], layout, fill)
    images = cache.read(made)[0]["values"]
    dataset = data.Dataset("memory", images, {}, {}, tuple(map(str, range(number))), ())

    def read() -> None:
        for index in torch.randperm(number, generator=torch.Generator().manual_seed(0)).split(batch):
            dataset.batch(index, "cpu")

    return _peak(read)


def notebook(name: str, folder: Path, **changes) -> dict[str, float]:
    """Peak MB of resident memory of papermill and of the kernel as a notebook runs, and its seconds. As `begin`."""
    process, begun, peaks = begin(name, folder, **changes), time.monotonic(), {}
    while process.poll() is None:
        for each in family(process.pid):
            with suppress(OSError, StopIteration):  # it has ended since
                peaks[each] = _status("VmHWM", each) / 1000
        time.sleep(0.05)
    if process.returncode:
        raise RuntimeError(f"The notebook {name} should run to its end. Papermill ended with {process.returncode}.")
    own = peaks.pop(process.pid)
    return {"papermill": own, "kernel": max(peaks.values()), "seconds": time.monotonic() - begun}


def begin(name: str, folder: Path, **changes) -> subprocess.Popen:
    """Begin the run of a notebook by papermill, or go on with it: the smoke tier but for `changes`. All that it writes
    lies in the folder."""
    values = {**batch.read(machine.root() / "params" / "smoke")[name], **changes}
    values |= {"store": str(folder / "store"), "output": str(folder / "out")}
    if values.get("example"):
        values["root"] = str(folder / "example")
    (folder / "p.yaml").write_text(yaml.safe_dump(values))
    command = [sys.executable, "-m", "papermill", "--no-progress-bar", "--no-log-output", "-f", str(folder / "p.yaml")]
    command += [str(machine.root() / "notebooks" / f"{name}.ipynb"), str(folder / "executed.ipynb")]
    own = {"MTRLIB_CACHE": str(folder / "cache"), "JUPYTER_RUNTIME_DIR": str(folder / "runtime")}
    environment = {**os.environ, **own, "PYTHONPATH": str(machine.root())}
    return subprocess.Popen(command, env=environment, cwd=folder)


def family(process: int) -> list[int]:
    """The numbers of a process and of all that it has started, and they have, and that are still there."""
    parents = {}
    for path in Path("/proc").glob("[0-9]*"):
        with suppress(OSError, StopIteration):
            parents[int(path.name)] = _status("PPid", path.name)
    found = [process]
    for parent in found:  # grows on the way
        found += [child for child in parents if parents[child] == parent]
    return found


def apart(function, *arguments) -> float:
    """What the function returns in a fresh process."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, arguments)


def _peak(work) -> float:
    """The most anonymous memory, in MB, while `work` runs, less what there was before; looked at every millisecond."""
    before, most, done = _status("RssAnon"), 0, threading.Event()

    def watch() -> None:
        nonlocal most
        while not done.is_set():
            most = max(most, _status("RssAnon"))
            time.sleep(0.001)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        work()
    finally:
        done.set()
        watcher.join()
    return (most - before) / 1000


def _status(name: str, process: int | str = "self") -> int:
    """What Linux says of a process; memory in kB, of which RssAnon is what no file backs."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--notebooks", nargs="*", metavar="NAME", help="peak memory of whole notebooks; all if none")
    options = parser.parse_args()
    if options.notebooks is not None:
        print("MB of papermill  MB of kernel  seconds  notebook")
        for name in options.notebooks or sorted(path.stem for path in (machine.root() / "notebooks").glob("*.ipynb")):
            with tempfile.TemporaryDirectory() as folder:
                found = notebook(name, Path(folder))
            print(f"{found['papermill']:15.0f}  {found['kernel']:12.0f}  {found['seconds']:7.0f}  {name}")
        return
    print("images steps  MB of an attack")
    for images, steps in ((64, 5), (256, 5), (64, 20)):
        print(f"{images:6} {steps:5}  {apart(attack, images, steps, options.size, options.batch):.0f}")
    print("MB of a set  MB of reading it")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["MTRLIB_CACHE"] = folder
        for megabytes in (50, 500):
            print(f"{megabytes:11}  {apart(streaming, megabytes, options.size, options.batch):.0f}")


if __name__ == "__main__":
    main()
