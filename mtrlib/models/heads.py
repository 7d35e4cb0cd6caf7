"""Decoders other than the paper's, such as for frozen encoders (DINOv2, Oquab et al. 2023, arXiv 2304.07193, section
7.4, reads its features with the same two): both take the last feature map and end in maps of the image's size."""

from collections import OrderedDict

from torch import Tensor, nn

from mtrlib.models import encoders
from mtrlib.models.elsewhere import resized


def linear(encoder: str, latent: int, channels: int) -> nn.Module:
    """A batch norm and a 1 x 1 convolution, whose map is resized to the image (bilinear)."""
    up = nn.Upsample(scale_factor=encoders.stride(encoder), mode="bilinear", align_corners=False)
    parts = {"norm": nn.BatchNorm2d(latent), "head": nn.Conv2d(latent, channels, 1), "up": up}
    return nn.Sequential(OrderedDict(parts))


class Dense(nn.Module):
    """Like DPT (Ranftl et al. 2021, arXiv 2103.13413, section 3.1), but with all four levels from the last feature map
    and not from four: the map at 4, 2, 1 and 1/2 of its size, each projected to `width` channels and fused from coarse
    to fine by residual units; then the head, on the finest level, resized to the image."""

    def __init__(self, encoder: str, latent: int, channels: int, width: int = 64):
        super().__init__()
        self.stride = encoders.stride(encoder)
        larger = [nn.ConvTranspose2d(latent, width, n, stride=n) for n in (4, 2)]
        half = nn.Conv2d(latent, width, 3, stride=2, padding=1)
        self.levels = nn.ModuleList([*larger, nn.Conv2d(latent, width, 1), half])
        self.units = nn.ModuleList(_unit(width) for _ in self.levels)
        self.head = nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, channels, 1))

    def forward(self, latent: Tensor) -> Tensor:
        fused = None
        for level, unit in zip(reversed(self.levels), reversed(self.units), strict=True):
            own = level(latent)
            fused = own if fused is None else own + resized(fused, own.shape[2:])
            fused = fused + unit(fused)
        return resized(self.head(fused), [n * self.stride for n in latent.shape[2:]])


HEADS = {"convolutions": None, "linear": linear, "dense": Dense}  # None: that of `network`


def _unit(width: int) -> nn.Module:
    def half() -> list[nn.Module]:
        return [nn.ReLU(), nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)]

    return nn.Sequential(*half(), *half())
