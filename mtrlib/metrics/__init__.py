"""Vulnerability of tasks, with intervals; tables of cells (`tables`); what theory predicts (`theory`)."""

from mtrlib.metrics.vulnerability import (
    ABSOLUTE,
    REDUCTIONS,
    adversarial_vulnerability,
    bootstrap,
    interval,
    left_out,
    marginal_vulnerability,
    mean,
    mean_of,
    relative_task_vulnerability,
)
