"""What each notebook needs: its parameters (`parameters`), its cells, and what it reads from their errors."""

from mtrlib.studies.cells import (
    ALONE,
    Cell,
    attack,
    evaluations,
    matched_l2_eps_255,
    models,
    new_dataset,
    plan,
    rq1,
    rq2,
    rq3,
    rq4,
    run,
    subsets,
    train,
    train_models,
)
