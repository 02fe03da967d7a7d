"""Options as JSON: what a rule passes reaches the step unchanged, whatever it contains."""

import ast
import json
import shlex
import subprocess
import sys
from collections import Counter
from pathlib import Path

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


def forget():
    """Have the modules read again, as another process does."""
    closure._content.cache_clear()
    closure._imports.cache_clear()


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
    forget()
    yield folder
    forget()


def test_the_code_of_a_step_is_everything_that_it_imports(package):
    names = ("step", "near", "deep", "deep.far")
    assert closure.imported_by("pipeline.step") == {"pipeline", *(f"pipeline.{name}" for name in names)}


@pytest.mark.parametrize(("edited", "seen"), [("step", True), ("near", True), ("deep/far", True), ("other", False)])
def test_the_code_digest_changes_only_when_an_imported_module_is_edited(package, edited, seen):
    before = closure.code_of("pipeline.step")
    path = package / f"{edited}.py"
    path.touch()
    forget()
    assert closure.code_of("pipeline.step") == before
    path.write_text(path.read_text() + "# edited\n")
    forget()
    assert (closure.code_of("pipeline.step") != before) == seen


def test_the_imports_of_a_module_are_those_that_python_sees():
    for path in closure.ROOT.rglob("*.py"):
        text, parsed = path.read_text(), set()
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Import):
                parsed |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                parsed |= {f"{node.module}.{alias.name}" for alias in node.names}
        found = set(closure._candidates(text))
        assert {name for name in parsed if name.startswith("pipeline.")} == {
            name for name in found if name.startswith("pipeline.")
        }


@pytest.mark.parametrize(
    "text",
    [
        "import pipeline.a",
        "import json, pipeline.a as b",
        "if x:\n    from pipeline import (\n        a as c,  # why, and how\n    )\n",
    ],
)
def test_an_import_is_found_however_it_is_written(text):
    assert "pipeline.a" in set(closure._candidates(text))


def test_each_module_is_read_once_for_the_digests_of_all_steps(monkeypatch):
    forget()
    read, read_bytes = Counter(), Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda path: read.update([path]) or read_bytes(path))
    for step in ("dataset.resize", "dataset.label", "training.train", "report.plots"):
        closure.code_of(f"pipeline.{step}")
    assert len(read) > 30
    assert set(read.values()) == {1}


WITHOUT_A_NET = (
    *("sources.digits", "sources.shards", "sources.published", "sources.databases", "dataset.download", "dataset.resize"),
    *("dataset.label", "dataset.database", "dataset.mean", "nets.prototxt", "training.initial_weights", "export.surgery"),
    *("report.tables", "report.manifest"),
)
DRAWS = ("augmentation_examples", "comparison", "dataset_pictures", "evaluation", "neighbours", "overview", "plots")


def imported(step):
    """The packages that are imported when a step starts."""
    code = f"import sys, pipeline.{step}; print(*{{name.partition('.')[0] for name in sys.modules}})"
    return set(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split())


@pytest.mark.parametrize("step", WITHOUT_A_NET)
def test_a_step_without_a_net_starts_without_the_slow_packages(step):
    assert not imported(step) & {"torch", "pandas", "pyarrow", "matplotlib", "scipy", "sklearn", "jsonschema", "onnx"}


@pytest.mark.parametrize("step", DRAWS)
def test_a_step_that_draws_starts_without_pytorch(step):
    assert not imported(f"report.{step}") & {"torch", "sklearn", "jsonschema", "onnx"}


def test_garbage_is_not_collected_while_a_step_is_imported():
    code = (
        "import sys, gc; sys.argv[0] = '-m'; from pipeline.command import run; print(gc.isenabled());"
        "run(lambda _: print(gc.isenabled(), gc.get_freeze_count() > 0))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "True", "True"]


def test_garbage_is_collected_where_the_steps_are_imported_by_a_program():
    code = "import gc, pipeline.dataset.resize, caffe; caffe.Net; print(gc.isenabled())"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "True\n"


def test_the_resize_step_depends_on_the_decoder():
    assert "pipeline.formats.images" in closure.imported_by("pipeline.dataset.resize")


def test_option_models_are_not_part_of_the_code_of_a_step():
    assert not {name for name in closure.imported_by("pipeline.dataset.resize") if name.startswith("pipeline.options")}
