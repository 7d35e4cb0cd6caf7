"""What stands in the rooms of `rooms`: from uniform random numbers to walls, furniture, materials, lights and cameras.

A room is a box whose walls are cut in two panels each; a panel may carry a door, a window or a picture. Inside stand
tables, seats, boxes, columns and balls. All rooms have the same slots for them, so that a batch is a few tensors; what
does not exist has a negative size, which no ray hits. A row of the table `surfaces` says all of one surface: its class,
shape, place and material. World frame: right-handed, in metres, y up.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike

CLASSES = ("floor", "ceiling", "wall", "door", "window", "picture", "box", "table", "seat", "ball", "column")

UNIFORMS = 1024  # drawn for each room; not all are used
PLANE, BOX, COLUMN, BALL = range(4)
PAINTED = 11  # surfaces of the room itself: floor, ceiling, 4 walls, door, windows, 3 pictures; then the primitives
# What stands in a room, by slot: 2 tables, 2 seats, 4 boxes, 2 columns, 2 balls, a box on a table, a ball on a box.
_SMALLEST = [[0.75, 0.35, 0.5]] * 2 + [[0.7, 0.6, 0.65]] * 2 + [[0.4, 0.45, 0.4]] * 4
_SMALLEST += [[0.35, 0.45, 0.35]] * 2 + [[0.4, 0.4, 0.4]] * 2 + [[0.25, 0.2, 0.25], [0.3, 0.3, 0.3]]
_LARGEST = [[1.5, 0.7, 0.85]] * 2 + [[1.8, 0.8, 0.85]] * 2 + [[1.0, 1.8, 0.6]] * 4
_LARGEST += [[0.55, 1.1, 0.55]] * 2 + [[0.8, 0.8, 0.8]] * 2 + [[0.4, 0.35, 0.4], [0.5, 0.5, 0.5]]
_EXISTS = [0.25, 0.05] + [0.25, 0.05] + [0.35, 0.1, 0.05, 0.05] + [0.06, 0.12] + [0.35, 0.05] + [0.15, 0.15]
_AT_WALL = [0.25] * 2 + [0.6] * 2 + [0.6] * 4 + [0.0] * 4
# Primitives, in the order of `surfaces`: boxes in groups that turn together, columns, balls; the slot of each.
BOXES, COLUMNS, BALLS = (5, 5, 4, 4, 1, 1, 1, 1, 1), 2, 3
_OWNER = [0] * 5 + [1] * 5 + [2] * 4 + [3] * 4 + [4, 5, 6, 7, 12, 8, 9, 10, 11, 13]
_SHAPE = [PLANE] * PAINTED + [BOX] * sum(BOXES) + [COLUMN] * COLUMNS + [BALL] * BALLS
CLASS = [0, 1, 2, 2, 2, 2, 3, 4, 5, 5, 5] + [7] * 10 + [8] * 8 + [6] * 5 + [10] * 2 + [9] * 3
# Materials: floor, ceiling, two of walls, door, windows, 3 pictures, then one a slot: lowest and highest hue in turns
# (floors are brownish, skies blue, tables wooden, ...), saturation and value, and the contrast of their texture.
_MATERIAL = [0, 1, 2, 2, 3, 2, 4, 5, 6, 7, 8] + [9 + slot for slot in _OWNER]
_HUE = [[0.04, 0.14], [0, 1], [0, 1], [0, 1], [0.01, 0.1], [0.5, 0.65]] + [[0, 1]] * 3
_HUE += [[0.05, 0.12]] * 2 + [[0.55, 0.9]] * 2 + [[0.25, 0.5]] * 4 + [[0, 1]] * 2 + [[0.93, 1.17]] * 2
_HUE += [[0.25, 0.5], [0.93, 1.17]]
_SATURATION = [[0, 0.6], [0, 0.1], [0, 0.35], [0, 0.35], [0.3, 0.7], [0, 0.4]] + [[0.2, 0.9]] * 3
_SATURATION += [[0.35, 0.8]] * 2 + [[0.3, 0.9]] * 2 + [[0.3, 0.8]] * 4 + [[0, 0.12]] * 2 + [[0.7, 1]] * 2
_SATURATION += [[0.3, 0.8], [0.7, 1]]
_VALUE = [[0.4, 0.85], [0.85, 1], [0.65, 1], [0.55, 1], [0.35, 0.8], [0.6, 1]] + [[0.3, 1]] * 3
_VALUE += [[0.3, 0.9]] * 2 + [[0.25, 0.9]] * 2 + [[0.3, 0.95]] * 4 + [[0.5, 1]] * 2 + [[0.5, 1]] * 2 + [[0.3, 0.95]] * 2
_CONTRAST = [0.6, 0.3, 0.35, 0.5, 0.6, 0.5] + [1] * 3 + [0.6] * 2 + [0.6] * 2 + [0.8] * 10
# Columns of `surfaces` after class and shape: centre, half size, (cos, sin) of yaw; colours, texture, emitted light.
CENTRE, HALF, TURN = slice(2, 5), slice(5, 8), slice(8, 10)
COLOUR, TEXTURE, EMIT = slice(10, 16), slice(16, 21), 21


def decode(uniforms: np.ndarray) -> dict[str, np.ndarray]:
    """(N, UNIFORMS) in [0, 1) -> parameters as in `draw`, and (N, 8, 7) `cameras`, with clearance, to choose from."""
    number, used = len(uniforms), 0

    def take(*shape: int, low: ArrayLike = 0.0, high: ArrayLike = 1.0) -> np.ndarray:
        nonlocal used
        start, used = used, used + math.prod(shape)
        return np.asarray(low) + np.subtract(high, low) * uniforms[:, start:used].reshape(number, *shape)

    room = take(3, low=[3.2, 2.4, 3.2], high=[5.4, 3.0, 5.4])
    centre, half, yaw, exists = _furnish(room, take)
    surfaces = np.zeros((number, len(CLASS), 22))
    surfaces[..., 0] = CLASS
    surfaces[..., 1] = _SHAPE
    surfaces[:, :PAINTED, 5:9] = 1  # planes are not turned
    solid = surfaces[:, PAINTED:]
    offset, solid[..., HALF] = _parts(half, take(2) < 0.5)
    cos, sin = np.cos(yaw)[:, _OWNER], np.sin(yaw)[:, _OWNER]
    x, y, z = np.moveaxis(offset, -1, 0)
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
    cameras += [np.tan(np.radians(38 + 8 * chance[..., 6])), clearance.min(axis=2)]
    lights = np.concatenate(
        [take(2, 3, low=[0.2, 0.78, 0.2], high=[0.8, 0.92, 0.8]) * room[:, None], take(2, 3)], axis=2
    )
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
    half = take(14, 3, low=_SMALLEST, high=_LARGEST) / 2
    half[:, 4:8, 1] *= half[:, 4:8, 1] / 1.05  # low boxes are more frequent than cupboards
    half[:, 4:8, 1] = half[:, 4:8, 1].clip(0.12)
    half[:, 8, 1] = room[:, 1] / 2  # a column up to the ceiling
    half[:, 8:, 2] = half[:, 8:, 0]
    half[:, 10:12, 1] = half[:, 10:12, 0]
    exists, at_wall, wall = take(14) < _EXISTS, take(12) < _AT_WALL, np.floor(4 * take(12)).astype(int)
    yaw = np.pi / 2 * np.floor(4 * take(12))  # along the walls
    yaw = np.concatenate([yaw, np.zeros((number, 2))], axis=1)
    yaw[:, :12] = np.where(at_wall, np.array([0.5, -0.5, 0.0, 1.0])[wall] * np.pi, yaw[:, :12])  # face the room
    centre, chance = np.zeros((number, 14, 3)), take(12, tries, 2)
    radius = 0.9 * np.hypot(half[..., 0], half[..., 2])
    for i in range(12):
        margin = radius[:, i, None, None] + 0.05
        place = margin + (room[:, None, ::2] - 2 * margin) * chance[:, i]
        depth = (half[:, i, 2] + 0.02)[:, None]
        flush = np.stack([depth, room[:, :1] - depth, depth, room[:, 2:] - depth])[wall[:, i], np.arange(number)]
        along_z = wall[:, i, None] < 2  # walls x = 0 and x = width
        place[..., 0] = np.where(at_wall[:, i, None] & along_z, flush, place[..., 0])
        place[..., 1] = np.where(at_wall[:, i, None] & ~along_z, flush, place[..., 1])
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


def _parts(half: np.ndarray, legs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Offsets from the slot's base centre and half sizes of its primitives, both (N, P, 3), in the slot's own frame."""
    part = half[:, _OWNER].copy()
    offset = np.zeros_like(part)
    offset[..., 1] = part[..., 1]
    sign = np.array([[0, 0], [1, 1], [-1, 1], [1, -1], [-1, -1]])
    for table in range(2):
        where, (x, y, z) = slice(5 * table, 5 * table + 5), half[:, table].T
        for k in range(1, 5):  # four legs, or two slabs
            is_slab = ~legs[:, table]
            along = np.where(is_slab, 0.0, z - 0.05) * sign[k, 1]
            offset[:, where][:, k] = np.stack([sign[k, 0] * (x - 0.07), y - 0.04, along], axis=-1)
            gone = is_slab & (k > 2)
            size = [np.full_like(x, 0.07), y - 0.04, np.where(is_slab, 0.9 * z, 0.07)]
            part[:, where][:, k] = np.where(gone, -1.0, size).T
        offset[:, where][:, 0, 1], part[:, where][:, 0, 1] = 2 * y - 0.04, 0.04
    for seat in range(2):
        where, (x, y, z) = slice(10 + 4 * seat, 14 + 4 * seat), half[:, 2 + seat].T
        zero, arm = np.zeros_like(x), np.full_like(x, 0.13)
        at = [(zero, 0.5 * y, zero), (zero, y, 0.15 - z), (x - arm, 0.7 * y, zero), (arm - x, 0.7 * y, zero)]
        size = [(x, 0.5 * y, z), (x, y, zero + 0.15), (arm, 0.7 * y, z), (arm, 0.7 * y, z)]
        offset[:, where], part[:, where] = np.array(at).transpose(2, 0, 1), np.array(size).transpose(2, 0, 1)
    return offset, part


def _materials(take: Callable[..., np.ndarray]) -> np.ndarray:
    """(N, M, 11): two colours (linear RGB), kind of texture, cycles a metre, phase, (cos, sin) of its direction."""
    number, contrast = len(_HUE), np.array(_CONTRAST)[:, None]
    hue, saturation, value = (
        take(number, 1, low=low[:, None], high=high[:, None])
        for low, high in (np.array(limits).T for limits in (_HUE, _SATURATION, _VALUE))
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
