"""What the paper's published code does where it differs from the definitions (`changes`), one rung at a time (`ladder`,
`rungs`)."""

from mtrlib.studies.fidelity.changes import (
    BACKGROUND,
    BATCH,
    CHANGES,
    OBJECTS,
    TITLES,
    all_heads,
    by_position,
    check,
    class_weights,
    constant_rates,
    errors,
    fit_by_position,
    task_losses,
    trajectory,
)
