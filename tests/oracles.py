"""What several test modules use that is no fixture; no test module imports another."""

import importlib.util
import json
import os
import shutil
import subprocess

import matplotlib
import numpy as np
import pandas as pd

from mtrlib import machine

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def script(name: str):
    """The module of a benchmark."""
    spec = importlib.util.spec_from_file_location(name, machine.root() / "benchmarks" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run_cells(name: str, values: dict) -> dict:
    """Run the code cells of a notebook, with these parameters, in this process, which spares the start of a kernel and
    the pictures; returns what they leave."""
    cells = json.loads((machine.root() / "notebooks" / f"{name}.ipynb").read_text(encoding="utf-8"))["cells"]
    sources = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    namespace = {"display": lambda *shown: [each._repr_html_() for each in shown if hasattr(each, "_repr_html_")]}
    with matplotlib.rc_context({"backend": "agg"}):
        for number, source in enumerate(sources):
            exec(compile(source, f"{name}, code cell {number}", "exec"), namespace)
            if number == 0:
                namespace |= values
        matplotlib.pyplot.close("all")
    return namespace


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


def no_chromium() -> bool:
    """Whether there is no browser, and the environment does not ask for one."""
    return CHROMIUM is None and os.environ.get("MTRLIB_CHROMIUM") != "required"


def opened(page) -> tuple[str, list[str]]:
    """The document as a browser has it, and what its console says."""
    assert CHROMIUM, "MTRLIB_CHROMIUM=required, and there is no chromium"
    options = "--headless --no-sandbox --disable-gpu --disable-background-networking --enable-logging=stderr --dump-dom"
    done = subprocess.run([CHROMIUM, *options.split(), page.as_uri()], capture_output=True, text=True, timeout=120)
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


def js_of_pixel(logits: np.ndarray, label: int) -> float:
    """The Jensen-Shannon divergence of a softmax (C,) and a one-hot label, from its definition by two entropies."""
    p, q = np.exp(logits) / np.exp(logits).sum(), np.eye(len(logits))[label]

    def entropy(values):
        return -sum(value * np.log(value) for value in values if value > 0)

    return entropy((p + q) / 2) - entropy(p) / 2 - entropy(q) / 2


def dlr_of_pixel(logits: np.ndarray, label: int) -> float:
    """Minus (z_y - max of the others) / (highest - third highest)."""
    ordered, others = np.sort(logits)[::-1], np.delete(logits, label)
    return -(logits[label] - others.max()) / (ordered[0] - ordered[2])


def groups_of(label: np.ndarray) -> np.ndarray:
    """(C, N) values of one image's valid pixels -> (N,): eight equal bands of one channel; of several, the axis and the
    side on which a pixel lies farthest from the mean."""
    if len(label) == 1:
        edges = np.linspace(label.min(), label.max(), 9)
        return np.clip(np.searchsorted(edges, label[0], side="right") - 1, 0, 7)
    away = label - label.mean(axis=1, keepdims=True)
    axis = np.abs(away).argmax(axis=0)
    return 2 * axis + (away[axis, np.arange(len(axis))] > 0)


def pixel_weights(kind: str, values: np.ndarray, label: np.ndarray, classes: bool) -> np.ndarray:
    """(N,), what each of N valid pixels of one image counts in the gradient of its mean training loss (cross-entropy,
    l1), for outputs `values` (C, N) and label (N,) or (C, N): one pixel after the other."""
    centre = label.mean(axis=-1, keepdims=True)
    if classes:
        broken = [values[:, i].argmax() != label[i] for i in range(len(label))]
    else:
        limit = np.abs(label - centre).mean()
        broken = [np.abs(values[:, i] - label[:, i]).mean() > limit for i in range(label.shape[1])]
    groups = label if classes else groups_of(label)
    weights = []
    for i, is_broken in enumerate(broken):
        if kind == "cosine" and classes:
            p = np.exp(values[:, i]) / np.exp(values[:, i]).sum()
            weights.append(p[label[i]] / np.sqrt((p**2).sum()))
        elif kind == "cosine":
            c = [np.sqrt(((label - centre) ** 2).sum(axis=0).mean())]
            one, other = (np.concatenate([each[:, i] - centre[:, 0], c]) for each in (values, label))
            weights.append(max(one @ other / np.linalg.norm(one) / np.linalg.norm(other), 0))
        else:
            size = len(groups) / len(set(groups)) / (groups == groups[i]).sum() if kind == "balanced" else 1
            weights.append(0 if is_broken else size)
    return np.array(weights)


def onto_l1(change: np.ndarray, image: np.ndarray, eps: float) -> np.ndarray:
    """The nearest change to `change` whose absolute values sum to at most eps and that leaves `image` in [0, 1]: all
    sizes less one threshold, cut to what the range allows, the threshold by bisection."""
    room = np.where(change > 0, 1 - image, image)
    low, high = 0.0, np.abs(change).max()
    if np.minimum(np.abs(change), room).sum() <= eps:
        return np.sign(change) * np.minimum(np.abs(change), room)
    for _ in range(200):
        middle = (low + high) / 2
        total = np.minimum(np.maximum(np.abs(change) - middle, 0), room).sum()
        low, high = (middle, high) if total > eps else (low, middle)
    return np.sign(change) * np.minimum(np.maximum(np.abs(change) - high, 0), room)


def miou_of(counts: np.ndarray, chosen: list[int]) -> float:
    """The mean IoU of a set of images, of `counts` (R, 3, N, C) those of the run `chosen` for each."""
    shared, either, label = (
        sum(counts[run, part, image] for image, run in enumerate(chosen)) for part in range(3)
    )  # fmt: skip
    return float(np.mean([shared[c] / either[c] for c in range(len(label)) if label[c] > 0]))
