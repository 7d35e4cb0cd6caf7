import dataclasses
import hashlib
import json
import signal
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from mtrlib import data, training
from mtrlib.specs import ModelSpec
from mtrlib.training import fitting

# Trains the model of each folder again and again, each time in a process of its own that kills itself at a moment of
# the list: before a step of an epoch, or in the middle of a file, counted from where it goes on. The last one does not.
KILLED = """
import json, os, signal, sys
from pathlib import Path
import torch
import torch._dynamo  # once, and not by the first step of every process
from safetensors import safe_open
torch.set_num_threads(1)
from mtrlib import data
from mtrlib.specs import ModelSpec
from mtrlib.training import fitting
fitting.SAVE_EVERY = 0.0
steps, write = fitting.epoch_losses, Path.write_bytes

def fit(spec, rooms, folder, what, where):
    written = []
    def epoch_losses(*arguments):
        for row in enumerate(steps(*arguments)):
            if (what, where) == ("step", [arguments[5], row[0]]):
                os.kill(os.getpid(), signal.SIGKILL)
            yield row[1]
    def write_bytes(path, content):
        written.append(path)
        if (what, where) == ("file", len(written)):
            write(path, content[: len(content) // 2])
            os.kill(os.getpid(), signal.SIGKILL)
        return write(path, content)
    fitting.epoch_losses, Path.write_bytes = epoch_losses, write_bytes
    fitting.fit(spec, rooms, folder)

for folder, text in json.loads(sys.argv[1]).items():
    spec = ModelSpec.model_validate_json(text)
    rooms = data.load("rooms", tasks=spec.tasks, split="train", size=spec.data.size, limit=spec.images)
    for moment in json.loads(sys.argv[2]):
        child = os.fork()
        if not child:
            status = 1
            try:
                fit(spec, rooms, Path(folder), *moment)
                status = 0
            finally:
                os._exit(status)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        with safe_open(Path(folder) / "resume.safetensors", "pt") as file:
            print(status, len(json.loads(file.metadata()["history"])), flush=True)
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


def test_killed_and_started_again_it_ends_with_the_same_bytes(tiny, tmp_path):
    """kill -9, at four different moments of one training, in both precisions."""
    specs = {name: tiny.model_copy(update={"epochs": 9, "precision": name}) for name in ("float32", "bfloat16")}
    # Within epoch 2; in the state of epoch 3; in the checkpoint of epoch 6; before epoch 8. Then to the end.
    moments = [("step", [2, 1]), ("file", 3), ("file", 5), ("step", [8, 0]), (None, None)]
    models = {str(tmp_path / name): spec.model_dump_json() for name, spec in specs.items()}
    command = [sys.executable, "-c", KILLED, json.dumps(models), json.dumps(moments)]
    told = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()
    kept = [(-signal.SIGKILL, 1), (-signal.SIGKILL, 2), (-signal.SIGKILL, 5), (-signal.SIGKILL, 7), (0, 9)]
    assert told == [f"{status} {epochs}" for status, epochs in kept] * 2
    for name, spec in specs.items():
        training.fit(spec, rooms(spec), tmp_path / "whole" / name)
        for epoch in spec.checkpoints:
            cut, whole = (training.checkpoint(tmp_path / part / name, epoch) for part in ("", "whole"))
            assert digest(cut) == digest(whole)


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

    monkeypatch.setattr(fitting, "build", broken)
    name = "encoder" if "encoder" in where else "decoder of task d"
    with pytest.raises(FloatingPointError, match=f"The gradient of the {name} is (inf|nan) in epoch 2, step 2 of"):
        training.fit(tiny, rooms(tiny), tmp_path)
    assert [path.name for path in tmp_path.glob("epoch*")] == ["epoch_0001.safetensors"]
