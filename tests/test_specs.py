import pytest
from pydantic import ValidationError

from mtrlib.specs import AttackSpec, DataSpec, Evaluation, ModelSpec


def test_the_content_is_the_key():
    one, two = ModelSpec(data=DataSpec(), tasks="sd"), ModelSpec(data=DataSpec(size=64), tasks="sd")
    assert one == two
    assert one.key == two.key
    changes = {"tasks": "ds", "seed": 1, "epochs": 21, "learning_rate": 0.1, "precision": "bfloat16", "images": 3}
    keys = {one.model_copy(update={name: value}).key for name, value in changes.items()}
    assert len(keys | {one.key}) == len(changes) + 1


def test_keys_do_not_change_from_version_to_version():
    """A change here makes every store out there useless: it must be meant."""
    assert ModelSpec(data=DataSpec(), tasks="sd").key == "c32dff6514d0d2d2"
    assert AttackSpec(tasks="s").key == "4558d68609b14d5a"


def test_checkpoints_are_the_thirds():
    assert ModelSpec(data=DataSpec(), tasks="s", epochs=150).checkpoints == (50, 100, 150)
    assert ModelSpec(data=DataSpec(), tasks="s", epochs=1).checkpoints == (1,)
    assert ModelSpec(data=DataSpec(), tasks="s", epochs=4).checkpoints == (2, 3, 4)


@pytest.mark.parametrize(
    "wrong",
    [
        {"pretrained": True},
        {"tasks": "sx"},
        {"tasks": "s1"},
        {"epochs": 0},
        {"epochs": 2.5},
        {"epochs": "3"},
        {"x": 1},
        {"encoder": "vgg"},
        {"seed": True},
    ],
)
def test_wrong_values_are_refused(wrong):
    with pytest.raises(ValidationError):
        ModelSpec(**{"data": DataSpec(), "tasks": "sd", **wrong})


def test_an_evaluation_fits_its_model():
    model = ModelSpec(data=DataSpec(), tasks="sd", epochs=3)
    Evaluation(model=model, attack=AttackSpec(tasks="d"), epoch=2)
    assert Evaluation(model=model, attack=AttackSpec(tasks="d")).epoch == 3, "the last unless given"
    with pytest.raises(ValidationError, match="attacked tasks"):
        Evaluation(model=model, attack=AttackSpec(tasks="sn"), epoch=3)
    with pytest.raises(ValidationError, match="epoch should be"):
        Evaluation(model=model, attack=AttackSpec(tasks="s"), epoch=4)
