"""Shared by the tests: a data set that is made in no time, small specifications, and notebooks run without a kernel."""

import oracles
import pytest
import torch

from mtrlib import rooms
from mtrlib.rooms.scenes import CENTRE, CLASS, HALF, PAINTED, TURN
from mtrlib.specs import DataSpec, ModelSpec

# With `--no-loadscope-reorder` these begin first, so that no process is left alone with one of them at the end; the
# notebooks, all of which would run last, among them where they train.
LONG = ("test_released", "test_batch", "test_notebooks", "test_killed", "test_benchmarks", "test_all_attacks")
LONG += ("new_dataset", "new_method", "tour", "constrained_attacks")


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: LONG.index(item.path.stem) if item.path.stem in LONG else len(LONG))


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
    """`oracles.run_cells`: a notebook's code cells in this process."""
    return oracles.run_cells


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.fixture(scope="session")
def tiny() -> ModelSpec:
    """A small model of s and d on 24 rooms of 16 pixels."""
    data = DataSpec(size=16)
    return ModelSpec(data=data, tasks="sd", encoder="resnet18_tiny", images=24, epochs=3, batch_size=8)


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
