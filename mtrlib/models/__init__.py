"""Encoders, decoders and the network of both: images in [0, 1] to a map a task, normalisation inside."""

from mtrlib.models.network import MultiTaskModel, build, folded, load_published
