"""In `fast`, a solver on a GPU takes the memory layout in which its first passes take less time; else it is channels-last."""

import numpy as np
import pytest
import torch

import caffe
from caffe import glog
from caffe.engine import cuda_graphs, layouts, mode
from caffe.errors import Error
from tests.gpu.test_captured import is_captured, is_update_captured, state
from tests.gpu.test_waiting import gpu as gpu  # the fixture

pytestmark = pytest.mark.own_device

LABELS = [0, 1, 2, 1, 0, 2]
SOLVER = "momentum: 0.9 average_loss: 40"
IN_A_LAYOUT = layouts.WARM + layouts.TIMED


def executor(net):
    return net._runner._executor


def layout_of(net):
    """The layout of a net's images, and that of its convolution's weights and output."""
    images = executor(net).layout
    for value in (net.layer_dict["conv"].blobs[0].leaf, net.blobs["conv"].tensor):
        assert value.is_contiguous(memory_format=images)
    return images


@pytest.fixture(autouse=True)
def _measured(monkeypatch):
    monkeypatch.delenv(layouts.SWITCH)
    monkeypatch.setattr(cuda_graphs, "failed", {})


@pytest.fixture
def times(monkeypatch):
    """times[layout] is how long a pass takes; `seen` are the layouts that were timed."""
    given = {torch.channels_last: 2.0, torch.contiguous_format: 2.0}
    timed = []
    begin = layouts.Layouts.begin

    def noted(self, layout):
        begin(self, layout)
        if self._start is not None:
            self._start.layout = self._layout

    def elapsed(start, end):
        assert start.elapsed_time(end) > 0
        timed.append(start.layout)
        return given[start.layout]

    monkeypatch.setattr(layouts.Layouts, "begin", noted)
    monkeypatch.setattr(layouts, "elapsed", elapsed)
    given["seen"] = timed
    return given


@pytest.fixture
def fast():
    caffe.set_numerics("fast")
    yield
    caffe.set_numerics("fp32")


@pytest.mark.parametrize(
    ("row_major", "chosen"),
    [(1.0, torch.contiguous_format), (1.99, torch.channels_last), (3.0, torch.channels_last)],
    ids=["faster", "not by much", "slower"],
)
def test_the_faster_layout_is_kept(gpu, times, fast, monkeypatch, capfd, row_major, chosen):
    monkeypatch.setattr(glog._State, "level", glog.INFO)
    monkeypatch.setattr(glog._State, "stderr", True)
    times[torch.contiguous_format] = row_major
    solver = gpu(LABELS, solver=SOLVER)
    for expected in (torch.channels_last, torch.contiguous_format, chosen):
        solver.step(IN_A_LAYOUT)
        assert layout_of(solver.net) is expected
        solver.test_all()  # passes of a test are not timed
    assert times["seen"] == [torch.channels_last] * layouts.TIMED + [torch.contiguous_format] * layouts.TIMED
    assert is_captured(solver)
    assert is_update_captured(solver)
    name = next(name for name, layout in layouts.NAMES.items() if layout is chosen)
    assert f"Images are kept {name}: a pass takes 2.000 ms channels-last, {row_major:.3f} ms row-major" in capfd.readouterr().err
    solver.step(2 * IN_A_LAYOUT)
    assert layout_of(solver.net) is chosen
    assert len(times["seen"]) == 2 * layouts.TIMED


def test_a_training_learns_the_same_in_either_layout(gpu, times, monkeypatch):
    """In float32, so that roundings stay small: numerics are `fast` for the choice alone."""
    monkeypatch.setattr(mode, "numerics", lambda: "fast")
    monkeypatch.setattr("caffe.engine.machine._multiplies_bfloat16", lambda device: False)
    times[torch.contiguous_format] = 1.0
    states = []
    for given in ("", "channels_last"):
        monkeypatch.setenv(layouts.SWITCH, given)
        solver = gpu(LABELS, solver=SOLVER + " iter_size: 2")
        solver.step(20)
        states.append([*state(solver), *(each.cpu().numpy() for each in solver.history)])
    assert len(times["seen"]) == 2 * layouts.TIMED
    for mine, other in zip(*states, strict=True):
        assert np.allclose(mine, other, rtol=1e-4, atol=1e-5)


def test_test_nets_keep_their_images_alike(gpu, times, fast):
    times[torch.contiguous_format] = 1.0
    solver = gpu(LABELS, solver=SOLVER)
    solver.step(3 * IN_A_LAYOUT)
    before = solver.net.layer_dict["conv"].blobs[0].memory.order
    solver.test_all()
    assert layout_of(solver.test_nets[0]) is torch.contiguous_format
    assert solver.net.layer_dict["conv"].blobs[0].memory.order == before  # a test moves no weights


def test_other_numerics_have_the_usual_layout(gpu, times):
    times[torch.contiguous_format] = 1.0
    solver = gpu(LABELS, solver=SOLVER)
    solver.step(3 * IN_A_LAYOUT)
    assert times["seen"] == []
    assert layout_of(solver.net) is torch.channels_last
    caffe.set_numerics("fast")
    solver.step(3 * IN_A_LAYOUT)
    assert layout_of(solver.net) is torch.contiguous_format
    caffe.set_numerics("fp32")
    solver.step(1)
    assert layout_of(solver.net) is torch.channels_last
    caffe.set_numerics("fast")
    solver.step(1)
    assert layout_of(solver.net) is torch.contiguous_format
    caffe.set_numerics("fp32")


@pytest.mark.parametrize("name", layouts.NAMES)
def test_a_layout_may_be_given(gpu, times, fast, monkeypatch, name):
    monkeypatch.setenv(layouts.SWITCH, name)
    solver = gpu(LABELS, solver=SOLVER)
    solver.step(2 * IN_A_LAYOUT)
    assert times["seen"] == []
    assert layout_of(solver.net) is layouts.NAMES[name]


def test_an_unknown_layout_is_refused(gpu, monkeypatch):
    monkeypatch.setenv(layouts.SWITCH, "NHWC")
    with pytest.raises(Error, match=r"CAFFE_LAYOUT.*'NHWC'.*channels_last, row_major"):
        gpu(LABELS)


def test_without_room_on_the_gpu_the_other_layout_is_not_tried(gpu, times, fast, monkeypatch):
    solver = gpu(LABELS, solver=SOLVER)
    solver.step(IN_A_LAYOUT)
    highest = [1 << 30]
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device=0: highest[-1])
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device=0: highest.append(1 << 30))
    solver.step(1)
    assert layout_of(solver.net) is torch.contiguous_format
    highest.append(15 << 30)
    solver.step(IN_A_LAYOUT)
    assert layout_of(solver.net) is torch.channels_last
    assert is_captured(solver)
    assert times["seen"] == [torch.channels_last] * layouts.TIMED


def test_several_gpus_keep_the_usual_layout(gpu, times, fast, monkeypatch):
    monkeypatch.setattr(mode, "solver_count", lambda: 2)
    timer = layouts.Layouts(torch.device("cuda", 0), is_timed=True)
    for _ in range(3 * IN_A_LAYOUT):
        assert timer.next() is torch.channels_last
        timer.begin(timer.next())
        timer.end()
    assert times["seen"] == []


def test_on_a_cpu_nothing_is_measured(monkeypatch):
    monkeypatch.setenv(layouts.SWITCH, "row_major")
    caffe.set_numerics("fast")
    timer = layouts.Layouts(torch.device("cpu"), is_timed=True)
    for _ in range(3 * IN_A_LAYOUT):
        assert timer.next() is torch.channels_last
        timer.begin(timer.next())
        timer.end()
    caffe.set_numerics("fp32")


def test_a_capture_that_fails_in_one_layout_is_tried_again_in_the_other(gpu, times, fast, monkeypatch):
    """And the time of the passes that are computed instead counts."""
    from caffe.engine import captured

    compare = captured._compare

    def differ(*given):
        if executor(solver.net).layout is torch.contiguous_format:
            raise RuntimeError("replayed, they give other losses or gradients")
        compare(*given)

    monkeypatch.setattr(captured, "_compare", differ)
    solver = gpu(LABELS, solver=SOLVER)
    solver.step(IN_A_LAYOUT)
    assert is_captured(solver)
    solver.step(IN_A_LAYOUT)
    assert not is_captured(solver)
    solver.step(IN_A_LAYOUT)
    assert layout_of(solver.net) is torch.channels_last
    assert is_captured(solver)


def test_a_net_that_follows_another_is_not_timed(gpu, times, fast):
    leader, follower = gpu(LABELS, solver=SOLVER), gpu(LABELS, solver=SOLVER)
    follower.net.share_with(leader.net)
    follower.step(2 * IN_A_LAYOUT)
    assert times["seen"] == []
    assert executor(follower.net)._layouts._timings == []
    times[torch.contiguous_format] = 1.0
    leader.step(3 * IN_A_LAYOUT)
    follower.step(1)
    assert executor(follower.net).layout is torch.contiguous_format


def test_where_a_gpu_captures_no_more_the_usual_layout_stays(gpu, times, fast, monkeypatch):
    times[torch.contiguous_format] = 1.0
    solver = gpu(LABELS, solver=SOLVER)
    solver.step(IN_A_LAYOUT)
    monkeypatch.setitem(cuda_graphs.failed, solver.net.device, None)
    solver.step(IN_A_LAYOUT)
    assert layout_of(solver.net) is torch.channels_last
    assert times["seen"] == [torch.channels_last] * layouts.TIMED


def test_gradients_of_several_passes_add_up_in_one_layout(gpu, times, fast, monkeypatch):
    moved = []
    solver = gpu(LABELS, solver=SOLVER + " iter_size: 3")
    net = executor(solver.net)
    lay_out = net._lay_out

    def noted(layout):
        weights = [blob.leaf.grad for layer in solver.net.layers for blob in layer.blobs]
        moved.append((layout, net._layouts._passes, [each for each in weights if each is not None]))
        lay_out(layout)

    monkeypatch.setattr(net, "_lay_out", noted)
    times[torch.contiguous_format] = 1.0
    solver.step(IN_A_LAYOUT)
    # Passes of the iteration in which the layout was to change are counted in neither.
    assert moved == [(torch.contiguous_format, 0, [])]
    assert times["seen"] == [torch.channels_last] * layouts.TIMED + [torch.contiguous_format] * layouts.TIMED
