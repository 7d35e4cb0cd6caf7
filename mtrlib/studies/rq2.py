"""RQ2: the vulnerability of task sets and what each added task contributes: parameters, cells and tables (paper, RQ2,
definitions 1 and 3; supplement, figures 12 and 13). `predictions` has what the theory says of it.

A weighting says how the losses of N attacked tasks make one: "sum", or "mean" with weights 1 / N. Both have the same
attack, so a set is attacked once."""

from itertools import combinations

import numpy as np
import pandas as pd
from pydantic import Field

from mtrlib.claims import task_sets
from mtrlib.metrics import estimates, theory
from mtrlib.specs import ModelSpec, Tasks
from mtrlib.store import Store
from mtrlib.studies import measurements
from mtrlib.studies.measurements import gradients as gradients
from mtrlib.studies.parameters import Positive, Several, Study
from mtrlib.studies.study import Cell, matched_l2_eps_255
from mtrlib.tasks import canonical


class RQ2(Study):
    """Parameters of the notebook `rq2_marginal_vulnerability`.

    chains : orders of tasks; a model is trained of every beginning of each. Letters that are not among `tasks` are left
        out, so that `tasks` can be changed alone: `orders` has what remains.
    eps_panel : budgets, in 255ths, at which predictions are compared, beside `eps_255`.
    gradient_images : test images at which gradients are taken.
    """

    chains: Several[Tasks]
    eps_panel: Several[Positive]
    gradient_images: int = Field(ge=2)

    @property
    def orders(self) -> list[str]:
        """The chains with letters of `tasks` only, of two tasks or more; one of them has all tasks."""
        kept = ["".join(letter for letter in chain if letter in self.tasks) for chain in self.chains]
        whole = [] if any(len(order) == len(self.tasks) for order in kept) else [canonical(self.tasks)]
        return list(dict.fromkeys(order for order in kept + whole if len(order) > 1))


def subsets(tasks: str) -> list[str]:
    """Every set of one or more of the tasks, in the paper's order."""
    letters = canonical(tasks)
    return ["".join(chosen) for size in range(1, len(letters) + 1) for chosen in combinations(letters, size)]


def cells(p: RQ2) -> list[Cell]:
    """Everything that RQ2 needs.

    Panels: "linf" and "l2" (of the matched budget), every set of tasks of one model of all tasks, the budget in 255ths
    of linf as setting; "chains", models of the beginnings of `p.orders`, each attacked on all of its tasks.
    """
    every, beginnings = [], [canonical(chain[:k]) for chain in p.orders for k in range(1, len(chain) + 1)]
    for seed in p.seeds:
        model = p.model(canonical(p.tasks), seed)
        for eps in dict.fromkeys((p.eps_255, *p.eps_panel)):
            images = p.test_images if eps == p.eps_255 else p.panel_images
            for norm, budget in (("linf", eps), ("l2", matched_l2_eps_255(eps, p.size))):
                step = p.step_size_255 / p.eps_255 * budget
                attack = {"norm": norm, "eps_255": budget, "step_size_255": step, "images": images}
                for attacked in subsets(p.tasks):
                    every.append(Cell(norm, eps, attacked[0], images, p.evaluation(model, attacked, **attack)))
        for begun in dict.fromkeys(beginnings):
            evaluation = p.evaluation(p.model(begun, seed), begun)
            every.append(Cell("chains", p.eps_255, begun[0], p.test_images, evaluation))
    return every


def vulnerabilities(errors: pd.DataFrame) -> pd.DataFrame:
    """Adversarial vulnerability (definition 1) of each attacked task set, in the unit of the losses, from what
    `studies.run` gives for `cells`: one row a panel, setting, set and weighting: panel, setting, tasks (the set, in the
    paper's order), value, low, high (95 %) and weighting."""
    table, ends = estimates.interval(task_sets.sets(errors)).reset_index(), ["value", "low", "high"]
    mean = table.assign(**table[ends].div(table.tasks.str.len(), axis=0))
    return pd.concat([table.assign(weighting="sum"), mean.assign(weighting="mean")], ignore_index=True)


def assumptions(statistics: theory.Gradients, tasks: str) -> pd.DataFrame:
    """What theorem 2 assumes of the gradients, and what they are, one row a task.

    Returns columns task, mean_share: ||E r||^2 / E||r||^2, which is 1 / N for N independent images where the mean is
    zero; expected: that 1 / N; relative_variance: the task's variance over the mean one, 1 where all are equal;
    correlation: mean over the other tasks of the absolute correlation, 0 where tasks are independent.
    """
    power, covered, count = np.diag(statistics.moments), np.diag(statistics.covariances), len(tasks)
    correlation = np.abs(statistics.covariances / np.sqrt(np.outer(covered, covered)))
    columns = {"task": list(tasks), "mean_share": (power - covered) / power}
    columns |= {"expected": 1 / len(statistics.norms["linf"]), "relative_variance": covered / covered.mean()}
    others = (correlation.sum(axis=1) - 1) / (count - 1) if count > 1 else np.nan
    return pd.DataFrame({**columns, "correlation": others})


def expansion(store: Store, spec: ModelSpec, errors: pd.DataFrame, images: int) -> pd.DataFrame:
    """The Taylor expansion of the summed loss of all tasks (`measurements.expansion`) beside its measured rise, on the
    first test images; errors as `studies.run` gives them for `cells`.

    Returns one row a norm and budget: norm, eps_255 (of linf), measured (mean rise of the loss), first_order,
    second_order (the sum of both terms), and the two over the measured one.
    """
    own = errors[(errors.model_id == spec.key) & (errors.attacked_tasks == spec.tasks) & (errors.panel != "chains")]
    groups = {budget: group.head(images) for budget, group in own.groupby(["panel", "setting"], sort=False)}
    budgets = [(norm, float(group.eps_255.iloc[0])) for (norm, _), group in groups.items()]
    terms, rows = measurements.expansion(store, spec, budgets, images), []
    for ((norm, setting), group), (one, two) in zip(groups.items(), terms.to_numpy().tolist(), strict=True):
        measured = (group.adversarial_attacked_loss - group.clean_attacked_loss).mean()
        row = {"norm": norm, "eps_255": setting, "measured": measured, "first_order": one, "second_order": two}
        rows.append({**row, "first over measured": one / measured, "second over measured": two / measured})
    return pd.DataFrame(rows)
