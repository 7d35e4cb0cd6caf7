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
