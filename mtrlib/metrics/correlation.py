"""Correlations of cells within main tasks, where alone they can guide a choice (paper, RQ4 and Table 3)."""

from __future__ import annotations

import numpy as np
import pandas as pd
from scipy.stats import rankdata


def ranked(values: np.ndarray) -> np.ndarray:
    """(..., n) -> ranks along the last axis, centred and of length 1; their inner product is Spearman's correlation."""
    ranks = rankdata(values, axis=-1)
    ranks = ranks - ranks.mean(axis=-1, keepdims=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        return ranks / np.sqrt((ranks**2).sum(axis=-1, keepdims=True))


def spearman(one: np.ndarray, two: np.ndarray) -> np.ndarray:
    """Spearman's correlation along the last axis; NaN where all values of one are the same."""
    return (ranked(one) * ranked(two)).sum(axis=-1)


def within(one: pd.Series, two: pd.Series, permutations: int = 10_000) -> tuple[float, np.ndarray]:
    """The mean over main tasks of Spearman's correlation of their cells, and what chance gives: the same for
    permutations of the cells of each main task.

    one, two : a number a cell, of one index with a level `main`. Main tasks of fewer than three cells, or of cells that
    are all alike, have no correlation. NaN and no permutation where none has one.
    """
    generator, points, chance = np.random.default_rng(0), [], []
    both = pd.concat([one.rename("one"), two.rename("two")], axis=1).dropna()
    for _, cells in both.groupby(level="main", sort=False):
        x, y = ranked(cells.one.to_numpy()), ranked(cells.two.to_numpy())
        if len(cells) >= 3 and not np.isnan(x @ y):
            points.append(x @ y)
            chance.append(generator.permuted(np.tile(y, (permutations, 1)), axis=1) @ x)
    return (float(np.mean(points)), np.mean(chance, axis=0)) if points else (np.nan, np.array([]))
