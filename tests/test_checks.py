"""Checking a data set: what is counted, and that the command ends with 1 exactly where a run would stop."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from tqdm import tqdm

from mtrlib import data
from mtrlib.__main__ import main
from mtrlib.data import decoding


@pytest.fixture(autouse=True)
def quiet(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(decoding, "bar", lambda **_: tqdm(disable=True))
    monkeypatch.setenv("MTRLIB_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture
def root(tmp_path) -> Path:
    """Six images of 4 x 6 pixels, four to train."""
    tasks = [
        {"letter": "s", "kind": "classes", "classes": ["a", "b"], "files": "s/{id}.png", "invalid": 9},
        {"letter": "h", "kind": "regression", "files": "h/{id}.npy", "scale": 2.0},
    ]
    description = {"images": "x/{id}.png", "tasks": tasks, "splits": {"train": "[0-3]", "test": "[45]"}}
    (tmp_path / "dataset.yaml").write_text(yaml.safe_dump(description))
    for folder in "xsh":
        (tmp_path / folder).mkdir()
    for number in range(6):
        labels = np.zeros((4, 6), np.uint8)
        labels[0, 0], labels[1, :3] = 9, 1
        Image.fromarray(labels).save(tmp_path / "s" / f"{number}.png")
        Image.fromarray(np.full((4, 6, 3), number, np.uint8)).save(tmp_path / "x" / f"{number}.png")
        np.save(tmp_path / "h" / f"{number}.npy", np.full((4, 6), 1.0 + number))
    return tmp_path


def test_what_a_check_counts(root):
    table = data.check("folder", root).set_index(["split", "task"])
    assert list(table.index) == [(split, task) for split in ("train", "test") for task in ("images", "s", "h")]
    assert table.files.tolist() == [4, 4, 4, 2, 2, 2]
    assert (table[["missing", "bad"]] == 0).all(axis=None)
    assert not table.stops.any()
    segments, height = table.loc[("train", "s")], table.loc[("train", "h")]
    assert segments.classes == {"a": 4 * 20, "b": 4 * 3}
    assert segments.valid == pytest.approx(23 / 24)
    assert (segments.low, segments.high, height.low, height.high, height.valid) == (0, 1, 2, 8, 1)
    assert (table.loc[("test", "images")].low, table.loc[("test", "images")].high) == (4, 5)


FAULTS = {
    "a missing label": (lambda root: (root / "h" / "2.npy").unlink(), "2.npy is missing: 2 has no labels of h", "h"),
    "a class too many": (
        lambda root: Image.fromarray(np.full((4, 6), 2, np.uint8)).save(root / "s" / "5.png"),
        "5.png should hold classes 0 to 1. Found 2",
        "s",
    ),
    "a bad image": (lambda root: (root / "x" / "1.png").write_bytes(b"no"), "Found 2 bytes of no image", "images"),
    "no label at all": (lambda root: (root / "h").rename(root / "g"), "should hold labels of h h/{id}.npy", "h"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_the_command_ends_with_1_where_a_run_would_stop(root, fault, capsys):
    assert main(["check-data", "folder", str(root)]) == 0
    assert "Nothing would stop a run." in capsys.readouterr().out
    change, message, task = FAULTS[fault]
    change(root)
    assert main(["check-data", "folder", str(root)]) == 1
    written = capsys.readouterr()
    assert message in written.err
    assert "A run would stop." in written.out
    table = data.check("folder", root)
    assert set(table[table.stops].task) == {task}
    split = table[table.stops].split.iloc[0]
    with pytest.raises(ValueError):  # and so it does
        data.load("folder", tasks="sh", split=split, size=4, root=root)


def test_a_faulty_description_is_one_line_and_no_traceback(root):
    (root / "dataset.yaml").write_text("images: [")
    command = [sys.executable, "-m", "mtrlib", "check-data", "folder", str(root)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[1])
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert str(root / "dataset.yaml") in done.stderr


def test_labels_that_a_release_need_not_have_stop_nothing_unless_asked_for(tmp_path, capsys):
    """Taskonomy has eleven domains, which few have downloaded all; its normals have their mask in another file."""
    depth = np.full((8, 8), 100, np.uint16)
    depth[0] = 65000
    frame = {
        "rgb": np.zeros((8, 8, 3), np.uint8),
        "depth_euclidean": depth,
        "normal": np.full((8, 8, 3), 255, np.uint8),
    }
    for point in (0, 1, 1200):
        for domain, pixels in frame.items():
            (tmp_path / domain).mkdir(exist_ok=True)
            Image.fromarray(pixels).save(tmp_path / domain / f"point_{point}_view_0_domain_{domain}.png")
    table = data.check("taskonomy", tmp_path)
    assert not table.stops.any()
    train = table[table.split == "train"].set_index("task")
    assert train.files[train.files > 0].to_dict() == {"images": 2, "D": 2, "n": 2, "A": 2}
    assert train.loc["n"].valid == pytest.approx(56 / 64)
    assert "has no files of d" in train.loc["d"].problem
    assert main(["check-data", "taskonomy", str(tmp_path)]) == 0
    assert main(["check-data", "taskonomy", str(tmp_path), "--tasks", "Dd"]) == 1
    assert "has no files of d" in capsys.readouterr().err
    for path in (tmp_path / "rgb").glob("point_1200*"):
        path.unlink()
    assert main(["check-data", "taskonomy", str(tmp_path)]) == 1
    assert "has no frames to test" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["rooms", "other"])
def test_a_data_set_without_files_is_refused(name, capsys):
    with pytest.raises(ValueError, match=f"taskonomy, .*, folder, a data set with files. Found name = '{name}'"):
        data.check(name, ".")
    assert main(["check-data", name, "."]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
