"""Vulnerability of tasks, with intervals; tables of cells (`tables`); what theory predicts (`theory`)."""

from mtrlib.metrics.vulnerability import (
    REDUCTIONS,
    adversarial_vulnerability,
    marginal_vulnerability,
    relative_task_vulnerability,
)
