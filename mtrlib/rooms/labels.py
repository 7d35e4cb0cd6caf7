"""Labels of rendered rooms from their image and geometry: tensors in, tensors out, on any device.

Table of tasks of the paper, section 4 of arXiv 2110.15053. Images have as many rows as columns (S = size); depth is in
metres along the axis of the camera; rays are directions in its frame (x right, y up, z towards the viewer) with z = -1,
so that points are rays * depth; normals are unit vectors of that frame that face the camera. No image depends on those
beside it: sums of shifts and kornia on one image at a time, since a convolution rounds by the size of its batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from kornia.feature import hessian_response
from kornia.filters import gaussian_blur2d, spatial_gradient
from torch import Tensor

from mtrlib.rooms.scenes import BALL, COLUMN

EDGE_SIGMA = 0.012  # of the Gaussians that smooth edges, as a share of the width of the image
BLOB_SIGMAS = (0.016, 0.028, 0.048)  # the same for key points
FULL_EDGE, FULL_BLOB = 0.08, 0.005  # responses that are full, as in the transforms of the paper's authors
CORNER_SIGMA, CORNER_REACH = 0.2, 0.5  # m
SMALLEST_RADIUS = 0.15  # m; no ball or column of a room is smaller


def log_depth(metres: Tensor) -> Tensor:
    """Metres to [0, 1]: log(1 + 512 m) / log(2^16), any shape."""
    return torch.log1p(512 * metres) / math.log(2**16)


def occlusion_edges(depth: Tensor) -> Tensor:
    """Where one surface hides another: (N, S, S) metres along the camera's axis -> (N, 1, S, S) in [-1, 1].

    On a plane the inverse of this depth is affine in the pixel's coordinates. Two neighbours have a plane each, through
    the pixel and the one behind it. Either the planes meet between the two pixels (a crease: no edge), or they are
    apart at both; the smaller gap, relative to the farther pixel, is then the strength of an edge, full from 15 % on.
    Edges are smoothed by a Gaussian of 1.2 % of the width and scaled so that a long, straight, strong edge is 1.
    """
    inverse = 1 / depth
    edges = torch.maximum(_gaps(inverse), _gaps(inverse.mT).mT)
    sigma = EDGE_SIGMA * depth.shape[-1]
    radius = min(math.ceil(3 * sigma), depth.shape[-1] - 1)
    kernel = [math.exp(-0.5 * (k / sigma) ** 2) for k in range(-radius, radius + 1)]
    for _ in range(2):  # sums of shifts rather than a convolution, whose rounding depends on the size of the batch
        padded = torch.nn.functional.pad(edges, (radius, radius), mode="replicate")
        edges = sum(weight * padded[..., k : k + depth.shape[-1]] for k, weight in enumerate(kernel)).mT
    strong = sum(kernel) * (kernel[radius] + kernel[radius + 1])  # a straight edge is two pixels wide
    return (2 * (edges / strong).clamp(0, 1) - 1)[:, None].contiguous()


def texture_edges(images: Tensor) -> Tensor:
    """Canny's gradient magnitude before thinning: (N, 3, S, S) uint8 -> (N, 1, S, S) in [-1, 1]; -1 where it is flat.

    The Sobel gradient of the luminance in [0, 1] after a Gaussian of sigma = 1.2 % of the width, times sigma: a long,
    straight step of height h gives h / sqrt(2 pi), less where sigma is about a pixel (96 % of it in an image of 256
    pixels, 70 % in one of 64, 46 % in one of 32). Clipped to [0, 0.08] (a step of 0.2), then mapped to [-1, 1].
    """
    sigma = EDGE_SIGMA * images.shape[-1]

    def response(image: Tensor) -> Tensor:
        return sigma * spatial_gradient(_smooth(image, sigma), "sobel").square().sum(dim=2).sqrt()

    return 2 * (_each(response, images) / FULL_EDGE).clamp(0, 1) - 1


def blobs(images: Tensor) -> Tensor:
    """2D key points as of SURF, a map without suppression: (N, 3, S, S) uint8 -> (N, 1, S, S) in [-1, 1].

    The determinant of the Hessian of the luminance in [0, 1] after a Gaussian, times sigma^4: the largest over sigma =
    1.6, 2.8 and 4.8 % of the width. A Gaussian blob of height h and such a sigma gives h^2 / 16 at its centre, less
    where sigma is about a pixel (79 % of it for 2.8 % of 64 pixels); saddles and straight edges give 0 or less.
    Clipped to [0, 0.005] (a blob of height 0.28), then mapped to [-1, 1].
    """
    sigmas = [share * images.shape[-1] for share in BLOB_SIGMAS]

    def response(image: Tensor) -> Tensor:
        scales = [sigma**4 * hessian_response(_smooth(image, sigma), "diff") for sigma in sigmas]
        return torch.stack(scales).amax(dim=0)

    return 2 * (_each(response, images) / FULL_BLOB).clamp(0, 1) - 1


def corners(depth: Tensor, rays: Tensor, normal: Tensor) -> Tensor:
    """3D key points, where surfaces face three ways: depth (N, S, S), rays, normal (N, 3, S, S) -> (N, 1, S, S).

    T is the mean of n n^T over the surface seen around a point, and L its smallest eigenvalue: sqrt(L) is the root mean
    square of the normals' component in the direction that they have least of. It is 0 on a plane, an edge of two
    planes and the side of a column, sqrt(1/3) where three perpendicular planes share the view, in between on a ball.
    2 x - 1 is returned, x = sqrt(3 L) in [0, 1].

    Weights are about a Gaussian of 0.2 m, at most a seventh of the image: smoothing by (1, 4, 6, 4, 1) / 16 with holes,
    over and over at twice the distance, where a neighbour counts by (1 - (distance / 0.5 m)^2) or not at all; T is
    interpolated between the two levels that have 0.2 m between them. Distances are in space, so what lies behind a
    surface does not count.
    """
    size = depth.shape[-1]
    x, y, z = normal.unbind(dim=1)
    values = torch.stack([x * x, y * y, z * z, x * y, x * z, y * z, torch.ones_like(x)], dim=1)
    points = rays * depth[:, None]
    pixel = depth * (rays[:, 0, :1, 1:2] - rays[:, 0, :1, :1])  # m
    levels = max(1, int(math.log2(size / 4)))
    level = (0.5 * torch.log2(1 + 3 * (CORNER_SIGMA / pixel).square())).clamp(max=levels)[:, None]
    tensor = values[:, :6] * (1 - level).clamp(min=0)
    for k in range(levels):  # after k + 1 of them, the variance is (4^(k + 1) - 1) / 3 squared pixels
        for dim in (2, 3):
            values = _with_holes(values, points, 2**k, dim)
        tensor = tensor + values[:, :6] / values[:, 6:] * (1 - (level - k - 1).abs()).clamp(min=0)
    smallest = _smallest_eigenvalue(tensor.double()).clamp(min=0)
    return (2 * (3 * smallest).sqrt().clamp(max=1) - 1).float()


def curvatures(shape: Tensor, radius: Tensor, upright: Tensor) -> Tensor:
    """Principal curvatures, the larger one first, times 0.15 m: three (N, S, S) -> (N, 2, S, S) in [0, 1].

    Curvature (1/m) is positive where a surface bulges towards the camera, and no surface of a room is hollow: (1/r,
    1/r) on a ball of radius r, (1/r, 0) on the side of a column, (0, 0) on planes. The smallest radius, 0.15 m, is 1.

    Parameters
    ----------
    shape : kind of surface, as in `scenes` (planes, boxes, columns, balls).
    radius : in metres, where the surface has one.
    upright : vertical component of the unit normal in the world, +-1 on the flat ends of a column.
    """
    bend = (SMALLEST_RADIUS / radius).clamp(0, 1)
    first = (shape == BALL) | ((shape == COLUMN) & (upright.abs() < 0.5))
    return torch.stack([bend * first, bend * (shape == BALL)], dim=1)


def reshading(rays: Tensor, normal: Tensor) -> Tensor:
    """Shading by a light at the camera: rays, normal (N, 3, S, S) -> 2 x - 1 (N, 1, S, S), x = max(0, n . v) in [0, 1].

    v is the unit vector from the point to the camera. Distance does not matter, nor do colours and shadows.
    """
    shade = -(normal * rays).sum(dim=1, keepdim=True) / rays.square().sum(dim=1, keepdim=True).sqrt()
    return 2 * shade.clamp(0, 1) - 1


def colours(images: Tensor) -> Tensor:
    """The image as a target: (N, 3, S, S) uint8 -> the same in [-1, 1]."""
    return images.float() / 127.5 - 1


def _each(response: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """A response of the luminance of each image by itself: (N, 3, S, S) uint8 -> (N, 1, S, S).

    In float64, which no accelerator rounds to fewer bits in a convolution.
    """
    red, green, blue = images.double().unbind(dim=1)
    luminance = (0.299 * red + 0.587 * green + 0.114 * blue) / 255
    return torch.cat([response(image[None, None]) for image in luminance]).float()


def _smooth(image: Tensor, sigma: float) -> Tensor:
    """(1, 1, S, S), convolved with a Gaussian of sigma pixels."""
    width = 2 * math.ceil(3 * sigma) + 1
    return gaussian_blur2d(image, (width, width), (sigma, sigma), border_type="replicate")


def _with_holes(values: Tensor, points: Tensor, step: int, dim: int) -> Tensor:
    """Values (N, C, S, S) of points (N, 3, S, S), in metres, summed over pixels up to 2 `step` away along `dim`."""
    size, reach = values.shape[dim], 2 * step
    pad = (reach, reach, 0, 0) if dim == 3 else (0, 0, reach, reach)
    wide, wide_points = (torch.nn.functional.pad(tensor, pad) for tensor in (values, points))
    total = 6 / 16 * values
    for k, share in ((-2, 1), (-1, 4), (1, 4), (2, 1)):
        x, y, z = (wide_points.narrow(dim, reach + k * step, size) - points).unbind(dim=1)
        weight = (1 - (x * x + y * y + z * z) / CORNER_REACH**2).clamp(min=0) * (share / 16)
        total = total + weight[:, None] * wide.narrow(dim, reach + k * step, size)
    return total


def _smallest_eigenvalue(tensor: Tensor) -> Tensor:
    """Of symmetric 3 x 3 matrices (N, 6, S, S), as xx, yy, zz, xy, xz, yz -> (N, 1, S, S).

    In closed form: O. K. Smith, Communications of the ACM 4 (1961), p. 168.
    """
    x, y, z, xy, xz, yz = tensor.split(1, dim=1)
    mean = (x + y + z) / 3
    x, y, z = x - mean, y - mean, z - mean
    off = xy * xy + xz * xz + yz * yz
    spread = ((x * x + y * y + z * z + 2 * off) / 6).sqrt()
    determinant = x * (y * z - yz * yz) - xy * (xy * z - yz * xz) + xz * (xy * yz - y * xz)
    cosine = (determinant / (2 * spread**3).clamp(min=1e-300)).clamp(-1, 1)
    return mean + 2 * spread * torch.cos(cosine.acos() / 3 + 2 * math.pi / 3)


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
