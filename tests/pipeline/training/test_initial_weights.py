"""Weights from a URL: downloaded completely, and only accepted with the right hash."""

import hashlib
import http.server
import threading
from functools import partial

import pytest


@pytest.fixture
def address(tmp_path, monkeypatch):
    """The address of a server that has net.caffemodel."""
    (tmp_path / "served").mkdir()
    (tmp_path / "served/net.caffemodel").write_bytes(b"weights")
    handler = partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path / "served"))
    monkeypatch.setattr(http.server.SimpleHTTPRequestHandler, "log_message", lambda *_: None)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


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
