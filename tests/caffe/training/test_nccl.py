"""caffe.NCCL: processes exchange parameters and gradients whatever their memory layout, and add them in rank order."""

import datetime
import json
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

import caffe
from caffe.training import nccl
from caffe.training.peers import Peers

NET = """
layer { name: "x" type: "Input" top: "x" top: "t"
  input_param { shape { dim: BATCH dim: 4 dim: 6 dim: 6 } shape { dim: BATCH dim: 3 } } }
layer { name: "conv" type: "Convolution" bottom: "x" top: "conv" param { name: "w" } param { lr_mult: 2 }
  convolution_param { num_output: 4 kernel_size: 3 weight_filler { type: "xavier" } } }
layer { name: "again" type: "Convolution" bottom: "conv" top: "again" param { name: "w" }
  convolution_param { num_output: 4 kernel_size: 3 bias_term: false } }
layer { name: "frozen" type: "Convolution" bottom: "again" top: "frozen" param { lr_mult: 0 } param { lr_mult: 0 }
  convolution_param { num_output: 5 kernel_size: 2 weight_filler { type: "xavier" } } }
layer { name: "ip" type: "InnerProduct" bottom: "frozen" top: "ip"
  inner_product_param { num_output: 3 weight_filler { type: "xavier" } } }
layer { name: "loss" type: "EuclideanLoss" bottom: "ip" bottom: "t" top: "loss" }
layer { name: "aside" type: "InnerProduct" bottom: "x" top: "aside"
  inner_product_param { num_output: 2 weight_filler { type: "xavier" } } }
layer { name: "silence" type: "Silence" bottom: "aside" }
"""
SOLVER = 'net: "net.prototxt" base_lr: 0.05 momentum: 0.9 weight_decay: 0.1 lr_policy: "fixed" max_iter: 9 solver_mode: CPU '
SCRIPT = """
import json
import sys
import numpy as np
import caffe
from caffe.training import nccl as engine

rank, uid, asked = int(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3])
engine.BUCKET = asked.get("bucket", engine.BUCKET)
caffe.set_solver_count(asked["count"])
caffe.set_solver_rank(rank)
caffe.set_multiprocess(True)
caffe.set_random_seed(rank)
solver = caffe.SGDSolver("solver.prototxt")
parameters = solver.net.learnable_params()

def look(when):
    for side in asked["looks"].get(f"{rank} {when}", []):
        for blob in parameters:
            getattr(blob, side)

def save(name):
    np.savez(f"{name}{rank}", *(blob.peek() for blob in parameters))

look("before bcast")
save("own")
nccl = caffe.NCCL(solver, uid)
nccl.bcast()
save("first")
look("after bcast")
solver.add_callback(nccl)
if asked["overlap"]:
    solver.net.after_backward(nccl)
for number, (x, t) in enumerate(zip(np.load("x.npy"), np.load("t.npy"))):
    solver.net.blobs["x"].data[...] = x[rank::asked["count"]]
    solver.net.blobs["t"].data[...] = t[rank::asked["count"]]
    if number == 2:
        look("in training")
    solver.step(1)
save("last")
"""


def run_processes(script, count, **asked):
    """Run a script in `count` processes with (rank, uid, `asked` as JSON) as arguments; returns their outputs."""
    arguments = [caffe.NCCL.new_uid().decode(), json.dumps({"count": count, **asked})]
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", script, str(rank), *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for rank in range(count)
    ]
    try:
        results = [(*process.communicate(timeout=120), process.returncode) for process in processes]
    finally:
        for process in processes:
            process.kill()
    for _, errors, code in results:
        assert code == 0, errors
    return [output for output, _, _ in results]


def parameters(name, rank):
    """All parameters that a process saved under this name."""
    with np.load(f"{name}{rank}.npz") as file:
        return [file[f"arr_{index}"] for index in range(len(file.files))]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working folder with a net, its solver and six batches of 4 for each of two processes."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    rng = np.random.default_rng(0)
    np.save("x", rng.normal(size=(6, 8, 4, 6, 6)).astype(np.float32))
    np.save("t", rng.normal(size=(6, 8, 3)).astype(np.float32))
    (tmp_path / "net.prototxt").write_text(NET.replace("BATCH", "4"))
    (tmp_path / "solver.prototxt").write_text(SOLVER)
    return tmp_path


def train_alone(first):
    """The parameters that a single process learns from all batches, starting from `first`."""
    Path("whole.prototxt").write_text(NET.replace("BATCH", "8"))
    Path("alone.prototxt").write_text(SOLVER.replace("net.prototxt", "whole.prototxt"))
    solver = caffe.SGDSolver("alone.prototxt")
    blobs = solver.net.learnable_params()
    for blob, values in zip(blobs, first, strict=True):
        blob.data[...] = values
    for x, t in zip(np.load("x.npy"), np.load("t.npy"), strict=True):
        solver.net.blobs["x"].data[...] = x
        solver.net.blobs["t"].data[...] = t
        solver.step(1)
    return [blob.data for blob in blobs]


@pytest.mark.parametrize(
    ("looks", "overlap", "iter_size"),
    [
        ({}, True, 1),
        ({"1 before bcast": ["data", "diff"]}, True, 1),
        ({"0 after bcast": ["diff"]}, True, 2),
        ({"0 before bcast": ["data"], "1 in training": ["data", "diff"]}, False, 1),
    ],
)
def test_reading_parameters_in_any_process_changes_nothing(folder, looks, overlap, iter_size):
    (folder / "solver.prototxt").write_text(SOLVER + f"iter_size: {iter_size}")
    run_processes(SCRIPT, 2, looks=looks, overlap=overlap, bucket=1)
    own, *first = parameters("own", 0), parameters("first", 0), parameters("first", 1)
    last = parameters("last", 0), parameters("last", 1)
    for mine, left, right in zip(own, *first, strict=True):
        np.testing.assert_array_equal(left, mine)
        np.testing.assert_array_equal(right, mine)
    for left, right, whole in zip(*last, train_alone(own), strict=True):
        np.testing.assert_array_equal(left, right)
        np.testing.assert_allclose(left, whole, rtol=1e-4, atol=1e-5)


ORDER = """
import json
import sys
import numpy as np
import caffe

rank, uid, asked = int(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3])
caffe.set_solver_count(asked["count"])
caffe.set_solver_rank(rank)
solver = caffe.SGDSolver("solver.prototxt")
nccl = caffe.NCCL(solver, uid)
diff = solver.net.params["ip"][0].diff

def give():
    diff[...] = asked["gradients"][rank]

solver.add_callback(lambda: None, give)
solver.add_callback(nccl)
solver.add_callback(lambda: None, lambda: np.save(f"sum{rank}", diff))
solver.step(1)
"""


def test_gradients_are_added_in_rank_order(folder):
    (folder / "net.prototxt").write_text("""
    layer { name: "x" type: "DummyData" top: "x" top: "t" dummy_data_param { shape { dim: 1 dim: 1 } shape { dim: 1 dim: 5 } } }
    layer { name: "ip" type: "InnerProduct" bottom: "x" top: "ip" inner_product_param { num_output: 5 bias_term: false } }
    layer { name: "loss" type: "EuclideanLoss" bottom: "ip" bottom: "t" top: "loss" }
    """)
    # Another order of additions gives another sum in at least one column.
    gradients = np.array([[1e8, 1, 1, -1e8, 0.1], [1, 1e8, -1e8, 1e8, 0.2], [-1e8, -1e8, 1e8, 3, 0.3]], np.float32)
    run_processes(ORDER, 3, gradients=[[[value] for value in row] for row in gradients.tolist()])
    expected = ((gradients[0] + gradients[1]) + gradients[2]) * np.float32(1 / 3)
    for rank in range(3):
        np.testing.assert_array_equal(np.load(f"sum{rank}.npy").ravel(), expected)


EARLY = """
import sys
import caffe

rank, uid = int(sys.argv[1]), sys.argv[2]
caffe.set_solver_count(2)
caffe.set_solver_rank(rank)
solver = caffe.SGDSolver("solver.prototxt")
nccl = caffe.NCCL(solver, uid)
solver.add_callback(nccl)
solver.step(3)
if rank == 1:
    END
solver.step(3)
"""


@pytest.mark.parametrize(
    ("end", "code", "message"),
    [
        ("raise ValueError('this is mine')", 1, "has ended: ValueError: this is mine"),
        ("sys.exit()", 0, "has ended after 3 iterations, before the others"),
        ("import os; os._exit(7)", 7, "has died"),
    ],
)
def test_a_process_that_ends_early_ends_the_others_with_its_reason(folder, end, code, message):
    uid = caffe.NCCL.new_uid().decode()
    processes = [
        subprocess.Popen([sys.executable, "-c", EARLY.replace("END", end), str(rank), uid], stderr=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    try:
        first, second = (process.communicate(timeout=120)[1] for process in processes)
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [1, code], first + second
    assert f"solver 1 (process {processes[1].pid} on" in first
    assert message in first
    assert ("this is mine" in second) == ("this is mine" in end)


STOP = """
import sys
import caffe

rank, uid = int(sys.argv[1]), sys.argv[2]
caffe.set_solver_count(2)
caffe.set_solver_rank(rank)
solver = caffe.SGDSolver("tested.prototxt" if rank == 0 else "solver.prototxt")
nccl = caffe.NCCL(solver, uid)
solver.add_callback(nccl)
if rank == 0:
    solver.on_test(lambda row: solver.request("stop") if solver.iter == 0 else None)
    solver.add_callback(lambda: None, lambda: solver.request("stop") if solver.iter == 4 else None)
solver.step(9)
stopped = solver.iter
solver.step(9)
print(stopped, solver.iter)
"""


def test_a_stop_request_to_one_process_stops_all_at_the_same_iteration(folder):
    # Requested in the first process's test, while the other computes gradients, and after gradients were exchanged.
    (folder / "tested.prototxt").write_text(SOLVER + "test_iter: 1 test_interval: 9")
    assert run_processes(STOP, 2) == ["1 6\n", "1 6\n"]


EXCHANGES = """
import json
import sys
import caffe
import torch
from caffe.training import nccl as engine

rank, uid, asked = int(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3])
engine.BUCKET = asked["bucket"]
solver = caffe.SGDSolver("solver.prototxt")
nccl = caffe.NCCL(solver, uid)
solver.add_callback(nccl)
if asked["overlap"]:
    solver.net.after_backward(nccl)
if asked["watched"]:
    solver.net.after_backward(lambda layer: None)
send, passes, forward = torch.distributed.all_to_all_single, 0, solver.net.forward_loss
def counted():
    global passes
    passes += 1
    return forward()
def noted(received, sent, **options):
    print(json.dumps([passes, sent.numel(), solver.net.params["conv"][1].gradient is not None]))
    return send(received, sent, **options)
torch.distributed.all_to_all_single, solver.net.forward_loss = noted, counted
solver.step(2)
"""


@pytest.mark.parametrize(
    ("overlap", "watched", "during", "iter_size"),
    [(True, False, True, 1), (True, False, True, 3), (False, False, False, 1), (True, True, False, 3)],
    ids=["after_backward", "after_backward with iter_size", "without after_backward", "with a second callback"],
)
def test_gradients_of_the_last_layers_are_sent_while_the_first_are_computed(folder, overlap, watched, during, iter_size):
    (folder / "solver.prototxt").write_text(SOLVER + f"iter_size: {iter_size}")
    (output,) = run_processes(EXCHANGES, 1, overlap=overlap, watched=watched, bucket=1)
    sent = [json.loads(line) for line in output.splitlines()]
    # From the last layer to the first: ip and conv, then aside, which has no gradient but weight decay; frozen is not sent.
    # The additional value in each is the stop request.
    sizes = [3 + 1, 3 * 5 + 1, 4 + 1, 4 * 4 * 9 + 1, 2 + 1, 2 * 144 + 1]
    assert [size for _, size, _ in sent] == sizes * 2
    assert [passes for passes, _, _ in sent] == [iter_size] * len(sizes) + [2 * iter_size] * len(sizes)
    if iter_size == 1:
        assert [first_is_there for _, _, first_is_there in sent] == [*[not during] * 2, True, True, True, True] * 2


def test_processes_that_do_not_all_connect_are_an_error(monkeypatch):
    monkeypatch.setattr(nccl, "_MEETING", datetime.timedelta(seconds=0.5))
    for rank in (0, 1):
        caffe.set_solver_count(2)
        caffe.set_solver_rank(rank)
        try:
            with pytest.raises(caffe.Error) as error:
                nccl.join(uid := caffe.NCCL.new_uid())
        finally:
            caffe.set_solver_count(1)
            caffe.set_solver_rank(0)
        assert f"the 2 solvers cannot meet at {uid.decode()}" in error.value.found


def test_a_connection_that_is_not_a_solvers_is_dropped():
    store, patience = torch.distributed.HashStore(), datetime.timedelta(seconds=60)
    with ThreadPoolExecutor() as pool:
        first = pool.submit(Peers, store, 0, 2, "127.0.0.1", patience)
        store.wait(["peers"], patience)
        port = int(store.get("peers").split()[0])
        with socket.create_connection(("127.0.0.1", port)) as stranger:
            stranger.sendall(b"guess 1 me\n")
            assert stranger.recv(1) == b""
        second = Peers(store, 1, 2, "127.0.0.1", patience)
        first.result(60).end()
        second.end()
