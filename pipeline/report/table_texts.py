"""Titles and texts of the tables that the report shows as pages; imported by the rules, so nothing else is imported here."""

from pathlib import PurePath
from typing import NamedTuple


class TableText(NamedTuple):
    """A table's title, what it shows, and the column whose largest values come first, if rows are not in the file's order."""

    title: str
    text: str
    largest: str = ""


TABLES = {
    "duplicates": TableText(
        "near-duplicates",
        "Validation images that are near-duplicates of training images, which makes the accuracy look better than it is; "
        "`duplicates: drop` removes them. Check pairs of different classes: one of the labels may be wrong.",
    ),
    "measured": TableText(
        "features measured",
        "Linear classifiers of the training images, by features of the pretrained net: for each kind of features the blob, its "
        "number of values, the accuracy in cross-validation, its standard error, and scikit-learn's C.",
    ),
    "layers": TableText(
        "layers",
        "Layers with weights: copied (from which file) or initialised (and why), and whether they are trained or frozen. Layers "
        "listed as left out are in the weights file but not in the net.",
    ),
    "preflight": TableText(
        "preflight",
        "Checks of the nets, weights and databases before training: labels and outputs, order of records, coverage of the test, "
        "inputs, BatchNorm, last layer. An empty table means that no check failed.",
    ),
    "per_class": TableText("accuracy by class", "Accuracy (recall), precision and F1 of each class."),
    "predictions": TableText(
        "predictions",
        "Of each image: its label, the predicted class and its probability, the rank of the label, and the loss. Check images "
        "with a high loss: the label may be wrong.",
        largest="loss",
    ),
    "classify": TableText("classified images", "The five most probable classes of each image."),
    "comparison": TableText(
        "table",
        "Validation accuracy of every experiment, with its final weights or, with early stopping or `best: true`, those of the "
        "best test (which were chosen on these images); and the best accuracy of all tests during training, with its iteration "
        "and time. Experiments of a sweep that diverged have a note instead of accuracies.",
    ),
}
SWEEP = "sweep_"
PARTS = {"_train": ", training images", "_test": ", images for testing"}
"""What the suffix of an evaluation's folder adds to a title."""


def page_name(table: PurePath) -> str:
    """File name of a table's page, without .html: evaluate_test/predictions.csv → predictions_test; of a sweep sweep_NAME."""
    folder, name = table.parent.name, table.stem
    if folder == "report" and name not in TABLES:
        return SWEEP + name
    return name + folder.removeprefix("evaluate") if folder.startswith("evaluate_") else name


def text_of(page: str) -> TableText:
    """Title and text of a page, by its file name without .html."""
    if page.startswith(SWEEP):
        shown = (
            "Validation accuracy of a sweep's experiments by the swept values; those whose loss became NaN or infinite have none."
        )
        return TableText(f"{page.removeprefix(SWEEP)}, table", shown)
    suffix = next((suffix for suffix in PARTS if page.endswith(suffix)), "")
    table = TABLES[page.removesuffix(suffix)]
    return table._replace(title=table.title + PARTS.get(suffix, ""))
