"""Log events: each has a source line and a text, is used, and is logged in glog's format."""

import re
from pathlib import Path

import pytest

import caffe
from caffe import events

PACKAGE = Path(caffe.__file__).parent
SOURCES = {path: path.read_text() for path in PACKAGE.rglob("*.py")}
ALL = {
    name: list(value.values()) if isinstance(value, dict) else [value]
    for name, value in vars(events).items()
    if isinstance(value, (events.Event, dict)) and not name.startswith("_")
}


@pytest.fixture
def logged(tmp_path):
    """logged(function, …) returns the lines logged while it runs, without date, time and process id."""

    def lines(function, *arguments):
        log = tmp_path / "log"
        log.unlink(missing_ok=True)
        with caffe.log_to_file(log, stderr=False):
            function(*arguments)
        return [re.sub(r"^([IWE])\d{4} \d\d:\d\d:\d\d\.\d{6} +\d+ ", r"\1 ", line) for line in log.read_text().splitlines()]

    return lines


def test_every_event_is_logged_by_the_engine_or_a_command():
    used = {name for path, text in SOURCES.items() if path.name != "events.py" for name in re.findall(r"\bevents\.(\w+)", text)}
    assert set(ALL) - used == set()


def test_source_lines_and_texts_of_the_log_are_only_in_events():
    pattern = re.compile(r"\w+\.[ch]pp:\d|glog\.(write|info|warning|error)\(")
    assert {path.name for path, text in SOURCES.items() if pattern.search(text)} == {"events.py", "glog.py"}


@pytest.mark.parametrize("name", sorted(ALL))
def test_an_event_has_a_source_line_and_takes_one_value_per_field_of_its_text(name, logged):
    for event in ALL[name]:
        assert re.fullmatch(r"\w+\.[ch]pp:[1-9]\d*", event.place)
        values = [0.5 + position for position in range(event.text.count("{"))]
        assert logged(event, *values) == f"{'IWE'[event.severity]} {event.place}] {event.text.format(*values)}".split("\n")
        if values:
            with pytest.raises(IndexError):
                logged(event, *values[1:])


def test_values_are_formatted_as_in_bvlc_caffes_log(logged):
    assert logged(events.layer_created, "conv1") == ["I net.cpp:86] Creating Layer conv1"]
    assert logged(events.loss_weighted, 0.25) == ["I net.cpp:134]     with loss weight 0.25"]
    assert logged(events.gpu_used["test"], 1) == ["I caffe.cpp:270] Use GPU with device ID 1"]
    assert logged(events.file_latest["upgrade_net_proto_binary"], "a{b}") == [
        "E upgrade_net_proto_binary.cpp:42] File already in latest proto format: a{b}"
    ]
