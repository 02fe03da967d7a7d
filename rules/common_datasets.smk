# What the rules ask of a dataset's config.
from pathlib import Path

from pipeline.sources.folders import listing


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


def source_of(wildcards):
    """Where a dataset's images come from, as the config says."""
    return config["datasets"][wildcards.dataset]["source"]


def patience(wildcards, input):
    """How long and how hard a download is tried, as JSON: no reason to repeat one that has succeeded.

    Snakemake does not record the value of a params function that takes `input`.
    """
    return json.dumps(steps.patience_of(config, wildcards.dataset))


def names_of(wildcards):
    """Input function: the file of the classes' names, where the config gives one."""
    return config["datasets"][wildcards.dataset].get("names", [])


def databases_of(wildcards):
    """Input function: the databases that a dataset's records are copied from."""
    databases = source_of(wildcards)["database"]
    return [databases["train"], databases["val"]]


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
