"""Nothing that a config, a list or a prototxt says reaches a shell: hostile names build, or end in one clear error."""

import csv
import re
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
    "braces": "{output} {{x}} {wildcards.dataset} %s \\n",
    "umlauts": "Käfer ß 日本",
    "long": "x" * 200,
}
LONGER = {**HOSTILE, "dash": "-rf", "options": "--options={}", "newline": "a\ntouch pwned", "too_long": "ü" * 300}


def net_of(text: str) -> str:
    """A classifier whose layers and blobs have a text in their names."""
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
    """Images, a list, a net, weights and a config, all of which have a text in their names; returns the config."""
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
def test_a_workflow_whose_every_name_is_hostile_builds(tmp_path, text):
    config = write_files(tmp_path, text)
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config, allow_unicode=True), encoding="utf-8")
    code, output = workflows.snakemake(tmp_path)
    assert code == 0, output
    assert not list(tmp_path.rglob("pwned"))
    assert (tmp_path / "results/manifest.json").is_file()
    table = (tmp_path / "results/experiments/first/classify.csv").read_text(encoding="utf-8")
    assert " ".join(text.split()) in table.replace('""', '"')


def strings(schema: dict, root: dict, key: tuple = ()) -> list[tuple]:
    """The keys of all free texts of a JSON schema; of names, items and texts alike."""
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


def test_the_schema_has_the_texts_that_are_tried():
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
    """A copy of a config in which a text is at a key; what is there is replaced, what is missing is made."""
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
    """As each start of Snakemake checks a config; what a wrong text may cost is one InputError whose lines name the key."""
    folder, config = plain
    monkeypatch.chdir(folder)
    said = ""
    try:
        configuration.checked(with_text(config, key, text), "config.yaml", SCHEMA)
    except InputError as error:
        said = str(error)
    assert not said or re.match(rf"config\.yaml: {key[0]}\.", said)
    assert not list(folder.rglob("pwned"))
