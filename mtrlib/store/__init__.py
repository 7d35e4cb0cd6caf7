"""Whatever was computed, kept once, by content; errors that were released (`released`); from a model and an attack to
errors (`evaluation`)."""

from mtrlib.store.store import FORMAT, Store
