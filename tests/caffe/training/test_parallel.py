"""`caffe train` in several processes: what they learn, how they end, and what happens when one dies."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import cv2
import h5py
import lmdb
import numpy as np
import pytest

import caffe
from caffe.commands import parallel
from caffe.proto import caffe_pb2

ENDS_WITHIN = 30
"""Seconds within which all processes end after one has died, as promised."""

DATA = """
layer { name: "data" type: "Data" top: "data" top: "label" transform_param { scale: 0.004 }
  data_param { source: "db" backend: LMDB batch_size: 4 } }
"""
BODY = """
layer { name: "conv" type: "Convolution" bottom: "data" top: "conv" param { name: "w" } param { lr_mult: 2 }
  convolution_param { num_output: 6 kernel_size: 3 pad: 1 weight_filler { type: "xavier" } } }
layer { name: "again" type: "Convolution" bottom: "conv" top: "again" param { name: "w" }
  convolution_param { num_output: 6 kernel_size: 3 bias_term: false weight_filler { type: "xavier" } } }
layer { name: "frozen" type: "InnerProduct" bottom: "again" top: "frozen" param { lr_mult: 0 } param { lr_mult: 0 }
  inner_product_param { num_output: 7 weight_filler { type: "xavier" } } }
layer { name: "ip" type: "InnerProduct" bottom: "frozen" top: "ip"
  inner_product_param { num_output: 3 weight_filler { type: "xavier" } } }
layer { name: "loss" type: "SoftmaxWithLoss" bottom: "ip" bottom: "label" top: "loss" }
"""
SOLVER = """
net: "net.prototxt" base_lr: 0.02 momentum: 0.9 weight_decay: 0.001 lr_policy: "fixed" random_seed: 4 solver_mode: CPU
snapshot_prefix: "run" display: 1 max_iter: 6
"""
ENDLESS = SOLVER.replace("max_iter: 6", "max_iter: 1000000") + "iter_size: 1"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working folder with a database of 17 images, a net and its solver; logging is on."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GLOG_minloglevel", "0")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    environment = lmdb.open("db", map_size=1 << 20)
    pixels = np.random.default_rng(0).integers(0, 256, (17, 6 * 5 * 5), np.uint8)
    with environment.begin(write=True) as transaction:
        for number, row in enumerate(pixels):
            datum = caffe_pb2.Datum(channels=6, height=5, width=5, data=row.tobytes(), label=number % 3)
            transaction.put(b"%02d" % number, datum.SerializeToString())
    environment.close()
    (tmp_path / "net.prototxt").write_text(DATA + BODY)
    (tmp_path / "solver.prototxt").write_text(SOLVER)
    yield tmp_path
    while STARTED:
        process = STARTED.pop()
        process.kill()
        process.wait()


STARTED = []
"""Processes started by the current test; those still running at its end are killed."""


def start(*command, **environment):
    """Start Python with a command line and further environment variables."""
    process = subprocess.Popen([sys.executable, *command], env={**os.environ, **environment}, stderr=subprocess.PIPE, text=True)
    STARTED.append(process)
    return process


def load_parameters(path):
    """All parameters of a .caffemodel, concatenated."""
    net = caffe.Net("net.prototxt", caffe.TRAIN, weights=path)
    values = np.concatenate([blob.data.ravel() for blob in net.learnable_params()])
    net.close()
    return values


def launch(count, *flags):
    """`caffe train` in processes that get rank and world size from the environment, as a cluster's launcher sets it."""
    port = caffe.NCCL.new_uid().decode().rpartition(":")[2]
    common = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    command = ("-m", "caffe", "train", "-solver", "solver.prototxt", *flags)
    return [start(*command, **common, RANK=str(rank), LOCAL_RANK=str(rank)) for rank in range(count)]


def wait_for_end(processes, timeout=ENDS_WITHIN):
    """(exit code, standard error) of each process; the test fails if one does not end in time."""
    deadline = time.monotonic() + timeout
    errors = [process.communicate(timeout=max(1, deadline - time.monotonic()))[1] for process in processes]
    return [(process.returncode, text) for process, text in zip(processes, errors, strict=True)]


def wait_for(process, text):
    """Read a process's log until a line has `text`; a process that writes none in two minutes is killed."""
    limit = threading.Timer(120, process.kill)
    limit.start()
    try:
        for line in process.stderr:
            if text in line:
                return line
    finally:
        limit.cancel()
    raise AssertionError(f"the process has ended without {text!r}")


SPAWN = """
import argparse
import sys
from caffe.formats import prototxt
from caffe.commands import parallel, train
if __name__ == "__main__":
    arguments = argparse.Namespace(
        solver="solver.prototxt", snapshot=sys.argv[1], sigint_effect="stop", sighup_effect="snapshot", minloglevel=None
    )
    parallel.spawn(train._optimise, arguments, prototxt.read_solver("solver.prototxt"), [None] * int(sys.argv[2]))
"""


def spawn(count, snapshot=""):
    """Solvers on the CPU, started as `caffe train -gpu 0,1` starts them on GPUs."""
    Path("spawn.py").write_text(SPAWN)
    return start("spawn.py", snapshot, str(count))


def torchrun(count):
    """`caffe train` under torchrun."""
    port = caffe.NCCL.new_uid().decode().rpartition(":")[2]
    place = ("--nproc-per-node", str(count), "--master-addr", "127.0.0.1", "--master-port", port)
    return start("-m", "torch.distributed.run", *place, "-m", "caffe", "train", "-solver", "solver.prototxt")


def children(process):
    """Process ids of all descendants of a process."""
    lists = [file.read_text() for file in Path(f"/proc/{process}/task").glob("*/children")]
    direct = [int(pid) for text in lists for pid in text.split()]
    return [*direct, *(pid for child in direct for pid in children(child))]


def wait_until_gone(pids):
    """Fail unless all processes of these numbers end in time; those that do not are killed."""
    deadline = time.monotonic() + ENDS_WITHIN
    left = list(pids)
    while left and time.monotonic() < deadline:
        left = [pid for pid in left if running(pid)]
        time.sleep(0.1)
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert not left


def running(pid):
    """Whether a process exists and is not a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


# ---- what they learn


def train_in_one_process(iter_size):
    """What one process with iter_size learns."""
    Path("one.prototxt").write_text(SOLVER.replace('"run"', '"one"') + f"iter_size: {iter_size}")
    solver = caffe.get_solver("one.prototxt")
    solver.solve()
    solver.close()
    return load_parameters(f"one_iter_{solver.param.max_iter}.caffemodel")


@pytest.mark.parametrize("count", [2, 3])
def test_n_processes_learn_what_one_learns_with_iter_size_n(folder, count):
    for code, errors in wait_for_end(launch(count), 120):
        assert code == 0, errors
    np.testing.assert_allclose(load_parameters("run_iter_6.caffemodel"), train_in_one_process(count), rtol=1e-4, atol=1e-6)


def test_under_torchrun_only_the_first_process_logs_tests_and_snapshots(folder):
    (folder / "solver.prototxt").write_text(SOLVER + "test_iter: 1 test_interval: 3 snapshot: 2")
    ((code, errors),) = wait_for_end([torchrun(2)], 120)
    assert code == 0, errors
    assert errors.count("Iteration 4 (") == errors.count("Iteration 3, Testing net") == 1
    assert errors.count("Snapshotting to binary proto file") == 3
    np.testing.assert_allclose(load_parameters("run_iter_6.caffemodel"), train_in_one_process(2), rtol=1e-4, atol=1e-6)


def test_spawned_processes_learn_the_same_and_resume(folder):
    (folder / "solver.prototxt").write_text(SOLVER + "snapshot: 4")
    ((code, errors),) = wait_for_end([spawn(2)], 120)
    assert code == 0, errors
    undisturbed = load_parameters("run_iter_6.caffemodel")
    (folder / "run_iter_6.caffemodel").unlink()
    ((code, errors),) = wait_for_end([spawn(2, "run_iter_4.solverstate")], 120)
    assert code == 0, errors
    assert errors.count("Iteration 4 (") == 1
    assert "Iteration 3 (" not in errors
    np.testing.assert_array_equal(load_parameters("run_iter_6.caffemodel"), undisturbed)
    np.testing.assert_allclose(undisturbed, train_in_one_process(2), rtol=1e-4, atol=1e-6)


def test_the_log_names_layers_that_differ_with_several_processes(folder):
    layers = """
    layer { name: "bn1" type: "BatchNorm" bottom: "conv" top: "conv" }
    layer { name: "drop" type: "Dropout" bottom: "conv" top: "conv" }
    """
    text = (DATA + BODY).replace('layer { name: "again"', layers + 'layer { name: "again"')
    (folder / "net.prototxt").write_text(text.replace("scale: 0.004", "scale: 0.004 mirror: true"))
    results = wait_for_end(launch(2), 120)
    assert [code for code, _ in results] == [0, 0], results
    named = re.findall(r"2 processes differ from one with iter_size 2: (.*?):", results[0][1])
    assert named == ['Data "data"', 'BatchNorm "bn1"', 'Dropout "drop"']
    assert "differ" not in results[1][1]
    (folder / "net.prototxt").write_text(DATA + BODY)
    results = wait_for_end(launch(2), 120)
    assert "differ" not in results[0][1]


IMAGE_DATA = """
layer { name: "data" type: "ImageData" top: "data" top: "label" image_data_param { source: "list.txt" batch_size: 4 } }
"""
HDF5_DATA = """
layer { name: "data" type: "HDF5Data" top: "data" top: "label" hdf5_data_param { source: "files.txt" batch_size: 4 } }
"""


def read_labels(rank, count, position):
    """Labels of five batches that one of `count` solvers reads after seeking to `position`."""
    caffe.set_solver_count(count)
    caffe.set_solver_rank(rank)
    try:
        net = caffe.Net("source.prototxt", caffe.TRAIN)
        net.layers[0].seek(position)
        labels = np.concatenate([net.forward()["label"].copy() for _ in range(5)])
        net.close()
    finally:
        caffe.set_solver_count(1)
        caffe.set_solver_rank(0)
    return labels


@pytest.mark.parametrize("source", [DATA, IMAGE_DATA, HDF5_DATA], ids=["Data", "ImageData", "HDF5Data"])
def test_each_process_reads_every_nth_record(folder, source):
    (folder / "source.prototxt").write_text(source)
    with lmdb.open("db", map_size=1 << 20) as environment, environment.begin(write=True) as transaction:
        for number in range(17):
            datum = caffe_pb2.Datum(channels=1, height=2, width=2, data=bytes(4), label=number)
            transaction.put(b"%02d" % number, datum.SerializeToString())
    for number in range(17):
        cv2.imwrite(f"{number}.png", np.full((2, 2, 3), number, np.uint8))
    (folder / "list.txt").write_text("".join(f"{number}.png {number}\n" for number in range(17)))
    for name, rows in (("a.h5", range(7)), ("b.h5", range(7, 17))):
        with h5py.File(name, "w") as file:
            file["data"], file["label"] = np.zeros((len(rows), 2), np.float32), np.array(rows, np.float32)
    (folder / "files.txt").write_text("a.h5\nb.h5\n")
    for position in (0, 8, 36):
        dealt = np.stack([read_labels(rank, 3, position) for rank in range(3)], axis=1)
        np.testing.assert_array_equal(dealt.ravel(), (3 * position + np.arange(60)) % 17)
    np.testing.assert_array_equal(read_labels(0, 1, 0), np.arange(20) % 17)


# ---- how they end


def test_interrupting_the_first_process_stops_all_at_the_same_iteration(folder):
    (folder / "solver.prototxt").write_text(ENDLESS)
    processes = launch(2)
    wait_for(processes[0], "Iteration 3 (")
    processes[0].send_signal(signal.SIGINT)
    (first, log), (second, errors) = wait_for_end(processes)
    assert (first, second) == (0, 0), log + errors
    assert "Optimization stopped early." in log
    assert errors == ""
    assert len(list(folder.glob("run_iter_*.caffemodel"))) == 1


def test_interrupting_all_processes_stops_them_without_errors(folder):
    (folder / "solver.prototxt").write_text(ENDLESS)
    process = spawn(2)
    wait_for(process, "Iteration 3 (")
    workers = children(process.pid)
    for pid in (process.pid, *workers):
        os.kill(pid, signal.SIGINT)
    ((code, log),) = wait_for_end([process])
    wait_until_gone(workers)
    assert code == 0, log
    assert "Optimization stopped early." in log
    assert not re.search(r"^[EW]\d{4}|Traceback|error:", log, re.MULTILINE)


def test_when_a_process_is_killed_the_others_end_and_name_it(folder):
    (folder / "solver.prototxt").write_text(ENDLESS)
    for victim in (0, 2):
        processes = launch(3)
        wait_for(processes[0], "Iteration 3 (")
        processes[victim].kill()
        results = wait_for_end(processes)
        for rank, (code, errors) in enumerate(results):
            if rank != victim:
                assert code == 1, errors
                assert f"solver {victim} (process {processes[victim].pid} on" in errors


def test_when_a_process_is_killed_during_testing_all_end(folder):
    (folder / "solver.prototxt").write_text(ENDLESS + " test_iter: 100000000 test_interval: 4 test_initialization: false")
    processes = launch(2)
    wait_for(processes[0], "Iteration 4, Testing net")
    processes[1].kill()
    (code, errors), _ = wait_for_end(processes)
    assert code == 1
    assert f"solver 1 (process {processes[1].pid} on" in errors


FAILING = """
import caffe
class Failing(caffe.Layer):
    def setup(self, bottom, top):
        self.passes = 0
    def reshape(self, bottom, top):
        top[0].reshape(1)
    def forward(self, bottom, top):
        self.passes += 1
        if caffe.solver_rank() == RANK and self.passes > 5:
            raise ValueError("this is mine")
"""


def write_failing_net(folder, rank):
    """Write a net and a solver with which one process fails in its sixth iteration."""
    (folder / "failing.py").write_text(FAILING.replace("RANK", str(rank)))
    layer = 'layer { name: "f" type: "Python" top: "f" python_param { module: "failing" layer: "Failing" } }'
    (folder / "net.prototxt").write_text(DATA + layer + BODY)
    (folder / "solver.prototxt").write_text(ENDLESS)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_failing_process_logs_its_error_and_the_others_repeat_it(folder, monkeypatch, rank):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")]))
    write_failing_net(folder, rank)
    processes = launch(2)
    results = wait_for_end(processes, 120)
    assert [code for code, _ in results] == [1, 1], results
    own, other = results[rank][1], results[1 - rank][1]
    assert "ValueError: this is mine" in own
    assert "NCCL" not in own
    assert f"solver {rank} (process {processes[rank].pid} on" in other
    assert "has ended: ValueError: this is mine" in other


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("launcher", [spawn, torchrun])
def test_no_process_is_left_when_one_fails(folder, monkeypatch, launcher, rank):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")]))
    write_failing_net(folder, rank)
    process = launcher(2)
    wait_for(process, "Iteration 3 (")
    others = children(process.pid)
    ((code, errors),) = wait_for_end([process])
    wait_until_gone(others)
    assert code == 1
    assert "ValueError: this is mine" in errors


@pytest.mark.parametrize("victim", ["first", "worker"])
def test_no_process_is_left_when_a_spawned_one_is_killed(folder, victim):
    (folder / "solver.prototxt").write_text(ENDLESS)
    process = spawn(3)
    wait_for(process, "Iteration 3 (")
    others = [pid for pid in children(process.pid) if "spawn_main" in Path(f"/proc/{pid}/cmdline").read_text()]
    assert len(others) == 2
    killed = process.pid if victim == "first" else others[0]
    os.kill(killed, signal.SIGKILL)
    ((code, errors),) = wait_for_end([process])
    wait_until_gone(others)
    assert code != 0
    assert f"(process {killed} on" in errors


def test_the_command_ends_if_a_process_fails_before_all_are_connected(folder, monkeypatch):
    (folder / "sitecustomize.py").write_text(
        "import sys\nif any('spawn_main' in word for word in sys.orig_argv): raise SystemExit('no such luck')\n"
    )
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")]))
    ((code, errors),) = wait_for_end([spawn(2)], 60)
    assert code == 1
    assert "A solver has ended before training began." in errors


# ---- rank and world size


@pytest.mark.parametrize(
    ("variables", "where", "found"),
    [
        ({"RANK": "0", "WORLD_SIZE": "2"}, "environment", "no MASTER_ADDR and MASTER_PORT beside RANK and WORLD_SIZE"),
        ({"RANK": "1"}, "environment", "no WORLD_SIZE and MASTER_ADDR and MASTER_PORT beside RANK"),
        ({"RANK": "x", "WORLD_SIZE": "2", "MASTER_ADDR": "a", "MASTER_PORT": "1"}, "environment", "RANK=x"),
        ({"RANK": "2", "WORLD_SIZE": "2", "MASTER_ADDR": "a", "MASTER_PORT": "1"}, "environment", "RANK=2"),
    ],
)
def test_invalid_rank_variables_are_an_error(monkeypatch, variables, where, found):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(caffe.Error) as error:
        parallel.place_from_environment()
    assert (error.value.where, error.value.found) == (where, found)


def test_rank_and_world_size_are_read_from_the_environment(monkeypatch):
    assert parallel.place_from_environment() is parallel.ALONE
    for name, value in {
        "RANK": "5",
        "WORLD_SIZE": "8",
        "LOCAL_RANK": "1",
        "MASTER_ADDR": "fe::1",
        "MASTER_PORT": "29500",
    }.items():
        monkeypatch.setenv(name, value)
    assert parallel.place_from_environment() == parallel.Place(5, 8, 1, "tcp://[fe::1]:29500")
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert parallel.place_from_environment() is parallel.ALONE
