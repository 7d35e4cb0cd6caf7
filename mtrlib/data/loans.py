"""A table for constrained attacks, made up here in the form of the papers' (loans): ten features, five constraints and
two tasks. `DESCRIPTION` is what `attacks.domain` takes."""

from importlib.resources import files

import numpy as np
import torch
import yaml
from torch import Tensor

DESCRIPTION = yaml.safe_load((files("mtrlib.data") / "loans.yaml").read_text(encoding="utf-8"))


def loans(number: int, seed: int = 0) -> tuple[Tensor, dict[str, Tensor]]:
    """Draw loans that keep all constraints.

    Returns
    -------
    values : (N, 10) float64, in the order of the description's features.
    targets : "default", (N,) int64, 1 where it was not paid back, about one in three; "loss", (N,) float64, the share
        of the amount that is expected to be lost, in [0, 1].
    """
    g = np.random.default_rng(seed)
    amount, income = 1000 * np.exp(g.uniform(0, 3.6, number)), 1000 * np.exp(g.uniform(2.6, 4.9, number))
    amount = np.minimum(amount, income)  # so that no burden is beyond its range
    term, rate, accounts = g.choice([36, 60], number), g.uniform(5, 30, number), g.integers(1, 41, number)
    monthly = rate / 1200
    instalment = amount * monthly / (1 - (1 + monthly) ** -term)
    open_accounts = g.binomial(accounts, g.uniform(0.1, 0.9, number))
    overdue = g.poisson(0.8, number).clip(0, 10)
    months = np.where(overdue == 0, 120, g.integers(0, 120, number))
    burden = 12 * instalment / income
    risk = 5 * burden + 0.1 * (rate - 15) + 0.5 * overdue - 0.008 * months + 0.06 * (open_accounts - 8)
    loss = 1 / (1 + np.exp(-(risk - 1.4)))
    default = g.random(number) < 1 / (1 + np.exp(-3 * (risk - 1.6)))
    columns = [amount, term, rate, instalment, income, burden, accounts, open_accounts, overdue, months]
    targets = {"default": torch.from_numpy(default.astype(np.int64)), "loss": torch.from_numpy(loss)}
    return torch.from_numpy(np.stack(columns, axis=1).astype(np.float64)), targets
