"""Shared by the tests: a data set that is made in no time, and small specifications."""

import pytest
import torch

from mtrlib.specs import DataSpec, ModelSpec


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.fixture
def tiny() -> ModelSpec:
    """A model of s and d on 24 rooms of 16 pixels: trains in about two seconds."""
    return ModelSpec(data=DataSpec(size=16), tasks="sd", images=24, epochs=3, batch_size=8)
