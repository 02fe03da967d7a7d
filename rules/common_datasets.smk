# What the rules ask of a dataset's config.
import json
import shlex
from pathlib import Path

from pipeline import configuration
from pipeline.folders import listing


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
    given = {
        key.replace("_", "-"): named[key]
        for key in configuration.keys.SOURCE_FLAGS
        if named.get(key, False) is not False
    }
    flags = [f"--{key}" if value is True else f"--{key}={value}" for key, value in given.items()]
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


def copies_flag(wildcards):
    """The changed copies in a training database."""
    changes, copies = augmentation_of(wildcards.dataset)
    if wildcards.part != "train" or not changes or not copies:
        return ""
    seed = config["datasets"][wildcards.dataset]["seed"]
    return f"--copies {copies} --seed {seed} --augmentation {shlex.quote(changes)}"
