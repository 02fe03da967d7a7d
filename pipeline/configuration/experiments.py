"""What is wrong with a config's experiments that no schema can say, but for their weights."""

from typing import Any

import caffe
from pipeline.configuration.datasets import known_splits
from pipeline.configuration.keys import kind_of, last_layer, mapping, origins, unknown
from pipeline.errors import InputError
from pipeline.files import stem_of
from pipeline.nets import models, solver_fields, strategies
from pipeline.nets.models.adapted import Adapted


def without_effect(name: str, experiment: dict[str, Any]) -> list[str]:
    """Keys that are given where what they say is settled by others; before defaults are filled in."""
    if "feature_formats" in experiment and not experiment.get("features"):
        return [f"experiments.{name}.feature_formats: no effect without features"]
    return []


def problems(experiment: dict[str, Any], datasets: dict[str, Any]) -> list[str]:
    """What is wrong with one experiment by itself, its key first, in a line each; defaults are filled in."""
    dataset, model = experiment.get("dataset"), experiment.get("model")
    found = [f"solver.{problem}" for problem in solver_fields.problems(mapping(experiment.get("solver")))]
    if isinstance(dataset, str):
        found += [f"dataset: {problem}" for problem in unknown(dataset, datasets)]
    found += _of_testing(experiment, _with_images(dataset, datasets) if isinstance(dataset, str) else {})
    found += _of_strategy(experiment)
    found += _of_average(experiment)
    template, unfit = _template(model) if isinstance(model, str) else (None, [])
    found += [f"model: {problem}" for problem in unfit]
    if isinstance(dataset, str) and template:
        found += _of_images(experiment, template, _shape(dataset, datasets))
        found += _of_layers(experiment, template)
        found += _of_skipped(experiment, template)
    if template and template.pairs:
        found += _of_pairs(experiment)
    if experiment.get("batch_norm") == "freeze":
        found += _of_batch_norm(experiment, template)
    return found


def _with_images(name: str, datasets: dict[str, Any]) -> dict[str, Any]:
    """A dataset with the source that its images are of, its own or another dataset's."""
    dataset = mapping(datasets.get(name))
    other = mapping(dataset.get("source")).get("dataset")
    return dataset | {"source": mapping(datasets.get(other)).get("source")} if isinstance(other, str) else dataset


def _of_testing(experiment: dict[str, Any], dataset: dict[str, Any]) -> list[str]:
    """What is wrong with an evaluation on images for testing."""
    if "test" not in (experiment.get("evaluate") or []) or not dataset:
        return []
    kind = kind_of(mapping(dataset.get("source")))
    if kind in ("published", "database"):
        return [f"evaluate: test: a dataset from {kind} has train and val; name one of these"]
    split = mapping(dataset.get("split"))
    known = known_splits(dataset)
    if split.get("by", "fraction" if "val" in split else "column") != "column" or known == {""}:
        return ["evaluate: test: no images are for testing; say which in the list's split column, and split: {by: column}"]
    if missing := [part for part in ("test", "val") if known is not None and part not in known]:
        why = "" if "test" in missing else ", so that its test images are for validation"
        return [f"evaluate: test: {mapping(dataset.get('source'))['folder']} has no {missing[0]}/{why}; add it, or remove test"]
    return []


def _shape(name: str, datasets: dict[str, Any]) -> tuple[int, int, int] | None:
    """Channels, height and width of a dataset's images where they are resized; None where they are taken as they are."""
    dataset = datasets.get(name, {})
    size = mapping(dataset.get("size"))
    height, width = size.get("height"), size.get("width")
    if (
        kind_of(mapping(dataset.get("source"))) not in ("list", "folder", "dataset")
        or not isinstance(height, int)
        or not isinstance(width, int)
    ):
        return None
    return 1 if dataset.get("color") == "gray" else 3, height, width


def _of_images(experiment: dict[str, Any], template: models.Template | Adapted, shape: tuple[int, int, int] | None) -> list[str]:
    """What is wrong with the size and the colours of the images that a net is given.

    shape  of the dataset's images, where it is known
    """
    if shape and (unfit := models.unfit(template, experiment["model"], shape)):
        return [str(InputError("model", *unfit))]
    side, wanted = template.crop_size, mapping(mapping(experiment.get("export")).get("convolutional"))
    own = (side, side) if side else shape[1:] if shape else None
    given: tuple[Any, Any] = wanted.get("height"), wanted.get("width")
    if own and all(isinstance(one, int) for one in given) and any(one < least for one, least in zip(given, own, strict=True)):
        found, least = (f"{height}×{width}" for height, width in (given, own))
        return [f"export.convolutional: {found} is smaller than the net's own {least}; give no side that is smaller"]
    return []


def _of_layers(experiment: dict[str, Any], template: models.Template | Adapted) -> list[str]:
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
    found = [f"features: {problem}{why}" for blob in names for problem in unknown(blob, blobs)]
    stems: dict[str, str] = {}
    for blob in names:
        if (other := stems.setdefault(stem_of(blob), blob)) != blob:
            found.append(f"features: files of {other!r} and {blob!r} would have one name, {stem_of(blob)}; remove one of them")
    return found


def _of_skipped(experiment: dict[str, Any], template: models.Template | Adapted) -> list[str]:
    """What is wrong with the layers that are not copied from the weights."""
    skipped, strategy = experiment.get("skip_layers"), experiment.get("strategy")
    if not skipped or not isinstance(skipped, list):
        return []
    if not origins(experiment):
        return ["skip_layers: no effect without weights"]
    if strategy in strategies.FITTED:
        return [f"skip_layers: strategy: {strategy} reads all layers of the weights; choose another strategy"]
    layers = [layer.name for layer in template.built(models.Last(last_layer(experiment), 1)).layers]
    return [f"skip_layers: {problem}" for name in skipped if isinstance(name, str) for problem in unknown(name, layers)]


def _of_strategy(experiment: dict[str, Any]) -> list[str]:
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


def _of_pairs(experiment: dict[str, Any]) -> list[str]:
    """What is wrong with an experiment whose net tells pairs apart."""
    said = f"{experiment['model']} gives values to compare, no classes"
    problems = [f"classify: {said}; remove it"] if "classify" in experiment else []
    if experiment.get("strategy") in strategies.FITTED:
        problems.append(f"strategy: {experiment['strategy']} fits a classifier, but {said}; choose another strategy")
    return problems


def _of_batch_norm(experiment: dict[str, Any], template: models.Template | Adapted | None) -> list[str]:
    """What is wrong with keeping BatchNorm's statistics as they are."""
    if not experiment.get("weights"):
        return ["batch_norm: freeze keeps the statistics of the weights, but there are no weights; give weights, or use learn"]
    try:
        layers = template.built(models.Last(template.last, 1)).layers if template else []
        if template and not any(caffe.layer_type(layer.type).has_statistics(layer) for layer in layers):
            return [f"batch_norm: no effect, {experiment['model']} has no BatchNorm; remove it"]
    except caffe.Error as error:
        return [f"model: {error}"]
    return []


def _of_average(experiment: dict[str, Any]) -> list[str]:
    """What is wrong with the snapshots that are to be averaged."""
    wanted, solver = mapping(experiment.get("export")).get("average"), mapping(experiment.get("solver"))
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


def _template(model: str) -> tuple[models.Template | Adapted | None, list[str]]:
    """The template of a model, or what is wrong with it."""
    if not models.is_file(model):
        return models.TEMPLATES.get(model), unknown(model, models.TEMPLATES)
    try:
        return models.template(model), []
    except caffe.Error as error:
        return None, [str(error)]
