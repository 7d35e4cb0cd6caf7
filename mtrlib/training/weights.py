"""How the losses of the tasks are weighted in training (paper, RQ3; supplement, appendix B).

Fixed weights multiply the losses. Balancers look at the gradients of every step: GradNorm (Chen et al. 2018, arXiv
1711.02257), and the aggregators of the library torchjd (UPGrad, MGDA, PCGrad, CAGrad, ...; https://torchjd.org).
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor, nn

from mtrlib.models.own import find, is_own, weigh
from mtrlib.specs import FIXED, known

Rows = list[tuple[Tensor | None, ...]]  # of each loss the gradients of the latents, None where it does not use one


def task_weights(weights: str, tasks: str) -> tuple[float, ...]:
    """Fixed weights, one a task, in the order of `tasks`; ValueError for another scheme, or tasks that it has none of.

    "uniform" is 1 / N for each of N tasks: the shipped jobs' setting, so that the sum of the weights, and with it the
    size of a training step, does not grow with the number of tasks. "published" is the supplement's setting S4: 1 for
    the main task, which is the first letter, and .1 or .01 for the auxiliary one; 1 for a task alone. "1.0:0.1" are
    weights of one's own.
    """
    if ":" in weights:
        own = tuple(map(float, known(weights).split(":")))
        if len(own) != len(tasks):
            raise ValueError(f"Parameter weights should have one number a task of {tasks!r}. Found {weights!r}.")
        return own
    if weights not in FIXED:
        raise ValueError(f"Parameter weights should be one of {', '.join(FIXED)}. Found weights = {weights!r}.")
    if weights == "uniform" or len(tasks) == 1:
        return (1 / len(tasks),) * len(tasks)
    table = published()
    if tasks not in table.index:
        raise ValueError(f"Published weights exist for {', '.join(table.index)}. Found tasks = {tasks!r}.")
    return tuple(table.loc[tasks])


@cache
def published() -> pd.DataFrame:
    """The supplement's weights of setting S4, by pair of letters, such as "sd" for main task s: columns main_weight and
    auxiliary_weight."""
    table = pd.read_csv(Path(__file__).with_name("task_weights_supplement.csv"))
    return table.set_index(table.main + table.auxiliary)[["main_weight", "auxiliary_weight"]]


def balancer(weights: str, tasks: str) -> Balancer | None:
    """What weighs the gradients of a step, by the name of the scheme; None where the weights are fixed."""
    if is_own(weights):
        return Own(weights)
    if weights in FIXED or ":" in weights:
        return None
    return GradNorm(len(tasks)) if weights == "gradnorm" else Aggregated(weights)


class GradNorm:
    """GradNorm: weights that make the tasks' gradients at the last shared layer, w_i ||grad L_i||, as large as their
    training rates ask for (Chen et al. 2018, algorithm 1, equations 1 and 2).

    Each step moves w down the gradient of sum_i |w_i n_i - mean_j(w_j n_j) r_i^alpha|, the second term held constant,
    where n_i is the norm of the gradient of L_i and r_i = L~_i / mean_j L~_j, L~_i = L_i / (L_i at the first step).
    Then w is scaled to the sum 1, so that it begins as uniform weights.

    A task whose loss is 0, as in a batch without a valid label of it, keeps its weight in that step and is in no mean.
    A first loss that a later one exceeds fourfold, such as that of a batch with hardly a label, gives way to that one.

    The paper's `alpha`, the pull towards equal rates, is 1.5; `learning_rate` is that of the weights, under Adam.
    """

    def __init__(self, tasks: int, alpha: float = 1.5, learning_rate: float = 0.025):
        self.alpha, self.learning_rate = alpha, learning_rate
        self.weights = torch.full((tasks,), 1 / tasks)
        self.first: Tensor | None = None
        self.optimizer = torch.optim.Adam([self.weights], lr=learning_rate / tasks)

    def update(self, losses: Tensor, norms: Tensor) -> None:
        """One step, from the losses and the norms of their gradients at the last shared layer, both (T,)."""
        if self.weights.device != losses.device:
            self._to(losses.device)
        first = losses if self.first is None else self.first
        self.first = torch.where(losses > 4 * first, losses, first)
        there = losses > 0
        number = there.sum().clamp(min=1)
        grown = torch.where(there, losses / self.first, 0.0)
        sizes = torch.where(there, self.weights * norms, 0.0)
        mean = grown.sum() / number
        target = sizes.sum() / number * (grown / torch.where(mean > 0, mean, 1.0)) ** self.alpha
        before = self.weights.clone()
        self.weights.grad = torch.where(there, torch.sign(sizes - target) * norms, 0.0)
        self.optimizer.step()
        positive = torch.where(there, self.weights.clamp(min=1e-3 / len(self.weights)), 0.0)
        share = 1 - torch.where(there, 0.0, before).sum()  # of the tasks that are there
        total = torch.where(there.any(), positive.sum(), 1.0)
        self.weights.copy_(torch.where(there, positive / total * share, before))

    def _to(self, device: torch.device) -> None:
        self.load({name: value if name == "step" else value.to(device) for name, value in self.state().items()})

    def backward(self, encoder: nn.Module, latents: list[Tensor], rows: Rows, losses: Tensor) -> Tensor:
        """Sets the gradients of the encoder; see `step`, here with one latent. Returns the weights of the decoders,
        (T,)."""
        (latent,), at_latent = latents, [gradient for (gradient,) in rows]
        last = last_weights(latent)
        norms = [torch.autograd.grad(latent, last, gradient, retain_graph=True)[0].norm() for gradient in at_latent]
        weights = self.weights.to(losses.device, copy=True)
        latent.backward(sum(w * gradient for w, gradient in zip(weights, at_latent, strict=True)))
        self.update(losses, torch.stack(norms))
        return weights

    def state(self) -> dict[str, Tensor]:
        """What a training that is continued needs."""
        state = {"weights": self.weights}
        if self.first is not None:
            state |= {"first": self.first, **self.optimizer.state[self.weights]}
        return state

    def load(self, state: dict[str, Tensor]) -> None:
        """Continue from a `state`."""
        state = dict(state)
        self.weights, self.first = state.pop("weights"), state.pop("first", None)
        self.optimizer = torch.optim.Adam([self.weights], lr=self.learning_rate / len(self.weights))
        if state:
            self.optimizer.state[self.weights].update(state)


def last_weights(latent: Tensor) -> Tensor:
    """The weights (of two dimensions or more) that the forward pass to a tensor used last."""
    used, waiting, seen = [], [latent.grad_fn], set()
    while waiting:
        node = waiting.pop()
        if node in seen:
            continue
        seen.add(node)
        for following, _ in node.next_functions:
            weights = getattr(following, "variable", None)
            if weights is not None and weights.dim() > 1:
                used.append((node._sequence_nr(), weights))
            elif following is not None:
                waiting.append(following)
    return max(used, key=lambda pair: pair[0])[1]


class Aggregated:
    """An aggregator of torchjd over the tasks' gradients of the encoder.

    A decoder, which only its own task uses, follows that task's loss over the number of tasks T: with "Mean" all is as
    under uniform weights, with "Sum" the encoder's gradient is T times that. Some draw from torch's global generator.
    """

    def __init__(self, name: str):
        from torchjd import aggregation  # only here: the import takes a second, and few trainings need it

        self.aggregator = getattr(aggregation, name)(**({"c": 0.5} if name == "CAGrad" else {}))

    def backward(self, encoder: nn.Module, latents: list[Tensor], rows: Rows, losses: Tensor) -> Tensor:
        """Sets the gradients of the encoder; see `step`. Returns the weights of the decoders, (T,)."""
        parameters = list(encoder.parameters())
        jacobian = []
        for row in rows:
            used = [(latent, gradient) for latent, gradient in zip(latents, row, strict=True) if gradient is not None]
            outputs, gradients = zip(*used, strict=True)
            parts = torch.autograd.grad(outputs, parameters, gradients, retain_graph=True, materialize_grads=True)
            jacobian.append(torch.cat([part.flatten() for part in parts]))
        combined = self.aggregator(torch.stack(jacobian)).split([parameter.numel() for parameter in parameters])
        for parameter, gradient in zip(parameters, combined, strict=True):
            set_gradient(parameter, gradient.view_as(parameter))
        return torch.full_like(losses, 1 / len(losses))

    def state(self) -> dict[str, Tensor]:
        """What a training that is continued needs, as the bytes of `torch.save`; empty where there is nothing."""
        own = self._stateful()
        if not own:
            return {}
        buffer = io.BytesIO()
        torch.save({name: {key: getattr(part, key) for key in _own(part)} for name, part in own.items()}, buffer)
        return {"aggregator": torch.frombuffer(bytearray(buffer.getvalue()), dtype=torch.uint8)}

    def load(self, state: dict[str, Tensor]) -> None:
        """Continue from a `state`. Nothing in it is run: ValueError for one that holds anything but plain values."""
        if "aggregator" not in state:
            return
        try:
            kept = torch.load(io.BytesIO(state["aggregator"].cpu().numpy().tobytes()), weights_only=True)
            values = [(p, key, kept[name][key]) for name, p in self._stateful().items() for key in _own(p)]
        except Exception as error:  # of whatever type: the bytes may hold anything
            raise ValueError("the state should hold plain values only; nothing in it was run") from error
        for part, key, value in values:
            setattr(part, key, value)

    def _stateful(self) -> dict[str, nn.Module]:
        """The parts that have a state, which torchjd marks by `reset`."""
        return {name: module for name, module in self.aggregator.named_modules() if hasattr(module, "reset")}


class Own:
    """Weights by a function of the user's (`models.own.weigh`), of encoder and decoders alike, anew in each step. What
    it draws from torch's global generator is seeded; beside the first losses it has no memory, so that a training that
    is continued is the same."""

    def __init__(self, name: str):
        self.name, self.first = name, None
        find(name)

    def backward(self, encoder: nn.Module, latents: list[Tensor], rows: Rows, losses: Tensor) -> Tensor:
        """Sets the gradients of the encoder; see `step`, here with one latent. Returns the weights of the decoders,
        (T,)."""
        (latent,), at_latent = latents, [gradient for (gradient,) in rows]
        self.first = losses.clone() if self.first is None else self.first.to(losses.device)
        norms = torch.stack([gradient.float().norm() for gradient in at_latent])
        weights = weigh(self.name, losses, self.first, norms)
        latent.backward(sum(w * gradient for w, gradient in zip(weights, at_latent, strict=True)))
        return weights

    def state(self) -> dict[str, Tensor]:
        """What a training that is continued needs."""
        return {} if self.first is None else {"first": self.first}

    def load(self, state: dict[str, Tensor]) -> None:
        """Continue from a `state`."""
        self.first = state.get("first")


Balancer = GradNorm | Aggregated | Own


def _own(module: nn.Module) -> list[str]:
    """The names of its buffers, and of the attributes that torch knows nothing of."""
    return [*module._buffers, *(name for name in vars(module) if name not in vars(nn.Module()))]


def step(
    balance: Balancer,
    model: nn.Module,
    latent: Tensor | list[Tensor],
    losses: list[Tensor],
    cut: Tensor | list[Tensor],
    heads: Sequence[nn.Module] = (),
) -> None:
    """Sets the gradients of all parameters of a multi-task model, as a balancer weighs them. `latent` is the output of
    the encoder, with its graph; `losses` are scalars in the order of the decoders, computed from `cut`, the latent
    detached and requiring a gradient. Aggregators also take several latents with their cuts, of which each loss uses
    some, and further losses, each with what it trains beside the encoder in `heads`."""
    latents, cuts = ([latent], [cut]) if isinstance(latent, Tensor) else (latent, cut)
    decoders = [list(decoder.parameters()) for decoder in (*model.decoders.values(), *heads)]
    rows = [
        torch.autograd.grad(loss, [*cuts, *own], allow_unused=True) for loss, own in zip(losses, decoders, strict=True)
    ]
    of_latents = [row[: len(cuts)] for row in rows]
    shares = balance.backward(model.encoder, latents, of_latents, torch.stack(losses).detach())
    for own, row, share in zip(decoders, rows, shares, strict=True):
        for parameter, gradient in zip(own, row[len(cuts) :], strict=True):
            set_gradient(parameter, share * gradient)


def set_gradient(parameter: nn.Parameter, gradient: Tensor) -> None:
    """Fused optimizers read parameter and gradient side by side in memory: give it the parameter's layout."""
    parameter.grad = torch.empty_like(parameter).copy_(gradient)
