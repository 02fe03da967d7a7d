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


def train_options(wildcards):
    """What a training starts from and when it ends."""
    experiment = config["experiments"][wildcards.experiment]
    named = [origin.get("experiment") for origin in configuration.keys.origins(experiment)]
    others = {config["experiments"].get(name, {}).get("dataset") for name in named}
    sweeps = config["sweeps"].values()
    return {
        "weights": weights_of(wildcards),
        "skip": experiment["skip_layers"],
        "same_classes": others == {experiment["dataset"]},
        "chosen": fitted("strategy.json")(wildcards),
        "fitted": fitted("classifier.caffemodel")(wildcards),
        "early_stopping": experiment["early_stopping"],
        "diverging": any(wildcards.experiment in sweep["members"] for sweep in sweeps),
    }


def linear_options(wildcards):
    """How a linear classifier is fitted to an experiment's features."""
    experiment = config["experiments"][wildcards.experiment]
    options = {key: experiment[key] for key in ("model", "strategy", "features_from")}
    balanced = bool(infogain_of(wildcards))
    return options | on_device(wildcards) | {"weights": weights_of(wildcards), "balanced": balanced}


def prototxt_options(wildcards):
    """What an experiment's nets and solver are written of."""
    name = wildcards.experiment
    experiment, dataset = config["experiments"][name], config["datasets"][dataset_of(wildcards)]
    chosen = fitted("strategy.json")(wildcards)
    keys = ("model", "batch_size", "solver", "last_lr_mult", "batch_norm")
    options = {key: experiment.get(key) for key in keys}
    options |= {key: dataset[key] for key in ("resize_mode", "interpolation")}
    options |= {"chosen": chosen} if chosen else {"strategy": experiment["strategy"]}
    options |= {} if chosen else {"freeze_to": experiment.get("freeze_to")}
    changes, copies = augmentation_of(dataset_of(wildcards))
    return options | {
        "name": name,
        "last": configuration.keys.last_layer(experiment),
        "pretrained": bool(experiment["weights"]),
        "infogain": infogain_of(wildcards),
        "augmentation": changes if not copies else None,
        "gpu": bool(GPUS),
    }


def feature_options(wildcards):
    """Which blobs are extracted, and to which formats."""
    experiment = config["experiments"][wildcards.experiment]
    options = {"blobs": experiment["features"], "formats": experiment["feature_formats"]}
    return options | on_device(wildcards)


def classify_options(wildcards):
    """How images are classified."""
    crops = config["experiments"][wildcards.experiment]["classify"]["oversample"]
    return {"oversample": crops} | on_device(wildcards)


def visualize_options(wildcards):
    """Which images the pictures of a trained net show, and how many."""
    pictures = config["experiments"][wildcards.experiment]["pictures"]
    kind = "images" if "images" in pictures else "database"
    return {kind: shown_images(wildcards), "count": pictures["count"]} | on_device(wildcards)


def evaluated_options(wildcards):
    """The suffix of the file names of an evaluation's pictures: of the part that was evaluated."""
    return {"suffix": wildcards.of}


def neighbour_options(wildcards):
    """The blob whose features are compared."""
    blobs = config["experiments"][wildcards.experiment]["features"]
    return {"blob": next(blob for blob in blobs if stem_of(blob) == wildcards.blob)}


def convolutional_options(wildcards):
    """The size of the images that the fully convolutional net is made for."""
    return config["experiments"][wildcards.experiment]["export"]["convolutional"]


def average_options(wildcards):
    """How many of the last snapshots are averaged."""
    return {"last": config["experiments"][wildcards.experiment]["export"]["average"]}


def weights_options(wildcards):
    """Where the weights with a SHA-256 are downloaded from."""
    given = [
        origin
        for experiment in config["experiments"].values()
        for origin in configuration.keys.origins(experiment)
    ]
    url = next(origin["url"] for origin in given if origin.get("sha256") == wildcards.sha256)
    return {"url": url, "sha256": wildcards.sha256}


COMPARED = {
    "names": list(config["experiments"]),
    "datasets": [experiment["dataset"] for experiment in config["experiments"].values()],
    "sweeps": config["sweeps"],
}
"""The options of the comparison."""


def shown_images(wildcards):
    """Input function: what the pictures of a trained net show: images of the user's, or the validation records."""
    images = config["experiments"][wildcards.experiment]["pictures"].get("images")
    return images or f"results/datasets/{dataset_of(wildcards)}/lmdb/val"


def without_suffix(wildcards, output):
    """The path of a net's two files without .prototxt and .caffemodel, as the surgery step takes it."""
    return str(Path(output.net).with_suffix(""))
