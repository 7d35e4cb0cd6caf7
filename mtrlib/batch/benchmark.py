"""Judge any multi-task model by one protocol, and write its entry of the board.

After RobustBench (Croce et al. 2021, arXiv 2010.09670, section 3), for several tasks. Each attack is run on every task
alone and, where there are several, on all together; each point that any of them finds counts for every task. The worst
case of a task is, image by image, the highest of its reported errors, the clean one among them. Square, and an attack
made on another network, are told no gradient of this one: where they surely harm more than PGD, its gradients mislead,
and the entry says so.
"""

import inspect
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Self

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from mtrlib import attacks, machine, models
from mtrlib.batch.board import About, Entry, valid
from mtrlib.batch.corruptions import CORRUPTIONS, corrupted
from mtrlib.data import Dataset, load, sealed
from mtrlib.metrics import estimates, tables
from mtrlib.models import MultiTaskModel, encoders, released
from mtrlib.specs import AttackSpec, key_of
from mtrlib.store import evaluation, sources

# Steps of each attack: of sea those of each of its runs, of square its queries, of transfer those of PGD.
PROTOCOLS: dict[str, dict[str, int]] = {
    "1": {"images": 256, "pgd": 25, "sea": 60, "square": 1000, "transfer": 25},
    "1-small": {"images": 16, "pgd": 25, "sea": 8, "square": 50, "transfer": 25},  # a first look on one core
}
EPS_255 = 8.0  # linf; the steps of PGD are of 2/255
_ATTACKS = ("pgd", "sea", "square", "transfer")


def benchmark(
    model: Callable[..., dict[str, Tensor]],
    *,
    name: str,
    tasks: str | None = None,
    data: str = "rooms",
    size: int = 48,
    root: str | Path | None = None,
    images: int | None = None,
    protocol: str = "1",
    folder: str | Path = "runs/board",
    device: torch.device | str | None = None,
    batch_size: int = 32,
    **about: str,
) -> Entry:
    """Judge a model by the protocol of the board and write its entry.

    Parameters
    ----------
    model : images (B, 3, H, W), float in [0, 1], to a dict of maps by task letter, (B, channels, H, W): logits of
        classes, values else, as the data set defines its tasks. Any callable; a network is put into evaluation mode.
    name : of the model on the board, such as "me/net-v1".
    tasks : letters of the tasks that are judged; None for all that the model says it has (`model.tasks`).
    data, size, root : as in `data.load`; its test images.
    images : how many of them, the first ones; None for as many as the protocol says.
    protocol : one of `PROTOCOLS`.
    folder : takes the entry, <name>.<data>-<size>.<protocol>.json, and in `parts` what was measured so far: called
        again with the same model, a run that was stopped goes on. A relative one starts at the repository.
    device, batch_size : to run on; None for where the network is.
    about : architecture, authors, link, venue, additional_data, notes: words for the page.

    Returns
    -------
    The entry. ValueError, before any attack, for a model that breaks a rule: maps of the shapes of the tasks, finite;
    the same again for the same images, whatever is beside them in the batch; a gradient of each task's loss that is not
    zero at more than a tenth of the images; no optimisation inside, which `torch.inference_mode` does not let run.
    """
    if protocol not in PROTOCOLS:
        raise ValueError(f"Parameter protocol should be one of {', '.join(PROTOCOLS)}. Found protocol = {protocol!r}.")
    told = valid(About, name=name, tasks=getattr(model, "tasks", None) if tasks is None else tasks, **about)
    steps = PROTOCOLS[protocol] if images is None else PROTOCOLS[protocol] | {"images": images}
    options: dict[str, Any] = {"tasks": told.tasks, "size": size, "root": root}
    dataset = load(data, split="test", limit=steps["images"], **options)
    weights = list(model.parameters()) if isinstance(model, nn.Module) else []
    if device is None:
        device = weights[0].device if weights else "cpu"
    judged = _Judged(model, dataset)
    without_gradient, marks = _rules(judged, dataset.batch(slice(0, batch_size), device))
    source = _source(name, data, dataset)
    train = partial(load, data, split="train", limit=256, **options)
    at = {"device": device, "batch_size": batch_size}
    of = {"steps": steps, "gradients": marks, "code": sources.digests(["attacks"])}
    rows, cost = _measured(judged, dataset, source, of, train, machine.place(folder) / "parts", at)
    entry = valid(
        Entry,
        **told.model_dump(),
        **_numbers(rows),
        **{"data": data, "size": size, "images": len(dataset), "protocol": protocol, "source": source},
        parameters=sum(each.numel() for each in weights) if weights else None,
        units={letter: task.unit for letter, task in dataset.tasks.items()},
        without_gradient=without_gradient,
        cost={passes: round(spent / len(dataset), 1) for passes, spent in cost.items()},
        written_by=machine.describe() | {"computed_on": torch.device(device).type},
    )
    path = machine.place(folder) / f"{name.replace('/', '-')}.{data}-{size}.{protocol}.json"
    sealed.write(path, (entry.model_dump_json(indent=1) + "\n").encode())
    return entry


class _Judged(nn.Module):
    """A model as attacks take it: only the maps that are asked for, with the definitions of the data set. It counts
    the images that pass. The model is no part of it, so that nothing of it is folded or copied but here."""

    def __init__(self, model: Callable, dataset: Dataset):
        super().__init__()
        model = model.eval() if isinstance(model, nn.Module) else model
        model = models.folded(model).requires_grad_(False) if isinstance(model, MultiTaskModel) else model
        ask = model.forward if isinstance(model, nn.Module) else model
        self.model, self.chooses = (model,), False
        with suppress(TypeError, ValueError):  # of what has no signature
            self.chooses = "tasks" in inspect.signature(ask).parameters
        self.tasks, self.definitions, self.passes = "".join(dataset.targets), dataset.tasks, Counter()

    def __deepcopy__(self, memo: dict) -> Self:
        return self

    def forward(self, images: Tensor, tasks: str | None = None) -> dict[str, Tensor]:
        tasks = self.tasks if tasks is None else tasks
        self.passes.update({"forward": len(images), "backward": len(images) * images.requires_grad})
        outputs = self.model[0](images, tasks=tasks) if self.chooses else self.model[0](images)
        if not isinstance(outputs, dict) or set(tasks) - set(outputs):
            found = f"maps of {', '.join(outputs)}" if isinstance(outputs, dict) else type(outputs).__name__
            raise ValueError(f"Parameter model should give a dict with maps of {', '.join(tasks)}. Found {found}.")
        return {letter: outputs[letter] for letter in tasks}


def _rules(model: _Judged, batch: tuple) -> tuple[dict[str, float], list[str]]:
    """The share of images without a gradient, by task, and a number a gradient that tells models of the same maps
    apart; ValueError for the first rule of `benchmark` that is broken."""
    images, targets, masks = batch
    with torch.no_grad():
        outputs, again, alone = model(images), model(images), model(images[:1])
    for letter, output in outputs.items():
        shape = (len(images), model.definitions[letter].channels, *images.shape[2:])
        if output.shape != shape or not output.isfinite().all():
            found = f"{tuple(output.shape)}{'' if output.isfinite().all() else ', not all finite'}"
            raise ValueError(f"Parameter model should give finite maps {shape} of {letter}. Found {found}.")
    try:
        with torch.inference_mode():
            inside = model(images.clone())
    except RuntimeError as error:
        found = str(error).splitlines()[0]
        raise ValueError(f"Parameter model should optimise nothing inside (torch.inference_mode). {found}") from error
    looks = {"for the same images again": (again, 1e-4), "for an image without those beside it": (alone, 1e-2)}
    for what, (other, most) in (looks | {"where nothing can be optimised inside": (inside, 1e-4)}).items():
        for letter, output in outputs.items():
            if (output[: len(other[letter])] - other[letter]).abs().max() > most * output.abs().max():
                raise ValueError(f"Parameter model should give the same map of {letter} {what}. Found another.")
    shares, marks = {}, []
    for letter in model.tasks:
        points = images.detach().requires_grad_()
        loss = attacks.task_losses(model, targets, masks, letter)(points).sum()
        gradient = torch.autograd.grad(loss, points, allow_unused=True)[0] if loss.requires_grad else None
        none = torch.ones(1) if gradient is None else ~gradient.nan_to_num().flatten(1).any(dim=1)
        shares[letter] = round(none.float().mean().item(), 4)
        if shares[letter] > 0.1:
            found = f"Found none at {shares[letter]:.0%} of the images."
            raise ValueError(f"Parameter model should have a gradient of the loss of {letter}. {found}")
        if gradient is not None:
            slope = torch.linspace(-1, 1, gradient.numel(), device=gradient.device)
            marks.append(f"{(gradient.flatten().nan_to_num() @ slope).item():.3g}")
    return shares, marks


def _source(name: str, data: str, dataset: Dataset) -> str | None:
    """The released network, but not this one, that the transfer attack is made on: the one with most of the tasks, and
    of these the largest."""
    shared: dict[str, tuple[int, int]] = {}
    for each in released.names():
        known = released.about(each)
        fits = dataset.images.shape[-1] % encoders.stride(known["encoder"]) == 0
        if each != name and known["spec"]["data"]["name"] == data and fits:
            both = _shared(dataset, {task["letter"]: task["channels"] for task in known["tasks"]})
            shared[each] = len(both), machine.place(released.FOLDER).joinpath(f"{each}.safetensors").stat().st_size
    best = max(shared, key=lambda each: shared[each], default=None)
    return best if best is not None and shared[best][0] else None


def _shared(dataset: Dataset, channels: dict[str, int]) -> str:
    """The tasks of the data set that another network has, too, with as many channels."""
    return "".join(letter for letter in dataset.targets if channels.get(letter) == dataset.tasks[letter].channels)


def _measured(
    judged: _Judged,
    dataset: Dataset,
    source: str | None,
    of: dict[str, Any],
    train: Callable[[], Dataset],
    folder: Path,
    at: dict[str, Any],
) -> tuple[pd.DataFrame, Counter]:
    """What each part of the protocol gives, measured now or kept, in one table (as `evaluation.errors`, with setting
    and attacked), and what it cost. A part is kept by what it is `of`, and by the clean errors."""
    other, letters = None, dict.fromkeys(_ATTACKS, judged.tasks) | {"transfer": ""}
    if source is not None:
        other = models.load(source).to(at["device"])
        letters["transfer"] = _shared(dataset, {x: task.channels for x, task in other.definitions.items()})

    def errors(setting: str, attacked: str) -> pd.DataFrame:
        kind, _, severity = setting.partition(" ")
        if setting == "constant":
            return evaluation.constant_errors(train(), dataset)
        nothing = AttackSpec(tasks=judged.tasks, eps_255=0, steps=0)
        if severity:
            images = corrupted(dataset.images, kind, int(severity))
            return evaluation.errors(judged, replace(dataset, images=images), nothing, **at)
        if setting == "clean":
            return evaluation.errors(judged, dataset, nothing, **at)
        name, on = ("pgd", other) if setting == "transfer" else (setting, None)
        attack = AttackSpec(name=name, tasks=attacked, eps_255=EPS_255, steps=of["steps"][setting])
        return evaluation.errors(judged, dataset, attack, source=on, **at)

    def measured(path: Path, setting: str, attacked: str) -> tuple[pd.DataFrame, dict[str, Any]]:
        before = judged.passes.copy()
        rows = errors(setting, attacked).assign(setting=setting, attacked=attacked)
        sealed.seal_table(path, rows, dict(judged.passes - before))
        return sealed.read_table(path)

    clean = errors("clean", "")
    plan = [(name, each) for name, of_all in letters.items() for each in dict.fromkeys((*of_all, of_all)) if each]
    plan += [(f"{kind} {severity}", "") for kind in CORRUPTIONS for severity in range(1, 6)] + [("constant", "")]
    frames, cost = [clean.assign(setting="clean", attacked="")], Counter()
    with machine.bar(len(plan), "benchmark", "part") as bar:
        for setting, attacked in plan:
            about = of | {"clean": clean.to_dict("list"), "setting": setting, "attacked": attacked}
            about |= {"source": released.about(source)["sha256"]} if source and setting == "transfer" else {}
            kind, _, severity = setting.partition(" ")
            about |= {"value": CORRUPTIONS[kind][int(severity) - 1]} if severity else {}
            path = folder / f"{key_of(about)}.parquet"
            read, make = partial(sealed.read_table, path), partial(measured, path, setting, attacked)
            rows, spent = sealed.kept(path.with_suffix(".lock"), path.exists, read, make)
            frames.append(rows)
            cost.update(spent)
            bar.update()
    return pd.concat(frames, ignore_index=True), cost


def _numbers(rows: pd.DataFrame) -> dict[str, Any]:
    """The fields of an entry that are computed from the errors of all images: means and intervals by task."""
    kind = rows.setting.str.split(" ").str[0]
    attacked = rows[kind.isin((*_ATTACKS, "clean"))]
    points = attacked.groupby(["task", "setting", "image_id"], sort=False).adversarial_error.max()
    worst = points.groupby(level=["task", "image_id"], sort=False).max().reset_index().assign(setting="worst")
    clean = points.xs("clean", level="setting").rename("clean_error")
    frame = pd.concat([points.reset_index(), worst]).join(clean, on=["task", "image_id"]).assign(seed=0)
    errors: dict[str, dict] = {}
    for row in tables.values(frame, "adversarial_error", by=("task", "setting")).itertuples():
        errors.setdefault(row.task, {})[row.setting] = _finite(row.value, row.low, row.high)
    rises = estimates.estimates(frame[frame.setting == "worst"], by=("task",))
    ends = np.exp(estimates.interval(pd.concat([rises, estimates.columnwise(rises, pd.Series.mean, "all")])))
    times = {task: _finite(*of) for task, *of in ends.itertuples()}
    corrupt = rows[kind.isin(CORRUPTIONS)].groupby(["task", "setting"]).clean_error.mean().to_dict()
    constant = rows[kind == "constant"].groupby("task", sort=False).constant_error.mean().to_dict()
    alone = attacked[attacked.attacked == attacked.task]
    alone = alone.assign(panel="", attacked="single", main=alone.task, auxiliary="", seed=0)
    beside = tables.ratios(alone, ("main", "setting"), same_models=True, setting="pgd")
    misled = beside[beside.setting.isin(("square", "transfer")) & (beside.low > 1)]
    unreliable = [f"{of.setting} errs {of.ratio:.3g} times what pgd does on {of.main}" for of in misled.itertuples()]
    low = [task for task in errors if errors[task]["clean"][0] > estimates.LEARNED * constant[task]]
    unreliable += [f"clean, {task} is hardly better than the best constant" for task in low]
    ladders = {t: {k: tuple(corrupt[t, f"{k} {n}"] for n in range(1, 6)) for k in CORRUPTIONS} for t in errors}
    numbers = {"errors": errors, "times": times, "corruptions": ladders, "constant": constant}
    return numbers | {"unreliable": tuple(unreliable)}


def _finite(*numbers: float) -> tuple[float | None, ...]:
    return tuple(float(number) if np.isfinite(number) else None for number in numbers)
