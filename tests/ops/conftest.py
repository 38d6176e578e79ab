"""The emulation of the CUDA kernels, compiled once for all tests."""

import os

import pytest

from gspn_dit.files import claimed_file
from tests.ops.cuda_emulation import compile_emulation, load_emulation


@pytest.fixture(scope="session")
def library(tmp_path_factory):
    return compiled_once(tmp_path_factory, ("scan", "merge"))


@pytest.fixture(scope="session")
def conv_library(tmp_path_factory):
    return compiled_once(tmp_path_factory, ("conv",))


def compiled_once(tmp_path_factory, kernels):
    """The library of these kernels; the processes of one pytest -n share it."""
    base = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent
    folder = base / f"emulation-{'-'.join(kernels)}"
    with claimed_file(folder, wait=True):
        if (folder / "libemulation.so").exists():
            return load_emulation(folder, kernels)
        return compile_emulation(folder, kernels=kernels)
