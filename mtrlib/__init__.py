"""Rerun, check and extend "Adversarial Robustness in Multi-Task Learning: Promises and Illusions".

Ghamizi, Cordy, Papadakis, Le Traon, AAAI 2022 (arXiv 2110.15053). The notebooks in `notebooks/` are
the product; this package is the thin library under them.
"""

import os
from typing import Any

# Read by OpenMP as PyTorch loads, so import this package first: threads that wait give their core back. What that is
# worth depends on the machine: `benchmarks/busy.py` measures it.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

__version__ = "0.2.0"


def __getattr__(name: str) -> Any:
    """`benchmark`, loaded when it is asked for: it needs everything else."""
    if name == "benchmark":
        from mtrlib.batch.benchmark import benchmark

        return benchmark
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
