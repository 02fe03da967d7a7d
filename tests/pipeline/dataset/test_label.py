from collections import Counter
from itertools import pairwise

import cv2
import numpy as np
import pandas as pd
import pytest

import caffe
from caffe.proto import caffe_pb2
from pipeline.dataset.duplicates import fingerprint
from pipeline.dataset.label import Listed, assign, draw_lists, write_lists
from pipeline.errors import InputError
from pipeline.formats.images import Resized
from pipeline.formats.lists import write_classes
from pipeline.options.dataset import LabelOptions, Split
from tests.pipeline.conftest import write_resized

COLUMN = Split(by="column")
LABEL = ("pipeline.dataset.label", "list", "download", "resize", "--output", "lists")


def tables(dataset):
    return sorted((dataset / "download").glob("*.csv"))


def lines(dataset, name):
    return (dataset / "lists" / name).read_text().splitlines()


def edit(dataset, **columns):
    """Change columns of the download tables; a function takes the label."""
    for path in tables(dataset):
        table = pd.read_csv(path, keep_default_na=False, dtype=str)
        table.assign(**{name: table.label.map(change) for name, change in columns.items()}).to_csv(path, index=False)


def reject(dataset, name):
    """Mark the images whose names contain `name` as rejected by the resize step."""
    for path in (dataset / "resize").rglob("images.csv"):
        table = pd.read_csv(path, keep_default_na=False)
        table.loc[table.path.str.contains(name), "reason"] = "damaged"
        table.to_csv(path, index=False)


def test_lists_have_caffes_format_with_labels_in_sorted_order(command, dataset):
    done = command(*LABEL)
    assert done.returncode == 0, done.stderr
    assert lines(dataset, "labels.txt") == ["cat", "dog", "owl"]
    assert lines(dataset, "synset_words.txt")[1] == "n00000001 dog"
    for line in lines(dataset, "train.txt") + lines(dataset, "val.txt"):
        path, label = line.split(" ")
        assert Resized(dataset / "resize")[path] is not None
        assert lines(dataset, "labels.txt")[int(label)] in path
    assert len(lines(dataset, "train.txt")) == 6
    assert len(lines(dataset, "val.txt")) == 3


@pytest.mark.parametrize("policy", ["report", "drop"])
def test_test_images_are_written_to_test_txt(command, dataset, policy):
    tables = sorted((dataset / "download").glob("*.csv"))
    for path in tables:
        table = pd.read_csv(path, keep_default_na=False)
        table.assign(split=[{"val": "test"}.get(one, one) for one in table.split]).to_csv(path, index=False)
    assert command(*LABEL).returncode == 0
    # Without a val split, the test images are used for validation.
    assert (len(lines(dataset, "val.txt")), lines(dataset, "test.txt")) == (3, [])
    held_out = lines(dataset, "val.txt")
    table = pd.read_csv(tables[0], keep_default_na=False)
    table.loc[0, "split"] = "val"
    table.to_csv(tables[0], index=False)
    done = command(*LABEL, "--duplicates", policy)
    assert done.returncode == 0, done.stderr
    assert sorted(lines(dataset, "test.txt")) == sorted(held_out)
    assert len(lines(dataset, "val.txt")) == 1
    assert "5 training and 1 validation images, 3 for testing" in done.stdout


def test_the_images_own_split_is_kept_only_if_it_is_complete(command, dataset):
    own = LABEL
    assert command(*own).returncode == 0
    kept = sorted(lines(dataset, "val.txt"))
    assert command(*LABEL, "--by", "column").returncode == 0
    assert kept == sorted(lines(dataset, "val.txt"))
    for given in ("train", ""):
        table = pd.read_csv(tables(dataset)[0], keep_default_na=False)
        table.assign(split=given).to_csv(tables(dataset)[0], index=False)
        table = pd.read_csv(tables(dataset)[1], keep_default_na=False)
        table.assign(split="train").to_csv(tables(dataset)[1], index=False)
        assert command(*own).returncode == 0
        drawn = lines(dataset, "val.txt")
        assert command(*LABEL, "--by", "fraction").returncode == 0
        assert drawn == lines(dataset, "val.txt")
        assert len(drawn) == 3


def test_numbers_sort_as_numbers():
    assert assign(listed(["10", "9", "010"]), LabelOptions(split=COLUMN), "table")[2] == ["9", "010", "10"]


def test_a_fraction_is_taken_of_every_class(dataset):
    write_lists(tables(dataset), dataset / "resize", dataset / "lists", LabelOptions(split=Split(val=0.34), seed=1))
    assert Counter(line.split(" ")[1] for line in lines(dataset, "val.txt")) == {"0": 1, "1": 1, "2": 1}
    assert Counter(line.split(" ")[1] for line in lines(dataset, "train.txt")) == {"0": 2, "1": 2, "2": 2}


def test_the_seed_decides_order_and_split(dataset):
    written = []
    for seed in (1, 1, 2):
        write_lists(tables(dataset), dataset / "resize", dataset / "lists", LabelOptions(split=Split(val=0.34), seed=seed))
        written.append((lines(dataset, "train.txt"), lines(dataset, "val.txt")))
    assert written[0] == written[1]
    assert written[0] != written[2]


def test_images_that_failed_or_were_rejected_are_left_out(dataset):
    reject(dataset, "000000_owl")
    table = pd.read_csv(tables(dataset)[1], keep_default_na=False)
    table.loc[0, ["path", "error"]] = ["", "not_found"]
    table.to_csv(tables(dataset)[1], index=False)
    assert (
        sum(
            write_lists(tables(dataset), dataset / "resize", dataset / "lists", LabelOptions(split=Split(val=0.5), seed=1))[
                0
            ].values()
        )
        == 7
    )


def test_the_number_of_failed_and_rejected_images_is_reported(command, dataset):
    reject(dataset, "000000_owl")
    table = pd.read_csv(tables(dataset)[1], keep_default_na=False)
    table.loc[0, ["path", "error"]] = ["", "not_found"]
    table.to_csv(tables(dataset)[1], index=False)
    done = command(*LABEL, "--val", 0.5)
    assert "\n2 more were not downloaded or decoded (damaged 1, not_found 1): see download/*.csv" in done.stdout, done.stderr


def test_a_class_without_images_is_named(fails, dataset):
    reject(dataset, "owl")
    fails(["download", 'class "owl" has no images', "images.csv"], *LABEL)


def test_a_class_without_downloaded_images_is_named(fails, dataset):
    for path in tables(dataset):
        table = pd.read_csv(path, keep_default_na=False)
        table.loc[table.label == "dog", ["path", "error"]] = ["", "not_found"]
        table.to_csv(path, index=False)
    fails(['class "dog" has no images'], *LABEL)


def test_a_class_without_training_images_is_named(fails, dataset):
    edit(dataset, split=lambda label: "val" if label == "cat" else "train")
    fails(["download", 'class "cat" has no training images'], *LABEL)


@pytest.mark.parametrize(
    ("columns", "found"),
    [
        ({"label": lambda label: "" if label == "owl" else label}, "no label for http://x/000000_owl"),
        ({"split": lambda label: ""}, "no split for 00000/000000_owl.jpg"),
        ({"split": lambda label: "train"}, "no validation images"),
        ({"path": lambda label: ""}, "has no images"),
    ],
)
def test_tables_without_labels_splits_or_images_are_refused(dataset, columns, found):
    edit(dataset, **columns)
    with pytest.raises(InputError) as raised:
        write_lists(tables(dataset), dataset / "resize", dataset / "lists", LabelOptions(split=COLUMN))
    assert "download" in raised.value.where
    assert found in raised.value.found
    assert not (dataset / "lists").exists()


def test_a_validation_fraction_out_of_range_is_refused(fails, dataset):
    fails(["--val: 1.2 is not between 0 and 1"], *LABEL, "--val", 1.2)


def test_class_names_by_number_keep_the_numbers(command, dataset):
    edit(dataset, label=lambda label: {"cat": "0", "dog": "2", "owl": "1"}[label])
    (dataset / "names.txt").write_text("tabby\nowl\nhound\n")
    done = command(*LABEL, "--names", "names.txt")
    assert done.returncode == 0, done.stderr
    assert lines(dataset, "labels.txt") == ["tabby", "owl", "hound"]
    for line in lines(dataset, "train.txt"):
        path, label = line.split(" ")
        assert {"0": "cat", "1": "owl", "2": "dog"}[label] in path


@pytest.mark.parametrize(
    ("names", "said"),
    [("a\nb\n", 'label "2"'), ("a\nb\nc\nd\n", "names.txt: 4 names, but the labels are 0 to 2: no image is of d")],
)
def test_names_that_do_not_fit_the_labels_are_refused(fails, dataset, names, said):
    edit(dataset, label=lambda label: {"cat": "0", "dog": "2", "owl": "1"}[label])
    (dataset / "names.txt").write_text(names)
    fails([said], *LABEL, "--names", "names.txt")


def listed(labels, splits=None, groups=None):
    """Images of these classes, named by their numbers."""
    count = len(labels)
    paths = [f"0/{number:03d}.jpg" for number in range(count)]
    prints = np.random.default_rng(0).integers(0, 256, (count, 16), dtype=np.uint8)
    return Listed(paths, labels, splits or ["train"] * count, groups or [""] * count, [(8, 8)] * count, prints)


def lists(images, split):
    """(class, position) of the lines of train.txt and val.txt."""
    numbers, parts, names = assign(images, split, "table")
    found = draw_lists(numbers, parts, names, split, "table")
    return [[(int(numbers[at]), int(at)) for at in found[part]] for part in ("train", "val")]


def uneven():
    """Eight training images of class a, two of b, one of each for validation."""
    return listed(["a"] * 9 + ["b"] * 3, ["train"] * 8 + ["val"] + ["train"] * 2 + ["val"])


def test_a_small_class_is_repeated_to_the_size_of_the_largest():
    train, val = lists(uneven(), LabelOptions(split=COLUMN, seed=1, repeat=True))
    assert Counter(number for number, _ in train) == {0: 8, 1: 8}
    assert Counter(at for number, at in train if number == 1) == {9: 4, 10: 4}
    assert max(Counter(at for number, at in train if number == 0).values()) == 1
    assert len(val) == 2
    classes = [number for number, _ in train]
    assert sum(one != other for one, other in pairwise(classes)) > 4  # the classes are mixed


def test_max_per_class_limits_a_large_class():
    train, _ = lists(uneven(), LabelOptions(split=Split(by="column", max_per_class=3), seed=1))
    assert Counter(number for number, _ in train) == {0: 3, 1: 2}
    others, _ = lists(uneven(), LabelOptions(split=Split(by="column", max_per_class=3), seed=2))
    assert set(others) != set(train)


def test_a_group_is_never_split():
    labels = [str(number % 3) for number in range(90)]
    groups = [f"g{number // 6}" for number in range(90)]
    groups[:6] = [""] * 6
    for split in (LabelOptions(split=Split(val=0.3), seed=1), LabelOptions(split=Split(folds=4, fold=2), seed=1)):
        numbers, parts, _ = assign(listed(labels, groups=groups), split, "table")
        held_out = parts == "val"
        for group in set(groups) - {""}:
            assert len({bool(held_out[at]) for at in range(90) if groups[at] == group}) == 1
        assert 0.15 <= held_out.mean() <= 0.35
        assert set(numbers[~held_out]) == {0, 1, 2}


def test_folds_hold_out_every_image_once_and_every_class_evenly():
    labels = ["a"] * 23 + ["b"] * 10 + ["c"] * 3
    images = listed(labels)
    found = np.stack(
        [assign(images, LabelOptions(split=Split(folds=5, fold=fold), seed=7), "table")[1] == "val" for fold in range(5)]
    )
    assert (found.sum(0) == 1).all()
    for name in "abc":
        sizes = found[:, np.array(labels) == name].sum(1)
        assert sizes.max() - sizes.min() <= 1
    assert found.sum(1).max() - found.sum(1).min() <= 1


def test_a_fold_out_of_range_is_refused(fails, dataset):
    fails(["split.fold: 3", "there are 3 folds, which count from 0"], *LABEL, "--folds", 3, "--fold", 3)


def test_a_class_with_too_few_images_is_named():
    with pytest.raises(InputError) as raised:
        lists(uneven(), LabelOptions(split=Split(by="column", min_per_class=3), seed=1))
    assert raised.value.found == 'class "b" has 2 training images'
    assert raised.value.expected == "every class needs 3"


def test_the_command_balances_classes(command, dataset):
    done = command(*LABEL, "--repeat", "--max-per-class", 1)
    assert done.returncode == 0, done.stderr
    assert len(lines(dataset, "train.txt")) == 3


def test_classes_are_counted_and_weighted(tmp_path):
    write_classes(tmp_path, ["a", "b"], {"train": [0] * 9 + [1] * 3, "val": [1]})
    table = pd.read_csv(tmp_path / "classes.csv")
    assert table.to_dict("list") == {
        "number": [0, 1],
        "class": ["a", "b"],
        "train": [9, 3],
        "val": [0, 1],
        "weight": [0.666667, 2],
    }
    assert (table.train * table.weight).tolist() == pytest.approx([6, 6], rel=1e-5)
    matrix = caffe.io.blobproto_to_array(caffe_pb2.BlobProto.FromString((tmp_path / "infogain.binaryproto").read_bytes()))
    np.testing.assert_allclose(matrix[0, 0], [[0.666667, 0], [0, 2]])


@pytest.fixture
def duplicated(dataset, picture):
    """The dataset, in which one validation image is a brighter training image, and another shares only its fingerprint."""
    for shard in ("00000", "00001"):
        names = list(Resized(dataset / "resize").shard(shard)[0])
        images = {name: picture(int(shard) * 10 + at, 64, 64) for at, name in enumerate(names)}
        if shard == "00000":
            first = images[names[0]]
        else:
            images[names[-1]] = cv2.convertScaleAbs(first, beta=6)
        write_resized(dataset / "resize" / shard, images)
    table = pd.read_csv(dataset / "resize/00001/images.csv")
    table.loc[len(table) - 2, "fingerprint"] = fingerprint(first).hex()
    table.to_csv(dataset / "resize/00001/images.csv", index=False)
    return dataset


@pytest.mark.parametrize(("policy", "found", "left"), [("report", 1, 3), ("drop", 1, 2), ("ignore", 0, 3)])
def test_validation_images_that_are_near_duplicates_of_training_images_are_found(command, duplicated, policy, found, left):
    done = command(*LABEL, "--duplicates", policy)
    assert done.returncode == 0, done.stderr
    rows = pd.read_csv(duplicated / "lists/duplicates.csv")
    assert len(rows) == found
    assert len(lines(duplicated, "val.txt")) == left
    assert ("near-duplicates of training images" in done.stdout) == bool(found)
    if found:
        assert rows.train[0] == "00000/000000_owl.jpg"
        assert rows.val[0] == "00001/000003_dog.jpg"
        assert (rows.val[0] in "".join(lines(duplicated, "val.txt"))) == (policy == "report")


def test_a_validation_set_of_nothing_but_duplicates_is_refused(dataset):
    for path in (dataset / "resize").rglob("pixels.npy"):
        np.save(path, np.load(path) * 0)
        table = pd.read_csv(path.with_name("images.csv"))
        table.assign(fingerprint="0" * 32).to_csv(path.with_name("images.csv"), index=False)
    with pytest.raises(InputError, match="all validation images are near-duplicates of training images"):
        write_lists(tables(dataset), dataset / "resize", dataset / "lists", LabelOptions(split=COLUMN, duplicates="drop"))


def test_image_sizes_are_counted(command, dataset):
    assert command(*LABEL).returncode == 0
    assert lines(dataset, "sizes.csv") == ["height,width,images", "8,8,9"]
