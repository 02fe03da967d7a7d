import json
import os
from pathlib import Path

import caffe
from snakemake.exceptions import WorkflowError

from pipeline import configuration
from pipeline.closure import code_of
from pipeline.configuration import fixed as fixed_config
from pipeline.configuration import steps
from pipeline.files import stem_of

# The main process checks the config and fixes it; a cluster's jobs take what it has fixed, whatever the config file says by then.
# The variable is numbered, as another workflow may use this one as a module several times.
FIXED = Path(".snakemake/roastery")
workflow.uses_of_roastery = getattr(workflow, "uses_of_roastery", 0) + 1
DIGEST = f"ROASTERY_CONFIG_{workflow.uses_of_roastery}"
try:
    if workflow.is_main_process:
        path = str((workflow.configfiles or ["config"])[-1])
        os.environ[DIGEST] = fixed_config.write(configuration.check_config(config, path), FIXED)
    fixed = fixed_config.read(os.environ.get(DIGEST, ""), FIXED)
except caffe.Error as error:
    raise WorkflowError(str(error)) from None
config.clear()
config.update(fixed)


envvars:
    DIGEST,


GPUS = int(config["compute"] == "gpu")


def datasets_from(kind):
    """Regex of the datasets whose source is of a kind; matches nothing if there are none."""
    sources = {name: dataset["source"] for name, dataset in config["datasets"].items()}
    return (
        "|".join(name for name in sources if configuration.keys.kind_of(sources[name]) == kind)
        or "(?!)"
    )


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
    blob="[A-Za-z0-9_.-]+",


def options_of(step):
    """Params function: the options of a step, such as dataset.resize, as one JSON argument.

    No quoting can break it, and Snakemake sees each value that changes.
    """
    return lambda wildcards: json.dumps(steps.options_of(config, step, dict(wildcards)))


def dataset_of(wildcards):
    """The name of an experiment's dataset."""
    return config["experiments"][wildcards.experiment]["dataset"]


def of_dataset(path):
    """Input function: `path` in the folder of the experiment's dataset."""
    return lambda wildcards: f"results/datasets/{dataset_of(wildcards)}/{path}"


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
        for name, dataset in config["datasets"].items()
        if dataset.get("augmentation", {}).keys() - {"copies"}
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
        exports = configuration.keys.exports(experiment)
        paths += [f"results/experiments/{name}/export/{file}" for file in exports]
    return paths
