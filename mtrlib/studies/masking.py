"""Whether a defence is real or masks its gradients: the checks of Athalye et al. (2018, arXiv 1802.00420, section 3.1)
and Carlini et al. (2019, arXiv 1902.06705), and how attacks climb (paper, RQ3)."""

import pandas as pd

from mtrlib.claims import OPEN
from mtrlib.specs import AttackSpec, ModelSpec
from mtrlib.studies.measurements import curves as curves
from mtrlib.studies.measurements import zero_gradients as zero_gradients
from mtrlib.studies.rq3 import RQ3

MARGIN = 0.01  # of the gain of PGD: less is noise
SATURATED = 0.1  # of the gain at the largest budget but one: less is no growth
# What should gain at least as much as what, and why.
CHECKS = (
    ("more steps are at least as strong", "many steps", "pgd"),
    ("iterative is at least as strong as one step", "pgd", "one step"),
    ("a larger budget is at least as strong", "4 eps", "pgd"),
    ("a larger budget is at least as strong", "16 eps", "4 eps"),
    ("the loss saturates up to eps 1", "eps 1", "16 eps"),
    ("white-box is at least as strong as no gradients", "strongest", "square"),
    ("white-box is at least as strong as transfer", "strongest", "transfer"),
)


def checks(errors: pd.DataFrame, kind: str = "weights") -> pd.DataFrame:
    """The checks on each model, from the "masking <name>" panels of `rq3.searches`.

    An attack's gain is the mean over images of the rise of the loss that it attacks. "strongest" is, image by image,
    the higher of PGD's and Auto-PGD's.

    Returns one row a model and check: the name of its panel (the column is called `kind`), tasks, check, stronger,
    weaker (their gains and names), difference with low and high (95 %, Student's t, paired over images), asked (where
    the interval should lie) and result: "passes" where it lies there, "fails" where it lies outside, else "open". Asked
    is above minus 1 % of PGD's gain; of the loss that saturates, within a tenth of the smaller budget's gain to both
    sides.
    """
    from scipy import stats  # takes long to import

    rows = []
    rises = errors[errors.panel.str.startswith("masking ")].assign(
        gain=lambda chosen: chosen.adversarial_attacked_loss - chosen.clean_attacked_loss
    )
    for (panel, tasks), group in rises.groupby(["panel", "trained_tasks"], sort=False):
        gains = group.pivot(index="image_id", columns="setting", values="gain")
        gains["strongest"] = gains[["pgd", "apgd"]].max(axis=1)
        for check, stronger, weaker in CHECKS:
            difference = gains[stronger] - gains[weaker]
            low, high = stats.ttest_1samp(difference, 0).confidence_interval(0.95)
            least, most, asked = -MARGIN * gains["pgd"].mean(), float("inf"), "above {:.4f}"
            if stronger == "eps 1":
                most = SATURATED * gains[weaker].mean()
                least, asked = -most, "within {:.4f} and {:.4f}"
            inside, outside = least < low and high < most, high < least or low > most
            row = {kind: panel.removeprefix("masking "), "tasks": tasks, "check": check}
            row |= {name: f"{of}: {gains[of].mean():.3f}" for name, of in (("stronger", stronger), ("weaker", weaker))}
            row |= {"difference": difference.mean(), "low": low, "high": high, "asked": asked.format(least, most)}
            rows.append(row | {"result": "passes" if inside else "fails" if outside else OPEN})
    return pd.DataFrame(rows)


def summary(checks: pd.DataFrame) -> str:
    """Whether gradients look masked, in a sentence: the checks that fail or stay open, with their models."""
    passed, kind = checks.result == "passes", checks.columns[0]
    line = f"{passed.sum()} of {len(checks)} checks of {checks.groupby([kind, 'tasks']).ngroups} models pass"
    named = checks[~passed].rename(columns={kind: "name"}).itertuples()
    others = [f"{row.check} ({row.tasks}, {row.name} {kind}: {row.result})" for row in named]
    return f"{line}; not: {'; '.join(others)}." if others else f"{line}: no sign of masked gradients."


def climbing(p: RQ3) -> list[AttackSpec]:
    """The attacks whose climbing the notebook draws; `curves` makes them on all tasks of each model."""
    return [p.attack(p.tasks[0], name=name, images=p.panel_images) for name in ("pgd", "apgd", "wgd", "mim", "dgba")]


def models(p: RQ3) -> list[ModelSpec]:
    """The models that are searched: each pair in uniform and, where it has them, in published weights."""
    return [p.pair(pair, p.seeds[0], weights) for weights, pair in p.searched]
