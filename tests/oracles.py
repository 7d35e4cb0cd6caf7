"""What several test modules use that is no fixture; no test module imports another."""

import importlib.util

import numpy as np
import pandas as pd

from mtrlib import machine


def script(name: str):
    """The module of a benchmark."""
    spec = importlib.util.spec_from_file_location(name, machine.root() / "benchmarks" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def errors_of(factors: dict[tuple[str, str], float], images: int = 40, panel: str = "table") -> pd.DataFrame:
    """An errors table in which a model's error grows by a known factor."""
    g = np.random.default_rng(0)
    clean = g.uniform(0.5, 1.5, images)
    noise = g.normal(0, 0.01, images)
    frames = []
    for (main, auxiliary), factor in factors.items():
        for attacked in ("single",) if main == auxiliary else ("single", "joint"):
            rows = {"clean_error": clean, "adversarial_error": clean * (factor + noise)}
            keys = {"panel": panel, "setting": "linf", "attacked": attacked, "main": main, "auxiliary": auxiliary}
            frames.append(pd.DataFrame({**rows, **keys, "seed": 0, "image_id": range(images)}))
    return pd.concat(frames, ignore_index=True)
