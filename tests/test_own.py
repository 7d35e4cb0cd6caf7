"""What a user brings: an attack, a way to weigh losses, an encoder, weights; from a file of theirs or as it is."""

import sys

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file
from torch import nn

from mtrlib import attacks, batch, machine, models, studies, training
from mtrlib.batch import cost
from mtrlib.metrics import tables
from mtrlib.models import own
from mtrlib.specs import AttackSpec, DataSpec, Evaluation, ModelSpec
from mtrlib.store import Store
from mtrlib.studies import parameters, rq1, rq3
from mtrlib.training import weights as weights_of

FILE = '''
"""Sign steps and uniform noise; weights by the loss."""
import torch

SHARE = 0.5

def signs(losses, images, *, eps, step_size, steps, norm="linf", restarts=1, random_start=True, generator=None):
    points = images.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(losses(points).sum(), points)
    return (images + SHARE * eps * gradient.sign()).clamp(0, 1) if norm == "linf" else images.clone()

def far(losses, images, *, eps, **settings):
    return (images + 2 * eps).clamp(0, 1)

def rates(losses, first, norms):
    return (losses / first) / norms.clamp(min=1e-6)
'''
KEYWORDS = {"eps": 8 / 255, "step_size": 2 / 255, "steps": 3}


def signs(losses, images, *, eps, norm, share=1.0, **settings):
    points = images.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(losses(points).sum(), points)
    return (images + share * eps * gradient.sign()).clamp(0, 1) if norm == "linf" else images.clone()


def total(images):
    return images.flatten(1).sum(dim=1)[None]


def with_share(share):
    def own_attack(losses, images, **settings):
        return signs(losses, images, share=share, **settings)

    return own_attack


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(FILE)
    return path


@pytest.fixture(scope="module")
def model():
    data = DataSpec(size=16)
    return ModelSpec(data=data, tasks="sd", encoder="resnet18_tiny", images=16, epochs=1, batch_size=8)


def attack(name, **changes) -> AttackSpec:
    return AttackSpec(**{"name": name, "tasks": "sd", "steps": 2, "images": 6, **changes})


def test_a_function_is_an_attack_beside_the_others(tmp_path, model):
    """FGSM written anew gives FGSM's errors, where that raises the loss."""
    store = Store(tmp_path)
    compared = {"mine": attack(signs), "none": attack(with_share(0.0)), "fgsm": attack("fgsm")}
    cells = [
        studies.Cell("table", name, "s", 6, Evaluation(model=model, attack=spec)) for name, spec in compared.items()
    ]
    errors = studies.run(store, cells)
    loss = errors.pivot_table("adversarial_attacked_loss", "image_id", "setting")
    clean = errors.pivot_table("clean_attacked_loss", "image_id", "setting")
    raised = loss.mine > clean.mine
    assert raised.any()
    np.testing.assert_allclose(loss.mine[raised], loss.fgsm[raised], rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(loss.none, clean.none, rtol=1e-3, atol=1e-4)
    assert set(errors.attack) == {spec.name for spec in compared.values()}
    assert tables.vulnerabilities(errors).setting.tolist() == ["mine", "none", "fgsm"]


def test_what_decides_a_function_is_its_name():
    """Its code, what it closes over and what it uses of its module; not the object."""
    names = {attack(with_share(share)).name for share in (0.5, 0.5, 0.25)}
    assert len(names) == 2
    assert all(name.startswith("here:own_attack@") for name in names)
    assert attack(signs).name != attack(with_share(1.0)).name
    scope = {}
    for text in ("k = 1\ndef f(): return k", "k = 2\ndef f(): return k", "def g(): return 1\ndef f(): return g()"):
        exec(text, one := {"__name__": "__main__"})
        exec(text, two := {"__name__": "__main__", "unused": 3})
        assert own.digest_of(one["f"]) == own.digest_of(two["f"])
        scope[own.digest_of(one["f"])] = text
    assert len(scope) == 3
    layers = [nn.Linear(2, 2), nn.Linear(2, 2)]
    assert own.digest_of(layers[0]) != own.digest_of(layers[1])
    layers[1].load_state_dict(layers[0].state_dict())
    assert own.digest_of(layers[0]) == own.digest_of(layers[1])
    with pytest.raises(ValueError, match="What decides .* cannot be told"):
        own.pinned(with_share(torch.Generator()))


def test_a_file_names_an_attack_and_its_source_is_part_of_the_key(tmp_path, file, model, monkeypatch, capfd):
    monkeypatch.setattr(machine, "root", lambda: tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("MINE", str(tmp_path))
    ways = {attack(f"{where}mine.py:signs").name for where in ("", "~/", "$MINE/", f"{tmp_path}/")}
    assert len(ways) == 1, "what decides the result, not how it was written"
    (name,) = ways
    assert name.startswith("mine.py:signs@")
    assert capfd.readouterr().err == "Importing mine.py, which a parameter names.\n", "said once"
    spec = attack(name)
    assert AttackSpec.model_validate(spec.model_dump(mode="json")) == spec
    points = spec.function(
        lambda x: x.flatten(1).sum(dim=1)[None], torch.full((2, 3, 8, 8), 0.5), norm="linf", **KEYWORDS
    )
    assert torch.allclose(points, torch.tensor(0.5 + 4 / 255))
    file.write_text(FILE.replace("SHARE = 0.5", "SHARE = 1.0"))
    changed = attack("mine.py:signs")
    assert changed.key != spec.key
    moved = changed.function(
        lambda x: x.flatten(1).sum(dim=1)[None], torch.full((2, 3, 8, 8), 0.5), norm="linf", **KEYWORDS
    )
    assert torch.allclose(moved, torch.tensor(0.5 + 8 / 255))


def test_a_name_with_its_digest_runs_no_file(file):
    """Such as stand in records and released errors of others."""
    spec = attack(f"{file}:signs@{'0' * 16}")
    assert "mine" not in str([each for each in sys.modules if each.endswith("0" * 16)])
    with pytest.raises(ValueError, match="is not known in this process: give .*mine.py:signs itself"):
        spec.function(None, None)


WRONG = {
    "raises": ("def f(losses, images, **k):\n  raise KeyError('x')", "fails on .* with norm 'linf': KeyError: 'x'"),
    "keywords": ("def f(losses, images, eps):\n  return images", "fails on .*: TypeError: .*unexpected keyword"),
    "shape": ("def f(losses, images, **k):\n  return images[:1]", r"Found torch.float32 \(1, 3, 16, 16\)\."),
    "type": ("def f(losses, images, **k):\n  return None", "Found NoneType"),
    "dtype": ("def f(losses, images, **k):\n  return images.double()", "Found torch.float64"),
    "range": (
        "def f(losses, images, *, eps, **k):\n  return images + eps",
        r"in \[0, 1\]. Found values from .* to 1.03",
    ),
    "nan": ("def f(losses, images, **k):\n  return images * float('nan')", r"in \[0, 1\]. Found values from nan"),
    "budget": ("def f(losses, images, *, eps, **k):\n  return (images + 2 * eps).clamp(0, 1)", "within eps = 0.03137"),
    "graph": ("def f(losses, images, **k):\n  return images.clone().requires_grad_()", "without a graph"),
    "in place": (
        "def f(losses, images, *, eps, **k):\n  return images.sub_(eps).clamp_(0, 1)",
        "changed them in place",
    ),
    "name": ("def g(): pass", "should define f. It defines g"),
    "value": ("f = 3", "should be a function, a class or a network. Found 3"),
    "syntax": ("def f(:", "cannot be imported: SyntaxError"),
    "module": ("import no_such_module", "cannot be imported: ModuleNotFoundError"),
    "exit": ("import sys; sys.exit(2)", "cannot be imported: SystemExit: 2"),
}


@pytest.mark.parametrize("fault", WRONG)
def test_what_is_no_attack_is_refused_in_one_line_before_anything_is_computed(tmp_path, fault):
    """With the parameters of a notebook, on a small image."""
    (tmp_path / "mine.py").write_text(WRONG[fault][0])
    values = {**batch.read("params/smoke")["rq1_auxiliary_tasks"], "attack": f"{tmp_path}/mine.py:f"}
    with pytest.raises(ValueError, match=WRONG[fault][1]) as error:
        parameters.check(values, rq1.RQ1)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["mine.py", "mine.py:", "none.py:f", "mine:f", "pgdd", "../mine.py:1", ":f", ""])
def test_what_names_no_attack_is_refused(name):
    with pytest.raises(ValidationError, match=r"is missing: /|should be one of fgsm, .*, or <file>.py:<function>"):
        attack(name)


def test_an_attack_is_held_to_its_budget_in_every_batch(file):
    """Not only in the trial."""

    def grows(losses, images, *, eps, steps, **settings):
        return (images + eps * steps / 2).clamp(0, 1)

    spec = attack(grows, steps=5)
    with pytest.raises(ValueError, match="within eps"):
        spec.function(None, torch.zeros(1, 3, 4, 4), norm="linf", eps=0.1, steps=5)
    assert attacks.NAMED["pgd"] is attack("pgd").function, "ours are as they were"


def test_rq1_and_rq3_take_an_attack_and_weights_of_a_file(file, tmp_path):
    """The keys of all else are as they were."""
    values = batch.read("params/smoke")
    plain = parameters.check(values["rq1_auxiliary_tasks"], rq1.RQ1)
    p = parameters.check({**values["rq1_auxiliary_tasks"], "attack": f"{file}:signs"}, rq1.RQ1)
    assert p.model_dump()["attack"] == f"{file}:signs", "other processes are given the file"
    ours, theirs = rq1.cells(p), rq1.cells(plain)
    assert {cell.evaluation.attack.name.split("@")[0] for cell in ours} == {f"{file}:signs"}
    assert [cell.evaluation.model for cell in ours] == [cell.evaluation.model for cell in theirs]
    three = {**values["rq3_task_weights"], "attacks": ["pgd", "apgd", "wgd", "wgd_inverse", f"{file}:signs"]}
    q = parameters.check({**three, "balancers": [f"{file}:rates"]}, rq3.RQ3)
    cells = rq3.cells(q)
    assert f"{file}:rates" in {cell.panel for cell in cells}
    assert {cell.setting for cell in cells if cell.panel == "uniform"} >= {"pgd", f"{file}:signs"}
    assert any(cell.evaluation.model.weights.startswith(f"{file}:rates@") for cell in cells)
    with pytest.raises(ValueError, match="weights should be finite and at least 0|fail for 2 losses"):
        parameters.check({**three, "balancers": [f"{file}:far"]}, rq3.RQ3)
    needs = batch.needs({"rq3_task_weights": {**three, "store": str(tmp_path / "store")}})
    assert any(e.attack.name.startswith(f"{file}:signs@") for e in batch.evaluations(needs, needs.models))


class Patches(nn.Module):
    """Feature maps of one cell for 6 x 6 pixels, with the drop-out that a trial should not need."""

    def __init__(self, channels: int = 5, last: bool = False):
        super().__init__()
        self.layers, self.last = nn.Sequential(nn.Conv2d(3, channels, 6, stride=6), nn.BatchNorm2d(channels)), last

    def forward(self, images):
        maps = self.layers(images)
        return [images, maps] if self.last else maps


def test_an_encoder_of_any_stride_is_a_class_a_function_or_a_network(tmp_path, model):
    """Its maps are brought to the grid of the decoders; a network keeps its weights, a class has a seed's."""
    network = Patches(7, last=True)
    of_class, of_network = (models.build(each, "sd", seed=1) for each in (Patches, network))
    images = torch.rand(2, 3, 32, 32)
    for built, channels in ((of_class, 5), (of_network, 7)):
        assert built.encode(images).shape == (2, channels, 4, 4)
        assert built(images)["d"].shape == (2, 1, 32, 32)
        assert built.training
    assert torch.equal(of_network.encoder.network.layers[0].weight, network.layers[0].weight)
    again, other = (models.build(Patches, "sd", seed=seed).encoder.network.layers[0].weight for seed in (1, 2))
    assert torch.equal(of_class.encoder.network.layers[0].weight, again)
    assert not torch.equal(again, other)
    small = model.model_copy(update={"encoder": "resnet18_tiny"})
    spec = ModelSpec(**{**small.model_dump(exclude={"data"}), "data": DataSpec(size=32), "encoder": Patches})
    assert spec.encoder.startswith("here:Patches@")
    store = Store(tmp_path)
    errors = store.errors(spec, attack(signs))
    assert errors.adversarial_error.notna().all()
    assert (errors.encoder == spec.encoder).all()
    assert cost.operations(spec) > 2 * 5 * 3 * 36 * 25


NO_ENCODER = {
    "flat": "class f(nn.Module):\n  def forward(self, x): return x.flatten(1)",
    "nothing": "def f(): return None",
    "channels": "def f(): return nn.Conv2d(4, 8, 8, stride=8)",
    "gradient": "class f(nn.Module):\n  def forward(self, x): return (x > 0).float()",
    "none": "class f(nn.Module):\n  def forward(self, x): return 0 * x[:, :, ::8, ::8]",
    "nan": "class f(nn.Module):\n  def forward(self, x): return (x - 9).log()[:, :, ::8, ::8]",
    "arguments": "def f(name): return None",
}


@pytest.mark.parametrize("fault", NO_ENCODER)
def test_what_is_no_encoder_is_refused_in_one_line(tmp_path, fault):
    (tmp_path / "mine.py").write_text(f"from torch import nn\n{NO_ENCODER[fault]}")
    values = {**batch.read("params/smoke")["rq1_auxiliary_tasks"], "encoder": f"{tmp_path}/mine.py:f"}
    with pytest.raises(ValueError, match=r"The encoder .*mine.py:f@.* (fails on 64-pixel images|should give)") as error:
        parameters.check(values, rq1.RQ1)
    assert "\n" not in str(error.value)


def test_weights_of_ones_own_are_those_that_the_gradients_have(tmp_path, model):
    """A function that gives 1 / N is uniform weighting, one that favours a task is weights by number; a training that
    was killed goes on with the first losses that it had."""

    def even(losses, first, norms):
        return torch.full_like(losses, 0.5)

    def fixed(losses, first, norms):
        return torch.tensor([0.9, 0.1])

    def rates(losses, first, norms):
        return losses / first / norms

    data = Store(tmp_path).data(model, "train", model.images)
    trained = {}
    for name, weights in {"even": even, "uniform": "uniform", "fixed": fixed, "own": "0.9:0.1", "rates": rates}.items():
        spec = ModelSpec(**{**model.model_dump(exclude={"data"}), "data": model.data, "weights": weights, "epochs": 2})
        training.fit(spec, data, tmp_path / name)
        trained[name] = load_file(training.checkpoint(tmp_path / name, 2))

    def apart(one, other):
        parts = (trained[one][key].float() - trained[other][key].float() for key in trained[one])
        return sum(part.square().sum() for part in parts).sqrt()

    assert apart("even", "uniform") < apart("even", "fixed") / 20, "rounding alone"
    assert apart("fixed", "own") < apart("even", "fixed") / 20
    spec = ModelSpec(**{**model.model_dump(exclude={"data"}), "data": model.data, "weights": rates, "epochs": 2})
    balance = weights_of.Own(spec.weights)
    balance.load({"first": torch.tensor([1.0, 2.0])})
    assert torch.equal(balance.state()["first"], torch.tensor([1.0, 2.0]))


@pytest.mark.parametrize(
    "function",
    [lambda a, b, c: a[:1], lambda a, b: a, lambda a, b, c: 1.0, lambda a, b, c: -a, lambda a, b, c: a / 0],
)
def test_what_are_no_weights_is_refused(model, function):
    with pytest.raises(ValidationError, match="should be floats|fail for 2 losses|should be finite and at least 0"):
        ModelSpec(**{**model.model_dump(exclude={"data"}), "data": model.data, "weights": function})
