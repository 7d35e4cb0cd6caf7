"""Rooms: indoor scenes drawn from a seed and rendered by casting one ray a pixel, with labels from the geometry.

Stands in for Taskonomy (section 4 of the paper, arXiv 2110.15053) where its files are not at hand: five of its tasks in
the same form. World and camera frames are right-handed, in metres, y up. The camera looks along -z of its own frame: x
is right, y up and z towards the viewer, so normals of surfaces straight ahead are (0, 0, 1).

Every image is a room of its own, with a camera of its own; `scenes` says what stands in it.
"""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from mtrlib.data import SPLITS, Dataset
from mtrlib.data.scenes import (
    BALL,
    BALLS,
    BOXES,
    CENTRE,
    CLASSES,
    COLOUR,
    COLUMN,
    COLUMNS,
    EMIT,
    HALF,
    PAINTED,
    PLANE,
    TEXTURE,
    TURN,
    UNIFORMS,
    decode,
)

TASKS = "sdDnE"
_NUMBER = {"train": 1024, "test": 256}


def load(*, tasks: str, split: str, size: int, limit: int | None = None, seed: int = 0) -> Dataset:
    """Draw and render rooms. The last four renderings are kept in memory and shared: do not write to the tensors.

    Parameters
    ----------
    tasks : letters out of "sdDnE".
    split : "train" or "test"; no two rooms of different splits, seeds or indices share their random stream.
    size : height and width in pixels. The same room at another size is the same scene.
    limit : number of rooms; None for 1,024 to train and 256 to test. Room i does not depend on it.
    seed : a non-negative integer.

    Returns
    -------
    Dataset : every pixel is valid (masks are None). Its targets, labels of the ray through the centre of a pixel:
        s : (N, H, W) uint8, index into CLASSES.
        d, D : (N, 1, H, W) float32 in [0, 1], log(1 + 512 m) / log(2^16) of the depth m in metres, along the axis of
            the camera (d) or along the ray (D). Taskonomy stores 16 bits of 1/512 m; the authors take this log.
        n : (N, 3, H, W) float32 in [-1, 1], unit normals, frame of the camera (x right, y up, z towards the viewer).
        E : (N, 1, H, W) float32 in [-1, 1], occlusion edges; -1 where there is none (see `occlusion_edges`).
    """
    if not tasks or set(tasks) - set(TASKS):
        raise ValueError(f"Parameter tasks should be letters out of {TASKS!r} for rooms. Found tasks = {tasks!r}.")
    if size < 8:
        raise ValueError(f"Parameter size should be at least 8 pixels for rooms. Found size = {size!r}.")
    limit = _NUMBER[_check_split(split)] if limit is None else limit
    images, targets = _rendered(split, size, limit, seed)
    return Dataset(
        name="rooms",
        images=images,
        targets={letter: targets[letter] for letter in tasks},
        masks=dict.fromkeys(tasks),
        ids=tuple(f"{split}-{seed}-{i:05d}" for i in range(limit)),
        class_names=CLASSES,
    )


def draw(split: str, limit: int, seed: int = 0) -> dict[str, Tensor]:
    """Parameters of `limit` rooms, each from a stream of its own, derived from (seed, split, index).

    Returns
    -------
    dict : float32 on the CPU, in metres unless said otherwise:
        room : (N, 3), width, height and length; the room is [0, width] x [0, height] x [0, length].
        surfaces : (N, S, 22), one row a surface.
        panels : (N, 8, 5), two a wall: painted surface (0: none), centre and half size along and up the wall.
        camera : (N, 6), x, y, z, yaw and pitch in radians, tangent of half the field of view.
        lights : (N, 2, 6), position and colour.
        look : (N, 4), ambient light, exposure, standard deviation of the noise, blue cast.
        noise_seed : (N,) int64.
    """
    number = SPLITS.index(_check_split(split))
    uniforms, noise_seed = np.empty((limit, UNIFORMS)), np.empty(limit, dtype=np.int64)
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise ValueError(f"Parameter seed should be a non-negative integer. Found seed = {seed!r}.")
    for i in range(limit):
        stream = np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed, spawn_key=(number, i))))
        uniforms[i] = stream.random(UNIFORMS)
        noise_seed[i] = stream.integers(2**62)
    rooms = {name: torch.from_numpy(values.astype(np.float32)) for name, values in decode(uniforms).items()}
    rooms["camera"] = _choose_camera(rooms)
    rooms["noise_seed"] = torch.from_numpy(noise_seed)
    return rooms


def render(rooms: dict[str, Tensor], size: int, device: torch.device | str = "cpu") -> dict[str, Tensor]:
    """Cast one ray a pixel into each room (all at once: see `load` for bounded memory).

    Returns
    -------
    dict : on `device`, with
        image : (N, 3, H, W) uint8.
        label : (N, H, W) uint8, index into CLASSES.
        surface : (N, H, W) int32, row of the table `surfaces`.
        depth : (N, H, W), metres along the axis of the camera.
        rays : (N, 3, H, W), directions in the frame of the camera with z = -1; points are rays * depth, in metres.
        normal : (N, 3, H, W), unit length, frame of the camera.
    """
    scene = {name: values.to(device) for name, values in rooms.items()}
    number, surfaces = len(scene["room"]), scene["surfaces"].shape[1]
    rays, world = _rays(scene["camera"], size)
    origin = scene["camera"][:, :3]
    depth, surface = _cast_room(scene, origin, world)
    depth, surface = _cast_objects(scene, origin, world, depth, surface)
    points = [origin[:, k, None] + depth * world[k] for k in range(3)]
    plane, (surface, border) = surface, _paint(scene, points, surface)
    flat = (surface + surfaces * torch.arange(number, device=surface.device)[:, None]).view(-1)
    rows = scene["surfaces"].view(number * surfaces, -1).index_select(0, flat).t().contiguous().view(-1, *depth.shape)
    local, local_normal = _local(rows, points, world, plane)
    cos, sin = rows[TURN]
    normal = [
        cos * local_normal[0] + sin * local_normal[2],
        local_normal[1],
        cos * local_normal[2] - sin * local_normal[0],
    ]
    distance = rays.square().sum(dim=1).sqrt() * depth
    facing = -sum(n * w for n, w in zip(normal, world, strict=True)) * depth / distance
    pixel = distance * (2 * scene["camera"][:, 5:] / size) / facing.clamp(min=0.05)  # metres that a pixel spans
    colour = _texture(rows, local, local_normal, pixel, border)
    irradiance = _irradiance(scene, points, normal)
    glow = rows[EMIT] * ~border
    radiance = [c * (light + glow) for c, light in zip(colour, irradiance, strict=True)]
    square = (number, size, size)
    return {
        "image": _develop(scene, torch.stack(radiance, dim=1).view(number, 3, size, size)),
        "label": rows[0].to(torch.uint8).view(square),
        "surface": surface.view(square),
        "depth": depth.view(square),
        "rays": rays.view(number, 3, size, size),
        "normal": torch.stack(_to_camera(scene["camera"], normal), dim=1).view(number, 3, size, size),
    }


def occlusion_edges(depth: Tensor) -> Tensor:
    """Where one surface hides another: (N, H, W) metres along the camera's axis -> (N, 1, H, W) in [-1, 1].

    On a plane the inverse of this depth is affine in the pixel's coordinates. Two neighbours have a plane each, through
    the pixel and the one behind it. Either the planes meet between the two pixels (a crease: no edge), or they are
    apart at both; the smaller gap, relative to the farther pixel, is then the strength of an edge, full from 15 % on.
    Edges are smoothed by a Gaussian of 1.2 % of the width and scaled so that a long, straight, strong edge is 1.
    """
    inverse = 1 / depth
    edges = torch.maximum(_gaps(inverse), _gaps(inverse.mT).mT)
    sigma = 0.012 * depth.shape[-1]
    radius = min(math.ceil(3 * sigma), depth.shape[-1] - 1)
    kernel = [math.exp(-0.5 * (k / sigma) ** 2) for k in range(-radius, radius + 1)]
    for _ in range(2):  # sums of shifts rather than a convolution, whose rounding depends on the size of the batch
        padded = torch.nn.functional.pad(edges, (radius, radius), mode="replicate")
        edges = sum(weight * padded[..., k : k + depth.shape[-1]] for k, weight in enumerate(kernel)).mT
    strong = sum(kernel) * (kernel[radius] + kernel[radius + 1])  # a straight edge is two pixels wide
    return (2 * (edges / strong).clamp(0, 1) - 1)[:, None].contiguous()


@lru_cache(maxsize=4)
def _rendered(
    split: str, size: int, limit: int, seed: int, chunk: int | None = None
) -> tuple[Tensor, dict[str, Tensor]]:
    """Images (N, 3, H, W) uint8 and the five targets, on the CPU; rendered `chunk` rooms at a time.

    On the CPU, each of torch's threads renders chunks of its own: operations on a chunk are too short to be shared.
    """
    on_gpu, threads = torch.cuda.is_available(), torch.get_num_threads()
    chunk = chunk or max(1, (2**21 if on_gpu else 2**15) // size**2)
    rooms = draw(split, limit, seed)
    images = torch.empty(limit, 3, size, size, dtype=torch.uint8)
    targets = {letter: torch.empty(limit, 3 if letter == "n" else 1, size, size) for letter in "dDnE"}
    targets["s"] = torch.empty(limit, size, size, dtype=torch.uint8)

    def fill(start: int) -> None:
        part = slice(start, start + chunk)
        view = render({name: values[part] for name, values in rooms.items()}, size, "cuda" if on_gpu else "cpu")
        depth = view["depth"][:, None]
        images[part], targets["s"][part], targets["n"][part] = view["image"], view["label"], view["normal"]
        targets["d"][part] = _log_depth(depth)
        targets["D"][part] = _log_depth(depth * view["rays"].square().sum(dim=1, keepdim=True).sqrt())
        targets["E"][part] = occlusion_edges(view["depth"])

    try:
        with ThreadPoolExecutor(1 if on_gpu else threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            list(pool.map(fill, range(0, limit, chunk)))
    finally:
        torch.set_num_threads(threads)
    return images, targets


def _check_split(split: str) -> str:
    if split not in SPLITS:
        raise ValueError(f"Parameter split should be one of {', '.join(SPLITS)}. Found split = {split!r}.")
    return split


def _log_depth(metres: Tensor) -> Tensor:
    return torch.log1p(512 * metres) / math.log(2**16)


def _gaps(inverse: Tensor) -> Tensor:
    """Strength in [0, 1] of the edges between horizontal neighbours, at both of them: (N, H, W) -> (N, H, W)."""
    padded = torch.cat(
        [2 * inverse[..., :1] - inverse[..., 1:2], inverse, 2 * inverse[..., -1:] - inverse[..., -2:-1]], -1
    )
    step = padded.diff(dim=-1)
    at_left = step[..., 1:-1] - step[..., 2:]  # plane of the right pixel minus that of the left, at the left pixel
    at_right = step[..., 1:-1] - step[..., :-2]  # the same at the right pixel
    gap = torch.minimum(at_left.abs(), at_right.abs()) * (at_left * at_right > 0)
    gap = gap / torch.minimum(inverse[..., 1:], inverse[..., :-1])
    gap = ((gap - 0.01) / 0.14).clamp(0, 1)
    return torch.maximum(torch.nn.functional.pad(gap, (0, 1)), torch.nn.functional.pad(gap, (1, 0)))


def _choose_camera(rooms: dict[str, Tensor]) -> Tensor:
    """(N, 6): of the candidates, the one that sees far, nothing close and many classes, by 6 x 6 rays."""
    cameras, best, chosen = rooms.pop("cameras"), None, None
    classes = rooms["surfaces"][..., 0]
    for camera in cameras.unbind(dim=1):
        _, world = _rays(camera, 6)
        depth, surface = _cast_room(rooms, camera[:, :3], world)
        depth, surface = _cast_objects(rooms, camera[:, :3], world, depth, surface)
        surface, _ = _paint(rooms, [camera[:, k, None] + depth * world[k] for k in range(3)], surface)
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


def _rays(camera: Tensor, size: int) -> tuple[Tensor, list[Tensor]]:
    """Rays with unit depth: (N, 3, P) in the frame of the camera and three (N, P) in the world's; P = size^2."""
    across = (2 * torch.arange(size, device=camera.device) + 1 - size) / size
    x, y = across.repeat(size) * camera[:, 5:6], -across.repeat_interleave(size) * camera[:, 5:6]
    yaw, pitch = camera[:, 3:4], camera[:, 4:5]
    up, forward = y * pitch.cos() + pitch.sin(), pitch.cos() - y * pitch.sin()
    world = [x * yaw.cos() - forward * yaw.sin(), up, -x * yaw.sin() - forward * yaw.cos()]
    return torch.stack([x, y, -torch.ones_like(x)], dim=1), world


def _to_camera(camera: Tensor, world: list[Tensor]) -> list[Tensor]:
    """Vectors of the world in the frame of the camera, by component (N, P)."""
    yaw, pitch = camera[:, 3:4], camera[:, 4:5]
    right = world[0] * yaw.cos() - world[2] * yaw.sin()
    back = world[0] * yaw.sin() + world[2] * yaw.cos()
    return [right, world[1] * pitch.cos() + back * pitch.sin(), back * pitch.cos() - world[1] * pitch.sin()]


def _inverse(values: Tensor) -> Tensor:
    return 1 / torch.where(values.abs() < 1e-8, 1e-8, values)


def _cast_room(rooms: dict[str, Tensor], origin: Tensor, ray: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Where rays from inside leave the room: distance in units of the ray and index of the surface, both (N, P)."""
    inverse = [_inverse(r) for r in ray]
    exits = [((i > 0) * rooms["room"][:, k, None] - origin[:, k, None]) * i for k, i in enumerate(inverse)]
    distance = torch.minimum(torch.minimum(exits[0], exits[1]), exits[2])
    side, up, end = (first + (inverse[k] > 0).int() for k, first in enumerate((2, 0, 4)))
    surface = torch.where(exits[1] <= distance, up, torch.where(exits[0] <= distance, side, end))
    return distance, surface


def _cast_objects(
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


def _paint(rooms: dict[str, Tensor], points: list[Tensor], surface: Tensor) -> tuple[Tensor, Tensor]:
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


def _texture(rows: Tensor, local: list[Tensor], normal: list[Tensor], pixel: Tensor, border: Tensor) -> list[Tensor]:
    """Albedo, three (N, P): plain, striped, checkered, marbled, wooden or tiled, fading before it aliases."""
    kind, cycles, phase, cos, sin = rows[TEXTURE]
    steep = [value.abs() for value in normal]
    on_x = steep[0] > torch.maximum(steep[1], steep[2])
    on_y = steep[1] > torch.maximum(steep[0], steep[2])
    rate = 2 * math.pi * cycles
    a = torch.where(on_x, local[2], local[0]) * rate + 6 * phase
    b = torch.where(on_y, local[2], local[1]) * rate + 9 * phase
    marble = torch.sin(0.5 * a + 1.7 * torch.sin(0.37 * b + phase)) * torch.sin(0.43 * b + 1.9 * torch.sin(0.31 * a))
    sin_a, sin_b = torch.sin(a), torch.sin(b)
    choices = (
        0.25 * marble,
        (3 * torch.sin(cos * a + sin * b)).clamp(-1, 1),
        (8 * sin_a * sin_b).clamp(-1, 1),
        marble,
        torch.sin(a + 0.12 * b + 2 * marble),
        (1 - 8 * torch.minimum(sin_a.abs(), sin_b.abs())).clamp(min=-1),
    )
    pattern = choices[0]
    for k, choice in enumerate(choices[1:], start=1):
        pattern = torch.where(kind == k, choice, pattern)
    mix = 0.5 + 0.5 * pattern * (1.6 - 3 * cycles * pixel).clamp(0, 1)
    frame = torch.where(rows[0] == CLASSES.index("picture"), 0.06, 0.7)
    first, second = rows[COLOUR][:3], rows[COLOUR][3:]
    return [torch.where(border, frame, one + (two - one) * mix) for one, two in zip(first, second, strict=True)]


def _irradiance(rooms: dict[str, Tensor], points: list[Tensor], normal: list[Tensor]) -> list[Tensor]:
    """Three (N, P): ambient light and two lamps, by Lambert's law, fading with distance. The first casts shadows."""
    ambient = rooms["look"][:, :1] * (0.8 + 0.2 * normal[1])
    total = [ambient, ambient, ambient * rooms["look"][:, 3:]]
    for number, light in enumerate(rooms["lights"].unbind(dim=1)):
        ray = [points[k] - light[:, k, None] for k in range(3)]
        squared = sum(r.square() for r in ray) + 1e-4
        lambert = -sum(n * r for n, r in zip(normal, ray, strict=True)) * squared.rsqrt()
        lambert = lambert.clamp(min=0) / (1 + 0.4 * squared)
        if number == 0:
            far, nothing = torch.full_like(squared, 0.995), torch.zeros_like(squared, dtype=torch.int32)
            lambert = lambert * (_cast_objects(rooms, light[:, :3], ray, far, nothing)[1] == 0)
        total = [t + lambert * light[:, 3 + k, None] for k, t in enumerate(total)]
    return total


def _develop(rooms: dict[str, Tensor], radiance: Tensor) -> Tensor:
    """(N, 3, H, W) to uint8: expose by the brighter part of a 16 x 16 grid, compress, encode, add sensor noise."""
    size = radiance.shape[-1]
    grid = ((2 * torch.arange(16, device=radiance.device) + 1) * size).div(32, rounding_mode="floor")
    bright = radiance[:, 1][:, grid][:, :, grid].flatten(1).sort(dim=1).values[:, 180]
    exposure = (rooms["look"][:, 1] / bright.clamp(min=1e-3))[:, None, None, None]
    image = (1 - torch.exp(-exposure * radiance)).pow(1 / 2.2)
    generator, noise = torch.Generator(), torch.empty(image.shape)
    for i, seed in enumerate(rooms["noise_seed"].tolist()):
        noise[i] = torch.randn(image.shape[1:], generator=generator.manual_seed(seed))
    image = image + rooms["look"][:, 2, None, None, None] * noise.to(image.device)
    return (255 * image).round().clamp(0, 255).to(torch.uint8)
