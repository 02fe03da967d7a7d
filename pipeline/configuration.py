"""Check a config against its schema and its own cross-references, and fill in the defaults; all errors at once."""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import jsonschema
import yaml

import caffe
from pipeline import models, solver_fields, strategies, sweeps
from pipeline.errors import InputError

SOURCE_FLAGS = ("list", "folder", "root", "val_labels", "sample", "seed")
"""Keys of a source that the shards step takes as flags."""
KINDS = ("list", "folder", "published", "database", "dataset")
"""What images can come from."""
ORIGINS = ("experiment", "file", "url")
"""What weights can come from."""
OF_IMAGES = ("shard_size", "size", "color", "channels", "resize_mode", "interpolation")
"""Keys of a dataset that say how its images are made."""
OF_LISTS = ("split", "duplicates", "augmentation", "seed")
"""Keys of a dataset that say how its lists and databases are made of its images."""
DOWNLOAD_FLAGS = ("allow_file", "allow_private", "ignore_opt_out", "max_bytes", "max_pixels", "max_redirects")
"""Keys of a source that say what is downloaded, which the download step takes as flags."""
PATIENCE_FLAGS = ("min_yield", "concurrency", "per_host", "timeout", "total_timeout", "retries")
"""Those that say how long and how hard it is tried."""


def checked(config: dict, path: str, schema_file: Path) -> dict:
    """The config with defaults filled in, and one experiment for each combination of a sweep; those are in `sweeps`.

    Raises one InputError that lists every problem, a line each.

    path         the config file, as the errors name it
    schema_file  a JSON schema, as YAML
    """
    schema = yaml.safe_load(schema_file.read_text())
    problems = [*_repeated(Path(path)), *_not_finite(config)]
    found: dict[str, dict] = {}
    if isinstance(config.get("experiments"), dict):
        experiments, found = sweeps.expanded(config["experiments"])
        config = {**config, "experiments": experiments}
    validator = jsonschema.Draft202012Validator(schema)
    problems += [problem for error in validator.iter_errors(config) for problem in _explained(error)]
    problems += _without_effect(config)
    config = _with_defaults(config, schema)
    for experiment in _mappings(config.get("experiments")).values():
        if isinstance(experiment.get("weights"), str | list):
            experiment["weights"] = _of_files(experiment["weights"])
    datasets = _mappings(config.get("datasets"))
    for dataset in datasets.values():
        if isinstance(other := _mapping(dataset.get("source")).get("dataset"), str):
            dataset |= {key: datasets[other][key] for key in OF_IMAGES if key in datasets.get(other, {})}
    problems += _cross_checked(config)
    if problems:
        raise InputError("", "\n".join(f"{path}: {problem}" for problem in problems))
    config["sweeps"] = found
    return config


def _repeated(path: Path) -> Iterator[str]:
    """Keys that a file has twice in one mapping, of which YAML takes the last one."""

    def within(node: yaml.Node, key: str) -> Iterator[str]:
        if isinstance(node, yaml.MappingNode):
            seen = set()
            for name, value in node.value:
                inner = f"{key}.{name.value}" if key else str(name.value)
                if inner in seen:
                    yield f"{inner}: given again in line {name.start_mark.line + 1}; rename one of them, or remove it"
                seen.add(inner)
                yield from within(value, inner)

    if path.is_file():
        yield from within(yaml.compose(path.read_text(encoding="utf-8"), yaml.CSafeLoader), "")


def _not_finite(value: object, key: str = "") -> Iterator[str]:
    """Values that are no numbers, though YAML takes them for some."""
    if isinstance(value, float) and not math.isfinite(value):
        yield f"{key}: {value} is no number to reckon with"
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, one in inner:
        yield from _not_finite(one, f"{key}.{name}" if key else str(name))


def _explained(error: jsonschema.ValidationError) -> list[str]:
    """One line for each thing that a schema error says: the key, the value, what is allowed."""
    key = ".".join(map(str, error.absolute_path))
    value, allowed = error.instance, error.validator_value
    if error.validator == "additionalProperties":
        known = error.schema.get("properties", {})
        unknown = [name for name in value if name not in known]
        prefix = f"{key}." if key else ""
        return [
            f"{prefix}{name}: unknown key; " + (caffe.nearest(str(name), known) or f"the known ones are {', '.join(known)}")
            for name in unknown
        ]
    if error.validator == "required":
        missing = [name for name in allowed if name not in value]
        return [f"{key}: {name} is missing" if key else f"{name} is missing" for name in missing]
    if error.validator == "enum":
        hint = caffe.nearest(str(value), map(str, allowed))
        return [f"{key}: {value!r} is not one of {', '.join(map(str, allowed))}" + (f"; {hint}" if hint else "")]
    if error.validator == "type" and "propertyNames" in error.schema_path:
        return [f"{key}: the name {value!r} is no text; put it into quotation marks"]
    if error.validator == "type":
        hint = solver_fields.number_hint(value) if allowed in ("number", "integer") else ""
        return [f"{key}: {value!r} is not {_article(allowed)}" + (f"; {hint}" if hint else "")]
    limits = {
        name: error.schema[name]
        for name in ("minimum", "exclusiveMinimum", "maximum", "exclusiveMaximum")
        if name in error.schema
    }
    if error.validator in limits:
        low = limits.get("minimum", limits.get("exclusiveMinimum"))
        high = limits.get("maximum", limits.get("exclusiveMaximum"))
        return [
            f"{key}: {value!r} is not between {low:g} and {high:g}"
            if high is not None
            else f"{key}: {value!r} is less than {low:g}"
        ]
    if error.validator == "pattern":
        return [f"{key}: {value!r} is no name; letters, digits, _ and - are allowed"]
    if error.validator == "propertyNames":
        return [f"{key}: {error.instance!r} is no name; letters, digits, _ and - are allowed"]
    return [f"{key}: {error.message}"]


def _article(kind: str | list[str]) -> str:
    names = {"object": "a mapping", "array": "a list", "string": "a text", "integer": "a whole number", "number": "a number"}
    names["boolean"] = "true or false"
    return " or ".join(names.get(name, name) for name in ([kind] if isinstance(kind, str) else kind))


def _with_defaults(config: dict, schema: dict) -> dict:
    config = copy.deepcopy(config)
    _fill(config, schema, schema)
    return config


def _fill(value: dict, schema: dict, root: dict) -> None:
    """Add what is missing and has a default, at every depth; references are followed."""
    if "$ref" in schema:
        schema = root["$defs"][schema["$ref"].rsplit("/", 1)[1]]
    for name, part in schema.get("properties", {}).items():
        if name not in value and "default" in part:
            value[name] = copy.deepcopy(part["default"])
        if isinstance(value.get(name), dict):
            _fill(value[name], part, root)
    rest = schema.get("additionalProperties")
    if isinstance(rest, dict):
        for inner in value.values():
            if isinstance(inner, dict):
                _fill(inner, rest, root)


def last_layer(experiment: dict) -> str:
    """The name of an experiment's classifier: its template's, or with the dataset's name behind it where it is renamed."""
    last = models.template(experiment["model"]).last
    return f"{last}_{experiment['dataset']}" if experiment["rename_last"] else last


def _cross_checked(config: dict) -> list[str]:
    """What the schema cannot say: names that refer to one another, and what a template and Caffe's solver have.

    What is of another kind than the schema wants has been found there, and is passed over here.
    """
    datasets, experiments = (_mappings(config.get(kind)) for kind in ("datasets", "experiments"))
    problems = []
    for name, dataset in datasets.items():
        if isinstance(dataset.get("source"), dict):
            problems += [f"datasets.{name}.source{problem}" for problem in _of_source(name, datasets)]
        problems += [f"datasets.{name}.split{problem}" for problem in _of_split(_mapping(dataset.get("split")))]
    for name, experiment in experiments.items():
        problems += [f"experiments.{name}.{problem}" for problem in _of_experiment(experiment, datasets)]
        problems += [f"experiments.{name}.weights{problem}" for problem in _of_weights(name, experiments)]
        problems += [f"experiments.{name}.dataset: {problem}" for problem in _of_channels(experiment, experiments, datasets)]
    return problems


def kind_of(source: dict) -> str | None:
    """What a dataset's images come from, the first of KINDS that is given."""
    return next((kind for kind in KINDS if kind in source), None)


def _of_source(name: str, datasets: dict) -> list[str]:
    """What is wrong with where a dataset's images come from, each with the rest of its key before it."""
    source = datasets[name]["source"]
    kinds = [kind for kind in KINDS if kind in source]
    if len(kinds) != 1:
        return [f": {' and '.join(kinds) or 'none'} given; it has one of {', '.join(KINDS[:-1])} and {KINDS[-1]}"]
    other = source.get("dataset")
    if not isinstance(other, str):
        return []
    if other not in datasets:
        return [f".dataset: {problem}" for problem in _unknown(other, datasets)]
    if (kind := kind_of(_mapping(datasets[other].get("source")))) not in ("list", "folder", None):
        return [f".dataset: {other!r} comes from {'another dataset' if kind == 'dataset' else kind}; name one of images"]
    return []


def _without_effect(config: dict) -> list[str]:
    """Keys that are given where what they say is settled by others; before defaults are filled in."""
    problems = []
    for name, dataset in _mappings(config.get("datasets")).items():
        source, split = _mapping(dataset.get("source")), _mapping(dataset.get("split"))
        kind = kind_of(source)
        wanted = {"copy": ("published",), "root": ("list",), "val_labels": ("folder",)}
        wanted |= dict.fromkeys((*DOWNLOAD_FLAGS, *PATIENCE_FLAGS, "sample", "seed", "columns"), ("list", "folder"))
        for key, kinds in wanted.items():
            if key in source and kind and kind not in kinds:
                problems.append(f"datasets.{name}.source.{key}: no effect without {' or '.join(kinds)}")
        images = {"list": (), "folder": (), "dataset": OF_IMAGES}.get(kind, (*OF_IMAGES, *OF_LISTS))
        images = (*images, "encode") if kind == "published" else images
        for key in images:
            if key in dataset and (kind, key) != ("database", "channels"):  # what is said of records, not made of them
                problems.append(f"datasets.{name}.{key}: no effect, it is the {kind}'s")
        by = split.get("by", "fraction")
        for key, ways in (("val", ("fraction",)), ("folds", ("fold",)), ("fold", ("fold",))):
            if key in split and by not in ways:
                problems.append(
                    f"datasets.{name}.split.{key}: {split[key]} has no effect with by: {by}; remove it, or use by: {ways[0]}"
                )
    for name, experiment in _mappings(config.get("experiments")).items():
        if "feature_formats" in experiment and not experiment.get("features"):
            problems.append(f"experiments.{name}.feature_formats: no effect without features")
    return problems


def _of_split(split: dict) -> list[str]:
    """What is wrong with how a dataset is divided, each with the rest of its key before it."""
    if split.get("by") != "fold":
        return []
    missing = [key for key in ("folds", "fold") if key not in split]
    if missing:
        return [f": {missing[0]} is missing; by: fold wants folds, how many there are, and fold, the one for validation, from 0"]
    if isinstance(split["folds"], int) and isinstance(split["fold"], int) and split["fold"] >= split["folds"]:
        return [f".fold: {split['fold']} is not one of 0 to {split['folds'] - 1}"]
    return []


def _of_experiment(experiment: dict, datasets: dict) -> list[str]:
    """What is wrong with one experiment by itself."""
    dataset, model = experiment.get("dataset"), experiment.get("model")
    problems = [f"solver.{problem}" for problem in solver_fields.problems(_mapping(experiment.get("solver")))]
    if isinstance(dataset, str):
        problems += [f"dataset: {problem}" for problem in _unknown(dataset, datasets)]
    problems += _of_testing(experiment, _mapping(datasets.get(dataset)) if isinstance(dataset, str) else {})
    problems += _of_strategy(experiment)
    problems += _of_average(experiment)
    template, found = _template(model) if isinstance(model, str) else (None, [])
    problems += [f"model: {problem}" for problem in found]
    if isinstance(dataset, str) and template:
        problems += _of_images(experiment, template, _shape(dataset, datasets))
        problems += _of_layers(experiment, template)
        problems += _of_skipped(experiment, template)
    if template and template.pairs:
        problems += _of_pairs(experiment)
    if experiment.get("batch_norm") == "freeze":
        problems += _of_batch_norm(experiment, template)
    return problems


def _of_testing(experiment: dict, dataset: dict) -> list[str]:
    """What is wrong with an evaluation on images for testing."""
    if "test" not in (experiment.get("evaluate") or []) or not dataset:
        return []
    kind = kind_of(_mapping(dataset.get("source")))
    if kind in ("published", "database"):
        return [f"evaluate: test: a dataset from {kind} has train and val; name one of these"]
    if _mapping(dataset.get("split")).get("by") != "column":
        return ["evaluate: test: no images are for testing; say which in the list's split column, and split: {by: column}"]
    return []


def _shape(name: str, datasets: dict) -> tuple[int, int, int] | None:
    """Channels, height and width of a dataset's images where they are resized; None where they are taken as they are."""
    dataset = datasets.get(name, {})
    size = _mapping(dataset.get("size"))
    height, width = size.get("height"), size.get("width")
    if (
        kind_of(_mapping(dataset.get("source"))) not in ("list", "folder", "dataset")
        or not isinstance(height, int)
        or not isinstance(width, int)
    ):
        return None
    return 1 if dataset.get("color") == "gray" else 3, height, width


def _of_images(experiment: dict, template: models.Template, shape: tuple[int, int, int] | None) -> list[str]:
    """What is wrong with the size and the colours of the images that a net is given.

    shape  of the dataset's images, where it is known
    """
    if shape and (unfit := models.unfit(template, experiment["model"], shape)):
        return [str(InputError("model", *unfit))]
    side, wanted = template.crop_size, _mapping(_mapping(experiment.get("export")).get("convolutional"))
    own = (side, side) if side else shape[1:] if shape else None
    given = wanted.get("height"), wanted.get("width")
    if own and all(isinstance(one, int) for one in given) and any(one < least for one, least in zip(given, own, strict=True)):
        found, least = (f"{height}×{width}" for height, width in (given, own))
        return [f"export.convolutional: {found} is smaller than the net's own {least}; give no side that is smaller"]
    return []


def _of_layers(experiment: dict, template: models.Template) -> list[str]:
    """What is wrong with the layers and blobs that an experiment names."""
    strategy, freeze_to, wanted = (experiment.get(key) for key in ("strategy", "freeze_to", "features"))
    if not (wanted or freeze_to or strategy in strategies.FITTED):
        return []  # a net is not built for nothing: each of a workflow's jobs reads the config
    last = models.Last(last_layer(experiment), 1)
    built = template.built(last, deploy=strategy in strategies.FITTED)
    try:
        if isinstance(freeze_to, str):
            strategies.frozen(built, "full", freeze_to)
        if strategy in strategies.FITTED:
            # What `auto` may choose has at least the layers up to the middle.
            blob = strategies.features(built, experiment["features_from"] if strategy == "features" else "middle")
            built = strategies.linear(built, blob, 1)
    except caffe.Error as error:
        return [str(error)]
    blobs = ["data", *dict.fromkeys(top for layer in built.layers for top in layer.top)]
    blobs += [f"{blob}{models.SECOND}" for blob in blobs if template.pairs]
    names = [blob for blob in wanted if isinstance(blob, str)] if isinstance(wanted, list) else []
    why = " (auto may choose the features of the middle)" if strategy == strategies.AUTO else ""
    return [f"features: {problem}{why}" for blob in names for problem in _unknown(blob, blobs)]


def _of_skipped(experiment: dict, template: models.Template) -> list[str]:
    """What is wrong with the layers that are not copied from the weights."""
    skipped, strategy = experiment.get("skip_layers"), experiment.get("strategy")
    if not skipped or not isinstance(skipped, list):
        return []
    if not origins(experiment):
        return ["skip_layers: no effect without weights"]
    if strategy in strategies.FITTED:
        return [f"skip_layers: strategy: {strategy} reads all layers of the weights; choose another strategy"]
    layers = [layer.name for layer in template.built(models.Last(last_layer(experiment), 1)).layers]
    return [f"skip_layers: {problem}" for name in skipped if isinstance(name, str) for problem in _unknown(name, layers)]


def _of_strategy(experiment: dict) -> list[str]:
    """What is wrong with what is to be learned, by itself."""
    strategy, weights = experiment.get("strategy"), origins(experiment)
    if strategy == "scratch" and weights:
        return ["strategy: scratch takes no weights; remove weights, or choose another strategy"]
    if strategy in ("last_layer", "half", "features", strategies.AUTO) and not weights:
        return [f"strategy: {strategy} builds on weights, but there are none; give weights, or use scratch"]
    if strategy in strategies.FITTED and len(weights) > 1:
        return [f"weights: strategy: {strategy} takes those of one file, and there are {len(weights)}; give one"]
    if experiment.get("features_from", "top") != "top" and strategy != "features":
        return [f"features_from: no effect with strategy: {strategy}; use strategy: features"]
    if "freeze_to" in experiment and strategy != "full":
        return [f"freeze_to: no effect with strategy: {strategy}; remove one of them"]
    return []


def _of_pairs(experiment: dict) -> list[str]:
    """What is wrong with an experiment whose net tells pairs apart."""
    said = f"{experiment['model']} gives values to compare, no classes"
    problems = [f"classify: {said}; remove it"] if "classify" in experiment else []
    if experiment.get("strategy") in strategies.FITTED:
        problems.append(f"strategy: {experiment['strategy']} fits a classifier, but {said}; choose another strategy")
    return problems


def _of_batch_norm(experiment: dict, template: models.Template | None) -> list[str]:
    """What is wrong with keeping BatchNorm's statistics as they are."""
    if not experiment.get("weights"):
        return ["batch_norm: freeze keeps the statistics of the weights, but there are no weights; give weights, or use learn"]
    if template and all(layer.type != "BatchNorm" for layer in template.built(models.Last(template.last, 1)).layers):
        return [f"batch_norm: no effect, {experiment['model']} has no BatchNorm; remove it"]
    return []


def _of_average(experiment: dict) -> list[str]:
    """What is wrong with the snapshots that are to be averaged."""
    wanted, solver = _mapping(experiment.get("export")).get("average"), _mapping(experiment.get("solver"))
    every, last = solver.get("snapshot", 0), solver.get("max_iter")
    if not isinstance(wanted, int) or not isinstance(every, int):
        return []
    if experiment.get("strategy") == "features":
        return ["export.average: strategy: features trains nothing, and there are no snapshots; remove it"]
    if every < 1:
        return ["export.average: no snapshots to average; set solver.snapshot, so many iterations from one to the next"]
    written = -(-last // every) if isinstance(last, int) else wanted
    if written < wanted:
        return [f"export.average: {wanted}, but {last} iterations with solver.snapshot: {every} leave {written}; set it lower"]
    return []


def _template(model: str) -> tuple[models.Template | None, list[str]]:
    """The template of a model, or what is wrong with it."""
    if not models.is_file(model):
        return models.TEMPLATES.get(model), _unknown(model, models.TEMPLATES)
    try:
        return models.template(model), []
    except caffe.Error as error:
        return None, [str(error)]


def _of_files(weights: object) -> object:
    """Weights with {file: PATH} for each that is given as a path alone."""
    if isinstance(weights, list):
        return [_of_files(one) for one in weights]
    return {"file": weights} if isinstance(weights, str) else weights


def origins(experiment: dict) -> list[dict]:
    """The weights that an experiment starts from, in the order in which they are copied; none where it starts from scratch."""
    given = experiment.get("weights")
    return [_mapping(one) for one in given] if isinstance(given, list) else [given] if given and isinstance(given, dict) else []


def _of_weights(name: str, experiments: dict) -> list[str]:
    """What is wrong with the weights that an experiment starts from, each with the rest of its key before it."""
    several = isinstance(experiments[name].get("weights"), list)
    problems = []
    for number, origin in enumerate(origins(experiments[name])):
        key = f".{number}" if several else ""
        kinds = [kind for kind in ORIGINS if kind in origin]
        if len(kinds) != 1:
            problems.append(
                f"{key}: {' and '.join(kinds) or 'none'} given; it is one of {', '.join(ORIGINS[:-1])} and {ORIGINS[-1]}"
            )
            continue
        for part, kind in (("best", "experiment"), ("sha256", "url")):
            if part in origin and kind not in origin:
                problems.append(f"{key}.{part}: no effect without {kind}")
        if "url" in origin and "sha256" not in origin:
            problems.append(f"{key}: sha256 is missing; it says which file the url gives")
        if isinstance(origin.get("sha256"), str) and not re.fullmatch("[0-9a-f]{64}", origin["sha256"]):
            problems.append(f"{key}.sha256: {origin['sha256']!r} is not 64 digits of 0 to 9 and a to f")
        if isinstance(file := origin.get("file"), str) and (left := re.search(r"{\w+}", file)):
            problems.append(
                f"{key}.file: {left[0]} stands for nothing; in braces goes a key that the experiment has a list of, such as model"
            )
        if isinstance(source := origin.get("experiment"), str):
            found = _unknown(source, experiments) or _circle(name, source, experiments)
            problems += [f"{key}.experiment: {problem}" for problem in found]
    return problems


def _of_channels(experiment: dict, experiments: dict, datasets: dict) -> list[str]:
    """What is wrong where weights were learned on colours in another order."""
    if experiment.get("skip_layers"):  # the first one may be among them
        return []
    mine, seen = _channels(experiment, datasets), experiment.get("dataset")
    for source in (origin.get("experiment") for origin in origins(experiment)):
        theirs = _channels(experiments[source], datasets) if isinstance(source, str) and source in experiments else None
        if {mine, theirs} == {"BGR", "RGB"}:
            fixed = "published" in _mapping(datasets[seen].get("source"))
            name, order = (experiments[source]["dataset"], mine) if fixed else (seen, theirs)
            return [f"channels are {mine}, those that {source} learned on {theirs}; give datasets.{name}.channels: {order}"]
    return []


def _channels(experiment: dict, datasets: dict) -> str | None:
    """The order of the channels that an experiment learns on; None where they are no colours, or not known."""
    name = experiment.get("dataset")
    dataset = datasets.get(name) if isinstance(name, str) else None
    if dataset is None or dataset.get("color") == "gray":
        return None
    published = _mapping(dataset.get("source")).get("published")
    if isinstance(published, str):
        return "RGB" if published.startswith("cifar") else None
    return dataset.get("channels", "BGR")


def _circle(name: str, source: str, experiments: dict) -> list[str]:
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


def _mapping(value: object) -> dict:
    return value if isinstance(value, dict) else {}


def _mappings(value: object) -> dict[str, dict]:
    """{name: mapping}, with an empty mapping for what is none."""
    return {name: _mapping(inner) for name, inner in _mapping(value).items()}


def _unknown(name: str, known: Iterable[str]) -> list[str]:
    """What is wrong with a name that is none of the known ones."""
    if name in known:
        return []
    names = [str(one) for one in known]
    hint = caffe.nearest(name, names)
    return [f"{name!r} is not one of {', '.join(names)}" + (f"; {hint}" if hint else "")]
