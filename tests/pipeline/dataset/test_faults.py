"""2,000 URLs of a server with every fault: each good image arrives, each bad URL has its error, and a killed run resumes."""

import asyncio
import multiprocessing
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import zlib
from collections import Counter

import cv2
import pandas as pd
import psutil
import pytest
from aiohttp import web

from tests.conftest import ROOT

COUNT = 2000
KINDS = {  # path: the error that it ends in
    "good": "",
    "heals": "",  # 500 once
    "busy": "",  # 429 with Retry-After once
    "redirect": "",
    "missing": "not_found",
    "forbidden": "http_403",
    "broken": "http_500",
    "reset": "connection",
    "cut": "truncated",
    "drip": "timeout",
    "page": "not_an_image",
    "loop": "too_many_redirects",
    "huge": "too_large",
    "endless": "too_large",
    "bomb": "too_many_pixels",
    "optout": "opted_out",
    "inside": "refused",  # redirects to a file
}
RARE = {"drip", "endless", "huge", "bomb"}


def kind_of(number: int) -> str:
    """Half the URLs are good; slow faults are few."""
    if number % 2:
        return "good"
    kinds = [kind for kind in KINDS if kind != "good" and (kind not in RARE or number % 100 == 0)]
    return kinds[number // 2 % len(kinds)] if number % 100 else ["drip", "endless", "huge", "bomb"][number // 100 % 4]


def serve(jpeg: bytes, ready) -> None:
    """Run the server, in its own process; /asked gives the number of requests by path."""
    asked = Counter()
    bomb = png_of_zeros(20000, 20000)

    async def answer(request: web.Request) -> web.StreamResponse:
        kind, number = request.match_info["kind"], request.match_info["number"]
        asked[request.path] += 1
        first = asked[request.path] == 1
        image = web.Response(body=jpeg, content_type="image/jpeg")
        if kind == "heals" and first:
            return web.Response(status=500)
        if kind == "busy" and first:
            return web.Response(status=429, headers={"Retry-After": "1"})
        if kind in ("missing", "forbidden", "broken"):
            return web.Response(status={"missing": 404, "forbidden": 403, "broken": 500}[kind])
        if kind == "redirect":
            raise web.HTTPFound(f"/good/{number}")
        if kind == "loop":
            raise web.HTTPFound(f"/loop/{number}")
        if kind == "inside":
            raise web.HTTPFound("file:///etc/hostname")
        if kind == "page":
            return web.Response(text="<html>This image has moved.</html>", content_type="image/jpeg")
        if kind == "bomb":
            return web.Response(body=bomb, content_type="image/png")
        if kind == "optout":
            image.headers["X-Robots-Tag"] = "noai, noimageai"
        if kind in ("reset", "cut", "drip", "endless", "huge"):
            return await misbehave(request, kind)
        return image

    async def misbehave(request: web.Request, kind: str) -> web.StreamResponse:
        if kind == "reset":
            linger = struct.pack("ii", 1, 0)
            request.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            request.transport.close()
            return web.Response()
        length = {"cut": len(jpeg), "drip": len(jpeg), "huge": 1 << 30, "endless": None}[kind]
        response = web.StreamResponse(headers={"Content-Type": "image/jpeg"})
        if length:
            response.content_length = length
        else:
            response.enable_chunked_encoding()
        await response.prepare(request)
        if kind == "cut":
            await response.write(jpeg[:500])
            request.transport.close()
            return response
        piece = jpeg[:1] if kind == "drip" else bytes(1 << 16)
        for _ in range(1 << 14):  # 1 GB at most
            await response.write(piece)
            await asyncio.sleep(0.2 if kind == "drip" else 0)
        return response

    async def tell(_: web.Request) -> web.Response:
        return web.json_response(dict(asked))

    async def start() -> None:
        application = web.Application()
        application.add_routes([web.get("/asked", tell), web.get("/{kind}/{number}", answer)])
        runner = web.AppRunner(application)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        ready.put(site._server.sockets[0].getsockname()[1])
        await asyncio.Event().wait()

    asyncio.run(start())


def png_of_zeros(height: int, width: int) -> bytes:
    """A small file whose pixels would take gigabytes."""
    packer, lines = zlib.compressobj(9), bytes(width + 1)
    packed = b"".join(packer.compress(lines) for _ in range(height)) + packer.flush()
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)), (b"IDAT", packed), (b"IEND", b"")]
    parts = [struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


@pytest.fixture(scope="module")
def server():
    """The address of the server."""
    import numpy as np

    coarse = np.random.default_rng(0).integers(0, 256, (5, 5, 3)).astype(np.uint8)
    jpeg = cv2.imencode(".jpg", cv2.resize(coarse, (120, 90)))[1].tobytes()
    context = multiprocessing.get_context("spawn")
    ready = context.Queue()
    process = context.Process(target=serve, args=(jpeg, ready), daemon=True)
    process.start()
    yield f"http://127.0.0.1:{ready.get(timeout=600)}"
    process.kill()
    process.join()


def asked(server: str) -> dict[str, int]:
    import json
    from urllib.request import urlopen

    with urlopen(f"{server}/asked") as answer:
        return json.load(answer)


def start_download(folder, **options) -> subprocess.Popen:
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
    words = [
        sys.executable,
        "-m",
        "pipeline.dataset.download",
        "list.csv",
        "images",
        "--table",
        "table.csv",
        "--allow-private",
        *flags,
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "NO_PROXY": "127.0.0.1"}
    return subprocess.Popen(words, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def peak_memory(process: subprocess.Popen) -> list[int]:
    """A list of one number: the peak memory of the process so far, in MB."""
    peak = [0]

    def watch() -> None:
        watched = psutil.Process(process.pid)
        while process.poll() is None:
            try:
                peak[0] = max(peak[0], watched.memory_info().rss >> 20)
            except psutil.NoSuchProcess:
                return
            time.sleep(0.05)

    threading.Thread(target=watch, daemon=True).start()
    return peak


def test_every_good_image_arrives_and_every_bad_url_has_its_error(server, tmp_path):
    kinds = [kind_of(number) for number in range(COUNT)]
    assert set(kinds) == set(KINDS)
    lines = [f"{server}/{kind}/{number}" for number, kind in enumerate(kinds)]
    (tmp_path / "list.csv").write_text("url,label\n" + "".join(f"{line},a\n" for line in lines))
    limits = {
        "retries": 1,
        "timeout": 2,
        "total_timeout": 4,
        "max_bytes": 1 << 22,
        "min_yield": 0,
        "concurrency": 64,
        "per_host": 64,
    }
    process = start_download(tmp_path, **limits)
    peak = peak_memory(process)
    _, said = process.communicate(timeout=240)
    assert process.returncode == 0, said
    table = pd.read_csv(tmp_path / "table.csv", keep_default_na=False)
    wrong = [(kind, error) for kind, error in zip(kinds, table.error, strict=True) if error != KINDS[kind]]
    assert wrong == []
    assert len(list((tmp_path / "images").iterdir())) == sum(not KINDS[kind] for kind in kinds)
    assert not list(tmp_path.glob(".*"))
    assert 0 < peak[0] < 500


def test_a_killed_run_resumes_without_downloading_again(server, tmp_path):
    lines = [f"{server}/good/killed{number}" for number in range(600)] + [f"{server}/missing/killed"]
    (tmp_path / "list.csv").write_text("url,label\n" + "".join(f"{line},a\n" for line in lines))
    process = start_download(tmp_path, concurrency=4)
    journal = tmp_path / ".images.resume/journal.jsonl"
    while not (journal.exists() and journal.read_text().count("\n") > 200):
        assert process.poll() is None
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "images").exists()
    before = len(re.findall(r"\n\{", journal.read_text()))
    assert 200 <= before < 601
    process = start_download(tmp_path, concurrency=4)
    assert process.wait(timeout=120) == 0
    assert len(list((tmp_path / "images").iterdir())) == 600
    counts = asked(server)
    again = [path for path in counts if "killed" in path and counts[path] > 1]
    assert len(again) <= 16  # those in flight: four at the server, and others that were being checked
    assert not list(tmp_path.glob(".*"))


def test_leftovers_of_another_list_are_not_used(server, tmp_path):
    (tmp_path / ".images.resume/images").mkdir(parents=True)
    (tmp_path / ".images.resume/images/000000_x.jpg").write_text("of another list")
    (tmp_path / ".images.resume/journal.jsonl").write_text('{"list": "0"}\n{"number": 0, "path": "000000_x.jpg", "error": ""}\n')
    (tmp_path / "list.csv").write_text(f"url,label\n{server}/good/other,a\n")
    assert start_download(tmp_path).wait(timeout=60) == 0
    assert [path.name for path in (tmp_path / "images").iterdir()] == ["000000_other.jpg"]
