"""What a type checker must know of the public faces: `make types` checks this file, which nothing runs."""

from typing import assert_type

import numpy as np
import pandas as pd
from torch import Tensor

from mtrlib import attacks, claims, data, metrics, models, studies
from mtrlib.dataset import Dataset
from mtrlib.specs import AttackSpec, DataSpec, Evaluation, ModelSpec
from mtrlib.store import Store
from mtrlib.studies import rq1
from mtrlib.tasks import TASKS


def library() -> None:
    rooms = data.load("rooms", tasks="sd", split="test", size=64, limit=8)
    assert_type(rooms, Dataset)
    images, targets, masks = rooms.batch(slice(None))
    assert_type(images, Tensor)
    assert_type(targets, dict[str, Tensor])
    assert_type(data.check("taskonomy", "data/taskonomy"), pd.DataFrame)

    model = models.build("resnet18_small", "sd", classes=len(rooms.class_names), seed=0)
    assert_type(model.forward(images, "s"), dict[str, Tensor])
    losses = attacks.task_losses(model, targets, masks, "s")
    assert_type(attacks.pgd(losses, images, eps=8 / 255, step_size=2 / 255, steps=25), Tensor)
    assert_type(attacks.apgd(losses, images, eps=8 / 255, step_size=0, steps=25), Tensor)
    assert_type(attacks.NAMED["wgd"](losses, images, eps=8 / 255, step_size=2 / 255, steps=25), Tensor)
    assert_type(TASKS["s"].error(images, targets["s"], masks["s"]), Tensor)
    assert_type(metrics.relative_task_vulnerability(images, images), float)
    assert_type(metrics.relative_task_vulnerability(np.ones(8), np.ones(8)), float)


def stored() -> None:
    spec = ModelSpec(data=DataSpec(size=64), tasks="sd", epochs=2)
    attack = AttackSpec(tasks="s", steps=5)
    store = Store("store", released="results/laptop/errors.parquet")
    assert_type(store.errors(spec, attack), pd.DataFrame)
    assert_type(store.model(spec), models.MultiTaskModel)
    assert_type(Evaluation(model=spec, attack=attack).key, str)


def studied(p: rq1.RQ1, store: Store) -> None:
    cells = rq1.cells(p)
    assert_type(cells, list[studies.Cell])
    assert_type(studies.run(store, cells), pd.DataFrame)
    assert_type(claims.findings("rq1", pd.DataFrame()), pd.DataFrame)
