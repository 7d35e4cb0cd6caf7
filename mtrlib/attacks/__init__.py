"""Attacks on the images of a batch, as pure functions of a loss: they know no model, task or data set.

A loss is a callable from images (B, 3, H, W), in [0, 1], to (T, B): one row an attacked task, one column an image,
where no column depends on another image. The adversary maximises the sum of the rows: of one task ("single") or of
several ("joint"; paper, "Adversarial attacks"; arXiv 2110.15053). Each image is attacked by itself: its result does
not change with the batch around it, as far as its losses do not. Convolutions round differently in batches of another
size: in float32 the images may then differ, and the joint losses agree within .2 % (tested). Budgets and steps are in
image units.

Every attack takes the keywords of `pgd`, so that one can stand in the place of another, keeps the best point that it
has seen, image by image, and leaves models as they were:

    fgsm, bim, mim, pgd     along the gradient of the sum
    wgd, dgba               along the gradient of a sum that is weighted anew for each image and step
    apgd                    with a step size that adapts itself; also over the weights of wgd, or in shrinking balls
    square                  without gradients
    ensemble                the worst case of several, by loss or by reported error
    sea                     the worst case by reported error of apgd on several losses and of square
    min_max                 the task that is hurt least leads
    stealthy                the first task is raised, the others are kept

`task_losses` makes the losses from a model and a batch, `variant` others of the same; with `towards` an attack aims at
maps that the adversary wants. For the mean IoU of a whole set `lowest_miou` chooses among the results of `runs`.

Under constraints, with the extra `search`: `caa` on the rows of a table, whose `domain` says what they may be,
`search_images`, and `search` itself, for genes of any kind.
"""

from collections.abc import Callable
from functools import partial

from torch import Tensor

from mtrlib.attacks.apgd import SHRINKING, apgd
from mtrlib.attacks.ball import BALLS, NORMS
from mtrlib.attacks.constrained import Attacked, OfRows, caa, decoded, search_images
from mtrlib.attacks.constraints import Domain, domain
from mtrlib.attacks.ensemble import ensemble, lowest_miou, overlaps, relative_errors, runs, sea
from mtrlib.attacks.gradient import bim, dgba, fgsm, mim, pgd, task_attack_rates, wgd
from mtrlib.attacks.losses import DENSE, Losses, recorded, task_losses, variant
from mtrlib.attacks.own import held, tried
from mtrlib.attacks.search import Front, search
from mtrlib.attacks.selective import min_max, stealthy, towards
from mtrlib.attacks.square import square

# By the name that a parameters file gives. SegPGD and CosPGD are PGD on losses of their own, see `task_losses`.
NAMED: dict[str, Callable[..., Tensor]] = {"fgsm": fgsm, "bim": bim, "mim": mim, "pgd": pgd, "apgd": apgd, "wgd": wgd}
NAMED |= {"wgd_inverse": partial(wgd, rate="inverse"), "wgd_apgd": partial(apgd, weigh=task_attack_rates)}
NAMED |= {"dgba": dgba, "segpgd": pgd, "cospgd": pgd, "square": square, "ensemble": ensemble}
NAMED |= {"sea": sea, "min_max": min_max}
