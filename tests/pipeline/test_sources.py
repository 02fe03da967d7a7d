"""What people bring becomes one table: lists of any form, folders as they lie, files by path."""

import gzip

import numpy as np
import pandas as pd
import pytest

from pipeline.errors import InputError
from pipeline.sources import Source, read


def rows(source):
    return read(source)[["url", "label", "split"]].to_numpy().tolist()


@pytest.fixture
def tree(tmp_path):
    """tree("cats/a.jpg", …) makes empty files below `images` and gives that folder."""

    def make(*names):
        for name in names:
            path = tmp_path / "images" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        return tmp_path / "images"

    return make


TABLE = "image_url,style,_split\nhttp://x/1.jpg,007,train\nhttp://x/2.jpg,NA,Test\n"
CALLED = {"url": "image_url", "label": "style", "split": "_split"}
SAME = [["http://x/1.jpg", "007", "train"], ["http://x/2.jpg", "NA", "test"]]


@pytest.mark.parametrize("name", ["all.csv", "all.tsv", "all.csv.gz", "all.parquet"])
def test_a_list_may_have_any_form_and_any_names(tmp_path, name):
    path = tmp_path / name
    text = TABLE.replace(",", "\t") if ".tsv" in name else TABLE
    if name.endswith("parquet"):
        columns = [line.split(",") for line in TABLE.splitlines()]
        pd.DataFrame(columns[1:], columns=columns[0]).assign(more=1.5).to_parquet(path)
    else:
        path.write_bytes(gzip.compress(text.encode()) if name.endswith("gz") else text.encode())
    assert rows(Source(list=path, columns=CALLED)) == SAME


def test_a_text_has_an_address_and_a_label_a_line(tmp_path):
    (tmp_path / "all.txt").write_text("http://x/a b.jpg cat\n\nhttp://x/2.jpg  7\n")
    assert rows(Source(list=tmp_path / "all.txt")) == [["http://x/a b.jpg", "cat", ""], ["http://x/2.jpg", "7", ""]]


def test_a_list_in_caffes_form_has_paths_below_its_root(tmp_path, tree):
    root = tree("cats/a b.jpg", "owls/c.jpg")
    (tmp_path / "train.txt").write_text("cats/a b.jpg 0\nowls/c.jpg 1\n")
    assert rows(Source(list=tmp_path / "train.txt", root=root)) == [
        [(root / "cats/a b.jpg").as_uri(), "0", ""],
        [(root / "owls/c.jpg").as_uri(), "1", ""],
    ]


def test_a_table_may_have_paths_below_its_root(tmp_path, tree):
    root = tree("a.jpg")
    (tmp_path / "all.csv").write_text("file,label\na.jpg,cat\n")
    assert rows(Source(list=tmp_path / "all.csv", root=root, columns={"path": "file"})) == [
        [(root / "a.jpg").as_uri(), "cat", ""]
    ]


def test_the_folders_of_a_folder_are_its_classes(tree):
    folder = tree("owls/b.PNG", "cats/2.jpg", "cats/1.jpeg", "cats/notes.txt", "cats/.hidden.jpg", ".git/x.jpg", "top.jpg")
    assert rows(Source(folder=folder)) == [
        [(folder / "cats/1.jpeg").as_uri(), "cats", ""],
        [(folder / "cats/2.jpg").as_uri(), "cats", ""],
        [(folder / "owls/b.PNG").as_uri(), "owls", ""],
    ]


@pytest.mark.parametrize("other", ["val", "test"])
def test_train_and_val_folders_are_the_split(tree, other):
    folder = tree("train/cats/1.jpg", f"{other}/cats/2.jpg")
    assert rows(Source(folder=folder)) == [
        [(folder / "train/cats/1.jpg").as_uri(), "cats", "train"],
        [(folder / other / "cats/2.jpg").as_uri(), "cats", other],
    ]


@pytest.mark.parametrize("lines", ["ILSVRC_2.JPEG n02\nILSVRC_1.JPEG n01\n", "n01\nn02\n"])
def test_imagenets_validation_images_get_their_labels_from_a_list(tree, tmp_path, lines):
    folder = tree("train/n01/a.JPEG", "train/n02/b.JPEG", "val/ILSVRC_1.JPEG", "val/ILSVRC_2.JPEG")
    (tmp_path / "val.txt").write_text(lines)
    found = {
        url.rpartition("/")[2]: (label, split)
        for url, label, split in rows(Source(folder=folder, val_labels=tmp_path / "val.txt"))
    }
    assert found["ILSVRC_1.JPEG"] == ("n01", "val")
    assert found["ILSVRC_2.JPEG"] == ("n02", "val")
    assert found["a.JPEG"] == ("n01", "train")


def test_a_sample_is_drawn_as_caffes_flickr_style_example_draws(tmp_path):
    (tmp_path / "all.csv").write_text("url\n" + "".join(f"http://x/{n}.jpg\n" for n in range(50)))
    np.random.seed(831486)  # as the example does
    order = np.random.permutation(50)[:20]
    drawn = read(Source(list=tmp_path / "all.csv", sample=20, seed=831486))
    assert list(drawn.url) == [f"http://x/{n}.jpg" for n in order]
    assert len(read(Source(list=tmp_path / "all.csv", sample=60))) == 50


BAD = {
    "a column that is not there": (
        {"list": "a.csv", "columns": {"url": "adress"}},
        {"a.csv": "address\nhttp://x\n"},
        "a.csv:1",
        "one called adress is wanted",
    ),
    "a table without addresses": ({"list": "a.csv"}, {"a.csv": "image,label\nx,y\n"}, "a.csv:1", "one called url is wanted"),
    "an empty table": ({"list": "a.csv"}, {"a.csv": "url,label\n"}, "a.csv", "one line for each image"),
    "an empty file": ({"list": "a.csv"}, {"a.csv": ""}, "a.csv", "with a header is wanted"),
    "a line without address": ({"list": "a.csv"}, {"a.csv": "url,label\nhttp://x,a\n\n,b\n"}, "a.csv:4", "each image has one"),
    "another split": ({"list": "a.csv"}, {"a.csv": "url,split\nhttp://x,tran\n"}, "a.csv:2", "it is train or val"),
    "more fields than the header": ({"list": "a.csv"}, {"a.csv": "url\nhttp://x,a,b\n"}, "a.csv", "with a header is wanted"),
    "no parquet": ({"list": "a.parquet"}, {"a.parquet": "PAR1"}, "a.parquet", "with a header is wanted"),
    "no gzip": ({"list": "a.csv.gz"}, {"a.csv.gz": "url\n"}, "a.csv.gz", "with a header is wanted"),
    "a text of paths without a root": ({"list": "a.txt"}, {"a.txt": "cats/1.jpg 0\n"}, "a.txt:1", "an address is wanted"),
    "an empty text": ({"list": "a.txt"}, {"a.txt": "\n"}, "a.txt", "one line for each image"),
    "no such list": ({"list": "a.csv"}, {}, "a.csv", ""),
    "no such folder": ({"folder": "f"}, {}, "f", "its folders are the classes"),
    "a folder without images": ({"folder": "f"}, {"f/cats/notes.txt": ""}, "f", "each class is a folder with images"),
    "validation images without labels": (
        {"folder": "f"},
        {"f/train/c/1.jpg": "", "f/val/2.jpg": ""},
        "f/val",
        "each class is a folder",
    ),
    "labels of another image": (
        {"folder": "f", "val_labels": "v.txt"},
        {"f/train/c/1.jpg": "", "f/val/2.jpg": "", "v.txt": "3.jpg c\n"},
        "v.txt:1",
        "no such image in",
    ),
    "too few labels": (
        {"folder": "f", "val_labels": "v.txt"},
        {"f/train/c/1.jpg": "", "f/val/2.jpg": "", "f/val/3.jpg": "", "v.txt": "c\n"},
        "v.txt",
        "has 2 images",
    ),
}


@pytest.mark.parametrize(("source", "files", "place", "expected"), BAD.values(), ids=BAD)
def test_a_source_that_gives_no_images_is_refused_with_its_place(tmp_path, source, files, place, expected):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    paths = {key: tmp_path / value if isinstance(value, str) else value for key, value in source.items()}
    with pytest.raises(InputError) as raised:
        read(Source(**paths))
    assert raised.value.where.endswith(place)
    assert expected in raised.value.expected
