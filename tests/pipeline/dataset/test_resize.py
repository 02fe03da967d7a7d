import contextlib
import hashlib
import io
import random

import cv2
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from pipeline.dataset.resize import resize, resize_folder
from pipeline.errors import InputError
from pipeline.formats.images import Resized, Size, decode, jpeg_size
from pipeline.options.dataset import ImageSize, Mode, ResizeOptions


@pytest.fixture
def folder(tmp_path, picture):
    """A folder of a wide JPEG, a tall gray PNG and a PNG with an alpha channel."""
    (tmp_path / "in").mkdir()
    cv2.imwrite(str(tmp_path / "in/wide.jpg"), picture(0, 40, 90))
    cv2.imwrite(str(tmp_path / "in/tall.png"), picture(1, 70, 30)[:, :, 0])
    cv2.imwrite(str(tmp_path / "in/clear.png"), np.dstack([picture(2), np.full((40, 60), 9, np.uint8)]))
    return tmp_path / "in"


@pytest.mark.parametrize("mode", list(Mode))
@pytest.mark.parametrize(("color", "shape"), [("color", (3, 32, 48, 3)), ("gray", (3, 32, 48))])
def test_every_image_is_resized_to_the_size(folder, tmp_path, mode, color, shape):
    options = ResizeOptions(size=ImageSize(height=32, width=48), resize_mode=mode, color=color)
    assert resize_folder(folder, tmp_path / "out", options, threads=2) == {"": 3}
    positions, pixels = Resized(tmp_path).shard("out")
    assert list(positions) == ["clear.png", "tall.png", "wide.jpg"]
    assert pixels.shape == shape
    table = pd.read_csv(tmp_path / "out/images.csv")
    assert table[["height", "width"]].to_numpy().tolist() == [[40, 60], [70, 30], [40, 90]]


@pytest.mark.parametrize(
    ("name", "flag"), [("linear", cv2.INTER_LINEAR), ("area", cv2.INTER_AREA), ("nearest", cv2.INTER_NEAREST)]
)
def test_squash_resizes_with_the_chosen_interpolation(picture, name, flag):
    image = picture(3, 50, 70)
    resized = resize(image, ResizeOptions(size=ImageSize(height=20, width=30), interpolation=name))
    np.testing.assert_array_equal(resized, cv2.resize(image, (30, 20), interpolation=flag))


def test_crop_keeps_the_centre_and_the_aspect_ratio():
    image = np.zeros((40, 120, 3), np.uint8)
    image[:, 40:80] = 255  # the middle third is a white square
    assert (resize(image, ResizeOptions(size=ImageSize(height=10, width=10), resize_mode=Mode.CROP)) == 255).all()


@pytest.mark.parametrize("shape", [(40, 120, 3), (40, 120)])
def test_fit_pads_the_whole_image_with_black_bars(shape):
    fitted = resize(np.full(shape, 255, np.uint8), ResizeOptions(size=ImageSize(height=30, width=30), resize_mode=Mode.FIT))
    assert (fitted[10:20] == 255).all()
    assert not fitted[:10].any()
    assert not fitted[20:].any()


def test_pixels_equal_those_of_opencv_decoding_and_resizing(folder, tmp_path):
    resize_folder(folder, tmp_path / "out", ResizeOptions(size=ImageSize(height=24, width=24)))
    for name in ("wide.jpg", "tall.png", "clear.png"):
        expected = cv2.resize(cv2.imread(str(folder / name)), (24, 24))
        np.testing.assert_array_equal(Resized(tmp_path)[f"out/{name}"], expected)


def test_unreadable_files_are_rejected_with_their_reason(command, folder, tmp_path):
    (folder / "page.jpg").write_text("<html><body>Not found</body></html>")
    (folder / "empty.png").touch()
    (folder / "cut.jpg").write_bytes((folder / "wide.jpg").read_bytes()[:600])
    done = command("pipeline.dataset.resize", "in", "out", "--height", 16, "--width", 16)
    assert done.returncode == 0, done.stderr
    assert "out: 3 images, 1 damaged, 1 empty, 1 not_an_image" in done.stdout
    table = pd.read_csv(tmp_path / "out/images.csv", keep_default_na=False)
    reasons = {"cut.jpg": "damaged", "empty.png": "empty", "page.jpg": "not_an_image"}
    assert {name: reason for name, reason in zip(table.path, table.reason, strict=True) if reason} == reasons
    assert Resized(tmp_path)["out/cut.jpg"] is None
    assert len(Resized(tmp_path).shard("out")[0]) == 3


def test_a_folder_without_images_gives_an_empty_shard(command, tmp_path):
    (tmp_path / "in").mkdir()
    assert command("pipeline.dataset.resize", "in", "out").returncode == 0
    positions, pixels = Resized(tmp_path).shard("out")
    assert positions == {}
    assert pixels.shape == (0, 256, 256, 3)


def test_the_result_does_not_depend_on_the_number_of_threads(folder, tmp_path):
    for threads in (1, 4):
        resize_folder(folder, tmp_path / f"out{threads}", ResizeOptions(size=ImageSize(height=16, width=16)), threads)
    for name in ("pixels.npy", "images.csv"):
        assert (tmp_path / "out1" / name).read_bytes() == (tmp_path / "out4" / name).read_bytes()


@pytest.fixture
def shard(folder, tmp_path):
    """A shard of three images, of which the last cannot be decoded, as out."""
    (folder / "wide.jpg").write_bytes(b"")
    resize_folder(folder, tmp_path / "out", ResizeOptions(size=ImageSize(height=16, width=16)))
    return tmp_path / "out"


def test_the_table_has_the_digest_of_each_images_pixels(shard):
    table = pd.read_csv(shard / "images.csv", keep_default_na=False)
    pixels = np.load(shard / "pixels.npy")
    assert list(table.sha256) == [hashlib.sha256(image.tobytes()).hexdigest() for image in pixels[:2]] + [""]
    assert (shard / "SHA256SUMS").read_text().endswith("  images.csv\n")
    for name, image in zip(("clear.png", "tall.png"), pixels, strict=False):
        np.testing.assert_array_equal(Resized(shard.parent)[f"out/{name}"], image)


def test_an_edited_pixel_is_named_where_its_image_is_read(shard):
    pixels = np.load(shard / "pixels.npy")
    pixels[1, 3, 4, 2] ^= 1
    np.save(shard / "pixels.npy", pixels)
    assert Resized(shard.parent)["out/clear.png"] is not None
    with pytest.raises(InputError, match=r"out/pixels.npy: the SHA-256 of tall.png's pixels is .* images.csv has .*SHA256SUMS"):
        Resized(shard.parent)["out/tall.png"]
    (shard / "SHA256SUMS").unlink()
    np.testing.assert_array_equal(Resized(shard.parent)["out/tall.png"], pixels[1])


def test_a_shard_that_was_cut_off_is_named_at_any_length(shard):
    content = (shard / "pixels.npy").read_bytes()
    for length in (*range(0, 140, 7), len(content) // 2, len(content) - 1):
        (shard / "pixels.npy").write_bytes(content[:length])
        with pytest.raises(InputError, match=r"out/pixels.npy: .*delete it"):
            Resized(shard.parent)["out/clear.png"]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of Python's parser, about damaged text
def test_a_damaged_header_is_named_or_changes_nothing(shard):
    content, expected, rng = (shard / "pixels.npy").read_bytes(), Resized(shard.parent)["out/clear.png"].copy(), random.Random(0)
    for place in 5 * list(range(128)):
        (shard / "pixels.npy").write_bytes(content[:place] + rng.randbytes(1) + content[place + 1 :])
        with contextlib.suppress(InputError):
            np.testing.assert_array_equal(Resized(shard.parent)["out/clear.png"], expected)


def test_resized_images_can_be_exported_as_png(command, folder, tmp_path):
    done = command("pipeline.dataset.resize", "in", "out", "--height", 16, "--width", 20, "--png", "look")
    assert done.returncode == 0, done.stderr
    for name in ("wide.jpg", "tall.png", "clear.png"):
        np.testing.assert_array_equal(cv2.imread(str(tmp_path / f"look/{name}.png")), Resized(tmp_path)[f"out/{name}"])


@pytest.mark.parametrize(("shape", "reduced"), [((640, 960), (80, 120)), ((300, 500), (150, 250)), ((150, 900), (150, 900))])
@pytest.mark.parametrize("color", [True, False])
def test_a_jpeg_much_larger_than_the_target_is_decoded_at_reduced_scale(picture, shape, reduced, color):
    content = cv2.imencode(".jpg", picture(0, *shape))[1].tobytes()
    assert jpeg_size(content) == shape
    assert decode(content, color, Size(80, 64)).shape[:2] == reduced
    assert decode(content, color).shape[:2] == shape


SAMPLING = [cv2.IMWRITE_JPEG_SAMPLING_FACTOR_411, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_420, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444]


@pytest.mark.parametrize("shape", [(40, 60), (33, 47), (1, 1), (300, 200)])
@pytest.mark.parametrize("quality", [30, 95])
@pytest.mark.parametrize("progressive", [0, 1])
@pytest.mark.parametrize("sampling", SAMPLING)
def test_a_jpeg_decodes_to_the_pixels_of_opencv(picture, shape, quality, progressive, sampling):
    noise = np.random.default_rng(0).integers(-20, 20, (*shape, 3))
    image = (picture(0, *shape) + noise).clip(0, 255).astype(np.uint8)
    how = [
        cv2.IMWRITE_JPEG_QUALITY,
        quality,
        cv2.IMWRITE_JPEG_PROGRESSIVE,
        progressive,
        cv2.IMWRITE_JPEG_SAMPLING_FACTOR,
        sampling,
    ]
    for one in (image, image[:, :, 0]):
        content = cv2.imencode(".jpg", one, how)[1]
        np.testing.assert_array_equal(decode(content.tobytes(), True), cv2.imdecode(content, cv2.IMREAD_COLOR))
        np.testing.assert_array_equal(decode(content.tobytes(), False), cv2.imdecode(content, cv2.IMREAD_GRAYSCALE))


@pytest.mark.parametrize("mode", ["CMYK", "RGB"])
def test_cmyk_and_exif_rotated_jpegs_decode_to_the_pixels_of_opencv(picture, mode):
    file, exif = io.BytesIO(), Image.Exif()
    exif[274] = 6  # turn by 90°
    Image.fromarray(picture()).convert(mode).save(file, "JPEG", **({"exif": exif} if mode == "RGB" else {}))
    found = decode(file.getvalue(), True)
    np.testing.assert_array_equal(found, cv2.imdecode(np.frombuffer(file.getvalue(), np.uint8), cv2.IMREAD_COLOR))
    assert found.shape == ((60, 40, 3) if mode == "RGB" else (40, 60, 3))


@pytest.mark.parametrize("content", [b"", b"\xff\xd8", b"\xff\xd8\xff\xda\0\2", b"\xff\xd8\xff\xe0\xff\xff", b"\x89PNG\r\n"])
def test_content_without_a_jpeg_frame_header_has_no_size(content):
    assert jpeg_size(content) is None
    assert decode(content, True, Size(8, 8)) is None


def test_a_missing_folder_is_named(fails):
    fails(["nowhere", "no such folder"], "pipeline.dataset.resize", "nowhere", "out")
