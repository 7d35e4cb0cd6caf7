"""The notebook `new_method`: an attack, a way to weigh losses and an encoder of your own beside the library's."""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd
from pydantic import Field, model_validator

from mtrlib.claims.judging import decide
from mtrlib.metrics import tables
from mtrlib.models import own
from mtrlib.studies.parameters import Attack, Different, Encoder, Study, Weights
from mtrlib.studies.study import Cell

WORDS = {"agrees": "agrees, here", "disagrees": "disagrees, here", "open": "open"}


class NewMethod(Study):
    """Parameters of the notebook `new_method`, all on the model of the first two `tasks`.

    attack, weighting, own_encoder : yours, "<file>.py:<name>".
    rivals : attacks beside yours, with the same budget and steps; the first is the one to beat.
    balancers : ways to weigh beside yours; uniform weights are there, too. Models are attacked by the first rival.
    """

    attack_name: Attack = Field(alias="attack")
    weighting: Weights
    own_encoder: Encoder
    rivals: Different[Attack] = Field(min_length=1)
    balancers: Different[Weights]

    @model_validator(mode="after")
    def _apart(self) -> NewMethod:
        if self.attack_name in self.rivals:
            raise ValueError(f"rivals should be others than your attack, found {self.attack_name!r}")
        if {self.weighting, "uniform"} & set(self.balancers):
            raise ValueError(f"balancers should be others than uniform and your weighting, found {self.balancers}")
        return self

    @property
    def used(self) -> list[str]:
        return [self.encoder, self.own_encoder]

    def needed(self) -> Iterator[object]:
        yield from super().needed()
        yield from (self.attack(self.tasks, name=name) for name in self.rivals)
        yield from (self.model(self.tasks[:2], weights=weights) for weights in (self.weighting, *self.balancers))


def cells(p: NewMethod) -> list[Cell]:
    """Panel "attacks", the setting being the attack; "weights", the weighting; "encoders", the encoder."""
    pair, every = p.tasks[:2], []

    def add(panel: str, setting: str, attack: str, **of_model) -> None:
        for seed in p.seeds:
            model = p.model(pair, seed, **of_model)
            for main, attacked in ((letter, letters) for letters in (*pair, pair) for letter in letters):
                every.append(Cell(panel, setting, main, p.test_images, p.evaluation(model, attacked, name=attack)))

    for name in (*p.rivals, p.attack_name):
        add("attacks", own.short(name), name)
    for weights in ("uniform", *p.balancers, p.weighting):
        add("weights", own.short(weights), p.rivals[0], weights=weights)
    for encoder in (p.encoder, p.own_encoder):
        add("encoders", own.short(encoder), p.rivals[0], encoder=encoder)
    return every


def compared(errors: pd.DataFrame, panel: str, against: str) -> pd.DataFrame:
    """How many times the error under attack of a baseline setting that of each other is, and the verdict on whether it
    is more: one row a setting and way to attack: setting, attacked, ratio, low, high, cells, verdict."""
    rows, same = errors[errors.panel == panel], panel == "attacks"
    table = tables.ratios(rows, ["setting", "attacked"], same_models=same, setting=own.short(against))
    told = [WORDS[decide(row.low, row.high, "above", 1.0)] for row in table.itertuples()]
    return table.assign(verdict=told)


def sentence(table: pd.DataFrame, setting: str, claim: str, words: str) -> str:
    """The verdict on one setting in words, a line a way to attack."""
    lines = []
    for row in table[table.setting == own.short(setting)].itertuples():
        times = f"{tables.number(row.ratio)} times {words} {tables.interval(row.low, row.high)}"
        lines.append(f"{claim}, {row.attacked} attack: {row.verdict} ({times}).")
    return "\n".join(lines)
