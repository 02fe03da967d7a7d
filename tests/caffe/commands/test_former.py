"""Command lines of 2014 and of tutorials: translated to today's with one warning, and run."""

import re

import pytest

import caffe
from caffe import cli
from caffe.commands import flags, former
from tests.caffe.commands.test_commands import NET, SOLVER


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The working folder of a command: a net, a solver that snapshots after 4 of 8 iterations, and weights."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.prototxt").write_text(NET)
    (tmp_path / "solver.prototxt").write_text(SOLVER + "snapshot: 4")
    net = caffe.Net("net.prototxt", caffe.TEST)
    net.params["ip"][0].data[...] = 7
    net.save("test.caffemodel")
    return tmp_path


@pytest.fixture
def run(folder, capfd):
    """run("train_net", …) gives the exit code and the lines on standard error, without the log."""

    def run_command(*words):
        code = cli.main(list(words))
        return code, [line for line in capfd.readouterr().err.splitlines() if not re.match(r"[IWE]\d{4} ", line)]

    return run_command


def ran(today):
    return [f"warning: not a command of today's Caffe; running: caffe {today}"]


@pytest.mark.parametrize(
    ("given", "today"),
    [
        ("train_net a.prototxt", "train -solver a.prototxt"),
        ("train_net a.prototxt b.solverstate", "train -solver a.prototxt -snapshot b.solverstate"),
        ("train_net a.prototxt -log_dir logs", "train -solver a.prototxt -log_dir logs"),
        ("train_net -solver=a.prototxt", "train -solver=a.prototxt"),
        ("finetune_net a.prototxt b", "train -solver a.prototxt -weights b"),
        ("test_net a b 10", "test -model a -weights b -iterations 10"),
        ("test_net a b 10 CPU", "test -model a -weights b -iterations 10"),
        ("test_net a b 10 GPU", "test -model a -weights b -iterations 10 -gpu 0"),
        ("test_net a b 10 GPU 1", "test -model a -weights b -iterations 10 -gpu 1"),
        ("net_speed_benchmark a", "time -model a"),
        ("net_speed_benchmark a 7 GPU 2", "time -model a -iterations 7 -gpu 2"),
        (
            "train --solver_proto_file=a --resume_point_file=b.solverstate",
            "train -solver=a -snapshot=b.solverstate",
        ),
        ("train --solver_proto_file a --pretrained_net_file b", "train -solver a -weights b"),
        ("--solver_proto_file=a train", "-solver=a train"),
        ("speedtest --net_proto_file=a --run_iterations=5", "time -model=a -iterations=5"),
        ("speedtest --net_proto_file=a --speedtest_with_gpu --device_id=1", "time -model=a -gpu 1"),
        ("speedtest --net_proto_file=a --speedtest_with_gpu", "time -model=a -gpu 0"),
        ("speedtest --net_proto_file=a --speedtest_with_gpu=false --device_id 1", "time -model=a"),
        ("devicequery --device_id=1", "device_query -gpu 1"),
        ("devicequery", "device_query"),
        ("train -solver a -weight b.caffemodel", "train -solver a -weights b.caffemodel"),
    ],
)
def test_a_command_line_of_2014_is_translated(given, today):
    assert former.translate(given.split()) == today.split()


@pytest.mark.parametrize(
    "words",
    [
        "train -solver a -weights b -gpu all",
        "-solver a train",
        "convert_imageset train/ list.txt db",
        "convert_imageset -backend lmdb train test time",
        "draw_net a b",
        "tarin",
    ],
)
def test_a_command_line_of_today_is_unchanged(words):
    assert former.translate(words.split()) == words.split()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("train_net", "0 arguments, but 1 are needed; use: caffe train -solver solver.prototxt"),
        ("finetune_net a", "1 arguments, but 2 are needed; use: caffe train -solver solver.prototxt -weights x.caffemodel"),
        (
            "test_net a b",
            "2 arguments, but 3 are needed; use: caffe test -model net.prototxt -weights x.caffemodel -iterations 50",
        ),
        ("net_speed_benchmark", "0 arguments, but 1 are needed; use: caffe time -model net.prototxt"),
        ("train_net a b c", "a b c, but these are too many arguments; use: caffe train -solver solver.prototxt"),
        ("test_net a b 1 GPU 0 1", "too many arguments"),
    ],
)
def test_missing_or_extra_arguments_are_answered_with_today_s_command(run, given, message):
    code, lines = run(*given.split())
    assert code == 1
    assert len(lines) == 1
    assert message in lines[0]


def test_train_net_trains_and_resumes(run, folder):
    assert run("train_net", "solver.prototxt") == (0, ran("train -solver solver.prototxt"))
    whole = (folder / "run_iter_8.caffemodel").read_bytes()
    (folder / "run_iter_8.caffemodel").unlink()
    assert run("train_net", "solver.prototxt", "run_iter_4.solverstate") == (
        0,
        ran("train -solver solver.prototxt -snapshot run_iter_4.solverstate"),
    )
    assert (folder / "run_iter_8.caffemodel").read_bytes() == whole


def test_the_flags_of_july_2014_train_and_resume(run, folder):
    assert run("train", "--solver_proto_file=solver.prototxt") == (0, ran("train -solver=solver.prototxt"))
    (folder / "run_iter_8.caffemodel").unlink()
    code, lines = run("train", "--solver_proto_file=solver.prototxt", "--resume_point_file=run_iter_4.solverstate")
    assert (code, lines) == (0, ran("train -solver=solver.prototxt -snapshot=run_iter_4.solverstate"))
    assert (folder / "run_iter_8.caffemodel").exists()


@pytest.mark.parametrize(
    "words",
    [
        ["finetune_net", "solver.prototxt", "test.caffemodel"],
        ["train", "-solver", "solver.prototxt", "-weight", "test.caffemodel"],
        ["train", "--solver=solver.prototxt", "--weight=test.caffemodel"],
    ],
)
def test_weights_given_as_in_2014_or_as_weight_are_copied(run, folder, words):
    (folder / "solver.prototxt").write_text(SOLVER.replace("max_iter: 8", "max_iter: 0"))
    code, lines = run(*words)
    assert (code, len(lines)) == (0, 1)
    assert re.match(
        r"warning: not a command of today's Caffe; running: caffe train --?solver[ =]solver.prototxt -weights", lines[0]
    )
    assert (caffe.Net("net.prototxt", "run_iter_0.caffemodel", caffe.TEST).params["ip"][0].data == 7).all()


def test_test_net_and_net_speed_benchmark_run(run):
    assert run("test_net", "net.prototxt", "test.caffemodel", "2", "CPU") == (
        0,
        ran("test -model net.prototxt -weights test.caffemodel -iterations 2"),
    )
    assert run("net_speed_benchmark", "net.prototxt", "1") == (0, ran("time -model net.prototxt -iterations 1"))


# ---- paths typed for Windows


@pytest.mark.parametrize("typed", [r".\solver.prototxt", "./solver.prototxt"])
def test_backslashes_separate_folders(run, folder, typed):
    assert run("train", f"--solver={typed}", "--weights", r".\test.caffemodel") == (0, [])
    assert (folder / "run_iter_8.caffemodel").exists()


def test_a_backslash_that_the_shell_dropped_is_warned_of(run, folder):
    # sh makes these of `--solver=.\solver.prototxt --weights .\test.caffemodel`.
    code, lines = run("train", "--solver=.solver.prototxt", "--weights", ".test.caffemodel")
    assert code == 0
    assert [line.partition(" (")[0] for line in lines] == [
        "warning: .solver.prototxt: no such file; reading solver.prototxt",
        "warning: .test.caffemodel: no such file; reading test.caffemodel",
    ]


def test_a_file_whose_name_has_a_backslash_or_a_dot_is_read_as_it_is(folder):
    for name in (r"nets\a.prototxt", ".solver.prototxt"):
        (folder / name).touch()
        assert flags.existing(name) == name
    assert flags.existing(r"nets\b.prototxt") == "nets/b.prototxt"
    assert flags.existing(".absent.prototxt") == ".absent.prototxt"
    assert flags.files(r".\a.caffemodel,sub\b.caffemodel") == "./a.caffemodel,sub/b.caffemodel"


def test_a_file_to_write_is_never_another_file_s_name(run, folder):
    # A hidden file is asked for, and net.prototxt is not overwritten.
    (folder / "old.prototxt").write_text(NET)
    assert run("upgrade_net_proto_text", "old.prototxt", ".net.prototxt")[0] == 0
    assert (folder / ".net.prototxt").exists()
    assert (folder / "net.prototxt").read_text() == NET


def test_a_snapshot_of_the_other_format_is_read_with_a_warning(run, folder):
    (folder / "solver.prototxt").write_text(SOLVER + "snapshot: 4 snapshot_format: HDF5")
    assert run("train", "-solver", "solver.prototxt")[0] == 0
    (folder / "run_iter_8.solverstate.h5").unlink()
    code, lines = run("train", "-solver", "solver.prototxt", "-snapshot", "run_iter_4.solverstate")
    assert (code, lines) == (0, ["warning: run_iter_4.solverstate: no such file; reading run_iter_4.solverstate.h5"])
    assert (folder / "run_iter_8.solverstate.h5").exists()


def test_a_missing_snapshot_is_named_as_typed(run, folder):
    code, lines = run("train", "-solver", "solver.prototxt", "-snapshot", "run_iter_9.solverstate")
    assert code == 1
    assert lines[-1].startswith("error: run_iter_9.solverstate: no such file")


def test_backslashes_separate_nested_folders(run, folder):
    (folder / "models/finetune").mkdir(parents=True)
    (folder / "test.caffemodel").rename(folder / "models/finetune/test.caffemodel")
    code, lines = run("train", "-solver", "solver.prototxt", "-weights", r"models\finetune\test.caffemodel")
    assert (code, lines) == (0, [])
