"""The rules for experiments, run by Snakemake in a temporary folder: what is built, and what a change rebuilds."""

import functools
import json
import re

import pandas as pd
import pytest

from tests import standins, workflows

CONFIG = """\
datasets:
  few:
    source: {list: few.csv, allow_file: true}
    size: {height: 28, width: 28}
    split: {by: fraction, val: 0.34}
experiments:
  base: {dataset: few, model: lenet, batch_size: 2, solver: {max_iter: 2}, pictures: {count: 0}}
  tuned:
    dataset: few
    model: lenet
    batch_size: 2
    weights: [{experiment: base, best: true}]
    rename_last: true
    pictures: {count: 0}
    solver: {max_iter: 2}
    features: [ip1]
    feature_formats: [parquet, hdf5]
    evaluate: [val, train]
"""


@pytest.fixture
def snakemake(tmp_path):
    """snakemake(…) builds config.yaml's two experiments on six pictures; gives the exit code and all output."""
    standins.listed_pictures(tmp_path)
    (tmp_path / "config.yaml").write_text(CONFIG)
    return functools.partial(workflows.snakemake, tmp_path)


def test_two_experiments_from_images_to_report(snakemake, tmp_path):
    code, output = snakemake()
    assert code == 0, output
    tuned = tmp_path / "results/experiments/tuned"
    assert "ip2_few" in (tuned / "prototxt/train.prototxt").read_text()
    assert json.loads((tuned / "evaluate/summary.json").read_text())["images"] == 2
    assert json.loads((tuned / "evaluate_train/summary.json").read_text())["images"] == 4
    assert not (tmp_path / "results/experiments/base/evaluate_train").exists()
    features = {path.name for path in (tuned / "features").glob("[!.]*")}
    assert features == {"SHA256SUMS", "features.h5", "images.txt", "ip1.parquet"}
    assert {"map_ip1.png", "neighbours_ip1.csv"} < {path.name for path in (tuned / "report").iterdir()}
    assert "Copying source layer" not in (tuned / "train/train.log").read_text()
    assert "Ignoring source layer ip2" in (tuned / "train/train.log").read_text()
    assert "results/experiments/base/train/best.caffemodel" in (tuned / "train/layers.csv").read_text()
    assert list((tuned / "train/tensorboard").iterdir())
    assert (tuned / "train/snapshots").is_dir()
    assert "Nothing to be done" in snakemake()[1]

    code, output = snakemake("--report", "report.html")
    assert code == 0, output
    report = (tmp_path / "report.html").read_text()
    pictures = ("comparison", "curves", "confusion", "calibration", "mistakes_train", "neighbours_ip1", "map_ip1")
    for name in ("comparison.csv", "predictions.csv", *(f"{picture}.png" for picture in pictures)):
        assert name in report

    before = (tmp_path / "results/experiments/base/train/final.caffemodel").stat().st_mtime_ns
    (tmp_path / "config.yaml").write_text(CONFIG.replace("{max_iter: 2}\n    features", "{max_iter: 3}\n    features"))
    code, output = snakemake()
    assert code == 0, output
    assert (tuned / "train/metrics.csv").read_text().splitlines()[-1].startswith("3,")
    assert (tmp_path / "results/experiments/base/train/final.caffemodel").stat().st_mtime_ns == before


def test_a_change_of_the_config_reruns_only_what_it_affects(snakemake, tmp_path):
    config = CONFIG.replace("[{experiment: base, best: true}]", "{file: results/experiments/base/train/final.caffemodel}")
    config = config.replace("    pictures: {count: 0}", "    pictures: {count: 1}").split("    features:")[0]
    (tmp_path / "config.yaml").write_text(config)
    target = "results/experiments/tuned/pictures/filters.png"
    code, output = snakemake(target)
    assert code == 0, output

    def reruns(old: str, new: str) -> set[str]:
        """The rules that a change of the config reruns."""
        (tmp_path / "config.yaml").write_text(config.replace(old, new))
        code, output = snakemake("-n", target)
        assert code == 0, output
        return set(re.findall(r"^(?:rule|checkpoint) (\w+):$", output, re.MULTILINE))

    assert reruns("", "") == set()
    assert reruns("allow_file: true", "allow_file: true, min_yield: 0.2, retries: 5, concurrency: 8") == set()
    assert reruns("count: 1", "count: 2") == {"visualize"}
    assert reruns("    rename_last: true", "    rename_last: true\n    skip_layers: [conv1]") == {"train", "visualize"}
    assert reruns("    rename_last: true", "    rename_last: true\n    early_stopping: 2") == {"train", "visualize"}
    for strategy in ("strategy: last_layer", "freeze_to: conv2"):
        assert reruns("    rename_last: true", f"    rename_last: true\n    {strategy}") == {"prototxt", "train", "visualize"}


def test_a_failing_experiment_reports_its_error_and_leaves_no_partial_files(snakemake, tmp_path):
    (tmp_path / "other.caffemodel").write_text("<html>not found</html>")
    (tmp_path / "config.yaml").write_text(CONFIG.replace("[{experiment: base, best: true}]", "{file: other.caffemodel}"))
    code, output = snakemake("results/experiments/tuned/train/final.caffemodel")
    assert code == 1
    assert "error: other.caffemodel" in output
    assert "Traceback" not in output
    assert not (tmp_path / "results/experiments/tuned/train/final.caffemodel").exists()
    assert not (tmp_path / "results/experiments/tuned/train/metrics.csv").exists()


def test_weights_from_a_url_and_early_stopping_reach_the_train_step(snakemake, tmp_path):
    url, sha256 = "http://127.0.0.1:9/a.caffemodel.h5", "0" * 63 + "a"
    config = CONFIG.replace("[{experiment: base, best: true}]", f"[{{experiment: base}}, {{url: '{url}', sha256: {sha256}}}]")
    (tmp_path / "config.yaml").write_text(
        config.replace("    rename_last: true", "    early_stopping: 3\n    skip_layers: [ip2]")
    )
    target = "results/experiments/tuned/train/final.caffemodel"
    code, output = snakemake("-n", "--printshellcmds", target)
    assert code == 0, output
    path = f"results/weights/{sha256}.caffemodel.h5"
    assert workflows.options(output, "training.initial_weights", path) == [{"url": url, "sha256": sha256}]
    (command,) = (line for line in workflows.commands(output, "training.train") if "experiments/tuned" in line)
    assert f" --weights results/experiments/base/train/final.caffemodel {path} --fitted --chosen" in " ".join(command.split())
    (given,) = workflows.options(command, "training.train")
    assert (given["skip_layers"], given["early_stopping"], given["same_classes"]) == (["ip2"], 3, False)
    (tmp_path / "config.yaml").write_text(CONFIG.replace("    rename_last: true\n", "    strategy: features\n"))
    output = snakemake("-n", "--printshellcmds", target)[1]
    (command,) = (line for line in workflows.commands(output, "training.train") if "experiments/tuned" in line)
    assert workflows.options(command, "training.train")[0]["same_classes"]
    assert " --fitted results/experiments/tuned/linear/classifier.caffemodel --chosen" in command


def test_a_diverged_member_of_a_sweep_does_not_stop_the_others(snakemake, tmp_path):
    config = CONFIG.split("  tuned:")[0].replace("{max_iter: 2}", "{max_iter: 4, base_lr: [1.0e+30, 0.001]}")
    (tmp_path / "config.yaml").write_text(config)
    code, output = snakemake("results/report/comparison.csv", "results/experiments/base-1e_30/report/curves.png")
    assert code == 0, output
    table = pd.read_csv(tmp_path / "results/report/base.csv", keep_default_na=False)
    assert list(table.note.str.contains("diverged at iteration")) == [True, False]
    assert list(table.accuracy == "") == [True, False]


def test_tolerate_divergence_and_the_folder_for_failures_reach_the_train_step(snakemake, tmp_path):
    (tmp_path / "config.yaml").write_text(CONFIG.replace("solver: {max_iter: 2}\n", "solver: {max_iter: 2, base_lr: [1, 2]}\n"))
    code, output = snakemake("-n", "--printshellcmds")
    assert code == 0, output
    commands = [line for line in output.splitlines() if "pipeline.training.train " in line]
    assert sorted(given["tolerate_divergence"] for given in workflows.options(output, "training.train")) == [False, True, True]
    folders = [f"logs/experiments/{line.split('/')[2]}" for line in commands]
    assert all(f'--failed "$(dirname {folder}/train.log)/failed"' in line for folder, line in zip(folders, commands, strict=True))


def test_datasets_without_experiments_are_built(snakemake, tmp_path):
    (tmp_path / "config.yaml").write_text(CONFIG.split("experiments:")[0])
    code, output = snakemake("-n")
    assert code == 0, output
    assert "results/datasets/few/lmdb/val.manifest.json" in output
    assert "rule train" not in output
