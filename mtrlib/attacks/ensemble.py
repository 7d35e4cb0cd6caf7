"""The worst case of several attacks, image by image (as in AutoAttack, Croce and Hein 2020, arXiv 2003.01690)."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from mtrlib.attacks.apgd import apgd
from mtrlib.attacks.balanced import dgba, wgd
from mtrlib.attacks.ball import checked, joint, keep, nothing_yet
from mtrlib.attacks.gradient import mim, pgd
from mtrlib.attacks.losses import Losses


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
    best = [nothing_yet(images)]
    if errors is not None:
        best = [keep(*nothing_yet(images), images, row) for row in rows(images)]
    if generator is None:
        generator = torch.Generator(images.device).manual_seed(int(torch.randint(2**62, ())))
    for number, attack in enumerate(attacks, start=1):
        same = generator.clone_state() if number < len(attacks) else generator
        points = attack(losses, images, random_start=random_start, generator=same, **settings)
        best = [keep(*each_best, points, row) for each_best, row in zip(best, rows(points), strict=True)]
    return torch.stack([points for points, _ in best]) if each else best[0][0]
