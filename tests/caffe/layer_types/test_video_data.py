"""VideoData of C3D 1.0, C3D 1.1 and temporal segment networks, from real video files and folders of frames."""

from pathlib import Path

import cv2
import numpy as np
import pytest

import caffe
from caffe.proto import caffe_pb2
from tests.caffe.layer_checks import exercises

FRAMES = 30


@pytest.fixture(autouse=True)
def _folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    caffe.set_random_seed(5)


def frame(number, video=0, height=12, width=16):
    """A frame that tells its number by its gray value, and left from right by a bar."""
    image = np.full((height, width, 3), 8 * number, np.uint8)
    image[:, : 2 + video] = 255
    return image


def folders(count=2, pattern="{:06}.jpg", frames=FRAMES):
    for video in range(count):
        Path(f"video{video}").mkdir(exist_ok=True)
        for number in range(1, frames + 1):
            cv2.imwrite(f"video{video}/" + pattern.format(number), frame(number, video))


def movie(path="movie.avi", count=FRAMES):
    writer = cv2.VideoWriter(path, cv2.VideoWriter_fourcc(*"MJPG"), 25, (16, 12))
    for number in range(count):
        writer.write(frame(number))
    writer.release()


def net_of(write, lines, settings, transform="", phase=caffe.TRAIN):
    write("list.txt", "\n".join(lines) + "\n")
    param = f'video_data_param {{ source: "list.txt" {settings} }} transform_param {{ {transform} }}'
    return caffe.Net(write("net.prototxt", f'layer {{ name: "v" type: "VideoData" top: "x" top: "y" {param} }}'), phase)


def numbers(clip):
    """Numbers of the frames of a clip, C × L × H × W, from the gray values at the right."""
    return np.rint(clip[0, :, :, -3:].mean((1, 2)) / 8).astype(int).tolist()


# ---- C3D


@exercises("VideoData")
def test_a_clip_of_a_folder_starts_at_its_frame(write):
    folders()
    net = net_of(write, ["video0 3 7", "video1 5 9"], "batch_size: 2 new_length: 4 use_image: true sampling_rate: 2")
    assert net.blobs["x"].data.shape == (2, 3, 4, 12, 16)
    net.forward()
    clips = net.blobs["x"].data
    assert [numbers(clip) for clip in clips] == [[3, 5, 7, 9], [5, 7, 9, 11]]
    for clip, (video, start) in zip(clips, ((0, 3), (1, 5)), strict=True):
        images = [cv2.imread(f"video{video}/{start + 2 * index:06}.jpg") for index in range(4)]
        np.testing.assert_array_equal(clip, np.stack(images).transpose(3, 0, 1, 2))
    assert net.blobs["y"].data.tolist() == [7, 9]
    net.close()


@exercises("VideoData")
def test_a_clip_of_a_video_file(write):
    movie()
    net = net_of(write, ["movie.avi 10 1"], "new_length: 3 new_height: 24 new_width: 32")
    net.forward()
    assert net.blobs["x"].data.shape == (1, 3, 3, 24, 32)
    assert [round(float(value) / 8) for value in net.blobs["x"].data[0, 0, :, 12, 24]] == [10, 11, 12]
    net.close()


@pytest.mark.parametrize("is_file", [True, False])
@exercises("VideoData")
def test_jittered_clips_start_anywhere(write, is_file):
    movie()
    folders(1)
    line, settings = ("movie.avi 4", "") if is_file else (f"video0 {FRAMES} 4", "use_image: true")
    net = net_of(write, [line], f"new_length: 5 use_temporal_jitter: true {settings}")
    assert net.layers[0].batch_dependence() == "starts clips at random"
    seen = set()
    for _ in range(250):
        net.forward()
        first, *others = numbers(net.blobs["x"].data[0])
        assert others == [first + step for step in range(1, 5)]
        seen.add(first)
    assert seen == (set(range(26)) if is_file else set(range(1, 27)))
    net.close()


@exercises("VideoData")
def test_the_sampling_rate_is_drawn(write):
    folders(1)
    net = net_of(write, ["video0 2 0"], "new_length: 3 use_image: true use_sampling_rate_jitter: true max_sampling_rate: 3")
    seen = set()
    for _ in range(40):
        net.forward()
        seen.add(tuple(numbers(net.blobs["x"].data[0])))
    assert seen == {(2, 3, 4), (2, 4, 6), (2, 5, 8)}
    net.close()


@exercises("VideoData")
def test_several_labels_are_marks(write):
    folders()
    settings = "batch_size: 2 use_image: true use_multiple_label: true num_of_labels: 4"
    net = net_of(write, ["video0 1 0,3", "video1 1 2"], settings)
    assert net.forward()["y"].tolist() == [[1, 0, 0, 1], [0, 0, 1, 0]]
    net.close()


@exercises("VideoData")
def test_frames_of_a_clip_are_cropped_and_mirrored_alike(write, tmp_path):
    folders(1)
    mean = np.random.default_rng(0).uniform(0, 99, (1, 3, 2, 12, 16)).astype(np.float32)
    blob = caffe_pb2.BlobProto(shape=caffe_pb2.BlobShape(dim=mean.shape), data=mean.ravel())
    (tmp_path / "mean.binaryproto").write_bytes(blob.SerializeToString())
    transform = 'mean_file: "mean.binaryproto" crop_size: 10 mirror: true'
    net = net_of(write, ["video0 1 0"], "new_length: 2 use_image: true", transform, caffe.TEST)
    images = np.stack([cv2.imread(f"video0/{number:06}.jpg") for number in (1, 2)]).transpose(3, 0, 1, 2)
    centre = (images - mean[0])[..., 1:11, 3:13]
    sides = set()
    for _ in range(20):
        net.forward()
        values = net.blobs["x"].data[0]
        mirrored = not np.allclose(values, centre, rtol=1e-6)
        np.testing.assert_allclose(values, centre[..., ::-1] if mirrored else centre, rtol=1e-6)
        sides.add(mirrored)
    assert sides == {True, False}
    net.close()


@exercises("VideoData")
def test_a_mean_value_is_that_of_a_channel_of_all_frames(write):
    folders(1)
    net = net_of(write, ["video0 1 0"], "new_length: 2 use_image: true", "mean_value: 1 mean_value: 2 mean_value: 3 scale: 0.5")
    net.forward()
    images = np.stack([cv2.imread(f"video0/{number:06}.jpg") for number in (1, 2)]).transpose(3, 0, 1, 2).astype(float)
    np.testing.assert_allclose(net.blobs["x"].data[0], (images - np.array([1, 2, 3]).reshape(3, 1, 1, 1)) / 2)
    net.close()


def test_a_resumed_layer_goes_on_with_its_clips(write):
    folders()
    lines = [f"video{video} {FRAMES} {video}" for video in range(2)]
    settings = "batch_size: 1 new_length: 5 use_temporal_jitter: true use_image: true shuffle: true"
    net, other = (net_of(write, lines, settings, "crop_size: 8 mirror: true") for _ in range(2))
    for _ in range(5):
        net.forward()
    state = caffe_pb2.LayerState()
    net.layers[0].keep(state)
    other.layers[0].resume(caffe_pb2.LayerState.FromString(state.SerializeToString()))
    for _ in range(8):
        np.testing.assert_array_equal(net.forward()["y"], other.forward()["y"])
        np.testing.assert_array_equal(net.blobs["x"].data, other.blobs["x"].data)
    for each in (net, other):
        each.close()


@exercises("VideoData")
def test_a_net_of_c3d_1_0_is_upgraded(write):
    movie()
    write("list.txt", "movie.avi 10 1\n")
    text = """
        layers { name: "data" type: VIDEO_DATA top: "data" top: "label" image_data_param { source: "list.txt" use_image: false
            mean_value: 2 batch_size: 1 crop_size: 8 mirror: false show_data: 0 new_height: 12 new_width: 16 new_length: 4
            shuffle: false } }
        layers { name: "conv1a" type: CONVOLUTION3D bottom: "data" top: "conv1a" blobs_lr: 1 blobs_lr: 2
            convolution_param { num_output: 2 kernel_size: 3 kernel_depth: 3 pad: 1 temporal_pad: 1
                weight_filler { type: "gaussian" std: 0.01 } bias_filler { type: "constant" value: 0.5 } } }
        layers { name: "pool1" type: POOLING3D bottom: "conv1a" top: "pool1"
            pooling_param { pool: MAX kernel_size: 2 kernel_depth: 1 stride: 2 temporal_stride: 1 } }"""
    net = caffe.Net(write("net.prototxt", text), caffe.TEST)
    net.forward()
    assert [layer.type for layer in net.layers] == ["VideoData", "Convolution3D", "Pooling3D"]
    assert numbers(net.blobs["data"].data[0] + 2) == [10, 11, 12, 13]
    assert net.blobs["data"].data.shape == (1, 3, 4, 8, 8)
    assert net.params["conv1a"][0].data.shape == (2, 3, 3, 3, 3)
    assert (net.params["conv1a"][1].data == 0.5).all()
    assert net.blobs["pool1"].data.shape == (1, 2, 4, 4, 4)
    net.close()


def test_a_field_that_c3d_1_1_has_not_is_refused(write):
    text = 'layers { name: "a" type: CONVOLUTION3D bottom: "x" top: "y" convolution_param { kernel_size: 3 dilation: 2 } }'
    with pytest.raises(caffe.Error) as error:
        caffe.Net(write("net.prototxt", text), caffe.TEST)
    assert error.value.found == 'convolution_param.dilation in layer "a"'


def message(field, content):
    """A field of Protocol Buffers that holds a message, a string or packed numbers."""
    return varint(field << 3 | 2) + varint(len(content)) + content


def varint(value):
    return bytes([value]) if value < 128 else bytes([value & 127 | 128]) + varint(value >> 7)


def c3d_blob(values):
    """A BlobProto of C3D 1.0: num, channels, length, height, width, data."""
    axes = (1,) * (5 - values.ndim) + values.shape
    return b"".join(varint(field << 3) + varint(axis) for field, axis in enumerate(axes, 1)) + message(
        6, values.astype("<f4").tobytes()
    )


def test_weights_of_c3d_1_0_are_read(write, tmp_path):
    text = """input: "x" input_shape { dim: 1 dim: 2 dim: 3 dim: 4 dim: 4 }
        layer { name: "conv" type: "Convolution3D" bottom: "x" top: "y"
            convolution3d_param { num_output: 3 kernel_size: 3 kernel_depth: 2 } }
        layer { name: "fc" type: "InnerProduct" bottom: "y" top: "z" inner_product_param { num_output: 2 } }"""
    net = caffe.Net(write("net.prototxt", text), caffe.TEST)
    generator = np.random.default_rng(0)
    stored = {name: [generator.normal(size=blob.data.shape) for blob in blobs] for name, blobs in net.params.items()}
    layers = [
        message(2, message(4, name.encode()) + varint(5 << 3) + varint(30) + b"".join(message(6, c3d_blob(b)) for b in blobs))
        for name, blobs in stored.items()
    ]
    (tmp_path / "c3d.caffemodel").write_bytes(message(1, b"c3d") + b"".join(layers))
    net.copy_from(str(tmp_path / "c3d.caffemodel"))
    for name, blobs in stored.items():
        for blob, values in zip(net.params[name], blobs, strict=True):
            np.testing.assert_array_equal(blob.data, values.astype(np.float32))
    broken = layers[0].replace(varint(5 << 3) + varint(3), varint(5 << 3) + varint(4), 1)
    (tmp_path / "c3d.caffemodel").write_bytes(broken)
    with pytest.raises(caffe.Error, match="432 bytes for shape"):
        net.copy_from(str(tmp_path / "c3d.caffemodel"))


# ---- temporal segment networks


@pytest.mark.parametrize("phase", [caffe.TRAIN, caffe.TEST])
@exercises("VideoData")
def test_each_segment_gives_a_clip(write, phase):
    folders(1, "img_{:05}.jpg")
    settings = 'modality: RGB new_length: 2 num_segments: 3 name_pattern: "img_%05d.jpg"'
    net = net_of(write, [f"video0 {FRAMES} 4"], settings, phase=phase)
    assert net.blobs["x"].data.shape == (1, 18, 12, 16)
    seen = [set() for _ in range(3)]
    for _ in range(200):
        net.forward()
        found = np.rint(net.blobs["x"].data[0, ::3, :, 8:12].mean((1, 2)) / 8).astype(int)
        for segment, (first, second) in enumerate(found.reshape(3, 2)):
            assert second == first + 1
            seen[segment].add(int(first))
    if phase == caffe.TRAIN:
        assert seen == [set(range(1, 10)), set(range(11, 20)), set(range(21, 30))]
    else:
        assert seen == [{5}, {15}, {25}]  # of 9 places the middle one
    net.close()


@exercises("VideoData")
def test_flow_is_read_in_two_directions_and_negated_in_mirrored_clips(write):
    Path("video0").mkdir()
    flow = np.random.default_rng(0).integers(0, 256, (2, 3, 12, 16)).astype(np.uint8)
    for axis, of_axis in zip("xy", flow, strict=True):
        for number, image in enumerate(of_axis, 1):
            cv2.imwrite(f"video0/flow_{axis}_{number:04}.png", image)
    settings = 'new_length: 3 modality: FLOW name_pattern: "flow_%c_%04d.png"'
    transform = "mean_value: 100 mirror: true is_flow: true"
    net = net_of(write, ["video0 3 1"], settings, transform, caffe.TEST)
    assert net.blobs["x"].data.shape == (1, 6, 12, 16)
    straight = flow.swapaxes(0, 1).reshape(6, 12, 16).astype(float)
    mirrored = straight[:, :, ::-1].copy()
    mirrored[::2] = 255 - mirrored[::2]
    sides = set()
    for _ in range(20):
        values = net.forward()["x"][0] + 100
        is_mirrored = not np.allclose(values, straight)
        np.testing.assert_allclose(values, mirrored if is_mirrored else straight)
        sides.add(is_mirrored)
    assert sides == {True, False}
    net.close()


@exercises("VideoData")
def test_mean_values_are_repeated_for_each_frame_of_a_segment(write):
    folders(1, "img_{:05}.jpg")
    settings = 'modality: RGB new_length: 2 num_segments: 1 name_pattern: "img_%05d.jpg"'
    net = net_of(write, ["video0 2 4"], settings, "mean_value: 1 mean_value: 2 mean_value: 3", caffe.TEST)
    net.forward()
    images = [cv2.imread(f"video0/img_{number:05}.jpg").transpose(2, 0, 1) for number in (1, 2)]
    expected = np.concatenate(images) - np.tile([1, 2, 3], 2).reshape(6, 1, 1)
    np.testing.assert_allclose(net.blobs["x"].data[0], expected)
    net.close()


# ---- errors


@pytest.mark.parametrize(
    ("line", "settings", "found"),
    [
        ("video0 1", "use_image: true", '"video0 1"'),
        ("video0 1 2,3", "use_image: true", '"video0 1 2,3"'),
        ("movie.avi -1 2", "new_length: 3", '"movie.avi -1 2"'),
        ("video0 1 2", "use_image: true new_length: 0", "new_length is not given"),
        ("video0 1 5", "use_image: true use_multiple_label: true num_of_labels: 5", "labels 5"),
        ("video0 4 1", "use_image: true new_length: 5 use_temporal_jitter: true", "4 frames"),
        ("video0 29 1", "use_image: true new_length: 5", "no such image"),
        ("movie.avi 28 1", "new_length: 3", "30 frames"),
        ("absent.avi 28 1", "new_length: 3", "not a video that OpenCV can read"),
        ("video0 30 1", 'modality: RGB name_pattern: "frame.jpg"', 'name_pattern "frame.jpg"'),
    ],
)
def test_what_cannot_be_read_is_refused(write, line, settings, found):
    folders(1)
    movie()
    with pytest.raises(caffe.Error) as error:
        net_of(write, [line], settings)
    assert error.value.found == found


def test_an_error_has_the_number_of_its_line_in_a_list_with_empty_lines(write):
    folders(1)
    with pytest.raises(caffe.Error) as error:
        net_of(write, ["", "video0 1 1", "", "video0 one 1"], "use_image: true new_length: 2")
    assert error.value.where == "list.txt:4"
