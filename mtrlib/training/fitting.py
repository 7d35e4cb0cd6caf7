"""Fit one multi-task model: the weighted sum of the task losses or balanced gradients, AdamW or SGD, exact resume.

The state is saved after every epoch (or, for short epochs, every few seconds). The order of the images comes from the
seed and the epoch alone, so a training that was killed and started again ends with the same bytes.
"""

import hashlib
import json
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialised
from torch import Tensor, nn

from mtrlib import machine, models
from mtrlib.data import Dataset, sealed
from mtrlib.machine import bar
from mtrlib.models.elsewhere import resized
from mtrlib.specs import ModelSpec
from mtrlib.tasks import Task
from mtrlib.training import adversarial, weights

SAVE_EVERY = 5.0  # seconds between two saved states
_FORMAT = "2"  # of saved states: since 2 that of the optimizer is in the shapes that it works in


def fit(
    spec: ModelSpec,
    data: Dataset,
    folder: Path,
    device: torch.device | str = "cpu",
    description: str = "",
    start: dict[str, models.MultiTaskModel] | None = None,
) -> list[dict]:
    """Train the model of `spec` on `data`; its checkpoints come to lie in `folder` as `epoch_<e>.safetensors`.

    Parameters
    ----------
    data : the training data; fastest when it lies on `device` already.
    folder : where checkpoints and the state to resume from are written; a state found there is continued.
    description : shown with the progress.
    start : by letter, the trained models of `spec.starts`, where it has any.

    Returns
    -------
    One dict an epoch: epoch, seconds, the mean training loss by task letter, and of a checkpoint its sha256. Where a
    loss or a gradient is not finite, a FloatingPointError with its epoch, step and task ends the training after that
    epoch, so that no step waits; what is saved is then from before it.
    """
    if {each.tasks for each in spec.starts} != set(start or {}):
        needed = ", ".join(each.tasks for each in spec.starts) or "no task"
        raise ValueError(f"Parameter start should have models of {needed}. Found {', '.join(start or {}) or 'none'}.")
    model = build(spec, data.tasks, spec.pretrained)
    if start:
        model.start_from(start)
    model = adversarial.with_head(spec, model).to(device)
    optimizer = optimizer_of(spec, _learning(model))
    balance = weights.balancer(spec.weights, spec.tasks)
    resumed = folder / "resume.safetensors"
    history = _resume(resumed, spec, model, optimizer, balance)
    folder.mkdir(parents=True, exist_ok=True)
    saved = time.monotonic()
    total, done = spec.epochs * len(data), len(history) * len(data)
    with bar(total, description or spec.tasks, "image", done) as progress, machine.exact():
        for epoch in range(len(history) + 1, spec.epochs + 1):
            started = time.monotonic()
            steps = epoch_losses(spec, model, optimizer, data, device, epoch, progress.update, balance)
            losses, norms = (torch.stack(rows) for rows in zip(*steps, strict=True))
            history.append({"epoch": epoch, "seconds": 0.0, **_means(losses, norms, spec, epoch)})
            history[-1] |= adversarial.watch(spec, model, data, device, epoch)
            history[-1]["seconds"] = round(time.monotonic() - started, 3)
            progress.set_postfix_str(f"loss {sum(history[-1][task] for task in spec.tasks):.3f}", refresh=False)
            if epoch in spec.checkpoints:
                history[-1]["sha256"] = save(checkpoint(folder, epoch), adversarial.kept(model))
            if epoch in spec.checkpoints or time.monotonic() - saved > SAVE_EVERY:
                _save_resume(resumed, spec, model, optimizer, balance, history)
                saved = time.monotonic()
    return history


def build(spec: ModelSpec, tasks: dict[str, Task], pretrained: bool | str = False) -> models.MultiTaskModel:
    """The untrained model of a specification; `tasks` are the definitions of its data set, as `Dataset.tasks`.
    `pretrained` fetches the weights that its encoder begins from, if it has any."""
    form = {"frozen": spec.frozen, "head": spec.head, "architecture": spec.architecture}
    return models.build(spec.encoder, spec.tasks, definitions=tasks, seed=spec.seed, pretrained=pretrained, **form)


def optimizer_of(spec: ModelSpec, parameters: dict[str, Tensor]) -> torch.optim.Optimizer:
    """The optimizer of a specification over named parameters, as views in the order of their memory, which takes the
    gradients of `parameters` at each step: over channels-last ones PyTorch's fused optimizers make copies and take
    twice the time. `zero_grad` is the model's."""
    views = [_in_memory_order(parameter.detach()) for parameter in parameters.values()]
    common = {"lr": spec.learning_rate, "weight_decay": spec.weight_decay, "fused": True}
    if spec.optimizer == "sgd":
        optimizer = torch.optim.SGD(views, momentum=spec.momentum, nesterov=spec.momentum > 0, **common)
    else:
        optimizer = torch.optim.AdamW(views, betas=(spec.momentum, 0.999), **common)

    def take_gradients(*_) -> None:
        for view, parameter in zip(views, parameters.values(), strict=True):
            gradient = parameter.grad
            if gradient is not None and gradient.stride() != parameter.stride():
                gradient = torch.empty_like(parameter).copy_(gradient)
            view.grad = None if gradient is None else _in_memory_order(gradient)

    optimizer.register_step_pre_hook(take_gradients)
    optimizer.register_step_post_hook(lambda *_: optimizer.zero_grad())
    return optimizer


def _in_memory_order(tensor: Tensor) -> Tensor:
    """A contiguous view: of a channels-last tensor, (N, H, W, C)."""
    return tensor if tensor.is_contiguous() else tensor.permute(0, 2, 3, 1)


def epoch_losses(
    spec: ModelSpec,
    model: models.MultiTaskModel,
    optimizer: torch.optim.Optimizer,
    data: Dataset,
    device: torch.device | str,
    epoch: int,
    advance: Callable[[int], object] = lambda images: None,
    balance: weights.Balancer | None = None,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Train one epoch (counted from 1). Yields, of each step, the task losses, (T,), and the lengths of the gradients
    of the encoder (with what else is in no decoder) and of each decoder, (1 + T,), on the device: no step waits for the
    host, but for aggregators that compute there. `advance` is called with the number of images of each step; `balance`
    weighs gradients where no weights are fixed.
    """
    if balance is None:
        fixed = torch.tensor(weights.task_weights(spec.weights, spec.tasks), device=device)
    drawn = spec.seed * 1_000_003 + epoch
    generator = torch.Generator().manual_seed(drawn)
    order = torch.randperm(len(data), generator=generator).to(data.images.device)
    steps = math.ceil(len(data) / spec.batch_size)
    shared = [each for name, each in model.named_parameters() if not name.startswith(("decoders.", "pretext."))]
    groups = [shared, *(list(model.decoders[t].parameters()) for t in spec.tasks)]
    model.train()
    for step in range(steps):
        progress, seed = (epoch - 1 + step / steps) / spec.epochs, drawn * 1_000_003 + step
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(spec, progress)
        index = order[step * spec.batch_size : (step + 1) * spec.batch_size]
        images, targets, masks = batch = data.batch(index, device)
        model.zero_grad()
        heads = []
        if spec.adversarial is None:
            with torch.autocast(images.device.type, torch.bfloat16, enabled=spec.precision == "bfloat16"):
                latent = model.encode(images)
                cut = latent if balance is None else latent.detach().requires_grad_()
                outputs = model.decode(cut, model.tasks, early := [])
            losses = [model.definitions[t].loss(outputs[t], targets[t], masks[t]).mean() for t in spec.tasks]
            for on_the_way in early:  # deep supervision: every prediction counts as the output does
                larger = {t: resized(on_the_way[t], targets[t].shape[-2:]) for t in spec.tasks}
                more = [model.definitions[t].loss(larger[t], targets[t], masks[t]).mean() for t in spec.tasks]
                losses = [loss + each for loss, each in zip(losses, more, strict=True)]
        else:
            latent, cut, losses, heads = adversarial.step_losses(
                spec, model, batch, progress, seed, cut=balance is not None
            )
        if balance is None:
            (fixed * torch.stack(losses)).sum().backward()
        else:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                weights.step(balance, model, latent, losses, cut, heads)
        norms = [nn.utils.get_total_norm([p.grad for p in group if p.grad is not None]).to(device) for group in groups]
        optimizer.step()
        advance(len(index))
        yield torch.stack(losses[: len(spec.tasks)]).detach(), torch.stack(norms)


def checkpoint(folder: Path, epoch: int) -> Path:
    """The file of the weights after `epoch`."""
    return folder / f"epoch_{epoch:04d}.safetensors"


def save(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> str:
    """Write tensors to a file that is either whole or not there. Returns its sha256."""
    tensors = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
    return sealed.write(path, serialised(tensors, metadata))


def learning_rate(spec: ModelSpec, progress: float) -> float:
    """The learning rate when `progress` (in [0, 1)) of the training is done."""
    if spec.schedule == "step":
        return spec.learning_rate * 0.1 ** sum(progress >= part for part in (2 / 3, 4 / 5, 14 / 15))
    warm_up = min(1.0, (progress * spec.epochs + 0.02))
    return spec.learning_rate * warm_up * 0.5 * (1 + math.cos(math.pi * progress))


def _means(losses: Tensor, norms: Tensor, spec: ModelSpec, epoch: int) -> dict[str, float]:
    """(steps, T) losses -> the mean of each task; stops at one, or a gradient (steps, 1 + T), that is not finite."""
    values = torch.cat([losses, norms], dim=1)
    bad = (~values.isfinite()).nonzero().tolist()
    if bad:
        step, column = bad[0]  # the first step; of that, losses before gradients
        names = [f"loss of task {task}" for task in spec.tasks] + ["gradient of the encoder"]
        names += [f"gradient of the decoder of task {task}" for task in spec.tasks]
        raise FloatingPointError(
            f"The {names[column]} is {values[step, column].item()} in epoch {epoch}, step {step + 1} of the model "
            f"{spec.tasks} (seed {spec.seed}); a smaller learning_rate than {spec.learning_rate} may help."
        )
    return dict(zip(spec.tasks, losses.double().mean(dim=0).tolist(), strict=True))


def _save_resume(path: Path, spec: ModelSpec, model, optimizer, balance, history: list[dict]) -> None:
    state = {f"model/{name}": tensor for name, tensor in model.state_dict().items()}
    for name, view in _views(model, optimizer):
        state |= {f"optimizer/{name}/{key}": value for key, value in optimizer.state[view].items()}
    if balance is not None:
        state |= {f"balance/{key}": value for key, value in balance.state().items()}
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    about = {"spec": spec.key, "history": json.dumps(history), "format": _FORMAT}
    save(path, state, {**about, "sha256": _digest(state, about)})


def _resume(path: Path, spec: ModelSpec, model, optimizer, balance) -> list[dict]:
    """Load the state at `path`, if there is one, and return its history. A state that is damaged, of another model, or
    whose checkpoints are, is set aside: the training begins anew."""
    if not path.exists():
        return []
    try:
        state, history = _read_resume(path, spec)
        if balance is not None:
            balance.load(_under("balance/", state))
    except ValueError as error:
        sealed.set_aside(path, getattr(error, "reason", str(error)))
        return []
    model.load_state_dict(_under("model/", state))
    for name, view in _views(model, optimizer):
        kept = _under(f"optimizer/{name}/", state)
        optimizer.state[view] |= {key: tensor.to(view.device) for key, tensor in kept.items()}
    return history


def _views(model: nn.Module, optimizer: torch.optim.Optimizer) -> Iterator[tuple[str, Tensor]]:
    """The names of the parameters, and the optimizer's views of them, in whose shapes it keeps its state."""
    return zip(_learning(model), optimizer.param_groups[0]["params"], strict=True)


def _learning(model: nn.Module) -> dict[str, Tensor]:
    """The named parameters that are trained: all but those of a frozen encoder."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def _under(prefix: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}


def _read_resume(path: Path, spec: ModelSpec) -> tuple[dict[str, Tensor], list[dict]]:
    """The state at `path` and its history."""
    try:
        with safe_open(path, "pt") as file:
            about = dict(file.metadata())
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        written = about.pop("sha256")
    except (SafetensorError, OSError, TypeError, KeyError, ValueError) as error:
        raise sealed.Damaged(path, " ".join(str(error).split())) from error
    if written != _digest(state, about):
        raise sealed.Damaged(path, "its content is not that of its checksum")
    if about.get("format") != _FORMAT:
        raise sealed.Damaged(path, "it is of another version of this package")
    if about["spec"] != spec.key:
        raise sealed.Damaged(path, "it is of another model")
    history = json.loads(about["history"])
    for row in history:
        if "sha256" in row:
            sealed.read(checkpoint(path.parent, row["epoch"]), row["sha256"])
    return state, history


def _digest(state: dict[str, Tensor], about: dict[str, str]) -> str:
    """Of names, types, shapes and values, on the CPU."""
    digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode())
    for name, tensor in sorted(state.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\0".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy())
    return digest.hexdigest()
