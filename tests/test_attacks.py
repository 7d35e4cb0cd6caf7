import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mtrlib import attacks, models

EPS = 8 / 255


def linear(weights: torch.Tensor):
    """One task whose loss is <weights, image>: the best perturbation is known in closed form."""
    return lambda images: (images * weights).sum(dim=(1, 2, 3))[None]


def curved(images: torch.Tensor) -> torch.Tensor:
    """Two tasks, smooth and not concave, different for each image by its own values only."""
    return torch.stack([torch.sin(9 * images).sum(dim=(1, 2, 3)), (images**3 - images).flatten(1).sum(dim=1)])


def grey(batch: int = 3, size: int = 8, seed: int = 0) -> torch.Tensor:
    """Images whose ball lies inside [0, 1]."""
    return torch.rand(batch, 3, size, size, generator=torch.Generator().manual_seed(seed)) * 0.5 + 0.25


def lengths(change: torch.Tensor) -> torch.Tensor:
    return change.double().flatten(1).norm(dim=1)


@pytest.mark.parametrize("random_start", [True, False])
def test_linf_reaches_the_optimum_of_a_linear_loss(random_start, generator):
    images, weights = grey(), torch.randn(1, 3, 8, 8)
    found = attacks.pgd(
        linear(weights), images, eps=EPS, step_size=EPS / 4, steps=10, random_start=random_start, generator=generator
    )
    torch.testing.assert_close(found, images + EPS * weights.sign(), atol=1e-7, rtol=0)


@pytest.mark.parametrize("eps", [EPS, 1.0])
def test_l2_reaches_the_optimum_of_a_linear_loss(eps, generator):
    images, weights = grey(), torch.randn(1, 3, 8, 8)
    arguments = {"eps": eps, "step_size": eps / 4, "steps": 40, "norm": "l2", "generator": generator}
    found = attacks.pgd(linear(weights), images, **arguments)
    best = images + eps * weights / weights.norm()
    assert best.min() >= 0
    assert best.max() <= 1
    torch.testing.assert_close(found, best, atol=1e-3 * eps, rtol=0)


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(["linf", "l2"]),
    st.floats(1e-4, 2.0),
    st.floats(0.01, 3.0),
    st.integers(0, 4),
    st.booleans(),
    st.integers(0, 99),
)
def test_budget_and_range_hold_exactly(norm, eps, relative_step, steps, random_start, seed):
    g = torch.Generator().manual_seed(seed)
    images = torch.rand(3, 3, 6, 6, generator=g).round(decimals=1)  # many values at 0 and 1
    arguments = {"eps": eps, "step_size": relative_step * eps, "steps": steps, "norm": norm, "generator": g}
    found = attacks.pgd(curved, images, random_start=random_start, **arguments)
    assert found.dtype == images.dtype
    assert found.min() >= 0
    assert found.max() <= 1
    if norm == "linf":
        assert (found - images).abs().max().item() <= eps
        assert (found.double() - images.double()).abs().max().item() <= eps
    else:
        assert lengths(found.double() - images.double()).max().item() <= eps


@pytest.mark.parametrize("norm", attacks.NORMS)
def test_no_budget_returns_the_images(norm):
    images = grey()
    found = attacks.pgd(curved, images, eps=0, step_size=0.1, steps=3, norm=norm)
    assert torch.equal(found, images)
    assert found.data_ptr() != images.data_ptr()


@pytest.mark.parametrize("norm", attacks.NORMS)
def test_an_image_does_not_depend_on_its_batch(norm):
    """Catches a norm taken over the batch, and a start drawn for the whole of it."""
    images = grey(4)
    images[3] *= 0.1  # another scale of gradient than its neighbours
    arguments = {"eps": EPS, "step_size": EPS / 4, "steps": 5, "norm": norm}

    def attack(batch):
        return attacks.pgd(curved, batch, generator=torch.Generator().manual_seed(5), **arguments)

    together = attack(images)
    alone = torch.cat([attack(image[None]) for image in images])
    torch.testing.assert_close(together, alone, atol=1e-7, rtol=0)
    torch.testing.assert_close(attack(images.flip(0)).flip(0), together, atol=1e-7, rtol=0)


def test_an_image_does_not_depend_on_its_batch_through_a_model_with_masks():
    model = models.build("resnet18_small", "sd", seed=0).eval()
    images, g = grey(4, 16), torch.Generator().manual_seed(0)
    targets = {"s": torch.randint(0, 18, (4, 16, 16)), "d": torch.rand(4, 1, 16, 16)}
    masks = {"s": torch.rand(4, 16, 16, generator=g) > 0.5, "d": None}
    masks["s"][2] = False  # an image without a label of s

    def attack(rows):
        t, m = {k: v[rows] for k, v in targets.items()}, {"s": masks["s"][rows], "d": None}
        losses = attacks.task_losses(model, t, m, "sd")
        return attacks.pgd(losses, images[rows], eps=EPS, step_size=EPS / 4, steps=2, random_start=False)

    together = attack(slice(None))
    for i in range(4):
        alone = attack(slice(i, i + 1))
        # Convolutions round differently in another batch: a sign may flip where a gradient is nearly zero.
        assert ((together[i] - alone[0]).abs() > EPS / 100).float().mean() < 0.01


@pytest.mark.parametrize("norm", attacks.NORMS)
def test_the_budget_is_used_by_each_image(norm):
    """Catches a budget shared by the batch: each image alone reaches the edge of its ball."""
    images = grey(8)
    arguments = {"eps": EPS, "step_size": EPS / 4, "steps": 12, "norm": norm}
    change = attacks.pgd(linear(torch.randn(1, 3, 8, 8)), images, **arguments) - images
    reached = change.flatten(1).abs().amax(dim=1) if norm == "linf" else lengths(change)
    torch.testing.assert_close(reached.float(), torch.full((8,), EPS), rtol=1e-3, atol=0)


@pytest.mark.parametrize("norm", attacks.NORMS)
def test_more_steps_and_restarts_are_never_weaker(norm):
    images, arguments = grey(6), {"eps": 0.3, "step_size": 0.2, "norm": norm}

    def kept(steps, restarts=1):
        g = torch.Generator().manual_seed(1)
        return curved(attacks.pgd(curved, images, steps=steps, restarts=restarts, generator=g, **arguments)).sum(dim=0)

    losses = [kept(steps) for steps in (1, 5, 25)]
    assert (losses[1] >= losses[0] - 1e-5).all()
    assert (losses[2] >= losses[1] - 1e-5).all()
    assert (losses[2] > losses[0]).any()
    assert (kept(5, restarts=3) >= kept(5) - 1e-5).all()
    assert (kept(5, restarts=3) > kept(5)).any()


def test_the_best_point_is_kept_not_the_last():
    """A loss with one narrow peak that steps of this size jump over and never find again."""
    peak = lambda images: -(images - 0.5).abs().amax(dim=(1, 2, 3))[None]  # noqa: E731
    images = torch.full((2, 3, 4, 4), 0.5)
    found = attacks.pgd(peak, images, eps=0.2, step_size=0.15, steps=7, random_start=False)
    assert torch.equal(found, images)


def test_the_last_iterate_is_scored():
    """Catches a metric read before the update: one step must count."""
    images = grey()
    found = attacks.pgd(linear(torch.ones(1, 3, 8, 8)), images, eps=EPS, step_size=EPS, steps=1, random_start=False)
    torch.testing.assert_close(found, images + EPS)


def test_starts_fill_the_ball():
    """Catches swapped bounds, which put every start at the same edge."""
    flat = lambda images: (images * 0).sum(dim=(1, 2, 3))[None]  # noqa: E731
    images = torch.full((1, 3, 32, 32), 0.5)
    start = attacks.pgd(flat, images, eps=EPS, step_size=EPS, steps=0, generator=torch.Generator().manual_seed(0))
    change = (start - images) / EPS
    assert abs(change.mean().item()) < 0.05
    assert change.std().item() == pytest.approx(1 / math.sqrt(3), abs=0.03)
    assert not torch.equal(
        start, attacks.pgd(flat, images, eps=EPS, step_size=EPS, steps=0, generator=torch.Generator().manual_seed(1))
    )


@pytest.mark.parametrize("norm", attacks.NORMS)
def test_images_without_gradient_stay_numbers(norm):
    flat = lambda images: (images * 0).sum(dim=(1, 2, 3))[None]  # noqa: E731
    tiny = lambda images: (images * 1e-30).sum(dim=(1, 2, 3))[None]  # noqa: E731
    arguments = {"eps": EPS, "step_size": EPS / 2, "steps": 3, "norm": norm, "random_start": False}
    assert torch.equal(attacks.pgd(flat, grey(), **arguments), grey())
    assert attacks.pgd(tiny, grey(), **arguments).isfinite().all()


def test_joint_and_single_attacks_maximise_what_they_say():
    towards, away = torch.ones(1, 3, 4, 4), -3 * torch.ones(1, 3, 4, 4)
    images = grey(2, 4)
    both = lambda x: torch.cat([linear(towards)(x), linear(away)(x)])  # noqa: E731
    arguments = {"eps": EPS, "step_size": EPS, "steps": 3}
    assert (attacks.pgd(both, images, **arguments) < images).all(), "the joint loss falls with brightness"
    assert (attacks.pgd(linear(towards), images, **arguments) > images).all()


def test_only_attacked_decoders_run_and_nothing_is_left_behind():
    model = models.build("resnet18_small", "sdn", seed=0).eval()
    ran = []
    for letter, decoder in model.decoders.items():
        decoder.register_forward_hook(lambda *_, letter=letter: ran.append(letter))
    images = grey(2, 16)
    targets = {"d": torch.rand(2, 1, 16, 16), "n": torch.rand(2, 3, 16, 16)}
    losses = attacks.task_losses(model, targets, None, "nd")
    assert losses(images).shape == (2, 2)
    ran.clear()
    attacks.pgd(losses, images, eps=EPS, step_size=EPS / 4, steps=2)
    assert set(ran) == {"d", "n"}
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())
    for parameter in model.parameters():
        parameter.register_hook(lambda _: pytest.fail("a parameter's gradient was computed"))
    attacks.pgd(losses, images, eps=EPS, step_size=EPS / 4, steps=1)
    assert not model.training
    assert not images.requires_grad


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"eps": -1}, "eps"),
        ({"eps": float("nan")}, "eps"),
        ({"steps": -1}, "steps"),
        ({"restarts": 0}, "restarts"),
        ({"norm": "l0"}, "linf, l2, l1"),
    ],
)
def test_bad_parameters_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        attacks.pgd(curved, grey(), **{"eps": EPS, "step_size": EPS, "steps": 1, **change})


@pytest.mark.parametrize("images", [grey() * 255, grey() - 1, grey().byte(), grey()[0], grey() * float("nan")])
def test_bad_images_are_refused(images):
    with pytest.raises(ValueError, match="images should"):
        attacks.pgd(curved, images, eps=EPS, step_size=EPS, steps=1)


def test_a_loss_of_the_wrong_shape_is_refused():
    with pytest.raises(ValueError, match=r"\(T, B\)"):
        attacks.pgd(lambda x: x.sum(), grey(), eps=EPS, step_size=EPS, steps=1)


@pytest.mark.parametrize("budget", [{"eps": 0.03, "steps": 0}, {"eps": 0.0, "steps": 3}, {"eps": 0.03, "steps": 3}])
def test_a_wrong_rate_of_wgd_is_refused_before_anything_is_computed(budget):
    calls = []
    with pytest.raises(ValueError, match="Parameter rate should be one of definition, inverse. Found rate = 'x'"):
        attacks.wgd(calls.append, torch.rand(2, 3, 4, 4), step_size=0.01, rate="x", **budget)
    assert not calls
