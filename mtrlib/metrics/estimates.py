"""Estimates with what is known of their errors: one frame, a row a cell, and what the row would have been otherwise.

Columns are "value"; "seed <s>", the value of that training alone; and "image <k>", the value without the k-th block of
images (the jackknife). Whatever is computed of cells (a logarithm, a difference, a mean) is computed in every column
alike, so its error comes out of the same columns: training noise from the seeds, sampling of images from the blocks.
"""

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
from scipy.special import stdtr, stdtridf, stdtrit  # Student's t; scipy.stats takes long to import

CELL = ("panel", "setting", "attacked", "main", "auxiliary")
# What is summed over images, by what it is called.
QUANTITIES: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "log_ratio": lambda clean, adversarial: np.log(adversarial / clean),
    "ratio": lambda clean, adversarial: (adversarial - clean) / clean,
    "ratio_of_means": lambda clean, adversarial: adversarial - clean,
    "clean_error": lambda clean, _: clean,
    "adversarial_error": lambda _, adversarial: adversarial,
    "absolute": lambda clean, adversarial: np.abs(adversarial - clean),
}
BLOCKS = 64  # of the jackknife, at most
LEARNED = 0.85  # of the best constant's error; a cell whose clean error is above says nothing about attacks
_SEED, _IMAGE = "seed ", "image "
_SCALES = dict.fromkeys(("clean_error", "adversarial_error"), (np.log, np.exp))
_SCALES |= dict.fromkeys(("ratio", "ratio_of_means"), (np.log1p, np.expm1))


def estimates(errors: pd.DataFrame, quantity: str = "log_ratio", by: Sequence[str] = CELL) -> pd.DataFrame:
    """A quantity of each cell: its mean over images, then over seeds.

    Parameters
    ----------
    errors : as `studies.run` gives it: the columns of `by`, seed, image_id, clean_error and adversarial_error.
    quantity : "log_ratio", log(adversarial / clean error); "ratio", (adversarial - clean) / clean, the paper's relative
        vulnerability; "ratio_of_means", that of the mean errors; "clean_error", "adversarial_error"; "absolute", the
        change |L(x + delta) - L(x)| of the attacked loss (definition 1), from clean_attacked_loss and
        adversarial_attacked_loss.
    by : the columns that make a cell.

    Returns
    -------
    The frame described above, indexed by `by` in the order of the errors. An image that lacks a number (no valid label;
    a clean error of 0 in a ratio, any error of 0 in its logarithm) is left out; of a logarithm, in all cells of the
    same panel and main task and seed, so that they are compared on the same images. NaN where nothing is left.
    """
    above, below = _parts(errors, quantity)
    groups = errors.groupby(list(by), sort=False, dropna=False)
    cell, seeds, images = groups.ngroup().to_numpy(), *(np.unique(errors[c]) for c in ("seed", "image_id"))
    place = cell, np.searchsorted(seeds, errors.seed), np.searchsorted(images, errors.image_id)
    top, bottom = np.zeros((2, groups.ngroups, len(seeds), len(images)))
    missing = np.zeros(top.shape, bool)
    top[place], bottom[place] = np.where(np.isnan(below), 0, above), np.nan_to_num(below)
    missing[place] = np.isnan(below)
    index = groups.size().index
    if quantity == "log_ratio" and missing.any():
        shared = [name for name in ("panel", "main") if name in by]
        for rows in index.to_frame(index=False).groupby(shared, sort=False).indices.values() if shared else []:
            top[rows] *= ~missing[rows].any(axis=0)
            bottom[rows] *= ~missing[rows].any(axis=0)
    block = np.eye(min(BLOCKS, len(images)))[np.arange(len(images)) % BLOCKS]  # (N, K)
    with np.errstate(divide="ignore", invalid="ignore"):
        of_seed = top.sum(axis=2) / bottom.sum(axis=2)
        less = bottom.sum(axis=2, keepdims=True) - bottom @ block
        without = _mean((top.sum(axis=2, keepdims=True) - top @ block) / less, axis=1)
    without[~((bottom @ block) > 0).any(axis=1)] = np.nan
    columns = ["value", *(f"{_SEED}{s}" for s in seeds), *(f"{_IMAGE}{k}" for k in range(block.shape[1]))]
    values = np.concatenate([_mean(of_seed, axis=1)[:, None], of_seed, without], axis=1)
    return pd.DataFrame(values, index, columns)


def learned(errors: pd.DataFrame, by: Sequence[str] = CELL) -> pd.Series:
    """Whether the model of each cell learned its main task: its clean error is at least 15 % below that of the best
    constant predictor (column constant_error of the errors; true everywhere without it)."""
    clean = estimates(errors, "clean_error", by).value
    if "constant_error" not in errors:
        return clean.notna() | True
    constant = errors.groupby(list(by), sort=False, dropna=False).constant_error.mean()
    return ~(clean > LEARNED * constant.reindex(clean.index))


def uncertainty(frame: pd.DataFrame, training: tuple[np.ndarray, np.ndarray] | None = None) -> pd.DataFrame:
    """The value of each row, the variances of its error, and Student's degrees of freedom.

    Parameters
    ----------
    frame : as `estimates` gives it, or computed from that column by column.
    training : variance of one training's value and its degrees of freedom by row, as `noise` gives it; its own by
        default: the variance over seeds, pooled over the rows that differ in the auxiliary task only.

    Returns
    -------
    value, training and images (variances of the value), error (standard), freedom (by Cochran), seeds. With one seed
    training is 0: the error is that of these trained models. One image says nothing of others: its error is infinite.
    """
    numbers, names = frame.to_numpy(float), frame.columns
    of_seed, without = (numbers[:, [n.startswith(kind) for n in names]] for kind in (_SEED, _IMAGE))
    seeds, blocks = (np.count_nonzero(~np.isnan(values), axis=1) for values in (of_seed, without))
    if training is None:
        training = _pooled(_squares(of_seed) / np.maximum(seeds - 1, 1), seeds - 1, _alike(frame.index))
    variance, freedom = training
    with np.errstate(invalid="ignore", divide="ignore"):
        of_training = np.nan_to_num(np.where(seeds > 1, variance / seeds, 0.0))
        few = np.inf if without.shape[1] else 0.0  # a printed number has no images at all
        of_images = np.where(blocks > 1, (blocks - 1) / blocks * _squares(without), few)
        total = of_training + of_images
        quantiles = (stdtrit(np.maximum(each, 1), 0.975) for each in (freedom, blocks - 1))
        reach = sum(part * q for part, q in zip((of_training, of_images), quantiles, strict=True)) / total
        student = np.where((total > 0) & np.isfinite(reach), stdtridf(0.975, reach), np.inf)
    values = {"value": frame.value, "training": of_training, "images": of_images, "error": np.sqrt(total)}
    return pd.DataFrame({**values, "freedom": np.maximum(student, 1), "seeds": seeds}, frame.index)


def noise(frame: pd.DataFrame, baseline: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Training noise of a difference of two models, for rows that differ in the auxiliary task only.

    Twice the variance of one training: of the models of `frame` and `baseline` (a row each, the same one several times
    at most), over seeds, pooled, without what all models of a seed have in common (it falls out of differences), with
    (models - 1) (seeds - 1) degrees of freedom.
    """
    group = np.tile(_alike(frame.index), 2)
    names = [name for name in frame if name.startswith(_SEED)]
    models = np.concatenate([frame[names].to_numpy(float), baseline[names].to_numpy(float)])
    about = pd.concat([frame.index.to_frame(index=False), baseline.index.to_frame(index=False)])
    about = about.assign(group=group, base=np.repeat([False, True], len(frame)))
    first = ~about.duplicated().to_numpy()
    models, group = models[first], group[first]
    rest = pd.DataFrame(models - _mean(models, axis=1)[:, None])
    rest = rest - rest.groupby(group).transform("mean")
    seeds = pd.DataFrame(~np.isnan(models)).groupby(group).any().sum(axis=1).to_numpy()
    freedom = (np.bincount(group) - 1.0) * (seeds - 1)
    squares = np.bincount(group, weights=np.nansum(rest.to_numpy() ** 2, axis=1))
    with np.errstate(invalid="ignore", divide="ignore"):
        variance = np.where(freedom > 0, 2 * squares / freedom, np.nan)
    place = _alike(frame.index)
    return variance[place], freedom[place]


def compared(frame: pd.DataFrame, baseline: pd.DataFrame, *, same_models: bool = False) -> pd.DataFrame:
    """The difference of each row of `frame` to that of `baseline` (as many rows, in the same order), and its error.

    Two attacks on the same models (`same_models`) share their training: its noise is that of the difference. Two
    models have each their own, and one seed says nothing of it: the error is infinite then. Numbers without any seed
    (printed ones) are taken as they are.
    """
    difference = _difference(frame, baseline)
    if same_models or frame.empty:
        return uncertainty(difference)
    table = uncertainty(difference, noise(frame, baseline))
    return table.assign(error=table.error.where(table.seeds != 1, np.inf))


def beside(frame: pd.DataFrame, **baseline: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """`paired` of all rows that are no baseline themselves, such as `beside(frame, panel="uniform")`; `auxiliary=""` is
    the single-task model of the row, which is attacked in one way only."""
    (level, value), *_ = baseline.items()
    if level == "auxiliary":
        return paired(pairs(frame), frame, attacked="single", auxiliary=lambda of: of.main)
    return paired(frame[frame.index.get_level_values(level) != value], frame, **baseline)


def paired(rows: pd.DataFrame, frame: pd.DataFrame, **levels: str | Callable) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Those of some rows that have a baseline in a frame, and these: at other values of some levels, all else alike."""
    place = frame.index.get_indexer(pd.MultiIndex.from_frame(rows.index.to_frame(index=False).assign(**levels)))
    return rows[place >= 0], frame.iloc[place[place >= 0]]


def against(frame: pd.DataFrame, known: pd.Series, same_models: bool = False, **baseline: str) -> pd.DataFrame:
    """Each row `compared` with the one `beside` it, as `learned` says which of both count: column learned."""
    return matched(*beside(frame, **baseline), known, same_models)


def matched(rows: pd.DataFrame, base: pd.DataFrame, known: pd.Series, same_models: bool = False) -> pd.DataFrame:
    """Each row `compared` with its baseline, with a column learned: both were, the others have no number."""
    both = known.reindex(rows.index).to_numpy(bool) & known.reindex(base.index).to_numpy(bool)
    return compared(rows[both], base[both], same_models=same_models).reindex(rows.index).assign(learned=both)


def mean_ratios(frame: pd.DataFrame, by: Sequence[str], *, same_models: bool = False, **baseline: str) -> pd.DataFrame:
    """The mean difference of cells, log ratios as `estimates` gives them, to their baselines: one row for each value of
    some levels, with its errors as `uncertainty` gives them, and cells (how many have one). Cells are all there are,
    not a sample: none is resampled. `same_models` and `baseline` are as in `compared` and `beside`."""
    groups = _difference(*beside(frame, **baseline)).groupby(level=list(by), sort=False)
    table = uncertainty(groups.mean()).assign(cells=groups.value.count())
    return table if same_models else table.assign(error=table.error.where(table.seeds != 1, np.inf))


def pairs(frame: pd.DataFrame) -> pd.DataFrame:
    """The cells that have an auxiliary task."""
    return frame[frame.index.get_level_values("main") != frame.index.get_level_values("auxiliary")]


def part(frame: pd.DataFrame, /, **levels) -> pd.DataFrame:
    """The rows of a frame whose index has these values."""
    keep = np.ones(len(frame), bool)
    for level, value in levels.items():
        keep &= frame.index.get_level_values(level).isin(value if isinstance(value, list) else [value])
    return frame[keep]


def by(table: pd.DataFrame, *levels: str, name: Callable[..., str] = lambda *of: ", ".join(map(str, of))) -> dict:
    """The rows of each value of some levels, under what they are called."""
    if table.empty:
        return {}
    return {name(*of): rows for of, rows in table.groupby(level=list(levels), sort=False)}


def columnwise(frame: pd.DataFrame, function: Callable[[pd.Series], float | pd.Series], name: str = "") -> pd.DataFrame:
    """A function of all rows, in every column: one row more of the same kind, or several, from numbers of cells."""
    found = frame.apply(function)
    return found.to_frame(name).T if isinstance(found, pd.Series) else found


def holm(table: pd.DataFrame, threshold: float = 0.0, level: float = 0.05) -> pd.DataFrame:
    """On which side of a threshold each row lies, surely: Holm's tests of all rows together, two-sided.

    Parameters
    ----------
    table : as `uncertainty` or `compared` gives it. An error of 0 (a printed number) is sure, an infinite one is not.

    Returns
    -------
    The table with low and high, the interval at the level at which Holm tests the row, and side: -1 or 1 where that
    leaves the threshold out, 0 where not.
    """
    distance = table.value - threshold
    with np.errstate(divide="ignore", invalid="ignore"):
        p = 2 * stdtr(table.freedom, -np.abs(distance) / table.error)
    p = np.where(table.error > 0, p, np.where(distance == 0, 1.0, 0.0))
    p = np.where(table.value.isna() | np.isnan(p), 1.0, p)
    order = np.argsort(p, kind="stable")
    times = np.arange(len(p), 0, -1.0)  # two lines: statsmodels has it, and brings four packages and a second of import
    stepped = np.empty(len(p))
    stepped[order] = np.minimum(np.maximum.accumulate(times * p[order]), 1.0)
    with np.errstate(divide="ignore", invalid="ignore"):
        times = np.where(p > 0, np.clip(stepped / p, 1.0, len(p)), 1.0)
        reach = np.where(table.error > 0, -stdtrit(table.freedom, level / 2 / times) * table.error, 0.0)
    side = np.where(stepped < level, np.sign(distance), 0).astype(int)
    return table.assign(low=table.value - reach, high=table.value + reach, side=side)


def interval(frame: pd.DataFrame, level: float = 0.95, quantity: str = "log_ratio") -> pd.DataFrame:
    """value, low and high of each row, by Student's t; what tables and figures show.

    frame : as `estimates` or, with an error already, `uncertainty` gives it.
    quantity : what its numbers are. Errors and ratios are skew: of these the interval is that of their logarithm.
    """
    there, back = _SCALES.get(quantity, (np.asarray, np.asarray))
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        table = frame if "error" in frame else uncertainty(frame.transform(there))
        reach = -stdtrit(table.freedom, (1 - level) / 2) * table.error
        ends = {"low": back(table.value - reach), "high": back(table.value + reach)}
    return pd.DataFrame({"value": frame.value, **ends}, table.index)


def _difference(frame: pd.DataFrame, baseline: pd.DataFrame) -> pd.DataFrame:
    return pd.DataFrame(frame.to_numpy() - baseline.to_numpy(), frame.index, frame.columns)


def _parts(errors: pd.DataFrame, quantity: str) -> tuple[np.ndarray, np.ndarray]:
    """Of each row what is summed, and what its sum is divided by: NaN where the image has no number."""
    if quantity not in QUANTITIES:
        raise ValueError(f"Parameter quantity should be one of {', '.join(QUANTITIES)}. Found quantity = {quantity!r}.")
    kind = "attacked_loss" if quantity == "absolute" else "error"
    clean, adversarial = (errors[f"{which}_{kind}"].to_numpy(float) for which in ("clean", "adversarial"))
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        above = QUANTITIES[quantity](clean, adversarial)
    valid = {"log_ratio": (clean > 0) & (adversarial > 0), "ratio": clean > 0}.get(quantity, ~np.isnan(clean))
    return above, np.where(valid, clean if quantity == "ratio_of_means" else 1.0, np.nan)


def _alike(index: pd.MultiIndex) -> np.ndarray:
    """Which group each row belongs to: of those that differ in the auxiliary task only; its own in an index without."""
    names = [name for name in index.names if name != "auxiliary"]
    if len(names) == len(index.names):
        return np.arange(len(index))
    return index.to_frame(index=False).groupby(names, sort=False, dropna=False).ngroup().to_numpy()


def _pooled(variance: np.ndarray, freedom: np.ndarray, group: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The variance of each row, pooled over those of its group, and its degrees of freedom."""
    weight = np.maximum(freedom, 1e-9)
    pooled = np.bincount(group, weights=np.nan_to_num(variance) * weight) / np.bincount(group, weights=weight)
    return pooled[group], np.bincount(group, weights=freedom)[group]


def _squares(values: np.ndarray) -> np.ndarray:
    """(R, K) -> (R,): squared distances from the mean, summed; what is NaN is left out."""
    return np.nansum((values - _mean(values, axis=1)[:, None]) ** 2, axis=1)


def _mean(values: np.ndarray, axis: int) -> np.ndarray:
    """The mean over what is not NaN; NaN where nothing is."""
    present = ~np.isnan(values)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(present, values, 0.0).sum(axis=axis) / present.sum(axis=axis)
