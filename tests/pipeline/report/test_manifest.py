"""Manifests of builds, and what verify reports for two of them, or for one and the files on disk."""

import copy
import json
import re
import shutil

import cv2
import pytest

from pipeline.errors import InputError
from pipeline.report import manifest, verify
from tests import standins, workflows
from tests.conftest import ROOT

CONFIG = """\
datasets:
  few: {source: {folder: photos}, size: {height: 28, width: 28}, color: gray, split: {by: fraction, val: 0.34}}
experiments:
  first:
    {dataset: few, model: lenet, batch_size: 4, features: [ip1], feature_formats: [npy], evaluate: [val, train],
     solver: {max_iter: 4, test_interval: 2, display: 2, snapshot: 2}}
"""


def build(folder) -> dict:
    """A small build of photographs in a folder, and its manifest."""
    for number in range(12):
        path = folder / "photos" / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), standins.picture(number % 2, number, 40))
    (folder / "config.yaml").write_text(CONFIG)
    code, output = workflows.snakemake(folder)
    assert code == 0, output
    return manifest.read(folder / "results/manifest.json")


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The folder of a small build, and its manifest."""
    folder = tmp_path_factory.mktemp("built")
    return folder, build(folder)


def test_a_build_in_another_folder_gives_the_same_bytes(built, tmp_path):
    _, first = built
    second = build(tmp_path)
    assert verify.compare(first, second) == []
    assert {one["kind"] for one in first["results"].values()} == set(manifest.KINDS)


def test_every_file_of_a_build_is_a_result_or_listed_as_not_compared(built):
    folder, _ = built
    files = [path.relative_to(folder / "results") for path in (folder / "results").rglob("*") if path.is_file()]
    compared = [path for path in files if not path.name.startswith(".") and not manifest.not_compared(path.name)]
    assert [str(path) for path in compared if not manifest.place(path.as_posix())] == []


@pytest.mark.parametrize(
    "name",
    ["data.mdb", "pixels.npy", "mean.binaryproto", "final.caffemodel", "s_iter_2.solverstate", "predictions.csv", "metrics.csv"],
)
def test_data_weights_predictions_and_metrics_are_always_compared(name):
    assert not manifest.not_compared(name)


def test_the_manifest_records_config_versions_machines_and_results(built):
    folder, made = built
    assert made["config"]["datasets"]["few"]["size"] == {"height": 28, "width": 28}
    assert made["versions"]["torch"]
    assert made["machines"]["first"]["threads"] >= 1
    assert 0 <= made["accuracies"]["first"]["val"] <= 1
    assert made["results"]["experiments/first/train/final.caffemodel"]["kind"] == "weights"
    absolute = re.compile(re.escape(str(folder)))
    texts = [path for path in (folder / "results").rglob("*") if path.suffix in (".csv", ".txt", ".json", ".prototxt")]
    assert [path for path in texts if absolute.search(path.read_text())] == []


def test_nothing_is_to_be_done_after_a_build(built):
    code, output = workflows.snakemake(built[0], "-n")
    assert code == 0, output
    assert "Nothing to be done" in output


@pytest.mark.parametrize(
    ("file", "step", "what"),
    [
        ("datasets/few/lmdb/train/data.mdb", "lmdb", "truncated"),
        ("datasets/few/lists/train.txt", "label", "truncated"),
        ("experiments/first/train/final.caffemodel", "train", "truncated"),
        ("experiments/first/evaluate/predictions.csv", "evaluate", "truncated"),
        ("datasets/few/mean.binaryproto", "mean", "missing"),
        ("experiments/first/features/ip1.npy", "features", "changed"),
    ],
)
def test_verify_finds_a_damaged_result_and_names_its_step(built, command, tmp_path, file, step, what):
    shutil.copytree(built[0] / "results", tmp_path / "results")
    assert command("pipeline.report.verify", "results/manifest.json").returncode == 0
    path = tmp_path / "results" / file
    content = path.read_bytes()
    if what == "missing":
        path.unlink()
    else:
        path.write_bytes(content[:-10] if what == "truncated" else content[:-1] + bytes([content[-1] ^ 1]))
    done = command("pipeline.report.verify", "results/manifest.json")
    assert done.returncode == 1, done.stderr
    assert f"first at the step {step}" in done.stdout
    assert what in done.stdout
    targets = done.stdout.split("--forcerun ")[1].split()
    assert all(file.startswith(target.removeprefix("results/")) for target in targets)


def edit_manifest(made: dict, step: str, **parts) -> dict:
    """A manifest with another hash for each result of a step, and other parts."""
    other = copy.deepcopy(made)
    for one in other["results"].values():
        if one["step"] == step:
            one["sha256"] = "0" * 64
    for name, part in parts.items():
        other[name] |= part
    return other


@pytest.mark.parametrize(
    ("step", "parts", "reason"),
    [
        ("resize", {"versions": {"opencv-python-headless": "9.9"}}, "version of opencv-python-headless"),
        ("train", {"machines": {"first": {"threads": 64}}}, "threads of first"),
        ("label", {"inputs": {"names.txt": "0" * 64}}, "input names.txt"),
        ("lmdb", {}, "unexplained"),
        ("resize", {"machines": {"first": {"threads": 64}}}, "unexplained"),
    ],
)
def test_verify_names_the_first_step_at_which_builds_differ_and_why(built, command, tmp_path, step, parts, reason):
    for name, made in (("a.json", built[1]), ("b.json", edit_manifest(built[1], step, **parts))):
        (tmp_path / name).write_text(json.dumps(made))
    done = command("pipeline.report.verify", "a.json", "b.json")
    assert done.returncode == 1, done.stderr
    assert f"first at the step {step}" in done.stdout
    assert reason in done.stdout


def test_verify_names_the_key_in_which_configs_differ(built):
    other = edit_manifest(built[1], "resize")
    other["config"]["datasets"]["few"]["size"]["height"] = 32
    assert verify.reasons(built[1], other, "resize")[0] == "config datasets.few.size.height: 28 against 32"


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": 99, "results": {}, "config": {}}'])
def test_a_file_that_is_not_a_manifest_is_refused(tmp_path, text):
    (tmp_path / "m.json").write_text(text)
    with pytest.raises(InputError):
        manifest.read(tmp_path / "m.json")


def test_every_step_of_a_result_is_a_rule():
    rules = "".join(path.read_text() for path in (ROOT / "rules").glob("*.smk"))
    named = set(re.findall(r"^(?:rule|checkpoint|use rule \w+ as) (\w+)(?::| with:)", rules, re.MULTILINE))
    assert {output.step for output in manifest.OUTPUTS} <= named


def test_results_of_an_earlier_config_are_left_out(built, tmp_path):
    folder = shutil.copytree(built[0] / "results", tmp_path / "results")
    for stale in ("datasets/few/resize/00007/pixels.npy", "datasets/few/download/00007.csv", "datasets/other/mean.json"):
        (folder / stale).parent.mkdir(parents=True, exist_ok=True)
        (folder / stale).write_bytes(b"x")
    for stale in ("evaluate_test/summary.json", "report/map_fc7.png", "export/merged.caffemodel", "checkpoint/files/x"):
        (folder / "experiments/first" / stale).parent.mkdir(parents=True, exist_ok=True)
        (folder / "experiments/first" / stale).write_text("{}")
    assert list(manifest.find(folder, built[1]["config"])) == list(built[1]["results"])


def test_results_behind_symbolic_links_are_found(built, tmp_path):
    shutil.copytree(built[0] / "results", tmp_path / "elsewhere")
    (tmp_path / "results").mkdir()
    for path in (tmp_path / "elsewhere").iterdir():
        (tmp_path / "results" / path.name).symlink_to(path)
    assert set(manifest.find(tmp_path / "results", built[1]["config"])) == set(built[1]["results"])
    assert verify.check(built[1], tmp_path / "results") == []
