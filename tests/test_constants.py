"""What has been learned is told by the best constant."""

import numpy as np
import pandas as pd
import pytest
import torch

from mtrlib import studies
from mtrlib.data import Dataset
from mtrlib.metrics import tables
from mtrlib.specs import AttackSpec, DataSpec, Evaluation, ModelSpec
from mtrlib.store import Store, evaluation
from mtrlib.studies import Cell
from mtrlib.tasks import Task


def made(**targets) -> Dataset:
    """Images of four pixels, with these targets; the mask of letter x leaves the first pixel out."""
    number = len(next(iter(targets.values())))
    tasks = {
        "s": Task("s", "classes", "", 3, "classes"),
        "h": Task("h", "height", "", 1, loss_name="l1", error_name="absolute error"),
        "x": Task("x", "squares", "", 2, loss_name="squared", error_name="squared error"),
    }
    mask = torch.ones(number, 2, 2, dtype=torch.bool)
    mask[:, 0, 0] = False
    values = {letter: torch.tensor(value) for letter, value in targets.items()}
    masks = {letter: mask if letter == "x" else None for letter in values}
    images = torch.zeros(number, 3, 2, 2, dtype=torch.uint8)
    ids = tuple(f"{k}" for k in range(number))
    return Dataset("made", images, values, masks, ids, ("a", "b", "c"), tasks={k: tasks[k] for k in values})


def test_the_constant_is_the_majority_or_the_better_of_mean_and_median():
    flat = [[[[0.0, 0.0], [0.0, 8.0]]]]  # absolute error: the median, 0, errs less than the mean, 2
    pair = [[[[99.0, 1.0], [1.0, 4.0]], [[99.0, 0.0], [0.0, 3.0]]]]  # squared: the means of valid pixels, 2 and 1
    train = made(s=[[[2, 2], [1, 2]]], h=flat, x=pair)
    ones, other = [[[[1.0, 1.0], [1.0, 1.0]]]], [[[[0.0, 2.0], [2.0, 2.0]], [[0.0, 1.0], [1.0, 2.0]]]]
    test = made(s=[[[2, 1], [1, 1]]], h=ones, x=other)
    found = evaluation.constant_errors(train, test).set_index("task").constant_error
    assert found["s"] == pytest.approx(1 - (1 / 4 + 0) / 2)
    assert found["h"] == 1
    assert found["x"] == pytest.approx(1 / 3 / 2)


def test_a_study_says_what_a_constant_reaches_and_released_errors_need_not_know(tmp_path):
    spec = ModelSpec(data=DataSpec(size=16), tasks="sd", encoder="resnet18_tiny", images=8, epochs=1, batch_size=4)
    evaluations = [Evaluation(model=spec, attack=AttackSpec(tasks=tasks, steps=1, images=4)) for tasks in ("s", "d")]
    cells = [Cell("table", "linf", e.attack.tasks, 4, e) for e in evaluations]
    store = Store(tmp_path, "cpu")
    errors = studies.run(store, cells)
    assert errors.groupby("main").constant_error.nunique().ge(3).all()
    again = evaluation.constant_errors(*(store.data(spec, *of) for of in (("train", 8), ("test", 4))))
    for letter in "sd":
        expected = again[again.task == letter].constant_error.to_numpy()
        np.testing.assert_array_equal(errors[errors.main == letter].constant_error, expected)
    assert list(store.path.glob("constants/*/*.parquet"))
    pd.testing.assert_frame_equal(studies.run(Store(tmp_path, "cpu"), cells), errors)


def test_skill_is_what_a_model_takes_away_from_the_error_of_the_constant():
    errors = pd.DataFrame(
        {"main": list("ssddsd"), "auxiliary": list("ssddds"), "seed": 0, "image_id": [0, 1, 0, 1, 0, 0]}
    )
    errors["clean_error"], errors["constant_error"] = [0.1, 0.3, 0.9, 0.9, 7.0, 7.0], 1.0
    found = tables.skills(errors).set_index("main")
    assert found.skill.to_dict() == pytest.approx({"s": 0.8, "d": 0.1})
    assert found.learned.to_dict() == {"s": True, "d": False}
    assert tables.skills(errors.drop(columns="constant_error")).empty
