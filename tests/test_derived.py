"""Labels from depth: of surfaces that are known, and of rooms as a sensor would see them."""

import math

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from mtrlib import data, rooms
from mtrlib.data import derived

CAMERA = (52.0, 52.0, 31.5, 23.5)  # of 64 x 48 pixels


def seen(surface, size: int = 48):
    """Depth of what `surface` gives for rays of the square, and these rays."""
    rays = derived.rays(CAMERA, size, 64, 48)
    return surface(rays), rays


def degrees(one: torch.Tensor, two: torch.Tensor) -> torch.Tensor:
    return torch.rad2deg(torch.arccos((one * two).sum(dim=0).clamp(-1, 1)))


def test_rays_are_those_of_the_pixels_of_the_square():
    rays = derived.rays(CAMERA, 48, 64, 48)
    assert rays[:, 0, 0].tolist() == pytest.approx([(8 - 31.5) / 52, 23.5 / 52, -1])
    half = derived.rays(CAMERA, 24, 64, 48)
    assert torch.allclose(half, torch.nn.functional.avg_pool2d(rays, 2), atol=1e-6), "the middle of four pixels"


@pytest.mark.parametrize("normal", [(0, 0, 1), (0.6, 0, 0.8), (0, 0.99, 0.14), (-0.7, -0.6, 0.39)])
def test_a_plane_has_its_normal_everywhere_also_at_a_grazing_view(normal):
    normal = torch.nn.functional.normalize(torch.tensor(normal, dtype=torch.float32), dim=0)
    depth, rays = seen(lambda rays: -2.0 / (normal[:, None, None] * rays).sum(dim=0))
    depth = torch.where((depth > 0) & (depth < 50), depth, 0)
    found, holds = derived.normals(depth, rays)
    assert holds.sum() > 0.9 * (depth > 0).sum() > 500
    assert degrees(found, normal[:, None, None])[holds].max() < 0.1


def ball(rays: torch.Tensor) -> torch.Tensor:
    """A ball of .8 m, its middle 3 m straight ahead, before a wall at 5 m."""
    a, b = rays.square().sum(dim=0), -2 * 3.0 * -rays[2]
    root = b * b - 4 * a * (9 - 0.64)
    return torch.where(root > 0, (-b - root.clamp(min=0).sqrt()) / (2 * a), 5.0)


def test_a_ball_before_a_wall():
    depth, rays = seen(ball)
    targets = derived.targets("npEdD", depth, rays, torch.zeros(3, 48, 48, dtype=torch.uint8))
    on = depth < 5
    inside = torch.nn.functional.max_pool2d((~on).float()[None], 5, 1, 2)[0] == 0
    points = rays * depth
    exact = (points - torch.tensor([0.0, 0.0, -3.0])[:, None, None]) / 0.8
    assert degrees(targets["n"][0], exact)[inside].max() < 5
    wall = ~on & (torch.nn.functional.max_pool2d(on.float()[None], 5, 1, 2)[0] == 0)
    assert degrees(targets["n"][0], torch.tensor([0.0, 0.0, 1.0])[:, None, None])[wall].max() < 0.1
    middle = (slice(None), 23, 23)
    assert targets["p"][0][middle].tolist() == pytest.approx([1.0, 1.0], abs=0.25), "1 / .8 m, clipped at 1"
    assert targets["E"][0].amax() > 0.2 > -0.9 > targets["E"][0][0, 0, 0]
    assert targets["d"][0][middle].item() == pytest.approx(math.log1p(512 * depth[23, 23]) / math.log(2**16))
    assert (targets["D"][0] >= targets["d"][0]).all()


def test_holes_stay_holes_and_reach_no_further_than_said():
    depth, rays = seen(lambda rays: torch.full(rays.shape[1:], 2.0))
    whole = derived.targets(derived.LETTERS, depth, rays, torch.full((3, 48, 48), 90, dtype=torch.uint8))
    depth[10:20, 10:20] = 0
    holed = derived.targets(derived.LETTERS, depth, rays, torch.full((3, 48, 48), 90, dtype=torch.uint8))
    hole = depth == 0
    for letter, (target, mask) in holed.items():
        assert mask[hole].any() == (letter in derived.FROM_IMAGE), letter
        assert torch.allclose(target[:, mask], whole[letter][0][:, mask], atol=0.02), letter
        assert target.isfinite().all()
    assert (~holed["n"][1]).sum() == hole.sum(), "planes beside a hole are fitted to what there is"
    assert hole.sum() < (~holed["E"][1]).sum() < 3 * hole.sum()
    nothing = derived.targets("dnEpK", torch.zeros(48, 48), rays, torch.zeros(3, 48, 48, dtype=torch.uint8))
    assert not any(mask.any() for _, mask in nothing.values())


def test_rooms_as_a_sensor_sees_them_give_back_their_labels(scenes):
    """Millimetres, and three of a hundred pixels without a depth; stated errors of each label."""
    size, count = 64, 8
    view = rooms.render({name: values[:count] for name, values in scenes.items()}, size)
    exact = rooms.load(tasks=derived.LETTERS, split="train", size=size, limit=count).targets
    g, errors = np.random.default_rng(0), {letter: [] for letter in (*derived.LETTERS, "angle", "F")}
    for i in range(count):
        depth = (view["depth"][i] * 1000).round() / 1000
        depth[torch.from_numpy(g.random(depth.shape) < 0.03)] = 0
        found = derived.targets(derived.LETTERS, depth, view["rays"][i], view["image"][i])
        for letter, (target, mask) in found.items():
            errors[letter].append((target - exact[letter][i]).abs().mean(dim=0)[mask])
        target, mask = found["n"]
        errors["angle"].append(degrees(target, exact["n"][i])[mask])
        errors["F"].append(_f_score(found["E"], exact["E"][i]))
    mean = {name: torch.cat(values).mean().item() for name, values in errors.items() if name != "F"}
    assert torch.cat(errors["angle"]).median() < 0.5
    assert mean["angle"] < 4, "edges and all"
    metres = torch.expm1(torch.cat(errors["D"]).max() * math.log(2**16))
    assert metres < 1e-3, "a thousandth of the depth"
    assert min(errors["F"]) > 0.95
    assert all(mean[letter] == 0 for letter in derived.FROM_IMAGE)
    assert all(mean[letter] < 0.06 for letter in "EKpr"), mean


def _f_score(found: tuple[torch.Tensor, torch.Tensor], exact: torch.Tensor) -> float:
    """Of edges stronger than a fourth, each right where the other has one within a pixel."""
    one, two = ((edges[0] > -0.5) & found[1] for edges in (found[0], exact))
    near = [torch.nn.functional.max_pool2d(edges.float()[None], 3, 1, 1)[0] > 0 for edges in (one, two)]
    precision, recall = (one & near[1]).sum() / one.sum(), (two & near[0]).sum() / two.sum()
    return (2 * precision * recall / (precision + recall)).item()


def test_the_median_of_a_cell_is_of_what_was_measured_and_no_mean():
    depth = np.zeros((8, 12))
    depth[:, 2:6], depth[:, 6:10] = 1.0, 3.0
    depth[0:4, 6:10] = 0
    depth[4, 6] = 0
    assert derived.median(depth, 2).tolist() == [[1.0, 0.0], [1.0, 3.0]]
    assert np.array_equal(derived.median(depth, 8), depth[:, 2:10])


@pytest.fixture(scope="module")
def folder(tmp_path_factory, scenes):
    """Rooms as a public RGB-D set has them: photographs and depth in fifths of a millimetre, 64 x 64."""
    root = tmp_path_factory.mktemp("rgbd")
    size, number = 64, 4
    view = rooms.render({name: values[:number] for name, values in scenes.items()}, size)
    (root / "rgb").mkdir()
    (root / "depth").mkdir()
    for i in range(number):
        Image.fromarray(view["image"][i].permute(1, 2, 0).numpy()).save(root / f"rgb/{i}.png")
        raw = (view["depth"][i] * 5000).round().clamp(max=65535).numpy().astype(np.uint16)
        raw[i * 10 : i * 10 + 5, :9] = 0
        Image.fromarray(raw).save(root / f"depth/{i}.png")
    ray = view["rays"][0]
    step = (ray[0, 0, -1] - ray[0, 0, 0]).item() / (size - 1)
    (root / "camera.txt").write_text(f"{1 / step} 0 {(size - 1) / 2}\n0 {1 / step} {(size - 1) / 2}\n0 0 1\n")
    described(root)
    return root


def described(root, **changes) -> None:
    depth = {"files": "depth/{id}.png", "scale": 0.0002, "camera": "camera.txt", "letters": derived.LETTERS}
    values = {"images": "rgb/{id}.png", "depth": depth | changes, "splits": {"train": ["0", "1", "2"], "test": ["3"]}}
    (root / "dataset.yaml").write_text(yaml.safe_dump(values))


def test_a_folder_of_photographs_and_depth_has_ten_tasks(folder, monkeypatch, tmp_path):
    monkeypatch.setenv("MTRLIB_CACHE", str(tmp_path))
    loaded = data.load("folder", tasks=derived.LETTERS, split="train", size=64, root=folder)
    exact = rooms.load(tasks=derived.LETTERS, split="train", size=64, limit=3).targets
    assert all(loaded.tasks[letter].is_papers for letter in derived.LETTERS)
    for letter, target in loaded.targets.items():
        mask = loaded.masks[letter]
        assert (mask is None) == (letter in derived.FROM_IMAGE)
        mask = torch.ones(3, 64, 64, dtype=torch.bool) if mask is None else mask
        assert 0.9 < mask.float().mean() <= 1
        error = (target - exact[letter]).abs().mean(dim=1)[0][mask[0]].mean()  # the others have other cameras
        assert error < (0.06 if letter in "nEKpr" else 1e-3), letter
    small = data.load("folder", tasks="dn", split="test", size=16, root=folder)
    assert small.targets["n"].shape == (1, 3, 16, 16)
    checked = data.check("folder", folder)
    assert not checked.stops.any()
    assert set(checked.task) == {"images", *derived.LETTERS}


def test_depth_in_metres_and_what_a_description_may_not_say(folder, monkeypatch, tmp_path):
    monkeypatch.setenv("MTRLIB_CACHE", str(tmp_path))
    described(folder, metres=True, letters="dD", camera=[60.0, 60.0, 31.5, 31.5])
    loaded = data.load("folder", tasks="dD", split="train", size=64, root=folder)
    assert loaded.tasks["d"].name == "z-depth in metres"
    assert not loaded.tasks["d"].is_papers
    exact = rooms.load(tasks="d", split="train", size=64, limit=3).targets["d"]
    metres = torch.expm1(exact * math.log(2**16)) / 512
    assert ((loaded.targets["d"] - metres).abs()[loaded.masks["d"][:, None]] < 1e-3).all()
    faults = {
        "letters out of 'dDnkKeEprA' for derived labels": {"letters": "ds"},
        "greater than 0": {"scale": 0.0},
        "the first two above 0": {"camera": [0.0, 1.0, 2.0, 3.0]},
        "should not leave": {"camera": "../camera.txt"},
        "3 x 3 numbers. Found 12": {"camera": "odd.txt"},
        "none.txt is missing: 0 has no camera": {"camera": "none.txt"},
    }
    (folder / "odd.txt").write_text("1 " * 12)
    for message, changes in faults.items():
        described(folder, **changes)
        with pytest.raises(ValueError, match=message) as caught:
            data.load("folder", tasks="d", split="train", size=64, root=folder)
        assert "\n" not in str(caught.value)
    (folder / "dataset.yaml").write_text('images: "rgb/{id}.png"\nsplits: {ratio: 0.5}\n')
    with pytest.raises(ValueError, match="at least one, or depth"):
        data.tasks("folder", folder)
