"""What the notebook new_method compares: write your own here, or in a file of yours that its parameters name.

A parameter such as `attack: "notebooks/my_method.py:attack"` is all that the library needs to know of it.
"""

import math

import torch
from torch import nn

from mtrlib.attacks.ball import around, keep, nothing_yet


def attack(losses, images, *, eps, norm, steps, **others):
    """Steps that shrink from 2 eps to nothing along a cosine, from the image itself; the best point is kept."""
    ball = around(images, eps, norm, steps=steps)
    best, points = nothing_yet(images), images
    for step in range(steps + 1):
        points = points.detach().requires_grad_()
        loss = losses(points).sum(dim=0)  # of each image: (tasks, images) -> (images,)
        (gradient,) = torch.autograd.grad(loss.sum(), points)
        best = keep(*best, points.detach(), loss.detach())
        length = eps * (1 + math.cos(math.pi * step / max(steps, 1)))
        points = ball.project(points.detach() + ball.step(points.detach(), gradient, length))
    return ball.inside(best[0])


def weighting(losses, first, norms):
    """GradNorm's aim at once: gradients as large as the training rates ask for, without its memory; sum 1."""
    weights = (losses / first.clamp(min=1e-6)) ** 1.5 / norms.clamp(min=1e-6)
    return weights / weights.sum().clamp(min=1e-6)


class Encoder(nn.Sequential):
    """Three convolutions on patches: feature maps of 32 channels, one cell for 8 x 8 pixels."""

    def __init__(self):
        layers = [nn.Conv2d(3, 32, 8, stride=8), nn.BatchNorm2d(32), nn.ReLU()]
        for _ in range(2):
            layers += [nn.Conv2d(32, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU()]
        super().__init__(*layers)
