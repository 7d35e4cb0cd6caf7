"""What stands in the rooms of `rooms`: from uniform random numbers to walls, furniture, materials, lights and cameras.

A room is a box whose walls are cut in two panels each; a panel may carry a door, a window or a picture. Inside stand
tables, seats, boxes, columns and balls. All rooms have the same slots for them, so that a batch is a few tensors; what
does not exist has a negative size, which no ray hits. A row of the table `surfaces` says all of one surface: its class,
shape, place and material. World frame: right-handed, in metres, y up.
"""

import math
from collections.abc import Callable
from importlib.resources import files

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

CLASSES = ("floor", "ceiling", "wall", "door", "window", "picture", "box", "table", "seat", "ball", "column")
SHAPES = ("plane", "box", "column", "ball")
PLANE, BOX, COLUMN, BALL = range(4)

UNIFORMS = 1024  # drawn for each room; not all are used
PAINTED = 11  # surfaces of the room itself: floor, ceiling, 4 walls, door, windows, 3 pictures; then the primitives
# What a room is made of: chances, metres, the lowest and highest hue in turns (floors are brownish, skies blue, tables
# wooden, ...), saturation and value of its colours, and the contrast of their texture.
_PIECES = pd.read_csv(files("mtrlib.rooms") / "pieces.csv")
_SLOTS = _PIECES[_PIECES["exists"].notna()].reset_index(drop=True)  # what stands in it
# The parts of a piece, in its own frame and half sizes: centre and half size are a share of them (x, y, z) and metres.
_PARTS = {
    kind: group.iloc[:, 3:].to_numpy(float).reshape(-1, 4, 3)
    for kind, group in pd.read_csv(files("mtrlib.rooms") / "parts.csv").fillna("").groupby(["class", "variant"])
}
_FORMS = [
    [_PARTS.get((kind, variant), _PARTS.get((kind, ""))) for kind in _SLOTS["class"]] for variant in ("slabs", "legs")
]
# Primitives, in the order of `surfaces`: boxes in groups that turn together, columns, balls; the slot of each.
_ORDER = _SLOTS["shape"].map(SHAPES.index).sort_values(kind="stable").index
GROUPS = [len(_FORMS[0][slot]) for slot in _ORDER]
_OWNER = np.repeat(_ORDER, GROUPS).tolist()
_FORM = np.stack([np.concatenate([forms[slot] for slot in _ORDER]) for forms in _FORMS])  # (2, P, 4, 3)
_MATERIAL = [0, 1, 2, 2, 3, 2, 4, 5, 6, 7, 8] + [9 + slot for slot in _OWNER]
CLASS, _SHAPE = (
    _PIECES[column].map(names.index)[_MATERIAL].tolist() for column, names in (("class", CLASSES), ("shape", SHAPES))
)
# Columns of `surfaces` after class and shape: centre, half size, (cos, sin) of yaw; colours, texture, emitted light.
CENTRE, HALF, TURN = slice(2, 5), slice(5, 8), slice(8, 10)
COLOUR, TEXTURE, EMIT = slice(10, 16), slice(16, 21), 21


def decode(uniforms: np.ndarray) -> dict[str, np.ndarray]:
    """(N, UNIFORMS) in [0, 1) -> parameters as in `draw`, and (N, 8, 7) `cameras`, with clearance, to choose from."""
    number, used = len(uniforms), 0

    def take(*shape: int, low: ArrayLike = 0.0, high: ArrayLike = 1.0) -> np.ndarray:
        nonlocal used
        start, used = used, used + math.prod(shape)
        low, high = np.asarray(low), np.asarray(high)
        return low + (high - low) * uniforms[:, start:used].reshape(number, *shape)

    room = take(3, low=[3.2, 2.4, 3.2], high=[7.0, 3.2, 8.0])
    centre, half, yaw, exists = _furnish(room, take)
    surfaces = np.zeros((number, len(CLASS), 22))
    surfaces[..., 0] = CLASS
    surfaces[..., 1] = _SHAPE
    surfaces[:, :PAINTED, 5:9] = 1  # planes are not turned
    solid = surfaces[:, PAINTED:]
    legs, owned = np.pad((take(2) < 0.5).astype(int), ((0, 0), (0, 12))), half[:, _OWNER]  # of the tables
    at, at_more, size, size_more = np.moveaxis(_FORM[legs[:, _OWNER], np.arange(len(_OWNER))], 2, 0)
    x, y, z = np.moveaxis(at * owned + at_more, -1, 0)
    solid[..., HALF] = size * owned + size_more
    cos, sin = np.cos(yaw)[:, _OWNER], np.sin(yaw)[:, _OWNER]
    solid[..., CENTRE] = centre[:, _OWNER] + np.stack([cos * x + sin * z, y, cos * z - sin * x], axis=-1)
    solid[..., TURN] = np.stack([cos, sin], axis=-1)
    solid[..., HALF][~exists[:, _OWNER]] = -1
    surfaces[..., 10:21] = _materials(take)[:, _MATERIAL]
    surfaces[:, 7, EMIT] = take(1, low=0.2, high=1.2)[:, 0]  # from night to day behind the windows

    chance = take(8, 7)
    place = 0.35 + (room[:, None, ::2] - 0.7) * chance[..., :2]
    aim = room[:, None, ::2] * (0.25 + 0.5 * chance[..., 2:4]) - place
    clearance = np.linalg.norm(place[:, :, None] - centre[:, None, :12, ::2], axis=-1)
    clearance -= np.hypot(half[:, None, :12, 0], half[:, None, :12, 2]) + np.where(exists[:, None, :12], 0, -100)
    cameras = [place[..., 0], 1.0 + 0.9 * chance[..., 4], place[..., 1]]
    cameras += [np.arctan2(-aim[..., 0], -aim[..., 1]), np.radians(-22 + 27 * chance[..., 5])]
    cameras += [np.tan(np.radians(27 + 8 * chance[..., 6])), clearance.min(axis=2)]
    spots = take(2, 3, low=[0.2, 0.78, 0.2], high=[0.8, 0.92, 0.8]) * room[:, None]
    lights = np.concatenate([spots, take(2, 3)], axis=2)
    warmth = lights[..., 5:] - 0.4
    power = lights[..., 3:4] * [[1.0], [0.6]] + [[0.6], [-0.2]]  # the second light is off in a third of the rooms
    lights[..., 3:] = power.clip(0) * (1 + warmth * [0.25, 0.0, -0.35])
    return {
        "room": room,
        "surfaces": surfaces,
        "panels": _panels(room, take),
        "cameras": np.stack(cameras, axis=-1),
        "lights": lights,
        "look": take(4, low=[0.15, 0.35, 0.004, 0.85], high=[0.4, 0.75, 0.025, 1.15]),
    }


def _furnish(room: np.ndarray, take: Callable[..., np.ndarray]) -> tuple[np.ndarray, ...]:
    """Slots: base centre (N, 14, 3), half size (N, 14, 3), yaw (N, 14) and whether it exists (N, 14).

    The first 12 stand on the floor, each at the first of 6 random places where it is clear of those before it; 12 is a
    box on table 0, 13 a ball on the box of slot 4.
    """
    number, tries = len(room), 6
    low, high = (_SLOTS[[f"{side}_{end}" for side in ("width", "height", "length")]] for end in ("low", "high"))
    half = take(14, 3, low=low, high=high) / 2
    half[:, 4:8, 1] = (half[:, 4:8, 1] ** 2 / 1.05).clip(0.12)  # low boxes are more frequent than cupboards
    half[:, 8, 1] = room[:, 1] / 2  # a column up to the ceiling
    half[:, 8:, 2] = half[:, 8:, 0]
    half[:, 10:12, 1] = half[:, 10:12, 0]
    exists, at_wall = take(14) < _SLOTS["exists"].to_numpy(), take(12) < _SLOTS["at_wall"][:12].to_numpy()
    wall = np.floor(4 * take(12)).astype(int)  # x = 0, x = width, z = 0, z = length
    yaw = np.pad(np.pi / 2 * np.floor(4 * take(12)), ((0, 0), (0, 2)))  # along the walls
    yaw[:, :12] = np.where(at_wall, np.array([0.5, -0.5, 0.0, 1.0])[wall] * np.pi, yaw[:, :12])  # face the room
    centre, chance = np.zeros((number, 14, 3)), take(12, tries, 2)
    radius = 0.9 * np.hypot(half[..., 0], half[..., 2])
    for i in range(12):
        margin = radius[:, i, None, None] + 0.05
        place = margin + (room[:, None, ::2] - 2 * margin) * chance[:, i]
        depth = (half[:, i, 2] + 0.02)[:, None]
        flush = np.stack([depth, room[:, :1] - depth, depth, room[:, 2:] - depth])[wall[:, i], np.arange(number)]
        for axis in range(2):
            flat = at_wall[:, i, None] & (wall[:, i, None] // 2 == axis)
            place[..., axis] = np.where(flat, flush, place[..., axis])
        apart = np.linalg.norm(place[:, :, None] - centre[:, None, :i, ::2], axis=-1)
        free = ((apart > (radius[:, :i] + radius[:, i : i + 1])[:, None]) | ~exists[:, None, :i]).all(axis=2)
        exists[:, i] &= free.any(axis=1)
        centre[:, i, ::2] = place[np.arange(number), free.argmax(axis=1)]
    shift, yaw[:, 12] = take(2, low=-0.25, high=0.25), yaw[:, 0]
    for i, support in ((12, 0), (13, 4)):
        exists[:, i] &= exists[:, support]
        centre[:, i] = centre[:, support]
        centre[:, i, 1] = 2 * half[:, support, 1]
    centre[:, 12, ::2] += shift * half[:, 0, ::2].min(axis=1, keepdims=True)
    half[:, 13] = np.minimum(half[:, 13, :1], half[:, 4, ::2].min(axis=1, keepdims=True))
    return centre, half, yaw, exists


def _materials(take: Callable[..., np.ndarray]) -> np.ndarray:
    """(N, M, 11): two colours (linear RGB), kind of texture, cycles a metre, phase, (cos, sin) of its direction."""
    number, contrast = len(_PIECES), _PIECES[["contrast"]].to_numpy()
    hue, saturation, value = (
        take(number, 1, low=_PIECES[[f"{of}_low"]], high=_PIECES[[f"{of}_high"]])
        for of in ("hue", "saturation", "value")
    )
    spread = take(number, 1, low=0.02, high=0.2)

    def rgb(hue: np.ndarray, value: np.ndarray) -> np.ndarray:
        ramp = np.abs((6 * hue + np.array([0.0, 4.0, 2.0])) % 6 - 3) - 1
        return (value * (1 - saturation * (1 - ramp.clip(0, 1)))) ** 2.2

    second = np.where(take(number, 1) < 0.5, 0.45, 0.75) * value + 0.1 * take(number, 1)
    kind = np.maximum(np.floor(take(number, 1) * 11) - 5, 0)  # plain in 6 of 11
    kind[:, [1, 5]] = 0  # ceilings and windows
    cycles = np.exp(take(number, 1, low=np.log(1.5), high=np.log(8.0)))
    angle = 2 * np.pi * take(number, 1)
    first = rgb(hue, value)
    second = first + (rgb(hue + spread, second) - first) * contrast
    parts = [first, second, kind, cycles, take(number, 1), np.cos(angle), np.sin(angle)]
    return np.concatenate(parts, axis=2)


def _panels(room: np.ndarray, take: Callable[..., np.ndarray]) -> np.ndarray:
    """(N, 8, 5): what is painted on the panels; see `draw`."""
    number = len(room)
    content = np.array([6, 7, 7, 8, 9, 10, 6, 7])[np.argsort(take(8), axis=1)]
    low = np.array([[0.8, 0.9, 0.6], [2.0, 0.9, 0.5]])[:, np.clip(content - 6, 0, 2)]
    high = np.array([[1.0, 1.9, 1.3], [2.2, 1.5, 1.0]])[:, np.clip(content - 6, 0, 2)]
    length = np.repeat(room[:, [2, 0]], 4, axis=1) / 2  # of a panel; walls x = 0, x = width, z = 0, z = length
    wide = np.minimum(low[0] + (high[0] - low[0]) * take(8), 0.85 * length) / 2
    tall = (low[1] + (high[1] - low[1]) * take(8)) / 2
    along = length * np.tile([0, 1], 4) + wide + (length - 2 * wide) * (0.1 + 0.8 * take(8))
    up = np.where(content == 6, tall, np.maximum(1.55 + 0.2 * take(8), tall + 0.3))
    content = np.where(take(8) < np.where(content == 6, 0.6, 0.75), content, 0)
    return np.stack([content, along, up, wide, tall], axis=-1).reshape(number, 8, 5)
