import pytest
from pydantic import ValidationError

from mtrlib.specs import Adversarial, AttackSpec, DataSpec, Evaluation, ModelSpec


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


def test_a_recipe_has_its_own_defaults_and_stands_in_the_key():
    plain = ModelSpec(data=DataSpec(), tasks="sd")
    assert "adversarial" not in plain.model_dump(mode="json")
    recipes = {name: Adversarial(recipe=name) for name in ("pgd_at", "trades", "fast", "half", "gat")}
    assert {name: how.beta for name, how in recipes.items()} == dict(pgd_at=1, trades=6, fast=1, half=0.5, gat=0.5)
    assert [(how.steps, how.step_size_255) for how in recipes.values()] == [(5, 1), (5, 1), (1, 5), (5, 1), (5, 1)]
    weights = {"gat": "MGDA"}
    models = [
        ModelSpec(data=DataSpec(), tasks="sd", weights=weights.get(name, "uniform"), adversarial=how)
        for name, how in recipes.items()
    ]
    assert len({plain.key, *(model.key for model in models)}) == 6
    for model in models:
        assert ModelSpec.model_validate_json(model.model_dump_json()) == model


@pytest.mark.parametrize(
    ("how", "weights", "message"),
    [
        ({"recipe": "madry"}, "uniform", "recipe"),
        ({"recipe": "half", "beta": 1.5}, "uniform", r"in \[0, 1\] for half"),
        ({"beta": 0.5}, "uniform", "half has a share"),
        ({"recipe": "fast", "beta": 0.5}, "uniform", "half has a share"),
        ({"recipe": "fast", "steps": 2}, "uniform", "one step"),
        ({"recipe": "fast", "attack": "dgba"}, "uniform", "one step"),
        ({"curvature": True}, "uniform", "for gat alone"),
        ({"self_supervised": "rotation"}, "uniform", "for gat alone"),
        ({"tasks": "n"}, "uniform", "out of 'sd'"),
        ({"recipe": "gat", "tasks": "d"}, "MGDA", "main one, 's'"),
        ({"recipe": "gat"}, "uniform", "MGDA"),
        ({"recipe": "gat"}, "gradnorm", "MGDA"),
        ({"recipe": "trades"}, "gradnorm", "fixed ones or an aggregator"),
        ({"recipe": "half"}, "gradnorm", "fixed ones or an aggregator"),
    ],
)
def test_recipes_that_make_no_sense_are_refused(how, weights, message):
    with pytest.raises(ValidationError, match=message):
        ModelSpec(data=DataSpec(), tasks="sd", weights=weights, adversarial=Adversarial(**how))


def test_curvature_needs_a_second_task():
    how = Adversarial(recipe="gat", curvature=True)
    with pytest.raises(ValidationError, match="auxiliary task"):
        ModelSpec(data=DataSpec(), tasks="s", weights="MGDA", adversarial=how)
    ModelSpec(
        data=DataSpec(), tasks="s", weights="MGDA", adversarial=how.model_copy(update={"self_supervised": "jigsaw"})
    )
