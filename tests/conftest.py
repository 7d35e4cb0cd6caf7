"""Shared by the tests: a data set that is made in no time, small specifications, and notebooks run without a kernel."""

import json

import matplotlib
import pytest
import torch

from mtrlib import machine
from mtrlib.data import rooms
from mtrlib.data.scenes import CENTRE, CLASS, HALF, PAINTED, TURN
from mtrlib.specs import DataSpec, ModelSpec


@pytest.fixture(scope="module")
def one_thread():
    """For short operations: sharing them costs more than it saves."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def scenes():
    """48 rooms, as `rooms.draw` gives them."""
    return rooms.draw("train", 48)


@pytest.fixture(scope="module")
def view(scenes):
    """Those rooms rendered at 64 pixels."""
    return rooms.render(scenes, 64)


@pytest.fixture(scope="session")
def run_cells():
    """A function of a notebook's name and its parameters that runs its code cells in this process, which spares the
    start of a kernel and the pictures; it returns what they leave."""

    def run(name: str, values: dict) -> dict:
        cells = json.loads((machine.root() / "notebooks" / f"{name}.ipynb").read_text(encoding="utf-8"))["cells"]
        sources = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
        namespace = {"display": lambda *shown: [each._repr_html_() for each in shown if hasattr(each, "_repr_html_")]}
        with matplotlib.rc_context({"backend": "agg"}):
            for number, source in enumerate(sources):
                exec(compile(source, f"{name}, code cell {number}", "exec"), namespace)
                if number == 0:
                    namespace |= values
            matplotlib.pyplot.close("all")
        return namespace

    return run


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.fixture
def tiny() -> ModelSpec:
    """A model of s and d on 24 rooms of 16 pixels: trains in about two seconds."""
    return ModelSpec(data=DataSpec(size=16), tasks="sd", images=24, epochs=3, batch_size=8)


@pytest.fixture
def hand_made():
    """A function of the name and the half sizes (radius) in metres of what stands in a room; nothing by default.

    The room is 4 x 3 x 6 m, the camera level at its middle, looking at the wall z = 0 three metres away. The front of
    the box, ball or column is 1.5 m away on the axis of the camera.
    """

    def make(name: str = "box", across: float = -1.0, tall: float | None = None) -> dict[str, torch.Tensor]:
        scene = rooms.draw("train", 1)
        scene["room"] = torch.tensor([[4.0, 3.0, 6.0]])
        scene["camera"] = torch.tensor([[2.0, 1.5, 3.0, 0.0, 0.0, 1.0]])
        scene["surfaces"][:, PAINTED:, HALF] = -1
        surface = CLASS.index(rooms.CLASSES.index(name))
        scene["surfaces"][:, surface, CENTRE] = torch.tensor([2.0, 1.5, 1.5 - across])
        scene["surfaces"][:, surface, HALF] = torch.tensor([across, tall or across, across])
        scene["surfaces"][:, surface, TURN] = torch.tensor([1.0, 0.0])
        return scene

    return make
