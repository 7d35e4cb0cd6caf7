"""Data sets of images with dense labels, all in one shape: `load(name, ...) -> Dataset`; `check` looks at files."""

from mtrlib.data.checks import check
from mtrlib.data.description import DESCRIBED
from mtrlib.data.description import digest_of as digest
from mtrlib.data.example import write_example
from mtrlib.data.loading import NAMES, letters, load, source, tasks
from mtrlib.dataset import SPLITS, Dataset
