"""Check one prototxt: what a user would do with it first, and if that does not work, the cause in two or three words."""

import importlib.util
import math
import re
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from google.protobuf import text_format

import caffe
from caffe.errors import OutOfMemoryError
from caffe.layer_types.known_python import KNOWN
from caffe.proto import caffe_pb2
from tests.wild import python_layers, stand_ins

SOLVER, DEPLOY, TRAIN = KINDS = ("solver", "deploy", "train")
_NETS_OF_SOLVER = ("net", "net_param", "train_net", "train_net_param", "train_state", "test_net", "test_net_param", "test_state")
_SMALL_NET = """
layer { name: "x" type: "DummyData" top: "x" top: "y" dummy_data_param { shape { dim: 2 dim: 3 } data_filler { value: 1 } } }
layer { name: "ip" type: "InnerProduct" bottom: "x" top: "ip" inner_product_param { num_output: 3 } }
layer { name: "loss" type: "EuclideanLoss" bottom: "ip" bottom: "y" top: "loss" }
"""
_SHAPE = re.compile(r"shape|axes|axis|channels|bottoms? of|smaller|values|count|slice|multiple|divisible|pixels", re.IGNORECASE)
_LARGE_BATCH = 4
"""A deploy net with more images is given one, as scripts for single images do."""


class Outcome(NamedTuple):
    """What became of a file.

    result   runs; refused, with a message of ours; or failed, with any other exception
    cause    sorted categories joined by "; ", for runs those data layers that the engine lacks, too
    message  the error
    """

    result: str
    cause: str = ""
    message: str = ""


def check(path: Path, kind: str, root: Path | None = None) -> Outcome:
    """Do with a file what its kind is for; never raises.

    root  folder of its repository, where the modules of Python layers are looked for
    """
    caffe.set_random_seed(1)
    if root and kind != SOLVER:
        sys.path[:0] = map(str, python_layers.folders_of(_leniently_read(path), path, root))
    try:
        return Outcome("runs", {SOLVER: check_solver, DEPLOY: check_deploy, TRAIN: check_train}[kind](path))
    except Exception as error:
        result = "refused" if isinstance(error, caffe.Error) else "failed"
        return Outcome(result, "; ".join(causes_of(error, path, kind)), " ".join(str(error).split()) or type(error).__name__)


def check_solver(path: Path) -> str:
    """Read a solver and train a small net with it for one iteration; the net that it names need not exist."""
    param = caffe.read_solver(path)
    for field in (*_NETS_OF_SOLVER, "weights"):
        param.ClearField(field)
    text_format.Parse(_SMALL_NET, param.net_param)
    param.test_iter[:] = [1] * len(param.test_iter)
    param.snapshot = 0
    caffe.get_solver(path, param).step(1)
    return ""


def check_deploy(path: Path) -> str:
    """Build a net and run it forward with random weights, with one image if its batch is large."""

    def run(one: bool) -> None:
        net = caffe.Net(path, caffe.TEST)
        rng = np.random.default_rng(1)
        for name in net.inputs:
            shape = net.blobs[name].shape
            if one and shape and shape[0] > _LARGE_BATCH:
                net.blobs[name].reshape(1, *shape[1:])
            if len(shape) >= 4:
                net.blobs[name].data[...] = rng.standard_normal(net.blobs[name].shape, np.float32)
        _fill_weights(net, rng)
        net.forward()

    _first_that_runs([partial(run, one) for one in (True, False)], path, DEPLOY)
    return ""


def check_train(path: Path) -> str:
    """Build a net in phase TRAIN with stand-ins for its data layers, and run it forward and backward."""
    given = caffe.read_net(path)

    def run(guess: stand_ins.Guess) -> None:
        definition, tops = stand_ins.replaced(given, guess)
        net = caffe.Net(definition, caffe.TRAIN)
        rng = np.random.default_rng(1)
        for name, top in tops.items():
            net.blobs[name].data[...] = stand_ins.values_of(top, rng)
        net.forward()
        net.backward()

    _first_that_runs([partial(run, guess) for guess in stand_ins.guesses(given)], path, TRAIN)
    known = caffe.layer_type_list()
    return "; ".join(
        sorted({f"data layer {each.type}" for each in given.layer if stand_ins.is_data(each) and each.type not in known})
    )


def _first_that_runs(attempts: list[Callable[[], None]], path: Path, kind: str) -> None:
    """Run attempts until one succeeds, or raise the first one's error; parts that are missing are missing in all of them."""
    first: Exception | None = None
    for attempt in attempts:
        try:
            attempt()
        except Exception as error:
            first = first or error
            if isinstance(error, (caffe.FileError, caffe.ParseError)) or _missing(path, kind):
                break
        else:
            return
    assert first
    raise first


def _fill_weights(net: caffe.Net, rng: np.random.Generator) -> None:
    """Weights that keep values in range, and biases, scales and variances above 0: deploy nets have no fillers."""
    for blob in net.learnable_params():
        values = rng.random(blob.shape, np.float32)
        fan_in = max(1, blob.count // max(1, blob.shape[0])) if len(blob.shape) > 1 else 0
        blob.data[...] = (2 * values - 1) * math.sqrt(3 / fan_in) if fan_in else (1 + values) / 2


# ---- causes


def causes_of(error: Exception, path: Path, kind: str) -> list[str]:
    """Categories of an error: of a net all parts that the engine lacks, since the error names only the first."""
    found = [_parse_cause(error)] if isinstance(error, caffe.ParseError) else []
    found += _missing(path, kind) if kind != SOLVER else []
    found = found or [_cause(error, path)]
    if kind == TRAIN and found == ["shape"]:
        found = [f"data layer {each} (shapes unknown)" for each in stand_ins.sizes_unknown(caffe.read_net(path))] or found
    return sorted(set(found))


def _parse_cause(error: caffe.ParseError) -> str:
    if match := re.search(r'^([\w.]+) has no field "(.+?)"', error.found):
        return f"field {match[1]}.{match[2]}"
    if match := re.search(r"^([\w.]+) has no value (\S+)", error.found):
        return f"layer type {match[2]} (V1)" if match[1] == "V1LayerParameter.LayerType" else f"value {match[1]}.{match[2]}"
    return "syntax"


def _cause(error: Exception, path: Path) -> str:
    if isinstance(error, (MemoryError, OutOfMemoryError)):
        return "memory"
    if isinstance(error, ModuleNotFoundError):
        return f"python module {error.name}"
    if any(": in " in note for note in getattr(error, "__notes__", ())):
        return f"{type(error).__name__} in a python layer"
    if isinstance(error, caffe.FileError):
        return "format" if error.where.startswith(str(path)) else "file not public"
    if isinstance(error, caffe.SolverError):
        return f"solver {error.found.split()[0]}"
    if isinstance(error, caffe.LayerError):
        if "produced by no layer" in error.found:
            return "missing bottom"
        return "shape" if _SHAPE.search(f"{error.found} {error.expected}") else "layer setting"
    return type(error).__name__


def _missing(path: Path, kind: str) -> list[str]:
    """Layer types and Python modules of a net that are not here, whatever else its file has that the schema lacks."""
    net = _leniently_read(path)
    known = set(caffe.layer_type_list())
    layers = [layer for layer in net.layer if not (kind == TRAIN and stand_ins.is_data(layer))]
    return [
        *(f"layer type {layer.type}" for layer in layers if layer.type and layer.type not in known),
        *_missing_modules(layers),
    ]


def _leniently_read(path: Path) -> caffe_pb2.NetParameter:
    """A net, whatever fields the schema lacks; empty if its syntax is wrong."""
    net = caffe_pb2.NetParameter()
    try:
        text_format.Parse(path.read_text("utf-8", "replace"), net, allow_unknown_field=True)
    except text_format.ParseError:
        net.Clear()
    return net


def _missing_modules(layers: list[caffe_pb2.LayerParameter]) -> Iterator[str]:
    for layer in layers:
        module = layer.python_param.module
        if (module, layer.python_param.layer) in KNOWN:
            continue
        try:
            if layer.type == "Python" and importlib.util.find_spec(module) is None:
                yield f"python layer {module}"
        except (ImportError, ValueError):
            yield f"python layer {module}"
