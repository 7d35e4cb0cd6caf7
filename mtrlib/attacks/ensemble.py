"""The worst case of several attacks, image by image (as in AutoAttack, Croce and Hein 2020, arXiv 2003.01690), and SEA
(Croce, Singh and Hein 2024, arXiv 2306.12941, section 3.3): of runs that climb different losses, here for classes and
regression, and of Square, chosen by the reported error."""

import math
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from mtrlib.attacks.apgd import SHRINKING, apgd
from mtrlib.attacks.ball import around, checked, joint, keep, nothing_yet
from mtrlib.attacks.gradient import dgba, mim, pgd, wgd
from mtrlib.attacks.losses import Losses, variant
from mtrlib.attacks.square import square

CLIMBED = ("saturating", "masked", "balanced", "cosine", "error")


def ensemble(
    losses: Losses,
    images: Tensor,
    *,
    generator: torch.Generator | None = None,
    random_start: bool = True,
    attacks: Sequence[Callable[..., Tensor]] = (pgd, apgd, wgd, dgba, mim),
    errors: Losses | None = None,
    each: bool = False,
    **settings,
) -> Tensor:
    """For each image the result with the highest joint loss among `attacks`, each run with the other parameters (those
    of `pgd`) and from the same state of the generator, as it would be alone: the result is never weaker than that of
    any of them, nor than with fewer restarts.

    Parameters
    ----------
    errors : (B, 3, H, W) -> (T, B), such as `variant(losses, "error")`: what is reported of each image. With it the
        worst case is that of the highest sum of errors, the image itself among the candidates: the highest loss and the
        highest error are of different points often enough.
    each : a worst case for each row of `errors` by itself: (T, B, 3, H, W).
    """
    if each and errors is None:
        raise ValueError("Parameter errors should be given for a worst case of each. Found errors = None.")
    if not attacks:
        raise ValueError("Parameter attacks should name at least one attack. Found none.")

    def rows(points: Tensor) -> Tensor:
        with torch.no_grad():
            found = checked((losses if errors is None else errors)(points), points)
        return found if each else joint(found)[None]

    images = images.detach()
    nothing = nothing_yet(images)
    best = [nothing] if errors is None else [keep(*nothing, images, row) for row in rows(images)]
    if generator is None:
        generator = torch.Generator(images.device).manual_seed(int(torch.randint(2**62, ())))
    for number, attack in enumerate(attacks, start=1):
        same = generator.clone_state() if number < len(attacks) else generator
        points = attack(losses, images, random_start=random_start, generator=same, **settings)
        best = [keep(*each_best, points, row) for each_best, row in zip(best, rows(points), strict=True)]
    return torch.stack([points for points, _ in best]) if each else best[0][0]


def sea(
    losses: Losses,
    images: Tensor,
    *,
    steps: int,
    errors: Losses | None = None,
    queries: int | None = None,
    **settings,
) -> Tensor:
    """For each image the point with the highest reported error among the results of `runs`. It is never better for the
    model than the image.

    Parameters and result as in `pgd`, each run with as many steps, and `each` as in `ensemble`.

    Parameters
    ----------
    losses : of `task_losses`, whichever `dense` they have; or a callable of one's own, which one run climbs.
    errors : of images, (T, B), as in `ensemble`; None for `relative_errors`.
    queries : of Square; None for 2 a step, which cost about as much as one of the other runs.
    """
    errors = relative_errors(losses, images) if errors is None else errors
    members = runs(losses, 2 * steps if queries is None else queries)
    return ensemble(losses, images, attacks=members, errors=errors, steps=steps, **settings)


def runs(losses: Losses, queries: int) -> list[Callable[..., Tensor]]:
    """The members of `sea`, each with the parameters of `pgd`; `lowest_miou` chooses among their results.

    They are Auto-PGD in shrinking balls on each loss of `CLIMBED`, which gives of all points that it met in the ball
    the one with the highest sum of `relative_errors`, and Square on these."""
    climbed = CLIMBED if hasattr(losses, "dense") else CLIMBED[:1]

    def queried(losses: Losses, images: Tensor, **settings) -> Tensor:
        return square(relative_errors(losses, images), images, **settings | {"steps": queries})

    return [*(partial(_climbing, dense) for dense in climbed), queried]


def _climbing(dense: str, losses: Losses, images: Tensor, *, eps: float, norm: str = "linf", **settings) -> Tensor:
    ball, best, relative = around(images, eps, norm, steps=1), nothing_yet(images.detach()), _relative(losses, images)

    def watch(points: Tensor, errors: Tensor) -> None:
        nonlocal best
        best = keep(*best, points, torch.where(ball.holds(points), joint(relative(errors)), -math.inf))

    climbed = variant(losses, dense, watch=watch)
    points = apgd(climbed, images, eps=eps, norm=norm, stages=SHRINKING, **settings)
    return ball.inside(best[0]) if hasattr(losses, "dense") else points


def relative_errors(losses: Losses, images: Tensor) -> Losses:
    """The reported error of each task over that of the unattacked image (where that is 0, the error itself), whose sum
    over tasks compares errors in different units; of a callable of one's own, the losses."""
    relative, errors = _relative(losses, images), variant(losses, "error")
    return lambda points: relative(errors(points))


def _relative(losses: Losses, images: Tensor) -> Callable[[Tensor], Tensor]:
    if not hasattr(losses, "dense"):
        return lambda errors: errors
    with torch.no_grad():
        clean = variant(losses, "error")(images)
    return lambda errors: errors / torch.where(clean > 0, clean, 1)


def overlaps(output: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
    """(3, B, C): of each image and class the pixels that label and prediction share, those of either, and those of the
    label. Parameters as in `Task.loss`."""
    valid = torch.ones_like(target, dtype=torch.bool) if mask is None else mask
    classes = torch.arange(output.shape[1], device=output.device).view(-1, 1, 1)
    found, label = ((each.unsqueeze(1) == classes) & valid.unsqueeze(1) for each in (output.argmax(dim=1), target))
    return torch.stack([each.sum(dim=(2, 3)) for each in (found & label, found | label, label)])


def lowest_miou(counts: Tensor, *, generator: torch.Generator | None = None, rounds: int = 100) -> tuple[Tensor, float]:
    """Which run to take for each image, so that the mean IoU of the whole set falls lowest: a greedy search.

    It begins with the run of the lowest mIoU for all images, and changes the run of one image after the other, in
    random order, where that lowers the mIoU, until a round changes none (or `rounds` of them). The mIoU does not split
    over images, so the worst of each image need not be the worst of the set.

    Parameters
    ----------
    counts : (R, 3, N, C), `overlaps` of the results of each of R runs.

    Returns
    -------
    The index of a run for each image, (N,), and the mIoU, in [0, 1], over the classes that the labels have.
    """
    counts = counts.double().cpu()[..., counts[0, 2].sum(dim=0).cpu() > 0].transpose(1, 2)  # (R, N, 3, C)

    def miou(total: Tensor) -> Tensor:
        return (total[..., 0, :] / total[..., 1, :]).mean(dim=-1)

    run = miou(counts.sum(dim=1)).argmin()
    chosen, total = run.repeat(counts.shape[1]), counts[run].sum(dim=0)
    lowest = miou(total)
    for _ in range(rounds):
        before = chosen.clone()
        for image in torch.randperm(len(chosen), generator=generator).tolist():
            others = total - counts[chosen[image], image] + counts[:, image]
            reached, run = miou(others).min(dim=0)
            if reached < lowest - 1e-12:
                chosen[image], total, lowest = run, others[run], reached
        if torch.equal(chosen, before):
            break
    return chosen, lowest.item()
