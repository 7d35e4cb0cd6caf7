"""Architectures in training, in the store and in the cost of a tier."""

import hashlib

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file

from mtrlib import data, models, training
from mtrlib.batch import cost
from mtrlib.models import ARCHITECTURES
from mtrlib.specs import AttackSpec, Evaluation, ModelSpec
from mtrlib.store import Store
from mtrlib.studies import rq4
from mtrlib.studies.study import Cell
from mtrlib.studies.study import models as used
from mtrlib.training import fitting

NEW = [name for name in ARCHITECTURES if name != "hard"]
pytestmark = pytest.mark.usefixtures("one_thread")


def rooms(spec: ModelSpec) -> data.Dataset:
    return data.load("rooms", tasks=spec.tasks, split="train", size=spec.data.size, limit=spec.images)


def digest(folder, epoch: int) -> str:
    return hashlib.sha256(training.checkpoint(folder, epoch).read_bytes()).hexdigest()


def test_the_architecture_is_part_of_the_content_unless_it_is_hard(tiny):
    assert "architecture" not in tiny.model_dump_json()
    assert ModelSpec(**tiny.model_dump(), architecture="hard").key == tiny.key
    specs = [ModelSpec(**tiny.model_dump(), architecture=name) for name in NEW]
    assert len({tiny.key, *(spec.key for spec in specs)}) == len(ARCHITECTURES)
    assert all(ModelSpec.model_validate_json(spec.model_dump_json()) == spec for spec in specs)


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"architecture": "soft"}, "architecture"),
        ({"architecture": "mtan", "tasks": "d"}, "two at least for the architecture mtan. Found 'd'"),
        ({"architecture": "pad_net", "weights": "gradnorm"}, "fixed ones, such as uniform, for pad_net"),
    ],
)
def test_what_an_architecture_cannot_do_is_refused(tiny, wrong, told):
    with pytest.raises(ValidationError, match=told):
        ModelSpec(**{**tiny.model_dump(), **wrong})


@pytest.mark.parametrize("name", NEW)
def test_training_stopped_after_an_epoch_and_begun_again_ends_with_the_same_bytes(tiny, tmp_path, monkeypatch, name):
    """And lowers every loss."""
    spec = tiny.model_copy(update={"architecture": name, "epochs": 4, "images": 16})
    start = {each.tasks: fitting.build(each, spec.data.tasks) for each in spec.starts}
    history = training.fit(spec, rooms(spec), tmp_path / "whole", start=start)
    assert all(history[-1][task] < history[0][task] for task in "sd")
    monkeypatch.setattr(fitting, "SAVE_EVERY", 0.0)
    epochs = fitting.epoch_losses

    def stops(*arguments):
        if arguments[5] == 3:
            raise KeyboardInterrupt
        return epochs(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(fitting, "epoch_losses", stops)
        with pytest.raises(KeyboardInterrupt):
            training.fit(spec, rooms(spec), tmp_path / "cut", start=start)
    training.fit(spec, rooms(spec), tmp_path / "cut", start=start)
    assert digest(tmp_path / "cut", 4) == digest(tmp_path / "whole", 4)


def test_first_predictions_are_supervised_as_outputs_are(tiny):
    """The loss of a step is that of the outputs and of every first prediction, at the size of the image; its gradient
    reaches all parameters, in both precisions."""
    for name, precision in (("pad_net", "float32"), ("mti_net", "bfloat16")):
        spec = tiny.model_copy(update={"architecture": name, "images": 8, "precision": precision})
        model, images = fitting.build(spec, known := spec.data.tasks), rooms(spec)
        batch, early = images.batch(torch.arange(8), "cpu"), []
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
            outputs = model.train().decode(model.encode(batch[0]), "sd", early)
        every = [outputs, *early]
        sized = [
            {t: torch.nn.functional.interpolate(e[t].float(), (16, 16), mode="bilinear") for t in e} for e in every
        ]
        wanted = [sum(known[t].loss(each[t], batch[1][t], batch[2][t]).mean() for each in sized) for t in "sd"]
        optimizer = fitting.optimizer_of(spec, dict(model.named_parameters()))
        seen = set()
        for key, parameter in model.named_parameters():
            parameter.register_post_accumulate_grad_hook(lambda _, key=key, seen=seen: seen.add(key))
        (losses, _), *_ = fitting.epoch_losses(spec, model, optimizer, images, "cpu", 1)
        torch.testing.assert_close(losses, torch.stack(wanted), rtol=0.02 if precision == "bfloat16" else 1e-4, atol=0)
        assert seen == set(dict(model.named_parameters()))


def test_soft_shared_encoders_start_from_the_trained_single_task_models_of_the_store(tiny, tmp_path):
    store = Store(tmp_path)
    for name in ("cross_stitch", "nddr"):
        spec = tiny.model_copy(update={"architecture": name, "epochs": 1, "learning_rate": 1e-30, "images": 8})
        assert [(each.tasks, each.architecture) for each in spec.starts] == [("s", "hard"), ("d", "hard")]
        model = store.model(spec)
        assert all(store.has_model(each) for each in spec.starts)
        for each in spec.starts:
            alone = load_file(training.checkpoint(store.folder(each), 1))
            weights = model.encoder[each.tasks].layer3[0].conv1.weight
            assert torch.equal(weights, alone["encoder.layer3.0.conv1.weight"])
        assert Store(tmp_path).model(spec).tasks == "sd", "read again"
    with pytest.raises(ValueError, match="models of s, d. Found none"):
        training.fit(spec, rooms(spec), tmp_path / "other")
    with pytest.raises(ValueError, match="models of no task. Found s"):
        training.fit(tiny, rooms(tiny), tmp_path / "other", start={"s": model})
    evaluation = Evaluation(model=spec, attack=AttackSpec(tasks="s", images=4))
    assert used([Cell("", "", "s", 4, evaluation)]) == [*spec.starts, spec], "plans and costs count them"


def test_an_attack_made_on_a_model_of_another_task_is_shown_to_a_model_without_it(tiny, tmp_path):
    store = Store(tmp_path)
    of_d, of_s = (tiny.model_copy(update={"tasks": t, "epochs": 1, "images": 8}) for t in "ds")
    attack = AttackSpec(tasks="d", images=6, steps=2)
    rows = store.errors(Evaluation(model=of_s, source=of_d, attack=attack))
    assert (set(rows.task), set(rows.attacked_tasks), len(rows)) == ({"s"}, {"d"}, 6)
    assert (rows.adversarial_error != rows.clean_error).any()
    with pytest.raises(ValidationError, match="attacked tasks should be out of the model's, 's'"):
        Evaluation(model=of_s, attack=attack)
    with pytest.raises(ValidationError, match="the source should have the attacked tasks"):
        Evaluation(model=of_s, source=of_s, attack=attack)


def test_operations_are_those_of_the_network_that_runs(tiny):
    """Soft sharing costs two encoders and their mixtures; all cost more than hard sharing."""
    count = {name: cost.operations(tiny.model_copy(update={"architecture": name})) for name in ARCHITECTURES}
    alone = sum(cost.operations(tiny.model_copy(update={"tasks": t})) for t in "sd")
    assert count["cross_stitch"] == alone < count["nddr"]
    assert all(count[name] > count["hard"] for name in NEW)
    assert rq4.forward_operations(tiny) == count["hard"]
    convolutions = []
    known = tiny.data.tasks
    model = models.build(tiny.encoder, "sd", definitions=known, architecture="mti_net").eval()
    for module in model.modules():
        if isinstance(module, (torch.nn.Conv2d, torch.nn.ConvTranspose2d)):

            def add(layer, inputs, output):
                pixels = output if isinstance(layer, torch.nn.Conv2d) else inputs[0]
                convolutions.append(2 * layer.weight.numel() * pixels.shape[-1] * pixels.shape[-2])

            module.register_forward_hook(add)
    with torch.no_grad():
        model(torch.zeros(1, 3, 16, 16))
    assert count["mti_net"] == sum(convolutions)
