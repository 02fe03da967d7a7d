"""`roastery link-tools`: what it links and what it leaves alone; and shell scripts of a BVLC checkout run through its links."""

import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

import caffe
from caffe import cli
from caffe.formats.db import open_db
from caffe.proto import caffe_pb2
from pipeline import link_tools
from pipeline.errors import InputError
from tests.caffe.commands.test_published_data import idx
from tests.conftest import needs_leveldb

LAYERS = """
layer { name: "ip" type: "InnerProduct" bottom: "data" top: "ip"
  inner_product_param { num_output: 10 weight_filler { type: "xavier" } } }
layer { name: "accuracy" type: "Accuracy" bottom: "ip" bottom: "label" top: "accuracy" include { phase: TEST } }
layer { name: "loss" type: "SoftmaxWithLoss" bottom: "ip" bottom: "label" top: "loss" }
"""
SOLVER = """
net: "net.prototxt" test_iter: 1 test_interval: 4 max_iter: 4 snapshot: 2 snapshot_prefix: "model"
base_lr: 0.001 lr_policy: "fixed" random_seed: 1 solver_mode: CPU
"""


def data_net(source, backend):
    layer = f'layer {{ name: "data" type: "Data" top: "data" top: "label" data_param {{ source: "{source}" batch_size: 6 '
    return f"{layer} backend: {backend} }} }} {LAYERS}"


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A folder with links for a BVLC checkout's programs, which is the working folder."""
    monkeypatch.chdir(tmp_path)
    link_tools.main(["."])
    return tmp_path


def run(script, cwd=None):
    """Run a shell script as people do, with `set -e` and today's `caffe` on the path."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(["sh", "-ec", script], cwd=cwd, env={**os.environ, "PATH": path}, capture_output=True, text=True)
    return done.returncode, done.stdout, done.stderr


def digits(folder):
    """MNIST's four files, with 60 random digits for training and 20 for testing."""
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    for part, count in (("train", 60), ("t10k", 20)):
        (folder / f"{part}-images-idx3-ubyte").write_bytes(idx(random.integers(0, 256, (count, 28, 28), dtype=np.uint8)))
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(idx(random.integers(0, 10, count, dtype=np.uint8)))


def records(path, backend):
    kind = caffe_pb2.DataParameter.DB.Value(backend.upper())
    return [caffe_pb2.Datum.FromString(bytes(value)) for value in open_db(path, kind).values()]


# ---- links


def test_every_program_is_linked_with_and_without_bin_and_said(tmp_path, capsys):
    link_tools.main([str(tmp_path)])
    said = capsys.readouterr().out
    script = link_tools.caffe_script()
    for folder, programs in link_tools.PROGRAMS.items():
        names = sorted(name + end for name in programs for end in ("", ".bin"))
        assert sorted(path.name for path in (tmp_path / folder).iterdir() if not path.is_dir()) == names
        assert all((tmp_path / folder / name).readlink() == script for name in names)
        assert f"{tmp_path / folder}: {', '.join(programs)}\n" in said
    assert f"30 links (NAME and NAME.bin) to {script}" in said


def test_every_linked_program_is_one_that_caffe_runs_under_its_name():
    linked = {name for names in link_tools.PROGRAMS.values() for name in names} - {"caffe"}
    for name in linked:
        for path in (f"build/tools/{name}", f"/any/where/{name}.bin", f"{name}.exe"):
            assert cli._program(path) == [name]
    assert linked == cli._PROGRAMS - {"draw_net", "parse_log"}  # these two are scripts in Python, in other folders
    for path in ("build/tools/caffe", "caffe.bin", "caffe.exe", "caffe/__main__.py", "pytest", "test", "time", "train"):
        assert cli._program(path) == []


def test_a_second_run_makes_nothing_and_a_missing_link_is_made_again(checkout, capsys):
    (checkout / "build/tools/caffe.bin").unlink()
    link_tools.main([str(checkout)])
    assert "1 links" in capsys.readouterr().out
    link_tools.main([str(checkout)])
    said = capsys.readouterr().out
    assert "0 links" in said
    assert "build/tools: nothing new; 12 linked already" in said


def test_a_link_to_another_installation_is_replaced(checkout):
    other = checkout / "old/bin/caffe"
    other.parent.mkdir(parents=True)
    other.write_text("#!/usr/bin/python3\nfrom caffe.cli import main\nmain()\n")
    link = checkout / "build/tools/train_net"
    link.unlink()
    link.symlink_to(other)
    assert link_tools.link_programs(checkout, link_tools.caffe_script()) == ["build/tools/train_net"]
    assert link.readlink() == link_tools.caffe_script()


def occupied_by_a_file(path):
    path.write_text("a program of BVLC Caffe, compiled")


def occupied_by_a_link(path):
    path.symlink_to("/bin/true")


def occupied_by_a_broken_link(path):
    path.symlink_to("../../.build_release/tools/caffe.bin")


@pytest.mark.parametrize("occupy", [occupied_by_a_file, occupied_by_a_link, occupied_by_a_broken_link, Path.mkdir])
def test_nothing_is_overwritten_and_nothing_made_where_something_else_is_there(tmp_path, occupy):
    tools = tmp_path / "build/tools"
    tools.mkdir(parents=True)
    occupy(tools / "upgrade_net_proto_text")
    before = (tools / "upgrade_net_proto_text").lstat()  # reading a link changes its st_atime
    with pytest.raises(InputError) as raised:
        link_tools.main([str(tmp_path)])
    assert raised.value.where == str(tools / "upgrade_net_proto_text")
    assert [path.name for path in tools.iterdir()] == ["upgrade_net_proto_text"]
    after = (tools / "upgrade_net_proto_text").lstat()
    assert (after.st_ino, after.st_mtime_ns, after.st_size) == (before.st_ino, before.st_mtime_ns, before.st_size)


def test_a_build_that_is_no_folder_and_a_missing_checkout_are_errors(tmp_path):
    (tmp_path / "build").symlink_to(".build_release")
    with pytest.raises(InputError, match=r"build: not a folder"):
        link_tools.main([str(tmp_path)])
    with pytest.raises(InputError, match="no such folder"):
        link_tools.main([str(tmp_path / "absent")])


def test_the_command_of_roastery_makes_the_links(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "pipeline.cli", "link-tools", str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert "30 links" in done.stdout
    assert (tmp_path / "build/tools/caffe").is_symlink()


# ---- scripts of a checkout


def test_mnist_is_converted_trained_and_resumed(checkout):
    digits(checkout / "data/mnist")
    (checkout / "examples/mnist").mkdir(parents=True)
    (checkout / "net.prototxt").write_text(data_net("examples/mnist/mnist_train_lmdb", "LMDB"))
    (checkout / "solver.prototxt").write_text(SOLVER)
    code, out, err = run("""
        FROM=data/mnist
        TO=examples/mnist
        KIND="lmdb"
        BIN=build/examples/mnist
        $BIN/convert_mnist_data.bin $FROM/train-images-idx3-ubyte \
            $FROM/train-labels-idx1-ubyte $TO/mnist_train_${KIND} --backend=${KIND}
        $BIN/convert_mnist_data.bin $FROM/t10k-images-idx3-ubyte \
            $FROM/t10k-labels-idx1-ubyte $TO/mnist_test_${KIND} --backend=${KIND}
        ./build/tools/caffe train --solver=solver.prototxt $@
        rm model_iter_4.*
        ./build/tools/caffe train --solver=solver.prototxt --snapshot=model_iter_2.solverstate $@
    """)
    assert (code, err) == (0, ""), out + err
    assert [len(records(f"examples/mnist/mnist_{part}_lmdb", "lmdb")) for part in ("train", "test")] == [60, 20]
    assert (checkout / "model_iter_4.caffemodel").exists()


@needs_leveldb
def test_mnist_s_pairs_are_written_and_read(checkout):
    digits(checkout / "data/mnist")
    code, out, err = run("""
        DATA=./data/mnist
        ./build/examples/siamese/convert_mnist_siamese_data.bin \
            $DATA/train-images-idx3-ubyte \
            $DATA/train-labels-idx1-ubyte \
            ./examples/siamese/mnist_siamese_train_leveldb
    """)
    assert (code, err) == (0, ""), out + err
    written = records("examples/siamese/mnist_siamese_train_leveldb", "leveldb")
    assert {(datum.channels, datum.height, datum.width, len(datum.data)) for datum in written} == {(2, 28, 28, 1568)}


@needs_leveldb
def test_cifar_10_is_converted_from_the_example_s_folder_as_in_2014(checkout):
    (checkout / "data/cifar10").mkdir(parents=True)
    (checkout / "examples/cifar10").mkdir(parents=True)
    for name in (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"):
        with (checkout / f"data/cifar10/{name}.bin").open("wb") as file:
            file.truncate(30_730_000)  # black images of class 0
    code, out, err = run(
        """
        TOOLS=../../build/tools
        mkdir cifar10-leveldb
        ../../build/examples/cifar10/convert_cifar_data.bin ../../data/cifar10 ./cifar10-leveldb
        $TOOLS/compute_image_mean.bin ./cifar10-leveldb/cifar-train-leveldb mean.binaryproto
    """,
        cwd=checkout / "examples/cifar10",
    )
    assert (code, err) == (0, ""), out + err
    folder = checkout / "examples/cifar10"
    assert len(open_db(folder / "cifar10-leveldb/cifar-train-leveldb")) == 50_000
    assert len(open_db(folder / "cifar10-leveldb/cifar-test-leveldb")) == 10_000
    mean = caffe_pb2.BlobProto.FromString((folder / "mean.binaryproto").read_bytes())
    assert (mean.channels, mean.height, mean.width, set(mean.data)) == (3, 32, 32, {0})


@pytest.fixture
def photographs(checkout):
    """Two classes of six photographs in photos/, train.txt, and a net that trains on their database."""
    random = np.random.default_rng(0)
    (checkout / "photos").mkdir()
    names = [f"{kind}{number}.jpg" for kind in ("cat", "dog") for number in range(6)]
    for name in names:
        cv2.imwrite(str(checkout / "photos" / name), random.integers(0, 256, (40, 50, 3), dtype=np.uint8))
    (checkout / "train.txt").write_text("".join(f"{name} {int(name[:3] == 'dog')}\n" for name in names))
    (checkout / "solver.prototxt").write_text(SOLVER)
    return checkout


@needs_leveldb
def test_photographs_are_converted_trained_and_their_features_extracted_as_in_2014(photographs):
    (photographs / "net.prototxt").write_text(data_net("ilsvrc12_train_leveldb", "LEVELDB"))
    val = 'layers { name: "data" type: IMAGE_DATA top: "data" top: "label" '
    val += 'image_data_param { source: "file_list.txt" batch_size: 2 } }'
    val += 'layers { name: "fc7" type: INNER_PRODUCT bottom: "data" top: "fc7" inner_product_param { num_output: 3 } }'
    (photographs / "imagenet_val.prototxt").write_text(val)
    code, out, err = run("""
        TOOLS=build/tools
        GLOG_logtostderr=1 $TOOLS/convert_imageset.bin photos/ train.txt ilsvrc12_train_leveldb 1 leveldb 256 256
        $TOOLS/compute_image_mean.bin ilsvrc12_train_leveldb imagenet_mean.binaryproto
        GLOG_logtostderr=1 $TOOLS/train_net.bin solver.prototxt
        rm model_iter_4.*
        GLOG_logtostderr=1 $TOOLS/train_net.bin \
            solver.prototxt model_iter_2.solverstate
        find `pwd`/photos -type f -exec echo {} \\; > temp.txt
        sed "s/$/ 0/" temp.txt > file_list.txt
        build/tools/extract_features.bin model_iter_4.caffemodel imagenet_val.prototxt fc7 features 10
    """)
    assert code == 0, out + err
    warning = "warning: not a command of today's Caffe; running: caffe train -solver solver.prototxt"
    assert err.splitlines() == [warning, f"{warning} -snapshot model_iter_2.solverstate"]
    assert {(datum.height, datum.width) for datum in records("ilsvrc12_train_leveldb", "leveldb")} == {(256, 256)}
    assert (photographs / "imagenet_mean.binaryproto").exists()
    assert len(records("features", "leveldb")) == 20
    code, _, err = run("build/tools/extract_features.bin model_iter_4.caffemodel imagenet_val.prototxt fc7 features 10")
    assert (code, err) == (1, "error: features: it exists already; delete it, or give another name\n")


def test_photographs_are_converted_and_trained_as_in_caffe_1_0(photographs):
    (photographs / "net.prototxt").write_text(data_net("ilsvrc12_train_lmdb", "LMDB"))
    code, out, err = run("""
        TOOLS=build/tools
        GLOG_logtostderr=1 $TOOLS/convert_imageset \
            --resize_height=32 \
            --resize_width=32 \
            --shuffle \
            photos/ \
            train.txt \
            ilsvrc12_train_lmdb
        $TOOLS/compute_image_mean ilsvrc12_train_lmdb \
            imagenet_mean.binaryproto
        ./build/tools/caffe train \
            --solver=solver.prototxt $@
    """)
    assert (code, err) == (0, ""), out + err
    assert (photographs / "model_iter_4.caffemodel").exists()


# ---- lines of the tutorials, as they are typed


@pytest.fixture
def finetuning(checkout):
    """The solvers and weights that the tutorials' lines name, of a small net."""
    net = 'layer { name: "data" type: "DummyData" top: "data" top: "label" '
    net += "dummy_data_param { shape { dim: 2 dim: 3 } shape { dim: 2 } } }"
    (checkout / "net.prototxt").write_text(net + LAYERS)
    made = caffe.Net("net.prototxt", caffe.TEST)
    weights = ("models/vgg_face_caffe/VGG_FACE", "test", "bvlc_reference_caffenet", "weights/resnet50")
    for name in weights:
        (checkout / name).parent.mkdir(parents=True, exist_ok=True)
        made.save(f"{name}.caffemodel")
    for name in ("solver", "models/finetune/solver", "models/finetune_flickr_style/solver"):
        (checkout / name).parent.mkdir(parents=True, exist_ok=True)
        (checkout / f"{name}.prototxt").write_text(SOLVER)
    (checkout / "caffe.exe").symlink_to(link_tools.caffe_script())
    return checkout


@pytest.mark.parametrize(
    ("line", "warnings"),
    [
        ("caffe train --solver=solver.prototxt --weights weights/resnet50.caffemodel", 0),
        ("caffe train -solver models/finetune_flickr_style/solver.prototxt -weight bvlc_reference_caffenet.caffemodel", 1),
        # sh drops both backslashes; a shell that keeps them gives the second line.
        (r"PATH=.:$PATH; caffe.exe train --solver=.\solver.prototxt --weights .\test.caffemodel", 2),
        (r"PATH=.:$PATH; caffe.exe train --solver='.\solver.prototxt' --weights '.\test.caffemodel'", 0),
        ("./build/tools/finetune_net.bin solver.prototxt test.caffemodel", 1),
    ],
)
def test_a_line_of_a_tutorial_trains(finetuning, line, warnings):
    code, out, err = run(line)
    assert code == 0, out + err
    assert len(err.splitlines()) == warnings
    assert all(line.startswith("warning: ") for line in err.splitlines())
    assert (finetuning / "model_iter_4.caffemodel").exists()


@pytest.mark.own_device
@pytest.mark.usefixtures("finetuning")
def test_a_line_that_asks_for_a_gpu_says_how_to_do_without():
    import torch

    line = "./build/tools/caffe train -solver models/finetune/solver.prototxt -weights models/vgg_face_caffe/VGG_FACE.caffemodel"
    assert run(line)[0] == 0
    code, _, err = run(f"{line} -gpu 0")
    if torch.cuda.is_available():
        assert code == 0
    else:
        assert (code, err) == (1, "error: -gpu 0: PyTorch finds no CUDA device; omit -gpu to run on the CPU\n")
