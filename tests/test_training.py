import dataclasses
import hashlib
import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

from mtrlib import data, training
from mtrlib.specs import ModelSpec

KILLED = """
import sys
from pathlib import Path
from mtrlib import data, training
from mtrlib.specs import ModelSpec
training.SAVE_EVERY = 0.0
spec = ModelSpec.model_validate_json(sys.argv[1])
rooms = data.load("rooms", tasks=spec.tasks, split="train", size=spec.data.size, limit=spec.images)
training.fit(spec, rooms, Path(sys.argv[2]))
"""


def rooms(spec: ModelSpec) -> data.Dataset:
    return data.load("rooms", tasks=spec.tasks, split="train", size=spec.data.size, limit=spec.images)


def digest(path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_training_lowers_every_loss_and_keeps_three_checkpoints(tiny, tmp_path):
    spec = tiny.model_copy(update={"epochs": 6})
    history = training.fit(spec, rooms(spec), tmp_path)
    assert [row["epoch"] for row in history] == [1, 2, 3, 4, 5, 6]
    assert all(history[-1][task] < history[0][task] for task in "sd")
    assert sorted(p.name for p in tmp_path.glob("epoch_*")) == [f"epoch_000{e}.safetensors" for e in (2, 4, 6)]
    weights = [load_file(training.checkpoint(tmp_path, e)) for e in (2, 6)]
    assert not torch.equal(weights[0]["encoder.conv1.weight"], weights[1]["encoder.conv1.weight"])


def test_the_same_specification_gives_the_same_bytes_and_another_seed_does_not(tiny, tmp_path):
    other = tiny.model_copy(update={"seed": 1})
    for name, spec in (("one", tiny), ("two", tiny), ("three", other)):
        training.fit(spec, rooms(spec), tmp_path / name)
    one, two, three = (digest(training.checkpoint(tmp_path / name, 3)) for name in ("one", "two", "three"))
    assert one == two != three


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_killed_and_started_again_it_ends_with_the_same_bytes(tiny, tmp_path, precision):
    """kill -9, at three different moments of one training."""
    spec = tiny.model_copy(update={"epochs": 9, "precision": precision})
    training.fit(spec, rooms(spec), tmp_path / "whole")
    cut = tmp_path / "cut"
    command = [sys.executable, "-c", KILLED, spec.model_dump_json(), str(cut)]
    kills = 0
    for epochs_before in (1, 3, 6):
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        while process.poll() is None and _saved_epochs(cut) < epochs_before:
            time.sleep(0.005)
        if process.poll() is None:
            os.kill(process.pid, signal.SIGKILL)
            kills += process.wait() == -signal.SIGKILL
    assert kills >= 2
    assert not training.checkpoint(cut, 9).exists(), "the kills came too late to test anything"
    subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
    for epoch in spec.checkpoints:
        assert digest(training.checkpoint(cut, epoch)) == digest(training.checkpoint(tmp_path / "whole", epoch))


def _saved_epochs(folder) -> int:
    try:
        with safe_open(folder / "resume.safetensors", "pt") as file:
            return len(json.loads(file.metadata()["history"]))
    except (OSError, SafetensorError):
        return 0


def test_a_loss_that_is_not_finite_stops_with_its_place(tiny, tmp_path):
    whole = rooms(tiny)
    depth = whole.targets["d"].clone()
    depth[5] = float("nan")
    broken = dataclasses.replace(whole, targets={**whole.targets, "d": depth})
    with pytest.raises(FloatingPointError, match=r"task d is nan in epoch 1, step \d"):
        training.fit(tiny, broken, tmp_path)
    assert not list(tmp_path.glob("*.safetensors"))


def test_learning_rates(tiny):
    step = tiny.model_copy(update={"schedule": "step", "epochs": 150, "learning_rate": 0.01})
    rates = [training.learning_rate(step, epoch / 150) for epoch in (0, 99, 100, 119, 120, 139, 140, 149)]
    assert rates == pytest.approx([1e-2, 1e-2, 1e-3, 1e-3, 1e-4, 1e-4, 1e-5, 1e-5])
    cosine = tiny.model_copy(update={"epochs": 10})
    rates = [training.learning_rate(cosine, part) for part in (0, 0.1, 0.5, 0.99)]
    assert rates[0] < rates[1] > rates[2] > rates[3] > 0
    assert rates[2] == pytest.approx(cosine.learning_rate / 2)


def test_progress_says_a_line_in_a_log(tiny, tmp_path, capfd):
    training.fit(tiny, rooms(tiny), tmp_path, description="model 1 of 2")
    lines = capfd.readouterr().err.strip().splitlines()
    assert lines[-1].startswith("model 1 of 2: 100%")
    assert "loss" in lines[-1]
    assert "\r" not in "".join(lines)


@pytest.mark.parametrize("where", ["encoder.conv1.weight", "decoders.d.conv_decode1.weight"])
def test_a_gradient_that_is_not_finite_stops_with_its_place(tiny, tmp_path, monkeypatch, where):
    """In the fifth step, the second of epoch 2, while all losses are finite."""
    build, calls = training.build, []

    def broken(*arguments):
        model = build(*arguments)

        def infinite(gradient):
            calls.append(where)
            return gradient / 0 if len(calls) == 5 else gradient

        model.get_parameter(where).register_hook(infinite)
        return model

    monkeypatch.setattr(training, "build", broken)
    name = "encoder" if "encoder" in where else "decoder of task d"
    with pytest.raises(FloatingPointError, match=f"The gradient of the {name} is (inf|nan) in epoch 2, step 2 of"):
        training.fit(tiny, rooms(tiny), tmp_path)
    assert [path.name for path in tmp_path.glob("epoch*")] == ["epoch_0001.safetensors"]
