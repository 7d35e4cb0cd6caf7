import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mtrlib.tasks import TASKS, Task, canonical, parse


def one_hot(index: torch.Tensor, classes: int) -> torch.Tensor:
    return torch.nn.functional.one_hot(index.long(), classes).movedim(-1, 1).float() * 20


def test_the_eleven_tasks():
    assert "".join(TASKS) == "sdDnkKeEprA"
    assert {t.domain for t in TASKS.values()} >= {"segment_semantic", "depth_zbuffer", "edge_occlusion", "rgb"}
    assert [TASKS[t].channels for t in "sdnpA"] == [18, 1, 3, 2, 3]
    assert all(task.lower_is_better for task in TASKS.values())


def test_miou_of_a_hand_worked_image():
    # Label: 8 pixels of class 0, 8 of class 1. Predicted: 4 of class 0 right, the other 4 as class 2; class 1 right.
    target = torch.tensor([0] * 8 + [1] * 8).view(1, 4, 4)
    predicted = torch.tensor([0] * 4 + [2] * 4 + [1] * 8).view(1, 4, 4)
    error = TASKS["s"].error(one_hot(predicted, 3), target)
    # IoU of 0 is 4/8, of 1 is 8/8; class 2 is not in the label and does not count.
    torch.testing.assert_close(error, torch.tensor([1 - (0.5 + 1) / 2]))


def test_miou_counts_only_valid_pixels():
    target = torch.tensor([0] * 8 + [1] * 8).view(1, 4, 4)
    predicted = torch.zeros(1, 4, 4, dtype=torch.long)
    mask = target == 0
    assert TASKS["s"].error(one_hot(predicted, 3), target, mask).item() == 0
    assert TASKS["s"].error(one_hot(predicted, 3), target).item() == pytest.approx(1 - 0.5 / 2)


def test_squared_error_and_l1_by_hand():
    output, target = torch.zeros(1, 3, 2, 2), torch.zeros(1, 3, 2, 2)
    target[0, :, 0, 0] = torch.tensor([1.0, 2.0, 3.0])
    torch.testing.assert_close(TASKS["n"].error(output, target), torch.tensor([(1 + 4 + 9) / 3 / 4]))
    torch.testing.assert_close(TASKS["n"].loss(output, target), torch.tensor([(1 + 2 + 3) / 3 / 4]))
    mask = torch.zeros(1, 2, 2, dtype=torch.bool)
    mask[0, 0, 0] = True
    torch.testing.assert_close(TASKS["n"].error(output, target, mask), torch.tensor([14 / 3]))


@pytest.mark.parametrize("letter", "sdn")
def test_an_image_without_valid_pixels_is_nan_in_the_error_and_zero_in_the_loss(letter):
    task = TASKS[letter]
    output = torch.randn(2, task.channels, 4, 4, requires_grad=True)
    target = torch.zeros(2, 4, 4, dtype=torch.uint8) if letter == "s" else torch.full((2, task.channels, 4, 4), np.nan)
    mask = torch.zeros(2, 4, 4, dtype=torch.bool)
    if letter == "s":
        mask[1] = True
        assert task.error(output, target, mask)[1].isfinite()
    assert task.error(output, target, mask)[0].isnan()
    loss = task.loss(output, target, mask)
    assert loss[0] == 0
    loss.sum().backward()
    assert output.grad.isfinite().all(), "a NaN label under the mask must not reach the gradient"


@pytest.mark.parametrize("value", [255, 18, -1, np.nan, np.inf, -np.inf, 1e38, "output"])
@pytest.mark.parametrize("error", ["1 - mIoU", "1 - accuracy", "squared error", "absolute error", "angle"])
@pytest.mark.parametrize("loss", ["cross_entropy", "l1", "squared"])
def test_what_lies_under_a_mask_does_not_matter(loss, error, value):
    """Not to a loss, an error or their gradients; "output" is the output itself, where an angle has no gradient."""
    kind = "classes" if loss == "cross_entropy" else "regression"
    if (kind == "classes") != error.startswith("1 -") or (kind == "classes" and not isinstance(value, int)):
        return
    task = Task("x", "", "", 3, kind, loss, error)
    g = torch.Generator().manual_seed(0)
    output, mask = torch.randn(2, 3, 4, 4, generator=g), torch.rand(2, 4, 4, generator=g) > 0.4
    target = torch.randint(0, 3, (2, 4, 4), generator=g) if kind == "classes" else torch.randn(2, 3, 4, 4, generator=g)
    where = ~mask if kind == "classes" else ~mask[:, None].expand_as(target)
    odd = torch.where(where, output if value == "output" else torch.full_like(target, value), target)
    for measure in (task.loss, task.error):
        found = []
        for label in (target, odd):
            point = output.clone().requires_grad_()
            values = measure(point, label, mask)
            if values.requires_grad:
                values.sum().backward()
                assert point.grad.isfinite().all()
                found.append(torch.cat([values.detach(), point.grad.flatten()]))
            else:
                found.append(values)
        assert torch.equal(*found)


def test_a_label_that_is_no_class_is_refused_where_it_is_valid():
    with pytest.raises(IndexError):
        TASKS["s"].loss(torch.zeros(1, 18, 2, 2), torch.full((1, 2, 2), 255), torch.ones(1, 2, 2, dtype=torch.bool))


@given(st.integers(1, 5), st.integers(0, 1000), st.sampled_from("sdn"))
def test_an_image_is_measured_by_itself(batch, seed, letter):
    task, g = TASKS[letter], torch.Generator().manual_seed(seed)
    output = torch.randn(batch, task.channels, 4, 4, generator=g)
    target = torch.randn(output.shape, generator=g)
    if letter == "s":
        target = torch.randint(0, 18, (batch, 4, 4), generator=g)
    mask = torch.rand(batch, 4, 4, generator=g) > 0.4
    for measure in (task.loss, task.error):
        together = measure(output, target, mask)
        alone = torch.cat([measure(output[i : i + 1], target[i : i + 1], mask[i : i + 1]) for i in range(batch)])
        torch.testing.assert_close(together, alone, equal_nan=True)


@pytest.mark.parametrize("tasks", ["", "ss", "s1", "s d", "sé", "sdDnkKeEprAs", 3, None])
def test_task_sets_that_are_none(tasks):
    with pytest.raises(ValueError, match="tasks should be different ASCII letters, at least one"):
        parse(tasks)


def test_a_data_set_decides_which_letters_there_are():
    assert parse("dx", "dxs", "mine") == "dx"
    with pytest.raises(ValueError, match="letters out of 'sd' for mine, at least one. Found tasks = 'sx'"):
        parse("sx", "sd", "mine")


def test_canonical_order_is_the_papers_and_then_the_alphabet():
    assert canonical("Ensd") == "sdnE"
    assert canonical("xEBnasd") == "sdnEBax"


def test_losses_and_errors_by_hand():
    output = torch.tensor([[1.0, 0.0], [0.0, 2.0]]).T.reshape(1, 2, 1, 2)  # pixels (1, 0) and (0, 2)
    target = torch.tensor([[0.0, 3.0], [0.0, 1.0]]).T.reshape(1, 2, 1, 2)  # pixels (0, 3) and (0, 1)
    errors = {"squared error": (10 / 2 + 1 / 2) / 2, "absolute error": (4 / 2 + 1 / 2) / 2, "angle": (90 + 0) / 2}
    for name, expected in errors.items():
        task = Task("v", "vectors", "", 2, error_name=name)
        assert task.error(output, target).item() == pytest.approx(expected, abs=0.05)
    assert Task("v", "vectors", "", 2, error_name="angle").unit == "degrees"
    assert Task("v", "vectors", "", 2, loss_name="squared").loss(output, target).item() == pytest.approx(5.5 / 2)
    task = Task("c", "classes", "", 3, "classes", error_name="1 - accuracy")
    predicted, label = torch.tensor([[[0, 1], [2, 2]]]), torch.tensor([[[0, 1], [1, 2]]])
    assert task.error(one_hot(predicted, 3), label).item() == 0.25
    assert task.error(one_hot(predicted, 3), label, label != 1).item() == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"letter": "xy"}, "letter should be one ASCII letter. Found letter = 'xy'"),
        ({"kind": "graph"}, "kind should be one of classes, regression"),
        ({"loss_name": "cross_entropy"}, "loss_name should be one of l1, squared for regression"),
        ({"kind": "classes", "error_name": "angle"}, "error_name should be one of 1 - mIoU, 1 - accuracy for classes"),
        ({"error_name": "angle"}, "channels should be 2 or more for an angle"),
    ],
)
def test_definitions_that_make_no_sense(changes, message):
    with pytest.raises(ValueError, match=message):
        Task(**{"letter": "x", "name": "", "domain": "", "channels": 1, **changes})
