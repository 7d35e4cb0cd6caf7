"""Labels of rooms against values worked out by hand and against the geometry that they come from."""

import math

import pytest
import torch

from mtrlib import rooms
from mtrlib.rooms import labels
from mtrlib.rooms.scenes import COLOUR, HALF, PAINTED, TEXTURE, TURN

pytestmark = pytest.mark.usefixtures("one_thread")


def curvatures(scene, size):
    """Of a room, in 1/m: (N, 2, S, S)."""
    view = rooms.render(scene, size)
    return labels.curvatures(view["depth"], view["rays"], view["normal"])


def grey(values):
    """(S, S) luminance in [0, 1] -> (1, 3, S, S) uint8."""
    return (255 * values).round().to(torch.uint8).expand(1, 3, *values.shape)


def ramp(size):
    """Distance of each pixel's centre from the middle of the image, in pixels: (1, S)."""
    return (torch.arange(size) - (size - 1) / 2)[None]


def picture_on_a_plain_wall(hand_made):
    """The room in even light, without noise and textures; a picture from 0.6 to 1.4 m along and 1.3 to 1.9 m up."""
    scene = hand_made()
    scene["look"][:, 2] = 0
    scene["lights"][..., 3:] = 0
    scene["surfaces"][..., 13:16] = scene["surfaces"][..., COLOUR][..., :3]
    scene["surfaces"][..., TEXTURE][..., 0] = 0
    scene["panels"][:] = 0
    scene["panels"][0, 4] = torch.tensor([8.0, 1.0, 1.6, 0.4, 0.3])
    scene["surfaces"][0, 4, COLOUR] = 0.6
    scene["surfaces"][0, 8, COLOUR] = 0.04
    return scene


def pixel(size, along, up):
    """Row and column of a point of the wall z = 0 of the room made by hand, three metres away."""
    return int(size / 2 * (1 - (up - 1.5) / 3)), int(size / 2 * (1 + (along - 2) / 3))


@pytest.mark.parametrize("size", [64, 128])
def test_an_empty_room_has_weak_occlusion_edges_only(size):
    scenes = rooms.draw("test", 16)
    scenes["surfaces"][:, PAINTED:, 5:8] = -1
    view = rooms.render(scenes, size)
    assert (view["label"] < 6).all()
    edges = labels.occlusion_edges(view["depth"])
    assert (edges > 0).float().mean() < 0.02
    assert (edges > -0.9).float().mean() > 0.5  # slanted planes


def test_a_silhouette_is_an_occlusion_edge_and_nothing_else_is(hand_made):
    view = rooms.render(hand_made("box", 0.25), 128)
    edges = labels.occlusion_edges(view["depth"])[0, 0]
    is_box = view["label"][0] == rooms.CLASSES.index("box")
    left, right = is_box[64].nonzero()[[0, -1], 0].tolist()
    assert min(edges[64, left], edges[64, right]) > 0.3
    assert edges[64, 64] < -0.7
    near = torch.nn.functional.max_pool2d(is_box[None, None].float(), 31, 1, 15)[0, 0].bool()
    assert edges[~near].max() < -0.3


def test_occlusion_edges_of_a_step_and_a_ramp():
    """By hand: ln(far / near) / sqrt(2 pi) on a step; sigma |gradient of ln depth| on a plane."""
    size = 256
    step = torch.full((1, size, size), 2.0)
    step[..., size // 2 :] = 2.4
    edges = labels.occlusion_edges(step)[0, 0]
    expected = 2 * math.log(1.2) / math.sqrt(2 * math.pi) / labels.FULL_OCCLUSION - 1
    assert torch.allclose(edges[:, size // 2 - 1 : size // 2 + 1], torch.tensor(expected), atol=0.02)
    assert (edges[:, : size // 4] < -0.999).all()
    step[..., size // 2 :] = 6.0
    assert (labels.occlusion_edges(step)[0, 0, :, size // 2] == 1).all()
    inverse = torch.linspace(0.3, 0.6, size).expand(1, size, size)
    expected = 2 * labels.DEPTH_SIGMA * size * (0.3 / (size - 1)) / inverse / labels.FULL_OCCLUSION - 1
    assert torch.allclose(labels.occlusion_edges(1 / inverse)[0, 0, :, 40:-40], expected[0, :, 40:-40], atol=0.01)


@pytest.mark.parametrize("size", [128, 256])
def test_texture_edges_of_a_step(size):
    """A step of height h gives h / sqrt(2 pi) of sigma and the gradient; full at 0.08."""
    edges = labels.texture_edges(grey(torch.where(ramp(size) > 0, 0.6, 0.5).expand(size, size)))
    middle = edges[0, 0, :, size // 2 - 1 : size // 2 + 1]
    height = round(255 * 0.6) / 255 - round(255 * 0.5) / 255
    assert torch.allclose((middle + 1) / 2 * 0.08, torch.tensor(height / math.sqrt(2 * math.pi)), rtol=0.1)
    assert (edges[0, 0, :, : size // 4] == -1).all()
    assert (
        labels.texture_edges(grey(torch.where(ramp(size) > 0, 0.8, 0.5).expand(size, size)))[0, 0].amax(1) == 1
    ).all()


def test_texture_edges_do_not_depend_on_the_direction():
    step = grey(torch.where(ramp(64) > 0, 0.6, 0.5).expand(64, 64))
    assert torch.allclose(labels.texture_edges(step.mT), labels.texture_edges(step).mT, atol=1e-6)


@pytest.mark.parametrize("size", [128, 256])
@pytest.mark.parametrize("share", labels.BLOB_SIGMAS)
@pytest.mark.parametrize("sign", [1, -1])
def test_key_points_of_a_gaussian_blob(size, share, sign):
    """A blob of height h and one of the scales gives h / 4 at its centre, bright or dark."""
    squared = ramp(size).square() + ramp(size).T.square()
    blob = 0.5 + sign * 0.15 * torch.exp(-0.5 * squared / (share * size) ** 2)
    found = labels.blobs(grey(blob))[0, 0]
    assert (found.amax() + 1) / 2 * labels.FULL_BLOB == pytest.approx(0.15 / 4, rel=0.1)
    assert found.amax() == found[size // 2 - 1 : size // 2 + 1, size // 2 - 1 : size // 2 + 1].amax()
    assert (found[0] < -0.99).all()


def test_key_points_are_neither_edges_nor_saddles():
    size = 64
    edge = torch.where(ramp(size) > 0, 0.9, 0.1).expand(size, size)
    saddle = 0.5 + 0.4 * (ramp(size) * ramp(size).T) / (size / 2) ** 2
    assert (labels.blobs(grey(edge)) < -0.999).all()
    assert (labels.blobs(grey(saddle))[..., 8:-8, 8:-8] < -0.99).all()
    corner = torch.where((ramp(size) > 0) & (ramp(size).T > 0), 0.9, 0.1)
    found = labels.blobs(grey(corner))[0, 0]
    assert found[32:36, 32:36].max() == 1
    assert (found[:24] == -1).all()


@pytest.mark.parametrize("size", [96, 192])
def test_what_is_painted_on_a_wall_is_found_and_the_plain_wall_is_not(hand_made, size):
    view = rooms.render(picture_on_a_plain_wall(hand_made), size)
    (row, left), (bottom, right) = pixel(size, 0.6, 1.9), pixel(size, 1.4, 1.3)
    picture = view["label"][0] == rooms.CLASSES.index("picture")
    assert picture[row + 1 : bottom - 1, left + 1 : right - 1].all()
    edges, points = labels.texture_edges(view["image"])[0, 0], labels.blobs(view["image"])[0, 0]
    middle = (left + right) // 2
    assert edges[row - 2 : row + 3, middle].max() > 0.9
    reach = size // 32
    at_corner = [
        points[y - reach : y + reach + 1, x - reach : x + reach + 1].max() for y in (row, bottom) for x in (left, right)
    ]
    assert min(at_corner) > 0.5
    top, first = pixel(size, 2.4, 2.0)
    low, last = pixel(size, 3.2, 1.0)
    plain = (slice(top, low), slice(first, last))
    assert (view["label"][0][plain] == rooms.CLASSES.index("wall")).all()
    assert (edges[plain] == -1).all()
    assert points[plain].mean() < -0.8


@pytest.mark.parametrize("size", [64, 128])
def test_corners_are_where_three_planes_meet(hand_made, size):
    view = rooms.render(hand_made(), size)
    corners = labels.corners(view["depth"], view["rays"], view["normal"])[0, 0]
    places = [pixel(size, along, up) for along in (0, 4) for up in (0, 3)]
    for row, column in places:
        assert corners[row - 2 : row + 3, column - 2 : column + 3].max() > 0.05
    edge, plane = pixel(size, 2, 0), pixel(size, 2, 1.5)
    assert corners[edge] < -0.95
    assert corners[plane] < -0.98
    assert corners[plane] == pytest.approx(corners.min().item(), abs=0.005)
    far = torch.ones_like(corners, dtype=torch.bool)
    for row, column in places:
        far[max(row - size // 4, 0) : row + size // 4, max(column - size // 4, 0) : column + size // 4] = False
    assert corners[far].max() < -0.85


def directions(size, depth):
    """Made-up geometry whose columns of pixels face three perpendicular ways in turn; depth (S, S) in metres."""
    across = (2 * torch.arange(size) + 1 - size) / size
    rays = torch.stack([across.expand(size, size), -across[:, None].expand(size, size), -torch.ones(size, size)])
    normal = torch.nn.functional.one_hot(torch.arange(size) % 3, 3).float().T[:, None].expand(3, size, size)
    return depth[None], rays[None], normal[None]


def test_corners_are_full_where_normals_span_space_equally():
    size = 96
    corners = labels.corners(*directions(size, torch.ones(size, size)))[0, 0]
    full = 2 / math.sqrt(3) - 1  # the tensor is nearly the identity over 3
    assert (corners[16:-16, 16:-16] > full - 0.01).all()
    assert corners.max() <= full + 1e-6


def test_corners_do_not_mix_surfaces_at_different_depths():
    """The same normals, each at a depth of its own, further from the others than the window reaches."""
    size = 96
    depth = (1.0 + 1.4 * (torch.arange(size) % 3)).expand(size, size)
    assert (labels.corners(*directions(size, depth)) < -0.99).all()


def test_corners_have_their_size_in_metres(hand_made):
    """Twice as far away, twice as small in the picture: the same share of metres is above the middle."""
    areas = []
    for distance in (1.5, 3.0):
        scene = hand_made()
        scene["camera"][0, 2] = distance
        scene["camera"][0, 3] = math.radians(30)  # to the left: the lower left corner of the wall is near the middle
        view = rooms.render(scene, 256)
        corners = labels.corners(view["depth"], view["rays"], view["normal"])[0, 0]
        below = torch.arange(256)[:, None] >= 128
        area = view["depth"][0].square() / -(view["rays"] * view["normal"]).sum(dim=1)[0]
        wall = view["surface"][0] == 4
        areas.append((area * below * wall * (corners > -0.5)).sum())
    assert areas[0] == pytest.approx(areas[1].item(), rel=0.3)


def test_smallest_eigenvalues(generator):
    normal = torch.nn.functional.normalize(torch.randn(40, 3, 4, generator=generator, dtype=torch.float64), dim=1)
    tensor = normal @ normal.mT / 4
    rows, columns = [0, 1, 2, 0, 0, 1], [0, 1, 2, 1, 2, 2]
    found = labels._smallest_eigenvalue(tensor[:, rows, columns][:, :, None, None])[:, 0, 0, 0]
    assert torch.allclose(found, torch.linalg.eigvalsh(tensor)[:, 0], atol=1e-12)
    identity = torch.tensor([1.0, 1, 1, 0, 0, 0], dtype=torch.float64).view(1, 6, 1, 1) / 3
    assert labels._smallest_eigenvalue(identity).item() == pytest.approx(1 / 3)


@pytest.mark.parametrize("radius", [1.1, 1.4])
def test_curvatures_of_a_ball_a_column_and_planes(hand_made, radius):
    ball, column, plane = (
        curvatures(hand_made(*what), 129)[0] for what in (("ball", radius), ("column", radius, 1.4), ())
    )
    assert ball[:, 64, 64].tolist() == pytest.approx([1 / radius, 1 / radius], rel=0.05)
    assert column[:, 64, 64].tolist() == pytest.approx([1 / radius, 0], rel=0.05, abs=0.02)
    assert plane[:, 64, 64].tolist() == pytest.approx([0, 0], abs=0.05)


def test_creases_bulge_on_a_box_and_are_hollow_along_the_floor(hand_made):
    """A right angle bends by 1 / (sqrt(2 pi) sigma) at most, sigma in metres across the line of sight."""
    full = 1 / math.sqrt(2 * math.pi) / labels.WINDOW
    row, column = pixel(128, 2, 0)
    floor = curvatures(hand_made(), 128)[0, :, row - 3 : row + 3, column]
    assert floor[1].min() == pytest.approx(-full, rel=0.3)
    assert floor[0].abs().max() < 0.1
    turned = hand_made("box", 0.6, 1.4)
    turned["surfaces"][:, :, TURN][turned["surfaces"][:, :, HALF.start] == 0.6] = math.sqrt(0.5)
    corner = curvatures(turned, 128)[0, :, 64, 61:67]
    assert corner[0].max() == pytest.approx(full * math.sqrt(0.5), rel=0.3)  # both faces are slanted by 45 degrees
    assert corner[1].abs().max() < 0.1


def test_reshading_is_the_cosine_to_the_camera(hand_made, view):
    shade = (labels.reshading(view["rays"], view["normal"])[:, 0] + 1) / 2
    cosine = torch.nn.functional.cosine_similarity(view["normal"], -view["rays"], dim=1)
    assert torch.allclose(shade, cosine.clamp(min=0), atol=1e-5)
    made = rooms.render(hand_made(), 65)
    by_hand = (labels.reshading(made["rays"], made["normal"])[0, 0] + 1) / 2
    assert by_hand[32, 32] == pytest.approx(1)
    assert by_hand[64, 32] == pytest.approx(math.sin(math.atan(64 / 65)), abs=1e-5)  # the floor, seen at 44.6 degrees


def test_the_autoencoder_target_is_the_image(view):
    target = labels.colours(view["image"])
    assert target.dtype == torch.float32
    assert (target.min(), target.max()) == (-1, 1)
    assert torch.equal(((target + 1) * 127.5).round().to(torch.uint8), view["image"])


@pytest.mark.parametrize("size", [16, 33, 64])
def test_an_image_does_not_depend_on_those_beside_it(scenes, size):
    view = rooms.render({name: values[:7] for name, values in scenes.items()}, size)
    functions = {
        labels.blobs: ["image"],
        labels.texture_edges: ["image"],
        labels.corners: ["depth", "rays", "normal"],
        labels.occlusion_edges: ["depth"],
        labels.curvatures: ["depth", "rays", "normal"],
        labels.reshading: ["rays", "normal"],
    }
    for function, names in functions.items():
        together = function(*(view[name] for name in names))
        for part in (slice(0, 1), slice(1, 3), slice(2, 7)):
            assert torch.equal(function(*(view[name][part] for name in names)), together[part])


def test_labels_are_made_where_their_tensors_are():
    """On a device without storage: an operation that mixed it with the CPU would fail."""
    images = torch.empty(2, 3, 16, 16, dtype=torch.uint8, device="meta")
    vectors, numbers = (torch.empty(2, *shape, device="meta") for shape in ((3, 16, 16), (16, 16)))
    made = [labels.blobs(images), labels.texture_edges(images), labels.colours(images)]
    made += [labels.corners(numbers, vectors, vectors), labels.reshading(vectors, vectors)]
    made += [labels.occlusion_edges(numbers), labels.curvatures(numbers, vectors, vectors), labels.log_depth(numbers)]
    assert {tensor.device.type for tensor in made} == {"meta"}
    assert {tensor.dtype for tensor in made} == {torch.float32}
