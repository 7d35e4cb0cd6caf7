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
from mtrlib.data import checks, decoding


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
    lines = capsys.readouterr().out.splitlines()
    for split in ("train", "test"):
        assert any(
            line.startswith(f"{split}: no files of s, d, k, K, e, E, p, r: they cannot be used.") for line in lines
        )
    assert lines[-1] == "Nothing would stop a run of D, n, A; one of another task would stop."
    assert main(["check-data", "taskonomy", str(tmp_path), "--tasks", "Dd"]) == 1
    written = capsys.readouterr()
    assert "has no files of d" in written.err
    for path in (tmp_path / "rgb").glob("point_1200*"):
        path.unlink()
    assert main(["check-data", "taskonomy", str(tmp_path)]) == 1
    assert "has no frames to test" in capsys.readouterr().err


@pytest.mark.parametrize("there", ["nowhere", "test only"])
def test_a_data_set_without_two_tasks_is_not_ready(tmp_path, capsys, there):
    """The images are labels of A; a task needs its files in both splits."""
    pixels = {"rgb": np.zeros((8, 8, 3), np.uint8), "depth_euclidean": np.full((8, 8), 100, np.uint16)}
    for point in (0, 1200):
        for domain in pixels if (there, point) == ("test only", 1200) else ["rgb"]:
            (tmp_path / domain).mkdir(exist_ok=True)
            Image.fromarray(pixels[domain]).save(tmp_path / domain / f"point_{point}_view_0_domain_{domain}.png")
    assert main(["check-data", "taskonomy", str(tmp_path)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "A run would stop: it should have two tasks with files. Found A."
    absent = [line.partition(":")[0] for line in lines if "no files of s, d, D, n, k" in line]
    assert absent == (["train", "test"] if there == "nowhere" else ["train"])
    assert main(["check-data", "taskonomy", str(tmp_path), "--tasks", "A"]) == 0
    assert capsys.readouterr().out.endswith("Nothing would stop a run.\n")


def classes_of(root: Path, number: int, pixels: dict[int, int]) -> None:
    """One task of `number` classes; each image has as many pixels of each class as `pixels` says, others void."""
    task = {"letter": "s", "kind": "classes", "classes": number, "files": "s/{id}.png", "invalid": 255}
    description = yaml.safe_load((root / "dataset.yaml").read_text()) | {"tasks": [task]}
    (root / "dataset.yaml").write_text(yaml.safe_dump(description))
    labels = np.full(24 * 24, 255, np.uint8)
    held = np.repeat(list(pixels), list(pixels.values()))
    labels[: len(held)] = held
    for image in range(6):
        Image.fromarray(labels.reshape(24, 24)).save(root / "s" / f"{image}.png")
        Image.new("RGB", (24, 24)).save(root / "x" / f"{image}.png")


def test_classes_that_occur_are_shown_by_their_share(root, capsys):
    classes_of(root, 183, {0: 150, 7: 50})
    assert main(["check-data", "folder", str(root)]) == 0
    text = capsys.readouterr().out
    shares = ["    class 0 75 %", "    class 7 25 %"]
    expected = ["s, train: 2 of 183 classes occur in 4 images", *shares, "s, test: 2 of 183 classes occur in 2 images"]
    assert "\n".join([*expected, *shares, ""]) in text
    assert text.count("class ") == 4


@pytest.mark.parametrize(
    ("occurring", "last"),
    [(12, "    class 11 7.69 %"), (13, "    and 1 other 7.14 %"), (183, "    and 171 others, together 92.9 %")],
)
def test_of_many_classes_a_dozen_are_shown_and_the_rest_together(root, occurring, last):
    classes_of(root, 183, {0: 2} | dict.fromkeys(range(1, occurring), 1))
    lines = checks.class_shares(data.check("folder", root)).splitlines()
    train = lines[: len(lines) // 2]
    assert train[0] == f"s, train: {occurring} of 183 classes occur in 4 images"
    assert len(train) == 1 + 12 + (occurring > 12)
    assert train[1] == f"    class 0 {200 / (occurring + 1):.3g} %"
    assert train[-1] == last


def test_labels_that_were_not_read_have_no_shares(root):
    """A bad label, one without a bad image's size, and labels without a valid pixel."""
    classes_of(root, 2, {0: 3, 1: 1})
    (root / "s" / "0.png").write_bytes(b"no")
    (root / "x" / "1.png").write_bytes(b"no")
    for number in (4, 5):
        Image.fromarray(np.full((24, 24), 255, np.uint8)).save(root / "s" / f"{number}.png")
    table = data.check("folder", root)
    labels = table[table.task == "s"]
    assert (labels.files.tolist(), labels.bad.tolist(), labels["read"].tolist()) == ([4, 2], [1, 0], [2, 2])
    assert checks.class_shares(table).splitlines() == [
        "s, train: 2 of 2 classes occur in 2 images",
        "    class 0 75 %",
        "    class 1 25 %",
        "s, test: 0 of 2 classes occur in 2 images",
    ]


@pytest.mark.parametrize("name", ["rooms", "other"])
def test_a_data_set_without_files_is_refused(name, capsys):
    with pytest.raises(ValueError, match=f"taskonomy, .*, folder, a data set with files. Found name = '{name}'"):
        data.check(name, ".")
    assert main(["check-data", name, "."]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
