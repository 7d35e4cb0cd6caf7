"""Search by populations under constraints, without gradients, as CoEvA2 (Ghamizi et al. 2020, FSE, doi
10.1145/3368089.3409739) and MoEvA2 (Simonetto et al. 2022, arXiv 2112.01156, section 4.2) search, here by NSGA-II.

Needs the extra `search` (pymoo). All inputs are searched at once: each generation of all of them is one batch.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

_WORST = 1e30  # in the place of what is no number
Evaluate = Callable[[Tensor], tuple[Tensor, Tensor]]


class Front(NamedTuple):
    """Of one input, the candidates that keep all constraints and that no other that does is better than: no lower in
    any objective and lower in one."""

    genes: Tensor  # (K, G), K = 0 where none kept them
    objectives: Tensor  # (K, O)
    queries: int  # how many candidates were evaluated


def search(
    evaluate: Evaluate,
    lower: Tensor,
    upper: Tensor,
    starts: Tensor,
    *,
    population: int = 40,
    generations: int = 25,
    seed: int = 0,
    soft: bool = False,
) -> list[Front]:
    """Search the genes of N inputs, each by an NSGA-II of its own, which does not depend on the others.

    Parameters
    ----------
    evaluate : genes (N, K, G) float64 -> objectives (N, K, O), to be low, and penalties (N, K), 0 where all constraints
        hold. Called once a generation; what is not a number counts as worst.
    lower, upper : (N, G), the range of each gene; lower is below upper.
    starts : (N, S, G), such as the unchanged input. The first population are these, and points between them and
        uniformly drawn ones, farther and farther away.
    population, generations : candidates in a generation (K), and how many of these.
    seed : of the first population and of all that NSGA-II draws.
    soft : the penalty is one more objective, as in MoEvA2; else candidates that keep the constraints come before all
        others, and these by their penalty, as in CoEvA2.

    Returns
    -------
    A front for each input, out of all candidates that were evaluated.
    """
    if population < 2 or generations < 1 or not (lower < upper).all():
        found = f"population = {population}, generations = {generations}, {int((lower >= upper).sum())} empty ranges"
        raise ValueError(f"Parameters should be population >= 2, generations >= 1, lower < upper. Found {found}.")
    try:
        from pymoo.algorithms.moo.nsga2 import NSGA2
        from pymoo.core.evaluator import Evaluator
        from pymoo.core.population import Population
        from pymoo.core.problem import Problem
        from pymoo.problems.static import StaticProblem
    except ImportError:
        raise ImportError("The search needs pymoo: pip install mtrlib[search]") from None
    low, high, first = (values.detach().cpu().double().numpy() for values in (lower, upper, starts))
    number, shape = first.shape[1], (population, low.shape[1])
    away = (np.arange(population) // number / max((population - 1) // number, 1))[:, None]
    drawn = np.random.default_rng(seed).random(shape)
    algorithms, begun = [], []
    for own, bottom, top in zip(first, low, high, strict=True):
        near = np.resize(own, shape)
        begin = np.clip(near + away * (bottom + (top - bottom) * drawn - near), bottom, top)
        begun.append(Population.new(X=begin))
        algorithms.append(NSGA2(pop_size=population, sampling=begun[-1]))
        problem = Problem(n_var=shape[1], n_ieq_constr=0 if soft else 1, xl=bottom, xu=top)
        algorithms[-1].setup(problem, termination=("n_gen", generations + 1), seed=seed)
    fronts = [Front(torch.empty(0, shape[1]), torch.empty(0, 1), 0)] * len(first)
    for generation in range(generations):
        asked = [algorithm.ask() for algorithm in algorithms]
        asked = asked if generation else begun  # with candidates that are alike, which `ask` leaves out
        # The best again where an algorithm finds none that it has not tried.
        asked = [a.pop[:1] if new is None else new for new, a in zip(asked, algorithms, strict=True)]
        genes = torch.from_numpy(np.stack([np.resize(new.get("X"), shape) for new in asked]))
        found = (values.detach().cpu().double().nan_to_num(_WORST, _WORST, -_WORST) for values in evaluate(genes))
        objectives, penalties = found
        for i, (new, algorithm) in enumerate(zip(asked, algorithms, strict=True)):
            good, bad = objectives[i, : len(new)], penalties[i, : len(new)]
            fronts[i] = _joined(fronts[i], genes[i, : len(new)], good, bad)
            values = {"F": torch.cat([good, bad[:, None]], dim=1)} if soft else {"F": good, "G": bad[:, None]}
            algorithm.problem.n_obj = values["F"].shape[1]
            known = StaticProblem(algorithm.problem, **{name: each.numpy() for name, each in values.items()})
            Evaluator().eval(known, new)
            algorithm.tell(infills=new)
    return fronts


def _joined(front: Front, genes: Tensor, objectives: Tensor, penalties: Tensor) -> Front:
    """The front with more candidates; of those that are alike, the first."""
    good = penalties <= 0
    if len(front.genes):
        genes, objectives = torch.cat([front.genes, genes[good]]), torch.cat([front.objectives, objectives[good]])
    else:
        genes, objectives = genes[good], objectives[good]
    no_worse = (objectives[:, None] <= objectives).all(dim=2)  # j, i
    better = no_worse & (~no_worse.T | torch.ones_like(no_worse).triu(1))
    first = ~better.any(dim=0)
    return Front(genes[first], objectives[first], front.queries + len(good))
