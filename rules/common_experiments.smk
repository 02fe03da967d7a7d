# Functions of wildcards that look up an experiment's config.
from pipeline.nets import models, strategies


def of_evaluated(path):
    """Input function: `path`, with {part}, in the folder of the experiment's dataset, for the set that is evaluated."""
    return lambda wildcards: (
        f"results/datasets/{dataset_of(wildcards)}/"
        + path.format(part=wildcards.of.removeprefix("_") or "val")
    )


def of_part(result, label):
    """Label of a result in the report, with the set that was evaluated, unless it is the validation set."""
    return lambda wildcards: in_order(result, label + table_texts.PARTS.get(wildcards.of, ""))


def tables_of(wildcards):
    """Input function: the tables of an experiment that the report shows."""
    experiment = config["experiments"][wildcards.experiment]
    folders = [
        "evaluate" if part == "val" else f"evaluate_{part}" for part in experiment["evaluate"]
    ]
    files = ["train/layers.csv", "train/preflight.csv"]
    files += ["linear/measured.csv"] if experiment["strategy"] in strategies.FITTED else []
    files += [
        f"{folder}/{table}.csv" for folder in folders for table in ("per_class", "predictions")
    ]
    files += ["classify.csv"] if "classify" in experiment else []
    return [f"results/experiments/{wildcards.experiment}/{file}" for file in files]


def infogain_of(wildcards):
    """Input function: the infogain matrix of an experiment, if its dataset is balanced by weights."""
    name = dataset_of(wildcards)
    weighted = config["datasets"][name]["split"]["balance"] == "weights"
    return f"results/datasets/{name}/lists/infogain.binaryproto" if weighted else []


def fitted(file):
    """Input function: `file` of the linear step, if an experiment's strategy needs it."""

    def path(wildcards):
        name = wildcards.experiment
        is_fitted = config["experiments"][name]["strategy"] in strategies.FITTED
        return f"results/experiments/{name}/linear/{file}" if is_fitted else []

    return path


def net_of(wildcards):
    """Input function: an experiment's prototxt, if the net is the user's own."""
    model = config["experiments"][wildcards.experiment]["model"]
    return of_user(model) if models.is_file(model) else []


def weights_from(name, best=None):
    """The weights of an experiment that are evaluated and exported.

    best  True for those of its best test, False for the last ones; by default as its config says
    """
    experiment = config["experiments"][name]
    if best is None:
        best = experiment.get("best", experiment["early_stopping"] > 0)
    return f"results/experiments/{name}/train/{'best' if best else 'final'}.caffemodel"


def learned_weights(wildcards):
    """Input function: the weights of an experiment that are evaluated and exported."""
    return weights_from(wildcards.experiment)


def weights_of(wildcards):
    """Input function: the weights that an experiment starts from; empty if it starts from scratch."""
    paths = []
    for origin in configuration.keys.origins(config["experiments"][wildcards.experiment]):
        if "experiment" in origin:
            paths.append(weights_from(origin["experiment"], origin.get("best")))
        elif "url" in origin:
            kind = "caffemodel.h5" if origin["url"].endswith(".h5") else "caffemodel"
            paths.append(f"results/weights/{origin['sha256']}.{kind}")
        else:
            paths.append(of_user(origin["file"]))
    return paths


def shown_by(wildcards):
    """The visualize step's flag for `shown_images`."""
    pictures = config["experiments"][wildcards.experiment]["pictures"]
    return "--images" if "images" in pictures else "--database"


def shown_images(wildcards):
    """Input function: the images that the pictures of a trained net show: the user's, or the validation database."""
    images = config["experiments"][wildcards.experiment]["pictures"].get("images")
    return of_user(images) if images else f"results/datasets/{dataset_of(wildcards)}/lmdb/val"


def classified(wildcards):
    """Input function: the user's images that an experiment classifies."""
    return of_user(config["experiments"][wildcards.experiment]["classify"]["images"])


def net_to_crop(wildcards):
    """Input function: the user's net that an experiment's weights are cropped to."""
    return of_user(config["experiments"][wildcards.experiment]["export"]["crop"])
