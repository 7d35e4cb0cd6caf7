"""Training on perturbed images, and with auxiliary tasks beside: what `specs.Adversarial` names.

PGD-AT (Madry et al. 2018, arXiv 1706.06083), TRADES (Zhang et al. 2019, arXiv 1901.08573), fast training (Wong et al.
2020, arXiv 2001.03994) and GAT (Ghamizi et al. 2023, arXiv 2302.02907). Each step attacks its own batch, from one
random start, and learns from the last point of the attack, which need not be the worst that it met.

The attack sees the model in evaluation mode, as in TRADES' code: no image then depends on its batch, and running
statistics stay. What is learned from is normalised by its own statistics, clean and perturbed images apart, and both
move the running ones.
"""

import warnings
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mtrlib import attacks
from mtrlib.attacks.losses import evaluating
from mtrlib.data import Dataset
from mtrlib.models import MultiTaskModel
from mtrlib.specs import ModelSpec
from mtrlib.tasks import Task, mean_over_valid

WATCHED_STEPS, COLLAPSED = 10, 1.5  # see `watch`
KINDS = {"rotation": 4, "jigsaw": 11}  # by quarter turns; as it is, and in ten orders of its tiles
_TILES = 4  # a side

Batch = tuple[Tensor, dict[str, Tensor], dict[str, Tensor | None]]  # as of `Dataset.batch`


def step_losses(
    spec: ModelSpec, model: MultiTaskModel, batch: Batch, progress: float, seed: int, cut: bool
) -> tuple[list[Tensor], list[Tensor], list[Tensor], list[nn.Module]]:
    """The losses of one training step, whose images are attacked first.

    With x the images, x' the perturbed ones, D the `distance` and b `Adversarial.beta`, the loss of task t is L_t(x')
    in pgd_at and fast, (1 - b) L_t(x) + b L_t(x') in half, and of an attacked task L_t(x) + b D_t(x, x') in trades. In
    gat it is as in half for the main task and, with `auxiliary` "both", for the others. All else is L_t(x), and all
    is where b or the budget is 0: then nothing is attacked.

    Parameters
    ----------
    model : in training mode, with a head for self-supervision where there is one (`with_head`).
    progress : the share of the training that is done, in [0, 1).
    seed : of the random start, and of what self-supervision draws.
    cut : whether gradients are to be balanced; else the losses have their graph down to the encoder.

    Returns
    -------
    latents, cuts, losses, heads : as `weights.step` takes them. The losses are scalars: of `spec.tasks`; of
    self-supervision; and the curvature measure, which moves the encoder alone.
    """
    how, (images, targets, masks) = spec.adversarial, batch
    generator = torch.Generator().manual_seed(seed)
    on_clean, on_points = learned(spec)
    points = perturbed(spec, model, batch, progress, generator) if on_points else images
    share = how.beta if on_points and (how.auxiliary == "both") else 0.0
    latents: list[Tensor] = []
    cuts: list[Tensor] = []
    heads: list[nn.Module] = []

    def cut_off(latent: Tensor) -> Tensor:
        latents.append(latent)
        cuts.append(latent.detach().requires_grad_() if cut else latent)
        return cuts[-1]

    def decoded(inputs: Tensor, letters: str) -> dict[str, Tensor]:
        latent = cut_off(model.encode(inputs)) if letters else inputs
        return {letter: model.decoders[letter](latent) for letter in letters}

    def loss(letter: str) -> Tensor:
        task, target, mask = model.definitions[letter], targets[letter], masks[letter]
        if letter not in hurt:
            return task.loss(clean[letter], target, mask).mean()
        if how.recipe == "trades":
            apart = distance(task, hurt[letter], clean[letter], mask)
            return (task.loss(clean[letter], target, mask) + how.beta * apart).mean()
        of_hurt = task.loss(hurt[letter], target, mask).mean()
        if letter not in clean:
            return of_hurt
        return (1 - how.beta) * task.loss(clean[letter], target, mask).mean() + how.beta * of_hurt

    with _autocast(spec, images):
        clean, hurt = decoded(images, on_clean), decoded(points, on_points)
        losses = [loss(letter) for letter in spec.tasks]
        turn, kinds = _drawn(how.self_supervised, images, generator)
        if how.self_supervised:
            heads.append(model.pretext)
            copies = [(part, inputs) for part, inputs in ((1 - share, images), (share, points)) if part]
            guesses = [(part, model.pretext(cut_off(model.encode(turn(inputs))))) for part, inputs in copies]
            losses.append(sum(part * F.cross_entropy(guess.float(), kinds) for part, guess in guesses))
        if how.curvature:
            heads.append(nn.Identity())
            losses.append(cut_off(_curvature(spec, model, batch, turn, kinds)))
    return latents, cuts, losses, heads


def perturbed(
    spec: ModelSpec, model: MultiTaskModel, batch: Batch, progress: float, generator: torch.Generator
) -> Tensor:
    """The images of a batch after the attack of `spec.adversarial`, (B, 3, H, W), in [0, 1]: on the training losses of
    the attacked tasks, in trades on their distance from the outputs without attack. With a curriculum the budget and
    the step are those of the specification from two thirds of the training on, before in proportion to `progress`."""
    how, tasks, (images, targets, masks) = spec.adversarial, attacked(spec), batch
    unit = (min(1.0, 1.5 * progress) if how.curriculum else 1.0) / 255

    def from_clean(points: Tensor) -> Tensor:
        outputs = model(points, tasks)
        return torch.stack([distance(model.definitions[t], outputs[t], clean[t], masks[t]) for t in tasks])

    with evaluating(model), _autocast(spec, images):
        if how.recipe == "trades":
            losses = from_clean
            with torch.no_grad():
                clean = model(images, tasks)
        else:
            losses = attacks.task_losses(model, targets, masks, tasks)
        budget = {"eps": unit * how.eps_255, "step_size": unit * how.step_size_255, "steps": how.steps}
        return attacks.NAMED[how.attack](losses, images, norm=how.norm, generator=generator, last=True, **budget)


def attacked(spec: ModelSpec) -> str:
    """Letters of the tasks that training attacks: in gat the main one."""
    how = spec.adversarial
    return spec.tasks[0] if how.recipe == "gat" else how.tasks or spec.tasks


def distance(task: Task, output: Tensor, clean: Tensor, mask: Tensor | None = None) -> Tensor:
    """How far the outputs of perturbed images are from those of clean ones, both (B, C, H, W), logits or values: of
    classes the Kullback-Leibler divergence KL(softmax(clean) || softmax(output)), of labels and ordinal classes that of
    their sigmoids, of regression the training loss with `clean` as target. Returns (B,): means over valid pixels,
    `mask` and all else as in `Task.loss`."""
    if task.kind == "regression":
        return task.loss(output, clean.float(), mask)
    output, clean, mask = task.maps(output, clean, mask)
    if task.kind != "classes":  # a sigmoid is a softmax over the logit and 0
        output, clean = (torch.stack([each, torch.zeros_like(each)], dim=1) for each in (output, clean))
    pixels = F.kl_div(*(each.float().log_softmax(dim=1) for each in (output, clean)), reduction="none", log_target=True)
    pixels = pixels.sum(dim=1)
    return mean_over_valid(pixels if task.kind == "classes" else pixels.mean(dim=1), mask)


def curvature(gradients: Tensor, others: Tensor) -> Tensor:
    """GAT's regulariser, the bounding measure of PCGrad's multi-task curvature (Yu et al. 2020, arXiv 2001.06782), of
    the input gradients g and h of two tasks, (B, ...): (1 - cos(g, h)^2) ||g - h||^2 / ||g + h||^2 of each image, (B,),
    at least 0; 0 where they point the same way, or where one of them is 0."""
    g, h = gradients.flatten(1), others.flatten(1)
    size = torch.cat([g, h], dim=1).detach().abs().amax(dim=1, keepdim=True)
    g, h = g / torch.where(size > 0, size, 1), h / torch.where(size > 0, size, 1)  # squares neither vanish nor overflow
    product, lengths = (g * h).sum(dim=1), (g * g).sum(dim=1) * (h * h).sum(dim=1)
    there = lengths > 0
    sine = 1 - product.square() / torch.where(there, lengths, 1)
    measure = sine * (g - h).square().sum(dim=1) / (g + h).square().sum(dim=1).clamp(min=1e-6)
    return torch.where(there, measure, 0)


def turned(images: Tensor, kinds: Tensor, name: str) -> Tensor:
    """(B, 3, H, W) images, square, each as its number in `kinds`, (B,), says. "rotation": by so many quarter turns, in
    [0, 4). "jigsaw": its 4 x 4 tiles in one of ten fixed orders, in [1, 11), or as they are, 0."""
    if name == "rotation":
        turns = torch.stack([images.rot90(number, (2, 3)) for number in range(KINDS[name])])
        moved = turns[kinds, torch.arange(len(images), device=images.device)]
    else:
        fixed = torch.Generator().manual_seed(0)
        others = [torch.randperm(_TILES**2, generator=fixed) for _ in range(KINDS[name] - 1)]
        order = torch.stack([torch.arange(_TILES**2), *others]).to(images.device)[kinds]  # (B, 16)
        tiles = images.unflatten(3, (_TILES, -1)).unflatten(2, (_TILES, -1)).permute(0, 2, 4, 1, 3, 5).flatten(1, 2)
        tiles = tiles[torch.arange(len(images), device=images.device).unsqueeze(1), order]
        moved = tiles.unflatten(1, (_TILES, _TILES)).permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3)
    return moved.contiguous(memory_format=torch.channels_last)


def with_head(spec: ModelSpec, model: MultiTaskModel) -> MultiTaskModel:
    """The model, for self-supervised training with a head `pretext` more, (B, C, h, w) latents -> (B, kinds) logits,
    which `kept` leaves out. It begins near zero, as the heads of the decoders do."""
    how = spec.adversarial
    if how is not None and how.self_supervised:
        with torch.no_grad(), evaluating(model):
            channels = model.encode(torch.zeros(1, 3, spec.data.size, spec.data.size)).shape[1]
        linear = nn.utils.skip_init(nn.Linear, channels, KINDS[how.self_supervised])
        nn.init.normal_(linear.weight, std=0.01, generator=torch.Generator().manual_seed(spec.seed * 1000))
        nn.init.zeros_(linear.bias)
        model.pretext = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), linear)
    return model


def kept(model: MultiTaskModel) -> dict[str, Tensor]:
    """The state of a model that its checkpoints have."""
    return {name: tensor for name, tensor in model.state_dict().items() if not name.startswith("pretext.")}


def watch(
    spec: ModelSpec, model: MultiTaskModel, data: Dataset, device: torch.device | str, epoch: int
) -> dict[str, float]:
    """Of fast training, the errors of the attacked tasks on the first batch of the training data after an epoch: "step
    s" under the step that is trained on, "pgd s" under ten of a quarter of the budget. Where the second is more than
    1.5 times the first, the model has learned to fool the step (catastrophic overfitting), and a warning says so."""
    how = spec.adversarial
    if how is None or how.recipe != "fast":
        return {}
    batch, progress = data.batch(slice(spec.batch_size), device), epoch / spec.epochs
    pgd = {"recipe": "pgd_at", "steps": WATCHED_STEPS, "step_size_255": how.eps_255 / 4}
    errors: dict[str, float] = {}
    for name, used in (("step", spec), ("pgd", spec.model_copy(update={"adversarial": how.model_copy(update=pgd)}))):
        points = perturbed(used, model, batch, progress, torch.Generator().manual_seed(epoch))
        with torch.no_grad(), evaluating(model), _autocast(spec, points):
            outputs = model(points, attacked(spec))
        for t, output in outputs.items():
            error = model.definitions[t].error(output, batch[1][t], batch[2][t])
            errors[f"{name} {t}"] = error.nanmean().item()
    for t in attacked(spec):
        if errors[f"pgd {t}"] > COLLAPSED * errors[f"step {t}"]:
            found = (
                f"the error of {t} is {errors[f'pgd {t}']:.3g} under PGD, {errors[f'step {t}']:.3g} under its own step"
            )
            about = f"of the model {spec.tasks} (seed {spec.seed})"
            warnings.warn(f"Catastrophic overfitting in epoch {epoch} {about}: {found}.", stacklevel=3)
    return errors


def passes(spec: ModelSpec) -> float:
    """Forward passes that a training step on one image is worth: 3 in plain training, a backward pass being two where
    it gives gradients of weights, else one."""
    return sum(number for number, _ in decoded_passes(spec))


def decoded_passes(spec: ModelSpec) -> list[tuple[float, str]]:
    """The same in parts: how many of them run the decoders of these letters."""
    how = spec.adversarial
    if how is None:
        return [(3.0, spec.tasks)]
    on_clean, on_points = learned(spec)
    inner = 2 * how.steps + (how.recipe == "trades") + (how.attack == "min_max") if on_points else 0
    copies = bool(how.self_supervised) * (1 + (how.auxiliary == "both" and bool(on_points) and how.beta < 1))
    curvature = how.curvature * (1 + 3 * (len(spec.tasks) + bool(how.self_supervised)))
    both = [(3.0, letters) for letters in (on_clean, on_points) if letters]
    return [(inner, attacked(spec)), *both, (3.0 * copies, ""), (curvature, spec.tasks)]


def learned(spec: ModelSpec) -> tuple[str, str]:
    """Letters of the tasks that learn from clean images, and from perturbed ones."""
    how, tasks = spec.adversarial, spec.tasks
    if not (how.beta and how.eps_255):
        return tasks, ""
    if how.recipe == "trades":
        return tasks, attacked(spec)
    on_points = tasks[0] if how.recipe == "gat" and how.auxiliary == "clean" else tasks
    return tasks if how.beta < 1 else "".join(t for t in tasks if t not in on_points), on_points


def _drawn(name: str, images: Tensor, generator: torch.Generator) -> tuple[Callable[[Tensor], Tensor], Tensor | None]:
    """What self-supervision makes of images, and of which kind each comes to be, (B,)."""
    if not name:
        return lambda inputs: inputs, None
    kinds = torch.randint(KINDS[name], (len(images),), generator=generator).to(images.device)
    return lambda inputs: turned(inputs, kinds, name), kinds


def _curvature(
    spec: ModelSpec, model: MultiTaskModel, batch: Batch, turn: Callable[[Tensor], Tensor], kinds: Tensor | None
) -> Tensor:
    """The mean `curvature` of the main task with each auxiliary one, on clean images, in evaluation mode."""
    images, targets, masks = batch
    images = images.clone().requires_grad_()
    with evaluating(model):
        rows = list(attacks.task_losses(model, targets, masks, spec.tasks)(images))
        if kinds is not None:
            guesses = model.pretext(model.encode(turn(images))).float()
            rows.append(F.cross_entropy(guesses, kinds, reduction="none"))
        main, *others = (torch.autograd.grad(row.sum(), images, create_graph=True)[0] for row in rows)
    return torch.stack([curvature(main, other).mean() for other in others]).mean()


def _autocast(spec: ModelSpec, images: Tensor) -> torch.autocast:
    return torch.autocast(images.device.type, torch.bfloat16, enabled=spec.precision == "bfloat16")
