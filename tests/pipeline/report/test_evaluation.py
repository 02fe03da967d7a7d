"""Plots of an evaluation: confusion, calibration and the most confident mistakes, from its tables and its database."""

import cv2
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from pipeline.errors import InputError
from pipeline.figures import save
from pipeline.inference import evaluate
from pipeline.report import evaluation
from pipeline.report.evaluation import calibration, confusion_matrix, mistakes
from pipeline.report.gallery import Cell, gallery, images_at, shorten
from tests.pipeline.report.test_dataset_pictures import put


@pytest.fixture
def evaluated(tmp_path, monkeypatch):
    """An evaluation of 30 images of 3 classes, 40 % correct, in evaluate/, and their records, each a different gray, in db/."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 30)
    table = evaluate.judge(2 * rng.normal(size=(30, 3)), labels)
    table.insert(0, "path", [f"{number}.png" for number in range(30)])
    evaluate.write(table, ["cat", "NA", "3"], tmp_path / "evaluate")
    put(tmp_path / "db", [(np.full((1, 6, 6), 8 * number, np.uint8), label) for number, label in enumerate(labels.tolist())])
    return tmp_path


def words_of(figure) -> list[str]:
    return [text.get_text() for axes in figure.axes for text in axes.texts]


@pytest.mark.parametrize("classes", [2, 10, 1000])
def test_a_confusion_matrix_is_drawn_for_any_number_of_classes(tmp_path, classes):
    names = [f"class {number}" for number in range(classes)]
    save(confusion_matrix(pd.DataFrame(np.eye(classes, dtype=int), index=names, columns=names)), tmp_path / "confusion")
    height, width, _ = plt.imread(tmp_path / "confusion.png").shape
    assert 500 < height < 3000
    assert 500 < width < 3000
    assert (tmp_path / "confusion.svg").read_text().lstrip().startswith("<?xml")


def test_plots_of_an_evaluation_are_reproducible(evaluated):
    for folder in ("first", "second"):
        evaluation.main(["evaluate", "db", folder, "--suffix", "_train"])
    made = {path.name: path.read_bytes() for path in (evaluated / "first").iterdir()}
    pictures = {"confusion_train.png", "confusion_train.svg", "calibration_train.png", "calibration_train.svg"}
    assert set(made) == {*pictures, "mistakes_train.png"}
    assert made == {path.name: path.read_bytes() for path in (evaluated / "second").iterdir()}
    assert all(cv2.imread(str(evaluated / "first" / name)).std() > 10 for name in made if name.endswith("png"))


def test_the_most_confident_mistakes_are_shown_with_their_images(evaluated):
    text = dict.fromkeys(("path", "label", "predicted"), str)
    table = pd.read_csv(evaluated / "evaluate/predictions.csv", dtype=text, keep_default_na=False)
    worst = table[table.label != table.predicted].sort_values("probability", ascending=False)
    figure = mistakes(table, evaluated / "db")
    expected = [word for row in worst.itertuples() for word in (row.label, f"→ {row.predicted}", f"{row.probability:.1%}")]
    assert words_of(figure) == expected[: 3 * evaluation.MISTAKES]
    shown = [image.get_array()[0, 0, 0] for image in figure.axes[0].images]
    assert shown == [8 * number for number in worst.index[: evaluation.MISTAKES]]


def test_without_mistakes_the_plot_says_so(evaluated):
    table = pd.DataFrame({"label": ["cat"] * 5, "predicted": "cat", "probability": 0.9, "rank": 1})
    assert "No mistakes: all 5 images" in mistakes(table, evaluated / "db").texts[0].get_text()


def test_a_database_with_fewer_records_is_refused(evaluated):
    table = pd.DataFrame({"label": "cat", "predicted": "dog", "probability": 0.9, "rank": 2}, index=[99])
    with pytest.raises(InputError, match="give the database that was evaluated"):
        mistakes(table, evaluated / "db")


def test_a_folder_without_an_evaluation_is_refused(evaluated, fails):
    fails(["db", "no predictions.csv", "evaluate step's folder"], "pipeline.report.evaluation", "db", "db", "out")


def test_a_reliability_diagram_has_a_bar_of_each_bins_accuracy(evaluated):
    bins = pd.read_csv(evaluated / "evaluate/calibration.csv")
    made = {"accuracy": 0.5, "mean_probability": 0.6, "calibration_error": 0.1, "log_loss": 1.25}
    shares, counts = calibration(bins, made).axes
    heights = [bar.get_height() for bar in shares.patches]
    assert heights == pytest.approx((100 * bins.accuracy.fillna(0)).tolist())
    assert [bar.get_height() for bar in counts.patches] == bins.images.tolist()
    points = shares.lines[1].get_xydata()
    np.testing.assert_allclose(points, 100 * bins[bins.images > 0][["mean_probability", "accuracy"]])
    assert "calibration error 10.0%, log loss 1.25" in shares.get_title()


def test_images_are_read_in_colour_from_their_position_in_the_database(tmp_path):
    blue = np.zeros((3, 4, 6), np.uint8)
    blue[0] = 255
    put(tmp_path / "db", [(np.zeros((1, 2, 2), np.uint8), 0), (blue, 0), (np.full((1, 5, 3), 9, np.uint8), 1)])
    found = images_at(tmp_path / "db", [2, 1])
    assert {position: image.shape for position, image in found.items()} == {1: (4, 6, 3), 2: (5, 3, 3)}
    assert found[1][0, 0].tolist() == [0, 0, 255]
    assert found[2][0, 0].tolist() == [9, 9, 9]


def test_names_below_images_are_shortened_to_their_column():
    assert shorten("n02085936 Maltese dog, Maltese terrier", 12) == "Maltese dog…"
    assert shorten("n02085936", 12) == "n02085936"
    rows = [[Cell(np.zeros((4, 8, 3), np.uint8), ("a name that is far too long for a column of seven", "$x$"))] * 7]
    figure = gallery([*rows, rows[0][:2]], "")
    figure.draw_without_rendering()
    boxes = [text.get_window_extent() for text in figure.axes[0].texts]
    assert len(boxes) == 18
    assert max(box.width for box in boxes) < figure.bbox.width / 7
