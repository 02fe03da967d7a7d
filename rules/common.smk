import gc
import json
import os
import sys
import time
from functools import partial
from pathlib import Path

import caffe
from snakemake.exceptions import WorkflowError

from pipeline import configuration, failures
from pipeline.closure import code_of
from pipeline.configuration import fixed as fixed_config
from pipeline.configuration import steps
from pipeline.files import stem_of
from pipeline.report import table_texts

# Planned jobs stay to the end: with Python's default threshold, collections that find nothing take a fifth of the planning.
gc.freeze()
gc.set_threshold(100_000, *gc.get_threshold()[1:])

EXAMPLE = "results/example/digits"
"""Where the embedded example is written, and its lists are found by the config."""
# The main process checks the config and fixes it; a cluster's jobs read the fixed one, whatever the config file says by then.
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
STARTED = time.time()
config.clear()
config.update(fixed)


envvars:
    DIGEST,


# Snakemake itself would end with a traceback, as it removes old outputs before a step begins.
onstart:
    for folder in ("results", "logs"):
        if Path(folder).exists() and not os.access(folder, os.W_OK):
            raise WorkflowError(
                f"{folder}: cannot be written; make it writable, or choose another folder by --directory"
            )


onerror:
    if workflow.is_main_process:
        unfinished = (job for job in workflow.dag.jobs if not workflow.dag.finished(job))
        logs = [(job.rule.name, Path(log)) for job in unfinished for log in job.log]
        if said := failures.describe(logs, STARTED):
            print(said, file=sys.stderr)


GPUS = int(config["compute"] == "gpu")


def grown(amount):
    """Resource function: MB or minutes of the first attempt, and as much again for each further one, as `--retries` allows."""
    return lambda wildcards, attempt: amount * attempt


def datasets_from(kind):
    """Regex of the datasets whose source is of a kind; matches nothing if there are none."""
    kinds = {
        name: configuration.keys.kind_of(dataset["source"])
        for name, dataset in config["datasets"].items()
    }
    return "|".join(name for name in kinds if kinds[name] == kind) or "(?!)"


IN_ORDER = (
    *("first_page", "comparison_plot", "comparison", "sweep"),
    *("overview", "classes", "sheet", "sizes", "duplicates", "mean", "augmented"),
    *("strategy", "measured", "net", "layers", "preflight", "curves"),
    *("confusion", "per_class", "calibration", "mistakes", "predictions", "classify"),
    *("filters", "activations", "probabilities", "feature_maps", "map", "neighbours"),
)
"""Captions and tables of the report in the order of the work."""


def in_order(result, label):
    """The label of a result, indented: Snakemake's report sorts labels as text, and a browser shows no space before them."""
    return {"result": " " * (len(IN_ORDER) - IN_ORDER.index(result)) + label}


def in_report(folder, category, path, caption, label, patterns=()):
    """An output that Snakemake's report shows, `path` in a folder.

    caption   the name of its text in report/, without .rst
    label     a text, or a function of wildcards that returns `in_order` of it
    patterns  of the files that are shown, if the output is a folder
    """
    labels = label if callable(label) else in_order(caption, label)
    return report(
        f"{folder}/{path}",
        caption=f"../report/{caption}.rst",
        category=category,
        labels=labels,
        patterns=patterns,
    )


def table_label(wildcards):
    """Label of a table's page in the report."""
    name = wildcards.table.removesuffix("_train").removesuffix("_test")
    result = "sweep" if name.startswith(table_texts.SWEEP) else name
    return in_order(result, table_texts.text_of(wildcards.table).title)


def category_of(kind=""):
    """Category of results of a "dataset", an "experiment" or all experiments, in the config's order, as `in_order` sorts."""

    def category(wildcards):
        order = ["All experiments"]
        order += [f"Dataset {name}" for name in config["datasets"]]
        order += [f"Experiment {name}" for name in config["experiments"]]
        name = f"{kind.capitalize()} {wildcards[kind]}" if kind else order[0]
        return " " * (len(order) - order.index(name)) + name

    return category


dataset_report = partial(in_report, "results/datasets/{dataset}", category_of("dataset"))
experiment_report = partial(
    in_report, "results/experiments/{experiment}", category_of("experiment")
)
comparison_report = partial(in_report, "results/report", category_of())


def of_each_experiment(path):
    """A file of every experiment, by its path in the experiment's folder."""
    return expand(f"results/experiments/{{name}}/{path}", name=config["experiments"])


LISTS = expand(
    "results/datasets/{{dataset}}/lists/{file}",
    file=[
        *("train.txt", "val.txt", "test.txt", "labels.txt", "synset_words.txt"),
        *("classes.csv", "infogain.binaryproto", "sizes.csv", "duplicates.csv", "SHA256SUMS"),
    ],
)
"""The lists of a dataset's images and classes."""
DATABASES = expand("results/datasets/{{dataset}}/lmdb/{part}", part=["train", "val"])
MANIFESTS = expand("results/datasets/{{dataset}}/lmdb/{part}.manifest.json", part=["train", "val"])
SWEPT = [comparison_report(f"{sweep}.png", "sweep", sweep) for sweep in config["sweeps"]]
SWEEP_TABLES = expand("results/report/{sweep}.csv", sweep=config["sweeps"])


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


def of_user(paths):
    """A file of the user's, or a list of them: not below a module's prefix, and not in a storage provider.

    Paths in the config are relative to the working directory.
    """
    return [local(path) for path in paths] if isinstance(paths, list) else local(paths)


def results(wildcards):
    """Input function: what is built if no targets are given."""
    paths = expand(
        "results/datasets/{name}/{file}",
        name=config["datasets"],
        file=["mean.binaryproto", "lmdb/val.manifest.json", "pictures/overview.png", "tables"],
    )
    paths += [
        f"results/datasets/{name}/augmented.png"
        for name, dataset in config["datasets"].items()
        if dataset.get("augmentation", {}).keys() - {"copies"}
    ]
    paths += (
        ["results/report/overview.html", "results/report/tables"] if config["experiments"] else []
    )
    paths += [
        f"results/experiments/{name}/{file}"
        for name, experiment in config["experiments"].items()
        for file in results_of(experiment)
    ]
    return paths


def results_of(experiment):
    """Results of an experiment, in its folder, that are built if no targets are given."""
    files = ["report/curves.png", "report/mistakes.png", "tables"]
    files += [f"report/mistakes_{part}.png" for part in experiment["evaluate"] if part != "val"]
    files += ["features"] if experiment["features"] else []
    files += [f"report/map_{stem_of(blob)}.png" for blob in experiment["features"]]
    files += ["pictures/filters.png"] if experiment["pictures"]["count"] else []
    files += ["classify.csv"] if "classify" in experiment else []
    return files + [f"export/{file}" for file in configuration.keys.exports(experiment)]
