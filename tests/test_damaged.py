"""What lies on the disk and is not what was written there: named, set aside, made again, never used."""

from __future__ import annotations

import hashlib
import json
import shutil
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from mtrlib import data, training
from mtrlib.data import cache, sealed
from mtrlib.specs import AttackSpec, DataSpec, Evaluation, ModelSpec
from mtrlib.store import FORMAT, Store
from mtrlib.training import fitting

SMALL = {"encoder": "resnet18_tiny", "images": 16, "epochs": 2, "batch_size": 8}
SPEC = ModelSpec(data=DataSpec(size=16), tasks="sd", **SMALL)
OTHER = SPEC.model_copy(update={"seed": 1})
ATTACK = AttackSpec(tasks="s", steps=1, images=4)
IMAGES = torch.linspace(0, 1, 3 * 16 * 16).view(1, 3, 16, 16)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A store with two models of one size and the errors of both."""
    store = Store(tmp_path_factory.mktemp("whole"))
    for spec in (SPEC, OTHER):
        store.errors(spec, ATTACK)
    return store.path


@pytest.fixture
def path(whole, tmp_path) -> Path:
    return shutil.copytree(whole, tmp_path / "store")


def flip(path: Path, place: int, bit: int = 0) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1 << bit
    path.write_bytes(content)


DAMAGE = {
    "truncated": lambda path, _: path.write_bytes(path.read_bytes()[:-100]),
    "empty": lambda path, _: path.write_bytes(b""),
    "one bit": lambda path, _: flip(path, path.stat().st_size // 2),
    "foreign": lambda path, other: shutil.copy(other, path),
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("name", ["epoch_0001.safetensors", "epoch_0002.safetensors", "record.json"])
def test_a_damaged_model_is_set_aside_and_trained_again(path, name, damage):
    expected = Store(path).model(SPEC, 1)(IMAGES)["d"]
    file = Store(path).folder(SPEC) / name
    DAMAGE[damage](file, Store(path).folder(OTHER) / name)
    found = file.read_bytes()
    with pytest.warns(UserWarning, match=f"{file} is damaged .* It is now {name}.damaged-1") as caught:
        again = Store(path).model(SPEC, 2 if "2" in name else 1)(IMAGES)["d"]
    assert len(caught) == 1
    assert file.with_name(f"{name}.damaged-1").read_bytes() == found
    if "2" not in name:
        assert torch.equal(again, expected)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(Store(path).model(SPEC, 1)(IMAGES)["d"], expected)
        assert Store(path).record(SPEC)["spec"] == SPEC.model_dump(mode="json")


def test_a_record_copied_with_its_checksum_is_of_another_model(path):
    for name in ("record.json", "record.json.sha256", "epoch_0002.safetensors"):
        shutil.copy(Store(path).folder(OTHER) / name, Store(path).folder(SPEC) / name)
    with pytest.warns(UserWarning, match="record.json is damaged .it is of another model"):
        assert Store(path).record(SPEC)["spec"]["seed"] == 0


@pytest.mark.parametrize("damage", [*DAMAGE, "foreign with its checksum", "no checksum"])
def test_damaged_errors_are_set_aside_and_measured_again(path, damage):
    store = Store(path)
    expected = store.errors(SPEC, ATTACK)
    files = sorted(path.glob("errors/*/*.parquet"))
    model_ids = [Store(path).errors(spec, ATTACK).model_id[0] for spec in (SPEC, OTHER)]
    assert len(files) == len(set(model_ids)) == 2
    key = Evaluation(model=SPEC, attack=ATTACK, epoch=SPEC.epochs).key
    file = next(found for found in files if found.stem == key)
    other = next(found for found in files if found != file)
    if damage == "no checksum":
        file.with_name(f"{file.name}.sha256").unlink()
    else:
        DAMAGE[damage.split(" with")[0]](file, other)
        if "with" in damage:
            text = other.with_name(f"{other.name}.sha256").read_text()
            file.with_name(f"{file.name}.sha256").write_text(text)
    with pytest.warns(UserWarning, match=f"{file} is damaged"):
        pd.testing.assert_frame_equal(Store(path).errors(SPEC, ATTACK), expected)
    assert file.with_name(f"{file.name}.damaged-1").exists()
    pd.testing.assert_frame_equal(Store(path).errors(SPEC, ATTACK), expected)


@pytest.mark.parametrize("source", [None, OTHER])
def test_errors_of_a_model_that_came_out_otherwise_are_measured_again(path, source):
    """As where a damaged model is trained again on another machine: here the weights of another seed stand for it."""
    store = Store(path)
    wanted = Evaluation(model=SPEC, attack=ATTACK, source=source)
    before = store.errors(wanted)
    changed, other = (SPEC, OTHER) if source is None else (OTHER, SPEC)
    folder, record = store.folder(changed), store.record(changed)
    weights = (store.folder(other) / "epoch_0002.safetensors").read_bytes()
    (folder / "epoch_0002.safetensors").write_bytes(weights)
    record["history"][1]["sha256"] = hashlib.sha256(weights).hexdigest()
    sealed.seal(folder / "record.json", json.dumps(record).encode())
    with pytest.warns(UserWarning, match=f"models/{changed.key} epoch 2 is not what it was made from"):
        after = Store(path).errors(wanted)
    assert not np.allclose(before.adversarial_loss, after.adversarial_loss)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pd.testing.assert_frame_equal(Store(path).errors(wanted), after)
        shutil.rmtree(folder)  # errors stand for themselves where a model is not there
        pd.testing.assert_frame_equal(Store(path).errors(wanted), after)


def test_every_bit_of_a_sealed_file_counts(tmp_path):
    path = tmp_path / "file"
    content = bytes(range(64))
    for place in range(len(content)):
        for bit in range(8):
            sealed.seal(path, content)
            flip(path, place, bit)
            with pytest.raises(sealed.Damaged, match="not that of its checksum"):
                sealed.read(path)
    sealed.seal(path, content)
    assert sealed.read(path) == content
    for place in range(64):
        sealed.seal(path, content)
        flip(path.with_name("file.sha256"), place)
        with pytest.raises(sealed.Damaged):
            sealed.read(path)


def test_what_is_set_aside_twice_keeps_both(tmp_path):
    for content in (b"one", b"two"):
        sealed.seal(tmp_path / "file", content)
        with pytest.warns(UserWarning, match="is damaged .why"):
            sealed.set_aside(tmp_path / "file", "why")
    kept = [(tmp_path / f"file.damaged-{number}") for number in (1, 2)]
    assert [sealed.read(path, None) for path in kept] == [b"one", b"two"]


@pytest.fixture
def stopped(tmp_path, monkeypatch):
    """A function of a specification: the folder of its training, stopped after two of three epochs."""
    monkeypatch.setattr(fitting, "SAVE_EVERY", 0.0)
    one_epoch = training.epoch_losses

    def stops(*arguments):
        if arguments[5] == 3:
            raise KeyboardInterrupt
        return one_epoch(*arguments)

    def stop(spec: ModelSpec) -> Path:
        folder = tmp_path / spec.key
        monkeypatch.setattr(fitting, "epoch_losses", stops)
        with pytest.raises(KeyboardInterrupt):
            training.fit(spec, rooms(), folder)
        monkeypatch.setattr(fitting, "epoch_losses", one_epoch)
        return folder

    return stop


def rooms() -> data.Dataset:
    return data.load("rooms", tasks="sd", split="train", size=16, limit=16)


def test_a_damaged_state_to_resume_from_is_set_aside(stopped, tmp_path):
    spec, other = (s.model_copy(update={"epochs": 3}) for s in (SPEC, OTHER))
    training.fit(spec, rooms(), tmp_path / "whole")
    expected = training.checkpoint(tmp_path / "whole", 3).read_bytes()
    folder, foreign = stopped(spec), stopped(other) / "resume.safetensors"
    kept = shutil.copytree(folder, tmp_path / "kept")
    state = folder / "resume.safetensors"
    damages = {
        "a bit of a tensor": lambda: flip(state, state.stat().st_size - 1000),
        "a bit of the history": lambda: flip(state, state.read_bytes().index(b"epoch") + 1),
        "foreign": lambda: shutil.copy(foreign, state),
        "a checkpoint": lambda: flip(training.checkpoint(folder, 1), 5000),
    }
    for number, (name, damage) in enumerate(damages.items(), start=1):
        shutil.copytree(kept, folder, dirs_exist_ok=True)
        training.checkpoint(folder, 3).unlink(missing_ok=True)
        damage()
        with pytest.warns(UserWarning, match=f"resume.safetensors is damaged .* resume.safetensors.damaged-{number}"):
            history = training.fit(spec, rooms(), folder)
        assert len(history) == 3, name
        assert training.checkpoint(folder, 3).read_bytes() == expected, name


def test_a_state_of_another_version_is_set_aside(stopped, monkeypatch):
    """Its optimizer's state has other shapes, which an optimizer takes as they are."""
    spec = SPEC.model_copy(update={"epochs": 3})
    monkeypatch.setattr("mtrlib.training.fitting._FORMAT", "1")
    folder = stopped(spec)
    monkeypatch.undo()
    with pytest.warns(UserWarning, match="resume.safetensors is damaged .*it is of another version of this package"):
        assert len(training.fit(spec, rooms(), folder)) == 3


def filled(fill_value: int = 0):
    def fill(arrays: dict) -> dict[int, str]:
        arrays["values"][:] = np.arange(1000).reshape(10, 100) + fill_value
        arrays["mask"][:] = True
        return {3: "a note"}

    layout = {"values": ((10, 100), np.float32), "mask": ((10,), np.bool_)}
    return cache.entry("part", [str(fill_value)], layout, fill)


@pytest.fixture
def own_cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("MTRLIB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.mark.parametrize("damage", [*DAMAGE, "missing"])
@pytest.mark.parametrize("name", ["values.npy", "mask.npy", "manifest.json", "manifest.json.sha256"])
def test_a_damaged_cache_entry_is_set_aside_and_made_again(own_cache, name, damage):
    entry, other = filled(), filled(1)
    if damage == "missing":
        (entry / name).unlink()
    elif damage == "one bit":
        flip(entry / name, 10)
    elif damage == "truncated":
        (entry / name).write_bytes((entry / name).read_bytes()[:-5])
        if name.endswith("256"):
            (entry / name).write_bytes(b"0" * 40)
    else:
        DAMAGE[damage](entry / name, other / name)
        if (name, damage) == ("mask.npy", "foreign"):
            np.save(entry / name, np.zeros(10, bool))
    with pytest.warns(UserWarning, match=f"{entry} is damaged") as caught:
        assert filled() == entry
    assert len(caught) == 1
    assert (own_cache / f"{entry.name}.damaged-1").is_dir()
    arrays, notes = cache.read(filled())
    assert torch.equal(arrays["values"].flatten(), torch.arange(1000.0))
    assert notes == {3: "a note"}


def test_a_cache_entry_of_another_key_is_refused(own_cache):
    entry, other = filled(), filled(1)
    shutil.rmtree(entry)
    shutil.copytree(other, entry)
    with pytest.warns(UserWarning, match=f"it is {other.name}"):
        assert cache.read(filled())[0]["values"][0, 0] == 0


def test_an_entry_is_compared_once_a_process_and_again_when_it_changes(own_cache, monkeypatch):
    entry = filled()
    compared = []
    sha256 = cache._sha256
    monkeypatch.setattr(cache, "_sha256", lambda path: compared.append(path.name) or sha256(path))
    for _ in range(3):
        filled()
    assert sorted(compared) == ["mask.npy", "values.npy"]
    flip(entry / "values.npy", 500)
    with pytest.warns(UserWarning, match="values.npy is missing or not what was written"):
        filled()


def test_an_entry_that_another_process_sets_aside_meanwhile_is_made_again(own_cache, monkeypatch):
    entry, compare, calls = filled(), cache._compare, []

    def gone_once(folder: Path) -> None:
        calls.append(folder)
        if len(calls) == 1:
            shutil.rmtree(folder)
        compare(folder)

    monkeypatch.setattr(cache, "_compare", gone_once)
    assert filled() == entry
    assert cache.read(entry)[0]["values"].shape == (10, 100)


def test_a_store_of_another_format_is_refused_with_what_to_do(path):
    (path / "format").unlink()
    with pytest.raises(ValueError, match="an older one.*Move that folder away or give another store"):
        Store(path)
    (path / "format").write_text("mtrlib store 9")
    with pytest.raises(ValueError, match="should have the format 'mtrlib store 3'. Found 'mtrlib store 9'"):
        Store(path)
    (path / "format").write_text(FORMAT)
    assert Store(path).has_model(SPEC)
    assert Store(path.parent / "new").path.exists() is False
