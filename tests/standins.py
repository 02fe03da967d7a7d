"""Small stand-ins, in the same formats, for data and weights that users have and the tests do not."""

import contextlib
import functools
import gzip
import http.server
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
from sklearn.datasets import load_digits

import caffe
from caffe.proto import caffe_pb2
from pipeline.nets.models import TEMPLATES, Last

_KEPT = tempfile.TemporaryDirectory(prefix="standins_")


def random_weights(model: str, path: Path) -> None:
    """Weights with the names and shapes of a template's published ones, drawn by its fillers; linked, as they are large."""
    path.symlink_to(_drawn(model))


@functools.cache
def _drawn(model: str) -> Path:
    path = Path(_KEPT.name) / f"{model}.caffemodel"
    last = Last(TEMPLATES[model].last, 1000)
    side = TEMPLATES[model].crop_size
    data = caffe_pb2.LayerParameter(name="data", type="Input", top=["data"])
    data.input_param.shape.add().dim.extend([1, 3, side, side])
    caffe.set_random_seed(1)
    net = caffe.Net(caffe_pb2.NetParameter(name=model, layer=[data, *TEMPLATES[model].built(last).layers]), caffe.TEST)
    net.save(str(path))
    net.close()
    return path


def picture(label: int, seed: int, side: int = 8) -> np.ndarray:
    """A picture that shows its class, uint8, side × side × 3: the class's own pattern under noise."""
    pattern = np.random.default_rng(label).integers(0, 256, (4, 4, 3)).astype(np.uint8)
    image = cv2.resize(pattern, (side, side), interpolation=cv2.INTER_CUBIC)
    noise = np.random.default_rng((label, seed)).normal(0, 25, image.shape)
    return np.clip(image + noise, 0, 255).astype(np.uint8)


def listed_pictures(folder: Path, count: int = 6) -> None:
    """Write `count` pictures and `folder`/few.csv, which lists them with the classes a and b in turn."""
    rows = ["url,label"]
    for number in range(count):
        path = folder / f"{number}.png"
        cv2.imwrite(str(path), picture(number, number, 40))
        rows.append(f"{path.as_uri()},{'ab'[number % 2]}")
    (folder / "few.csv").write_text("\n".join(rows) + "\n")


def class_folders(folder: Path, images: dict[str, int]) -> None:
    """Write `folder`/CLASS/NUMBER.png; `images` gives the number for each class."""
    for label, (name, count) in enumerate(images.items()):
        (folder / name).mkdir(parents=True)
        for number in range(count):
            cv2.imwrite(str(folder / name / f"{number}.png"), picture(label, number))


def mnist_files(folder: Path, images: int = 200) -> None:
    """Write MNIST's four files, unpacked, with scikit-learn's digits in 28 × 28 pixels."""
    digits, labels = load_digits(return_X_y=True)
    pixels = np.stack([cv2.resize(digit.reshape(8, 8).astype(np.float32) * 15.9, (28, 28)) for digit in digits])
    folder.mkdir(parents=True)
    for part, start in (("train", 0), ("t10k", images)):
        for kind, values in (("images-idx3", pixels), ("labels-idx1", labels)):
            part_values = values[start : start + images].astype(np.uint8)
            axes = b"".join(axis.to_bytes(4, "big") for axis in part_values.shape)
            (folder / f"{part}-{kind}-ubyte").write_bytes(bytes([0, 0, 8, part_values.ndim]) + axes + part_values.tobytes())


def cifar10_files(folder: Path, images: int) -> None:
    """Write CIFAR-10's six binary files with `images` pictures each."""
    folder.mkdir(parents=True)
    for file, name in enumerate([*(f"data_batch_{number}.bin" for number in range(1, 6)), "test_batch.bin"]):
        rows = []
        for number in range(images):
            pixels = picture(number % 10, file * images + number, 32)[:, :, ::-1].transpose(2, 0, 1)
            rows.append(bytes([number % 10]) + pixels.tobytes())
        (folder / name).write_bytes(b"".join(rows))


def flickr_list(path: Path, address: str, images: int) -> None:
    """The list of Caffe's flickr_style example, with its columns: `images` of each of its 20 classes, a quarter for testing."""
    rows = [
        {"image_url": f"{address}/{label}/{number}.png", "label": label, "_split": "test" if number % 4 == 3 else "train"}
        for number in range(images)
        for label in range(20)
    ]
    path.write_bytes(gzip.compress(pd.DataFrame(rows).to_csv().encode()))


@contextlib.contextmanager
def serve(folder: Path) -> Iterator[str]:
    """Serve the folder's files over HTTP on this machine; gives the address."""
    handler = functools.partial(_Silent, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


class _Silent(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_) -> None:
        pass
