"""No text of a config, a list or a prototxt reaches a shell: hostile names build, or fail with one clear error."""

import csv
import hashlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import cv2
import pytest
import yaml

import caffe
from caffe.proto import caffe_pb2
from pipeline import configuration
from pipeline.errors import InputError
from tests import standins, workflows
from tests.conftest import ROOT

SCHEMA = ROOT / "config/schema.yaml"
HOSTILE = {
    "command": "$(touch pwned) '\"; touch pwned #",
    "spaces": "two  words `touch pwned` && touch pwned | tee pwned > pwned",
    "escapes": "%s \\n \\x41 $'x' $HOME !! ~ * ? [a-z]",
    "umlauts": "Käfer ß 日本",
    "long": "x" * 200,
}
LONGER = {
    **(HOSTILE | {"braces": "{output.images} {wildcards.dataset} {0!r}", "dash": "-rf", "options": "--options={}"}),
    **{"newline": "a\ntouch pwned", "too_long": "ü" * 300},
}


def net_of(text: str) -> str:
    """A classifier whose layers and blobs have `text` in their names."""
    net = caffe_pb2.NetParameter(name=text)
    data = net.layer.add(name=f"data {text}", type="Input", top=["data"])
    data.input_param.shape.add().dim.extend([1, 3, 16, 16])
    hidden = net.layer.add(name=f"hidden {text}", type="InnerProduct", bottom=["data"], top=[f"blob {text}"])
    hidden.inner_product_param.num_output = 4
    hidden.inner_product_param.weight_filler.type = "xavier"
    last = net.layer.add(name=f"last {text}", type="InnerProduct", bottom=[f"blob {text}"], top=["scores"])
    last.inner_product_param.num_output = 2
    last.inner_product_param.weight_filler.type = "xavier"
    net.layer.add(name="prob", type="Softmax", bottom=["scores"], top=["prob"])
    return net


def write_files(folder: Path, text: str) -> dict:
    """Write images, a list, a net and weights, all with `text` in their names; returns a config that uses them."""
    root, shown = folder / f"root {text}"[:200], folder / f"shown {text}"[:200]
    for directory in (root / text, shown):
        directory.mkdir(parents=True)
    with (folder / f"l {text}.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow([f"path {text}", f"class {text}"])
        for number in range(12):
            name = f"{text}/{number}.png"
            content = cv2.imencode(".png", standins.picture(number % 2, number, 20))[1].tobytes()
            (root / name).write_bytes(content)
            (shown / f"{number % 2}{text}.png").write_bytes(content)
            table.writerow([name, f"{'ab'[number % 2]} {text}"])
    net = net_of(text)
    caffe.write_prototxt(folder / f"n {text}.prototxt", net)
    made = caffe.Net(net, caffe.TEST)
    made.save(str(folder / f"w {text}.caffemodel"))
    made.close()
    solver = {"max_iter": 2, "test_interval": 1, "display": 1}
    common = {"dataset": "d", "model": f"n {text}.prototxt", "batch_size": 4}
    weights = {"weights": {"file": f"w {text}.caffemodel"}}
    return {
        "datasets": {
            "d": {
                "source": {
                    **{"list": f"l {text}.csv", "root": root.name},
                    "columns": {"path": f"path {text}", "label": f"class {text}"},
                },
                "size": {"height": 16, "width": 16},
                "split": {"by": "fraction", "val": 0.34},
                "augmentation": {"brightness": 0.1},
            }
        },
        "experiments": {
            "first": {
                **(common | weights | {"solver": solver, "skip_layers": [f"hidden {text}"]}),
                **{"features": [f"blob {text}"], "feature_formats": ["npy"]},
                "classify": {"images": shown.name},
                "pictures": {"images": shown.name, "count": 1},
            },
            "second": {**(common | weights), "strategy": "features", "features_from": f"blob {text}", "pictures": {"count": 0}},
            "third": {**(common | weights | {"solver": solver}), "freeze_to": f"hidden {text}", "pictures": {"count": 0}},
        },
    }


@pytest.mark.parametrize(
    "text", [HOSTILE["command"], *(pytest.param(HOSTILE[n], marks=pytest.mark.long) for n in list(HOSTILE)[1:])]
)
def test_a_workflow_with_only_hostile_names_builds(tmp_path, text):
    config = write_files(tmp_path, text)
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config, allow_unicode=True), encoding="utf-8")
    code, output = workflows.snakemake(tmp_path)
    assert code == 0, output
    assert not list(tmp_path.rglob("pwned"))
    assert (tmp_path / "results/manifest.json").is_file()
    table = (tmp_path / "results/experiments/first/classify.csv").read_text(encoding="utf-8")
    assert " ".join(text.split()) in table.replace('""', '"')


SHA256 = hashlib.sha256(b"net").hexdigest()


def other_config(text: str) -> tuple[dict, list[str]]:
    """A config with `text` in the keys that `write_files` leaves out, and the files that it names."""
    names = {key: f"{key} {text}"[:200] for key in ("folder", "names", "train", "val", "list", "labels", "crop", "one", "two")}
    config = {
        "datasets": {
            "f": {"source": {"folder": names["folder"], "val_labels": names["labels"]}},
            "n": {
                "source": {"list": f"{names['list']}.csv", "columns": dict.fromkeys(("url", "group", "split", "sha256"), text)},
                "names": names["names"],
                "split": {"by": "fraction"},
            },
            "d": {"source": {"database": {"train": names["train"], "val": names["val"]}}, "names": names["names"]},
            "p": {"source": {"published": "mnist", "copy": names["folder"]}},
        },
        "experiments": {
            "e": {
                **{"dataset": "n", "model": "lenet", "export": {"crop": names["crop"]}, "pictures": {"count": 0}},
                "weights": [
                    {"file": names["one"]},
                    {"file": names["two"]},
                    {"url": f"http://x/{text}", "sha256": hashlib.sha256(b"net").hexdigest()},
                ],
            }
        },
    }
    others = [name for key, name in names.items() if key not in ("folder", "list")]
    return config, [f"{names['folder']}/train/a/1.jpg", f"{names['list']}.csv", *others]


PYTHON = """\
#!/bin/bash
# In the place of python: notes its arguments, one a line in JSON, and does nothing.
exec {python} -c 'import json, sys; print(json.dumps(sys.argv[1:]))' "$@" >>{noted}
"""


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_every_command_passes_a_hostile_text_within_one_argument(tmp_path, text):
    config, files = other_config(text)
    for name in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config, allow_unicode=True), encoding="utf-8")
    code, output = workflows.snakemake(tmp_path, "-n", "--printshellcmds")
    assert code == 0, output
    commands = [line.partition("Shell command: ")[2] for line in output.splitlines() if "python -m pipeline." in line]
    assert {re.search(r"pipeline\.([\w.]+)", line)[1] for line in commands} >= {
        *("sources.shards", "sources.databases", "sources.published", "training.initial_weights"),
    }
    noted, fake = tmp_path / "noted", tmp_path / "bin/python"
    fake.parent.mkdir()
    fake.write_text(PYTHON.format(python=sys.executable, noted=noted))
    fake.chmod(0o755)
    environment = {**os.environ, "PATH": f"{fake.parent}:{os.environ['PATH']}"}
    for line in commands:
        (tmp_path / "logs").mkdir(exist_ok=True)
        subprocess.run(["bash", "-euo", "pipefail", "-c", line.split(" 2>&1")[0]], cwd=tmp_path, env=environment, check=True)
    given = [json.loads(line) for line in noted.read_text().splitlines()]
    assert len(given) == len(commands)
    words = {word for words in given for word in words}
    assert {f"train {text}"[:200], f"val {text}"[:200]} <= words  # the databases, as inputs
    options = [json.loads(words[words.index("--options") + 1]) for words in given if "--options" in words]
    assert any(one.get("source", {}).get("folder") == f"folder {text}"[:200] for one in options)
    assert any(one.get("url") == f"http://x/{text}" for one in options)
    assert not list(tmp_path.rglob("pwned"))


def strings(schema: dict, root: dict, key: tuple = ()) -> list[tuple]:
    """The keys of all free-text values of a JSON schema, including names and items."""
    if "$ref" in schema:
        schema = root["$defs"][schema["$ref"].rsplit("/", 1)[1]]
    found = [key] if "string" in ([schema["type"]] if isinstance(schema.get("type"), str) else schema.get("type", [])) else []
    for name, part in schema.get("properties", {}).items():
        found += strings(part, root, (*key, name))
    for part in ("items", "else", "additionalProperties"):
        if isinstance(schema.get(part), dict):
            found += strings(schema[part], root, (*key, {"items": 0, "additionalProperties": "*"}.get(part, part)))
    return found


TEXTS = strings(yaml.safe_load(SCHEMA.read_text()), yaml.safe_load(SCHEMA.read_text()))


def test_the_schema_has_the_free_text_keys_that_are_tested():
    keys = {key[2:] for key in TEXTS}
    assert {
        ("source", "list"),
        ("source", "columns", "label"),
        ("freeze_to",),
        ("features", 0),
        ("weights", "else", "file"),
    } <= keys
    assert len(TEXTS) >= 25


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """A folder with the files of a config, and the config."""
    folder = tmp_path_factory.mktemp("plain")
    return folder, write_files(folder, "plain")


def with_text(value: object, key: tuple, text: str) -> object:
    """A copy of a config with `text` at a key; an existing value is replaced, missing parts are created."""
    if not key:
        return text
    word, rest = key[0], key[1:]
    if word == "else":
        return with_text(value, rest, text)
    if word == 0:
        return [with_text(None, rest, text)]
    value = dict(value) if isinstance(value, dict) else {}
    word = next(iter(value)) if word == "*" else word
    return value | {word: with_text(value.get(word), rest, text)}


@pytest.mark.parametrize("key", TEXTS, ids=lambda key: ".".join(map(str, key)))
@pytest.mark.parametrize("text", LONGER.values(), ids=LONGER)
def test_a_hostile_text_in_any_key_is_accepted_or_refused_in_clear_lines(plain, monkeypatch, key, text):
    """Checked as at each start of Snakemake; an invalid text may cause only an InputError whose lines name the key."""
    folder, config = plain
    monkeypatch.chdir(folder)
    said = ""
    try:
        configuration.check_config(with_text(config, key, text), "config.yaml")
    except InputError as error:
        said = str(error)
    assert not said or re.match(rf"config\.yaml: {key[0]}\.", said)
    assert not list(folder.rglob("pwned"))
