"""Data sets of images with dense labels, all in one shape: `load(name, ...) -> Dataset`; `check` looks at files."""

from mtrlib.data.checks import check
from mtrlib.data.dataset import SPLITS, Dataset
from mtrlib.data.example import write_example
from mtrlib.data.loading import NAMES, classes, digest, letters, load, source, tasks
