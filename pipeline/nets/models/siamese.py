"""The siamese net of Caffe's example: LeNet's layers, ending in an embedding of two values per image, trained on pairs of images.

The contrastive loss pulls images of the same class together and pushes others at least MARGIN apart (Hadsell et al. 2006). A pair
is a record of two images' channels with label 1 for the same class, else 0. Both images go through layers that share weights.
"""

from collections.abc import Iterable

import caffe
from caffe import layers as L
from caffe.net_spec import NetSpec
from caffe.proto import caffe_pb2
from pipeline.nets.models import lenet
from pipeline.nets.models.base import Last

LAST = "feat"
PAIR, SAME = "pair_data", "sim"
"""The blobs of pairs and of their labels."""
SECOND = "_p"
"""Suffix of the names of the second image's layers and blobs."""
MARGIN = 1.0


def body(n: NetSpec, last: Last) -> None:
    """LeNet with its ten outputs as hidden values, and the embedding."""
    lenet.body(n, Last("ip2", 10))
    n[last.name] = L.InnerProduct(n.ip2, num_output=last.outputs, **lenet.learned(last.lr_mult))


def paired(layers: Iterable[caffe_pb2.LayerParameter], channels: int) -> list[caffe_pb2.LayerParameter]:
    """From PAIR to both images' embeddings: the layers from `data`, an image of so many channels, twice with shared weights."""
    n = caffe.NetSpec()
    n[PAIR] = L.Input()
    n.data, n[f"data{SECOND}"] = L.Slice(n[PAIR], ntop=2, name="slice_pair", slice_dim=1, slice_point=channels)
    made = list(n.to_proto().layer)[1:]
    for suffix in ("", SECOND):
        for layer in layers:
            copy = caffe_pb2.LayerParameter()
            copy.CopyFrom(layer)
            copy.name += suffix
            for blobs in (copy.bottom, copy.top):
                blobs[:] = [blob + suffix for blob in blobs]
            for spec, kind in zip(copy.param, "wb", strict=False):
                spec.name = f"{layer.name}_{kind}"
            made.append(copy)
    return made


def compared(values: str, training: bool) -> list[caffe_pb2.LayerParameter]:
    """The contrastive loss; in testing also scores for "different" and "same", and their accuracy.

    values  the blob of an image's embedding
    The scores are the squared distance minus that of half the margin, and its negative.
    """
    n = caffe.NetSpec()
    n[values], n[values + SECOND], n[SAME] = (L.Input() for _ in range(3))
    if not training:
        limit = (MARGIN / 2) ** 2
        n.difference = L.Eltwise(n[values], n[values + SECOND], coeff=[1, -1])
        n.squares = L.Reduction(n.difference, operation=caffe.params.Reduction.SUMSQ, axis=1)
        n.distance = L.Reshape(n.squares, shape={"dim": [-1, 1]})
        n.apart = L.Power(n.distance, shift=-limit)
        n.together = L.Power(n.distance, scale=-1, shift=limit)
        n.scores = L.Concat(n.apart, n.together)
        n.accuracy = L.Accuracy(n.scores, n[SAME])
    n.loss = L.ContrastiveLoss(n[values], n[values + SECOND], n[SAME], margin=MARGIN)
    return list(n.to_proto().layer)[3:]
