"""Fork layers compared with plain loops over their published definitions, their gradients with finite differences of those."""

import math

import numpy as np
import pytest

import caffe
from tests.caffe.layer_checks import check, draw, exercises, layer_error, make_net, reseed, rng


@pytest.fixture(autouse=True)
def _reseed(request):
    reseed(request.node.name)


# ---- blocks


@pytest.mark.parametrize("slope", [0, 0.1])
@exercises("ReLU6")
def test_relu6(write, slope):
    x = draw(2, 3, 4, low=-9, high=9)
    parameters = f"relu_param {{ negative_slope: {slope} }}" if slope else ""
    check(write, f'type: "ReLU6" {parameters}', lambda x: np.where(x > 0, np.minimum(x, 6), np.float32(slope) * x), x)


@pytest.mark.parametrize("name", ["DepthwiseConvolution", "ConvolutionDepthwise"])
@pytest.mark.parametrize("outputs", [3, 6])
@exercises("DepthwiseConvolution", "ConvolutionDepthwise", chosen_by="name")
def test_a_depthwise_convolution_filters_each_channel_separately(write, name, outputs):
    def convolve(x, weight, bias):
        padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
        y = np.zeros((2, outputs, 3, 2))
        for n, o, i, j in np.ndindex(y.shape):
            window = padded[n, o // (outputs // 3), 2 * i : 2 * i + 3, 2 * j : 2 * j + 3]
            y[n, o, i, j] = (window * weight[o, 0]).sum() + bias[o]
        return y

    layer = f'type: "{name}" convolution_param {{ num_output: {outputs} kernel_size: 3 pad: 1 stride: 2 }}'
    check(write, layer, convolve, draw(2, 3, 5, 4), params=(draw(outputs, 1, 3, 3), draw(outputs)))


def test_depthwise_num_output_must_be_a_multiple_of_the_channels(write):
    error = layer_error(write, 'type: "DepthwiseConvolution" convolution_param { num_output: 4 kernel_size: 3 }', (1, 3, 5, 5))
    assert "group 3 for 4 outputs" in error.found


@exercises("ShuffleChannel")
def test_shuffle_channel(write):
    def shuffle(x):
        y = np.zeros_like(x)
        for channel in range(6):
            group, index = divmod(channel, 3)
            y[:, index * 2 + group] = x[:, channel]
        return y

    check(write, 'type: "ShuffleChannel" shuffle_channel_param { group: 2 }', shuffle, draw(2, 6, 2, 3))
    error = layer_error(write, 'type: "ShuffleChannel" shuffle_channel_param { group: 4 }', (2, 6, 2, 3))
    assert error.found == "group 4 for a bottom of shape (2, 6, 2, 3)"


@pytest.mark.parametrize("ones", [(), (1, 1)])
@exercises("Axpy")
def test_axpy(write, ones):
    def axpy(a, x, y):
        result = np.zeros_like(x)
        for n, c in np.ndindex(2, 3):
            result[n, c] = a.reshape(2, 3)[n, c] * x[n, c] + y[n, c]
        return result

    check(write, 'type: "Axpy"', axpy, draw(2, 3, *ones), draw(2, 3, 2, 4), draw(2, 3, 2, 4), wrt=(0, 1, 2))
    assert "factors of shape (2, 4)" in layer_error(write, 'type: "Axpy"', (2, 4), (2, 3, 2, 4), (2, 3, 2, 4)).found


@pytest.mark.parametrize(("order", "axes"), [((0, 2, 3, 1), (0, 2, 3, 1)), ((3, 1), (3, 1, 0, 2)), ((), (0, 1, 2, 3))])
@exercises("Permute")
def test_permute(write, order, axes):
    parameters = " ".join(f"order: {axis}" for axis in order)

    def permute(x):
        y = np.zeros([x.shape[axis] for axis in axes])
        for index in np.ndindex(y.shape):
            source = [0] * 4
            for position, axis in enumerate(axes):
                source[axis] = index[position]
            y[index] = x[tuple(source)]
        return y

    check(write, f'type: "Permute" permute_param {{ {parameters} }}', permute, draw(2, 3, 4, 5))


@pytest.mark.parametrize("order", ["order: 1 order: 1", "order: 4"])
def test_permute_refuses_an_invalid_order(write, order):
    assert "may be listed once" in layer_error(write, f'type: "Permute" permute_param {{ {order} }}', (2, 3, 4, 5)).expected


@pytest.mark.parametrize("across", ["true", "false"])
@pytest.mark.parametrize("shared", ["true", "false"])
@exercises("Normalize")
def test_normalize(write, across, shared):
    def normalize(x, scale):
        y = np.zeros_like(x)
        for n, c, i, j in np.ndindex(x.shape):
            values = x[n] if across == "true" else x[n, :, i, j]
            y[n, c, i, j] = x[n, c, i, j] / math.sqrt((values**2).sum() + 1e-10) * np.broadcast_to(scale, 3)[c]
        return y

    layer = f'type: "Normalize" norm_param {{ across_spatial: {across} channel_shared: {shared} }}'
    scale = draw(low=1, high=20) if shared == "true" else draw(3, low=1, high=20)
    net = check(write, layer, normalize, draw(2, 3, 2, 4), params=(scale,))
    assert net.params["layer"][0].shape == np.shape(scale)


def test_normalize_initialises_its_scale_with_scale_filler(write):
    text = 'type: "Normalize" norm_param { channel_shared: false scale_filler { type: "constant" value: 20 } }'
    assert make_net(write, text, [(1, 4, 2, 2)]).params["layer"][0].data.tolist() == [20] * 4
    assert make_net(write, 'type: "Normalize"', [(1, 4, 2, 2)]).params["layer"][0].data == 1


def standardise(x, factor, term, eps):
    y = np.zeros_like(x)
    for c in range(x.shape[1]):
        mean = x[:, c].mean()
        y[:, c] = factor.flat[c] * (x[:, c] - mean) / math.sqrt(((x[:, c] - mean) ** 2).mean() + eps) + term.flat[c]
    return y


BN = """type: "BN" bn_param { slope_filler { type: "constant" value: 1 } bias_filler { type: "constant" value: 0 } %s }"""


@exercises("BN")
def test_bn_trains_on_batch_statistics_and_updates_running_statistics(write):
    x, parameters = draw(3, 2, 2, 3), [draw(1, 2), draw(1, 2), draw(1, 2), draw(1, 2, low=0.5, high=2)]
    net = check(
        write,
        BN % "momentum: 0.8",
        lambda x, slope, bias, *_: standardise(x, slope, bias, 1e-5),
        x,
        params=parameters,
        learned=(0, 1),
    )
    mean, variance = x.mean((0, 2, 3)), x.var((0, 2, 3))
    np.testing.assert_allclose(net.params["layer"][2].data[0], 0.8 * parameters[2][0] + 0.2 * mean, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(net.params["layer"][3].data[0], 0.8 * parameters[3][0] + 0.2 * variance, rtol=1e-4)
    assert [blob.lr_mult for blob in net.params["layer"]] == [1, 1, 0, 0]


@pytest.mark.parametrize(("settings", "phase"), [("", caffe.TEST), ("frozen: true", caffe.TRAIN)])
def test_bn_uses_running_statistics_in_testing_and_when_frozen(write, settings, phase):
    def by_averages(x, slope, bias, mean, variance):
        y = np.zeros_like(x)
        for c in range(2):
            y[:, c] = slope[0, c] * (x[:, c] - mean[0, c]) / math.sqrt(variance[0, c] + 1e-5) + bias[0, c]
        return y

    parameters = [draw(1, 2), draw(1, 2), draw(1, 2), draw(1, 2, low=0.5, high=2)]
    net = check(write, BN % settings, by_averages, draw(3, 2, 2, 3), params=parameters, phase=phase, learned=())
    np.testing.assert_allclose(net.params["layer"][2].data, parameters[2], rtol=1e-6)
    assert [blob.lr_mult for blob in net.params["layer"]] == ([0] * 4 if settings else [1, 1, 0, 0])


@pytest.mark.parametrize("phase", [caffe.TRAIN, caffe.TEST])
def test_segnets_bn_uses_batch_statistics_in_both_phases(write, phase):
    def learn(x, scale, shift):
        return standardise(x, scale, shift, 1e-9), x.mean((0, 2, 3)).reshape(1, 2, 1, 1), x.var((0, 2, 3)).reshape(1, 2, 1, 1)

    layer = 'type: "BN" bn_param { scale_filler { type: "constant" value: 1 } shift_filler { type: "constant" value: 0.001 } }'
    check(write, layer, learn, draw(3, 2, 2, 3), params=(draw(1, 2, 1, 1), draw(1, 2, 1, 1)), phase=phase)
    assert make_net(write, layer, [(1, 2, 1, 1)]).forward()["y0"].tolist() == [[[[np.float32(0.001)]]] * 2]


def test_segnets_bn_in_inference_mode_only_scales_and_shifts(write):
    layer = 'type: "BN" bn_param { bn_mode: INFERENCE }'
    check(write, layer, lambda x, scale, shift: x * scale + shift, draw(3, 2, 2, 3), params=(draw(1, 2, 1, 1), draw(1, 2, 1, 1)))


SCALED = 'type: "BatchNorm" batch_norm_param { moving_average_fraction: 0.75 %s }'


@pytest.mark.parametrize("settings", ["scale_bias: true", 'bias_filler { type: "constant" value: 0.5 }'])
def test_nvidias_batch_norm_scales_and_updates_running_statistics(write, settings):
    x = draw(3, 2, 2, 3)
    parameters = [draw(2), draw(2, low=0.5, high=2), np.ones(1), draw(2), draw(2)]
    layer = SCALED % settings
    net = check(write, layer, lambda x, *p: standardise(x, p[3], p[4], 1e-5), x, params=parameters, learned=(3, 4))
    mean, variance = x.mean((0, 2, 3)), x.var((0, 2, 3)) + 1e-5
    assert [blob.lr_mult for blob in net.params["layer"]] == [0, 0, 0, 1, 1]
    # The first two batches replace the averages.
    for factor, average in ((2, 2 * mean), (4, 0.75 * 2 * mean + 0.25 * 4 * mean), (0, 0.75 * 2.5 * mean)):
        net.blobs["x0"].data[...] = factor * x
        net.forward()
        np.testing.assert_allclose(net.params["layer"][0].data, average, rtol=1e-4, atol=1e-6)
    net = make_net(write, layer, [x.shape])
    net.blobs["x0"].data[...] = x
    net.forward()
    np.testing.assert_allclose(net.params["layer"][1].data, variance, rtol=1e-4)
    assert net.params["layer"][2].data == 1


def test_nvidias_batch_norm_uses_the_lr_mult_and_decay_mult_of_its_prototxt(write):
    given = "param { lr_mult: 1 } " * 3 + "param { lr_mult: 0 decay_mult: 2 } param { lr_mult: 0.5 decay_mult: 0 }"
    net = make_net(write, f"{SCALED % 'scale_bias: true'} {given}", [(3, 2, 2, 3)])
    multipliers = [(blob.lr_mult, blob.decay_mult) for blob in net.params["layer"]]
    assert multipliers == [(0, 0)] * 3 + [(0, 2), (0.5, 0)]


def test_nvidias_batch_norm_uses_running_statistics_in_testing(write):
    def by_averages(x, mean, variance, one, scale, bias):
        y = np.zeros_like(x)
        for c in range(2):
            y[:, c] = scale[c] * (x[:, c] - mean[c]) / math.sqrt(variance[c] + 1e-5) + bias[c]
        return y

    parameters = [draw(2), draw(2, low=0.5, high=2), np.ones(1), draw(2), draw(2)]
    check(write, SCALED % "scale_bias: true", by_averages, draw(3, 2, 2, 3), params=parameters, phase=caffe.TEST, learned=(3, 4))


def test_nvidias_weights_in_a_net_without_scale_bias_say_to_set_it(write, tmp_path):
    make_net(write, SCALED % "scale_bias: true", [(1, 2, 2, 3)]).save(tmp_path / "nvidia.caffemodel")
    with pytest.raises(caffe.WeightsError) as error:
        make_net(write, SCALED % "", [(1, 2, 2, 3)]).copy_from(tmp_path / "nvidia.caffemodel")
    assert "scale_bias: true" in error.value.do


@pytest.mark.parametrize("settings", ["", "scale_bias: true"])
def test_batch_norm_of_one_value_per_channel_is_0(write, settings):
    net = make_net(write, SCALED % settings, [(1, 2, 1, 1)])
    net.blobs["x0"].data[...] = draw(1, 2, 1, 1)
    np.testing.assert_allclose(net.forward()["y0"], 0, atol=1e-4)
    net.blobs["y0"].diff[...] = 1
    net.backward()
    np.testing.assert_allclose(net.blobs["x0"].diff, 0, atol=1e-4)


# ---- resampling


def interpolate(x, height, width):
    y = np.zeros((*x.shape[:2], height, width))
    for i, j in np.ndindex(height, width):
        h = i * (x.shape[2] - 1) / (height - 1) if height > 1 else 0.0
        w = j * (x.shape[3] - 1) / (width - 1) if width > 1 else 0.0
        top, left = int(h), int(w)
        down, right = min(top + 1, x.shape[2] - 1), min(left + 1, x.shape[3] - 1)
        a, b = h - top, w - left
        y[:, :, i, j] = (1 - a) * ((1 - b) * x[:, :, top, left] + b * x[:, :, top, right])
        y[:, :, i, j] += a * ((1 - b) * x[:, :, down, left] + b * x[:, :, down, right])
    return y


@pytest.mark.parametrize(
    ("settings", "cut", "size"),
    [
        ("height: 5 width: 7", np.s_[:], (5, 7)),
        ("height: 1 width: 2", np.s_[:], (1, 2)),
        ("zoom_factor: 2", np.s_[:], (7, 9)),
        ("shrink_factor: 2", np.s_[:], (2, 3)),
        ("shrink_factor: 2 zoom_factor: 3", np.s_[:], (4, 7)),
        ("zoom_factor: 2 pad_beg: -1 pad_end: -1", np.s_[:, :, 1:-1, 1:-1], (3, 5)),
        ("height: 4 width: 4 pad_end: -1", np.s_[:, :, :-1, :-1], (4, 4)),
    ],
)
@exercises("Interp")
def test_interp(write, settings, cut, size):
    check(write, f'type: "Interp" interp_param {{ {settings} }}', lambda x: interpolate(x[cut], *size), draw(2, 2, 4, 5))


@pytest.mark.parametrize(
    ("settings", "found"),
    [
        ("", "no size"),
        ("height: 3", "no size"),
        ("height: 3 width: 3 zoom_factor: 2", "zoom_factor or shrink_factor, and height and width"),
        ("zoom_factor: 0", "zoom_factor 0"),
        ("zoom_factor: 2 pad_beg: 1", "pad_beg 1 and pad_end 0"),
        ("zoom_factor: 2 pad_beg: -2 pad_end: -2", "pad_beg -2 and pad_end -2 on a bottom of shape (2, 2, 4, 5)"),
    ],
)
def test_interp_refuses_invalid_sizes(write, settings, found):
    assert layer_error(write, f'type: "Interp" interp_param {{ {settings} }}', (2, 2, 4, 5)).found == found


@pytest.mark.parametrize(
    "settings", ["upsample_h: 5 upsample_w: 6", "scale: 2 pad_out_h: true", "scale_h: 2 scale_w: 2 pad_out_h: true"]
)
def test_upsample_restores_values_to_their_pooling_positions(write, settings):
    positions = np.stack([[rng.permutation(30)[:9].reshape(3, 3) for _ in range(2)] for _ in range(2)])

    def upsample(x, positions):
        y = np.zeros((2, 2, 5, 6))
        for n, c, i, j in np.ndindex(x.shape):
            y[n, c].flat[int(positions[n, c, i, j])] = x[n, c, i, j]
        return y

    check(write, f'type: "Upsample" upsample_param {{ {settings} }}', upsample, draw(2, 2, 3, 3), positions)


def test_upsample_inverts_max_pooling_with_a_mask(write):
    text = """
    layer { name: "x" type: "Input" top: "x" input_param { shape { dim: 1 dim: 2 dim: 5 dim: 6 } } }
    layer { name: "pool" type: "Pooling" bottom: "x" top: "pool" top: "mask" pooling_param { kernel_size: 2 stride: 2 } }
    layer { name: "up" type: "Upsample" bottom: "pool" bottom: "mask" top: "up" upsample_param { upsample_h: 5 upsample_w: 6 } }
    """
    net = caffe.Net(write("net.prototxt", text), caffe.TEST)
    x = net.blobs["x"].data[...] = draw(1, 2, 5, 6)
    up = net.forward()["up"]
    assert np.count_nonzero(up) == 2 * 3 * 3
    np.testing.assert_array_equal(up[up != 0], x.astype(np.float32)[up != 0])
    for i, j in np.ndindex(3, 3):
        block = np.s_[:, :, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2]
        np.testing.assert_array_equal(up[block].sum((2, 3)), x[block].max((2, 3)).astype(np.float32))


@exercises("Upsample")
def test_upsample_without_a_mask_repeats_values(write):
    def repeat(x):
        y = np.zeros((2, 3, 4, 9))
        for n, c, i, j in np.ndindex(y.shape):
            y[n, c, i, j] = x[n, c, i // 2, j // 3]
        return y

    check(write, 'type: "Upsample" upsample_param { scale_h: 2 scale_w: 3 }', repeat, draw(2, 3, 2, 3))


def test_upsample_refuses_a_position_outside_the_image(write):
    net = make_net(write, 'type: "Upsample" upsample_param { upsample_h: 4 upsample_w: 4 }', [(1, 1, 2, 2)] * 2)
    net.blobs["x1"].data[...] = [[[[0, 3], [8, 16]]]]
    with pytest.raises(caffe.LayerError) as error:
        net.forward()
    assert error.value.found == "position 16 in an image of 4×4"
    assert "upsample_h" in error.value.do
    assert "a position for each" in layer_error(write, 'type: "Upsample"', (1, 1, 2, 2), (1, 1, 2, 3)).expected
    assert (
        "scale of 2" in layer_error(write, 'type: "Upsample" upsample_param { scale: 3 pad_out_h: true }', (1, 1, 2, 2)).expected
    )


@pytest.mark.parametrize("reverse", [False, True])
@exercises("Reorg")
def test_reorg_moves_values_as_yolos_loop(write, reverse):
    def reorg(x):
        # YOLO's own loop over flat memory, with the dimensions of the bottom.
        count, c, h, w = x.shape
        out, s = np.zeros_like(x).reshape(count, -1), 2
        flat = x.reshape(count, -1)
        for k, j, i in np.ndindex(c, h, w):
            inner = i + w * (j + h * k)
            offset, channel = divmod(k, c // s**2)
            outer = (i * s + offset % s) + w * s * ((j * s + offset // s) + h * s * channel)
            if reverse:
                out[:, outer] = flat[:, inner]
            else:
                out[:, inner] = flat[:, outer]
        return out.reshape(count, c // s**2, h * s, w * s) if reverse else out.reshape(count, c * s**2, h // s, w // s)

    check(write, f'type: "Reorg" reorg_param {{ stride: 2 reverse: {str(reverse).lower()} }}', reorg, draw(2, 8, 4, 6))


def test_reorg_refuses_indivisible_channels_and_a_missing_stride(write):
    assert (
        "channels must be a multiple of 4" in layer_error(write, 'type: "Reorg" reorg_param { stride: 2 }', (1, 3, 4, 4)).expected
    )
    assert layer_error(write, 'type: "Reorg"', (1, 4, 4, 4)).found == "stride is not given"


# ---- losses


def smooth(d, sigma):
    return 0.5 * (sigma * d) ** 2 if abs(d) < 1 / sigma**2 else abs(d) - 0.5 / sigma**2


@pytest.mark.parametrize("weights", [0, 1, 2])
@pytest.mark.parametrize("sigma", [1, 3])
@exercises("SmoothL1Loss")
def test_smooth_l1_loss(write, weights, sigma):
    def loss(x, target, *weights):
        inside, outside = (*weights, *[np.ones_like(x)] * 2)[:2]
        return sum(outside[i] * smooth(inside[i] * (x[i] - target[i]), sigma) for i in np.ndindex(x.shape)) / x.shape[0]

    inputs = [draw(4, 3, 2, low=-2, high=2), *(draw(4, 3, 2) for _ in range(1 + weights))]
    layer = f'type: "SmoothL1Loss" smooth_l1_loss_param {{ sigma: {sigma} }}'
    check(write, layer, lambda *a: np.float64(loss(*a)), *inputs, wrt=(0, 1))


def test_smooth_l1_loss_refuses_mismatched_counts_and_sigma_0(write):
    assert "the same number of values" in layer_error(write, 'type: "SmoothL1Loss"', (2, 4), (2, 3)).expected
    assert layer_error(write, 'type: "SmoothL1Loss" smooth_l1_loss_param { sigma: 0 }', (2, 4), (2, 4)).found == "sigma 0"


@pytest.mark.parametrize("name", ["FocalLoss", "SoftmaxFocalLoss"])
@pytest.mark.parametrize(
    ("settings", "alpha", "gamma"),
    [
        ("", [0.25] * 3, 2),
        ("alpha: 0.75 gamma: 1.5", [0.75] * 3, 1.5),
        ("gamma: 0 alpha: 1", [1] * 3, 0),
        ("alpha: 0.2 alpha: 0.3 alpha: 0.5 alpha_balance: true", [0.2, 0.3, 0.5], 2),
        ("alpha_balance: false", [1] * 3, 2),
    ],
)
@exercises("FocalLoss", "SoftmaxFocalLoss", chosen_by="name")
def test_focal_loss(write, name, settings, alpha, gamma):
    labels = rng.integers(0, 3, (2, 2, 2)).astype(float)
    labels[0, 0, 0] = 9

    def loss(x, labels):
        total, count, probabilities = 0.0, 0, np.exp(x) / np.exp(x).sum(1, keepdims=True)
        for n, i, j in np.ndindex(labels.shape):
            label = int(labels[n, i, j])
            if label != 9:
                p = probabilities[n, label, i, j]
                total -= alpha[label] * (1 - p) ** gamma * math.log(p)
                count += 1
        return np.float64(total / count), probabilities

    layer = f'type: "{name}" loss_param {{ ignore_label: 9 }} focal_loss_param {{ {settings} }}'
    check(write, layer, loss, draw(2, 3, 2, 2, low=-2, high=2), labels)


@pytest.mark.parametrize(("normalize", "divisor"), [("true", 7), ("false", 2)])
def test_segnets_softmax_loss_weights_classes(write, normalize, divisor):
    labels = rng.integers(0, 3, (2, 2, 2)).astype(float)
    labels[0, 0, 0], weights = 9, [0.5, 2, 3]

    def loss(x, labels):
        total, probabilities = 0.0, np.exp(x) / np.exp(x).sum(1, keepdims=True)
        for n, i, j in np.ndindex(labels.shape):
            label = int(labels[n, i, j])
            if label != 9:
                total -= weights[label] * math.log(probabilities[n, label, i, j])
        return np.float64(total / divisor), probabilities

    settings = " ".join(f"class_weighting: {weight}" for weight in weights)
    layer = 'type: "SoftmaxWithLoss" loss_param {{ ignore_label: 9 normalize: {} {} weight_by_label_freqs: {} }}'
    check(write, layer.format(normalize, settings, "true"), loss, draw(2, 3, 2, 2, low=-2, high=2), labels)
    weights = [1, 1, 1]
    check(write, layer.format(normalize, settings, "false"), loss, draw(2, 3, 2, 2, low=-2, high=2), labels)
    error = layer_error(write, layer.format("true", "class_weighting: 1", "true"), (2, 3), (2,))
    assert (error.found, error.expected) == ("1 values of class_weighting", "there are 3 classes")


def test_focal_loss_checks_labels_and_weights(write):
    net = make_net(write, 'type: "FocalLoss"', [(2, 3), (2,)])
    net.blobs["x1"].data[...] = [0, 3]
    with pytest.raises(caffe.LayerError, match="label 3"):
        net.forward()
    assert (
        layer_error(write, 'type: "FocalLoss" focal_loss_param { alpha: 1 alpha: 2 }', (2, 3), (2,)).found == "2 values of alpha"
    )


@exercises("CenterLoss")
def test_center_loss_moves_centres_by_its_own_rule(write):
    features, centres, labels = draw(4, 3), draw(5, 3), np.array([2, 0, 2, 4.0])

    def loss(features, labels, centres):
        return np.float64(sum(((f - centres[int(label)]) ** 2).sum() for f, label in zip(features, labels, strict=True)) / 8)

    layer = 'type: "CenterLoss" loss_weight: 1 center_loss_param { num_output: 5 }'
    net = check(write, layer, loss, features, labels, params=(centres,), learned=())
    moves = np.zeros((5, 3))
    for label in (0, 2, 4):
        mine = features[labels == label]
        moves[label] = (centres[label] - mine).sum(0) / (1 + len(mine))
    np.testing.assert_allclose(net.params["layer"][0].diff, moves, rtol=1e-4, atol=1e-6)
    net = make_net(write, layer.replace("loss_weight: 1", "loss_weight: 0.01"), [(4, 3), (4,)])
    for name, values in (("x0", features), ("x1", labels)):
        net.blobs[name].data[...] = values
    net.params["layer"][0].data[...] = centres
    net.forward()
    net.backward()
    np.testing.assert_allclose(net.params["layer"][0].diff, moves, rtol=1e-4, atol=1e-6)  # independent of the loss weight
    net.blobs["x1"].data[...] = 5
    with pytest.raises(caffe.LayerError, match="label 5"):
        net.forward()


@pytest.mark.parametrize("weighted", [False, True])
@exercises("TripletLoss")
def test_triplet_loss(write, weighted):
    def loss(a, p, n, w=(1, 1, 1)):
        terms = [max(0, 0.5 + ((a[i] - p[i]) ** 2).sum() - ((a[i] - n[i]) ** 2).sum()) for i in range(3)]
        return np.float64(sum(terms[i] * w[i] for i in range(3)) / 6)

    inputs = [draw(3, 4) for _ in range(3)] + [draw(3, low=0, high=1)] * weighted
    inputs[2][0] = inputs[0][0] + 5  # beyond the margin
    check(write, 'type: "TripletLoss" triplet_loss_param { margin: 0.5 }', loss, *inputs, wrt=(0, 1, 2))
    assert "the same shape" in layer_error(write, 'type: "TripletLoss"', (2, 4), (2, 4), (2, 3)).expected


# ---- fields of forks in Caffe's own layers


@pytest.mark.parametrize(
    ("settings", "size"),
    [
        ("", 3),
        ("ceil_mode: false", 2),
        ("ceil_mode: true", 3),
        ("round_mode: FLOOR", 2),
        ("round_mode: CEIL ceil_mode: false", 3),
    ],
)
def test_ceil_mode_and_round_mode_set_the_pooled_size(write, settings, size):
    net = make_net(write, f'type: "Pooling" pooling_param {{ kernel_size: 2 stride: 2 {settings} }}', [(1, 1, 5, 5)])
    assert net.blobs["y0"].shape == (1, 1, size, size)


# ---- regions


def c_round(value):
    return int(math.copysign(math.floor(abs(value) + 0.5), value))


REGIONS = [
    [0, 0, 0, 9, 7],
    [1, 2, 1, 5, 6],
    [0, 3.5, 2.5, 3.4, 2.2],  # negative width and height
    [1, -4, -3, 3, 2],
    [0, 30, 30, 40, 40],  # outside
    [1, 0, 0, 25, 19],
    [0, 1, 1, 14, 8],
]


@pytest.mark.parametrize("scale", [1, 0.5, 0.0625])
@pytest.mark.parametrize("bins", [(2, 3), (7, 7)])
@pytest.mark.parametrize("ratio", [0, 0.25])
@exercises("ROIPooling")
def test_roi_pooling(write, scale, bins, ratio):
    f = np.float32

    def pool(x, regions):
        height, width = x.shape[2:]
        y = np.zeros((len(regions), x.shape[1], *bins))
        for r, (image, *corners) in enumerate(regions):
            pad = [(corners[k + 2] - corners[k] + 1) * ratio for k in (0, 1)]
            corners = corners[0] - pad[0], corners[1] - pad[1], corners[2] + pad[0], corners[3] + pad[1]
            x1, y1, x2, y2 = (c_round(f(corner) * f(scale)) for corner in corners)
            tall, wide = f(max(y2 - y1 + 1, 1)) / f(bins[0]), f(max(x2 - x1 + 1, 1)) / f(bins[1])
            for i, j in np.ndindex(bins):
                top, bottom = (min(max(int(edge) + y1, 0), height) for edge in (np.floor(f(i) * tall), np.ceil(f(i + 1) * tall)))
                left, right = (min(max(int(edge) + x1, 0), width) for edge in (np.floor(f(j) * wide), np.ceil(f(j + 1) * wide)))
                if bottom > top and right > left:
                    y[r, :, i, j] = x[int(image), :, top:bottom, left:right].max((1, 2))
        return y

    settings = f"pooled_h: {bins[0]} pooled_w: {bins[1]} spatial_scale: {scale} pad_ratio: {ratio}"
    layer = f'type: "ROIPooling" roi_pooling_param {{ {settings} }}'
    values = rng.permutation(2 * 2 * 8 * 10).reshape(2, 2, 8, 10) / 100 - 1.5  # all different: the maximum is differentiable
    check(write, layer, pool, values, np.array(REGIONS), rtol=1e-6)


def test_roi_pooling_gives_the_gradient_to_the_first_of_equal_values(write):
    net = make_net(write, 'type: "ROIPooling" roi_pooling_param { pooled_h: 1 pooled_w: 1 }', [(1, 1, 4, 4), (1, 5)])
    net.blobs["x0"].data[...] = -0.0
    net.blobs["x0"].data[0, 0, 2, 1:3] = 0.0
    net.blobs["x1"].data[...] = [[0, 1, 1, 3, 3]]
    net.forward()
    net.blobs["y0"].diff[...] = 1
    net.backward()
    assert [*zip(*net.blobs["x0"].diff[0, 0].nonzero(), strict=True)] == [(1, 1)]


@exercises("PSROIPooling")
def test_psroi_pooling(write):
    f, bins, outputs, scale = np.float32, 3, 2, 0.5

    def pool(x, regions):
        height, width = x.shape[2:]
        y = np.zeros((len(regions), outputs, bins, bins))
        for r, (image, *corners) in enumerate(regions):
            x1, y1 = (f(c_round(corner)) * f(scale) for corner in corners[:2])
            x2, y2 = (f(c_round(corner) + 1) * f(scale) for corner in corners[2:])
            tall, wide = f(max(y2 - y1, f(0.1))) / f(bins), f(max(x2 - x1, f(0.1))) / f(bins)
            for d, i, j in np.ndindex(outputs, bins, bins):
                top = min(max(int(np.floor(f(i) * tall + y1)), 0), height)
                bottom = min(max(int(np.ceil(f(i + 1) * tall + y1)), 0), height)
                left = min(max(int(np.floor(f(j) * wide + x1)), 0), width)
                right = min(max(int(np.ceil(f(j + 1) * wide + x1)), 0), width)
                if bottom > top and right > left:
                    y[r, d, i, j] = x[int(image), (d * bins + i) * bins + j, top:bottom, left:right].mean()
        return y

    layer = f'type: "PSROIPooling" psroi_pooling_param {{ spatial_scale: {scale} output_dim: {outputs} group_size: {bins} }}'
    check(write, layer, pool, draw(2, outputs * bins**2, 6, 7), np.array(REGIONS))


ROI = 'type: "ROIPooling" roi_pooling_param { pooled_h: 2 pooled_w: 2 }'
PSROI = 'type: "PSROIPooling" psroi_pooling_param { output_dim: 2 group_size: 2 spatial_scale: %s }'


@pytest.mark.parametrize(
    ("layer", "shapes", "found"),
    [
        (ROI, [(1, 8, 5, 5), (3, 4)], "regions of shape (3, 4)"),
        (ROI, [(8, 5, 5), (3, 5)], "a bottom of shape (8, 5, 5)"),
        ('type: "ROIPooling"', [(1, 8, 5, 5), (3, 5)], "pooled_h 0 and pooled_w 0"),
        (PSROI % 1, [(1, 9, 5, 5), (3, 5)], "9 channels"),
        (PSROI % 0, [(1, 8, 5, 5), (3, 5)], "spatial_scale 0"),
    ],
)
def test_roi_pooling_refuses_invalid_shapes_and_settings(write, layer, shapes, found):
    assert layer_error(write, layer, *shapes).found == found


@pytest.mark.parametrize("layer", [ROI, PSROI % 1])
def test_a_region_of_a_missing_image_is_an_error(write, layer):
    net = make_net(write, layer, [(2, 8, 5, 5), (3, 5, 1, 1)])
    net.blobs["x1"].data[2, 0] = 2
    with pytest.raises(caffe.LayerError) as error:
        net.forward()
    assert error.value.found == "a region in image 2"
    net.blobs["x1"].data[2, :, 0, 0] = [0, 1, 1, np.nan, 3]
    with pytest.raises(caffe.LayerError, match="not finite"):
        net.forward()
    net.blobs["x1"].reshape(0, 5)
    assert net.forward()["y0"].shape[0] == 0
