import json

import cv2
import lmdb
import numpy as np
import pytest

import caffe
from caffe.proto import caffe_pb2
from pipeline.report.augmentation_examples import examples
from pipeline.report.dataset_pictures import COLUMNS, ROWS, SIDE, class_sizes, first_of_each, thumbnail
from pipeline.report.gallery import images_at
from pipeline.report.tiles import grid


def put(folder, images):
    """A database of (pixels, label)."""
    with lmdb.open(str(folder)) as environment, environment.begin(write=True) as transaction:
        for number, (image, label) in enumerate(images):
            datum = caffe.io.array_to_datum(image, label)
            transaction.put(b"%08d" % number, datum.SerializeToString())
    return folder


def test_every_picture_of_a_dataset_is_drawn(command, small, tmp_path):
    (small / "dataset").mkdir()
    for name in ("lists", "lmdb", "mean.binaryproto"):
        (small / name).rename(small / "dataset" / name)
    done = command("pipeline.report.dataset_pictures", "dataset", "pictures")
    assert done.returncode == 0, done.stderr
    names = {path.relative_to(tmp_path / "pictures").as_posix() for path in (tmp_path / "pictures").rglob("*.*")}
    sheets = {"sheets/0000_cat.jpg", "sheets/0001_dog.jpg", "sheets/0002_owl.jpg"}
    assert names == {"overview.png", "classes.png", "classes.svg", "sizes.png", "sizes.svg", "mean.png", *sheets}
    assert cv2.imread(str(tmp_path / "pictures/mean.png")).shape == (8, 8, 3)
    assert cv2.imread(str(tmp_path / "pictures/overview.png")).std() > 10


@pytest.mark.parametrize("shape", [(3, 20, 60), (1, 60, 20), (3, 300, 200)])
def test_a_thumbnail_keeps_the_aspect_ratio_on_white(shape):
    shown = thumbnail(np.zeros(shape, np.uint8))
    assert shown.shape == (SIDE, SIDE, 3)
    dark = (shown == 0).all(2)
    assert dark.any(1).sum() / dark.any(0).sum() == pytest.approx(shape[1] / shape[2], rel=0.05)
    assert (shown[~dark] == 255).all()


def test_a_pair_is_shown_side_by_side():
    shown = thumbnail(np.stack([np.zeros((8, 8), np.uint8), np.full((8, 8), 200, np.uint8)]))
    assert (shown[SIDE // 2, : SIDE // 2] == 0).all()
    assert (shown[SIDE // 2, SIDE // 2 :] == 200).all()


def test_only_the_first_images_of_each_class_are_taken(tmp_path):
    images = [(np.full((1, 4, 4), number, np.uint8), number % 2) for number in range(12)]
    found = first_of_each(put(tmp_path / "db", images), classes=3, count=2)
    assert [[int(image.min()) for image in one] for one in found] == [[0, 2], [1, 3], []]


@pytest.mark.parametrize(("channels", "red"), [("BGR", 2), ("RGB", 0)])
def test_images_are_shown_with_the_channel_order_of_their_database(tmp_path, channels, red):
    image = np.zeros((3, 4, 4), np.uint8)
    image[red] = 200
    (tmp_path / "db.manifest.json").write_text(json.dumps({"channels": channels}))
    ((small,),) = first_of_each(put(tmp_path / "db", [(image, 0)]), classes=1, count=1)
    assert (small == (0, 0, 200)).all()
    assert (images_at(tmp_path / "db", [0])[0] == (200, 0, 0)).all()


def test_augmented_images_are_shown_with_the_channel_order_of_their_database(tmp_path):
    image = np.zeros((3, 6, 6), np.uint8)
    image[0] = 200
    (tmp_path / "db.manifest.json").write_text('{"channels": "RGB"}')
    shown = examples(put(tmp_path / "db", [(image, 0)]), caffe_pb2.AugmentationParameter(), seed=1)
    assert (shown[0] == (0, 0, 200)).all()


def test_augmented_images_are_the_same_for_bgr_and_rgb_records(tmp_path):
    image = np.zeros((3, 6, 6), np.uint8)
    image[1:] = [[[90]], [[200]]]
    changes = caffe_pb2.AugmentationParameter(saturation=1, pca=0.5)
    (tmp_path / "rgb.manifest.json").write_text('{"channels": "RGB"}')
    records = {"bgr": image, "rgb": image[::-1]}
    bgr, rgb = (examples(put(tmp_path / name, [(planes, 0)]), changes, 1) for name, planes in records.items())
    np.testing.assert_allclose(np.stack(bgr).astype(int), rgb, atol=1)


def test_a_label_without_a_class_is_named(tmp_path):
    from pipeline.errors import InputError

    with pytest.raises(InputError) as raised:
        first_of_each(put(tmp_path / "db", [(np.zeros((1, 4, 4), np.uint8), 7)]), classes=3, count=2)
    assert raised.value.found == "label 7"


def test_a_sheet_has_full_rows_and_white_where_images_end():
    whole = grid([np.zeros((SIDE, SIDE, 3), np.uint8)] * 10, COLUMNS, 4)
    assert whole.shape == (2 * SIDE + 4, COLUMNS * (SIDE + 4) - 4, 3)
    assert (whole[-1, -1] == 255).all()
    assert ROWS > 1


@pytest.mark.parametrize("classes", [3, 200])
def test_class_sizes_are_drawn_for_few_and_for_many_classes(classes):
    from collections import Counter

    figure = class_sizes(
        {"train": Counter(dict.fromkeys(range(classes), 5)), "val": Counter({0: 1})}, [f"c{n}" for n in range(classes)]
    )
    axis = figure.axes[0]
    assert axis.get_xlabel() == ("images" if classes == 3 else "classes, largest first")
    assert len(axis.patches or axis.lines) >= 2


def test_an_augmentation_is_shown_on_training_images(command, small, tmp_path):
    done = command(
        "pipeline.report.augmentation_examples",
        "lmdb/train",
        "augmented.png",
        "--augmentation",
        '{"brightness": 1, "rotation": 90}',
    )
    assert done.returncode == 0, done.stderr
    assert cv2.imread(str(tmp_path / "augmented.png")).std() > 10
    shown = examples(tmp_path / "lmdb/train", caffe_pb2.AugmentationParameter(brightness=1), 1)
    assert len(shown) == 6 * 8
    assert len({image.tobytes() for image in shown}) == len(shown)
