# Functions of wildcards that look up a dataset's config.
from pathlib import Path

from pipeline.sources.folders import listing


def images_of(wildcards):
    """The name of the dataset that downloads and resizes the images: this one, or its source."""
    return source_of(wildcards).get("dataset", wildcards.dataset)


def of_images(path):
    """Input function: `path` in the folder of the dataset that `images_of` names."""
    return lambda wildcards: f"results/datasets/{images_of(wildcards)}/{path}"


def of_shards(path):
    """Input function: `path`, with {shard}, for every shard of the images, after the checkpoint that makes them."""

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
    """The `source` of a dataset in the config."""
    return config["datasets"][wildcards.dataset]["source"]


def patience(wildcards, input):
    """Limits and retries of a download, as JSON. A change does not repeat a download that succeeded:

    Snakemake does not record the value of a params function that takes `input`.
    """
    return json.dumps(steps.patience_of(config, wildcards.dataset))


def names_of(wildcards):
    """Input function: the file of class names, if the config gives one."""
    return config["datasets"][wildcards.dataset].get("names", [])


def databases_of(wildcards):
    """Input function: the databases that a dataset's records are copied from."""
    databases = source_of(wildcards)["database"]
    return [databases["train"], databases["val"]]


def list_of(wildcards):
    """Input function: a dataset's source list or folder; for the embedded example, the folder that has its lists.

    A folder's time does not show changes in its subfolders: see `listing_of`.
    """
    source = source_of(wildcards)
    path = source[configuration.keys.kind_of(source)]
    if path.startswith("results/example/digits/"):
        return rules.digits.output.folder
    return ancient(path) if "folder" in source else path


def val_labels_of(wildcards):
    """Input function: the labels of a folder's validation images, if the config gives a file."""
    return source_of(wildcards).get("val_labels", [])


def listing_of(wildcards):
    """A digest of a source folder's files, which changes if images are added or removed."""
    folder = source_of(wildcards).get("folder")
    return listing(Path(folder)) if folder and Path(folder).is_dir() else ""
