"""Labels of rendered rooms from their image and geometry: tensors in, tensors out, on any device.

Table of tasks of the paper, section 4 of arXiv 2110.15053; statistics near those of Taskonomy's labels as the paper's
authors read them. Images have as many rows as columns (S = size); depth is in metres along the axis of the camera; rays
are directions in its frame (x right, y up, z towards the viewer) with z = -1, so that points are rays * depth; normals
are unit vectors of that frame that face the camera. Filters are sums of shifts, since a convolution rounds by the size
of its batch: no image depends on those beside it.
"""

import math

import torch
from torch import Tensor

EDGE_SIGMA, DEPTH_SIGMA = 0.012, 0.04  # of the Gaussian that smooths before edges, as a share of the width of the image
BLOB_SIGMAS = (0.028, 0.048, 0.08)  # the same for key points
FULL_EDGE, FULL_OCCLUSION, FULL_BLOB = 0.08, 0.4, 0.05  # responses that are full
WINDOW, REACH = 0.5, 1.25  # m: sigma and end of the window of 3D key points and curvatures


def log_depth(metres: Tensor) -> Tensor:
    """Metres to [0, 1]: log(1 + 512 m) / log(2^16), any shape."""
    return torch.log1p(512 * metres) / math.log(2**16)


def occlusion_edges(depth: Tensor) -> Tensor:
    """Canny's gradient magnitude of log depth, before thinning: (N, S, S) metres -> (N, 1, S, S) in [-1, 1].

    As `texture_edges`, of ln(depth), with sigma = 4 %: a long, straight silhouette gives ln(far / near) / sqrt(2 pi);
    full at 0.4, before something 2.7 times as far away. Slanted surfaces respond weakly, a plane with sigma times
    the gradient of ln(depth), as in Taskonomy (arXiv 1804.08328); a wall straight ahead gives -1.
    """
    return _canny(depth.log(), DEPTH_SIGMA, FULL_OCCLUSION)


def texture_edges(images: Tensor) -> Tensor:
    """Canny's gradient magnitude before thinning: (N, 3, S, S) uint8 -> (N, 1, S, S) in [-1, 1]; -1 where it is flat.

    The gradient of the luminance in [0, 1] after a Gaussian of sigma = 1.2 % of the width, times sigma: a long,
    straight step of height h gives h / sqrt(2 pi), less where sigma is about a pixel. Clipped to [0, 0.08] (a step of
    0.2), then mapped to [-1, 1].
    """
    return _canny(_luminance(images), EDGE_SIGMA, FULL_EDGE)


def blobs(images: Tensor) -> Tensor:
    """2D key points as of SURF, a map without suppression: (N, 3, S, S) uint8 -> (N, 1, S, S) in [-1, 1].

    The root of the determinant of the Hessian of the luminance in [0, 1] after a Gaussian, times sigma^2: the largest
    over sigma = 2.8, 4.8 and 8 % of the width. A Gaussian blob of height h and such a sigma gives h / 4 at its centre;
    saddles and straight edges give 0. The root, unlike the determinant, is linear in contrast: weak texture responds
    too, as in photographs. Clipped to [0, 0.05] (a blob of height 0.2), then mapped to [-1, 1].
    """
    luminance, scales = _luminance(images), []
    for share in BLOB_SIGMAS:
        sigma = share * images.shape[-1]
        slopes = torch.gradient(_smooth(luminance, sigma), dim=(2, 1))
        (xx, xy), (_, yy) = (torch.gradient(slope, dim=(2, 1)) for slope in slopes)
        scales.append(sigma**4 * (xx * yy - xy * xy))
    return (2 * (torch.stack(scales).amax(dim=0).clamp(min=0).sqrt() / FULL_BLOB).clamp(max=1) - 1)[:, None]


def corners(depth: Tensor, rays: Tensor, normal: Tensor) -> Tensor:
    """3D key points, where surfaces face three ways: depth (N, S, S), rays, normal (N, 3, S, S) -> (N, 1, S, S).

    T is the mean of n n^T over the surface seen around a point (`_around`), and L its smallest eigenvalue:
    x = sqrt(L) is the root mean square of the normals' component in the direction that they have least of. It is 0 on
    a plane, an edge of two planes and the side of a column, sqrt(1/3) where three perpendicular planes share the view,
    in between on a ball. 2 x - 1 is returned, in [-1, 0.155].
    """
    x, y, z = normal.unbind(dim=1)
    products = torch.stack([x * x, y * y, z * z, x * y, x * z, y * z], dim=1)
    smallest = _smallest_eigenvalue(_around(products, depth, rays).double()).clamp(min=0)
    return (2 * smallest.sqrt() - 1).float()


def curvatures(depth: Tensor, rays: Tensor, normal: Tensor) -> Tensor:
    """Principal curvatures in 1/m, the larger first: (N, S, S), two (N, 3, S, S) -> (N, 2, S, S), clipped to [-1, 1].

    Curvature (1/m) is positive where a surface bulges towards the camera: (1/r, 1/r) on a ball of radius r, (1/r, 0) on
    the side of a column, (0, 0) on a plane. Creases are rounded by the window: about (1, 0) on the edge of a box and
    (0, -1) where a wall meets the floor. They are the eigenvalues of the matrix S that fits dn = S dx best, n and x the
    normals and points of neighbouring pixels of the surface seen around a point (`_around`).
    """
    (xu, nu), (xv, nv) = (_steps(rays * depth[:, None], normal, dim) for dim in (3, 2))
    products = torch.stack([xu * xu, xu * xv, xv * xv, xu * nu, (xu * nv + xv * nu) / 2, xv * nv], dim=1).sum(dim=2)
    uu, uv, vv, first, mixed, last = _around(products, depth, rays).unbind(dim=1)
    area = (uu * vv - uv * uv).clamp(min=1e-12)
    mean = (vv * first - 2 * uv * mixed + uu * last) / (2 * area)
    spread = (mean.square() - (first * last - mixed.square()) / area).clamp(min=0).sqrt()
    return torch.stack([mean + spread, mean - spread], dim=1).clamp(-1, 1)


def reshading(rays: Tensor, normal: Tensor) -> Tensor:
    """Shading by a light at the camera: rays, normal (N, 3, S, S) -> 2 x - 1 (N, 1, S, S), x = max(0, n . v) in [0, 1].

    v is the unit vector from the point to the camera. Distance does not matter, nor do colours and shadows.
    """
    shade = -(normal * rays).sum(dim=1, keepdim=True) / rays.square().sum(dim=1, keepdim=True).sqrt()
    return 2 * shade.clamp(0, 1) - 1


def colours(images: Tensor) -> Tensor:
    """The image as a target: (N, 3, S, S) uint8 -> the same in [-1, 1]."""
    return images.float() / 127.5 - 1


def _luminance(images: Tensor) -> Tensor:
    """(N, 3, S, S) uint8 -> (N, S, S) in [0, 1]."""
    red, green, blue = images.float().unbind(dim=1)
    return (0.299 * red + 0.587 * green + 0.114 * blue) / 255


def _canny(values: Tensor, share: float, full: float) -> Tensor:
    """Gradient magnitude after a Gaussian, times its sigma: (N, S, S) -> (N, 1, S, S), 0 to `full` as -1 to 1."""
    sigma = share * values.shape[-1]
    across, along = torch.gradient(_smooth(values, sigma), dim=(1, 2))
    return (2 * (sigma / full * torch.hypot(across, along)).clamp(max=1) - 1)[:, None]


def _smooth(values: Tensor, sigma: float) -> Tensor:
    """(N, S, S), convolved with a Gaussian of sigma pixels."""
    size, radius = values.shape[-1], math.ceil(3 * sigma)
    kernel = [math.exp(-0.5 * (k / sigma) ** 2) for k in range(-radius, radius + 1)]
    for _ in range(2):
        padded = torch.nn.functional.pad(values, (radius, radius), mode="replicate")
        values = sum(weight / sum(kernel) * padded[..., k : k + size] for k, weight in enumerate(kernel)).mT
    return values


def _around(values: Tensor, depth: Tensor, rays: Tensor) -> Tensor:
    """Means of values (N, C, S, S) over the surface seen around each point, about a Gaussian of sigma = 0.5 m.

    At most a seventh of the image: smoothing by (1, 4, 6, 4, 1) / 16 with holes, over and over at twice the distance,
    where a neighbour counts by (1 - (distance / 1.25 m)^2) or not at all; interpolated between the two levels that
    have 0.5 m between them. Distances are in space, so what lies behind a surface does not count.
    """
    size, points = depth.shape[-1], rays * depth[:, None]
    pixel = depth * (rays[:, 0, :1, 1:2] - rays[:, 0, :1, :1])  # m
    levels = max(1, int(math.log2(size / 4)))
    level = (0.5 * torch.log2(1 + 3 * (WINDOW / pixel).square())).clamp(max=levels)[:, None]
    mean = values * (1 - level).clamp(min=0)
    values = torch.cat([values, torch.ones_like(values[:, :1])], dim=1)
    for k in range(levels):  # after k + 1 of them, the variance is (4^(k + 1) - 1) / 3 squared pixels
        for dim in (2, 3):
            values = _with_holes(values, points / REACH, 2**k, dim)
        mean = mean + values[:, :-1] / values[:, -1:] * (1 - (level - k - 1).abs()).clamp(min=0)
    return mean


def _steps(points: Tensor, normal: Tensor, dim: int) -> list[Tensor]:
    """Steps of points and normals from one neighbour along `dim` to the other, without those over a hole."""
    pad = (1, 1, 0, 0) if dim == 3 else (0, 0, 1, 1)
    size, steps = points.shape[dim], [values.diff(dim=dim) for values in (points, normal)]
    weight = (1 - steps[0].square().sum(dim=1, keepdim=True) / WINDOW**2).clamp(min=0)
    padded = [torch.nn.functional.pad(weight * step, pad) for step in steps]
    return [step.narrow(dim, 0, size) + step.narrow(dim, 1, size) for step in padded]


def _with_holes(values: Tensor, points: Tensor, step: int, dim: int) -> Tensor:
    """Values (N, C, S, S) of points (N, 3, S, S), in shares of the reach, summed up to 2 `step` pixels along `dim`."""
    size, reach = values.shape[dim], 2 * step
    pad = (reach, reach, 0, 0) if dim == 3 else (0, 0, reach, reach)
    wide, wide_points = (torch.nn.functional.pad(tensor, pad) for tensor in (values, points))
    total = 6 / 16 * values
    for k, share in ((-2, 1), (-1, 4), (1, 4), (2, 1)):
        x, y, z = (wide_points.narrow(dim, reach + k * step, size) - points).unbind(dim=1)
        weight = (1 - x * x - y * y - z * z).clamp(min=0) * (share / 16)
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
