"""Peak memory of attacks against the number of images and steps, and of reading a data set from the cache.

    python benchmarks/memory.py [--size 64] [--batch 32]

Each number is measured in a process of its own, on the CPU: the peak of its resident memory less what it was before.
An attack works batch by batch, so neither images nor steps should matter. A cache entry is a map: what is read of it
may stay in memory while there is room, as file pages that the system takes back; the anonymous memory is what a run
needs.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch

from mtrlib import data, evaluation, models
from mtrlib.data import cache
from mtrlib.specs import AttackSpec


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


def apart(function, *arguments) -> float:
    """What the function returns in a fresh process."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, arguments)


def family(process: int) -> list[int]:
    """A process and all that it has started and are there now, and those that they have, by number; of Linux."""
    parents = {}
    for path in Path("/proc").glob("[0-9]*/status"):
        with suppress(OSError):  # it has ended since
            parents[int(path.parent.name)] = int(path.read_text().partition("PPid:")[2].split()[0])
    found = [process]
    for parent in found:  # grows on the way
        found += [child for child in parents if parents[child] == parent]
    return found


def _peak(work) -> float:
    """The most anonymous memory, in MB, while `work` runs, less what there was before; looked at every millisecond."""
    before, most, done = _anonymous(), 0, threading.Event()

    def watch() -> None:
        nonlocal most
        while not done.is_set():
            most = max(most, _anonymous())
            time.sleep(0.001)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        work()
    finally:
        done.set()
        watcher.join()
    return (most - before) / 1000


def _anonymous() -> int:
    """kB of this process's memory that no file backs."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--batch", type=int, default=32)
    options = parser.parse_args()
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
