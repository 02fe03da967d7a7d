"""Sources of images become one table: lists in any format, class folders, and files by path."""

import gzip

import numpy as np
import pandas as pd
import pytest

from pipeline.errors import InputError
from pipeline.sources.folders import describe_ignored, listing
from pipeline.sources.tables import Source
from tests.pipeline.conftest import read_source


def rows(source):
    return read_source(source)[["url", "label", "split"]].to_numpy().tolist()


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
def test_a_list_may_have_any_format_and_column_names(tmp_path, name):
    path = tmp_path / name
    text = TABLE.replace(",", "\t") if ".tsv" in name else TABLE
    if name.endswith("parquet"):
        columns = [line.split(",") for line in TABLE.splitlines()]
        pd.DataFrame(columns[1:], columns=columns[0]).assign(more=1.5).to_parquet(path)
    else:
        path.write_bytes(gzip.compress(text.encode()) if name.endswith("gz") else text.encode())
    assert rows(Source(list=path, columns=CALLED)) == SAME


def test_a_text_list_has_a_url_and_a_label_per_line(tmp_path):
    (tmp_path / "all.txt").write_text("http://x/a b.jpg cat\n\nhttp://x/2.jpg  7\n")
    assert rows(Source(list=tmp_path / "all.txt")) == [["http://x/a b.jpg", "cat", ""], ["http://x/2.jpg", "7", ""]]


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_a_table_written_by_excel_is_read(tmp_path, separator):
    lines = ["url, label ", "http://x/1.jpg,Möwe", '"http://x/a,b.jpg",Käfer', ","]
    text = "".join(f"{line.replace(',', separator)}\r\n" for line in lines).replace(f"a{separator}b", "a,b")
    (tmp_path / "all.csv").write_bytes(text.encode("utf-8-sig"))
    assert rows(Source(list=tmp_path / "all.csv")) == [["http://x/1.jpg", "Möwe", ""], ["http://x/a,b.jpg", "Käfer", ""]]


def test_windows_paths_and_multi_line_classes_are_read(tmp_path, tree):
    root = tree("cats/1.jpg", "odd\\name.jpg")
    (tmp_path / "all.csv").write_text('path,label\ncats\\1.jpg,"cat,\ntabby"\nodd\\name.jpg,cat\n')
    assert rows(Source(list=tmp_path / "all.csv", root=root)) == [
        [(root / "cats/1.jpg").as_uri(), "cat, tabby", ""],
        [(root / "odd\\name.jpg").as_uri(), "cat", ""],
    ]


def test_a_byte_order_mark_is_ignored(tmp_path):
    (tmp_path / "all.TXT").write_bytes("http://x/1.jpg cat\r\n".encode("utf-8-sig"))
    assert rows(Source(list=tmp_path / "all.TXT")) == [["http://x/1.jpg", "cat", ""]]


def test_a_caffe_list_has_paths_relative_to_its_root(tmp_path, tree):
    root = tree("cats/a b.jpg", "owls/c.jpg")
    (tmp_path / "train.txt").write_text("cats/a b.jpg 0\nowls/c.jpg 1\n")
    assert rows(Source(list=tmp_path / "train.txt", root=root)) == [
        [(root / "cats/a b.jpg").as_uri(), "0", ""],
        [(root / "owls/c.jpg").as_uri(), "1", ""],
    ]


def test_a_table_may_have_paths_relative_to_its_root(tmp_path, tree):
    root = tree("a.jpg")
    (tmp_path / "all.csv").write_text("file,label\na.jpg,cat\n")
    assert rows(Source(list=tmp_path / "all.csv", root=root, columns={"path": "file"})) == [
        [(root / "a.jpg").as_uri(), "cat", ""]
    ]


def test_the_subfolders_of_a_folder_are_its_classes(tree):
    folder = tree("owls/b.PNG", "cats/2.jpg", "cats/1.jpeg", "cats/notes.txt", "cats/.hidden.jpg", ".git/x.jpg", "top.jpg")
    assert rows(Source(folder=folder)) == [
        [(folder / "cats/1.jpeg").as_uri(), "cats", ""],
        [(folder / "cats/2.jpg").as_uri(), "cats", ""],
        [(folder / "owls/b.PNG").as_uri(), "owls", ""],
    ]


def test_images_in_nested_folders_belong_to_the_class_folder(tree):
    folder = tree("cats/2019/may/1.jpg", "cats/2020.jpg", "cats/.trash/3.jpg", "dogs/1/images/4.jpg")
    (folder / "dogs/1/images/up").symlink_to(folder / "dogs")
    assert rows(Source(folder=folder)) == [
        [(folder / "cats/2019/may/1.jpg").as_uri(), "cats", ""],
        [(folder / "cats/2020.jpg").as_uri(), "cats", ""],
        [(folder / "dogs/1/images/4.jpg").as_uri(), "dogs", ""],
    ]


@pytest.mark.parametrize("train", ["train", "Training"])
@pytest.mark.parametrize(("other", "split"), [("Val", "val"), ("valid", "val"), ("validation", "val"), ("testing", "test")])
def test_split_folders_may_have_other_names(tree, train, other, split):
    folder = tree(f"{train}/cats/1.jpg", f"{other}/cats/2.jpg")
    assert rows(Source(folder=folder)) == [
        [(folder / train / "cats/1.jpg").as_uri(), "cats", "train"],
        [(folder / other / "cats/2.jpg").as_uri(), "cats", split],
    ]


def test_ignored_files_of_a_folder_are_described(tree):
    folder = tree("cats/1.jpg", "cats/2.heic", "cats/notes.txt", "dogs/3.HEIC", "top.png", "cats/.DS_Store", ".git/x.jpg")
    expected = "classes without images (dogs); files of other kinds (.heic 2, .txt 1); images outside of class folders (1)"
    assert describe_ignored(folder) == expected


def test_nothing_is_described_for_a_folder_of_only_images(tree):
    assert describe_ignored(tree("train/cats/1.jpg", "train/dogs/1.jpg", "val/cats/2.jpg")) == ""


def test_the_listing_of_a_folder_changes_when_an_image_is_added_or_renamed(tree):
    folder = tree("train/cats/1.jpg", "train/cats/deep/2.jpg")
    before = listing(folder)
    (folder / "train/cats/.DS_Store").touch()
    (folder / "train/cats/1.jpg").touch()
    assert listing(folder) == before
    (folder / "train/cats/deep/2.jpg").rename(folder / "train/cats/deep/3.jpg")
    renamed = listing(folder)
    (folder / "train/cats/deep/2.jpg").touch()
    assert len({before, renamed, listing(folder)}) == 3


@pytest.mark.parametrize("other", ["val", "test"])
def test_train_and_val_folders_are_the_split(tree, other):
    folder = tree("train/cats/1.jpg", f"{other}/cats/2.jpg")
    assert rows(Source(folder=folder)) == [
        [(folder / "train/cats/1.jpg").as_uri(), "cats", "train"],
        [(folder / other / "cats/2.jpg").as_uri(), "cats", other],
    ]


@pytest.mark.parametrize("lines", ["ILSVRC_2.JPEG n02\nILSVRC_1.JPEG\tn01\n", "n01\nn02\n"])
def test_imagenets_validation_images_get_their_labels_from_a_list(tree, tmp_path, lines):
    folder = tree("train/n01/a.JPEG", "train/n02/b.JPEG", "val/ILSVRC_1.JPEG", "val/ILSVRC_2.JPEG", "test/ILSVRC_3.JPEG")
    (tmp_path / "val.txt").write_text(lines)
    found = {
        url.rpartition("/")[2]: (label, split)
        for url, label, split in rows(Source(folder=folder, val_labels=tmp_path / "val.txt"))
    }
    assert found["ILSVRC_1.JPEG"] == ("n01", "val")
    assert found["ILSVRC_2.JPEG"] == ("n02", "val")
    assert found["a.JPEG"] == ("n01", "train")
    assert "ILSVRC_3.JPEG" not in found  # the test images have no labels


def test_a_sample_is_drawn_as_in_caffes_flickr_style_example(tmp_path):
    (tmp_path / "all.csv").write_text("url,label\n" + "".join(f"http://x/{n}.jpg,7\n" for n in range(50)))
    np.random.seed(831486)  # as the example does
    order = np.random.permutation(50)[:20]
    drawn = read_source(Source(list=tmp_path / "all.csv", sample=20, seed=831486))
    assert list(drawn.url) == [f"http://x/{n}.jpg" for n in order]
    assert len(read_source(Source(list=tmp_path / "all.csv", sample=60))) == 50


BAD = {
    "a missing column": (
        {"list": "a.csv", "columns": {"url": "adress"}},
        {"a.csv": "address\nhttp://x\n"},
        "a.csv:1",
        "none is called adress",
    ),
    "a table without URLs": ({"list": "a.csv"}, {"a.csv": "image,label\nx,y\n"}, "a.csv:1", "none is called url"),
    "an empty table": ({"list": "a.csv"}, {"a.csv": "url,label\n"}, "a.csv", "one line per image"),
    "an empty file": ({"list": "a.csv"}, {"a.csv": ""}, "a.csv", "file with a header"),
    "a line without a URL": ({"list": "a.csv"}, {"a.csv": "url,label\nhttp://x,a\n\n,b\n"}, "a.csv:4", "each image has one"),
    "an unknown split": ({"list": "a.csv"}, {"a.csv": "url,label,split\nhttp://x,a,tran\n"}, "a.csv:2", "train, val or test"),
    "a table without labels": ({"list": "a.csv"}, {"a.csv": "url,class\nhttp://x,a\n"}, "a.csv:1", "none is called label"),
    "a line without a label": (
        {"list": "a.csv"},
        {"a.csv": "url,label\nhttp://x,a\nhttp://y,\n"},
        "a.csv:3",
        "each image has one",
    ),
    "a line of a text list without a label": (
        {"list": "a.txt"},
        {"a.txt": "http://x a\nhttp://y\n"},
        "a.txt:2",
        "a line is an image and its label",
    ),
    "a table of paths without a root": (
        {"list": "a.csv"},
        {"a.csv": "url,label\n1.jpg,a\n"},
        "a.csv:2",
        "has URLs",
    ),
    "a table in Latin-1": (
        {"list": "a.csv"},
        {"a.csv": "url,label\nhttp://x,a\nhttp://y,\udcf6\n"},
        "a.csv:3",
        "file with a header",
    ),
    "a text list in Latin-1": ({"list": "a.txt"}, {"a.txt": "http://x a\nhttp://y \udcf6\n"}, "a.txt:2", "it has to be UTF-8"),
    "more fields than the header": ({"list": "a.csv"}, {"a.csv": "url,label\nhttp://x,a,b\n"}, "a.csv:2", "file with a header"),
    "a quotation mark that is not closed": (
        {"list": "a.csv"},
        {"a.csv": 'url,label\n"http://x,a\n'},
        "a.csv",
        "file with a header",
    ),
    "fewer fields than the header": ({"list": "a.csv"}, {"a.csv": "url,label\nhttp://x\n"}, "a.csv:2", "each image has one"),
    "invalid parquet": ({"list": "a.parquet"}, {"a.parquet": "PAR1"}, "a.parquet", "file with a header"),
    "invalid gzip": ({"list": "a.csv.gz"}, {"a.csv.gz": "url\n"}, "a.csv.gz", "file with a header"),
    "a text list of paths without a root": (
        {"list": "a.txt"},
        {"a.txt": "cats/1.jpg 0\n"},
        "a.txt:1",
        "has URLs",
    ),
    "an empty text list": ({"list": "a.txt"}, {"a.txt": "\n"}, "a.txt", "one line per image"),
    "no such list": ({"list": "a.csv"}, {}, "a.csv", ""),
    "no such folder": ({"folder": "f"}, {}, "f", "each class is a folder in it"),
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
    "labels of images that have classes": (
        {"folder": "f", "val_labels": "v.txt"},
        {"f/train/c/1.jpg": "", "f/val/c/2.jpg": "", "v.txt": "c\n"},
        "v.txt",
        "it has the labels of such",
    ),
    "too few labels": (
        {"folder": "f", "val_labels": "v.txt"},
        {"f/train/c/1.jpg": "", "f/val/2.jpg": "", "f/val/3.jpg": "", "v.txt": "c\n"},
        "v.txt",
        "has 2 images",
    ),
}


@pytest.mark.parametrize(("source", "files", "place", "expected"), BAD.values(), ids=BAD)
def test_an_invalid_source_is_refused_with_its_file_and_line(tmp_path, source, files, place, expected):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(text.encode(errors="surrogateescape"))
    paths = {key: tmp_path / value if isinstance(value, str) else value for key, value in source.items()}
    with pytest.raises(InputError) as raised:
        read_source(Source(**paths))
    assert raised.value.where.endswith(place)
    assert expected in raised.value.expected
