"""A folder that a dataset.yaml describes: what is read, and every fault as one line with the file and the value."""

from __future__ import annotations

import gc
import re
import shutil
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from pydantic import ValidationError
from raw_png import raw_png
from tqdm import tqdm

from mtrlib import data
from mtrlib.data import decoding, description, fields
from mtrlib.data.folder import read_label
from mtrlib.specs import AttackSpec, DataSpec, ModelSpec
from mtrlib.store import Store

SIZE = (20, 32)  # height, width: the square at the centre is columns 6 to 25


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(decoding, "bar", lambda **_: tqdm(disable=True))
    monkeypatch.setenv("MTRLIB_CACHE", str(tmp_path_factory.mktemp("cache")))


def described(**changes) -> dict:
    """Classes as 8-bit PNG, a depth as 16-bit PNG, a new task as NPY."""
    return {
        "images": "images/{id}.png",
        "tasks": [
            {
                **{"letter": "s", "kind": "classes", "classes": ["floor", "wall", "ball"]},
                **{"files": "plan/{id}.png", "invalid": 255},
            },
            {
                **{"letter": "d", "kind": "regression", "files": "depth/{id}.png", "scale": 0.001, "offset": -1},
                **{"invalid": 0, "loss": "squared", "error": "absolute error"},
            },
            {
                **{"letter": "v", "name": "flow", "kind": "regression", "channels": 2, "files": "flow/{id}.npy"},
                **{"error": "angle"},
            },
        ],
        "splits": {"train": "a_*", "test": "b_*"},
        **changes,
    }


def write(root: Path, description: dict | str) -> None:
    root.mkdir(exist_ok=True)
    (root / "dataset.yaml").write_text(description if isinstance(description, str) else yaml.safe_dump(description))


def arrays(name: str) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(sum(name.encode()))
    return {
        f"images/{name}.png": generator.integers(0, 256, (*SIZE, 3), dtype=np.uint8),
        f"plan/{name}.png": generator.choice([0, 1, 2, 255], SIZE).astype(np.uint8),
        f"depth/{name}.png": generator.integers(0, 5, SIZE, dtype=np.uint16) * 1000,
        f"flow/{name}.npy": generator.normal(size=(*SIZE, 2)).astype(np.float32),
    }


def save(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, values) if path.suffix == ".npy" else Image.fromarray(values).save(path)


@pytest.fixture
def root(tmp_path) -> Path:
    folder = tmp_path / "mine"
    write(folder, described())
    for name in ("a_2", "a_10", "b_1"):
        for path, values in arrays(name).items():
            save(folder / path, values)
    return folder


def load(root: Path, tasks: str = "sdv", split: str = "train", size: int = 20, **options) -> data.Dataset:
    return data.load("folder", tasks=tasks, split=split, size=size, root=root, **options)


def test_targets_and_masks_by_hand(root):
    dataset = load(root)
    assert dataset.ids == ("a_2", "a_10"), "2 comes before 10"
    assert load(root, split="test").ids == ("b_1",)
    square = slice(6, 26)
    raw = {path.split("/")[0]: values[:, square] for path, values in arrays("a_10").items()}
    assert np.array_equal(dataset.images[1].permute(1, 2, 0), raw["images"])
    valid = raw["plan"] != 255
    assert np.array_equal(dataset.masks["s"][1], valid)
    assert np.array_equal(dataset.targets["s"][1].numpy()[valid], raw["plan"][valid])
    assert np.array_equal(dataset.masks["d"][1], raw["depth"] > 0)
    expected = raw["depth"] * 0.001 - 1
    np.testing.assert_allclose(
        dataset.targets["d"][1, 0].numpy()[raw["depth"] > 0], expected[raw["depth"] > 0], rtol=1e-6
    )
    assert np.array_equal(dataset.targets["v"][1].permute(1, 2, 0), raw["flow"])
    assert dataset.masks["v"] is None
    half = load(root, size=10)  # at half the size the lower right pixel of four is taken, of all labels the same
    assert np.array_equal(half.targets["v"][1].permute(1, 2, 0), raw["flow"][1::2, 1::2])
    assert np.array_equal(half.masks["s"][1], valid[1::2, 1::2])


def test_definitions_come_from_the_description(root):
    tasks = data.tasks("folder", root)
    assert "".join(tasks) == data.letters("folder", root) == "sdv"
    assert (tasks["s"].channels, tasks["s"].class_names) == (3, ("floor", "wall", "ball"))
    assert (tasks["d"].name, tasks["d"].loss_name, tasks["d"].error_name) == ("z-depth", "squared", "absolute error")
    assert (tasks["v"].name, tasks["v"].channels, tasks["v"].unit) == ("flow", 2, "degrees")
    assert load(root, "vs").tasks == {"v": tasks["v"], "s": tasks["s"]}
    assert data.tasks("folder", root)["s"].class_names == ("floor", "wall", "ball")
    with pytest.raises(ValueError, match="letters out of 'sdv' for folder, at least one. Found tasks = 'sn'"):
        load(root, "sn")


def test_splits(root):
    for splits, expected in (
        ({"train": ["b_1", "a_2"], "test": "a_10"}, ("b_1", "a_2")),
        ({"train": "lists/train.txt", "test": ["b_1"]}, ("a_10",)),
    ):
        (root / "lists").mkdir(exist_ok=True)
        (root / "lists" / "train.txt").write_text("a_10\n\n")
        write(root, described(splits=splits))
        assert load(root).ids == expected
    write(root, described(splits={"ratio": 0.5}, tasks=[described()["tasks"][2]]))
    for number in range(40):
        for path, values in arrays(f"c_{number}").items():
            if path.startswith(("images", "flow")):
                save(root / path, values)
    train, test = (load(root, "v", split).ids for split in ("train", "test"))
    assert len(train) + len(test) == 43
    assert not set(train) & set(test)
    assert 8 <= len(train) <= 35
    (root / "images" / "a_2.png").unlink()
    assert set(load(root, "v").ids) == set(train) - {"a_2"}, "an image stays in its split whatever else there is"


def test_splits_by_folder_and_jpeg_images(tmp_path):
    label = {"letter": "s", "kind": "classes", "classes": 2, "files": "{split}/y/{id}.png"}
    write(tmp_path, {"images": "{split}/x/{id}.jpg", "tasks": [label], "splits": {"train": "one", "test": "two"}})
    for split in ("one", "two"):
        for name in ("0", "deep/1"):
            save(tmp_path / split / "x" / f"{name}.jpg", np.full((8, 8, 3), 99, np.uint8))
            save(tmp_path / split / "y" / f"{name}.png", np.ones((8, 8), np.uint8))
    dataset = load(tmp_path, "s", "test", 8)
    assert dataset.ids == ("two/0", "two/deep/1")
    assert (dataset.images == 99).all()
    assert (dataset.targets["s"] == 1).all()
    assert dataset.class_names == ("class 0", "class 1")


def test_folders_of_any_name_and_ids_without_that_of_the_split(tmp_path):
    label = {"letter": "s", "kind": "classes", "classes": 2, "files": "y/{folder}/{split}/{id}_l.png"}
    what = {"images": "x/{split}/{folder}/{id}_i.png", "tasks": [label], "splits": {"train": "one", "test": "two"}}
    for folder, name, value in (("b", "1", 0), ("a", "2", 1), ("a", "10", 0)):
        save(tmp_path / "x" / "one" / folder / f"{name}_i.png", np.full((8, 8, 3), value, np.uint8))
        save(tmp_path / "y" / folder / "one" / f"{name}_l.png", np.full((8, 8), value, np.uint8))
    for ids, expected in (("{id}", ("1", "2", "10")), ("{split}/{id}", ("one/1", "one/2", "one/10"))):
        write(tmp_path, what | {"ids": ids})
        dataset = load(tmp_path, "s", size=8)
        assert dataset.ids == expected
        assert dataset.images[:, 0, 0, 0].tolist() == dataset.targets["s"][:, 0, 0].tolist() == [0, 1, 0]
    shutil.copy(tmp_path / "x" / "one" / "b" / "1_i.png", tmp_path / "x" / "one" / "a" / "1_i.png")
    with pytest.raises(ValueError, match="should have one image of an id. Found x/one/a/1_i.png and x/one/b/1_i.png"):
        load(tmp_path, "s")


def test_one_kind_of_png_and_raw_values_without_a_label(tmp_path):
    mapped(tmp_path, values=[1, 2, 3], void=[0, 9], invalid=255, png="8-bit grey")
    save(tmp_path / "s" / "0.png", np.uint8([[0, 3], [255, 9]]))
    assert classes_of(tmp_path) == [None, 2, None, None]
    save(tmp_path / "s" / "0.png", np.uint16([[0, 3], [255, 1]]))
    with pytest.raises(ValueError, match="0.png should be 8-bit grey PNG. Found 16-bit grey PNG"):
        classes_of(tmp_path)


@pytest.mark.parametrize("upper", ["files", "patterns"])
def test_suffixes_in_upper_case_are_found(root, upper):
    """Cameras write .JPG; ids stay as they are, and so does all before the suffix."""
    expected = load(root)
    if upper == "files":
        for name in ("images/a_2.png", "plan/a_10.png", "depth/a_2.png", "flow/a_10.npy"):
            (root / name).rename((root / name).with_suffix(Path(name).suffix.upper()))
    else:
        tasks = [task | {"files": task["files"][:-3] + task["files"][-3:].upper()} for task in described()["tasks"]]
        write(root, described(images="images/{id}.PNG", tasks=tasks))
    (root / "images" / "A_3.PNG").write_bytes(b"of no split")
    found = load(root)
    assert found.ids == expected.ids == ("a_2", "a_10")
    assert torch.equal(found.images, expected.images)
    for letter in "sdv":
        assert torch.equal(found.targets[letter], expected.targets[letter])


@pytest.mark.parametrize("name", ["images/a_2.png", "plan/a_10.png"])
def test_two_files_whose_names_differ_by_the_case_of_their_suffix_are_refused(root, name):
    other = Path(name).with_suffix(".PNG")
    shutil.copy(root / name, root / other)
    if len(list((root / other).parent.glob("a_*"))) == 2:
        pytest.skip("a file system that takes both for one")
    with pytest.raises(ValueError) as error:
        load(root)
    found = f"Found {other} and {name}."
    assert str(error.value) == f"{root} should have files whose names differ by more than case. {found}"


def test_images_and_labels_beside_their_description(tmp_path):
    label = {"letter": "s", "kind": "classes", "classes": 3, "files": "{id}_label.png"}
    write(tmp_path, {"images": "{id}.jpg", "tasks": [label], "splits": {"train": "0", "test": "1"}})
    for name in "01":
        save(tmp_path / f"{name}.jpg", np.full((8, 8, 3), 99, np.uint8))
        save(tmp_path / f"{name}_label.png", np.full((8, 8), 2, np.uint8))
    dataset = load(tmp_path, "s", size=8)
    assert dataset.ids == ("0",)
    assert (dataset.images == 99).all()
    assert (dataset.targets["s"] == 2).all()


def test_other_formats(tmp_path):
    labels = [
        {"letter": "r", "kind": "regression", "channels": 3, "files": "r/{id}.png", "invalid": 0},
        {"letter": "p", "kind": "regression", "channels": 2, "files": "p/{id}.png"},
        {"letter": "c", "kind": "classes", "classes": 3, "files": "c/{id}.npy", "invalid": float("nan")},
    ]
    write(tmp_path, {"images": "x/{id}.npy", "tasks": labels, "splits": {"train": "0", "test": "1"}})
    colours = np.random.default_rng(0).integers(1, 256, (8, 8, 3), dtype=np.uint8)
    colours[0, :2] = [[0, 0, 0], [0, 0, 1]]
    classes = np.ones((8, 8))
    classes[0, :2] = [np.nan, 2]
    for folder, values in {"x": colours / 255, "r": colours, "p": colours, "c": classes}.items():
        save(tmp_path / folder / f"0.{'png' if folder in 'rp' else 'npy'}", values)
    dataset = load(tmp_path, "rpc", size=8)
    assert np.array_equal(dataset.images[0].permute(1, 2, 0), colours)
    assert np.array_equal(dataset.targets["r"][0].permute(1, 2, 0), colours)
    assert np.array_equal(dataset.targets["p"][0].permute(1, 2, 0), colours[..., :2])
    assert dataset.masks["r"][0, 0, :3].tolist() == [False, True, True], "invalid in all channels"
    assert dataset.masks["c"][0, 0, :3].tolist() == [False, True, True]
    assert dataset.targets["c"][0, 0, 1] == 2


def grey(values: np.ndarray, bits: int) -> bytes:
    """A grey PNG of 1, 2 or 4 bits."""
    height, width = values.shape
    digits = np.array([[int(digit) for value in row for digit in f"{value:0{bits}b}"] for row in values], np.uint8)
    return raw_png(width, height, bits, 0, b"".join(b"\0" + np.packbits(row).tobytes() for row in digits))


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_classes_in_few_bits_are_read_as_they_are_or_refused(root, bits):
    """Pillow stretches grey of two and four bits to eight: class 1 would be read as 85 or 17."""
    values = np.random.default_rng(0).integers(0, min(2**bits, 3), SIZE).astype(np.uint8)
    for name in ("a_2", "a_10"):
        picture = Image.fromarray(values, "P")
        picture.putpalette(list(range(200, 200 + 3 * 2**bits)))
        picture.save(root / "plan" / f"{name}.png", bits=bits)
    assert np.array_equal(load(root, "s").targets["s"][0], values[:, 6:26]), "indices of a palette"
    for name in ("a_2", "a_10"):
        (root / "plan" / f"{name}.png").write_bytes(grey(values, bits))
    if bits == 1:
        assert np.array_equal(load(root, "s").targets["s"][0], values[:, 6:26])
    else:
        with pytest.raises(ValueError, match=f"Found {bits}-bit grey PNG"):
            load(root, "s")


def mapped(root: Path, suffix: str = "png", **fields) -> dict:
    """A data set of 2 x 2 pixels, one image to train and one to test, with one task of classes."""
    label = {"letter": "s", "kind": "classes", "classes": ["x", "y", "z"], "files": f"s/{{id}}.{suffix}", **fields}
    write(root, {"images": "x/{id}.png", "tasks": [label], "splits": {"train": "0", "test": "1"}})
    save(root / "x" / "0.png", np.zeros((2, 2, 3), np.uint8))
    return label


def classes_of(root: Path) -> list[int | None]:
    dataset = load(root, "s", size=2)
    mask = dataset.masks["s"]
    valid = torch.ones(4, dtype=bool) if mask is None else mask[0].flatten()
    return [int(c) if v else None for c, v in zip(dataset.targets["s"][0].flatten(), valid, strict=True)]


RAW = {  # fields, raw pixels, classes by hand
    "0 and 255": ({"values": [0, 255], "classes": 2}, np.uint8([0, 255, 255, 0]), [0, 1, 1, 0]),
    "in another order": ({"values": [255, 0], "classes": 2}, np.uint8([0, 255, 255, 0]), [1, 0, 0, 1]),
    "with void": ({"values": [9, 2, 4], "invalid": 0}, np.uint8([0, 2, 4, 9]), [None, 1, 2, 0]),
    "that do not occur": ({"values": [1, 70000, 3]}, np.uint8([1, 1, 3, 3]), [0, 0, 2, 2]),
    "16 bits": ({"values": [0, 1000, 65535]}, np.uint16([65535, 0, 1000, 0]), [2, 0, 1, 0]),
    "one bit": ({"values": [1, 0], "classes": 2}, np.array([True, False, False, True]), [0, 1, 1, 0]),
    "from 1": ({"shift": -1}, np.uint8([0, 1, 2, 3]), [None, 0, 1, 2]),
    "from 1 with void": ({"shift": -1, "invalid": 255}, np.uint8([255, 1, 0, 3]), [None, 0, None, 2]),
    "from 1000": ({"shift": -1000}, np.uint16([999, 1000, 1001, 1002]), [None, 0, 1, 2]),
    "shifted by nothing": ({"shift": 0}, np.uint8([0, 1, 2, 0]), [0, 1, 2, 0]),
}
ARRAYS = {
    "floats": ({"values": [0, 255], "classes": 2}, np.float16([0, 255, 255, 0]), [0, 1, 1, 0]),
    "below 0": ({"values": [-1, 0, 1], "invalid": float("nan")}, np.float32([1, -1, np.nan, 0]), [2, 0, None, 1]),
    "truth": ({"values": [1, 0], "classes": 2}, np.array([True, False, False, True]), [0, 1, 1, 0]),
    "large": ({"values": [0, 2**40, 7]}, np.uint64([2**40, 0, 7, 0]), [1, 0, 2, 0]),
    "from -1": ({"shift": 1}, np.int8([-2, -1, 0, 1]), [None, 0, 1, 2]),
    "from 1, unsigned": ({"shift": -1}, np.uint8([0, 1, 2, 3]), [None, 0, 1, 2]),
}


@pytest.mark.parametrize(
    ("suffix", "case"), [("png", name) for name in RAW] + [("npy", name) for name in (RAW | ARRAYS)]
)
def test_raw_values_stand_for_classes(tmp_path, suffix, case):
    fields, raw, expected = (RAW | ARRAYS)[case]
    mapped(tmp_path, suffix, **fields)
    save(tmp_path / "s" / f"0.{suffix}", raw.reshape(2, 2))
    assert classes_of(tmp_path) == expected


def test_indices_of_a_palette_stand_for_classes_too(tmp_path):
    mapped(tmp_path, values=[7, 5, 6])
    picture = Image.fromarray(np.uint8([[5, 6], [7, 7]]), "P")
    picture.putpalette(list(range(24)))
    (tmp_path / "s").mkdir()
    picture.save(tmp_path / "s" / "0.png")
    assert classes_of(tmp_path) == [1, 2, 0, 0]


BLACK, RED, WHITE, PINK = [0, 0, 0], [128, 0, 0], [255, 255, 255], [224, 192, 192]


@pytest.mark.parametrize("form", ["RGB", "RGBA", "palette", "transparent", "NPY", "NPY of floats"])
@pytest.mark.parametrize("invalid", [PINK, 255])
def test_colours_stand_for_classes(tmp_path, form, invalid):
    """The last pixel has no label; a palette, as PASCAL VOC has, is read as it is seen."""
    colours = [RED, BLACK, [0, 0, 128]]
    mapped(tmp_path, "npy" if form.startswith("NPY") else "png", colors=colours, invalid=invalid)
    raw = np.uint8([[BLACK, RED], [[0, 0, 128], PINK if invalid == PINK else WHITE]])
    if form.startswith("NPY"):
        save(tmp_path / "s" / "0.npy", raw.astype(np.float32) if form.endswith("floats") else raw)
    else:
        picture = Image.fromarray(raw)
        (tmp_path / "s").mkdir()
        if form == "RGBA":
            picture.putalpha(Image.fromarray(np.uint8([[0, 100], [255, 255]])))
        elif form != "RGB":
            picture = picture.quantize(4)
        picture.save(tmp_path / "s" / "0.png", **({"transparency": bytes([0, 9])} if form == "transparent" else {}))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert classes_of(tmp_path) == [1, 0, 2, None]


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_colours_that_are_all_grey_may_be_stored_so(tmp_path, bits):
    mapped(tmp_path, colors=[WHITE, BLACK], classes=2)
    (tmp_path / "s").mkdir()
    last = 2**bits - 1
    (tmp_path / "s" / "0.png").write_bytes(grey(np.array([[0, last], [last, 0]]), bits))
    assert classes_of(tmp_path) == [1, 0, 0, 1]


WRONG_RAW = {
    "not listed": (
        {"values": [0, 255, 7]},
        np.uint8([[0, 255], [128, 0]]),
        "one of [0, 255, 7]. Found 128 in row 1, column 0",
    ),
    "not whole": ({"values": [0, 255, 7]}, np.array([[0, 255], [0, 7.5]]), "Found 7.5 in row 1, column 1"),
    "above": ({"shift": -1}, np.uint8([[0, 1], [3, 4]]), "should hold classes 1 to 3. Found 4"),
    "neither class nor void": ({"shift": -1}, np.array([[0, 1], [0.5, 1]]), "should hold classes 1 to 3. Found 0.5"),
    "another colour": (
        {"colors": [BLACK, RED, WHITE]},
        np.uint8([[BLACK, [128, 0, 1]], [RED, RED]]),
        "should hold one of [[0, 0, 0], [128, 0, 0], [255, 255, 255]]. Found [128, 0, 1] in row 0, column 1",
    ),
    "a colour beyond": (
        {"colors": [BLACK, [1, 0, 0], WHITE]},
        np.uint16([[BLACK, [0, 256, 0]]] * 2),
        "Found [0, 256, 0]",
    ),
    "a colour's fraction": ({"colors": [BLACK, RED, WHITE]}, np.full((2, 2, 3), 0.5), "Found [0.5, 0.5, 0.5] in row 0"),
    "no colours": ({"colors": [BLACK, RED, WHITE]}, np.zeros((2, 2)), "should be an array (H, W, 3). Found (2, 2, 1)"),
}


@pytest.mark.parametrize("fault", WRONG_RAW)
def test_a_raw_value_of_no_class_is_one_line(tmp_path, fault):
    fields, raw, message = WRONG_RAW[fault]
    suffix = "png" if raw.dtype == np.uint8 else "npy"
    mapped(tmp_path, suffix, **fields)
    save(tmp_path / "s" / f"0.{suffix}", raw)
    with pytest.raises(ValueError) as error:
        load(tmp_path, "s", size=2)
    assert str(error.value).startswith(f"{tmp_path / 's' / '0'}.{suffix} ")
    assert message in str(error.value)
    assert len(str(error.value).splitlines()) == 1


def test_other_values_are_decoded_anew(tmp_path):
    for values, expected in (([0, 1, 2], [0, 1, 2, 0]), ([2, 1, 0], [2, 1, 0, 2])):
        mapped(tmp_path, values=values)
        save(tmp_path / "s" / "0.png", np.uint8([[0, 1], [2, 0]])) if values[0] == 0 else None
        assert classes_of(tmp_path) == expected


def test_half_precision_labels_are_scaled_in_single(root):
    """-9999 is -10000 in half precision: a pixel without a label is one all the same."""
    write(root, described(**changed(2, scale=1000, offset=0.5, invalid=-9999)))
    values = np.full((*SIZE, 2), 100.0625, np.float16)
    values[:5] = -9999
    for name in ("a_2", "a_10"):
        np.save(root / "flow" / f"{name}.npy", values)
    found = load(root, "v")
    assert (found.targets["v"][..., 5:, :] == 100063.0).all()
    assert found.masks["v"][:, 5:].all()
    assert not found.masks["v"][:, :5].any()


def changed(number: int, **fields) -> dict:
    tasks = described()["tasks"]
    tasks[number] |= fields
    return {"tasks": [{key: value for key, value in task.items() if value is not None} for task in tasks]}


def test_every_field_is_explained():
    text = Path(description.__file__).with_name("fields.yaml").read_text()
    what = description.Description(**yaml.safe_load(text))
    assert what.definitions["c"].class_names == ("class 0", "class 1")
    kinds = (description.Description, fields.Label, fields.Match, fields.Depth, fields.Splits)
    assert [name for kind in kinds for name in kind.model_fields if f"{name}:" not in text] == []


DESCRIPTIONS = {
    "two tasks with one letter": (changed(1, letter="s"), "different letters, found 's' twice"),
    "two letters": (changed(0, letter="st"), "letter should be one ASCII letter. Found letter = 'st'"),
    "up": (changed(0, files="../plan/{id}.png"), "should not leave the folder of the data. Found '../plan/{id}.png'"),
    "absolute": ({"images": "/images/{id}.png"}, "should not leave the folder of the data. Found '/images/{id}.png'"),
    "up in a list": ({"splits": {"train": "../x.txt", "test": "b*"}}, "not leave the folder of the data, found '../x"),
    "no id": (changed(0, files="plan/all.png"), "should hold {id} once"),
    "a JPEG label": (changed(0, files="plan/{id}.jpg"), "should end in one of .png, .npy; convert .jpg to .npy"),
    "no classes": (changed(0, classes=None), "classes should be given where the kind is classes"),
    "too many classes": (changed(0, classes=300), "less than or equal to 255. Found 300"),
    "a loss of another kind": (changed(0, loss="l1"), "loss should be one of cross_entropy for classes"),
    "an unknown error": (changed(1, error="rmse"), "absolute error, distance, angle for regression. Found"),
    "an unknown field": (changed(1, mask=0), "mask: Extra inputs are not permitted. Found 0"),
    "a text as scale": (changed(1, scale="1e-3"), "scale: Input should be a valid number. Found '1e-3'"),
    "values of numbers": (changed(1, values=[0, 1]), "task d: values should be given of classes alone"),
    "two of three": (
        changed(0, values=[1, 2, 3], shift=-1),
        "values, shift and colors will do, found values and shift",
    ),
    "too few values": (changed(0, values=[0, 128]), "values should have one for each class, found 2 of them and 3"),
    "values twice": (changed(0, values=[0, 1, 0]), "values and invalid should all differ, found 0 twice"),
    "a value without a label": (changed(0, values=[0, 1, 255]), "invalid should all differ, found 255 twice"),
    "half a value": (changed(0, values=[0, 0.5, 1]), "values.1: Input should be a valid integer. Found 0.5"),
    "half a shift": (changed(0, shift=-0.5), "shift: Input should be a valid integer. Found -0.5"),
    "a colour twice": (changed(0, colors=[[0, 0, 0], [1, 2, 3], [1, 2, 3]]), "all differ, found [1, 2, 3] twice"),
    "a colour without a label": (changed(0, colors=[[0, 0, 0], [1, 1, 1], [255] * 3]), "found [255, 255, 255] twice"),
    "a colour of two": (
        changed(0, colors=[[0, 0, 0], [1, 2], [3, 4, 5]]),
        "colors.1: List should have at least 3 items",
    ),
    "a colour above 255": (changed(0, colors=[[0, 0, 256]]), "less than or equal to 255. Found 256"),
    "a colour as invalid": (changed(0, invalid=[0, 0, 0]), "invalid should be a number, or a colour where colors are"),
    "void alone": (changed(0, void=[7]), "task s: void should be given beside values"),
    "a value that is void": (changed(0, values=[0, 1, 2], void=[2]), "invalid should all differ, found 2 twice"),
    "another PNG": (
        changed(0, png="RGB"),
        "png: Input should be '8-bit grey', '16-bit grey' or '8-bit RGB'. Found 'RGB'",
    ),
    "a folder of labels alone": (changed(0, files="{folder}/{id}.png"), "may hold {folder} where that of the images"),
    "a text as invalid": (changed(0, invalid="none"), "tasks.0.invalid: Input should be a valid number. Found 'none'"),
    "no splits": ({"splits": {"train": "a*"}}, "splits should have train and test, or ratio alone"),
    "ratio 1": ({"splits": {"ratio": 1.0}}, "less than 1. Found 1.0"),
    "nothing in a split": ({"splits": {"train": "z*", "test": "b*"}}, "splits.train should match images. Found 'z*'"),
    "an image twice": ({"splits": {"train": ["a_2", "a_2"], "test": "b*"}}, "name an image once. Found 'a_2' 2 times"),
    "in both splits": ({"splits": {"train": "*", "test": "b*"}}, "should share no image. Found 'b_1' in both, of 1"),
    "one image by two names": ({"splits": {"train": ["a_2"], "test": ["./a_2"]}}, "Found 'a_2' in both, of 1 such"),
    "one folder": (
        {"images": "{split}/{id}.png", "splits": {"train": "one", "test": "one/"}},
        "splits should name two folders apart, found 'one' and 'one'",
    ),
    "a folder in the other": (
        {"images": "{split}/{id}.png", "splits": {"train": "one/x", "test": "one"}},
        "splits should name two folders apart, found 'one/x' and 'one'",
    ),
    "no images": ({"images": "pictures/{id}.png"}, "should hold images pictures/{id}.png. Found none"),
    "no labels": (changed(1, files="z/{id}.png"), "should hold labels of d z/{id}.png. Found no "),
    "no list": ({"splits": {"train": "no.txt", "test": "b*"}}, "no.txt cannot be read: No such file or directory"),
    "no mapping": ("- a\n- b", "should hold images, tasks and splits. Found ['a', 'b']"),
    "no YAML": ("images: {id", "is no YAML"),
}


@pytest.mark.parametrize("fault", DESCRIPTIONS)
def test_a_wrong_description_is_one_line_with_its_file(root, fault):
    change, message = DESCRIPTIONS[fault]
    write(root, change if isinstance(change, str) else described(**change))
    with pytest.raises(ValueError) as error:
        load(root)
    assert message in str(error.value)
    assert str(root) in str(error.value)
    assert len(str(error.value).splitlines()) == 1


FILES = {
    "a class too many": ("plan/a_10.png", np.full(SIZE, 3, np.uint8), "should hold classes 0 to 2. Found 3"),
    "NaN": ("flow/a_10.npy", np.full((*SIZE, 2), np.nan), "should hold numbers. Found nan in row 0, column 0"),
    "channels": ("flow/a_10.npy", np.zeros((*SIZE, 3)), "should be an array (H, W, 2). Found (20, 32, 3)"),
    "objects": ("flow/a_10.npy", np.array([{}]), "Python objects in dtype"),
    "texts": ("flow/a_10.npy", np.array(["x"]), "should be an array of numbers. Found <U1"),
    "another size": ("depth/a_10.png", np.ones((20, 31), np.uint16), "should be 32 x 20 like its image. Found 31 x 20"),
    "another size, NPY": ("flow/a_10.npy", np.ones((19, 32, 2)), "should be 32 x 20 like its image. Found 32 x 19"),
    "colours": ("depth/a_10.png", np.ones((*SIZE, 3), np.uint8), "8-bit grey PNG or 16-bit grey PNG. Found 8-bit RGB"),
    "a deep image": ("images/a_10.png", np.ones(SIZE, np.uint16), "Found 16-bit grey PNG"),
    "missing": ("plan/a_10.png", None, "is missing: a_10 has no labels of s"),
}


@pytest.mark.parametrize("fault", FILES)
def test_a_bad_file_is_one_line_or_left_out(root, fault):
    name, values, message = FILES[fault]
    (root / name).unlink()
    if values is not None:
        save(root / name, values)
    with pytest.raises(ValueError) as error:
        load(root)
    assert str(error.value).startswith(f"{root / name} ")
    assert message in str(error.value)
    assert len(str(error.value).splitlines()) == 1
    with pytest.warns(UserWarning, match="1 of 2 frames left out"):
        assert load(root, on_bad="skip").ids == ("a_2",)


def test_links_out_of_the_root_are_refused(root, tmp_path):
    outside = tmp_path / "outside.png"
    shutil.move(root / "plan" / "a_10.png", outside)
    (root / "plan" / "a_10.png").symlink_to(outside)
    with pytest.raises(ValueError, match=f"should not leave the folder of the data. Found {outside}"):
        load(root)
    (root / "plan" / "a_10.png").unlink()
    shutil.move(outside, root / "elsewhere.png")
    (root / "plan" / "a_10.png").symlink_to(root / "elsewhere.png")  # a link inside is fine
    assert len(load(root)) == 2
    shutil.move(root / "images", tmp_path / "images")
    (root / "images").symlink_to(tmp_path / "images")
    with pytest.raises(ValueError, match="should not leave the folder of the data"):
        load(root)
    (root / "images").unlink()
    shutil.move(tmp_path / "images", root / "images")
    write(root, described(splits={"train": ["../../other/a"], "test": ["b_1"]}))
    with pytest.raises(ValueError, match="should not leave the folder of the data"):
        load(root)


def of_folder(root, **options) -> DataSpec:
    return DataSpec(name="folder", root=str(root), digest=data.digest("folder", root), **options)


def test_another_description_is_another_specification(root):
    """Results of a description that has changed are never taken again."""
    spec = of_folder(root)
    assert spec == of_folder(root)
    assert DataSpec.model_validate_json(spec.model_dump_json()) == spec
    keys = {spec.digest}
    for change in (changed(1, scale=0.002), {"splits": {"train": "list.txt", "test": "b*"}}):
        (root / "list.txt").write_text("a_2")
        write(root, described(**change))
        keys.add(of_folder(root).digest)
    (root / "list.txt").write_text("a_10")
    keys.add(of_folder(root).digest)
    assert len(keys) == 4
    assert None not in keys
    assert DataSpec().digest is None
    with pytest.raises(ValueError, match="has changed since the parameters were read"):
        Store(root.parent / "store").data(ModelSpec(data=spec, tasks="s"), "train")


def test_a_changed_scale_is_decoded_anew(root):
    before = load(root, "d")
    write(root, described(**changed(1, scale=0.002)))
    valid = before.masks["d"][:, None]
    torch.testing.assert_close(load(root, "d").targets["d"][valid] + 1, 2 * (before.targets["d"][valid] + 1))


def test_specifications_read_no_file(root):
    """They name the description by its digest; its letters are asked for where parameters are checked and data read."""
    spec = DataSpec(name="folder", root="nowhere/at/all", digest="0123456789abcdef", size=16)
    assert ModelSpec(data=spec, tasks="vx").tasks == "vx"
    with pytest.raises(ValidationError, match="digest should be that of the description"):
        DataSpec(name="folder", root=str(root))
    with pytest.raises(ValueError, match="letters out of 'sdv' for folder"):
        Store(root.parent / "store").data(ModelSpec(data=of_folder(root), tasks="sn"), "train")
    with pytest.raises(ValueError, match="dataset.yaml cannot be read"):
        of_folder(root.parent)


def test_from_files_to_errors_with_a_new_task(root, tmp_path):
    spec = ModelSpec(data=of_folder(root, size=16), tasks="vsd", epochs=1, batch_size=2)
    store = Store(tmp_path / "store", device="cpu")
    errors = store.errors(spec, AttackSpec(tasks="vs", steps=2, images=4))
    assert errors.image_id.unique().tolist() == ["b_1"]
    assert store.model(spec).definitions == data.tasks("folder", root)
    assert np.isfinite(errors[["clean_error", "adversarial_error", "clean_loss"]]).all(axis=None)
    assert 1 < errors.set_index("task").loc["v"].clean_error < 180, "degrees"
    assert [path.name for path in (tmp_path / "store" / "models").glob("*/*")] == [spec.key]


def test_the_example_is_a_folder_like_any_other(tmp_path):
    folder = data.write_example(tmp_path / "example", 6, 3)
    table = data.check("folder", folder)
    assert not table.stops.any()
    assert table[table.task == "images"].files.tolist() == [6, 3]
    train = table[table.split == "train"].set_index("task")
    assert train.loc["s"].valid == pytest.approx(47 / 48)
    assert 0 < train.loc["i"].low < train.loc["i"].high <= 10
    assert min(train.loc["s"].classes.values()) > 0
    dataset = data.load("folder", tasks="sdni", split="train", size=48, root=folder)
    rooms = data.load("rooms", tasks="dn", split="train", size=64, limit=6)
    metres = (2 ** (16 * rooms.targets["d"][:, :, 8:56, 8:56]) - 1) / 512
    torch.testing.assert_close(dataset.targets["d"], metres, atol=0.0006, rtol=0)
    torch.testing.assert_close(dataset.targets["n"], rooms.targets["n"][..., 8:56, 8:56], atol=0.005, rtol=0)
    near = dataset.masks["i"][:, None]
    assert torch.equal(near, metres < 5)
    torch.testing.assert_close(dataset.targets["i"][near], 1 / metres[near], atol=1e-4, rtol=1e-4)


def test_the_example_is_written_once_and_never_over_something_else(tmp_path):
    folder = data.write_example(tmp_path / "example", 2, 1)
    before = (folder / "images" / "train_0001.png").stat().st_mtime_ns
    data.write_example(folder, 2, 1)
    assert (folder / "images" / "train_0001.png").stat().st_mtime_ns == before
    data.write_example(folder, 1, 1)
    assert data.load("folder", tasks="s", split="train", size=16, root=folder).ids == ("train_0000",)
    for name in ("tree_1.png", "train_0001_mine.png"):
        (folder / "images" / name).write_text("my own")
    data.write_example(folder, 2, 1)
    for name in ("tree_1.png", "train_0001_mine.png"):
        assert (folder / "images" / name).read_text() == "my own"
    edited = folder / "dataset.yaml"
    edited.write_text(edited.read_text().replace("[floor, wall, ceiling, thing]", "[floor, wall, ceiling, chair]"))
    before = edited.read_text()
    with pytest.raises(ValueError, match="set example to false to read your own data"):
        data.write_example(folder, 3, 1)
    assert edited.read_text() == before
    for wrong in ("2", 0, None):
        with pytest.raises(ValueError, match="Parameter test should be a positive integer"):
            data.write_example(tmp_path / "none", 1, wrong)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("my own")
    with pytest.raises(ValueError, match="should be empty or hold one. Found other files in .*: set example to false"):
        data.write_example(tmp_path / "mine")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".example.lock", "example", "mine"], "no lock of mine"
    assert len(list((tmp_path / "mine").iterdir())) == 1


def test_an_example_of_earlier_rooms_is_written_anew(tmp_path):
    folder = data.write_example(tmp_path, 2, 1)
    text, image = (folder / "dataset.yaml").read_text(), (folder / "images" / "train_0000.png").read_bytes()
    for earlier in ("", ", version 0 of the rooms"):
        (folder / "dataset.yaml").write_text(re.sub(", version [0-9]+ of the rooms", earlier, text))
        (folder / "images" / "train_0000.png").write_bytes(b"")
        data.write_example(folder, 2, 1)
        assert (folder / "dataset.yaml").read_text() == text
        assert (folder / "images" / "train_0000.png").read_bytes() == image


@pytest.mark.parametrize("moment", [0, 1, 4])
def test_an_example_that_was_begun_is_written_to_its_end(tmp_path, monkeypatch, moment):
    """Stopped as its description and at some later image is about to be written."""
    stopped = lambda *_, **__: pytest.fail("stopped")  # noqa: E731
    with monkeypatch.context() as patch:
        if moment == 0:
            patch.setattr("os.replace", stopped)
            patch.setattr("pathlib.Path.unlink", lambda *_, **__: None)  # killed, it removes nothing
        else:
            write = Image.Image.save
            calls = iter(range(moment))
            patch.setattr(Image.Image, "save", lambda *a, **k: write(*a, **k) if next(calls, None) else stopped())
        with pytest.raises(pytest.fail.Exception, match="stopped"):
            data.write_example(tmp_path / "example", 2, 1)
    with pytest.raises(ValueError, match="dataset.yaml"):
        data.load("folder", tasks="s", split="train", size=16, root=tmp_path / "example")
    data.write_example(tmp_path / "example", 2, 1)
    whole = data.write_example(tmp_path / "whole", 2, 1)
    files = [path.relative_to(whole) for path in sorted(whole.rglob("*")) if path.is_file()]
    assert all((tmp_path / "example" / file).read_bytes() == (whole / file).read_bytes() for file in files)
    assert len(files) == 1 + 3 * 5 == sum(path.is_file() for path in (tmp_path / "example").rglob("*"))


def test_arrays_are_read_by_threads_at_once(tmp_path):
    # Threads take turns in the middle of parsing a header where the collector runs Python code there; without the lock
    # around it, some 1 of 300 reads then fails with a SystemError of `ast`.
    np.save(tmp_path / "a.npy", np.arange(12, dtype=np.float32).reshape(3, 4))
    label = description.Label(letter="h", name="height", kind="regression", files="{id}.npy", error="absolute error")
    threshold, others = gc.get_threshold(), lambda *_: time.sleep(0)
    gc.callbacks.append(others)
    gc.set_threshold(20)
    try:
        with ThreadPoolExecutor(4) as pool:
            arrays = list(pool.map(lambda _: read_label(label, str(tmp_path / "a.npy"), (4, 3)), range(4000)))
    finally:
        gc.set_threshold(*threshold)
        gc.callbacks.remove(others)
    assert [float(array.sum()) for array in arrays] == [66.0] * 4000
