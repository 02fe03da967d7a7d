"""Export a trained net as an ONNX model, or its weights as safetensors.

An ONNX model is written only if onnxruntime computes from it what the net computes: for random images no output, nor the scores
before a Softmax, may differ by more than 1e-4 of its largest value. Both files carry the net's name and, if given,
preprocessing.json and the class names.

In both, tensors are called LAYER.weight, LAYER.bias, LAYER.running_mean and LAYER.running_var, in Caffe's shapes; BatchNorm's
sums are divided by their weight.
"""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from safetensors.numpy import save

import caffe
from pipeline.command import run, step_parser
from pipeline.dataset.mean import channel_means
from pipeline.export import agreement, onnx_graph
from pipeline.files import written_whole
from pipeline.formats.lists import read_labels
from pipeline.formats.tables import read_json
from pipeline.inference.trained import load_net
from pipeline.nets import preprocessing
from pipeline.nets.parameters import named_tensors


def write_onnx(
    net: caffe.Net,
    output: Path,
    metadata: Mapping[str, str],
    scale: float = 1.0,
    form: onnx_graph.Form = onnx_graph.Form(),  # noqa: B008, frozen
) -> float:
    """Write the net as an ONNX model with `metadata` as metadata_props; return the largest relative difference of its outputs.

    scale  factor of images before they go into the net
    """
    with written_whole(output) as part:
        model, deciding = onnx_graph.model_and_values(net, metadata, form)
        onnx.save(model, part)
        return check_onnx(part, net, str(output), scale, deciding, form.half)


def check_onnx(file: Path, net: caffe.Net, where: str, scale: float, deciding: onnx_graph.Values, half: bool = False) -> float:
    """The largest difference between a model's outputs and the net's. Raises InputError if rounding does not explain it."""
    onnx.checker.check_model(onnx.load(file))
    names = agreement.compared_blobs(net) + [name for pair in deciding.values() for names in pair for name in names]
    inputs, found = run_onnx(file, net, scale, names)
    return agreement.compare(where, net, inputs, inputs | found, deciding, agreement.HALF_LIMIT if half else agreement.LIMIT)


def run_onnx(
    file: Path, net: caffe.Net, scale: float, names: Sequence[str] = ()
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Random inputs, and what onnxruntime computes from them: {name: values} of a model's outputs and of these values.

    If the batch size is free, one other than the net's is computed.
    """
    model = onnx.load(file)
    first, batch = model.graph.input[0], None
    if any(dim.dim_param for dim in first.type.tensor_type.shape.dim):
        batch = 2 if net.blobs[first.name].shape[0] == 1 else 1
    made = {name for node in model.graph.node for name in node.output}
    outputs = [output.name for output in model.graph.output]
    names = list(dict.fromkeys([*outputs, *(name for name in names if name in made)]))
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in outputs)
    options = onnxruntime.SessionOptions()
    threads = os.environ.get("OMP_NUM_THREADS", "")
    options.intra_op_num_threads = int(threads) if threads.isdigit() else 0
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    inputs = agreement.random_inputs(net, batch, scale)
    taken = {each.name: inputs[each.name] for each in session.get_inputs()}
    values = [each.astype(np.float32, copy=False) for each in session.run(names, taken)]
    return inputs, dict(zip(names, values, strict=True))


def write_safetensors(net: caffe.Net, output: Path, metadata: Mapping[str, str]) -> int:
    """Write the net's parameters as safetensors; return the number of tensors."""
    tensors = {name: np.ascontiguousarray(values) for name, values in named_tensors(net).items()}
    types = {name: net.layer_dict[name].type for name in net.params}
    with written_whole(output) as part:
        part.write_bytes(_sort_metadata(save(tensors, {"net": net.name, "layer_types": json.dumps(types), **metadata})))
    return len(tensors)


def _sort_metadata(content: bytes) -> bytes:
    """The bytes of a safetensors file with its metadata in the order of names: the library's order varies between calls."""
    begin = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:begin])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text = text.ljust(-(-len(text) // 8) * 8)
    return len(text).to_bytes(8, "little") + text + content[begin:]


def metadata_of(preprocessing_file: Path | None, labels: Path | None) -> dict[str, str]:
    """Metadata of the given files, each value as JSON.

    preprocessing  the file's content
    mean           if that names a mean image: the mean of each channel, in the records' order, to subtract instead
    classes        the names in order
    """
    metadata = {}
    if preprocessing_file:
        metadata["preprocessing"] = json.dumps(read_json(preprocessing_file))
        if mean_file := preprocessing.read(preprocessing_file).transform.mean_file:
            metadata["mean"] = json.dumps(channel_means(caffe.read_mean(mean_file)))
    if labels:
        metadata["classes"] = json.dumps(read_labels(labels), ensure_ascii=False)
    return metadata


def main(argv: list[str] | None = None) -> None:
    parser = step_parser(__doc__)
    parser.add_argument("format", choices=("onnx", "safetensors"))
    parser.add_argument("net", type=Path, help="deploy.prototxt")
    parser.add_argument("weights", type=Path, help="the .caffemodel")
    parser.add_argument("output", type=Path, help="the file to write")
    parser.add_argument("--preprocessing", type=Path, help="preprocessing.json: how images become inputs")
    parser.add_argument("--labels", type=Path, help="labels.txt: the classes' names")
    a = parser.parse_args(argv)
    metadata = metadata_of(a.preprocessing, a.labels)
    net = load_net(a.net, a.weights)
    if a.format == "safetensors":
        print(f"{a.output}: {write_safetensors(net, a.output, metadata)} tensors")
        return
    scale = preprocessing.read(a.preprocessing).transform.scale if a.preprocessing else 1.0
    difference = write_onnx(net, a.output, metadata, scale)
    print(f"{a.output}: ONNX, opset {onnx_graph.OPSET}; largest difference from the net {difference:.1e}")


if __name__ == "__main__":
    run(main)
