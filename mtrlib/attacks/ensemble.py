"""The worst case of several attacks, image by image (as in AutoAttack, Croce and Hein 2020, arXiv 2003.01690)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from mtrlib.attacks import ball
from mtrlib.attacks.apgd import apgd
from mtrlib.attacks.balanced import dgba, wgd
from mtrlib.attacks.gradient import mim, pgd
from mtrlib.attacks.losses import Losses


def ensemble(
    losses: Losses,
    images: Tensor,
    *,
    eps: float,
    step_size: float,
    steps: int,
    norm: str = "linf",
    restarts: int = 1,
    random_start: bool = True,
    generator: torch.Generator | None = None,
    attacks: Sequence[Callable[..., Tensor]] = (pgd, apgd, wgd, dgba, mim),
) -> Tensor:
    """For each image the result with the highest joint loss among `attacks`.

    Parameters and result as in `pgd`, and `attacks`, each of which is run with all the other parameters.
    """
    if not attacks:
        raise ValueError("Parameter attacks should name at least one attack. Found none.")
    best, best_loss = ball.nothing_yet(images.detach())
    for attack in attacks:
        found = attack(
            losses,
            images,
            eps=eps,
            step_size=step_size,
            steps=steps,
            norm=norm,
            restarts=restarts,
            random_start=random_start,
            generator=generator,
        )
        best, best_loss = ball.keep(best, best_loss, found, ball.score(losses, found))
    return best
