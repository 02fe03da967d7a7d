import io

import pandas as pd
import pytest

from pipeline.dataset.download import read_shard
from pipeline.sources import tables
from pipeline.sources.shards import write_shards
from pipeline.sources.tables import Row


def test_a_list_is_split_into_shards_in_its_order(command, write, tmp_path):
    write("all.csv", "url,label\n" + "".join(f"http://x/{n}.jpg,c{n % 2}\n" for n in range(7)))
    done = command("pipeline.sources.shards", "list", "--list", "all.csv", "--shard-size", 3)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "list: 7 images of 2 classes in 3 shards\n"
    shards = [pd.read_csv(path) for path in sorted((tmp_path / "list").iterdir())]
    assert [len(shard) for shard in shards] == [3, 3, 1]
    assert list(shards[0].columns) == ["url", "label", "split", "group", "sha256"]
    assert list(pd.concat(shards).url) == [f"http://x/{n}.jpg" for n in range(7)]


def test_classes_that_differ_only_in_spelling_are_reported(command, write):
    labels = ["01", "1", "1.0", "10", "Cat", "cat", "fish", "\ufb01sh", "cats", "nan"]
    write("all.csv", "url,label\n" + "".join(f"http://x/{n}.jpg,{label}\n" for n, label in enumerate(labels)))
    done = command("pipeline.sources.shards", "list", "--list", "all.csv")
    assert done.returncode == 0, done.stderr
    said = "list: classes whose names differ only in spelling: 01 = 1 = 1.0, Cat = cat, fish = \ufb01sh"
    assert done.stdout.splitlines()[1:] == [said]


def test_a_shorter_list_removes_the_shards_of_a_longer_one(tmp_path):
    for count in (5, 1):
        write_shards([Row("http://x/a.jpg", "a")] * count, tmp_path / "list", 2)
    assert [path.name for path in (tmp_path / "list").iterdir()] == ["00000.csv"]


def test_a_shard_round_trips(tmp_path):
    row = Row("http://x/a,b.jpg", "007", "val", "g")
    write_shards([row], tmp_path / "list", 1)
    assert read_shard(tmp_path / "list/00000.csv") == [row._asdict()]


def test_a_shard_size_of_0_is_refused(fails, tmp_path):
    fails(["--shard-size: 0 is less than 1"], "pipeline.sources.shards", "list", "--list", "all.csv", "--shard-size", 0)
    assert not (tmp_path / "list").exists()


def test_a_missing_list_is_named(fails):
    fails(["missing.csv", "no such image list"], "pipeline.sources.shards", "list", "--list", "missing.csv")


def test_columns_with_other_names_are_mapped(command, write, tmp_path):
    write("all.csv", "address,kind\nhttp://x/1.jpg,a\n")
    columns = '{"url": "address", "label": "kind"}'
    done = command("pipeline.sources.shards", "list", "--list", "all.csv", "--columns", columns)
    assert done.returncode == 0, done.stderr
    assert list(pd.read_csv(tmp_path / "list/00000.csv").label) == ["a"]


@pytest.mark.parametrize("kind", ["csv", "tsv", "parquet", "txt"])
@pytest.mark.parametrize("sample", [None, 9])
def test_a_list_that_is_read_in_chunks_gives_the_same_shards(tmp_path, monkeypatch, kind, sample):
    table = pd.DataFrame({"url": [f"http://x/{n}.jpg" for n in range(23)], "label": [f"c{n % 3}" for n in range(23)]})
    path = tmp_path / f"all.{kind}"
    if kind == "parquet":
        table.to_parquet(path)
    else:
        table.to_csv(path, index=False, header=kind != "txt", sep={"csv": ",", "tsv": "\t", "txt": " "}[kind])
    written = []
    for size in (10_000, 4):
        monkeypatch.setattr("pipeline.sources.tables.CHUNK", size)
        images, classes = write_shards(tables.rows(tables.Source(list=path, sample=sample)), tmp_path / "list", 5)
        assert (images, len(classes)) == (sample or 23, 3)
        written.append([shard.read_text() for shard in sorted((tmp_path / "list").iterdir())])
        assert len(written[-1]) == (2 if sample else 5)
    assert written[0] == written[1]
    if not sample:
        assert pd.concat([pd.read_csv(io.StringIO(text)) for text in written[0]]).url.tolist() == table.url.tolist()
