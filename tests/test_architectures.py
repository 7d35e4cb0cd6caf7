"""Networks that share in other ways than by one encoder: what holds of every model holds of them too."""

import dataclasses
from collections import OrderedDict

import pytest
import torch
from torch import nn

from mtrlib import attacks, models
from mtrlib.models import ARCHITECTURES, encoders, stages
from mtrlib.models.cross_stitch import CrossStitch
from mtrlib.models.mtan import MTAN
from mtrlib.models.mti_net import MTINet
from mtrlib.models.nddr import NDDR
from mtrlib.models.pad_net import PADNet
from mtrlib.store import evaluation

NEW = [name for name in ARCHITECTURES if name != "hard"]
pytestmark = pytest.mark.usefixtures("one_thread")


def build(name: str, tasks: str = "sdn", seed: int = 0, encoder: str = "resnet18_tiny") -> models.MultiTaskModel:
    """In evaluation mode, with batch norms and mixtures that do something."""
    model = models.build(encoder, tasks, seed=seed, architecture=name)
    g = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.3, generator=g)
            module.running_var.uniform_(0.5, 2, generator=g)
            nn.init.uniform_(module.weight, 0.5, 1.5, generator=g)
    return model.eval().requires_grad_(False)


class DeepLab(nn.Sequential):
    """The head of the survey's networks, as far as its size goes (Chen et al. 2017, rates 12, 24, 36)."""

    def __init__(self, before: int, after: int):
        def layer(one: int, two: int, size: int = 1) -> nn.Module:
            return nn.Sequential(nn.Conv2d(one, two, size, bias=False), nn.BatchNorm2d(two))

        branches = [layer(before, 256), *(layer(before, 256, 3) for _ in range(3)), layer(before, 256)]
        super().__init__(*branches, layer(5 * 256, 256), layer(256, 256, 3), nn.Conv2d(256, after, 1))


def millions(*modules: nn.Module) -> float:
    return sum(p.numel() for module in modules for p in module.parameters()) / 1e6


def test_resnet50_networks_have_the_sizes_of_the_survey():
    """Two tasks, of 40 classes and one channel, with DeepLab's heads: 80, 56, 102, 72 and 80 million there; by hand, to
    the tenth, 79.3, 55.8, 101.6, 72.0 and 79.3 with 15,360 mixtures."""
    with torch.device("meta"):
        body, latent = encoders.build("resnet50")
        heads = {"s": DeepLab(latent, 40), "d": DeepLab(latent, 1)}
        own = {letter: encoders.build("resnet50")[0] for letter in "sd"}
        alone = millions(*own.values(), *heads.values())
        assert alone == pytest.approx(79.277, abs=1e-3)
        assert millions(models.MultiTaskModel(body, heads)) == pytest.approx(55.769, abs=1e-3)
        assert millions(CrossStitch(own, heads)) - alone == pytest.approx(0.01536)
        assert millions(NDDR(own, heads)) == pytest.approx(101.592, abs=1e-3)
        assert millions(MTAN(body, heads)) == pytest.approx(72.043, abs=1e-3)


def test_hrnet_networks_have_the_sizes_worked_out_by_hand():
    """HRNet-18-small of 3.86 million, whose four scales have 18, 36, 72 and 144 channels: PAD-Net about 7.0 million
    (on the scales joined, 270), MTI-Net about 8.6."""
    widths, backbone = (18, 36, 72, 144), 3.86072

    def bottlenecks(after: int) -> nn.Module:
        return nn.Sequential(stages.block(256, 256), stages.block(256, 256), nn.Conv2d(256, after, 1))

    def joined(after: int) -> nn.Module:
        return nn.Sequential(*stages.convolution(270, 270, nn.ReLU()), nn.Conv2d(270, after, 1))

    sizes = {"s": 40, "d": 1}
    known = {t: models.build("resnet18_tiny", t).definitions[t] for t in "sd"}
    known["s"] = dataclasses.replace(known["s"], channels=40, class_names=())
    pad = PADNet(nn.Identity(), {t: bottlenecks(c) for t, c in sizes.items()}, known, channels=270)
    layers = {f"layer{i + 1}": nn.Conv2d(b, a, 1) for i, (b, a) in enumerate(zip((3, *widths), widths, strict=False))}
    scales = nn.Sequential(OrderedDict(layers))
    mti = MTINet(scales, {t: joined(c) for t, c in sizes.items()}, known)
    assert millions(pad) + backbone == pytest.approx(7.0, abs=0.06)
    assert millions(mti) - millions(scales) + backbone == pytest.approx(8.6, abs=0.05)


@pytest.mark.parametrize("name", NEW)
def test_every_encoder_and_any_convolutional_one_of_timm_gives_maps_of_the_size_of_the_image(name):
    with torch.device("meta"):
        for encoder in (*encoders.ENCODERS, "timm/resnet10t", "timm/convnext_atto"):
            model = models.build(encoder, "sd", architecture=name).eval()
            outputs = model(torch.zeros(2, 3, 128, 64), "ds")
            shapes = {letter: tuple(output.shape) for letter, output in outputs.items()}
            assert shapes == {"d": (2, 1, 128, 64), "s": (2, 18, 128, 64)}


def test_an_encoder_without_stages_is_refused_where_they_are_needed():
    for name in NEW:
        if name == "pad_net":
            assert models.build("timm/vit_tiny_patch16_224", "sd", architecture=name).tasks == "sd"
        else:
            with pytest.raises(ValueError, match="4 stages that run one after another.* Found FeatureGetterNet"):
                models.build("timm/vit_tiny_patch16_224", "sd", architecture=name)


def test_an_unknown_architecture_and_one_task_are_refused():
    with pytest.raises(ValueError, match="one of hard, cross_stitch, nddr, mtan, pad_net, mti_net. Found .* = 'soft'"):
        models.build("resnet18_tiny", "sd", architecture="soft")
    with pytest.raises(ValueError, match="two at least for the architecture mtan. Found 'd'"):
        models.build("resnet18_tiny", "d", architecture="mtan")


@pytest.mark.parametrize("name", NEW)
def test_folding_batch_norms_changes_outputs_by_rounding_only(name):
    model, images = build(name), torch.rand(2, 3, 32, 32)
    small = models.folded(model)
    assert not [module for module in small.modules() if isinstance(module, nn.BatchNorm2d)]
    for letter, output in model(images).items():
        assert torch.allclose(small(images)[letter], output, rtol=0, atol=5e-5 * output.abs().max().item())


@pytest.mark.parametrize("name", NEW)
def test_tasks_are_named_not_counted(name):
    """Saved with one order of tasks, loaded with another: every task keeps all that is its own."""
    one, two = build(name, "sdn"), build(name, "nsd", seed=1)
    two.load_state_dict(one.state_dict())
    images = torch.rand(2, 3, 32, 32)
    for letter, output in one(images).items():
        torch.testing.assert_close(two(images)[letter], output, rtol=1e-4, atol=1e-5)


def parts_of(model: models.MultiTaskModel, letter: str) -> list[nn.Module]:
    """The modules that stand under the letter of a task, of the outermost ones."""
    named = [(name.split("."), module) for name, module in model.named_modules()]
    return [module for path, module in named if path[-1] == letter and letter not in path[:-1]]


@pytest.mark.parametrize("name", NEW)
def test_what_the_tasks_asked_for_do_not_need_is_not_run(name):
    """The outputs are those of all tasks; of another task its decoder, its last mixture, the messages to it and first
    predictions stay out, and without exchange all that is its own."""
    model, images = build(name), torch.rand(1, 3, 32, 32)
    whole = model(images)
    idle = [module for module in parts_of(model, "n") if not model.exchanges or module is model.decoders["n"]]
    if model.exchanges and name not in ("cross_stitch", "nddr"):
        places = [model.distillation] if name == "pad_net" else model.distillation
        idle += [each for place in places for each in place.messages["n"].values()]
        idle += [module for key, module in model.named_modules() if "first" in key and not list(module.children())]
    if name == "nddr":
        idle.append(model.units[-1].layers["n"])
    for module in idle:
        module.register_forward_pre_hook(lambda *_: pytest.fail("a part that is of no use ran"))
    found = model(images, "ds")
    assert list(found) == ["d", "s"]
    assert all(torch.equal(found[letter], whole[letter]) for letter in "sd")
    with pytest.raises(ValueError, match="'sdn'"):
        model(images, "sE")


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_exchanges_says_whether_a_task_depends_on_what_is_of_another(name):
    model, images = build(name, "sd"), torch.rand(1, 3, 32, 32)
    before = model(images, "s")["s"]
    for module in parts_of(model, "d"):
        for parameter in module.parameters():
            parameter.mul_(1.5)
    assert torch.equal(model(images, "s")["s"], before) != model.exchanges


@pytest.mark.parametrize("name", NEW)
def test_a_seed_decides_all_weights_and_the_encoder_is_that_of_every_model(name):
    one, two, other = (models.build("resnet18_tiny", "sd", seed=s, architecture=name) for s in (0, 0, 1))
    assert all(torch.equal(value, two.state_dict()[key]) for key, value in one.state_dict().items())
    assert any(not torch.equal(value, other.state_dict()[key]) for key, value in one.state_dict().items())
    hard = models.build("resnet18_tiny", "sd", seed=0).state_dict()
    for letter in ["s.", "d."] if name in ("cross_stitch", "nddr") else [""]:
        ours = one.state_dict()
        assert all(torch.equal(ours[k.replace("encoder.", f"encoder.{letter}")], hard[k]) for k in hard if k[0] == "e")


def test_a_stitch_mixes_each_channel_by_its_own_weights():
    unit = CrossStitch.unit("sdn", 2)
    assert torch.allclose(unit.weights.sum(dim=1), torch.ones(3, 2)), "at first all tasks together count one"
    assert unit.weights[0, :, 0].tolist() == pytest.approx([0.9, 0.05, 0.05])
    with torch.no_grad():
        unit.weights.copy_(torch.arange(18).view(3, 3, 2))  # rows and columns: d, n, s
    maps = {
        "s": torch.full((1, 2, 1, 1), 1.0),
        "d": torch.full((1, 2, 1, 1), 10.0),
        "n": torch.full((1, 2, 1, 1), 100.0),
    }
    mixed = unit(maps, "nd")
    assert mixed["d"].flatten().tolist() == [0 * 10 + 2 * 100 + 4, 1 * 10 + 3 * 100 + 5]
    assert mixed["n"].flatten().tolist() == [6 * 10 + 8 * 100 + 10, 7 * 10 + 9 * 100 + 11]


def test_nddr_begins_as_the_mixture_that_a_stitch_begins_as():
    """But for batch norm, which does nothing at mean 0 and variance 1, and for the ReLU."""
    maps = {letter: torch.rand(2, 4, 3, 3) for letter in "sd"}
    reduced = NDDR.unit("sd", 4).eval()(maps, "sd")
    for letter, mixed in CrossStitch.unit("sd", 4)(maps, "sd").items():
        torch.testing.assert_close(reduced[letter], mixed, rtol=1e-4, atol=1e-5)


def test_stitches_that_do_not_mix_leave_single_task_models():
    alone = {letter: build("hard", letter, seed=ord(letter)) for letter in "sd"}
    model = build("cross_stitch", "sd")
    model.start_from(alone)
    for unit in model.units:
        unit.weights.copy_(torch.eye(2)[:, :, None].expand_as(unit.weights))
    images = torch.rand(2, 3, 32, 32)
    for letter, output in model(images).items():
        torch.testing.assert_close(output, alone[letter](images)[letter], rtol=1e-4, atol=1e-5)


def test_a_message_is_let_through_by_its_gate():
    """Half of it where the gate is at zero; none of it where it is shut: then a task has its own features alone."""
    model, images = build("pad_net", "sd"), torch.rand(1, 3, 32, 32)
    features = {letter: initial(model.encode(images)) for letter, initial in model.initial.items()}
    message = model.distillation.messages["s"]["d"]
    message.gate.weight.zero_()
    told = model.distillation(features, "s")["s"]
    torch.testing.assert_close(told, features["s"] + message.told(features["d"]) / 2)
    message.told.weight.zero_()
    assert torch.equal(model.distillation(features, "s")["s"], features["s"])


@pytest.mark.parametrize(("name", "scales"), [("hard", 0), ("mtan", 0), ("nddr", 0), ("pad_net", 1), ("mti_net", 4)])
def test_decoders_that_distil_predict_on_the_way(name, scales):
    model, early = build(name, "sd"), []
    outputs = model.decode(model.encode(torch.rand(2, 3, 32, 32)), "sd", early)
    assert len(early) == scales
    for prediction in early:
        assert {t: each.shape[:2] for t, each in prediction.items()} == {t: outputs[t].shape[:2] for t in "sd"}


@pytest.mark.parametrize("name", NEW)
def test_they_are_attacked_in_both_precisions(name, generator):
    """In bfloat16 the outputs and the gradient point where those of float32 do."""
    model, images = build(name, "sd"), torch.rand(4, 3, 32, 32)
    targets = {"d": torch.rand(4, 1, 32, 32)}
    found = []
    for precision in ("float32", "bfloat16"):
        losses = attacks.task_losses(evaluation.for_attack(model, precision), targets, None, "d")
        point = images.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
            (gradient,) = torch.autograd.grad(losses(point).sum(), point)
            raised = losses(attacks.pgd(losses, images, eps=8 / 255, step_size=2 / 255, steps=3, generator=generator))
            assert (raised > losses(images)).all()
        found.append(gradient.flatten())
    assert torch.cosine_similarity(*found, dim=0) > 0.9
