"""The encoders: the paper's (torchvision's ResNets and its small Xception; arXiv 2110.15053, "Models"), smaller ones
for 64-pixel images, any of the library timm that gives feature maps, and those of the user's own.

A `*_small` encoder is the network of its name with half the channels, a 3 x 3 stem of stride 2 without max-pooling and
output stride 8, so that a 64-pixel image keeps the 8 x 8 latent that a 256-pixel image has in the paper. A `*_tiny`
encoder is the `*_small` one with a quarter of its channels, and so are its decoders: a fourteenth of the operations,
for runs that are to be short on any machine.
"""

from collections import OrderedDict
from functools import lru_cache

import torch
from torch import Tensor, nn

from mtrlib.models import checkpoints, own
from mtrlib.models.elsewhere import TIMM, Features, Timm, brought, resized

# Pixels of the image to one of the latent.
_STRIDES = dict.fromkeys(("resnet18", "resnet50", "resnet152", "wide_resnet50_2"), 32) | {"xception_small": 16}
_SMALL = ("resnet18_small", "resnet50_small", "wide_resnet50_2_small", "resnet18_tiny", "resnet50_tiny")
_STRIDES |= dict.fromkeys(_SMALL, 8)
ENCODERS = tuple(_STRIDES)


def known(name: str) -> str:
    """The name of an encoder, if it is one: of `ENCODERS`, "timm/" and a name of timm's, or, with its digest, of the
    user's. Else a ValueError."""
    if name.startswith(TIMM):
        import timm

        if not timm.is_model(name.removeprefix(TIMM)):
            close = timm.list_models(f"*{name.removeprefix(TIMM)[:8]}*")[:5]
            raise ValueError(f"timm has no model {name.removeprefix(TIMM)!r}. Near it: {', '.join(close) or 'none'}.")
    elif name not in _STRIDES and not own.is_own(name):
        allowed = ", ".join((*ENCODERS, "timm/<name>", "<file>.py:<class or function>"))
        raise ValueError(f"Parameter encoder should be one of {allowed}. Found encoder = {name!r}.")
    return name


@lru_cache
def stride(name: str) -> int:
    """Pixels of the image to one of the latent, height and width alike."""
    if known(name) in _STRIDES:
        return _STRIDES[name]
    return _untrained(name).stride


@lru_cache
def refuse_unfit(name: str, size: int) -> None:
    """ValueError of one line where an encoder from elsewhere cannot be trained on images of `size` pixels: one step of
    it, of timm's on tensors that have shapes and no content."""
    if known(name) in _STRIDES:
        return
    for device in ("meta", "cpu"):
        encoder = _untrained(name, device)
        if device == "meta" and any(isinstance(part, nn.RNNBase) for part in encoder.modules()):
            continue  # on tensors without content it takes minutes
        device = next((each.device for each in encoder.parameters()), torch.device("cpu"))
        try:
            features = encoder(torch.full((2, 3, size, size), 0.5, device=device, requires_grad=True))
            features.sum().backward()
            if features.shape[:2] != (2, encoder.channels):
                raise ValueError(f"its last feature map is {tuple(features.shape)} for two images")
            return
        except Exception as error:  # of whatever type: it is not ours
            if device.type == "cpu" or " meta " not in str(error):  # which not every network runs on
                told = f"{name} cannot be trained on images of {size} pixels: {own.said(error)}."
                raise ValueError(told) from error


def _untrained(name: str, device: str = "meta") -> Features:
    if not name.startswith(TIMM):
        return brought(name)
    with torch.device(device):
        return Timm(name, pretrained=False)


def build(name: str, pretrained: bool | str = False) -> tuple[nn.Module, int]:
    """A new encoder, (B, 3, H, W) -> (B, channels, H / stride, W / stride), and the channels. Its weights are random;
    or `pretrained`, fetched by timm, for "timm/<name>" only; or those that `own.pinned_weights` has named."""
    if known(name) not in _STRIDES:
        encoder = Timm(name, pretrained) if name.startswith(TIMM) else brought(name)
        if isinstance(pretrained, str) and not name.startswith(TIMM):
            checkpoints.fitted(encoder.network, pretrained)
        built = encoder, encoder.channels
    else:
        built = _ours(name)
        if isinstance(pretrained, str):
            checkpoints.fitted(built[0], pretrained)
    if pretrained is True and not name.startswith(TIMM):
        raise ValueError(f"Parameter pretrained should be false for {name}: only timm/<name> has trained weights.")
    return built


def _ours(name: str) -> tuple[nn.Module, int]:
    if name == "xception_small":
        return _xception(), 256
    network, _, size = name.rpartition("_")
    if size in ("small", "tiny"):
        return _small_resnet(network, 8 if size == "tiny" else 32)
    from torchvision.models import resnet  # here, as in `_small_resnet`: it takes longer to import than torch

    network = getattr(resnet, name)(weights=None)
    parts = ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4")
    return nn.Sequential(OrderedDict((part, getattr(network, part)) for part in parts)), network.fc.in_features


def _small_resnet(name: str, narrowest: int) -> tuple[nn.Module, int]:
    """A ResNet whose first stage has so many channels."""
    from torchvision.models.resnet import BasicBlock, Bottleneck

    counts, block = ((2, 2, 2, 2), BasicBlock) if name == "resnet18" else ((3, 4, 6, 3), Bottleneck)
    group = {"base_width": 128} if name.startswith("wide") else {}
    layers: dict[str, nn.Module] = {"conv1": nn.Conv2d(3, narrowest, 3, stride=2, padding=1, bias=False)}
    layers |= {"bn1": nn.BatchNorm2d(narrowest), "relu": nn.ReLU()}
    before = narrowest
    for i, (count, step) in enumerate(zip(counts, (1, 2, 2, 1), strict=True)):
        width = narrowest * 2**i
        after = width * block.expansion
        shortcut = None
        if step != 1 or before != after:
            shortcut = nn.Sequential(nn.Conv2d(before, after, 1, stride=step, bias=False), nn.BatchNorm2d(after))
        first = block(before, width, step, shortcut, **group)
        layers[f"layer{i + 1}"] = nn.Sequential(first, *(block(after, width, **group) for _ in range(count - 1)))
        before = after
    return nn.Sequential(OrderedDict(layers)), before


class Separable(nn.Sequential):
    """A depthwise convolution and a pointwise one (Chollet 2017, arXiv 1610.02357)."""

    def __init__(self, before: int, after: int, size: int = 3):
        depthwise = nn.Conv2d(before, before, size, padding=size // 2, groups=before, bias=False)
        super().__init__(depthwise, nn.Conv2d(before, after, 1, bias=False))


class _XceptionBlock(nn.Module):
    """Two separable convolutions beside a shortcut; with a stride both are halved by it."""

    def __init__(self, before: int, after: int, stride: int, begins_with_relu: bool = True):
        super().__init__()
        body: list[nn.Module] = [nn.ReLU()] if begins_with_relu else []
        body += [Separable(before, after), nn.BatchNorm2d(after), nn.ReLU()]
        body += [Separable(after, after), nn.BatchNorm2d(after)]
        self.shortcut = nn.Identity()
        if stride != 1:
            body.append(nn.Conv2d(after, after, stride, stride=stride))
            self.shortcut = nn.Sequential(nn.Conv2d(before, after, 1, stride=stride, bias=False), nn.BatchNorm2d(after))
        self.body = nn.Sequential(*body)

    def forward(self, images: Tensor) -> Tensor:
        return self.body(images) + self.shortcut(images)


def _xception() -> nn.Module:
    layers = OrderedDict(
        conv1=nn.Conv2d(3, 24, 3, stride=2, padding=1, bias=False),
        bn1=nn.BatchNorm2d(24),
        relu1=nn.ReLU(),
        conv2=nn.Conv2d(24, 48, 3, padding=1, bias=False),
        bn2=nn.BatchNorm2d(48),
        relu2=nn.ReLU(),
        block1=_XceptionBlock(48, 96, 2, begins_with_relu=False),
        block2=_XceptionBlock(96, 192, 2),
        block3=_XceptionBlock(192, 512, 2),
    )
    layers |= {f"block{i}": _XceptionBlock(512, 512, 1) for i in range(4, 8)}
    layers |= {"conv3": Separable(512, 256), "bn3": nn.BatchNorm2d(256), "relu3": nn.ReLU()}
    return nn.Sequential(layers)


class Upsampling(nn.ConvTranspose2d):
    """A 2 x 2 transposed convolution of stride 2, (B, before, H, W) -> (B, after, 2 H, 2 W). Trained in bfloat16 on a
    CPU it is computed as what it is, one matrix product for all pixels, since no two inputs meet in one output: the
    same but for rounding, and its gradient of the weights takes a tenth to a quarter of the time."""

    def __init__(self, before: int, after: int):
        super().__init__(before, after, kernel_size=2, stride=2)

    def forward(self, images: Tensor) -> Tensor:
        half = torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") is torch.bfloat16
        if images.device.type != "cpu" or not half or not self.weight.requires_grad:
            return super().forward(images)
        batch, before, height, width = images.shape
        pixels = images.permute(0, 2, 3, 1).reshape(-1, before)  # views, channels last
        weights = self.weight.permute(0, 2, 3, 1).reshape(before, -1)
        outputs = torch.addmm(self.bias.repeat(4), pixels, weights)
        blocks = outputs.view(batch, height, width, 2, 2, self.out_channels).transpose(2, 3)
        return blocks.reshape(batch, 2 * height, 2 * width, self.out_channels).permute(0, 3, 1, 2)


class XceptionDecoder(nn.Module):
    """The decoder that goes with `xception_small`: four steps up by two, and a thin copy of the latent beside them."""

    def __init__(self, channels: int):
        super().__init__()

        def up(before: int, after: int) -> list[nn.Module]:
            return [Upsampling(before, after), nn.BatchNorm2d(after), nn.ReLU()]

        def mix(before: int, after: int, size: int) -> list[nn.Module]:
            return [Separable(before, after, size), nn.BatchNorm2d(after), nn.ReLU()]

        self.beside = nn.Sequential(Separable(256, 16), nn.BatchNorm2d(16))
        first = [Separable(256, 96), nn.BatchNorm2d(96)]
        stages = [*first, *up(96, 96), *mix(96, 64, 3), *up(64, 64), *mix(64, 64, 5), *up(64, 32), *mix(32, 32, 5)]
        self.stages = nn.Sequential(*stages, *up(32, 32)[:2])
        self.head = Separable(48, channels, 5)

    def forward(self, latent: Tensor) -> Tensor:
        main, beside = self.stages(latent), self.beside(latent)
        return self.head(torch.cat([main, resized(beside, main.shape[2:])], dim=1).relu())
