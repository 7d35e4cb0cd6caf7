"""RQ1: does adding auxiliary tasks make a model more robust? Its parameters and cells (paper, RQ1; Table 1 A;
supplement, tables 2 to 6 and figures 1 to 11)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

from pydantic import AfterValidator, Field, model_validator

from mtrlib.data import letters
from mtrlib.studies.parameters import Attack, Count, Encoder, Positive, Several, Study
from mtrlib.studies.study import Cell, matched_l2_eps_255, table
from mtrlib.tasks import canonical, parse


class RQ1(Study):
    """Parameters of the notebook `rq1_auxiliary_tasks`.

    attack : of `attacks.NAMED`, or a function of your own, "<file>.py:<function>"; every panel is made with it.
    more_tasks : letters beside `tasks` whose models of one and two tasks are compared by their errors; those that the
        data set has no labels of are left out, so that `data` can be changed alone.
    eps_panel, steps_panel, encoders : what the panels vary.
    """

    attack_name: Attack = Field(alias="attack")
    more_tasks: Annotated[str, AfterValidator(lambda letters: letters and parse(letters))]
    eps_panel: Several[Positive]
    steps_panel: Several[Count]
    encoders: Several[Encoder]

    @model_validator(mode="after")
    def _panels(self) -> RQ1:
        if len(self.steps_panel) < 2:
            raise ValueError("steps_panel should have at least two numbers of steps to compare")
        if max(self.eps_panel) <= 4 or len(self.eps_panel) < 2:
            raise ValueError("eps_panel should have at least two budgets, one of them above 4")
        return self

    @property
    def used(self) -> list[str]:
        return [self.encoder, *self.encoders]

    def needed(self) -> Iterator[object]:
        yield from super().needed()
        yield self.attack(self.tasks, norm="l2")

    @property
    def figure_tasks(self) -> str:
        """`tasks` and those of `more_tasks` that the data set has."""
        given = set(self.more_tasks) & set(letters(self.data, self.folder))
        return canonical("".join({*self.tasks, *given}))


def cells(p: RQ1) -> list[Cell]:
    """Everything that RQ1 needs: the table main x auxiliary, all pairs of `p.figure_tasks` (panel "pairs"), and the
    panels on norm, eps, attack steps, encoders and epochs.

    Those two and "encoders" use all test images, the others the first `p.panel_images`. A step is the same share of the
    budget in every panel.
    """
    few = {"images": p.panel_images}
    l2 = {"nominal": p.eps_255, "matched": matched_l2_eps_255(p.eps_255, p.size)}
    *early, last = p.model(p.tasks[0]).checkpoints
    every = [*table(p, "table", "linf"), *table(p, "pairs", "linf", p.figure_tasks), *table(p, "norm", "linf", **few)]
    for name, eps in l2.items():
        every += table(p, "norm", f"l2, {name}", **few, norm="l2", eps_255=eps)
    for eps in p.eps_panel:
        every += table(p, "eps", eps, **few, eps_255=float(eps))
    for steps in p.steps_panel:
        every += table(p, "steps", steps, **few, steps=steps)
    for encoder in p.encoders:
        every += table(p, "encoders", encoder, encoder=encoder)
    for epoch in early:
        every += table(p, "epochs", epoch, **few, epoch=epoch)
    return [*every, *table(p, "epochs", last, **few)]
