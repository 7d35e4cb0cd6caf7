import pickle

import pytest
import torch
from torch import nn
from torchvision.models import resnet

from mtrlib import attacks, models
from mtrlib.data import Dataset
from mtrlib.models import encoders
from mtrlib.specs import AttackSpec, DataSpec, ModelSpec
from mtrlib.store import Store, evaluation
from mtrlib.tasks import TASKS, Task


def test_the_pair_of_s_and_d_has_the_size_that_the_supplement_prints():
    assert sum(p.numel() for p in models.build("resnet18", "sd", classes=7).parameters()) == 14_187_848
    assert sum(p.numel() for p in models.build("resnet18", "sd").parameters()) / 1e6 == pytest.approx(14.19, abs=0.005)


# The supplement's Table 1, in millions; the Xception's is that of s and d (the table prints 4.33).
SIZES = {"resnet18": 14.19, "resnet50": 29.66, "resnet152": 64.30, "wide_resnet50_2": 72.99, "xception_small": 4.32}


@pytest.mark.parametrize("encoder", SIZES)
def test_pairs_have_the_sizes_of_the_supplement(encoder):
    found = sum(p.numel() for p in models.build(encoder, "sd", classes=7).parameters()) / 1e6
    assert found == pytest.approx(SIZES[encoder], abs=0.0055)


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "wide_resnet50_2"])
def test_a_small_encoder_has_half_the_channels(name):
    whole, small = (models.build(encoder, "d").encoder for encoder in (name, f"{name}_small"))
    assert encoders.build(f"{name}_small")[1] == encoders.build(name)[1] // 2
    for (key, large), (other, half) in zip(
        whole.layer3.named_parameters(), small.layer3.named_parameters(), strict=True
    ):
        assert key == other
        assert half.shape[0] == large.shape[0] // 2


def test_a_tiny_encoder_and_its_decoders_have_a_quarter_of_the_channels():
    """Of the small one's; images and outputs apart."""
    small, tiny = (models.build(name, "sd", classes=12) for name in ("resnet18_small", "resnet18_tiny"))
    kept = {3, 1, 12}
    for (key, large), (other, quarter) in zip(small.named_parameters(), tiny.named_parameters(), strict=True):
        assert key == other
        for many, few in zip(large.shape[:2], quarter.shape[:2], strict=True):
            assert few == (many if many in kept else many // 4), key


def test_any_timm_network_that_gives_feature_maps_is_an_encoder():
    """A convolutional one and a plain transformer, at a size that neither was trained for; the same for a seed."""
    images = torch.rand(1, 3, 64, 64)
    for name, stride in (("timm/convnext_atto", 32), ("timm/vit_tiny_patch16_224", 16)):
        assert encoders.stride(name) == stride
        one, two, other = (models.build(name, "sd", seed=seed).eval() for seed in (0, 0, 1))
        assert one(images)["d"].shape == (1, 1, 64, 64)
        assert torch.equal(one(images)["s"], two(images)["s"])
        assert not torch.equal(one(images)["s"], other(images)["s"])


def test_trained_weights_that_cannot_be_had_are_one_clear_error(monkeypatch):
    import timm

    def fails(name, pretrained=False, **_):
        raise OSError("no route to the hub")

    monkeypatch.setattr(timm, "create_model", fails)
    with pytest.raises(ValueError, match="trained weights of timm/resnet18 cannot be fetched: no route to the hub"):
        models.build("timm/resnet18", "s", pretrained=True)
    with pytest.raises(ValueError, match="only timm/<name>"):
        models.build("resnet18", "s", pretrained=True)


def test_a_specification_begins_from_trained_weights_and_loads_without_them(monkeypatch, tmp_path):
    """Weights are asked for when a model is trained; a trained one is read from the store alone."""
    asked = []
    real = encoders.build

    def build(name, pretrained=False):
        asked.append(pretrained)
        return real(name)

    monkeypatch.setattr(encoders, "build", build)
    spec = ModelSpec(
        data=DataSpec(size=64), tasks="sd", images=4, batch_size=2, epochs=1, encoder="timm/resnet10t", pretrained=True
    )
    Store(tmp_path).model(spec)
    Store(tmp_path).model(spec)
    assert asked == [True, False, False]


def shaken(model: models.MultiTaskModel) -> models.MultiTaskModel:
    """The model in evaluation mode, with batch norms that do something."""
    g = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.3, generator=g)
            module.running_var.uniform_(0.5, 2, generator=g)
            torch.nn.init.uniform_(module.weight, 0.5, 1.5, generator=g)
            torch.nn.init.normal_(module.bias, 0, 0.2, generator=g)
    return model.eval().requires_grad_(False)


@pytest.mark.parametrize("encoder", ["resnet18_small", "resnet50_small", "resnet18_tiny", "resnet18", "xception_small"])
def test_folding_batch_norms_changes_outputs_by_rounding_only(encoder):
    """And leaves none of them, nor anything of the model that it was given, changed."""
    model = shaken(models.build(encoder, "sd", seed=0))
    before = {name: values.clone() for name, values in model.state_dict().items()}
    small = models.folded(model)
    assert not [module for module in small.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    images = torch.rand(2, 3, 64, 64)
    for letter, output in model(images).items():
        assert torch.allclose(small(images)[letter], output, rtol=0, atol=2e-5 * output.abs().max().item())
    assert all(torch.equal(before[name], values) for name, values in model.state_dict().items())


@pytest.mark.parametrize(("before", "after", "size"), [(64, 32, 32), (256, 128, 8), (3, 5, 1)])
def test_upsampling_is_a_transposed_convolution_in_every_precision(before, after, size):
    torch.manual_seed(0)
    layer = encoders.Upsampling(before, after).to(memory_format=torch.channels_last)
    reference = nn.ConvTranspose2d(before, after, 2, stride=2)
    reference.load_state_dict(layer.state_dict())
    images = torch.randn(4, before, size, size + 1).contiguous(memory_format=torch.channels_last)
    direction = torch.randn(4, after, 2 * size, 2 * size + 2)

    def passes(layer: nn.Module, half: bool) -> list[torch.Tensor]:
        """The output and its gradients by the image, the weights and the bias."""
        point = images.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            output = layer(point)
        assert output.dtype is (torch.bfloat16 if half else torch.float32)
        assert output.is_contiguous(memory_format=torch.channels_last)
        return [output, *torch.autograd.grad((output.float() * direction).sum(), (point, *layer.parameters()))]

    for here, there in zip(passes(layer, False), passes(reference, False), strict=True):
        assert torch.equal(here, there)
    exact = passes(reference, False)
    for here, there, value in zip(passes(layer, True), passes(reference, True), exact, strict=True):
        assert here.shape == there.shape
        assert (here - there).norm() <= 0.006 * value.norm()  # a bfloat16 has 8 bits
        assert (here - value).norm() <= 1.5 * (there - value).norm() + 1e-6 * value.norm()  # about as exact


def test_networks_of_timm_are_not_folded():
    model = shaken(models.build("timm/resnet10t", "d", seed=0))
    small = models.folded(model)
    norms = [
        sum(isinstance(m, torch.nn.BatchNorm2d) for m in part.modules()) for part in (model.encoder, small.encoder)
    ]
    assert norms[0] == norms[1] > 0
    images = torch.rand(1, 3, 64, 64)
    assert torch.allclose(small(images)["d"], model(images)["d"], atol=1e-5)


def test_heads_of_every_encoder_are_named_by_task():
    """Save with one order of tasks, load with another; the published Xception stored them by position."""
    for encoder in ("xception_small", "resnet50_small"):
        one, two = models.build(encoder, "Ed", seed=1).eval(), models.build(encoder, "dE", seed=2).eval()
        two.load_state_dict(one.state_dict())
        images = torch.rand(2, 3, 32, 32)
        assert torch.equal(one(images)["d"], two(images)["d"])
        assert torch.equal(one(images)["E"], two(images)["E"])


@pytest.mark.parametrize(
    ("encoder", "size", "latent"),
    [("resnet18", 64, 2), ("resnet18_small", 64, 8), ("resnet18_tiny", 64, 8), ("xception_small", 64, 4)],
)
def test_outputs_have_the_size_of_the_image(encoder, size, latent):
    model = models.build(encoder, "sdn", seed=0).eval()
    images = torch.rand(2, 3, size, size)
    assert model.encoder(images).shape[-2:] == (latent, latent)
    outputs = model(images)
    shapes = {letter: tuple(output.shape) for letter, output in outputs.items()}
    assert shapes == {"s": (2, 18, size, size), "d": (2, 1, size, size), "n": (2, 3, size, size)}


def test_heads_are_named_by_task_not_by_position():
    """Save with one order of tasks, load with another: every task must keep its own head."""
    one = models.build("resnet18_small", "dsn", seed=1).eval()
    two = models.build("resnet18_small", "nsd", seed=2).eval()
    two.load_state_dict(one.state_dict())
    images = torch.rand(2, 3, 16, 16)
    ours, theirs = one(images), two(images)
    for letter in "sdn":
        assert torch.equal(ours[letter], theirs[letter])


def test_only_the_decoders_asked_for_run():
    model = models.build("resnet18_small", "sdn", seed=0).eval()
    model.decoders["s"].register_forward_hook(lambda *_: pytest.fail("the decoder of s ran"))
    assert list(model(torch.rand(1, 3, 16, 16), "nd")) == ["n", "d"]
    with pytest.raises(ValueError, match="'sdn'"):
        model(torch.rand(1, 3, 16, 16), "sE")


def test_images_are_normalised_inside():
    """The encoder sees zero where an image has ImageNet's mean colour."""
    model = models.build("resnet18_small", "d", seed=0)
    seen = []
    model.encoder.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    model(torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1).expand(1, 3, 16, 16))
    torch.testing.assert_close(seen[0], torch.zeros(1, 3, 16, 16))


def test_a_seed_gives_an_encoder_and_a_decoder_of_each_task():
    wanted = (("sd", 3), ("d", 3), ("d", 4))
    pair, single, other = (models.build("resnet18_small", t, seed=s).state_dict() for t, s in wanted)
    assert all(torch.equal(pair[name], value) for name, value in single.items())
    assert not torch.equal(single["encoder.conv1.weight"], other["encoder.conv1.weight"])


def test_an_unknown_encoder_is_refused():
    with pytest.raises(ValueError, match="resnet18, resnet50, .*, timm/<name>"):
        models.build("resnet19", "s")
    with pytest.raises(ValueError, match="timm has no model 'resnet19'"):
        models.build("timm/resnet19", "s")


def test_a_model_keeps_the_definitions_that_it_was_built_with():
    """They decide channels, losses and errors, in attacks and evaluation too."""
    own = {"x": Task("x", "flow", "", 2, loss_name="squared", error_name="angle"), "d": Task("d", "metres", "", 4)}
    model = models.build("resnet18_small", "xd", definitions=own, seed=0).eval()
    assert model.definitions == own
    images = torch.rand(2, 3, 16, 16)
    outputs = model(images)
    assert (outputs["x"].shape[1], outputs["d"].shape[1]) == (2, 4)
    targets = {"x": torch.rand(2, 2, 16, 16), "d": torch.rand(2, 4, 16, 16)}
    losses = attacks.task_losses(model, targets, None, "x")(images)
    torch.testing.assert_close(losses[0], (outputs["x"] - targets["x"]).square().mean(dim=(1, 2, 3)))
    data = Dataset("mine", (images * 255).byte(), targets, {"x": None, "d": None}, ("0", "1"), (), tasks=own)
    errors = evaluation.errors(model, data, AttackSpec(tasks="x", steps=1)).set_index("task")
    expected = own["x"].error(model(data.batch(slice(None))[0])["x"], targets["x"])
    assert errors.loc["x"].clean_error.tolist() == pytest.approx(expected.tolist(), rel=1e-4)
    with pytest.raises(ValueError, match="letters out of 'xd'"):
        models.build("resnet18_small", "xs", definitions=own)


def test_a_function_as_model_is_attacked_by_the_papers_losses():
    images = torch.rand(2, 3, 8, 8)
    losses = attacks.task_losses(lambda x, tasks: {"A": x}, {"A": images + 1}, None, "A")
    torch.testing.assert_close(losses(images), torch.ones(1, 2))
    assert models.build("resnet18_small", "A").definitions == {"A": TASKS["A"]}


class Original(nn.Module):
    """The published network from its description, in plain layers under its names: the oracle of `load_published`."""

    CHANNELS = {"segmentsemantic": 18, "depth_zbuffer": 1, "normal": 3, "principal_curvature": 2, "autoencoder": 3}

    def __init__(self, name: str, tasks: list[str], classes: int = 18):
        super().__init__()
        self.encoder = getattr(resnet, name)(weights=None)
        latent, self.encoder.fc = self.encoder.fc.in_features, nn.Identity()
        self.task_to_decoder = nn.ModuleDict()
        for task in tasks:
            layers, before = nn.ModuleDict(), latent
            for stage, width in enumerate((256, 128, 64, 48, 32)):
                layers[f"upconv{stage}"] = nn.ConvTranspose2d(before, width, 2, 2)
                layers[f"bn_upconv{stage}"] = nn.BatchNorm2d(width)
                if stage < 4:
                    layers[f"conv_decode{stage}"] = nn.Conv2d(width, width, 3, padding=1)
                    layers[f"bn_decode{stage}"] = nn.BatchNorm2d(width)
                before = width
            channels = classes if task == "segmentsemantic" else self.CHANNELS[task]
            layers["conv_decode4"] = nn.Conv2d(32, channels, 3, padding=1)
            self.task_to_decoder[task] = layers

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        """`images` in [-1, 1]."""
        net = self.encoder
        latent = net.maxpool(net.bn1(net.conv1(images)).relu())
        latent = net.layer4(net.layer3(net.layer2(net.layer1(latent))))
        outputs = {}
        for task, part in self.task_to_decoder.items():
            x = latent
            for stage in range(5):
                x = part[f"bn_upconv{stage}"](part[f"upconv{stage}"](x)).relu()
                if stage < 4:
                    x = part[f"bn_decode{stage}"](part[f"conv_decode{stage}"](x)).relu()
            outputs[task] = part["conv_decode4"](x)
        return outputs


def trained_a_little(name: str, tasks: list[str], classes: int = 18) -> Original:
    """With running statistics of batch norm that are not those of a new network, and outputs of the size of 1."""
    torch.manual_seed(0)
    model = Original(name, tasks, classes)
    for part in model.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.running_mean.normal_(std=0.1)
            part.running_var.uniform_(0.5, 1.5)
            part.num_batches_tracked.fill_(7)
        if isinstance(part, (resnet.BasicBlock, resnet.Bottleneck)):
            nn.init.constant_((part.bn3 if hasattr(part, "bn3") else part.bn2).weight, 0.2)
    return model.eval()


LETTERS = {"segmentsemantic": "s", "depth_zbuffer": "d", "normal": "n", "principal_curvature": "p", "autoencoder": "A"}


@pytest.mark.parametrize(
    ("name", "tasks", "classes", "module", "bare"),
    [
        ("resnet18", ["segmentsemantic", "depth_zbuffer"], 18, True, False),
        ("resnet18", ["depth_zbuffer", "segmentsemantic", "normal"], 7, False, True),
        ("resnet50", ["principal_curvature", "autoencoder"], 18, True, True),
        ("wide_resnet50_2", ["normal"], 18, False, False),
        ("resnet152", ["normal"], 18, True, False),
    ],
)
def test_a_published_checkpoint_gives_what_the_original_gives(tmp_path, name, tasks, classes, module, bare):
    original = trained_a_little(name, tasks, classes)
    state = {("module." if module else "") + key: value for key, value in original.state_dict().items()}
    torch.save(state if bare else {"state_dict": state, "epoch": 150}, tmp_path / "checkpoint_150.pth.tar")
    model = models.load_published(tmp_path / "checkpoint_150.pth.tar")
    assert model.tasks == "".join(LETTERS[task] for task in tasks)
    assert not model.training
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        wanted, outputs = original(2 * images - 1), model(images)
    for task, output in wanted.items():
        assert output.abs().max() > 0.01
        torch.testing.assert_close(outputs[LETTERS[task]], output, rtol=1e-5, atol=1e-5)
    assert model.encoder.bn1.num_batches_tracked == 7


def test_the_order_of_heads_in_a_checkpoint_does_not_matter(tmp_path):
    original = trained_a_little("resnet18", ["segmentsemantic", "depth_zbuffer"])
    state = original.state_dict()
    torch.save(state, tmp_path / "one")
    torch.save(dict(reversed(state.items())), tmp_path / "two")
    one, two = (models.load_published(tmp_path / name) for name in ("one", "two"))
    assert (one.tasks, two.tasks) == ("sd", "ds")
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        for letter in "sd":
            assert torch.equal(one(images)[letter], two(images)[letter])


def test_counters_of_batch_norm_may_be_missing_and_running_statistics_may_not(tmp_path):
    state = trained_a_little("resnet18", ["normal"]).state_dict()
    torch.save({k: v for k, v in state.items() if not k.endswith("num_batches_tracked")}, tmp_path / "old")
    torch.save(state, tmp_path / "new")
    old, new = (models.load_published(tmp_path / name) for name in ("old", "new"))
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(old(images)["n"], new(images)["n"])
    torch.save({k: v for k, v in state.items() if not k.endswith("running_var")}, tmp_path / "bad")
    with pytest.raises(ValueError, match=r"missing encoder.bn1.running_var \(64,\)"):
        models.load_published(tmp_path / "bad")


def test_what_is_wrong_with_a_checkpoint_is_listed(tmp_path):
    state = trained_a_little("resnet18", ["normal", "depth_zbuffer"]).state_dict()
    del state["encoder.layer4.1.conv2.weight"]
    state["encoder.fc.weight"] = torch.zeros(1000, 512)
    state["task_to_decoder.normal.conv_decode4.weight"] = torch.zeros(2, 32, 3, 3)
    torch.save({"state_dict": {f"module.{key}": value for key, value in state.items()}}, tmp_path / "bad")
    with pytest.raises(ValueError, match="Nearest to resnet18, it has") as error:
        models.load_published(tmp_path / "bad")
    assert [line.strip() for line in str(error.value).splitlines()[1:]] == [
        "missing encoder.layer4.1.conv2.weight (512, 512, 3, 3)",
        "of no use encoder.fc.weight",
        "of a wrong shape task_to_decoder.normal.conv_decode4.weight: (2, 32, 3, 3) instead of (3, 32, 3, 3)",
    ]


class Hostile:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_a_hostile_checkpoint_does_nothing(tmp_path):
    content = {"state_dict": {"encoder.conv1.weight": Hostile(tmp_path / "written")}}
    torch.save(content, tmp_path / "zip")
    (tmp_path / "plain").write_bytes(pickle.dumps(content))
    for name in ("zip", "plain"):
        with pytest.raises(
            ValueError, match=f"{name} should hold tensors and plain values only; nothing in it was run"
        ):
            models.load_published(tmp_path / name)
    assert not (tmp_path / "written").exists()
    torch.load(tmp_path / "zip", weights_only=False)["state_dict"]["encoder.conv1.weight"].close()
    assert (tmp_path / "written").exists(), "the file is as hostile as this test says"


@pytest.mark.parametrize("content", [{"epoch": 3}, [1, 2], {}, {"state_dict": {"a": 1}}, {3: torch.zeros(1)}])
def test_what_is_no_state_dict_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "other")
    with pytest.raises(ValueError, match="should be a state dict"):
        models.load_published(tmp_path / "other")


def test_checkpoints_of_other_tasks_or_none_are_refused(tmp_path):
    with pytest.raises(ValueError, match="There is no file"):
        models.load_published(tmp_path / "none")
    (tmp_path / "cut").write_bytes(b"PK\x03\x04 cut off")
    with pytest.raises(ValueError, match="tensors and plain values only"):
        models.load_published(tmp_path / "cut")
    torch.save({"task_to_decoder.room_layout.fc.weight": torch.zeros(1)}, tmp_path / "rooms")
    with pytest.raises(ValueError, match="tasks out of segmentsemantic, .* Found room_layout"):
        models.load_published(tmp_path / "rooms")
    torch.save({"encoder.conv1.weight": torch.zeros(1)}, tmp_path / "headless")
    with pytest.raises(ValueError, match="Found none"):
        models.load_published(tmp_path / "headless")
