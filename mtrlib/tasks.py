"""The eleven dense vision tasks of the paper (its Table of tasks; arXiv 2110.15053), with their losses and errors.

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
    channels : channels of its output; for classes, the number of classes.
    kind : "classes" or "regression".
    loss_name : what training minimises and attacks maximise, one of `LOSSES` of its kind; empty for the first of them,
        which is the paper's.
    error_name : what is measured, one of `ERRORS` of its kind; empty for the first. "angle" is in degrees, between the
        vectors of a pixel, of two channels or more.
    class_names : names of the classes by index, where they are known.
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

    def __post_init__(self) -> None:
        if not (isinstance(self.letter, str) and len(self.letter) == 1 and self.letter in ascii_letters):
            raise ValueError(f"Parameter letter should be one ASCII letter. Found letter = {self.letter!r}.")
        if self.kind not in ("classes", "regression"):
            raise ValueError(f"Parameter kind should be one of classes, regression. Found kind = {self.kind!r}.")
        for field, known in {"loss_name": LOSSES, "error_name": ERRORS}.items():
            allowed = [name for name, (kind, _) in known.items() if kind == self.kind]
            value = getattr(self, field) or allowed[0]
            if value not in allowed:
                names = f"{', '.join(allowed)} for {self.kind}"
                raise ValueError(f"Parameter {field} should be one of {names}. Found {field} = {value!r}.")
            object.__setattr__(self, field, value)
        if self.error_name == "angle" and self.channels < 2:
            raise ValueError(f"Parameter channels should be 2 or more for an angle. Found channels = {self.channels}.")

    @property
    def unit(self) -> str:
        """Unit of the error."""
        return "degrees" if self.error_name == "angle" else self.error_name

    @property
    def is_papers(self) -> bool:
        """Whether it is the paper's task of this letter: the same name, kind, loss and error, and of regression as many
        channels. What classes there are differs between all data sets."""
        own = TASKS.get(self.letter)
        fields = ("name", "kind", "loss_name", "error_name") + (() if self.kind == "classes" else ("channels",))
        return own is not None and all(getattr(self, field) == getattr(own, field) for field in fields)

    def loss(self, output: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
        """Training and attack loss of each image.

        Parameters
        ----------
        output : (B, C, H, W), logits or values.
        target : (B, H, W) class indices, or (B, C, H, W) values in the range of the output.
        mask : (B, H, W) bool, true where the label is valid; None where all are. Elsewhere the target may be anything.

        Returns
        -------
        (B,), float32. Mean over valid pixels; 0 for an image without any.
        """
        return mean_over_valid(self.pixel_loss(output, under_mask(target, mask)), mask)

    def pixel_loss(self, output: Tensor, target: Tensor) -> Tensor:
        """The loss of each pixel, (B, H, W), float32. Parameters as in `loss`."""
        return LOSSES[self.loss_name][1](output.float(), target)

    def error(self, output: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
        """Error of each image; 1 - mIoU is over the classes present in its label.

        Shapes as in `loss`. Returns (B,), float32; NaN for an image without valid pixels.
        """
        target = under_mask(target, mask)
        if self.error_name == "1 - mIoU":
            return _one_minus_miou(output.argmax(dim=1), target.long(), mask, output.shape[1])
        return mean_over_valid(ERRORS[self.error_name][1](output.float(), target), mask, empty=float("nan"))


Pixels = Callable[[Tensor, Tensor], Tensor]  # (B, C, H, W) output, target -> (B, H, W)
# By name: the kind of task that they are for, of which the paper's stand first, and what they give for each pixel.
LOSSES: dict[str, tuple[str, Pixels]] = {
    "cross_entropy": ("classes", lambda output, target: F.cross_entropy(output, target.long(), reduction="none")),
    "l1": ("regression", lambda output, target: (output - target).abs().mean(dim=1)),
    "squared": ("regression", lambda output, target: (output - target).square().mean(dim=1)),
}
ERRORS: dict[str, tuple[str, Pixels | None]] = {
    "1 - mIoU": ("classes", None),  # of an image, not of a pixel
    "1 - accuracy": ("classes", lambda output, target: (output.argmax(dim=1) != target).float()),
    "squared error": ("regression", LOSSES["squared"][1]),
    "absolute error": ("regression", LOSSES["l1"][1]),
    "angle": (
        "regression",
        lambda output, target: F.cosine_similarity(output, target, dim=1).clamp(-1, 1).acos().rad2deg(),
    ),
}

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
