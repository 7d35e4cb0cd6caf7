"""Encoders from elsewhere, of the library timm and of the user's own, brought to the form of ours."""

import copy
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mtrlib.models import checkpoints, own

TIMM = "timm/"


class Features(nn.Module):
    """The last feature map of a network from elsewhere, brought to the grid of the decoders: (B, 3, H, W) -> (B,
    channels, H / stride, W / stride), where stride is the power of two from 2 to 32 that is nearest to the network's.

    Maps with the channels last are turned, maps of another grid are resized (bilinear). So are images first, of a
    network that takes those of `pixels` only, or a multiple of its patches: to the next one.
    """

    pixels: Sequence[int] | None = None
    multiple = 1

    def __init__(self, network: nn.Module, channels: int, stride: float):
        super().__init__()
        self.network, self.channels, self.stride = network, channels, 2 ** min(max(round(math.log2(stride)), 1), 5)

    def forward(self, images: Tensor) -> Tensor:
        grid = [n // self.stride for n in images.shape[2:]]
        pixels = self.pixels or [math.ceil(n / self.multiple) * self.multiple for n in images.shape[2:]]
        features = self.network(resized(images, pixels))
        features = features[-1] if isinstance(features, list | tuple) else features
        if features.shape[1] != self.channels:
            features = features.permute(0, 3, 1, 2)
        return resized(features, grid)


def resized(maps: Tensor, size: Sequence[int]) -> Tensor:
    """(B, C, h, w) -> (B, C, H, W), bilinear, in the type that it has."""
    if maps.shape[2:] == torch.Size(size):
        return maps
    return nn.functional.interpolate(maps.float(), tuple(size), mode="bilinear", align_corners=False).to(maps.dtype)


def brought(name: str) -> Features:
    """An encoder of the user's: a copy of a network, or what a class or a function without arguments makes, which gives
    feature maps (B, C, h, w), the last of them where there are several. ValueError of one line for anything else, after
    a trial on two small images: for maps that are not finite, and where no gradient reaches the images."""
    made = own.find(name)
    try:
        network = copy.deepcopy(made) if isinstance(made, nn.Module) else made()
        if not isinstance(network, nn.Module):
            raise TypeError(f"it should be a torch.nn.Module, found {type(network).__name__}")
        of = next((each.device for each in network.parameters()), torch.device("cpu"))
        images = torch.linspace(-2, 2, 2 * 3 * 64 * 64, device=of).view(2, 3, 64, 64).requires_grad_()
        with torch.enable_grad():
            features = network.eval()(images)
            features = features[-1] if isinstance(features, list | tuple) else features
            (gradient,) = torch.autograd.grad(features.sum(), images)
    except Exception as error:  # of whatever type: it is not ours
        raise ValueError(f"The encoder {name} fails on 64-pixel images: {own.said(error)}.") from error
    if features.dim() != 4 or len(features) != 2 or not features.is_floating_point():
        found = f"{features.dtype} {tuple(features.shape)}"
        raise ValueError(f"The encoder {name} should give feature maps (B, C, h, w). Found {found} for two images.")
    if of.type != "meta" and not (features.isfinite().all() and gradient.isfinite().all() and gradient.any()):
        raise ValueError(f"The encoder {name} should give finite maps, with a gradient that is finite and not all 0.")
    return Features(network.train(), features.shape[1], 64 / features.shape[2])


class Timm(Features):
    """The last feature map of a network of timm. One of a fixed size is made for any where timm can do that
    (transformers, whose positions are then interpolated), else it is given images of its own size."""

    def __init__(self, name: str, pretrained: bool | str):
        import timm

        plain, common = name.removeprefix(TIMM), {"features_only": True, "pretrained": bool(pretrained)}
        if isinstance(pretrained, str):
            with torch.device("meta"):
                names = timm.create_model(plain).state_dict()
            state = checkpoints.stripped(checkpoints.starting_weights(pretrained), names)
            common["pretrained_cfg_overlay"] = {"state_dict": state}
        for options in ({"dynamic_img_size": True}, {"strict_img_size": False}, {}):
            try:
                network = timm.create_model(plain, **options, **common)
                break
            except TypeError as error:
                if not options:
                    raise ValueError(f"{name} gives no feature maps: {error}") from error
            except Exception as error:
                if pretrained:  # of whatever type: it is fetched, or a user's
                    done = "fitted" if isinstance(pretrained, str) else "fetched"
                    raise ValueError(f"The trained weights of {name} cannot be {done}: {error}") from error
                if isinstance(error, (RuntimeError, AttributeError)):
                    raise ValueError(f"{name} gives no feature maps: {error}") from error
                raise
        info, made_for = network.feature_info, timm.get_pretrained_cfg(plain)
        fixed = not options and made_for is not None and made_for.fixed_input_size
        super().__init__(network, info.channels()[-1], stride := info.reduction()[-1])
        self.pixels, self.multiple = made_for.input_size[1:] if fixed else None, stride if math.log2(stride) % 1 else 1
