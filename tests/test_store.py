import json
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch

from mtrlib import training
from mtrlib.specs import AttackSpec, Evaluation, ModelSpec
from mtrlib.store import Store

ATTACK = AttackSpec(tasks="s", steps=2, images=5)
TRAIN = """
import sys, torch
torch.set_num_threads(1)
from mtrlib import training
from mtrlib.specs import ModelSpec
from mtrlib.store import Store
fit = training.fit
def counted(*arguments):
    with open(sys.argv[3], "a") as file:
        file.write("trained\\n")
    return fit(*arguments)
training.fit = counted
Store(sys.argv[2]).model(ModelSpec.model_validate_json(sys.argv[1]))
"""


def test_a_model_is_trained_once(tiny, tmp_path, monkeypatch):
    store = Store(tmp_path)
    assert not store.has_model(tiny)
    trained = store.model(tiny)
    assert store.has_model(tiny)
    monkeypatch.setattr(training, "fit", lambda *_: pytest.fail("trained again"))
    loaded = Store(tmp_path).model(tiny)
    assert not loaded.training
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    images = torch.rand(2, 3, 16, 16)
    for letter in "sd":
        assert torch.equal(trained(images)[letter], loaded(images)[letter])
    assert not (store.folder(tiny) / "resume.safetensors").exists()


@pytest.mark.parametrize("gone", ["epoch_0001.safetensors", "epoch_0003.safetensors", "record.json"])
def test_a_model_without_one_of_its_files_is_not_trained(tiny, tmp_path, gone):
    store = Store(tmp_path)
    store.model(tiny)
    before = {path.name: path.read_bytes() for path in store.folder(tiny).glob("*.safetensors")}
    assert set(before) == {f"epoch_000{epoch}.safetensors" for epoch in (1, 2, 3)}
    (store.folder(tiny) / gone).unlink()
    assert not Store(tmp_path).has_model(tiny)
    Store(tmp_path).model(tiny)
    assert {path.name: path.read_bytes() for path in store.folder(tiny).glob("*.safetensors")} == before
    assert store.has_model(tiny)


@pytest.mark.parametrize("name", ["file", "file/store"])
def test_a_file_is_no_store(tmp_path, name):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=f"^The folder of the store cannot be {tmp_path}/{name}: .*/file is no folder"):
        Store(tmp_path / name)


def test_the_record_says_what_wrote_it(tiny, tmp_path):
    store = Store(tmp_path)
    store.model(tiny)
    record = store.record(tiny)
    assert ModelSpec.model_validate_json(json.dumps(record["spec"])) == tiny
    assert [row["epoch"] for row in record["history"]] == [1, 2, 3]
    assert record["images"] == 24
    assert record["seconds"] > 0
    assert {"commit", "torch", "python", "device"} <= set(record["written_by"])


def test_checkpoints_are_models_of_their_own(tiny, tmp_path):
    store = Store(tmp_path)
    images = torch.rand(1, 3, 16, 16)
    assert not torch.equal(store.model(tiny, 1)(images)["d"], store.model(tiny, 3)(images)["d"])
    with pytest.raises(ValueError, match=r"one of \(1, 2, 3\)"):
        store.model(tiny, 4)


def test_errors_are_tidy_and_computed_once(tiny, tmp_path, monkeypatch):
    store = Store(tmp_path)
    errors = store.errors(tiny, ATTACK)
    assert list(errors) == [
        *("model_id", "trained_tasks", "main", "encoder", "weights", "seed", "epoch", "attack", "norm", "eps_255"),
        *("steps", "attacked_tasks", "task", "image_id"),
        *("clean_error", "adversarial_error", "clean_loss", "adversarial_loss"),
    ]
    assert errors.groupby("task").image_id.nunique().to_dict() == {"d": 5, "s": 5}
    assert (errors.trained_tasks == "sd").all()
    assert (errors.main == "s").all()
    attacked = errors[errors.task == "s"]
    assert (attacked.adversarial_loss >= attacked.clean_loss).all()
    assert attacked.adversarial_loss.mean() > attacked.clean_loss.mean()
    monkeypatch.setattr("mtrlib.store.evaluation.errors", lambda *_, **__: pytest.fail("attacked again"))
    pd.testing.assert_frame_equal(Store(tmp_path).errors(tiny, ATTACK), errors)
    assert store.has_errors(tiny, ATTACK)
    whole = Evaluation(model=tiny, attack=ATTACK)
    assert (whole.epoch, store.has_errors(whole)) == (3, True)
    pd.testing.assert_frame_equal(store.errors(whole), errors)
    assert not store.has_errors(Evaluation(model=tiny, attack=ATTACK, epoch=1))


@pytest.mark.parametrize("tasks", ["sp", "kA", "rKe"])
def test_every_task_of_the_rooms_can_be_trained_and_attacked(tiny, tmp_path, tasks):
    spec = tiny.model_copy(update={"tasks": tasks, "epochs": 1})
    attack = ATTACK.model_copy(update={"tasks": tasks[-1]})
    errors = Store(tmp_path).errors(spec, attack)
    assert errors.groupby("task").image_id.nunique().to_dict() == dict.fromkeys(tasks, 5)
    assert np.isfinite(errors[["clean_error", "adversarial_error", "clean_loss", "adversarial_loss"]]).all(axis=None)
    attacked = errors[errors.task == tasks[-1]]
    assert attacked.adversarial_loss.mean() > attacked.clean_loss.mean()


def test_clean_errors_are_of_the_clean_images(tiny, tmp_path):
    """Catches a baseline read at the random start: it must not depend on the attack."""
    store = Store(tmp_path)
    weak = store.errors(tiny, ATTACK)
    strong = store.errors(tiny, ATTACK.model_copy(update={"eps_255": 64.0, "step_size_255": 16.0}))
    none = store.errors(tiny, ATTACK.model_copy(update={"eps_255": 0.0}))
    pd.testing.assert_series_equal(weak.clean_error, strong.clean_error)
    pd.testing.assert_series_equal(none.clean_error, none.adversarial_error, check_names=False)
    assert (strong.clean_error != strong.adversarial_error).any()


def test_another_seed_gives_other_numbers(tiny, tmp_path):
    """Of the model all of them, of the attack those under attack alone: 10 rows, of which none stays as it was."""
    store = Store(tmp_path)
    first = store.errors(tiny, ATTACK)
    model = store.errors(tiny.model_copy(update={"seed": 1}), ATTACK)
    start = store.errors(tiny, ATTACK.model_copy(update={"seed": 1}))
    assert (model.clean_loss != first.clean_loss).all()
    assert (model.adversarial_loss != first.adversarial_loss).all()
    pd.testing.assert_series_equal(start.clean_loss, first.clean_loss)
    assert (start.adversarial_loss != first.adversarial_loss).all()


def test_more_images_do_not_change_the_first(tiny, tmp_path):
    """Also across batches: 70 images are more than one."""
    store = Store(tmp_path)
    few, many = (store.errors(tiny, ATTACK.model_copy(update={"images": n})) for n in (5, 70))
    both = few.merge(many, on=["task", "image_id"], suffixes=("", "_many"))
    assert len(both) == len(few) == 10
    for column in ("clean_error", "adversarial_error"):
        pd.testing.assert_series_equal(both[column], both[f"{column}_many"], check_names=False, rtol=1e-4)


def test_two_processes_train_a_model_once(tiny, tmp_path):
    log = tmp_path / "log"
    command = [sys.executable, "-c", TRAIN, tiny.model_dump_json(), str(tmp_path / "store"), str(log)]
    processes = [subprocess.Popen(command, stderr=subprocess.DEVNULL) for _ in range(2)]
    assert [process.wait(timeout=300) for process in processes] == [0, 0]
    assert log.read_text() == "trained\n"
