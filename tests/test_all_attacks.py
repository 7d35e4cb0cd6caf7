"""What holds for every attack, and what the definition of each says."""

import math
from functools import partial, wraps

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from mtrlib import attacks, models
from mtrlib.tasks import TASKS

EPS = 8 / 255
ATTACKS = {
    "fgsm": attacks.fgsm,
    "bim": attacks.bim,
    "mim": attacks.mim,
    "pgd": attacks.pgd,
    "apgd": attacks.apgd,
    "apgd in stages": partial(attacks.apgd, stages=attacks.SHRINKING),
    "wgd": attacks.wgd,
    "wgd inverse": partial(attacks.wgd, rate="inverse"),
    "wgd on apgd": partial(attacks.apgd, weigh=attacks.task_attack_rates),
    "dgba": attacks.dgba,
    "square": attacks.square,
    "sea": partial(attacks.sea, queries=20),
    "ensemble": partial(attacks.ensemble, attacks=(attacks.mim, attacks.apgd)),
}
every = pytest.mark.parametrize("name", ATTACKS)
every_norm = pytest.mark.parametrize("norm", attacks.BALLS)
both_norms = pytest.mark.parametrize("norm", attacks.NORMS)


def curved(images: torch.Tensor) -> torch.Tensor:
    """Two tasks with losses above 0, smooth and not concave, different for each image by its own values only."""
    return torch.stack([torch.sin(9 * images).mean(dim=(1, 2, 3)) + 1.1, (images**3).flatten(1).mean(dim=1) + 0.01])


def linear(weights: torch.Tensor):
    return lambda images: (images * weights).mean(dim=(1, 2, 3))[None] + 5


def grey(batch: int = 3, size: int = 8, seed: int = 0) -> torch.Tensor:
    """Images whose ball lies inside [0, 1]."""
    return torch.rand(batch, 3, size, size, generator=torch.Generator().manual_seed(seed)) * 0.5 + 0.25


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def run(name, losses, images, *, eps=EPS, steps=8, norm="linf", seed=0, **more):
    keywords = {"eps": eps, "step_size": eps / 4, "steps": steps, "norm": norm, "generator": seeded(seed)}
    return ATTACKS[name](losses, images, **keywords, **more)


def lengths(change: torch.Tensor, norm: str = "l2") -> torch.Tensor:
    return change.double().flatten(1).norm(dim=1, p={"linf": math.inf, "l2": 2, "l1": 1}[norm])


@every
@settings(max_examples=25, deadline=None)
@given(
    norm=st.sampled_from(attacks.BALLS),
    eps=st.floats(1e-4, 2.0),
    relative_step=st.floats(0.01, 3.0),
    steps=st.integers(0, 4),
    random_start=st.booleans(),
    seed=st.integers(0, 99),
)
def test_budget_and_range_hold_exactly(name, norm, eps, relative_step, steps, random_start, seed):
    images = torch.rand(3, 3, 6, 6, generator=seeded(seed)).round(decimals=1)  # many values at 0 and 1
    keywords = {"eps": eps, "step_size": relative_step * eps, "steps": steps, "norm": norm}
    found = ATTACKS[name](curved, images, random_start=random_start, generator=seeded(seed), **keywords)
    assert found.dtype == images.dtype
    assert found.device == images.device
    assert found.shape == images.shape
    assert found.min() >= 0
    assert found.max() <= 1
    assert lengths(found.double() - images.double(), norm).max().item() <= eps


@every
@every_norm
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_no_budget_returns_the_images_and_dtypes_are_kept(name, norm, dtype):
    images = grey().to(dtype)
    assert torch.equal(run(name, curved, images, eps=0.0, norm=norm), images)
    assert run(name, curved, images, norm=norm).dtype == dtype


@every
@every_norm
def test_an_image_does_not_depend_on_its_batch(name, norm):
    images = grey(4)
    images[3] *= 0.1  # another scale of gradient than its neighbours
    together = run(name, curved, images, norm=norm)
    alone = torch.cat([run(name, curved, image[None], norm=norm) for image in images])
    torch.testing.assert_close(together, alone, atol=1e-6, rtol=0)
    torch.testing.assert_close(run(name, curved, images.flip(0), norm=norm).flip(0), together, atol=1e-6, rtol=0)


@every
@every_norm
def test_an_image_depends_on_nothing_in_its_batch_where_its_losses_do_not(name, norm):
    """Bit by bit, with losses that are computed for each image on its own."""

    def losses(points):
        return torch.cat([curved(point[None]) for point in points], dim=1)

    images = grey(5).double()
    together = run(name, losses, images, norm=norm)
    alone = torch.cat([run(name, losses, image[None], norm=norm) for image in images])
    assert torch.equal(together, alone)


@pytest.mark.parametrize("name", sorted(set(ATTACKS) - {"ensemble", "sea"}))
def test_through_convolutions_the_batch_changes_rounding_only(name):
    """Which can turn a sign: in float64 it turns none here, in float32 the losses reached agree within .2 %."""
    images = torch.rand(5, 3, 16, 16, generator=seeded())
    targets = {"s": torch.randint(0, 18, (5, 16, 16), generator=seeded()), "n": torch.rand(5, 3, 16, 16)}
    for dtype in (torch.float32, torch.float64):
        model = models.build("resnet18_tiny", "sn", seed=0).eval().to(dtype)

        def attacked(rows, model=model, dtype=dtype):
            losses = attacks.task_losses(model, {k: v[rows] for k, v in targets.items()}, None, "sn")
            found = run(name, losses, images[rows].to(dtype), steps=4)
            return found, losses(found).detach().sum(dim=0)

        together, loss = attacked(slice(None))
        alone, loss_alone = (
            torch.cat(parts) for parts in zip(*(attacked(slice(i, i + 1)) for i in range(5)), strict=True)
        )
        torch.testing.assert_close(loss, loss_alone, rtol=2e-3, atol=0)
        if dtype is torch.float64:
            torch.testing.assert_close(together, alone, atol=1e-9, rtol=0)


@every
@every_norm
def test_more_restarts_are_never_weaker(name, norm):
    """For no image: the first run is the same, however many follow it."""

    def wavy(points):
        return curved(points) + torch.sin(150 * points).mean(dim=(1, 2, 3))

    images, generators = grey(30).double(), [seeded() for _ in range(3)]  # rounding may cost a part of a budget in l1
    keywords = {"eps": EPS, "step_size": EPS / 4, "steps": 3, "norm": norm}
    found = [
        wavy(ATTACKS[name](wavy, images, restarts=restarts, generator=generator, **keywords)).sum(dim=0)
        for restarts, generator in zip((1, 2, 4), generators, strict=True)
    ]
    assert (found[1] >= found[0] - 1e-6).all()
    assert (found[2] >= found[1] - 1e-6).all()
    if norm == "linf":  # in a ball of l2 or l1 of this size no start is better than another by much
        assert (found[2] > found[0]).any()


def test_the_ensemble_is_never_weaker_than_its_attacks_from_the_same_generator_and_moves_it_on():
    losses = lambda points: torch.sin(150 * points).sum(dim=(1, 2, 3))[None]  # noqa: E731
    images, members, generator = grey(8), (attacks.pgd, attacks.apgd, attacks.wgd), seeded()
    keywords = {"eps": EPS, "step_size": EPS / 4, "steps": 3}
    first, second = (
        attacks.ensemble(losses, images, attacks=members, generator=generator, **keywords) for _ in range(2)
    )
    assert not torch.equal(first, second)
    for member in members:
        assert (losses(first) >= losses(member(losses, images, generator=seeded(), **keywords))).all()
    torch.manual_seed(0)
    assert not torch.equal(*(attacks.ensemble(losses, images, **keywords) for _ in range(2)))


@every
@every_norm
def test_a_larger_budget_is_never_weaker_on_a_concave_loss(name, norm):
    """-|x - 2|^2, with its top outside of all balls."""
    images = grey()

    def losses(points):
        return 9 - (points - 2).square().mean(dim=(1, 2, 3))[None]

    reached = [losses(run(name, losses, images, eps=eps, steps=20, norm=norm))[0] for eps in (EPS / 4, EPS, 4 * EPS)]
    assert (reached[0] > losses(images)[0]).all()
    assert (reached[1] > reached[0]).all()
    assert (reached[2] > reached[1]).all()


@pytest.mark.parametrize("name", ["bim", "mim", "pgd", "wgd", "wgd inverse", "dgba"])  # the others plan for all steps
@both_norms
def test_more_steps_are_never_weaker(name, norm):
    images = grey(8)
    kept = [curved(run(name, curved, images, steps=steps, norm=norm)).sum(dim=0) for steps in (1, 4, 5, 16)]
    for fewer, more in zip(kept, kept[1:], strict=False):
        assert (more >= fewer - 1e-5).all()


@pytest.mark.parametrize("name", ["apgd", "apgd in stages", "wgd on apgd", "square"])
@both_norms
def test_attacks_that_plan_for_all_steps_gain_from_many_more(name, norm):
    images = grey(8)

    def wavy(points):
        return curved(points) + torch.sin(150 * points).mean(dim=(1, 2, 3))

    few, many = (wavy(run(name, wavy, images, steps=steps, norm=norm)).sum(dim=0) for steps in (3, 100))
    assert (many > few).all()


@every
def test_models_are_left_as_they_are(name):
    model = models.build("resnet18_tiny", "sd", seed=0)
    model.encoder.train()
    model.decoders.eval()
    model.encoder.conv1.weight.requires_grad_(False)
    before = [(p.requires_grad, p.grad) for p in model.parameters()]
    state = {key: value.clone() for key, value in model.state_dict().items()}  # the statistics of batch norm among it
    modes = [module.training for module in model.modules()]
    images = grey(2, 16)
    targets = {"s": torch.zeros(2, 16, 16, dtype=torch.long), "d": torch.rand(2, 1, 16, 16)}
    run(name, attacks.task_losses(model, targets, None, "sd"), images, steps=2)
    assert [(p.requires_grad, p.grad) for p in model.parameters()] == before
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert not images.requires_grad


def test_a_model_in_training_mode_is_attacked_as_in_evaluation_mode():
    images, targets = grey(2, 16), {"d": torch.rand(2, 1, 16, 16, generator=seeded())}
    found = []
    for mode in (True, False):
        model = models.build("resnet18_tiny", "d", seed=0).train(mode)
        found.append(run("pgd", attacks.task_losses(model, targets, None, "d"), images, steps=2))
    assert torch.equal(*found)


@every
def test_inference_mode_is_refused_in_one_line(name):
    model = models.build("resnet18_tiny", "d", seed=0).eval()
    targets = {"d": torch.rand(2, 1, 16, 16)}
    losses = attacks.task_losses(model, targets, None, "d")
    with torch.no_grad():
        assert run(name, losses, grey(2, 16), steps=1).shape == (2, 3, 16, 16)
    with torch.inference_mode():
        images, labels = grey(2, 16), {"d": targets["d"].clone()}
        with pytest.raises(ValueError, match=r"outside torch\.inference_mode"):
            run(name, losses, grey(2, 16), steps=1)
    with pytest.raises(ValueError, match=r"outside torch\.inference_mode"):
        run(name, losses, images, steps=1)
    with pytest.raises(ValueError, match=r"outside torch\.inference_mode"):
        attacks.task_losses(model, labels, None, "d")


@every
@pytest.mark.parametrize("eps", [1 / 255, 0.1])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@both_norms
def test_small_budgets_in_every_dtype_are_used_and_kept(name, norm, dtype, eps):
    """In l2 rounding takes points out of the ball: they are shrunk, and never thrown away for the clean image."""
    images = torch.randint(0, 256, (6, 3, 64, 64), generator=seeded()).div(255).to(dtype)
    weights = torch.randn(1, 3, 64, 64, generator=seeded(3), dtype=torch.float64)
    losses = lambda points: (points.double() * weights).sum(dim=(1, 2, 3))[None] + 1e3  # noqa: E731
    found = run(name, losses, images, eps=eps, steps=10, norm=norm)
    assert found.dtype == dtype
    assert found.min() >= 0
    assert found.max() <= 1
    change = found.double() - images.double()
    size = change.flatten(1).abs().amax(dim=1) if norm == "linf" else lengths(change)
    assert size.max() <= eps
    assert size.min() > (0.5 * eps if dtype in (torch.float32, torch.float64) else 0)
    if name != "square":
        assert (losses(found) > losses(images)).all()


@pytest.mark.parametrize("name", ["bim", "mim", "apgd", "wgd on apgd"])
def test_rounding_costs_little_of_a_small_l2_budget(name):
    images = torch.rand(6, 3, 128, 128, generator=seeded())
    found = run(name, curved, images, eps=1 / 255, steps=10, norm="l2")
    size = lengths(found.double() - images.double())
    assert size.max() <= 1 / 255
    assert size.min() > 0.95 / 255


@every
@pytest.mark.parametrize("odd", [math.nan, -math.inf])
@pytest.mark.parametrize("of", [1, 2])
def test_a_point_whose_loss_is_no_number_costs_nothing_else(name, odd, of):
    """The first call of one run is spoiled, in one task or both, for the first of three images."""
    images, calls = grey(3), 0

    def spoiled(points):
        nonlocal calls
        calls += 1
        rows = curved(points)
        there = torch.zeros_like(rows)
        there[:of, 0] = odd if calls == 1 else 0.0
        return rows + there

    found, plain = run(name, spoiled, images), run(name, curved, images)
    gain, expected = ((curved(x) - curved(images)).sum(dim=0) for x in (found, plain))
    assert torch.equal(found[1:], plain[1:])
    assert gain[0] > 0.3 * expected[0]


@every
def test_an_image_that_never_has_a_loss_comes_back_and_costs_no_other(name):
    def spoiled(points):
        return torch.where(torch.tensor([True, False, False]), math.nan, curved(points))

    images = grey(3)
    found = run(name, spoiled, images)
    assert torch.equal(found[0], images[0])
    assert torch.equal(found[1:], run(name, curved, images)[1:])


@every
@both_norms
@pytest.mark.parametrize("odd", [math.nan, math.inf, -math.inf])
def test_values_of_a_gradient_that_are_no_numbers_cost_no_others(name, odd, norm):
    """The gradient of a quarter of one image's values is spoiled at every point."""

    class Spoil(torch.autograd.Function):
        @staticmethod
        def forward(ctx, points):
            return points.clone()

        @staticmethod
        def backward(ctx, gradient):
            gradient = gradient.clone()
            gradient[0, :, :4, :4] = odd
            return gradient

    images, losses = grey(3), lambda points: curved(Spoil.apply(points))
    found, plain = run(name, losses, images, norm=norm), run(name, curved, images, norm=norm)
    assert found.isfinite().all()
    assert torch.equal(found[1:], plain[1:])
    if norm == "linf":
        assert (curved(found) - curved(images))[:, 0].sum() > 0.3 * (curved(plain) - curved(images))[:, 0].sum()


def test_the_weights_of_the_tasks_are_numbers_whatever_the_losses():
    odd = [0.0, 1e-30, 1.0, 1e30, math.inf, math.nan]
    losses, first = (grid.flatten() for grid in torch.meshgrid(torch.tensor(odd), torch.tensor(odd), indexing="ij"))
    losses, first = (torch.stack([values, torch.full_like(values, 2.0)]) for values in (losses, first))
    for rate in ("definition", "inverse"):
        rates = attacks.task_attack_rates(losses, first, rate)
        torch.testing.assert_close(rates.mean(dim=0), torch.ones(36))


@pytest.mark.parametrize("name", sorted(set(ATTACKS) - {"square"}))
def test_l2_reaches_the_optimum_of_a_linear_loss(name):
    images, weights = grey(), torch.randn(1, 3, 8, 8, generator=seeded(3))
    found = run(name, linear(weights), images, eps=0.2, steps=40, norm="l2")
    assert ((found - images) * weights).sum(dim=(1, 2, 3)) / weights.norm() == pytest.approx([0.2] * 3, rel=1e-3)


def test_square_finds_the_optimum_of_a_linear_loss():
    images, weights = grey(2), torch.randn(1, 3, 1, 1, generator=seeded(3)).expand(1, 3, 8, 8)
    found = run("square", linear(weights), images, steps=2000)
    assert ((found - images) * weights.sign()).mean().item() == pytest.approx(EPS, rel=0.02)


@every
@pytest.mark.parametrize(
    ("keyword", "value"), [("eps", -0.1), ("norm", "l0"), ("restarts", 0), ("eps", math.inf), ("eps", math.nan)]
)
def test_bad_parameters_are_refused(name, keyword, value):
    keywords = {"eps": EPS, "step_size": EPS, "steps": 2, keyword: value}
    with pytest.raises(ValueError, match=keyword):
        ATTACKS[name](curved, grey(), **keywords)


def test_fgsm_is_one_step_of_length_eps_where_that_raises_the_loss():
    images = grey(2)
    weights = torch.randn(1, 3, 8, 8, generator=seeded(1))
    torch.testing.assert_close(run("fgsm", linear(weights), images), images + EPS * weights.sign(), atol=1e-7, rtol=0)

    def narrow(points):  # the step jumps over the top: the image itself is the better point
        return -(points - images - EPS / 8).square().sum(dim=(1, 2, 3))[None]

    assert torch.equal(run("fgsm", narrow, images), images)


def test_mim_adds_gradients_scaled_to_unit_sum():
    """Two steps by hand: g1 = a / |a|_1, g2 = g1 + b / |b|_1, a and b being the gradients at the two points."""
    images = grey(1)
    step = EPS / 4

    def losses(points):
        return (torch.sin(40 * points) + points).sum(dim=(1, 2, 3))[None]

    def gradient(points):
        return 40 * torch.cos(40 * points) + 1

    first = gradient(images)
    middle = images + step * first.sign()
    second = gradient(middle)
    by_hand = middle + step * (first / first.abs().sum() + second / second.abs().sum()).sign()
    seen, points = attacks.recorded(losses)
    attacks.mim(seen, images, eps=EPS, step_size=step, steps=2)
    torch.testing.assert_close(points[2], losses(by_hand), rtol=1e-5, atol=0)


@pytest.mark.parametrize("rate", ["definition", "inverse"])
@both_norms
def test_wgd_with_one_task_is_pgd(rate, norm):
    """The published tables differ there, although the attacks are the same."""
    images, losses = grey(4), lambda points: curved(points)[:1]
    same = {"eps": EPS, "step_size": EPS / 4, "steps": 7, "norm": norm, "restarts": 2}
    one = attacks.wgd(losses, images, rate=rate, generator=seeded(), **same)
    assert torch.equal(one, attacks.pgd(losses, images, generator=seeded(), **same))


def test_task_attack_rates_by_hand():
    """L~ = 2 and 0.5 for the first image, 1 and 4 for the second; a task without loss counts as unchanged."""
    losses, first = torch.tensor([[4.0, 3.0], [1.0, 8.0]]), torch.tensor([[2.0, 3.0], [2.0, 2.0]])
    rates = attacks.task_attack_rates(losses, first)
    torch.testing.assert_close(rates, torch.tensor([[1.6, 0.4], [0.4, 1.6]]))
    inverse = attacks.task_attack_rates(losses, first, rate="inverse")
    torch.testing.assert_close(inverse, torch.tensor([[0.4, 1.6], [1.6, 0.4]]))
    no_loss = attacks.task_attack_rates(torch.tensor([[3.0], [0.0]]), torch.tensor([[1.0], [0.0]]))
    torch.testing.assert_close(no_loss, torch.tensor([[1.5], [0.5]]))
    with pytest.raises(ValueError, match="definition, inverse"):
        attacks.wgd(curved, grey(), eps=EPS, step_size=EPS, steps=1, rate="fast")


def test_the_weights_of_wgd_are_of_the_current_step_and_not_differentiated():
    """The second step in l2 goes along sum_i r_i grad L_i with r from the losses after the first."""
    images, step = torch.full((1, 3, 4, 4), 0.5), 0.05
    top = torch.arange(48.0).view(1, 3, 4, 4) < 24
    coefficients = torch.where(top, 1.0, 0.0), torch.where(top, 0.0, 3.0)

    def losses(points):
        return torch.stack([(points * c).square().sum(dim=(1, 2, 3)) for c in coefficients])

    def gradient(points, weights):
        return sum(w * 2 * points * c.square() for w, c in zip(weights, coefficients, strict=True))

    first = losses(images)
    middle = images + step * torch.nn.functional.normalize(gradient(images, [1, 1]).flatten(), dim=0).view_as(images)
    grown = (losses(middle) / first)[:, 0]
    direction = gradient(middle, (grown / grown.mean()).tolist())
    by_hand = middle + step * direction / direction.norm()
    found = attacks.wgd(losses, images, eps=1, step_size=step, steps=2, norm="l2", random_start=False)
    torch.testing.assert_close(found, by_hand, atol=1e-6, rtol=0)


def test_dgba_climbs_the_sum_of_logarithms():
    """To first order the mean relative change of the losses is the change of the sum of their logarithms."""
    images, step = grey(2), 0.05
    points = images.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(curved(points).log().sum(), points)
    by_hand = images + step * gradient / lengths(gradient).float().view(-1, 1, 1, 1)
    seen, rows = attacks.recorded(curved)
    attacks.dgba(seen, images, eps=1, step_size=step, steps=1, norm="l2", random_start=False)
    torch.testing.assert_close(rows[1], curved(by_hand), rtol=1e-5, atol=0)


# Joint losses that each attack reached on `curved`, summed over three images, before attacks were given l1, stages and
# errors to choose by: with default arguments they stay what they are. eps 8/255 (linf) and .5 (l2), 12 steps.
BEFORE = {
    "fgsm": (3.507468, 3.638577),
    "bim": (3.507468, 3.650744),
    "mim": (3.507468, 3.649089),
    "pgd": (3.506509, 3.637924),
    "apgd": (3.506509, 3.650938),
    "wgd": (3.506509, 3.637845),
    "wgd_inverse": (3.506509, 3.637757),
    "wgd_apgd": (3.506509, 3.650780),
    "dgba": (3.495328, 3.587561),
    "square": (2.957302, 2.945980),
    "ensemble": (3.506509, 3.650938),
}


@pytest.mark.parametrize("name", BEFORE)
def test_attacks_that_were_there_give_what_they_gave(name):
    for norm, eps, reached in zip(("linf", "l2"), (EPS, 0.5), BEFORE[name], strict=True):
        keywords = {"eps": eps, "step_size": eps / 4, "steps": 12, "norm": norm, "restarts": 2}
        found = attacks.NAMED[name](curved, grey(), generator=seeded(), **keywords)
        assert curved(found).sum().item() == pytest.approx(reached, abs=2e-6)


def classifier(images: torch.Tensor) -> torch.Tensor:
    """(B, 3, 16, 16) -> (B, 10): a network with fixed random weights."""
    g = seeded()
    first = torch.randn(16, 3, 3, 3, generator=g) * (2 / 27) ** 0.5
    second = torch.randn(32, 16, 3, 3, generator=g) * (2 / 144) ** 0.5
    head = torch.randn(10, 512, generator=g) * (2 / 512) ** 0.5
    hidden = F.relu(F.conv2d(2 * images - 1, first, padding=1))
    hidden = F.avg_pool2d(F.relu(F.conv2d(hidden, second, padding=1)), 4)
    return 4 * hidden.flatten(1) @ head.T


# Mean cross-entropy that the reference implementation of AutoAttack (fra31/auto-attack, commit a392200, APGDAttack with
# loss "ce", one run, mean over seeds 0 to 4) reached on this classifier, by norm, eps and iterations.
REFERENCE = {
    ("linf", 4 / 255, 10): 1.68994,
    ("linf", 4 / 255, 25): 1.69237,
    ("linf", 8 / 255, 10): 2.49532,
    ("linf", 8 / 255, 25): 2.51048,
    ("linf", 8 / 255, 100): 2.51464,
    ("l2", 0.5, 10): 2.07089,
    ("l2", 1.0, 10): 3.36375,
    ("l2", 1.0, 25): 3.39031,
    ("l2", 1.0, 100): 3.39888,
    ("l1", 2.0, 25): 1.43990,  # in l1 mean over seeds 0 to 2
    ("l1", 5.0, 25): 2.07349,
    ("l1", 5.0, 100): 2.08741,
}


@pytest.mark.parametrize(("norm", "eps", "steps"), REFERENCE)
def test_apgd_is_as_strong_as_the_reference_implementation(norm, eps, steps):
    images = torch.rand(64, 3, 16, 16, generator=seeded(1))
    labels = classifier(images).argmax(dim=1)

    def losses(points):
        return F.cross_entropy(classifier(points), labels, reduction="none")[None]

    assert losses(images).mean().item() == pytest.approx(1.00523, abs=1e-4)  # the same network and images
    found = attacks.apgd(losses, images, eps=eps, steps=steps, norm=norm, generator=seeded())
    assert losses(found).mean().item() >= 0.998 * REFERENCE[norm, eps, steps]


@pytest.mark.parametrize(("norm", "eps", "reached"), [("linf", 8 / 255, 1.97940), ("l2", 1.0, 1.84464)])
def test_square_is_as_strong_as_the_reference_implementation(norm, eps, reached):
    """As above: SquareAttack of the same commit with loss "ce", which stops no image early, 1,000 queries, seed 0."""
    images = torch.rand(64, 3, 16, 16, generator=seeded(1))
    labels = classifier(images).argmax(dim=1)

    def losses(points):
        return F.cross_entropy(classifier(points), labels, reduction="none")[None]

    found = attacks.square(losses, images, eps=eps, steps=1000, norm=norm, generator=seeded())
    assert losses(found).mean().item() >= 0.97 * reached


def test_apgd_halves_its_step_image_by_image():
    """On a peak inside the ball fixed steps of 2 eps jump to and fro; APGD closes in on it."""
    images = grey(2)
    top = images + torch.tensor([0.2, 0.9]).view(2, 1, 1, 1) * EPS

    def losses(points):
        return 1 - (points - top).abs().mean(dim=(1, 2, 3))[None]

    found = attacks.apgd(losses, images, eps=EPS, steps=60, random_start=False)
    assert ((found - top).abs().flatten(1).mean(dim=1) < 0.05 * EPS).all()


def test_the_ensemble_is_the_worst_case_of_its_attacks_image_by_image():
    images = grey(6)
    losses = lambda points: torch.sin(60 * points).sum(dim=(1, 2, 3))[None]  # noqa: E731
    members = (attacks.fgsm, attacks.mim, attacks.apgd)
    keywords = {"eps": EPS, "step_size": EPS / 4, "steps": 6, "random_start": False}
    singly = torch.stack([losses(member(losses, images, **keywords))[0] for member in members])
    together = losses(attacks.ensemble(losses, images, attacks=members, **keywords))[0]
    torch.testing.assert_close(together, singly.amax(dim=0))
    with pytest.raises(ValueError, match="at least one attack"):
        attacks.ensemble(losses, images, attacks=(), **keywords)


@pytest.fixture
def dense():
    """Logits of 3 classes on 1 x 4 pixels: pixel 0 and 1 right, 2 and 3 wrong; pixel 3 has no label."""
    logits = torch.tensor([[2.0, 0, 0], [3, 1, 0], [0, 1, 0], [0, 5, 0]]).T.view(1, 3, 1, 4)
    target, mask = torch.tensor([[[0, 0, 0, 0]]]), torch.tensor([[[True, True, True, False]]])
    shift = torch.tensor([1.0, 2.0, 3.0]).view(1, 3, 1, 1)

    def model(images, tasks):
        return {"s": logits + shift * images}

    return model, {"s": target}, {"s": mask}


def test_segpgd_weighs_wrong_pixels_more_from_step_to_step(dense):
    """lambda = (t - 1) / (2 T): 0, 1/8, 2/8, 3/8 in a run of T = 4 gradients."""
    model, targets, masks = dense
    losses = attacks.task_losses(model, targets, masks, "s", dense="segpgd")
    plain = attacks.task_losses(model, targets, masks, "s")
    images = torch.zeros(1, 3, 1, 4)
    for t in range(4):
        points = images.clone().requires_grad_()
        rows = losses(points, progress=t / 4)
        torch.testing.assert_close(rows, plain(images))  # the value stays the loss that is measured
        (found,) = torch.autograd.grad(rows.sum(), points)
        points = images.clone().requires_grad_()
        pixels = F.cross_entropy(model(points, "s")["s"], targets["s"], reduction="none")[0, 0]
        share = t / 8
        (by_hand,) = torch.autograd.grad(((1 - share) * (pixels[0] + pixels[1]) + share * pixels[2]) / 3, points)
        torch.testing.assert_close(found, by_hand)


@pytest.mark.parametrize("attack", [attacks.pgd, attacks.mim, attacks.apgd])
def test_an_attack_says_how_far_it_is_with_every_gradient_and_only_there(dense, attack):
    """Whether the images want a gradient says nothing: the score of a point is no step."""
    model, targets, masks = dense
    losses = attacks.task_losses(model, targets, masks, "s", dense="segpgd")
    given = []

    @wraps(losses)
    def listening(images, **progress):
        given.append(progress.get("progress"))
        return losses(images, **progress)

    seen, points = attacks.recorded(listening)
    attack(seen, torch.full((1, 3, 1, 4), 0.5), eps=0.1, step_size=0.03, steps=4, restarts=2, generator=seeded())
    assert given == [0, 0.25, 0.5, 0.75, None] * 2
    assert len(points) == len(given)
    attacks.pgd(curved, grey(), eps=EPS, step_size=EPS, steps=2)  # other losses are asked with the images alone


def test_cospgd_weighs_pixels_by_the_cosine_with_their_label(dense):
    model, targets, masks = dense
    losses = attacks.task_losses(model, targets, masks, "s", dense="cospgd")
    points = torch.zeros(1, 3, 1, 4, requires_grad=True)
    (found,) = torch.autograd.grad(losses(points).sum(), points)
    points = torch.zeros(1, 3, 1, 4, requires_grad=True)
    output = model(points, "s")["s"]
    one_hot = F.one_hot(targets["s"], 3).movedim(-1, 1).float()
    cosine = F.cosine_similarity(output.softmax(dim=1), one_hot, dim=1).detach()
    pixels = cosine * F.cross_entropy(output, targets["s"], reduction="none")
    (by_hand,) = torch.autograd.grad((pixels[0, 0, :3].sum() / 3), points)
    torch.testing.assert_close(found, by_hand)


@pytest.mark.parametrize("kind", attacks.DENSE)
def test_what_lies_under_a_mask_changes_no_loss_and_no_gradient(kind):
    model = models.build("resnet18_tiny", "sd", seed=0).eval()
    images = grey(2, 16)
    targets = {"s": torch.randint(0, 18, (2, 16, 16)), "d": torch.rand(2, 1, 16, 16)}
    mask = torch.rand(2, 16, 16, generator=seeded()) > 0.3
    found = []
    for label, value in ((None, None), (255, math.nan), (-1, math.inf), (18, 1e38)):
        t = {k: v.clone() for k, v in targets.items()}
        if label is not None:
            t["s"][~mask], t["d"][~mask[:, None]] = label, value
        losses = attacks.task_losses(model, t, {"s": mask, "d": mask}, "sd", dense=kind)
        points = images.clone().requires_grad_()
        rows = losses(points)
        found.append(torch.cat([rows.flatten(), torch.autograd.grad(rows.sum(), points)[0].flatten()]))
    assert found[0].isfinite().all()
    assert all(torch.equal(found[0], other) for other in found[1:])


@pytest.mark.parametrize("kind", ["segpgd", "cospgd"])
def test_an_infinite_loss_stays_infinite(kind):
    model = lambda images, tasks: {"s": torch.cat([images[:, :1], images[:, :1] * math.inf], dim=1)}  # noqa: E731
    images, targets = torch.ones(1, 3, 2, 2), {"s": torch.zeros(1, 2, 2, dtype=torch.long)}
    plain, dense = (attacks.task_losses(model, targets, None, "s", dense=d) for d in ("cross_entropy", kind))
    points = images.requires_grad_()
    assert torch.equal(dense(points).isfinite(), plain(points).isfinite())
    torch.testing.assert_close(dense(points), plain(points), equal_nan=True)


@pytest.mark.parametrize("kind", ["segpgd", "cospgd"])
def test_any_attack_takes_the_losses_of_dense_classes_and_other_tasks_keep_theirs(kind):
    model = models.build("resnet18_tiny", "sd", seed=0).eval()
    images = grey(2, 16)
    targets = {"s": torch.randint(0, 18, (2, 16, 16)), "d": torch.rand(2, 1, 16, 16)}
    losses = attacks.task_losses(model, targets, None, "sd", dense=kind)
    for attack in (attacks.pgd, attacks.apgd, attacks.mim):
        found = attack(losses, images, eps=EPS, step_size=EPS / 2, steps=3, generator=seeded())
        assert (losses(found).sum(dim=0) > losses(images).sum(dim=0)).all()
    points = images.clone().requires_grad_()
    (of_depth,) = torch.autograd.grad(losses(points)[1].sum(), points)
    loss = TASKS["d"].loss(model(points)["d"], targets["d"]).sum()
    torch.testing.assert_close(of_depth, torch.autograd.grad(loss, points)[0])
    with pytest.raises(ValueError, match="segpgd"):
        attacks.task_losses(model, targets, None, "sd", dense="focal")
