import json
import resource
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest

import caffe
from caffe.proto import caffe_pb2
from pipeline.dataset import resize
from pipeline.dataset.database import build
from pipeline.errors import InputError
from pipeline.formats import records as records_module
from pipeline.formats.images import Resized, open_images
from pipeline.formats.records import digest, encode_datum, write_database
from pipeline.options.dataset import Augmentation, DatabaseOptions, ImageSize, ResizeOptions
from tests.conftest import GOLDEN
from tests.pipeline.conftest import records, write_resized

BUILD = ("pipeline.dataset.database", "all.txt", "resize", "lmdb", "--labels", "labels.txt", "--manifest", "manifest.json")


@pytest.fixture
def listed(dataset):
    """The dataset with labels.txt and all.txt, a list of all images."""
    (dataset / "labels.txt").write_text("cat\ndog\nowl\n")
    names = sorted(f"{table.stem}/{name}" for table in (dataset / "download").glob("*.csv") for name in pd.read_csv(table).path)
    (dataset / "all.txt").write_text("".join(f"{name} {['cat', 'dog', 'owl'].index(name[13:16])}\n" for name in names))
    return dataset


@pytest.mark.parametrize(
    ("name", "size", "color", "as_files"),
    [
        ("plain_resize", ImageSize(height=32, width=28), True, True),
        ("gray", ImageSize(height=16, width=16), False, True),
        ("plain_resize", ImageSize(height=32, width=28), True, False),
    ],
)
def test_records_equal_those_of_convert_imageset(tmp_path, name, size, color, as_files):
    golden = GOLDEN / "data"
    lines = [line.rpartition(" ")[::2] for line in (golden / "list.txt").read_text().splitlines()]
    if as_files:
        for path, _ in lines:
            image = cv2.imread(str(golden / "images" / path), cv2.IMREAD_COLOR if color else cv2.IMREAD_GRAYSCALE)
            (tmp_path / "images" / path).parent.mkdir(parents=True, exist_ok=True)
            resized = resize.resize(image, ResizeOptions(size=size))
            (tmp_path / "images" / path).write_bytes(cv2.imencode(".png", resized)[1])
    else:
        for folder in {Path(path).parent for path, _ in lines}:
            options = ResizeOptions(size=size, color="color" if color else "gray")
            resize.resize_folder(golden / "images" / folder, tmp_path / "images" / folder, options)
    build(golden / "list.txt", open_images(tmp_path / "images", color), tmp_path / "db", DatabaseOptions(), classes=4)
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
    images = Resized(listed / "resize")
    for key, value in written:
        datum = caffe.io.datum_to_array(caffe_pb2.Datum.FromString(value))
        np.testing.assert_array_equal(datum.transpose(1, 2, 0), images[key.decode()[9:]])


@pytest.mark.parametrize("shape", [(5, 4, 3), (300, 200), (1, 1)])
def test_an_encoded_record_has_the_bytes_that_protobuf_writes(shape):
    image = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
    datum = caffe.io.array_to_datum(image.transpose(2, 0, 1) if image.ndim == 3 else image[None], label=300)
    datum.encoded = False
    assert encode_datum(image, 300) == datum.SerializeToString()


def test_rebuilding_a_database_gives_the_same_bytes(listed):
    manifests = [
        build(listed / "all.txt", Resized(listed / "resize"), listed / name, DatabaseOptions(), 3, n)
        for n, name in ((1, "a"), (3, "b"))
    ]
    assert manifests[0] == manifests[1]
    assert (listed / "a/data.mdb").read_bytes() == (listed / "b/data.mdb").read_bytes()


def test_the_manifests_hash_changes_with_a_single_pixel(command, listed):
    manifests = []
    for _ in range(2):
        assert command(*BUILD).returncode == 0
        manifests.append(json.loads((listed / "manifest.json").read_text()))
        pixels = np.load(listed / "resize/00000/pixels.npy")
        pixels[0, 0, 0, 0] ^= 1
        np.save(listed / "resize/00000/pixels.npy", pixels)
        (listed / "resize/00000/SHA256SUMS").unlink(missing_ok=True)
    for name in ("sha256", "data_mdb"):
        assert manifests[0].pop(name) != manifests[1].pop(name)
    assert manifests[0] == manifests[1] == {"images": 9, "classes": 3, "shape": [3, 8, 8]}


def test_the_manifests_hash_changes_with_a_pixel_or_label_of_a_sealed_shard(tmp_path, picture):
    (tmp_path / "in").mkdir()
    hashes = set()
    for seed, label in ((0, 0), (1, 0), (0, 1), (0, 0)):
        cv2.imwrite(str(tmp_path / "in/a.png"), picture(seed))
        resize.resize_folder(tmp_path / "in", tmp_path / "resize/00000", ResizeOptions(size=ImageSize(height=16, width=16)))
        (tmp_path / "all.txt").write_text(f"00000/a.png {label}\n")
        hashes.add(build(tmp_path / "all.txt", Resized(tmp_path / "resize"), tmp_path / "db", DatabaseOptions(), 2)["sha256"])
    assert len(hashes) == 3


def test_a_database_grows_beyond_its_initial_size_over_many_transactions(listed, monkeypatch):
    monkeypatch.setattr("pipeline.formats.records.MAP_SIZE", 1 << 14)
    monkeypatch.setattr("pipeline.formats.records.BATCH", 2)
    assert (
        build(listed / "all.txt", Resized(listed / "resize"), listed / "db", DatabaseOptions(), 3)["images"]
        == len(records(listed / "db"))
        == 9
    )


def test_a_missing_list_is_named(fails, listed):
    (listed / "all.txt").unlink()
    fails(["all.txt", "no such image list"], *BUILD)


def test_an_unreadable_image_is_named_with_its_line(fails, listed):
    name = (listed / "all.txt").read_text().splitlines()[3].split(" ")[0]
    shard, _, file = name.partition("/")
    write_resized(listed / "resize" / shard, {file: None, "other.jpg": np.zeros((8, 8, 3), np.uint8)})
    (listed / "all.txt").write_text(f"{shard}/other.jpg 0\n{name} 1\n")
    fails(["all.txt:2", name, "cannot be read"], *BUILD)


@pytest.mark.parametrize("content", [None, "<html></html>"])
def test_a_missing_or_invalid_image_file_is_named_with_its_line(fails, listed, picture, content):
    (listed / "files").mkdir()
    cv2.imwrite(str(listed / "files/there.png"), picture())
    if content:
        (listed / "files/other.png").write_text(content)
    (listed / "all.txt").write_text("there.png 0\nother.png 1\n")
    fails(["all.txt:2", "files/other.png cannot be read"], *BUILD[:2], "files", *BUILD[3:])


def test_missing_resized_images_are_named(fails, listed):
    (listed / "resize/00001/images.csv").unlink()
    fails(["resize/00001: no resized images"], *BUILD)


def test_a_label_out_of_range_is_named_with_its_line(fails, listed):
    with (listed / "all.txt").open("a") as file:
        file.write("00000/000000_owl.jpg 3\n")
    fails(["all.txt:10: label 3, but there are 3 classes (0–2); Caffe's labels start from 0"], *BUILD)


def test_a_failed_build_keeps_the_old_database(fails, command, listed):
    assert command(*BUILD).returncode == 0
    before = records(listed / "lmdb")
    (listed / "all.txt").write_text("00000/000000_owl.jpg -1\n")
    fails(["all.txt:1: label -1"], *BUILD)
    assert records(listed / "lmdb") == before


@pytest.mark.parametrize("line", ["00000/000000_owl.jpg", "00000/000000_owl.jpg owl", "", " 1", "00000/000000_owl.jpg 1.5"])
def test_a_malformed_line_is_refused(listed, line):
    (listed / "all.txt").write_text(f"00000/000000_owl.jpg 1\n{line}\n")
    with pytest.raises(InputError) as raised:
        build(listed / "all.txt", Resized(listed / "resize"), listed / "db", DatabaseOptions(), 3)
    assert raised.value.where.endswith("all.txt:2")
    assert len(str(raised.value).splitlines()) == 1
    assert not (listed / "db").exists()


def test_an_image_of_another_size_is_refused(fails, listed, picture):
    write_resized(
        listed / "resize/00001", {f"00000{n}_{c}.jpg": picture(0, 9, 8) for n, c in enumerate(("dog", "owl", "cat", "dog"))}
    )
    fails(["all.txt:6", "9×8×3", "8×8×3"], *BUILD)


CHANGES = '{"brightness": 0.4, "rotation": 10}'


def test_augmented_copies_follow_the_images_epoch_by_epoch(command, listed):
    done = command(*BUILD, "--copies", 2, "--augmentation", CHANGES, "--seed", 5)
    assert done.returncode == 0, done.stderr
    assert json.loads((listed / "manifest.json").read_text())["images"] == 27
    written = [(key.decode(), caffe_pb2.Datum.FromString(value)) for key, value in records(listed / "lmdb")]
    assert [key[:8] for key, _ in written] == [f"{number:08d}" for number in range(27)]
    images = Resized(listed / "resize")
    for number, (key, datum) in enumerate(written):
        assert key[9:] == written[number % 9][0][9:]
        assert datum.label == written[number % 9][1].label
        pixels = caffe.io.datum_to_array(datum).transpose(1, 2, 0)
        assert np.array_equal(pixels, images[key[9:]]) == (number < 9)
    assert len({datum.data for _, datum in written}) == 27


def test_augmented_copies_are_reproducible_and_depend_on_the_seed(listed):
    changes = Augmentation(brightness=0.4, noise=4)
    manifests = [
        build(
            listed / "all.txt",
            Resized(listed / "resize"),
            listed / "db",
            DatabaseOptions(copies=1, augmentation=changes, seed=seed),
            3,
            threads,
        )
        for threads, seed in ((1, 1), (3, 1), (1, 2))
    ]
    assert manifests[0] == manifests[1]
    assert manifests[0]["sha256"] != manifests[2]["sha256"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--copies", 2), ["--copies: 2", "say how with --augmentation"]),
        (("--copies", 2, "--augmentation", '{"brightnes": 1}'), ["augmentation", "brightnes"]),
        (("--copies", 2, "--augmentation", '{"brightness": 2}'), ["--augmentation.brightness: 2 is not between 0 and 1"]),
    ],
)
def test_invalid_copies_or_augmentations_are_refused(fails, listed, arguments, said):
    fails(said, *BUILD, *arguments)


@pytest.mark.parametrize("encode", ["png", "jpg"])
def test_encoded_records_hold_image_files_as_from_convert_imageset(command, listed, encode):
    done = command(*BUILD, "--encode", encode)
    assert done.returncode == 0, done.stderr
    assert json.loads((listed / "manifest.json").read_text())["shape"] == [3, 8, 8]
    images = Resized(listed / "resize")
    for key, value in records(listed / "lmdb"):
        datum = caffe_pb2.Datum.FromString(value)
        assert (datum.encoded, datum.channels, datum.height, datum.width) == (True, 0, 0, 0)
        decoded = cv2.imdecode(np.frombuffer(datum.data, np.uint8), cv2.IMREAD_UNCHANGED)
        difference = np.abs(decoded.astype(int) - images[key.decode()[9:]])
        assert difference.max() == 0 if encode == "png" else difference.mean() < 40


@pytest.mark.parametrize(
    ("datum", "found"),
    [
        (caffe_pb2.Datum(channels=1, height=1, width=2, data=b"ab", label=3), "label 3"),
        (caffe_pb2.Datum(data=b"no image", encoded=True), "an encoded record that cannot be decoded"),
        (caffe_pb2.Datum(channels=1, height=1, width=3, data=b"ab"), "2 values for shape"),
    ],
)
def test_a_database_with_an_invalid_record_is_not_written(tmp_path, datum, found):
    value = datum.SerializeToString()
    with pytest.raises(caffe.Error) as error:
        write_database([[(b"k", value, digest(b"k", value))]], tmp_path / "db", 3)
    assert found in str(error.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("lose", [slice(0, 7), slice(1, None)])
def test_records_that_are_not_read_back_as_written_are_refused(tmp_path, monkeypatch, lose):
    put = records_module._put

    def put_others(environment, batch):
        """Lose a record of each batch, or edit the first one."""
        changed = [(key, value.replace(b"ab", b"aB"), digest) for key, value, digest in batch[:1]] if lose.start else []
        put(environment, changed + batch[lose])

    monkeypatch.setattr(records_module, "_put", put_others)
    values = [caffe_pb2.Datum(channels=1, height=1, width=2, data=b"ab", label=1).SerializeToString()] * 8
    batch = [(key, value, digest(key, value)) for key, value in zip((f"{n}".encode() for n in range(8)), values, strict=True)]
    with pytest.raises(InputError, match="db: records read back differ from those written"):
        write_database([batch, [(b"a" + key, value, digest(b"a" + key, value)) for key, value, _ in batch]], tmp_path / "db", 3)
    assert list(tmp_path.iterdir()) == []


def test_more_shards_than_the_open_files_limit_can_be_read(tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.formats.images.MAPPED", 16)
    count, images = 60, Resized(tmp_path)
    for number in range(count):
        write_resized(tmp_path / f"{number:05d}", {"a.jpg": np.full((2, 2, 3), number, np.uint8)})
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(list(Path("/proc/self/fd").iterdir())) + count // 2, before[1]))
    try:
        assert [int(images[f"{number:05d}/a.jpg"][0, 0, 0]) for number in range(count)] == list(range(count))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
