"""The command `roastery`: lists the commands by stage, runs one, and suggests the nearest name."""

import os
import subprocess
import sys

import pytest

import caffe
from pipeline import cli, doctor
from tests.conftest import ROOT


def roastery(*words, cwd=None) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-m", "pipeline.cli", *words], cwd=cwd, capture_output=True, text=True)


def test_help_lists_every_command_by_stage_with_its_first_line():
    text = cli.usage()
    assert text.index("dataset:") < text.index("  resize ") < text.index("training:") < text.index("  train ")
    assert "Resize a folder of images to one size" in text
    for stage in cli.commands().values():
        for name, path in stage.items():
            assert cli._first_line(path), f"{name} has no docstring"


def test_names_of_commands_are_unique():
    names = [name for stage in cli.commands().values() for name in stage]
    assert len(set(names)) == len(names)
    assert {"resize", "train", "classify", "evaluate", "export", "verify", "doctor", "initial-weights"} <= set(names)


def test_a_command_is_run_with_its_arguments(tmp_path):
    (tmp_path / "in").mkdir()
    done = roastery("resize", "in", "out", "--height", "8", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "out: 0 images" in done.stdout


def test_the_error_of_a_command_is_printed_unchanged(tmp_path):
    done = roastery("resize", "nowhere", "out", "--height", "0", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (1, "error: --height: 0 is not between 1 and 8192\n")


def test_a_mistyped_command_is_answered_with_the_nearest_name():
    done = roastery("resise")
    assert done.returncode == 1
    assert done.stderr == 'error: roastery resise: no such command; did you mean "resize"?\n'


def test_doctor_passes_in_the_test_environment(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(doctor, "LEAST_SPACE", 0)
    doctor.main([])
    assert capsys.readouterr().out.count("ok  ") == len(doctor.CHECKS)


def test_doctor_runs_every_check_and_fails_if_one_is_broken(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(doctor, "LEAST_SPACE", 1 << 62)
    with pytest.raises(caffe.Error, match="1 of 9 checks failed"):
        doctor.main([])
    assert "broken  disk: " in capsys.readouterr().out


def test_doctor_names_the_caffe_of_a_checkout_that_scripts_would_find(monkeypatch, tmp_path):
    (tmp_path / "examples").mkdir()
    monkeypatch.chdir(tmp_path / "examples")
    assert doctor.imports() == f"import caffe finds {ROOT / 'caffe'}"
    (tmp_path / "python/caffe").mkdir(parents=True)
    (tmp_path / "python/caffe/pycaffe.py").write_text("from ._caffe import Net")
    said = doctor.imports()
    assert f"{tmp_path / 'python'} has another, of BVLC" in said
    assert 'sys.path.insert(0, caffe_root + "python"), so leave that line out' in said


def test_another_caffe_that_comes_first_is_named(tmp_path):
    (tmp_path / "caffe").mkdir()
    (tmp_path / "caffe" / "__init__.py").write_text("from ._caffe import Net")
    done = subprocess.run(
        [sys.executable, "-m", "pipeline.cli", "doctor"],
        cwd=tmp_path.parent,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert f"import caffe finds {tmp_path / 'caffe'}" in last
    assert "sys.path.insert" in last
