"""Correlations of cells within main tasks, where alone they can guide a choice (paper, RQ4 and Table 3)."""

import numpy as np
import pandas as pd


def ranked(values: np.ndarray) -> np.ndarray:
    """(..., n) -> ranks along the last axis, centred and of length 1; their inner product is Spearman's correlation."""
    from scipy.stats import rankdata  # takes long to import

    ranks = rankdata(values, axis=-1)
    ranks = ranks - ranks.mean(axis=-1, keepdims=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        return ranks / np.sqrt((ranks**2).sum(axis=-1, keepdims=True))


def spearman(one: np.ndarray, two: np.ndarray) -> np.ndarray:
    """Spearman's correlation along the last axis; NaN where all values of one are the same."""
    return (ranked(one) * ranked(two)).sum(axis=-1)


def within(one: pd.DataFrame, two: pd.DataFrame, permutations: int = 10_000) -> tuple[float, np.ndarray]:
    """The mean over main tasks of Spearman's correlation of their cells, and what chance gives: the same for
    permutations of the cells of each main task.

    one, two : a number a cell (index with a level `main`), training and half of the images (columns). Each column of
    one meets those of two of other trainings on the other half: models of one training, and one set of images, have
    noise in common that orders cells alike. Of one training all columns meet. Main tasks of fewer than three cells, or
    of cells that are all alike, have no correlation. NaN and no permutation where none has one.
    """
    generator, points, chance = np.random.default_rng(0), [], []
    one, two = (frame.dropna(axis=1, how="all") for frame in (one, two))
    apart = np.array([[a[0] != b[0] and a[1] != b[1] for b in two] for a in one], float)
    apart = apart if apart.any() else np.ones_like(apart)
    cells = one.dropna().index.intersection(two.dropna().index)
    for rows in cells.to_frame(index=False).groupby("main", sort=False).indices.values():
        x, y = (ranked(frame.loc[cells[rows]].to_numpy().T).T for frame in (one, two))
        meeting, number = x @ (apart / apart.sum()) @ y.T, np.arange(len(rows))
        if len(rows) >= 3 and not np.isnan(meeting.trace()):
            points.append(meeting.trace())
            chance.append(meeting[number, generator.permuted(np.tile(number, (permutations, 1)), axis=1)].sum(axis=1))
    return (float(np.mean(points)), np.mean(chance, axis=0)) if points else (np.nan, np.array([]))
