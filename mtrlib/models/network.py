"""Multi-task networks: one shared encoder, one decoder for each task (paper, section "Models"; arXiv 2110.15053).

The encoders are those of `encoders`. The decoder is that of Taskonomy as the authors use it: 2 x 2 transposed
convolutions of stride 2, as many as bring the latent back to the size of the image (five from stride 32), no skip
connections; those of `*_tiny` encoders are as much narrower as these. `xception_small` has one of its own. A task of
whole images has the mean of the latent over its pixels and one linear layer instead.
"""

import copy
from collections import OrderedDict
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from mtrlib.models import encoders
from mtrlib.tasks import TASKS, Task


class MultiTaskModel(nn.Module):
    """A shared encoder, (B, 3, H, W) -> (B, C, H / stride, W / stride), and one decoder a task, from there to (B,
    channels, H, W), or (B, channels) of a task of whole images; decoders are named by letter, so their order never
    matters. Normalisation is inside.

    Architectures that share otherwise are subclasses: `encode` is what does not depend on the tasks asked for, `decode`
    the rest.
    """

    exchanges = False  # whether tasks see features of each other, so that parts of all run whichever are asked for

    frozen = False

    def __init__(self, encoder: nn.Module, decoders: dict[str, nn.Module], definitions: dict[str, Task] | None = None):
        super().__init__()
        self.definitions = {letter: (definitions or TASKS)[letter] for letter in decoders}
        self.encoder = encoder
        self.decoders = nn.ModuleDict(decoders)
        # The mean and deviation of ImageNet's training images, in [0, 1] units.
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("deviation", torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1), persistent=False)

    @property
    def tasks(self) -> str:
        """Letters of the tasks it has decoders for."""
        return "".join(self.decoders)

    def train(self, mode: bool = True) -> "MultiTaskModel":
        """As of any module; a frozen encoder stays in evaluation mode."""
        super().train(mode)
        self.encoder.train(mode and not self.frozen)
        return self

    def forward(self, images: Tensor, tasks: str | None = None) -> dict[str, Tensor]:
        """(B, 3, H, W) images in [0, 1] -> (B, channels, H, W), `per_image` (B, channels), by task letter, values of
        regression and logits of all else. Only the decoders of `tasks` are run; None for all."""
        tasks = self.tasks if tasks is None else tasks
        if set(tasks) - set(self.tasks):
            raise ValueError(f"Parameter tasks should be letters out of {self.tasks!r}. Found tasks = {tasks!r}.")
        return self.decode(self.encode(images), tasks)

    def encode(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) images in [0, 1] -> (B, C, H / stride, W / stride): what all decoders share."""
        return self.encoder(self.normalised(images))

    def decode(self, latent: Tensor, tasks: str, early: list[dict[str, Tensor]] | None = None) -> dict[str, Tensor]:
        """What `encode` gives -> outputs by task letter, as `forward`. A list `early` gains what is predicted on the
        way, by letter, (B, channels, h, w), which training supervises as it does the outputs."""
        return {letter: self.decoders[letter](latent) for letter in tasks}

    def normalised(self, images: Tensor) -> Tensor:
        """Images in [0, 1] in units of ImageNet's deviation from its mean."""
        return (images - self.mean) / self.deviation


def folded(model: MultiTaskModel) -> MultiTaskModel:
    """A copy of a model in evaluation mode, its batch norms folded into the convolutions before them: the same outputs
    but for rounding. Encoders from elsewhere stay as they are: only here does a batch norm that follows a convolution
    in its module surely follow it in the forward pass."""
    model = copy.deepcopy(model)
    foreign = {part for module in model.modules() if isinstance(module, encoders.Features) for part in module.modules()}
    for module in set(model.modules()) - foreign:
        for name, after in pairwise(module._modules):
            convolution, norm = module._modules[name], module._modules[after]
            holder, place = (convolution, "1") if isinstance(convolution, encoders.Separable) else (module, name)
            convolution = holder._modules[place]
            if isinstance(convolution, (nn.Conv2d, nn.ConvTranspose2d)) and isinstance(norm, nn.BatchNorm2d):
                up = isinstance(convolution, nn.ConvTranspose2d)
                holder._modules[place] = fuse_conv_bn_eval(convolution, norm, transpose=up)
                module._modules[after] = nn.Identity()
    return model


def widths_of(encoder: str) -> tuple[int, ...]:
    """Channels behind each step of a decoder up by two, from the latent to the image."""
    if encoder in encoders.ENCODERS and encoder.endswith(("_small", "_tiny")) and encoder != "xception_small":
        return (128, 64, 32) if encoder.endswith("_small") else (32, 16, 8)
    return (256, 128, 64, 48, 32)[6 - encoders.stride(encoder).bit_length() :]


def decoder_of(encoder: str, latent: int, channels: int, widths: tuple[int, ...] | None = None) -> nn.Module:
    """At each stage up by two and, but for the last, a 3 x 3 convolution; then the 3 x 3 head. Names as published.
    `widths` are those of `widths_of` unless given."""
    if encoder == "xception_small" and widths is None:
        return encoders.XceptionDecoder(channels)
    widths = widths_of(encoder) if widths is None else widths
    layers: dict[str, nn.Module] = {}
    for stage, (before, width) in enumerate(pairwise((latent, *widths))):
        if stage > 0:
            layers[f"conv_decode{stage - 1}"] = nn.Conv2d(before, before, 3, padding=1)
            layers[f"bn_decode{stage - 1}"] = nn.BatchNorm2d(before)
            layers[f"relu_decode{stage - 1}"] = nn.ReLU(inplace=True)
        layers[f"upconv{stage}"] = encoders.Upsampling(before, width)
        layers[f"bn_upconv{stage}"] = nn.BatchNorm2d(width)
        layers[f"relu_upconv{stage}"] = nn.ReLU(inplace=True)
    layers[f"conv_decode{len(widths) - 1}"] = nn.Conv2d(widths[-1], channels, 3, padding=1)
    return nn.Sequential(OrderedDict(layers))
