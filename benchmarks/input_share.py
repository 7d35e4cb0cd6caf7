"""What share of a training step is spent on getting its batch, for a data set that streams from the cache.

    python benchmarks/input_share.py [--size 64] [--batch 32] [--images 512] [--encoder resnet18_small] [--steps 12]

Writes the example data set to a temporary folder, decodes it into a cache there, and times the steps of training with
and without anything but `Dataset.batch`: images and labels are memory-mapped and picked in random order. Prints the
median time of a batch, of a step, and their share (goal: at most 0.05). Files have been read once before the timing,
so that they come from the memory of the operating system where it has the room.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path

from mtrlib import data, machine, training  # before PyTorch: see mtrlib
from mtrlib.specs import DataSpec, ModelSpec

# isort: split
import torch


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=64, help="of the images, in pixels")
    parser.add_argument("--batch", type=int, default=32, help="images of a step")
    parser.add_argument("--images", type=int, default=512, help="in the data set")
    parser.add_argument("--encoder", default="resnet18_small")
    parser.add_argument("--tasks", default="sdn")
    parser.add_argument("--steps", type=int, default=12, help="timed in each of the repeats")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["MTRLIB_CACHE"] = str(Path(folder) / "cache")
        found = measure(options, Path(folder) / "example")
    print(" | ".join(f"{name}: {value}" for name, value in machine.describe().items()))
    print(f"{options.encoder}, {options.tasks}, {options.size} pixels, batches of {options.batch}")
    print(", ".join(f"{name} {value:.4g}" for name, value in found.items()))


def measure(options, folder: Path) -> dict[str, float]:
    """Medians: milliseconds of a batch, of a whole step, and the share of the one in the other."""
    device = machine.device()
    data.write_example(folder, options.images, 2)
    spec = ModelSpec(
        data=DataSpec(name="folder", root=str(folder), digest=data.digest("folder", folder), size=options.size),
        tasks=options.tasks,
        encoder=options.encoder,
        batch_size=options.batch,
        precision=machine.precision(),
    )
    loaded = data.load("folder", tasks=spec.tasks, split="train", size=options.size, root=folder)
    model = training.build(spec, loaded.tasks).to(device)
    optimizer = training.optimizer_of(spec, dict(model.named_parameters()))
    seconds: list[float] = []

    class Timed:
        """The data set, with a clock on `batch`."""

        images = loaded.images

        def __len__(self) -> int:
            return min(len(loaded), options.steps * options.batch)

        def batch(self, index, where):
            started = clock(device)
            index = torch.randint(len(loaded), index.shape, device=index.device)
            found = loaded.batch(index, where)
            seconds.append(clock(device) - started)
            return found

    rows = []
    for repeat in range(options.repeats + 1):
        seconds.clear()
        started = clock(device)
        for _ in training.epoch_losses(spec, model, optimizer, Timed(), device, repeat + 1):
            pass
        whole = clock(device) - started
        rows.append((sum(seconds) / len(seconds), whole / len(seconds), sum(seconds) / whole))
    batch, step, share = (statistics.median(column) for column in zip(*rows[1:], strict=True))  # the first warms up
    return {"batch ms": 1e3 * batch, "step ms": 1e3 * step, "share of input": share}


def clock(device: torch.device) -> float:
    """Now, in seconds, when the device has finished."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


if __name__ == "__main__":
    main()
