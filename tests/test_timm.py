"""Encoders of timm: one small member of every family of the pinned version, on tensors without content."""

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from mtrlib import models
from mtrlib.models import encoders, own
from mtrlib.specs import DataSpec, ModelSpec
from mtrlib.store import Store

NAMES = """
beit_base_patch16_224 eca_botnext26ts_256 mobileone_s0 cait_xxs24_224 coat_tiny convit_tiny convmixer_768_32
convnext_atto_rms cpubone_nano crossvit_tiny_240 csatv2 cs3darknet_focus_s cspnext_tiny davit_tiny deepseek_vit_412m
deit_tiny_patch16_224 densenet121 dla34 dpn131 edgenext_xx_small efficientformer_l1 efficientformerv2_s0
mnasnet_small efficientvim_m1 efficientvit_b0 efficientvit_m0 eva02_tiny_patch14_224 fasternet_s fastvit_t12
focalnet_tiny_srf gcvit_xxtiny gemma4_vit_167m ghostnet_050 hardcorenas_b hgnetv2_b0 hiera_tiny_224 sam2_hiera_tiny
hrnet_w18_small iformer_t inception_next_atto inception_resnet_v2 inception_v3 inception_v4 lcnetv2_small levit_128s
lowformer_b0 mambaout_femto maxvit_pico_rw_256 poolformerv2_s12 gmlp_ti16_224 mobilenetv3_small_050 mobilenetv5_base
mobilevit_xxs mvitv2_tiny naflexvit_so150m2_patch16_reg1_gap nasnetalarge nest_tiny nextvit_small nf_regnet_b0
pit_ti_224 pnasnet5large pvt_v2_b0 qwen3_vit_88m rdnet_tiny regnetx_002 repghostnet_050 repvit_m0_9 res2next50
resnest14d resnet10t resnetv2_18 rexnet_100 selecsls42 legacy_seresnet18 sequencer2d_s shvit_s1 skresnet18
starnet_s050 swiftformer_xs swin_tiny_patch4_window7_224 swinv2_tiny_window8_256 swinv2_cr_tiny_224 tiny_vit_5m_224
tnt_s_legacy_patch16_224 tresnet_m twins_svt_small vgg11 visformer_tiny vit_tiny_patch16_224 vit_tiny_r_s16_p8_224
vit_srelpos_small_patch16_224 samvit_base_patch16_224 vitamin_small_224 volo_d1_224 ese_vovnet19b_slim_dw
legacy_xception xception41p xcit_nano_12_p8_224
"""
LARGER = {"inception_resnet_v2": 128, "inception_v3": 128, "inception_v4": 128}  # whose last maps vanish at 64 pixels


def test_every_family_of_timm_is_tried():
    of = {timm.models.model_entrypoint(name).__module__.split(".")[-1] for name in NAMES.split()}
    assert of == set(timm.list_modules())


@pytest.mark.parametrize("name", NAMES.split())
def test_a_network_of_every_family_trains_on_small_images(name):
    """A step through it: its last feature map comes on the grid of the decoders, whatever its own form and grid."""
    encoders.refuse_unfit(f"timm/{name}", LARGER.get(name, 64))


@pytest.mark.parametrize("name", ["swin_tiny_patch4_window7_224", "eva02_tiny_patch14_224", "levit_128s"])
def test_what_a_network_gives_is_turned_and_brought_to_the_grid(name):
    """Channels last; patches of 14; a fixed size of 224."""
    with torch.device("meta"):
        model = models.build(f"timm/{name}", "sd")
        outputs, latent = model(torch.zeros(2, 3, 96, 64)), model.encode(torch.zeros(2, 3, 96, 64))
    grid = encoders.stride(f"timm/{name}")
    assert latent.shape == (2, model.encoder.channels, 96 // grid, 64 // grid)
    assert outputs["d"].shape == (2, 1, 96, 64)


def test_a_network_that_cannot_be_trained_is_refused_with_its_specification():
    with pytest.raises(ValueError, match="timm/inception_v3 cannot be trained on images of 64 pixels: RuntimeError"):
        ModelSpec(data=DataSpec(size=64), tasks="sd", encoder="timm/inception_v3")
    ModelSpec(data=DataSpec(size=128), tasks="sd", encoder="timm/inception_v3")


def test_names_that_end_like_ours_have_the_decoders_of_their_stride():
    """Such as convnext_small, at stride 32."""
    with torch.device("meta"):
        assert models.build("timm/convnext_small", "d")(torch.zeros(1, 3, 64, 64))["d"].shape == (1, 1, 64, 64)


PATCHES = nn.Conv2d(3, 4, 8, stride=8)


def spec(**changes) -> ModelSpec:
    values = {
        "tasks": "sd",
        "images": 8,
        "epochs": 1,
        "batch_size": 4,
        "data": DataSpec(size=32),
        "precision": "float32",
    }
    return ModelSpec(**{**values, **changes})


@pytest.mark.parametrize("head", ["convolutions", "linear", "dense"])
def test_a_frozen_encoder_keeps_its_weights_and_statistics_and_its_decoders_learn(tmp_path, head):
    torch.manual_seed(1)
    network = nn.Sequential(nn.Conv2d(3, 8, 8, stride=8), nn.BatchNorm2d(8), nn.ReLU())
    frozen = spec(encoder=network, frozen=True, head=head)
    model = Store(tmp_path).model(frozen)
    for name, value in model.encoder.network.state_dict().items():
        assert torch.equal(value, network.state_dict()[name]), name
    before = models.build(network, "sd", seed=0, frozen=True, head=head)
    assert before.train().encoder.training is False
    learned = dict(model.decoders.named_parameters())
    assert not any(
        torch.equal(learned[name], value) for name, value in before.decoders.named_parameters() if value.dim() > 1
    )
    assert model(torch.rand(1, 3, 32, 32))["s"].shape[2:] == (32, 32)
    assert frozen.key != spec(encoder=network).key
    folded, images = models.folded(model), torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(folded(images)["d"], model(images)["d"], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"encoder": "resnet18_tiny"}, "begins from random weights"),
        (
            {"encoder": nn.Conv2d(3, 4, 8, stride=8), "weights": "gradnorm"},
            "weights should be fixed for a frozen encoder",
        ),
        (
            {"encoder": nn.Conv2d(3, 4, 8, stride=8), "head": "cnn"},
            "Input should be 'convolutions', 'linear' or 'dense'",
        ),
    ],
)
def test_what_cannot_be_frozen_is_refused(changes, told):
    with pytest.raises(ValueError, match=told):
        spec(**changes, frozen=True)


@pytest.mark.parametrize("prefix", ["", "module.", "encoder.backbone."])
@pytest.mark.parametrize("encoder", ["resnet18", "timm/resnet10t"])
def test_an_encoder_begins_from_the_weights_of_a_file(tmp_path, encoder, prefix):
    """Of torchvision and of timm, alone or in a multi-task model; other entries are left out."""
    if encoder == "resnet18":
        from torchvision.models import resnet18

        whole = resnet18(weights=None)
    else:
        whole = timm.create_model("resnet10t", pretrained=False)
    state = {prefix + name: value for name, value in whole.state_dict().items()}
    if prefix:
        state |= {"decoders.s.conv1.weight": torch.zeros(2), "epoch": torch.tensor(3)}
    path = tmp_path / "weights.pth"
    torch.save({"state_dict": state}, path)
    save_file(state, tmp_path / "weights.safetensors")
    for file in (path, tmp_path / "weights.safetensors"):
        model = models.build(encoder, "s", pretrained=str(file))
        body = model.encoder if encoder == "resnet18" else model.encoder.network
        assert torch.equal(body.layer4[-1].conv2.weight, whole.layer4[-1].conv2.weight)
        assert torch.equal(body.layer1[0].bn1.running_var, whole.layer1[0].bn1.running_var)


def test_a_file_of_weights_is_part_of_the_key_and_faults_are_one_line(tmp_path):
    names = {}
    for seed in (0, 1):
        torch.manual_seed(seed)
        torch.save(models.build("resnet18_tiny", "s").encoder.state_dict(), tmp_path / "weights.pth")
        names[seed] = spec(encoder="resnet18_tiny", pretrained=f"{tmp_path}/weights.pth", frozen=True)
    assert names[0].key != names[1].key
    assert names[1].pretrained.startswith(f"{tmp_path}/weights.pth@")
    with pytest.raises(ValueError, match="has changed since it was named"):
        models.build("resnet18_tiny", "s", pretrained=names[0].pretrained)
    for wrong, told in {
        "none.pth": "There is no file",
        "weights.pth": "should be of this encoder. They are not: missing conv1|of a wrong shape",
        "pickle.pth": "tensors and plain values only; nothing in it was run",
    }.items():
        if wrong == "pickle.pth":
            torch.save({"a": nn.Linear(1, 1)}, tmp_path / wrong)
        with pytest.raises(ValueError, match=told):
            spec(encoder="resnet18_small", pretrained=f"{tmp_path}/{wrong}")
    assert ModelSpec(data=DataSpec(), tasks="sd").key == "c32dff6514d0d2d2", "all else has the key that it had"
    state = models.build("resnet18_tiny", "s").encoder.state_dict()
    here = spec(encoder="resnet18_tiny", pretrained=state)
    assert here.pretrained == own.pinned_weights(state)
