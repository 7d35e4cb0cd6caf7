import hashlib

import pytest
import torch

from mtrlib import data, models, specs, training
from mtrlib.specs import ModelSpec
from mtrlib.tasks import TASKS
from mtrlib.training import fitting, weights


def test_uniform_weights_sum_to_one_and_published_ones_put_the_main_task_first():
    assert weights.task_weights("uniform", "sdn") == pytest.approx((1 / 3,) * 3)
    assert weights.task_weights("published", "sd") == (1.0, 0.01)
    assert weights.task_weights("published", "ds") == (1.0, 0.1)
    assert weights.task_weights("published", "E") == (1.0,)
    with pytest.raises(ValueError, match="Found tasks = 'sdn'"):
        weights.task_weights("published", "sdn")
    with pytest.raises(ValueError, match="uniform, published"):
        weights.task_weights("gradnorm", "sd")


def test_a_specification_refuses_weights_that_do_not_exist(tiny):
    with pytest.raises(ValueError, match="UPGrad"):
        ModelSpec(data=tiny.data, tasks="sd", weights="none")
    with pytest.raises(ValueError, match="one number a task of 'sd'"):
        ModelSpec(data=tiny.data, tasks="sd", weights="1.0:0.5:0.1")


def equilibrium(norms, losses, alpha) -> torch.Tensor:
    balance = weights.GradNorm(len(norms), alpha=alpha, learning_rate=0.01)
    balance.update(torch.ones(len(norms)), torch.tensor(norms))
    for _ in range(2000):
        balance.update(torch.tensor(losses), torch.tensor(norms))
    return balance.weights


def test_gradnorm_makes_weighted_gradients_equal_where_tasks_train_alike():
    """Norms 1, 2 and 4, equal training rates: weights 4/7, 2/7 and 1/7."""
    for alpha in (0.0, 1.5):
        found = equilibrium([1.0, 2.0, 4.0], [0.5, 0.5, 0.5], alpha)
        torch.testing.assert_close(found, torch.tensor([4.0, 2.0, 1.0]) / 7, atol=0.01, rtol=0)


def test_gradnorm_gives_weight_to_the_task_that_lags():
    """Equal norms, losses at .8 and .2 of their first: rates 1.6 and .4, so weights near the ratio 4 ** alpha = 8.
    (Both targets cannot hold at once when the sum of the weights is kept, so the ratio is not quite that.)"""
    found = equilibrium([1.0, 1.0], [0.8, 0.2], 1.5)
    assert found[0] / found[1] == pytest.approx(8, rel=0.2)


@pytest.mark.parametrize("first", [0.0, 1e-6, 0.1])
def test_gradnorm_begins_a_task_when_it_has_labels(first):
    """A first batch without a valid label, or with hardly one, is no measure of how a task trains."""
    balance = weights.GradNorm(2)
    balance.update(torch.tensor([first, 1.0]), torch.tensor([first, 1.0]))
    for _ in range(100):
        balance.update(torch.ones(2), torch.ones(2))
    torch.testing.assert_close(balance.weights, torch.tensor([0.5, 0.5]), atol=0.05, rtol=0)


def test_a_task_without_labels_in_a_batch_keeps_its_weight():
    balance = weights.GradNorm(3)
    for _ in range(5):
        balance.update(torch.tensor([1.0, 1.0, 1.0]), torch.tensor([1.0, 2.0, 4.0]))
    before = balance.weights.clone()
    balance.update(torch.tensor([0.9, 1.0, 0.0]), torch.tensor([1.0, 2.0, 0.0]))
    assert balance.weights[2] == before[2]
    assert balance.weights[0] > before[0]
    assert balance.weights.sum().item() == pytest.approx(1)
    kept = balance.weights.clone()
    balance.update(torch.zeros(3), torch.zeros(3))
    torch.testing.assert_close(balance.weights, kept)


def test_the_last_shared_weights_are_those_used_last_not_those_named_last():
    """Of a transformer, whose patch embedding is its only convolution, they are no convolution's."""

    class Odd(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.last, self.unused = torch.nn.Linear(4, 4), torch.nn.Conv2d(3, 4, 1)
            self.patches, self.norm = torch.nn.Conv2d(3, 4, 2, stride=2), torch.nn.LayerNorm(4)

        def forward(self, images):
            tokens = self.patches(images).movedim(1, -1)
            return (tokens + self.norm(self.last(tokens))).movedim(-1, 1)

    odd = Odd()
    assert weights.last_weights(odd(torch.rand(1, 3, 4, 4))) is odd.last.weight
    with torch.autocast("cpu", torch.bfloat16):
        assert weights.last_weights(odd(torch.rand(1, 3, 4, 4))) is odd.last.weight
    for name, last in (("resnet18_small", "layer4.1.conv2"), ("xception_small", "conv3.1")):
        encoder = models.build(name, "d", seed=0).encoder
        assert weights.last_weights(encoder(torch.rand(2, 3, 16, 16))) is encoder.get_submodule(last).weight


def test_gradnorm_on_a_toy_whose_tasks_differ_in_scale_only():
    """Two tasks L_i = c_i |W x - y|^2, c = 1 and 10: their gradients at W are as 1 to 10, their rates are equal, so the
    weights tend to 10/11 and 1/11 (the toy of the paper's section 4, with two tasks)."""
    torch.manual_seed(0)
    encoder = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1), torch.nn.Conv2d(4, 4, 1))
    model = torch.nn.Module()
    model.encoder, model.decoders = encoder, torch.nn.ModuleDict({"s": torch.nn.Identity(), "d": torch.nn.Identity()})
    images, goal = torch.rand(8, 3, 4, 4), torch.rand(8, 4, 4, 4)
    balance = weights.GradNorm(2)
    for _ in range(300):
        latent = encoder(images)
        cut = latent.detach().requires_grad_()
        loss = (cut - goal).square().mean()
        weights.step(balance, model, latent, [loss, 10 * (cut - goal).square().mean()], cut)
    torch.testing.assert_close(balance.weights, torch.tensor([10.0, 1.0]) / 11, atol=0.02, rtol=0)


def test_gradnorm_moves_all_of_its_state_to_the_device_of_the_losses():
    """Also after a resume, which loads on the CPU. The device "meta" stands in for an accelerator."""
    one, two = weights.GradNorm(2), weights.GradNorm(2)
    one.update(torch.ones(2), torch.ones(2))
    two.load(one.state())
    two._to(torch.device("meta"))
    tensors = [two.weights, two.first, *(v for k, v in two.optimizer.state[two.weights].items() if k != "step")]
    assert len(tensors) == 4
    assert {tensor.device.type for tensor in tensors} == {"meta"}


def gradients(name: str) -> dict[str, torch.Tensor]:
    """Of one step of a model of s and d, by name of the parameter."""
    model = models.build("resnet18_small", "sd", seed=0).train()
    g = torch.Generator().manual_seed(0)
    images = torch.rand(4, 3, 16, 16, generator=g)
    targets = {"s": torch.randint(0, 18, (4, 16, 16), generator=g), "d": torch.rand(4, 1, 16, 16, generator=g)}
    balance = weights.balancer(name, "sd")
    latent = model.encode(images)
    cut = latent if balance is None else latent.detach().requires_grad_()
    losses = [TASKS[t].loss(model.decoders[t](cut), targets[t]).mean() for t in "sd"]
    if balance is None:
        (torch.tensor(weights.task_weights(name, "sd")) * torch.stack(losses)).sum().backward()
    else:
        weights.step(balance, model, latent, losses, cut)
    return {name: parameter.grad for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("name", ["Mean", "gradnorm"])
def test_what_begins_as_uniform_weights_has_their_gradients(name):
    """In value, and in memory layout: fused optimizers read parameter and gradient side by side."""
    uniform, found = gradients("uniform"), gradients(name)
    for parameter in uniform:
        torch.testing.assert_close(found[parameter], uniform[parameter], atol=1e-6, rtol=1e-4)
        assert found[parameter].stride() == uniform[parameter].stride()


@pytest.mark.parametrize("name", specs.AGGREGATORS)
def test_every_aggregator_sets_finite_gradients_of_its_own(name):
    torch.manual_seed(0)
    uniform, found = gradients("uniform"), gradients(name)
    assert all(gradient.isfinite().all() for gradient in found.values())
    first = "encoder.conv1.weight"
    if name != "DualProj":  # the same as "Mean" where no gradients conflict, as here
        assert torch.allclose(found[first], uniform[first], rtol=1e-3, atol=1e-6) == (name == "Mean")


def test_upgrad_does_not_work_against_any_task():
    both = gradients("UPGrad")
    for alone in ((1.0, 0.0), (0.0, 1.0)):
        model = models.build("resnet18_small", "sd", seed=0).train()
        g = torch.Generator().manual_seed(0)
        images = torch.rand(4, 3, 16, 16, generator=g)
        targets = {"s": torch.randint(0, 18, (4, 16, 16), generator=g), "d": torch.rand(4, 1, 16, 16, generator=g)}
        outputs = model(images)
        sum(w * TASKS[t].loss(outputs[t], targets[t]).mean() for w, t in zip(alone, "sd", strict=True)).backward()
        product = sum((p.grad * both[f"encoder.{n}"]).sum() for n, p in model.encoder.named_parameters())
        assert product > 0


@pytest.mark.parametrize("name", ["published", "gradnorm", "UPGrad", "PCGrad", "GradVac", "ExcessMTL"])
def test_an_interrupted_training_ends_with_the_same_bytes(tiny, tmp_path, monkeypatch, name):
    """PCGrad draws random numbers, GradVac and ExcessMTL keep averages, GradNorm its weights and first losses."""
    monkeypatch.setattr(fitting, "SAVE_EVERY", 0.0)
    spec = ModelSpec(**{**dict(tiny), "weights": name, "epochs": 4})
    rooms = data.load("rooms", tasks="sd", split="train", size=16, limit=24)
    training.fit(spec, rooms, tmp_path / "whole")
    whole_epoch = training.epoch_losses

    def stops(*arguments):
        if arguments[5] == 3:
            raise KeyboardInterrupt
        return whole_epoch(*arguments)

    monkeypatch.setattr(fitting, "epoch_losses", stops)
    with pytest.raises(KeyboardInterrupt):
        training.fit(spec, rooms, tmp_path / "cut")
    monkeypatch.setattr(fitting, "epoch_losses", whole_epoch)
    history = training.fit(spec, rooms, tmp_path / "cut")
    assert [row["epoch"] for row in history] == [1, 2, 3, 4]
    digests = {
        hashlib.sha256(training.checkpoint(tmp_path / folder, 4).read_bytes()).hexdigest()
        for folder in ("whole", "cut")
    }
    assert len(digests) == 1
