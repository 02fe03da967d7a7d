import hashlib
import importlib.util
from pathlib import Path

import caffe
from snakemake.exceptions import WorkflowError

from pipeline import configuration
from pipeline.files import stem_of

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
