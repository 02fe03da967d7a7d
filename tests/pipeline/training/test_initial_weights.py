"""Weights from a URL: downloaded completely, and only accepted with the right hash."""

import hashlib

import pytest

from tests import standins


@pytest.fixture
def address(tmp_path):
    """The address of a server that has net.caffemodel."""
    (tmp_path / "served").mkdir()
    (tmp_path / "served/net.caffemodel").write_bytes(b"weights")
    with standins.serve(tmp_path / "served") as address:
        yield address


SHA256 = hashlib.sha256(b"weights").hexdigest()


def test_weights_of_the_right_hash_are_written(address, command, tmp_path):
    done = command(
        "pipeline.training.initial_weights", "here/net.caffemodel", "--url", f"{address}/net.caffemodel", "--sha256", SHA256
    )
    assert (done.returncode, done.stdout) == (0, "here/net.caffemodel: 7 bytes\n"), done.stderr
    assert (tmp_path / "here/net.caffemodel").read_bytes() == b"weights"


def test_weights_of_another_hash_are_refused(address, fails):
    said = [f"/net.caffemodel: SHA-256 {SHA256}, but sha256 is {'0' * 64}"]
    fails(said, "pipeline.training.initial_weights", "net.caffemodel", "--url", f"{address}/net.caffemodel", "--sha256", "0" * 64)


@pytest.mark.parametrize(("url", "error"), [("{}/absent", "not_found"), ("file:///etc/hostname", "refused")])
def test_a_url_without_a_file_is_named_with_the_reason(address, fails, url, error):
    url = url.format(address)
    fails(
        [f"{url}: {error}; correct the URL"],
        "pipeline.training.initial_weights",
        "net.caffemodel",
        "--url",
        url,
        "--sha256",
        SHA256,
    )
