"""The workflow as Snakemake users see it: dry runs, profiles, a config with a mistake; and that steps use public names only."""

import ast
import re
import subprocess
import sys

import pytest

import caffe
from tests.conftest import ROOT
from tests.workflows import commands, options


def snakemake(*arguments, cwd=ROOT) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(ROOT / "Snakefile"), *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True)


@pytest.fixture
def elsewhere(tmp_path):
    """A folder with nothing but the example's config."""
    (tmp_path / "config").mkdir()
    (tmp_path / "config/config.yaml").write_text((ROOT / "config/config.yaml").read_text())
    return tmp_path


@pytest.mark.parametrize("profile", ["default", "slurm", "cluster"])
def test_a_dry_run_of_the_example_works_in_any_folder_with_every_profile(elsewhere, profile):
    done = snakemake("-n", "--workflow-profile", str(ROOT / "profiles" / profile), cwd=elsewhere)
    assert done.returncode == 0, done.stderr
    rules = ("shards", "label", "lmdb", "mean", "prototxt", "train", "features", "evaluate")
    for rule in (*rules, "plots", "evaluated", "neighbours", "comparison"):
        assert f"\n{rule} " in done.stdout + done.stderr


NEEDED = {
    "config": [],
    "mnist": [],
    "mnist_siamese": [],
    "cifar10": [],
    "flickr_style": ["flickr_style.csv.gz", "config/flickr_style.txt", "bvlc_reference_caffenet.caffemodel"],
    "database": ["ilsvrc12_train_lmdb/data.mdb", "ilsvrc12_val_lmdb/data.mdb", "imagenet_names.txt"],
    "dog_breeds": ["dogs/beagle/1.jpg", "ResNet-50-model.caffemodel"],
    "folder": ["photos/cats/1.jpg", "bvlc_reference_caffenet.caffemodel"],
}


def test_every_config_has_a_dry_run_test():
    assert sorted(NEEDED) == sorted(path.stem for path in (ROOT / "config").glob("*.yaml") if path.stem != "schema")


@pytest.mark.parametrize("name", NEEDED)
def test_a_dry_run_of_a_config_works_once_its_files_exist(tmp_path, name):
    for needed in NEEDED[name]:
        (tmp_path / needed).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / needed).touch()
    done = snakemake("-n", "--configfile", str(ROOT / f"config/{name}.yaml"), cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    ready = name in ("mnist", "mnist_siamese", "cifar10", "database")
    assert (bool(re.search(r"^(build|reuse) ", done.stdout, re.MULTILINE)), "\nshards " in done.stdout) == (ready, not ready)


def test_compute_gpu_requests_gpus(elsewhere):
    config = elsewhere / "config/config.yaml"
    config.write_text(config.read_text().replace("compute: cpu", "compute: gpu"))
    done = snakemake("-n", cwd=elsewhere)
    assert "gpu=1" in done.stdout + done.stderr


def test_a_typo_in_the_config_ends_with_one_clear_message(elsewhere):
    config = elsewhere / "config/config.yaml"
    config.write_text(config.read_text().replace("rename_last", "rename_lats"))
    done = snakemake("-n", cwd=elsewhere)
    assert done.returncode == 1
    said = done.stdout + done.stderr
    assert 'config/config.yaml: experiments.finetuned.rename_lats: unknown key; did you mean "rename_last"?' in said
    assert "Traceback" not in said
    assert not (elsewhere / "results").exists()


def test_another_config_replaces_the_example(elsewhere):
    (elsewhere / "cats.csv").write_text("url,label\nhttp://127.0.0.1/a.jpg,tabby\n")
    (elsewhere / "cats.yaml").write_text(
        "datasets: {cats: {source: {list: cats.csv}}}\nexperiments: {breeds: {dataset: cats, model: lenet}}\n"
    )
    done = snakemake("-n", "--configfile", "cats.yaml", cwd=elsewhere)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "results/experiments/breeds/train" in done.stdout
    assert "digits" not in done.stdout


def test_steps_use_only_public_names_of_the_engine():
    public = set(caffe.__all__)
    for path in (ROOT / "pipeline").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                assert all(name.name == "caffe" or not name.name.startswith("caffe.") for name in node.names), path
            elif isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "caffe":
                used = [name.name for name in node.names] if node.module == "caffe" else [node.module.split(".")[1]]
                assert set(used) <= public, f"{path} uses {used}"
            elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "caffe":
                assert node.attr in public, f"{path} uses caffe.{node.attr}"


def test_every_public_name_of_the_engine_exists():
    for name in caffe.__all__:
        assert getattr(caffe, name) is not None


def test_the_channel_order_reaches_the_database_step(elsewhere):
    config = elsewhere / "config/config.yaml"
    config.write_text(config.read_text().replace("    color: gray", "    channels: RGB"))
    done = snakemake("-n", "--printshellcmds", cwd=elsewhere)
    assert done.returncode == 0, done.stdout + done.stderr
    assert [given["channels"] for given in options(done.stdout, "dataset.database")] == ["RGB"] * 4


@pytest.mark.parametrize(("copies", "in_database", "in_net"), [(0, 0, 1), (3, 1, 0)])
def test_images_are_augmented_in_the_database_or_in_the_net(elsewhere, copies, in_database, in_net):
    config = elsewhere / "config/config.yaml"
    changes = f"    augmentation: {{copies: {copies}, brightness: 0.5}}\n    color: gray"
    config.write_text(config.read_text().replace("    color: gray", changes, 1))
    done = snakemake(
        "-n", "--printshellcmds", "results/report/comparison.csv", "results/datasets/digits_base/augmented.png", cwd=elsewhere
    )
    assert done.returncode == 0, done.stdout + done.stderr
    changed = {
        step: [given for given in options(done.stdout, step) if given.get("augmentation") == {"brightness": 0.5}]
        for step in ("dataset.database", "nets.prototxt", "report.augmentation_examples")
    }
    assert [given["copies"] for given in changed["dataset.database"]] == [3] * in_database
    assert len(changed["nets.prototxt"]) == in_net
    assert len(changed["report.augmentation_examples"]) == 1


def test_pictures_of_a_net_use_the_images_and_the_count_of_the_config(elsewhere):
    config = elsewhere / "config/config.yaml"
    (elsewhere / "look").mkdir()
    text = config.read_text().replace("    features: [ip1]", "    pictures: {images: look, count: 5}")
    config.write_text(text.replace("    batch_size: 20", "    batch_size: 20\n    pictures: {count: 0}", 1))
    done = snakemake("-n", "--printshellcmds", cwd=elsewhere)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(options(done.stdout, "report.visualize")) == 2
    for name, shown, count in (
        ("base", "--database results/datasets/digits_base/lmdb/val", 2),
        ("finetuned", "--images look", 5),
    ):
        (command,) = (line for line in commands(done.stdout, "report.visualize") if f"experiments/{name}" in line)
        assert shown in command
        assert options(command, "report.visualize")[0]["pictures"] == {"count": count}


def test_images_to_classify_are_classified_by_the_trained_net(elsewhere):
    config = elsewhere / "config/config.yaml"
    (elsewhere / "look").mkdir()
    config.write_text(config.read_text().replace("    features: [ip1]", "    classify: {images: look, oversample: true}"))
    done = snakemake("-n", "--printshellcmds", cwd=elsewhere)
    assert done.returncode == 0, done.stdout + done.stderr
    (command,) = commands(done.stdout, "inference.classify")
    assert "experiments/finetuned/train/final.caffemodel look" in command
    assert options(command, "inference.classify")[0]["classify"]["oversample"]


@pytest.mark.parametrize(
    ("early_stopping", "best", "which"),
    [(3, "", "best"), (3, "best: false", "final"), (0, "best: true", "best"), (0, "", "final")],
)
def test_the_best_weights_are_used_if_the_config_says_so(elsewhere, early_stopping, best, which):
    config = elsewhere / "config/config.yaml"
    keys = f"\n    early_stopping: {early_stopping}\n    export: {{onnx: true}}\n    {best}\n"
    config.write_text(config.read_text().replace("    features: [ip1]", f"    features: [ip1]{keys}"))
    done = snakemake("-n", "--printshellcmds", cwd=elsewhere)
    assert done.returncode == 0, done.stdout + done.stderr
    of_weights = [line for line in done.stdout.splitlines() if f"results/experiments/finetuned/train/{which}.caffemodel" in line]
    for step in ("inference.features", "inference.evaluate", "report.visualize", "export.export"):
        assert sum(f"python -m pipeline.{step} " in line for line in of_weights) == 1


@pytest.mark.parametrize(("weights", "which"), [("experiment: base", "best"), ("experiment: base, best: false", "final")])
def test_weights_of_another_experiment_are_its_best_or_its_final_ones(elsewhere, weights, which):
    config = elsewhere / "config/config.yaml"
    text = config.read_text().replace("    solver: {base_lr: 0.01", "    early_stopping: 3\n    solver: {base_lr: 0.01", 1)
    config.write_text(text.replace("weights: {experiment: base}", f"weights: {{{weights}}}"))
    done = snakemake("-n", "--printshellcmds", cwd=elsewhere)
    assert done.returncode == 0, done.stdout + done.stderr
    (command,) = (line for line in commands(done.stdout, "training.train") if "experiments/finetuned" in line)
    assert f" --weights results/experiments/base/train/{which}.caffemodel --fitted" in command


def test_a_net_is_evaluated_on_test_images(elsewhere):
    config = elsewhere / "config/config.yaml"
    config.write_text(config.read_text().replace("    features: [ip1]", "    evaluate: [val, test]"))
    done = snakemake("-n", "--printshellcmds", cwd=elsewhere)
    assert done.returncode == 0, done.stdout + done.stderr
    data = "--list results/datasets/digits_target/lists/test.txt --labels results/datasets/digits_target/lists/labels.txt"
    assert (
        f"results/experiments/finetuned/evaluate_test {data} --database results/datasets/digits_target/lmdb/test" in done.stdout
    )
    for result in ("report/mistakes_test.png", "report/confusion_test.png"):
        assert f"results/experiments/finetuned/{result}" in done.stdout
