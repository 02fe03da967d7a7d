import json

import cv2
import lmdb
import numpy as np
import pytest

import caffe
import pipeline.database
from caffe.proto import caffe_pb2
from pipeline.database import Options, build
from pipeline.resize import Mode, Size, resize
from tests.conftest import GOLDEN

BUILD = ("pipeline.database", "all.txt", "resize", "lmdb", "--labels", "labels.txt", "--manifest", "manifest.json")


@pytest.fixture
def listed(dataset):
    """The dataset with labels.txt and all.txt, a list of all images."""
    (dataset / "labels.txt").write_text("cat\ndog\nowl\n")
    names = sorted(path.relative_to(dataset / "resize").as_posix() for path in (dataset / "resize").rglob("*.png"))
    (dataset / "all.txt").write_text("".join(f"{name} {['cat', 'dog', 'owl'].index(name[13:16])}\n" for name in names))
    return dataset


def records(folder):
    with lmdb.open(str(folder), readonly=True, lock=False) as environment, environment.begin() as transaction:
        return list(transaction.cursor())


@pytest.mark.parametrize(("name", "size", "color"), [("plain_resize", Size(32, 28), True), ("gray", Size(16, 16), False)])
def test_records_are_those_of_convert_imageset(tmp_path, name, size, color):
    golden = GOLDEN / "data"
    for line in (golden / "list.txt").read_text().splitlines():
        path = line.rpartition(" ")[0]
        image = cv2.imread(str(golden / "images" / path), cv2.IMREAD_COLOR if color else cv2.IMREAD_GRAYSCALE)
        png = cv2.imencode(".png", resize(image, size, Mode.SQUASH))[1]
        (tmp_path / "images" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "images" / path).write_bytes(png)
    build(golden / "list.txt", tmp_path / "images", tmp_path / "db", Options(classes=4, color=color))
    recorded = np.load(golden / f"records_{name}.npz")
    written = records(tmp_path / "db")
    assert [key for key, _ in written] == list(recorded["keys"])
    for number, (_, value) in enumerate(written):
        assert value == recorded[f"value_{number}"].tobytes()


def test_a_record_holds_the_pixels_of_its_image(command, listed):
    done = command(*BUILD)
    assert done.returncode == 0, done.stderr
    written = records(listed / "lmdb")
    assert [key.decode() for key, _ in written] == [
        f"{number:08d}_{line.split(' ')[0]}" for number, line in enumerate((listed / "all.txt").read_text().splitlines())
    ]
    for key, value in written:
        image = cv2.imread(str(listed / "resize" / key.decode()[9:]))
        np.testing.assert_array_equal(caffe.io.datum_to_array(caffe_pb2.Datum.FromString(value)).transpose(1, 2, 0), image)


def test_a_list_built_again_gives_the_same_bytes(listed):
    manifests = [
        build(listed / "all.txt", listed / "resize", listed / name, Options(3, threads=n)) for n, name in ((1, "a"), (3, "b"))
    ]
    assert manifests[0] == manifests[1]
    assert (listed / "a/data.mdb").read_bytes() == (listed / "b/data.mdb").read_bytes()


def test_the_manifest_tells_of_a_changed_pixel(command, listed):
    manifests = []
    for _ in range(2):
        assert command(*BUILD).returncode == 0
        manifests.append(json.loads((listed / "manifest.json").read_text()))
        path = listed / "resize/00000/000000_owl.png"
        image = cv2.imread(str(path))
        image[0, 0, 0] ^= 1
        cv2.imwrite(str(path), image)
    assert manifests[0].pop("sha256") != manifests[1].pop("sha256")
    assert manifests[0] == manifests[1] == {"images": 9, "classes": 3, "shape": [3, 8, 8]}


def test_a_database_grows_past_its_first_size_and_over_many_transactions(listed, monkeypatch):
    monkeypatch.setattr(pipeline.database, "MAP_SIZE", 1 << 14)
    monkeypatch.setattr(pipeline.database, "BATCH", 2)
    assert build(listed / "all.txt", listed / "resize", listed / "db", Options(3))["images"] == len(records(listed / "db")) == 9


def test_a_missing_list_is_named(fails, listed):
    (listed / "all.txt").unlink()
    fails(["all.txt", "no such image list"], *BUILD)


def test_an_unreadable_image_is_named_with_its_line(fails, listed):
    name = (listed / "all.txt").read_text().splitlines()[3].split(" ")[0]
    (listed / "resize" / name).write_text("<html></html>")
    fails(["all.txt:4", name, "cannot be read"], *BUILD)


def test_a_missing_image_is_named_with_its_line(fails, listed):
    name = (listed / "all.txt").read_text().splitlines()[8].split(" ")[0]
    (listed / "resize" / name).unlink()
    fails(["all.txt:9", name], *BUILD)


def test_a_label_out_of_range_is_named_with_its_line(fails, listed):
    with (listed / "all.txt").open("a") as file:
        file.write("00000/000000_owl.png 3\n")
    fails(["all.txt:10: label 3, but there are 3 classes (0–2); Caffe's labels start from 0"], *BUILD)


def test_a_failed_build_leaves_the_old_database(fails, command, listed):
    assert command(*BUILD).returncode == 0
    before = records(listed / "lmdb")
    (listed / "all.txt").write_text("00000/000000_owl.png -1\n")
    fails(["all.txt:1: label -1"], *BUILD)
    assert records(listed / "lmdb") == before


@pytest.mark.parametrize("line", ["00000/000000_owl.png", "00000/000000_owl.png owl", "", " 1", "00000/000000_owl.png 1.5"])
def test_a_line_in_another_form_is_refused(listed, line):
    (listed / "all.txt").write_text(f"00000/000000_owl.png 1\n{line}\n")
    with pytest.raises(pipeline.database.InputError) as raised:
        build(listed / "all.txt", listed / "resize", listed / "db", Options(3))
    assert raised.value.where.endswith("all.txt:2")
    assert not (listed / "db").exists()


def test_an_image_of_another_size_is_refused(fails, listed, picture):
    cv2.imwrite(str(listed / "resize/00000/000002_dog.png"), picture(0, 9, 8))
    fails(["all.txt:3", "9×8", "8×8"], *BUILD)
