"""The built package: a net and the command run from it in an empty folder."""

import os
import shutil
import subprocess
import sys

from tests.conftest import ROOT

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
    for name in ("caffe", "pipeline"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md"):
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
