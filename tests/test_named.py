"""Photographs with depth by the name of their layout, frames matched in time, and honest splits of videos."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from pydantic import ValidationError
from tqdm import tqdm

from mtrlib import data
from mtrlib.__main__ import main
from mtrlib.data import checks, decoding, derived, description
from mtrlib.specs import DataSpec, ModelSpec
from mtrlib.store import Store

TEN = derived.LETTERS


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(decoding, "bar", lambda **_: tqdm(disable=True))
    monkeypatch.setenv("MTRLIB_CACHE", str(tmp_path_factory.mktemp("cache")))


def save(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, values) if path.suffix == ".npy" else Image.fromarray(values).save(path)


def photograph(path: Path, seed: int = 0) -> None:
    save(path, np.random.default_rng(seed).integers(0, 256, (12, 16, 3), dtype=np.uint8))


def measured(path: Path, raw: float, *, hole: float = 0, kind: type = np.uint16) -> None:
    """A wall at one depth, its first row without any."""
    depth = np.full((12, 16), raw, kind)
    depth[0] = hole
    save(path, depth[..., None] if path.suffix == ".npy" else depth)


def describe(root: Path, **fields) -> Path:
    root.mkdir(exist_ok=True)
    (root / "dataset.yaml").write_text(yaml.safe_dump(fields))
    return root


def load(root: Path, split: str = "train", tasks: str = "d", size: int = 12, **options) -> data.Dataset:
    return data.load("folder", tasks=tasks, split=split, size=size, root=root, **options)


def ids(root: Path) -> tuple[tuple[str, ...], tuple[str, ...]]:
    return load(root).ids, load(root, "test").ids


def metres(root: Path, split: str = "train") -> list[float]:
    """Depth of each frame in the middle; its first row has none."""
    loaded = load(root, split)
    assert not loaded.masks["d"][:, 0].any()
    assert loaded.masks["d"][:, 1:].all()
    return ((2 ** (16 * loaded.targets["d"][:, 0, 6, 6].double()) - 1) / 512).tolist()


def has_ten_tasks(root: Path) -> None:
    loaded = load(root, tasks=TEN)
    assert "".join(data.tasks("folder", root)) == TEN == "".join(loaded.targets)
    assert all(task.is_papers for task in loaded.tasks.values())
    assert not data.check("folder", root).stops.any()


def tum(root: Path, frames: int = 10, *, late: float = 0.008, raw: int = 5000) -> None:
    """A sequence at 30 Hz, whose depth is some seconds later than its images, in fifths of a millimetre."""
    lists = {"rgb": ["# color images"], "depth": ["# depth maps"]}
    for row in range(frames):
        for kind, second in {"rgb": 1305031102.175304, "depth": 1305031102.175304 + late}.items():
            name = f"{second + row / 30:.6f}"
            lists[kind].append(f"{name} {kind}/{name}.png")
            if kind == "rgb":
                photograph(root / f"{kind}/{name}.png", row)
            else:
                measured(root / f"{kind}/{name}.png", raw + 10 * row)
    for kind, lines in lists.items():
        (root / f"{kind}.txt").write_text("\n".join(lines))


def test_a_foreign_set_in_the_layout_of_tum_has_ten_tasks_from_ten_lines(tmp_path):
    tum(tmp_path)
    (tmp_path / "dataset.yaml").write_text("""
images: "rgb/{id}.png"
depth:
  files: "depth/{id}.png"
  match: {within: 0.02}
  scale: 0.0002
  camera: [14.0, 14.0, 7.5, 5.5]
  letters: dDnkKeEprA
splits: {by: time, test: 0.2, gap: 1}
""")
    has_ten_tasks(tmp_path)
    train, test = ids(tmp_path)
    assert (len(train), len(test)) == (7, 2), "and one between them"
    assert [float(name) for name in (*train, *test)] == sorted(float(name) for name in (*train, *test))
    assert metres(tmp_path) == pytest.approx([1 + 0.002 * row for row in range(7)], abs=1e-4)
    assert metres(tmp_path, "test") == pytest.approx([1.016, 1.018], abs=1e-4)


def test_times_come_from_lists_and_pairs_are_made_from_the_closest_on(tmp_path):
    """2 is 3 ms from y, which 1 would have, too: 1 takes z, and 3 and w have no partner."""
    times = {"rgb": {"3": 0.0, "2": 0.033, "1": 0.047}, "depth": {"y": 0.036, "z": 0.064, "w": 1.0}}
    for kind, listed in times.items():
        for row, name in enumerate(listed):
            if kind == "rgb":
                photograph(tmp_path / f"rgb/{name}.png")
            else:
                measured(tmp_path / f"depth/{name}.png", 1000 * (1 + row))
        lines = [f"{time}, {kind}/{name}.png" for name, time in listed.items()]
        (tmp_path / f"{kind}.txt").write_text("\n".join(["# time, file", "", *lines, " 5.0  depth/gone.png # lost"]))
    describe(tmp_path, like="tum_rgbd", depth={"scale": 0.001}, splits={"train": "*", "test": ["none"]})
    assert load(tmp_path).ids == ("2", "1"), "in the order of time"
    assert metres(tmp_path) == pytest.approx([1, 2], rel=1e-4)
    describe(tmp_path, like="tum_rgbd", splits={"train": ["2", "3"], "test": ["1"]})
    with pytest.raises(ValueError, match="depth of 3 is missing: 3 has no depth"):
        load(tmp_path)
    describe(tmp_path, like="tum_rgbd", depth={"match": {"within": 0.001}}, splits={"train": "*", "test": ["none"]})
    with pytest.raises(ValueError, match="times in seconds and paths: could not convert string to float: '[wyz]'"):
        load(tmp_path)
    (tmp_path / "depth.txt").write_text("5 depth/y.png")
    describe(tmp_path, like="tum_rgbd", splits={"train": "*", "test": ["none"]})
    with pytest.raises(ValueError, match="should hold depth within 0.02 s of an image. Found none"):
        load(tmp_path)


def frames(root: Path, names: str = "0123456789") -> dict:
    for name in names:
        photograph(root / f"a/{name}.png")
        measured(root / f"d/{name}.png", 1000)
    depth = {"files": "d/{id}.png", "scale": 0.001, "camera": [14.0, 14.0, 7.5, 5.5], "letters": "d"}
    return {"images": "a/{id}.png", "depth": depth, "splits": {"by": "time", "test": 0.2}}


@pytest.mark.parametrize(
    ("splits", "train", "test"),
    [
        ({"by": "time", "test": 0.2}, "01234567", "89"),
        ({"by": "time", "test": 0.2, "gap": 3}, "01234", "89"),
        ({"by": "time", "test": 0.3, "gap": 0.25}, "01234", "789"),
        ({"by": "time", "test": 0.01}, "012345678", "9"),
        ({"train": "[0-4]", "test": ["9", "5"]}, "01234", "95"),
    ],
)
def test_splits_of_a_video(tmp_path, splits, train, test):
    describe(tmp_path, **frames(tmp_path) | {"splits": splits})
    assert ids(tmp_path) == (tuple(train), tuple(test))


def test_splits_by_folder(tmp_path):
    what = frames(tmp_path) | {"images": "{folder}/x/{id}.png", "ids": "{folder}/{id}"}
    what["depth"]["files"] = "{folder}/y/{id}.png"
    for folder in ("room_1", "room_2a", "room_2b", "room_10"):
        photograph(tmp_path / folder / "x/0.png")
        measured(tmp_path / folder / "y/0.png", 1000)
    expected = {
        ("room_1/0", "room_2a/0", "room_2b/0"): {"by": "folder", "test": 0.25},
        ("room_1/0", "room_2a/0"): {"by": "folder", "train": ["room_1", "room_2a", "none"], "test": "room_*[0b]"},
        ("room_10/0",): {"by": "folder", "train": "rooms10", "test": "room_2?"},
    }
    for train, splits in expected.items():
        describe(tmp_path, **what | {"splits": splits})
        assert load(tmp_path).ids == train
        assert not {*load(tmp_path, "test").ids} & {*train}
    describe(tmp_path, **what | {"splits": {"by": "folder", "folder": "room_?", "test": 0.3}})
    assert ids(tmp_path) == (("room_1/0", "room_10/0"), ("room_2a/0", "room_2b/0"))


WRONG = {
    "like should be one of nyuv2, cityscapes, seven_scenes, tum_rgbd, scannet, diode. Found 'kitti'": {"like": "kitti"},
    "like should be one of nyuv2, .*. Found \\['diode'\\]": {"like": ["diode"]},
    "splits: splits should have train and test, or ratio alone, or by": {"splits": {"by": "time", "train": "a"}},
    "splits.test: Input should be less than 1. Found 20": {"splits": {"by": "time", "test": 20}},
    "splits.gap: .* greater than or equal to 0. Found -1": {"splits": {"by": "time", "test": 0.2, "gap": -1}},
    "gap beside by: time alone": {"splits": {"by": "folder", "test": 0.2, "gap": 3}},
    "splits.by: Input should be 'time' or 'folder'. Found 'place'": {"splits": {"by": "place", "test": 0.2}},
    "splits.train should match images. Found {'test': 0.2, 'by': 'time', 'gap': 30} and 10 ids such as '0'": {
        "splits": {"by": "time", "test": 0.2, "gap": 30}
    },
    "depth.match.within: Input should be greater than 0": {"match": {"within": 0.0}},
    "a path may hold {split} and {folder}, and no other braces, found '{id}.txt'": {"camera": "{id}.txt"},
    "should not leave the folder of the data, found '../c.txt'": {"camera": {"*": "../c.txt"}},
    "fx, fy, cx, cy, the first two above 0": {"camera": {"*": [0.0, 1.0, 2.0, 3.0]}},
    "may hold {folder} where that of the images does": {"camera": "{folder}/c.txt"},
    "a/0.png should have a camera. Found those of \\*kinect\\*": {"camera": {"*kinect*": [1.0, 1.0, 2.0, 3.0]}},
    "should hold mask n/{id}.png. Found no ": {"mask": "n/{id}.png"},
    "m/0.png is missing: 0 has no mask.": {"mask": "m/{id}.png"},
}


@pytest.mark.parametrize("message", WRONG)
def test_a_wrong_description_is_one_line(tmp_path, message):
    what, change = frames(tmp_path), WRONG[message]
    photograph(tmp_path / "m/9.jpg")
    measured(tmp_path / "m/1.png", 1)
    whole = change.keys() & {"like", "splits"}
    describe(tmp_path, **what | (change if whole else {"depth": what["depth"] | change}))
    with pytest.raises(ValueError, match=message.replace("{", "\\{").replace("}", "\\}")) as error:
        load(tmp_path)
    assert "\n" not in str(error.value)
    assert str(tmp_path) in str(error.value)


def test_a_camera_of_four_numbers_is_that_of_a_matrix(tmp_path):
    what, found = frames(tmp_path), []
    what["depth"] |= {"letters": "D", "camera": "c.txt"}
    describe(tmp_path, **what)
    for text in ("14 15 7.5 5.5", "14,0,7.5,0,15,5.5,0,0,1", "14 0 7.5 0 0 15 5.5 0 0 0 1 0 0 0 0 1", "14 15 5.5 7.5"):
        (tmp_path / "c.txt").write_text(text)
        found.append(load(tmp_path, tasks="D").targets["D"])
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])
    assert not torch.equal(found[0], found[3])
    for text in ("14 15 nan 5.5", "14 -15 7.5 5.5", "14 15 7.5"):
        (tmp_path / "c.txt").write_text(text)
        with pytest.raises(ValueError, match="c.txt should hold a camera's matrix of 3 x 3 numbers. Found"):
            load(tmp_path, tasks="D")


def test_a_layout_is_a_name_of_a_data_set(tmp_path):
    """As it is `like` it; the camera's file and the lists of times are of its digest, too."""
    tum(tmp_path)
    loaded = data.load("tum_rgbd", tasks=TEN, split="train", size=12, root=tmp_path)
    assert set(description.DESCRIBED) <= set(data.NAMES)
    digest = data.digest("tum_rgbd", tmp_path)
    spec = DataSpec(name="tum_rgbd", root=str(tmp_path), digest=digest, size=16)
    assert "".join(spec.tasks) == TEN == data.letters("tum_rgbd")
    assert len(Store(tmp_path / "store").data(ModelSpec(data=spec, tasks="dn"), "train")) == 8
    with pytest.raises(ValidationError, match='data.digest\\("tum_rgbd", root\\). Found None'):
        DataSpec(name="tum_rgbd", root=str(tmp_path))
    assert not data.check("tum_rgbd", tmp_path).stops.any()
    (tmp_path / "rgb.txt").write_text((tmp_path / "rgb.txt").read_text() + "\n")
    assert data.digest("tum_rgbd", tmp_path) != digest
    describe(tmp_path, like="tum_rgbd")
    like = load(tmp_path, tasks=TEN)
    assert like.ids == loaded.ids
    assert all(torch.equal(like.targets[letter], loaded.targets[letter]) for letter in TEN)


def test_like_seven_scenes(tmp_path):
    for sequence in (1, 2, 10):
        for frame in range(10):
            measured(tmp_path / f"seq-{sequence:02}/frame-{frame:06}.depth.png", 1000 * sequence, hole=65535)
            photograph(tmp_path / f"seq-{sequence:02}/frame-{frame:06}.color.png")
    describe(tmp_path, like="seven_scenes")
    train, test = ids(tmp_path)
    assert test == tuple(f"seq-{sequence:02}/frame-{frame:06}" for sequence in (1, 2, 10) for frame in (8, 9))
    assert len(train) == 24, "no lists: the end of each video"
    (tmp_path / "TrainSplit.txt").write_text("sequence1\nsequence2\n")
    (tmp_path / "TestSplit.txt").write_text("sequence10\nsequence11\n")
    train, test = ids(tmp_path)
    assert {name[:6] for name in train} == {"seq-01", "seq-02"}
    assert {name[:6] for name in test} == {"seq-10"}
    assert (len(train), len(test)) == (20, 10)
    assert metres(tmp_path, "test") == pytest.approx([10] * 10, rel=1e-4)
    has_ten_tasks(tmp_path)


def test_like_tum_rgbd_one_sequence_or_several(tmp_path):
    names = [f"rgbd_dataset_freiburg{number}_desk" for number in (1, 2, 3)] + ["office"]
    for number, name in enumerate(names):
        tum(tmp_path / name, raw=5000 * (1 + number))
        describe(tmp_path / name, like="tum_rgbd")
        assert metres(tmp_path / name) == pytest.approx([1 + number + 0.002 * row for row in range(8)], abs=2e-3)
    has_ten_tasks(tmp_path / names[0])
    describe(tmp_path, like="tum_rgbd")
    train, test = ids(tmp_path)
    assert (len(train), len(test)) == (32, 8), "the end of each"
    assert train[0].startswith("office/")
    together = load(tmp_path, tasks="D")
    corners = set()
    for name in names:
        one = load(tmp_path / name, tasks="Dd")
        rows = [row for row, each in enumerate(train) if each.startswith(name)]
        assert torch.equal(together.targets["D"][rows], one.targets["D"]), "each has its own camera"
        corners.add(round((one.targets["D"] - one.targets["d"])[0, 0, -1, 0].item(), 4))
    assert len(corners) == 4


def test_like_scannet_one_scan_or_several(tmp_path):
    for scan in ("scene0000_00", "scene0000_01", "scene0001_00"):
        for frame in range(10):
            root = tmp_path / scan
            root.joinpath("color").mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((24, 32, 3), 9 * frame, np.uint8)).save(root / f"color/{frame}.jpg")
            measured(root / f"depth/{frame}.png", 2000)
        focal = 14.0 if scan.endswith("0000_00") else 28.0
        (root / "intrinsic").mkdir()
        (root / "intrinsic/intrinsic_depth.txt").write_text(f"{focal} 0 7.5 0\n0 {focal} 5.5 0\n0 0 1 0\n0 0 0 1\n")
        describe(root, like="scannet")
        assert ids(root) == (tuple("01234567"), ("8", "9"))
        assert metres(root) == pytest.approx([2] * 8, rel=1e-4)
    has_ten_tasks(root)
    describe(tmp_path, like="scannet")
    train, test = ids(tmp_path)
    assert {name[:12] for name in train} == {"scene0000_00", "scene0000_01"}, "one scene is in one split"
    assert {name[:12] for name in test} == {"scene0001_00"}
    distance = load(tmp_path, tasks="D").targets["D"][:, 0, 6, 0]
    assert (distance[:10] > distance[10:]).all(), "a shorter lens sees further aside"
    (tmp_path / "scannetv2_train.txt").write_text("scene0001_00\nscene0002_00\n")
    (tmp_path / "scannetv2_val.txt").write_text("scene0000_00\n")
    train, test = ids(tmp_path)
    assert {name[:12] for name in train} == {"scene0001_00"}, "a scan that is not there is passed over"
    assert {name[:12] for name in test} == {"scene0000_00"}


def test_like_diode_whole_or_a_part(tmp_path):
    for split, scenes in {"train": (3, 4), "val": (19, 20)}.items():
        for scene in scenes:
            for frame in range(3):
                stem = tmp_path / f"{split}/indoors/scene_{scene:05}/scan_{scene:05}/{scene}_{frame}"
                photograph(stem.with_name(f"{stem.name}.png"))
                measured(stem.with_name(f"{stem.name}_depth.npy"), float(scene), hole=1.0, kind=np.float32)
                mask = np.ones((12, 16), np.float32)
                mask[0] = 0
                save(stem.with_name(f"{stem.name}_depth_mask.npy"), mask)
    describe(tmp_path, like="diode")
    assert metres(tmp_path) == pytest.approx([3, 3, 3, 4, 4, 4], rel=1e-4)
    assert metres(tmp_path, "test") == pytest.approx([19, 19, 19, 20, 20, 20], rel=1e-4)
    has_ten_tasks(tmp_path)
    for part in ("val", "val/indoors"):
        describe(tmp_path / part, like="diode")
        assert metres(tmp_path / part) == pytest.approx([19] * 3, rel=1e-4)
        assert metres(tmp_path / part, "test") == pytest.approx([20] * 3, rel=1e-4)
    save(stem.with_name(f"{stem.name}_depth_mask.npy"), np.ones((12, 15)))
    with pytest.raises(ValueError, match="_depth_mask.npy should be 16 x 12 like its depth. Found 15 x 12"):
        load(tmp_path, "test")


def video(root: Path, frames: int = 40) -> None:
    """A camera that turns over a wide picture, a little each frame."""
    wide = np.random.default_rng(0).integers(0, 256, (4, 12), dtype=np.uint8)
    wide = np.asarray(Image.fromarray(wide).resize((400, 120), Image.Resampling.BICUBIC))
    for row in range(frames):
        seen = wide[:, 4 * row : 4 * row + 160]
        save(root / f"x/{row}.png", np.stack([seen] * 3, axis=-1))
        save(root / f"h/{row}.npy", np.ones(seen.shape))


def test_near_duplicates_across_splits_are_counted_and_a_gap_ends_them(tmp_path, capsys):
    video(tmp_path)
    height = {"letter": "h", "kind": "regression", "files": "h/{id}.npy"}
    warnings = {}
    for splits in ({"ratio": 0.75}, {"by": "time", "test": 0.25}, {"by": "time", "test": 0.25, "gap": 10}):
        describe(tmp_path, images="x/{id}.png", tasks=[height], splits=splits)
        table = data.check("folder", tmp_path)
        assert not table.stops.any()
        assert set(table.warning[table.task != "images"]) == {""} == {table.warning[0]}, "that of the images to test"
        warnings[str(splits)] = table.set_index(["split", "task"]).warning["test", "images"]
    at_random, touching, apart = warnings.values()
    count = len(load(tmp_path, "test", "h").ids)
    assert count == 10
    assert int(at_random.split()[0]) > 5
    assert touching.startswith(f"{int(touching.split()[0])} of 10 images to test are near-duplicates")
    assert int(touching.split()[0]) in (1, 2)
    assert "first: 30 like 29. " in touching
    assert "gap: 30}" in touching
    assert apart == ""
    describe(tmp_path, images="x/{id}.png", tasks=[height], splits={"by": "time", "test": 0.25})
    assert main(["check-data", "folder", str(tmp_path)]) == 0, "a warning stops nothing"
    assert touching in capsys.readouterr().out


def test_difference_hash_by_hand():
    brightness = np.repeat(np.uint8([10, 20, 20, 30, 0, 0, 1, 9, 8]), 16)
    bits = checks.difference_hash(np.broadcast_to(brightness, (3, 128, 144))).tobytes()
    assert bits == bytes([0b10100110] * 8)
    assert checks.difference_hash(np.full((3, 30, 50), 7, np.uint8)) == 0


def test_a_digest_is_of_cameras_times_and_what_ships_too(tmp_path):
    """So that a model trained with one camera is not taken for another's."""
    tum(tmp_path)
    fields = {"images": "rgb/{id}.png", "splits": {"by": "time", "test": 0.2}}
    depth = {"files": "depth/{id}.png", "camera": "camera.txt", "letters": "dD", "match": {"within": 0.02}}
    (tmp_path / "camera.txt").write_text("14 0 7.5 0 14 5.5 0 0 1")
    describe(tmp_path, **fields, depth=depth)
    digests = [data.digest("folder", tmp_path)]
    assert data.digest("folder", tmp_path) == digests[0]
    before = load(tmp_path, tasks="D").targets["D"]
    (tmp_path / "camera.txt").write_text("28 0 7.5 0 14 5.5 0 0 1")
    digests.append(data.digest("folder", tmp_path))
    assert not torch.equal(load(tmp_path, tasks="D").targets["D"], before), "and decoded anew"
    describe(tmp_path, like="tum_rgbd")
    digests.append(data.digest("folder", tmp_path))
    (tmp_path / "rgb.txt").write_text((tmp_path / "rgb.txt").read_text() + "\n")
    digests.append(data.digest("folder", tmp_path))
    assert len({*digests}) == 4
    assert data.digest("nyuv2", tmp_path) is data.digest("rooms", None) is None
