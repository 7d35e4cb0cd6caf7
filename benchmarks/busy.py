"""What a busy machine costs training, by how the threads of PyTorch wait for each other.

    python benchmarks/busy.py [--size 64] [--batch 8] [--encoder resnet18_small] [--seconds 4] [--output busy.csv]

Prints training in images a second, on two cores of this machine: by itself, beside a program that keeps one core busy,
and beside a second training; each with threads that spin for a while before they sleep (the default of GNU's OpenMP),
with two ways of telling them not to, and with one thread. Every case runs in fresh processes, since OpenMP reads the
variables as PyTorch loads; none of them is set by the package. Takes under three minutes where nothing else runs.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager
from itertools import chain, repeat
from pathlib import Path

import attack_cost
import pandas as pd
import torch

from mtrlib import machine, models, training
from mtrlib.specs import DataSpec, ModelSpec

TASKS = "sn"
SETTINGS = {
    "the default of OpenMP": {"OMP_NUM_THREADS": "2"},
    "OMP_WAIT_POLICY=passive": {"OMP_NUM_THREADS": "2", "OMP_WAIT_POLICY": "passive"},
    "GOMP_SPINCOUNT=0": {"OMP_NUM_THREADS": "2", "GOMP_SPINCOUNT": "0"},
    "one thread": {"OMP_NUM_THREADS": "1"},
}
BESIDE = ("nothing", "a busy core", "a second training")
# PyTorch first, so that the environment decides and not the package.
CHILD = "import torch, sys; sys.path.insert(0, sys.argv[1]); import busy; busy.train(*sys.argv[2:])"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=64, help="of the images, in pixels")
    parser.add_argument("--batch", type=int, default=8, help="images of a step")
    parser.add_argument("--encoder", default="resnet18_small", choices=models.ENCODERS)
    parser.add_argument("--seconds", type=float, default=4, help="of each measurement")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--output", type=Path, help="a CSV file to write the table to")
    options = parser.parse_args()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:2])
    table = measured(options)
    print(" | ".join(f"{name}: {value}" for name, value in machine.describe().items()))
    print(f"{options.encoder}, {TASKS}, {options.size} pixels, batches of {options.batch}, {machine.precision()}")
    print(table.to_string(index=False, float_format="{:.3g}".format))
    if options.output:
        attack_cost.write(table, options.output)


def measured(options) -> pd.DataFrame:
    """A row a setting and company: images a second, the median of the repeats, and their share of those without."""
    rows = []
    for setting in SETTINGS:
        rates = [
            statistics.median(images_per_second(options, setting, beside) for _ in range(options.repeats))
            for beside in BESIDE
        ]
        for beside, rate in zip(BESIDE, rates, strict=True):
            rows.append({"threads": setting, "beside": beside, "images/s": rate, "of alone": rate / rates[0]})
    return pd.DataFrame(rows)


def images_per_second(options, setting: str, beside: str) -> float:
    """Of a training in a process of its own. Its company has begun before it, and ends after it."""
    with ExitStack() as stack:
        trainings = [stack.enter_context(_started(options, setting, options.seconds))]
        if beside == "a second training":
            trainings.append(stack.enter_context(_started(options, setting, float("inf"))))
        for process in trainings:
            if process.stdout.readline() != "ready\n":
                raise RuntimeError(f"A training should begin. Process {process.args} ended with {process.wait()}.")
        if beside == "a busy core":
            stack.enter_context(_ended(subprocess.Popen([sys.executable, "-c", "while True: pass"])))
        for process in reversed(trainings):
            process.stdin.write("go\n")
            process.stdin.flush()
        return float(trainings[0].stdout.readline())


def train(encoder: str, size: str, batch: str, seconds: str) -> None:
    """In a process of its own: prints that it is ready, waits for a line, trains, and prints images a second."""
    spec = ModelSpec(
        data=DataSpec(size=int(size)),
        tasks=TASKS,
        encoder=encoder,
        batch_size=int(batch),
        precision=machine.precision(),
    )
    drawn = attack_cost.batch(8 * spec.batch_size, spec.data.size, TASKS, torch.device("cpu"))
    data = attack_cost.dataset(*drawn, TASKS)
    model = training.build(spec, data.tasks)
    optimizer = training.optimizer_of(spec, dict(model.named_parameters()))
    steps = chain.from_iterable(training.epoch_losses(spec, model, optimizer, data, "cpu", 1) for _ in repeat(None))
    for _ in range(4):  # warm up
        next(steps)
    print("ready", flush=True)
    sys.stdin.readline()
    started, number = time.perf_counter(), 0
    while (passed := time.perf_counter() - started) < float(seconds):
        next(steps)
        number += spec.batch_size
    print(number / passed, flush=True)


def _started(options, setting: str, seconds: float):
    names = {name for variables in SETTINGS.values() for name in variables}
    environment = {name: value for name, value in os.environ.items() if name not in names} | SETTINGS[setting]
    environment |= {"CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(machine.root())}
    of = map(str, (Path(__file__).parent, options.encoder, options.size, options.batch, seconds))
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    return _ended(subprocess.Popen([sys.executable, "-c", CHILD, *of], env=environment, **pipes))


@contextmanager
def _ended(process: subprocess.Popen):
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


if __name__ == "__main__":
    main()
