"""The paper's theory from input gradients: first-order vulnerability, theorem 2 and the bound of theorem 4 (paper,
sections "Adversarial vulnerability of multi-task models" and RQ2; arXiv 2110.15053; after Simon-Gabriel et al. 2019,
arXiv 1802.01421, and Mao et al. 2020, arXiv 2007.07236).

r_i is the gradient of the loss of task i with respect to the image, L = sum_i w_i L_i the joint loss, eps the budget,
q the dual of the attack norm: 1 for linf, 2 for l2. To first order an attack raises L by eps ||sum_i w_i r_i||_q.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from mtrlib.attacks import NORMS, Losses, ball
from mtrlib.attacks.losses import refuse_inference


@dataclass(frozen=True)
class Gradients:
    """Statistics of the gradients of T tasks at N images, and of S weighted sums of them ("combinations").

    Attributes
    ----------
    norms : by attack norm ("linf", "l2"), (N, T): ||r_i||_q of each image.
    joint : by attack norm, (N, S): ||sum_i w_i r_i||_q of each image and combination.
    moments : (T, T), E<r_i, r_j>, the mean inner product.
    covariances : (T, T), E<r_i - E r_i, r_j - E r_j>: summed over the image's values.
    """

    norms: dict[str, np.ndarray]
    joint: dict[str, np.ndarray]
    moments: np.ndarray
    covariances: np.ndarray


def gradients(losses: Losses, images: Tensor) -> Tensor:
    """r_i of each image, by one backward pass a task.

    Parameters
    ----------
    losses : (B, 3, H, W) -> (T, B), no column depending on another image.
    images : (B, 3, H, W), in [0, 1].

    Returns
    -------
    (T, B, 3, H, W), of the dtype of the images.
    """
    refuse_inference(images)
    point = images.detach().requires_grad_()
    with torch.enable_grad():
        rows = ball.checked(losses(point), point)
        last = len(rows) - 1
        found = [torch.autograd.grad(row.sum(), point, retain_graph=i < last)[0] for i, row in enumerate(rows)]
    return torch.stack(found)


def statistics(batches: Iterable[tuple[Losses, Tensor]], combinations: np.ndarray) -> Gradients:
    """Statistics of the gradients over batches. Memory does not grow with the number of images, but for T + S numbers
    an image.

    Parameters
    ----------
    batches : losses and images of each batch, as `gradients` takes them.
    combinations : (S, T), the weights of each sum.
    """
    weights = torch.as_tensor(np.asarray(combinations), dtype=torch.float64)
    norms, joint = ({norm: [] for norm in NORMS} for _ in range(2))
    total, moments, count = 0.0, 0.0, 0
    for losses, images in batches:
        r = gradients(losses, images).flatten(2).double()  # (T, B, D)
        for norm in NORMS:
            norms[norm].append(dual(r, norm).T)
            sums = [dual(torch.einsum("t,tbd->bd", w, r), norm) for w in weights.to(r.device)]
            joint[norm].append(torch.stack(sums, dim=1))
        moments = moments + torch.einsum("ibd,jbd->bij", r, r).sum(dim=0)
        total, count = total + r.sum(dim=1), count + r.shape[1]
    if count == 0:
        raise ValueError("Parameter batches should hold at least one image. Found none.")
    mean = total / count
    return Gradients(
        norms={norm: torch.cat(values).cpu().numpy() for norm, values in norms.items()},
        joint={norm: torch.cat(values).cpu().numpy() for norm, values in joint.items()},
        moments=(moments / count).cpu().numpy(),
        covariances=(moments / count - mean @ mean.T).cpu().numpy(),
    )


def to_table(found: Gradients) -> pd.DataFrame:
    """Statistics as a table that can be kept: one row a number, with its array (`name`, of an attack norm "norms linf")
    and its place, `row` and `column`."""
    arrays = {f"{name} {norm}": values for name in ("norms", "joint") for norm, values in getattr(found, name).items()}
    arrays |= {"moments": found.moments, "covariances": found.covariances}
    stacked = {name: pd.DataFrame(values).stack(future_stack=True) for name, values in arrays.items()}
    return pd.concat(stacked, names=["name", "row", "column"]).rename("value").reset_index()


def from_table(table: pd.DataFrame) -> Gradients:
    """What `to_table` made a table of; a table may have further arrays."""
    arrays = {
        name: rows.pivot(index="row", columns="column")["value"].to_numpy() for name, rows in table.groupby("name")
    }
    norms, joint = ({norm: arrays[f"{kind} {norm}"] for norm in NORMS} for kind in ("norms", "joint"))
    return Gradients(norms, joint, arrays["moments"], arrays["covariances"])


def dual(values: Tensor, norm: str) -> Tensor:
    """(..., D) -> (...): the norm dual to that of the attack."""
    return values.abs().sum(dim=-1) if norm == "linf" else values.norm(dim=-1)


def first_order(joint: np.ndarray, eps: float) -> np.ndarray:
    """Lemma 2: the vulnerability to first order, eps E||sum_i w_i r_i||_q.

    Parameters
    ----------
    joint : (N, ...), `Gradients.joint` of one norm.
    eps : budget in image units.
    """
    return eps * np.asarray(joint).mean(axis=0)


def theorem_2(covariances: np.ndarray, tasks: list[int], *, as_printed: bool = False) -> float:
    """The factor of K in theorem 2 for uniformly weighted tasks: sqrt((1 + 2/M sum_i sum_{j<i} Cov_ij / Cov_ii) / M).

    Theorem 2 assumes equal variances. Where they differ the printed form depends on the order of the tasks, which means
    nothing, and its square can be negative. So Cov_ii is taken as the mean variance of the M tasks, which gives
    sqrt(sum_ij Cov_ij / (M sum_i Cov_ii)): the same for equal variances, of no order, and never negative.

    Parameters
    ----------
    covariances : (T, T), `Gradients.covariances`.
    tasks : rows of the M tasks.
    as_printed : take Cov_ii of the later task of each pair, in the order of `tasks`.

    Returns
    -------
    float; 1 for one task. As printed, NaN where the square is negative.
    """
    number = len(tasks)
    own = covariances[np.ix_(tasks, tasks)]
    if not as_printed:
        return float(np.sqrt(max(own.sum(), 0.0) / (number * np.trace(own))))
    square = (1 + 2 / number * sum(own[i, j] / own[i, i] for i in range(number) for j in range(i))) / number
    return float(np.sqrt(square)) if square >= 0 else float("nan")


def marginal_bound(norms: np.ndarray, before: list[int], added: int, eps: float, weights: np.ndarray | None) -> float:
    """Theorem 4: an upper bound of the first-order marginal vulnerability of adding a task.

    eps ((N + 1) w_{N+1} E||r_{N+1}|| + N max_{i <= N} w_i E||r_i||); with uniform weights, 1 / N before and 1 / (N + 1)
    after, eps (E||r_{N+1}|| + max_{i <= N} E||r_i||).

    Parameters
    ----------
    norms : (N_images, T), `Gradients.norms` of one norm.
    before : rows of the N tasks attacked so far.
    added : row of the task that is added.
    eps : budget in image units.
    weights : (T,), of the tasks' losses; None for uniform weights.
    """
    mean, number = norms.mean(axis=0), len(before)
    if weights is None:
        return eps * float(mean[added] + mean[before].max())
    terms = np.asarray(weights) * mean
    return eps * float((number + 1) * terms[added] + number * terms[before].max())


def tight_marginal_bound(norms: np.ndarray, added: int, eps: float, weight: float = 1.0) -> float:
    """What the triangle inequality alone gives: eps w E||r|| of the added task, w its weight after it is added.

    It also bounds the first-order marginal, since the weights of the earlier tasks do not grow, and is never above
    theorem 4.
    """
    return eps * weight * float(norms.mean(axis=0)[added])


def second_order(losses: Losses, images: Tensor, eps: float, norm: str) -> tuple[Tensor, Tensor]:
    """Terms of the Taylor expansion of the joint loss at the first-order optimum d = eps times the steepest direction.

    The second, d' H d / 2, comes from one product of the Hessian with d. A network with ReLU is linear almost
    everywhere, so the term is that of the loss's own curvature: cross-entropy has one, L1 has none.

    Returns
    -------
    first, second : (B,) each.
    """
    refuse_inference(images)
    point = images.detach().requires_grad_()
    with torch.enable_grad():
        total = ball.checked(losses(point), point).sum()
        (slope,) = torch.autograd.grad(total, point, create_graph=True)
        step = eps * ball.direction(slope.detach(), norm)
        first = (slope * step).flatten(1).sum(dim=1)
        if not first.requires_grad:  # a loss that is linear in the image
            return first.detach(), torch.zeros_like(first)
        (curved,) = torch.autograd.grad(first.sum(), point, allow_unused=True)
    second = torch.zeros_like(first) if curved is None else 0.5 * (curved * step).flatten(1).sum(dim=1)
    return first.detach(), second.detach()
