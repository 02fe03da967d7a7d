"""Fields of data layers that forks added: orders, sizes, crops and labels, from real files."""

import cv2
import numpy as np
import pytest

import caffe
from caffe.formats.db import DatabaseWriter
from caffe.formats.lmdb_file import LMDBFile
from caffe.numerics.generator import Generator
from caffe.proto import caffe_pb2
from caffe.transforms.random_crops import FixedCrops, RandomResize
from caffe.transforms.transform import Transformer
from tests.caffe.layer_checks import exercises
from tests.conftest import needs_leveldb


@pytest.fixture(autouse=True)
def _folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    caffe.set_random_seed(3)


def net_of(write, text, phase=caffe.TRAIN):
    return caffe.Net(write("net.prototxt", text), phase)


# ---- shuffle


def database(backend, count=10):
    with DatabaseWriter("records", backend) as put:
        for number in range(count):
            datum = caffe_pb2.Datum(channels=1, height=1, width=1, data=bytes([number % 256]), label=number)
            put(f"{number:08}".encode(), datum.SerializeToString())


@pytest.mark.parametrize("backend", ["LMDB", pytest.param("LEVELDB", marks=needs_leveldb)])
def test_each_epoch_of_a_shuffled_database_has_every_record_once_in_a_new_order(write, backend):
    database(backend.lower())
    param = f'source: "records" batch_size: 5 backend: {backend} shuffle: true'
    net = net_of(write, f'layer {{ name: "d" type: "Data" top: "x" top: "y" data_param {{ {param} }} }}')
    batches = [(net.forward()["y"].copy(), net.blobs["x"].data.ravel().copy()) for _ in range(6)]
    epochs = [np.concatenate([batches[2 * epoch][0], batches[2 * epoch + 1][0]]).tolist() for epoch in range(3)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert len({*map(tuple, epochs), tuple(range(10))}) == 4
    assert all((labels == pixels).all() for labels, pixels in batches)  # each label beside its own image
    net.layers[0].seek_batch(3)
    np.testing.assert_array_equal(net.forward()["y"], batches[3][0])
    net.close()


def test_a_resumed_shuffle_goes_on_in_its_order(write, tmp_path):
    database("lmdb")
    text = """layer { name: "d" type: "Data" top: "x" top: "y"
        data_param { source: "records" batch_size: 3 backend: LMDB shuffle: true } }"""
    net, other = net_of(write, text), net_of(write, text)
    for _ in range(2):
        net.forward()
    state = caffe_pb2.LayerState()
    net.layers[0].keep(state)
    expected = [net.forward()["y"].copy() for _ in range(4)]
    other.layers[0].resume(caffe_pb2.LayerState.FromString(state.SerializeToString()))
    np.testing.assert_array_equal([other.forward()["y"].copy() for _ in range(4)], expected)
    for each in (net, other):
        each.close()


def test_records_of_an_lmdb_by_position():
    database("lmdb", 300)
    file = LMDBFile("records")
    assert [bytes(file.record(index)) for index in (0, 299, 150)] == [
        bytes(list(file.values())[index]) for index in (0, 299, 150)
    ]


# ---- sizes and crops


def transformer(phase=caffe.TRAIN, seed=0, **fields):
    return Transformer(caffe_pb2.TransformationParameter(**fields), phase, "net", Generator(seed))


def test_a_crop_of_two_extents():
    image = np.arange(30, dtype=np.uint8).reshape(1, 5, 6)
    batch = transformer(caffe.TEST, crop_height=3, crop_width=2)([image])
    assert batch.numpy().tolist() == [[[[8, 9], [14, 15], [20, 21]]]]


@pytest.mark.parametrize("fields", [{"crop_height": 3}, {"crop_size": 3, "crop_height": 3, "crop_width": 3}])
def test_a_crop_is_given_in_one_form(fields):
    with pytest.raises(caffe.Error, match="give crop_size, or both crop_height and crop_width"):
        transformer(**fields)


def resize(image, crop, seed=0, **fields):
    return RandomResize(caffe_pb2.TransformationParameter(**fields), crop, "net", Generator(seed))(image)


IMAGE = np.random.default_rng(0).integers(0, 256, (3, 40, 60)).astype(np.uint8)


def test_the_shorter_side_is_drawn_from_a_range():
    sizes = {resize(IMAGE, (8, 8), seed, img_rand_resize_lower=20, img_rand_resize_upper=22).shape[1:] for seed in range(40)}
    assert sizes == {(20, 30), (21, 32), (22, 33)}  # 21 · 60 / 40 = 31.5 is rounded up


@pytest.mark.parametrize(
    ("fields", "size"),
    [
        ({"img_rand_resize_lower": 50, "img_rand_resize_upper": 50}, (40, 60)),
        ({"img_rand_resize_lower": 50, "img_rand_resize_upper": 50, "allow_upscale": True}, (50, 75)),
        ({"img_rand_resize_lower": 10, "img_rand_resize_upper": 10}, (16, 16)),  # no smaller than the crop
        ({"vertical_stretch_lower": 0.5, "vertical_stretch_upper": 0.5}, (20, 60)),
        ({"horizontal_stretch_lower": 0.5, "horizontal_stretch_upper": 0.5}, (40, 30)),
    ],
)
def test_sizes_before_the_crop(fields, size):
    assert resize(IMAGE, (16, 16), **fields).shape[1:] == size


def test_images_become_smaller_by_the_nearest_pixel_unless_another_way_is_given():
    fields = {"img_rand_resize_lower": 20, "img_rand_resize_upper": 20}
    np.testing.assert_array_equal(resize(IMAGE, (8, 8), **fields), IMAGE[:, ::2, ::2])
    means = IMAGE.reshape(3, 20, 2, 30, 2).mean((2, 4))
    area = caffe_pb2.TransformationParameter.INTER_AREA
    np.testing.assert_allclose(resize(IMAGE, (8, 8), interpolation_algo_down=area, **fields), means, atol=0.51)


@pytest.mark.parametrize(
    ("fields", "found"),
    [
        ({"crop_size": 8, "img_rand_resize_lower": 20}, "img_rand_resize_lower 20 and img_rand_resize_upper 0"),
        ({"img_rand_resize_lower": 20, "img_rand_resize_upper": 20}, "images of random sizes and no crop"),
        ({"fix_crop": True}, "fix_crop or multi_scale and no crop"),
        ({"scale_factors": [2]}, "transform_param has scale_factors"),
    ],
)
def test_fields_that_do_not_go_together(fields, found):
    with pytest.raises(caffe.Error) as error:
        transformer(**fields)
    assert error.value.found == found


def test_images_of_random_sizes_are_cropped_and_lose_the_centre_of_the_mean(tmp_path):
    mean = np.random.default_rng(1).integers(0, 99, (3, 40, 60)).astype(np.float32)
    blob = caffe.io.array_to_blobproto(mean[None])
    (tmp_path / "mean.binaryproto").write_bytes(blob.SerializeToString())
    fields = {"crop_size": 20, "img_rand_resize_lower": 20, "img_rand_resize_upper": 20, "mean_file": "mean.binaryproto"}
    batch = transformer(caffe.TEST, **fields)([IMAGE, IMAGE]).numpy()
    expected = IMAGE[:, ::2, ::2][:, :, 5:25].astype(np.float32) - mean[:, 10:30, 20:40]
    np.testing.assert_array_equal(batch, [expected, expected])


def test_fixed_crops_are_at_corners_and_centre():
    rows, columns = np.mgrid[:12, :20]
    image = np.stack([rows, columns]).astype(np.uint8)

    def places(**fields):
        crops = FixedCrops(caffe_pb2.TransformationParameter(fix_crop=True, **fields), (4, 4), "net", Generator(0))
        return {tuple(crops(image)[:, 0, 0].tolist()) for _ in range(400)}

    corners = {(0, 0), (0, 16), (8, 0), (8, 16), (4, 8)}
    assert places() == corners
    sides = {(0, 8), (8, 8), (4, 0), (4, 16)}
    assert places(more_fix_crop=True) == corners | sides | {(2, 4), (2, 12), (6, 4), (6, 12)}


def test_crops_of_several_scales_are_resized_to_one():
    param = caffe_pb2.TransformationParameter(multi_scale=True, scale_ratios=[1, 0.5, 0.25], max_distort=1)
    crops = FixedCrops(param, (21, 21), "net", Generator(0))
    assert {crops.size(40) for _ in range(400)} == {(40, 40), (40, 21), (21, 40), (21, 21), (21, 10), (10, 21), (10, 10)}
    assert {crops(IMAGE).shape for _ in range(20)} == {(3, 21, 21)}
    batch = transformer(crop_size=21, multi_scale=True)([IMAGE] * 4)
    assert batch.shape == (4, 3, 21, 21)
    still = transformer(caffe.TEST, crop_size=21, multi_scale=True, fix_crop=True)([IMAGE]).numpy()
    np.testing.assert_array_equal(still[0], IMAGE[:, 9:30, 19:40])  # central, as without them


@pytest.mark.parametrize(("field", "channels"), [("flow", [2]), ("is_flow", [0, 2, 4])])
def test_mirrored_flow_is_negated(field, channels):
    image = np.random.default_rng(0).integers(0, 256, (5, 3, 4)).astype(np.uint8)
    batch = transformer(mirror=True, mean_value=[128], **{field: True})([image] * 20).numpy() + 128
    flipped = image[:, :, ::-1].astype(np.float32)
    flipped[channels] = 255 - flipped[channels]
    kinds = [next(index for index, kind in enumerate((image, flipped)) if (kind == each).all()) for each in batch]
    assert set(kinds) == {0, 1}


# ---- labels of pixels


def images(count=3, size=(4, 6)):
    generator = np.random.default_rng(0)
    pixels = generator.integers(0, 256, (count, *size, 3)).astype(np.uint8)
    labels = generator.integers(0, 12, (count, *size)).astype(np.uint8)
    for number in range(count):
        cv2.imwrite(f"{number}.png", pixels[number])
        cv2.imwrite(f"l{number}.png", labels[number])
    return pixels.transpose(0, 3, 1, 2), labels


DENSE = (
    """layer { name: "d" type: "DenseImageData" top: "x" top: "y" dense_image_data_param { source: "list" batch_size: 3 %s } }"""
)


def test_labels_of_enet_are_smaller_than_images(write):
    pixels, labels = images(size=(8, 16))
    write("list", "".join(f"{number}.png l{number}.png\n" for number in range(3)))
    net = net_of(write, DENSE % "new_height: 8 new_width: 16 label_divide_factor: 4")
    np.testing.assert_array_equal(net.forward()["y"][:, 0], labels[:, ::4, ::4])
    np.testing.assert_array_equal(net.blobs["x"].data, pixels)
    net.close()


def test_images_and_labels_are_mirrored_alike_and_come_from_two_folders(write, tmp_path):
    pixels, labels = images()
    write("list", "".join(f"{number}.png {number}.png\n" for number in range(3)))
    for number in range(3):
        (tmp_path / f"l{number}.png").rename(tmp_path / f"to_label{number}.png")
    net = net_of(write, DENSE % 'mirror: true root_folder_label: "to_label"')
    ways = set()
    for _ in range(8):
        net.forward()
        for index in range(3):
            flip = int((net.blobs["y"].data[index, 0] == labels[index, :, ::-1]).all())
            ways.add(flip)
            step = -1 if flip else 1
            np.testing.assert_array_equal(net.blobs["y"].data[index, 0], labels[index, :, ::step])
            np.testing.assert_array_equal(net.blobs["x"].data[index], pixels[index, :, :, ::step])
    assert ways == {0, 1}
    net.close()


SEGMENTED = """layer { name: "d" type: "ImageSegData" top: "x" top: "y" top: "size" transform_param { %s }
  image_data_param { source: "list" batch_size: 3 %s } }"""


@exercises("ImageSegData")
@pytest.mark.parametrize(
    ("kind", "lines", "expected"),
    [
        ("label_type: PIXEL", "{0}.png l{0}.png", None),
        ("label_type: IMAGE", "{0}.png {0}", [0, 1, 2]),
        ("", "{0}.png {0}", [0, 1, 2]),
        ("label_type: NONE ignore_label: 9", "{0}.png", [9, 9, 9]),
    ],
)
def test_labels_of_deeplab(write, kind, lines, expected):
    pixels, labels = images()
    write("list", "".join(lines.format(number) + "\n" for number in range(3)))
    net = net_of(write, SEGMENTED % ("mean_value: 1 scale: 2", kind))
    assert [net.blobs[name].shape for name in ("x", "y", "size")] == [(3, 3, 4, 6), (3, 1, 4, 6), (3, 1, 1, 2)]
    net.forward()
    np.testing.assert_array_equal(net.blobs["x"].data, (pixels - 1.0) * 2)
    wanted = labels if expected is None else np.broadcast_to(np.reshape(expected, (3, 1, 1)), (3, 4, 6))
    np.testing.assert_array_equal(net.blobs["y"].data[:, 0], wanted)
    assert net.blobs["size"].data.reshape(3, 2).tolist() == [[4, 6]] * 3
    net.close()


def test_a_crop_of_deeplab_pads_by_the_mean_and_the_label_to_ignore(write):
    pixels, labels = images()
    write("list", "".join(f"{number}.png l{number}.png\n" for number in range(3)))
    net = net_of(write, SEGMENTED % ("mean_value: 7 crop_height: 5 crop_width: 4", "label_type: PIXEL"), caffe.TEST)
    net.forward()
    x, y = net.blobs["x"].data, net.blobs["y"].data[:, 0]
    np.testing.assert_array_equal(x[:, :, :4], pixels[:, :, :, 1:5] - 7.0)  # the centre of 6 columns
    np.testing.assert_array_equal(y[:, :4], labels[:, :, 1:5])
    assert (x[:, :, 4] == 0).all()
    assert (y[:, 4] == 255).all()
    assert net.blobs["size"].data.reshape(3, 2).tolist() == [[4, 4]] * 3
    net.close()


def test_images_and_labels_of_deeplab_are_scaled_and_mirrored_alike(write):
    for number in range(3):  # red is the label
        labels = np.random.default_rng(number).integers(0, 2, (4, 6)).astype(np.uint8)
        cv2.imwrite(f"l{number}.png", labels)
        cv2.imwrite(f"{number}.png", np.repeat(labels[:, :, None] * 200, 3, 2))
    write("list", "".join(f"{number}.png l{number}.png\n" for number in range(3)))
    transform = "mirror: true crop_size: 4 scale_factors: 1 scale_factors: 2"
    net = net_of(write, SEGMENTED % (transform, "label_type: PIXEL"))
    scaled = set()
    for _ in range(6):
        net.forward()
        agree = (net.blobs["x"].data[:, 0] > 100) == net.blobs["y"].data[:, 0].astype(bool)
        assert agree.mean() > 0.8  # linear interpolation of the image, nearest of the labels
        scaled |= {not set(np.unique(image)) <= {0, 200} for image in net.blobs["x"].data}
    assert scaled == {False, True}  # between its pixels, the image has other values
    net.close()


@pytest.mark.parametrize(
    ("transform", "settings", "found"),
    [
        ("", "label_type: PIXEL", '"0.png 3 4"'),
        ("", "", '"0.png 3 4"'),
        ('mean_file: "m"', "label_type: NONE", "transform_param has mean_file"),
        ("scale_factors: 2", "label_type: NONE", "scale_factors and no crop"),
    ],
)
def test_invalid_lists_and_settings_of_deeplab(write, transform, settings, found):
    images(1)
    write("list", "0.png 3 4\n")
    with pytest.raises(caffe.Error) as error:
        net_of(write, SEGMENTED % (transform, settings))
    assert error.value.found == found


def test_the_shorter_side_of_listed_images(write):
    cv2.imwrite("0.png", np.zeros((40, 61, 3), np.uint8))
    write("list", "0.png 0\n")
    net = net_of(
        write, 'layer { name: "d" type: "ImageData" top: "x" top: "y" image_data_param { source: "list" short_side: 20 } }'
    )
    assert net.blobs["x"].shape == (1, 3, 20, 30)
    net.close()
