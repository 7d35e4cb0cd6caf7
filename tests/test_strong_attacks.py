"""Balls of l1, Auto-PGD in stages, worst cases by the reported error, SEA, and attacks that choose among tasks."""

import itertools
from functools import wraps

import numpy as np
import oracles
import pytest
import torch

from mtrlib import attacks, models
from mtrlib.attacks import ball
from mtrlib.specs import AttackSpec
from mtrlib.store import evaluation
from mtrlib.tasks import TASKS

EPS = 8 / 255


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def grey(batch: int = 3, size: int = 8, seed: int = 0) -> torch.Tensor:
    return torch.rand(batch, 3, size, size, generator=seeded(seed)) * 0.5 + 0.25


def linear(weights: torch.Tensor):
    return lambda images: (images * weights).sum(dim=(1, 2, 3))[None]


@pytest.mark.parametrize("eps", [0.01, 1.0, 7.0, 60.0])
@pytest.mark.parametrize("scale", [0.01, 0.5, 20.0])
def test_the_projection_onto_l1_and_the_range_is_the_nearest_point(eps, scale):
    images = torch.rand(4, 3, 5, 5, generator=seeded()).round(decimals=1).double()
    moved = images + scale * torch.randn(4, 3, 5, 5, generator=seeded(1)).double()
    moved[3] = images[3]
    found = ball.around(images, eps, "l1", steps=1).project(moved)
    for point, change, image in zip(found, moved - images, images, strict=True):
        nearest = image.numpy() + oracles.onto_l1(change.numpy(), image.numpy(), eps * (1 - 1e-6))
        np.testing.assert_allclose(point, nearest, atol=1e-9)


def test_starts_fill_the_ball_of_l1():
    """The length of a point drawn uniformly from the ball in n dimensions has mean eps n / (n + 1); signs are even."""
    images = torch.full((1, 3, 1, 1), 0.5)
    inside, generator = ball.around(images, 0.4, "l1", steps=1), seeded()
    starts = torch.cat([next(inside.starts(1, True, generator)) for _ in range(3000)]) - images
    sizes = starts.abs().flatten(1).sum(dim=1) / 0.4
    assert sizes.max() <= 1
    assert sizes.mean().item() == pytest.approx(3 / 4, abs=0.01)
    assert (starts > 0).float().mean().item() == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize("attack", [attacks.pgd, attacks.apgd, attacks.mim])
@pytest.mark.parametrize("eps", [0.2, 3.0])
def test_l1_reaches_the_optimum_of_a_linear_loss(attack, eps):
    """That fills the values with the largest weights, one after the other, up to the range."""
    images, weights = grey(), torch.randn(1, 3, 8, 8, generator=seeded(3))
    found = attack(linear(weights), images, eps=eps, step_size=eps / 8, steps=150, norm="l1", generator=seeded())
    room = torch.where(weights > 0, 1 - images, images).flatten(1)
    order = weights.abs().flatten().argsort(descending=True)
    filled = room[:, order].cumsum(dim=1).clamp(max=eps).diff(dim=1, prepend=torch.zeros(3, 1))
    best = filled @ weights.abs().flatten()[order]
    reached = ((found - images) * weights).sum(dim=(1, 2, 3))
    assert (reached <= best * (1 + 1e-5)).all()
    assert (reached >= 0.98 * best).all()


def test_values_at_the_end_of_the_range_take_no_part_of_a_step_in_l1():
    """Or the others, with smaller derivatives, would never be reached."""
    images = torch.ones(1, 3, 8, 8)
    images[0, 2, 7, 7] = 0.5
    weights = torch.linspace(2, 1, 192).view(1, 3, 8, 8)
    found = attacks.pgd(linear(weights), images, eps=1, step_size=0.1, steps=20, norm="l1", random_start=False)
    assert found[0, 2, 7, 7].item() == pytest.approx(1, abs=1e-4)


def test_stages_stay_in_balls_that_shrink_and_cost_a_pass_each():
    images, radii, kinds = grey(4), [], []

    def losses(points):
        radii.append(((points - images).abs().max() / EPS).item())
        kinds.append(points.requires_grad)
        return torch.sin(40 * points).sum(dim=(1, 2, 3))[None]

    found = attacks.apgd(losses, images, eps=EPS, steps=20, stages=attacks.SHRINKING, generator=seeded())
    assert kinds == ([True] * 6 + [False]) * 2 + [True] * 8 + [False]
    for radius, part in ((2, radii[:7]), (1.5, radii[7:14]), (1, radii[14:])):
        assert radius - 0.3 < max(part) <= radius * (1 + 1e-5)
    assert (found - images).abs().max() <= EPS


def test_a_stage_begins_at_the_best_point_of_the_one_before():
    """Of a linear loss the corner of the larger ball, brought into the smaller one: the next start is the optimum."""
    images, weights, seen = grey(), torch.randn(1, 3, 8, 8, generator=seeded(3)), []

    def losses(points):
        seen.append(points.detach().clone())
        return linear(weights)(points)

    attacks.apgd(losses, images, eps=EPS, steps=20, stages=attacks.SHRINKING, generator=seeded())
    for start, radius in ((seen[7], 1.5), (seen[14], 1.0)):
        torch.testing.assert_close(start, images + radius * EPS * weights.sign(), atol=1e-6, rtol=0)


@pytest.mark.parametrize("steps", [0, 1, 2, 3, 7])
def test_stages_of_few_steps_take_as_many(steps):
    asked = []

    def losses(points):
        asked.append(points.requires_grad)
        return linear(torch.ones(1, 3, 8, 8))(points)

    found = attacks.apgd(losses, grey(), eps=EPS, steps=steps, stages=attacks.SHRINKING, generator=seeded())
    assert sum(asked) == max(steps, 1)
    assert (found - grey()).abs().max() <= EPS * (1 + 1e-5)


@pytest.mark.parametrize("stages", [(), ((2.0, 0.5), (1.5, 0.5)), ((2.0, 0.5), (1.0, 0.4)), ((2.0, 0.0), (1.0, 1.0))])
def test_stages_that_are_none_are_refused(stages):
    with pytest.raises(ValueError, match="stages should be"):
        attacks.apgd(linear(torch.ones(1)), grey(), eps=EPS, steps=3, stages=stages)


def test_the_worst_case_by_error_is_another_than_by_loss():
    """Two attacks, one of which raises the loss more and the other the error; for each row of errors its own worst
    case; and the image itself, where no attack raises its error."""
    images = torch.full((2, 3, 4, 4), 0.5)
    brighter = lambda losses, images, **_: images + EPS  # noqa: E731
    darker = lambda losses, images, **_: images - EPS / 2  # noqa: E731
    losses = lambda points: points.mean(dim=(1, 2, 3))[None]  # noqa: E731

    def errors(points):
        light = points.mean(dim=(1, 2, 3)) - 0.5
        return torch.stack([-light, torch.stack([light[0], -light[1].abs()])])

    keywords = {"attacks": (brighter, darker), "eps": EPS, "steps": 1}
    torch.testing.assert_close(attacks.ensemble(losses, images, **keywords), images + EPS)
    first = attacks.ensemble(losses, images, errors=lambda points: errors(points)[:1], **keywords)
    torch.testing.assert_close(first, images - EPS / 2)
    each = attacks.ensemble(losses, images, errors=errors, each=True, **keywords)
    by_hand = torch.stack([images - EPS / 2, torch.stack([images[0] + EPS, images[1]])])
    torch.testing.assert_close(each, by_hand)
    with pytest.raises(ValueError, match="errors should be given"):
        attacks.ensemble(losses, images, each=True, **keywords)


@pytest.fixture(scope="module")
def two_tasks():
    """A network of s and n, its losses on three images, and the images."""
    model = models.build("resnet18_small", "sn", seed=0).eval()
    images = torch.rand(3, 3, 16, 16, generator=seeded())
    targets = {"s": torch.randint(0, 6, (3, 16, 16), generator=seeded(1))}
    targets["n"] = torch.rand(3, 3, 16, 16, generator=seeded(2))
    masks = {letter: torch.rand(3, 16, 16, generator=seeded(3)) > 0.2 for letter in "sn"}
    return model, targets, masks, images


KEYWORDS = {"eps": EPS, "step_size": EPS / 4, "steps": 5}


def test_sea_is_the_worst_of_its_runs_and_the_image_by_error(two_tasks):
    model, targets, masks, images = two_tasks
    losses = attacks.task_losses(model, targets, masks, "sn")
    errors = attacks.variant(losses, "error")
    clean = errors(images).detach()
    members = attacks.runs(losses, queries=15)
    points = [images] + [member(losses, images, generator=seeded(), **KEYWORDS) for member in members]
    reached = torch.stack([errors(each).detach() for each in points])
    assert len({tuple(each.flatten().tolist()) for each in points}) == len(points)
    worst = attacks.sea(losses, images, generator=seeded(), **KEYWORDS)
    torch.testing.assert_close((errors(worst) / clean).sum(dim=0), (reached / clean).sum(dim=1).amax(dim=0))
    each = attacks.sea(losses, images, generator=seeded(), each=True, **KEYWORDS)
    for row in range(2):
        torch.testing.assert_close(errors(each[row])[row], reached[:, row].amax(dim=0))
    assert ((each - images).abs() <= EPS * (1 + 1e-5)).all()


def test_the_runs_of_sea_give_the_point_of_the_highest_error_that_they_met(two_tasks):
    """Each is Auto-PGD in stages on its own variant, whichever it was given; the larger balls do not count."""
    model, targets, masks, images = two_tasks
    losses = attacks.task_losses(model, targets, masks, "s", dense="cospgd")
    error = attacks.variant(losses, "error")
    *climbing, queried = attacks.runs(losses, queries=15)
    for dense, member in zip(("saturating", "masked", "balanced", "cosine", "error"), climbing, strict=True):
        of_its_own, met = attacks.task_losses(model, targets, masks, "s", dense=dense), []

        def listening(points, of_its_own=of_its_own, met=met):
            met.append(points.detach().clone())
            return of_its_own(points)

        attacks.apgd(listening, images, stages=attacks.SHRINKING, generator=seeded(), **KEYWORDS)
        near = [(points - images).abs().amax(dim=(1, 2, 3)) <= EPS for points in met]
        assert not all(each.all() for each in near)
        worst = torch.stack([torch.where(n, error(p)[0], -1) for n, p in zip(near, met, strict=True)]).amax(dim=0)
        found = member(losses, images, generator=seeded(), **KEYWORDS)
        assert torch.equal(error(found)[0], worst)
        assert ((found - images).abs() <= EPS).all()
    by_hand = attacks.square(error, images, generator=seeded(), **KEYWORDS | {"steps": 15})
    torch.testing.assert_close(error(queried(losses, images, generator=seeded(), **KEYWORDS)), error(by_hand))


@pytest.mark.parametrize("norm", attacks.BALLS)
def test_what_a_ball_holds(norm):
    images = grey(1)
    inside = ball.around(images, 0.3, norm, steps=1)
    for scale, held in ((0.01, True), (0.99, True), (1.02, False), (3, False)):
        change = torch.ones_like(images)
        change = 0.3 * scale * change / change.flatten().norm(p={"linf": float("inf"), "l2": 2, "l1": 1}[norm])
        assert inside.holds(torch.cat([images + change])).tolist() == [held and bool((images + change).max() <= 1)]


def test_relative_errors_are_over_those_of_the_images_and_errors_where_these_are_none(two_tasks):
    model, targets, masks, images = two_tasks
    exact = {"s": targets["s"], "n": model(images)["n"].detach()}
    losses = attacks.task_losses(model, exact, masks, "sn")
    errors, moved = attacks.variant(losses, "error"), (images + EPS).clamp(0, 1)
    found, plain = attacks.relative_errors(losses, images)(moved), errors(moved)
    torch.testing.assert_close(found, torch.stack([plain[0] / errors(images)[0], plain[1]]))


def test_overlaps_add_up_to_the_error_of_an_image(two_tasks):
    model, targets, masks, images = two_tasks
    output = model(images)["s"]
    counts = attacks.overlaps(output, targets["s"], masks["s"])
    assert counts.shape == (3, 3, 18)
    for image in range(3):
        miou = oracles.miou_of(counts[None, :, image : image + 1].numpy(), [0])
        assert TASKS["s"].error(output, targets["s"], masks["s"])[image].item() == pytest.approx(1 - miou, abs=1e-5)
    assert counts[2].sum(dim=1).tolist() == masks["s"].flatten(1).sum(dim=1).tolist()


@pytest.mark.parametrize("seed", range(4))
def test_the_lowest_miou_of_a_set_is_one_that_no_change_of_an_image_lowers(seed):
    """Beside all choices of three runs for five images; class 3 has no label and counts nowhere."""
    label = torch.randint(1, 9, (5, 4), generator=seeded(seed)).expand(3, -1, -1).clone()
    label[..., 3] = 0
    shared = (label * torch.rand(3, 5, 4, generator=seeded(seed + 9))).long()
    either = label + torch.randint(0, 9, (3, 5, 4), generator=seeded(seed + 19))
    counts = torch.stack([shared, either, label], dim=1)
    chosen, miou = attacks.lowest_miou(counts, generator=seeded())
    chosen = chosen.tolist()
    assert miou == pytest.approx(oracles.miou_of(counts.numpy(), chosen))
    reached = {choice: oracles.miou_of(counts.numpy(), choice) for choice in itertools.product(range(3), repeat=5)}
    for image, run in itertools.product(range(5), range(3)):
        assert reached[(*chosen[:image], run, *chosen[image + 1 :])] >= miou - 1e-9
    assert miou <= min(reached[(run,) * 5] for run in range(3)) + 1e-9
    assert miou == pytest.approx(min(reached.values()), abs=0.02)


def test_the_worst_of_each_image_is_not_the_worst_of_the_set():
    """Image 0 has 100 pixels of class 0 and one of class 1, image 1 900 of class 1. Of image 0, run 0 misses the one
    pixel and run 1 forty of the others, which it takes for class 2, that nothing is labelled as."""
    label = torch.tensor([[100, 1, 0], [0, 900, 0]])
    missed = torch.tensor([[100, 0, 0], [0, 900, 0]]), torch.tensor([[101, 1, 0], [0, 900, 0]])
    taken = torch.tensor([[60, 1, 0], [0, 900, 0]]), torch.tensor([[100, 1, 40], [0, 900, 0]])
    counts = torch.stack([torch.stack([*of_run, label]) for of_run in (missed, taken)])
    alone = [oracles.miou_of(counts[run : run + 1, :, :1].numpy(), [0]) for run in range(2)]
    assert alone == pytest.approx([100 / 101 / 2, 0.8])
    chosen, miou = attacks.lowest_miou(counts)
    assert chosen[0] == 1
    assert miou == pytest.approx((60 / 100 + 1) / 2)


def pulled_apart(seed: int = 0):
    """Two linear losses on four images, and their weights (2, 192)."""
    weights = torch.randn(2, 3, 8, 8, generator=seeded(seed))
    weights[1] += 0.5 * weights[0]
    losses = lambda points: torch.stack([(points * w).mean(dim=(1, 2, 3)) + 1 for w in weights])  # noqa: E731
    return losses, weights.flatten(1), grey(4)


def test_min_max_reaches_the_best_lowest_rise_of_linear_losses():
    """Which by duality is the least eps ||w a + (1 - w) b||_1 over w, a and b relative to the losses of the image."""
    losses, weights, images = pulled_apart()
    clean = losses(images)
    keywords = {"eps": EPS, "step_size": EPS / 10, "steps": 60, "generator": seeded()}
    found = attacks.min_max(losses, images, **keywords)
    reached = ((losses(found) - clean) / clean).amin(dim=0)
    summed = ((losses(attacks.pgd(losses, images, **keywords)) - clean) / clean).amin(dim=0)
    for image in range(4):
        relative = weights / 192 / clean[:, image, None]
        best = min(EPS * (w * relative[0] + (1 - w) * relative[1]).abs().sum() for w in torch.linspace(0, 1, 201))
        assert 0.95 * best <= reached[image] <= best * 1.001
    assert (reached >= summed - 1e-6).all()


def test_min_max_helps_the_task_that_a_joint_attack_leaves():
    """One task with a hundred times the other's gradient, and against it."""
    weights = torch.randn(2, 3, 8, 8, generator=seeded())
    weights[1] = 0.01 * (weights[1] - weights[0])
    losses = lambda points: torch.stack([(points * w).mean(dim=(1, 2, 3)) + 1 for w in weights])  # noqa: E731
    images, keywords = grey(4), {"eps": EPS, "step_size": EPS / 10, "steps": 40, "random_start": False}
    clean = losses(images)
    assert (losses(attacks.pgd(losses, images, **keywords))[1] < clean[1]).all()
    assert (losses(attacks.min_max(losses, images, **keywords)) > clean).all()


def test_stealthy_raises_one_task_and_no_other():
    """Of linear losses the best is eps sign(a - gamma b) with the gamma at which b stays as it is."""
    losses, weights, images = pulled_apart()
    clean = losses(images)
    found = attacks.stealthy(losses, images, eps=EPS, step_size=EPS / 10, steps=40, generator=seeded())
    rises = (losses(found) - clean).detach()
    assert (rises[1] <= 0).all()
    signs = [(weights[0] - gamma * weights[1]).sign() for gamma in torch.linspace(0, 5, 500)]
    best = max(EPS * (sign * weights[0]).mean() for sign in signs if (sign * weights[1]).mean() <= 0)
    assert (rises[0] >= 0.9 * best).all()
    raised = attacks.pgd(losses, images, eps=EPS, step_size=EPS / 10, steps=40, generator=seeded())
    assert (losses(raised)[1] > clean[1]).all(), "a joint attack raises both"
    more = attacks.stealthy(losses, images, eps=EPS, step_size=EPS / 10, steps=40, slack=0.01, generator=seeded())
    assert (losses(more)[0] > losses(found)[0]).all()
    assert (losses(more)[1] <= clean[1] * 1.01 + 1e-6).all()


def test_stealthy_by_reported_errors_gives_a_matrix_of_attacked_and_kept(two_tasks):
    model, targets, masks, images = two_tasks
    for first, second in ("sn", "ns"):
        losses = attacks.variant(attacks.task_losses(model, targets, masks, first + second), "error")
        found = attacks.stealthy(losses, images, searches=3, generator=seeded(), **KEYWORDS)
        rise = (losses(found) - losses(images)).detach()
        assert (rise[0] >= 0).all()
        assert (rise[0] > 0).any()
        assert (rise[1] <= 1e-6).all()


def test_towards_brings_an_output_as_near_to_a_wanted_map_as_the_budget_allows(generator):
    images = grey(2)
    wanted = (images[:, :1] + torch.linspace(-0.1, 0.1, 64).view(1, 1, 8, 8)).clamp(0, 1)
    losses = attacks.task_losses(lambda points, tasks: {"d": points[:, :1]}, {"d": wanted}, None, "d")
    keywords = {"eps": EPS, "step_size": EPS / 64, "steps": 150, "generator": generator}
    found = attacks.pgd(attacks.towards(losses), images, **keywords)
    nearest = torch.minimum(torch.maximum(wanted, images[:, :1] - EPS), images[:, :1] + EPS)
    torch.testing.assert_close(found[:, :1], nearest, atol=EPS / 32, rtol=0)


@pytest.mark.parametrize("name", ["min_max", "stealthy"])
@pytest.mark.parametrize("norm", attacks.BALLS)
def test_attacks_that_choose_among_tasks_keep_budgets_and_images_apart(name, norm):
    def losses(points):
        return torch.stack([torch.sin(9 * points).mean(dim=(1, 2, 3)) + 1.1, (points**3).mean(dim=(1, 2, 3))])

    images = torch.rand(4, 3, 6, 6, generator=seeded()).round(decimals=1).double()
    eps = {"linf": EPS, "l2": 0.3, "l1": 2.0}[norm]
    keywords = {"eps": eps, "step_size": eps / 4, "steps": 5, "norm": norm}
    together = getattr(attacks, name)(losses, images, generator=seeded(), **keywords)
    alone = [getattr(attacks, name)(losses, image[None], generator=seeded(), **keywords) for image in images]
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-9, rtol=0)
    size = (together - images).flatten(1).norm(dim=1, p={"linf": float("inf"), "l2": 2, "l1": 1}[norm])
    assert (size <= eps).all()
    assert (size > 0.1 * eps).any()
    assert together.min() >= 0
    assert together.max() <= 1


def test_attacks_that_choose_among_tasks_say_how_far_they_are(two_tasks):
    """Losses that are scheduled are told so, also where they stand within another."""
    model, targets, masks, images = two_tasks
    losses = attacks.task_losses(model, targets, masks, "sn", dense="segpgd")
    given = []

    @wraps(losses)
    def listening(points, **keywords):
        given.append(keywords.get("progress"))
        return losses(points, **keywords)

    keywords = {"eps": EPS, "step_size": EPS / 4, "steps": 2}
    attacks.min_max(listening, images, **keywords)
    attacks.stealthy(listening, images, searches=1, **keywords)
    attacks.pgd(attacks.towards(listening), images, **keywords)
    assert [each for each in given if each is not None] == [0, 0.5] * 3


@pytest.mark.parametrize(
    ("name", "bad"),
    [("min_max", {"beta": 0}), ("stealthy", {"gamma": 0}), ("stealthy", {"searches": 0}), ("stealthy", {"slack": -1})],
)
def test_bad_parameters_are_named(name, bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        getattr(attacks, name)(pulled_apart()[0], grey(), eps=EPS, step_size=EPS, steps=1, **bad)


@pytest.mark.parametrize("name", ["pgd", "apgd", "square", "sea"])
def test_a_specification_may_ask_for_l1_and_the_budget_is_that_of_the_image(two_tasks, name):
    model, targets, masks, images = two_tasks
    spec = AttackSpec(name=name, tasks="s", norm="l1", eps_255=1000.0, step_size_255=200.0, steps=3)
    found = evaluation.attack_batch(model, (images, targets, masks), spec, "float32", seeded())
    size = (found - images).abs().flatten(1).sum(dim=1)
    assert ((size <= 1000 / 255 * (1 + 1e-5)) & (size > 1)).all()


@pytest.mark.parametrize(("norm", "dtype"), [("l2", torch.float16), ("l2", torch.float32), ("l1", torch.float32)])
def test_rounding_throws_away_no_point_that_a_run_of_sea_met(norm, dtype):
    """Rounded points lie a little outside of their ball: they are shrunk, and not left for the image itself."""
    images, eps = grey(4, 16).to(dtype), {"l2": 0.1, "l1": 1.0}[norm]
    model = lambda points, tasks: {"d": points[:, :1].float()}  # noqa: E731
    losses = attacks.task_losses(model, {"d": images[:, :1].float() - 0.5}, None, "d")
    for run in attacks.runs(losses, queries=1)[:-1]:
        found = run(losses, images, eps=eps, steps=10, norm=norm, generator=seeded())
        size = (found.double() - images.double()).flatten(1).norm(dim=1, p=2 if norm == "l2" else 1)
        assert ((size <= eps) & (size > 0.9 * eps)).all()
