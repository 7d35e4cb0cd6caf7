"""Attacks under constraints: the grammar, the search, tables and images; what they keep is checked in plain Python."""

import math
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from mtrlib import attacks
from mtrlib.data.loans import DESCRIPTION, loans
from mtrlib.store import sources

pytest.importorskip("pymoo")
pytestmark = pytest.mark.usefixtures("one_thread")
FEATURES = {"a": {"low": 0, "high": 10}, "b": {"low": 0, "high": 10}, "c": {"low": 0, "high": 10, "whole": True}}


def penalty(text: str, **row: float) -> float:
    made = attacks.domain({"features": FEATURES, "constraints": [text], "tolerance": 0.25})
    return made.penalties(torch.tensor([[row.get(name, 0.0) for name in "abc"]]).double())[0, 0].item()


@pytest.mark.parametrize(
    ("text", "row", "expected"),
    [
        ("a <= b", {"a": 3, "b": 1}, 2),
        ("a <= b", {"a": 1, "b": 1}, 0),
        ("a >= b", {"a": 1, "b": 3}, 2),
        ("a < b", {"a": 3, "b": 1}, 2 + 1e-6),
        ("a < b", {"a": 1, "b": 1}, 1e-6),
        ("b > a", {"a": 1, "b": 1.5}, 0),
        ("a == b", {"a": 3, "b": 1}, 1.75),
        ("a == b", {"a": 1.2, "b": 1}, 0),
        ("a in {1, b, 8}", {"a": 5, "b": 4}, 0.75),
        ("a <= 1 and b <= 1", {"a": 3, "b": 2}, 3),
        ("a <= 1 or b <= 1", {"a": 3, "b": 2}, 1),
        ("a <= 1 or b <= 1 and c <= 1", {"a": 9, "b": 2, "c": 3}, 3),
        ("1 <= a <= b", {"a": 0.5, "b": 0.25}, 0.75),
        ("-a + 2 * b ** 2 <= max(a, b) - 1 / 2", {"a": 1, "b": 2}, 5.5),
        ("abs(a - b) <= log(exp(min(a, 1)))", {"a": 3, "b": 7}, 3),
        ("a / b <= 1", {"a": 1, "b": 0}, math.inf),
        ("a / b <= 1", {"a": 0, "b": 0}, math.inf),
        ("b == 0 or a / b <= 1", {"a": 1, "b": 0}, 0),
    ],
)
def test_penalties_by_hand(text, row, expected):
    assert penalty(text, **row) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    "text",
    [
        "a",
        "a + 1",
        "a <= d",
        "a != b",
        "not a <= b",
        "a <= f(b)",
        "a in b",
        "a in {}",
        "a <= 'b'",
        "a <=",
        "",
        "a.b <= 1",
    ]
    + ["__import__('os') == 1", "abs(a, b) <= 1", "a if b else c", "(a <= b) + 1 <= 2", "a <= b[0]", 7],
)
def test_what_is_no_constraint_is_refused_in_a_line(text):
    with pytest.raises(ValueError, match="^A constraint should be of .* Found .*") as error:
        attacks.domain({"features": FEATURES, "constraints": [text]})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("feature", [{"low": 1}, {"low": 1, "high": 1}, {"low": 0, "high": 1, "hole": True}])
def test_what_is_no_feature_is_refused(feature):
    with pytest.raises(ValueError, match="^A feature should have .* Found x"):
        attacks.domain({"features": {"x": feature}})


def kept(row: list[float], clean: list[float]) -> list[bool]:
    """What a version of a loan keeps: the five constraints, ranges and whole numbers, what cannot be changed; worked
    out in plain Python, not read from the description."""
    amount, term, rate, instalment, income, burden, accounts, opened, overdue, months = row
    monthly = rate / 1200
    factor = (1 + monthly) ** term
    highest = [40_000, 60, 30, 2000, 150_000, 2, 60, 60, 10, 120]
    lowest = [1000, 36, 5, 10, 12_000, 0, 1, 0, 0, 0]
    return [
        term == 36 or term == 60,
        abs(instalment - amount * monthly * factor / (factor - 1)) <= 1.001e-3,
        abs(burden - 12 * instalment / income) <= 1.001e-3,
        opened <= accounts,
        months == 120 if overdue == 0 else overdue >= 1 and months < 120,
        all(low <= value <= high for low, value, high in zip(lowest, row, highest, strict=True)),
        all(row[i] == int(row[i]) for i in (1, 6, 7, 8, 9)),
        rate == clean[2] and overdue == clean[8],
    ]


@pytest.fixture(scope="module")
def lending():
    """Loans, their domain, and a model of two tasks that depends on what cannot be changed more than on all else."""
    values, targets = loans(24, seed=3)
    domain = attacks.domain(DESCRIPTION)
    weights = torch.tensor([0.5, 0.2, 4.0, 1.0, -1.0, 2.0, 0.2, 1.5, 3.0, -1.0], dtype=torch.float64)
    calls = []

    def risk(values):
        return 4 * (domain.to_unit(values).flatten(1) @ weights - 1.6)

    def losses(values, of):
        calls.append(len(values))
        label = targets["default"][of].double()
        crossed = torch.nn.functional.binary_cross_entropy_with_logits(risk(values), label, reduction="none")
        return torch.stack([crossed, (risk(values).sigmoid() - targets["loss"][of]).abs()])

    def broken(values, of):
        return (risk(values) > 0) != (targets["default"][of] == 1)

    return values, domain, losses, broken, calls


def test_loans_keep_their_constraints_and_a_seed_gives_them_again():
    values, targets = loans(300, seed=5)
    assert all(all(kept(row, row)) for row in values.tolist())
    again, _ = loans(300, seed=5)
    assert torch.equal(values, again)
    assert 0.1 < targets["default"].double().mean() < 0.5


@pytest.mark.parametrize(("norm", "eps", "soft"), [("linf", 0.12, False), ("linf", 0.12, True), ("l2", 0.2, False)])
def test_every_adversarial_row_keeps_every_constraint(lending, norm, eps, soft):
    values, domain, losses, broken, _ = lending
    settings = {"eps": eps, "norm": norm, "steps": 4, "population": 12, "generations": 8, "soft": soft}
    found = attacks.caa(losses, values, domain, broken, **settings)
    labels = broken(found.values, torch.arange(24)).tolist()
    change = domain.to_unit(found.values) - domain.to_unit(values)
    size = change.flatten(1).norm(dim=1, p=math.inf if norm == "linf" else 2)
    for i, by in enumerate(found.found_by):
        assert (by != "") == labels[i]
        assert all(kept(found.values[i].tolist(), values[i].tolist()))
        assert size[i] <= eps * (1 + 1e-8)
        assert (by in ("clean", "")) == torch.equal(found.values[i], values[i])
    again = attacks.caa(losses, values, domain, broken, **settings)
    assert torch.equal(found.values, again.values)
    assert {"clean", "search", *(["gradient"] if norm == "linf" else [])} <= set(found.found_by)


def test_those_of_pgd_keep_none_of_them_all(lending):
    values, domain, losses, broken, _ = lending
    every = torch.arange(24)
    points = attacks.pgd(
        lambda points: losses(domain.low + points.flatten(1) * (domain.high - domain.low), every),
        domain.to_unit(values),
        **{"eps": 0.12, "step_size": 0.03, "steps": 8},
    )
    moved = domain.low + points.flatten(1) * (domain.high - domain.low)
    assert broken(moved, every).sum() > 12
    assert not any(all(kept(row, clean)) for row, clean in zip(moved.tolist(), values.tolist(), strict=True))


def test_queries_are_counted_and_the_search_is_of_what_the_gradient_left(lending):
    values, domain, losses, broken, calls = lending
    calls.clear()
    found = attacks.caa(losses, values, domain, broken, eps=0.12, steps=4, population=12, generations=8)
    left = sum(by in ("search", "") for by in found.found_by)
    assert set(calls[:5]) == {24}
    assert calls[-8:] == [left * 12] * 8
    searched = found.queries > 4 + 2
    assert searched.tolist() == [by in ("search", "") for by in found.found_by]
    assert (found.queries[searched] <= 4 + 2 + 8 * 12).all()


def test_candidates_that_are_alike_are_counted_and_stay_in_the_first_generation():
    """As where a gradient left rows in place: all of a population begin at them."""
    domain = attacks.domain({"features": {name: {"low": 0.0, "high": 1.0} for name in "abc"}})

    def flat(values, of):
        return (values.round(decimals=1).detach() + 0 * values).sum(dim=1)[None]

    rows, budget = torch.full((2, 3), 0.5).double(), {"eps": 0.2, "population": 8, "generations": 4}
    found = attacks.caa(flat, rows, domain, lambda values, of: values.sum(dim=1) > 9, **budget)
    assert found.queries.tolist() == [44, 44]


def test_rows_out_of_their_ranges_are_refused(lending):
    values, domain, losses, broken, _ = lending
    with pytest.raises(ValueError, match="^Parameter rows should keep ranges .* Found 24 of 24"):
        attacks.caa(losses, values + 0.5, domain, broken, eps=0.1)


def two_hills(inputs: torch.Tensor, met: list):
    """Objectives |x - t|^2 and |x - t - 1|^2 of inputs t, (N, 1, G); x_0 at least 0.3 is asked for."""

    def evaluate(genes):
        objectives = torch.stack(
            [(genes - inputs).square().sum(dim=2), (genes - inputs - 1).square().sum(dim=2)], dim=2
        )
        penalties = (0.3 - genes[..., 0]).clamp(min=0)
        met.append((genes, objectives, penalties))
        return objectives, penalties

    return evaluate


def searched(inputs: torch.Tensor, met: list | None = None, **settings) -> list[attacks.Front]:
    ends = torch.full((len(inputs), 3), -2.0), torch.full((len(inputs), 3), 2.0)
    settings = {"population": 10, "generations": 12, **settings}
    evaluate = two_hills(inputs, [] if met is None else met)
    return attacks.search(evaluate, *ends, torch.zeros(len(inputs), 1, 3), **settings)


@pytest.mark.parametrize("soft", [False, True])
def test_the_front_is_what_nothing_met_is_better_than(soft):
    met = []
    fronts = searched(torch.tensor([[[0.0]], [[0.5]]]), met, soft=soft)
    for i, front in enumerate(fronts):
        seen = [
            (tuple(objectives.tolist()), genes)
            for batch in met
            for genes, objectives, penalty in zip(*(values[i] for values in batch), strict=True)
            if penalty == 0
        ]
        best = {one for one, _ in seen if not any(all(np.less_equal(other, one)) and other != one for other, _ in seen)}
        assert {tuple(row) for row in front.objectives.tolist()} == best
        assert len(front.objectives) == len(best) > 3
        assert (front.genes[:, 0] >= 0.3).all()
        assert front.queries == 10 * 12
        expected = two_hills(torch.tensor([[[0.0]], [[0.5]]])[i : i + 1], [])(front.genes[None])[0][0]
        assert torch.equal(front.objectives, expected)


def test_the_search_gains_on_drawing_at_random():
    """Of one hill, whose lowest point is known; both with 120 candidates."""
    front = searched(torch.tensor([[[0.5]]]))[0]
    drawn = 4 * torch.rand(120, 3, generator=torch.Generator().manual_seed(0)) - 2
    random = (drawn - 0.5).square().sum(dim=1)[drawn[:, 0] >= 0.3].min()
    assert front.objectives[:, 0].min() < random / 2


def test_a_seed_gives_the_same_front_and_no_input_depends_on_the_others():
    inputs = torch.tensor([[[0.0]], [[0.5]], [[0.2]]])
    state = torch.get_rng_state()
    fronts, again, alone = searched(inputs), searched(inputs), searched(inputs[1:2])
    assert all(torch.equal(one.genes, other.genes) for one, other in zip(fronts, again, strict=True))
    assert torch.equal(fronts[1].genes, alone[0].genes)
    assert not torch.equal(fronts[0].genes, searched(inputs, seed=1)[0].genes)
    assert torch.equal(torch.get_rng_state(), state)


def test_where_nothing_keeps_the_constraints_the_front_is_empty_and_what_is_no_number_is_no_point():
    def evaluate(genes):
        penalties = torch.where(genes[..., 0] > 0, 1.0, torch.nan)
        return torch.full((*genes.shape[:2], 2), torch.nan), penalties

    (front,) = attacks.search(evaluate, -torch.ones(1, 2), torch.ones(1, 2), torch.zeros(1, 1, 2), population=4)
    assert len(front.genes) == 0
    assert front.queries == 4 * 25


@pytest.mark.parametrize("wrong", [{"population": 1}, {"generations": 0}])
def test_wrong_parameters_of_the_search_are_refused(wrong):
    with pytest.raises(ValueError, match="population >= 2, generations >= 1, lower < upper"):
        searched(torch.zeros(1, 1, 1), **wrong)


def test_without_pymoo_a_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "pymoo.algorithms.moo.nsga2", None)
    with pytest.raises(ImportError, match=r"pip install mtrlib\[search\]"):
        searched(torch.zeros(1, 1, 1))


def two_tasks(images: torch.Tensor) -> torch.Tensor:
    """The first task errs more in brighter red, the second in darker blue or brighter red of the left half."""
    red, blue = images[:, 0], images[:, 2]
    return torch.stack([red.mean(dim=(1, 2)), 1 + red[:, :, :4].mean(dim=(1, 2)) - blue.mean(dim=(1, 2))])


@pytest.mark.parametrize(("basis", "norm"), [("tiles", "linf"), ("cosines", "linf"), ("tiles", "l2")])
def test_images_raise_one_task_and_keep_the_other(basis, norm, generator):
    images, eps = 0.25 + torch.rand(3, 3, 8, 8, generator=generator) / 2, {"linf": 0.1, "l2": 1.0}[norm]
    settings = {"eps": eps, "norm": norm, "basis": basis, "cells": 2, "population": 12, "generations": 10}
    points, fronts = attacks.search_images(two_tasks, images, slack=0.0, **settings)
    clean, rows = two_tasks(images), two_tasks(points)
    assert (rows[0] > clean[0]).all()
    assert (rows[1] <= clean[1]).all()
    assert points.min() >= 0
    assert points.max() <= 1
    length = (points.double() - images.double()).flatten(1).norm(dim=1, p=math.inf if norm == "linf" else 2)
    assert (length <= eps * (1 + 1e-6)).all()
    for i, front in enumerate(fronts):
        shown = attacks.decoded(
            images[i].expand(len(front.genes), -1, -1, -1), front.genes, eps=eps, norm=norm, basis=basis, cells=2
        )
        torch.testing.assert_close(-front.objectives[:, 0].float(), two_tasks(shown)[0])
        assert (two_tasks(shown)[1] <= clean[1, i] + 1e-6).all()
    free, _ = attacks.search_images(two_tasks, images, slack=10.0, **settings)
    assert (two_tasks(free)[0] >= rows[0] - 1e-6).float().mean() > 0.5


def test_tiles_and_cosines_by_hand():
    images, genes = torch.full((1, 3, 4, 4), 0.5), torch.zeros(1, 12)
    genes[0, 1], genes[0, 4] = 1.0, -0.5  # red: the second of the first row; green: the first of the first row
    tiles = attacks.decoded(images, genes, eps=0.1, basis="tiles", cells=2) - images
    assert tiles[0, 0].tolist() == pytest.approx(np.kron([[0, 0.1], [0, 0]], np.ones((2, 2))), abs=1e-6)
    cosines = attacks.decoded(images, genes, eps=0.1, basis="cosines", cells=2) - images
    wave = [0.1 * math.cos(math.pi * (k + 0.5) / 4) for k in range(4)]
    assert cosines[0, 0].tolist() == pytest.approx(np.array([wave] * 4), abs=1e-6)
    assert cosines[0, 1].tolist() == pytest.approx(np.full((4, 4), -0.05), abs=1e-6)


@pytest.mark.parametrize("wrong", [{"basis": "waves"}, {"attacked": 0}, {"slack": -1.0}])
def test_wrong_parameters_of_images_are_refused(wrong):
    with pytest.raises(ValueError, match=f"^Parameter .*Found .*{next(iter(wrong))}"):
        attacks.search_images(two_tasks, torch.full((1, 3, 4, 4), 0.5), eps=0.1, **wrong)


def test_nothing_that_decides_stored_results_uses_the_files_that_leave_their_keys_alone():
    package = Path(sources.__file__).parents[1]
    names = "|".join(Path(file).stem for file in sources.ASIDE)
    places = [package / name for part in sources.PARTS.values() for name in part]
    files = {file for place in places for file in ([place] if place.is_file() else place.rglob("*.py"))}
    files -= {package / name for name in sources.ASIDE} | {file for file in files if file.stem == "__init__"}
    assert len(files) > 30
    assert [file for file in files if re.search(rf"import.*\b({names})\b|\.({names}) import", file.read_text())] == []
