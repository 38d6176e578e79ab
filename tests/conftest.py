"""Fixtures shared by all tests: every test runs on the CPU; a GPU only adds a parameter."""

import pytest
import torch

from ops.library import BACKENDS

DEVICES = ["cpu", *(["cuda"] if "cuda" in BACKENDS and torch.cuda.is_available() else [])]


@pytest.fixture(params=DEVICES)
def device(request) -> str:
    """Each device that this machine can test on."""
    return request.param


@pytest.fixture
def poisoned_memory():
    """Fill fresh memory with NaN, so that an element that nobody wrote shows itself."""
    deterministic, fill = (
        torch.are_deterministic_algorithms_enabled(),
        torch.utils.deterministic.fill_uninitialized_memory,
    )
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(deterministic)
    torch.utils.deterministic.fill_uninitialized_memory = fill
