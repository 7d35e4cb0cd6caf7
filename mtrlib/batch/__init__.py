"""What the notebooks of a tier need, as jobs; what it costs (`cost`); the page of its results (`report`)."""

from mtrlib.batch.tier import (
    NOTEBOOKS,
    Job,
    Needs,
    evaluate,
    jobs,
    needs,
    notebook,
    paths,
    read,
    renew,
    title,
    train,
    unattacked,
    untrained,
)
