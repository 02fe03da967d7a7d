"""Options on a command line: flags, or JSON as rules give it; both are checked against the model, all mistakes at once."""

import json

import pytest

from pipeline.command import step_parser
from pipeline.errors import InputError
from pipeline.options.dataset import DatabaseOptions, LabelOptions, ResizeOptions, ShardOptions
from pipeline.options.flags import read_flags
from pipeline.options.training import FeatureOptions, PrototxtOptions
from tests.pipeline.conftest import HOSTILE


def read(model, *words):
    return read_flags(step_parser("A step.", model).parse_args([str(word) for word in words]), model)


def problems(model, *words) -> list[str]:
    with pytest.raises(InputError) as raised:
        read(model, *words)
    return str(raised.value).splitlines()


def test_a_step_without_options_has_its_defaults():
    assert read(ResizeOptions) == ResizeOptions()
    assert ResizeOptions().size.height == 256


def test_flags_and_json_give_the_same_options():
    flags = ["--height", 20, "--width", 30, "--resize-mode", "fit", "--color", "gray"]
    options = {"size": {"height": 20, "width": 30}, "resize_mode": "fit", "color": "gray"}
    assert read(ResizeOptions, *flags) == read(ResizeOptions, "--options", json.dumps(options)) == ResizeOptions(**options)


def test_a_flag_overrides_json_and_later_json_adds_to_earlier():
    first, second = json.dumps({"size": {"height": 20}}), json.dumps({"size": {"width": 30}, "color": "gray"})
    options = read(ResizeOptions, "--options", first, "--options", second, "--color", "color")
    assert (options.size.height, options.size.width, options.color) == (20, 30, "color")


@pytest.mark.parametrize("text", HOSTILE)
def test_a_hostile_text_reaches_the_step_unchanged(text):
    options = {"features": [text, text], "feature_formats": ["npy"]}
    assert read(FeatureOptions, "--options", json.dumps(options)).features == [text, text]
    assert read(FeatureOptions, f"--features={text}").features == [text]


@pytest.mark.parametrize("text", ["", "{", "[1]", "3"])
def test_options_that_are_not_a_json_object_are_refused(text):
    with pytest.raises(InputError) as raised:
        read(ResizeOptions, "--options", text)
    assert raised.value.where == "--options"


def test_all_mistakes_are_shown_at_once_with_their_flags_and_the_nearest_name():
    given = json.dumps({"sise": {}, "resize_mode": "crp", "size": {"width": 9000}})
    assert sorted(problems(ResizeOptions, "--height", 0, "--options", given)) == [
        "--height: 0 is not between 1 and 8192",
        "--resize-mode: 'crp' is not one of squash, crop, fit; did you mean \"crop\"?",
        "--width: 9000 is not between 1 and 8192",
        'sise: unknown key; did you mean "size"?',
    ]


def test_bounds_are_checked_for_flags():
    assert problems(LabelOptions, "--val", "1.5") == ["--val: 1.5 is not between 0 and 1"]
    assert problems(LabelOptions, "--val", "nan")[0].startswith("--val: ")
    assert problems(PrototxtOptions, "--name", "e", "--model", "lenet", "--batch-size", "-3") == [
        "--batch-size: -3 is less than 0"
    ]


def test_an_option_without_a_default_is_required():
    assert problems(PrototxtOptions, "--model", "lenet") == ["--name is missing"]


def test_a_mapping_is_one_flag_that_takes_json():
    assert read(DatabaseOptions, "--augmentation", '{"rotation": 10}').augmentation.rotation == 10
    assert read(ShardOptions, "--list", "a.csv", "--columns", '{"url": "link"}').source.columns.url == "link"
    assert problems(DatabaseOptions, "--augmentation", '{"brightness": 3}') == [
        "--augmentation.brightness: 3 is not between 0 and 1"
    ]


def test_the_solver_is_one_flag_that_takes_any_field():
    options = read(PrototxtOptions, "--name", "e", "--model", "lenet", "--solver", '{"base_lr": 0.1, "type": "Adam"}')
    assert options.solver == {"base_lr": 0.1, "type": "Adam"}


def test_help_has_descriptions_defaults_and_choices(capsys):
    with pytest.raises(SystemExit):
        read(ResizeOptions, "--help")
    text = " ".join(capsys.readouterr().out.split())
    assert "--resize-mode {squash,crop,fit} `squash` both sides, center-`crop` the longer one" in text
    assert "(default: 256)" in text
