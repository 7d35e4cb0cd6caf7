"""The embedded data set: rooms that are rendered on the fly, with exact labels of all eleven tasks."""

from mtrlib.rooms.changes import RANGES, REACH, change, intrusion, labelled
from mtrlib.rooms.rendering import TASKS, VERSION, draw, load, render
from mtrlib.rooms.scenes import CLASSES
