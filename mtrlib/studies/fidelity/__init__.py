"""What the paper's published code does where it differs from the definitions (`changes`), one rung at a time (`ladder`,
`rungs`)."""

from mtrlib.studies.fidelity.changes import (
    CHANGES,
    TITLES,
    by_position,
    class_weights,
    constant_rates,
    errors,
    task_losses,
    trajectory,
)
from mtrlib.studies.fidelity.ladder import all_heads
