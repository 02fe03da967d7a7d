"""SGD's update in one pass over memory is the one in several, within rounding."""

import numpy as np
import pytest

import caffe
from caffe.training.solver_types import SGDSolver

NET = """
layer { name: "x" type: "DummyData" top: "x" top: "y" dummy_data_param {
  shape { dim: 2 dim: 3 dim: 6 dim: 6 } shape { dim: 2 } data_filler { type: "gaussian" } data_filler { value: 1 } } }
layer { name: "conv" type: "Convolution" bottom: "x" top: "conv"
  param { lr_mult: 1 decay_mult: 1 } param { lr_mult: 2 decay_mult: 0 }
  convolution_param { num_output: 4 kernel_size: 3 weight_filler { type: "gaussian" std: 0.1 } } }
layer { name: "ip" type: "InnerProduct" bottom: "conv" top: "ip" param { lr_mult: 0 } param { lr_mult: 0.5 }
  inner_product_param { num_output: 3 weight_filler { type: "gaussian" std: 0.1 } } }
layer { name: "loss" type: "SoftmaxWithLoss" bottom: "ip" bottom: "y" top: "loss" }
"""
RATES = {
    "fixed": 'lr_policy: "fixed" base_lr: 0.1',
    "falling": 'lr_policy: "step" stepsize: 2 gamma: 0.3 base_lr: 0.1',
    "unscaled loss": 'lr_policy: "fixed" base_lr: 1e-12',
    "rate 0": 'lr_policy: "fixed" base_lr: 0',
    "subnormal rate": 'lr_policy: "exp" gamma: 1e-10 base_lr: 1e-31',
}


def trained(folder, settings):
    """Parameters, what was subtracted last, and the history."""
    (folder / "net.prototxt").write_text(NET)
    (folder / "solver.prototxt").write_text(f'net: "net.prototxt" random_seed: 3 snapshot_prefix: "s" {settings}')
    solver = caffe.get_solver("solver.prototxt")
    held = solver.net.params["ip"][1].data
    solver.step(6)
    blobs = [blob for blobs in solver.net.params.values() for blob in blobs]
    np.testing.assert_array_equal(held, blobs[3].data)
    return [
        *(blob.data for blob in blobs),
        *(blob.diff for blob in blobs),
        *(history.cpu().numpy() for history in solver.history),
    ]


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("rest", ["weight_decay: 0.01", "iter_size: 3 weight_decay: 0.01", "clip_gradients: 0.1", ""])
def test_it_subtracts_what_separate_operations_subtract(tmp_path, monkeypatch, rate, rest):
    monkeypatch.chdir(tmp_path)
    settings = f"{RATES[rate]} momentum: 0.9 {rest}"
    fused, updates = SGDSolver.fused_update, []
    monkeypatch.setattr(SGDSolver, "fused_update", lambda *args: updates.append(fused(*args)) or updates[-1])
    values = trained(tmp_path, settings)
    assert updates
    assert all((each is None) == (rate in ("rate 0", "subnormal rate")) for each in updates)
    monkeypatch.setattr(SGDSolver, "fused_update", lambda *args: None)
    for one, other in zip(values, trained(tmp_path, settings), strict=True):
        np.testing.assert_allclose(one, other, rtol=2e-6, atol=2e-7 * np.abs(other).max())
        assert rate != "unscaled loss" or one.any() == other.any()


def test_l1_decay_is_left_to_separate_operations(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    decays = []
    monkeypatch.setattr(SGDSolver, "fused_update", lambda self, group, gradients, rate, decay: decays.append(decay))
    trained(tmp_path, f'{RATES["fixed"]} momentum: 0.9 weight_decay: 0.1 regularization_type: "L1"')
    assert set(decays) == {0.0}  # that of biases


@pytest.mark.parametrize(("numerics", "momentum"), [("fp32", 0.0), ("reproducible", 0.9)], indirect=["numerics"])
def test_it_is_left_out(tmp_path, monkeypatch, numerics, momentum):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("torch._fused_sgd_", None)
    trained(tmp_path, f"{RATES['fixed']} momentum: {momentum}")


def test_several_processes_leave_it_out(tmp_path, monkeypatch):
    """It rounds by the place in memory, and a process that looks at its weights has them in another layout."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("torch._fused_sgd_", None)
    monkeypatch.setattr("caffe.engine.mode.solver_count", lambda: 2)
    trained(tmp_path, f"{RATES['fixed']} momentum: 0.9")


def test_a_rule_that_is_derived_from_sgd_is_used(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.prototxt").write_text(NET)
    (tmp_path / "solver.prototxt").write_text(f'net: "net.prototxt" snapshot_prefix: "s" momentum: 0.9 {RATES["fixed"]}')

    class Halved(caffe.SGDSolver):
        def update(self, gradients, histories, rate):
            return [gradient * rate / 2 for gradient in gradients]

    solver = Halved("solver.prototxt")
    before = solver.net.params["conv"][0].data.copy()
    solver.step(1)
    update = solver.net.params["conv"][0].diff
    assert not solver.history[0].any()
    np.testing.assert_allclose(before - solver.net.params["conv"][0].data, update, atol=1e-7)
