"""The command `caffe`: its flags, its log, its signals, and its exit codes."""

import csv
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from google.protobuf import text_format

import caffe
from caffe import cli, preflight
from caffe.proto import caffe_pb2
from tests.conftest import GOLDEN, SHARED, needs_shared

NET = """
name: "small"
layer { name: "data" type: "DummyData" top: "data" top: "label" dummy_data_param {
  shape { dim: 8 dim: 3 dim: 6 dim: 6 } shape { dim: 8 }
  data_filler { type: "gaussian" } data_filler { type: "constant" value: 1 } } }
layer { name: "conv1" type: "Convolution" bottom: "data" top: "conv1"
  convolution_param { num_output: 4 kernel_size: 3 weight_filler { type: "xavier" } } }
layer { name: "ip" type: "InnerProduct" bottom: "conv1" top: "ip"
  inner_product_param { num_output: 3 weight_filler { type: "xavier" } } }
layer { name: "accuracy" type: "Accuracy" bottom: "ip" bottom: "label" top: "accuracy" include { phase: TEST } }
layer { name: "loss" type: "SoftmaxWithLoss" bottom: "ip" bottom: "label" top: "loss" }
layer { name: "extra" type: "Power" bottom: "label" top: "extra" include { stage: "more" min_level: 2 } }
"""
SOLVER = """
net: "net.prototxt" test_iter: 3 test_interval: 4 display: 2 random_seed: 1 max_iter: 8 snapshot_prefix: "run"
base_lr: 0.05 momentum: 0.9 lr_policy: "fixed" solver_mode: CPU
"""
LINE = re.compile(r"^[IWE]\d{4} \d\d:\d\d:\d\d\.\d{6} +\d+ (\S+:\d+)\] (.*)$")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The working folder of a command, with a net and its solver; logging is on."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GLOG_minloglevel", "0")
    (tmp_path / "net.prototxt").write_text(NET)
    (tmp_path / "solver.prototxt").write_text(SOLVER)
    return tmp_path


@pytest.fixture
def run(folder, capsys):
    """run("train", "-solver", …) gives the exit code, the log's messages, and what else was written."""

    def run_command(*arguments):
        code = cli.main(list(arguments))
        out, err = capsys.readouterr()
        messages = [found[2] for found in map(LINE.match, err.splitlines()) if found]
        rest = out + "".join(f"{line}\n" for line in err.splitlines() if not LINE.match(line))
        return code, messages, rest

    return run_command


def weights(path, layer="ip"):
    net = caffe.Net("net.prototxt", caffe.TEST, weights=str(path))
    return net.params[layer][0].data.copy()


@pytest.mark.parametrize("flags", [["--solver=solver.prototxt"], ["-solver", "solver.prototxt"], ["-solver=solver.prototxt"]])
def test_train_accepts_every_spelling_of_a_flag(run, flags, folder):
    code, messages, _ = run("train", *flags)
    assert code == 0
    assert messages[0] == "Use CPU."
    assert messages[-1] == "Optimization Done."
    assert "Starting Optimization" in messages
    assert [m for m in messages if m.startswith("Iteration") and "lr" in m] == [f"Iteration {i}, lr = 0.05" for i in (0, 2, 4, 6)]
    assert (folder / "run_iter_8.caffemodel").exists()


def test_flags_may_precede_the_command(run):
    assert run("-solver", "solver.prototxt", "train")[0] == 0


def test_logging_flags_are_accepted_by_every_command(run):
    code, messages, _ = run("upgrade_net_proto_text", "--logtostderr=1", "net.prototxt", "-alsologtostderr", "new.prototxt")
    assert (code, messages[-1]) == (0, "Wrote upgraded NetParameter text proto to new.prototxt")
    assert run("train", "-solver", "solver.prototxt", "-minloglevel", "1")[1] == []
    caffe.init_log()


def test_flags_of_another_command_are_ignored_with_a_message(run, folder):
    code, messages, _ = run("train", "-solver", "solver.prototxt", "-iterations", "3", "--phase=TRAIN")
    assert (code, messages[:2]) == (0, ["-iterations has no effect in caffe train", "-phase has no effect in caffe train"])
    assert (folder / "run_iter_8.caffemodel").exists()
    with pytest.raises(SystemExit):
        run("train", "-solver", "solver.prototxt", "-gemmOpt=0")


@pytest.mark.parametrize("command", [["train", "-solver", "solver.prototxt"], ["time", "-model", "net.prototxt"]])
@pytest.mark.parametrize(("flag", "found"), [("0", "no CUDA device"), ("all", "no CUDA device")])
def test_a_missing_gpu_is_an_error(run, command, flag, found):
    import torch

    if torch.cuda.is_available():
        flag, found = "999", "-gpu 999: no GPU 999"
    code, _, rest = run(*command, "-gpu", flag)
    assert code == 1
    assert found in rest


def test_train_copies_weights_from_several_files(run, folder):
    for layer, value in (("conv1", 2.0), ("ip", 3.0)):
        model = caffe_pb2.NetParameter()
        net = caffe.Net("net.prototxt", caffe.TEST)
        model.layer.add(name=layer, type="any", blobs=[blob.to_proto() for blob in net.params[layer]])
        model.layer[0].blobs[0].data[:] = [value] * len(model.layer[0].blobs[0].data)
        (folder / f"{layer}.caffemodel").write_bytes(model.SerializeToString())
    (folder / "solver.prototxt").write_text(SOLVER.replace("max_iter: 8", "max_iter: 0"))
    code, messages, _ = run("train", "-solver", "solver.prototxt", "-weights", "conv1.caffemodel,ip.caffemodel")
    assert code == 0
    assert [m for m in messages if "Finetuning" in m][:2] == ["Finetuning from conv1.caffemodel", "Finetuning from ip.caffemodel"]
    assert (weights("run_iter_0.caffemodel", "conv1") == 2).all()
    assert (weights("run_iter_0.caffemodel", "ip") == 3).all()


def test_train_resumes_from_a_snapshot(run, folder):
    (folder / "solver.prototxt").write_text(SOLVER + "snapshot: 6")
    run("train", "-solver", "solver.prototxt")
    code, messages, _ = run("train", "-solver", "solver.prototxt", "-snapshot", "run_iter_6.solverstate")
    assert code == 0
    assert "Resuming from run_iter_6.solverstate" in messages
    assert [m[:11] for m in messages if "iter/s" in m] == ["Iteration 6"]


def test_train_refuses_a_snapshot_and_weights_together(run):
    code, _, rest = run("train", "-solver", "solver.prototxt", "-snapshot", "a", "-weights", "b")
    assert code == 1
    assert "both -snapshot and -weights" in rest


@pytest.mark.parametrize("suffix", ["", ".h5"])
def test_a_file_given_to_the_other_flag_is_answered_with_that_flag(run, suffix):
    code, _, rest = run("train", "-solver", "solver.prototxt", "-snapshot", f"a/run_iter_8.caffemodel{suffix}")
    assert code == 1
    assert f"use -weights a/run_iter_8.caffemodel{suffix} to start" in rest
    assert f"-snapshot a/run_iter_8.solverstate{suffix} to resume" in rest
    code, _, rest = run("train", "-solver", "solver.prototxt", "-weights", f"a.caffemodel,run_iter_8.solverstate{suffix}")
    assert code == 1
    assert f"use -snapshot run_iter_8.solverstate{suffix} to resume" in rest


@pytest.mark.parametrize("flag", ["-snapshot", "-weights"])
def test_a_missing_file_to_start_from_is_named_before_a_net_is_built(run, folder, flag):
    suffix = {"-snapshot": "solverstate", "-weights": "caffemodel"}[flag]
    (folder / f"run_iter_6.{suffix}").touch()
    code, messages, rest = run("train", "-solver", "solver.prototxt", flag, f"run_iter_9.{suffix}")
    assert code == 1
    assert f'run_iter_9.{suffix}: no such file (relative to {folder}); did you mean "run_iter_6.{suffix}"?' in rest
    assert not [message for message in messages if "Creating" in message]


def test_train_warns_of_labels_order_and_inputs_and_goes_on(run, folder):
    with caffe.db.DatabaseWriter("sorted", "lmdb") as put:
        for number in range(120):
            pixels = np.random.default_rng(number).integers(0, 256, (3, 6, 6)).astype(np.uint8)
            put(b"%08d" % number, caffe.io.array_to_datum(pixels, number // 60).SerializeToString())
    layer = (
        'layer { name: "data" type: "Data" top: "data" top: "label" data_param { source: "sorted" batch_size: 8 backend: LMDB } }'
    )
    net = layer + NET.split("value: 1 } } }")[1]
    (folder / "net.prototxt").write_text(net)
    (folder / "solver.prototxt").write_text(SOLVER.replace("base_lr: 0.05", "base_lr: 0"))

    def warned():
        code, messages, _ = run("train", "-solver", "solver.prototxt")
        assert (code, messages[-1]) == (0, "Optimization Done.")
        return [message for message in messages if "preflight" in message]

    labels, order, inputs = warned()
    assert labels.startswith('sorted: labels 0 to 1, and layer "ip" has 3 outputs')
    assert order.startswith("sorted: not shuffled: of the first 120 records, 118 have the label of the record before")
    assert "convert_imageset -shuffle" in order
    assert inputs.startswith('sorted: layer "data": inputs reach 255, with no mean subtracted and no scale')
    assert inputs.endswith("(roastery preflight solver.prototxt checks more.)")
    (folder / "net.prototxt").write_text(net.replace("num_output: 3", "num_output: 2"))
    assert len(warned()) == 2


def test_trains_look_at_the_records_is_short_and_changes_nothing(run, folder, monkeypatch):
    with caffe.db.DatabaseWriter("large", "lmdb") as put:
        pixels = np.zeros((3, 256, 256), np.uint8)
        for number in range(1500):
            put(b"%08d" % number, caffe.io.array_to_datum(pixels, number % 3).SerializeToString())
    layer = 'layer { name: "data" type: "Data" top: "data" top: "label" transform_param { crop_size: 6 scale: 0.01 } '
    layer += 'data_param { source: "large" batch_size: 8 backend: LMDB } }'
    (folder / "net.prototxt").write_text(layer + NET.split("value: 1 } } }")[1])
    read = []
    whole = preflight.read_records
    monkeypatch.setattr(preflight, "read_records", lambda *arguments: read.append(whole(*arguments)) or read[-1])
    solver = caffe.get_solver("solver.prototxt")
    state, started = solver.net.layers[0].rng.state, time.monotonic()
    assert preflight.quick(solver) == []
    assert time.monotonic() - started < 2
    assert all(0 < len(records["data"].labels) <= preflight.QUICK_RECORDS for records in read)
    assert solver.net.layers[0].rng.state == state
    solver.close()


def test_level_and_stage_select_layers(run):
    for flags, there in ((["-stage", "other,more", "-level", "2"], True), (["-stage", "more", "-level", "1"], False)):
        _, messages, _ = run("train", "-solver", "solver.prototxt", *flags)
        assert ("Creating Layer extra" in messages) == there


@pytest.mark.parametrize(
    "command", [["train"], ["test", "-model", "net.prototxt"], ["time", "-model", "net.prototxt", "-phase", "X"]]
)
def test_a_missing_or_wrong_flag_is_named(run, command, capsys):
    with pytest.raises(SystemExit) as end:
        run(*command)
    assert end.value.code == 2
    assert f"caffe {command[0]}: error:" in capsys.readouterr().err


# ---- signals


def start_endless_training(folder, *flags):
    """Start `caffe train` as a process that runs until it is stopped; return it once it is training."""
    (folder / "solver.prototxt").write_text(SOLVER.replace("max_iter: 8", "max_iter: 100000000"))
    command = [sys.executable, "-m", "caffe", "train", "-solver", "solver.prototxt", *flags]
    process = subprocess.Popen(command, cwd=folder, stderr=subprocess.PIPE, text=True)
    wait_for(process, "Iteration 2 ")
    return process


def wait_for(process, text):
    for line in process.stderr:
        if text in line:
            return line
    raise AssertionError(f"the process ended without {text!r}")


def stop(process):
    process.kill()
    process.stderr.close()
    process.wait()


def test_an_interrupt_stops_training_with_a_snapshot(folder):
    process = start_endless_training(folder)
    process.send_signal(signal.SIGINT)
    try:
        line = wait_for(process, "Snapshotting to binary proto file")
        wait_for(process, "Optimization stopped early.")
        process.stderr.read()
        assert process.wait(30) == 0
    finally:
        stop(process)
    assert (folder / line.split()[-1]).exists()


def test_sighup_takes_a_snapshot_and_training_continues(folder):
    process = start_endless_training(folder)
    try:
        process.send_signal(signal.SIGHUP)
        number = int(re.search(r"run_iter_(\d+)", wait_for(process, "Snapshotting to binary proto file"))[1])
        later = int(re.search(r"Iteration (\d+) \(", wait_for(process, "iter/s"))[1])
        assert later >= number
    finally:
        stop(process)
    assert (folder / f"run_iter_{number}.caffemodel").exists()


def test_signals_with_effect_none_are_ignored(folder):
    process = start_endless_training(folder, "-sigint_effect", "none", "-sighup_effect=none")
    try:
        process.send_signal(signal.SIGINT)
        process.send_signal(signal.SIGHUP)
        time.sleep(0.2)
        wait_for(process, "iter/s")
        assert process.poll() is None
    finally:
        stop(process)
    assert not list(folder.glob("run_iter_*"))


# ---- test and time


def test_test_logs_every_batch_and_the_means(run, folder):
    run("train", "-solver", "solver.prototxt")
    code, messages, _ = run("test", "-model", "net.prototxt", "-weights", "run_iter_8.caffemodel", "-iterations", "5")
    assert code == 0
    begin = messages.index("Running for 5 iterations.")
    batches = [re.fullmatch(r"Batch (\d), (\w+) = (\S+)", m) for m in messages[begin + 1 : begin + 11]]
    assert [(b[1], b[2]) for b in batches] == [(str(i), name) for i in range(5) for name in ("accuracy", "loss")]
    accuracy, loss = (np.mean([float(b[3]) for b in batches if b[2] == name]) for name in ("accuracy", "loss"))
    assert float(messages[begin + 11].removeprefix("Loss: ")) == pytest.approx(loss, rel=1e-4)
    assert float(messages[begin + 12].removeprefix("accuracy = ")) == pytest.approx(accuracy, rel=1e-4)
    mean = re.fullmatch(r"loss = (\S+) \(\* 1 = (\S+) loss\)", messages[begin + 13])
    assert float(mean[1]) == float(mean[2]) == pytest.approx(loss, rel=1e-4)


@pytest.mark.parametrize("deploy", [False, True])
def test_time_measures_every_layer_on_the_cpu(run, folder, deploy):
    if deploy:
        text = (
            'input: "data" input_shape { dim: 2 dim: 3 dim: 6 dim: 6 }'
            + NET[NET.index('layer { name: "conv1"') : NET.index('layer { name: "accuracy"')]
        )
        (folder / "net.prototxt").write_text(text)
    code, messages, _ = run("time", "-model", "net.prototxt", "-iterations", "3")
    assert code == 0
    assert [m for m in messages if m.startswith("Iteration: ")] != []
    layers = [re.fullmatch(r" *(\w+)\t(forward|backward): (\S+) ms\.", m) for m in messages]
    layers = [(found[1], found[2], float(found[3])) for found in layers if found]
    names = ["input" if deploy else "data", "conv1", "ip"] + ([] if deploy else ["loss"])
    assert [layer[:2] for layer in layers] == [(name, way) for name in names for way in ("forward", "backward")]
    assert all(took > 0.005 for name, _, took in layers if name in ("conv1", "ip"))
    figures = dict(re.fullmatch(r"(Average [\w -]+|Total Time): (\S+) ms\.", m).groups() for m in messages[-5:-1])
    assert list(figures) == ["Average Forward pass", "Average Backward pass", "Average Forward-Backward", "Total Time"]
    forward, backward, both, total = map(float, figures.values())
    assert both == pytest.approx(forward + backward, rel=1e-3)
    assert total == pytest.approx(3 * both, rel=1e-3)


@pytest.mark.parametrize("command", [["test", "-weights", "w.caffemodel"], ["time"]])
def test_fewer_than_one_iteration_is_an_error(run, command):
    code, _, rest = run(*command, "-model", "net.prototxt", "-iterations", "0")
    assert code == 1
    assert f"error: caffe {command[0]}: -iterations 0, but it must be at least 1" in rest


def test_device_query_names_the_gpu_or_reports_that_there_is_none(run):
    import torch

    code, messages, rest = run("device_query")
    if torch.cuda.is_available():
        assert code == 0
        assert f"Name:                          {torch.cuda.get_device_name(0)}" in messages
    else:
        assert code == 1
        assert "PyTorch finds no CUDA device" in rest


# ---- files


def test_upgraded_files_equal_those_of_bvlc_caffes_tools(run, folder):
    old, new = GOLDEN / "upgrade/handwritten_v0.v0.prototxt", GOLDEN / "upgrade/handwritten_v0.upgraded.prototxt"
    wanted = text_format.Parse(new.read_text(), caffe_pb2.NetParameter())
    code, messages, _ = run("upgrade_net_proto_text", str(old), "new.prototxt")
    assert (code, messages[-1]) == (0, "Wrote upgraded NetParameter text proto to new.prototxt")
    assert text_format.Parse((folder / "new.prototxt").read_text(), caffe_pb2.NetParameter()) == wanted

    (folder / "old.caffemodel").write_bytes(text_format.Parse(old.read_text(), caffe_pb2.NetParameter()).SerializeToString())
    code, messages, _ = run("upgrade_net_proto_binary", "old.caffemodel", "new.caffemodel")
    assert (code, messages[-1]) == (0, "Wrote upgraded NetParameter binary proto to new.caffemodel")
    assert caffe_pb2.NetParameter.FromString((folder / "new.caffemodel").read_bytes()) == wanted

    (folder / "old_solver.prototxt").write_text('net: "a" solver_type: ADAM')
    assert run("upgrade_solver_proto_text", "old_solver.prototxt", "new_solver.prototxt")[0] == 0
    assert (folder / "new_solver.prototxt").read_text() == 'net: "a"\ntype: "Adam"\n'


def test_upgrading_keeps_a_current_file_and_fails_for_an_unused_v0_field(run, folder):
    code, messages, _ = run("upgrade_net_proto_text", "net.prototxt", "same.prototxt")
    assert (code, messages[0]) == (0, "File already in latest proto format: net.prototxt")
    (folder / "odd.prototxt").write_text('input: "x" layers { layer { name: "r" type: "relu" pad: 1 } bottom: "x" top: "r" }')
    code, messages, _ = run("upgrade_net_proto_text", "odd.prototxt", "new.prototxt")
    assert code == 1
    assert "Unknown parameter pad for layer type relu" in messages


def test_draw_net_writes_a_graph(run, folder):
    code, _, rest = run("draw_net", "net.prototxt", "net.dot", "--rankdir", "TB", "--phase=TRAIN")
    assert (code, rest) == (0, "Drawing net to net.dot\n")
    text = (folder / "net.dot").read_text()
    assert "rankdir=TB" in text
    assert "conv1(Convolution) kernel size: 3" in text
    assert "accuracy" not in text


def rows(path, **options):
    with Path(path).open(newline="") as file:
        return list(csv.DictReader(file, **options))


def test_parse_log_reads_our_own_log(run, folder):
    run("train", "-solver", "solver.prototxt", "-log_dir", "logs")
    log = folder / "logs/caffe.INFO"
    assert log.readlink().name.startswith("caffe.")
    assert run("parse_log", str(log), ".")[0] == 0
    train, test = rows(f"{log.name}.train"), rows(f"{log.name}.test")
    assert list(train[0]) == ["NumIters", "Seconds", "LearningRate", "loss"]
    assert list(test[0]) == ["NumIters", "Seconds", "LearningRate", "accuracy", "loss"]
    assert [float(row["NumIters"]) for row in train] == [0, 2, 4, 6]
    assert [float(row["NumIters"]) for row in test] == [0, 4, 8]
    assert all(float(row["LearningRate"]) == 0.05 for row in (*train, *test))
    seconds = [float(row["Seconds"]) for row in train]
    assert seconds == sorted(seconds)


@needs_shared
def test_parse_log_reads_a_bvlc_caffe_log(run):
    run("parse_log", str(SHARED / "golden/train/caffe_train.log"), ".", "--delimiter", ";")
    train = rows("caffe_train.log.train", delimiter=";")
    test = rows("caffe_train.log.test", delimiter=";")
    assert len(train) == 200
    assert train[0] == {"NumIters": "0.0", "Seconds": "1.81778", "LearningRate": "0.01", "loss": "2.40561"}
    assert [(row["NumIters"], row["accuracy"], row["loss"]) for row in test] == [
        ("0.0", "0.0997", "2.36552"),
        ("100.0", "0.9184", "0.271254"),
        ("200.0", "0.9218", "0.250629"),
    ]


LOG_OF_2014 = """\
I0706 10:00:00.000000  1234 solver.cpp:41] Solving CIFAR10_quick_train
I0706 10:00:00.500000  1234 solver.cpp:106] Iteration 0, Testing net
I0706 10:00:01.000000  1234 solver.cpp:142] Test score #0: 0.1018
I0706 10:00:01.000000  1234 solver.cpp:142] Test score #1: 2.30248
I0706 10:00:31.500000  1234 solver.cpp:237] Iteration 100, lr = 0.001
I0706 10:00:31.500000  1234 solver.cpp:87] Iteration 100, loss = 1.73
I0706 10:01:02.000000  1234 solver.cpp:106] Iteration 200, Testing net
I0706 10:01:02.500000  1234 solver.cpp:142] Test score #0: 0.45
I0706 10:01:02.500000  1234 solver.cpp:142] Test score #1: 1.5e-1
"""


def test_parse_log_reads_a_log_of_2014(run, folder):
    (folder / "quick.log").write_text(LOG_OF_2014)
    assert run("parse_log", "quick.log", ".")[0] == 0
    train, test = (list(csv.DictReader((folder / f"quick.log.{kind}").open())) for kind in ("train", "test"))
    assert [(row["NumIters"], row["Seconds"], row["loss"]) for row in train] == [("100.0", "31.5", "1.73")]
    assert [(row["NumIters"], row["score #0"], row["score #1"]) for row in test] == [
        ("0.0", "0.1018", "2.30248"),
        ("200.0", "0.45", "0.15"),
    ]


def test_parse_log_of_a_file_that_is_no_log_is_an_error(run, folder):
    (folder / "no.log").write_text("make: nothing to be done\n")
    code, _, err = run("parse_log", "no.log", ".")
    assert (code, err.split(":")[1]) == (1, " no.log")
    assert "no line with the loss" in err
    assert not list(folder.glob("no.log.*"))


def test_parse_log_reads_logs_that_span_new_year(run, folder):
    lines = [
        "I1231 23:59:58.000000  7 solver.cpp:289] Solving small",
        "I1231 23:59:59.500000  7 solver.cpp:239] Iteration 0, loss = 2",
        "I1231 23:59:59.500000  7 solver.cpp:258]     Train net output #0: loss = 2 (* 1 = 2 loss)",
        "I1231 23:59:59.500000  7 sgd_solver.cpp:112] Iteration 0, lr = 1e-05",
        "I0101 00:00:01.000000  7 solver.cpp:239] Iteration 9, loss = 1.5e-05",
        "garbage",
        "I0101 00:00:01.000000  7 solver.cpp:258]     Train net output #0: loss = 1.5e-05 (* 1 = 1.5e-05 loss)",
    ]
    (folder / "old.log").write_text("\n".join(lines))
    assert run("parse_log", "old.log", ".", "-verbose")[2] == "Wrote old.log.train\nNot writing old.log.test; no lines to write\n"
    assert [list(row.values()) for row in rows("old.log.train")] == [
        ["0.0", "1.5", "1e-05", "2.0"],
        ["9.0", "3.0", "1e-05", "1.5e-05"],
    ]


# ---- the command itself


def test_an_unknown_command_is_answered_with_the_nearest_name(run):
    code, _, rest = run("tarin")
    assert (code, rest) == (1, 'error: caffe tarin: no such command; did you mean "train"?\n')


def test_help_lists_the_commands_and_each_command_has_its_own_help(run, capsys):
    assert run("--help")[2].count("\n") == len(cli.COMMANDS) + 4
    for name in ("train", "test", "time", "device_query", "parse_log", "draw_net"):
        with pytest.raises(SystemExit) as end:
            cli.main([name, "-help"])
        assert end.value.code == 0
        assert capsys.readouterr().out.startswith(f"usage: caffe {name}")


def test_python_m_caffe_prints_an_error_as_one_line(folder):
    done = subprocess.run([sys.executable, "-m", "caffe", "train", "-solver", "absent.prototxt"], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (1, "error: absent.prototxt: no such file\n")


def test_commands_that_need_no_pytorch_do_not_load_it(folder):
    (folder / "quick.log").write_text(LOG_OF_2014)
    code = "import sys; from caffe.cli import main; main(sys.argv[1:]); print('torch' in sys.modules)"
    for command in (
        ["upgrade_net_proto_text", "net.prototxt", "new.prototxt"],
        ["draw_net", "net.prototxt", "net.dot"],
        ["parse_log", "quick.log", "."],
    ):
        done = subprocess.run([sys.executable, "-c", code, *command], capture_output=True, text=True, check=True)
        assert done.stdout.endswith("False\n")
