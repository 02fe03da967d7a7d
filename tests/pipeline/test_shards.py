import pandas as pd
import pytest

from pipeline.errors import InputError
from pipeline.shards import read_list, write_shards


def test_a_list_is_cut_into_shards_in_its_order(command, write, tmp_path):
    write("all.csv", "url,label\n" + "".join(f"http://x/{n}.jpg,c{n % 2}\n" for n in range(7)))
    assert command("pipeline.shards", "all.csv", "list", "--size", 3).returncode == 0
    shards = [pd.read_csv(path) for path in sorted((tmp_path / "list").iterdir())]
    assert [len(shard) for shard in shards] == [3, 3, 1]
    assert list(shards[0].columns) == ["url", "label", "split", "sha256"]
    assert list(pd.concat(shards).url) == [f"http://x/{n}.jpg" for n in range(7)]


def test_a_shorter_list_leaves_no_shard_of_the_longer_one(write, tmp_path):
    for count in (5, 1):
        path = write("all.csv", "url\n" + "http://x/a.jpg\n" * count)
        write_shards(tmp_path / path, tmp_path / "list", 2)
    assert [path.name for path in (tmp_path / "list").iterdir()] == ["00000.csv"]


def test_labels_stay_as_they_are_written(write, tmp_path):
    table = read_list(tmp_path / write("all.tsv", "label\turl\n007\thttp://x/1.jpg\nNA\thttp://x/a,b.jpg\n"))
    assert list(table.label) == ["007", "NA"]
    assert list(table.url) == ["http://x/1.jpg", "http://x/a,b.jpg"]


@pytest.mark.parametrize(
    ("text", "place", "found"),
    [
        ("image,label\nhttp://x/1.jpg,a\n", "all.csv:1", "columns image, label"),
        ("url,label\n", "all.csv", "no images"),
        ("", "all.csv", "not a table"),
        ("url,label\nhttp://x/1.jpg,a\n\n,b\n", "all.csv:4", 'url ""'),
        ("url,split\nhttp://x/1.jpg,train\nhttp://x/2.jpg,test\n", "all.csv:3", 'split "test"'),
        ("url\nhttp://x/1.jpg,a,b\n", "all.csv", "not a table"),
    ],
)
def test_a_list_that_cannot_be_used_is_refused_with_its_line(write, tmp_path, text, place, found):
    path = tmp_path / write("all.csv", text)
    with pytest.raises(InputError) as raised:
        write_shards(path, tmp_path / "list", 10)
    assert raised.value.where.endswith(place)
    assert found in raised.value.found
    assert not (tmp_path / "list").exists()


def test_a_missing_list_is_named(fails):
    fails(["missing.csv", "no such image list"], "pipeline.shards", "missing.csv", "list")


def test_a_list_without_urls_is_named(fails, write):
    write("all.csv", "image\nx.jpg\n")
    fails(["all.csv:1", "url"], "pipeline.shards", "all.csv", "list")
