"""Near-duplicates: modified copies of an image are found, other images are not."""

import cv2
import numpy as np
import pytest

from pipeline.dataset.duplicates import are_near_duplicates, fingerprint, nearest_duplicates


def fingerprints(images):
    return np.stack([np.frombuffer(fingerprint(image), np.uint8) for image in images])


def find_duplicates(queries, others):
    return nearest_duplicates(fingerprints(queries), fingerprints(others), lambda query, other: (queries[query], others[other]))


CHANGES = {
    "recompressed": lambda image: cv2.imdecode(cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 40])[1], cv2.IMREAD_COLOR),
    "smaller": lambda image: cv2.resize(image, (100, 90), interpolation=cv2.INTER_AREA),
    "gray": lambda image: cv2.cvtColor(image, cv2.COLOR_BGR2GRAY),
    "brighter": lambda image: cv2.convertScaleAbs(image, beta=10),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_modified_copy_is_found(picture, change):
    images = [picture(seed, 200, 220) for seed in range(40)]
    copies = [change(image) for image in images[::4]]
    assert {query: other for query, (other, _) in find_duplicates(copies, images).items()} == {at: 4 * at for at in range(10)}


def test_other_images_are_not_found(picture):
    queries, others = ([picture(seed, 64, 64) for seed in seeds] for seeds in (range(50), range(50, 400)))
    assert find_duplicates(queries, others) == {}


def test_images_with_the_same_fingerprint_are_distinguished_by_their_pixels():
    ramps = [np.repeat(np.linspace(0, top, 64)[None], 64, 0).astype(np.uint8) for top in (60, 250)]
    assert fingerprint(ramps[0]) == fingerprint(ramps[1])
    assert not are_near_duplicates(*ramps)
    assert find_duplicates(ramps[:1], ramps) == {0: (0, 0)}


def test_fingerprints_at_most_six_bits_apart_are_found():
    rng = np.random.default_rng(0)
    base = rng.integers(0, 2, (200, 128), dtype=np.uint8)
    image = np.zeros((8, 8), np.uint8)
    for count, wanted in ((6, 200), (7, 0)):
        changed = base.copy()
        for row in changed:
            row[rng.choice(128, count, replace=False)] ^= 1
        pairs = nearest_duplicates(np.packbits(changed, 1), np.packbits(base, 1), lambda query, other: (image, image))
        assert len(pairs) == wanted
        assert all(pair == (query, count) for query, pair in pairs.items())


def test_an_empty_query_has_no_duplicates():
    assert nearest_duplicates(np.empty((0, 16), np.uint8), np.zeros((3, 16), np.uint8), lambda query, other: None) == {}
