"""The Taskonomy reader on a tree that the tests write, and on real frames of Omnidata."""

from __future__ import annotations

import math
import os
import shutil
import threading
import time
import warnings
from io import BytesIO, StringIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from raw_png import raw_png
from tqdm import tqdm

from mtrlib import data
from mtrlib.data import cache, decoding, taskonomy
from mtrlib.specs import AttackSpec, DataSpec, ModelSpec
from mtrlib.store import Store

REAL = Path(__file__).parents[1] / ".." / "shared" / "frames" / "omnidata"
real_frames = pytest.mark.skipif(not REAL.is_dir(), reason=f"no real frames in {REAL}")


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    """A cache that no other test has written to, and no progress on the screen."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setattr(decoding, "bar", lambda **_: tqdm(disable=True))
    monkeypatch.setenv("MTRLIB_CACHE", str(folder))
    return folder


def grey16(values: list[int], size: int = 32) -> np.ndarray:
    """(size, size) uint16: the first pixels of the first row as given, 1000 elsewhere."""
    array = np.full((size, size), 1000, dtype=np.uint16)
    array[0, : len(values)] = values
    return array


def write_frame(building: Path, point: int, view: int = 0, **domains: np.ndarray) -> None:
    """Write one frame: rgb and all labels, but those in `domains` as given; None leaves a domain out."""
    generator = np.random.default_rng(point)
    frame = {
        "rgb": generator.integers(0, 256, (32, 32, 3), dtype=np.uint8),
        "segment_semantic": generator.integers(0, 18, (32, 32), dtype=np.uint8),
        "depth_zbuffer": grey16([0, 15, 255, 64499, 64500, 65535]),
        "depth_euclidean": grey16([64499, 64500]),
        "normal": generator.integers(0, 256, (32, 32, 3), dtype=np.uint8),
        "edge_occlusion": grey16([0, 205, 410, 65535]),
        "edge_texture": grey16([0, 2621, 2622, 5243, 65535]),
        "keypoints2d": grey16([0, 164, 328, 65535]),
        "keypoints3d": grey16([0, 13107, 65535]),
        "principal_curvature": generator.integers(0, 256, (32, 32, 3), dtype=np.uint8),
        "reshading": np.repeat(generator.integers(0, 256, (32, 32, 1), dtype=np.uint8), 3, axis=2),
    }
    for domain, pixels in (frame | domains).items():
        if pixels is not None:
            path = file_of(building, domain, point, view)
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path)


def file_of(building: Path, domain: str, point: int, view: int = 0) -> Path:
    return building / domain / f"point_{point}_view_{view}_domain_{domain}.png"


@pytest.fixture
def tree(tmp_path) -> Path:
    """Two buildings; points 2, 10 and 1199 to train, 1200 to test."""
    root = tmp_path / "tree"
    for building, point, view in (("b", 2, 0), ("a", 10, 0), ("a", 2, 11), ("a", 2, 3), ("a", 1200, 0), ("b", 1199, 0)):
        write_frame(root / building, point, view)
    return root


def load(root: Path, tasks: str = "sdDnE", split: str = "train", size: int = 32, **options) -> data.Dataset:
    return data.load("taskonomy", tasks=tasks, split=split, size=size, root=root, **options)


def replace_file(path: Path, content: bytes | np.ndarray) -> None:
    """Another content, and in any case another time."""
    before = path.stat().st_mtime_ns
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        Image.fromarray(content).save(path, format="PNG")
    os.utime(path, ns=(before + 10**9, before + 10**9))


def test_order_ids_and_split(tree):
    train = load(tree)
    assert train.ids == (
        "a/point_2_view_3",
        "a/point_2_view_11",
        "a/point_10_view_0",
        "b/point_2_view_0",
        "b/point_1199_view_0",
    )
    assert load(tree, split="test").ids == ("a/point_1200_view_0",)
    assert load(tree, limit=2).ids == train.ids[:2]
    assert load(tree / "b").ids == ("point_2_view_0", "point_1199_view_0")
    assert train.class_names == taskonomy.CLASSES == data.tasks("taskonomy")["s"].class_names
    assert len(taskonomy.CLASSES) == 18
    assert taskonomy.CLASSES[17] == "vase"
    for point, image in zip((2, 2, 10, 2, 1199), train.images, strict=True):
        expected = np.random.default_rng(point).integers(0, 256, (32, 32, 3), dtype=np.uint8)
        assert np.array_equal(image.permute(1, 2, 0).numpy(), expected)


def test_shapes_and_dtypes(tree):
    dataset = load(tree, size=16)
    assert dataset.images.shape == (5, 3, 16, 16)
    assert dataset.images.dtype == torch.uint8
    assert dataset.targets["s"].shape == (5, 16, 16)
    assert dataset.targets["s"].dtype == torch.uint8
    for letter, channels in (("d", 1), ("D", 1), ("n", 3), ("E", 1)):
        assert dataset.targets[letter].shape == (5, channels, 16, 16)
        assert dataset.targets[letter].dtype == torch.float32
    for letter in "sdDnE":
        assert dataset.masks[letter].shape == (5, 16, 16)
        assert dataset.masks[letter].dtype == torch.bool
    images, targets, _ = dataset.batch(torch.tensor([3, 0]))
    assert torch.equal(images[0], dataset.images[3].float() / 255)
    assert torch.equal(targets["d"][1], dataset.targets["d"][0])


def test_transforms_and_masks_by_hand(tmp_path):
    segments = np.ones((32, 32), dtype=np.uint8)
    segments[0, :3] = [0, 1, 17]
    normals = np.zeros((32, 32, 3), dtype=np.uint8)
    normals[0, :2] = [[255, 0, 51], [102, 204, 255]]
    write_frame(tmp_path, 0, segment_semantic=segments, normal=normals)
    dataset = load(tmp_path)
    target = {letter: values[0, ..., 0, :] for letter, values in dataset.targets.items()}  # first rows
    valid = {letter: mask[0, 0] for letter, mask in dataset.masks.items()}

    assert target["s"][:3].tolist() == [0, 1, 17]
    assert valid["s"][:3].tolist() == [False, True, True]
    # log 1 / log 2^16, log 2^4 / log 2^16, log 2^8 / log 2^16; 65535 is log 2^16 / log 2^16.
    assert target["d"][0, [0, 1, 2, 5]].tolist() == pytest.approx([0, 0.25, 0.5, 1], abs=1e-7)
    assert valid["d"][:7].tolist() == [True, True, True, True, False, False, True]
    assert target["D"][0, 2].item() == pytest.approx(math.log(1001) / math.log(65536), abs=1e-7)
    assert valid["D"][:3].tolist() == [True, False, True]
    assert target["n"][:, 0].tolist() == pytest.approx([1, -1, -0.6], abs=1e-6)
    assert target["n"][:, 1].tolist() == pytest.approx([-0.2, 0.6, 1], abs=1e-6)
    # 65535 * .00625 / 2 = 204.796875 is the middle: 205 lies 0.203125 / 204.796875 above it; 410 and more are clipped.
    assert target["E"][0, :4].tolist() == pytest.approx([-1, 0.000991836, 1, 1], abs=1e-7)
    for letter in "nE":  # of depth_euclidean, not of depth_zbuffer
        assert torch.equal(dataset.masks[letter], dataset.masks["D"])


def test_the_other_six_tasks_by_hand(tmp_path):
    curvature = np.zeros((32, 32, 3), dtype=np.uint8)
    curvature[0, :2] = [[127, 255, 9], [63, 0, 0]]
    shading = np.zeros((32, 32, 3), dtype=np.uint8)
    shading[0, 0], shading[0, 1] = 255, 51
    write_frame(tmp_path, 0, principal_curvature=curvature, reshading=shading)
    dataset = load(tmp_path, "kKeprA")
    target = {letter: values[0, :, 0] for letter, values in dataset.targets.items()}  # first rows
    # 65535 * .005 / 2 = 163.8375 and 65535 * .08 / 2 = 2621.4 are the middles of k and e.
    assert target["k"][0, :4].tolist() == pytest.approx([-1, 164 / 163.8375 - 1, 1, 1], abs=1e-6)
    assert target["e"][0, :5].tolist() == pytest.approx([-1, 2621 / 2621.4 - 1, 2622 / 2621.4 - 1, 1, 1], abs=1e-6)
    assert target["K"][0, :3].tolist() == pytest.approx([-1, -0.6, 1], abs=1e-6)
    assert target["p"][:, 0].tolist() == [0, 1]
    assert target["p"][:, 1].tolist() == [-0.5, -127 / 128]
    assert target["r"][0, :2].tolist() == pytest.approx([1, -0.6], abs=1e-6)
    torch.testing.assert_close(dataset.targets["A"], dataset.images.float() / 127.5 - 1)
    assert [letter for letter, mask in dataset.masks.items() if mask is None] == ["k", "e", "A"]
    for letter in "Kpr":
        assert dataset.masks[letter][0, 0, :3].tolist() == [True, False, True]
        assert dataset.masks[letter].sum() == 32 * 32 - 1
    assert [dataset.tasks[letter].channels for letter in "kKeprA"] == [1, 1, 1, 2, 1, 3]
    assert dataset.tasks.keys() == dataset.targets.keys()


def test_the_targets_of_curvature_are_not_nearly_constant(tmp_path):
    """The published code reads p as grey and subtracts about 120 of values in [0, 1]."""
    write_frame(tmp_path, 0)
    assert (load(tmp_path, "p").targets["p"].flatten(2).std(dim=2) > 0.4).all()  # uniform noise: 0.58


def test_geometry_mask_takes_what_a_frame_has(tmp_path):
    marked = np.full((32, 32), 255, dtype=np.uint8)
    marked[0, 7] = 0
    write_frame(tmp_path, 0, mask_valid=marked)
    write_frame(tmp_path, 1, depth_euclidean=None)
    write_frame(tmp_path, 2, depth_euclidean=None, depth_zbuffer=None)
    write_frame(tmp_path, 3, depth_euclidean=None, depth_zbuffer=None, mask_valid=marked > 0)  # a 1-bit file
    for letter in "nE":
        mask = load(tmp_path, letter).masks[letter]
        assert [(~row).nonzero().tolist() for row in mask] == [
            [[0, 1], [0, 7]],
            [[0, 4], [0, 5]],
            [],
            [[0, 7]],
        ]
    assert load(tmp_path, "d", limit=1).masks["d"][0, 0, 7]  # z-depth has its own raw depth alone
    shutil.rmtree(tmp_path / "mask_valid")
    for domain in ("depth_zbuffer", "depth_euclidean"):
        shutil.rmtree(tmp_path / domain)
    assert load(tmp_path, "n").masks == {"n": None}


def test_images_that_are_not_square_are_cut_at_the_centre(tmp_path):
    rgb = np.zeros((4, 8, 3), dtype=np.uint8)
    rgb[:, 2:6] = np.arange(16, dtype=np.uint8).reshape(4, 4, 1) * 10
    depth = np.full((4, 8), 65535, dtype=np.uint16)
    depth[:, 2:6] = 2 ** np.arange(16).reshape(4, 4) - 1  # log(1 + raw) / log(2^16) = k / 16
    rest = dict.fromkeys(("segment_semantic", "depth_euclidean", "normal", "edge_occlusion"))
    write_frame(tmp_path / "wide", 0, rgb=rgb, depth_zbuffer=depth, **rest)
    write_frame(tmp_path / "high", 0, rgb=rgb.swapaxes(0, 1), depth_zbuffer=depth.T, **rest)
    square = torch.arange(16).view(4, 4)
    dataset = load(tmp_path, "d", size=4)
    assert torch.equal(dataset.images[1], (square * 10).expand(3, 4, 4))
    assert torch.equal(dataset.images[0], (square.T * 10).expand(3, 4, 4))
    torch.testing.assert_close(dataset.targets["d"][1, 0], square / 16)
    assert dataset.masks["d"].all()
    # At half the size each new pixel's centre is the corner of four; the lower right one is taken.
    torch.testing.assert_close(load(tmp_path, "d", size=2).targets["d"][1, 0], square[1::2, 1::2] / 16)


def test_colours_are_averaged_and_labels_are_not(tmp_path):
    chequers = np.indices((32, 32)).sum(0) % 2
    rgb = np.repeat(chequers[..., None] * 255, 3, axis=2).astype(np.uint8)
    depth = np.where(chequers, 65535, 255).astype(np.uint16)
    write_frame(tmp_path, 0, rgb=rgb, segment_semantic=(chequers * 16 + 1).astype(np.uint8), depth_zbuffer=depth)
    dataset = load(tmp_path, "sd", size=12)
    inner = dataset.images[..., 2:-2, 2:-2].float()
    assert inner.min() > 90
    assert inner.max() < 165
    assert set(dataset.targets["s"].unique().tolist()) == {1, 17}
    invalid = dataset.targets["s"] == 17  # the same pixel is taken of every label and mask
    assert torch.equal(dataset.masks["d"], ~invalid)
    torch.testing.assert_close(dataset.targets["d"][:, 0], torch.where(invalid, 1.0, 0.5))


@pytest.mark.parametrize("folder", ["segment_semantic", "segmentsemantic"])
@pytest.mark.parametrize("spelling", ["segment_semantic", "segmentsemantic"])
def test_both_spellings_of_segmentation(tmp_path, folder, spelling):
    write_frame(tmp_path, 5, segment_semantic=None)
    (tmp_path / folder).mkdir()
    path = tmp_path / folder / f"point_5_view_0_domain_{spelling}.png"
    segments = Image.fromarray(np.full((32, 32), 3, dtype=np.uint8))
    segments.putpalette([0, 0, 0] * 3 + [9, 9, 9])  # PIL writes its four colours as a 2-bit palette
    segments.save(path)
    assert path.read_bytes()[24:26] == bytes([2, 3])
    assert (load(tmp_path, "s").targets["s"] == 3).all()
    write_frame(tmp_path, 6, segment_semantic=None)
    with pytest.raises(ValueError) as error:
        load(tmp_path, "s")
    assert str(tmp_path / folder / f"point_6_view_0_domain_{spelling}.png") in str(error.value)


def png(pixels: np.ndarray) -> bytes:
    buffer = BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def jpeg(pixels: np.ndarray) -> bytes:
    buffer = BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG")
    return buffer.getvalue()


def sixteen_bit_rgb() -> bytes:
    """A 32 x 32 PNG of 16 bits a channel, which PIL opens as 8-bit RGB."""
    return raw_png(32, 32, 16, 2, bytes(32 * (1 + 32 * 6)))


NOISE = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
DAMAGED = bytearray(png(NOISE))
DAMAGED[500] ^= 1
BAD = {
    "missing": ("depth_zbuffer", None, "is missing"),
    "empty": ("normal", b"", "Found 0 bytes of no image"),
    "text": ("rgb", b"404: Not Found", "Found 14 bytes of no image"),
    "cut": ("normal", png(NOISE)[:700], "truncated or damaged"),
    "cut before the last chunk": ("normal", png(NOISE)[:-12], "truncated or damaged"),
    "one bit changed": ("normal", bytes(DAMAGED), "truncated or damaged"),
    "cut JPEG": ("rgb", jpeg(NOISE)[:-400], "truncated or damaged"),
    "8-bit depth": ("depth_zbuffer", png(NOISE[..., 0]), "should be 16-bit grey PNG. Found 8-bit grey PNG"),
    "colour depth": ("depth_euclidean", png(NOISE), "should be 16-bit grey PNG. Found 8-bit RGB PNG"),
    "8-bit edges": ("edge_occlusion", png(NOISE[..., 0]), "should be 16-bit grey PNG. Found 8-bit grey PNG"),
    "16-bit normals": ("normal", sixteen_bit_rgb(), "should be 8-bit RGB PNG. Found 16-bit RGB PNG"),
    "JPEG normals": ("normal", jpeg(NOISE), "should be 8-bit RGB PNG. Found RGB JPEG"),
    "16-bit rgb": ("rgb", png(grey16([])), "Found 16-bit grey PNG"),
    "colour classes": ("segment_semantic", png(NOISE), "Found 8-bit RGB PNG"),
    "class 18": ("segment_semantic", png(np.full((32, 32), 18, np.uint8)), "should hold classes 0 to 17. Found 18"),
    "another size": ("depth_zbuffer", png(grey16([], 16)), "should be 32 x 32 like its image. Found 16 x 16"),
    "an optional mask": ("mask_valid", png(NOISE[..., 0])[:300], "truncated or damaged"),
    "the size of an optional mask": ("mask_valid", png(NOISE[:16, :, 0]), "32 x 32 like its image. Found 32 x 16"),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_file_is_named_in_full_or_its_frame_left_out(tree, kind):
    domain, content, reason = BAD[kind]
    good = load(tree)
    path = file_of(tree / "a", domain, 10)
    path.parent.mkdir(exist_ok=True)
    path.unlink(missing_ok=True)
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError) as error:
        load(tree)
    assert str(error.value).startswith(f"{path} ")
    assert reason in str(error.value)

    for _ in range(2):  # decoded, and from the cache
        with pytest.warns(UserWarning, match="1 of 5 frames left out of") as caught:
            skipped = load(tree, on_bad="skip")
        assert len(caught) == 1
        assert str(path) in str(caught[0].message)
        assert len(skipped.bad) == 1
        assert skipped.bad[0].startswith(f"{path} ")
        assert reason in skipped.bad[0]
        keep = [0, 1, 3, 4]
        assert skipped.ids == tuple(good.ids[row] for row in keep)
        assert torch.equal(skipped.images, good.images[keep])
        for letter in "sdDnE":
            assert torch.equal(skipped.targets[letter], good.targets[letter][keep])
            assert torch.equal(skipped.masks[letter], good.masks[letter][keep])
    with pytest.raises(ValueError):
        load(tree)  # what was skipped is still an error


def test_only_the_domains_asked_for_matter(tree):
    file_of(tree / "a", "normal", 10).unlink()
    file_of(tree / "b", "depth_zbuffer", 2).write_bytes(b"")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(load(tree, "sDE", on_bad="skip")) == 5
    with pytest.warns(UserWarning, match="2 of 5 frames left out"):
        assert len(load(tree, "nd", on_bad="skip").bad) == 2
    for path in (tree / "a" / "normal").iterdir():
        path.unlink()
    with pytest.raises(ValueError, match="3 of 3 frames left out"):
        load(tree / "a", "n", on_bad="skip")


@pytest.mark.parametrize("action", ["ignore", "error"])
@pytest.mark.parametrize("allowed", [1000, 500])  # 32 x 32 is more: PIL warns of the first and refuses the second
def test_too_large_an_image_is_refused(tree, monkeypatch, allowed, action):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", allowed)
    with warnings.catch_warnings():
        warnings.simplefilter(action)
        with pytest.raises(ValueError, match="is too large an image") as error:
            load(tree, "d")
    assert str(error.value).startswith(f"{file_of(tree / 'a', 'rgb', 2, 3)} ")


def test_rgb_may_be_rgba_or_jpeg(tmp_path):
    write_frame(tmp_path, 0, rgb=np.dstack([NOISE, NOISE[..., 0]]))
    write_frame(tmp_path, 1)
    file_of(tmp_path, "rgb", 1).write_bytes(jpeg(np.full((32, 32, 3), 200, np.uint8)))
    images = load(tmp_path, "d").images
    assert np.array_equal(images[0].permute(1, 2, 0).numpy(), NOISE)
    assert (images[1] == 200).all()


def test_second_load_reads_the_cache(tree, monkeypatch):
    first = load(tree)

    def refuse(*_):
        raise AssertionError("decoded again")

    monkeypatch.setattr(taskonomy, "_decode", refuse)
    start = time.perf_counter()
    second = load(tree)
    assert time.perf_counter() - start < 1
    assert torch.equal(first.images, second.images)
    assert first.ids == second.ids
    for tasks in ("Es", "n", "Dd"):  # other task sets find their domains
        for letter, target in load(tree, tasks).targets.items():
            assert torch.equal(target, first.targets[letter])
    second.targets["d"][:] = 7  # writing changes this process's copy alone
    assert torch.equal(load(tree).targets["d"], first.targets["d"])
    with pytest.raises(AssertionError, match="decoded again"):
        load(tree, size=16)


def test_a_changed_file_is_decoded_again(tree):
    first = load(tree, "sd")
    replace_file(file_of(tree / "a", "depth_zbuffer", 10), np.full((32, 32), 255, dtype=np.uint16))
    second = load(tree, "sd")
    assert torch.equal(second.targets["d"][2], torch.full((1, 32, 32), 0.5))
    assert torch.equal(second.targets["d"][3:], first.targets["d"][3:])
    write_frame(tree / "a", 11)
    assert len(load(tree, "sd")) == 6


def entries(cache_folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(cache_folder)): path.read_bytes() for path in cache_folder.rglob("*.npy")}


@pytest.mark.parametrize(("limits", "number"), [((5, 2, 3), 1), ((2, 4, None), 3), ((3, 5, 1), 2)])
def test_a_frame_is_decoded_once_whatever_the_limit(tree, own_cache, monkeypatch, limits, number):
    """Shorter lists are served from longer ones; longer ones take the rows that they share with shorter ones."""
    seen, decode = [], taskonomy._decode
    monkeypatch.setattr(taskonomy, "_decode", lambda *args: seen.append(args[:2]) or decode(*args))
    found = {limit: load(tree, "sdn", limit=limit) for limit in limits}
    assert len(seen) == len(set(seen)) == 5 * len(("s", "d", "n", "valid"))
    assert len(list(own_cache.glob("taskonomy-s-*/values.npy"))) == number
    monkeypatch.setenv("MTRLIB_CACHE", str(own_cache / "another"))
    for limit, dataset in found.items():
        alone = load(tree, "sdn", limit=limit)
        assert dataset.ids == alone.ids
        assert dataset.images.numpy().tobytes() == alone.images.numpy().tobytes()
        for letter in "sdn":
            assert dataset.targets[letter].numpy().tobytes() == alone.targets[letter].numpy().tobytes()
            assert torch.equal(dataset.masks[letter], alone.masks[letter])


@pytest.mark.parametrize("row", [0, 2, 4])
def test_a_changed_file_is_noticed_by_the_limits_that_reach_it_alone(tree, own_cache, row):
    first = load(tree, "d")
    building, point = ((tree / "a", 2), (), (tree / "a", 10), (), (tree / "b", 1199))[row]
    replace_file(
        file_of(building, "depth_zbuffer", point, 3 if row == 0 else 0), np.full((32, 32), 255, dtype=np.uint16)
    )
    before = set(entries(own_cache))
    assert torch.equal(load(tree, "d", limit=2).targets["d"][1], first.targets["d"][1])
    assert (set(entries(own_cache)) == before) == (row > 1)
    for limit in (3, 5):
        target = load(tree, "d", limit=limit).targets["d"]
        changed = [index for index in range(limit) if not torch.equal(target[index], first.targets["d"][index])]
        assert changed == [row] * (row < limit)


def test_a_frame_is_decoded_anew_when_its_own_files_change_and_no_other(tree, monkeypatch):
    """Nor is one decoded twice where others are left out."""
    before = load(tree, "d")
    replace_file(file_of(tree / "a", "depth_zbuffer", 10), np.full((32, 32), 255, dtype=np.uint16))
    seen, decode = [], taskonomy._decode
    monkeypatch.setattr(taskonomy, "_decode", lambda *args: seen.append(args[1][0].path) or decode(*args))
    after = load(tree, "d")
    assert [Path(path).parts[-3] for path in seen] == ["a"]
    changed = [not torch.equal(new, old) for new, old in zip(after.targets["d"], before.targets["d"], strict=True)]
    assert changed == [False, False, True, False, False]
    file_of(tree / "a", "depth_zbuffer", 2, 3).write_bytes(b"")
    with pytest.warns(UserWarning, match="1 of 5 frames left out"):
        rest = load(tree, "d", on_bad="skip")
    assert len(seen) == 2, "the bad one"
    assert rest.ids == after.ids[1:]
    assert torch.equal(rest.targets["d"], after.targets["d"][1:])


def test_a_bad_frame_behind_the_limit_is_of_no_concern(tree):
    file_of(tree / "b", "depth_zbuffer", 2).write_bytes(b"")
    with pytest.warns(UserWarning, match="1 of 5 frames left out"):
        assert len(load(tree, "d", on_bad="skip")) == 4
    assert load(tree, "d", limit=3).ids == load(tree, "s", limit=3).ids
    with pytest.warns(UserWarning, match="1 of 4 frames left out"):
        found = load(tree, "d", limit=4, on_bad="skip")
    assert len(found) == 3
    with pytest.raises(ValueError, match="Found 0 bytes of no image"):
        load(tree, "d", limit=4)


@pytest.mark.parametrize("limit", [2, None])
def test_a_damaged_entry_serves_no_other_limit(tree, own_cache, limit):
    """Neither a shorter list nor, of the rows that they share, a longer one."""
    first = load(tree, "d", limit=4).targets["d"].clone()
    (entry,) = own_cache.glob("taskonomy-d-*[!k]")
    content = bytearray((entry / "values.npy").read_bytes())
    content[200] ^= 1
    (entry / "values.npy").write_bytes(content)
    with pytest.warns(UserWarning, match=f"{entry} is damaged .values.npy"):
        second = load(tree, "d", limit=limit).targets["d"]
    assert torch.equal(first[:2], second[:2])


def test_progress_counts_the_frames_of_each_domain(tree, monkeypatch):
    bars = []

    def bar(total, description, unit):
        bars.append((description, unit, tqdm(total=total, disable=False, file=StringIO())))
        return bars[-1][2]

    monkeypatch.setattr(decoding, "bar", bar)
    load(tree, "d")
    load(tree, "d")  # nothing to do
    assert [(description, unit, bar.n, bar.total) for description, unit, bar in bars] == [
        ("decoding rgb", "frame", 5, 5),
        ("decoding d", "frame", 5, 5),
    ]


def test_an_error_leaves_nothing_in_the_cache(tree, own_cache):
    file_of(tree / "a", "rgb", 10).write_bytes(b"")
    with pytest.raises(ValueError):
        load(tree, "d")
    assert [path for path in own_cache.iterdir() if path.suffix != ".lock"] == []


def test_two_loads_at_once_decode_once(tree, monkeypatch):
    decoded = []
    decode = taskonomy._decode
    monkeypatch.setattr(taskonomy, "_decode", lambda *a: decoded.append(a[0]) or time.sleep(0.02) or decode(*a))
    results = []
    threads = [threading.Thread(target=lambda: results.append(load(tree, "d"))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 3
    assert decoded == ["d"] * 5


def test_a_damaged_cache_entry_is_named_and_decoded_again(tree, own_cache):
    first = load(tree, "d").targets["d"].clone()  # a copy: the map is cut below
    (entry,) = own_cache.glob("taskonomy-d-*[!k]")
    (entry / "values.npy").write_bytes((entry / "values.npy").read_bytes()[:300])
    with pytest.warns(UserWarning, match=f"{entry} is damaged .values.npy"):
        second = load(tree, "d")
    assert torch.equal(first, second.targets["d"])


def test_full_disk_is_an_error(tree, monkeypatch):
    monkeypatch.setattr(cache.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 10, 0))
    with pytest.raises(OSError, match="MTRLIB_CACHE"):
        load(tree, "d")


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"tasks": "sx"}, "'sdDnkKeEprA' for taskonomy, at least one. Found tasks = 'sx'"),
        ({"root": "nowhere"}, "The folder of the data (root) is missing: {root}"),
        ({"root": "empty"}, "{root} should hold files [<building>/]rgb/point_<p>_view_<v>_domain_rgb.png"),
        ({"root": "b", "split": "test"}, "{root} has no frames to test"),
        ({"size": None}, "Parameter size should be a positive integer. Found size = None."),
        ({"limit": 0}, "Parameter limit should be a positive integer. Found limit = 0."),
    ],
)
def test_parameters_out_of_range(tree, options, text):
    (tree / "empty").mkdir()
    root = tree / options.pop("root", ".")
    with pytest.raises(ValueError) as error:
        load(root, **options)
    assert text.format(root=root) in str(error.value)


@real_frames
def test_real_frame_with_its_mask():
    root = REAL / "google_objects"
    with pytest.raises(ValueError) as error:
        load(root, "dn", size=64)
    path = root.absolute() / "depth_zbuffer" / "point_28_view_1_domain_depth_zbuffer.png"
    assert str(error.value).startswith(f"{path} is missing")

    with pytest.warns(UserWarning, match="2 of 3 frames left out"):
        dataset = load(root, "dn", size=512, on_bad="skip")
    assert dataset.ids == ("point_21_view_5",)
    assert len(dataset.bad) == 2
    raw = np.array(Image.open(file_of(root, "depth_zbuffer", 21, 5)))
    valid = np.array(Image.open(file_of(root, "mask_valid", 21, 5))) > 0
    assert 0.1 < valid.mean() < 0.3  # a shoe before nothing
    for letter in "dn":
        mask = dataset.masks[letter][0].numpy()
        assert np.array_equal(mask, valid)
        assert np.array_equal(mask, raw != 65535)
    length = dataset.targets["n"][0].norm(dim=0)
    assert (length[dataset.masks["n"][0]] - 1).abs().max() < 0.01  # 8 bits a channel
    assert (length[~dataset.masks["n"][0]] < 0.1).all()
    assert dataset.targets["d"][0, 0].numpy()[valid].max() < 1


@real_frames
def test_a_real_frame_of_the_other_tasks(tmp_path):
    raws = {}
    for domain in ("rgb", "depth_zbuffer", "mask_valid", "keypoints3d", "edge_texture", "reshading"):
        path = file_of(tmp_path, domain, 21, 5)
        path.parent.mkdir(parents=True)
        shutil.copy(file_of(REAL / "google_objects", domain, 21, 5), path)
        raws[domain] = np.array(Image.open(path)).astype(float)
    dataset = load(tmp_path, "KerA", size=512)
    target = {letter: values[0].numpy() for letter, values in dataset.targets.items()}
    np.testing.assert_allclose(target["K"][0], raws["keypoints3d"] / 65535 * 2 - 1, atol=1e-6)
    np.testing.assert_allclose(target["e"][0], np.minimum(raws["edge_texture"] / 65535 / 0.08 * 2 - 1, 1), atol=1e-5)
    np.testing.assert_allclose(target["r"][0], raws["reshading"][..., 0] / 255 * 2 - 1, atol=1e-6)
    np.testing.assert_allclose(target["A"], raws["rgb"].transpose(2, 0, 1)[:3] / 127.5 - 1, atol=1e-6)
    for letter in "Kr":
        assert np.array_equal(dataset.masks[letter][0], raws["mask_valid"] > 0)
        shown = target[letter][0][raws["mask_valid"] > 0]
        assert shown.std() > 0.1, "an object that is lit and has key points"
    assert dataset.masks["e"] is None


@real_frames
def test_real_frames_in_the_tree_of_one_task_set(tmp_path):
    for domain in ("rgb", "depth_zbuffer", "normal"):
        path = file_of(tmp_path / "tree" / "google_objects", domain, 21, 5)
        path.parent.mkdir(parents=True)
        shutil.copy(file_of(REAL / "google_objects", domain, 21, 5), path)
    dataset = load(tmp_path / "tree", "dn", size=128)
    assert dataset.ids == ("google_objects/point_21_view_5",)
    assert dataset.bad == ()
    assert torch.equal(dataset.masks["n"], dataset.masks["d"])
    assert (dataset.targets["n"][0].norm(dim=0)[dataset.masks["n"][0]] - 1).abs().max() < 0.01


@real_frames
def test_real_frames_that_are_not_square():
    with pytest.warns(UserWarning, match="6 of 7 frames left out"):
        dataset = load(REAL, "D", size=64, on_bad="skip")
    assert dataset.ids == ("blended_mvg/point_979_view_0",)  # 576 x 768, and its rgb is a JPEG named .png
    raw = np.array(Image.open(file_of(REAL / "blended_mvg", "depth_euclidean", 979)))[:, 96:672][4::9, 4::9]
    np.testing.assert_allclose(dataset.targets["D"][0, 0], np.log(1.0 + raw) / np.log(65536), rtol=1e-6)
    assert np.array_equal(dataset.masks["D"][0], raw < 64500)


def test_from_files_to_errors(tree, tmp_path):
    """Training and attack honour the masks: pixels without a label are not numbers that reach a loss."""
    spec = ModelSpec(data=DataSpec(name="taskonomy", root=str(tree), size=16), tasks="sdnE", epochs=1, batch_size=2)
    store = Store(tmp_path / "store", device="cpu")
    errors = store.errors(spec, AttackSpec(tasks="sd", steps=2, images=4))
    assert errors.image_id.unique().tolist() == ["a/point_1200_view_0"]
    assert sorted(errors.task) == ["E", "d", "n", "s"]
    columns = ["clean_error", "adversarial_error", "clean_loss", "adversarial_loss"]
    assert np.isfinite(errors[columns]).all(axis=None)
    assert store.record(spec)["images"] == 5


def test_masks_are_read_as_they_are_published_and_other_names_are_said(tmp_path):
    """Files of mask_valid are called depth_zbuffer in the published sets; a folder whose files fit no name is named."""
    marked = np.zeros((32, 32), np.uint8)
    marked[:, 8:] = 255
    write_frame(tmp_path, 0, mask_valid=marked)
    (tmp_path / "mask_valid" / "point_0_view_0_domain_mask_valid.png").rename(
        tmp_path / "mask_valid" / "point_0_view_0_domain_depth_zbuffer.png"
    )
    mask = data.load("taskonomy", tasks="n", split="train", size=32, root=tmp_path).masks["n"]
    assert np.array_equal(mask[0], marked > 0)
    (named,) = (tmp_path / "normal").iterdir()
    named.rename(named.with_name("point_0_view_0_domain_normals.png"))
    with pytest.raises(ValueError, match=r"normal should hold files point.*_domain_normal\.png\. Found .*normals"):
        data.load("taskonomy", tasks="n", split="train", size=32, root=tmp_path)
