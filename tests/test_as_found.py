"""Data sets as people find them: other layouts, stray files, links, lists, photographs of any kind."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image, ImageOps
from tqdm import tqdm

from mtrlib import data
from mtrlib.__main__ import main
from mtrlib.data import decoding, description, pixels

STRAY = (".DS_Store", "Thumbs.db", "desktop.ini", "._0.png", "._0.npy", "0.png~", "0.npy~", ".ipynb_checkpoints/0.png")
STRAY += ("@eaDir/0.png", "@eaDir/0.npy", "lost+found/0.png", "lost+found/0.npy", "__MACOSX/._0.npy", "Icon\r")


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(decoding, "bar", lambda **_: tqdm(disable=True))
    monkeypatch.setenv("MTRLIB_CACHE", str(tmp_path_factory.mktemp("cache")))


def save(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, values) if path.suffix == ".npy" else Image.fromarray(values).save(path)


def noise(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def strew(root: Path) -> None:
    """What systems leave behind, in every folder."""
    for folder in [root, *(path for path in root.rglob("*") if path.is_dir())]:
        for name in (*STRAY, f"._{sorted(folder.iterdir())[0].name}"):
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_bytes(b"stray")


def described(root: Path, images: str = "x/{id}.png", splits: dict | None = None, **fields) -> None:
    """A `dataset.yaml` with one task of three classes unless `fields` say otherwise."""
    label = {"letter": "s", "kind": "classes", "files": "s/{id}.png", **fields}
    label |= {} if label["kind"] == "regression" or "classes" in label else {"classes": 3}
    content = {"images": images, "tasks": [label], "splits": splits or {"train": "0*", "test": "1*"}}
    root.mkdir(exist_ok=True)
    (root / "dataset.yaml").write_text(yaml.safe_dump(content))


@pytest.fixture
def root(tmp_path) -> Path:
    """Images 00, 01, 10 and 11 of 4 x 6 pixels, two to train."""
    described(tmp_path / "mine")
    for number, name in enumerate(("00", "01", "10", "11")):
        save(tmp_path / "mine" / "x" / f"{name}.png", noise(number, 4, 6, 3))
        save(tmp_path / "mine" / "s" / f"{name}.png", noise(number, 4, 6) % 3)
    return tmp_path / "mine"


def load(root: Path, tasks: str = "s", split: str = "train", size: int = 4, name: str = "folder") -> data.Dataset:
    return data.load(name, tasks=tasks, split=split, size=size, root=root)


def same(one: data.Dataset, other: data.Dataset) -> bool:
    targets = [torch.equal(values, other.targets[letter]) for letter, values in one.targets.items()]
    return torch.equal(one.images, other.images) and all(targets) and one.targets.keys() == other.targets.keys()


def taskonomy(root: Path, layout: str) -> Path:
    for building, point in (("b", 2), ("a", 10), ("a", 3), ("a", 1200)):
        depth = noise(point, 8, 8).astype(np.uint16)
        frame = {"rgb": noise(point, 8, 8, 3), "depth_euclidean": depth, "normal": noise(point + 1, 8, 8, 3)}
        for domain, values in frame.items():
            folder = layout.format(building=building, domain=domain)
            save(root / folder / f"point_{point}_view_0_domain_{domain}.png", values)
    return root


LAYOUTS = {  # of Taskonomy: how ids begin
    "{domain}/taskonomy/{building}": "taskonomy/",
    "{domain}/{building}": "",
    "taskonomy/{building}/{domain}": "taskonomy/",
    "{building}/{domain}": "",
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_taskonomy_with_the_domain_first_or_last(tmp_path, layout):
    official = load(taskonomy(tmp_path / "official", "{building}/{domain}"), "Dn", size=8, name="taskonomy")
    root = taskonomy(tmp_path / "other", layout)
    for folder in sorted(root.iterdir()):  # as links to another disk
        folder.rename(tmp_path / folder.name)
        folder.symlink_to(tmp_path / folder.name)
    strew(root)
    found = load(root, "Dn", size=8, name="taskonomy")
    assert same(found, official)
    assert found.ids == tuple(f"{LAYOUTS[layout]}{each}" for each in official.ids)
    assert official.ids == ("a/point_3_view_0", "a/point_10_view_0", "b/point_2_view_0")
    assert torch.equal(found.masks["n"], official.masks["n"])
    assert load(root, "D", "test", 8, "taskonomy").ids == (f"{LAYOUTS[layout]}a/point_1200_view_0",)


def test_stray_files_are_passed_over(root):
    expected = load(root)
    strew(root)
    assert same(load(root), expected)
    described(root, splits={"ratio": 0.5})
    ids = [each for split in ("train", "test") for each in load(root, split=split).ids]
    assert sorted(ids) == ["00", "01", "10", "11"]
    described(root, images="{id}_image.png", files="{id}_s.png", splits={"train": "0*", "test": "1*"})
    for name in ("00", "10"):
        (root / "x" / f"{name}.png").rename(root / f"{name}_image.png")
        (root / "s" / f"{name}.png").rename(root / f"{name}_s.png")
        (root / f"._{name}_image.png").write_bytes(b"stray")
    assert load(root).ids == ("00",)


def test_linked_folders_inside_the_root_are_followed(root):
    expected = load(root)
    (root / "kept").mkdir()
    for folder in ("x", "s"):
        (root / folder).rename(root / "kept" / folder)
        (root / folder).symlink_to(Path("kept") / folder)
    assert same(load(root), expected)
    described(root, images="linked/{id}.png", files="kept/s/{id}.png")
    (root / "linked").mkdir()
    (root / "linked" / "deep").symlink_to(root / "kept" / "x")
    described(root, images="linked/deep/{id}.png", files="kept/s/{id}.png")
    assert same(load(root), expected)
    described(root, images="linked/{id}.png", files="kept/{id}.png", splits={"train": "deep/0*", "test": "deep/1*"})
    (root / "kept" / "deep").symlink_to("s")
    assert load(root).ids == ("deep/00", "deep/01")


@pytest.mark.parametrize("links", [{"x/back": "x"}, {"x/to": "s", "s/fro": "x"}])
def test_links_in_a_circle_are_refused_aloud(root, links):
    for link, folder in links.items():
        (root / link).symlink_to(root / folder)
    with pytest.raises(ValueError, match="should not be a link to a folder that it lies in. Found .*x.$") as error:
        load(root)
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize("folder", [False, True])
def test_the_snapshot_of_a_hub_is_links_into_its_own_cache(root, tmp_path, folder):
    expected, hub = load(root), tmp_path / "hub" / "datasets--me--mine"
    snapshot = hub / "snapshots" / "0123abc"
    (hub / "blobs").mkdir(parents=True)
    snapshot.mkdir(parents=True)
    files = [root / "x", root / "s", root / "dataset.yaml"] if folder else sorted(root.rglob("*.*"))
    for number, path in enumerate(files):
        link = snapshot / path.relative_to(root)
        link.parent.mkdir(parents=True, exist_ok=True)
        path.rename(hub / "blobs" / str(number))
        link.symlink_to(hub / "blobs" / str(number))
    assert same(load(snapshot), expected)
    (tmp_path / "out.png").write_bytes((snapshot / "x" / "00.png").read_bytes())
    (snapshot / "x" / "00.png").unlink()
    (snapshot / "x" / "00.png").symlink_to(tmp_path / "out.png")
    with pytest.raises(ValueError, match="should not leave the folder of the data. Found .*out.png"):
        load(snapshot)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_lists_of_ids_as_editors_write_them(root, encoding, end):
    described(root, splits={"train": "train.txt", "test": ["10"]})
    content = end.join(["# to train", "01", "", "  # none", "00   # the first", "#10"])
    (root / "train.txt").write_bytes(content.encode(encoding))
    assert load(root).ids == ("01", "00")
    (root / "train.txt").write_bytes(f"01{end}00".encode(encoding))
    assert load(root).ids == ("01", "00")
    text = (root / "dataset.yaml").read_text()
    (root / "dataset.yaml").write_bytes(text.replace("\n", end).encode(encoding))
    assert load(root).ids == ("01", "00")


def photograph(path: Path, values: np.ndarray, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path, exif=exif, **({"quality": 95} if path.suffix == ".jpg" else {}))


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
@pytest.mark.parametrize("orientation", [1, 5, 6, 7, 8, 0, 99])
@pytest.mark.parametrize("of_label", ["as seen", "as stored", "as stored, NPY"])
def test_a_photograph_and_its_label_are_turned_as_exif_says(tmp_path, suffix, orientation, of_label):
    """The classes are drawn from the stored pixels, so that they go with these wherever they come to lie."""
    stored = np.random.default_rng(0).choice(np.uint8([20, 128, 235]), (4, 6)).repeat(8, 0).repeat(8, 1)
    described(tmp_path, f"x/{{id}}{suffix}", files="s/{id}.npy" if "NPY" in of_label else "s/{id}.png")
    path = tmp_path / "x" / f"0{suffix}"
    photograph(path, np.repeat(stored[..., None], 3, axis=2), orientation)
    classes = np.digitize(stored, [64, 192]).astype(np.uint8)
    seen = np.asarray(ImageOps.exif_transpose(Image.open(path)))
    label = classes if of_label.startswith("as stored") else np.digitize(seen[..., 0], [64, 192]).astype(np.uint8)
    save(tmp_path / "s" / ("0.npy" if "NPY" in of_label else "0.png"), label)
    found = load(tmp_path, size=32)
    square = slice(8, 40)
    inside = seen[square] if 5 <= orientation <= 8 else seen[:, square]
    assert np.array_equal(found.images[0].permute(1, 2, 0), inside)
    assert np.array_equal(found.targets["s"][0], np.digitize(found.images[0, 0], [64, 192]))


@pytest.mark.parametrize(("orientation", "shape"), [(2, (4, 6)), (3, (4, 6)), (4, (4, 6)), (6, (4, 4)), (8, (4, 4))])
def test_an_orientation_that_labels_may_follow_or_not_is_refused(tmp_path, orientation, shape):
    described(tmp_path, "x/{id}.jpg")
    photograph(tmp_path / "x" / "0.jpg", noise(0, *shape, 3), orientation)
    save(tmp_path / "s" / "0.png", noise(0, *shape) % 3)
    with pytest.raises(
        ValueError, match=f"0.jpg should be stored as .* EXIF orientation {orientation} of {shape[1]} x"
    ):
        load(tmp_path)
    photograph(tmp_path / "x" / "0.jpg", noise(0, 4, 6, 3), 6)
    save(tmp_path / "s" / "0.png", noise(0, 4, 5) % 3)
    with pytest.raises(ValueError, match="0.png should be 4 x 6 like its image. Found 5 x 4"):
        load(tmp_path)


def test_measured_depth_that_does_not_lie_as_its_photograph_is_refused(tmp_path):
    depth = {"files": "d/{id}.npy", "camera": [9, 9, 12, 8], "letters": "d"}
    content = {"images": "x/{id}.jpg", "depth": depth, "splits": {"train": "0", "test": "1"}}
    (tmp_path / "dataset.yaml").write_text(yaml.safe_dump(content))
    photograph(tmp_path / "x" / "0.jpg", noise(0, 32, 48, 3), 6)
    save(tmp_path / "d" / "0.npy", np.ones((24, 16)))
    assert load(tmp_path, "d", size=16).targets["d"].shape == (1, 1, 16, 16)
    save(tmp_path / "d" / "0.npy", np.ones((16, 24)))
    with pytest.raises(ValueError, match="0.npy should lie as its image is seen, which EXIF turns"):
        load(tmp_path, "d", size=16)


def kinds_of_images() -> dict[str, Image.Image]:
    colours = Image.fromarray(noise(0, 4, 6, 3))
    grey, transparent = colours.convert("L"), colours.quantize(8)
    transparent.info["transparency"] = bytes(range(0, 64, 8))
    return {
        "grey.png": grey,
        "grey.jpg": grey,
        "bits.png": colours.convert("1"),
        "alpha.png": Image.merge("LA", (grey, grey)),
        "RGBA.png": colours.convert("RGBA"),
        "CMYK.jpg": colours.convert("CMYK"),
        "palette.png": transparent,
    }


@pytest.mark.parametrize("name", kinds_of_images())
def test_images_of_every_kind_are_read_as_they_are_seen(tmp_path, name):
    image = kinds_of_images()[name]
    image.save(tmp_path / name)
    read, orientation = pixels.read_colours(str(tmp_path / name))
    assert (read.mode, read.size, orientation) == ("RGB", (6, 4), 1)
    expected = image.convert("RGBA").convert("RGB") if image.mode != "CMYK" else image.convert("RGB")
    difference = np.abs(np.asarray(read).astype(int) - np.asarray(expected))
    assert difference.max() == 0 if name.endswith("png") else difference.mean() < 40


def test_images_that_would_lose_their_values_are_refused(tmp_path):
    Image.fromarray(noise(0, 4, 6).astype(np.uint16) * 256).save(tmp_path / "deep.png")
    with pytest.raises(
        ValueError, match="should be a PNG of up to 8 bits a channel or a JPEG. Found 16-bit grey PNG.$"
    ):
        pixels.read_colours(str(tmp_path / "deep.png"))
    for over, good in ((1.0000001, True), (1.001, True), (-1e-7, True), (1.01, False), (-0.01, False), (np.nan, False)):
        values = np.full((4, 6, 3), 0.5, np.float32)
        values[0, 0] = over
        np.save(tmp_path / "x.npy", values)
        if good:
            image = np.asarray(pixels.read_colours(str(tmp_path / "x.npy"))[0])
            assert image[0, 0].tolist() == [255 * (over > 0.5)] * 3
        else:
            with pytest.raises(ValueError, match="should hold uint8, or floats in .0, 1.. Found float32"):
                pixels.read_colours(str(tmp_path / "x.npy"))


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_arrays_may_have_their_channels_first(tmp_path, dtype):
    image, flow, classes = noise(0, 4, 6, 3), noise(1, 4, 6, 2).astype(np.float32), noise(2, 4, 6) % 3
    task = {"letter": "v", "name": "flow", "kind": "regression", "channels": 2, "files": "v/{id}.npy"}
    label = {"letter": "s", "kind": "classes", "classes": 3, "files": "s/{id}.npy"}
    content = {"images": "x/{id}.npy", "tasks": [label, task], "splits": {"train": "*_a", "test": "*_b"}}
    (tmp_path / "dataset.yaml").write_text(yaml.safe_dump(content))
    image = image if dtype == np.uint8 else (image / 255).astype(dtype)
    for name, turn in (("0_a", lambda values: values), ("1_a", lambda values: np.moveaxis(values, 2, 0))):
        for folder, values in {"x": image, "v": flow, "s": classes[..., None]}.items():
            save(tmp_path / folder / f"{name}.npy", turn(values))
    found = load(tmp_path, "sv")
    assert torch.equal(found.images[0], found.images[1])
    assert np.array_equal(found.images[0].permute(1, 2, 0), noise(0, 4, 6, 3)[:, 1:5])
    for letter in "sv":
        assert torch.equal(found.targets[letter][0], found.targets[letter][1])
    save(tmp_path / "v" / "1_a.npy", np.zeros((4, 6, 4)))
    with pytest.raises(ValueError, match="should be an array .H, W, 2.. Found .4, 6, 4."):
        load(tmp_path, "sv")


DATASETS = yaml.safe_load((Path(__file__).parents[1] / "docs" / "datasets.yaml").read_text())
IDS = {"ade20k": ("ADE_1", "ADE_2"), "kitti": ("000010", "000190"), "hypersim": ("ai_001/frame.0000", "ai_050/frame.1")}


def raw_of(label: description.Label, path: str, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Pixels of a label as its file has them, and its targets by hand, NaN for none; the first pixel has none."""
    random = np.random.default_rng(seed)
    if label.kind == "classes":
        classes = random.integers(0, label.task.channels, (8, 8))
        known = np.array(label.values or np.arange(label.task.channels) - (label.shift or 0))
        raw, target = known[classes], classes.astype(float)
    else:
        raw = random.integers(1, 200, (8, 8, label.channels) if label.channels > 1 else (8, 8)).astype(float)
        raw = raw / 256 if label.within else raw
        target = raw * label.scale + label.offset
    if label.masked:
        raw[0, 0] = 0 if label.shift else label.invalid
        target[0, 0] = np.nan
    deep = np.uint16 if label.png == "16-bit grey" else np.uint8
    return (raw.astype(deep) if path.endswith("png") else raw.astype(np.float32)), target


@pytest.mark.parametrize("name", DATASETS)
def test_published_data_sets_as_a_description_says_them(tmp_path, name):
    (tmp_path / "dataset.yaml").write_text(yaml.safe_dump(DATASETS[name]))
    what, targets = description.read(tmp_path), {}
    for number, (split, each) in enumerate(zip(("train", "test"), IDS.get(name, ("1", "2")), strict=True)):
        of_split = getattr(what.splits, split)
        places = {"id": each, "split": of_split}
        if of_split.endswith("txt"):
            (tmp_path / of_split).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / of_split).write_text(f"{each}\n")
        save(tmp_path / what.images.format_map(places), noise(number, 8, 8, 3))
        for label in what.tasks:
            path = label.files.format_map(places)
            raw, targets[split, label.letter] = raw_of(label, path, number)
            save(tmp_path / path, raw)
    assert not data.check("folder", tmp_path).stops.any()
    letters = "".join(label.letter for label in what.tasks)
    for split in ("train", "test"):
        found = load(tmp_path, letters, split, 8)
        for letter in letters:
            values, mask = found.targets[letter][0].float().numpy(), found.masks[letter]
            values = values if values.ndim == 2 else values.transpose(1, 2, 0)
            expected = targets[split, letter].reshape(values.shape)
            valid = np.isfinite(expected).all(axis=-1) if expected.ndim == 3 else np.isfinite(expected)
            np.testing.assert_allclose(values[valid], expected[valid], rtol=1e-6, atol=1e-6)
            assert np.array_equal(np.ones((8, 8), bool) if mask is None else mask[0], valid)


@pytest.mark.parametrize(
    ("suffix", "how"),
    [
        (".mat", "convert .mat to .npy by numpy.save(new, scipy.io.loadmat(old)[name]), or to .png"),
        (".hdf5", "convert .hdf5 to .npy by numpy.save(new, h5py.File(old)[name][:]), or to .png"),
        (".jpg", "convert .jpg to .npy by numpy.save(new, numpy.asarray(PIL.Image.open(old))), or to .png"),
        (".xyz", "convert .xyz to .npy, or to .png"),
    ],
)
def test_labels_of_another_kind_are_one_line_that_says_how_to_convert_them(root, suffix, how, capsys):
    described(root, files=f"s/{{id}}{suffix}")
    with pytest.raises(ValueError, match="should end in one of .png, .npy; ") as error:
        load(root)
    assert how in str(error.value)
    assert len(str(error.value).splitlines()) == 1
    described(root)
    for path in (root / "s").iterdir():
        path.rename(path.with_suffix(suffix))
    with pytest.raises(ValueError, match=f"nor any other for train, but s/00{suffix}: ") as error:
        load(root)
    assert how in str(error.value)
    (root / "x").rename(root / "y")
    described(root, images="y/{id}.jpg")
    with pytest.raises(ValueError, match=r"Found none for train, but y/00.png\.$"):
        load(root)


@pytest.mark.parametrize(
    ("images", "files", "train", "said"),
    [
        ("{id}.color.png", "s/{id}.png", "0*", "none for train; {root} holds 'dataset.yaml', 'notes', 's' and 1 more."),
        ("y/{id}.png", "s/{id}.png", "0*", "none for train; {root} holds 'dataset.yaml', 'notes', 's' and 1 more."),
        ("x/{split}/{id}.png", "s/{split}/{id}.png", "a", "train; {root}/x holds '00.png', '01.png', '10.png' and 1"),
        ("notes/{id}.png", "s/{id}.png", "0*", "none for train; {root}/notes holds '00.txt'."),
        ("x/{id}.png", "s/{id}.png", "z*", "splits.train should match images. Found 'z*' and 4 ids such as '00'."),
        ("x/{id}.png", "x/{id}.npy", "0*", "for train; {root}/x holds '00.png', '01.png', '10.png' and 1"),
    ],
)  # fmt: skip
def test_a_pattern_that_matches_nothing_is_told_what_is_there_instead(root, images, files, train, said):
    """And that nothing has to be converted: what is there is neither image nor label in another format."""
    (root / "notes").mkdir()
    (root / "notes" / "00.txt").write_text("of a kitchen")
    described(root, images, {"train": train, "test": "1*"}, files=files)
    with pytest.raises(ValueError, match=f"^{root}") as error:
        load(root)
    assert said.format(root=root) in str(error.value)
    assert "convert" not in str(error.value)


def test_colours_in_the_place_of_classes_are_told_what_they_may_be(root):
    save(root / "s" / "00.png", noise(0, 4, 6, 3))
    with pytest.raises(
        ValueError, match="Found 8-bit RGB PNG: where colours .* `colors` .* COCO's panoptic files, write"
    ):
        load(root)
    described(root, classes=2, colors=[[0, 0, 0], [1, 1, 1]])
    with pytest.raises(ValueError, match="should hold one of .* Found "):
        load(root)


def test_a_check_says_which_images_are_in_both_splits_by_content(root, capsys):
    assert main(["check-data", "folder", str(root)]) == 0
    assert "byte for byte" not in capsys.readouterr().out
    save(root / "x" / "10.png", noise(1, 4, 6, 3))
    assert main(["check-data", "folder", str(root)]) == 0
    assert "1 of 2 images to test are images to train, byte for byte: 10 is 01." in capsys.readouterr().out
    table = data.check("folder", root)
    assert table[table.warning != ""][["split", "task"]].to_numpy().tolist() == [["test", "images"]]


def test_a_check_says_what_is_turned_and_draws_what_was_read(tmp_path, capsys):
    """The sheet has a row a frame and a column a task; a hole is white, as is the paper around the pictures."""
    described(tmp_path, "x/{id}.jpg", invalid=255, splits={"train": "0*", "test": "1*"})
    for number in range(11):
        name = f"{number:02d}" if number < 10 else "1"
        photograph(tmp_path / "x" / f"{name}.jpg", np.full((32, 48, 3), 40, np.uint8), 6 if number == 0 else 1)
        save(tmp_path / "s" / f"{name}.png", np.full((32, 48), 2 if number < 10 else 255, np.uint8))
    sheet = tmp_path / "sheets" / "sheet.png"
    assert main(["check-data", "folder", str(tmp_path), "--sheet", str(sheet)]) == 0
    written = capsys.readouterr().out
    assert "1 of 10 images to train are turned as EXIF says, their labels with them." in written
    assert f"{sheet} shows 9 of the frames; pixels without a label are white." in written
    drawn = np.asarray(Image.open(sheet).convert("RGB")).astype(int)
    near = lambda colour: np.abs(drawn - colour).max(axis=2) < 4  # noqa: E731
    rows = np.flatnonzero(near([40, 40, 40]).sum(axis=1) > 100)  # of the images
    label = np.flatnonzero(near([255, 127, 14])[rows[0] + 5])  # columns; class 2 is orange
    assert len(label) > 100
    assert (drawn[rows[-1] - 5, label] == 255).all(), "the last frame is a hole"
    assert (np.diff(rows) > 1).sum() == 8
    for number in range(8):
        (tmp_path / "x" / f"{number:02d}.jpg").write_bytes(b"bad")
    assert main(["check-data", "folder", str(tmp_path), "--sheet", str(sheet)]) == 1
    assert f"{sheet} shows 1 of the frames" in capsys.readouterr().out
    (tmp_path / "x" / "1.jpg").write_bytes(b"bad")
    assert main(["check-data", "folder", str(tmp_path), "--sheet", str(sheet)]) == 1
    assert f"{sheet} is not drawn" in capsys.readouterr().out


def test_frames_that_lack_labels_of_some_tasks_are_drawn_all_the_same(tmp_path, capsys):
    """Their ids end alike."""
    tasks = [{"letter": x, "name": x, "kind": "regression", "files": f"{x}/{{id}}.npy"} for x in "gh"]
    content = {"images": "x/{id}.png", "tasks": tasks, "splits": {"train": "a*", "test": "b*"}}
    (tmp_path / "dataset.yaml").write_text(yaml.safe_dump(content))
    for scene, letter in (("a", "g"), ("aa", "h"), ("b", "g")):
        save(tmp_path / "x" / scene / "a_very_long_name_of_a_frame.png", noise(0, 8, 8, 3))
        save(tmp_path / letter / scene / "a_very_long_name_of_a_frame.npy", np.ones((8, 8)))
    assert main(["check-data", "folder", str(tmp_path), "--sheet", str(tmp_path / "sheet.png")]) == 1
    assert "shows 3 of the frames" in capsys.readouterr().out
