"""Rooms: indoor scenes drawn from a seed and rendered by casting one ray a pixel, with labels from the geometry.

Stands in for Taskonomy (section 4 of the paper, arXiv 2110.15053) where its files are not at hand: its eleven tasks in
the same form. Every image is a room of its own, with a camera of its own; `scenes` says what stands in it, `casting`
what a pixel sees and how frames lie, `labels` what targets are.
"""

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from mtrlib.dataset import SPLITS, Dataset
from mtrlib.rooms import casting, labels
from mtrlib.rooms.scenes import CLASSES, COLOUR, EMIT, TEXTURE, UNIFORMS, decode

# By task letter, from what `render` gives.
_TARGETS: dict[str, Callable[[dict[str, Tensor]], Tensor]] = {
    "s": lambda view: view["label"],
    "d": lambda view: labels.log_depth(view["depth"])[:, None],
    "D": lambda view: labels.log_depth(view["depth"] * view["rays"].square().sum(dim=1).sqrt())[:, None],
    "n": lambda view: view["normal"],
    "k": lambda view: labels.blobs(view["image"]),
    "K": lambda view: labels.corners(view["depth"], view["rays"], view["normal"]),
    "e": lambda view: labels.texture_edges(view["image"]),
    "E": lambda view: labels.occlusion_edges(view["depth"]),
    "p": lambda view: labels.curvatures(view["depth"], view["rays"], view["normal"]),
    "r": lambda view: labels.reshading(view["rays"], view["normal"]),
    "A": lambda view: labels.colours(view["image"]),
}
TASKS = "".join(_TARGETS)
_NUMBER = {"train": 1024, "test": 256}
VERSION = 2  # raised when a seed gives other rooms or labels on purpose: files that were written from them tell it


def load(*, tasks: str, split: str, size: int, limit: int | None = None, seed: int = 0) -> Dataset:
    """Draw and render rooms. The last four renderings and 24 targets are kept in memory and shared: do not write to
    them. A target is made when it is first asked for.

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
    for k, e and A, of the image with its noise, as `labels` defines them; s is (N, S, S) uint8, index into CLASSES, the
    others are float32, (N, C, S, S), in [0, 1] (d, D) or [-1, 1]; n is in the frame of the camera.
    """
    if not tasks or set(tasks) - set(TASKS):
        raise ValueError(f"Parameter tasks should be letters out of {TASKS!r} for rooms. Found tasks = {tasks!r}.")
    if size < 8:
        raise ValueError(f"Parameter size should be at least 8 pixels for rooms. Found size = {size!r}.")
    limit = _NUMBER.get(split) if limit is None else limit
    images = _view(split, size, limit, seed)["image"]
    targets = {letter: _target(letter, split, size, limit, seed) for letter in tasks}
    ids = tuple(f"{split}-{seed}-{i:05d}" for i in range(limit))
    return Dataset("rooms", images, targets, dict.fromkeys(tasks), ids, CLASSES)


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
    if split not in SPLITS:
        raise ValueError(f"Parameter split should be one of {', '.join(SPLITS)}. Found split = {split!r}.")
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise ValueError(f"Parameter seed should be a non-negative integer. Found seed = {seed!r}.")
    uniforms, noise_seed = np.empty((limit, UNIFORMS)), np.empty(limit, dtype=np.int64)
    for i in range(limit):
        key = (SPLITS.index(split), i)
        stream = np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed, spawn_key=key)))
        uniforms[i] = stream.random(UNIFORMS)
        noise_seed[i] = stream.integers(2**62)
    rooms = {name: torch.from_numpy(values.astype(np.float32)) for name, values in decode(uniforms).items()}
    rooms["camera"] = casting.choose_camera(rooms, rooms.pop("cameras"))
    rooms["noise_seed"] = torch.from_numpy(noise_seed)
    return rooms


def render(rooms: dict[str, Tensor], size: int) -> dict[str, Tensor]:
    """Cast one ray a pixel into each room (all at once: see `load` for bounded memory).

    Returns
    -------
    dict : where the tensors of the rooms are, with
        image : (N, 3, H, W) uint8.
        label, surface : (N, H, W) uint8 and int32, index into CLASSES and row of the table `surfaces`.
        depth : (N, H, W), metres along the axis of the camera.
        rays : (N, 3, H, W), directions in the frame of the camera with z = -1; points are rays * depth, in metres.
        normal : (N, 3, H, W), unit length, frame of the camera.
    """
    hits, rays = casting.cast(rooms, size), _rays(rooms, size)
    distance = rays.square().sum(dim=1).sqrt().flatten(1) * hits.depth
    facing = -sum(hits.normal * hits.ray) * hits.depth / distance
    pixel = distance * (2 * rooms["camera"][:, 5:] / size) / facing.clamp(min=0.05)  # metres that a pixel spans
    light = _irradiance(rooms, hits.points, hits.normal) + hits.rows[EMIT] * ~hits.border
    radiance = _texture(hits, pixel) * light
    return {
        "image": _develop(rooms, _square(radiance)),
        "label": hits.rows[0].to(torch.uint8).view(-1, size, size),
        "surface": hits.surface.view(-1, size, size),
        "depth": hits.depth.view(-1, size, size),
        "rays": rays,
        "normal": _square(casting.to_camera(rooms["camera"], hits.normal)),
    }


@lru_cache(maxsize=4)
def _view(split: str, size: int, limit: int, seed: int, chunk: int | None = None) -> dict[str, Tensor]:
    """What targets are made from, as `render` gives it, and the cameras in the place of their rays; on the CPU."""
    rooms = draw(split, limit, seed)

    def make(part: dict[str, Tensor]) -> dict[str, Tensor]:
        view = render(part, size)
        return {name: view[name] for name in ("image", "label", "depth", "normal")}

    return {**_in_chunks(make, rooms, size, chunk), "camera": rooms["camera"]}


@lru_cache(maxsize=24)
def _target(letter: str, split: str, size: int, limit: int, seed: int, chunk: int | None = None) -> Tensor:
    """The target of a task, (N, C, S, S) or (N, S, S), on the CPU."""

    def make(part: dict[str, Tensor]) -> dict[str, Tensor]:
        return {letter: _TARGETS[letter]({**part, "rays": _rays(part, size)})}

    return _in_chunks(make, _view(split, size, limit, seed), size, chunk)[letter]


def _in_chunks(make: Callable, tensors: dict[str, Tensor], size: int, chunk: int | None) -> dict[str, Tensor]:
    """What `make` gives of some rooms at a time, on an accelerator where there is one, put together on the CPU.

    On the CPU, each of torch's threads makes chunks of its own: operations on a chunk are too short to be shared.
    """
    on_gpu, threads = torch.cuda.is_available(), torch.get_num_threads()
    chunk = chunk or max(1, (2**21 if on_gpu else 2**16) // size**2)

    def made(start: int) -> dict[str, Tensor]:
        part = {name: values[start : start + chunk] for name, values in tensors.items()}
        if not on_gpu:
            return make(part)
        return {name: values.cpu() for name, values in make({k: v.cuda() for k, v in part.items()}).items()}

    try:
        with ThreadPoolExecutor(1 if on_gpu else threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            parts = list(pool.map(made, range(0, len(tensors["camera"]), chunk)))
    finally:
        torch.set_num_threads(threads)
    return {name: torch.cat([part.pop(name) for part in parts]) for name in list(parts[0])}


def _rays(rooms: dict[str, Tensor], size: int) -> Tensor:
    return _square(casting.camera_rays(rooms["camera"], size))


def _square(vectors: Tensor) -> Tensor:
    """(3, N, S^2) -> (N, 3, S, S)."""
    size = math.isqrt(vectors.shape[-1])
    return vectors.transpose(0, 1).reshape(-1, 3, size, size)


def _texture(hits: casting.Hits, pixel: Tensor) -> Tensor:
    """Albedo, (3, N, P): plain, striped, checkered, marbled, wooden or tiled, fading before it aliases."""
    rows, local = hits.rows, hits.local
    kind, cycles, phase, cos, sin = rows[TEXTURE]
    steep = hits.local_normal.abs()
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
    return torch.where(hits.border, frame, first + (second - first) * mix)


def _irradiance(rooms: dict[str, Tensor], points: Tensor, normal: Tensor) -> Tensor:
    """(3, N, P): ambient light and two lamps, by Lambert's law, fading with distance. The first casts shadows."""
    ambient = rooms["look"][:, :1] * (0.8 + 0.2 * normal[1])
    total = torch.stack([ambient, ambient, ambient * rooms["look"][:, 3:]])
    for number, light in enumerate(rooms["lights"].unbind(dim=1)):
        place, colour = light.t()[:, :, None].split(3)
        ray = points - place
        squared = sum(ray.square()) + 1e-4
        lambert = (-sum(normal * ray) * squared.rsqrt()).clamp(min=0) / (1 + 0.4 * squared)
        if number == 0:
            far, nothing = torch.full_like(squared, 0.995), torch.zeros_like(squared, dtype=torch.int32)
            lambert = lambert * (casting.cast_objects(rooms, light[:, :3], ray, far, nothing)[1] == 0)
        total = total + lambert * colour
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
