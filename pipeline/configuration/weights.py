"""Mistakes in the weights that a config's experiments start from."""

import re
from typing import Any

from pipeline.configuration.keys import ORIGINS, mapping, origins, unknown


def problems(name: str, experiments: dict[str, Any]) -> list[str]:
    """Mistakes in the weights of an experiment, each preceded by the rest of its key, such as `.0.best`."""
    several = isinstance(experiments[name].get("weights"), list)
    found = []
    for number, origin in enumerate(origins(experiments[name])):
        key = f".{number}" if several else ""
        kinds = [kind for kind in ORIGINS if kind in origin]
        if len(kinds) != 1:
            given = " and ".join(kinds) or "none"
            found.append(f"{key}: {given} given; it is one of {', '.join(ORIGINS[:-1])} and {ORIGINS[-1]}")
            continue
        for part, kind in (("best", "experiment"), ("sha256", "url")):
            if part in origin and kind not in origin:
                found.append(f"{key}.{part}: no effect without {kind}")
        if "url" in origin and "sha256" not in origin:
            found.append(f"{key}: sha256 is missing; it identifies the file at the url")
        if isinstance(origin.get("sha256"), str) and not re.fullmatch("[0-9a-f]{64}", origin["sha256"]):
            found.append(f"{key}.sha256: {origin['sha256']!r} is not 64 digits of 0 to 9 and a to f")
        if isinstance(file := origin.get("file"), str) and (left := re.search(r"{[^{}]*}|[{}]", file)):
            found.append(f"{key}.file: {left[0]} is not replaced; only a key with a list of values is, such as {{model}}")
        if isinstance(source := origin.get("experiment"), str):
            wrong = unknown(source, experiments) or _circle(name, source, experiments)
            found += [f"{key}.experiment: {problem}" for problem in wrong]
    return found


def of_channels(experiment: dict[str, Any], experiments: dict[str, Any], datasets: dict[str, Any]) -> list[str]:
    """An error if an experiment's weights were trained on another channel order than that of its dataset."""
    dataset = experiment.get("dataset")
    if not isinstance(dataset, str) or experiment.get("skip_layers"):  # the first layer may be skipped
        return []
    mine = _channels(dataset, datasets)
    for source in (origin.get("experiment") for origin in origins(experiment)):
        other = experiments[source].get("dataset") if isinstance(source, str) and source in experiments else None
        theirs = _channels(other, datasets) if isinstance(other, str) else None
        if {mine, theirs} == {"BGR", "RGB"}:
            fixed = "published" in mapping(datasets[dataset].get("source"))
            name, order = (other, mine) if fixed else (dataset, theirs)
            return [f"channels are {mine}, but {source} was trained on {theirs}; set datasets.{name}.channels: {order}"]
    return []


def _channels(name: str, datasets: dict[str, Any]) -> str | None:
    """The channel order of a dataset; None for gray images, or if it is not known."""
    dataset = datasets.get(name)
    if dataset is None or dataset.get("color") == "gray":
        return None
    published = mapping(dataset.get("source")).get("published")
    if isinstance(published, str):
        return "RGB" if published.startswith("cifar") else None
    channels: str = dataset.get("channels", "BGR")
    return channels


def _circle(name: str, source: str, experiments: dict[str, Any]) -> list[str]:
    """An error if an experiment takes weights from one that takes its own, directly or not, from it."""
    waiting, seen = [[name, source]], set()
    while waiting:
        chain = waiting.pop()
        if chain[-1] == name:
            return [f"{' → '.join(chain)} goes in a circle"]
        if chain[-1] in experiments and chain[-1] not in seen:
            seen.add(chain[-1])
            sources = (origin.get("experiment") for origin in origins(experiments[chain[-1]]))
            waiting += [[*chain, further] for further in sources if isinstance(further, str)]
    return []


def as_mappings(weights: object) -> object:
    """A config's `weights`, in which {file: PATH} replaces a path alone."""
    if isinstance(weights, list):
        return [as_mappings(item) for item in weights]
    return {"file": weights} if isinstance(weights, str) else weights
