"""Options as JSON: what a rule passes reaches the step unchanged, whatever it contains."""

import json
import shlex
import subprocess
import sys

import pytest

from pipeline import closure
from pipeline.command import run
from tests.conftest import ROOT
from tests.pipeline.conftest import HOSTILE


def test_options_are_not_interpreted_by_the_shell(tmp_path, command):
    """As in a rule's shell command: one JSON argument, quoted by shlex."""
    done = command("pipeline.sources.shards", "list", "--options", json.dumps({"source": {"list": "$(touch pwned).txt"}}))
    assert done.returncode == 1
    assert "$(touch pwned).txt" in done.stderr
    text = " ".join(HOSTILE)
    echoed = subprocess.run(
        ["bash", "-c", f"printf %s {shlex.quote(json.dumps(text))}"], cwd=tmp_path, capture_output=True, text=True
    )
    assert json.loads(echoed.stdout) == text
    assert not (tmp_path / "pwned").exists()


def test_a_command_whose_output_is_read_in_part_ends_without_a_message(write):
    path = write("net.prototxt", 'layer { name: "x" type: "Input" top: "x" input_param { shape { dim: 2 } } }')
    words = shlex.join([sys.executable, "-m", "pipeline.cli", "doctor", path])
    script = f"{words} | true; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("141\n", "")


def test_a_pipe_that_breaks_elsewhere_is_an_error(monkeypatch, capsys):
    def main(arguments):
        raise BrokenPipeError("of a worker")

    monkeypatch.setattr(sys, "argv", ["step"])
    with pytest.raises(SystemExit) as ended:
        run(main)
    assert (ended.value.code, capsys.readouterr().err) == (1, "error: of a worker\n")


# ---- the code that a rule depends on


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package of a step, what it imports, what that imports inside a function, and a module that nothing imports."""
    folder = tmp_path / "pipeline"
    (folder / "deep").mkdir(parents=True)
    texts = {
        "__init__.py": "",
        "step.py": "import numpy\nfrom pipeline.near import tool\n",
        "near.py": "def tool():\n    from pipeline.deep import far\n",
        "deep/__init__.py": "",
        "deep/far.py": "x = 1\n",
        "other.py": "y = 1\n",
    }
    for name, text in texts.items():
        (folder / name).write_text(text)
    monkeypatch.setattr(closure, "ROOT", folder)
    closure._imports.cache_clear()
    yield folder
    closure._imports.cache_clear()


def test_the_code_of_a_step_is_everything_that_it_imports(package):
    names = ("step", "near", "deep", "deep.far")
    assert closure.imported_by("pipeline.step") == {"pipeline", *(f"pipeline.{name}" for name in names)}


@pytest.mark.parametrize(("edited", "seen"), [("step", True), ("near", True), ("deep/far", True), ("other", False)])
def test_the_code_digest_changes_only_when_an_imported_module_is_edited(package, edited, seen):
    before = closure.code_of("pipeline.step")
    path = package / f"{edited}.py"
    path.touch()
    assert closure.code_of("pipeline.step") == before
    path.write_text(path.read_text() + "# edited\n")
    assert (closure.code_of("pipeline.step") != before) == seen


def test_the_resize_step_depends_on_the_decoder():
    assert "pipeline.formats.images" in closure.imported_by("pipeline.dataset.resize")


def test_option_models_are_not_part_of_the_code_of_a_step():
    assert not {name for name in closure.imported_by("pipeline.dataset.resize") if name.startswith("pipeline.options")}
