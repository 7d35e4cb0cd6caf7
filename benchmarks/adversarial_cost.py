"""What adversarial training costs beside the passes it cannot do without, on this machine.

    python benchmarks/adversarial_cost.py [--size 64] [--batch 8] [--encoder resnet18_small] [--output cost.csv]

Prints one table, a row a recipe on a pair of tasks: milliseconds an image, bare and in training, with the median of the
paired ratios; the ratio of the operations of their convolutions, which no other load on the machine moves (goal: at
most 1.10); and the passes that `mtrlib.batch` counts, beside the operations in forward passes. Bare are the passes to
each point of the inner attack with their gradients of the images, the passes of what is learned from, one backward pass
of the sum of its losses, and the optimizer's step; of gat, as many backward passes as it balances losses. Seconds are
of this process alone; images are random, since cost does not depend on what they hold.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

import attack_cost
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from mtrlib import attacks, machine, models, training
from mtrlib.specs import Adversarial, DataSpec, ModelSpec
from mtrlib.training import adversarial, weights

# isort: split
import pandas as pd

TASKS = "sn"
RECIPES = {
    "pgd_at": {},
    "pgd_at, min_max": {"attack": "min_max"},
    "trades": {"recipe": "trades"},
    "half": {"recipe": "half"},
    "fast": {"recipe": "fast"},
    "gat": {"recipe": "gat"},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=64, help="of the images, in pixels")
    parser.add_argument("--batch", type=int, default=8, help="images in a step")
    parser.add_argument("--encoder", default="resnet18_small", choices=models.ENCODERS)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--output", type=Path, help="a CSV file to write the table to")
    options = parser.parse_args()
    table = pd.DataFrame([cost(name, options, machine.precision()) for name in RECIPES])
    print(" | ".join(f"{name}: {value}" for name, value in machine.describe().items()))
    print(f"{options.encoder}, {options.size} pixels, batches of {options.batch}, tasks {TASKS}")
    print(table.to_string(index=False, float_format="{:.3g}".format))
    if options.output:
        attack_cost.write(table, options.output)


def cost(name: str, options, precision: str) -> dict:
    """A training step of a recipe against its bare passes."""
    device, how = machine.device(), Adversarial(**RECIPES[name])
    balanced = {"weights": "MGDA"} if how.recipe == "gat" else {}
    shared = {"tasks": TASKS, "encoder": options.encoder, "precision": precision, "batch_size": options.batch}
    spec = ModelSpec(data=DataSpec(size=options.size), adversarial=how, **shared, **balanced)
    images, targets = attack_cost.batch(options.batch, options.size, TASKS, device)
    data = attack_cost.dataset(images, targets, TASKS)
    model = training.build(spec, data.tasks).to(device).train()
    optimizer = training.optimizer_of(spec, dict(model.named_parameters()))
    balance = weights.balancer(spec.weights, TASKS)

    def trained() -> None:
        list(training.epoch_losses(spec, model, optimizer, data, device, 1, balance=balance))

    def bare() -> None:
        point = images.clone().requires_grad_()
        losses = attacks.task_losses(model, targets, None, adversarial.attacked(spec))
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16"):
            for _ in range(how.steps):
                torch.autograd.grad(losses(point).sum(), point)
            outputs = [model(images, letters) for letters in adversarial.learned(spec) if letters]
        rows = [
            sum(model.definitions[t].loss(each[t], targets[t]).mean() for each in outputs if t in each) for t in TASKS
        ]
        for row in rows if balanced else [sum(rows)]:
            row.backward(retain_graph=row is not rows[-1])
        optimizer.step()

    work = [operations(function) for function in (bare, trained)]  # which warms up as well
    times = [(seconds(bare, device), seconds(trained, device)) for _ in range(options.repeats)]
    forward = operations(lambda: model(images))
    return {
        "what": name,
        "bare ms/image": 1e3 * statistics.median(first for first, _ in times) / options.batch,
        "ms/image": 1e3 * statistics.median(second for _, second in times) / options.batch,
        "ratio": statistics.median(second / first for first, second in times),
        "ratio of operations": work[1] / work[0],
        "passes": work[1] / forward,
        "passes counted": adversarial.passes(spec),
    }


def operations(function) -> int:
    """Floating-point operations of the convolutions and matrix products in a call."""
    with Counter() as counter:
        function()
    return counter.total


class Counter(TorchDispatchMode):
    """PyTorch's own FlopCounterMode asks for modules, whose hooks refuse gradients of images."""

    total = 0

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        found = function(*arguments, **keywords or {})
        if (count := flop_registry.get(function._overloadpacket)) is not None:
            self.total += count(*arguments, **keywords or {}, out_val=found)
        return found


def seconds(function, device: torch.device) -> float:
    """Of this process in a call, until the device has finished; on an accelerator those of the clock."""
    if device.type != "cpu":
        return attack_cost.clock(function, device)
    started = time.process_time()
    function()
    return time.process_time() - started


if __name__ == "__main__":
    main()
