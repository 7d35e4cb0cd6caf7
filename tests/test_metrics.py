import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from mtrlib import metrics
from mtrlib.metrics import estimates, tables
from mtrlib.tasks import TASKS, Task


def table_of(clean, attacked, seed: int = 0) -> pd.DataFrame:
    """Errors of one cell; the attacked losses are the errors."""
    rows = pd.DataFrame({"clean_error": clean, "adversarial_error": attacked, "image_id": np.arange(len(clean))})
    rows = rows.assign(clean_attacked_loss=rows.clean_error, adversarial_attacked_loss=rows.adversarial_error)
    return rows.assign(panel="table", setting="pgd", attacked="single", main="s", auxiliary="s", seed=seed)


QUANTITIES = {"per_image": "ratio", "ratio_of_means": "ratio_of_means", "absolute": "absolute"}


def test_the_definition_and_the_published_code_differ():
    """Worked by hand: ratios 1 and 0, against (2.5 - 2) / 2."""
    clean, adversarial = [1.0, 3.0], [2.0, 3.0]
    assert metrics.relative_task_vulnerability(clean, adversarial) == 0.5
    assert metrics.relative_task_vulnerability(clean, adversarial, "ratio_of_means") == 0.25


def test_an_image_without_a_ratio_is_left_out_and_counted():
    clean, adversarial = [0.0, 1.0, np.nan, 2.0], [1.0, 3.0, 1.0, 2.0]
    assert metrics.relative_task_vulnerability(clean, adversarial) == 1.0  # of 2 and 0
    assert tables.vulnerabilities(table_of(clean, adversarial)).left_out.item() == 2
    assert metrics.relative_task_vulnerability(clean, adversarial, "ratio_of_means") == 1.0  # (6 - 3) / 3
    assert np.isnan(metrics.relative_task_vulnerability([0.0], [1.0]))
    assert np.isnan(metrics.relative_task_vulnerability([0.0], [1.0], "ratio_of_means"))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("reduction", QUANTITIES)
def test_an_infinite_error_is_not_left_out(reduction):
    clean, attacked = np.ones(40), np.full(40, 1.1)
    attacked[3] = np.inf
    if reduction == "absolute":
        assert metrics.adversarial_vulnerability(clean, attacked) == np.inf
    else:
        assert metrics.relative_task_vulnerability(clean, attacked, reduction) == np.inf
        assert tables.vulnerabilities(table_of(clean, attacked), reduction).left_out.item() == 0
    table = estimates.interval(estimates.estimates(table_of(clean, attacked), QUANTITIES[reduction]))
    assert table.value.item() == np.inf
    assert not np.isfinite(table.high.item())


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("reduction", QUANTITIES)
@pytest.mark.parametrize(("clean", "attacked"), [(1.0, np.nan), (np.inf, 1.0), (np.inf, np.inf)])
def test_an_error_that_is_no_number_shows(reduction, clean, attacked):
    errors = np.array([1.0, clean, 1.0]), np.array([1.5, attacked, 1.5])
    if reduction == "absolute":
        assert not np.isfinite(metrics.adversarial_vulnerability(*errors))
    else:
        assert np.isnan(metrics.relative_task_vulnerability(*errors, reduction))
    table = estimates.interval(estimates.estimates(table_of(*errors), QUANTITIES[reduction]))
    assert not np.isfinite(table[["value", "high"]]).any(axis=None)


@pytest.mark.filterwarnings("error")
def test_means_and_intervals_of_nothing_are_nan_without_a_warning():
    nothing = tables.values(table_of(np.full(4, np.nan), np.ones(4)), "adversarial_error")
    assert nothing[["value", "low", "high"]].isna().all(axis=None)
    some = tables.values(table_of([1.0, np.nan, 3.0], [1.0, 7.0, 3.0]), "adversarial_error").iloc[0]
    assert (some.value, some.low < 1, some.high > 3) == (2, True, True)


@pytest.mark.parametrize("quantity", ["ratio", "ratio_of_means", "adversarial_error", "absolute"])
def test_the_interval_over_images_is_students(quantity):
    """Of a clean error of 1 every quantity is a mean over images: its interval is that of the textbook."""
    ratios = np.random.default_rng(0).normal(5, 1, size=50)
    row = estimates.interval(estimates.estimates(table_of(np.ones(50), 1 + ratios), quantity)).iloc[0]
    ends = stats.ttest_1samp(ratios + (quantity == "adversarial_error"), 0).confidence_interval(0.95)
    assert (row.low, row.high) == pytest.approx(tuple(ends), rel=1e-6)


def test_skills_name_tasks_that_are_not_the_papers():
    errors = table_of([1.0, 3.0], [2.0, 4.0]).assign(constant_error=4.0)
    errors = pd.concat([errors, errors.assign(main="h", auxiliary="h")])
    height = Task("h", "height", "", 1, error_name="absolute error", target_unit="m")
    found = tables.skills(errors, {"s": TASKS["s"], "h": height})
    assert found.columns[:3].tolist() == ["main", "name", "unit"]
    assert found.iloc[:, :3].values.tolist() == [["s", "", ""], ["h", "height", "absolute error (m)"]]
    assert found.skill.tolist() == [0.5, 0.5]
    own_s = tables.skills(errors, {"s": Task("s", "rooms", "", 3, "classes")})
    assert own_s.name.tolist() == ["rooms", ""], "a letter of the paper's with another meaning"
    for known in (None, TASKS):
        assert "name" not in tables.skills(errors, known)


def test_one_image_has_no_interval():
    row = tables.vulnerabilities(table_of([1.0], [3.0])).iloc[0]
    assert (row.value, row.low, row.high) == (2, -1, np.inf)


def test_the_interval_over_seeds_is_students():
    """Images that are alike in every training: what is left is the noise of three trainings."""
    errors = pd.concat([table_of(np.ones(50), np.full(50, 1.0 + k), k) for k in (1, 2, 3)])
    row = estimates.interval(estimates.estimates(errors, "ratio")).iloc[0]
    assert (row.low, row.high) == pytest.approx(tuple(stats.ttest_1samp([1, 2, 3], 0).confidence_interval(0.95)))
    shown = tables.vulnerabilities(errors).iloc[0]
    low, high = stats.ttest_1samp(np.log([2, 3, 4]), 0).confidence_interval(0.95)
    assert np.log1p(shown.high) - np.log1p(shown.low) == pytest.approx(high - low)
    assert shown.value == 2
    assert shown.low > -1, "an error cannot fall below 0"


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
