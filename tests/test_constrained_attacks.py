"""The notebook of attacks under constraints, run small, and what its tables and figures are made of."""

import json

import pandas as pd
import pytest

from mtrlib import attacks, figures, machine
from mtrlib.data.loans import DESCRIPTION
from mtrlib.studies import constrained_attacks as study
from mtrlib.tasks import TASKS

pytest.importorskip("pymoo")
pytestmark = pytest.mark.usefixtures("one_thread")
NAME = "constrained_attacks"
TINY = {"size": 16, "train_images": 16, "test_images": 4, "epochs": 1, "steps": 3, "population": 6, "generations": 3}
TINY |= {"loans": 60, "attacked_loans": 12, "rooms": 2, "cells": 2, "basis": "tiles", "changes": ["camera", "pieces"]}


def defaults() -> dict:
    path = machine.root() / "notebooks" / f"{NAME}.ipynb"
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    namespace: dict = {}
    exec("".join(next(cell for cell in cells if cell["cell_type"] == "code")["source"]), namespace)
    return {name: namespace[name] for name in study.ConstrainedAttacks.model_fields if name in namespace}


@pytest.fixture(scope="module")
def ran(run_cells, tmp_path_factory):
    folder = tmp_path_factory.mktemp("constrained")
    run_cells(NAME, {**TINY, "store": str(folder / "store"), "output": str(folder / "out")})
    return {path.stem.removeprefix(f"{NAME}_"): pd.read_csv(path) for path in (folder / "out").glob("*.csv")}


def test_the_notebook_runs_small_and_its_tables_agree(ran):
    loans = ran["loans"].set_index("loans")
    assert (loans.loc["of these keep all"] <= loans.loc["wrong"]).all()
    assert loans.CAA["of these keep all"] == loans.CAA["wrong"] >= loans.clean["wrong"]
    assert loans.PGD["of these keep all"] == 0
    rooms = ran["rooms"]
    assert list(rooms.changed.unique()) == ["camera", "pieces", "all"]
    assert (rooms[["at random", "searched"]].min(axis=1) >= rooms["as drawn"] - 1e-6).all()
    every = rooms[rooms.changed == "all"].set_index("task").searched
    highest = ran["fronts"].groupby("title")[["s", "d"]].max().mean()
    assert highest.to_dict() == pytest.approx(every.to_dict())
    for _, front in ran["fronts"].groupby("title"):
        ordered = front.sort_values("s")
        assert ordered.d.is_monotonic_decreasing


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"tasks": "sdn"}, "tasks should name two tasks"),
        ({"data": "folder", "root": "x"}, "data"),
        ({"rooms": 99}, "rooms should be at most test_images = 64"),
        ({"changes": ["doors"]}, "lights"),
        ({"population": 1}, "greater than or equal to 2"),
    ],
)
def test_wrong_parameters_are_refused(wrong, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        study.ConstrainedAttacks(**{**defaults(), "store": str(tmp_path), "output": str(tmp_path), **wrong})


def test_the_counts_of_loans_are_those_of_the_penalties(tmp_path):
    values = {**defaults(), **TINY, "store": str(tmp_path), "output": str(tmp_path)}
    domain = attacks.domain(DESCRIPTION)
    lent = study.attack_loans(study.ConstrainedAttacks(**values), domain)
    kept = domain.penalties(lent.found.values) == 0
    broken = [by != "" for by in lent.found.found_by]
    assert lent.compared.CAA.iloc[0] == sum(broken)
    assert lent.compared.CAA.iloc[1:-1].tolist() == kept[broken].sum(dim=0).tolist()
    assert lent.compared.CAA.iloc[-1] == kept.all(dim=1)[broken].sum()
    assert lent.one.feature.tolist() == list(domain.names)


def test_a_figure_of_fronts_has_a_panel_a_room_and_a_mark_a_point():
    points = pd.DataFrame({"s": [0.9, 0.5, 0.7], "d": [0.1, 0.3, 0.2], "title": ["one", "one", "two"]})
    before = pd.DataFrame({"s": [0.4, 0.6], "d": [0.1, 0.1], "title": ["one", "two"]})
    first, second = figures.fronts(points, before, {letter: TASKS[letter] for letter in "sd"}).axes
    assert [axis.get_title() for axis in (first, second)] == ["one", "two"]
    step, found, start = first.lines
    assert list(zip(*found.get_data(), strict=True)) == [(0.5, 0.3), (0.9, 0.1)]
    assert list(zip(*start.get_data(), strict=True)) == [(0.4, 0.1)]
    assert "1 - mIoU" in first.get_xlabel()
    assert "squared error" in first.get_ylabel()
