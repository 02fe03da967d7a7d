"""The options that each step gets from a checked config: only those it uses, so that a change of another key reruns nothing."""

from collections.abc import Callable, Mapping
from typing import Any

from pipeline.configuration import keys
from pipeline.files import stem_of
from pipeline.nets import strategies
from pipeline.options.config import STEPS
from pipeline.options.dataset import Patience, Source


def options_of(config: Mapping[str, Any], step: str, names: Mapping[str, str]) -> dict[str, Any]:
    """The options of a step as JSON values, defaults included: a changed default reruns the step, too.

    step   one of STEPS, such as dataset.resize
    names  the wildcards of its rule: `dataset` or `experiment`, and others
    """
    values: dict[str, Any] = {"gpu": config["compute"] == "gpu", "numerics": config["numerics"]}
    if "experiment" in names:
        values |= _of_experiment(config, names["experiment"])
    elif "dataset" in names:
        values |= _of_dataset(config["datasets"][names["dataset"]])
    if step in CHANGES:
        values |= CHANGES[step](config, names, values)
    checked = STEPS[step].model_validate(values, extra="ignore")
    options = checked.model_dump(mode="json", by_alias=True, exclude_none=True)
    if step == "dataset.download":
        options["source"] = {key: value for key, value in options["source"].items() if key not in Patience.model_fields}
    return options


def patience_of(config: Mapping[str, Any], dataset: str) -> dict[str, Any]:
    """Limits and retries of a dataset's downloads: a change of these does not repeat a download that succeeded."""
    source = config["datasets"][dataset]["source"]
    return {"source": {key: source[key] for key in Patience.model_fields}}


def _of_dataset(dataset: dict[str, Any]) -> dict[str, Any]:
    """A dataset's keys, and options that are derived from them."""
    source, changes = dataset["source"], dict(dataset.get("augmentation", {}))
    return {
        **dataset,
        "source": source | {"allow_file": source["allow_file"] or bool(source.keys() & {"root", *Source.kinds} - {"list"})},
        "copies": changes.pop("copies", 0),
        "augmentation": changes or None,
        "repeat": dataset["split"]["balance"] == "repeat",
    }


def _of_experiment(config: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The keys of an experiment and of its dataset, and options that are derived from them."""
    experiment = config["experiments"][name]
    dataset = config["datasets"][experiment["dataset"]]
    changed = _of_dataset(dataset)
    sources = [origin.get("experiment") for origin in keys.origins(experiment)]
    others = {config["experiments"].get(source, {}).get("dataset") for source in sources}
    return {
        **changed,
        **experiment,
        **experiment["export"],
        "augmentation": None if changed["copies"] else changed["augmentation"],  # else the records are augmented
        "balanced": dataset["split"]["balance"] == "weights",
        "same_classes": others == {experiment["dataset"]},
        "tolerate_divergence": any(name in sweep["members"] for sweep in config["sweeps"].values()),
    }


def _prototxt(config: Mapping[str, Any], names: Mapping[str, str], values: dict[str, Any]) -> dict[str, Any]:
    """The prototxt step reads from a file what the linear step has chosen."""
    chosen = {"strategy": "full", "features_from": "top", "freeze_to": None} if values["strategy"] in strategies.FITTED else {}
    last = keys.last_layer(config["experiments"][names["experiment"]])
    return {"name": names["experiment"], "last": last, "pretrained": bool(values["weights"])} | chosen


def _database(config: Mapping[str, Any], names: Mapping[str, str], values: dict[str, Any]) -> dict[str, Any]:
    """Augmentation is for the copies of training images alone, and the seed for augmentation."""
    augmented = names["part"] == "train" and values["copies"] and values["augmentation"]
    return {} if augmented else {"copies": 0, "augmentation": None, "seed": 1}


def _weights(config: Mapping[str, Any], names: Mapping[str, str], values: dict[str, Any]) -> dict[str, Any]:
    origins = (origin for experiment in config["experiments"].values() for origin in keys.origins(experiment))
    return next(origin for origin in origins if origin.get("sha256") == names["sha256"])


def _comparison(config: Mapping[str, Any], names: Mapping[str, str], values: dict[str, Any]) -> dict[str, Any]:
    experiments = config["experiments"]
    datasets = [experiment["dataset"] for experiment in experiments.values()]
    return {"names": list(experiments), "datasets": datasets, "sweeps": config["sweeps"]}


def _neighbours(config: Mapping[str, Any], names: Mapping[str, str], values: dict[str, Any]) -> dict[str, Any]:
    return {"blob": next(blob for blob in values["features"] if stem_of(blob) == names["blob"])}


CHANGES: dict[str, Callable[[Mapping[str, Any], Mapping[str, str], dict[str, Any]], dict[str, Any]]] = {
    "nets.prototxt": _prototxt,
    "dataset.database": _database,
    "training.initial_weights": _weights,
    "report.comparison": _comparison,
    "report.neighbours": _neighbours,
    "report.evaluation": lambda config, names, values: {"suffix": names["of"]},
}
"""Functions of (config, names, values) that return a step's values that differ from the config's keys."""
