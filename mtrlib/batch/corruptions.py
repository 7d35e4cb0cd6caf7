"""Corruptions of images, four of ImageNet-C (Hendrycks and Dietterich 2019, arXiv 1903.12261) with its severities."""

import io
from math import ceil

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional

CORRUPTIONS: dict[str, tuple[float, ...]] = {  # at severities 1 to 5
    "noise": (0.08, 0.12, 0.18, 0.26, 0.38),  # its standard deviation, in the range of the image
    "blur": (1, 2, 3, 4, 6),  # sigma in 224ths of the width
    "contrast": (0.4, 0.3, 0.2, 0.1, 0.05),  # what is left of it, as in fog
    "compression": (25, 18, 15, 10, 7),  # the quality of JPEG
}


def corrupted(images: Tensor, kind: str, severity: int) -> Tensor:
    """(N, 3, H, W) uint8 -> the same, each image by itself corrupted by one of `CORRUPTIONS`, at severity 1 to 5."""
    value = CORRUPTIONS[kind][severity - 1]
    if kind == "noise":  # that of torchvision draws from the global generator
        drawn = torch.Generator().manual_seed(severity)
        noise = torch.stack([torch.randn(each.shape, generator=drawn) for each in images]).to(images.device)
        return (images + 255 * value * noise).round().clamp(0, 255).to(torch.uint8)
    if kind == "blur":
        sigma = value * images.shape[-1] / 224
        return functional.gaussian_blur(images, 2 * ceil(3 * sigma) + 1, sigma)
    if kind == "contrast":
        return functional.adjust_contrast(images, value)
    return torch.stack([_jpeg(each, int(value)) for each in images.cpu()]).to(images.device)


def _jpeg(image: Tensor, quality: int) -> Tensor:
    """(3, H, W) uint8, packed and unpacked: by Pillow, since torchvision gives its own up."""
    packed = io.BytesIO()
    functional.to_pil_image(image).save(packed, "JPEG", quality=quality)
    return functional.pil_to_tensor(Image.open(packed))
