"""How much an attack harms: the vulnerabilities of the paper, from per-image clean and adversarial errors, with
bootstrap intervals (paper, section "Preliminaries" and RQ1; arXiv 2110.15053).

Relative task vulnerability is the mean over images of (adversarial - clean) / clean error of the main task. The
published code computes another number, the ratio of the means. Both are here; the definition is the default.
Adversarial vulnerability (Definition 1) is the mean over images of the largest change of the loss found.
"""

from __future__ import annotations

import warnings

import numpy as np

REDUCTIONS = ("per_image", "ratio_of_means")
ABSOLUTE = "absolute"  # Definition 1, for `bootstrap`


def relative_task_vulnerability(clean, adversarial, reduction: str = "per_image") -> float:
    """Relative increase of the error of one task under attack.

    Parameters
    ----------
    clean, adversarial : (N,), errors of the images without and under attack, at least 0, in any unit.
    reduction : "per_image", mean over images of (adversarial - clean) / clean, the paper's definition;
        "ratio_of_means", (mean adversarial - mean clean) / mean clean, what its published code computes.

    Returns
    -------
    float, without unit; 1 means that the error doubles. An image whose clean error is NaN (no valid label) counts in
    neither reduction. An image whose clean error is 0 has no ratio: "per_image" leaves it out (`left_out` counts it),
    "ratio_of_means" needs only a mean above 0. NaN where nothing is left. An infinite error under attack makes the
    value infinite, and one that is NaN, of a clean error that is a number, or an infinite clean error makes it NaN.
    """
    clean, adversarial = _paired(clean, adversarial)
    return float(_vulnerability(clean, adversarial, reduction, np.ones((1, clean.shape[-1])))[0])


def adversarial_vulnerability(clean_loss, adversarial_loss, weights="sum") -> float:
    """Definition 1: mean over images of |L(x + delta) - L(x)|, with delta the strongest attack found within the budget.

    Parameters
    ----------
    clean_loss, adversarial_loss : (N,) losses of the attacked set of tasks, or (T, N), one row a task.
    weights : of the tasks in the loss of their set: "sum" (1 each), "mean" (1 / T each) or T numbers. Rows of one set
        that is summed already have one weight.

    Returns
    -------
    float, in the unit of the losses; infinite where a change is, NaN where one is not a number.
    """
    clean, adversarial = np.asarray(clean_loss, float), np.asarray(adversarial_loss, float)
    if clean.shape != adversarial.shape or clean.ndim not in (1, 2):
        raise ValueError(f"Losses should both be (N,) or (T, N). Found {clean.shape} and {adversarial.shape}.")
    with np.errstate(invalid="ignore"):
        change = np.atleast_2d(adversarial - clean)
    number = len(change)
    named = {"sum": np.ones(number), "mean": np.full(number, 1 / number)}
    if isinstance(weights, str) and weights not in named:
        raise ValueError(f"Parameter weights should be sum, mean or numbers. Found weights = {weights!r}.")
    given = named[weights] if isinstance(weights, str) else np.asarray(weights, float)
    if given.shape != (number,):
        raise ValueError(f"Parameter weights should have one number a task, {number}. Found {given.shape}.")
    change, given = change[given != 0], given[given != 0]  # 0 times infinity is no number
    with np.errstate(invalid="ignore"):
        return float(np.abs(given @ change).mean())


def marginal_vulnerability(before: tuple, after: tuple, weights_before="sum", weights_after="sum") -> float:
    """Definition 3: the adversarial vulnerability of a set of tasks with one task more minus that without it.

    Parameters
    ----------
    before, after : (clean_loss, adversarial_loss) of each set, under the attack on that set; as in
        `adversarial_vulnerability`, as are the weights.

    Returns
    -------
    float, in the unit of the losses; below 0 where the added task makes the set less vulnerable.
    """
    return adversarial_vulnerability(*after, weights_after) - adversarial_vulnerability(*before, weights_before)


def left_out(clean, adversarial) -> int:
    """How many of the images have no ratio: a clean error that is NaN (no valid label) or 0."""
    clean, adversarial = _paired(clean, adversarial)
    return int((~(clean > 0)).sum())


def bootstrap(clean, adversarial, reduction: str = "per_image", *, replicates: int = 1000, seed: int = 0) -> np.ndarray:
    """A vulnerability over resampled images and, where there are several, resampled seeds.

    The same images (and seeds) are drawn for every leading index, so that models attacked on the same images can be
    compared replicate by replicate: that is the paired bootstrap.

    Parameters
    ----------
    clean, adversarial : (..., S, N), errors of N images for each of S training seeds; for "absolute" the losses of
        the attacked set of tasks, summed over its tasks.
    reduction : as in `relative_task_vulnerability`, or "absolute" for the adversarial vulnerability of Definition 1.
        The value of several seeds is the mean of theirs.
    replicates : number of resamplings. With few seeds (three, say) the interval is too narrow: resampling cannot tell
        how much trainings differ from so few.
    seed : of the resampling.

    Returns
    -------
    (replicates, ...). An infinite error makes the replicates infinite in which its image is drawn. One that makes the
    value NaN makes all of them NaN.
    """
    clean, adversarial = _paired(clean, adversarial)
    generator = np.random.default_rng(seed)
    *_, seeds, images = clean.shape
    counts = generator.multinomial(images, np.full(images, 1 / images), size=replicates)
    by_seed = _vulnerability(clean, adversarial, reduction, counts)  # (replicates, ..., S)
    if seeds == 1:
        return by_seed[..., 0]
    drawn = generator.multinomial(seeds, np.full(seeds, 1 / seeds), size=replicates) / seeds
    infinite = np.isposinf(by_seed)  # 0 times infinity is no number
    values = np.einsum("r...s,rs->r...", np.where(infinite, 0, by_seed), drawn)
    return np.where(np.einsum("r...s,rs->r...", infinite.astype(float), drawn) > 0, np.inf, values)


def mean_of(values, *, replicates: int = 1000) -> tuple[float, np.ndarray]:
    """The mean over images (and seeds) and its bootstrap replicates, of the draws of `bootstrap`.

    Parameters
    ----------
    values : (S, N), at least 0, of N images for each of S seeds; NaN where an image has none.
    """
    values = np.asarray(values, float)
    drawn = bootstrap(np.where(np.isnan(values), np.nan, 0.0), values, ABSOLUTE, replicates=replicates)
    return float(mean(values, axis=1).mean()), drawn


def mean(values, axis: int | None = None) -> np.ndarray:
    """The mean of the values that are not NaN; NaN where none is."""
    present = ~np.isnan(values)
    with np.errstate(invalid="ignore"):
        return np.where(present, values, 0.0).sum(axis=axis) / present.sum(axis=axis)


def interval(replicates, level: float = 0.95) -> tuple[np.ndarray, np.ndarray]:
    """The percentile interval of bootstrap replicates (R, ...): its lower and upper ends, each (...).

    Replicates that are NaN count in neither; both ends are NaN where all of them are. Next to an infinite replicate an
    end is the replicate on the outer side of it, and not between two."""
    replicates, tail = np.asarray(replicates, float), (1 - level) / 2
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # no replicate at all, or inf - inf
        low, high = np.nanquantile(replicates, [tail, 1 - tail], axis=0)
        if np.isinf(replicates).any():
            outer = np.nanquantile(replicates, tail, axis=0, method="lower")
            low = np.where(np.isfinite(low), low, outer)
            outer = np.nanquantile(replicates, 1 - tail, axis=0, method="higher")
            high = np.where(np.isfinite(high), high, outer)
    return low, high


def _vulnerability(clean: np.ndarray, adversarial: np.ndarray, reduction: str, counts: np.ndarray) -> np.ndarray:
    """(..., N) errors and (R, N) how often each image counts -> (R, ...)."""
    with np.errstate(invalid="ignore"):
        change = adversarial - clean
    if reduction == "per_image":
        ratios = _ratios(clean, adversarial)
        valid = clean > 0
        above, below = np.where(valid, ratios, 0), valid.astype(float)
    elif reduction == "ratio_of_means":
        valid = ~np.isnan(clean)
        above, below = np.where(valid, change, 0), np.where(valid, clean, 0)
    elif reduction == ABSOLUTE:
        valid = ~np.isnan(clean)
        above, below = np.where(valid, np.abs(change), 0), valid.astype(float)
    else:
        allowed = ", ".join((*REDUCTIONS, ABSOLUTE))
        raise ValueError(f"Parameter reduction should be one of {allowed}. Found reduction = {reduction!r}.")
    above, below = (np.moveaxis(_totals(values, counts), -1, 0) for values in (above, below))
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(below > 0, above / below, np.nan)


def _totals(values: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """(..., N) values and (R, N) how often each counts -> (..., R) sums: infinite where an infinite one counts, NaN
    throughout where one is no number."""
    times = counts.T.astype(float)
    totals = np.where(np.isfinite(values), values, 0) @ times
    if not np.isfinite(values).all():
        totals = np.where(np.isposinf(values) @ times > 0, np.inf, totals)
        totals = np.where((np.isnan(values) | np.isneginf(values)).any(axis=-1, keepdims=True), np.nan, totals)
    return totals


def _ratios(clean: np.ndarray, adversarial: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        return np.where(clean > 0, (adversarial - clean) / clean, np.nan)


def _paired(clean, adversarial) -> tuple[np.ndarray, np.ndarray]:
    clean, adversarial = np.asarray(clean, float), np.asarray(adversarial, float)
    if clean.shape != adversarial.shape or clean.ndim == 0 or clean.shape[-1] == 0:
        raise ValueError(
            f"Parameters clean and adversarial should be of one shape. Found {clean.shape}, {adversarial.shape}."
        )
    if (clean < 0).any() or (adversarial < 0).any():
        raise ValueError("Parameters clean and adversarial should be errors of at least 0. Found a negative value.")
    return clean, adversarial
