"""Layers that read files, databases and memory, compared with recorded batches of BVLC Caffe and with hand-made ones."""

import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import h5py
import lmdb
import numpy as np
import pytest

import caffe
from caffe.layer_types.windows import WindowData
from tests.caffe.layer_checks import exercises
from tests.conftest import GOLDEN, needs_leveldb

DATA = GOLDEN / "data"
BATCHES = sorted(DATA.glob("batches_*.npz"))


@pytest.fixture
def data(tmp_path, monkeypatch):
    """A copy of the recorded data as working folder."""
    shutil.copytree(DATA, tmp_path / "data")
    for path in (tmp_path / "data").rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)
    monkeypatch.chdir(tmp_path / "data")
    return tmp_path / "data"


@pytest.mark.parametrize(
    "path", [pytest.param(path, marks=[needs_leveldb] if "leveldb" in path.stem else [], id=path.stem) for path in BATCHES]
)
def test_batches_equal_those_of_bvlc_caffe(path, data, write):
    recorded = np.load(path)
    net = caffe.Net(write("net.prototxt", str(recorded["prototxt"])), caffe.TEST)
    for number in range(4):
        net.forward()
        # Decoders may differ by 1 in a pixel's value, and resizing by another 1.
        for top in ("data", "label"):
            np.testing.assert_allclose(net.blobs[top].data, recorded[f"{top}_{number}"], atol=2.01)
    net.close()


ENDING = """
import atexit, sys, threading
readers = []
atexit.register(lambda: print(len(readers), any(thread.is_alive() for thread in readers)))  # called after caffe's own
import caffe
net = caffe.Net(sys.argv[1], caffe.TEST)
net.forward()
readers += [thread for thread in threading.enumerate() if thread.name.startswith("read ")]
"""


def test_a_script_that_ends_while_a_layer_reads_ends_its_thread_first(data, write):
    net = write("net.prototxt", str(np.load(BATCHES[0])["prototxt"]))
    done = subprocess.run([sys.executable, "-c", ENDING, net], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "1 False\n"), done.stderr


@pytest.mark.parametrize("compressed", [0, 5, 12])
def test_records_are_read_in_order_whether_they_are_compressed_or_not(tmp_path, write, compressed):
    images = [np.full((3, 4, 6), 20 * number, np.uint8) for number in range(12)]
    with lmdb.open(str(tmp_path / "db"), map_size=1 << 20) as environment, environment.begin(write=True) as transaction:
        for number, image in enumerate(images):
            datum = caffe.io.array_to_datum(image, number)
            if number >= 12 - compressed:
                datum.data, datum.encoded = cv2.imencode(".png", image.transpose(1, 2, 0))[1].tobytes(), True
            transaction.put(b"%03d" % number, datum.SerializeToString())
    source = f'data_param {{ source: "{tmp_path}/db" backend: LMDB batch_size: 5 }}'
    net = net_of(write, f'layer {{ name: "d" type: "Data" top: "x" top: "y" {source} }}')
    for start in range(0, 30, 5):
        net.forward()
        expected = [number % 12 for number in range(start, start + 5)]
        np.testing.assert_array_equal(net.blobs["y"].data, expected)
        np.testing.assert_array_equal(net.blobs["x"].data, [images[number] for number in expected])
    net.close()


def test_a_damaged_compressed_record_is_named(tmp_path, write):
    good = cv2.imencode(".png", np.zeros((4, 6, 3), np.uint8))[1].tobytes()
    with lmdb.open(str(tmp_path / "db"), map_size=1 << 20) as environment, environment.begin(write=True) as transaction:
        for number, content in enumerate((good, good, b"no image")):
            datum = caffe.proto.caffe_pb2.Datum(channels=3, height=4, width=6, data=content, encoded=True)
            transaction.put(b"%03d" % number, datum.SerializeToString())
    source = f'data_param {{ source: "{tmp_path}/db" backend: LMDB batch_size: 2 }}'
    net = net_of(write, f'layer {{ name: "d" type: "Data" top: "x" top: "y" {source} }}')
    net.forward()
    with pytest.raises(caffe.Error, match="an encoded record that cannot be decoded"):
        net.forward()


def test_a_leveldb_without_plyvel_names_the_extra_to_install(data, write, monkeypatch):
    monkeypatch.setitem(sys.modules, "plyvel", None)
    with pytest.raises(caffe.Error) as raised:
        caffe.Net(write("net.prototxt", str(np.load(DATA / "batches_data_leveldb.npz")["prototxt"])), caffe.TEST)
    assert "plyvel" in raised.value.found
    assert "roastery[leveldb]" in raised.value.do


def net_of(write, text):
    return caffe.Net(write("net.prototxt", text), caffe.TRAIN)


LIST = 'layer { name: "d" type: "ImageData" top: "x" top: "y" image_data_param { source: "list.txt" %s } }'


def test_each_epoch_of_a_shuffled_list_has_every_image_once_in_a_new_order(tmp_path, write, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for number in range(6):
        cv2.imwrite(f"{number}.png", np.full((4, 4, 3), number, np.uint8))
    write("list.txt", "".join(f"{number}.png {number}\n" for number in range(6)))
    caffe.set_random_seed(1)
    net = net_of(write, LIST % "batch_size: 6 shuffle: true")
    epochs = []
    for _ in range(3):
        net.forward()
        np.testing.assert_array_equal(net.blobs["x"].data[:, 0, 0, 0], net.blobs["y"].data)
        epochs.append(net.blobs["y"].data.astype(int).tolist())
    net.close()
    assert all(sorted(epoch) == list(range(6)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1


@pytest.mark.parametrize("between", [" ", "\t", "  ", " \t"])
@pytest.mark.parametrize("label", ["7", "7.0", "+7"])
def test_labels_of_a_list_are_integers_after_the_last_white_space(tmp_path, write, monkeypatch, between, label):
    monkeypatch.chdir(tmp_path)
    cv2.imwrite("an image.png", np.full((4, 4, 3), 5, np.uint8))
    write("list.txt", f"an image.png{between}{label}\r\n")
    assert net_of(write, LIST % "").forward()["y"] == 7


@pytest.mark.parametrize(
    ("text", "found"),
    [("a.png\n", '"a.png"'), ("a.png 0.5\n", '"a.png 0.5"'), ("", "empty"), ("missing.png 3\n", "no such image")],
)
def test_an_invalid_list_is_an_error(text, found, tmp_path, write, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write("list.txt", text)
    with pytest.raises(caffe.Error, match=found):
        net_of(write, LIST % "")


@pytest.mark.parametrize(
    ("name", "content", "found"),
    [
        ("gone.png", None, "no such image"),
        ("my cat.png", b"", "not an image that OpenCV can read"),
        ("a.png 3 b.png", None, "no such image"),
    ],
)
def test_an_image_that_cannot_be_read_is_named_with_its_line_in_the_list(name, content, found, tmp_path, write, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("in").mkdir()
    cv2.imwrite("in/a.png", np.zeros((4, 4, 3), np.uint8))
    if content is not None:
        Path("in", name).write_bytes(content)
    write("list.txt", f"a.png 0\n\n{name} 1\n")
    net = net_of(write, LIST % 'root_folder: "in/" batch_size: 2')
    with pytest.raises(caffe.FileError) as raised:
        net.forward()
    assert raised.value.where == "list.txt:3"
    assert raised.value.found == f"in/{name}: {found}"
    assert "root_folder" in raised.value.do


def test_an_invalid_line_after_an_empty_one_has_its_number(tmp_path, write, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write("list.txt", "\na.png 0\n\nb.png\n")
    with pytest.raises(caffe.Error) as raised:
        net_of(write, LIST % "")
    assert raised.value.where == "list.txt:4"


@pytest.mark.parametrize(
    ("text", "do"),
    [
        (
            'type: "Data" data_param { source: "gone" backend: LEVELDB }',
            "caffe convert_imageset -backend leveldb IMAGES/ LIST gone",
        ),
        ('type: "Data" data_param { source: "gone" backend: LMDB }', "caffe convert_imageset -backend lmdb IMAGES/ LIST gone"),
        ('type: "ImageData" image_data_param { source: "gone" }', "a line `path label` for each image"),
        ('type: "HDF5Data" hdf5_data_param { source: "gone" batch_size: 1 }', "the path of an .h5 file in each line"),
    ],
)
def test_a_missing_source_names_the_layer_that_reads_it_and_how_it_is_made(text, do, tmp_path, write, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(caffe.FileError) as raised:
        net_of(write, f'\nlayer {{ name: "d" top: "x" top: "y" {text} }}')
    assert raised.value.where == "gone"
    assert raised.value.found.startswith("no such ")
    assert raised.value.found.endswith(f" (relative to {tmp_path})")
    assert raised.value.expected == f'{tmp_path}/net.prototxt:2: layer "d" reads it'
    assert do in raised.value.do


DENSE = """layer { name: "d" type: "DenseImageData" top: "x" top: "y" transform_param { %s mean_value: 1 scale: 2 }
  dense_image_data_param { source: "list.txt" root_folder: "in/" %s } }"""


@exercises("DenseImageData")
def test_dense_image_data_pairs_images_with_label_images(tmp_path, write, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in").mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (5, 4, 6, 3)).astype(np.uint8)
    labels = np.random.default_rng(1).integers(0, 12, (5, 4, 6)).astype(np.uint8)
    for number in range(5):
        cv2.imwrite(f"in/{number}.png", pixels[number])
        cv2.imwrite(f"in/l{number}.png", labels[number])
    write("list.txt", "".join(f"{number}.png\tl{number}.png\n" for number in range(5)))
    net = net_of(write, DENSE % ("", "batch_size: 5 shuffle: true"))
    assert net.blobs["y"].shape == (5, 1, 4, 6)
    net.forward()
    order = [int((labels == label[0]).all((1, 2)).argmax()) for label in net.blobs["y"].data]
    assert sorted(order) == list(range(5))
    np.testing.assert_array_equal(net.blobs["y"].data[:, 0], labels[order])
    np.testing.assert_array_equal(net.blobs["x"].data, (pixels[order].transpose(0, 3, 1, 2) - 1.0) * 2)
    net.close()
    net = net_of(write, DENSE % ("", "batch_size: 2 new_height: 8 new_width: 12 is_color: false"))
    assert net.forward()["y"].shape == (2, 1, 8, 12)
    assert net.blobs["x"].shape == (2, 1, 8, 12)
    np.testing.assert_array_equal(net.blobs["y"].data[1, 0], labels[1].repeat(2, 0).repeat(2, 1))
    net.close()
    for settings, found in (("mirror: true", "mirror"), ("crop_size: 2", "crop_size")):
        with pytest.raises(caffe.LayerError, match=found):
            net_of(write, DENSE % (settings, ""))
    cv2.imwrite("in/l0.png", labels[0, :3])
    with pytest.raises(caffe.Error, match="labels of 3×6, but the image has 4×6"):
        net_of(write, DENSE % ("", ""))
    write("list.txt", "0.png")
    with pytest.raises(caffe.FileError, match="1 paths, but each image is followed"):
        net_of(write, DENSE % ("", ""))


HDF5 = 'layer { name: "d" type: "HDF5Data" top: "x" top: "y" hdf5_data_param { source: "files.txt" batch_size: 4 } }'


def test_hdf5_rows_continue_across_files(tmp_path, write, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for number, rows in enumerate((3, 5)):
        with h5py.File(f"{number}.h5", "w") as file:
            file["x"] = np.arange(rows * 2).reshape(rows, 2) + 100 * number
            file["y"] = np.arange(rows)
    write("files.txt", "0.h5\n1.h5\n")
    net = net_of(write, HDF5)
    rows = []
    for _ in range(3):
        net.forward()
        rows += net.blobs["x"].data[:, 0].astype(int).tolist()
    assert rows == [0, 2, 4, 100, 102, 104, 106, 108, 0, 2, 4, 100]


def test_a_missing_hdf5_dataset_is_an_error(tmp_path, write, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with h5py.File("0.h5", "w") as file:
        file["x"] = np.zeros((3, 2))
    write("files.txt", "0.h5\n")
    with pytest.raises(caffe.Error, match='no dataset "y"'):
        net_of(write, HDF5)


OUTPUT = """layer { name: "x" type: "Input" top: "x" top: "y" input_param { shape { dim: 2 dim: 3 } } }
layer { name: "o" type: "HDF5Output" bottom: "x" bottom: "y" hdf5_output_param { file_name: "o.h5" } }"""


@exercises("HDF5Output")
def test_hdf5_output_appends_batches(tmp_path, write, monkeypatch):
    monkeypatch.chdir(tmp_path)
    net = net_of(write, OUTPUT)
    for number in range(3):
        net.blobs["x"].data[...] = number
        net.forward()
    net.close()
    with h5py.File("o.h5") as file:
        assert file["data"][:, 0].tolist() == [0, 0, 1, 1, 2, 2]
        assert file["label"].shape == (6, 3)


MEMORY = """layer { name: "m" type: "MemoryData" top: "x" top: "y"
  memory_data_param { batch_size: 2 channels: 1 height: 2 width: 2 } }"""


@exercises("MemoryData")
def test_memory_data_wraps_around(write):
    net = net_of(write, MEMORY)
    with pytest.raises(caffe.Error, match="no data"):
        net.forward()
    images = np.arange(16, dtype=np.float32).reshape(4, 1, 2, 2)
    net.set_input_arrays(images, np.arange(4, dtype=np.float32))
    labels = []
    for _ in range(3):
        net.forward()
        labels += net.blobs["y"].data.tolist()
    assert labels == [0, 1, 2, 3, 0, 1]
    np.testing.assert_array_equal(net.blobs["x"].data, images[:2])


@pytest.mark.parametrize(
    ("images", "labels", "found"),
    [
        (np.zeros((3, 1, 2, 2), np.float32), np.zeros(3, np.float32), "3 images"),
        (np.zeros((4, 1, 2, 2)), np.zeros(4, np.float32), "type float64"),
        (np.zeros((4, 1, 2, 3), np.float32), np.zeros(4, np.float32), "shape"),
        (np.zeros((4, 1, 2, 2), np.float32), np.zeros(2, np.float32), "labels of shape"),
    ],
)
def test_memory_data_refuses_arrays_that_do_not_fit(images, labels, found, write):
    with pytest.raises(caffe.Error, match=found):
        net_of(write, MEMORY).set_input_arrays(images, labels)


WINDOWS = """# 0
{image}
3
40
60
3
2 0.9 10 5 29 24
0 0.1 0 0 9 9
1 0.6 50 30 69 49
"""
WINDOW_NET = """layer {{ name: "w" type: "WindowData" top: "x" top: "y"
  transform_param {{ crop_size: 20 {transform} }}
  window_data_param {{ source: "windows.txt" batch_size: 8 fg_fraction: 0.5 {more} }} }}"""


@pytest.fixture
def windows(tmp_path, write, monkeypatch):
    """windows(transform, more): a WindowData layer's net on one image whose pixel values encode their position."""
    monkeypatch.chdir(tmp_path)
    rows, columns = np.mgrid[:40, :60]
    cv2.imwrite("image.png", np.stack([rows, columns, rows + columns], 2).astype(np.uint8))
    write("windows.txt", WINDOWS.format(image="image.png"))
    return lambda transform="", more="": net_of(write, WINDOW_NET.format(transform=transform, more=more))


def test_a_batch_of_windows_has_background_first_then_objects(windows):
    net = windows()
    net.forward()
    net.close()
    labels = net.blobs["y"].data
    assert not labels[:4].any()
    assert set(labels[4:]) <= {1, 2}
    for image, label in zip(net.blobs["x"].data, labels, strict=True):
        if label == 2:  # as large as the crop: not resampled
            np.testing.assert_array_equal(image[0], np.mgrid[5:25, 10:30][0])
            np.testing.assert_array_equal(image[1], np.mgrid[5:25, 10:30][1])
        if label == 1:  # the right and lower half lies outside the image
            assert image[:, :10, :10].all()
            assert not image[:, 10:].any()
            assert not image[:, :, 10:].any()


@exercises("WindowData")
def test_windows_are_mirrored_mean_subtracted_and_scaled(windows):
    net = windows("mirror: true mean_value: 1 mean_value: 2 mean_value: 3 scale: 0.5")
    seen = set()
    for _ in range(4):
        net.forward()
        for image, label in zip(net.blobs["x"].data, net.blobs["y"].data, strict=True):
            if label == 2:
                columns = image[1, 0] * 2 + 2
                seen.add(tuple(columns.astype(int)))
    net.close()
    assert seen == {tuple(range(10, 30)), tuple(range(29, 9, -1))}


@pytest.mark.parametrize(
    ("transform", "found"),
    [
        ("bgr2rgb: true", "bgr2rgb"),
        ("resize_param { height: 30 width: 30 } cvt_bgr2rgb: true", "cvt_bgr2rgb and a change of size"),
        ("random_resize_param { min_size: 30 }", "a change of size"),
    ],
)
def test_what_does_not_change_windows_is_refused(windows, transform, found):
    with pytest.raises(caffe.Error) as raised:
        windows(transform)
    assert raised.value.found == f"transform_param has {found}"


def test_context_is_added_around_a_window(windows):
    net = windows(more="context_pad: 5")
    layer: WindowData = net.layers[0]
    (x1, x2, left, right), (y1, y2, top, bottom) = layer._spans((10, 5, 29, 24), (40, 60))
    # 20 pixels become 10, so 10 more on each side come into view; 5 of them above the image.
    assert (x1, x2, left, right) == (0, 40, 0, 20)
    assert (y1, top) == (0, 2)
    assert (y2, bottom) == (35, 20)
    net.close()


def test_an_invalid_window_file_is_reported_with_its_line(windows, write):
    write("windows.txt", "# 0\nimage.png\nthree\n")
    with pytest.raises(caffe.Error) as raised:
        windows()
    assert raised.value.where == "windows.txt:3"
