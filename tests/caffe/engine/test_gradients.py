"""The gradient of every layer type compared with finite differences."""

import numpy as np
import pytest

import caffe
from caffe.engine.layer import known_types

STEP = 1e-2

# Type: (parameters, shapes of the bottoms); a bottom "labels:N" holds whole numbers below N and is not differentiated.
CASES = {
    "AbsVal": [("", [(2, 3, 4)])],
    "BNLL": [("", [(2, 3, 4)])],
    "BatchNorm": [("", [(4, 2, 3, 3)]), ("batch_norm_param { use_global_stats: true }", [(4, 2, 3, 3)]), ("", [(7, 3)])],
    "BatchReindex": [("", [(4, 3), "labels:4 (6,)"])],
    "Bias": [
        ("bias_param { axis: 1 num_axes: 2 filler { type: 'gaussian' } }", [(2, 3, 4, 2)]),
        ("bias_param { axis: 0 }", [(2, 3), (2,)]),
    ],
    "Clip": [("clip_param { min: -1 max: 0.9 }", [(2, 3, 4)])],
    "Concat": [("concat_param { axis: 1 }", [(2, 3, 2), (2, 1, 2)])],
    "ContrastiveLoss": [
        ("contrastive_loss_param { margin: 3 }", [(4, 3), (4, 3), "labels:2 (4,)"]),
        ("contrastive_loss_param { margin: 9 legacy_version: true }", [(4, 3), (4, 3), "labels:2 (4,)"]),
    ],
    "Convolution": [
        ("convolution_param { num_output: 2 kernel_size: 3 stride: 2 pad: 1 weight_filler { type: 'xavier' } }", [(2, 3, 5, 5)]),
        (
            "convolution_param { num_output: 4 kernel_size: 2 group: 2 dilation: 2 weight_filler { type: 'xavier' } }",
            [(1, 2, 5, 5)],
        ),
        ("convolution_param { num_output: 3 kernel_size: 3 weight_filler { type: 'xavier' } }", [(2, 1, 6, 6)]),
        (
            "convolution_param { num_output: 2 kernel_size: 2 bias_term: false weight_filler { type: 'xavier' } }",
            [(1, 2, 3, 3, 3)],
        ),
    ],
    "Crop": [("crop_param { axis: 2 offset: 1 }", [(1, 2, 4, 5), (1, 2, 2, 3)])],
    "Deconvolution": [
        ("convolution_param { num_output: 2 kernel_size: 3 stride: 2 pad: 1 weight_filler { type: 'xavier' } }", [(2, 3, 3, 3)])
    ],
    "ELU": [("elu_param { alpha: 0.7 }", [(2, 3, 4)])],
    "Eltwise": [
        ("eltwise_param { operation: PROD }", [(2, 3), (2, 3), (2, 3)]),
        ("eltwise_param { operation: SUM coeff: 2 coeff: -0.5 }", [(2, 3), (2, 3)]),
        ("eltwise_param { operation: SUM coeff: 0.3 }", [(2, 3)]),
        ("eltwise_param { operation: PROD }", [(2, 3)]),
        ("eltwise_param { operation: MAX }", [(2, 3)]),
        ("eltwise_param { operation: MAX }", [(2, 3), (2, 3), (2, 3)]),
    ],
    "Embed": [("embed_param { num_output: 3 input_dim: 5 weight_filler { type: 'xavier' } }", ["labels:5 (6,)"])],
    "EuclideanLoss": [("", [(3, 4), (3, 4)])],
    "Exp": [("", [(2, 3)]), ("exp_param { base: 2 scale: 0.7 shift: 0.3 }", [(2, 3)])],
    "Filter": [("", [(4, 3), "labels:2 (4, 1)"])],
    "Flatten": [("flatten_param { axis: 1 }", [(2, 3, 2, 2)])],
    "HingeLoss": [("", [(4, 3), "labels:3 (4,)"]), ("hinge_loss_param { norm: L2 }", [(4, 3), "labels:3 (4,)"])],
    "Im2col": [("convolution_param { kernel_size: 2 stride: 2 }", [(1, 2, 4, 4)])],
    "InfogainLoss": [("", [(4, 3), "labels:3 (4,)", "labels:4 (1, 1, 3, 3)"])],
    "InnerProduct": [
        ("inner_product_param { num_output: 3 weight_filler { type: 'xavier' } }", [(2, 3, 2)]),
        ("inner_product_param { num_output: 3 transpose: true axis: 2 weight_filler { type: 'xavier' } }", [(2, 3, 2)]),
    ],
    "LRN": [
        ("lrn_param { local_size: 3 alpha: 0.6 beta: 0.75 }", [(2, 5, 2, 2)]),
        ("lrn_param { local_size: 3 alpha: 0.6 beta: 0.6 k: 2 }", [(2, 5, 2, 2)]),
        ("lrn_param { local_size: 3 alpha: 0.6 norm_region: WITHIN_CHANNEL }", [(1, 2, 4, 4)]),
    ],
    "LSTM": [("recurrent_param { num_output: 3 weight_filler { type: 'xavier' } }", [(3, 2, 4), "labels:2 (3, 2)"])],
    "LSTMUnit": [("", [(1, 2, 3), (1, 2, 12), "labels:2 (1, 2)"])],
    "Log": [("log_param { base: 3 scale: 0.5 shift: 3 }", [(2, 3)])],
    "MVN": [("", [(2, 3, 3, 3)]), ("mvn_param { across_channels: true normalize_variance: false }", [(2, 3, 3, 3)])],
    "MultinomialLogisticLoss": [("", ["positive (4, 3)", "labels:3 (4,)"])],
    "PReLU": [("", [(2, 3, 4)]), ("prelu_param { channel_shared: true }", [(2, 3, 4)])],
    "Parameter": [("parameter_param { shape { dim: 2 dim: 3 } }", [])],
    "Pooling": [
        ("pooling_param { pool: MAX kernel_size: 3 stride: 2 }", [(1, 2, 6, 6)]),
        ("pooling_param { pool: AVE kernel_size: 3 stride: 2 pad: 1 }", [(1, 2, 6, 6)]),
        ("pooling_param { pool: AVE global_pooling: true }", [(1, 2, 4, 4)]),
    ],
    "Power": [("power_param { power: 2 scale: 0.5 shift: 1 }", [(2, 3)])],
    "RNN": [("recurrent_param { num_output: 3 weight_filler { type: 'xavier' } }", [(3, 2, 4), "labels:2 (3, 2)"])],
    "ReLU": [("", [(2, 3, 4)]), ("relu_param { negative_slope: 0.1 }", [(2, 3, 4)])],
    "Reduction": [
        (f"reduction_param {{ operation: {name} axis: 1 coeff: 0.7 }}", [(2, 3, 2)]) for name in ("SUM", "ASUM", "SUMSQ", "MEAN")
    ],
    "Reshape": [("reshape_param { shape { dim: 0 dim: -1 } }", [(2, 3, 2)])],
    "SPP": [("spp_param { pyramid_height: 2 }", [(1, 2, 5, 4)])],
    "Scale": [
        ("scale_param { axis: 1 bias_term: true }", [(2, 3, 2, 2)]),
        ("scale_param { axis: 0 bias_term: true }", [(2, 3, 2), (2, 3)]),
    ],
    "Sigmoid": [("", [(2, 3)])],
    "SigmoidCrossEntropyLoss": [("", [(3, 4), "labels:2 (3, 4)"])],
    "Slice": [("slice_param { axis: 1 slice_point: 1 }", [(2, 3, 2)])],
    "Softmax": [("", [(3, 4)]), ("softmax_param { axis: 2 }", [(2, 3, 4)])],
    "SoftmaxWithLoss": [
        ("", [(4, 3), "labels:3 (4,)"]),
        ("loss_param { ignore_label: 1 normalization: FULL }", [(2, 3, 2, 2), "labels:3 (2, 1, 2, 2)"]),
    ],
    "Split": [("", [(2, 3)])],
    "Swish": [("swish_param { beta: 1.3 }", [(2, 3)])],
    "TanH": [("", [(2, 3)])],
    "Tile": [("tile_param { axis: 1 tiles: 3 }", [(2, 2, 2)])],
}
TOPS = {"Slice": 2, "Split": 2, "LSTMUnit": 2}

WITHOUT = {
    "Accuracy": "no gradient",
    "ArgMax": "no gradient",
    "Threshold": "no gradient",
    "Silence": "no tops",
    "HDF5Output": "no tops",
    "Dropout": "random; its scale is a recording's",
    "Python": "the user's own; test_python_layer",
    **dict.fromkeys(
        ("Data", "DummyData", "HDF5Data", "DenseImageData", "ImageData", "Input", "MemoryData", "WindowData"), "a source"
    ),
}


def test_every_layer_type_has_a_gradient_case_or_a_reason_for_none():
    """Gradients of fork layers are tested elsewhere: test_fork_layers, test_detection_layers."""
    forks = {name for name, layer in known_types().items() if ".forks." in layer.__module__}
    assert set(caffe.layer_type_list()) - forks == set(CASES) | set(WITHOUT)
    assert set(CASES).isdisjoint(WITHOUT)


def bottom_values(number, spec, rng):
    """Shape, values, and whether to differentiate; values differ by more than two steps, also between bottoms."""
    if isinstance(spec, str):
        kind, shape = spec.split(" ", 1)
        shape = tuple(int(axis) for axis in shape.strip("()").split(",") if axis.strip())
        if kind == "positive":
            return shape, rng.uniform(0.3, 0.9, shape), True
        return shape, rng.integers(int(kind.split(":")[1]), size=shape), False
    spacing = max(0.045, 4 / np.prod(spec))
    values = (np.arange(np.prod(spec)) - np.prod(spec) / 2 + 0.5 + number / 4) * spacing
    return spec, rng.permutation(values).reshape(spec), True


@pytest.mark.parametrize(
    ("layer_type", "parameters", "bottoms"),
    [(name, *case) for name, cases in CASES.items() for case in cases],
    ids=[f"{name}_{number}" for name, cases in CASES.items() for number in range(len(cases))],
)
def test_the_gradient_equals_finite_differences(layer_type, parameters, bottoms, write):
    rng = np.random.default_rng(7)
    caffe.set_random_seed(5)
    values = [bottom_values(number, spec, rng) for number, spec in enumerate(bottoms)]
    text = ["force_backward: true"]
    for number, (shape, _, _) in enumerate(values):
        dims = " ".join(f"dim: {axis}" for axis in shape)
        text.append(f'layer {{ name: "in{number}" type: "Input" top: "b{number}" input_param {{ shape {{ {dims} }} }} }}')
    names = " ".join(f'bottom: "b{number}"' for number in range(len(values)))
    tops = [f"t{number}" for number in range(TOPS.get(layer_type, 1))]
    shown = " ".join(f'top: "{top}"' for top in tops)
    text.append(f'layer {{ name: "l" type: "{layer_type}" {names} {shown} {parameters} }}')
    net = caffe.Net(write("net.prototxt", "\n".join(text)), caffe.TRAIN)
    blobs = [(net.blobs[f"b{number}"], array) for number, (_, array, differs) in enumerate(values) if differs]
    for number, (_, array, _) in enumerate(values):
        net.blobs[f"b{number}"].data[...] = array
    learned = [] if layer_type == "BatchNorm" else list(net.params.get("l", []))
    state = [blob.data.copy() for blob in net.params.get("l", [])]
    if layer_type == "BatchNorm":
        state[1][...], state[2][...] = 1.5, 1
    net.forward()
    weights = {top: rng.normal(size=net.blobs[top].shape) for top in tops}

    def objective() -> float:
        for blob, array in zip(net.params.get("l", []), state, strict=True):
            if blob not in learned:
                blob.data[...] = array
        if hasattr(net.layers[-1], "kept"):
            net.layers[-1].kept = None
        net.forward()
        return float(sum((weights[top] * net.blobs[top].data.astype(np.float64)).sum() for top in tops))

    objective()
    for top in tops:
        net.blobs[top].diff[...] = weights[top]
    net.backward()
    targets = [(blob, blob.diff.copy()) for blob, _ in blobs] + [(blob, blob.diff.copy()) for blob in learned]
    for blob, gradient in targets:
        flat, wanted = blob.data.reshape(-1), gradient.reshape(-1)
        for position in rng.permutation(flat.size)[:24]:
            before = flat[position]
            ends = []
            for step in (STEP, -STEP):
                flat[position] = before + step
                ends.append(objective())
            flat[position] = before
            estimate = (ends[0] - ends[1]) / (2 * STEP)
            scale = max(abs(estimate), abs(wanted[position]), 1.0)
            assert abs(estimate - wanted[position]) <= 5e-3 * scale, (position, estimate, wanted[position])
