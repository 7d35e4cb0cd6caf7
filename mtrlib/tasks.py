"""The eleven dense vision tasks of the paper (its Table of tasks; arXiv 2110.15053), with their losses and errors, and
the kinds of task that a data set may define.

A task set is a string of letters such as "sd"; its first letter is the main task. Data sets may define other tasks, or
these in another way (`data.tasks`), and a model keeps the definitions that it was built with. Losses and errors are
means over the valid pixels (and channels) of one image: no image depends on its batch.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from string import ascii_letters

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Task:
    """One task.

    Attributes
    ----------
    letter, name : one ASCII letter, and a name; of the paper's tasks, those there.
    domain : its folder name in Taskonomy, where it has one.
    channels : channels of its output; for classes, the number of classes, for ordinal ones that less one.
    kind : "classes", of which a pixel has one; "regression"; "labels", of which a pixel has any number, each a channel:
        with one channel a binary map, as of saliency or edges; "ordinal", classes in an order (Niu et al., CVPR 2016):
        the logit of channel k is that of a class above k.
    loss_name : what training minimises and attacks maximise, one of `LOSSES` of its kind; empty for the first of them,
        which is the paper's.
    error_name : what is measured, one of `ERRORS` of its kind; empty for the first. "angle" is in degrees, between the
        vectors of a pixel, of two channels or more.
    class_names : names of the classes (or labels) by index, where they are known.
    per_image : whether an image, not each of its pixels, has a class, labels or values.
    target_unit : of regression the unit of its values, such as "m", where it is known.
    lower_is_better : whether a lower error is a better prediction (true of all errors here).
    """

    letter: str
    name: str
    domain: str
    channels: int
    kind: str = "regression"
    loss_name: str = ""
    error_name: str = ""
    class_names: tuple[str, ...] = ()
    lower_is_better: bool = True
    per_image: bool = False
    target_unit: str = ""

    def __post_init__(self) -> None:
        if not (isinstance(self.letter, str) and len(self.letter) == 1 and self.letter in ascii_letters):
            raise ValueError(f"Parameter letter should be one ASCII letter. Found letter = {self.letter!r}.")
        if self.kind not in KINDS:
            raise ValueError(f"Parameter kind should be one of {', '.join(KINDS)}. Found kind = {self.kind!r}.")
        for field, known in {"loss_name": LOSSES, "error_name": ERRORS}.items():
            of_pixels = ("1 - mIoU", BALANCED) if self.per_image else ()  # of one pixel they say nothing
            allowed = [name for name, (kind, _) in known.items() if kind == self.kind and name not in of_pixels]
            value = getattr(self, field) or allowed[0]
            if value not in allowed:
                names = f"{', '.join(allowed)} for {self.kind}"
                raise ValueError(f"Parameter {field} should be one of {names}. Found {field} = {value!r}.")
            object.__setattr__(self, field, value)
        if self.error_name == "angle" and self.channels < 2:
            raise ValueError(f"Parameter channels should be 2 or more for an angle. Found channels = {self.channels}.")

    @property
    def unit(self) -> str:
        """Unit of the error, such as "degrees", "1 - mIoU" or "squared error (m²)"."""
        if self.error_name == "angle":
            return "degrees"
        squared = "²" if self.error_name == "squared error" else ""
        unit = f"({self.target_unit})" if squared and not self.target_unit.isalpha() else self.target_unit
        return f"{self.error_name} ({unit}{squared})" if self.target_unit else self.error_name

    @property
    def classes(self) -> int:
        """How many classes a target may be; 0 where it is no index of a class."""
        return {"classes": self.channels, "ordinal": self.channels + 1}.get(self.kind, 0)

    @property
    def is_papers(self) -> bool:
        """Whether it is the paper's task of this letter: the same name, kind, loss and error, and of regression as many
        channels. What classes there are differs between all data sets."""
        own = TASKS.get(self.letter)
        fields = ("name", "kind", "loss_name", "error_name", "per_image", "target_unit") + (
            () if self.kind == "classes" else ("channels",)
        )
        return own is not None and all(getattr(self, field) == getattr(own, field) for field in fields)

    def loss(self, output: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
        """Training and attack loss of each image.

        Parameters
        ----------
        output : (B, C, H, W), logits or values; (B, C) of a task that is `per_image`.
        target : (B, H, W) class indices, or (B, C, H, W) values in the range of the output, of labels 0 or 1; (B,) or
            (B, C) `per_image`.
        mask : (B, H, W) bool, true where the label is valid; None where all are; (B,) `per_image`. Elsewhere the target
            may be anything.

        Returns
        -------
        (B,), float32. Mean over valid pixels; 0 for an image without any.
        """
        output, target, mask = self.maps(output, target, mask)
        return mean_over_valid(self.pixel_loss(output, under_mask(target, mask), mask), mask)

    def pixel_loss(self, output: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
        """The loss of each pixel, (B, H, W), float32. Parameters as in `loss`, `per_image` as `maps` gives them."""
        if self.loss_name == BALANCED:
            return _balanced(output.float(), target, mask)
        return LOSSES[self.loss_name][1](output.float(), target)

    def maps(self, output: Tensor, target: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
        """As they are, but of a task that is `per_image` as maps of one pixel: (B, C, 1, 1), (B, 1, 1)."""
        if not self.per_image:
            return output, target, mask
        return tuple(x if x is None or x.dim() > 2 else x[..., None, None] for x in (output, target, mask))

    def error(self, output: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
        """Error of each image; 1 - mIoU is over the classes present in its label, 1 - IoU and 1 - F1 over all its
        pixels and labels together, 0 where neither label nor prediction has any.

        Shapes as in `loss`. Returns (B,), float32; NaN for an image without valid pixels.
        """
        output, target, mask = self.maps(output, target, mask)
        target = under_mask(target, mask)
        if self.error_name in _OVERLAPS:
            return _one_minus_overlap(output > 0, target > 0.5, mask, *_OVERLAPS[self.error_name])
        if self.error_name == "1 - mIoU":
            return _one_minus_miou(output.argmax(dim=1), target.long(), mask, output.shape[1])
        return mean_over_valid(ERRORS[self.error_name][1](output.float(), target), mask, empty=float("nan"))


Pixels = Callable[[Tensor, Tensor], Tensor]  # (B, C, H, W) output, target -> (B, H, W)
# By name: the kind of task that they are for, of which the paper's stand first, and what they give for each pixel.
KINDS = ("classes", "regression", "labels", "ordinal")
BALANCED = "balanced cross-entropy"
LOSSES: dict[str, tuple[str, Pixels | None]] = {
    "cross_entropy": ("classes", lambda output, target: F.cross_entropy(output, target.long(), reduction="none")),
    "l1": ("regression", lambda output, target: (output - target).abs().mean(dim=1)),
    "squared": ("regression", lambda output, target: (output - target).square().mean(dim=1)),
    "binary cross-entropy": ("labels", lambda output, target: _binary(output, target).mean(dim=1)),
    BALANCED: ("labels", None),  # of a pixel by how many there are of its label
    "ordinal cross-entropy": ("ordinal", lambda output, target: _binary(output, _above(output, target)).mean(dim=1)),
}
ERRORS: dict[str, tuple[str, Pixels | None]] = {
    "1 - mIoU": ("classes", None),  # of an image, not of a pixel
    "1 - accuracy": ("classes", lambda output, target: (output.argmax(dim=1) != target).float()),
    "squared error": ("regression", LOSSES["squared"][1]),
    "absolute error": ("regression", LOSSES["l1"][1]),
    "distance": ("regression", lambda output, target: (output - target).norm(dim=1)),
    "angle": (
        "regression",
        lambda output, target: F.cosine_similarity(output, target, dim=1).clamp(-1, 1).acos().rad2deg(),
    ),
    "1 - IoU": ("labels", None),
    "1 - F1": ("labels", None),
    "share of wrong labels": ("labels", lambda output, target: ((output > 0) != (target > 0.5)).float().mean(dim=1)),
    "ranks off": ("ordinal", lambda output, target: ((output > 0).sum(dim=1) - target.long()).abs().float()),
    "1 - rank accuracy": ("ordinal", lambda output, target: ((output > 0).sum(dim=1) != target.long()).float()),
}
_OVERLAPS = {"1 - IoU": (1, 0), "1 - F1": (2, 1)}  # times the intersection, over the union and times the intersection

TASKS: dict[str, Task] = {
    task.letter: task
    for task in (
        Task("s", "semantic segmentation", "segment_semantic", 18, "classes"),
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


def parse(tasks: str, allowed: str | None = None, name: str = "") -> str:
    """The task set, if it is one: at least one ASCII letter, out of `allowed` where these are known, none twice; else a
    ValueError, with the name of what allows them."""
    letters = set(tasks) if isinstance(tasks, str) else set()
    if not letters or letters - set(ascii_letters if allowed is None else allowed) or len(letters) < len(tasks):
        out_of = "ASCII letters" if allowed is None else f"letters out of {allowed!r}"
        of = f" for {name}" if name else ""
        raise ValueError(f"Parameter tasks should be different {out_of}{of}, at least one. Found tasks = {tasks!r}.")
    return tasks


def distinct(names: Iterable[str]) -> tuple[str, ...]:
    """Names of classes, by index, those that several have with their index behind: "ball (3)"."""
    names = tuple(names)
    return tuple(f"{name} ({index})" if names.count(name) > 1 else name for index, name in enumerate(names))


def canonical(tasks: str) -> str:
    """The letters of a task set, the paper's first and in its order, then others by alphabet: one name for models that
    do not tell main from auxiliary."""
    letters = parse(tasks)
    return "".join(letter for letter in (*TASKS, *sorted(set(letters) - set(TASKS))) if letter in letters)


def definitions(model: object) -> dict[str, Task]:
    """The definitions that a model was built with, by letter; those of the paper for one that has none."""
    return getattr(model, "definitions", None) or TASKS


def under_mask(target: Tensor, mask: Tensor | None) -> Tensor:
    """(B, H, W) or (B, C, H, W): the target with 0 where the mask (B, H, W) is false: it may be no class there, or have
    no finite loss or gradient."""
    if mask is None:
        return target
    return torch.where(mask if target.dim() == mask.dim() else mask.unsqueeze(1), target, 0)


def mean_over_valid(pixels: Tensor, mask: Tensor | None, empty: float = 0.0) -> Tensor:
    """(B, H, W) -> (B,): mean where mask is true; `empty` for an image where it never is."""
    if mask is None:
        return pixels.flatten(1).mean(dim=1)
    count = mask.flatten(1).sum(dim=1)
    total = torch.where(mask, pixels, 0.0).flatten(1).sum(dim=1)  # where: a NaN under the mask must not spread
    return torch.where(count > 0, total / count.clamp(min=1), empty)


def _one_minus_miou(predicted: Tensor, target: Tensor, mask: Tensor | None, classes: int) -> Tensor:
    """(B, H, W) class indices -> (B,): 1 - mean intersection over union of the classes present in the label."""
    valid = torch.ones_like(target, dtype=torch.bool) if mask is None else mask

    def count(index: Tensor, where: Tensor) -> Tensor:
        counts = torch.zeros(len(index), classes, device=index.device)
        return counts.scatter_add_(1, index.flatten(1), where.flatten(1).float())

    labelled = count(target, valid)
    intersection = count(target, valid & (predicted == target))
    union = labelled + count(predicted, valid) - intersection
    present = labelled > 0
    iou = torch.where(present, intersection / union.clamp(min=1), 0.0)
    number = present.sum(dim=1)
    return torch.where(number > 0, 1 - iou.sum(dim=1) / number.clamp(min=1), float("nan"))


def _binary(output: Tensor, target: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(output, target.float(), reduction="none")


def _above(output: Tensor, target: Tensor) -> Tensor:
    """(B, C, H, W): whether the class (B, H, W) is above k = 0, ..., C - 1."""
    return target.unsqueeze(1) > torch.arange(output.shape[1], device=output.device).view(-1, 1, 1)


def _balanced(output: Tensor, target: Tensor, mask: Tensor | None) -> Tensor:
    """(B, H, W): the binary cross-entropy, in which the pixels of an image that have a label and those that have not
    weigh as much together (Xie and Tu, ICCV 2015, arXiv 1504.06375, equation 2), or one of them all where the other is
    not there. Weights have mean 1."""
    valid = torch.ones_like(target) if mask is None else mask.unsqueeze(1).expand_as(target).float()
    there, number = target.float().mul(valid).sum(dim=(2, 3), keepdim=True), valid.sum(dim=(2, 3), keepdim=True)
    counts = torch.where(target > 0.5, there, number - there)  # of the pixel's own
    both = 1 + ((there > 0) & (there < number))
    return (_binary(output, target) * number / (both * counts.clamp(min=1))).mean(dim=1)


def _one_minus_overlap(predicted: Tensor, target: Tensor, mask: Tensor | None, times: int, more: int) -> Tensor:
    """(B, C, H, W) bool -> (B,): 1 - times intersection / (union + more intersection); 0 where both are empty."""
    valid = torch.ones_like(target[:, 0]) if mask is None else mask
    shared, either = (
        (each & valid.unsqueeze(1)).flatten(1).sum(dim=1) for each in (predicted & target, predicted | target)
    )
    error = 1 - times * shared / (either + more * shared).clamp(min=1)
    return torch.where(valid.flatten(1).any(dim=1), torch.where(either > 0, error, 0.0), torch.nan)
