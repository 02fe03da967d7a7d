"""Mistakes in a config's experiments that its schema cannot express, except those of their weights."""

import functools
from typing import Any

import caffe
from pipeline.configuration.datasets import known_splits
from pipeline.configuration.keys import kind_of, last_layer, mapping, origins, unknown
from pipeline.errors import InputError
from pipeline.files import stem_of
from pipeline.nets import models, solver_fields, strategies
from pipeline.options.dataset import Source


def without_effect(name: str, experiment: dict[str, Any]) -> list[str]:
    """Keys without effect because of others, a line each; to be called before defaults are filled in."""
    if "feature_formats" in experiment and not experiment.get("features"):
        return [f"experiments.{name}.feature_formats: no effect without features"]
    return []


def problems(experiment: dict[str, Any], datasets: dict[str, Any]) -> list[str]:
    """Mistakes in one experiment by itself, a line each that begins with the key; defaults are filled in."""
    dataset, model = experiment.get("dataset"), experiment.get("model")
    found = [f"solver.{problem}" for problem in solver_fields.problems(mapping(experiment.get("solver")))]
    if isinstance(dataset, str):
        found += [f"dataset: {problem}" for problem in unknown(dataset, datasets)]
        found += _test_problems(experiment, _with_images(dataset, datasets))
    found += _strategy_problems(experiment)
    found += _average_problems(experiment)
    template, unfit = _template(model) if isinstance(model, str) else (None, [])
    found += [f"model: {problem}" for problem in unfit]
    if isinstance(dataset, str) and template:
        found += _image_problems(experiment, template, _shape(mapping(datasets.get(dataset))))
        found += _layer_problems(experiment, template)
        found += _skip_problems(experiment)
    if template and template.pairs:
        found += _pair_problems(experiment)
    if experiment.get("batch_norm") == "freeze":
        found += _batch_norm_problems(experiment, template)
    return found


def _with_images(name: str, datasets: dict[str, Any]) -> dict[str, Any]:
    """A dataset with the source of its images, its own or another dataset's."""
    dataset = mapping(datasets.get(name))
    other = mapping(dataset.get("source")).get("dataset")
    return dataset | {"source": mapping(datasets.get(other)).get("source")} if isinstance(other, str) else dataset


def _test_problems(experiment: dict[str, Any], dataset: dict[str, Any]) -> list[str]:
    if "test" not in (experiment.get("evaluate") or []) or not dataset:
        return []
    kind = kind_of(mapping(dataset.get("source")))
    if kind in ("published", "database"):
        return [f"evaluate: test: a dataset from {kind} has train and val; name one of these"]
    split = mapping(dataset.get("split"))
    known = known_splits(dataset)
    if split.get("by", "fraction" if "val" in split else "column") != "column" or known == {""}:
        return ["evaluate: test: there are no test images; mark them in the list's split column, and set split: {by: column}"]
    if missing := [part for part in ("test", "val") if known is not None and part not in known]:
        why = "" if "test" in missing else ", so its test images are used for validation"
        return [f"evaluate: test: {mapping(dataset.get('source'))['folder']} has no {missing[0]}/{why}; add it, or remove test"]
    return []


def _shape(dataset: dict[str, Any]) -> tuple[int, int, int] | None:
    """Channels, height and width of a dataset's images if they are resized, else None."""
    size = mapping(dataset.get("size"))
    height, width = size.get("height"), size.get("width")
    is_resized = kind_of(mapping(dataset.get("source"))) in (*Source.kinds, "dataset")
    if not (is_resized and isinstance(height, int) and isinstance(width, int)):
        return None
    return 1 if dataset.get("color") == "gray" else 3, height, width


def _image_problems(experiment: dict[str, Any], template: models.Template, shape: tuple[int, int, int] | None) -> list[str]:
    """Mistakes in the size and the channels of a net's input.

    shape  of the dataset's images, if it is known
    """
    if shape and (unfit := models.unfit(template, experiment["model"], shape)):
        return [str(InputError("model", *unfit))]
    side, size = template.crop_size, mapping(mapping(experiment.get("export")).get("convolutional"))
    least = (side, side) if side else shape[1:] if shape else None
    height, width = size.get("height"), size.get("width")
    if least and isinstance(height, int) and isinstance(width, int) and (height < least[0] or width < least[1]):
        own = f"{least[0]}×{least[1]}"
        return [f"export.convolutional: {height}×{width} is smaller than the net's own {own}; give no side that is smaller"]
    return []


def _layer_problems(experiment: dict[str, Any], template: models.Template) -> list[str]:
    strategy, freeze_to, features = (experiment.get(key) for key in ("strategy", "freeze_to", "features"))
    if not (features or freeze_to or strategy in strategies.FITTED):
        return []  # building a net takes time
    built = _built(experiment["model"], last_layer(experiment), strategy in strategies.FITTED)
    try:
        if isinstance(freeze_to, str):
            strategies.frozen(built, "full", freeze_to)
        if strategy in strategies.FITTED:
            # Whatever `auto` chooses has at least the layers up to the middle.
            blob = strategies.features(built, experiment["features_from"] if strategy == "features" else "middle")
            built = strategies.linear(built, blob, 1)
    except caffe.Error as error:
        return [str(error)]
    blobs = ["data", *dict.fromkeys(top for layer in built.layers for top in layer.top)]
    blobs += [f"{blob}{models.SECOND}" for blob in blobs if template.pairs]
    names = [blob for blob in features if isinstance(blob, str)] if isinstance(features, list) else []
    why = " (auto may choose the features of the middle)" if strategy == strategies.AUTO else ""
    found = [f"features: {problem}{why}" for blob in names for problem in unknown(blob, blobs)]
    stems: dict[str, str] = {}
    for blob in names:
        if (other := stems.setdefault(stem_of(blob), blob)) != blob:
            found.append(f"features: files of {other!r} and {blob!r} would have one name, {stem_of(blob)}; remove one of them")
    return found


@functools.cache
def _built(model: str, last: str, deploy: bool = False) -> models.Built:
    """A net, which is only read: the experiments of a sweep have one and the same."""
    return models.template(model).built(models.Last(last, 1), deploy)


def _skip_problems(experiment: dict[str, Any]) -> list[str]:
    skipped, strategy = experiment.get("skip_layers"), experiment.get("strategy")
    if not skipped or not isinstance(skipped, list):
        return []
    if not origins(experiment):
        return ["skip_layers: no effect without weights"]
    if strategy in strategies.FITTED:
        return [f"skip_layers: strategy: {strategy} reads all layers of the weights; choose another strategy"]
    layers = [layer.name for layer in _built(experiment["model"], last_layer(experiment)).layers]
    return [f"skip_layers: {problem}" for name in skipped if isinstance(name, str) for problem in unknown(name, layers)]


def _strategy_problems(experiment: dict[str, Any]) -> list[str]:
    strategy, weights = experiment.get("strategy"), origins(experiment)
    if strategy == "scratch" and weights:
        return ["strategy: scratch takes no weights; remove weights, or choose another strategy"]
    if strategy in ("last_layer", "half", "features", strategies.AUTO) and not weights:
        return [f"strategy: {strategy} needs weights, but there are none; give weights, or use scratch"]
    if strategy in strategies.FITTED and len(weights) > 1:
        return [f"weights: strategy: {strategy} takes one file, and there are {len(weights)}; give one"]
    if experiment.get("features_from", "top") != "top" and strategy != "features":
        return [f"features_from: no effect with strategy: {strategy}; use strategy: features"]
    if "freeze_to" in experiment and strategy != "full":
        return [f"freeze_to: no effect with strategy: {strategy}; remove one of them"]
    return []


def _pair_problems(experiment: dict[str, Any]) -> list[str]:
    said = f"{experiment['model']} gives values to compare, no classes"
    problems = [f"classify: {said}; remove it"] if "classify" in experiment else []
    if experiment.get("strategy") in strategies.FITTED:
        problems.append(f"strategy: {experiment['strategy']} fits a classifier, but {said}; choose another strategy")
    return problems


def _batch_norm_problems(experiment: dict[str, Any], template: models.Template | None) -> list[str]:
    if not experiment.get("weights"):
        return ["batch_norm: freeze keeps the statistics of the weights, but there are no weights; give weights, or use learn"]
    try:
        layers = _built(experiment["model"], template.last).layers if template else []
        if template and not any(caffe.layer_type(layer.type).has_statistics(layer) for layer in layers):
            return [f"batch_norm: no effect, {experiment['model']} has no BatchNorm; remove it"]
    except caffe.Error as error:
        return [f"model: {error}"]
    return []


def _average_problems(experiment: dict[str, Any]) -> list[str]:
    count, solver = mapping(experiment.get("export")).get("average"), mapping(experiment.get("solver"))
    every, last = solver.get("snapshot", 0), solver.get("max_iter")
    if not isinstance(count, int) or not isinstance(every, int):
        return []
    if experiment.get("strategy") == "features":
        return ["export.average: strategy: features trains nothing, and there are no snapshots; remove it"]
    if every < 1:
        return ["export.average: no snapshots to average; set solver.snapshot, the iterations between snapshots"]
    written = -(-last // every) if isinstance(last, int) else count
    if written < count:
        return [f"export.average: {count}, but {last} iterations with solver.snapshot: {every} leave {written}; set it lower"]
    return []


def _template(model: str) -> tuple[models.Template | None, list[str]]:
    """The template of a model, or the mistakes in it."""
    if not models.is_file(model):
        return models.TEMPLATES.get(model), unknown(model, models.TEMPLATES)
    try:
        return models.template(model), []
    except caffe.Error as error:
        return None, [str(error)]
