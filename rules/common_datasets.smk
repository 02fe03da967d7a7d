# Functions of wildcards that look up a dataset's config.
from pathlib import Path

from pipeline.files import retry_mark
from pipeline.sources import folders


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
        # A file, not the folder: Snakemake fetches it if it is in a storage provider.
        with checkpoints.shards.get(dataset=name).output.names.open() as names:
            return expand(f"results/datasets/{name}/{path}", shard=names.read().split())

    return paths


def threads_of_shard(wildcards):
    """Threads function: fewer where there are more shards, which are resized side by side, and while others are downloaded."""
    with checkpoints.shards.get(dataset=wildcards.dataset).output.names.open() as names:
        return max(1, 8 // len(names.read().split()))


def list_of_shard(wildcards):
    """Input function: a shard's list, a file, so that a longer source list does not download old shards again."""
    checkpoints.shards.get(dataset=wildcards.dataset)
    return f"results/datasets/{wildcards.dataset}/list/{wildcards.shard}.csv"


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
    return of_user(config["datasets"][wildcards.dataset].get("names", []))


def databases_of(wildcards):
    """Input function: the databases that a dataset's records are copied from."""
    databases = source_of(wildcards)["database"]
    return of_user([databases["train"], databases["val"]])


def list_of(wildcards):
    """Input function: a dataset's source list or folder; for the embedded example, the folder that has its lists.

    A folder's time does not show changes in its subfolders: see `listing_of`.
    """
    source = source_of(wildcards)
    path = source[configuration.keys.kind_of(source)]
    if path.startswith(f"{EXAMPLE}/"):
        return local(EXAMPLE)
    return ancient(of_user(path)) if "folder" in source else of_user(path)


def published_name(wildcards):
    """Which published dataset a dataset is."""
    return source_of(wildcards)["published"]


def val_labels_of(wildcards):
    """Input function: the labels of a folder's validation images, if the config gives a file."""
    return of_user(source_of(wildcards).get("val_labels", []))


def state_of(wildcards):
    """What a shard's download depends on beside its list: a folder's files, and how often failed downloads were retried."""
    folder = Path(checkpoints.shards.get(dataset=wildcards.dataset).output[0])
    mark = retry_mark(folder.parent, wildcards.shard)
    files = (
        folders.state(folder / f"{wildcards.shard}.csv") if "folder" in source_of(wildcards) else ""
    )
    return files + (mark.read_text() if mark.exists() else "")


def listing_of(wildcards):
    """A digest of a source folder's files, which changes if images are added or removed."""
    folder = source_of(wildcards).get("folder")
    return folders.listing(Path(folder)) if folder and Path(folder).is_dir() else ""
