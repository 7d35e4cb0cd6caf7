"""Attacks and training here beside what one would take instead, on the same model and batch, in one process.

    pip install --no-deps --target PEERS torchattacks foolbox eagerpy adversarial-robustness-toolbox scikit-learn \\
        threadpoolctl narwhals requests
    PYTHONPATH=PEERS[:<a clone of github.com/fra31/auto-attack>] python benchmarks/peers.py [--size 64] [--batch 32]

Prints one table: PGD and Auto-PGD by library, interleaved, in milliseconds for an image and step, with the ratio to
ours (median of ratios within a round), the memory that a run adds at its peak, and the loss it reaches; and training of
a pair beside a plain loop over a DataLoader. Libraries that are not installed are left out, and named.

Peers attack classifiers, so all attack the same one: the model's logits of s, averaged over the image, with the class
that it predicts as label. The model is frozen and channels last, which spares peers the gradients of its weights.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import importlib
import statistics
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import attack_cost
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mtrlib import attacks, machine, models, training
from mtrlib.specs import DataSpec, ModelSpec
from mtrlib.store import evaluation

EPS, STEP_SIZE, STEPS = 8 / 255, 2 / 255, 25


class Classifier(nn.Module):
    """(B, 3, H, W) in [0, 1] -> (B, classes): the logits of s, averaged over the image."""

    def __init__(self, model: models.MultiTaskModel, precision: str):
        super().__init__()
        self.model, self.half = model, precision == "bfloat16"

    def forward(self, images: Tensor) -> Tensor:
        with torch.autocast(images.device.type, torch.bfloat16, enabled=self.half):
            return self.model(images, "s")["s"].float().mean(dim=(2, 3))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=64, help="of the images, in pixels")
    parser.add_argument("--batch", type=int, default=32, help="images in an attacked batch")
    parser.add_argument("--encoder", default="resnet18_small", choices=models.ENCODERS)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--output", type=Path, help="a CSV file to write the table to")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    device = machine.device()
    rows, absent = [], []
    for precision in dict.fromkeys(("float32", machine.precision())):
        model = models.build(options.encoder, "sd", classes=attack_cost.CLASSES, seed=0).to(device)
        classifier = Classifier(model.requires_grad_(False), precision).eval()
        images, _ = attack_cost.batch(options.batch, options.size, "d", device)
        with torch.no_grad():
            labels = classifier(images).argmax(dim=1)
        for name, runs in attackers(classifier, images, labels, absent).items():
            for row in compare(runs, device, options):
                loss = F.cross_entropy(classifier(row.pop("result")), labels).item()
                rows.append({"what": name, "precision": precision, **row, "loss reached": loss})
        for row in compare(trainers(precision, options, device), device, options):
            row.pop("result")
            rows.append({"what": "training a pair, one epoch of 256", "precision": precision, **row})
    table = pd.DataFrame(rows)
    print(" | ".join(f"{name}: {value}" for name, value in machine.describe().items()))
    print(f"{options.encoder}, {options.size} pixels, batches of {options.batch}, {STEPS} steps, l-infinity 8/255")
    print(f"not installed: {', '.join(dict.fromkeys(absent)) or 'none'}")
    print(table.to_string(index=False, na_rep="", float_format="{:.4g}".format))
    if options.output:
        attack_cost.write(table, options.output)


def attackers(classifier: Classifier, images: Tensor, labels: Tensor, absent: list[str]) -> dict[str, dict]:
    """By attack, then by library: a call that returns the attacked images."""

    precision = "bfloat16" if classifier.half else "float32"
    ours = Classifier(evaluation.for_attack(classifier.model, precision), precision)  # as every attack here is run

    def losses(points: Tensor) -> Tensor:
        return F.cross_entropy(ours(points), labels, reduction="none")[None]

    budget = {"eps": EPS, "step_size": STEP_SIZE, "steps": STEPS}
    pgd = {"mtrlib": lambda: attacks.pgd(losses, images, **budget)}
    apgd = {"mtrlib": lambda: attacks.apgd(losses, images, **budget)}
    if torchattacks := _library("torchattacks", absent):
        attack = torchattacks.PGD(classifier, EPS, STEP_SIZE, STEPS)
        pgd["torchattacks"] = lambda: attack(images, labels)
        adaptive = torchattacks.APGD(classifier, eps=EPS, steps=STEPS)
        apgd["torchattacks"] = lambda: adaptive(images, labels)
    if foolbox := _library("foolbox", absent):
        wrapped = foolbox.PyTorchModel(classifier, bounds=(0, 1), device=images.device)
        linf = foolbox.attacks.LinfPGD(abs_stepsize=STEP_SIZE, steps=STEPS)
        pgd["foolbox"] = lambda: linf.run(wrapped, images, labels, epsilon=EPS)
    if _library("art.attacks.evasion", absent):
        from art.attacks.evasion import AutoProjectedGradientDescent, ProjectedGradientDescentPyTorch
        from art.estimators.classification import PyTorchClassifier

        kind = "gpu" if images.is_cuda else "cpu"
        form = {"input_shape": tuple(images.shape[1:]), "nb_classes": attack_cost.CLASSES, "clip_values": (0, 1)}
        estimator = PyTorchClassifier(classifier, nn.CrossEntropyLoss(), device_type=kind, **form)
        number, truth = images.cpu().numpy(), F.one_hot(labels, attack_cost.CLASSES).cpu().numpy()
        shared = {"eps": EPS, "eps_step": STEP_SIZE, "max_iter": STEPS, "batch_size": len(images), "verbose": False}
        of_art = ProjectedGradientDescentPyTorch(estimator, num_random_init=1, **shared)
        pgd["ART"] = lambda: torch.from_numpy(of_art.generate(number, truth)).to(images.device)
        loss_type = {"loss_type": "cross_entropy", "nb_random_init": 1}
        automatic = AutoProjectedGradientDescent(estimator, **loss_type, **shared)
        apgd["ART"] = lambda: torch.from_numpy(automatic.generate(number, truth)).to(images.device)
    if _library("autoattack.autopgd_base", absent):
        from autoattack.autopgd_base import APGDAttack

        reference = APGDAttack(classifier, n_iter=STEPS, eps=EPS, device=str(images.device))
        apgd["AutoAttack"] = lambda: reference.perturb(images, labels, best_loss=True)
    return {f"PGD-{STEPS}": pgd, f"Auto-PGD-{STEPS}": apgd}


def trainers(precision: str, options, device: torch.device) -> dict[str, Callable]:
    """One epoch of a pair: the library's loop, and a plain one (AdamW, autocast, a DataLoader)."""
    spec = ModelSpec(data=DataSpec(size=options.size), tasks="sd", encoder=options.encoder, precision=precision)
    images, targets = attack_cost.batch(256, options.size, "sd", device)
    data = attack_cost.dataset(images, targets, "sd")
    model = training.build(spec, data.tasks).to(device)
    optimizer = training.optimizer_of(spec, dict(model.named_parameters()))
    other = models.build(options.encoder, "sd", classes=attack_cost.CLASSES, seed=0).to(device)
    other = other.to(memory_format=torch.contiguous_format)
    plain_optimizer = torch.optim.AdamW(other.parameters(), lr=spec.learning_rate)
    rows = torch.utils.data.TensorDataset(images.contiguous(), targets["s"].long(), targets["d"])
    loader = torch.utils.data.DataLoader(rows, batch_size=spec.batch_size, shuffle=True)

    def plain() -> None:
        for points, s, d in loader:
            plain_optimizer.zero_grad()
            with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16"):
                outputs = other(points)
                loss = F.cross_entropy(outputs["s"].float(), s) + F.l1_loss(outputs["d"].float(), d)
            loss.backward()
            plain_optimizer.step()

    ours = lambda: list(training.epoch_losses(spec, model, optimizer, data, device, 1))  # noqa: E731
    return {"mtrlib": ours, "plain PyTorch": plain}


def compare(runs: dict[str, Callable], device: torch.device, options) -> list[dict]:
    """Every run once to warm up (and for its memory), then all of them in turn, several times."""
    memory, results = {}, {}
    for name, run in runs.items():
        memory[name], results[name] = added_memory(run, device)
    rounds = []
    for _ in range(options.repeats):
        rounds.append({name: attack_cost.clock(run, device) for name, run in runs.items()})
    rows = []
    for name in runs:
        seconds = statistics.median(times[name] for times in rounds)
        attacked = isinstance(results[name], Tensor)
        rows.append(
            {
                "library": name,
                "ms": 1e3 * seconds / (options.batch * STEPS if attacked else 256),
                "for an": "image and step" if attacked else "image",
                "times ours": statistics.median(times[name] / times["mtrlib"] for times in rounds),
                "added MiB": memory[name],
                "result": results[name],
            }
        )
    return rows


def added_memory(run: Callable, device: torch.device) -> tuple[float, object]:
    """MiB that a run adds at its peak to what is held before it: of the device, or resident on the CPU (sampled)."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        result = run()
        return (torch.cuda.max_memory_allocated() - before) / 2**20, result
    resident = lambda: int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 2**20  # noqa: E731
    run()
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what earlier runs left is given back, so that it does not hide this one's
    before, peak, done = resident(), 0.0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.is_set():
            peak = max(peak, resident())
            time.sleep(0.002)

    watcher = threading.Thread(target=watch)
    watcher.start()
    result = run()
    done.set()
    watcher.join()
    return max(peak - before, 0.0), result


def _library(name: str, absent: list[str]):
    try:
        return importlib.import_module(name)
    except ImportError:
        absent.append(name.partition(".")[0])
        return None


if __name__ == "__main__":
    main()
