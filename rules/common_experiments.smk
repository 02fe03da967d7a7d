# What the rules ask of an experiment's config.
import json
import shlex
from pathlib import Path

from pipeline import configuration, models, strategies
from pipeline.files import stem_of


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


def infogain_flag(wildcards):
    """The matrix that weighs an experiment's classes, where there is one."""
    matrix = infogain_of(wildcards)
    return f"--infogain {matrix}" if matrix else ""


def augmentation_flag(wildcards):
    """How training images are changed on their way into the net: not where the database has changed copies."""
    changes, copies = augmentation_of(dataset_of(wildcards))
    return f"--augmentation {shlex.quote(changes)}" if changes and not copies else ""


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


def features_flags(wildcards):
    """How a linear classifier is fitted to an experiment's features."""
    experiment = config["experiments"][wildcards.experiment]
    balanced = "--balanced" if infogain_of(wildcards) else ""
    return f"--strategy {experiment['strategy']} --features-from {shlex.quote(experiment['features_from'])} {balanced}"


def strategy_flags(wildcards):
    """What of an experiment's net is learned."""
    if chosen := fitted("strategy.json")(wildcards):
        return f"--chosen {chosen}"
    experiment = config["experiments"][wildcards.experiment]
    freeze_to = experiment.get("freeze_to")
    return f"--strategy {experiment['strategy']}" + (
        f" --freeze-to {shlex.quote(freeze_to)}" if freeze_to else ""
    )


def resized_flags(wildcards):
    """How the images of an experiment's dataset were resized."""
    dataset = config["datasets"][dataset_of(wildcards)]
    return f"--resize-mode {dataset['resize_mode']} --interpolation {dataset['interpolation']}"


def model_source(wildcards):
    """Digest of the module of an experiment's template."""
    model = config["experiments"][wildcards.experiment]["model"]
    if models.is_file(model):
        return source("pipeline.models.adapted")
    return source(models.TEMPLATES[model].body.__module__)


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


def url_of(wildcards):
    """Where the weights with a SHA-256 are."""
    given = [
        origin
        for experiment in config["experiments"].values()
        for origin in configuration.keys.origins(experiment)
    ]
    return next(origin["url"] for origin in given if origin.get("sha256") == wildcards.sha256)


def start_flags(wildcards):
    """What a training starts from and when it ends, as the train step takes them."""
    experiment = config["experiments"][wildcards.experiment]
    chosen, classifier = (
        fitted(file)(wildcards) for file in ("strategy.json", "classifier.caffemodel")
    )
    flags = ["--chosen", chosen] if chosen else []
    if weights := weights_of(wildcards):
        flags += ["--weights", *weights]
        named = [origin.get("experiment") for origin in configuration.keys.origins(experiment)]
        others = [config["experiments"].get(name, {}).get("dataset") for name in named]
        flags += ["--same-classes"] if set(others) == {experiment["dataset"]} else []
    flags += ["--skip", *experiment["skip_layers"]] if experiment["skip_layers"] else []
    flags += ["--fitted", classifier] if classifier else []
    patience = experiment["early_stopping"]
    flags += ["--early-stopping", str(patience)] if patience else []
    swept = any(wildcards.experiment in sweep["members"] for sweep in config["sweeps"].values())
    return shlex.join([*flags, "--diverging"] if swept else flags)


def shown_images(wildcards):
    """Input function: what the pictures of a trained net show: images of the user's, or the validation records."""
    images = config["experiments"][wildcards.experiment]["pictures"].get("images")
    return images or f"results/datasets/{dataset_of(wildcards)}/lmdb/val"


def images_flag(wildcards):
    """Which images the pictures of a trained net show, and how many."""
    pictures = config["experiments"][wildcards.experiment]["pictures"]
    kind = "images" if "images" in pictures else "database"
    return f"--{kind} {shlex.quote(shown_images(wildcards))} --count {pictures['count']}"


def last_flags(wildcards):
    """The last layer's name, whether it is new beside weights, and how fast it learns where the config says."""
    experiment = config["experiments"][wildcards.experiment]
    flags = ["--last", configuration.keys.last_layer(experiment)]
    flags += ["--pretrained"] if experiment["weights"] else []
    rate = experiment.get("last_lr_mult")
    return shlex.join(flags if rate is None else [*flags, "--last-lr-mult", str(rate)])


def blob_of(wildcards):
    """The blob of an experiment's features that files are named after."""
    blobs = config["experiments"][wildcards.experiment]["features"]
    return next(blob for blob in blobs if stem_of(blob) == wildcards.blob)


def solver_fields(wildcards):
    """The solver fields that the config gives, as JSON."""
    return json.dumps(config["experiments"][wildcards.experiment]["solver"], sort_keys=True)


def without_suffix(wildcards, output):
    """The path of a net's two files without .prototxt and .caffemodel, as the surgery step takes it."""
    return str(Path(output.net).with_suffix(""))
