"""`roastery init`: what it writes, and what it refuses."""

import os

import pytest
import yaml

from pipeline import init
from pipeline.errors import InputError
from tests import standins


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The working directory, with photos/ of two classes."""
    standins.class_folders(tmp_path / "photos", {"cats": 4, "dogs": 4})
    monkeypatch.chdir(tmp_path)
    return tmp_path


def config_of(folder) -> dict:
    return yaml.safe_load((folder / "config/config.yaml").read_text())


def test_a_folder_of_images_becomes_a_dataset_and_an_experiment(folder, capsys):
    init.main([".", "--images", "photos", "--cluster", "slurm", "--makefile"])
    config = config_of(folder)
    assert config["datasets"]["photos"]["source"] == {"folder": "photos"}, "relative to the project, wherever that is"
    assert config["experiments"]["photos"]["dataset"] == "photos"
    for path in ("Snakefile", "Makefile", "config/README.md", "profiles/default/profile.yaml", "profiles/slurm/profile.yaml"):
        assert (folder / path).exists()
    assert "next: snakemake --cores all" in capsys.readouterr().out


def test_weights_are_fine_tuned(folder):
    (folder / "net.caffemodel").touch()
    init.main(["project", "--images", "photos", "--model", "resnet50", "--weights", "net.caffemodel", "--name", "my dogs!"])
    config = config_of(folder / "project")
    experiment = config["experiments"]["my_dogs"]
    assert experiment["model"] == "resnet50"
    assert experiment["weights"] == {"file": str(folder / "net.caffemodel")}
    assert experiment["rename_last"]
    assert config["datasets"]["my_dogs"]["source"] == {"folder": str(folder / "photos")}


def test_without_images_it_is_the_example(folder):
    init.main(["project"])
    assert set(config_of(folder / "project")["experiments"]) == {"base", "scratch", "finetuned"}
    assert not (folder / "project/profiles/slurm").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["p", "--images", "phtos"], "phtos: not found"),
        (["p", "--list", "photos"], "photos: not a file"),
        (["p", "--model", "lenet"], "--images or --list"),
        (["p", "--images", "photos", "--model", "resnet5"], 'did you mean "resnet50"'),
    ],
)
def test_what_cannot_be_meant_is_refused_and_nothing_is_written(folder, arguments, said):
    with pytest.raises(InputError, match=said):
        init.main(arguments)
    assert os.listdir(folder) == ["photos"]  # noqa: PTH208


def test_nothing_is_overwritten(folder):
    (folder / "Snakefile").write_text("mine")
    with pytest.raises(InputError, match="Snakefile: is already there"):
        init.main([".", "--images", "photos"])
    assert (folder / "Snakefile").read_text() == "mine"
    assert not (folder / "config").exists()
