"""What is wrong with the weights that a config's experiments start from."""

import re
from typing import Any

from pipeline.configuration.keys import ORIGINS, mapping, origins, unknown


def problems(name: str, experiments: dict[str, Any]) -> list[str]:
    """What is wrong with the weights that an experiment starts from, each with the rest of its key before it."""
    several = isinstance(experiments[name].get("weights"), list)
    found = []
    for number, origin in enumerate(origins(experiments[name])):
        key = f".{number}" if several else ""
        kinds = [kind for kind in ORIGINS if kind in origin]
        if len(kinds) != 1:
            found.append(
                f"{key}: {' and '.join(kinds) or 'none'} given; it is one of {', '.join(ORIGINS[:-1])} and {ORIGINS[-1]}"
            )
            continue
        for part, kind in (("best", "experiment"), ("sha256", "url")):
            if part in origin and kind not in origin:
                found.append(f"{key}.{part}: no effect without {kind}")
        if "url" in origin and "sha256" not in origin:
            found.append(f"{key}: sha256 is missing; it says which file the url gives")
        if isinstance(origin.get("sha256"), str) and not re.fullmatch("[0-9a-f]{64}", origin["sha256"]):
            found.append(f"{key}.sha256: {origin['sha256']!r} is not 64 digits of 0 to 9 and a to f")
        if isinstance(file := origin.get("file"), str) and (left := re.search(r"{[^{}]*}|[{}]", file)):
            found.append(
                f"{key}.file: {left[0]} stands for nothing; in braces goes a key that the experiment has a list of, such as model"
            )
        if isinstance(source := origin.get("experiment"), str):
            wrong = unknown(source, experiments) or _circle(name, source, experiments)
            found += [f"{key}.experiment: {problem}" for problem in wrong]
    return found


def of_channels(experiment: dict[str, Any], experiments: dict[str, Any], datasets: dict[str, Any]) -> list[str]:
    """What is wrong where weights were learned on colours in another order."""
    if experiment.get("skip_layers"):  # the first one may be among them
        return []
    mine: str | None
    seen: Any
    mine, seen = _channels(experiment, datasets), experiment.get("dataset")
    for source in (origin.get("experiment") for origin in origins(experiment)):
        theirs = _channels(experiments[source], datasets) if isinstance(source, str) and source in experiments else None
        if {mine, theirs} == {"BGR", "RGB"}:
            fixed = "published" in mapping(datasets[seen].get("source"))
            name, order = (experiments[source]["dataset"], mine) if fixed else (seen, theirs)
            return [f"channels are {mine}, those that {source} learned on {theirs}; give datasets.{name}.channels: {order}"]
    return []


def _channels(experiment: dict[str, Any], datasets: dict[str, Any]) -> str | None:
    """The order of the channels that an experiment learns on; None where they are no colours, or not known."""
    name = experiment.get("dataset")
    dataset = datasets.get(name) if isinstance(name, str) else None
    if dataset is None or dataset.get("color") == "gray":
        return None
    published = mapping(dataset.get("source")).get("published")
    if isinstance(published, str):
        return "RGB" if published.startswith("cifar") else None
    channels: str = dataset.get("channels", "BGR")
    return channels


def _circle(name: str, source: str, experiments: dict[str, Any]) -> list[str]:
    """What is wrong where an experiment takes weights from one that, in the end, takes its own from it."""
    waiting, seen = [[name, source]], set()
    while waiting:
        chain = waiting.pop()
        if chain[-1] == name:
            return [f"{' → '.join(chain)} goes in a circle"]
        if chain[-1] in experiments and chain[-1] not in seen:
            seen.add(chain[-1])
            further = [one.get("experiment") for one in origins(experiments[chain[-1]])]
            waiting += [[*chain, one] for one in further if isinstance(one, str)]
    return []


def as_mappings(weights: object) -> object:
    """A config's `weights` with {file: PATH} for each that is given as a path alone."""
    if isinstance(weights, list):
        return [as_mappings(one) for one in weights]
    return {"file": weights} if isinstance(weights, str) else weights
