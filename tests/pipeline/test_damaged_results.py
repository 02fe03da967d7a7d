"""Digests of results, and tables and JSON of steps: what was cut off or edited is named."""

import hashlib

import pytest

from pipeline.errors import InputError
from pipeline.formats import digests
from pipeline.formats.tables import read_json, read_rows, read_table


@pytest.fixture
def sealed(tmp_path):
    """A sealed folder with a file, one in a subfolder, and a database's lock."""
    (tmp_path / "snapshots").mkdir()
    for name in ("final.caffemodel", "snapshots/first.caffemodel", "lock.mdb"):
        (tmp_path / name).write_text(name)
    digests.seal(tmp_path)
    return tmp_path


def test_sums_have_the_form_of_sha256sum(sealed):
    lines = (sealed / "SHA256SUMS").read_text().splitlines()
    names = ["final.caffemodel", "snapshots/first.caffemodel"]
    assert lines == [f"{hashlib.sha256(name.encode()).hexdigest()}  {name}" for name in names]


@pytest.mark.parametrize("name", ["final.caffemodel", "snapshots/first.caffemodel"])
def test_an_edited_file_is_named(sealed, name):
    digests.check(sealed / name)
    (sealed / name).write_text("edited")
    with pytest.raises(InputError, match=f"{name}: its SHA-256 is .* is recorded of it.*or remove .*SHA256SUMS"):
        digests.check(sealed / name)


def test_files_that_are_not_listed_pass(sealed):
    (sealed / "mine.caffemodel").write_text("mine")
    for path in (sealed / "mine.caffemodel", sealed / "lock.mdb", sealed / "missing"):
        digests.check(path)
    (sealed / f"{'0' * 64}.caffemodel").write_text("in a folder of another name")
    digests.check(sealed / f"{'0' * 64}.caffemodel")
    (sealed / "SHA256SUMS").write_bytes(b"\xff\xfe\n")
    digests.check(sealed / "final.caffemodel")


def test_a_downloaded_file_has_the_digest_that_it_is_named_by(tmp_path):
    path = tmp_path / "weights" / f"{hashlib.sha256(b'weights').hexdigest()}.caffemodel.h5"
    path.parent.mkdir()
    path.write_bytes(b"weights")
    digests.check(path)
    path.write_bytes(b"wEights")
    with pytest.raises(InputError, match="damaged or was edited"):
        digests.check(path)


def test_of_a_large_database_size_and_parts_count(tmp_path, monkeypatch):
    monkeypatch.setattr(digests, "WHOLE", 1000)
    monkeypatch.setattr(digests, "PARTS", 10)
    path = tmp_path / "data.mdb"
    content = bytearray(5000)
    path.write_bytes(content)
    before = digests.fingerprint(path)
    for place, is_seen in ((0, True), (4999, True), (150, False)):
        changed = content.copy()
        changed[place] = 1
        path.write_bytes(changed)
        assert (digests.fingerprint(path) != before) == is_seen
    path.write_bytes(content + b"\0")
    assert digests.fingerprint(path) != before


def refuses(path, content, said, read, *columns):
    path.write_bytes(content)
    with pytest.raises(InputError, match=f"{path.name}: .*{said}"):
        read(path, *columns)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"iteration,loss\n1,0.5\n2,0.", "cut off within a line"),
        (b"", "empty"),
        (b'iteration,loss\n"1,0.5\n', "not a table"),
        (b"iteration,loss\n1,0.x5\n", "column loss has a value that is no number"),
        (b"iteration,loss\n1,\xff\n", "not UTF-8"),
        (b"iteration\n1\n", "no column loss"),
    ],
)
def test_a_damaged_table_is_named(tmp_path, content, said):
    refuses(tmp_path / "metrics.csv", content, said, read_table, ["iteration", "loss"])


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"path,label\na.png,cat\nb.png", "cut off within a line"),
        (b"path,label\na.png\nb.png,dog\n", "row 2: another number of fields"),
        (b"path,label\na.png,cat,x\n", "row 2: another number of fields"),
        (b'path,label\n"a.png,cat\n', "not a table"),
        (b"path,lebal\na.png,cat\n", "no column label"),
    ],
)
def test_damaged_rows_are_named(tmp_path, content, said):
    refuses(tmp_path / "images.csv", content, said, read_rows, "path", "label")


def test_rows_keep_line_endings_and_bytes_of_names(tmp_path):
    path = tmp_path / "images.csv"
    path.write_bytes(b'path,label\r\n"a\rb\xe9\xe2\x80\xa8.png",cat\r\n')
    assert read_rows(path, "path") == [{"path": "a\rb\udce9\u2028.png", "label": "cat"}]


@pytest.mark.parametrize(
    ("content", "said"), [('{"images": 1', "not a JSON file"), ("[1]", "not a JSON file"), ("{}", "no key images")]
)
def test_damaged_json_is_named(tmp_path, content, said):
    path = tmp_path / "summary.json"
    path.write_text(content)
    with pytest.raises(InputError, match=f"summary.json: {said}"):
        read_json(path, "images")
    path.write_text('{"images": 1}')
    assert read_json(path, "images") == {"images": 1}
