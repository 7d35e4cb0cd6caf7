"""Networks of LibMTL's and Vandenhende's code, built here from torchvision's parts under the names that these give."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.models import resnet
from torchvision.models.segmentation.deeplabv3 import DeepLabHead

from mtrlib import attacks, data, models

NORMALISED = (torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225]))


def dilated(name: str) -> nn.Module:
    """A ResNet whose last map has an eighth of the image's height and width."""
    if name == "resnet50":
        network = resnet.resnet50(weights=None, replace_stride_with_dilation=[False, True, True])
    else:  # torchvision dilates no basic blocks: by hand, of each stage the first convolution, the shortcut, all others
        network = resnet.resnet18(weights=None)
        for stage, first, later in ((network.layer3, 1, 2), (network.layer4, 2, 4)):
            stage[0].downsample[0].stride = stage[0].conv1.stride = (1, 1)
            for convolution in (stage[0].conv2, stage[1].conv1, stage[1].conv2):
                convolution.dilation = convolution.padding = (later, later)
            stage[0].conv1.dilation = stage[0].conv1.padding = (first, first)
    return network


class Theirs(nn.Module):
    """`encoder` and `decoder` are what the code calls its parts; align_corners as it resizes."""

    def __init__(self, encoder: str, name: str, channels: dict[str, int], align_corners: bool, single: bool = False):
        super().__init__()
        network = dilated(name)
        latent, self.called, self.align_corners = network.fc.in_features, encoder, align_corners
        parts = ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4")
        self.add_module(encoder, nn.Sequential())
        for part in parts:
            getattr(self, encoder).add_module(part, getattr(network, part))
        heads = {task: DeepLabHead(latent, number) for task, number in channels.items()}
        if single:
            (self.decoder,) = heads.values()
        else:
            self.decoders = nn.ModuleDict(heads)
        self.channels = channels

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        latent = getattr(self, self.called)(images)
        heads = self.decoders if hasattr(self, "decoders") else dict.fromkeys(self.channels, self.decoder)
        maps = {task: head(latent) for task, head in heads.items()}
        size = {"size": images.shape[2:], "mode": "bilinear", "align_corners": self.align_corners}
        return {task: F.interpolate(each, **size) for task, each in maps.items()}


def trained_a_little(*what, **options) -> Theirs:
    """With running statistics of batch norm that are not those of a new network, and outputs that depend on pixels."""
    torch.manual_seed(0)
    network = Theirs(*what, **options)
    for part in network.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.running_mean.normal_(std=0.1)
            part.running_var.uniform_(0.5, 1.5)
            part.num_batches_tracked.fill_(7)
        if isinstance(part, resnet.BasicBlock | resnet.Bottleneck):
            nn.init.constant_((part.bn3 if hasattr(part, "bn3") else part.bn2).weight, 0.2)
    return network.eval()


LIBMTL = ("encoder", "resnet50", {"segmentation": 13, "depth": 1, "normal": 3}, True)
PASCAL = ("backbone", "resnet18", {"semseg": 21, "human_parts": 7, "sal": 1, "edge": 1, "normals": 3}, False)
NYUD = ("backbone", "resnet50", {"semseg": 40, "depth": 1}, False)
LETTERS = {"segmentation": "s", "semseg": "s", "depth": "d", "normal": "n", "normals": "n", "edge": "b", "sal": "f"}
LETTERS |= {"human_parts": "h"}


@pytest.fixture(scope="module")
def small():
    """The network of LibMTL's example with a smaller encoder."""
    return trained_a_little("encoder", "resnet18", *LIBMTL[2:])


def agree(model, network, images, given):
    with torch.no_grad():
        outputs, wanted = model(images), network(given)
    assert set(outputs) == {LETTERS[task] for task in wanted}
    for task, output in wanted.items():
        assert output.std() > 1e-3
        output = F.normalize(output, dim=1) if task.startswith("normal") else output  # as their losses and measures do
        torch.testing.assert_close(outputs[LETTERS[task]], output, rtol=1e-4, atol=1e-4)


def test_a_checkpoint_of_libmtl_gives_what_its_network_gives(tmp_path):
    """Images as they are; not square, so that height is not width."""
    libmtl = trained_a_little(*LIBMTL)
    torch.save(libmtl.state_dict() | {"loss_scale": torch.zeros(3)}, tmp_path / "best.pt")
    model = models.load_described(tmp_path / "best.pt", "libmtl")
    assert not model.training
    assert {letter: task.channels for letter, task in model.definitions.items()} == {"s": 13, "d": 1, "n": 3}
    images = torch.rand(1, 3, 32, 80)
    agree(model, libmtl, images, images)
    assert model.encoder.bn1.num_batches_tracked == 7
    agree(models.folded(model), libmtl, images, images)


@pytest.mark.parametrize("what", [PASCAL, NYUD])
def test_a_checkpoint_of_vandenhendes_gives_what_its_network_gives(what, tmp_path):
    """As `DataParallel` names them, in a checkpoint with more, and without counters of batch norm."""
    network = trained_a_little(*what)
    state = {f"module.{k}": v for k, v in network.state_dict().items() if not k.endswith("num_batches_tracked")}
    torch.save({"model": state, "epoch": 3}, tmp_path / "best_model.pth.tar")
    model = models.load_described(tmp_path / "best_model.pth.tar", "vandenhende")
    images = torch.rand(1, 3, 32, 80)
    mean, deviation = (each.view(1, 3, 1, 1) for each in NORMALISED)
    agree(model, network, images, (images - mean) / deviation)


def test_a_network_of_one_task_is_told_which(tmp_path):
    network = trained_a_little("backbone", "resnet18", {"edge": 1}, False, single=True)
    torch.save(network.state_dict(), tmp_path / "edge.pt")
    model = models.load_described(tmp_path / "edge.pt", "vandenhende", task="edge")
    images = torch.rand(2, 3, 64, 64)
    mean, deviation = (each.view(1, 3, 1, 1) for each in NORMALISED)
    agree(model, network, images, (images - mean) / deviation)
    assert model.definitions["b"].kind == "labels"
    for task in (None, "edges"):
        with pytest.raises(ValueError, match=f"one, of the parameter task. Found one, and task = {task!r}"):
            models.load_described(tmp_path / "edge.pt", "vandenhende", task=task)
    with pytest.raises(ValueError, match=r"decoder.4.weight: \(1, 256, 1, 1\) instead of \(3, 256, 1, 1\)"):
        models.load_described(tmp_path / "edge.pt", "vandenhende", task="normals")


def test_it_is_attacked_by_the_losses_of_a_data_set(small, tmp_path):
    torch.save(small.state_dict(), tmp_path / "best.pt")
    known = data.tasks("nyuv2")
    model = models.load_described(tmp_path / "best.pt", "libmtl", definitions=known)
    assert model.definitions == {letter: known[letter] for letter in "sdn"}
    images = torch.rand(1, 3, 64, 64)
    targets = {"s": torch.zeros(1, 64, 64), "n": F.normalize(torch.ones(1, 3, 64, 64), dim=1)}
    losses = attacks.task_losses(model, targets, None, "sn")
    attacked = attacks.pgd(losses, images, eps=2 / 255, step_size=1 / 255, steps=2)
    assert (losses(attacked).sum() > losses(images).sum()).all()
    cut = {"s": data.tasks("cityscapes")["s"]}
    with pytest.raises(ValueError, match=r"decoders.segmentation.4.weight: \(13, .* instead of \(19, "):
        models.load_described(tmp_path / "best.pt", "libmtl", definitions=cut)


def without(name: str):
    return lambda state: {key: value for key, value in state.items() if key != name}


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (without("encoder.layer4.1.conv2.weight"), r"missing encoder.layer4.1.conv2.weight \(512, 512, 3, 3\)\.$"),
        (without("decoders.depth.0.project.1.running_var"), r"missing decoders.depth.0.project.1.running_var \(256,\)"),
        (lambda s: s | {"encoder.fc.bias": torch.zeros(1000)}, r"has of no use encoder.fc.bias\.$"),
        (lambda s: s | {"decoders.depth.5.bias": torch.zeros(1)}, r"has of no use decoders.depth.5.bias\.$"),
        (lambda s: s | {"loss_scales": torch.zeros(3)}, "of no use loss_scales"),
        (lambda s: s | {"decoders.depth.4.bias": torch.zeros(2)}, r"depth.4.bias: \(2,\) instead of \(1,\)"),
        (
            lambda s: s | {"encoder.conv1.weight": torch.full((64, 3, 7, 7), torch.nan)},
            "no finite numbers encoder.conv1",
        ),
        (lambda s: s | {f"encoder.attention.{i}": torch.zeros(1) for i in range(5)}, "; 2 more"),  # MTAN's, for one
        (
            lambda s: s | {"decoders.pose.4.bias": torch.zeros(2)},
            "out of segmentation, depth, normal, .* depth, normal, pose",
        ),
        (lambda s: {k: v for k, v in s.items() if k.startswith("encoder.")}, "Found none"),
    ],
)
def test_what_is_left_over_on_either_side_is_told_in_one_line(small, tmp_path, change, told):
    torch.save(change(small.state_dict()), tmp_path / "best.pt")
    with pytest.raises(ValueError, match=told) as error:
        models.load_described(tmp_path / "best.pt", "libmtl")
    assert "\n" not in str(error.value)


def test_one_codes_checkpoint_is_none_of_the_other(small, tmp_path):
    torch.save(small.state_dict(), tmp_path / "best.pt")
    with pytest.raises(ValueError, match="tasks out of semseg, .* Found segmentation, depth, normal"):
        models.load_described(tmp_path / "best.pt", "vandenhende")
    with pytest.raises(ValueError, match="Found segmentation, depth, normal, and task = 'depth'"):
        models.load_described(tmp_path / "best.pt", "libmtl", task="depth")


OWN = """
encoder: "net."
decoders: "heads."
stride: 16
align_corners: false
mean: [0.5, 0.5, 0.5]
deviation: [0.5, 0.5, 0.5]
tasks: {seg: {letter: s}}
"""


def test_a_description_of_ones_own(tmp_path):
    """Stride 16: of the third stage the strides, of the fourth the dilation."""
    torch.manual_seed(0)
    body = resnet.resnet50(weights=None, replace_stride_with_dilation=[False, False, True]).eval()
    body.avgpool, body.fc = nn.Identity(), nn.Unflatten(1, (2048, 4, 4))
    head = DeepLabHead(2048, 5).eval()
    state = {f"net.{k}": v for k, v in body.state_dict().items()}
    torch.save(state | {f"heads.seg.{k}": v for k, v in head.state_dict().items()}, tmp_path / "own.pt")
    (tmp_path / "own.yaml").write_text(OWN)
    model, images = models.load_described(tmp_path / "own.pt", tmp_path / "own.yaml"), torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        wanted = F.interpolate(head(body(2 * images - 1)), (64, 64), mode="bilinear")
        torch.testing.assert_close(model(images)["s"], wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("stride: 16", "stride: 4", "stride Input should be 8, 16 or 32"),
        ("stride: 16", "", "stride Field required"),
        ("stride: 16", "stride: 16\nhead: linear", "head Extra inputs are not permitted"),
        ("[0.5, 0.5, 0.5]", "[0.5]", "mean List should have at least 3 items"),
        ("letter: s", "letter: s, colour: red", "unexpected keyword argument 'colour'"),
        ("letter: s", "name: s", "KeyError: 'letter'"),
        ("letter: s", "letter: s, kind: maps", "kind should be one of classes"),
        ("encoder:", "encoder", "should be a description like libmtl.yaml"),
    ],
)
def test_a_wrong_description_is_told_in_one_line(tmp_path, old, new, told):
    assert old in OWN
    (tmp_path / "own.yaml").write_text(OWN.replace(old, new, 1))
    with pytest.raises(ValueError, match=told) as error:
        models.load_described(tmp_path / "best.pt", tmp_path / "own.yaml")
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="names should be one of libmtl, vandenhende, or a YAML file. Found .* 'none'"):
        models.load_described(tmp_path / "best.pt", "none")
