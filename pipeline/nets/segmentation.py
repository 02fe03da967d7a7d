"""Write train, test, deploy and solver prototxt of a fully convolutional net for segmentation, and its initial weights.

Images and label maps come from two LMDBs whose records have the same keys: images of any sizes, and maps of the same sizes with a
single channel, whose values are classes, or 255 for pixels to ignore. The batch size is 1. The initial weights are the
classifier's (VGG's or CaffeNet's), or those of another such net; score layers that are not among them start from 0.

    caffe train --solver FOLDER/solver.prototxt
"""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from google.protobuf.message import DecodeError

import caffe
from caffe import layers as L
from caffe import params as P
from caffe.proto import caffe_pb2
from pipeline.command import run, step_parser
from pipeline.errors import InputError
from pipeline.files import written_whole
from pipeline.nets import solver_defaults
from pipeline.nets.models import fcn
from pipeline.options.flags import read_flags
from pipeline.options.training import SegmentationOptions

IGNORED = 255
"""Label of pixels that loss and accuracy ignore."""
SIDE = 500
"""Height and width of the deploy net's input; other images reshape it."""
SOLVER = {
    **{"momentum": 0.99, "weight_decay": 0.0005, "epochs": 12, "average_loss": 20, "display": 20, "snapshot": 4000},
    "test_initialization": False,
}
"""The authors' solver; as the loss is a sum over pixels, the learning rate is small and the momentum large."""
RATES = {"fcn32s": 1e-10, "fcn16s": 1e-12, "fcn8s": 1e-14, "fcn_alexnet": 1e-10}
"""Learning rates: the authors' for VGG-16, each net of which starts from the one before it."""


@dataclass(frozen=True)
class Pairs:
    """A database of images and one of their label maps, the number of pairs, and the images' channels."""

    images: Path
    labels: Path
    count: int
    channels: int

    @classmethod
    def read(cls, images: Path, labels: Path) -> Pairs:
        """Read two databases with the same keys; raises InputError if keys differ, or the shapes of the first pair."""
        (keys, image), (others, map_) = (_first(path) for path in (images, labels))
        if keys != others:
            odd = min(keys ^ others).decode(errors="replace")
            raise InputError(labels, f"other keys than {images} has, such as {odd}", "a map has its image's key")
        height, width = image.shape[1:]
        if map_.shape != (1, height, width):
            found = f"the first map has shape {map_.shape}"
            raise InputError(labels, found, f"its image is {height} × {width} pixels, and a map has one channel")
        return cls(images, labels, len(keys), len(image))


def _first(path: Path) -> tuple[set[bytes], np.ndarray]:
    """All keys of a database, and the first record's pixels."""
    database = caffe.open_db(path)
    keys = {key for key, _ in database.items()}
    first = caffe.parse_datum(next(database.values()))
    return keys, caffe.pixels_of(first, None, f"{path}: {min(keys).decode(errors='replace')}")


def nets(options: SegmentationOptions, train: Pairs, val: Pairs) -> dict[str, caffe_pb2.NetParameter]:
    """{"train", "test", "deploy"}: the three nets."""
    if len(options.mean) not in (0, 1, train.channels):
        raise InputError("--mean", f"{len(options.mean)} values", f"the images have {train.channels} channels")
    layers = fcn.layers(options.model, options.classes)
    deploy = caffe.NetSpec()
    deploy.data = L.Input(shape={"dim": [1, train.channels, SIDE, SIDE]})
    made = {"deploy": deploy.to_proto()}
    made["deploy"].layer.extend(layers)
    for part, pairs in (("train", train), ("test", val)):
        n = caffe.NetSpec()
        database = {"batch_size": 1, "backend": P.Data.LMDB}
        n.data = L.Data(data_param={"source": str(pairs.images), **database}, transform_param={"mean_value": list(options.mean)})
        n.label = L.Data(data_param={"source": str(pairs.labels), **database})
        made[part] = n.to_proto()
        made[part].layer.extend([*layers, *_measured(part)])
    for net in made.values():
        net.name = options.model
    return made


def _measured(part: str) -> list[caffe_pb2.LayerParameter]:
    n = caffe.NetSpec()
    n.score, n.label = L.Input(), L.Input()
    if part == "test":
        n.accuracy = L.Accuracy(n.score, n.label, ignore_label=IGNORED)
    n.loss = L.SoftmaxWithLoss(n.score, n.label, loss_param={"ignore_label": IGNORED, "normalize": False})
    return list(n.to_proto().layer)[2:]


def started(deploy: caffe_pb2.NetParameter, weights: Path) -> tuple[caffe.Net, list[str]]:
    """The net with its initial weights, and the score layers that start from zeros.

    weights  a .caffemodel; the weights of a fully connected layer become those of the convolution of the same name
    """
    given, small = _stored(weights), caffe_pb2.NetParameter()
    small.CopyFrom(deploy)
    small.layer[0].input_param.shape[0].dim[2:] = [1, 1]
    net = caffe.Net(small, caffe.TEST)
    upsampling = [layer.name for layer in deploy.layer if caffe.layer_type(layer.type).is_transposed]
    fcn.set_upsampling(net, upsampling)
    zeros = []
    for name in (name for name in net.params if name not in upsampling):
        blobs, values = net.params[name], given.get(name, [])
        sizes, given_sizes = [blob.data.size for blob in blobs], [array.size for array in values]
        if sizes == given_sizes:
            for blob, array in zip(blobs, values, strict=True):
                blob.data[...] = array.reshape(blob.data.shape)
        elif name.startswith("score"):
            zeros.append(name)
        else:
            found = f"{' and '.join(map(str, given_sizes)) or 'no'} values for {name}"
            expected = f"the net has {' and '.join(map(str, sizes))}"
            raise InputError(weights, found, expected, "give the weights of the classifier that it is made of, or of such a net")
    return net, zeros


def _stored(path: Path) -> dict[str, list[np.ndarray]]:
    """The parameters in a .caffemodel by layer, each as a vector."""
    try:
        net = caffe_pb2.WeightsParameter.FromString(path.read_bytes())
    except (OSError, DecodeError) as error:
        raise InputError(path, f"no weights ({error})", "a .caffemodel is expected") from None
    return {layer.name: [np.array(blob.data, np.float32) for blob in layer.blobs] for layer in (*net.layer, *net.layers)}


def write(options: SegmentationOptions, train: Pairs, val: Pairs, folder: Path) -> list[str]:
    """Write all files to `folder`, whole; return the score layers that start from zeros."""
    made = nets(options, train, val)
    defaults = SOLVER | {"base_lr": RATES[options.model]}
    if "max_iter" in options.solver:
        del defaults["epochs"]
    snapshots = folder.with_name(f"{folder.name}_snapshots") / options.model
    param, reasons = solver_defaults.solver(
        solver_defaults.Sizes(train.count, val.count, 1, 1),
        solver_defaults.Run(folder, snapshots, options, defaults | options.solver),
        "--solver",
    )
    param.weights.append(str(folder / "start.caffemodel"))
    net, zeros = started(made["deploy"], options.weights)
    with closing(net), written_whole(folder) as part:
        part.mkdir()
        for name, definition in made.items():
            caffe.write_prototxt(part / f"{name}.prototxt", definition)
        caffe.write_prototxt(part / "solver.prototxt", param, reasons)
        net.save(part / "start.caffemodel")
    return zeros


def main(argv: list[str] | None = None) -> None:
    parser = step_parser(__doc__, SegmentationOptions)
    parser.add_argument("folder", type=Path, help="where the files go; replaced if it exists")
    for part in ("train", "val"):
        parser.add_argument(f"--{part}", type=Path, nargs=2, required=True, metavar=("IMAGES", "LABELS"), help="two LMDBs")
    a = parser.parse_args(argv)
    options = read_flags(a, SegmentationOptions)
    if options.model not in fcn.NETS:
        known = f"there are {', '.join(fcn.NETS)}"
        raise InputError("--model", f'"{options.model}"', known, caffe.nearest(options.model, fcn.NETS))
    zeros = write(options, Pairs.read(*a.train), Pairs.read(*a.val), a.folder)
    print(f"{a.folder}: {options.model}" + (f", with {', '.join(zeros)} from zeros" if zeros else ""))


if __name__ == "__main__":
    run(main)
