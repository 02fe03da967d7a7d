"""caffe.io: load, resize and preprocess images; convert blobs and datums to arrays and back.

Images are height × width × channels, RGB, float32 from 0 to 1, as in scikit-image; a Transformer converts them to a net's input.
"""

import numpy as np

from caffe.formats.stored import add_array, add_values, shape_of, values_of
from caffe.proto import caffe_pb2
from caffe.transforms.preprocessing import LUMINANCE as LUMINANCE
from caffe.transforms.preprocessing import Transformer as Transformer
from caffe.transforms.preprocessing import load_image as load_image
from caffe.transforms.preprocessing import oversample as oversample
from caffe.transforms.preprocessing import resize_image as resize_image


def blobproto_to_array(blob: caffe_pb2.BlobProto, return_diff: bool = False) -> np.ndarray:
    """The values of a stored blob (or its gradient) in its shape; float64, as in pycaffe."""
    return values_of(blob, return_diff).astype(float).reshape(shape_of(blob))


def array_to_blobproto(array: np.ndarray, diff: np.ndarray | None = None) -> caffe_pb2.BlobProto:
    """An array, and its gradient if given, as a stored blob."""
    blob = caffe_pb2.BlobProto()
    add_array(blob, array)
    if diff is not None:
        add_values(blob, diff, diff=True)
    return blob


def arraylist_to_blobprotovector_str(arrays: list[np.ndarray]) -> bytes:
    """A serialised BlobProtoVector of several arrays."""
    return bytes(caffe_pb2.BlobProtoVector(blobs=[array_to_blobproto(array) for array in arrays]).SerializeToString())


arraylist_to_blobprotovecor_str = arraylist_to_blobprotovector_str
"""BVLC Caffe's spelling."""


def blobprotovector_str_to_arraylist(string: bytes) -> list[np.ndarray]:
    """The arrays of a serialised BlobProtoVector."""
    return [blobproto_to_array(blob) for blob in caffe_pb2.BlobProtoVector.FromString(string).blobs]


def array_to_datum(array: np.ndarray, label: int | None = None) -> caffe_pb2.Datum:
    """An image, channels × height × width, as a record: uint8 as bytes, anything else as floats."""
    if array.ndim != 3:
        raise ValueError(f"an array of shape {array.shape}, but a datum has 3 axes (channels, height, width)")
    datum = caffe_pb2.Datum(channels=array.shape[0], height=array.shape[1], width=array.shape[2])
    if array.dtype == np.uint8:
        datum.data = array.tobytes()
    else:
        datum.float_data.extend(array.astype(float).flat)
    if label is not None:
        datum.label = label
    return datum


def datum_to_array(datum: caffe_pb2.Datum) -> np.ndarray:
    """The pixels of a record that is not encoded, copied, channels × height × width: uint8, or float if it holds floats."""
    shape = (datum.channels, datum.height, datum.width)
    if len(datum.data):
        return np.frombuffer(datum.data, dtype=np.uint8).reshape(shape).copy()
    return np.array(datum.float_data, dtype=float).reshape(shape)
