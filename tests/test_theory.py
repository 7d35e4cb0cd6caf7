import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from mtrlib import attacks
from mtrlib.metrics import theory

EPS = 0.01


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def grey(batch: int = 5, seed: int = 0) -> torch.Tensor:
    return torch.rand(batch, 3, 4, 4, generator=seeded(seed)) * 0.5 + 0.25


def test_statistics_are_kept_with_what_is_no_number():
    norms, square = np.float64([[1, 2], [np.nan, 3], [4, np.nan]]), np.eye(2)
    found = theory.Gradients(*({n: norms[:, :k] for n in ("linf", "l2")} for k in (2, 1)), square, square)
    again = theory.from_table(theory.to_table(found))
    np.testing.assert_array_equal(again.norms["linf"], norms)
    np.testing.assert_array_equal(again.joint["linf"], norms[:, :1])


@pytest.fixture
def linear():
    """Three tasks whose losses are linear in the image, and their gradients, (3, 48)."""
    weights = torch.randn(3, 3, 4, 4, generator=seeded(1))

    def losses(images):
        return torch.einsum("tchw,bchw->tb", weights, images) + 10

    return losses, weights.flatten(1).double().numpy()


def test_inference_mode_is_refused_in_one_line(linear):
    losses, _ = linear
    for measure in (lambda: theory.gradients(losses, grey()), lambda: theory.second_order(losses, grey(), 0.1, "l2")):
        with torch.inference_mode(), pytest.raises(ValueError, match=r"outside torch\.inference_mode"):
            measure()
        with torch.no_grad():
            measure()


SUMS = np.array([[1.0, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0], [1 / 3, 1 / 3, 1 / 3]])


def test_a_linear_model_is_known_in_closed_form(linear):
    losses, r = linear
    found = theory.statistics([(losses, grey())], SUMS)
    np.testing.assert_allclose(found.norms["linf"], np.abs(r).sum(axis=1)[None].repeat(5, axis=0), rtol=1e-5)
    np.testing.assert_allclose(found.norms["l2"][0], np.linalg.norm(r, axis=1), rtol=1e-5)
    np.testing.assert_allclose(found.joint["linf"][2], np.abs(SUMS @ r).sum(axis=1), rtol=1e-5)
    np.testing.assert_allclose(found.joint["l2"][2], np.linalg.norm(SUMS @ r, axis=1), rtol=1e-5)
    np.testing.assert_allclose(found.moments, r @ r.T, rtol=1e-5)
    np.testing.assert_allclose(found.covariances, 0, atol=1e-5)  # the gradient is the same at every image


@pytest.mark.parametrize("norm", attacks.NORMS)
def test_on_a_linear_model_the_first_order_is_what_an_attack_reaches(linear, norm):
    losses, _ = linear
    images = grey()
    attacked = attacks.pgd(losses, images, eps=EPS, step_size=EPS / 4, steps=40, norm=norm, generator=seeded())
    rise = (losses(attacked) - losses(images)).sum(dim=0).mean().item()
    found = theory.statistics([(losses, images)], np.ones((1, 3)))
    assert rise == pytest.approx(theory.first_order(found.joint[norm], EPS)[0], rel=1e-3)
    first, second = theory.second_order(lambda x: losses(x), images, EPS, norm)
    assert first.mean().item() == pytest.approx(rise, rel=1e-3)
    assert (second == 0).all()


def test_covariances_are_those_of_numpy():
    """Gradients that differ from image to image: L_i = sum c_i x^2 / 2, so r_i = c_i x."""
    scales = torch.tensor([1.0, -2.0])

    def losses(images):
        return scales[:, None] * images.square().sum(dim=(1, 2, 3))[None] / 2

    images = grey(40)
    found = theory.statistics([(losses, images)], np.ones((1, 2)))
    x = images.flatten(1).double().numpy()
    total = x.var(axis=0).sum()
    np.testing.assert_allclose(found.covariances, [[total, -2 * total], [-2 * total, 4 * total]], rtol=1e-4)


def network(seed: int, tasks: int = 3, scale: float = 1.0):
    """Losses of a small random network that is smooth, so that eps -> 0 has a limit."""
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Conv2d(3, 6, 3), nn.Tanh(), nn.Flatten(), nn.Linear(24, tasks))
    net.requires_grad_(False)
    return lambda images: (net.to(images.dtype)(scale * images) - 2).square().T


def test_batches_change_nothing():
    losses, images = network(0), grey(7)
    whole = theory.statistics([(losses, images)], SUMS)
    parts = theory.statistics([(losses, part) for part in images.split(3)], SUMS)
    for name in ("norms", "joint"):
        for norm in attacks.NORMS:
            np.testing.assert_allclose(getattr(whole, name)[norm], getattr(parts, name)[norm], rtol=1e-5)
    for name in ("moments", "covariances"):
        np.testing.assert_allclose(getattr(whole, name), getattr(parts, name), rtol=1e-5, atol=1e-9)
    with pytest.raises(ValueError, match="at least one image"):
        theory.statistics([], SUMS)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from(attacks.NORMS), st.integers(1, 2), st.booleans())
def test_theorem_4_is_never_below_the_first_order_marginal(seed, norm, before, uniform):
    losses, images = network(seed), grey(6, seed)
    weights = np.ones(3) if uniform else np.random.default_rng(seed).uniform(0.1, 3, 3)
    scale = np.zeros((2, 3))
    scale[0, :before] = 1 / before if uniform else weights[:before]
    scale[1, : before + 1] = 1 / (before + 1) if uniform else weights[: before + 1]
    found = theory.statistics([(losses, images)], scale)
    less, more = theory.first_order(found.joint[norm], EPS)
    bound = theory.marginal_bound(found.norms[norm], list(range(before)), before, EPS, None if uniform else weights)
    tight = theory.tight_marginal_bound(found.norms[norm], before, EPS, scale[1, before])
    assert more - less <= tight * (1 + 1e-9) + 1e-12
    assert tight <= bound


@pytest.mark.parametrize("norm", attacks.NORMS)
def test_the_first_order_becomes_exact_as_the_budget_shrinks(norm):
    losses, images = network(3, scale=8.0), grey(6).double()
    found = theory.statistics([(losses, images)], np.ones((1, 3)))
    misses, with_second = [], []
    for eps in (0.1, 0.02, 0.004):
        keywords = {"eps": eps, "step_size": eps / 10, "steps": 60, "norm": norm}
        attacked = attacks.pgd(losses, images, random_start=False, **keywords)
        rise = (losses(attacked) - losses(images)).sum(dim=0)
        predicted = eps * torch.from_numpy(found.joint[norm][:, 0])  # of each image: errors of means cancel
        misses.append(((rise - predicted).abs().mean() / predicted.mean()).item())
        first, second = theory.second_order(losses, images, eps, norm)
        torch.testing.assert_close(first, predicted)
        with_second.append(((rise - first - second).abs().mean() / predicted.mean()).item())
    assert misses[0] > misses[1] > misses[2]
    assert misses[2] < 0.02
    assert with_second[1] < 0.5 * misses[1], "the second term takes most of what the first misses"


def test_theorem_2_by_hand():
    """Uncorrelated tasks: 1 / sqrt(M). Equal ones: (1 + 2/M M(M-1)/2) / M = 1. Two with covariance half: sqrt(3/4)."""
    assert theory.theorem_2(np.eye(4), [0, 1, 2, 3]) == pytest.approx(0.5)
    assert theory.theorem_2(np.ones((3, 3)), [0, 1, 2]) == pytest.approx(1)
    half = np.array([[1, 0.5], [0.5, 1]])
    assert theory.theorem_2(half, [0, 1]) == pytest.approx(np.sqrt(0.75))
    assert theory.theorem_2(half, [1]) == 1
    for covariances in (half, np.eye(2), np.ones((2, 2))):
        assert theory.theorem_2(covariances, [0, 1], as_printed=True) == pytest.approx(
            theory.theorem_2(covariances, [0, 1])
        )


def test_theorem_2_with_unequal_variances_depends_on_no_order():
    """As printed it does: Cov_ii is that of the later task."""
    unequal = np.array([[1, 0.5], [0.5, 4]])
    for order in ([0, 1], [1, 0]):
        assert theory.theorem_2(unequal, order) == pytest.approx(np.sqrt(6 / (2 * 5)))
    assert theory.theorem_2(unequal, [0, 1], as_printed=True) == pytest.approx(np.sqrt((1 + 0.125) / 2))
    assert theory.theorem_2(unequal, [1, 0], as_printed=True) == pytest.approx(np.sqrt((1 + 0.5) / 2))
    assert np.isnan(theory.theorem_2(np.array([[1, -1.9], [-1.9, 4]]), [1, 0], as_printed=True))


def test_bounds_by_hand():
    norms = np.array([[1.0, 2.0, 4.0], [3.0, 2.0, 4.0]])  # means 2, 2, 4
    assert theory.marginal_bound(norms, [0, 1], 2, 0.1, None) == pytest.approx(0.1 * (4 + 2))
    weights = np.array([1.0, 3.0, 0.5])
    assert theory.marginal_bound(norms, [0, 1], 2, 0.1, weights) == pytest.approx(0.1 * (3 * 2 + 2 * 6))
    assert theory.tight_marginal_bound(norms, 2, 0.1, 1 / 3) == pytest.approx(0.1 * 4 / 3)
