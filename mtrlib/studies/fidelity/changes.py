"""What the paper's published code does where it differs from the definitions, one named change at a time: what is
attacked and measured. The paper: arXiv 2110.15053; the code: its authors' public repository, folder MTVulnerability,
described here and not copied. That it sums errors over pixels is no change: ratios of images of one size stay."""

from collections.abc import Iterable, Iterator
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor

from mtrlib import attacks, machine
from mtrlib.attacks.ball import Weigh, around, ascent, direction, keep, nothing_yet, score
from mtrlib.data import Dataset
from mtrlib.models import MultiTaskModel
from mtrlib.specs import AttackSpec, Evaluation
from mtrlib.store import Store
from mtrlib.store import evaluation as evaluating
from mtrlib.tasks import definitions, parse, under_mask

_TABLE = pd.read_csv(Path(__file__).with_suffix(".csv"), index_col="name")
# By name, in the order of the ladder: what each is, and what figures and tables call it.
CHANGES, TITLES = _TABLE.what.to_dict(), _TABLE.title.to_dict()
CODE = ("attacks", "fidelity")  # that decides a run, beside what decides its model
BATCH = 32  # images, as the published jobs attack them: several changes look at whole batches

# Weights of the classes in the loss of s, as the file semseg_prior_factor.npy of the public code has them: background
# and sixteen kinds of objects; "uncertain" is masked.
BACKGROUND = 0.542
OBJECTS = (9.167, 7.331, 7.162, 8.723, 7.613, 8.237, 9.149, 8.822)
OBJECTS += (9.086, 8.914, 9.177, 9.035, 8.604, 9.170, 9.147, 9.137)
_SURROUNDINGS = {"background", "floor", "ceiling", "wall", "door", "window", "column", "uncertain"}


def check(changes: Iterable[str]) -> frozenset[str]:
    """The names of changes as a set; ValueError for one that is not in `CHANGES`."""
    changes = frozenset(changes)
    if unknown := ", ".join(sorted(changes - set(CHANGES))):
        raise ValueError(f"Parameter changes should be out of {', '.join(CHANGES)}. Found {unknown}.")
    return changes


def class_weights(class_names: tuple[str, ...]) -> Tensor:
    """(C,): the weights of the classes in the loss of s. Those of Taskonomy are the published ones; of other classes
    walls, floors and the like have that of the background, and the rest the mean of the published objects, 8.65:
    an approximation, since the published ones come from how often a class is seen there."""
    if class_names[:2] == ("uncertain", "background") and len(class_names) == len(OBJECTS) + 2:
        return torch.tensor([0.0, BACKGROUND, *OBJECTS])
    objects = sum(OBJECTS) / len(OBJECTS)
    return torch.tensor([BACKGROUND if name in _SURROUNDINGS else objects for name in class_names])


def task_losses(
    model: MultiTaskModel, targets: dict, masks: dict, tasks: str, changes: frozenset[str], weights: Tensor
) -> attacks.Losses:
    """As `attacks.task_losses`; with "class weights" each loss is the mean over all pixels of mask times loss and, of
    s, weight of the label, `weights` being (C,)."""
    if "class weights" not in changes:
        return attacks.task_losses(model, targets, masks, tasks)
    targets = {letter: under_mask(targets[letter], masks[letter]) for letter in tasks}

    def losses(images: Tensor) -> Tensor:
        outputs, rows = model(images, tasks), []
        for letter in tasks:
            task = definitions(model)[letter]
            output, target, mask = task.maps(outputs[letter], targets[letter], masks[letter])
            pixels = task.pixel_loss(output, target, mask)
            weight = weights.to(pixels.device)[target.long()] if letter == "s" else 1
            rows.append((under_mask(pixels, mask) * weight).flatten(1).mean(dim=1))
        return torch.stack(rows)

    return losses


def constant_rates(losses: Tensor, first: Tensor) -> Tensor:
    """(T, B) weights of the published WGD, for `weigh`: 1 in the first step, where both losses are one tensor, and then
    1 / L_i(0), with L_i(0) the mean of task i over the batch at the start."""
    if losses is first:
        return torch.ones_like(losses)
    return (1 / first.mean(dim=1, keepdim=True)).expand_as(losses)


def trajectory(
    losses: attacks.Losses,
    images: Tensor,
    *,
    eps: float,
    step_size: float,
    steps: int,
    norm: str = "linf",
    changes: Iterable[str] = (),
    weigh: Weigh | None = None,
    generator: torch.Generator | None = None,
) -> dict[str, Tensor]:
    """One run of `attacks.pgd`, whose parameters it takes (with `weigh`, of WGD), and the points at which one may read
    it.

    Of the `changes`, "start" and "batch l2" change the run. The latter, with B images in the batch, leaves the range of
    images alone and has no step size: the change moves along eps / 2B times the gradient of the summed losses and is
    scaled to the length eps, of the batch as a whole. (In the published range, [-1, 1], both are twice that.)

    Returns (B, 3, H, W), in [0, 1] but for "batch l2", by name: "first", where the run begins; "best", the strongest of
    its steps + 1 points; "best, early", that of all but the last; "last"; "last, early", after steps - 1 updates.
    """
    changes = check(changes)
    ball = around(images, eps, norm, step_size=step_size, steps=steps)
    if steps < 1 or not eps > 0:
        raise ValueError(f"Parameters steps and eps should be above 0. Found steps = {steps}, eps = {eps}.")
    images, first = ball.images, None
    whole_batch = norm == "l2" and "batch l2" in changes
    current = images + (eps if "start" in changes else ball.noise(generator))
    current = current.clamp(max=1) if whole_batch and "start" in changes else ball.project(current)
    points = {"first": current}
    best, best_loss = nothing_yet(images)
    for _ in range(steps):
        rows, gradient = ascent(losses, current, weigh, first)
        first = rows if first is None else first
        best, best_loss = keep(best, best_loss, current, rows.sum(dim=0))
        points |= {"last, early": current, "best, early": best}
        if whole_batch:
            change = current + gradient * (eps / (2 * len(images))) - images
            current = images + change * (eps / change.norm().clamp(min=1e-30))
        else:
            current = ball.project(current + step_size * direction(gradient, norm))
    best, _ = keep(best, best_loss, current, score(losses, current))
    points |= {"last": current, "best": best}
    return points if whole_batch else {name: ball.inside(point) for name, point in points.items()}


def errors(
    model: MultiTaskModel,
    data: Dataset,
    attack: AttackSpec,
    changes: Iterable[str] = (),
    *,
    precision: str = "float32",
    device: torch.device | str = "cpu",
) -> pd.DataFrame:
    """Attack the images of `data` in batches of `BATCH` and measure every point of the run; parameters as in
    `evaluation.errors`. The attack is "pgd" or "wgd"; of the `changes` count those that change the run: "start",
    "batch l2", "class weights" and "constant WGD".

    Returns one row an image, task of the model, point ("clean" and those of `trajectory`) and way to count ("masked",
    valid pixels only, or "all"): point, counted, task, image_id, batch, error, loss (of valid pixels, unweighted), and
    of s intersection and union, lists of pixels by class.
    """
    changes = check(changes)
    if attack.name not in ("pgd", "wgd"):
        only = "pgd or wgd: the published code has no other"
        raise ValueError(f"Parameter attack should be {only}. Found {attack.name}.")
    rates = constant_rates if "constant WGD" in changes else attacks.task_attack_rates
    same = {"changes": changes, "weigh": rates if attack.name == "wgd" else None, "norm": attack.norm}
    budget = {"eps": attack.eps_255 / 255, "step_size": attack.step_size_255 / 255, "steps": attack.steps}
    attacked, frames = evaluating.for_attack(model.eval(), precision), []
    weights, kind = class_weights(data.class_names), torch.device(device).type
    for number, start in enumerate(range(0, len(data), BATCH)):
        images, targets, masks = data.batch(slice(start, start + BATCH), device)
        with torch.autocast(kind, torch.bfloat16, enabled=precision == "bfloat16"):
            losses = task_losses(attacked, targets, masks, attack.tasks, changes, weights)
            generator = torch.Generator().manual_seed(attack.seed)
            points = trajectory(losses, images, **budget, **same, generator=generator)
        about = {"image_id": data.ids[start : start + BATCH], "batch": number}
        for name, point in {"clean": images, **points}.items():
            measured = _measure(model, point, targets, masks, data.class_names)
            frames += [pd.DataFrame({"point": name, **about, **rows}) for rows in measured]
    return pd.concat(frames, ignore_index=True)


def run(evaluation: Evaluation, changes: frozenset[str], heads: str | None = None) -> tuple[str, dict, list]:
    """What names a run in the store; `heads` are the tasks that the heads serve where they are loaded by position."""
    about = {"evaluation": evaluation.model_dump(mode="json"), "changes": sorted(changes), "batch": BATCH}
    return "fidelity", {**about, "heads": heads}, [(evaluation.model, evaluation.epoch)]


def measured(store: Store, evaluation: Evaluation, changes: frozenset[str], heads: str | None = None) -> pd.DataFrame:
    """`errors` of a model of the store, kept there as `run` names them."""
    spec, attack = evaluation.model, evaluation.attack

    def make() -> pd.DataFrame:
        model, data = store.model(spec, evaluation.epoch), store.data(spec, "test", attack.images)
        model = model if heads is None else by_position(model, heads)
        return errors(model, data, attack, changes, precision=spec.precision, device=store.device)

    return store.table(*run(evaluation, changes, heads), make, CODE)


def by_position(model: MultiTaskModel, tasks: str) -> MultiTaskModel:
    """The model as it is loaded where heads are stored by position (the published Xception) and the attack orders the
    tasks differently from the training: decoder i serves task i of `tasks`. ValueError where a head is of another shape
    than its new task needs: then loading fails."""
    if set(parse(tasks)) != set(model.tasks):
        raise ValueError(f"Parameter tasks should be the letters of {model.tasks!r} in some order. Found {tasks!r}.")
    shapes = {x: [each.shape for each in decoder.parameters()] for x, decoder in model.decoders.items()}
    for stored, letter in zip(model.tasks, tasks, strict=True):
        if shapes[stored] != shapes[letter]:
            raise ValueError(f"The head of {stored} does not have the shape of one for {letter}.")
    loaded = MultiTaskModel(model.encoder, dict(zip(tasks, model.decoders.values(), strict=True)), model.definitions)
    loaded.mean, loaded.deviation = model.mean, model.deviation
    return loaded.train(model.training)


@torch.no_grad()
def _measure(
    model: MultiTaskModel, images: Tensor, targets: dict, masks: dict, class_names: tuple[str, ...]
) -> Iterator[dict]:
    """Columns of a table of B images, for each task and way to count."""
    with machine.exact():
        outputs = model(images)
    for letter in model.tasks:
        task, output, target = definitions(model)[letter], outputs[letter], targets[letter]
        loss, everywhere = task.loss(output, target, masks[letter]).cpu().numpy(), target
        if letter == "s" and {"uncertain", "background"} <= set(class_names):
            uncertain, background = (class_names.index(name) for name in ("uncertain", "background"))
            everywhere = torch.where(target == uncertain, background, target)
        for counted, label, valid in (("masked", target, masks[letter]), ("all", everywhere, None)):
            rows = {"counted": counted, "task": letter, "loss": loss}
            rows["error"] = task.error(output, label, valid).cpu().numpy()
            if letter == "s":
                kinds = torch.arange(len(class_names), device=label.device).view(-1, 1, 1, 1)
                predicted, true = output.argmax(dim=1) == kinds, label == kinds  # (C, B, H, W)
                for name, pixels in (("intersection", predicted & true), ("union", predicted | true)):
                    pixels = pixels if valid is None else pixels & valid
                    rows[name] = pixels.sum(dim=(2, 3)).T.tolist()
            yield rows
