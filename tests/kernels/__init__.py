"""The kernels for GPUs on a processor, by Triton's interpreter: `make test-kernels`. Without Triton they are left out."""

import importlib
import os

import pytest


def kernels_of(*names):
    """Modules of caffe.kernels; skips a test module unless Triton interprets, as a process says from its start."""
    pytest.importorskip("triton")
    if os.environ.get("TRITON_INTERPRET") != "1":
        pytest.skip("Triton interprets only with TRITON_INTERPRET=1: make test-kernels", allow_module_level=True)
    return [importlib.import_module(f"caffe.kernels.{name}") for name in names]
