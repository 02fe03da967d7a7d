"""Fuzzing: whatever a file holds, it is read or refused with one of our errors; nothing crashes, hangs or exhausts memory.

ROASTERY_FUZZ=20000 sets the total number of inputs; the default is 400.
"""

import os
import resource

import cv2
import lmdb
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import caffe
from caffe.formats.datum import pixels_of
from caffe.formats.lmdb_file import LMDBFile
from caffe.proto import caffe_pb2

INPUTS = int(os.environ.get("ROASTERY_FUZZ", "400"))
SETTINGS = {"deadline": None, "derandomize": True, "database": None, "suppress_health_check": list(HealthCheck)}

NET = """name: "fuzzed"
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 2 dim: 3 dim: 8 dim: 8 } } }
layer { name: "label" type: "DummyData" top: "label" dummy_data_param { shape { dim: 2 } } }
layer { name: "conv" type: "Convolution" bottom: "data" top: "conv" param { lr_mult: 1 } param { lr_mult: 2 }
  convolution_param { num_output: 4 kernel_size: 3 pad: 1 stride: 1 group: 1 weight_filler { type: "xavier" } } }
layer { name: "relu" type: "ReLU" bottom: "conv" top: "conv" }
layer { name: "pool" type: "Pooling" bottom: "conv" top: "pool" pooling_param { pool: MAX kernel_size: 3 stride: 2 pad: 0 } }
layer { name: "norm" type: "LRN" bottom: "pool" top: "norm" lrn_param { local_size: 3 alpha: 0.1 beta: 0.75 } }
layer { name: "slice" type: "Slice" bottom: "norm" top: "a" top: "b" slice_param { axis: 1 slice_point: 2 } }
layer { name: "join" type: "Concat" bottom: "a" bottom: "b" top: "joined" concat_param { axis: 1 } }
layer { name: "shape" type: "Reshape" bottom: "joined" top: "row" reshape_param { shape { dim: 0 dim: -1 } } }
layer { name: "ip" type: "InnerProduct" bottom: "row" top: "ip" inner_product_param { num_output: 5 axis: 1 } }
layer { name: "loss" type: "SoftmaxWithLoss" bottom: "ip" bottom: "label" top: "loss" include { phase: TRAIN } }
"""
SOLVER = """net: "net.prototxt" base_lr: 0.01 lr_policy: "step" stepsize: 10 gamma: 0.1 momentum: 0.9 max_iter: 3
snapshot_prefix: "fuzzed" random_seed: 1
"""


@pytest.fixture(scope="module", autouse=True)
def _limit_memory():
    """Limit the address space, so that an input that demands much memory fails."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    used = int(next(line for line in open("/proc/self/status") if line.startswith("VmSize")).split()[1]) * 1024  # noqa: PTH123, SIM115
    resource.setrlimit(resource.RLIMIT_AS, (used + (3 << 30), before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


@st.composite
def damaged(draw, content: bytes):
    """A few bytes or stretches of `content` changed, removed, repeated or replaced."""
    result = bytearray(content)
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, max(0, len(result) - 1)))
        length = draw(st.integers(0, min(16, len(result) - start)))
        change = draw(st.sampled_from(("replace", "remove", "repeat", "cut")))
        if change == "replace":
            result[start : start + length] = draw(st.binary(max_size=16))
        elif change == "remove":
            del result[start : start + length]
        elif change == "repeat":
            result[start:start] = result[start : start + length] * draw(st.integers(1, 3))
        else:
            del result[start:]
    return bytes(result)


WORDS = sorted(set(NET.replace("{", " ").replace("}", " ").split()) | {"-1", "0", "99999999999", "1e38", "nan", "{", "}", '"'})


@st.composite
def damaged_text(draw, text: str):
    """A few words of a prototxt replaced by others, removed or repeated."""
    words = text.split(" ")
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(words) - 1))
        change = draw(st.sampled_from(("word", "number", "remove", "repeat", "text")))
        if change == "word":
            words[at] = draw(st.sampled_from(WORDS))
        elif change == "number":
            words[at] = str(draw(st.integers(-(2**33), 2**33) | st.integers(-3, 70) | st.floats()))
        elif change == "remove":
            words[at] = ""
        elif change == "repeat":
            words[at] = f"{words[at]} {words[at]}"
        else:
            words[at] = draw(st.text(max_size=8))
    return " ".join(words)


def try_call(function, *arguments):
    """Call the function; return None if it raises one of our errors. Any other exception fails the test."""
    try:
        return function(*arguments)
    except caffe.Error:
        return None


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A working folder with a small net, its solver and a snapshot."""
    folder = tmp_path_factory.mktemp("fuzz")
    before = os.getcwd()  # noqa: PTH109
    os.chdir(folder)
    (folder / "net.prototxt").write_text(NET)
    (folder / "solver.prototxt").write_text(SOLVER)
    solver = caffe.get_solver("solver.prototxt")
    solver.step(1)
    solver.snapshot()
    yield folder
    os.chdir(before)


@settings(max_examples=INPUTS // 4, **SETTINGS)
@given(text=damaged_text(NET))
def test_a_damaged_net_is_built_or_refused(folder, text):
    (folder / "damaged.prototxt").write_text(text, errors="surrogatepass")
    net = try_call(caffe.Net, "damaged.prototxt", caffe.TRAIN)
    if net is not None and sum(blob.count for blob in net.blobs.values()) < 1 << 22:
        try_call(net.forward)


@settings(max_examples=INPUTS // 8, **SETTINGS)
@given(text=damaged_text(SOLVER))
def test_a_damaged_solver_is_built_or_refused(folder, text):
    (folder / "damaged.prototxt").write_text(text, errors="surrogatepass")
    try_call(caffe.get_solver, "damaged.prototxt")


@settings(max_examples=INPUTS // 4, **SETTINGS)
@given(data=st.data())
def test_damaged_weights_are_read_or_refused(folder, data):
    net = caffe.Net("net.prototxt", caffe.TEST)
    (folder / "damaged.caffemodel").write_bytes(data.draw(damaged((folder / "fuzzed_iter_1.caffemodel").read_bytes())))
    try_call(net.copy_from, "damaged.caffemodel")


@settings(max_examples=INPUTS // 4, **SETTINGS)
@given(data=st.data())
def test_a_damaged_solver_state_is_read_or_refused(folder, data):
    solver = caffe.get_solver("solver.prototxt")
    (folder / "damaged.solverstate").write_bytes(data.draw(damaged((folder / "fuzzed_iter_1.solverstate").read_bytes())))
    try_call(solver.restore, "damaged.solverstate")


RECORD = caffe_pb2.Datum(channels=3, height=4, width=5, data=bytes(60), label=3).SerializeToString()


ENCODED = caffe_pb2.Datum(encoded=True, data=cv2.imencode(".png", np.zeros((4, 5, 3), np.uint8))[1].tobytes()).SerializeToString()


@settings(max_examples=INPUTS // 8, **SETTINGS)
@given(content=damaged(RECORD) | damaged(ENCODED))
def test_a_damaged_record_is_read_or_refused(content):
    datum = caffe_pb2.Datum()
    try:
        datum.ParseFromString(content)
    except Exception:
        return
    pixels = try_call(pixels_of, datum, None, "record")
    assert pixels is None or isinstance(pixels, np.ndarray)


@pytest.fixture(scope="module")
def database(tmp_path_factory):
    """An LMDB whose tree has several levels, with small and large records."""
    folder = tmp_path_factory.mktemp("lmdb")
    environment = lmdb.open(str(folder), map_size=1 << 24)
    with environment.begin(write=True) as transaction:
        for number in range(300):
            transaction.put(b"%08d" % number, bytes(number % 7 * 700 + 20))
    environment.close()
    return folder


def test_our_lmdb_reader_agrees_with_the_lmdb_library(database):
    environment = lmdb.open(str(database), readonly=True, lock=False)
    with environment.begin() as transaction:
        written = list(transaction.cursor())
    environment.close()
    file = LMDBFile(database)
    assert [(key, bytes(value)) for key, value in file.items()] == written
    assert [bytes(value) for value in file.values(250)] == [value for _, value in written[250:]]
    assert len(file) == 300


@settings(max_examples=INPUTS // 4, **SETTINGS)
@given(data=st.data())
def test_a_damaged_lmdb_is_read_or_refused(database, tmp_path_factory, data):
    content = bytearray((database / "data.mdb").read_bytes())
    used = [0, 1, *range(2, len(content) // 4096)]
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.sampled_from(used)) * 4096 + data.draw(st.integers(0, 200) | st.integers(0, 4095))
        change = data.draw(st.binary(min_size=1, max_size=8))
        content[at : at + len(change)] = change
    if data.draw(st.booleans()):
        del content[data.draw(st.integers(0, len(content))) :]
    damaged_file = tmp_path_factory.getbasetemp() / "damaged.mdb"
    damaged_file.write_bytes(content)

    def read():
        return sum(len(bytes(value)) for _, value in LMDBFile(damaged_file).items())

    try_call(read)
