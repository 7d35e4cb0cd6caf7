"""How the losses of the tasks are weighted in training (paper, RQ3; supplement, appendix B)."""

from __future__ import annotations

WEIGHTS = ("uniform",)


def task_weights(weights: str, tasks: str) -> tuple[float, ...]:
    """One weight a task, in the order of `tasks`.

    "uniform" is 1 / N for each of N tasks: the shipped jobs' setting, so that the sum of the weights, and with it the
    size of a training step, does not grow with the number of tasks.

    Raises ValueError for a scheme that does not exist.
    """
    if weights not in WEIGHTS:
        raise ValueError(f"Parameter weights should be one of {', '.join(WEIGHTS)}. Found weights = {weights!r}.")
    return (1 / len(tasks),) * len(tasks)
