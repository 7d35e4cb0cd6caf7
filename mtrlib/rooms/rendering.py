"""Rooms: indoor scenes drawn from a seed and rendered by casting one ray a pixel, with labels from the geometry.

Stands in for Taskonomy (section 4 of the paper, arXiv 2110.15053) where its files are not at hand: its eleven tasks in
the same form. World and camera frames are right-handed, in metres, y up. The camera looks along -z of its own frame: x
is right, y up and z towards the viewer, so normals of surfaces straight ahead are (0, 0, 1).

Every image is a room of its own, with a camera of its own; `scenes` says what stands in it, `casting` what a pixel sees
and `labels` what the targets are.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from mtrlib.dataset import SPLITS, Dataset
from mtrlib.rooms import casting
from mtrlib.rooms.scenes import CLASSES, COLOUR, EMIT, HALF, TEXTURE, UNIFORMS, decode
from mtrlib.tasks import TASKS as ALL_TASKS

TASKS = "sdDnkKeEprA"
_RENDERED = "sdDnE"  # made with the images; the others when they are first asked for
_NUMBER = {"train": 1024, "test": 256}


def load(*, tasks: str, split: str, size: int, limit: int | None = None, seed: int = 0) -> Dataset:
    """Draw and render rooms. The last four renderings are kept in memory and shared: do not write to the tensors.

    Targets of k, K, e, p, r and A are made when they are first asked for, the last 24 of them kept.

    Parameters
    ----------
    tasks : letters out of "sdDnkKeEprA".
    split : "train" or "test"; no two rooms of different splits, seeds or indices share their random stream.
    size : height and width in pixels. The same room at another size is the same scene.
    limit : number of rooms; None for 1,024 to train and 256 to test. Room i does not depend on it.
    seed : a non-negative integer.

    Returns
    -------
    Dataset : every pixel is valid (masks are None). Its targets are labels of the ray through the centre of a pixel or,
    for k, e and A, of the image with its noise; `labels` defines them. S = size:
        s : (N, S, S) uint8, index into CLASSES.
        d, D : (N, 1, S, S) float32 in [0, 1], log(1 + 512 m) / log(2^16) of the depth m in metres, along the axis of
            the camera (d) or along the ray (D). Taskonomy stores 16 bits of 1/512 m; the authors take this log.
        n : (N, 3, S, S) float32 in [-1, 1], unit normals, frame of the camera (x right, y up, z towards the viewer).
        k : (N, 1, S, S) float32 in [-1, 1], blobs and corners of the image: determinant of the Hessian over three
            scales, clipped to [0, 0.005]; -1 where there is none.
        K : (N, 1, S, S) float32 in [-1, 1], corners of the surface: how far the normals around a point, over about 0.2
            m, span three directions; -1 on planes and edges, most where three perpendicular planes meet.
        e : (N, 1, S, S) float32 in [-1, 1], edges of the image: Canny's gradient magnitude before thinning, clipped to
            [0, 0.08]; -1 where it is flat.
        E : (N, 1, S, S) float32 in [-1, 1], occlusion edges; -1 where there is none.
        p : (N, 2, S, S) float32 in [0, 1], principal curvatures, the larger one first, times 0.15 m.
        r : (N, 1, S, S) float32 in [-1, 1], 2 x - 1 of the cosine x between normal and view direction.
        A : (N, 3, S, S) float32 in [-1, 1], the image.
    """
    if not tasks or set(tasks) - set(TASKS):
        raise ValueError(f"Parameter tasks should be letters out of {TASKS!r} for rooms. Found tasks = {tasks!r}.")
    if size < 8:
        raise ValueError(f"Parameter size should be at least 8 pixels for rooms. Found size = {size!r}.")
    limit = _NUMBER[_check_split(split)] if limit is None else limit
    images, targets = _rendered(split, size, limit, seed)
    targets = {x: targets[x] if x in _RENDERED else _further(x, split, size, limit, seed) for x in tasks}
    return Dataset(
        name="rooms",
        images=images,
        targets=targets,
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
    rooms["camera"] = casting.choose_camera(rooms)
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
    hits = casting.cast(scene, size)
    distance = hits.rays.square().sum(dim=1).sqrt() * hits.depth
    facing = -sum(n * w for n, w in zip(hits.normal, hits.world, strict=True)) * hits.depth / distance
    pixel = distance * (2 * scene["camera"][:, 5:] / size) / facing.clamp(min=0.05)  # metres that a pixel spans
    colour = _texture(hits.rows, hits.local, hits.local_normal, pixel, hits.border)
    irradiance = _irradiance(scene, hits.points, hits.normal)
    glow = hits.rows[EMIT] * ~hits.border
    radiance = [c * (light + glow) for c, light in zip(colour, irradiance, strict=True)]
    image = _develop(scene, torch.stack(radiance, dim=1).view(-1, 3, size, size))
    return {"image": image, **casting.geometry(scene, hits)}


_drawn = lru_cache(maxsize=4)(draw)


@lru_cache(maxsize=4)
def _rendered(
    split: str, size: int, limit: int, seed: int, chunk: int | None = None
) -> tuple[Tensor, dict[str, Tensor]]:
    """Images (N, 3, S, S) uint8 and the targets of _RENDERED, on the CPU."""
    from mtrlib.rooms import labels  # not before rooms are rendered, and not in a thread: it imports kornia

    rooms = _drawn(split, limit, seed)
    images = torch.empty(limit, 3, size, size, dtype=torch.uint8)
    targets = {letter: torch.empty(limit, 3 if letter == "n" else 1, size, size) for letter in "dDnE"}
    targets["s"] = torch.empty(limit, size, size, dtype=torch.uint8)

    def fill(part: slice, device: str) -> None:
        view = render({name: values[part] for name, values in rooms.items()}, size, device)
        depth = view["depth"][:, None]
        images[part], targets["s"][part], targets["n"][part] = view["image"], view["label"], view["normal"]
        targets["d"][part] = labels.log_depth(depth)
        targets["D"][part] = labels.log_depth(depth * view["rays"].square().sum(dim=1, keepdim=True).sqrt())
        targets["E"][part] = labels.occlusion_edges(view["depth"])

    _in_chunks(fill, limit, size, chunk)
    return images, targets


@lru_cache(maxsize=24)
def _further(letter: str, split: str, size: int, limit: int, seed: int, chunk: int | None = None) -> Tensor:
    """The target (N, C, S, S) of a task that is not in _RENDERED, on the CPU."""
    from mtrlib.rooms import labels

    rooms, (images, targets) = _drawn(split, limit, seed), _rendered(split, size, limit, seed)
    target = torch.empty(limit, ALL_TASKS[letter].channels, size, size)
    of_image = {"k": labels.blobs, "e": labels.texture_edges, "A": labels.colours}

    def fill(part: slice, device: str) -> None:
        if letter in of_image:
            target[part] = of_image[letter](images[part].to(device))
            return
        scene = {name: values[part].to(device) for name, values in rooms.items()}
        if letter == "r":
            rays = casting.camera_rays(scene["camera"], size)[0].view(-1, 3, size, size)
            target[part] = labels.reshading(rays, targets["n"][part].to(device))
            return
        hits = casting.cast(scene, size)
        view = casting.geometry(scene, hits)
        if letter == "K":
            target[part] = labels.corners(view["depth"], view["rays"], view["normal"])
        else:
            shape, radius, upright = hits.rows[1], hits.rows[HALF][0], hits.normal[1]
            target[part] = labels.curvatures(*(x.view(-1, size, size) for x in (shape, radius, upright)))

    _in_chunks(fill, limit, size, chunk)
    return target


def _in_chunks(fill: Callable[[slice, str], None], limit: int, size: int, chunk: int | None) -> None:
    """Call `fill` with the rooms of each chunk, and the device for them.

    On the CPU, each of torch's threads fills chunks of its own: operations on a chunk are too short to be shared.
    """
    on_gpu, threads = torch.cuda.is_available(), torch.get_num_threads()
    chunk = chunk or max(1, (2**21 if on_gpu else 2**15) // size**2)
    parts = [slice(start, start + chunk) for start in range(0, limit, chunk)]
    device = "cuda" if on_gpu else "cpu"
    try:
        with ThreadPoolExecutor(1 if on_gpu else threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            list(pool.map(lambda part: fill(part, device), parts))
    finally:
        torch.set_num_threads(threads)


def _check_split(split: str) -> str:
    if split not in SPLITS:
        raise ValueError(f"Parameter split should be one of {', '.join(SPLITS)}. Found split = {split!r}.")
    return split


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
            lambert = lambert * (casting.cast_objects(rooms, light[:, :3], ray, far, nothing)[1] == 0)
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
