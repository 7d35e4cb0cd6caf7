"""Changed rooms: real rooms with exact labels, in which nothing is where it cannot be; checked in plain NumPy."""

import math

import numpy as np
import pytest
import torch

from mtrlib import models, rooms
from mtrlib.rooms.scenes import CENTRE, CLASSES, COLOUR, GROUPS, HALF, PAINTED, TURN
from mtrlib.studies import constrained_attacks as study
from mtrlib.tasks import TASKS

pytestmark = pytest.mark.usefixtures("one_thread")
FIRST = [PAINTED + sum(GROUPS[:k]) for k in range(len(GROUPS))]  # the first part of each piece


def drawn(number: int) -> dict[str, torch.Tensor]:
    return rooms.draw("test", number, seed=7)


def genes_of(number: int, names=tuple(rooms.REACH), seed: int = 0, share: float = 1.0) -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    drawn = {name: 2 * torch.rand(number, len(rooms.REACH[name]), generator=g) - 1 for name in names}
    return {name: share * values for name, values in drawn.items()}


def spots(piece: np.ndarray, shrunk: float = 0.0) -> np.ndarray:
    """Points of a piece seen from above, (K, 2), on a grid and its edge."""
    half, steps = np.maximum(piece[HALF][[0, 2]] - shrunk, 0), np.linspace(-1, 1, 21)
    a, b = (each.ravel() for each in np.meshgrid(steps, steps))
    if piece[1] > 1:  # a column or a ball
        a, b = a[a**2 + b**2 <= 1], b[a**2 + b**2 <= 1]
    a, b, (cos, sin) = a * half[0], b * half[1], piece[TURN]
    return np.stack([piece[2] + cos * a + sin * b, piece[4] + cos * b - sin * a], axis=1)


def within(points: np.ndarray, piece: np.ndarray, shrunk: float = 0.0) -> np.ndarray:
    x, z = points[:, 0] - piece[2], points[:, 1] - piece[4]
    (cos, sin), half = piece[TURN], piece[HALF][[0, 2]] - shrunk
    if piece[1] > 1:
        return np.hypot(x, z) < half[0]
    return (np.abs(cos * x - sin * z) < half[0]) & (np.abs(sin * x + cos * z) < half[1])


def faults(scene: dict[str, torch.Tensor], number: int, shrunk: float = 0.01) -> set:
    """What is wrong with a room, by points of its pieces."""
    surfaces, room = scene["surfaces"][number].numpy().astype(float), scene["room"][number].numpy()
    pieces = {k: surfaces[start] for k, start in enumerate(FIRST) if surfaces[start, 5] > 0}
    found = set()
    for k, piece in pieces.items():
        points = spots(piece)
        if (points < -1e-4).any() or (points > room[[0, 2]] + 1e-4).any():
            found.add(("out", k))
        for other in set(pieces) - {k}:
            stands_on = (8, 0), (13, 4)  # the box on the first table, the ball on the first box
            if (k, other) not in stands_on and (other, k) not in stands_on:
                inside = within(spots(piece, shrunk), pieces[other], shrunk).any()
                found |= {("cut", *sorted((k, other)))} if inside else set()
    return found


def test_no_change_gives_the_same_bits():
    same = rooms.change(drawn(16), genes_of(16, share=0.0))
    assert all(torch.equal(same[name], values) for name, values in drawn(16).items())
    loaded = rooms.load(tasks=rooms.TASKS, split="test", size=16, limit=6, seed=7)
    again = rooms.labelled(rooms.change(drawn(6), genes_of(6, share=0.0)), 16, rooms.TASKS)
    assert torch.equal(loaded.images, again.images)
    assert all(torch.equal(loaded.targets[letter], again.targets[letter]) for letter in rooms.TASKS)
    assert again.class_names == loaded.class_names


def room_of(**pieces: tuple) -> dict[str, torch.Tensor]:
    """An empty room of 4 x 3 x 6 m, the camera in the middle, with pieces by class: number among its class, x, z, half
    sizes, yaw."""
    scene = rooms.draw("test", 1)
    scene["room"], scene["camera"] = torch.tensor([[4.0, 3.0, 6.0]]), torch.tensor([[2.0, 1.5, 3.0, 0.0, 0.0, 1.0]])
    scene["lights"][..., :3] = torch.tensor([2.0, 2.6, 3.0])
    scene["surfaces"][:, PAINTED:, HALF] = -1
    for name, (x, z, across, along, yaw) in pieces.items():
        row = FIRST[{"box": 4, "box_2": 5, "ball": 11, "column": 9}[name]]
        scene["surfaces"][0, row, CENTRE] = torch.tensor([x, 0.5, z])
        scene["surfaces"][0, row, HALF] = torch.tensor([across, 0.5, along])
        scene["surfaces"][0, row, TURN] = torch.tensor([math.cos(yaw), math.sin(yaw)])
    return scene


@pytest.mark.parametrize(
    ("pieces", "expected"),
    [
        ({"box": (1, 1, 0.5, 0.5, 0)}, 0),
        ({"box": (0.3, 1, 0.5, 0.4, 0)}, 0.2),
        ({"box": (3.8, 5.9, 0.2, 0.4, math.pi / 2)}, 0.2),
        ({"box": (0.6, 1, 0.5, 0.5, math.pi / 4)}, 0.5 * math.sqrt(2) - 0.6),
        ({"ball": (0.3, 1, 0.4, 0.4, math.pi / 4)}, 0.1),
        ({"box": (1, 1, 0.5, 0.3, 0), "box_2": (1.9, 1, 0.5, 0.3, 0)}, 0.1),
        ({"box": (1, 1, 0.5, 0.3, 0), "box_2": (1.9, 1, 0.5, 0.3, math.pi / 2)}, 0),
        ({"box": (1, 1, 0.5, 0.5, 0), "box_2": (2.1, 1, 0.5, 0.5, math.pi / 4)}, 0.5 + 0.5 * math.sqrt(2) - 1.1),
        ({"box": (1, 1, 0.5, 0.5, 0), "box_2": (1.9, 1.9, 0.5, 0.5, math.pi / 4)}, 0),
        ({"box": (1, 1, 0.5, 0.5, 0), "ball": (1.8, 1, 0.4, 0.4, 1)}, 0.1),
        ({"box": (1, 1, 0.5, 0.5, 0), "ball": (1.8, 1.8, 0.4, 0.4, 1)}, 0),
        ({"column": (1, 1, 0.5, 0.5, 0), "ball": (1.6, 1.8, 0.4, 0.4, 1)}, 0),
        ({"column": (1, 1, 0.5, 0.5, 0), "ball": (1.3, 1.4, 0.4, 0.4, 1)}, 0.4),
    ],
)
def test_how_far_pieces_intrude_by_hand(pieces, expected):
    assert rooms.intrusion(room_of(**pieces)).sum().item() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(
    ("height", "x", "expected"), [(1.1, 2.6, 0.05), (1.2, 2.6, 0), (1.1, 2.0, 0.65), (1.1, 2.8, 0)]
)
def test_a_camera_keeps_clear_of_what_is_as_high(height, x, expected):
    """A box of a metre, whose side is half a metre from its middle."""
    scene = room_of(box=(x, 3, 0.5, 0.6, 0))
    scene["camera"][0, 1] = height
    assert rooms.intrusion(scene).sum().item() == pytest.approx(expected, abs=1e-5)


def test_intrusions_are_those_that_points_of_the_pieces_show():
    scene = rooms.change(drawn(40), genes_of(40, ("pieces",)))
    found = rooms.intrusion(scene)[:, : 14 + 14 * 13 // 2 - 2]
    wrong = [bool(faults(scene, k)) for k in range(40)]
    assert 10 < sum(wrong) < 40
    for k, is_wrong in enumerate(wrong):
        assert found[k].max() > 1e-4 if is_wrong else found[k].max() < 0.06


def test_changes_stay_in_their_ranges_and_change_what_they_name():
    before, scene = drawn(40), rooms.change(drawn(40), genes_of(40))
    width, height, length = (scene["room"][:, k] for k in range(3))
    x, y, z, _, pitch, _ = scene["camera"].T
    assert (x >= 0.35 - 1e-6).all()
    assert (x <= width - 0.35 + 1e-6).all()
    assert (z <= length - 0.35 + 1e-6).all()
    assert (y >= 1).all()
    assert (y <= 1.9).all()
    assert (pitch.rad2deg() > -22.01).all()
    assert (pitch.rad2deg() < 5.01).all()
    shares = scene["lights"][..., :3] / scene["room"][:, None]
    assert (shares[..., 1] > 0.779).all()
    assert (shares[..., 1] < 0.921).all()
    assert (shares[..., ::2] > 0.199).all()
    assert (shares[..., ::2] < 0.801).all()
    power = scene["lights"][..., 3:] / before["lights"][..., 3:]
    assert ((power[~power.isnan()] > 0.49) & (power[~power.isnan()] < 2.01)).all()
    for name, keys in {"lights": {"lights", "look"}, "colours": {"surfaces"}, "camera": {"camera"}}.items():
        one = rooms.change(before, genes_of(40, (name,)))
        assert {key for key in one if not torch.equal(one[key], before[key])} == keys
    coloured = rooms.change(before, genes_of(40, ("colours",)))["surfaces"]
    assert coloured[..., COLOUR].min() >= 0
    assert coloured[..., COLOUR].max() <= 1


def test_a_moved_piece_keeps_its_form_and_takes_along_what_stands_on_it():
    genes = {"pieces": torch.zeros(60, 36)}
    genes["pieces"][:, :3] = torch.tensor([1.0, -0.5, 1.0])  # the first table: 0.5 m, -0.25 m, 45 degrees
    before, after = (scene["surfaces"] for scene in (drawn(60), rooms.change(drawn(60), genes)))
    (room, *_) = [k for k in range(60) if before[k, FIRST[8], 5] > 0]  # with a box on it
    for start, count in ((FIRST[0], 5), (FIRST[8], 1)):
        old, new = (each[room, start : start + count] for each in (before, after))
        middle_old, middle_new = (each[room, FIRST[0], CENTRE] for each in (before, after))
        torch.testing.assert_close(middle_new - middle_old, torch.tensor([0.5, 0.0, -0.25]))
        assert torch.equal(old[:, HALF], new[:, HALF])
        away_old, away_new = old[:, CENTRE] - middle_old, new[:, CENTRE] - middle_new
        torch.testing.assert_close(away_old.norm(dim=1), away_new.norm(dim=1))
        turned = torch.atan2(*new[:, TURN].T.flip(0)) - torch.atan2(*old[:, TURN].T.flip(0))
        torch.testing.assert_close(turned.remainder(2 * math.pi), torch.full((count,), math.pi / 4))
        local = [
            torch.stack([cos * x - sin * z, sin * x + cos * z])
            for (x, _, z), (cos, sin) in ((away_old.T, old[0, TURN]), (away_new.T, new[0, TURN]))
        ]
        torch.testing.assert_close(*local, atol=1e-5, rtol=1e-5)
    rest = [k for k in range(PAINTED, before.shape[1]) if not FIRST[0] <= k < FIRST[0] + 5 and k != FIRST[8]]
    assert torch.equal(before[room, rest], after[room, rest])


@pytest.mark.parametrize("wrong", [{"doors": torch.zeros(1, 3)}, {"camera": torch.zeros(1, 4)}])
def test_wrong_genes_are_refused(wrong):
    with pytest.raises(ValueError, match="^Parameter genes should be out of .*camera .N, 5.* Found"):
        rooms.change(drawn(1), wrong)


def test_rooms_that_are_found_are_rooms_with_exact_labels_and_larger_errors():
    """Each point of the front: its errors are those of the room rendered again, and nothing is where it cannot be."""
    model = models.build("resnet18_tiny", "sd", classes=len(CLASSES), seed=0).eval()
    scenes, settings = drawn(3), {"size": 32, "tasks": "sd", "population": 8, "generations": 5}
    names = ["lights", "camera", "pieces"]
    fronts, decoded = study.search_rooms(model, scenes, changed=names, **settings)
    again, _ = study.search_rooms(model, scenes, changed=names, **settings)
    clean = study.room_errors(model, scenes, 32, "sd")
    for number, front in enumerate(fronts):
        assert torch.equal(front.genes, again[number].genes)
        assert front.queries == 40
        found = decoded(number, front.genes)
        view = rooms.render(found, 32)
        with torch.no_grad():
            outputs = model(view["image"].float() / 255)
        segmented = TASKS["s"].error(outputs["s"], view["label"])
        depth = torch.log1p(512 * view["depth"]) / math.log(2**16)
        measured = torch.stack([segmented, TASKS["d"].error(outputs["d"], depth[:, None])], dim=1)
        torch.testing.assert_close(-front.objectives.float(), measured, rtol=1e-3, atol=1e-5)
        assert (-front.objectives.amin(dim=0) >= clean[:, number] - 1e-6).all()
        assert any((-front.objectives.amin(dim=0) > clean[:, number]).tolist())
        before = faults(scenes, number)
        assert all(faults(found, k) <= before for k in range(len(front.genes)))
        assert ((rooms.intrusion(found) - rooms.intrusion(scenes)[number]).amax() < 1.1e-5).all()


def test_a_search_that_minds_nothing_lets_pieces_cut_into_others(monkeypatch):
    """The check above is one that fails where constraints are not kept."""
    model = models.build("resnet18_tiny", "sd", classes=len(CLASSES), seed=0).eval()
    monkeypatch.setattr(study.changes, "intrusion", lambda scene: torch.zeros(len(scene["room"]), 1))
    scenes = drawn(3)
    settings = {"size": 32, "tasks": "sd", "population": 8, "generations": 5}
    fronts, decoded = study.search_rooms(model, scenes, changed=["pieces"], **settings)
    found = [decoded(number, front.genes) for number, front in enumerate(fronts)]
    assert any(faults(each, k) - faults(scenes, i) for i, each in enumerate(found) for k in range(len(each["room"])))


def test_the_table_of_fronts_has_a_row_a_point():
    front = study.attacks.Front(torch.zeros(2, 1), -torch.tensor([[0.5, 0.25, 9.0], [0.75, 0.125, 9.0]]), 4)
    table = study.front_points({"one": front, "two": front}, "sd")
    assert table.title.tolist() == ["one", "one", "two", "two"]
    assert table.s.tolist() == [0.5, 0.75] * 2
    assert table.d.tolist() == [0.25, 0.125] * 2
