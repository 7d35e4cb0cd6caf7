"""What the notebooks of a tier need, as jobs; what it costs (`cost`); the page of its results (`report`)."""

from mtrlib.batch.tier import (
    NOTEBOOKS,
    Job,
    Needs,
    defaults,
    evaluate,
    evaluations,
    jobs,
    needs,
    notebook,
    read,
    renew,
    title,
    train,
    unattacked,
    untrained,
)
