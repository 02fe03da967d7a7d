import hashlib
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import cv2
import pandas as pd
import pycurl
import pytest

from pipeline.dataset.download import download
from pipeline.errors import InputError
from pipeline.options.dataset import FetchOptions


@pytest.fixture
def server(picture):
    """A server of images and of every kind of failure; `.asked` counts requests by path, `.url` is its address."""
    jpeg = cv2.imencode(".jpg", picture())[1].tobytes()
    asked = Counter()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            asked[self.path] += 1
            status, body, headers = 200, jpeg, {}
            if self.path.startswith("/missing"):
                status, body = 404, b"no"
            elif self.path.startswith("/page"):
                body = b"<!DOCTYPE html><html><body>This image has moved.</body></html>"
            elif self.path.startswith("/cut"):
                body = jpeg[: len(jpeg) // 2]
            elif self.path.startswith("/busy") and asked[self.path] < 3:
                status, body, headers = 503, b"", {"Retry-After": "0"}
            elif self.path.startswith("/broken"):
                status, body = 500, b""
            elif self.path.startswith("/moved"):
                status, body, headers = 302, b"", {"Location": "/image.jpg"}
            elif self.path.startswith("/astray"):
                status, body, headers = 302, b"", {"Location": "http://["}
            elif self.path.startswith("/dropped"):
                headers = {"Content-Length": str(len(jpeg) + 100)}
            self.send_response(status)
            for name, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        running.asked, running.jpeg = asked, jpeg
        running.url = f"http://127.0.0.1:{running.server_address[1]}"
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield running
        running.shutdown()
        thread.join()


@pytest.fixture
def fetch(tmp_path, monkeypatch):
    """fetch(urls, retries=0) downloads a list of URLs to `images` and gives the table."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")

    def fetch_urls(urls: list[str], sha256: str = "", **options) -> pd.DataFrame:
        pd.DataFrame({"url": urls, "label": "a", "sha256": sha256}).to_csv(tmp_path / "list.csv", index=False)
        options = FetchOptions(**{"retries": 0, "min_yield": 0, "timeout": 5, "allow_private": True, **options})
        return pd.DataFrame(download(tmp_path / "list.csv", tmp_path / "images", tmp_path / "table.csv", options))

    return fetch_urls


def test_every_url_has_a_row_with_its_outcome(server, fetch, tmp_path):
    paths = ["image.jpg", "missing.jpg", "page.jpg", "cut.jpg", "broken.jpg", "moved.jpg", "dropped.jpg"]
    fetch([f"{server.url}/{path}" for path in paths])
    table = pd.read_csv(tmp_path / "table.csv", keep_default_na=False)
    expected = ["", "not_found", "not_an_image", "not_an_image", "http_500", "", "truncated"]
    assert list(table.error) == expected
    assert list(table.status) == [200, 404, 200, 200, 500, 200, 0]
    assert list(table.path[table.error != ""]) == [""] * 5
    assert sorted(path.name for path in (tmp_path / "images").iterdir()) == ["000000_image.jpg", "000005_moved.jpg"]


def test_an_image_arrives_byte_for_byte_with_its_digest(server, fetch, tmp_path):
    table = fetch([f"{server.url}/image.jpg"])
    assert (tmp_path / "images" / table.path[0]).read_bytes() == server.jpeg
    assert table.sha256[0] == hashlib.sha256(server.jpeg).hexdigest()
    assert table.bytes[0] == len(server.jpeg)


def test_a_busy_server_is_retried(server, fetch):
    table = fetch([f"{server.url}/busy.jpg"], retries=2)
    assert list(table.error) == [""]
    assert server.asked["/busy.jpg"] == 3


def test_a_broken_server_is_retried_as_often_as_configured(server, fetch):
    table = fetch([f"{server.url}/broken.jpg"], retries=1)
    assert list(table.error) == ["http_500"]
    assert server.asked["/broken.jpg"] == 2


def test_a_missing_image_is_not_retried(server, fetch):
    fetch([f"{server.url}/missing.jpg"], retries=3)
    assert server.asked["/missing.jpg"] == 1


def test_a_file_gets_the_extension_of_its_content(server, fetch):
    table = fetch([f"{server.url}/image.png", f"{server.url}/image?size=big"])
    assert list(table.path) == ["000000_image.jpg", "000001_image.jpg"]


def test_urls_with_the_same_file_name_become_separate_files(server, fetch):
    table = fetch([f"{server.url}/a/1.jpg", f"{server.url}/b/1.jpg"])
    assert table.path.nunique() == 2


def test_content_with_another_sha256_than_listed_is_refused(server, fetch):
    assert list(fetch([f"{server.url}/image.jpg"], sha256="0" * 64).error) == ["other_sha256"]
    assert list(fetch([f"{server.url}/image.jpg"], sha256=hashlib.sha256(server.jpeg).hexdigest().upper()).error) == [""]


def test_a_file_that_is_too_large_is_refused(server, fetch):
    assert list(fetch([f"{server.url}/image.jpg"], max_bytes=100).error) == ["too_large"]


def test_a_file_url_is_accepted_only_if_allowed(fetch, tmp_path, picture):
    cv2.imwrite(str(tmp_path / "ä b.png"), picture())
    urls = [(tmp_path / "ä b.png").as_uri(), (tmp_path / "none.png").as_uri(), tmp_path.as_uri()]
    assert list(fetch(urls, allow_file=True).error) == ["", "not_found", "not_found"]
    assert list(fetch(urls).error) == ["refused"] * 3


def test_an_invalid_url_has_its_own_error(fetch):
    table = fetch(["ftp://x/1.jpg", "1.jpg", "http://", "http://[", "http://127.0.0.1:1/1.jpg"])
    assert list(table.error) == ["refused", "refused", "bad_url", "bad_url", "connection"]


def test_an_unparsable_url_or_redirect_fails_only_its_own_url(server, fetch):
    table = fetch([f"{server.url}/astray.jpg", "file://[", f"{server.url}/image.jpg"], allow_file=True)
    assert list(table.error) == ["bad_url", "bad_url", ""]


def test_a_host_name_with_a_private_address_is_refused(server, fetch):
    address = server.url.replace("127.0.0.1", "localhost")
    assert list(fetch([f"{address}/image.jpg"], allow_private=False).error) == ["refused"]
    assert not server.asked


@pytest.mark.parametrize("options", [{"allow_private": False}, {"max_bytes": 9}])
def test_refused_images_are_reported_with_the_key_of_the_setting(server, fetch, options):
    with pytest.raises(InputError) as raised:
        fetch([f"{server.url}/image.jpg"], min_yield=0.5, **options)
    assert f"source.{next(iter(options))}" in raised.value.do


def test_a_url_is_sent_with_its_escapes_unchanged(server, fetch):
    fetch([f"{server.url}/%7Ea%2Fb.jpg?sign=%41+|a%20b", f"{server.url}/ä b.jpg#c"])
    assert set(server.asked) == {"/%7Ea%2Fb.jpg?sign=%41+|a%20b", "/%C3%A4%20b.jpg"}


def test_the_client_speaks_http_2():
    assert "HTTP2" in pycurl.version or "nghttp2" in pycurl.version


def test_too_few_images_fail_the_step_with_the_reasons(server, fetch, tmp_path):
    with pytest.raises(InputError) as raised:
        fetch([f"{server.url}/{path}.jpg" for path in ("image", "page", "missing")], min_yield=0.5)
    assert "1 of 3 images" in raised.value.found
    assert "not_an_image 1" in raised.value.found
    assert not (tmp_path / "images").exists()
    assert not (tmp_path / "table.csv").exists()


def test_a_list_of_html_pages_fails_the_command_with_one_line(server, fails, write):
    write("list.csv", f"url,label\n{server.url}/page.jpg,a\n")
    fails(
        ["list.csv", "not_an_image", "/page.jpg"],
        "pipeline.dataset.download",
        "list.csv",
        "images",
        "--table",
        "table.csv",
        "--allow-private",
        leaves=("journal.jsonl",),
    )


def test_the_command_downloads_a_list(server, command, write, tmp_path):
    write("list.csv", f"url,label\n{server.url}/image.jpg,a\n")
    done = command(
        "pipeline.dataset.download", "list.csv", "images", "--table", "table.csv", "--concurrency", 2, "--allow-private"
    )
    assert done.returncode == 0, done.stderr
    assert "1 of 1" in done.stdout
    assert (tmp_path / "images/000000_image.jpg").exists()
