"""Encoders, decoders and the network of both: images in [0, 1] to a map a task, normalisation inside; released models.

How tasks share is the architecture: one encoder ("hard"), or a file each: cross_stitch, nddr, mtan, pad_net, mti_net.
"""

from mtrlib.models.building import ARCHITECTURES, build
from mtrlib.models.described import load_described
from mtrlib.models.encoders import ENCODERS
from mtrlib.models.network import MultiTaskModel, folded
from mtrlib.models.published import load_published
from mtrlib.models.released import load
