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

    Parameters and result as in `pgd`, and `attacks`, each of which is run with all the other parameters. Each begins
    from the same state of the generator, as it would alone: so the result is never weaker than that of any of them,
    nor than with fewer restarts.
    """
    if not attacks:
        raise ValueError("Parameter attacks should name at least one attack. Found none.")
    best, best_loss = ball.nothing_yet(images.detach())
    if generator is None:
        generator = torch.Generator(images.device).manual_seed(int(torch.randint(2**62, ())))
    for rest in reversed(range(len(attacks))):
        found = attacks[-1 - rest](
            losses,
            images,
            eps=eps,
            step_size=step_size,
            steps=steps,
            norm=norm,
            restarts=restarts,
            random_start=random_start,
            generator=generator.clone_state() if rest else generator,
        )
        best, best_loss = ball.keep(best, best_loss, found, ball.score(losses, found))
    return best
