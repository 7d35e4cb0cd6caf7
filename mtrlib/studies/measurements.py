"""What is measured of trained models beside their errors, and kept in the store as they are: only what decides these
tables. The statistics that read them stand with each study."""

from collections.abc import Iterator

import numpy as np
import pandas as pd
import torch

from mtrlib import attacks
from mtrlib.metrics import theory
from mtrlib.specs import AttackSpec, ModelSpec
from mtrlib.store import Store, evaluation


def gradients(store: Store, spec: ModelSpec, sets: list[str], images: int, batch: int = 32) -> theory.Gradients:
    """Statistics of the input gradients of a model's tasks at the first test images, in float32, and of their sums over
    each of `sets`."""
    combinations = np.array([[float(letter in tasks) for letter in spec.tasks] for tasks in sets])

    def measure() -> pd.DataFrame:
        batches = _batches(store, spec, AttackSpec(tasks=spec.tasks, images=images), batch)
        return theory.to_table(theory.statistics(batches, combinations))

    about = {"sets": sets, "images": images, "batch": batch}
    return theory.from_table(store.table("gradients", about, [(spec, spec.epochs)], measure))


def expansion(store: Store, spec: ModelSpec, budgets: list[tuple[str, float]], images: int) -> pd.DataFrame:
    """The Taylor expansion of the summed loss of all tasks, mean over the first test images: first_order and
    second_order (the sum of both terms), one row a budget (norm, eps in 255ths)."""

    def measure() -> pd.DataFrame:
        losses, points = _losses(store, spec, AttackSpec(tasks=spec.tasks, images=images))
        terms = [theory.second_order(losses, points, eps / 255, norm) for norm, eps in budgets]
        means = [(first.mean().item(), (first + second).mean().item()) for first, second in terms]
        return pd.DataFrame(means, columns=["first_order", "second_order"])

    return store.table("expansion", {"budgets": budgets, "images": images}, [(spec, spec.epochs)], measure)


def relative_slopes(store: Store, spec: ModelSpec, main: str, attack: AttackSpec, images: int) -> np.ndarray:
    """(N,): eps ||r||_q / L of the first test images, r the gradient of the main task's loss L (`theory`, lemma 2)."""

    def measure() -> pd.DataFrame:
        parts = []
        for losses, points in _batches(store, spec, AttackSpec(tasks=main, images=images), 64):
            with torch.no_grad():
                clean = losses(points)[0]
            slope = theory.dual(theory.gradients(losses, points)[0].flatten(1), attack.norm)
            parts.append(attack.eps_255 / 255 * slope / clean)
        return pd.DataFrame({"relative": torch.cat(parts).cpu().numpy()})

    about = {"main": main, "norm": attack.norm, "eps_255": attack.eps_255, "images": images}
    return store.table("first order", about, [(spec, spec.epochs)], measure).relative.to_numpy()


def zero_gradients(store: Store, specs: list[ModelSpec], images: int) -> pd.DataFrame:
    """Share of the first test images at which the gradient of the joint loss is zero in every value; of all other
    images, the mean share of values at which it is. A value that is not a number counts as zero, as attacks take it."""

    def measure() -> pd.DataFrame:
        rows = []
        for spec in specs:
            losses, batch = _losses(store, spec, AttackSpec(tasks=spec.tasks, images=images))
            point = batch.clone().requires_grad_()
            (gradient,) = torch.autograd.grad(losses(point).sum(), point)
            zero = (gradient.nan_to_num() == 0).flatten(1).float().mean(dim=1)
            row = {"weights": spec.weights, "tasks": spec.tasks}
            row["images without a gradient"] = (zero == 1).float().mean().item()
            row["values without, in the others"] = zero[zero < 1].mean().item()  # NaN where there are none
            rows.append({**row, "images": len(batch)})
        return pd.DataFrame(rows)

    return store.table("zero gradients", {"images": images}, [(spec, spec.epochs) for spec in specs], measure)


def curves(store: Store, specs: list[ModelSpec], compared: list[AttackSpec]) -> pd.DataFrame:
    """How the attacks `compared` climb, made on all tasks of each model, whatever their own: the joint loss, mean over
    images. One row a model, attack and step: weights, tasks, attack, step (0: the start), loss (of the points), best
    (of the best points so far)."""

    def measure() -> pd.DataFrame:
        frames = []
        for spec in specs:
            for attack in (attack.model_copy(update={"tasks": spec.tasks}) for attack in compared):
                losses, images = _losses(store, spec, attack)
                losses, history = attacks.recorded(losses)
                budget = {"eps": attack.eps_255 / 255, "step_size": attack.step_size_255 / 255, "steps": attack.steps}
                generator = torch.Generator().manual_seed(attack.seed)
                attack.function(losses, images, norm=attack.norm, generator=generator, **budget)
                joint = torch.stack([row.sum(dim=0) for row in history]).cpu()
                lines = {"loss": joint, "best": joint.cummax(dim=0).values}
                means = {name: [step.mean().item() for step in steps] for name, steps in lines.items()}
                about = {"weights": spec.weights, "tasks": spec.tasks, "attack": attack.name}
                frames.append(pd.DataFrame({**about, "step": range(len(joint)), **means}))
        return pd.concat(frames, ignore_index=True)

    about = {"attacks": [attack.model_dump(mode="json") for attack in compared]}
    return store.table("climbing", about, [(spec, spec.epochs) for spec in specs], measure)


def _batches(
    store: Store, spec: ModelSpec, attack: AttackSpec, size: int | None = None
) -> Iterator[tuple[attacks.Losses, torch.Tensor]]:
    """The losses of an attack, in float32, and its images, in batches of `size` (all at once by default)."""
    model, data = store.model(spec), store.data(spec, "test", attack.images)
    for start in range(0, len(data), size or len(data)):
        images, targets, masks = data.batch(slice(start, start + (size or len(data))), store.device)
        yield evaluation.task_losses(model, targets, masks, attack), images


def _losses(store: Store, spec: ModelSpec, attack: AttackSpec) -> tuple[attacks.Losses, torch.Tensor]:
    return next(_batches(store, spec, attack))
