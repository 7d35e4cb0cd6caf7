"""Casting rays into the rooms of `scenes`: which surface each pixel sees, how far away, and which way it faces.

World and camera frames are right-handed, in metres, y up. The camera looks along -z of its own frame: x is right, y up
and z towards the viewer, so normals of surfaces straight ahead are (0, 0, 1). N rooms have P = size^2 pixels each;
vectors are (3, N, P).
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from mtrlib.rooms.scenes import BALL, BOX, CENTRE, CLASSES, COLUMN, GROUPS, HALF, PAINTED, PLANE, TURN


class Hits(NamedTuple):
    """Where the rays of N rooms end."""

    depth: Tensor  # (N, P), metres along the axis of the camera
    surface: Tensor  # (N, P) int32, row of the table `surfaces`
    border: Tensor  # (N, P) bool, on the frame of a panel, a window's bar or a skirting board
    rows: Tensor  # (22, N, P), the row of `surfaces` at each pixel
    ray: Tensor  # rays, points and unit normals in the world
    points: Tensor
    normal: Tensor
    local: Tensor  # points and unit normals in the frame of their surface
    local_normal: Tensor


def cast(rooms: dict[str, Tensor], size: int) -> Hits:
    """Cast one ray through the centre of each of size x size pixels. `rooms` : as `rooms.draw` gives them."""
    number, surfaces = rooms["surfaces"].shape[:2]
    ray = to_world(rooms["camera"], camera_rays(rooms["camera"], size))
    depth, plane, points = _first_met(rooms, rooms["camera"], ray)
    surface, border = _paint(rooms, points, plane)
    flat = (surface + surfaces * torch.arange(number, device=surface.device)[:, None]).view(-1)
    rows = rooms["surfaces"].view(number * surfaces, -1).index_select(0, flat).t().contiguous().view(-1, *depth.shape)
    local, local_normal = _local(rows, points, ray, plane)
    cos, sin = rows[TURN]
    return Hits(depth, surface, border, rows, ray, points, _turned(local_normal, cos, -sin), local, local_normal)


def choose_camera(rooms: dict[str, Tensor], cameras: Tensor) -> Tensor:
    """(N, 6): of `cameras` (N, C, 7), the one that sees far, nothing close, many classes and things, by 6 x 6 rays."""
    classes, scores = rooms["surfaces"][..., 0], []
    for camera in cameras.unbind(dim=1):
        depth, surface, points = _first_met(rooms, camera, to_world(camera, camera_rays(camera, 6)))
        seen = classes.gather(1, _paint(rooms, points, surface)[0].long())
        kinds = sum((seen == k).any(dim=1) for k in range(len(CLASSES)))
        ordered = depth.sort(dim=1).values
        score = 4 * ordered[:, 0].clamp(max=0.7) + 2 * ordered[:, 12].clamp(max=1.5) + 0.4 * kinds
        things = (seen > CLASSES.index("picture")).float().mean(dim=1)
        scores.append(score + 6 * things.clamp(max=0.35) - 100 * (camera[:, 6] < 0.15))
    return cameras[torch.arange(len(cameras)), torch.stack(scores).argmax(dim=0), :6]


def camera_rays(camera: Tensor, size: int) -> Tensor:
    """Rays with z = -1 in the frame of the camera, (3, N, size^2); points are rays * depth."""
    across = (2 * torch.arange(size, device=camera.device) + 1 - size) / size
    x, y = across.repeat(size) * camera[:, 5:6], -across.repeat_interleave(size) * camera[:, 5:6]
    return torch.stack([x, y, -torch.ones_like(x)])


def to_world(camera: Tensor, vectors: Tensor) -> Tensor:
    """Vectors of the camera's frame in the world's."""
    (x, y, z), yaw, pitch = vectors, camera[:, 3:4], camera[:, 4:5]
    level = torch.stack([x, y * pitch.cos() - z * pitch.sin(), z * pitch.cos() + y * pitch.sin()])
    return _turned(level, yaw.cos(), -yaw.sin())


def to_camera(camera: Tensor, vectors: Tensor) -> Tensor:
    """Vectors of the world in the frame of the camera."""
    yaw, pitch = camera[:, 3:4], camera[:, 4:5]
    x, y, z = _turned(vectors, yaw.cos(), yaw.sin())
    return torch.stack([x, y * pitch.cos() + z * pitch.sin(), z * pitch.cos() - y * pitch.sin()])


def cast_objects(
    rooms: dict[str, Tensor], origin: Tensor, ray: Tensor, distance: Tensor, surface: Tensor
) -> tuple[Tensor, Tensor]:
    """The nearest of `distance` and the objects that rays from `origin` (N, 3) enter: distance and surface (N, P)."""
    distance, surface, index = distance.clone(), surface.clone(), PAINTED
    exists = (rooms["surfaces"][:, :, 5] > 0).t().tolist()
    for count in GROUPS:
        here = [room for room, there in enumerate(exists[index]) if there]  # all of a piece's parts or none
        if here:
            here = torch.tensor(here, device=distance.device)
            pieces, far, nearest = rooms["surfaces"][here, index : index + count], distance[here], surface[here]
            meet = _meet_boxes if pieces[0, 0, 1] == BOX else _meet_round
            for i, (enter, leave) in enumerate(meet(pieces, origin[here], ray[:, here]), start=index):
                closer = (enter < torch.minimum(leave, far)) & (enter > 0)
                far, nearest = torch.where(closer, enter, far), nearest.masked_fill(closer, i)
            distance[here], surface[here] = far, nearest
        index += count
    return distance, surface


def _first_met(rooms: dict[str, Tensor], camera: Tensor, ray: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Depth and surface (N, P) and points in the world of what rays from a camera meet first."""
    inverse, origin = _inverse(ray), camera[:, :3]
    start = origin.t()[:, :, None]
    exits = ((inverse > 0) * rooms["room"].t()[:, :, None] - start) * inverse  # where they leave the room
    distance = exits.amin(dim=0)
    side, up, end = (first + (inverse[k] > 0).int() for k, first in enumerate((2, 0, 4)))
    surface = torch.where(exits[1] <= distance, up, torch.where(exits[0] <= distance, side, end))
    distance, surface = cast_objects(rooms, origin, ray, distance, surface)
    return distance, surface, start + distance * ray


def _meet_boxes(boxes: Tensor, origin: Tensor, ray: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Where rays enter and leave each of (N, K, 22) boxes that are turned alike, (N, P): they miss where they leave
    before they enter."""
    cos, sin = boxes[:, 0, TURN].unsqueeze(2).unbind(dim=1)
    inverse = _inverse(_turned(ray, cos, sin))
    span = inverse.abs()
    for box in boxes.unbind(dim=1):
        middle = _turned((box[:, CENTRE] - origin).t()[:, :, None], cos, sin) * inverse
        reach = box[:, HALF].t()[:, :, None] * span
        yield (middle - reach).amax(dim=0), (middle + reach).amin(dim=0)


def _meet_round(piece: Tensor, origin: Tensor, ray: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """The same of a column or a ball, (N, 1, 22)."""
    piece, is_ball = piece[:, 0], bool(piece[0, 0, 1] == BALL)
    x, y, z = (piece[:, CENTRE] - origin).t()[:, :, None]
    size, flat = piece[:, 5, None], ray[0].square() + ray[2].square()
    squared = flat + ray[1].square() if is_ball else flat.clamp(min=1e-12)
    along = (x * ray[0] + z * ray[2] + (y * ray[1] if is_ball else 0)) / squared
    beyond = x.square() + z.square() + (y.square() if is_ball else 0) - size * size.abs()
    chord = (along.square() - beyond / squared).clamp(min=0).sqrt()  # 0: misses, as enter < leave fails
    enter, leave = along - chord, along + chord
    if not is_ball:
        up = _inverse(ray[1])
        reach = piece[:, 6, None] * up.abs()
        enter, leave = torch.maximum(enter, y * up - reach), torch.minimum(leave, y * up + reach)
    yield enter, leave


def _paint(rooms: dict[str, Tensor], points: Tensor, surface: Tensor) -> tuple[Tensor, Tensor]:
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


def _local(rows: Tensor, points: Tensor, ray: Tensor, plane: Tensor) -> tuple[Tensor, Tensor]:
    """Points and outward normals in the frame of their surface.

    A point on the edge of a box belongs to a face that the ray can see.
    """
    cos, sin = rows[TURN]
    local = _turned(points - rows[CENTRE], cos, sin)
    out = local / rows[HALF]
    steep = torch.where(out * _turned(ray, cos, sin) < 0, out.abs(), 0.0)
    is_ball, is_column, radial = rows[1] == BALL, rows[1] == COLUMN, torch.hypot(out[0], out[2])
    on_side = is_column & (radial > steep[1])
    face_y = (steep[1] >= torch.maximum(steep[0], steep[2])) | (is_column & ~on_side)
    face_x = ~face_y & (steep[0] > steep[2])
    flat = torch.stack([face_x, face_y, ~face_x & ~face_y]) * out.sign()
    length = torch.where(is_ball, torch.hypot(radial, out[1]), radial).clamp(min=1e-6)
    curved = torch.stack([out[0], torch.where(is_ball, out[1], 0.0), out[2]]) / length
    inward = torch.stack([(plane == k).float() - (plane == k + 1).float() for k in (2, 0, 4)])  # of the room's surfaces
    return local, torch.where(rows[1] == PLANE, inward, torch.where(is_ball | on_side, curved, flat))


def _turned(vectors: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turned about the vertical."""
    x, y, z = vectors
    return torch.stack([cos * x - sin * z, y.expand_as(z), sin * x + cos * z])


def _inverse(values: Tensor) -> Tensor:
    return 1 / torch.where(values.abs() < 1e-8, 1e-8, values)
