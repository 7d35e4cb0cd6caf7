"""Throughput of training and attacks by encoder and size on a GPU, beside what its matrix units can do.

    python benchmarks/gpu.py [--encoders resnet18 resnet50 wide_resnet50_2] [--sizes 64 128 256] [--output results/gpu]

Prints one table last: the matrix and convolution peaks of the format that the library computes in (bfloat16 where the
device is good at it); for each encoder and size, training of a pair and PGD on both of its tasks in images and image
steps a second, with the share of the matrix peak and the memory at the peak; and for the first encoder the same with
`torch.compile`, with the seconds that compiling took. Meant for a GPU; runs anywhere, for a look with small sizes.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

import attack_cost
import pandas as pd
import torch

from mtrlib import attacks, machine, models, training
from mtrlib.specs import DataSpec, ModelSpec
from mtrlib.store import evaluation

TASKS, STEPS = "sd", 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoders", nargs="+", default=["resnet18", "resnet50", "wide_resnet50_2"])
    parser.add_argument("--sizes", nargs="+", type=int, default=[64, 128, 256], help="of the images, in pixels")
    parser.add_argument("--pixels", type=int, default=64 * 128 * 128, help="in a batch, divided by the size squared")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    parser.add_argument("--output", type=Path, help="a CSV file to write the table to")
    options = parser.parse_args()
    device, precision = machine.device(), machine.precision()
    peak = matrix_peak(device, precision)
    rows = [{"what": "matrix peak", "GFLOP/s": peak, "of matrix peak": 1.0}]
    convolutions = attack_cost.convolution_peak(device, precision)
    rows.append({"what": "convolution peak", "GFLOP/s": convolutions, "of matrix peak": convolutions / peak})
    for encoder in options.encoders:
        for size in options.sizes:
            for compiled in (False,) if options.no_compile or encoder != options.encoders[0] else (False, True):
                for what, measure in (("training", train), ("PGD", attack)):
                    try:
                        found = measure(encoder, size, compiled, device, precision, options)
                    except torch.cuda.OutOfMemoryError:
                        found = {"seconds": float("nan")}
                    work, seconds = found.pop("GFLOP", float("nan")), found.pop("seconds")
                    rate = {"GFLOP/s": work / seconds, "of matrix peak": work / seconds / peak}
                    row = {"what": what, "encoder": encoder, "pixels": size, "compiled": compiled, **found, **rate}
                    rows.append(row)
                    print({key: value for key, value in row.items()}, flush=True)
    table = pd.DataFrame(rows)
    print(" | ".join(f"{name}: {value}" for name, value in machine.describe().items()))
    print(f"{precision}, tasks {TASKS}, about {options.pixels:,} pixels a batch; PGD of {STEPS} steps on both tasks")
    print(table.to_string(index=False, na_rep="", float_format="{:.3g}".format))
    if options.output:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        attack_cost.write(table, options.output)


def matrix_peak(device: torch.device, precision: str) -> float:
    """GFLOP/s of a product of two large random matrices, the best of several."""
    side = 8192 if device.type == "cuda" else 1024
    left, right = (torch.randn(side, side, device=device, dtype=getattr(torch, precision)) for _ in range(2))
    return 2 * side**3 / min(attack_cost.clock(lambda: left @ right, device) for _ in range(10)) / 1e9


def train(encoder: str, size: int, compiled: bool, device: torch.device, precision: str, options) -> dict:
    """Epochs of four batches, by the steps of `training.fit`."""
    batch_size = max(1, options.pixels // size**2)
    shared = {"tasks": TASKS, "encoder": encoder, "precision": precision, "batch_size": batch_size}
    spec = ModelSpec(data=DataSpec(size=size), **shared)
    images, targets = attack_cost.batch(4 * batch_size, size, TASKS, device)
    data = attack_cost.dataset(images, targets, TASKS)
    model = training.build(spec, data.tasks).to(device)
    optimizer = training.optimizer_of(spec, dict(model.named_parameters()))
    if compiled:
        compile_parts(model)
    found = measured(lambda: list(training.epoch_losses(spec, model, optimizer, data, device, 1)), device, options)
    work = 3 * attack_cost.operations(models.build(encoder, TASKS, seed=0).to(device), images[:1], TASKS) * len(data)
    return {**found, "batch": batch_size, "images (or steps)/s": len(data) / found["seconds"], "GFLOP": work / 1e9}


def attack(encoder: str, size: int, compiled: bool, device: torch.device, precision: str, options) -> dict:
    """PGD on a batch, as `evaluation` runs it: frozen, batch norms folded."""
    batch_size = max(1, options.pixels // size**2)
    images, targets = attack_cost.batch(batch_size, size, TASKS, device)
    model = models.build(encoder, TASKS, classes=attack_cost.CLASSES, seed=0).to(device).eval().requires_grad_(False)
    work = 2 * attack_cost.operations(model, images[:1], TASKS) * batch_size * STEPS
    model = evaluation.for_attack(model, precision)
    if compiled:
        compile_parts(model)
    losses = attacks.task_losses(model, targets, None, TASKS)

    def run() -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16"):
            attacks.pgd(losses, images, eps=attack_cost.EPS, step_size=attack_cost.EPS / 4, steps=STEPS)

    found = measured(run, device, options)
    return {
        **found,
        "batch": batch_size,
        "images (or steps)/s": batch_size * STEPS / found["seconds"],
        "GFLOP": work / 1e9,
    }


def compile_parts(model: models.MultiTaskModel) -> None:
    """The encoder and each decoder, in place."""
    for part in (model.encoder, *model.decoders.values()):
        part.compile()


def measured(run, device: torch.device, options) -> dict:
    """Of a call: the seconds of the first (compiling, choosing algorithms), the median of the others, and memory."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    started = time.perf_counter()
    attack_cost.clock(run, device)
    first = time.perf_counter() - started
    attack_cost.clock(run, device)
    seconds = statistics.median(attack_cost.clock(run, device) for _ in range(options.repeats))
    peak = torch.cuda.max_memory_allocated() / 2**20 if device.type == "cuda" else float("nan")
    return {"first run (s)": first, "seconds": seconds, "peak MiB": peak}


if __name__ == "__main__":
    main()
