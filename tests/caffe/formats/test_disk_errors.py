"""A disk that is full or read-only is named with the path, whatever library has met that."""

import errno
import os

import pytest

import caffe


class LibraryError(Exception):
    pass


FULL, READ_ONLY, BROKEN = (os.strerror(code) for code in (errno.ENOSPC, errno.EROFS, errno.EIO))


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(errno.ENOSPC, FULL), f"needs more than the .* kB that were free .{FULL}"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), "needs more than the .*Disk quota exceeded"),
        (LibraryError(f"write failed: {FULL}"), f"needs more than the .*{FULL}"),
        (OSError(errno.EROFS, READ_ONLY), f"cannot be written .{READ_ONLY}.*writable"),
    ],
)
def test_a_disk_is_named_and_nothing_is_left(tmp_path, error, said):
    def write():
        with caffe.written_whole(tmp_path / "data") as part:
            part.write_text("half")
            raise error

    with pytest.raises(caffe.DiskError, match=rf"{tmp_path}/data: {said}") as raised:
        write()
    assert isinstance(raised.value, OSError)
    assert raised.value.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
    assert not list(tmp_path.iterdir())


def test_a_file_in_an_unfinished_folder_is_named_as_it_will_be(tmp_path):
    def write():
        with caffe.written_whole(tmp_path / "features") as part, caffe.written_whole(part / "ip1.npy"):
            raise OSError(errno.ENOSPC, FULL)

    with pytest.raises(caffe.DiskError, match=rf"{tmp_path}/features/ip1.npy: ") as raised:
        write()
    assert ".part" not in str(raised.value)


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOENT, "No such file", "a"), LibraryError("bad"), LibraryError(BROKEN), KeyError(1)]
)
def test_other_errors_stay_as_they_are(tmp_path, error):
    with pytest.raises(type(error)) as raised, caffe.written_whole(tmp_path / "data"):
        raise error
    assert raised.value is error


def test_an_input_output_error_is_a_full_disk_where_nothing_is_free(tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 0}))
    with pytest.raises(caffe.DiskError, match=FULL), caffe.disk_errors(tmp_path / "db"):
        raise LibraryError(f"mdb_txn_commit: {BROKEN}")


NET = 'layer { name: "ip" type: "DummyData" top: "x" dummy_data_param { shape { dim: 1 } } }'


def test_weights_are_saved_into_a_folder_that_is_made_for_them(tmp_path, write):
    net = caffe.Net(write("net.prototxt", NET), caffe.TEST)
    net.save(str(tmp_path / "new/deep/a.caffemodel"))
    net.save_hdf5(str(tmp_path / "newer/a.caffemodel.h5"))
    assert (tmp_path / "new/deep/a.caffemodel").exists()
    assert (tmp_path / "newer/a.caffemodel.h5").exists()


@pytest.mark.parametrize("name", ["taken/a.caffemodel", "taken/below/a.caffemodel"])
def test_weights_that_would_be_saved_below_a_file_are_an_error_that_names_it(tmp_path, write, name):
    net = caffe.Net(write("net.prototxt", NET), caffe.TEST)
    (tmp_path / "taken").write_text("a file")
    for save in (net.save, net.save_hdf5):
        with pytest.raises(caffe.FileError) as raised:
            save(str(tmp_path / name))
        assert raised.value.where == str(tmp_path / name)
        assert raised.value.expected == f"{tmp_path}/taken is a file, not a folder"
    assert (tmp_path / "taken").read_text() == "a file"
