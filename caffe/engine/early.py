"""Caffe's calls of 2014, which later versions dropped: they work, and each warns once with the line to write today.

Until the summer of 2014 the phase and the mode were set on nets, and nets preprocessed images themselves; since then a net is
built for one phase, and `caffe.io.Transformer` preprocesses.
"""

import os
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np

from caffe.engine import mode
from caffe.errors import Error
from caffe.proto import caffe_pb2
from caffe.transforms import preprocessing

_PHASES: dict[int, str] = {caffe_pb2.TRAIN: "train", caffe_pb2.TEST: "test"}
_warned: set[str] = set()


class _State:
    phase: int | None = None


def warn(name: str, today: str, depth: int = 2) -> None:
    """Warn, once for each name, that it is of 2014, with the line to write today.

    depth  of the caller whose line is named, 1 for the caller of this function
    """
    if name not in _warned:
        _warned.add(name)
        warnings.warn(f"{name} is of Caffe's first year; today: {today}", FutureWarning, stacklevel=depth + 1)


def set_phase_train() -> None:
    """Build nets that are given no phase for training from now on."""
    warn("caffe.set_phase_train()", "caffe.Net(prototxt, caffe.TRAIN, weights=caffemodel)")
    _State.phase = caffe_pb2.TRAIN


def set_phase_test() -> None:
    """Build nets that are given no phase for testing from now on."""
    warn("caffe.set_phase_test()", "caffe.Net(prototxt, caffe.TEST, weights=caffemodel)")
    _State.phase = caffe_pb2.TEST


def phase_of(network_file: object, weights: object) -> int:
    """The phase of `caffe.Net(prototxt, caffemodel)`: that of `set_phase_…`, else caffe.TEST."""
    phase = caffe_pb2.TEST if _State.phase is None else _State.phase
    today = f'caffe.Net("{network_file}", caffe.{caffe_pb2.Phase.Name(phase)}, weights="{weights}")'
    warn("caffe.Net(prototxt, caffemodel) without a phase", today, 3)
    return phase


class EarlyCalls:
    """Methods that nets had in 2014."""

    phase: int
    path: str
    inputs: list[str]
    blobs: Any
    _transformer: preprocessing.Transformer | None = None

    def set_phase_train(self) -> None:
        """Do nothing if the net is built for training; else say how to build it."""
        self._set_phase(caffe_pb2.TRAIN)

    def set_phase_test(self) -> None:
        """Do nothing if the net is built for testing; else say how to build it."""
        self._set_phase(caffe_pb2.TEST)

    def _set_phase(self, phase: int) -> None:
        name, today = f"net.set_phase_{_PHASES[phase]}()", f"caffe.{caffe_pb2.Phase.Name(phase)}"
        if phase != self.phase:
            raise Error(self.path, name, f"the net is built for phase {_PHASES[self.phase]}", f"build it with {today}")
        warn(name, f"nothing; the net was built with {today}", 3)

    def set_mode_cpu(self) -> None:
        """Create nets on the CPU from now on; this net stays where it is."""
        warn("net.set_mode_cpu()", "caffe.set_mode_cpu() before the net is built")
        self._set_mode("cpu", mode.set_mode_cpu)

    def set_mode_gpu(self) -> None:
        """Create nets on the GPU from now on; an Error if this net is on the CPU."""
        warn("net.set_mode_gpu()", "caffe.set_mode_gpu() before the net is built")
        self._set_mode("gpu", mode.set_mode_gpu)

    def _set_mode(self, name: str, choose: Any) -> None:
        choose()
        device = self.device  # type: ignore[attr-defined] # of the net
        if device.type != mode.device().type:
            do = f"call caffe.set_mode_{name}() before the net is built"
            raise Error(self.path, f"net.set_mode_{name}()", f"the net's blobs are on {device}", do)

    def set_device(self, device_id: int) -> None:
        """Choose the GPU of nets that are built from now on."""
        warn("net.set_device(…)", "caffe.set_device(…) before the net is built")
        mode.set_device(device_id)

    # ---- preprocessing

    @property
    def _preprocessing(self) -> preprocessing.Transformer:
        """The transformer of a Classifier or Detector, or one for all inputs."""
        given: preprocessing.Transformer | None = getattr(self, "transformer", None)
        if given is not None:
            return given
        if self._transformer is None:
            self._transformer = preprocessing.Transformer({name: self.blobs[name].shape for name in self.inputs})
            for name in self.inputs:
                if len(self.blobs[name].shape) == 4:
                    self._transformer.set_transpose(name, (2, 0, 1))
        return self._transformer

    def set_mean(self, input_: str, mean: str | os.PathLike[str] | np.ndarray, mode: str = "elementwise") -> None:
        """Set the mean that `preprocess` subtracts.

        mean  an array, a .npy or a .binaryproto file, channels × height × width
        mode  "elementwise", or "channel" for one value for each channel
        """
        warn("net.set_mean(…)", f'transformer.set_mean("{input_}", np.load(file).mean(1).mean(1)), of a caffe.io.Transformer')
        values = preprocessing.mean_of(mean)
        if mode not in ("elementwise", "channel"):
            raise Error("set_mean", f"mode {mode!r}", '"elementwise" or "channel"')
        self._preprocessing.set_mean(input_, values.mean((1, 2)) if mode == "channel" and values.ndim == 3 else values)

    def set_channel_swap(self, input_: str, order: Sequence[int]) -> None:
        """Set the order of the channels: (2, 1, 0) converts RGB to BGR."""
        warn("net.set_channel_swap(…)", f'transformer.set_channel_swap("{input_}", {tuple(order)}), of a caffe.io.Transformer')
        self._preprocessing.set_channel_swap(input_, order)

    def set_raw_scale(self, input_: str, scale: float) -> None:
        """Set the factor that is applied before the mean is subtracted."""
        warn("net.set_raw_scale(…)", f'transformer.set_raw_scale("{input_}", {scale:g}), of a caffe.io.Transformer')
        self._preprocessing.set_raw_scale(input_, scale)

    def set_input_scale(self, input_: str, scale: float) -> None:
        """Set the factor of the preprocessed values: as in 2014 before the mean if it is above 1, without set_raw_scale."""
        set_early_scale(self._preprocessing, input_, scale, 3)

    def preprocess(self, input_name: str, input_: np.ndarray) -> np.ndarray:
        """Preprocess an image, height × width × channels, from 0 to 1: channels × height × width."""
        warn("net.preprocess(…)", f'transformer.preprocess("{input_name}", image), of a caffe.io.Transformer')
        return self._preprocessing.preprocess(input_name, input_)

    def deprocess(self, input_name: str, input_: np.ndarray) -> np.ndarray:
        """Revert `preprocess`, except for the resizing."""
        warn("net.deprocess(…)", f'transformer.deprocess("{input_name}", values), of a caffe.io.Transformer')
        return self._preprocessing.deprocess(input_name, input_)


def set_early_scale(transformer: preprocessing.Transformer, input_: str, scale: float, depth: int) -> None:
    """Set the input_scale of 2014, which was applied before the mean: raw_scale since.

    It is taken for that if it enlarges (255, of pixels from 0 to 1) and there is no raw_scale; else it is today's input_scale.
    """
    if scale > 1 and input_ not in transformer.raw_scale:
        today = f'transformer.set_raw_scale("{input_}", {scale:g}): it is applied before the mean, which today is raw_scale'
        warn("input_scale above 1 without raw_scale", today, depth)
        transformer.set_raw_scale(input_, scale)
    else:
        warn("net.set_input_scale(…)", f'transformer.set_input_scale("{input_}", {scale:g}), of a caffe.io.Transformer', depth)
        transformer.set_input_scale(input_, scale)


def keywords(settings: dict[str, Any], given: dict[str, Any], class_name: str) -> None:
    """Put keywords that a Classifier or Detector took in 2014, mean_file and gpu, into today's settings."""
    unknown = sorted(set(given) - {"mean_file", "gpu"})
    if unknown:
        raise TypeError(f"caffe.{class_name} takes no argument {', '.join(unknown)}")
    if given.get("gpu"):
        warn("gpu=True", f"caffe.set_mode_gpu() before caffe.{class_name}(…)", 3)
        mode.set_mode_gpu()
    elif "gpu" in given:
        warn("gpu=False", f"caffe.set_mode_cpu() before caffe.{class_name}(…)", 3)
        mode.set_mode_cpu()
    if (mean_file := given.get("mean_file")) is not None:
        warn("mean_file=…", f'caffe.{class_name}(…, mean=np.load("{mean_file}"))', 3)
        settings["mean"] = mean_file
        if settings["input_scale"] is not None and settings["raw_scale"] is None:
            warn("input_scale=… with mean_file=…", "raw_scale=…: it is applied before the mean", 3)
            settings["raw_scale"], settings["input_scale"] = settings["input_scale"], None
