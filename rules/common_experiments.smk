# What the rules ask of an experiment's config.
from pathlib import Path

from pipeline.nets import models, strategies


def of_evaluated(path):
    """Input function: `path`, with {part}, in the folder of the experiment's dataset, for the part that is evaluated."""
    return lambda wildcards: (
        f"results/datasets/{dataset_of(wildcards)}/"
        + path.format(part=wildcards.of.removeprefix("_") or "val")
    )


def of_part(result):
    """Labels of a result in the report, with the part that was evaluated where it is not the validation set."""
    parts = {"": "", "_train": ", training images", "_test": ", images for testing"}
    return lambda wildcards: {"result": result + parts[wildcards.of]}


def infogain_of(wildcards):
    """Input function: the matrix that weighs an experiment's classes, where its dataset is balanced by weights."""
    name = dataset_of(wildcards)
    weighed = config["datasets"][name]["split"]["balance"] == "weights"
    return f"results/datasets/{name}/lists/infogain.binaryproto" if weighed else []


def fitted(file):
    """Input function: `file` of the fitted linear classifier, where an experiment's strategy has one or is chosen by it."""

    def path(wildcards):
        strategy = config["experiments"][wildcards.experiment]["strategy"]
        return (
            f"results/experiments/{wildcards.experiment}/linear/{file}"
            if strategy in strategies.FITTED
            else []
        )

    return path


def net_of(wildcards):
    """Input function: the prototxt of an experiment whose net is the user's own."""
    model = config["experiments"][wildcards.experiment]["model"]
    return model if models.is_file(model) else []


def weights_from(name, best=None):
    """The weights that an experiment is judged and used by; or those of its best test, or its last ones, where `best` says."""
    experiment = config["experiments"][name]
    if best is None:
        best = experiment.get("best", experiment["early_stopping"] > 0)
    return f"results/experiments/{name}/train/{'best' if best else 'final'}.caffemodel"


def learned_weights(wildcards):
    """Input function: the weights that an experiment is judged and used by."""
    return weights_from(wildcards.experiment)


def weights_of(wildcards):
    """Input function: the weights that an experiment starts from; none when it starts from scratch."""
    paths = []
    for origin in configuration.keys.origins(config["experiments"][wildcards.experiment]):
        if "experiment" in origin:
            paths.append(weights_from(origin["experiment"], origin.get("best")))
        elif "url" in origin:
            kind = "caffemodel.h5" if origin["url"].endswith(".h5") else "caffemodel"
            paths.append(f"results/weights/{origin['sha256']}.{kind}")
        else:
            paths.append(origin["file"])
    return paths


def shown_by(wildcards):
    """The flag of the visualize step for what it shows: images, or a database."""
    pictures = config["experiments"][wildcards.experiment]["pictures"]
    return "--images" if "images" in pictures else "--database"


def shown_images(wildcards):
    """Input function: what the pictures of a trained net show: images of the user's, or the validation records."""
    images = config["experiments"][wildcards.experiment]["pictures"].get("images")
    return images or f"results/datasets/{dataset_of(wildcards)}/lmdb/val"


def without_suffix(wildcards, output):
    """The path of a net's two files without .prototxt and .caffemodel, as the surgery step takes it."""
    return str(Path(output.net).with_suffix(""))
