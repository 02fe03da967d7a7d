"""Neighbours and maps of features: equal to scikit-learn's, reproducible, and drawn for few and many classes."""

import json

import numpy as np
import pandas as pd
import pytest
from sklearn.decomposition import PCA
from sklearn.neighbors import KNeighborsClassifier, NearestNeighbors

from pipeline.errors import InputError
from pipeline.report import neighbours
from pipeline.report.neighbours import components, draw_maps, nearest, queries, tsne, votes
from tests.pipeline.report.test_dataset_pictures import put

NAMES = ["ant", "bee", "cat", "dog"]


def blobs(images: int, values: int, classes: int = 4) -> tuple[np.ndarray, np.ndarray]:
    """Features clustered around a point for each class, and the labels."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, classes, images)
    return (3 * rng.normal(size=(classes, values))[labels] + rng.normal(size=(images, values))).astype(np.float32), labels


@pytest.fixture
def extracted(tmp_path, monkeypatch):
    """features/ with the blob conv/a of 60 images, db/ with their records, labels.txt; gives folder, features and labels."""
    monkeypatch.chdir(tmp_path)
    values, labels = blobs(60, 12)
    (tmp_path / "features").mkdir()
    np.save(tmp_path / "features/conv_a.npy", values)
    lines = [f"{number:03d}.png {label}\n" for number, label in enumerate(labels)]
    (tmp_path / "features/images.txt").write_text("".join(lines))
    put(tmp_path / "db", [(np.full((3, 5, 5), 4 * number, np.uint8), int(label)) for number, label in enumerate(labels)])
    (tmp_path / "labels.txt").write_text("\n".join(NAMES) + "\n")
    return tmp_path, values, labels


RUN = ["features", "db", "report", "--blob", "conv/a", "--labels", "labels.txt"]


def test_neighbours_equal_those_of_scikit_learn(extracted):
    folder, values, labels = extracted
    neighbours.main(RUN)
    table = pd.read_csv(folder / "report/neighbours_conv_a.csv")
    search = NearestNeighbors(n_neighbors=7, metric="cosine").fit(values)
    distances, positions = (found[:, 1:] for found in search.kneighbors(values))
    assert table.path.tolist() == [f"{number:03d}.png" for number in range(60) for _ in range(6)]
    assert table["rank"].tolist() == [1, 2, 3, 4, 5, 6] * 60
    assert table.neighbour.tolist() == [f"{number:03d}.png" for number in positions.ravel()]
    np.testing.assert_allclose(table.distance, distances.ravel(), atol=2e-6)
    assert table.neighbour_class.tolist() == [NAMES[label] for label in labels[positions].ravel()]
    figures = json.loads((folder / "report/neighbours_conv_a.json").read_text())
    alone = [
        KNeighborsClassifier(1, metric="cosine").fit(np.delete(values, one, 0), np.delete(labels, one)).predict(values[[one]])[0]
        for one in range(60)
    ]
    assert figures["images"] == 60
    assert figures["nearest"] == np.mean(alone == labels)


def test_all_files_are_written_and_reproducible(extracted):
    folder, _, _ = extracted
    made = []
    for _ in range(2):
        neighbours.main(RUN)
        made.append({path.name: path.read_bytes() for path in (folder / "report").iterdir()})
    assert set(made[0]) == {
        *("neighbours_conv_a.csv", "neighbours_conv_a.json", "neighbours_conv_a.png"),
        *("map_conv_a.png", "map_conv_a.svg"),
    }
    assert made[0] == made[1]


def test_the_sheet_shows_each_query_before_its_neighbours(extracted, monkeypatch):
    folder, _, labels = extracted
    sheets = []
    monkeypatch.setattr(neighbours, "gallery", lambda rows, title: sheets.append((rows, title)) or neighbours.plt.figure())
    neighbours.main(RUN)
    ((rows, title),) = sheets
    table = pd.read_csv(folder / "report/neighbours_conv_a.csv").set_index("path")
    assert len(rows) == 10
    assert {row[0].lines[0] for row in rows} == set(NAMES)
    for row in rows:
        query, *near = (int(cell.image[0, 0, 0]) // 4 for cell in row)
        assert [f"{number:03d}.png" for number in near] == table.loc[f"{query:03d}.png"].neighbour.tolist()
        for number, cell in zip(near, row[1:], strict=True):
            assert cell.lines[0].startswith("✓" if labels[number] == labels[query] else "✗")
            assert cell.frame == neighbours.COLOURS[2 if labels[number] == labels[query] else 1]
    assert title.endswith("of 60 images are of their nearest neighbour's class")


def test_more_images_than_fit_are_sampled_by_seed(extracted, monkeypatch):
    folder, _, labels = extracted
    monkeypatch.setattr(neighbours, "VALUES", 12 * 25)
    chosen = []
    for seed in ("1", "1", "2"):
        neighbours.main([*RUN, "--seed", seed])
        table = pd.read_csv(folder / "report/neighbours_conv_a.csv")
        numbers = table.path.str[:3].astype(int)
        assert table["class"].tolist() == [NAMES[label] for label in labels[numbers]]
        chosen.append(numbers.unique().tolist())
    assert chosen[0] == chosen[1] != chosen[2]
    assert len(chosen[0]) == 25


def test_two_images_are_neighbours_and_a_single_image_is_refused(extracted, fails):
    folder, values, _ = extracted
    for count in (2, 1):
        np.save(folder / "features/conv_a.npy", values[:count])
        (folder / "features/images.txt").write_text("".join(f"{number:03d}.png 0\n" for number in range(count)))
        if count == 2:
            neighbours.main(RUN)
            assert pd.read_csv(folder / "report/neighbours_conv_a.csv").neighbour.tolist() == ["001.png", "000.png"]
    (folder / "report").rename(folder / "before")
    fails(["features of 1 image", "two or more"], "pipeline.report.neighbours", *RUN)


def test_nan_features_are_named(extracted):
    folder, values, _ = extracted
    values[7, 3] = np.nan
    np.save(folder / "features/conv_a.npy", values)
    with pytest.raises(InputError, match=r"features: NaN or infinite features of 007.png"):
        neighbours.main(RUN)


def test_a_database_with_fewer_records_than_features_is_refused(extracted):
    put(extracted[0] / "few", [(np.zeros((1, 4, 4), np.uint8), 0)])
    with pytest.raises(InputError, match="few: fewer records than features"):
        neighbours.main([RUN[0], "few", *RUN[2:]])


def test_all_zero_features_have_distance_1_to_all():
    _, distances = nearest(np.array([[0.0, 0], [1, 0], [1, 1]], np.float32), 2)
    np.testing.assert_allclose(distances, [[1, 1], [1 - 0.5**0.5, 1], [1 - 0.5**0.5, 1]], atol=1e-6)


def test_ties_between_classes_go_to_the_nearest_neighbour():
    labels = np.array([2, 0, 1, 1, 0])
    assert votes(labels, np.array([[1, 2, 3, 4], [0, 2, 3, 4], [4, 3, 1, 0]])).tolist() == [0, 1, 0]


@pytest.mark.parametrize("shape", [(40, 8), (12, 300)])
def test_principal_components_equal_those_of_scikit_learn(shape):
    values, _ = blobs(*shape)
    expected = PCA(5, svd_solver="full").fit_transform(values.astype(np.float64))
    made = components(values, 5)
    np.testing.assert_allclose(np.abs(made), np.abs(expected), atol=1e-4)
    assert (made[np.abs(made).argmax(0), range(5)] > 0).all()
    assert components(values[:3], 5).shape == (3, 5)


def test_t_sne_keeps_classes_together():
    values, labels = blobs(80, 30)
    where = tsne(components(values, 20), 1)
    search = NearestNeighbors(n_neighbors=2).fit(where)
    assert (labels[search.kneighbors(where)[1][:, 1]] == labels).mean() > 0.95


def test_queries_cover_different_classes_first():
    labels = np.repeat(np.arange(30), 5)
    assert len(set(labels[queries(labels, 10, 1)])) == 10
    assert np.bincount(labels[:10][queries(labels[:10], 6, 1)]).tolist() == [3, 3]
    assert queries(labels, 10, 1) != queries(labels, 10, 2)


@pytest.mark.parametrize("classes", [2, 10, 25, 100])
def test_a_map_names_as_many_classes_as_can_be_distinguished(classes):
    values, labels = blobs(400, 2, classes)
    names = [f"a class of number {number}" for number in range(classes)]
    figure = draw_maps({"a": values, "b": values}, labels, names)
    named = [text.get_text() for text in figure.axes[0].texts]
    legend = [text.get_text() for legend in figure.legends for text in legend.get_texts()]
    if classes <= 10:
        assert (legend, named) == (names, [])
    elif classes <= 40:
        assert (legend, sorted(named)) == ([], sorted(names))
    else:
        assert (len(legend), legend[0], named) == (11, "90 other classes", [])
    figure.draw_without_rendering()
    assert all(figure.bbox.x0 <= legend.get_window_extent().x0 for legend in figure.legends)
    assert sum(len(dots.get_offsets()) for dots in figure.axes[1].collections) == 400
