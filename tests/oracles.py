"""What several test modules use that is no fixture; no test module imports another."""

import importlib.util

from mtrlib import machine


def script(name: str):
    """The module of a benchmark."""
    spec = importlib.util.spec_from_file_location(name, machine.root() / "benchmarks" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
