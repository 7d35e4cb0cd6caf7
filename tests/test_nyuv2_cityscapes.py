"""NYUv2 and Cityscapes on small trees in exactly their formats."""

from __future__ import annotations

import zipfile
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torchvision import datasets
from tqdm import tqdm

from mtrlib import data
from mtrlib.data import decoding, description


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(decoding, "bar", lambda **_: tqdm(disable=True))
    monkeypatch.setenv("MTRLIB_CACHE", str(tmp_path_factory.mktemp("cache")))


def save(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, values) if path.suffix == ".npy" else Image.fromarray(values).save(path)


def write_arrays(root: Path, split: str, number: int, height: int, width: int, classes: int) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(number)
    normal = generator.normal(size=(height, width, 3))
    values = {
        "image": generator.uniform(size=(height, width, 3)),
        "label": generator.integers(-1, classes, (height, width)).astype(float),
        "depth": generator.uniform(0.5, 9, (height, width, 1)),
        "normal": normal / np.linalg.norm(normal, axis=2, keepdims=True),
    }
    values["depth"][0] = 0
    values["normal"][1] = 0
    for name, array in values.items():
        save(root / split / name / f"{number}.npy", array)
    return values


def test_nyuv2(tmp_path):
    written = {n: write_arrays(tmp_path, "train", n, 288, 384, 13) for n in (0, 2, 10)}
    write_arrays(tmp_path, "val", 0, 288, 384, 13)
    dataset = data.load("nyuv2", tasks="snd", split="train", size=288, root=tmp_path)
    assert dataset.ids == ("train/0", "train/2", "train/10")
    assert data.load("nyuv2", tasks="s", split="test", size=32, root=tmp_path).ids == ("val/0",)
    square = {name: array[:, 48:336] for name, array in written[10].items()}
    assert np.array_equal(dataset.images[2].permute(1, 2, 0), np.rint(square["image"] * 255))
    assert np.array_equal(dataset.masks["s"][2], square["label"] >= 0)
    assert np.array_equal(np.where(dataset.masks["s"][2], dataset.targets["s"][2].int(), -1), square["label"])
    assert not dataset.masks["d"][2, 0].any()
    assert dataset.masks["d"][2, 1:].all()
    np.testing.assert_allclose(dataset.targets["d"][2].permute(1, 2, 0), square["depth"], rtol=1e-6)
    np.testing.assert_allclose(dataset.targets["n"][2].permute(1, 2, 0), square["normal"], rtol=1e-6)
    assert not dataset.masks["n"][2, 1].any()
    assert dataset.masks["n"][2, 2:].all()
    assert (len(dataset.class_names), dataset.tasks["s"].channels, data.letters("nyuv2")) == (13, 13, "sdn")


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("label", np.full((288, 384), 13.0), "should hold one of .0, 1, 2, 3, 4, 5, ..... Found 13"),
        ("label", np.full((288, 384), 0.5), "should hold one of .0, 1, 2, 3, 4, 5, ..... Found 0.5"),
        ("image", np.full((288, 384, 3), 2.0), "should hold uint8, or floats in .0, 1.. Found float64, 2.0 to 2.0"),
        ("depth", np.full((288, 384, 1), np.inf), "should hold numbers. Found inf in row 0, column 0"),
        ("image", np.full((288, 384, 3), 1.01), "should hold uint8, or floats in .0, 1.. Found float64, 1.01 to 1.01"),
        (
            "depth",
            np.full((1, 288, 384), 2500, np.uint16),
            "should hold z-depth in metres in 0 to 20. Found 2500 to 2500: another unit takes `scale` and `offset`",
        ),
        ("depth", np.full((288, 384), -1.0), "should hold z-depth in metres in 0 to 20. Found -1 to -1"),
        (
            "normal",
            np.full((288, 384, 3), 128, np.uint8),
            "should hold surface normals in -1.001 to 1.001. Found 128 to 128",
        ),
        ("normal", np.zeros((144, 192, 3)), "should be 384 x 288 like its image. Found 192 x 144"),
    ],
)
def test_bad_nyuv2_files(tmp_path, name, values, message):
    write_arrays(tmp_path, "train", 0, 288, 384, 13)
    save(tmp_path / "train" / name / "0.npy", values)
    with pytest.raises(ValueError, match=message) as error:
        data.load("nyuv2", tasks="sdn", split="train", size=32, root=tmp_path)
    assert str(error.value).startswith(str(tmp_path / "train" / name / "0.npy"))


def variant(root: Path, *, first: bool, void: int, dtype: type, over: float) -> None:
    """Arrays written anew: channels first, another number for no class, images as bytes or a rounding above 1."""
    for path in sorted(root.rglob("*.npy")):
        values = np.load(path)
        if path.parent.name == "image":
            values = np.rint(values * 255).astype(np.uint8) if dtype == np.uint8 else values.astype(dtype)
            values[0, 0] = 255 if dtype == np.uint8 else 1 + over
        elif path.parent.name.startswith("label"):
            values = np.where(values < 0, void, values).astype(np.uint8 if void > 0 else np.float32)
        values = values[..., None] if first and values.ndim == 2 else values
        np.save(path, np.moveaxis(values, 2, 0) if first else values)


@pytest.mark.parametrize("void", [-1, 250, 255])
@pytest.mark.parametrize(("first", "dtype"), [(True, np.float32), (False, np.uint8), (True, np.uint8)])
@pytest.mark.parametrize(("name", "label"), [("nyuv2", "label"), ("cityscapes", "label_7"), ("cityscapes", "label_19")])
def test_published_variants_are_the_same_data(tmp_path, name, label, void, first, dtype):
    """`train` is a link to where the data lies; val is not. Stray files lie about."""
    classes, tasks = {"label": 13, "label_7": 7, "label_19": 19}[label], "sd" if name == "cityscapes" else "sdn"
    for number in (0, 1):
        write_arrays(tmp_path / "root", "train", number, 16, 24, classes)
        write_arrays(tmp_path / "root", "val", number, 16, 24, classes)
    expected = data.load(name, tasks=tasks, split="train", size=16, root=tmp_path / "root")
    variant(tmp_path / "root", first=first, void=void, dtype=dtype, over=1.2e-7)
    for folder in [*(tmp_path / "root").rglob("label")]:
        (folder / "._0.npy").write_bytes(b"stray")
        folder.rename(folder.with_name(label))
    (tmp_path / "root" / "train").rename(tmp_path / "cache")
    (tmp_path / "root" / "train").symlink_to(tmp_path / "cache")
    found = data.load(name, tasks=tasks, split="train", size=16, root=tmp_path / "root")
    assert found.ids == expected.ids == ("train/0", "train/1")
    assert np.array_equal(found.images[:, :, 1:], expected.images[:, :, 1:])
    for letter in tasks:
        assert np.array_equal(found.masks[letter], expected.masks[letter])
        assert np.array_equal(found.targets[letter], expected.targets[letter])
    assert found.tasks["s"].channels == classes
    assert not data.check(name, tmp_path / "root").stops.any()


def test_of_two_folders_of_labels_the_one_of_19_classes_is_taken(tmp_path):
    write_arrays(tmp_path, "train", 0, 16, 24, 7)
    (tmp_path / "train" / "label").rename(tmp_path / "train" / "label_7")
    assert data.tasks("cityscapes", tmp_path)["s"].channels == 7
    write_arrays(tmp_path, "train", 0, 16, 24, 19)
    (tmp_path / "train" / "label").rename(tmp_path / "train" / "label_19")
    assert data.tasks("cityscapes", tmp_path)["s"].channels == 19
    write_arrays(tmp_path, "train", 0, 16, 24, 7)
    assert data.tasks("cityscapes", tmp_path)["s"].channels == 7


@pytest.mark.parametrize("classes", [7, 19])
def test_cityscapes_as_arrays(tmp_path, classes):
    written = write_arrays(tmp_path, "train", 3, 128, 256, classes)
    write_arrays(tmp_path, "val", 5, 128, 256, classes)
    dataset = data.load("cityscapes", tasks="sd", split="train", size=128, root=tmp_path)
    assert dataset.ids == ("train/3",)
    assert len(dataset.class_names) == dataset.tasks["s"].channels == classes
    label = written["label"][:, 64:192]
    assert np.array_equal(np.where(dataset.masks["s"][0], dataset.targets["s"][0].int(), -1), label)
    np.testing.assert_allclose(dataset.targets["d"][0, 0], written["depth"][:, 64:192, 0], rtol=1e-6)
    assert np.array_equal(dataset.masks["d"][0], written["depth"][:, 64:192, 0] > 0)


def test_the_number_of_classes_follows_the_files(tmp_path):
    for classes in (7, 19):
        write_arrays(tmp_path, "train", 3, 128, 256, classes)
        write_arrays(tmp_path, "val", 5, 128, 256, classes)
        assert len(data.tasks("cityscapes", tmp_path)["s"].class_names) == classes


def test_cityscapes_as_released(tmp_path):
    city = Path("ulm") / "ulm_000000_000019"
    labels = np.full((64, 128), 7, np.uint8)  # road
    labels[0, 32:36] = [0, 26, 33, 4]  # unlabelled, car, bicycle, static
    disparity = np.full((64, 128), 1 + 256 * 3, np.uint16)
    disparity[0, 32:34] = [0, 1]
    image = np.random.default_rng(0).integers(0, 256, (64, 128, 3), dtype=np.uint8)
    for split in ("train", "val"):
        save(tmp_path / "leftImg8bit" / split / f"{city}_leftImg8bit.png", image)
        save(tmp_path / "gtFine" / split / f"{city}_gtFine_labelIds.png", labels)
        save(tmp_path / "disparity" / split / f"{city}_disparity.png", disparity)
    dataset = data.load("cityscapes", tasks="ds", split="test", size=64, root=tmp_path)
    assert dataset.ids == ("ulm_000000_000019",)
    assert np.array_equal(dataset.images[0].permute(1, 2, 0), image[:, 32:96])
    names = [dataset.class_names[index] for index in dataset.targets["s"][0, 0, 1:3]]
    assert names == ["car", "bicycle"]
    assert dataset.masks["s"][0, 0, :5].tolist() == [False, True, True, False, True]
    assert dataset.class_names[dataset.targets["s"][0, 5, 5]] == "road"
    assert dataset.masks["d"][0, 0, :3].tolist() == [False, True, True]
    assert dataset.targets["d"][0, 0, 0, 1:3].tolist() == [0, 3]
    assert "".join(dataset.tasks) == "ds"
    assert (dataset.tasks["s"].channels, dataset.tasks["d"].channels) == (19, 1)
    (tmp_path / "gtFine").rename(tmp_path / "gt")
    with pytest.raises(ValueError, match="should hold leftImg8bit and gtFine. Found disparity, gt, leftImg8bit"):
        data.load("cityscapes", tasks="d", split="train", size=64, root=tmp_path)


@pytest.mark.parametrize("name", ["nyuv2", "cityscapes", "folder"])
def test_a_root_is_needed_and_must_be_there(tmp_path, name):
    with pytest.raises(ValueError, match=f"should be the folder of the {name} files. Found root = None"):
        data.load(name, tasks="s", split="train", size=32)
    with pytest.raises(ValueError, match="The folder of the data .root. is missing: .*nowhere"):
        data.load(name, tasks="s", split="train", size=32, root=tmp_path / "nowhere")


def test_the_classes_of_the_official_release_are_those_of_its_authors():
    """As torchvision lists them; every id is one of the 19 classes, or without a label."""
    label = description.shipped("cityscapes")["official"].tasks[0]
    kinds = {kind.id: kind for kind in datasets.Cityscapes.classes if kind.id >= 0}
    told_apart = {number: kind for number, kind in kinds.items() if 0 <= kind.train_id < 19}
    assert label.table == {number: told_apart[number].train_id if number in told_apart else -1 for number in kinds}
    assert all(label.classes[kind.train_id] == kind.name for kind in told_apart.values())


def test_archives_of_the_official_release_are_unpacked(tmp_path):
    for top, name in (("leftImg8bit", "leftImg8bit"), ("gtFine", "gtFine_labelIds")):
        with zipfile.ZipFile(tmp_path / f"{top}_trainvaltest.zip", "w") as archive:
            content = BytesIO()
            Image.fromarray(np.full((8, 8, 3)[: 3 if top == "leftImg8bit" else 2], 7, np.uint8)).save(content, "PNG")
            archive.writestr(f"{top}/train/ulm/ulm_0_{name}.png", content.getvalue())
    dataset = data.load("cityscapes", tasks="s", split="train", size=8, root=tmp_path)
    assert dataset.ids == ("ulm_0",)
    assert (dataset.images == 7).all()
    assert (dataset.targets["s"] == 0).all(), "road"
