"""Rooms: labels against the geometry that they come from, and the same bytes from the same specification."""

import math

import pytest
import torch

from mtrlib import rooms
from mtrlib.rooms import labels, rendering
from mtrlib.tasks import TASKS

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def dataset():
    return rooms.load(tasks=rooms.TASKS, split="train", size=64, limit=48)


def test_values_worked_out_by_hand(hand_made):
    view = rooms.render(hand_made(), 65)
    centre = (0, 32, 32)
    assert view["depth"][centre] == pytest.approx(3, abs=1e-5)
    assert view["normal"][0, :, 32, 32].tolist() == pytest.approx([0, 0, 1], abs=1e-6)
    # Half the field of view is 45 degrees: the floor is met 1.5 m ahead by the ray at 45 degrees down, first pixel row
    # centre at 64/65 of that, hence at 1.5 * 65 / 64 m.
    assert view["depth"][0, 64, 32] == pytest.approx(1.5 * 65 / 64, rel=1e-5)
    assert view["normal"][0, :, 64, 32].tolist() == pytest.approx([0, 1, 0], abs=1e-6)
    assert view["normal"][0, :, 32, 0].tolist() == pytest.approx([1, 0, 0], abs=1e-6)  # the left wall faces right
    assert rooms.CLASSES[view["label"][0, 64, 32]] == "floor"
    assert rooms.CLASSES[view["label"][0, 0, 32]] == "ceiling"
    assert labels.log_depth(torch.tensor(2.0)).item() == pytest.approx(math.log(1025) / math.log(65536))


def test_depth_finds_the_box_in_front_of_the_wall(hand_made):
    view = rooms.render(hand_made("box", 0.25), 65)
    assert view["depth"][0, 32, 32] == pytest.approx(1.5, abs=1e-5)
    is_box = view["label"][0] == rooms.CLASSES.index("box")
    # The front face spans 0.25 / 1.5 of half the image.
    assert is_box[32].sum().item() == pytest.approx(65 * 0.25 / 1.5, abs=1)
    assert is_box[:, 32].sum().item() == pytest.approx(65 * 0.25 / 1.5, abs=1)


def test_normals_are_those_of_the_back_projected_points(scenes, view):
    points = view["rays"] * view["depth"][:, None]
    across = points[:, :, 1:-1, 2:] - points[:, :, 1:-1, :-2]
    up = points[:, :, :-2, 1:-1] - points[:, :, 2:, 1:-1]
    expected = torch.nn.functional.normalize(torch.linalg.cross(across, up, dim=1), dim=1)
    normal = view["normal"]
    surface = view["surface"]
    inside = torch.ones_like(surface[:, 1:-1, 1:-1], dtype=torch.bool)
    for rows, columns in ((slice(1, -1), slice(2, None)), (slice(1, -1), slice(-2)), (slice(2, None), slice(1, -1)),
                          (slice(-2), slice(1, -1))):  # fmt: skip
        # one face of one surface: the same row of the table and the same normal, but for curvature
        inside &= surface[:, rows, columns] == surface[:, 1:-1, 1:-1]
        inside &= (normal[:, :, rows, columns] * normal[:, :, 1:-1, 1:-1]).sum(dim=1) > 0.9
    cosine = (expected * normal[:, :, 1:-1, 1:-1]).sum(dim=1)
    round_ = torch.tensor([name in ("ball", "column") for name in rooms.CLASSES])
    curved = round_[view["label"][:, 1:-1, 1:-1].long()]
    flat, bent = cosine[inside & ~curved], cosine[inside & curved]
    assert len(flat) > 100_000
    assert len(bent) > 1000
    assert (flat > math.cos(math.radians(1))).float().mean() > 0.999
    assert (bent > math.cos(math.radians(6))).float().mean() > 0.95


def test_normals_are_unit_and_face_the_viewer(view):
    assert torch.allclose(view["normal"].square().sum(dim=1), torch.ones(1), atol=1e-5)
    assert ((view["normal"] * view["rays"]).sum(dim=1) < 1e-4).all()


def test_euclidean_depth_is_z_depth_over_the_cosine_of_the_ray(dataset, view):
    metres = {letter: (torch.exp(dataset.targets[letter] * math.log(2**16)) - 1) / 512 for letter in "dD"}
    cosine = -torch.nn.functional.normalize(view["rays"], dim=1)[:, 2:]
    assert torch.allclose(metres["d"], metres["D"] * cosine, rtol=1e-4)
    assert torch.allclose(metres["d"][:, 0], view["depth"], rtol=1e-4)


def test_points_lie_in_the_room(scenes, view):
    camera = scenes["camera"]
    yaw, pitch = camera[:, 3, None, None], camera[:, 4, None, None]
    x, y, z = (view["rays"] * view["depth"][:, None]).unbind(dim=1)
    height = camera[:, 1, None, None] + y * pitch.cos() - z * pitch.sin()
    back = y * pitch.sin() + z * pitch.cos()
    east = camera[:, 0, None, None] + x * yaw.cos() + back * yaw.sin()
    south = camera[:, 2, None, None] - x * yaw.sin() + back * yaw.cos()
    for k, value in enumerate((east, height, south)):
        assert (value > -1e-3).all()
        assert (value < scenes["room"][:, k, None, None] + 1e-3).all()
    assert height[view["label"] == 0].abs().max() < 1e-3  # the floor is at height 0


def test_classes_are_all_there_and_pictures_are_well_exposed(dataset, view):
    share = torch.bincount(dataset.targets["s"].flatten().long(), minlength=len(rooms.CLASSES)) / view["label"].numel()
    assert len(share) == len(rooms.CLASSES)
    assert (share > 0.002).all()
    images = dataset.images.flatten(1).float()
    assert ((images.mean(dim=1) > 60) & (images.mean(dim=1) < 220)).all()
    assert (images.std(dim=1) > 10).all()
    assert ((dataset.images == 0).all(dim=1).flatten(1).float().mean(dim=1) < 0.05).all()
    assert (view["depth"].flatten(1).quantile(0.05, dim=1) > 0.4).float().mean() > 0.95  # nothing in front of the lens


def test_targets_have_their_shapes_and_ranges(dataset):
    assert dataset.images.shape == (48, 3, 64, 64)
    assert dataset.images.dtype == torch.uint8
    assert dataset.targets["s"].shape == (48, 64, 64)
    assert dataset.targets["s"].dtype == torch.uint8
    low = {"d": 0.3, "D": 0.3, **dict.fromkeys("nkKeEprA", -1.0)}
    for letter, bottom in low.items():
        values = dataset.targets[letter]
        assert values.shape == (48, TASKS[letter].channels, 64, 64)
        assert values.dtype == torch.float32
        assert values.isfinite().all()
        assert values.min() >= bottom - 1e-6
        assert values.max() <= 1 + 1e-6
        assert values.max() > (0.1 if letter == "K" else 0.69)  # none uses a small part of its range only
    assert set(dataset.targets) == set(TASKS) == set(rooms.TASKS)
    assert set(dataset.masks.values()) == {None}
    assert len(set(dataset.ids)) == 48
    assert dataset.ids[12] == "train-0-00012"
    assert dataset.class_names == rooms.CLASSES


# Of one frame of Taskonomy at 64 pixels, as the paper's authors read it: mean, standard deviation (of E not noted), and
# the shares above -0.9 and above 0.
@pytest.mark.parametrize(
    ("letter", "real"),
    [
        ("E", (-0.78, None, 0.63, 0.035)),
        ("k", (-0.60, 0.47, 0.77, 0.11)),
        ("K", (-0.83, 0.23, 0.42, 0.003)),
        ("e", (-0.59, 0.49, 0.67, 0.12)),
        ("p", (-0.05, 0.36, None, None)),
    ],
)
def test_targets_are_distributed_as_taskonomys(dataset, letter, real):
    values = dataset.targets[letter]
    found = (values.mean(), values.std(), (values > -0.9).float().mean(), (values > 0).float().mean())
    for value, expected, far in zip(found, real, (0.2, 0.1, 0.3, 0.04), strict=True):
        assert expected is None or value.item() == pytest.approx(expected, abs=far)


def test_what_a_pixel_and_its_place_show_beats_a_constant(dataset):
    """Squared errors on other rooms, of a linear function of the row, colour and edges of a pixel."""

    def seen(rooms_):
        row = torch.linspace(-1, 1, 64)[None, None, :, None].expand(len(rooms_), 1, 64, 64)
        parts = [row**k for k in range(4)] + [labels.colours(rooms_.images)]
        parts += [labels._canny(labels._luminance(rooms_.images), share, 0.1) for share in (0.012, 0.04)]
        return torch.cat(parts, dim=1).movedim(1, -1).flatten(0, 2)

    others = rooms.load(tasks=rooms.TASKS, split="test", size=64, limit=48)
    least = {"d": 0.3, "D": 0.25, "n": 0.3, "k": 0.08, "K": 0.12, "e": 0.9, "E": 0.06, "p": 0.05, "r": 0.15}
    for letter in least:
        train, test = (x.targets[letter].movedim(1, -1).flatten(0, 2) for x in (dataset, others))
        predicted = seen(others) @ torch.linalg.lstsq(seen(dataset), train).solution
        skill = 1 - (predicted - test).square().mean() / (train.mean(dim=0) - test).square().mean()
        assert skill > least[letter], letter


def test_images_and_targets_stay_what_models_were_trained_on():
    """Sum and sum of squares of six rooms of 32 pixels, as measured when `rooms.VERSION` was last raised."""
    made = rooms.load(tasks="sdDnE", split="train", size=32, limit=6, seed=3)
    expected = {
        "s": (18702.0, 117774.0),
        "d": (4046.1445083618164, 2676.186844732022),
        "D": (4108.05630838871, 2757.6336513236074),
        "n": (3256.8468575695297, 6144.000067187555),
        "E": (-3673.199656546116, 3146.0006001867723),
    }
    assert made.images.double().sum().item() == pytest.approx(2579835, rel=1e-5)
    for letter, sums in expected.items():
        values = made.targets[letter].double()
        assert (values.sum().item(), values.square().sum().item()) == pytest.approx(sums, rel=1e-5)


def rendered(chunk=None, size=32):
    """Images and all targets of six rooms, without what is kept in memory."""
    image = rendering._view.__wrapped__("train", size, 6, 3, chunk)["image"]
    return {"image": image} | {x: rendering._target.__wrapped__(x, "train", size, 6, 3, chunk) for x in rooms.TASKS}


@pytest.mark.parametrize("size", [32, 37])
def test_the_same_specification_gives_the_same_bytes(size):
    once = rendered(size=size)
    assert len(once) == 12
    for chunk in (None, 1, 4):
        again = rendered(chunk, size)
        assert [name for name in once if not torch.equal(once[name], again[name])] == []


def test_threads_change_neither_the_bytes_nor_their_own_number():
    one = rendered(2)
    torch.set_num_threads(2)
    try:
        two = rendered(2)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)
    assert [name for name in one if not torch.equal(one[name], two[name])] == []


def test_a_room_does_not_depend_on_the_limit():
    few, many = (rooms.load(tasks=rooms.TASKS, split="test", size=32, limit=limit, seed=1) for limit in (5, 9))
    assert few.ids == many.ids[:5]
    assert torch.equal(few.images, many.images[:5])
    assert [x for x in rooms.TASKS if not torch.equal(few.targets[x], many.targets[x][:5])] == []


def test_a_room_is_the_same_scene_at_another_size(scenes):
    small, large = (rooms.render(scenes, size) for size in (21, 63))
    assert torch.equal(small["label"], large["label"][:, 1::3, 1::3])  # centres of every third pixel coincide
    assert torch.allclose(small["depth"], large["depth"][:, 1::3, 1::3], rtol=1e-4)


def test_splits_and_seeds_share_no_room():
    draws = [rooms.draw(split, 40, seed) for split, seed in (("train", 0), ("test", 0), ("train", 1), ("test", 1))]
    for name in ("room", "camera", "noise_seed"):
        values = torch.cat([draw[name].reshape(40, -1) for draw in draws])
        assert len(values.unique(dim=0)) == 160
    # No parameter is carried over: widths of the rooms are all different too.
    assert len(torch.cat([draw["room"][:, 0] for draw in draws]).unique()) == 160


def test_tasks_are_selected_from_one_rendering():
    one, other = (rooms.load(tasks=tasks, split="train", size=16, limit=2) for tasks in ("sd", "ns"))
    assert set(one.targets) == {"s", "d"}
    assert set(other.targets) == {"n", "s"}
    assert one.targets["s"] is other.targets["s"]


def test_targets_are_made_only_when_they_are_asked_for(monkeypatch):
    made = []
    for name in ("blobs", "texture_edges", "corners", "curvatures", "reshading", "colours"):
        real = getattr(labels, name)
        monkeypatch.setattr(labels, name, lambda *values, name=name, real=real: (made.append(name), real(*values))[1])
    options = {"split": "train", "size": 16, "limit": 2, "seed": 77}
    first = rooms.load(tasks="sdDnE", **options)
    assert made == []
    rooms.load(tasks="sk", **options)
    assert made == ["blobs"]
    again = rooms.load(tasks="kpr", **options)
    assert made == ["blobs", "curvatures", "reshading"]
    assert torch.equal(first.images, again.images)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"tasks": "sx"}, "'sdDnkKeEprA'.*'sx'"),
        ({"split": "val"}, "train, test.*'val'"),
        ({"size": 4}, "at least 8.*4"),
        ({"seed": -1}, "non-negative.*-1"),
    ],
)
def test_what_rooms_do_not_provide_is_an_error(wrong, said):
    with pytest.raises(ValueError, match=said):
        rooms.load(**{"tasks": "s", "split": "train", "size": 16, "limit": 1, **wrong})
