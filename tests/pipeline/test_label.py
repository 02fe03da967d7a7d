from collections import Counter

import pandas as pd
import pytest

from pipeline.errors import InputError
from pipeline.images import Resized
from pipeline.label import Split, assign, write_classes, write_lists

LABEL = ("pipeline.label", "list", "download", "resize", "--output", "lists")


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
    """Let the resize step have set aside the images whose names hold `name`."""
    for path in (dataset / "resize").rglob("images.csv"):
        table = pd.read_csv(path, keep_default_na=False)
        table.loc[table.path.str.contains(name), "reason"] = "unreadable"
        table.to_csv(path, index=False)


def test_lists_are_in_caffes_form_with_labels_in_sorted_order(command, dataset):
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


def test_numbers_sort_as_numbers():
    listed = pd.DataFrame({"path": list("abc"), "label": ["10", "9", "010"], "split": ["train"] * 3})
    listed = pd.concat([listed, listed.assign(split="val")], ignore_index=True)
    assert assign(listed, Split(None, 1), "table")[1] == ["9", "010", "10"]


def test_a_fraction_is_taken_of_every_class(dataset):
    write_lists(tables(dataset), dataset / "resize", dataset / "lists", Split(0.34, 1))
    assert Counter(line.split(" ")[1] for line in lines(dataset, "val.txt")) == {"0": 1, "1": 1, "2": 1}
    assert Counter(line.split(" ")[1] for line in lines(dataset, "train.txt")) == {"0": 2, "1": 2, "2": 2}


def test_the_seed_decides_order_and_split(dataset):
    written = []
    for seed in (1, 1, 2):
        write_lists(tables(dataset), dataset / "resize", dataset / "lists", Split(0.34, seed))
        written.append((lines(dataset, "train.txt"), lines(dataset, "val.txt")))
    assert written[0] == written[1]
    assert written[0] != written[2]


def test_images_that_failed_or_were_rejected_are_left_out(dataset):
    reject(dataset, "000000_owl")
    table = pd.read_csv(tables(dataset)[1], keep_default_na=False)
    table.loc[0, ["path", "error"]] = ["", "not_found"]
    table.to_csv(tables(dataset)[1], index=False)
    assert sum(write_lists(tables(dataset), dataset / "resize", dataset / "lists", Split(0.5, 1)).values()) == 7


def test_a_class_without_images_is_named(fails, dataset):
    reject(dataset, "owl")
    fails(["download", 'class "owl" has no images', "images.csv"], *LABEL)


def test_a_class_of_which_nothing_was_downloaded_is_named(fails, dataset):
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
def test_tables_that_give_no_lists_are_refused(dataset, columns, found):
    edit(dataset, **columns)
    with pytest.raises(InputError) as raised:
        write_lists(tables(dataset), dataset / "resize", dataset / "lists", Split(None, 1))
    assert "download" in raised.value.where
    assert found in raised.value.found
    assert not (dataset / "lists").exists()


def test_a_share_that_is_none_is_refused(fails, dataset):
    fails(["split.val", "1.2 is not between 0 and 1"], *LABEL, "--val", 1.2)


def test_names_by_number_keep_the_numbers(command, dataset):
    edit(dataset, label=lambda label: {"cat": "0", "dog": "2", "owl": "1"}[label])
    (dataset / "names.txt").write_text("tabby\nowl\nhound\n")
    done = command(*LABEL, "--names", "names.txt")
    assert done.returncode == 0, done.stderr
    assert lines(dataset, "labels.txt") == ["tabby", "owl", "hound"]
    for line in lines(dataset, "train.txt"):
        path, label = line.split(" ")
        assert {"0": "cat", "1": "owl", "2": "dog"}[label] in path


@pytest.mark.parametrize(("names", "said"), [("a\nb\n", 'label "2"'), ("a\nb\nc\nd\n", 'class "d" has no training images')])
def test_names_that_do_not_fit_the_labels_are_refused(fails, dataset, names, said):
    edit(dataset, label=lambda label: {"cat": "0", "dog": "2", "owl": "1"}[label])
    (dataset / "names.txt").write_text(names)
    fails([said], *LABEL, "--names", "names.txt")


def uneven():
    """Eight training images of class a, two of b, one of each for validation."""
    labels = ["a"] * 9 + ["b"] * 3
    split = ["train"] * 8 + ["val"] + ["train"] * 2 + ["val"]
    return pd.DataFrame({"path": [f"0/{n}.jpg" for n in range(12)], "label": labels, "split": split})


def test_a_small_class_is_repeated_to_the_length_of_the_largest():
    lists, _ = assign(uneven(), Split(None, 1, repeat=True), "table")
    assert lists["train"].number.value_counts().to_dict() == {0: 8, 1: 8}
    assert lists["train"].path[lists["train"].number == 1].value_counts().to_dict() == {"0/9.jpg": 4, "0/10.jpg": 4}
    assert lists["train"].path[lists["train"].number == 0].is_unique
    assert len(lists["val"]) == 2
    assert lists["train"].number.diff().ne(0).sum() > 4  # the classes are mixed


def test_a_large_class_is_cut_to_as_many_as_are_wanted():
    lists, _ = assign(uneven(), Split(None, 1, max_per_class=3), "table")
    assert lists["train"].number.value_counts().to_dict() == {0: 3, 1: 2}
    others, _ = assign(uneven(), Split(None, 2, max_per_class=3), "table")
    assert set(others["train"].path) != set(lists["train"].path)


def test_a_class_with_too_few_images_is_named():
    with pytest.raises(InputError) as raised:
        assign(uneven(), Split(None, 1, min_per_class=3), "table")
    assert raised.value.found == 'class "b" has 2 training images'
    assert raised.value.expected == "every class needs 3"


def test_the_command_balances(command, dataset):
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
