"""Verdicts can be trusted: made errors tables with a known truth through the library's own claims, seeds fixed.

benchmarks/coverage.py is the same at more sizes and with more tables; results/benchmarks/coverage.csv is what it found.
"""

import numpy as np
import pandas as pd
import pytest
from oracles import script

from mtrlib import machine


@pytest.fixture(scope="module")
def coverage():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(machine.root() / "benchmarks"))
        return script("coverage")


def shares(rows: list[dict], column: str) -> pd.Series:
    return pd.DataFrame(rows).set_index("of")[column].dropna()


@pytest.mark.parametrize(("images", "heavy"), [(12, True), (64, False)])
def test_intervals_hold_the_truth(coverage, images, heavy):
    """Nominal 95 %, of 60 cells and more; the bootstrap over three seeds held it in 76 to 91 %."""
    found = shares(coverage.intervals(np.random.default_rng(0), 10, "sdn", 3, images, heavy), "covered")
    of_cells = ["two models", "a model and that of one task", "two attacks on the same models", "log_ratio"]
    assert (found[of_cells] >= 0.88).all(), found


@pytest.mark.parametrize("truth", ["no effect", "mixed"])
def test_no_verdict_contradicts_the_truth(coverage, truth):
    """Of five tables; and an effect of 30 % is found."""
    found = coverage.verdicts(np.random.default_rng(1), 5, "rq1", truth, "sn", 5, 64, False)
    assert (shares(found, "false")[[f"claim 1.{k}" for k in range(1, 6)]] == 0).all(), found
    if truth == "mixed":
        assert shares(found, "decided")["claim 1.3"] >= 0.8


def test_one_training_decides_nothing_where_models_are_compared(coverage):
    for design, claims in (("rq1", "1.1 1.2 1.3 1.4 1.5"), ("rq3", "3.1 3.3 3.4 3.5 3.6"), ("rq4", "4.1 4.2 4.3 4.4")):
        truth = "proxies know" if design == "rq4" else "mixed"
        found = coverage.verdicts(np.random.default_rng(2), 1, design, truth, "sdn", 1, 24, False)
        assert (shares(found, "decided")[[f"claim {number}" for number in claims.split()]] == 0).all()


def test_without_noise_a_table_is_its_truth(coverage):
    errors = coverage.simulate(np.random.default_rng(0), "rq3", "sdn", "mixed", 2, 3, noise=0.0)
    log = np.log(errors.adversarial_error / errors.clean_error).groupby([errors[n] for n in coverage.LEVELS]).mean()
    true = coverage.cells("rq3", "sdn", "mixed").set_index(coverage.LEVELS).log
    assert log[true.index].to_numpy() == pytest.approx(true.to_numpy())


def test_the_mean_of_a_large_table_is_what_is_said_to_be_true(coverage):
    errors = coverage.simulate(np.random.default_rng(0), "rq3", "sn", "mixed", 20, 2000)
    known = coverage.cells("rq3", "sn", "mixed").set_index(coverage.LEVELS).log
    for quantity in ("log_ratio", "ratio", "ratio_of_means", "clean_error", "adversarial_error"):
        found = coverage.estimates.estimates(errors, quantity).value
        true = coverage.truth_of(quantity, found.index, known, False)
        assert found.to_numpy() == pytest.approx(true, rel=0.08, abs=0.08), quantity
