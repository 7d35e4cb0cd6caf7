"""The eleven dense vision tasks of the paper (its Table of tasks; arXiv 2110.15053), with their losses and errors.

A task set is a string of letters such as "sd"; its first letter is the main task. Losses and errors are
per image: the mean over the valid pixels (and channels) of one image, so that no image depends on its batch.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Task:
    """One task.

    Attributes
    ----------
    letter : its letter in the paper.
    name : its name in the paper.
    domain : its folder name in Taskonomy.
    channels : channels of its output; for classes, the number of classes of Taskonomy.
    kind : "classes" (cross-entropy, 1 - mIoU) or "regression" (L1, squared error).
    unit : unit of the error.
    lower_is_better : whether a lower error is a better prediction (true of all eleven).
    """

    letter: str
    name: str
    domain: str
    channels: int
    kind: str = "regression"
    unit: str = "squared error"
    lower_is_better: bool = True

    def loss(self, output: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
        """Training and attack loss of each image: cross-entropy (classes) or L1 (regression).

        Parameters
        ----------
        output : (B, C, H, W), logits or values.
        target : (B, H, W) class indices, or (B, C, H, W) values in the range of the output.
        mask : (B, H, W) bool, true where the label is valid; None where all are.

        Returns
        -------
        (B,), float32. Mean over valid pixels; 0 for an image without any.
        """
        return mean_over_valid(self.pixel_loss(output, target), mask)

    def pixel_loss(self, output: Tensor, target: Tensor) -> Tensor:
        """The loss of each pixel, (B, H, W), float32. Parameters as in `loss`."""
        if self.kind == "classes":
            return F.cross_entropy(output.float(), target.long(), reduction="none")
        return (output.float() - target).abs().mean(dim=1)

    def error(self, output: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
        """Error of each image: 1 - mIoU over the classes present in its label, or mean squared error.

        Shapes as in `loss`. Returns (B,), float32; NaN for an image without valid pixels.
        """
        if self.kind == "classes":
            return _one_minus_miou(output.argmax(dim=1), target.long(), mask, output.shape[1])
        return mean_over_valid((output.float() - target).square().mean(dim=1), mask, empty=float("nan"))


TASKS: dict[str, Task] = {
    task.letter: task
    for task in (
        Task("s", "semantic segmentation", "segment_semantic", 18, "classes", "1 - mIoU"),
        Task("d", "z-depth", "depth_zbuffer", 1),
        Task("D", "Euclidean depth", "depth_euclidean", 1),
        Task("n", "surface normals", "normal", 3),
        Task("k", "2D keypoints", "keypoints2d", 1),
        Task("K", "3D keypoints", "keypoints3d", 1),
        Task("e", "2D texture edges", "edge_texture", 1),
        Task("E", "occlusion edges", "edge_occlusion", 1),
        Task("p", "principal curvature", "principal_curvature", 2),
        Task("r", "reshading", "reshading", 1),
        Task("A", "autoencoder", "rgb", 3),
    )
}


def parse(tasks: str) -> str:
    """Check a task set and return it: at least one known letter, none twice.

    Raises ValueError with the letters found and those allowed.
    """
    allowed = "".join(TASKS)
    if not isinstance(tasks, str) or not tasks or set(tasks) - set(TASKS) or len(set(tasks)) < len(tasks):
        raise ValueError(f"Parameter tasks should be different letters out of {allowed!r}. Found tasks = {tasks!r}.")
    return tasks


def canonical(tasks: str) -> str:
    """The letters of a task set in the paper's order: one name for models that do not tell main from auxiliary."""
    return "".join(letter for letter in TASKS if letter in parse(tasks))


def mean_over_valid(pixels: Tensor, mask: Tensor | None, empty: float = 0.0) -> Tensor:
    """(B, H, W) -> (B,): mean where mask is true; `empty` for an image where it never is."""
    if mask is None:
        return pixels.flatten(1).mean(dim=1)
    count = mask.flatten(1).sum(dim=1)
    total = torch.where(mask, pixels, 0.0).flatten(1).sum(dim=1)  # where: a NaN under the mask must not spread
    return torch.where(count > 0, total / count.clamp(min=1), empty)


def _one_minus_miou(predicted: Tensor, target: Tensor, mask: Tensor | None, classes: int) -> Tensor:
    """(B, H, W) class indices -> (B,): 1 - mean intersection over union of the classes present in the label."""
    batch = target.shape[0]
    valid = torch.ones_like(target, dtype=torch.bool) if mask is None else mask
    target = torch.where(valid, target, 0)

    def count(index: Tensor, where: Tensor) -> Tensor:
        counts = torch.zeros(batch, classes, device=index.device)
        return counts.scatter_add_(1, index.flatten(1), where.flatten(1).float())

    labelled = count(target, valid)
    intersection = count(target, valid & (predicted == target))
    union = labelled + count(predicted, valid) - intersection
    present = labelled > 0
    iou = torch.where(present, intersection / union.clamp(min=1), 0.0)
    number = present.sum(dim=1)
    return torch.where(number > 0, 1 - iou.sum(dim=1) / number.clamp(min=1), float("nan"))
