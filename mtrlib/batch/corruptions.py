"""Corruptions of images: four of Hendrycks and Dietterich (2019, arXiv 1903.12261), with their severities for images of
32 pixels, CIFAR-10-C, those of the blur in shares of the width."""

import io
from math import ceil

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional

CORRUPTIONS: dict[str, tuple[float, ...]] = {  # at severities 1 to 5
    "noise": (0.04, 0.06, 0.08, 0.09, 0.10),  # its standard deviation, in the range of the image
    "blur": (0.4, 0.6, 0.7, 0.8, 1.0),  # sigma in 32nds of the width
    "contrast": (0.75, 0.5, 0.4, 0.3, 0.15),  # what is left of it, as in fog
    "compression": (80, 65, 58, 50, 40),  # the quality of JPEG
}


def corrupted(images: Tensor, kind: str, severity: int) -> Tensor:
    """(N, 3, H, W) uint8 -> the same, each image by itself corrupted by one of `CORRUPTIONS`, at severity 1 to 5."""
    value = CORRUPTIONS[kind][severity - 1]
    if kind == "noise":  # that of torchvision draws from the global generator
        drawn = torch.Generator().manual_seed(severity)
        noise = torch.stack([torch.randn(each.shape, generator=drawn) for each in images]).to(images.device)
        return (images + 255 * value * noise).round().clamp(0, 255).to(torch.uint8)
    if kind == "blur":
        sigma = value * images.shape[-1] / 32
        return functional.gaussian_blur(images, 2 * ceil(3 * sigma) + 1, sigma)
    if kind == "contrast":
        return functional.adjust_contrast(images, value)
    made = []
    for each in images.cpu():  # by Pillow, since torchvision gives its own JPEG up
        packed = io.BytesIO()
        functional.to_pil_image(each).save(packed, "JPEG", quality=int(value))
        made.append(functional.pil_to_tensor(Image.open(packed)))
    return torch.stack(made).to(images.device)
