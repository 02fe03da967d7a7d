"""The engine compared with recorded results of BVLC Caffe: single layers, small nets, solvers and their snapshots.

Only `fast`, on processors and GPUs that compute products in bfloat16, is allowed more than float32's rounding.
"""

import re

import numpy as np
import pytest
import torch

import caffe
from caffe.engine import machine, mode
from caffe.numerics import NUMERICS
from tests.conftest import GOLDEN

LAYERS = sorted((GOLDEN / "layers").glob("*.npz"))
SOLVERS = sorted((GOLDEN / "solvers").glob("*.npz"))


def assert_close(name, got, want, rtol, atol):
    if machine.product_type(mode.device()) is torch.bfloat16:
        # Terms that cancel, as in the gradient of a bias before BatchNorm, leave their rounding.
        least = 0.1 if name.startswith("param_diff") else 1e-3
        rtol, atol = 0, 0.05 * max(least, np.abs(want).max(initial=0))
    np.testing.assert_allclose(np.asarray(got), want, rtol=rtol, atol=atol, err_msg=name)


# The layers' recordings are checked in `fast` as well; a solver only adds products of the same kind to them.
in_every_numerics = pytest.mark.parametrize("numerics", NUMERICS, indirect=True)
in_full_precision = pytest.mark.parametrize("numerics", ["fp32", "reproducible"], indirect=True)


@in_every_numerics
@pytest.mark.usefixtures("numerics")
@pytest.mark.parametrize("path", LAYERS, ids=lambda p: p.stem)
def test_a_layer_matches_bvlc_caffe(path, write):
    recorded = np.load(path)
    text = str(recorded["prototxt"])
    net = caffe.Net(write("net.prototxt", text), getattr(caffe, str(recorded["phase"])))
    assert list(net.blobs) == list(recorded["blob_names"])
    assert net._layer_names == list(recorded["layer_names"])
    assert [layer.type for layer in net.layers] == list(recorded["layer_types"])
    assert net.inputs == list(recorded["inputs"])
    assert net.outputs == list(recorded["outputs"])
    for key in recorded.files:
        kind, *rest = key.split("/")
        if kind == "param":
            net.params[rest[0]][int(rest[1])].data[...] = recorded[key]
        elif kind == "input":
            net.blobs[rest[0]].data[...] = recorded[key]
    said = {name: blob.shape for name, blob in net.blobs.items()}
    net.forward()
    # Only the output shape of a Filter depends on values.
    changed = {name for name, blob in net.blobs.items() if blob.shape != said[name]}
    made_by = {top: layer.type for layer, tops in zip(net.layers, net.top_names.values(), strict=True) for top in tops}
    assert {made_by[name] for name in changed} <= {"Filter"}
    for key in recorded.files:
        kind, *rest = key.split("/")
        if kind == "blob":
            assert_close(key, net.blobs["/".join(rest)].data, recorded[key], 2e-4, 2e-5)
        elif kind == "param_after":
            assert_close(key, net.params[rest[0]][int(rest[1])].data, recorded[key], 2e-4, 2e-5)
    if "loss_weights" not in recorded.files:
        return
    assert_close("loss weights", list(net.blob_loss_weights.values()), recorded["loss_weights"], 1e-6, 0)
    net.clear_param_diffs()
    for key in recorded.files:
        if key.startswith("top_diff/"):
            net.blobs[key[9:]].diff[...] = recorded[key]
    net.backward()
    for key in recorded.files:
        kind, *rest = key.split("/")
        if kind == "param_diff":
            assert_close(key, net.params[rest[0]][int(rest[1])].diff, recorded[key], 1e-3, 1e-4)
        elif kind == "input_diff" and "propagate_down" not in text:
            assert_close(key, net.blobs["/".join(rest)].diff, recorded[key], 1e-3, 1e-4)


class Trajectory:
    """A recorded run of 24 iterations."""

    def __init__(self, path, folder, write):
        self.name = path.stem
        self.recorded = np.load(path)
        self.folder = folder
        self.write = write

    def solver(self, fmt="BINARYPROTO"):
        net = self.write("net.prototxt", str(self.recorded["net"]))
        text = str(self.recorded["solver"]).replace('net: "net.prototxt"', f'net: "{net}"')
        text = text.replace(f'"{self.name}"', f'"{self.folder}/{self.name}"')
        text = re.sub(r"snapshot_format: \w+", f"snapshot_format: {fmt}", text)
        return caffe.get_solver(self.write("solver.prototxt", text))

    def run(self, solver, start, stop):
        for step in range(start, stop):
            solver.net.blobs["x"].data[...] = self.recorded["x"][step]
            solver.net.blobs["l"].data[...] = self.recorded["l"][step]
            solver.step(1)
            assert_close(f"loss {step}", solver.net.blobs["loss"].data, self.recorded["losses"][step], 1e-3, 1e-5)
            for key in self.recorded.files:
                if key.startswith(f"step{step + 1}/"):
                    _, layer, index = key.split("/")
                    assert_close(key, solver.net.params[layer][int(index)].data, self.recorded[key], 1e-3, 1e-5)


@pytest.fixture(params=SOLVERS, ids=lambda p: p.stem)
def trajectory(request, tmp_path, write):
    return Trajectory(request.param, tmp_path, write)


@in_full_precision
@pytest.mark.usefixtures("numerics")
def test_a_solver_matches_bvlc_caffes_updates(trajectory):
    solver = trajectory.solver()
    for key in trajectory.recorded.files:
        if key.startswith("init/"):
            _, layer, index = key.split("/")
            solver.net.params[layer][int(index)].data[...] = trajectory.recorded[key]
    trajectory.run(solver, 0, 12)
    solver.snapshot()
    trajectory.run(solver, 12, 24)
    restored = trajectory.solver()
    restored.restore(f"{trajectory.folder}/{trajectory.name}_iter_12.solverstate")
    trajectory.run(restored, 12, 24)


@in_full_precision
@pytest.mark.usefixtures("numerics")
@pytest.mark.parametrize(("extension", "fmt"), [("solverstate", "BINARYPROTO"), ("solverstate.h5", "HDF5")])
def test_training_resumes_from_bvlc_caffes_snapshots(trajectory, extension, fmt):
    solver = trajectory.solver(fmt)
    solver.restore(GOLDEN / "solvers" / f"{trajectory.name}_iter_12.{extension}")
    assert solver.iter == 12
    trajectory.run(solver, 12, 24)
