"""A small workflow that has every step, built once."""

import csv
import hashlib
import shutil
from typing import NamedTuple

import cv2
import pytest

import caffe
from pipeline.formats import records
from tests import standins, workflows
from tests.pipeline.trained_nets import of_template, set_random_weights

CONFIG = """\
numerics: reproducible
datasets:
  digits:
    source: {list: results/example/digits/target.csv, allow_file: true}
    size: {height: 28, width: 28}
    color: gray
    split: {by: column}
    augmentation: {brightness: 0.3}
  again:
    source: {database: {train: few, val: few}}
experiments:
  base:
    dataset: digits
    model: lenet
    batch_size: 20
    weights: {url: ADDRESS/start.caffemodel, sha256: SHA256}
    pictures: {count: 1}
    solver: {max_iter: 8, test_interval: 4, display: 4, snapshot: 2}
    features: [ip1]
    feature_formats: [lmdb, npy, parquet, hdf5, leveldb]
    classify: {images: image.png}
    export: {onnx: true, safetensors: true, merged: true, convolutional: {height: 56, width: 56}, average: 2, crop: crop.prototxt}
  linear:
    dataset: digits
    model: lenet
    strategy: features
    weights: {experiment: base}
"""
CROPPED = """\
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 1 dim: 1 dim: 28 dim: 28 } } }
layer { name: "conv1" type: "Convolution" bottom: "data" top: "conv1" convolution_param { num_output: 20 kernel_size: 5 } }
"""


class Job(NamedTuple):
    """A job that Snakemake has run: its outputs, inputs and command."""

    outputs: list[str]
    inputs: list[str]
    command: str


@pytest.fixture(scope="session")
def built(tmp_path_factory):
    """A folder in which everything is built; and {rule: one of its jobs}."""
    folder = tmp_path_factory.mktemp("faults")
    cv2.imwrite(str(folder / "image.png"), standins.picture(1, 1, 28))
    (folder / "crop.prototxt").write_text(CROPPED)
    pictures = [standins.picture(number % 2, number, 28) for number in range(8)]
    entries = [
        (b"%08d" % n, record := records.encode_datum(p, n % 2), records.digest(b"%08d" % n, record))
        for n, p in enumerate(pictures)
    ]
    records.write_database([entries], folder / "few", 2)
    set_random_weights(caffe.Net(of_template("lenet", 5, 1, 1, 28, 28), caffe.TEST), 1).save(folder / "start.caffemodel")
    with standins.serve(folder) as address:
        digest = hashlib.sha256((folder / "start.caffemodel").read_bytes()).hexdigest()
        (folder / "config.yaml").write_text(CONFIG.replace("ADDRESS", address).replace("SHA256", digest))
        code, said = workflows.snakemake(folder)
        assert code == 0, said
        code, said = workflows.snakemake(folder, "--detailed-summary")
        assert code == 0, said
        jobs: dict[str, Job] = {}
        for line in csv.DictReader(said[said.index("output_file") :].splitlines(), delimiter="\t"):
            if line["plan"] is None:  # said on standard error
                continue
            job = Job([], line["input-file(s)"].split(","), line["shellcmd"])
            jobs.setdefault(line["rule"], job)
            if jobs[line["rule"]].command == job.command:
                jobs[line["rule"]].outputs.append(line["output_file"])
        yield folder, jobs
    shutil.rmtree(folder)
