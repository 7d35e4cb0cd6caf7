"""What an attack costs beside the passes it cannot do without, on this machine.

    python benchmarks/attack_cost.py [--size 64] [--batch 64] [--encoder resnet18_small] [--output cost.csv]

Prints one table: the convolution peak in float32 and bfloat16; PGD-25 on a two-task and a five-task model beside the
same number of bare forward and input-gradient passes, interleaved, with the median of the paired ratios (goal: at most
1.05); attacks on one task of the five-task model; every other attack on the two-task model (goal: at most 1.10; Square
beside bare forward passes); training in images a second, on a CPU with all its cores and with one, as the jobs of a
batch; each with its share of the peak measured on as many. Times are medians; models and images are random, since cost
does not depend on what they hold.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from functools import partial
from pathlib import Path

from mtrlib import attacks, machine, models, training
from mtrlib.data import Dataset, load
from mtrlib.specs import AttackSpec, DataSpec, ModelSpec
from mtrlib.store import evaluation  # before PyTorch: see mtrlib
from mtrlib.tasks import TASKS

# isort: split
import pandas as pd
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

STEPS, EPS = 25, 8 / 255
CLASSES = 11


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=64, help="of the images, in pixels")
    parser.add_argument("--batch", type=int, default=32, help="images in an attacked batch")
    parser.add_argument("--encoder", default="resnet18_small", choices=models.ENCODERS)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--output", type=Path, help="a CSV file to write the table to")
    options = parser.parse_args()
    device = machine.device()
    rows = []
    for precision in ("float32", "bfloat16"):
        peak = convolution_peak(device, precision)
        rows.append({"what": "convolution peak", "precision": precision, "GFLOP/s": peak, "share of peak": 1.0})
        for tasks, attacked in (("sn", "sn"), ("sdDnE", "sdDnE"), ("sdDnE", "s"), ("sdDnE", "d")):
            rows.append(attack_cost(options, device, precision, tasks, attacked, peak))
        for name in attacks.NAMED if precision == machine.precision() else ():
            if name != "pgd":
                rows.append(attack_cost(options, device, precision, "sn", "sn", peak, name))
        rows += training_costs(options, device, precision, peak)
    rows.append({"what": "rendering rooms", "precision": "float32", "images/s": rendering_rate(options)})
    table = pd.DataFrame(rows)
    print(" | ".join(f"{name}: {value}" for name, value in machine.describe().items()))
    print(f"{options.encoder}, {options.size} pixels, batches of {options.batch}, {STEPS} steps, l-infinity 8/255")
    print(table.to_string(index=False, na_rep="", float_format="{:.3g}".format))
    if options.output:
        write(table, options.output)


def write(table: pd.DataFrame, path: Path) -> None:
    """The table as CSV, and in the `benchmarks_machine.json` beside it what measured it."""
    table.to_csv(path, index=False, float_format="%.4g")
    about = path.with_name("benchmarks_machine.json")
    known = json.loads(about.read_text()) if about.exists() else {}
    about.write_text(json.dumps({**known, path.name: machine.describe()}, indent=1) + "\n")


def convolution_peak(device: torch.device, precision: str) -> float:
    """GFLOP/s of a large 3 x 3 convolution, the best of several."""
    dtype = getattr(torch, precision)
    images = torch.randn(64, 512, 16, 16, device=device, dtype=dtype).to(memory_format=torch.channels_last)
    layer = nn.Conv2d(512, 512, 3, padding=1, bias=False, device=device, dtype=dtype)
    layer = layer.to(memory_format=torch.channels_last)
    with torch.no_grad():
        seconds = min(clock(lambda: layer(images), device) for _ in range(8))
    return 2 * 512 * 512 * 9 * 16 * 16 * 64 / seconds / 1e9


def attack_cost(options, device, precision: str, tasks: str, attacked: str, peak: float, name: str = "pgd") -> dict:
    """An attack on `attacked` tasks of a model of `tasks` against its bare passes."""
    model = models.build(options.encoder, tasks, classes=CLASSES, seed=0).to(device).eval().requires_grad_(False)
    model = evaluation.for_attack(model, precision)
    images, targets = batch(options.batch, options.size, tasks, device)
    losses = attacks.task_losses(model, targets, None, attacked)
    spec = AttackSpec(name=name, tasks=attacked, steps=STEPS)
    attacked_losses = evaluation.task_losses(model, targets, dict.fromkeys(tasks), spec)
    gradients, forwards = passes(name)

    def bare() -> None:
        """The same number of passes, of the network and its loss, with nothing between them."""
        point = images.clone().requires_grad_()
        for _ in range(gradients):
            torch.autograd.grad(losses(point).sum(), point)
        with torch.no_grad():
            for _ in range(forwards):
                losses(images)

    def attack() -> None:
        attacks.NAMED[name](attacked_losses, images, eps=EPS, step_size=EPS / 4, steps=STEPS)

    with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16"):
        bare(), attack()  # warm up
        times = [(clock(bare, device), clock(attack, device)) for _ in range(options.repeats)]
        flops = operations(model, images[:1], attacked) * options.batch * (2 * gradients + forwards)
    bare_seconds, seconds = (statistics.median(column) for column in zip(*times, strict=True))
    return {
        "what": f"{name}-{STEPS} on {attacked} of {tasks}",
        "precision": precision,
        "ms/image": 1e3 * seconds / options.batch,
        "bare ms/image": 1e3 * bare_seconds / options.batch,
        "ratio": statistics.median(second / first for first, second in times),
        "GFLOP/s": flops / seconds / 1e9,
        "share of peak": flops / seconds / 1e9 / peak,
    }


def passes(name: str) -> tuple[int, int]:
    """Gradients and forward passes without one that an attack of STEPS steps cannot do without."""
    if name == "ensemble":
        return 5 * STEPS, 5 * 2  # of five attacks, each of whose results is scored once more
    if name == "sea":  # five runs of three stages and Square, each with the image and scored once more; the image twice
        return 5 * STEPS, 5 * (3 + 2) + (2 * STEPS + 1 + 2) + 2
    if name == "min_max":  # also the image
        return STEPS, 1 + 1
    return {"fgsm": (1, 1), "square": (0, STEPS + 1)}.get(name, (STEPS, 1))


def training_costs(options, device, precision: str, peak: float) -> list[dict]:
    """Training a pair by batch size and, on a CPU, number of threads, each beside the peak of as many."""
    sizes = dict.fromkeys((8, 16, options.batch))
    rows = [training_cost(options, device, precision, "sn", peak, size) for size in sizes]
    threads = torch.get_num_threads()
    if device.type == "cpu" and threads > 1:
        torch.set_num_threads(1)
        try:
            peak = convolution_peak(device, precision)
            rows.append({"what": "convolution peak, one core", "precision": precision, "GFLOP/s": peak})
            rows[-1]["share of peak"] = 1.0
            for size in sizes:
                rows.append(training_cost(options, device, precision, "sn", peak, size))
                rows[-1]["what"] += ", one core"
        finally:
            torch.set_num_threads(threads)
    return rows


def training_cost(options, device, precision: str, tasks: str, peak: float, batch_size: int) -> dict:
    """Images a second of `training.fit`, by its own steps, without the writing of checkpoints."""
    shared = {"tasks": tasks, "encoder": options.encoder, "precision": precision, "batch_size": batch_size}
    spec = ModelSpec(data=DataSpec(size=options.size), **shared)
    images, targets = batch(512, options.size, tasks, device)
    data = dataset(images, targets, tasks)
    model = training.build(spec, data.tasks).to(device)
    optimizer = training.optimizer_of(spec, dict(model.named_parameters()))
    epoch = lambda: list(training.epoch_losses(spec, model, optimizer, data, device, 1))  # noqa: E731
    epoch()
    seconds = statistics.median(clock(epoch, device) for _ in range(3))
    flops = 3 * operations(model, images[:1], tasks) * len(data)
    return {
        "what": f"training on {tasks}, batches of {spec.batch_size}",
        "precision": precision,
        "images/s": len(data) / seconds,
        "GFLOP/s": flops / seconds / 1e9,
        "share of peak": flops / seconds / 1e9 / peak,
    }


def rendering_rate(options) -> float:
    """Rooms a second, with the labels of five tasks."""
    data_load = partial(load, "rooms", tasks="sdDnE", split="train", size=options.size)
    data_load(limit=16, seed=1)
    started = time.perf_counter()
    data_load(limit=512, seed=2)
    return 512 / (time.perf_counter() - started)


def batch(number: int, size: int, tasks: str, device: torch.device):
    """Random images (N, 3, H, W) in [0, 1], channels last, and targets of the right shapes."""
    images = torch.rand(number, 3, size, size, device=device).contiguous(memory_format=torch.channels_last)
    targets = {t: torch.rand(number, TASKS[t].channels, size, size, device=device) for t in tasks if t != "s"}
    if "s" in tasks:
        targets["s"] = torch.randint(0, CLASSES, (number, size, size), device=device, dtype=torch.uint8)
    return images, targets


def dataset(images: torch.Tensor, targets: dict[str, torch.Tensor], tasks: str) -> Dataset:
    """A data set of the images and targets of `batch`."""
    ids = tuple(map(str, range(len(images))))
    return Dataset("random", (images * 255).byte(), targets, dict.fromkeys(tasks), ids, tuple(map(str, range(CLASSES))))


def operations(model: nn.Module, images: torch.Tensor, tasks: str) -> int:
    """Floating-point operations of the convolutions in one forward pass."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(images, tasks)
    return counter.get_total_flops()


def clock(function, device: torch.device) -> float:
    """Seconds that a call takes, until the device has finished."""
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    wait()
    started = time.perf_counter()
    function()
    wait()
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
