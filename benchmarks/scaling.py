"""How the cost of an attack and of training grows, and what the paper's whole zoo would cost on this machine.

    python benchmarks/scaling.py [--output scaling]

Measures PGD by number of images, tasks, attacked tasks, steps
and resolution, and training by tasks and resolution; the slope of each in logarithms (1 is linear) stands in the
table. Then the zoo: every distinct model of the settings S1 to S8 (supplement, Table 1) once, over 7,000 images of
256 pixels for as many epochs as the longest setting that has it, and PGD-25 on 2,000 test images, each of its tasks
attacked alone; from the measured seconds of each encoder. `--output` writes scaling.csv, zoo.csv and scaling.png.
"""

from __future__ import annotations

import argparse
import statistics
from itertools import product
from pathlib import Path

import attack_cost
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch

from mtrlib import attacks, machine, models, training
from mtrlib.claims import published
from mtrlib.specs import DataSpec, ModelSpec
from mtrlib.store import evaluation
from mtrlib.tasks import canonical

BASE = {"size": 64, "images": 32, "tasks": "sdDn", "attacked": "s", "steps": 10, "encoder": "resnet18_small"}
VARIED = {
    "images": (8, 16, 32, 64, 128),
    "tasks": ("s", "sd", "sdDn", "sdDnEkKe"),
    "attacked": ("s", "sd", "sdDn"),
    "steps": (5, 10, 20, 40),
    "size": (32, 64, 128, 256),
}
LABELS = {"images": "images", "tasks": "tasks of the model", "attacked": "attacked tasks", "steps": "attack steps"}
LABELS |= {"size": "size (pixels)"}
TRAIN_IMAGES, TEST_IMAGES = 7000, 2000  # of one building of Taskonomy, about


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--no-zoo", action="store_true", help="leave the zoo out")
    parser.add_argument("--output", type=Path, help="a folder for the tables and the figure")
    options = parser.parse_args()
    device, precision = machine.device(), machine.precision()
    table = measured(device, precision, options.repeats)
    print(" | ".join(f"{name}: {value}" for name, value in machine.describe().items()))
    print(f"PGD and training in {precision}, seconds a run, otherwise {BASE}")
    print(table.to_string(index=False, float_format="{:.3g}".format))
    zoo = pd.DataFrame() if options.no_zoo else projection(device, precision)
    if len(zoo):
        print(
            f"The zoo: {TRAIN_IMAGES:,} images to train, {TEST_IMAGES:,} to attack with PGD-25, 256 pixels, {precision}"
        )
        print(zoo.to_string(index=False, float_format="{:.3g}".format))
    if options.output:
        options.output.mkdir(parents=True, exist_ok=True)
        attack_cost.write(table, options.output / "scaling.csv")
        attack_cost.write(zoo, options.output / "zoo.csv")
        draw(table).savefig(options.output / "scaling.png", dpi=100)


def measured(device: torch.device, precision: str, repeats: int) -> pd.DataFrame:
    """One row a setting: what, varied, value (a number), seconds (median), and the slope of its series."""
    rows = []
    for what in ("PGD", "training"):
        for varied, values in VARIED.items():
            if what == "training" and varied not in ("tasks", "size"):
                continue
            runs = [run(what, {**BASE, varied: value}, device, precision) for value in values]
            for call in runs:
                call()
            times = [[attack_cost.clock(call, device) for call in runs] for _ in range(repeats)]
            seconds = [statistics.median(column) for column in zip(*times, strict=True)]
            numbers = [value if isinstance(value, int) else len(value) for value in values]
            slope = np.polyfit(np.log(numbers), np.log(seconds), 1)[0]
            for number, second in zip(numbers, seconds, strict=True):
                rows.append({"what": what, "varied": varied, "value": number, "seconds": second, "slope": slope})
    return pd.DataFrame(rows)


def run(what: str, setting: dict, device: torch.device, precision: str):
    """A call of PGD on one batch, or of one epoch of training over the images."""
    images, targets = attack_cost.batch(setting["images"], setting["size"], setting["tasks"], device)
    if what == "training":
        data = attack_cost.dataset(images, targets, setting["tasks"])
        shared = {"tasks": setting["tasks"], "encoder": setting["encoder"], "precision": precision}
        spec = ModelSpec(data=DataSpec(size=setting["size"]), **shared)
        model = training.build(spec, data.tasks).to(device)
        optimizer = training.optimizer_of(spec, dict(model.named_parameters()))
        return lambda: list(training.epoch_losses(spec, model, optimizer, data, device, 1))
    model = models.build(setting["encoder"], setting["tasks"], classes=attack_cost.CLASSES, seed=0)
    model = evaluation.for_attack(model.to(device).eval().requires_grad_(False), precision)
    losses = attacks.task_losses(model, targets, None, setting["attacked"])
    budget = {"eps": attack_cost.EPS, "step_size": attack_cost.EPS / 4, "steps": setting["steps"]}

    def attack() -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16"):
            attacks.pgd(losses, images, **budget)

    return attack


def projection(device: torch.device, precision: str) -> pd.DataFrame:
    """Hours on this machine for every distinct model of the settings, by encoder and weights."""
    models_of: dict[tuple[str, str], dict[str, int]] = {}
    for row in published.read("settings_supplement_table1").itertuples():
        encoder = {"xception": "xception_small"}.get(row.encoder, row.encoder)
        for main, auxiliary in product(row.tasks, row.tasks):
            alone, uniform = main == auxiliary, row.weights == "uniform"
            # Only weights that differ tell the main task from the auxiliary one, and a single task has none.
            tasks = main if alone else canonical(main + auxiliary) if uniform else main + auxiliary
            found = models_of.setdefault((encoder, "uniform" if alone else row.weights), {})
            found[tasks] = max(found.get(tasks, 0), row.epochs)  # a shorter training is a checkpoint of the longer
    rows = []
    for (encoder, weights), found in models_of.items():
        pair, alone = (seconds_of(encoder, tasks, device, precision) for tasks in ("sd", "s"))
        hours = {"training hours": 0.0, "attack hours": 0.0}
        for tasks, epochs in found.items():
            train, step = pair if len(tasks) == 2 else alone
            hours["training hours"] += train * TRAIN_IMAGES * epochs / 3600
            hours["attack hours"] += len(tasks) * step * TEST_IMAGES * attack_cost.STEPS / 3600
        rows.append({"encoder": encoder, "weights": weights, "models": len(found), **hours})
    table = pd.DataFrame(rows)
    total = {"encoder": "all", "weights": "", **table[["models", *hours]].sum()}
    return pd.concat([table, pd.DataFrame([total])], ignore_index=True)


def seconds_of(encoder: str, tasks: str, device: torch.device, precision: str) -> tuple[float, float]:
    """Seconds to train on an image of 256 pixels, and of one step of PGD on it."""
    setting = {**BASE, "encoder": encoder, "size": 256, "tasks": tasks, "steps": 4}
    setting["images"] = 8 if device.type == "cpu" else 32
    seconds = []
    for what in ("training", "PGD"):
        call = run(what, setting, device, precision)
        call()
        seconds.append(min(attack_cost.clock(call, device) for _ in range(2)) / setting["images"])
    return seconds[0], seconds[1] / setting["steps"]


def draw(table: pd.DataFrame) -> plt.Figure:
    """A panel a varied number, both axes logarithmic, the slope in the legend."""
    names = list(dict.fromkeys(table.varied))
    figure, axes = plt.subplots(1, len(names), figsize=(3 * len(names), 3.2), sharey=True, layout="constrained")
    for axis, name in zip(axes, names, strict=True):
        for (what, slope), rows in table[table.varied == name].groupby(["what", "slope"], sort=False):
            style = "o-" if what == "PGD" else "s--"
            axis.plot(rows.value, rows.seconds, style, color="black", label=f"{what}: slope {slope:.2f}")
        axis.set(xscale="log", yscale="log", xlabel=LABELS[name])
        axis.set_xticks(values := sorted(set(table[table.varied == name].value)), map(str, values), fontsize=9)
        axis.minorticks_off()
        axis.legend(frameon=False, fontsize=9)
    axes[0].set_ylabel("seconds")
    return figure


if __name__ == "__main__":
    main()
