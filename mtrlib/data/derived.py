"""Labels from measured depth: what an RGB-D camera gives of ten tasks, as Taskonomy made its own from geometry.

The tasks are those of rooms, by the same code (`rooms.labels`): a view is the image, the depth of each pixel, its ray
and the normal there. What rooms have exactly is estimated here: normals from planes fitted to the depth around a
pixel. A sensor has holes; they stay holes, with a margin for what is measured over a window that touches them.
"""

import math
from itertools import pairwise

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from mtrlib.data import pixels
from mtrlib.rooms import labels
from mtrlib.rooms.rendering import _TARGETS as TARGETS

LETTERS = "dDnkKeEprA"
VERSION = 1  # raised when the same depth gives other labels on purpose: what is decoded already is made anew
FROM_IMAGE = "keA"  # these have no holes
REACH = 0.015  # of the width of the image: half of the window of a plane, at least a pixel
KNOWN = 0.75  # of the weights of a Gaussian window have to be of measured pixels
FAR = 1e4  # m: where holes are put, out of reach of every window in space


def rays(camera: tuple[float, float, float, float], size: int, width: int, height: int) -> Tensor:
    """Rays of the pixels of the square at the centre of an image, resized to `size`: (3, S, S), x right, y up, z = -1.

    camera : fx, fy, cx, cy in pixels of the whole image of width x height, whose first pixel is centred at (0, 0).
    """
    fx, fy, cx, cy = camera
    side = min(width, height)
    step = (torch.arange(size, dtype=torch.float64) + 0.5) * side / size - 0.5
    x, y = step + (width - side) // 2, step + (height - side) // 2
    across, down = torch.meshgrid((x - cx) / fx, -(y - cy) / fy, indexing="xy")
    return torch.stack([across, down, -torch.ones_like(across)]).float()


def normals(depth: Tensor, rays: Tensor) -> tuple[Tensor, Tensor]:
    """Normals by planes: (S, S) metres, 0 for a hole, and (3, S, S) -> (3, S, S) unit vectors, (S, S) where they hold.

    The inverse depth of a plane is linear in the ray, 1 / z = m . ray: m is fitted by least squares (of relative
    depth) to the valid pixels of a square window, of half of them at least. The window is that around the pixel, unless
    its plane fits half as well as that of one with the pixel at its side or corner: no window has to reach over an
    edge. Normals face the camera.
    """
    size = depth.shape[-1]
    reach = max(1, round(REACH * size))
    width, valid = 2 * reach + 1, depth > 0

    def windows(values: Tensor) -> Tensor:  # (C, S, S) -> (C, S * S, K)
        padded = torch.nn.functional.pad(values[None], (reach,) * 4)
        return torch.nn.functional.unfold(padded, width).reshape(len(values), width**2, -1).mT

    point = torch.cat([rays, torch.where(valid, 1 / depth.clamp(min=1e-9), 0)[None]]).double()
    middle = point[:3].flatten(1)[..., None]  # the rays of the windows' middles, for the conditioning
    own, counted = windows(point), windows((valid * depth)[None].double())[0]
    x, y = ((own[k] - middle[k]) * counted for k in (0, 1))
    design = torch.stack([x, y, counted], dim=-1)  # (S * S, K, 3), rows weighted by depth: the target is 1
    target = (own[3] * counted)[..., None]
    number = (counted > 0).sum(dim=-1)
    square = design.mT @ design
    ridge = 1e-9 * square.diagonal(dim1=-2, dim2=-1).mean(dim=-1).clamp(min=1e-12)[:, None, None] * torch.eye(3)
    slope = torch.linalg.solve(square + ridge, design.mT @ target)
    rest = ((design @ slope - target).square().sum(dim=(-2, -1)) / number.clamp(min=1)).reshape(size, size)
    whole = (number >= max(4, width**2 / 2)).reshape(size, size)
    rest = torch.where(whole, rest, math.inf)
    a, b, c = slope[..., 0].mT.reshape(3, size, size)
    planes = torch.stack([a, b, -(c - a * rays[0] - b * rays[1])])  # 1 / z = planes . ray
    best, chosen = torch.full((size, size), math.inf, dtype=torch.float64), torch.zeros_like(planes)
    for down in (0, -reach, reach):
        for across in (0, -reach, reach):
            moved = _moved(rest[None], down, across, math.inf)[0] * (4 if down or across else 1)
            better = moved < best
            best = torch.where(better, moved, best)
            chosen = torch.where(better, _moved(planes, down, across, 0.0), chosen)
    length = chosen.square().sum(dim=0).sqrt()
    holds = valid & torch.isfinite(best) & (length > 0)
    return (-chosen / length.clamp(min=1e-12) * holds).float(), holds


def targets(
    letters: str, depth: Tensor, rays: Tensor, image: Tensor, *, metres: bool = False
) -> dict[str, tuple[Tensor, Tensor]]:
    """Target (C, S, S) and mask (S, S) of each letter of one frame, as `rooms.load` defines them.

    Parameters
    ----------
    letters : out of `LETTERS`.
    depth : (S, S), metres along the axis of the camera, 0 where nothing was measured.
    rays : (3, S, S), as `rays` gives them.
    image : (3, S, S), uint8.
    metres : d and D as metres, not as Taskonomy's logarithm in [0, 1].
    """
    size, valid = depth.shape[-1], depth > 0
    normal, flat = normals(depth, rays) if set(letters) & set("nrKp") else (torch.zeros_like(rays), valid)
    filled = _filled(depth, valid)
    apart = torch.where(valid, depth, FAR)
    view = {"image": image, "rays": rays, "normal": normal}
    of = {"E": filled, **dict.fromkeys("Kp", apart)}  # Gaussians of the image need a number everywhere
    found = {}
    for letter in letters:
        target = TARGETS[letter]({name: v[None] for name, v in (view | {"depth": of.get(letter, filled)}).items()})[0]
        if metres and letter in "dD":
            target = (filled if letter == "d" else filled * rays.square().sum(dim=0).sqrt())[None]
        mask = torch.ones_like(valid) if letter in FROM_IMAGE else valid
        if letter in "nrKp":
            mask = flat
        if letter == "E":
            mask = valid & (labels._smooth(valid[None].float(), labels.DEPTH_SIGMA * size)[0] > KNOWN)
        found[letter] = torch.where(mask, target, 0.0), mask
    return found


def median(depth: np.ndarray, size: int) -> np.ndarray:
    """(H, W) metres, 0 for a hole -> (S, S): of the square at the centre, the median of what each new pixel covers,
    where half of that was measured; else 0. A mean would put points between a thing and what is behind it."""
    height, width = depth.shape
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square = depth[top : top + side, left : left + side]
    edges = np.arange(size + 1) * side // size
    if side < 2 * size:  # about a pixel each
        return pixels.nearest(depth, size)

    def middle(values: np.ndarray) -> float:
        known = values[values > 0]
        return float(np.sort(known)[len(known) // 2]) if 2 * len(known) >= values.size else 0.0

    spans = list(pairwise(edges))
    return np.array([[middle(square[top:low, left:right]) for left, right in spans] for top, low in spans])


def _moved(values: Tensor, down: int, across: int, fill: float) -> Tensor:
    """(C, S, S), each pixel that of the window whose middle is so far away."""
    size, reach = values.shape[-1], max(abs(down), abs(across))
    padded = torch.nn.functional.pad(values, (reach,) * 4, value=fill)
    return padded[:, reach + down : reach + down + size, reach + across : reach + across + size]


def _filled(depth: Tensor, valid: Tensor) -> Tensor:
    """Holes get the depth of the nearest pixel that has one; 1 m where there is none at all."""
    if not valid.any():
        return torch.ones_like(depth)
    nearest = ndimage.distance_transform_edt(~valid.numpy(), return_distances=False, return_indices=True)
    return depth[tuple(torch.from_numpy(nearest.astype(np.int64)))]
