"""Several hundred wrong parameters, files, checkpoints and task sets: each is one line of ours that names it, never a
result, and never a traceback that ends in a library."""

from __future__ import annotations

import os
import pickle
import shutil
import struct
import traceback
import warnings
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from string import ascii_letters

import numpy as np
import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from raw_png import chunk, raw_png
from tqdm import tqdm

from mtrlib import batch, data, machine, models
from mtrlib.data import decoding
from mtrlib.studies import parameters, rq3
from mtrlib.tasks import parse

OURS = Path(data.__file__).parents[1]
SIDE = 16
quick = settings(
    max_examples=60, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck)
)


@pytest.fixture(autouse=True)
def quiet(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(decoding, "bar", lambda **_: tqdm(disable=True))
    monkeypatch.setenv("MTRLIB_CACHE", str(tmp_path_factory.mktemp("cache")))


def refusal(call: Callable[[], object]) -> str | None:
    """What the call says as it refuses, None for a result. It is to be a ValueError or OSError raised by our code."""
    try:
        call()
    except (ValueError, OSError) as error:
        found = error
    else:
        return None
    last = Path(traceback.extract_tb(found.__traceback__)[-1].filename)
    assert type(found) in (ValueError, OSError), f"{type(found)}: {found}"
    assert last.is_relative_to(OURS), f"ends in {last}: {found}"
    return str(found)


# ---- parameters

PARAMETERS = machine.root() / "params"
KINDS = {name: kind for name, (kind, _) in batch.NOTEBOOKS.items()}
TRAPS = {  # texts of YAML, by the type of what should be there
    bool: ["1", "0", "'yes'", "null", "[]", "1.0", "yess", "{}"],
    int: ["1e-4", "8/255", "no", "null", ".nan", ".inf", "-1", "2.5", "'5'", "[]", "{}", "5 5", "2001-01-01", "1_0e2"],
    float: ["1e-4", "8/255", "no", "null", ".nan", ".inf", "-.inf", "-1", "'5'", "[1.0]", "{}", "1:30:x", "0x"],
    str: ["no", "null", "5", "1.5", "[]", "{a: 1}", "2001-01-01", ".nan"],
    list: ["no", "null", "5", "{}", "'ab'", "[no]", "[null]", "[-1]", "[[1]]", "[1e-4]", "[8/255]", "[.nan]", "[{}]"],
    dict: [
        "no",
        "null",
        "5",
        "'ab'",
        "[]",
        "{sd: no}",
        "{sd: 1}",
        "{sd: [1]}",
        "{sd: [1, -1]}",
        "{sd: [1, .nan]}",
        "{1: [1, 1]}",
    ],
}
WORDS = ["sdx", "ss", "", "s1", "resnet19", "timm/none_such", "adam", "sgdd", "../..", "\x00", "é"]
FREE = {"root", "store", "released", "output"}  # texts of any kind


def smoke(name: str, tmp_path: Path) -> dict:
    values = batch.read(PARAMETERS / "smoke")[name]
    if values.get("example"):
        values["root"] = str(data.write_example(tmp_path / "example", 2, 2))
    return values


@pytest.mark.parametrize("name", KINDS)
def test_a_wrong_parameter_is_named(name, tmp_path):
    good = smoke(name, tmp_path)
    parameters.check(dict(good), KINDS[name])
    cases = 0
    for parameter, value in good.items():
        texts = [yaml.safe_load(text) for text in TRAPS[type(value)]]
        texts += WORDS if isinstance(value, str) and parameter not in FREE | {"more_tasks"} else []
        for wrong in texts:
            told = refusal(lambda p=parameter, w=wrong: parameters.check({**good, p: w}, KINDS[name]))
            assert told is not None, f"{parameter} = {wrong!r} is accepted"
            assert len(told.splitlines()) == 1, told
            assert parameter in told, f"{parameter} = {wrong!r}: {told}"
            cases += 1
    for other in ("tassk", "Steps", "x", "été"):
        told = refusal(lambda n=other: parameters.check({**good, n: 1}, KINDS[name]))
        assert f"Unknown parameter {other}" in told
    assert cases > 200


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.dates(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=4,
)


@quick
@given(drawn=st.data())
def test_any_values_at_all_pass_or_are_refused_by_name(drawn):
    good = batch.read(PARAMETERS / "smoke")["rq3_task_weights"]
    names = drawn.draw(st.lists(st.sampled_from(sorted(good)), min_size=1, max_size=3, unique=True))
    told = refusal(
        lambda: parameters.check({**good, **{name: drawn.draw(values) for name in names}}, rq3.RQ3),
    )
    assert told is None or any(name in told for name in names)


# ---- task sets


WRONG_SETS = ["", "ss", "sx", "sdDnkKeEprAs", "sdDnkKeEprAz", "s d", "s\n", "ſ", "5", "ß", None, 5, ["s", "d"], b"sd"]


@pytest.mark.parametrize("tasks", WRONG_SETS)
def test_wrong_task_sets(tasks):
    calls = (
        lambda: data.load("rooms", tasks=tasks, split="train", size=16, limit=1),
        lambda: models.build("resnet18_small", tasks),
    )
    for call in calls:
        assert "Parameter tasks should be " in refusal(call)
        assert f"Found tasks = {tasks!r}" in refusal(call)


@quick
@given(st.text(alphabet=st.one_of(st.sampled_from(ascii_letters), st.characters()), max_size=14))
def test_a_task_set_is_different_letters(tasks):
    right = len(tasks) > 0 and len(set(tasks)) == len(tasks) and set(tasks) <= set(ascii_letters)
    assert (refusal(lambda: parse(tasks)) is None) == right


@pytest.mark.parametrize("name", ["size", "limit"])
@pytest.mark.parametrize("value", [0, -1, 1.5, "16", True, float("nan"), [16]])
def test_wrong_sizes(name, value):
    told = refusal(lambda: data.load("rooms", **{"tasks": "s", "split": "train", "size": 16, name: value}))
    assert f"Parameter {name} should be a positive integer. Found {name} = {value!r}" in told


# ---- data trees


def bomb(width: int, height: int, bits: int = 8, colour: int = 2) -> bytes:
    """A PNG of few bytes that says that it is large."""
    return raw_png(width, height, bits, colour, bytes(1_000_000))


def texts_bomb() -> bytes:
    head = bomb(SIDE, SIDE)[:33]
    return head + chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(200_000_000), 1)) + bomb(SIDE, SIDE)[33:]


def encoded(values: np.ndarray, form: str = "PNG") -> bytes:
    buffer = BytesIO()
    np.save(buffer, values) if form == "NPY" else Image.fromarray(values).save(buffer, form)
    return buffer.getvalue()


class Trap:
    """Says so when it is unpickled, which nothing may do."""

    def __reduce__(self):
        return pytest.fail, ("unpickled",)


GREY8 = np.arange(SIDE * SIDE, dtype=np.uint8).reshape(SIDE, SIDE)
COLOUR = np.stack([GREY8, GREY8.T, GREY8[::-1]], axis=-1)
GREY16 = GREY8.astype(np.uint16) * 200
FLOATS = GREY16.astype(np.float32)
OTHERS = {
    "0 bytes": b"",
    "a text": b"404: Not Found",
    "a page": b"<html></html>" * 50,
    "zeros": bytes(1000),
    "a signature": b"\x89PNG\r\n\x1a\n",
    "a GIF": encoded(GREY8, "GIF"),
    "a TIFF": encoded(GREY16, "TIFF"),
    "a bomb": bomb(60_000, 60_000),
    "a large one": bomb(13_000, 13_000),
    "no width": bomb(0, 16),
    "a text bomb": texts_bomb(),
    "another size": encoded(np.zeros((SIDE, SIDE + 1, 3), np.uint8)),
    "an archive": None,
    "a pickle": pickle.dumps(Trap()),
    "an array of objects": encoded(np.array([[Trap()] * SIDE] * SIDE, dtype=object), "NPY"),
    "a JPEG cut": encoded(COLOUR, "JPEG")[:-100],
}
archive = BytesIO()
with zipfile.ZipFile(archive, "w") as content:
    content.writestr("a", "b")
OTHERS["an archive"] = archive.getvalue()


def folder(root: Path) -> dict[str, bytes]:
    """A `folder` data set of one image a split; its files."""
    label = {"letter": "s", "kind": "classes", "classes": 255, "files": "s/{id}.png", "invalid": 255}
    depth = {"letter": "d", "kind": "regression", "files": "d/{id}.png"}
    height = {"letter": "h", "kind": "regression", "files": "h/{id}.npy"}
    what = {"images": "x/{id}.png", "tasks": [label, depth, height], "splits": {"train": "a", "test": "b"}}
    files = {"dataset.yaml": yaml.safe_dump(what).encode()}
    for name in "ab":
        files |= {f"x/{name}.png": encoded(COLOUR), f"s/{name}.png": encoded(GREY8)}
        files |= {f"d/{name}.png": encoded(GREY16), f"h/{name}.npy": encoded(FLOATS, "NPY")}
    return _written(root, files)


def taskonomy(root: Path) -> dict[str, bytes]:
    """A tree of one frame to train and one to test."""
    files = {}
    for point in (1, 1200):
        for domain, pixels in {
            **{"rgb": COLOUR, "segment_semantic": GREY8 % 18, "depth_zbuffer": GREY16},
            **{"normal": COLOUR, "edge_occlusion": GREY16},
        }.items():
            files[f"{domain}/point_{point}_view_0_domain_{domain}.png"] = encoded(pixels)
    return _written(root, files)


def arrays(root: Path, classes: int = 7) -> dict[str, bytes]:
    """The arrays of nyuv2 and cityscapes, an image a split."""
    files = {}
    for split in ("train", "val"):
        values = {
            "image": COLOUR / 255,
            "label": GREY8 % classes,
            "depth": FLOATS[..., None] / 5000,
            "normal": COLOUR / 255,
        }
        files |= {f"{split}/{name}/0.npy": encoded(array.astype(float), "NPY") for name, array in values.items()}
    return _written(root, files)


def official(root: Path) -> dict[str, bytes]:
    """The official cityscapes, an image a split."""
    files = {}
    for split in ("train", "val"):
        files[f"leftImg8bit/{split}/ulm/ulm_0_leftImg8bit.png"] = encoded(COLOUR)
        files[f"gtFine/{split}/ulm/ulm_0_gtFine_labelIds.png"] = encoded(GREY8 % 34)
        files[f"disparity/{split}/ulm/ulm_0_disparity.png"] = encoded(GREY16)
    return _written(root, files)


def _written(root: Path, files: dict[str, bytes]) -> dict[str, bytes]:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return files


SETS = {  # what writes it, the tasks, and what the files to train have in their names
    "folder": (folder, "sdh", "a."),
    "taskonomy": (taskonomy, "sdnE", "point_1_"),
    "nyuv2": (arrays, "sdn", "train/"),
    "cityscapes": (arrays, "sd", "train/"),
    "cityscapes, official": (official, "sd", "train/"),
}


def load(name: str, root: Path, on_bad: str = "raise") -> data.Dataset:
    return data.load(name.split(",")[0], tasks=SETS[name][1], split="train", size=SIDE, root=root, on_bad=on_bad)


def used(name: str, files: dict[str, bytes]) -> list[str]:
    """Those of the files that `load` reads."""
    unused = "normal" if name == "cityscapes" else "\0"
    return [file for file in files if SETS[name][2] in file and unused not in file]


@pytest.mark.parametrize("name", SETS)
def test_other_content_is_refused_with_the_name_of_the_file(name, tmp_path):
    files = SETS[name][0](tmp_path)
    assert len(load(name, tmp_path)) == 1
    cases = 0
    for file in used(name, files):
        path = tmp_path / file
        for what, content in OTHERS.items():
            path.write_bytes(content)
            told = refusal(lambda: load(name, tmp_path))
            assert told is not None, f"{file}: {what} is accepted"
            assert told.startswith(str(path)) or "like its image" in told, f"{what}: {told}"
            assert len(told.splitlines()) == 1
            cases += 1
        path.write_bytes(files[file])
    assert cases >= 3 * 16
    assert len(load(name, tmp_path)) == 1


@pytest.mark.parametrize("name", SETS)
def test_what_is_no_file_at_all(name, tmp_path):
    """Missing, a folder, a link in a circle, a link to nothing. (Permissions bind no administrator: not tried.)"""
    files = SETS[name][0](tmp_path)
    (tmp_path / "one").symlink_to(tmp_path / "two")
    (tmp_path / "two").symlink_to(tmp_path / "one")
    ways = {
        "missing": lambda path: None,
        "a folder": lambda path: path.mkdir(),
        "a link in a circle": lambda path: path.symlink_to(tmp_path / "one"),
        "a link to itself": lambda path: path.symlink_to(path),
        "a link to nothing": lambda path: path.symlink_to(tmp_path / "none"),
    }
    for file in used(name, files):
        path = tmp_path / file
        for what, make in ways.items():
            path.unlink()
            make(path)
            told = refusal(lambda: load(name, tmp_path))
            assert told is not None, f"{file}: {what}"
            assert str(tmp_path) in told, f"{what}: {told}"
            path.rmdir() if what == "a folder" else path.unlink(missing_ok=True)
            path.write_bytes(files[file])
    for gone in ("train", "all"):
        for file in files:
            if file != "dataset.yaml" and (gone == "all" or SETS[name][2] in file):
                (tmp_path / file).unlink(missing_ok=True)
        assert str(tmp_path) in refusal(lambda: load(name, tmp_path))


@pytest.mark.parametrize("name", SETS)
def test_folders_that_are_none(name, tmp_path):
    """Each folder above a file: empty, a file, or a link in a circle instead."""
    root = tmp_path / "root"
    files = SETS[name][0](root)
    assert len(load(name, root)) == 1
    ways = {
        "empty": lambda path: path.mkdir(),
        "a file": lambda path: path.write_bytes(b"a file"),
        "a link to itself": lambda path: path.symlink_to(path),
    }
    for above in sorted({above for file in used(name, files) for above in (root / file).parents[:-1]}):
        if not above.is_relative_to(root):
            continue
        for what, make in ways.items():
            above.rename(tmp_path / "away")
            make(above)
            told = refusal(lambda: load(name, root))
            assert told is not None, f"{above}: {what}"
            assert str(root) in told, f"{what}: {told}"
            assert len(told.splitlines()) == 1
            above.rmdir() if what == "empty" else above.unlink()
            (tmp_path / "away").rename(above)
    assert len(load(name, root)) == 1


NO_UTF8 = os.fsdecode(b"a\xff")


@pytest.mark.parametrize("name", SETS)
def test_a_folder_whose_name_is_no_utf8(name, tmp_path):
    root = tmp_path / NO_UTF8
    SETS[name][0](root)
    assert "should have names in UTF-8" in refusal(lambda: load(name, root))
    assert "should have names in UTF-8" in refusal(lambda: data.check(name.split(",")[0], root))
    assert len(load(name, root.rename(tmp_path / "a²"))) == 1


@pytest.mark.parametrize(
    ("name", "image", "other"),
    [
        ("folder", "x/a.png", f"x/{NO_UTF8}.png"),
        ("nyuv2", "train/image/0.npy", f"train/image/{NO_UTF8}.npy"),
        ("taskonomy", "building", NO_UTF8),
    ],
)
def test_an_image_whose_name_is_no_utf8(name, image, other, tmp_path):
    SETS[name][0](tmp_path / "root" / ("building" if name == "taskonomy" else ""))
    root = tmp_path / "root"
    if name == "folder":
        what = yaml.safe_load((root / "dataset.yaml").read_text())
        (root / "dataset.yaml").write_text(yaml.safe_dump(what | {"splits": {"train": "a*", "test": "b"}}))
    assert len(load(name, root)) == 1
    (shutil.copytree if (root / image).is_dir() else shutil.copy)(root / image, root / other)
    assert "should have names in UTF-8" in refusal(lambda: load(name, root))


def test_numbers_in_names_that_are_no_ascii_digits(tmp_path):
    what = yaml.safe_load(folder(tmp_path)["dataset.yaml"])
    (tmp_path / "dataset.yaml").write_text(yaml.safe_dump(what | {"splits": {"train": "[!b]*", "test": "b"}}))
    for other in ("²", "٣", "a²", "10", "9"):
        for part in ("x/a.png", "s/a.png", "d/a.png", "h/a.npy"):
            shutil.copy(tmp_path / part, tmp_path / part.replace("a.", f"{other}."))
    assert load("folder", tmp_path).ids == ("9", "10", "a", "a²", "²", "٣")


@pytest.mark.parametrize("name", SETS)
def test_damage_anywhere_is_refused_or_changes_nothing(name, tmp_path):
    """Cut and changed at 60 places drawn at random; a PNG has checksums, of an array what is not finite is found."""
    files = SETS[name][0](tmp_path)
    good, draw = load(name, tmp_path), np.random.default_rng(0)
    chosen = [file for file in used(name, files) if not file.endswith("yaml")]
    refused = 0
    for number in range(60):
        file = chosen[number % len(chosen)]
        content = bytearray(files[file])
        place = int(draw.integers(len(content)))
        if number % 2:
            content = content[:place]
        else:
            content[place] ^= int(draw.integers(1, 256))
        (tmp_path / file).write_bytes(content)
        found = []
        told = refusal(lambda found=found: found.append(load(name, tmp_path)))
        refused += told is not None
        if told is not None:
            assert str(tmp_path / file) in told
        elif file.endswith(".npy"):
            assert all(values.isfinite().all() for values in found[0].targets.values())
        else:
            assert all(torch.equal(found[0].targets[t], good.targets[t]) for t in good.targets)
        (tmp_path / file).write_bytes(files[file])
    assert refused >= (30 if any(file.endswith("0.npy") for file in chosen) else 45), "each that is cut, at the least"


@quick
@given(drawn=st.data())
def test_a_changed_description_is_refused_or_read(drawn, tmp_path_factory):
    root = tmp_path_factory.mktemp("folder")
    content = bytearray(folder(root)["dataset.yaml"])
    for _ in range(drawn.draw(st.integers(1, 4))):
        content[drawn.draw(st.integers(0, len(content) - 1))] = drawn.draw(st.integers(0, 255))
    (root / "dataset.yaml").write_bytes(content)
    told = refusal(lambda: load("folder", root))
    assert told is None or str(root) in told or "should be different letters" in told


def one(value: float) -> Callable[[np.ndarray], np.ndarray]:
    """Puts it into one pixel."""
    return lambda array: np.where(np.arange(array.size).reshape(array.shape) == 100, value, array)


ARRAYS = {
    "NaN": one(np.nan),
    "infinite": one(np.inf),
    "complex": lambda array: array.astype(complex),
    "texts": lambda array: array.astype(str),
    "objects": lambda array: array.astype(object),
    "a structure": lambda array: array.astype([("a", float)]),
    "dates": lambda array: array.astype("datetime64[s]"),
    "no rows": lambda array: array[:0],
    "one axis": lambda array: array.ravel(),
    "five axes": lambda array: array.reshape(*array.shape, *[1] * (5 - array.ndim)),
    "two channels": lambda array: np.stack([array.reshape(SIDE, SIDE, -1)[..., 0]] * 2, axis=-1),
    "another size": lambda array: array[:, 1:],
    "one number": lambda array: array.ravel()[0],
}


@pytest.mark.parametrize("fault", ARRAYS)
@pytest.mark.parametrize("name", ["folder", "nyuv2", "cityscapes"])
def test_wrong_arrays(name, fault, tmp_path):
    files = SETS[name][0](tmp_path)
    for file in (file for file in used(name, files) if file.endswith(".npy")):
        path = tmp_path / file
        np.save(path, ARRAYS[fault](np.load(path)))
        told = refusal(lambda: load(name, tmp_path))
        assert told is not None, f"{file} is accepted"
        assert told.startswith(f"{path} ") or "like its image" in told, told
        path.write_bytes(files[file])


@pytest.mark.parametrize("name", ["nyuv2", "cityscapes"])
@pytest.mark.parametrize(
    ("file", "value", "message"),
    [("label", value, "should hold one of [0, 1") for value in (19, 254, 1e9, -2, 0.5)]
    + [("image", value, "should hold uint8, or floats in [0, 1]") for value in (1.01, -0.01, 255)],
)
def test_values_out_of_their_range(name, file, value, message, tmp_path):
    files = arrays(tmp_path)
    path = tmp_path / "train" / file / "0.npy"
    np.save(path, one(value)(np.load(path)))
    assert refusal(lambda: load(name, tmp_path)).startswith(f"{path} {message}")
    path.write_bytes(files[f"train/{file}/0.npy"])
    assert len(load(name, tmp_path)) == 1


PALETTE = Image.fromarray(GREY8 % 34).convert("P")
WRONG_PNG = {
    "leftImg8bit": [GREY16],
    "gtFine": [GREY16, COLOUR, GREY8 > 7, PALETTE, np.where(GREY8 == 9, GREY8 * 0 + 34, GREY8 % 34), GREY8[1:] % 34],
    "disparity": [GREY8, COLOUR, GREY8 > 7, PALETTE, GREY16[:, 1:]],
}


@pytest.mark.parametrize("file", WRONG_PNG)
def test_wrong_images_of_the_official_cityscapes(file, tmp_path):
    """Of another depth, colour, size or class: an 8-bit disparity would be another depth."""
    path = tmp_path / next(name for name in official(tmp_path) if name.startswith(f"{file}/train"))
    for wrong in WRONG_PNG[file]:
        image = wrong if isinstance(wrong, Image.Image) else Image.fromarray(wrong)
        image.save(path)
        told = refusal(lambda: load("cityscapes, official", tmp_path))
        assert told is not None, f"{image} is accepted"
        assert told.startswith(f"{path} should "), told


@pytest.mark.parametrize(
    "content", [b"", b"no archive", OTHERS["an archive"], OTHERS["an archive"][:-30]], ids=range(4)
)
def test_archives_of_cityscapes_that_are_none(content, tmp_path):
    for name in ("leftImg8bit", "gtFine"):
        (tmp_path / f"{name}_trainvaltest.zip").write_bytes(content)
    assert refusal(lambda: load("cityscapes, official", tmp_path)).startswith(str(tmp_path))


@pytest.mark.parametrize("shape", [(10**12, 10**6), (200_000, 200_000), (-1, 5), (2**70, 1)])
def test_an_array_that_says_that_it_is_large(shape, tmp_path):
    files = folder(tmp_path)
    path = tmp_path / "h" / "a.npy"
    header = files["h/a.npy"].replace(f"({SIDE}, {SIDE})".encode(), str(shape).encode())
    path.write_bytes(header[:8] + struct.pack("<H", len(header) - 10 - 4 * SIDE * SIDE) + header[10:])
    assert refusal(lambda: load("folder", tmp_path)).startswith(f"{path} is truncated or damaged")


# ---- checkpoints


def saved(content: object) -> bytes:
    buffer = BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


NORMAL = "task_to_decoder.normal.upconv0.weight"
CHECKPOINTS = {
    "empty": b"",
    "a text": b"not found",
    "an archive": OTHERS["an archive"],
    "a pickle": pickle.dumps({"state_dict": {}}),
    "an image": encoded(COLOUR),
    **{f"cut to {size}": saved({"a": torch.zeros(3)})[:size] for size in (1, 4, 30, 100, 300, 600, 900)},
    **{
        f"content {number}": saved(content)
        for number, content in enumerate(
            [
                *(None, 5, "x", [], {}, (1, 2), torch.zeros(2), {"state_dict": None}, {"state_dict": {}}),
                *({"state_dict": {"a": 1}}, {1: torch.zeros(1)}, {"": torch.zeros(1)}, {"module.": torch.zeros(1)}),
                *({"encoder.conv1.weight": torch.zeros(1)}, {"task_to_decoder.": torch.zeros(1)}),
                *({"task_to_decoder.none.x": torch.zeros(1)}, {"task_to_decoder.normal": torch.zeros(1)}),
                OrderedDict({NORMAL: torch.zeros(3, 0)}),
                {NORMAL: torch.zeros(4, 4).to_sparse()},
                {"task_to_decoder.segmentsemantic.conv_decode4.weight": torch.zeros(0, 32, 3, 3)},
                {"task_to_decoder.segmentsemantic.conv_decode4.weight": torch.tensor(1.0)},
            ]
        )
    },
}


@pytest.mark.parametrize("fault", CHECKPOINTS)
def test_wrong_checkpoints(fault, tmp_path):
    path = tmp_path / "checkpoint.pt"
    path.write_bytes(CHECKPOINTS[fault])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch, on what it reads
        told = refusal(lambda: models.load_published(path))
    assert told.startswith(f"{path} should "), told


@pytest.mark.parametrize("fault", ["NaN", "whole numbers", "complex", "sparse"])
def test_weights_that_are_no_numbers_are_refused(fault, tmp_path):
    state = models.build("resnet18", "n", seed=0).state_dict()
    state = {name.replace("decoders.n.", "task_to_decoder.normal."): value for name, value in state.items()}
    torch.save(state, tmp_path / "whole.pt")
    assert models.load_published(tmp_path / "whole.pt").tasks == "n"
    changes = {
        "NaN": lambda value: torch.full_like(value, float("nan")),
        "whole numbers": lambda value: value.long(),
        "complex": lambda value: value.to(torch.complex64),
        "sparse": lambda value: value.to_sparse(),
    }
    state["encoder.conv1.weight"] = changes[fault](state["encoder.conv1.weight"])
    torch.save(state, tmp_path / "changed.pt")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        told = refusal(lambda: models.load_published(tmp_path / "changed.pt"))
    assert "no finite numbers encoder.conv1.weight" in told


@pytest.mark.parametrize("path", ["", ".", "/", "none", "\0", "x" * 5000])
def test_paths_that_are_no_checkpoint(path):
    assert "Parameter path should be a checkpoint" in refusal(lambda: models.load_published(path))
