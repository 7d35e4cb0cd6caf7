"""Whether a defence is real or masks its gradients: the checks of Athalye et al. (2018, arXiv 1802.00420, section 3.1)
and Carlini et al. (2019, arXiv 1902.06705), and how attacks climb (paper, RQ3)."""

from __future__ import annotations

import pandas as pd
import torch

from mtrlib import attacks
from mtrlib.claims import OPEN
from mtrlib.specs import AttackSpec, ModelSpec
from mtrlib.store import Store, evaluation
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


def checks(errors: pd.DataFrame) -> pd.DataFrame:
    """The checks on each model, from the "masking" panels of `rq3.cells`.

    An attack's gain is the mean over images of the rise of the loss that it attacks. "strongest" is, image by image,
    the higher of PGD's and Auto-PGD's.

    Returns
    -------
    One row a model and check: weights, tasks, check, stronger, weaker (their gains and names), difference with low and
    high (95 %, Student's t, paired over images), asked (where the interval should lie) and result: "passes" where it
    lies there, "fails" where it lies outside, else "open". Asked is above minus 1 % of PGD's gain; of the loss that
    saturates, within a tenth of the smaller budget's gain to both sides.
    """
    from scipy import stats  # takes long to import

    rows = []
    chosen = errors[errors.panel.str.startswith("masking")]
    for (weights, tasks), group in chosen.groupby(["weights", "trained_tasks"], sort=False):
        rise = group.assign(gain=group.adversarial_attacked_loss - group.clean_attacked_loss)
        gains = rise.pivot(index="image_id", columns="setting", values="gain")
        gains["strongest"] = gains[["pgd", "apgd"]].max(axis=1)
        for check, stronger, weaker in CHECKS:
            difference = gains[stronger] - gains[weaker]
            low, high = stats.ttest_1samp(difference, 0).confidence_interval(0.95)
            if stronger == "eps 1":
                margin = SATURATED * gains[weaker].mean()
                inside, outside = -margin < low and high < margin, low > margin or high < -margin
                asked = f"within -{margin:.4f} and {margin:.4f}"
            else:
                least = -MARGIN * gains["pgd"].mean()
                inside, outside, asked = low > least, high < least, f"above {least:.4f}"
            row = {"weights": weights, "tasks": tasks, "check": check}
            row |= {name: f"{of}: {gains[of].mean():.3f}" for name, of in (("stronger", stronger), ("weaker", weaker))}
            row |= {"difference": difference.mean(), "low": low, "high": high, "asked": asked}
            rows.append(row | {"result": "passes" if inside else "fails" if outside else OPEN})
    return pd.DataFrame(rows)


def told(checks: pd.DataFrame) -> str:
    """Whether gradients look masked, in a sentence: the checks that fail or stay open, with their models."""
    passed = checks.result == "passes"
    line = f"{passed.sum()} of {len(checks)} checks of {checks.groupby(['weights', 'tasks']).ngroups} models pass"
    others = [f"{row.check} ({row.tasks}, {row.weights} weights: {row.result})" for row in checks[~passed].itertuples()]
    return f"{line}; not: {'; '.join(others)}." if others else f"{line}: no sign of masked gradients."


def climbing(p: RQ3) -> list[AttackSpec]:
    """The attacks whose climbing the notebook draws; `curves` makes them on all tasks of each model."""
    return [p.attack(p.tasks[0], name=name, images=p.panel_images) for name in ("pgd", "apgd", "wgd", "mim", "dgba")]


def models(p: RQ3) -> list[ModelSpec]:
    """The models that are searched: each pair in uniform and, where it has them, in published weights."""
    names = [(w, pair) for pair in p.searched for w in ("uniform", "published") if p.has_weights(w, pair)]
    return [p.pair(pair, p.seeds[0], weights) for weights, pair in names]


def zero_gradients(store: Store, specs: list[ModelSpec], images: int) -> pd.DataFrame:
    """Share of the first test images at which the gradient of the joint loss is zero in every value; of all other
    images, the mean share of values at which it is. A value that is not a number counts as zero, as attacks take it."""

    def measure() -> pd.DataFrame:
        rows = []
        for spec in specs:
            losses, batch = _losses(store, spec, AttackSpec(tasks=spec.tasks, images=images))
            point = batch.clone().requires_grad_()
            (gradient,) = torch.autograd.grad(losses(point).sum(), point)
            zero = (gradient.nan_to_num() == 0).flatten(1).float().mean(dim=1)
            none = zero == 1
            values = zero[~none].mean().item() if (~none).any() else float("nan")
            row = {"images without a gradient": none.float().mean().item(), "values without, in the others": values}
            rows.append({"weights": spec.weights, "tasks": spec.tasks, **row, "images": len(batch)})
        return pd.DataFrame(rows)

    return store.table("zero gradients", {"images": images}, [(spec, spec.epochs) for spec in specs], measure)


def curves(store: Store, specs: list[ModelSpec], wanted: list[AttackSpec]) -> pd.DataFrame:
    """How attacks climb: the joint loss at each of their points, mean over images.

    Parameters
    ----------
    store, specs : where the models are, and which.
    wanted : the attacks; they are made on all tasks of each model, whatever their own.

    Returns
    -------
    One row a model, attack and step: weights, tasks, attack, step (0: the start), loss (of the points), best (of the
    best points so far).
    """

    def measure() -> pd.DataFrame:
        rows = []
        for spec in specs:
            for attack in [attack.model_copy(update={"tasks": spec.tasks}) for attack in wanted]:
                losses, images = _losses(store, spec, attack)
                losses, history = attacks.recorded(losses)
                run = attacks.NAMED[attack.name]
                budget = {"eps": attack.eps_255 / 255, "step_size": attack.step_size_255 / 255, "steps": attack.steps}
                run(losses, images, norm=attack.norm, generator=torch.Generator().manual_seed(attack.seed), **budget)
                joint = torch.stack([row.sum(dim=0) for row in history]).cpu()
                best = joint.cummax(dim=0).values
                for step in range(len(joint)):
                    about = {"weights": spec.weights, "tasks": spec.tasks, "attack": attack.name, "step": step}
                    rows.append({**about, "loss": joint[step].mean().item(), "best": best[step].mean().item()})
        return pd.DataFrame(rows)

    about = {"attacks": [attack.model_dump(mode="json") for attack in wanted]}
    return store.table("climbing", about, [(spec, spec.epochs) for spec in specs], measure)


def _losses(store: Store, spec: ModelSpec, attack: AttackSpec) -> tuple[attacks.Losses, torch.Tensor]:
    """The losses of an attack, in float32, and the images."""
    data = store.data(spec, "test", attack.images)
    images, targets, masks = data.batch(slice(None), store.device)
    return evaluation.task_losses(store.model(spec), targets, masks, attack), images
