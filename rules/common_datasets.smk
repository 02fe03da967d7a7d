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


def shard_options(wildcards):
    """What the shards step makes its lists of."""
    source = source_of(wildcards)
    options = {key: source[key] for key in configuration.keys.SOURCE_FLAGS if key in source}
    options["column"] = [f"{key}={name}" for key, name in source["columns"].items()]
    options["size"] = config["datasets"][wildcards.dataset]["shard_size"]
    return options


def download_options(wildcards):
    """What is downloaded; image files on this machine are file:// URLs."""
    source = source_of(wildcards)
    options = {key: source[key] for key in configuration.keys.DOWNLOAD_FLAGS}
    options["allow_file"] |= bool(source.keys() & {"folder", "root"})
    return options


def patience(wildcards, input):
    """How long and how hard a download is tried, as JSON: no reason to repeat one that has succeeded.

    Snakemake does not record the value of a params function that takes `input`.
    """
    source = source_of(wildcards)
    return json.dumps({key: source[key] for key in configuration.keys.PATIENCE_FLAGS})


def label_options(wildcards):
    """How images are divided and counted: a share of each class, a fold, the list's column, or the folder's own split."""
    dataset = config["datasets"][wildcards.dataset]
    split = dataset["split"]
    ways = {"column": {}, "fraction": {"val": split.get("val", 0.2)}}
    ways["fold"] = {key: split.get(key) for key in ("folds", "fold")}
    by = split.get("by", "fraction")
    options = ways[by] | {"own_split": "by" not in split and "val" not in split}
    options |= {key: split.get(key) for key in ("min_per_class", "max_per_class")}
    options["repeat"] = split["balance"] == "repeat"
    return options | {key: dataset.get(key) for key in ("names", "duplicates", "seed")}


def names_of(wildcards):
    """Input function: the file of the classes' names, where the config gives one."""
    return config["datasets"][wildcards.dataset].get("names", [])


def fetch_options(wildcards):
    """Where a published collection's files are taken from, where they are not downloaded."""
    return {"copy": source_of(wildcards).get("copy")}


def databases_of(wildcards):
    """Input function: the databases that a dataset's records are copied from."""
    databases = source_of(wildcards)["database"]
    return [databases["train"], databases["val"]]


def reuse_options(wildcards):
    """How a dataset is made of databases."""
    dataset = config["datasets"][wildcards.dataset]
    return {key: dataset.get(key) for key in ("channels", "encode", "names")}


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
    """How a dataset's training images are changed, and how many changed copies its database has."""
    changes = dict(config["datasets"][dataset].get("augmentation", {}))
    copies = changes.pop("copies", 0)
    return changes or None, copies


def database_options(wildcards):
    """How a database's records are made; only training images have changed copies."""
    dataset = config["datasets"][wildcards.dataset]
    options = {key: dataset.get(key) for key in ("color", "channels", "encode")}
    changes, copies = augmentation_of(wildcards.dataset)
    if wildcards.part == "train" and changes and copies:
        options |= {"copies": copies, "seed": dataset["seed"], "augmentation": changes}
    return options


def augmented_options(wildcards):
    """How the examples of changed images are made."""
    changes, _ = augmentation_of(wildcards.dataset)
    return {"augmentation": changes, "seed": config["datasets"][wildcards.dataset]["seed"]}
