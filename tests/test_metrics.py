import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtrlib import metrics


def test_the_definition_and_the_published_code_differ():
    """Worked by hand: ratios 1 and 0, against (2.5 - 2) / 2."""
    clean, adversarial = [1.0, 3.0], [2.0, 3.0]
    assert metrics.relative_task_vulnerability(clean, adversarial) == 0.5
    assert metrics.relative_task_vulnerability(clean, adversarial, "ratio_of_means") == 0.25


def test_an_image_without_a_ratio_is_left_out_and_counted():
    clean, adversarial = [0.0, 1.0, np.nan, 2.0], [1.0, 3.0, 1.0, 2.0]
    assert metrics.relative_task_vulnerability(clean, adversarial) == 1.0  # of 2 and 0
    assert metrics.left_out(clean, adversarial) == 2
    assert metrics.relative_task_vulnerability(clean, adversarial, "ratio_of_means") == 1.0  # (6 - 3) / 3
    assert np.isnan(metrics.relative_task_vulnerability([0.0], [1.0]))
    assert np.isnan(metrics.relative_task_vulnerability([0.0], [1.0], "ratio_of_means"))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("seeds", [1, 3])
@pytest.mark.parametrize("reduction", [*metrics.REDUCTIONS, "absolute"])
def test_an_infinite_error_is_not_left_out(reduction, seeds):
    clean, attacked = np.ones((seeds, 40)), np.full((seeds, 40), 1.1)
    attacked[0, 3] = np.inf
    drawn = metrics.bootstrap(clean, attacked, reduction)
    low, high = metrics.interval(drawn)
    if reduction == "absolute":
        assert metrics.adversarial_vulnerability(clean[0], attacked[0]) == np.inf
    else:
        assert metrics.relative_task_vulnerability(clean[0], attacked[0], reduction) == np.inf
        assert metrics.left_out(clean, attacked) == 0
    assert high == np.inf
    assert low == pytest.approx(0.1) or low == np.inf
    assert not np.isnan(drawn).any()
    assert np.allclose(drawn[np.isfinite(drawn)], 0.1)  # the replicates without it


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("reduction", [*metrics.REDUCTIONS, "absolute"])
@pytest.mark.parametrize(("clean", "attacked"), [(1.0, np.nan), (np.inf, 1.0), (np.inf, np.inf)])
def test_an_error_that_is_no_number_shows(reduction, clean, attacked):
    errors = np.array([1.0, clean, 1.0]), np.array([1.5, attacked, 1.5])
    if reduction == "absolute":
        assert not np.isfinite(metrics.adversarial_vulnerability(*errors))
    else:
        assert np.isnan(metrics.relative_task_vulnerability(*errors, reduction))
    low, high = metrics.interval(metrics.bootstrap(*(e[None] for e in errors), reduction))
    assert not np.isfinite(high)
    assert metrics.left_out(*errors) == 0


@pytest.mark.filterwarnings("error")
def test_means_and_intervals_of_nothing_are_nan_without_a_warning():
    value, drawn = metrics.mean_of(np.full((1, 4), np.nan))
    assert np.isnan(value)
    assert np.isnan(metrics.interval(drawn)).all()
    value, drawn = metrics.mean_of([[1.0, np.nan, 3.0]])
    assert value == 2
    assert np.nanmin(drawn) >= 1
    value, drawn = metrics.mean_of([[1.0, np.inf, 3.0]])
    assert value == np.inf == metrics.interval(drawn)[1]


def test_a_task_of_weight_0_adds_nothing_to_definition_1_even_if_infinite():
    assert metrics.adversarial_vulnerability([[1.0], [1.0]], [[2.0], [np.inf]], [1, 0]) == 1


@given(st.lists(st.tuples(st.floats(0.01, 10), st.floats(0, 10)), min_size=1, max_size=20), st.floats(0.1, 10))
def test_the_unit_of_the_error_does_not_matter(pairs, scale):
    clean, adversarial = np.array(pairs).T
    for reduction in metrics.REDUCTIONS:
        value = metrics.relative_task_vulnerability(clean, adversarial, reduction)
        assert metrics.relative_task_vulnerability(clean * scale, adversarial * scale, reduction) == pytest.approx(
            value, abs=1e-9
        )


def test_adversarial_vulnerability_is_definition_1():
    assert metrics.adversarial_vulnerability([1.0, 2.0], [3.0, 1.0]) == 1.5  # |2| and |-1|
    # Of a set of tasks: the change of the sum, not the sum of the changes.
    assert metrics.adversarial_vulnerability([[1.0], [1.0]], [[3.0], [0.0]]) == 1.0


@pytest.mark.parametrize("reduction", metrics.REDUCTIONS)
def test_bootstrap_of_equal_images_has_no_width_and_of_many_the_textbook_one(reduction):
    assert np.allclose(metrics.bootstrap(np.ones((1, 7)), np.full((1, 7), 3.0), reduction), 2.0)
    ratios = np.random.default_rng(0).normal(5, 1, size=400)
    drawn = metrics.bootstrap(np.ones((1, 400)), 1 + ratios[None], reduction, replicates=4000)
    assert drawn.std() == pytest.approx(ratios.std() / 20, rel=0.06)
    low, high = metrics.interval(drawn)
    assert low < ratios.mean() < high
    assert high - low == pytest.approx(2 * 1.96 / 20, rel=0.1)


def test_bootstrap_of_definition_1_is_around_it():
    g = np.random.default_rng(0)
    clean, adversarial = g.uniform(0, 1, (1, 200)), g.uniform(1, 3, (1, 200))
    drawn = metrics.bootstrap(clean, adversarial, "absolute", replicates=2000)
    value = metrics.adversarial_vulnerability(clean[0], adversarial[0])
    assert drawn.mean() == pytest.approx(value, rel=0.01)
    assert drawn.std() == pytest.approx(np.abs(adversarial - clean).std() / np.sqrt(200), rel=0.1)


def test_bootstrap_draws_the_same_images_for_every_cell():
    """Paired: two models that differ by a constant differ by it in every replicate."""
    clean = np.random.default_rng(0).uniform(1, 2, size=(1, 30))
    one, two = metrics.bootstrap(np.stack([clean, clean]), np.stack([clean * 2, clean * 3])).T
    assert np.allclose(two - one, 1.0)


def test_bootstrap_over_seeds_is_wider_than_over_images_alone():
    clean = np.ones((3, 50))
    adversarial = np.array([[2.0], [3.0], [4.0]]) * clean
    assert metrics.bootstrap(clean[:1], adversarial[:1]).std() == pytest.approx(0, abs=1e-12)
    drawn = metrics.bootstrap(clean, adversarial, replicates=4000)
    assert drawn.mean() == pytest.approx(2.0, abs=0.05)
    assert drawn.std() == pytest.approx(np.sqrt(2 / 3 / 3), rel=0.05)


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="of one shape"):
        metrics.relative_task_vulnerability([1.0], [1.0, 2.0])
    with pytest.raises(ValueError, match="negative"):
        metrics.relative_task_vulnerability([-1.0], [1.0])
    with pytest.raises(ValueError, match="per_image, ratio_of_means"):
        metrics.relative_task_vulnerability([1.0], [1.0], "mean")


def test_vulnerabilities_of_sets_by_hand():
    """Two tasks, two images: changes (1, 3) and (-2, 1)."""
    clean = np.zeros((2, 2))
    attacked = np.array([[1.0, 3.0], [-2.0, 1.0]])
    assert metrics.adversarial_vulnerability(clean, attacked) == pytest.approx((1 + 4) / 2)
    assert metrics.adversarial_vulnerability(clean, attacked, "mean") == pytest.approx((0.5 + 2) / 2)
    assert metrics.adversarial_vulnerability(clean, attacked, [2, 1]) == pytest.approx((0 + 7) / 2)
    one = clean[:1], attacked[:1]
    assert metrics.marginal_vulnerability(one, (clean, attacked)) == pytest.approx(2.5 - 2)
    assert metrics.marginal_vulnerability(one, (clean, attacked), "mean", "mean") == pytest.approx(1.25 - 2)
    for weights, message in (("max", "sum, mean or numbers"), ([1, 2, 3], "one number a task, 2")):
        with pytest.raises(ValueError, match=message):
            metrics.adversarial_vulnerability(clean, attacked, weights)
