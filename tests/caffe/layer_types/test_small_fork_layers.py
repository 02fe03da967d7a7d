"""Small layers of forks compared with plain loops over their definitions, their gradients with finite differences of those."""

import math

import numpy as np
import pytest

import caffe
from caffe.proto import caffe_pb2
from tests.caffe.layer_checks import check, draw, exercises, layer_error, make_net, reseed, rng


@pytest.fixture(autouse=True)
def _reseed(request):
    reseed(request.node.name)


# ---- gradients


@exercises("GradientReversal")
def test_gradient_reversal_negates_the_gradient(write):
    net = check(write, 'type: "GradientReversal"', lambda x: x, draw(2, 3), wrt=())
    np.testing.assert_array_equal(net.blobs["x0"].diff, -net.blobs["y0"].diff)


SCALER = 'type: "GradientScaler" gradient_scaler_param { lower_bound: 0.1 upper_bound: 0.9 alpha: 2 max_iter: 4 }'


@exercises("GradientScaler")
def test_gradient_scaler_follows_its_schedule_and_snapshots_keep_its_place(write):
    def factors(net, count):
        for _ in range(count):
            net.forward()
            net.blobs["y0"].diff[...] = 1
            net.backward()
            yield float(net.blobs["x0"].diff[0, 0])

    def factor(progress):
        return -(2 * 0.8 / (1 + math.exp(-2 * progress)) - 0.8 + 0.1)

    net = make_net(write, SCALER, [(1, 1)])
    np.testing.assert_allclose(list(factors(net, 3)), [factor(step / 4) for step in range(3)], rtol=1e-5)
    state = caffe_pb2.LayerState()
    net.layers[-1].keep(state)
    resumed = make_net(write, SCALER, [(1, 1)])
    resumed.layers[-1].resume(state)
    np.testing.assert_allclose(list(factors(resumed, 3)), [factor(0.75), factor(1), factor(1)], rtol=1e-5)
    testing = make_net(write, SCALER, [(1, 1)], caffe.TEST)
    assert len(set(factors(testing, 3))) == 1


def test_gradient_scaler_refuses_bounds_out_of_order(write):
    assert "bounds must be in order" in layer_error(write, SCALER.replace("upper_bound: 0.9", "upper_bound: 0"), (1, 1)).expected


# ---- maps


@exercises("MaskPooling")
def test_mask_pooling(write):
    def mask(x, masks):
        y = np.zeros_like(x)
        for n, c, h, w in np.ndindex(x.shape):
            y[n, c, h, w] = x[n, c, h, w] * masks[n, 0, h, w]
        return y

    check(write, 'type: "MaskPooling"', mask, draw(2, 3, 2, 4), draw(2, 1, 2, 4), wrt=(0, 1))
    assert "masks of shape (2, 3, 2, 4)" in layer_error(write, 'type: "MaskPooling"', (2, 3, 2, 4), (2, 3, 2, 4)).found


DIVISION = 'type: "Division" division_param { height: 2 width: 3 xcoord: 0 xcoord: 2 ycoord: 1 ycoord: 2 }'


@exercises("Division")
def test_division_gives_a_window_to_each_top(write):
    check(write, DIVISION, lambda x: (x[:, :, 1:3, 0:3], x[:, :, 2:4, 2:5]), draw(2, 2, 4, 5))
    error = layer_error(write, DIVISION, (2, 2, 4, 4), tops=2)
    assert (error.found, error.expected) == ("a window of 2×3 at (2, 2)", "it must fit into 4×4")
    assert layer_error(write, DIVISION, (2, 2, 4, 5)).found == "2 values of xcoord and 2 of ycoord"


@pytest.mark.parametrize("size", [(5, 4), (2, 2), (1, 3)])
@exercises("BilinearInterpolation")
def test_bilinear_interpolation_takes_the_size_of_its_second_bottom(write, size):
    def resize(x, _):
        y = np.zeros((*x.shape[:2], *size))
        for i, j in np.ndindex(size):
            row, column = (at * (old - 1) / max(new - 1, 1) for at, old, new in zip((i, j), x.shape[2:], size, strict=True))
            upper, left = int(row), int(column)
            for di, dj in np.ndindex(2, 2):
                weight = (1 - abs(row - upper - di)) * (1 - abs(column - left - dj))
                y[:, :, i, j] += weight * x[:, :, min(upper + di, x.shape[2] - 1), min(left + dj, x.shape[3] - 1)]
        return y

    check(write, 'type: "BilinearInterpolation"', resize, draw(2, 2, 3, 3), draw(1, 1, *size))


@exercises("Norm")
def test_norm(write):
    def norm(x):
        y = np.zeros_like(x)
        for n, c, h, w in np.ndindex(x.shape):
            y[n, c, h, w] = x[n, c, h, w] / (math.sqrt((x[n, :, h, w] ** 2).sum()) + 1e-6)
        return y

    check(write, 'type: "Norm"', norm, draw(2, 3, 2, 2))
    assert layer_error(write, 'type: "Norm" norm_param { }', (2, 3)).found == "norm_param"


CONVOLUTION = 'type: "Convolution3D" convolution3d_param { num_output: 3 kernel_size: 2 kernel_depth: 3 stride: 2 pad: 1 %s }'


@pytest.mark.parametrize("bias", [True, False])
@exercises("Convolution3D")
def test_convolution3d(write, bias):
    def convolve(x, weight, *bias):
        padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1), (1, 1)))
        y = np.zeros((1, 3, 2, 3, 2))
        for n, o, t, i, j in np.ndindex(y.shape):
            window = padded[n, :, 2 * t : 2 * t + 3, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2]
            y[n, o, t, i, j] = (window * weight[o]).sum() + sum(values[0, 0, 0, 0, o] for values in bias)
        return y

    settings = "temporal_stride: 2 temporal_pad: 1" + ("" if bias else " bias_term: false")
    parameters = [draw(3, 2, 3, 2, 2), draw(1, 1, 1, 1, 3)][: 1 + bias]
    net = check(write, CONVOLUTION % settings, convolve, draw(1, 2, 4, 4, 3), params=parameters)
    specs = caffe.layer_type("Convolution3D").blob_specs(net.layers[-1].param)
    assert [spec.name for spec in specs] == ["weight", "bias"][: 1 + bias]


def test_convolution3d_says_what_it_takes(write):
    assert "5 axes" in layer_error(write, CONVOLUTION % "", (1, 2, 4, 4)).expected
    assert layer_error(write, CONVOLUTION % "group: 2", (1, 2, 4, 4, 4)).found == "group 2"
    unset = 'type: "Convolution3D" convolution3d_param { num_output: 3 kernel_size: 2 }'
    assert layer_error(write, unset, (1, 2, 4, 4, 4)).found == "kernel_depth is not given"
    assert layer_error(write, CONVOLUTION % "temporal_stride: 0", (1, 2, 4, 4, 4)).found == "stride 0"


DECONVOLUTION = """type: "Deconvolution3D" convolution3d_param
    { num_output: 3 kernel_size: 3 kernel_depth: 2 stride: 2 pad: 1 temporal_stride: 2 %s }"""


@pytest.mark.parametrize("bias", [True, False])
@exercises("Deconvolution3D")
def test_deconvolution3d(write, bias):
    def spread(x, weight, *bias):
        whole = np.zeros((1, 3, 6, 7, 5))
        for c, t, i, j in np.ndindex(x.shape[1:]):
            whole[0, :, 2 * t : 2 * t + 2, 2 * i : 2 * i + 3, 2 * j : 2 * j + 3] += x[0, c, t, i, j] * weight[c]
        return whole[:, :, :, 1:-1, 1:-1] + sum(values.reshape(1, 3, 1, 1, 1) for values in bias)

    parameters = [draw(2, 3, 2, 3, 3), draw(1, 1, 1, 1, 3)][: 1 + bias]
    check(write, DECONVOLUTION % ("" if bias else "bias_term: false"), spread, draw(1, 2, 3, 3, 2), params=parameters)


def test_deconvolution3d_says_what_it_takes(write):
    assert layer_error(write, DECONVOLUTION % "group: 2", (1, 2, 4, 4, 4)).found == "group 2"
    assert layer_error(write, DECONVOLUTION % "temporal_pad: 1", (1, 2, 1, 1, 1)).expected == "nothing is left"


VOLUMES = 'type: "Pooling" pooling_param { pool: %s kernel_size: 3 stride: 2 pad: %d }'


@pytest.mark.parametrize("pad", [0, 1])
@pytest.mark.parametrize("method", ["MAX", "AVE"])
def test_pooling_of_volumes(write, method, pad):
    def pool(x):
        counts = []
        for extent in x.shape[2:]:
            count = math.ceil((extent + 2 * pad - 3) / 2) + 1
            counts.append(count - (pad > 0 and (count - 1) * 2 >= extent + pad))
        y = np.zeros((*x.shape[:2], *counts))
        for n, c, *place in np.ndindex(y.shape):
            starts = [2 * index - pad for index in place]
            window = x[n, c][tuple(slice(max(start, 0), start + 3) for start in starts)]
            size = math.prod(min(start + 3, extent + pad) - start for start, extent in zip(starts, x.shape[2:], strict=True))
            y[(n, c, *place)] = window.max() if method == "MAX" else window.sum() / size
        return y

    check(write, VOLUMES % (method, pad), pool, draw(2, 2, 5, 4, 6))
    whole = f'type: "Pooling" pooling_param {{ pool: {method} global_pooling: true }}'
    reduce = np.max if method == "MAX" else np.mean
    check(write, whole, lambda x: reduce(x, axis=(2, 3, 4), keepdims=True), draw(2, 2, 3, 4, 2))


def test_pooling_of_volumes_says_what_it_takes(write):
    volume = (1, 2, 4, 4, 4)
    assert "kernel_h" in layer_error(write, 'type: "Pooling" pooling_param { kernel_h: 2 kernel_w: 2 }', volume).found
    assert "STOCHASTIC" in layer_error(write, VOLUMES % ("STOCHASTIC", 0), volume).found
    assert "2 tops" in layer_error(write, VOLUMES % ("MAX", 0), volume, tops=2).found
    assert "pad 3" in layer_error(write, VOLUMES % ("MAX", 3), volume).found
    assert "the kernel must fit" in layer_error(write, VOLUMES % ("MAX", 0), (1, 2, 4, 1, 1)).expected


POOLING = 'type: "Pooling3D" pooling3d_param { pool: %s kernel_size: 2 kernel_depth: 3 stride: 2 temporal_stride: 2 %s }'


@pytest.mark.parametrize(("method", "pad"), [("MAX", 0), ("AVE", 0), ("AVE", 1)])
@exercises("Pooling3D")
def test_pooling3d_rounds_extents_up(write, method, pad):
    def pool(x):
        length, height, width = x.shape[2:]
        counts = [math.ceil((length - 3) / 2) + 1, *(math.ceil((side + 2 * pad - 2) / 2) + 1 for side in (height, width))]
        y = np.zeros((*x.shape[:2], *counts))
        for t, i, j in np.ndindex(*counts):
            rows, columns = (range(2 * at - pad, min(2 * at - pad + 2, side + pad)) for at, side in ((i, height), (j, width)))
            frames = range(2 * t, min(2 * t + 3, length))
            inside = np.ix_(
                range(x.shape[0]),
                range(x.shape[1]),
                frames,
                [row for row in rows if 0 <= row < height],
                [column for column in columns if 0 <= column < width],
            )
            window = x[inside]
            value = window.max((2, 3, 4)) if method == "MAX" else window.sum((2, 3, 4)) / (len(frames) * len(rows) * len(columns))
            y[:, :, t, i, j] = value
        return y

    check(write, POOLING % (method, f"pad: {pad}"), pool, rng.permutation(2 * 2 * 4 * 5 * 4).reshape(2, 2, 4, 5, 4) / 30)


def test_pooling3d_says_what_it_takes(write):
    shape = (1, 1, 4, 4, 4)
    assert "5 axes" in layer_error(write, POOLING % ("MAX", ""), shape[1:]).expected
    assert layer_error(write, POOLING % ("STOCHASTIC", ""), shape).found == "pool STOCHASTIC"
    assert layer_error(write, POOLING % ("MAX", "pad: 1"), shape).found == "pad 1"
    assert "the kernel must fit" in layer_error(write, POOLING % ("MAX", ""), (1, 1, 2, 4, 4)).expected
    far = 'type: "Pooling3D" pooling3d_param { kernel_size: 1 kernel_depth: 1 stride: 3 temporal_stride: 1 }'
    assert "the kernel must fit" in layer_error(write, far, (1, 1, 2, 5, 5)).expected


# ---- losses


@exercises("DiceCoefLoss")
def test_dice_coef_loss(write):
    def dice(a, b):
        shares = []
        for x, y in zip(a.reshape(3, 8), b, strict=True):
            shares.append((2 * (x * y).sum() + 0.5) / ((x**2).sum() + (y**2).sum() + 0.5))
        return 1 - np.mean(shares)

    layer = 'type: "DiceCoefLoss" dice_coef_loss_param { smooth: 0.5 }'
    check(write, layer, dice, draw(3, 2, 4, low=0), draw(3, 8, low=0), wrt=(0, 1))
    assert "the same number of values" in layer_error(write, layer, (3, 2), (3, 3)).expected


@exercises("SigmoidCrossEntropyBalanceLoss")
def test_sigmoid_cross_entropy_balance_loss(write):
    def balanced(x, targets):
        loss = 0
        for scores, wanted in zip(x, targets, strict=True):
            ones, zeros = (wanted == 1).sum(), (wanted == 0).sum()
            for score, target in zip(scores.ravel(), wanted.ravel(), strict=True):
                if target in (0, 1):
                    probability = 1 / (1 + math.exp(-score))
                    weight = (zeros if target else ones) / (ones + zeros)
                    loss -= weight * math.log(probability if target else 1 - probability)
        return loss / len(x)

    targets = np.array([[[0, 1, 0], [0, 0, 2]], [[1, 1, 0], [0, 1, 1]], [[0, 0, 0], [0, 0, 0]]], float)
    check(write, 'type: "SigmoidCrossEntropyBalanceLoss"', balanced, draw(3, 2, 3, low=-3, high=3), targets)
    nothing = check(write, 'type: "SigmoidCrossEntropyBalanceLoss"', lambda x, t: 0.0, draw(1, 2), np.full((1, 2), 2.0))
    assert not nothing.blobs["x0"].diff.any()


# ---- FlowNet


@pytest.mark.parametrize("name", ["L1Loss", "AbsLoss"])
@exercises("L1Loss", "AbsLoss", chosen_by="name")
def test_l1_loss_divides_by_the_batch(write, name):
    check(write, f'type: "{name}"', lambda a, b: np.abs(a - b.reshape(a.shape)).sum() / 2, draw(2, 3, 2), draw(2, 6), wrt=(0, 1))


def test_l1_loss_takes_bottoms_of_equal_count(write):
    assert "same number of values" in layer_error(write, 'type: "L1Loss"', (2, 3), (2, 4)).expected
    assert "4 axes" in layer_error(write, 'type: "L1Loss" l1_loss_param { }', (2, 3), (2, 3)).expected


@pytest.mark.parametrize("entries", [False, True])
@pytest.mark.parametrize("form", ["", "l2_per_location: true", "l2_per_location: true l2_prescale_by_channels: true"])
@exercises("L1Loss")
def test_l1_loss_of_flownet_leaves_out_nan_and_a_plateau(write, form, entries):
    def loss(a, b):
        difference = a - b
        counted = ~np.isnan(difference)
        divisor = counted.sum() / 2 if entries else 2
        total = 0
        for n, h, w in np.ndindex(2, 2, 3):
            values = [d for d in difference[n, :, h, w] if not math.isnan(d)]
            if form:
                squares = sum(d * d for d in values) / (2 if "prescale" in form else 1)
                total += math.sqrt((squares if squares >= 0.5**2 else 0) + 0.01)
            else:
                total += sum(abs(d) for d in values if abs(d) >= 0.5)
        return total / divisor

    a, b = draw(2, 2, 2, 3), draw(2, 2, 2, 3)
    b[0, 1, 1, 2] = b[1, 0, 0, 0] = b[1, 1, 0, 0] = math.nan
    settings = f"{form} plateau: 0.5 {'normalize_by_num_entries: true' if entries else ''}"
    net = check(write, f'type: "L1Loss" l1_loss_param {{ {settings} }}', loss, a, b)
    assert bool(net.layers[-1].batch_dependence()) == entries
    check(write, f'type: "L1Loss" l1_loss_param {{ {settings} }}', lambda a: loss(a, 0), draw(2, 2, 2, 3))


@pytest.mark.parametrize("operation", ["ADD", "SUBTRACT"])
@exercises("Mean")
def test_mean_of_values(write, operation):
    def mean(*bottoms):
        tops = []
        for x in bottoms:
            y = np.zeros_like(x)
            for n, c, h, w in np.ndindex(x.shape):
                value = [0.25, -0.5][c % 2] * (1 if operation == "ADD" else -1)
                y[n, c, h, w] = 2 * (0.5 * x[n, c, h, w] + 3 * value)
            tops.append(y)
        return tuple(tops)

    scales = "mean_scale: 3 input_scale: 0.5 output_scale: 2"
    layer = f'type: "Mean" mean_param {{ operation: {operation} value: 0.25 value: -0.5 {scales} }}'
    check(write, layer, mean, draw(2, 4, 2, 3), draw(1, 2, 3, 3))


@exercises("Mean")
def test_mean_of_a_file(write, tmp_path):
    values = draw(1, 2, 2, 3)
    (tmp_path / "mean.binaryproto").write_bytes(caffe.io.array_to_blobproto(values).SerializeToString())
    layer = f'type: "Mean" mean_param {{ operation: SUBTRACT file: "{tmp_path}/mean.binaryproto" }}'
    check(write, layer, lambda x: x - np.tile(values, (1, 2, 1, 1)), draw(2, 4, 2, 3))
    assert layer_error(write, layer, (2, 4, 2, 2)).found == "a mean of shape (2, 2, 3) for a bottom of shape (2, 4, 2, 2)"


def test_mean_says_what_lacks(write):
    assert layer_error(write, 'type: "Mean" mean_param { value: 1 }', (1, 2, 3, 3)).found == "no operation"
    assert layer_error(write, 'type: "Mean" mean_param { operation: ADD }', (1, 2, 3, 3)).found == "neither values nor a file"
    both = 'type: "Mean" mean_param { operation: ADD value: 1 file: "x" }'
    assert layer_error(write, both, (1, 2, 3, 3)).found == "values and a file"
    assert (
        layer_error(write, 'type: "Mean" mean_param { operation: ADD value: 1 }', (1, 2, 3, 3), tops=2).found
        == "1 bottoms and 2 tops"
    )


@pytest.mark.parametrize("like", [True, False])
@exercises("Downsample")
def test_downsample_weights_by_distance_and_leaves_out_nan(write, like):
    def downsample(x, *_):
        y = np.zeros((*x.shape[:2], 3, 2))
        for n, c, i, j in np.ndindex(y.shape):
            scales = [(x.shape[2] - 1) / 2, (x.shape[3] - 1) / 1]
            total = used = left_out = 0
            for h, w in np.ndindex(x.shape[2:]):
                weight = max(0, 1 - abs(h - i * scales[0]) / scales[0]) * max(0, 1 - abs(w - j * scales[1]) / scales[1])
                value = x[n, c, h, w]
                if math.isnan(value):
                    left_out += weight
                else:
                    total, used = total + weight * value, used + weight
            y[n, c, i, j] = total / used if left_out <= used / 2 else math.nan
        return y

    x = draw(2, 2, 6, 5)
    x[0, 0, 2:, 2:] = math.nan
    x[1, 1, 0, 1] = math.nan
    settings = "" if like else "downsample_param { top_height: 3 top_width: 2 }"
    net = check(write, f'type: "Downsample" {settings}', downsample, x, *[draw(1, 1, 3, 2)] * like, wrt=())
    assert 0 < np.isnan(net.blobs["y0"].data).sum() < 6


@exercises("Downsample")
def test_downsample_to_the_same_size_copies(write):
    check(write, 'type: "Downsample"', lambda x, _: x, draw(1, 2, 3, 4), draw(1, 1, 3, 4), wrt=())
    error = layer_error(write, 'type: "Downsample" downsample_param { top_height: 4 top_width: 4 }', (1, 2, 3, 4))
    assert error.found == "a bottom of shape (1, 2, 3, 4) to be made 4×4"
    assert "at least 2" in layer_error(write, 'type: "Downsample"', (1, 2, 3, 4), (1, 2, 1, 4)).expected


def correlate(a, b, kernel, reach, stride_1, stride_2, pad, subtract):
    radius, half = reach // stride_2, kernel // 2
    a, b = (np.pad(x, ((0, 0), (0, 0), (pad, pad), (pad, pad))) for x in (a, b))
    border = reach + half
    rows, columns = (math.ceil((extent - 2 * border) / stride_1) for extent in a.shape[2:])
    grid = 2 * radius + 1
    y = np.zeros((a.shape[0], grid * grid, rows, columns))
    for n, channel, i, j in np.ndindex(y.shape):
        down, right = ((step - radius) * stride_2 for step in divmod(channel, grid))
        row, column = border + i * stride_1, border + j * stride_1
        total = 0
        for c, di, dj in np.ndindex(a.shape[1], kernel, kernel):
            one = a[n, c, row + di - half, column + dj - half]
            other = b[n, c, row + down + di - half, column + right + dj - half]
            total += abs(one - other) if subtract else one * other
        y[n, channel, i, j] = total / (kernel * kernel * a.shape[1])
    return y


@pytest.mark.parametrize(
    ("kernel", "reach", "stride_1", "stride_2", "pad", "subtract"),
    [(1, 2, 1, 2, 2, False), (3, 2, 2, 1, 2, False), (1, 3, 2, 2, 3, True), (3, 1, 1, 1, 1, True)],
)
@exercises("Correlation")
def test_correlation(write, kernel, reach, stride_1, stride_2, pad, subtract):
    layer = (
        f'type: "Correlation" correlation_param {{ kernel_size: {kernel} max_displacement: {reach} stride_1: {stride_1} '
        f"stride_2: {stride_2} pad: {pad} correlation_type: {'SUBTRACT' if subtract else 'MULTIPLY'} }}"
    )
    settings = (kernel, reach, stride_1, stride_2, pad, subtract)
    check(write, layer, lambda a, b: correlate(a, b, *settings), draw(1, 2, 4, 5), draw(1, 2, 4, 5), wrt=(0, 1))


def test_correlation_says_what_it_takes(write):
    layer = 'type: "Correlation" correlation_param { kernel_size: %d max_displacement: 2 %s }'
    shape = (1, 2, 4, 4)
    assert layer_error(write, layer % (2, ""), shape, shape).found == "kernel_size 2, stride_1 1, stride_2 1"
    assert layer_error(write, layer % (1, "stride_2: 0"), shape, shape).found == "kernel_size 1, stride_1 1, stride_2 0"
    assert "a border of 4 pixels" in layer_error(write, layer % (1, ""), shape, shape).expected
    assert "same shape" in layer_error(write, layer % (1, "pad: 2"), shape, (1, 2, 4, 5)).expected
    unset = 'type: "Correlation" correlation_param { kernel_size: 1 }'
    assert layer_error(write, unset, shape, shape).expected == "both must be given"


@pytest.mark.parametrize("fill", ["ZERO", "NOT_A_NUMBER"])
@exercises("FlowWarp")
def test_flow_warp(write, fill):
    def warp(image, flow):
        y = np.full_like(image, 0 if fill == "ZERO" else math.nan)
        height, width = image.shape[2:]
        for n, i, j in np.ndindex(image.shape[0], height, width):
            row, column = i + flow[n, 1, i, j], j + flow[n, 0, i, j]
            if 0 <= row < height and 0 <= column < width:
                y[n, :, i, j] = 0
                for di, dj in np.ndindex(2, 2):
                    weight = (1 - abs(row - int(row) - di)) * (1 - abs(column - int(column) - dj))
                    y[n, :, i, j] += weight * image[n, :, min(int(row) + di, height - 1), min(int(column) + dj, width - 1)]
        return y

    image, flow = draw(2, 2, 3, 4), draw(2, 2, 3, 4, low=-1.5, high=1.5)
    flow[0, :, 1, 1] = 0, math.nan
    layer = f'type: "FlowWarp" flow_warp_param {{ fill_value: {fill} }}'
    if fill == "ZERO":
        flow[0, 1, 1, 1] = 9
        check(write, layer, warp, image, flow, wrt=(0, 1))
    else:
        net = check(write, layer, warp, image, flow, wrt=())
        assert 0 < np.isnan(net.blobs["y0"].data).sum() < net.blobs["y0"].data.size
        assert not np.isnan(net.blobs["x0"].diff).any()
    assert "a flow of shape (2, 3, 3, 4)" in layer_error(write, layer, (2, 2, 3, 4), (2, 3, 3, 4)).found


# ---- margins


@exercises("LabelSpecificAdd")
def test_label_specific_add_moves_the_label_in_training(write):
    labels = np.array([1, 0, 2])

    def add(x, _):
        y = x.copy()
        for n, label in enumerate(labels):
            if x[n, label] > 0.35:
                y[n, label] -= 0.35
        return y, np.array([-0.35])

    x = draw(3, 3)
    x[[0, 1, 2], labels] = 0.8, 0.1, 0.5
    layer = 'type: "LabelSpecificAdd" label_specific_add_param { bias: -0.35 }'
    check(write, layer, add, x, labels)
    check(write, layer, lambda x, _: (x, np.zeros(1)), x, labels, phase=caffe.TEST)
    net = make_net(write, layer, [(3, 3), (3,)])
    net.blobs["x1"].data[...] = 3
    with pytest.raises(caffe.LayerError) as error:
        net.forward()
    assert error.value.found == "label 3"


@exercises("LabelSpecificAdd")
def test_label_specific_add_anneals_its_bias(write):
    settings = "bias_base: -0.5 bias_gamma: -0.1 bias_power: 2 bias_min: -1 bias_max: 0 iteration: 1"
    layer = f'type: "LabelSpecificAdd" label_specific_add_param {{ {settings} }}'
    wanted = [max(-0.5 + (1 - 0.1 * step) ** 2 - 1, -1) for step in range(1, 5)]
    net = make_net(write, layer, [(1, 2), (1,)], tops=2)
    np.testing.assert_allclose([float(net.forward()["y1"][0]) for _ in range(4)], wanted, rtol=1e-5)
    assert wanted[-1] == -1


MARGIN = 'type: "MarginInnerProduct" margin_inner_product_param { num_output: 3 type: %s base: 4 gamma: 0.5 power: 1 %s }'
TYPES = ["SINGLE", "DOUBLE", "TRIPLE", "QUADRUPLE"]


def angular(x, weight, labels, multiple, balance):
    """SphereFace's scores, by angles."""
    y = x @ weight.T
    for n, label in enumerate(labels):
        norm = math.sqrt((x[n] ** 2).sum())
        angle = math.acos(y[n, label] / norm)
        k = int(multiple * angle / math.pi)
        psi = (-1) ** k * math.cos(multiple * angle) - 2 * k
        y[n, label] = (norm * psi + balance * y[n, label]) / (1 + balance)
    return y


@pytest.mark.parametrize("name", TYPES)
@exercises("MarginInnerProduct")
def test_margin_inner_product_multiplies_the_angle_of_the_label(write, name):
    """At angles in each of the ψ's parts. The gradient is the fork's, from the derivatives by cos θ."""
    multiple = TYPES.index(name) + 1
    x, weight, labels = draw(9, 2), draw(3, 2), np.arange(9) % 3
    weight /= np.sqrt((weight**2).sum(1, keepdims=True))
    for n in range(9):
        turn = math.atan2(*weight[labels[n]][::-1]) + (n + 0.5) / 9 * math.pi
        x[n] = (1 + n / 9) * np.array([math.cos(turn), math.sin(turn)])
    balance = 4 / (1 + 0.5)  # at the first pass
    reference = lambda x, _, weight: (angular(x, weight, labels, multiple, balance), np.array([balance]))  # noqa: E731
    net = check(write, MARGIN % (name, ""), reference, x, labels, params=(weight,), wrt=(), learned=())
    x, weight = x.astype(np.float32).astype(float), net.params["layer"][0].data.astype(float)
    direction = net.blobs["y0"].diff.astype(float)
    np.testing.assert_allclose(net.params["layer"][0].diff, direction.T @ x, rtol=1e-4, atol=1e-5)
    expected = np.zeros_like(x)
    for n, c in np.ndindex(direction.shape):
        if c != labels[n] or multiple == 1:
            expected[n] += direction[n, c] * weight[c]
            continue
        norm = math.sqrt((x[n] ** 2).sum())
        cosine = x[n] @ weight[c] / norm
        k = int(multiple * math.acos(cosine) / math.pi)

        def psi(cosine, k=k):
            return (-1) ** k * math.cos(multiple * math.acos(cosine)) - 2 * k

        slope = (psi(cosine + 1e-6) - psi(cosine - 1e-6)) / 2e-6
        of_weight, of_x = slope, (psi(cosine) - slope * cosine) / norm
        length = math.hypot(of_weight, of_x)
        towards = (of_weight * weight[c] + of_x * x[n]) / length
        expected[n] += direction[n, c] * (towards + balance * weight[c]) / (1 + balance)
    np.testing.assert_allclose(net.blobs["x0"].diff, expected, rtol=1e-3, atol=1e-4)


@exercises("MarginInnerProduct")
def test_margin_inner_product_scales_its_weights_and_anneals_lambda(write):
    layer = MARGIN % ("QUADRUPLE", 'lambda_min: 1.2 iteration: 2 weight_filler { type: "gaussian" std: 3 }')
    net = make_net(write, layer, [(2, 2, 2), (2,)], tops=2)
    net.blobs["x0"].data[...] = draw(2, 2, 2)
    found = [float(net.forward()["y1"][0]) for _ in range(3)]
    np.testing.assert_allclose(found, [4 / (1 + 0.5 * 3), 4 / (1 + 0.5 * 4), 1.2], rtol=1e-6)
    assert net.params["layer"][0].data.shape == (3, 4)
    np.testing.assert_allclose((net.params["layer"][0].data ** 2).sum(1), 1, rtol=1e-5)
    state = caffe_pb2.LayerState()
    net.layers[-1].keep(state)
    assert state.passes == 5
    net.blobs["x1"].data[...] = 3
    with pytest.raises(caffe.LayerError) as error:
        net.forward()
    assert error.value.expected == "num_output is 3: labels go from 0 to 2"
    assert layer_error(write, layer, (2, 4), (3,), tops=2).found == "labels of shape (3,) for a bottom of shape (2, 4)"
