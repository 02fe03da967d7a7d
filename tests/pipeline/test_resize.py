import cv2
import numpy as np
import pandas as pd
import pytest

from pipeline.errors import InputError
from pipeline.resize import Mode, Size, resize, resize_folder


@pytest.fixture
def folder(tmp_path, picture):
    """A folder of a wide JPEG, a tall gray PNG and a PNG with an alpha channel."""
    (tmp_path / "in").mkdir()
    cv2.imwrite(str(tmp_path / "in/wide.jpg"), picture(0, 40, 90))
    cv2.imwrite(str(tmp_path / "in/tall.png"), picture(1, 70, 30)[:, :, 0])
    cv2.imwrite(str(tmp_path / "in/clear.png"), np.dstack([picture(2), np.full((40, 60), 9, np.uint8)]))
    return tmp_path / "in"


@pytest.mark.parametrize("mode", list(Mode))
@pytest.mark.parametrize(("color", "shape"), [(True, (32, 48, 3)), (False, (32, 48))])
def test_every_image_becomes_a_png_of_the_size(folder, tmp_path, mode, color, shape):
    rejected = resize_folder(folder, tmp_path / "out", Size(32, 48), mode, color, threads=2)
    assert rejected.empty
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["clear.png", "tall.png", "wide.png"]
    for path in (tmp_path / "out").iterdir():
        assert cv2.imread(str(path), cv2.IMREAD_UNCHANGED).shape == shape


def test_squash_is_the_resize_of_convert_imageset(picture):
    image = picture(3, 50, 70)
    np.testing.assert_array_equal(resize(image, Size(20, 30), Mode.SQUASH), cv2.resize(image, (30, 20)))


def test_crop_keeps_the_middle_and_the_proportions():
    image = np.zeros((40, 120, 3), np.uint8)
    image[:, 40:80] = 255  # the middle third is a white square
    assert (resize(image, Size(10, 10), Mode.CROP) == 255).all()


def test_what_cannot_be_read_is_set_aside_with_its_reason(command, folder, tmp_path):
    (folder / "page.jpg").write_text("<html><body>Not found</body></html>")
    (folder / "empty.png").touch()
    (folder / "cut.jpg").write_bytes((folder / "wide.jpg").read_bytes()[:600])
    done = command("pipeline.resize", "in", "out", "--rejected", "rejected.csv", "--height", 16, "--width", 16)
    assert done.returncode == 0, done.stderr
    rejected = pd.read_csv(tmp_path / "rejected.csv")
    assert list(rejected.path) == ["cut.jpg", "empty.png", "page.jpg"]
    assert set(rejected.reason) == {"unreadable"}
    assert len(list((tmp_path / "out").iterdir())) == 3


def test_the_number_of_threads_changes_nothing(folder, tmp_path):
    for threads in (1, 4):
        resize_folder(folder, tmp_path / f"out{threads}", Size(16, 16), Mode.SQUASH, True, threads)
    for path in (tmp_path / "out1").iterdir():
        assert path.read_bytes() == (tmp_path / "out4" / path.name).read_bytes()


def test_two_files_of_one_stem_are_refused(folder, tmp_path, picture):
    cv2.imwrite(str(folder / "wide.png"), picture())
    with pytest.raises(InputError) as raised:
        resize_folder(folder, tmp_path / "out", Size(16, 16), Mode.SQUASH, True, 1)
    assert "wide" in raised.value.found
    assert not (tmp_path / "out").exists()


def test_a_missing_folder_is_named(fails):
    fails(["nowhere", "no such folder"], "pipeline.resize", "nowhere", "out", "--rejected", "rejected.csv")
