"""The worst case of several attacks, image by image (as in AutoAttack, Croce and Hein 2020, arXiv 2003.01690)."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from mtrlib.attacks.apgd import apgd
from mtrlib.attacks.balanced import dgba, wgd
from mtrlib.attacks.ball import keep, nothing_yet, score
from mtrlib.attacks.gradient import mim, pgd
from mtrlib.attacks.losses import Losses


def ensemble(
    losses: Losses,
    images: Tensor,
    *,
    generator: torch.Generator | None = None,
    random_start: bool = True,
    attacks: Sequence[Callable[..., Tensor]] = (pgd, apgd, wgd, dgba, mim),
    **settings,
) -> Tensor:
    """For each image the result with the highest joint loss among `attacks`, each run with the other parameters (those
    of `pgd`) and from the same state of the generator, as it would be alone: the result is never weaker than that of
    any of them, nor than with fewer restarts."""
    if not attacks:
        raise ValueError("Parameter attacks should name at least one attack. Found none.")
    best = nothing_yet(images.detach())
    if generator is None:
        generator = torch.Generator(images.device).manual_seed(int(torch.randint(2**62, ())))
    for number, attack in enumerate(attacks, start=1):
        same = generator.clone_state() if number < len(attacks) else generator
        points = attack(losses, images, random_start=random_start, generator=same, **settings)
        best = keep(*best, points, score(losses, points))
    return best[0]
