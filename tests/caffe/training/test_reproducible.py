"""Training in `numerics: reproducible` gives the same bytes whatever computes it."""

import os
import subprocess
import sys

import lmdb
import numpy as np
import pytest

import caffe
from tests import without_vector_code
from tests.caffe.training import reproducible_nets
from tests.conftest import ROOT


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    caffe.set_numerics("fp32")


def train(iterations, *state, threads=1, device="cpu", **environment):
    """(iteration, digest of the weights) after training in a process of its own."""
    pretend = ("tests.gpu.pretend",) if device == "gpu" else ()
    done = subprocess.run(
        [sys.executable, "-m", *pretend, "tests.caffe.training.reproducible_nets", device, str(iterations), *state],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": str(threads), **environment},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    iteration, digest = done.stdout.split()
    return int(iteration), digest


def assert_same_everywhere(name, iterations):
    reproducible_nets.write(name, iterations, more=f"snapshot: {iterations // 2}")
    once = train(iterations)
    assert once[0] == iterations
    assert train(iterations, threads=2) == once
    assert train(iterations, threads=3, **without_vector_code.environment()) == once
    assert train(iterations - iterations // 2, f"run_iter_{iterations // 2}.solverstate", threads=2) == once
    assert train(iterations, device="gpu") == once


@pytest.mark.parametrize("name", reproducible_nets.NETS)
def test_threads_vector_code_a_resume_and_a_gpu_do_not_change_the_weights(folder, name):
    assert_same_everywhere(name, 4)


@pytest.mark.long
@pytest.mark.parametrize("name", reproducible_nets.NETS)
def test_weights_are_the_same_after_200_iterations(folder, name):
    assert_same_everywhere(name, 200)


def in_order_of_passes(source, target, processes, batch):
    """Copy a database so that consecutive batches hold what one process each reads in turn, every n-th record."""
    records = [value for _, value in lmdb.open(source, readonly=True, lock=False).begin().cursor()]
    count = len(records)
    block = processes * batch
    assert count % block == 0
    order = [start + rank + processes * i for start in range(0, count, block) for rank in range(processes) for i in range(batch)]
    database = lmdb.open(target, map_size=1 << 26)
    with database.begin(write=True) as transaction:
        for number, index in enumerate(order):
            transaction.put(f"{number:08d}".encode(), records[index])
    database.close()


def test_n_processes_give_the_weights_of_iter_size_n(folder):
    """Each pass of one process has the records of one of the processes."""
    reproducible_nets.write("cifar10", 3)
    net = (folder / "net.prototxt").read_text()
    (folder / "net.prototxt").write_text(net.replace("mirror: true", "").replace("crop_size: 28", ""))
    port = caffe.NCCL.new_uid().decode().rpartition(":")[2]
    common = {"WORLD_SIZE": "3", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "caffe", "train", "-solver", "solver.prototxt"],
            env={**os.environ, **common, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(3)
    ]
    for process in processes:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
    together = caffe.Net("net.prototxt", caffe.TRAIN, weights="run_iter_3.caffemodel")
    expected = reproducible_nets.digest(together)
    together.close()
    in_order_of_passes("db", "ordered", 3, 16)
    (folder / "net.prototxt").write_text((folder / "net.prototxt").read_text().replace('"db"', '"ordered"'))
    (folder / "solver.prototxt").write_text((folder / "solver.prototxt").read_text() + "iter_size: 3\n")
    assert train(3) == (3, expected)


@pytest.mark.parametrize("how", ["solver", "flag", "call"])
def test_numerics_are_chosen_by_solver_flag_or_call(folder, how):
    """Each way computes what the others do, and not what fp32 does."""
    reproducible_nets.write("lenet", 2)
    solver = (folder / "solver.prototxt").read_text()
    assert 'numerics: "reproducible"' in solver
    _, expected = train(2)
    if how != "solver":
        (folder / "solver.prototxt").write_text(
            solver.replace('numerics: "reproducible"', 'numerics: "fp32"' if how == "flag" else "")
        )
    if how == "flag":
        command = [sys.executable, "-m", "caffe", "train", "-solver", "solver.prototxt", "-numerics", "reproducible"]
        done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
        assert done.returncode == 0, done.stderr
        net = caffe.Net("net.prototxt", caffe.TRAIN, weights="run_iter_2.caffemodel")
    else:
        caffe.set_numerics("reproducible" if how == "call" else "fp32")
        trained = caffe.get_solver("solver.prototxt")
        trained.step(2)
        net = trained.net
    assert reproducible_nets.digest(net) == expected
    net.close()


def test_a_solver_computes_in_its_own_numerics_after_another_one_was_made(folder):
    reproducible_nets.write("cifar10", 2)
    text = (folder / "net.prototxt").read_text()
    (folder / "net.prototxt").write_text(text.replace("mirror: true", "").replace("crop_size: 28", ""))  # no random numbers
    _, expected = train(2)
    solver = (folder / "solver.prototxt").read_text()
    (folder / "other.prototxt").write_text(solver.replace('numerics: "reproducible"', 'numerics: "fp32"'))
    first = caffe.get_solver("solver.prototxt")
    caffe.get_solver("other.prototxt").close()
    first.step(2)
    assert reproducible_nets.digest(first.net) == expected
    first.close()


def test_an_unknown_numerics_is_refused(folder):
    with pytest.raises(caffe.Error) as error:
        caffe.set_numerics("exact")
    assert error.value.found == "'exact'"
    reproducible_nets.write("lenet", 2)
    text = (folder / "solver.prototxt").read_text().replace('numerics: "reproducible"', 'numerics: "exact"')
    (folder / "solver.prototxt").write_text(text)
    with pytest.raises(caffe.SolverError) as refused:
        caffe.get_solver("solver.prototxt")
    assert refused.value.found == 'numerics "exact"'
    assert "reproducible" in refused.value.expected


class Doubled(caffe.Layer):
    def reshape(self, bottom, top):
        top[0].reshape(*bottom[0].shape)

    def forward(self, bottom, top):
        top[0].data[...] = bottom[0].data * 2


class DoubledAnywhere(Doubled):
    reproducible = True


@pytest.mark.parametrize("kind", ["Doubled", "DoubledAnywhere"])
def test_a_layer_in_python_must_say_that_it_is_reproducible(folder, kind):
    (folder / "net.prototxt").write_text(
        'layer { name: "x" type: "Input" top: "x" input_param { shape { dim: 2 } } }\n'
        f'layer {{ name: "y" type: "Python" bottom: "x" top: "y" python_param {{ module: "{__name__}" layer: "{kind}" }} }}\n'
    )
    net = caffe.Net("net.prototxt", caffe.TEST)
    net.blobs["x"].data[...] = 3
    caffe.set_numerics("reproducible")
    if kind == "Doubled":
        with pytest.raises(caffe.LayerError) as error:
            net.forward()
        assert "Doubled" in error.value.found
        assert error.value.expected == "numerics: reproducible"
    else:
        np.testing.assert_array_equal(net.forward()["y"], [6, 6])


def test_the_operation_that_prevents_reproducibility_is_named_with_its_layer(folder, monkeypatch):
    from caffe.numerics.registry import OURS

    monkeypatch.delitem(OURS, "exp")
    (folder / "net.prototxt").write_text(
        'layer { name: "x" type: "Input" top: "x" input_param { shape { dim: 2 } } }\n'
        'layer { name: "grown" type: "Exp" bottom: "x" top: "y" }\n'
    )
    net = caffe.Net("net.prototxt", caffe.TEST)
    caffe.set_numerics("reproducible")
    with pytest.raises(caffe.LayerError) as error:
        net.forward()
    assert "grown" in str(error.value)
    assert "aten.exp" in str(error.value)
    assert "numerics: fp32" in str(error.value)
