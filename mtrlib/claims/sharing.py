"""What is asked of architectures (RQ6), which is not the paper's question: whether an attack on one task spreads
further the more tasks share (Zhang et al. 2023, DGBA, arXiv 2305.12066), and what the survey of Vandenhende et al.
(2021, arXiv 2004.13379) says of clean errors. Panels and settings are those of `rq6.cells`.

How much of an attack reaches the other task is the log ratio under an attack on the other task over that under one on
the task itself: a network that has learned little is hurt little by any attack, also by one that reaches it whole."""

from collections.abc import Iterator

import numpy as np
import pandas as pd

from mtrlib.claims import judging
from mtrlib.claims.judging import shares
from mtrlib.metrics import estimates
from mtrlib.metrics.estimates import against, by, matched, paired, part

SEPARATE = "separate"  # a network a task
SOFT, DISTILLED = ["cross_stitch", "nddr"], ["pad_net", "mti_net"]
LEAST = 0.01  # of an attack that reaches the other task: less, or one that helps it, counts as much
# How much tasks share: nothing; maps between encoders of their own; an encoder with attention of their own to it; an
# encoder. What decoders tell each other comes on top, and has claims of its own.
LEVELS = {SEPARATE: 0, **dict.fromkeys(SOFT, 1), "mtan": 2, "hard": 3}


def rq6(errors: pd.DataFrame) -> Iterator[dict]:
    frame, known = estimates.estimates(errors), estimates.learned(errors)
    other = part(frame, panel="other")
    apart = against(other, known, setting=SEPARATE)
    yield from shares("6.1", {"hard": part(apart, setting="hard")})
    yield from shares("6.1", by(apart[apart.index.get_level_values("setting") != "hard"], "setting"), decides=False)
    yield from _order(errors[errors.panel == "other"])
    reaches, itself = paired(other, frame, panel="own")
    reaches = np.log((reaches / itself.where(itself > 0).to_numpy()).clip(lower=LEAST))
    reached, hurt = (against(each, known, setting="hard") for each in (reaches, other))
    for claim, of in {"6.2": SOFT, "6.3": DISTILLED, "6.4": DISTILLED}.items():
        yield from shares(claim, by(part(reached, setting=of), "setting"))
        yield from shares(f"{claim} effect", by(part(hurt, setting=of), "setting"), decides=False)
    yield from shares("6.2", by(part(reached, setting="mtan"), "setting"), decides=False)

    whole = errors[errors.panel.isin(["own", "joint"])].assign(panel="own")  # one panel: the same images count in both
    frame = estimates.estimates(whole)
    networks = frame[frame.index.get_level_values("setting") != SEPARATE]  # of two tasks; alone there is one attack
    alone = paired(networks, frame, setting=SEPARATE, attacked="single", auxiliary=lambda of: of.main)
    yield from shares("6.5", by(matched(*alone, estimates.learned(whole)), "setting", "attacked"))
    clean = np.log(part(estimates.estimates(errors, "clean_error"), panel="own"))
    better = against(clean, known, setting="hard")
    yield from shares("6.6", by(part(better, setting=DISTILLED), "setting"))
    others = [name for name in better.index.unique("setting") if name not in (*DISTILLED, SEPARATE)]
    yield from shares("6.6", by(part(better, setting=others), "setting"), decides=False)


def _order(errors: pd.DataFrame) -> Iterator[dict]:
    """The rank correlation, within main tasks, of how much tasks share and how far an attack on the other spreads, less
    what it does to this pair of tasks on the average."""
    cell = ["main", "auxiliary", "setting"]
    own = errors[errors.setting.isin(list(LEVELS))].assign(half=lambda rows: pd.factorize(rows.image_id)[0] % 2)
    if own.setting.map(LEVELS).nunique() < 3:
        return
    known = estimates.learned(own, cell)
    found = estimates.estimates(own, "log_ratio", ["half", *cell]).filter(like="seed ").unstack("half")
    found = found.reindex(known.index[known])
    found = found - found.groupby(level=["main", "auxiliary"]).transform("mean")
    level = found.index.get_level_values("setting").map(LEVELS).to_numpy(float)
    levels = found.apply(lambda column: pd.Series(level, column.index))
    yield from judging.correlation("6.1 order", "all but distilled", levels, found, seeds=own.seed.nunique())
