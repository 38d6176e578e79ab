"""The emulation of the CUDA kernels, compiled once for all tests of a process."""

import pytest

from tests.ops.cuda_emulation import compile_emulation


@pytest.fixture(scope="session")
def library(tmp_path_factory):
    return compile_emulation(tmp_path_factory.mktemp("emulation"))


@pytest.fixture(scope="session")
def conv_library(tmp_path_factory):
    return compile_emulation(tmp_path_factory.mktemp("emulation"), kernels=("conv",))
