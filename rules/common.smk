import hashlib
import importlib.util
import json
import shlex
from pathlib import Path

import caffe
from snakemake.exceptions import WorkflowError

from pipeline import configuration, models, strategies
from pipeline.files import stem_of
from pipeline.folders import listing

try:
    schema = Path(workflow.basedir) / "config" / "schema.yaml"
    config.update(
        configuration.checked(config, str((workflow.configfiles or ["config"])[-1]), schema)
    )
except caffe.Error as error:
    raise WorkflowError(str(error)) from None

GPUS = int(config["compute"] == "gpu")
GPU_FLAG = "--gpu" if GPUS else ""


READY = "|".join(
    name
    for name, dataset in config["datasets"].items()
    if configuration.keys.kind_of(dataset["source"]) in ("published", "database")
)
"""Pattern of the datasets whose records are there already; of no name where there are none."""


DUPLICATES = report(
    "results/datasets/{dataset}/lists/duplicates.csv",
    caption="../report/duplicates.rst",
    category="{dataset}",
    labels={"result": "near-duplicates (CSV)"},
)
LISTS = [
    *expand(
        "results/datasets/{{dataset}}/lists/{file}",
        file=[
            *("train.txt", "val.txt", "test.txt", "labels.txt", "synset_words.txt"),
            *("classes.csv", "infogain.binaryproto", "sizes.csv"),
        ],
    ),
    DUPLICATES,
]
"""What says which images a dataset has."""


def swept(sweep, kind, what):
    """The picture or the table of a sweep, as the report has it."""
    path = f"results/report/{sweep}.{kind}"
    named = report(
        path, caption="../report/sweep.rst", category="Comparison", labels={"result": sweep + what}
    )
    return named


SWEPT = [
    swept(sweep, *kind) for sweep in config["sweeps"] for kind in (("png", ""), ("csv", " (CSV)"))
]
"""The pictures and tables of sweeps."""


wildcard_constraints:
    dataset="[A-Za-z0-9_-]+",
    experiment="[A-Za-z0-9_-][A-Za-z0-9_.-]*",
    sweep="[A-Za-z0-9_-]+",
    shard=r"\d+",
    part="train|val|test",
    of="|_train|_test",
    blob="[^/]+",


def source(module):
    """Digest of a step's module: an edit of the step is seen, a touch is not."""
    return hashlib.sha256(Path(importlib.util.find_spec(module).origin).read_bytes()).hexdigest()[
        :16
    ]


def dataset_of(wildcards):
    """The name of an experiment's dataset."""
    return config["experiments"][wildcards.experiment]["dataset"]


def of_dataset(path):
    """Input function: `path` in the folder of the experiment's dataset."""
    return lambda wildcards: f"results/datasets/{dataset_of(wildcards)}/{path}"


def of_evaluated(path):
    """Input function: `path`, with {part}, in the folder of the experiment's dataset, for the part that is evaluated."""
    return lambda wildcards: (
        f"results/datasets/{dataset_of(wildcards)}/"
        + path.format(part=wildcards.of.removeprefix("_") or "val")
    )


def images_of(wildcards):
    """The name of the dataset that the images are of: this one, or the one it takes them from."""
    return source_of(wildcards).get("dataset", wildcards.dataset)


def of_images(path):
    """Input function: `path` in the folder of the dataset that the images are of."""
    return lambda wildcards: f"results/datasets/{images_of(wildcards)}/{path}"


def of_shards(path):
    """Input function: `path`, with {shard}, for every shard of the images, once it is known how many there are."""

    def paths(wildcards):
        name = images_of(wildcards)
        folder = Path(checkpoints.shards.get(dataset=name).output[0])
        shards = sorted(file.stem for file in folder.glob("*.csv"))
        return expand(f"results/datasets/{name}/{path}", shard=shards)

    return paths


def list_of_shard(wildcards):
    """Input function: a shard's list, a file, so that a longer source list does not download old shards again."""
    folder = checkpoints.shards.get(dataset=wildcards.dataset).output[0]
    return f"{folder}/{wildcards.shard}.csv"


def val_flag(wildcards):
    """How the label step divides images: a share of each class, a fold, by the list's column, or as it finds them."""
    split = config["datasets"][wildcards.dataset]["split"]
    share = f"--val {split.get('val', 0.2)}"
    flags = {"column": "", "fraction": share}
    flags["fold"] = f"--folds {split.get('folds')} --fold {split.get('fold')}"
    return (
        flags[split["by"]] if "by" in split else share if "val" in split else f"{share} --own-split"
    )


def of_part(result):
    """Labels of a result in the report, with the part that was evaluated where it is not the validation set."""
    parts = {"": "", "_train": ", training images", "_test": ", images for testing"}
    return lambda wildcards: {"result": result + parts[wildcards.of]}


def source_of(wildcards):
    """Where a dataset's images come from, as the config says."""
    return config["datasets"][wildcards.dataset]["source"]


def download_flags(keys):
    """Params function: how a dataset is downloaded, as the step takes it; image files on this machine are file:// URLs."""

    def flags(wildcards):
        named = dict(source_of(wildcards))
        named["allow_file"] |= bool(named.keys() & {"folder", "root"})
        given = {key.replace("_", "-"): named[key] for key in keys}
        flags = [
            f"--{key}" if value is True else f"--{key}={value}" for key, value in given.items()
        ]
        return shlex.join(flag for flag in flags if not flag.endswith("=False"))

    return flags


def patience_flags(wildcards, input):
    """How long and how hard a download is tried: no reason to repeat one that has succeeded.

    A params function that takes `input` is one of which Snakemake does not note what it gave.
    """
    return download_flags(configuration.keys.PATIENCE_FLAGS)(wildcards)


def source_flags(wildcards):
    """A dataset's source, as the shards step takes it."""
    named = source_of(wildcards)
    flags = [
        f"--{key.replace('_', '-')}={named[key]}"
        for key in configuration.keys.SOURCE_FLAGS
        if key in named
    ]
    flags += [f"--column={key}={name}" for key, name in named["columns"].items()]
    return shlex.join(flags)


def counts_flag(wildcards):
    """How many training images of each class are listed."""
    split = config["datasets"][wildcards.dataset]["split"]
    flags = [
        f"--{key.replace('_', '-')} {split[key]}"
        for key in ("min_per_class", "max_per_class")
        if key in split
    ]
    return " ".join([*flags, "--repeat"] if split["balance"] == "repeat" else flags)


def names_of(wildcards):
    """Input function: the file of the classes' names, where the config gives one."""
    return config["datasets"][wildcards.dataset].get("names", [])


def names_flag(wildcards):
    """The names of the classes, where a file has them."""
    names = config["datasets"][wildcards.dataset].get("names")
    return f"--names {shlex.quote(names)}" if names else ""


def copy_flag(wildcards):
    """Where a published collection's files are taken from, when they are not downloaded."""
    copy = source_of(wildcards).get("copy")
    return f"--copy {shlex.quote(copy)}" if copy else ""


def records_of(wildcards):
    """Input function: where a dataset's records are: a published collection's files, or databases."""
    databases = source_of(wildcards).get("database")
    if databases:
        return [databases["train"], databases["val"]]
    return [f"results/datasets/{wildcards.dataset}/published"]


def ready_command(wildcards):
    """The step that makes a dataset of its records, with its arguments."""
    target, records = f"results/datasets/{wildcards.dataset}", shlex.join(records_of(wildcards))
    if published := source_of(wildcards).get("published"):
        return f"pipeline.published build {published} {records} {target}"
    channels = config["datasets"][wildcards.dataset]["channels"]
    flags = f"--channels {channels} {encode_flag(wildcards)} {names_flag(wildcards)}"
    return f"pipeline.reuse {records} {target} {flags}"


def list_of(wildcards):
    """Input function: a dataset's source list or folder; lists of the embedded example come with their folder.

    A folder's time says nothing of those in it: see `listing_of`.
    """
    source = source_of(wildcards)
    path = source.get("list") or source["folder"]
    if path.startswith("results/example/digits/"):
        return rules.digits.output.folder
    return path if "list" in source else ancient(path)


def val_labels_of(wildcards):
    """Input function: the list of the labels of a folder's validation images, where the config gives one."""
    return source_of(wildcards).get("val_labels", [])


def listing_of(wildcards):
    """What tells that images were added to a source folder, or removed."""
    folder = source_of(wildcards).get("folder")
    return listing(Path(folder)) if folder and Path(folder).is_dir() else ""


def augmentation_of(dataset):
    """How a dataset's training images are changed, as JSON, and how many changed copies its database has."""
    changes = dict(config["datasets"][dataset].get("augmentation", {}))
    copies = changes.pop("copies", 0)
    return json.dumps(changes, sort_keys=True) if changes else "", copies


def encode_flag(wildcards):
    """How records are stored, where the config says it."""
    encode = config["datasets"][wildcards.dataset].get("encode")
    return f"--encode {encode}" if encode else ""


def infogain_of(wildcards):
    """Input function: the matrix that weighs an experiment's classes, where its dataset is balanced by weights."""
    name = dataset_of(wildcards)
    weighed = config["datasets"][name]["split"]["balance"] == "weights"
    return f"results/datasets/{name}/lists/infogain.binaryproto" if weighed else []


def infogain_flag(wildcards):
    """The matrix that weighs an experiment's classes, where there is one."""
    matrix = infogain_of(wildcards)
    return f"--infogain {matrix}" if matrix else ""


def copies_flag(wildcards):
    """The changed copies in a training database."""
    changes, copies = augmentation_of(wildcards.dataset)
    if wildcards.part != "train" or not changes or not copies:
        return ""
    seed = config["datasets"][wildcards.dataset]["seed"]
    return f"--copies {copies} --seed {seed} --augmentation {shlex.quote(changes)}"


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


EXPORTS = {
    "onnx": "model.onnx",
    "safetensors": "model.safetensors",
    "merged": "merged.caffemodel",
    "convolutional": "convolutional.caffemodel",
    "crop": "cropped.caffemodel",
    "average": "averaged.caffemodel",
}
"""The file that each key of an experiment's `export` asks for."""


def results(wildcards):
    """Everything that `snakemake` makes when it is not told what."""
    experiments = config["experiments"]
    paths = expand(
        "results/datasets/{name}/{file}",
        name=config["datasets"],
        file=["mean.binaryproto", "lmdb/val.manifest.json", "pictures/overview.png"],
    )
    paths += [
        f"results/datasets/{name}/augmented.png"
        for name in config["datasets"]
        if augmentation_of(name)[0]
    ]
    paths += ["results/report/comparison.csv"] if experiments else []
    for name, experiment in experiments.items():
        paths += expand(
            "results/experiments/{name}/report/{plot}",
            name=name,
            plot=["curves.png", "mistakes.png"],
        )
        paths += [
            f"results/experiments/{name}/report/mistakes_{part}.png"
            for part in experiment["evaluate"]
            if part != "val"
        ]
        paths += [f"results/experiments/{name}/features"] if experiment["features"] else []
        paths += expand(
            "results/experiments/{name}/report/map_{blob}.png",
            name=name,
            blob=[stem_of(blob) for blob in experiment["features"]],
        )
        if experiment["pictures"]["count"]:
            paths.append(f"results/experiments/{name}/pictures/filters.png")
        if "classify" in experiment:
            paths.append(f"results/experiments/{name}/classify.csv")
        asked = [file for key, file in EXPORTS.items() if experiment["export"].get(key)]
        paths += [f"results/experiments/{name}/export/{file}" for file in asked]
    return paths
