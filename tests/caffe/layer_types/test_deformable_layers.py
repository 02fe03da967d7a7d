"""Convolutions and poolings at interpolated positions, compared with loops over each weight or bin, as the forks define them."""

import math

import numpy as np
import pytest

from tests.caffe.layer_checks import check, draw, exercises, layer_error, make_net, reseed, rng


@pytest.fixture(autouse=True)
def _reseed(request):
    reseed(request.node.name)


def interpolate(image, row, column):
    """Value (C,) of an image (C, H, W), continued by its border."""
    height, width = image.shape[1:]
    row, column = min(max(row, 0), height - 1), min(max(column, 0), width - 1)
    up, left = math.floor(row), math.floor(column)
    down, right = min(up + 1, height - 1), min(left + 1, width - 1)
    b, a = row - up, column - left
    above = (1 - a) * image[:, up, left] + a * image[:, up, right]
    return (1 - b) * above + b * ((1 - a) * image[:, down, left] + a * image[:, down, right])


def continued_by_zeros(image, row, column):
    """Value (C,) of an image (C, H, W), continued by zeros."""
    return interpolate(np.pad(image, ((0, 0), (2, 2), (2, 2))), row + 2, column + 2)


# ---- convolutions


def convolution(x, offsets, masks, weight, bias, geometry, groups, deformable, modulated):
    stride, pad, dilation = geometry
    images, _, height, width = x.shape
    outputs, each, *kernel = weight.shape
    top = np.zeros((images, outputs, *offsets.shape[2:]))
    for n, i, j, u, v, d in np.ndindex(images, *top.shape[2:], *kernel, deformable):
        k = d * kernel[0] * kernel[1] + u * kernel[1] + v
        row = i * stride[0] - pad[0] + u * dilation[0] + offsets[n, 2 * k, i, j]
        column = j * stride[1] - pad[1] + v * dilation[1] + offsets[n, 2 * k + 1, i, j]
        values = np.zeros(x.shape[1])
        if modulated and -1 < row < height and -1 < column < width:
            values = continued_by_zeros(x[n], row, column) * masks[n, k, i, j]
        if not modulated and 0 <= row < height and 0 <= column < width:
            values = interpolate(x[n], row, column)
        for o, c in np.ndindex(outputs, each):
            channel = o // (outputs // groups) * each + c
            if channel // (x.shape[1] // deformable) == d:
                top[n, o, i, j] += weight[o, c, u, v] * values[channel]
    top += bias[:, None, None]
    return top


def offsets_away_from_whole_numbers(*shape):
    """Offsets up to 2 pixels, at least 0.05 from where the interpolation has no derivative."""
    return rng.integers(-2, 2, shape) + rng.uniform(0.05, 0.95, shape)


GEOMETRIES = [
    ((2, 1), "kernel_h: 2 kernel_w: 1", (1, 1), (0, 0), (1, 1), (2, 2)),
    ((2, 2), "kernel_size: 2 stride: 2 pad: 1 dilation: 2", (2, 2), (1, 1), (2, 2), (1, 2)),
    ((1, 1), "kernel_size: 1", (1, 1), (0, 0), (1, 1), (1, 1)),
]


@pytest.mark.parametrize("groups", [(1, 1), (2, 2), (1, 4)])
@pytest.mark.parametrize(("kernel", "settings", "stride", "pad", "dilation", "size"), GEOMETRIES)
@pytest.mark.parametrize("name", ["DeformableConvolution", "ModulatedDeformableConvolution"])
@exercises("DeformableConvolution", "ModulatedDeformableConvolution", chosen_by="name")
def test_deformable_convolutions_are_loops_over_their_weights(write, name, kernel, settings, stride, pad, dilation, size, groups):
    extents = [(s - 1) * t + d * (k - 1) + 1 - 2 * p for s, t, d, k, p in zip(size, stride, dilation, kernel, pad, strict=True)]
    group, deformable = groups
    count = deformable * kernel[0] * kernel[1]
    x, offsets = draw(2, 4, *extents), offsets_away_from_whole_numbers(2, 2 * count, *size)
    masks, params = draw(2, count, *size, low=0.2), [draw(2, 4 // group, *kernel), draw(2)]
    modulated = name.startswith("Modulated")
    bottoms = [x, offsets, masks] if modulated else [x, offsets]

    def reference(*arrays):
        x, offsets, *masks = arrays[: len(bottoms)]
        weight, bias = arrays[len(bottoms) :]
        mask = masks[0] if masks else None
        return convolution(x, offsets, mask, weight, bias, (stride, pad, dilation), group, deformable, modulated)

    field = "modulated_deformable_convolution_param" if modulated else "deformable_convolution_param"
    layer = f'type: "{name}" {field} {{ num_output: 2 group: {group} deformable_group: {deformable} {settings} }}'
    check(write, layer, reference, *bottoms, params=params, wrt=range(len(bottoms)))


def test_without_offsets_it_is_a_convolution(write):
    """The number of groups is that of the offsets; the blobs are a Convolution's, so that its weights are copied."""
    x, weight = draw(2, 4, 6, 5).astype(np.float32), draw(3, 4, 3, 3).astype(np.float32)
    settings = "num_output: 3 kernel_size: 3 pad: 1 bias_term: false"
    plain = make_net(write, f'type: "Convolution" convolution_param {{ {settings} }}', [x.shape])
    deformable = make_net(
        write, f'type: "DeformableConvolution" deformable_convolution_param {{ {settings} }}', [x.shape, (2, 36, 6, 5)]
    )
    for net in (plain, deformable):
        net.blobs["x0"].data[...], net.params["layer"][0].data[...] = x, weight
        net.forward()
    np.testing.assert_allclose(deformable.blobs["y0"].data, plain.blobs["y0"].data, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("settings", "shapes", "words"),
    [
        ("kernel_size: 3", [(1, 4, 5, 5), (1, 18, 3, 3)], "num_output is not given"),
        ("num_output: 2 kernel_size: 3", [(1, 4, 5, 5), (1, 18, 5, 5)], "(1, 18, 3, 3)"),
        ("num_output: 2 kernel_size: 3", [(1, 4, 5, 5), (1, 17, 3, 3)], "deformable_group 0"),
        ("num_output: 2 kernel_size: 3", [(1, 4, 5, 5), (1, 54, 3, 3)], "deformable_group 3 for 4 channels"),
        ("num_output: 2 kernel_size: 3 deformable_group: 4", [(1, 4, 5, 5), (1, 18, 3, 3)], "(1, 72, 3, 3)"),
        ("num_output: 2 kernel_size: 3 group: 3", [(1, 4, 5, 5), (1, 18, 3, 3)], "group 3 for 4 channels"),
        ("num_output: 2 kernel_size: 7", [(1, 4, 5, 5), (1, 98, 1, 1)], "the kernel must fit"),
        ("num_output: 2 kernel_size: 3 axis: 2", [(1, 4, 5, 5), (1, 18, 3, 3)], "the channels are axis 1"),
        ("num_output: 2 kernel_size: 3 stride: 0", [(1, 4, 5, 5), (1, 18, 3, 3)], "stride 0"),
    ],
)
def test_deformable_convolutions_refuse_what_does_not_fit(write, settings, shapes, words):
    layer = f'type: "DeformableConvolution" deformable_convolution_param {{ {settings} }}'
    assert words in str(layer_error(write, layer, *shapes))


# ---- poolings

# Image, x1, y1, x2, y2: inside, beyond the right and lower ends, before the left one, a single pixel, of no width.
REGIONS = np.array(
    [[0, 2.3, 1.4, 9.1, 8.2], [1, 4.2, 6.7, 30.1, 28.4], [1, -9.3, 2.2, 3.4, 7.7], [0, 5, 5, 5, 5], [1, 8, 3, 6, 9.0]]
)


def c_round(value):
    return math.copysign(math.floor(abs(value) + 0.5), value)


@pytest.mark.parametrize(("classes", "pooled", "parts"), [(0, 2, 0), (1, 3, 2), (2, 2, 0)])
@exercises("DeformablePSROIPooling")
def test_deformable_psroi_pooling_is_loops_over_its_samples(write, classes, pooled, parts):
    outputs, group, samples, scale, std = 2, 2, 2, 0.43, 0.3
    sides = parts or pooled
    x, offsets = draw(2, outputs * group**2, 4, 3), draw(len(REGIONS), 2 * max(classes, 1), sides, sides)

    def reference(x, regions, *offsets):
        height, width = x.shape[2:]
        top = np.zeros((len(regions), outputs, pooled, pooled))
        for r, o, i, j in np.ndindex(top.shape):
            image, *corners = regions[r]
            x1, y1 = (c_round(corner) * scale - 0.5 for corner in corners[:2])
            x2, y2 = ((c_round(corner) + 1) * scale - 0.5 for corner in corners[2:])
            wide, tall = max(x2 - x1, 0.1), max(y2 - y1, 0.1)
            column, row = x1 + j * wide / pooled, y1 + i * tall / pooled
            if offsets:
                k, at = o // (outputs // classes), (i * sides // pooled, j * sides // pooled)
                column += offsets[0][r, 2 * k, *at] * std * wide
                row += offsets[0][r, 2 * k + 1, *at] * std * tall
            channel = (o * group + i * group // pooled) * group + j * group // pooled
            found = []
            for s, t in np.ndindex(samples, samples):
                h, w = row + s * tall / pooled / samples, column + t * wide / pooled / samples
                if -0.5 <= h <= height - 0.5 and -0.5 <= w <= width - 0.5:
                    found.append(interpolate(x[int(image), channel : channel + 1], h, w)[0])
            top[r, o, i, j] = np.mean(found) if found else 0
        return top

    settings = f"output_dim: {outputs} group_size: {group} pooled_size: {pooled} part_size: {parts} sample_per_part: {samples}"
    settings += f" spatial_scale: {scale} trans_std: {std} no_trans: {'false' if classes else 'true'}"
    layer = f'type: "DeformablePSROIPooling" deformable_psroi_pooling_param {{ {settings} }}'
    bottoms = [x, REGIONS, offsets] if classes else [x, REGIONS]
    net = check(write, layer, reference, *bottoms, wrt=(0, 2) if classes else (0,))
    net.blobs["x1"].reshape(0, 5)
    if classes:
        net.blobs["x2"].reshape(0, *offsets.shape[1:])
    assert net.forward()["y0"].shape == (0, outputs, pooled, pooled)


DEFORMABLE_PSROI = (
    'type: "DeformablePSROIPooling" deformable_psroi_pooling_param { output_dim: 2 group_size: 2 spatial_scale: 1 %s }'
)


@pytest.mark.parametrize(
    ("settings", "shapes", "words"),
    [
        ("", [(1, 8, 5, 5), (3, 5)], "offsets are the third bottom"),
        ("no_trans: true", [(1, 8, 5, 5), (3, 5), (3, 2, 2, 2)], "offsets are the third bottom"),
        ("", [(1, 8, 5, 5), (3, 5), (3, 2, 3, 3)], "(3, 2 · classes, 2, 2)"),
        ("", [(1, 8, 5, 5), (3, 5), (3, 6, 2, 2)], "classes that divide output_dim 2"),
        ("", [(1, 9, 5, 5), (3, 5), (3, 2, 2, 2)], "9 channels"),
        ("sample_per_part: 0", [(1, 8, 5, 5), (3, 5), (3, 2, 2, 2)], "sample_per_part 0"),
    ],
)
def test_deformable_psroi_pooling_refuses_what_does_not_fit(write, settings, shapes, words):
    assert words in str(layer_error(write, DEFORMABLE_PSROI % settings, *shapes))


@pytest.mark.parametrize("ratio", [0, 2])
@pytest.mark.parametrize("size", [(6, 5), (1, 1)])
@exercises("ROIAlign")
def test_roi_align_is_the_mean_of_samples(write, ratio, size):
    scale, bins = 0.43, (2, 3)

    def reference(x, regions):
        height, width = x.shape[2:]
        top = np.zeros((len(regions), x.shape[1], *bins))
        for r, (image, *corners) in enumerate(regions):
            x1, y1, x2, y2 = (corner * scale for corner in corners)
            tall, wide = max(y2 - y1, 1) / bins[0], max(x2 - x1, 1) / bins[1]
            counts = (ratio, ratio) if ratio else (math.ceil(tall), math.ceil(wide))
            for i, j in np.ndindex(bins):
                for s, t in np.ndindex(*counts):
                    row, column = y1 + (i + (s + 0.5) / counts[0]) * tall, x1 + (j + (t + 0.5) / counts[1]) * wide
                    if -1 <= row <= height and -1 <= column <= width:
                        top[r, :, i, j] += interpolate(x[int(image)], row, column) / (counts[0] * counts[1])
        return top

    settings = f"pooled_h: 2 pooled_w: 3 spatial_scale: {scale}" + (f" sampling_ratio: {ratio}" if ratio else "")
    net = check(write, f'type: "ROIAlign" roi_align_param {{ {settings} }}', reference, draw(2, 2, *size), REGIONS)
    net.blobs["x1"].reshape(0, 5)
    assert net.forward()["y0"].shape == (0, 2, 2, 3)


@pytest.mark.parametrize("size", [(6, 5), (1, 1)])
@exercises("ROIAlign")
def test_roi_align_of_cascade_rcnn_has_the_values_at_the_corners_of_bins(write, size):
    scale, pad = 0.43, 0.2

    def reference(x, regions):
        height, width = x.shape[2:]
        top = np.zeros((len(regions), x.shape[1], 3, 4))
        for r, (image, x1, y1, x2, y2) in enumerate(regions):
            wide, tall = (x2 - x1 + 1) * pad, (y2 - y1 + 1) * pad
            left, upper, right, lower = (x1 - wide) * scale, (y1 - tall) * scale, (x2 + wide) * scale, (y2 + tall) * scale
            for i, j in np.ndindex(3, 4):
                row, column = upper - 0.5 + i * (lower - upper) / 2, left - 0.5 + j * (right - left) / 3
                inside = -0.5 <= row <= height - 0.5 and -0.5 <= column <= width - 0.5
                if inside and right > left and lower > upper:
                    top[r, :, i, j] = interpolate(x[int(image)], row, column)
        return top

    layer = f'type: "ROIAlign" roi_pooling_param {{ pooled_h: 2 pooled_w: 3 spatial_scale: {scale} pad_ratio: {pad} }}'
    check(write, layer, reference, draw(2, 2, *size), REGIONS)


def warp(x, regions, scale, bins):
    height, width = x.shape[2:]
    top = np.zeros((len(regions), x.shape[1], *bins))
    for r, (image, *corners) in enumerate(regions):
        x1, y1, x2, y2 = (c_round(corner * scale) for corner in corners)
        for i, j in np.ndindex(bins):
            row, column = y1 + i * max(y2 - y1, 0) / bins[0], x1 + j * max(x2 - x1, 0) / bins[1]
            if -0.5 <= row <= height - 0.5 and -0.5 <= column <= width - 0.5:
                top[r, :, i, j] = interpolate(x[int(image)], row, column)
    return top


@pytest.mark.parametrize("size", [(6, 5), (1, 1)])
@exercises("ROIWarping")
def test_roi_warping_is_the_values_at_the_corners_of_bins(write, size):
    layer = 'type: "ROIWarping" roi_warping_param { pooled_h: 2 pooled_w: 3 spatial_scale: 0.43 }'
    check(write, layer, lambda x, regions: warp(x, regions, 0.43, (2, 3)), draw(2, 2, *size), REGIONS)


def test_the_gradient_of_warped_regions_is_that_of_their_rounded_corners(write):
    """Of positions start + share · (end - start), shares as in a region one pixel larger, before the last row and column."""
    scale, bins = 0.43, (2, 3)
    x = draw(2, 3, 6, 5).astype(np.float32)
    net = make_net(
        write, 'type: "ROIWarping" roi_warping_param { pooled_h: 2 pooled_w: 3 spatial_scale: 0.43 }', [x.shape, REGIONS.shape]
    )
    net.blobs["x0"].data[...], net.blobs["x1"].data[...] = x, REGIONS
    net.forward()
    direction = draw(*net.blobs["y0"].shape)
    net.blobs["y0"].diff[...] = direction
    net.backward()
    wanted = np.zeros(REGIONS.shape)
    for r, (image, *corners) in enumerate(REGIONS):
        x1, y1, x2, y2 = (c_round(corner * scale) for corner in corners)
        for i, j in np.ndindex(bins):
            row, column = y1 + i * max(y2 - y1, 0) / bins[0], x1 + j * max(x2 - x1, 0) / bins[1]
            if not (-0.5 <= row <= 5.5 and -0.5 <= column <= 4.5):
                continue
            row, column = min(max(row, 0), 5), min(max(column, 0), 4)
            if math.floor(row) < 5 and math.floor(column) < 4:
                here = interpolate(x[int(image)].astype(float), row, column)
                step = 1e-4
                down = (interpolate(x[int(image)].astype(float), row + step, column) - here) / step @ direction[r, :, i, j]
                across = (interpolate(x[int(image)].astype(float), row, column + step) - here) / step @ direction[r, :, i, j]
                by_row, by_column = (row - y1) / max(y2 - y1 + 1, 1), (column - x1) / max(x2 - x1 + 1, 1)
                wanted[r, 1:] += scale * np.array(
                    [across * (1 - by_column), down * (1 - by_row), across * by_column, down * by_row]
                )
    assert np.abs(wanted).max(0)[1:].min() > 0.01
    np.testing.assert_allclose(net.blobs["x1"].diff, wanted, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("layer", "words"),
    [
        ('"ROIAlign"', "pooled_h 0"),
        ('"ROIAlign" roi_align_param { pooled_h: 2 pooled_w: 2 } roi_pooling_param { pooled_h: 2 pooled_w: 2 }', "give one"),
        ('"ROIAlign" roi_pooling_param { pooled_h: 2 }', "pooled_h 2 and pooled_w 0"),
        ('"ROIWarping" roi_warping_param { pooled_h: 2 }', "pooled_h 2 and pooled_w 0"),
    ],
)
def test_poolings_of_no_bins_are_refused(write, layer, words):
    assert words in str(layer_error(write, f"type: {layer}", (1, 2, 4, 4), (3, 5)))
    assert "regions of shape (3, 4)" in str(layer_error(write, f"type: {layer}", (1, 2, 4, 4), (3, 4)))


# ---- masks


@pytest.mark.parametrize("size", [(3, 2), (5, 7), (20, 6), (1, 1)])
@exercises("MaskResize")
def test_masks_are_resized_by_interpolation(write, size):
    def reference(x):
        height, width = x.shape[2:]
        top = np.zeros((*x.shape[:2], *size))
        for n, i, j in np.ndindex(len(x), *size):
            row, column = i * height / size[0], j * width / size[1]
            if row <= height - 0.5 and column <= width - 0.5:
                top[n, :, i, j] = interpolate(x[n], row, column)
        return top

    layer = f'type: "MaskResize" mask_resize_param {{ output_height: {size[0]} output_width: {size[1]} }}'
    check(write, layer, reference, draw(2, 2, 5, 4))


def test_masks_of_no_size_are_refused(write):
    assert "both must be at least 1" in str(layer_error(write, 'type: "MaskResize"', (3, 4, 2, 5)))
