import copy
import dataclasses
import warnings

import pytest
import torch

from mtrlib import data
from mtrlib.specs import AttackSpec, DataSpec, ModelSpec
from mtrlib.store import Store, evaluation
from mtrlib.tasks import TASKS

ATTACK = AttackSpec(tasks="sd", steps=5, images=12)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A small trained model of s and d, and test rooms."""
    spec = ModelSpec(data=DataSpec(size=16), tasks="sd", images=64, epochs=6, batch_size=8)
    model = Store(tmp_path_factory.mktemp("store")).model(spec)
    return model, data.load("rooms", tasks="sd", split="test", size=16, limit=12)


def test_clean_errors_are_those_of_the_model_on_the_images(trained):
    model, rooms = trained
    errors = evaluation.errors(model, rooms, ATTACK, batch_size=5).set_index(["task", "image_id"])
    images, targets, _ = rooms.batch(slice(None))
    with torch.no_grad():
        outputs = model(images)
    for letter in "sd":
        rows = errors.loc[letter].loc[list(rooms.ids)]
        for column, measure in (("clean_error", TASKS[letter].error), ("clean_loss", TASKS[letter].loss)):
            expected = measure(outputs[letter], targets[letter])
            torch.testing.assert_close(torch.tensor(rows[column].to_numpy()), expected, rtol=1e-4, atol=1e-5)


def test_the_adversarial_columns_are_those_of_the_attacked_images(trained):
    model, rooms = trained
    batch = rooms.batch(slice(None))
    attacked = evaluation.attack_batch(model, batch, ATTACK, "float32", torch.Generator().manual_seed(ATTACK.seed))
    assert (attacked - batch[0]).abs().max() <= ATTACK.eps_255 / 255
    with torch.no_grad():
        expected = TASKS["s"].loss(model(attacked)["s"], batch[1]["s"])
    errors = evaluation.errors(model, rooms, ATTACK)
    rows = errors[errors.task == "s"]
    torch.testing.assert_close(torch.tensor(rows.adversarial_loss.to_numpy()), expected, rtol=1e-4, atol=1e-5)


def test_attacks_in_bfloat16_are_as_strong(trained):
    """Measured in float32: what the attack gains must not hang on its precision. README: within 1 % on real models."""
    model, rooms = trained
    gains = []
    for precision in ("float32", "bfloat16"):
        errors = evaluation.errors(model, rooms, ATTACK, precision=precision)
        gains.append((errors.adversarial_loss - errors.clean_loss).groupby(errors.image_id).sum().mean())
    assert gains[0] > 0
    assert gains[1] == pytest.approx(gains[0], rel=0.05)


def test_attacks_without_a_gradient_say_at_how_many_images(trained):
    """A model whose outputs do not depend on images that are dark; every fourth is."""
    model, rooms = trained

    class Masked(type(model)):
        def forward(self, images, tasks=None):
            bright = images.flatten(1).amax(dim=1).view(-1, 1, 1, 1) > 0.2
            outputs = super().forward(torch.where(bright, images, images.detach()), tasks)
            return outputs

    masked = copy.deepcopy(model)
    masked.__class__ = Masked
    for dark, expected in ((3, "at 3 of 12 images"), (1, None), (0, None)):
        images = rooms.images.clone()
        images[:dark] //= 16
        changed = dataclasses.replace(rooms, images=images)
        for name in ("fgsm", "pgd", "mim", "apgd", "wgd", "dgba", "segpgd", "cospgd", "sea", "min_max"):
            attack = ATTACK.model_copy(update={"name": name, "steps": 2, "eps_255": 1.0})
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                evaluation.errors(masked, changed, attack, batch_size=5)
            told = [str(warning.message) for warning in caught]
            assert len(told) == (expected is not None), (name, told)
            assert all(f"The attack {name} on 'sd'" in text and expected in text for text in told)
    square = ATTACK.model_copy(update={"name": "square", "steps": 2})
    assert len(evaluation.errors(masked, dataclasses.replace(rooms, images=rooms.images // 16), square)) == 24


def test_a_gradient_that_is_no_number_is_none():
    """As attacks take it, which do not move along it."""
    found = []
    points = torch.ones(3, 3, 2, 2, requires_grad=True)
    gradient = torch.stack([torch.full((3, 2, 2), value) for value in (float("nan"), float("inf"), 0.0)])
    points.register_hook(lambda _: gradient)
    evaluation._watched(lambda images: images, found)(points).sum().backward()
    assert found[0].tolist() == [True, False, True]


def test_watching_gradients_changes_no_attack(trained):
    model, rooms = trained
    batch, found = rooms.batch(slice(None)), []
    attacked = [
        evaluation.attack_batch(model, batch, ATTACK, "float32", torch.Generator().manual_seed(0), watched)
        for watched in (None, found)
    ]
    assert torch.equal(*attacked)
    assert [part.tolist() for part in found] == [[False] * 12]
