"""The rules for datasets, run by Snakemake in a temporary folder on a few small pictures."""

import functools
import shutil

import cv2
import pytest

from pipeline.dataset import retry
from tests import standins, workflows

CONFIG = """\
datasets:
  few:
    source: {list: few.csv, allow_file: true, min_yield: 0}
    shard_size: 4
    size: {height: 16, width: 16}
    split: {by: fraction, val: 0.34}
experiments:
  e: {dataset: few, model: lenet}
"""
MEAN = "results/datasets/few/mean.binaryproto"


@pytest.fixture
def snakemake(tmp_path):
    """snakemake(target) builds a target from few.csv, which lists six pictures of two classes; gives exit code and all output."""
    standins.listed_pictures(tmp_path)
    (tmp_path / "config.yaml").write_text(CONFIG)
    return functools.partial(workflows.snakemake, tmp_path, "--")


def test_a_longer_list_downloads_only_what_is_new(snakemake, tmp_path):
    code, output = snakemake(MEAN)
    assert code == 0, output
    tables = tmp_path / "results/datasets/few/download"
    before = (tables / "00000.csv").stat().st_mtime_ns
    standins.listed_pictures(tmp_path, 7)
    code, output = snakemake(MEAN)
    assert code == 0, output
    assert (tables / "00000.csv").stat().st_mtime_ns == before
    assert len((tables / "00001.csv").read_text().splitlines()) == 4
    assert "Nothing to be done" in snakemake(MEAN)[1]


def test_shards_are_resized_while_others_are_downloaded(snakemake, tmp_path):
    standins.listed_pictures(tmp_path, 20)
    code, output = workflows.snakemake(tmp_path, "--printshellcmds", "--", MEAN)
    assert code == 0, output
    order = [step for line in output.splitlines() for step in ("download", "resize") if f"-m pipeline.dataset.{step} " in line]
    assert sorted(order) == 5 * ["download"] + 5 * ["resize"]
    assert order.index("resize") < len(order) - 1 - order[::-1].index("download")
    assert {line.rpartition("--threads ")[2][0] for line in workflows.commands(output, "dataset.resize")} == {"1"}


@pytest.mark.usefixtures("snakemake")
@pytest.mark.parametrize("quiet", [(), ("--quiet", "rules", "host")])
def test_the_error_of_a_failing_step_reaches_the_terminal(tmp_path, quiet):
    for number in (1, 3, 5):
        (tmp_path / f"{number}.png").write_text("<html></html>")
    code, output = workflows.snakemake(tmp_path, *quiet, "--", MEAN)
    assert code == 1
    assert 'error: results/datasets/few/download: class "b" has no images' in output
    assert "Traceback" not in output
    assert not (tmp_path / "results/datasets/few/lists").exists()


def test_a_dataset_that_fails_does_not_stop_the_others_and_the_end_lists_it(snakemake, tmp_path):
    (tmp_path / "gone.csv").write_text("url,label\nfile:gone.png,a\nfile:lost.png,b\n")
    bad = "  bad:\n    source: {list: gone.csv, allow_file: true}\n    split: {by: fraction, val: 0.34}\n"
    (tmp_path / "config.yaml").write_text(CONFIG.replace("experiments:", f"{bad}experiments:"))
    code, output = workflows.snakemake(tmp_path, "--", "results/datasets/bad/mean.json", MEAN)
    assert code == 1
    assert (tmp_path / MEAN).exists()
    end = output[output.index("1 step failed:") :]
    assert "  download: results/datasets/bad/list/00000.csv: 0 of 2 images downloaded (not_found 2" in end
    assert "log: logs/datasets/bad/download/00000.log" in end


def test_a_missing_source_list_is_named(snakemake, tmp_path):
    (tmp_path / "few.csv").unlink()
    code, output = snakemake(MEAN)
    assert code == 1
    assert "few.csv" in output
    assert "Traceback" not in output


FOLDER = """\
datasets:
  few:
    source: {folder: photos}
    size: {height: 16, width: 16}
    split: {by: fraction, val: 0.34}
    names: names.txt
"""


@pytest.fixture
def snakemake_with_folder(snakemake, tmp_path):
    """As `snakemake`, with photos/0/*.png and photos/1/*.png, and names.txt."""
    (tmp_path / "config.yaml").write_text(FOLDER)
    (tmp_path / "names.txt").write_text("cat\ndog\n")
    for number in range(6):
        (tmp_path / f"photos/{number % 2}").mkdir(parents=True, exist_ok=True)
        (tmp_path / f"{number}.png").rename(tmp_path / f"photos/{number % 2}/{number}.png")
    return snakemake


def test_images_added_to_a_class_folder_are_used(snakemake_with_folder, tmp_path):
    (tmp_path / "photos/notes").mkdir()
    (tmp_path / "photos/1/5.heic").touch()
    code, output = snakemake_with_folder(MEAN)
    assert code == 0, output
    assert "photos: ignored: classes without images (notes); files of other kinds (.heic 1)" in output
    (tmp_path / "photos/notes").rmdir()
    (tmp_path / "photos/1/.DS_Store").touch()
    assert "Nothing to be done" in snakemake_with_folder(MEAN)[1]
    shutil.copy(tmp_path / "photos/1/5.png", tmp_path / "photos/1/6.png")
    code, output = snakemake_with_folder(MEAN)
    assert code == 0, output
    assert "1/6.png" in (tmp_path / "results/datasets/few/list/00000.csv").read_text()


def test_an_image_replaced_under_its_name_is_used(snakemake_with_folder, tmp_path):
    code, output = snakemake_with_folder(MEAN)
    assert code == 0, output
    table = tmp_path / "results/datasets/few/download/00000.csv"
    before = table.read_text()
    cv2.imwrite(str(tmp_path / "photos/1/5.png"), standins.picture(0, 99))
    code, output = snakemake_with_folder(MEAN)
    assert code == 0, output
    assert table.read_text() != before
    assert "Nothing to be done" in snakemake_with_folder(MEAN)[1]


@pytest.mark.usefixtures("snakemake")
def test_failed_downloads_are_retried_alone_and_join_the_dataset(tmp_path, monkeypatch):
    standins.listed_pictures(tmp_path, 10)
    for number in (1, 6):
        (tmp_path / f"{number}.png").rename(tmp_path / f"{number}.missing")
    build = functools.partial(workflows.snakemake, tmp_path, "--", MEAN)
    assert build()[0] == 0
    download = tmp_path / "results/datasets/few/download"
    kept = (download / "00002.csv").stat().st_mtime_ns
    assert "not_found" in (download / "00000.csv").read_text()
    (tmp_path / "1.missing").rename(tmp_path / "1.png")
    (tmp_path / "6.missing").rename(tmp_path / "6.png")
    (tmp_path / "0.png").unlink()  # which was downloaded: it is not asked for again
    monkeypatch.chdir(tmp_path)
    retry.main(["results/datasets/few"])
    code, output = build()
    assert code == 0, output
    assert "not_found" not in "".join(path.read_text() for path in download.glob("*.csv"))
    assert (download / "00002.csv").stat().st_mtime_ns == kept
    listed = "".join((tmp_path / f"results/datasets/few/lists/{part}.txt").read_text() for part in ("train", "val"))
    assert len(listed.splitlines()) == 10
    retry.main(["results/datasets/few"])
    assert "Nothing to be done" in build()[1]


def test_changed_class_names_rerun_and_a_missing_names_file_stops_the_build(snakemake_with_folder, tmp_path):
    labels = "results/datasets/few/lists/labels.txt"
    (tmp_path / "names.txt").rename(tmp_path / "names")
    code, output = snakemake_with_folder(labels)
    assert code == 1
    assert "names.txt" in output
    assert not (tmp_path / "results").exists()
    (tmp_path / "names").rename(tmp_path / "names.txt")
    assert snakemake_with_folder(labels)[0] == 0
    (tmp_path / "names.txt").write_text("cats\ndogs\n")
    assert snakemake_with_folder(labels)[0] == 0
    assert (tmp_path / labels).read_text() == "cats\ndogs\n"


@pytest.mark.usefixtures("snakemake_with_folder")
@pytest.mark.parametrize(
    ("split", "made"),
    [
        ("", {}),
        ("    split: {val: 0.3}\n", {"val": 0.3}),
        ("    split: {by: fraction}\n", {"by": "fraction"}),
    ],
)
def test_images_keep_their_own_split_unless_the_config_sets_one(tmp_path, split, made):
    config = FOLDER.replace("    split: {by: fraction, val: 0.34}\n", split)
    (tmp_path / "config.yaml").write_text(config)
    code, output = workflows.snakemake(tmp_path, "-n", "--printshellcmds", "results/datasets/few/lists/val.txt")
    assert code == 0, output
    (given,) = workflows.options(output, "dataset.label")
    assert given["split"] == made
