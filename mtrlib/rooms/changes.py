"""Changes of rooms that leave them rooms: light, colours, where the camera is and where pieces stand, as numbers.

What is changed is the room, not its picture: it is rendered again, and its labels are exact again. Each number, a gene,
goes from -1 to 1, and 0 leaves the room as it is, to the last bit. Lights and the camera stay in ranges (`RANGES`);
that nothing leaves the room or cuts into something else is told by `intrusion`.
"""

import math
from itertools import accumulate

import torch
from torch import Tensor

from mtrlib.dataset import Dataset
from mtrlib.rooms import rendering
from mtrlib.rooms.scenes import _ORDER, CENTRE, CLASSES, COLOUR, GROUPS, HALF, PAINTED, TURN

# By name: how many genes, and how far 1 reaches, gene by gene.
_LAMP = (1.0, 0.2, 1.0, 1.0)  # m along x, y, z; doublings of the power
REACH = {
    "lights": (*_LAMP, *_LAMP, 0.1, 0.15),  # two lamps, then the ambient light and the exposure
    "colours": (0.5,) * (3 * len(CLASSES)),  # of each class and channel, doublings
    "camera": (0.3, 0.2, 0.3, math.radians(15), math.radians(8)),  # m along x, y, z; yaw, pitch
    "pieces": (0.5, 0.5, math.radians(45)) * 12,  # m along x and z, yaw, of what stands on the floor
}
# What lights and cameras keep to: shares of the room, m from the walls and m above the floor, radians.
RANGES = {"lamp": (0.2, 0.8), "lamp height": (0.78, 0.92), "ambient": (0.15, 0.4), "exposure": (0.35, 0.75)}
RANGES |= {"camera": 0.35, "camera height": (1.0, 1.9), "pitch": (math.radians(-22), math.radians(5))}
CLEAR = 0.15  # m between the camera or a lamp and a piece that is as high
_SLOT = _ORDER.tolist()  # of each group of primitives, in the order of `surfaces`
_STARTS = [*accumulate(GROUPS[:-1], initial=PAINTED)]  # the first row of each group there
_ON = {12: 0, 13: 4}  # what stands on another piece moves with it


def change(rooms: dict[str, Tensor], genes: dict[str, Tensor]) -> dict[str, Tensor]:
    """Other rooms.

    Parameters
    ----------
    rooms : N of them, as `draw` gives them.
    genes : by names of `REACH`, (N, G), each in [-1, 1]; what is not named stays.

    Returns
    -------
    dict : as `rooms`, with the same noise.
    """
    rooms, given = dict(rooms), {}
    for name, values in genes.items():
        if name not in REACH or values.shape != (len(rooms["room"]), len(REACH[name])):
            allowed = ", ".join(f"{key} (N, {len(reach)})" for key, reach in REACH.items())
            raise ValueError(f"Parameter genes should be out of {allowed}. Found {name} {tuple(values.shape)}.")
        given[name] = (values * torch.tensor(REACH[name], dtype=torch.float64)).float()
    if "lights" in given:
        _relight(rooms, given["lights"])
    if "colours" in given:
        gain = given["colours"].unflatten(1, (-1, 3)).exp2()
        surfaces = rooms["surfaces"] = rooms["surfaces"].clone()
        gain = gain.gather(1, surfaces[..., :1].long().expand(-1, -1, 3)).repeat(1, 1, 2)
        surfaces[..., COLOUR] = (surfaces[..., COLOUR] * gain).clamp(0, 1)
    if "camera" in given:
        camera, room = rooms["camera"].clone(), rooms["room"]
        camera[:, :5] += given["camera"]
        for axis in (0, 2):
            camera[:, axis] = camera[:, axis].clamp(torch.tensor(RANGES["camera"]), room[:, axis] - RANGES["camera"])
        camera[:, 1].clamp_(*RANGES["camera height"])
        camera[:, 4].clamp_(*RANGES["pitch"])
        rooms["camera"] = camera
    if "pieces" in given:
        rooms["surfaces"] = _moved(rooms["surfaces"], given["pieces"].unflatten(1, (12, 3)))
    return rooms


def labelled(rooms: dict[str, Tensor], size: int, tasks: str) -> Dataset:
    """Rooms rendered at size x size pixels with the labels of `tasks`, as `load` gives them."""

    def make(part: dict[str, Tensor]) -> dict[str, Tensor]:
        view = rendering.render(part, size)
        return {"image": view["image"]} | {letter: rendering._TARGETS[letter](view) for letter in tasks}

    targets = rendering._in_chunks(make, rooms, size, None)
    images = targets.pop("image")
    ids = tuple(f"changed-{i:05d}" for i in range(len(images)))
    return Dataset("rooms", images, targets, dict.fromkeys(tasks), ids, CLASSES)


def intrusion(rooms: dict[str, Tensor]) -> Tensor:
    """(N, R), in metres, 0 where all is well: how far each of 14 pieces stands out of the room; how deep each two of
    them cut into each other, seen from above (but for what stands on another); and by how much the camera and the lamps
    are nearer than `CLEAR` to each piece that is as high."""
    base, half, round_, turn, top, there = _footprints(rooms["surfaces"])
    apart = torch.triu(torch.ones(14, 14, dtype=torch.bool), 1)
    for upper, lower in _ON.items():
        apart[lower, upper] = False
    i, j = apart.nonzero().T
    across = half[..., 0] * turn[..., 0].abs() + half[..., 1] * turn[..., 1].abs()
    along = half[..., 1] * turn[..., 0].abs() + half[..., 0] * turn[..., 1].abs()
    extent = torch.stack([across, along], dim=2) + round_[..., None]
    out = torch.maximum(extent - base, base + extent - rooms["room"][:, None, ::2]).clamp(min=0).amax(dim=2)
    cut = -_gap(*((base[:, k], half[:, k], turn[:, k]) for k in (i, j))) + round_[:, i] + round_[:, j]
    points = torch.cat([rooms["camera"][:, None, :3], rooms["lights"][..., :3]], dim=1)
    flat = points[:, :, None, ::2].expand(-1, -1, 14, -1)
    nothing = torch.zeros_like(flat), torch.tensor([1.0, 0.0]).expand_as(flat)
    own = (each[:, None].expand_as(flat) for each in (base, half, turn))
    close = CLEAR - (_gap((flat, *nothing), tuple(own)) - round_[:, None])
    close = torch.where(points[..., 1:2] < top[:, None] + CLEAR, close.clamp(min=0), 0) * there[:, None]
    both = there[:, i] & there[:, j]
    return torch.cat([out * there, cut.clamp(min=0) * both, close.flatten(1)], dim=1)


def _relight(rooms: dict[str, Tensor], genes: Tensor) -> None:
    lights, look, room = rooms["lights"].clone(), rooms["look"].clone(), rooms["room"]
    moves = genes[:, :8].unflatten(1, (2, 4))
    lights[..., :3] += moves[..., :3]
    for axis in range(3):
        low, high = RANGES["lamp height" if axis == 1 else "lamp"]
        lights[..., axis] = lights[..., axis].clamp(low * room[:, axis, None], high * room[:, axis, None])
    lights[..., 3:] *= moves[..., 3:].exp2()
    look[:, :2] += genes[:, 8:]
    look[:, 0].clamp_(*RANGES["ambient"])
    look[:, 1].clamp_(*RANGES["exposure"])
    rooms["lights"], rooms["look"] = lights, look


def _moved(surfaces: Tensor, moves: Tensor) -> Tensor:
    """Pieces moved by (N, 12, 3) x, z and yaw, those on another about its middle."""
    surfaces = surfaces.clone()
    bases = {slot: surfaces[:, start, CENTRE].clone()[:, None] for slot, start in zip(_SLOT, _STARTS, strict=True)}
    for slot, start, count in zip(_SLOT, _STARTS, GROUPS, strict=True):
        part, under = surfaces[:, start : start + count], _ON.get(slot, slot)
        x, z, yaw = moves[:, under, :, None].unbind(dim=1)
        cos, sin, away = yaw.cos(), yaw.sin(), part[..., CENTRE] - bases[under]
        part[..., CENTRE][..., 0] += x + (cos - 1) * away[..., 0] + sin * away[..., 2]
        part[..., CENTRE][..., 2] += z + (cos - 1) * away[..., 2] - sin * away[..., 0]
        own_cos, own_sin = part[..., TURN].clone().unbind(dim=2)
        part[..., TURN] = torch.stack([cos * own_cos - sin * own_sin, sin * own_cos + cos * own_sin], dim=2)
    return surfaces


def _footprints(surfaces: Tensor) -> tuple[Tensor, ...]:
    """Of the 14 slots, seen from above: middle (N, 14, 2), half sizes of a rectangle (N, 14, 2) and the radius around
    it (N, 14), so that a disc is a point with a radius; (cos, sin) of yaw, height, and whether it is there."""
    order, parts = torch.tensor(_SLOT).argsort(), []
    for start, count in zip(_STARTS, GROUPS, strict=True):
        own, first = surfaces[:, start : start + count], surfaces[:, start]
        disc, half = (first[:, 1] > 1)[:, None], first[:, HALF][:, ::2]
        sizes = half.masked_fill(disc, 0), half.masked_fill(~disc, 0)[:, 0]
        top = torch.where(own[..., 5] > 0, own[..., 3] + own[..., 6], 0).amax(dim=1)
        parts.append((first[:, CENTRE][:, ::2], *sizes, first[:, TURN], top, first[:, 5] > 0))
    return tuple(torch.stack(each, dim=1)[:, order] for each in zip(*parts, strict=True))


def _gap(one: tuple[Tensor, ...], other: tuple[Tensor, ...]) -> Tensor:
    """The distance of two turned rectangles (..., 2), below 0 by how deep they cut into each other; each is middle,
    half size and turn."""
    corners = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
    deepest, nearest = [], []
    for (base, half, turn), (base_2, half_2, turn_2) in ((one, other), (other, one)):
        spots = base_2[..., None, :] + _turned(corners * half_2[..., None, :], turn_2[..., None, :])
        local = _turned(spots - base[..., None, :], turn[..., None, :] * torch.tensor([1.0, -1.0]))  # in its own frame
        beyond = torch.maximum(local.amin(dim=-2) - half, -local.amax(dim=-2) - half)
        deepest.append(beyond.amax(dim=-1))
        nearest.append((local.abs() - half[..., None, :]).clamp(min=0).norm(dim=-1).amin(dim=-1))
    separated = torch.maximum(*deepest)
    return torch.where(separated > 0, torch.minimum(*nearest), separated)


def _turned(vectors: Tensor, turn: Tensor) -> Tensor:
    """Vectors (x, z) of a piece's frame in that of the room."""
    (x, z), (cos, sin) = vectors.unbind(dim=-1), turn.unbind(dim=-1)
    return torch.stack([cos * x + sin * z, cos * z - sin * x], dim=-1)
