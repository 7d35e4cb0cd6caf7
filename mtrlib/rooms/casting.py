"""Casting rays into the rooms of `scenes`: which surface each pixel sees, how far away, and which way it faces.

World and camera frames are right-handed, in metres, y up. The camera looks along -z of its own frame: x is right, y up
and z towards the viewer, so normals of surfaces straight ahead are (0, 0, 1). N rooms have P = size^2 pixels each.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from mtrlib.rooms.scenes import BALL, BALLS, BOXES, CENTRE, CLASSES, COLUMN, COLUMNS, HALF, PAINTED, PLANE, TURN


class Hits(NamedTuple):
    """Where the rays of N rooms end; vectors of the world, or of the frame of a surface, are lists of three (N, P).

    Attributes
    ----------
    depth, surface : (N, P), metres along the axis of the camera, and int32 row of the table `surfaces`.
    rays : (N, 3, P), directions in the frame of the camera with z = -1; points are rays * depth.
    border : (N, P) bool, on the frame of a panel, a window's bar or a skirting board.
    rows : (22, N, P), the row of `surfaces` at each pixel.
    world, points, normal : rays, points and unit normals in the world.
    local, local_normal : points and unit normals in the frame of their surface.
    """

    depth: Tensor
    surface: Tensor
    rays: Tensor
    border: Tensor
    rows: Tensor
    world: list[Tensor]
    points: list[Tensor]
    normal: list[Tensor]
    local: list[Tensor]
    local_normal: list[Tensor]


def cast(scene: dict[str, Tensor], size: int) -> Hits:
    """Cast one ray through the centre of each of size x size pixels. `scene` : as `rooms.draw` gives it."""
    number, surfaces = len(scene["room"]), scene["surfaces"].shape[1]
    rays, world = camera_rays(scene["camera"], size)
    origin = scene["camera"][:, :3]
    depth, surface = cast_room(scene, origin, world)
    depth, surface = cast_objects(scene, origin, world, depth, surface)
    points = [origin[:, k, None] + depth * world[k] for k in range(3)]
    plane, (surface, border) = surface, paint(scene, points, surface)
    flat = (surface + surfaces * torch.arange(number, device=surface.device)[:, None]).view(-1)
    rows = scene["surfaces"].view(number * surfaces, -1).index_select(0, flat).t().contiguous().view(-1, *depth.shape)
    local, local_normal = _local(rows, points, world, plane)
    cos, sin = rows[TURN]
    normal = [
        cos * local_normal[0] + sin * local_normal[2],
        local_normal[1],
        cos * local_normal[2] - sin * local_normal[0],
    ]
    return Hits(depth, surface, rays, border, rows, world, points, normal, local, local_normal)


def geometry(scene: dict[str, Tensor], hits: Hits) -> dict[str, Tensor]:
    """What labels are made from: label, surface, depth, rays and normal, as `rooms.render` gives them."""
    number, pixels = hits.depth.shape
    size = math.isqrt(pixels)
    square = (number, size, size)
    return {
        "label": hits.rows[0].to(torch.uint8).view(square),
        "surface": hits.surface.view(square),
        "depth": hits.depth.view(square),
        "rays": hits.rays.view(number, 3, size, size),
        "normal": torch.stack(_to_camera(scene["camera"], hits.normal), dim=1).view(number, 3, size, size),
    }


def choose_camera(rooms: dict[str, Tensor]) -> Tensor:
    """(N, 6): of the candidates, the one that sees far, nothing close and many classes, by 6 x 6 rays."""
    cameras, best, chosen = rooms.pop("cameras"), None, None
    classes = rooms["surfaces"][..., 0]
    for camera in cameras.unbind(dim=1):
        _, world = camera_rays(camera, 6)
        depth, surface = cast_room(rooms, camera[:, :3], world)
        depth, surface = cast_objects(rooms, camera[:, :3], world, depth, surface)
        surface, _ = paint(rooms, [camera[:, k, None] + depth * world[k] for k in range(3)], surface)
        seen = classes.gather(1, surface.long())
        kinds = sum((seen == k).any(dim=1) for k in range(len(CLASSES)))
        ordered = depth.sort(dim=1).values
        score = 4 * ordered[:, 0].clamp(max=0.9) + 2 * ordered[:, 12].clamp(max=1.6) + 0.4 * kinds
        score = score - 100 * (camera[:, 6] < 0.15)
        if best is None:
            best, chosen = score, camera
        else:
            chosen = torch.where((score > best)[:, None], camera, chosen)
            best = torch.maximum(score, best)
    return chosen[:, :6].contiguous()


def camera_rays(camera: Tensor, size: int) -> tuple[Tensor, list[Tensor]]:
    """Rays with unit depth: (N, 3, P) in the frame of the camera and three (N, P) in the world's; P = size^2."""
    across = (2 * torch.arange(size, device=camera.device) + 1 - size) / size
    x, y = across.repeat(size) * camera[:, 5:6], -across.repeat_interleave(size) * camera[:, 5:6]
    yaw, pitch = camera[:, 3:4], camera[:, 4:5]
    up, forward = y * pitch.cos() + pitch.sin(), pitch.cos() - y * pitch.sin()
    world = [x * yaw.cos() - forward * yaw.sin(), up, -x * yaw.sin() - forward * yaw.cos()]
    return torch.stack([x, y, -torch.ones_like(x)], dim=1), world


def cast_room(rooms: dict[str, Tensor], origin: Tensor, ray: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Where rays from inside leave the room: distance in units of the ray and index of the surface, both (N, P)."""
    inverse = [_inverse(r) for r in ray]
    exits = [((i > 0) * rooms["room"][:, k, None] - origin[:, k, None]) * i for k, i in enumerate(inverse)]
    distance = torch.minimum(torch.minimum(exits[0], exits[1]), exits[2])
    side, up, end = (first + (inverse[k] > 0).int() for k, first in enumerate((2, 0, 4)))
    surface = torch.where(exits[1] <= distance, up, torch.where(exits[0] <= distance, side, end))
    return distance, surface


def cast_objects(
    rooms: dict[str, Tensor], origin: Tensor, ray: list[Tensor], distance: Tensor, surface: Tensor
) -> tuple[Tensor, Tensor]:
    """The nearest of `distance` and the objects that a ray enters: distance and surface (N, P)."""
    table, index = rooms["surfaces"], PAINTED
    present = (table[:, :, 5].amax(dim=0) > 0).tolist()  # in any of the rooms

    def nearer(enter: Tensor, leave: Tensor, index: int) -> None:
        nonlocal distance, surface
        closer = (enter < torch.minimum(leave, distance)) & (enter > 0)
        distance, surface = torch.where(closer, enter, distance), surface.masked_fill(closer, index)

    up = _inverse(ray[1])
    for count in BOXES:
        cos, sin = table[:, index, TURN].unsqueeze(2).unbind(dim=1)
        turned = (_inverse(cos * ray[0] - sin * ray[2]), up, _inverse(sin * ray[0] + cos * ray[2]))
        spans = [value.abs() for value in turned]
        for i in filter(present.__getitem__, range(index, index + count)):
            x, y, z = (table[:, i, CENTRE] - origin).unsqueeze(2).unbind(dim=1)
            middle = [m * t for m, t in zip((cos * x - sin * z, y, sin * x + cos * z), turned, strict=True)]
            reach = [table[:, i, 5 + k, None] * spans[k] for k in range(3)]
            enter = torch.maximum(torch.maximum(middle[0] - reach[0], middle[1] - reach[1]), middle[2] - reach[2])
            leave = torch.minimum(torch.minimum(middle[0] + reach[0], middle[1] + reach[1]), middle[2] + reach[2])
            nearer(enter, leave, i)
        index += count
    flat = ray[0].square() + ray[2].square()
    for squared, count in ((flat.clamp(min=1e-12), COLUMNS), (flat + ray[1].square(), BALLS)):
        for i in filter(present.__getitem__, range(index, index + count)):
            x, y, z = (table[:, i, CENTRE] - origin).unsqueeze(2).unbind(dim=1)
            size, is_ball = table[:, i, 5, None], count == BALLS
            along = (x * ray[0] + z * ray[2] + (y * ray[1] if is_ball else 0)) / squared
            beyond = x.square() + z.square() + (y.square() if is_ball else 0) - size * size.abs()
            chord = (along.square() - beyond / squared).clamp(min=0).sqrt()  # 0: misses, as enter < leave fails
            enter, leave = along - chord, along + chord
            if not is_ball:
                reach = table[:, i, 6, None] * up.abs()
                enter, leave = torch.maximum(enter, y * up - reach), torch.minimum(leave, y * up + reach)
            nearer(enter, leave, i)
        index += count
    return distance, surface


def paint(rooms: dict[str, Tensor], points: list[Tensor], surface: Tensor) -> tuple[Tensor, Tensor]:
    """Doors, windows and pictures in the place of walls: surface (N, P), and whether a point is on a frame or bar."""
    is_wall = (surface >= 2) & (surface < 6)
    along = torch.where(surface < 4, points[2], points[0])
    length = torch.where(surface < 4, rooms["room"][:, 2:], rooms["room"][:, :1])
    panel = torch.where(is_wall, 2 * (surface - 2) + (along > length / 2).long(), 0)
    first = 8 * torch.arange(len(panel), device=panel.device)[:, None]
    rows = rooms["panels"].view(-1, 5).index_select(0, (panel + first).view(-1)).view(*panel.shape, 5)
    content, middle, up, wide, tall = rows.unbind(dim=2)
    inside = torch.minimum(wide - (along - middle).abs(), tall - (points[1] - up).abs())
    on = is_wall & (content > 0) & (inside > 0)
    surface = torch.where(on, content.int(), surface)
    bar = (surface == 7) & (torch.minimum((along - middle).abs(), (points[1] - up).abs()) < 0.025)
    skirting = is_wall & ~on & (points[1] < 0.08)
    return surface, (on & (inside < 0.05)) | bar | skirting


def _to_camera(camera: Tensor, world: list[Tensor]) -> list[Tensor]:
    """Vectors of the world in the frame of the camera, by component (N, P)."""
    yaw, pitch = camera[:, 3:4], camera[:, 4:5]
    right = world[0] * yaw.cos() - world[2] * yaw.sin()
    back = world[0] * yaw.sin() + world[2] * yaw.cos()
    return [right, world[1] * pitch.cos() + back * pitch.sin(), back * pitch.cos() - world[1] * pitch.sin()]


def _inverse(values: Tensor) -> Tensor:
    return 1 / torch.where(values.abs() < 1e-8, 1e-8, values)


def _local(rows: Tensor, points: list[Tensor], world: list[Tensor], plane: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """Points and outward normals in the frame of their surface: two lists of three (N, P).

    A point on the edge of a box belongs to a face that the ray (`world`) can see.
    """
    cos, sin = rows[TURN]
    x, y, z = (point - middle for point, middle in zip(points, rows[CENTRE], strict=True))
    x, z = cos * x - sin * z, sin * x + cos * z
    half = rows[HALF]
    out = [value / size for value, size in zip((x, y, z), half, strict=True)]
    ray = (cos * world[0] - sin * world[2], world[1], sin * world[0] + cos * world[2])
    steep = [torch.where(value * r < 0, value.abs(), 0.0) for value, r in zip(out, ray, strict=True)]
    is_ball, is_column = rows[1] == BALL, rows[1] == COLUMN
    radial = torch.hypot(out[0], out[2])
    on_side = is_column & (radial > steep[1])
    round_ = is_ball | on_side
    face_y = (steep[1] >= torch.maximum(steep[0], steep[2])) | (is_column & ~on_side)
    face_x = ~face_y & (steep[0] > steep[2])
    flat = [face_x * out[0].sign(), face_y * out[1].sign(), ~face_x & ~face_y]
    flat[2] = flat[2] * out[2].sign()
    length = torch.where(is_ball, torch.hypot(radial, out[1]), radial).clamp(min=1e-6)
    curved = [out[0] / length, torch.where(is_ball, out[1] / length, 0.0), out[2] / length]
    is_plane, normal = rows[1] == PLANE, []
    for k, (low, high) in enumerate(((2, 3), (0, 1), (4, 5))):  # the room's surfaces face inwards
        inward = (plane == low).float() - (plane == high).float()
        normal.append(torch.where(is_plane, inward, torch.where(round_, curved[k], flat[k])))
    return [x, y, z], normal
