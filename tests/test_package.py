"""The package: it declares exactly what it needs; a net and the command run from the built wheel in an empty folder."""

import ast
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import tomllib

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from tests import standins
from tests.conftest import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
# Distributions that a module may belong to.
OWNERS = {
    module: {canonicalize_name(name) for name in names} for module, names in importlib.metadata.packages_distributions().items()
}
OWNERS.setdefault("triton", {"triton"})  # which the environment has after `make test-kernels`
PINNED = [Requirement(line) for line in (ROOT / "requirements.lock").read_text().splitlines() if not line.startswith("#")]
for pin in PINNED:
    if pin.marker and not pin.marker.evaluate():  # this version of Python has no wheel of it
        OWNERS.setdefault(pin.name, {canonicalize_name(pin.name)})

SCRIPT = """
import caffe, pathlib
text = 'layer { name: "x" type: "Input" top: "x" input_param { shape { dim: 1 dim: 2 } } } '
text += 'layer { name: "y" type: "Power" bottom: "x" top: "y" power_param { scale: 3 shift: 1 } }'
pathlib.Path("net.prototxt").write_text(text)
net = caffe.Net("net.prototxt", caffe.TEST)
net.blobs["x"].data[...] = [[1, 2]]
print(caffe.__file__, net.forward()["y"].tolist())
"""


def test_a_net_and_the_command_run_from_the_built_wheel_in_an_empty_folder(tmp_path):
    source, site, empty = (tmp_path / name for name in ("source", "site", "empty"))
    empty.mkdir()
    for name in ("caffe", "pipeline", "rules", "report", "config", "profiles"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE", "NOTICE", "Snakefile", "requirements.lock"):
        shutil.copy(ROOT / name, source)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    built = [*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(tmp_path), str(source)]
    subprocess.run(built, check=True)
    subprocess.run([*pip, "install", "--no-deps", "--target", str(site), *map(str, tmp_path.glob("*.whl"))], check=True)
    environment = {**os.environ, "PYTHONPATH": str(site)}
    done = subprocess.run([sys.executable, "-c", SCRIPT], cwd=empty, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    path, values = done.stdout.split(" ", 1)
    assert path.startswith(str(site))
    assert values == "[[4.0, 7.0]]\n"
    done = subprocess.run(
        [site / "bin" / "caffe", "time", "-model", "net.prototxt", "-minloglevel", "0"],
        cwd=empty,
        env=environment,
        capture_output=True,
    )
    assert done.returncode == 0, done.stderr
    assert b"         y\tforward: " in done.stderr
    installed = {path.name for path in (site / "caffe" / "commands").glob("*.py")}
    assert installed == {path.name for path in (ROOT / "caffe" / "commands").glob("*.py")}
    (licenses,) = site.glob("roastery-*.dist-info/licenses")
    assert {path.name for path in licenses.iterdir()} == {"LICENSE", "NOTICE"}
    assert (site / "pipeline/report/style.css").exists()
    assert (site / "caffe/py.typed").exists()
    # `roastery init` finds the workflow's files beside the package, and Snakemake plans a build from them.
    standins.class_folders(empty / "photos", {"cats": 4, "dogs": 4})
    subprocess.run([site / "bin/roastery", "init", "project", "--images", "photos"], cwd=empty, env=environment, check=True)
    plan = [sys.executable, "-m", "snakemake", "-n"]
    done = subprocess.run(plan, cwd=empty / "project", env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "\nshards " in done.stdout


def test_a_checkout_called_caffe_in_the_working_folder_is_not_imported(tmp_path):
    (tmp_path / "caffe/examples").mkdir(parents=True)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run([sys.executable, "-c", SCRIPT], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr + "\nIs the environment that of `make env`?"
    assert done.stdout.endswith("[[4.0, 7.0]]\n")


def declared(*extras: str) -> set[str]:
    """Names of the declared packages: those that are always installed, and those of extras."""
    listed = [*PROJECT["dependencies"], *(line for extra in extras for line in EXTRAS[extra])]
    return {canonicalize_name(Requirement(line).name) for line in listed}


def imported(package: str) -> dict[str, str]:
    """{module of another project: a file of the package that imports it}."""
    found = {}
    for path in sorted((ROOT / package).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and not node.level:
                names = [node.module]
            found |= {name.split(".")[0]: str(path) for name in names}
    ours = {"caffe", "pipeline"} | sys.stdlib_module_names
    return {name: path for name, path in found.items() if name not in ours}


def test_the_packages_import_only_declared_dependencies():
    for package, extras in (("caffe", ["leveldb", "kernels"]), ("pipeline", ["workflow"])):
        for module, path in imported(package).items():
            assert OWNERS[module] & declared(*extras), f"{path} imports {module}"


def test_every_declared_dependency_is_used():
    owners = set().union(*(OWNERS[module] for package in ("caffe", "pipeline") for module in imported(package)))
    # Snakemake is a command, and TensorBoard is imported by torch.utils.tensorboard.
    assert declared("workflow", "leveldb", "kernels") - owners == {"snakemake", "tensorboard"}


def test_the_lock_pins_every_declared_dependency():
    assert all(str(pin.specifier).startswith("==") for pin in PINNED)
    names = [canonicalize_name(pin.name) for pin in PINNED]
    assert len(set(names)) == len(names)
    assert declared("workflow", "leveldb", "dev", "docs") <= set(names)
    for line in [*PROJECT["dependencies"], *EXTRAS["workflow"], *EXTRAS["dev"], *EXTRAS["docs"]]:
        wanted = Requirement(line)
        (pin,) = (pin for pin in PINNED if canonicalize_name(pin.name) == canonicalize_name(wanted.name))
        assert wanted.specifier.contains(str(pin.specifier).removeprefix("==")), line


@pytest.mark.parametrize("version", ["3.11.0", "3.12.0", "3.13.0", "3.14.0"])
def test_what_the_lock_pins_can_be_installed_on_the_first_release_of_each_python(version):
    # Debian 12 has 3.11.2.
    python = {"python_full_version": version, "python_version": version[:4]}
    for pin in PINNED:
        if pin.marker is None or pin.marker.evaluate(python):
            try:
                needed = importlib.metadata.metadata(pin.name)["Requires-Python"]
            except importlib.metadata.PackageNotFoundError:  # this Python has no wheel of it
                continue
            assert SpecifierSet(needed or "").contains(version), f"{pin} needs Python {needed}"


ALONE = """
import importlib, importlib.abc, pathlib, pkgutil, sys
refused = set(sys.argv[1].split(","))

class Refusal(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in refused:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Refusal())
import caffe
for name in caffe.__all__:
    getattr(caffe, name)
modules = [info.name for info in pkgutil.walk_packages(caffe.__path__, "caffe.") if not info.name.endswith("__main__")]
for name in modules:
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != "triton" or not name.startswith("caffe.kernels."):  # which are imported where Triton is
            raise
n = caffe.NetSpec()
n.x = caffe.layers.Input(shape={"dim": [1, 1, 4, 4]})
n.y = caffe.layers.Convolution(n.x, num_output=2, kernel_size=3, weight_filler={"type": "constant", "value": 2})
pathlib.Path("net.prototxt").write_text(str(n.to_proto()))
net = caffe.Net("net.prototxt", caffe.TEST)
net.blobs["x"].data[...] = 1
net.save("net.caffemodel")
net.save_hdf5("net.caffemodel.h5")
for weights in ("net.caffemodel", "net.caffemodel.h5"):
    net.copy_from(weights)
print(len(modules), net.forward()["y"].max())
"""


def test_a_net_runs_with_only_the_core_dependencies(tmp_path):
    core, found = set(), declared()
    while found:  # add dependencies of dependencies
        core |= found
        lines = [line for name in found for line in importlib.metadata.requires(name) or []]
        needed = [line for line in map(Requirement, lines) if line.marker is None or line.marker.evaluate({"extra": ""})]
        found = {canonicalize_name(line.name) for line in needed} - core
    refused = [module for module, owners in OWNERS.items() if not owners & core and "roastery" not in owners]
    assert {"pandas", "matplotlib", "sklearn", "snakemake", "PIL", "plyvel"} & set(OWNERS) <= set(refused)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    words = [sys.executable, "-c", ALONE, ",".join(refused)]
    done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    modules, highest = done.stdout.split()
    assert int(modules) > 50
    assert float(highest) == 18


def test_the_changelog_begins_with_this_version():
    versions = re.findall(r"^## \[(\d.*?)\] - \d{4}-\d\d-\d\d$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert versions[0] == PROJECT["version"]
