"""RQ6: does the way in which tasks share a network spread an attack on one of them? Its parameters and cells.

The paper attacks networks of one shared encoder; here are the architectures of Vandenhende et al. (2021, arXiv
2004.13379), and a network a task, which share nothing. An attack is made on one task and measured on the other."""

from __future__ import annotations

from itertools import combinations, product
from typing import Literal

import pandas as pd
from pydantic import model_validator

from mtrlib.claims.sharing import SEPARATE
from mtrlib.metrics import estimates
from mtrlib.models import ARCHITECTURES
from mtrlib.specs import Evaluation, ModelSpec
from mtrlib.studies.parameters import Several, Study
from mtrlib.studies.rq4 import forward_operations
from mtrlib.studies.study import Cell
from mtrlib.tasks import canonical


class RQ6(Study):
    """Parameters of the notebook `rq6_architectures`.

    architectures : of `models.ARCHITECTURES`, "hard" among them; a network a task, "separate", is always compared.
    equal : what all of them have in common: "compute", so that training all networks that a pair of tasks needs takes
        as many operations as hard sharing does in `epochs`; or "epochs".
    """

    architectures: Several[Literal[ARCHITECTURES]]  # type: ignore[valid-type]
    equal: Literal["compute", "epochs"]

    @model_validator(mode="after")
    def _baseline(self) -> RQ6:
        if "hard" not in self.architectures:
            raise ValueError(f"architectures should have hard among them, found {self.architectures}")
        return self

    @property
    def settings(self) -> list[str]:
        """What is compared, from the networks that share nothing on."""
        return [SEPARATE, *self.architectures]

    def of(self, name: str, tasks: str, seed: int = 0) -> ModelSpec:
        """A model of an architecture, or a single-task one where `name` is "separate", trained as `equal` says."""
        shared = {"architecture": "hard" if name == SEPARATE else name}
        return self.model(tasks, seed).model_copy(update={**shared, "epochs": self.epochs_of(name)})

    def epochs_of(self, name: str) -> int:
        """Epochs of an architecture; the models that it starts from are trained as long. The operations are those of
        the first two tasks."""
        if self.equal == "epochs" or name == "hard":
            return self.epochs
        return max(1, round(self.epochs * self._operations("hard") / self._operations(name)))

    def _operations(self, name: str) -> int:
        """Of one pass through all networks that a pair of tasks needs trained."""
        pair = self.model(canonical(self.tasks[:2]))
        alone = [pair.model_copy(update={"tasks": letter}) for letter in pair.tasks]
        whole = pair.model_copy(update={"architecture": name})
        specs = alone if name == SEPARATE else [whole, *whole.starts]
        return sum(forward_operations(spec, self.definitions) for spec in specs)


def cells(p: RQ6) -> list[Cell]:
    """Everything that RQ6 needs: of each pair of tasks, each of both read as the main task, and each architecture as
    setting, the panels "own" (the main task is attacked), "other" (the other one is) and "joint" (both are). Networks
    that share nothing have no joint attack; there "other" is made on the network of the other task."""
    every = []
    for seed, pair, name in product(p.seeds, map("".join, combinations(canonical(p.tasks), 2)), p.settings):
        for main, other in (pair, pair[::-1]):
            if name == SEPARATE:
                model, source = p.of(name, main, seed), p.of(name, other, seed)
                runs: dict[str, Evaluation] = {"own": p.evaluation(model, main)}
                runs["other"] = p.evaluation(model, other, source=source)
            else:
                model = p.of(name, pair, seed)
                attacked = {"own": main, "other": other, "joint": pair}
                runs = {panel: p.evaluation(model, letters) for panel, letters in attacked.items()}
            every += [Cell(panel, name, main, p.test_images, run) for panel, run in runs.items()]
    return list(dict.fromkeys(every))


def budgets(p: RQ6) -> pd.DataFrame:
    """What each architecture has: one row each: architecture, epochs (of its networks, and of those that it starts
    from), GFLOP (of one image through all networks of a pair of tasks), training (times that of hard sharing)."""
    whole = p.epochs * p._operations("hard")
    rows = [(name, p.epochs_of(name), p._operations(name)) for name in p.settings]
    table = pd.DataFrame(rows, columns=["architecture", "epochs", "GFLOP"])
    return table.assign(GFLOP=table.GFLOP / 1e9, training=table.epochs * table.GFLOP / whole)


def spread(errors: pd.DataFrame) -> pd.DataFrame:
    """What an attack does to the task read, by architecture and by what was attacked.

    Returns one row a cell of `errors`: panel (attacked: the task itself, the other, or both), setting (architecture),
    main, auxiliary (the other task), value with low and high, the mean log ratio of error under attack and clean error,
    and share, that over the one of the attack on the task itself.
    """
    frame = estimates.interval(estimates.estimates(errors)).reset_index()
    own = frame[frame.panel == "own"].set_index(["setting", "main", "auxiliary"]).value
    keys = [(r.setting, r.main, r.main if r.setting == SEPARATE else r.auxiliary) for r in frame.itertuples()]
    frame["share"] = frame.value / own.reindex(pd.MultiIndex.from_tuples(keys)).to_numpy()
    return frame


def matrix(spread: pd.DataFrame, column: str = "share") -> pd.DataFrame:
    """`spread` of the attack on the other task: main and attacked task as rows, architectures as columns."""
    rows = spread[spread.panel == "other"]
    table = rows.pivot(index=["main", "auxiliary"], columns="setting", values=column)
    return table[list(dict.fromkeys(rows.setting))].rename_axis(index=["task read", "task attacked"])
