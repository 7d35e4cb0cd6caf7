"""Encoders, decoders and the network of both: images in [0, 1] to a map a task, normalisation inside."""

from mtrlib.models.encoders import ENCODERS
from mtrlib.models.network import MultiTaskModel, build, folded
from mtrlib.models.published import load_published
