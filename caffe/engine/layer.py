"""Layer: the base of all layer types, and the registry that finds them by name."""

from __future__ import annotations

import functools
import importlib
import pkgutil
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias, TypeVar

import numpy as np
import torch

from caffe.engine import fillers
from caffe.engine.blob import Blob
from caffe.engine.parameter import Parameter
from caffe.engine.running import Added
from caffe.errors import LayerError, nearest
from caffe.formats.weight_files import Stored
from caffe.proto import caffe_pb2
from caffe.transfers import LateCopy

_TYPES: dict[str, type[Layer]] = {}
_FIELDS = {name.removesuffix("_param").replace("_", ""): name for name in caffe_pb2.LayerParameter.DESCRIPTOR.fields_by_name}
MOST_DEFERRED = 64
"""Largest number of values of a layer that are not checked yet."""
Shape = tuple[int, ...]
_Value = TypeVar("_Value")
LayerClass: TypeAlias = "type[Layer]"
Tops = torch.Tensor | tuple[torch.Tensor, ...]
"""Result of a layer's `forward`: its only top, or all of them."""


class BlobSpec(NamedTuple):
    """One blob of a layer: its name, as PyTorch names a module's tensors, and whether the solver learns it from its gradient.

    The others are running statistics, which the layer updates in its forward pass in training.
    """

    name: str
    learned: bool = True


WEIGHT, BIAS = BlobSpec("weight"), BlobSpec("bias")


class Layer:
    """Base class of the layer types: what one `layer { … }` of a net computes.

    A type says in `setup` which parameters it learns, in `top_shapes` how large its tops are, and in `forward` its tops from its
    bottoms, with PyTorch's operations; autograd gives the gradient. It knows nothing of device, precision or memory layout: the
    net's executor decides those.

    param     the layer's LayerParameter
    phase     caffe.TRAIN or caffe.TEST
    blobs     the learned parameters, in Caffe's order
    where     how errors name this layer: file, line and layer
    bottom_names  the bottoms as the prototxt names them, before splits are inserted
    """

    type = "Layer"
    bottoms: tuple[int, int | None] = (1, 1)
    """Least and greatest number of bottoms; None is no limit."""
    tops: tuple[int, int | None] = (1, 1)
    """Least and greatest number of tops."""
    is_loss = False
    """The first top has loss weight 1 unless the prototxt gives another, and a layer without tops is given one."""
    differentiable_bottoms: tuple[int, ...] | None = None
    """Bottoms that a gradient can reach; None is all. Labels are not among them."""
    keeps_output = True
    """Whether the gradient is computed from the output, so that a following layer may not overwrite it."""
    runs_user_code = False
    """Whether its code is the user's: its errors name the layer already, and its backward pass runs without a gradient, too."""
    begins_layout = False
    """Whether its tops are put into the net's memory layout; those of other layers inherit their bottoms'."""

    settings_field = ""
    """Field of LayerParameter that holds the type's own parameters; "" if it has none."""
    learns: tuple[BlobSpec, ...] = ()
    """Its blobs, if they are the same in all layers of the type but for a bias, which `bias_term: false` leaves out."""
    keeps_shape = False
    """Whether every top has the shape of the first bottom."""
    gives_maps: bool | None = None
    """Whether the tops have height and width; None if they do where the first bottom does."""
    copies_values = False
    """Whether the tops have the bottom's values, possibly in another shape; Dropout in testing."""
    is_elementwise = False
    """Whether a value of a top depends only on the bottoms' values at the same position."""
    is_channelwise = False
    """Whether it treats the values of a vector as it treats the channels of a map."""
    rescales = False
    """Whether it can bring inputs as large as pixel values to a smaller scale."""
    is_linear = False
    """Whether the tops are weighted sums of the bottom's values, plus a bias: the layers that a net's depth is counted in."""
    is_transposed = False
    """Whether a linear layer's weights are (inputs, outputs / group, …) instead of (outputs, inputs / group, …)."""
    is_classifier = False
    """Whether it can be a classifier's last layer: `num_output` scores, each from all inputs."""
    is_affine = False
    """Whether it multiplies by and adds vectors along some axes of the first bottom."""
    normalizes_batch = False
    """Whether it normalises each channel, in training by its batch's statistics."""
    statistics_setting = ""
    """Setting of `settings_field` that makes training use the stored running statistics."""
    applies_softmax = False
    """Whether it computes the softmax of its first bottom."""
    compares_labels = False
    """Whether it compares scores with one label for each position, as a loss or an accuracy; `along` is the class axis."""
    reads_out = False
    """Whether it only derives probabilities, classes or an accuracy from class scores, or discards them."""
    is_source = False
    """Whether it has no bottoms and knows its tops' shapes before there are values."""
    is_input = False
    """Whether its tops are inputs of the net, whose values the caller sets."""
    reads = ""
    """Data of a source: "database" (records with a label), "image list" (lines `path label`), "arrays", "records" (others)."""
    drawn_as = ""
    """Group by which drawings colour it: convolution, pooling, inner product, arrangement, loss; "" for others."""
    activation: tuple[str, tuple[float, ...]] | None = None
    """Name and numbers by which PyTorch's fused operations know what it computes; None if they do not."""
    only_adds = False
    """Whether its top is the sum of its bottoms."""
    joins_channels = False
    """Whether it puts the channels of its bottoms together."""
    is_by_channel = False
    """Whether each channel of its one top depends on that channel of its one bottom alone."""
    takes_affine = False
    """Whether `then_affine` computes it with an affine layer after it, in training."""
    takes_relu = False
    """Whether `then_relu` computes it with a ReLU in place after it, in one pass over memory on GPUs."""
    can_be_folded = False
    """Whether it is a convolution of images whose weights can take up affine layers that follow."""
    takes_bfloat16 = False
    """Whether `forward` also takes bottoms in bfloat16, of which `fast` makes products; a linear layer then always gets those."""
    is_capturable = False
    """Whether passes over batches of one shape are the same operations on tensors, none of which the host waits for, so that a
    CUDA graph can repeat them."""
    overwrites = False
    """Set by the executor on a layer whose top is its bottom and whose `forward` may write into it."""

    deferred: Sequence[LateCopy] = ()
    """Values on a GPU that `check_deferred` has still to check, such as the range of the labels."""
    captured: list[torch.Tensor] | None = None
    """Set while a pass is captured as a CUDA graph: where `defer` puts the values, which each replay makes anew."""

    def __init__(self, param: caffe_pb2.LayerParameter, phase: int, where: str, device: torch.device):
        self.param = param
        self.phase = phase
        self.where = where
        self.bottom_names = list(param.bottom)
        self.device = device
        self.blobs: list[Parameter] = []
        self.added: Added | None = None
        """What the last forward pass adds to running sums; the executor adds it, and sets None."""
        self.made_once: dict[int, torch.Tensor] = {}
        """Tops that are made once, by number; afterwards they hold what the user wrote."""

    def __init_subclass__(cls, *, is_capturable: bool = False, takes_bfloat16: bool = False, **options: Any) -> None:
        """Two attributes that are not inherited, as `forward` of a derived class may be another."""
        super().__init_subclass__(**options)
        cls.is_capturable, cls.takes_bfloat16 = is_capturable, takes_bfloat16

    @classmethod
    def implementation(cls, param: caffe_pb2.LayerParameter, where: str) -> LayerClass:
        """The class that computes a layer of this type: the type's own, but for Python layers."""
        return cls

    @classmethod
    def blob_specs(cls, param: caffe_pb2.LayerParameter) -> tuple[BlobSpec, ...] | None:
        """The blobs of a layer of this type, in Caffe's order, as its prototxt determines them; the net need not be built.

        None if only the built layer knows them (Python layers).
        """
        return cls.learns if getattr(cls.settings_of(param), "bias_term", True) else cls.learns[:1]

    @classmethod
    def settings_of(cls, param: caffe_pb2.LayerParameter) -> Any:
        """The message in `param` with the type's own parameters; None if the type has none."""
        return getattr(param, cls.settings_field) if cls.settings_field else None

    @classmethod
    def has_statistics(cls, param: caffe_pb2.LayerParameter) -> bool:
        """Whether the layer stores running statistics, which training updates unless they are frozen."""
        return not all(spec.learned for spec in cls.blob_specs(param) or ())

    @classmethod
    def updates_statistics(cls, param: caffe_pb2.LayerParameter) -> bool:
        """Whether training updates running statistics of the layer."""
        return cls.has_statistics(param) and not getattr(cls.settings_of(param), cls.statistics_setting)

    @classmethod
    def stores_sums(cls, param: caffe_pb2.LayerParameter) -> bool:
        """Whether the stored mean and variance are sums, to be divided by the third blob."""
        return False

    @classmethod
    def tests_by_batch(cls, param: caffe_pb2.LayerParameter) -> bool:
        """Whether testing, too, normalises by the statistics of the batch."""
        return False

    @classmethod
    def epsilon(cls, param: caffe_pb2.LayerParameter) -> float:
        """What is added to the variance by a type that normalises batches."""
        return 0.0

    @classmethod
    def freeze_statistics(cls, param: caffe_pb2.LayerParameter) -> None:
        """Change `param` so that training uses the stored running statistics and does not update them."""
        if cls.has_statistics(param):
            setattr(cls.settings_of(param), cls.statistics_setting, True)

    @classmethod
    def choose_statistics(cls, param: caffe_pb2.LayerParameter, stored: bool | None) -> None:
        """Change `param` so that both phases use stored (True) or batch statistics (False); None: each phase its own."""

    def setup(self, *shapes: tuple[int, ...]) -> None:
        """Check the parameters against the bottoms' shapes and declare `blobs`; called once."""

    def top_shapes(self, *shapes: tuple[int, ...]) -> list[tuple[int, ...]]:
        """Check that the bottoms' shapes fit together; returns the tops' shapes, which are known before there are values."""
        if self.keeps_shape:
            return [shapes[0]] * len(self.param.top)
        raise NotImplementedError

    def reshape(self, bottom: Sequence[Blob], top: Sequence[Blob]) -> None:
        """Give the tops the shapes that follow from the bottoms', for scripts that call it: `net.reshape()` does it for all."""
        for blob, shape in zip(top, self.top_shapes(*[each.shape for each in bottom]), strict=True):
            blob.reshape(*shape)

    def forward(self, *bottoms: torch.Tensor) -> Tops:
        """The tops."""
        raise NotImplementedError

    def per_channel(self) -> tuple[torch.Tensor | None, torch.Tensor | None] | None:
        """Factor and term of each channel, (C,), if y = factor · x + term along the second axis; None if it is not that.

        A factor or term that is None is 1 or 0.
        """
        return None

    def then_affine(self, x: torch.Tensor, scale: torch.Tensor | None, shift: torch.Tensor | None) -> torch.Tensor:
        """The top, multiplied by `scale` and increased by `shift` along the second axis, both (C,), as one operation."""
        raise NotImplementedError

    def then_relu(self, *bottoms: torch.Tensor) -> torch.Tensor:
        """The top of a sum or a Scale, or 0 where it is less; NaN stays NaN."""
        raise NotImplementedError

    def normalised(self, x: torch.Tensor, scale: torch.Tensor | None, shift: torch.Tensor | None) -> torch.Tensor:
        """What `then_affine` gives by the batch's statistics, for a second time: nothing is added to running sums."""
        raise NotImplementedError

    def defer(self, value: torch.Tensor) -> None:
        """Let `check_deferred` check a value on a GPU; the earlier ones are checked now if they are many, as nobody else does."""
        if self.captured is not None:
            self.captured.append(value)
            return
        if len(self.deferred) >= MOST_DEFERRED:
            self.check_deferred()
        self.deferred = [*self.deferred, LateCopy(value)]

    def check_deferred(self) -> None:
        """Check the values in `deferred`, and empty it. Raises LayerError for the first that is wrong."""

    def batch_dependence(self) -> str:
        """Why gradients depend on which records form a batch, or on chance, as a phrase; "" if they do not.

        A net without such layers learns the same from n processes as from one with iter_size n.
        """
        return ""

    def lay_out(self, layout: torch.memory_format) -> None:
        """Put the parameters, and tops that would be converted at each pass, into a memory layout for images."""

    def convert_blobs(self, stored: list[Stored]) -> list[Stored]:
        """The parameters of a weights file as this layer has them, where it can take others than of its own shapes."""
        return stored

    def advice_for_blobs(self, count: int) -> str:
        """What to do about a weights file with `count` blobs for this layer, which has another number of them."""
        return "rename the layer to train it from scratch"

    def seek_batch(self, number: int) -> None:
        """Continue with batch `number`, counted from 0 over all epochs, in a layer that reads records."""

    def set_arrays(self, data: np.ndarray, labels: np.ndarray) -> None:
        """Take arrays to read from, in a MemoryData layer."""
        raise self.error(f"a first layer of type {self.type}", "set_input_arrays feeds a MemoryData layer")

    def close(self) -> None:
        """Stop threads and close files; `forward` starts again."""

    def keep(self, state: caffe_pb2.LayerState) -> None:
        """Store the layer's state between iterations, besides `blobs`, in a snapshot."""

    def resume(self, state: caffe_pb2.LayerState) -> None:
        """Restore what `keep` wrote. ValueError, TypeError or KeyError if the state is damaged."""

    def add_blob(self, shape: tuple[int, ...], filler: caffe_pb2.FillerParameter) -> None:
        """Declare a learned parameter, filled as `filler` says."""
        blob = Parameter(shape, self.device)
        if fill := fillers.later(blob.shape, filler):
            blob.fill_later(fill)
        else:
            fillers.fill(blob.tensor, filler, self.where)
        self.blobs.append(blob)

    def parameters(self, like: torch.Tensor | None = None) -> list[torch.Tensor]:
        """The learned parameters as tensors of the autograd graph, of the type of `like`."""
        tensors = [blob.graph_tensor() for blob in self.blobs]
        return tensors if like is None or like.dtype is torch.float32 else [tensor.to(like.dtype) for tensor in tensors]

    def error(self, found: str, expected: str = "", do: str = "") -> LayerError:
        """An error that names this layer."""
        return LayerError(self.where, found, expected, do)

    def axis(self, axis: int, axes: int) -> int:
        """A possibly negative axis of something with `axes` axes, as a position from 0."""
        if not -axes <= axis < axes:
            raise self.error(f"axis {axis}", f"its bottom has {axes} axes (-{axes} to {axes - 1})")
        return axis % axes

    def require_positive(self, *names: str, expected: str = "it must be at least 1") -> None:
        """Raise LayerError if one of these settings, which have no default, is less than 1."""
        for name in names:
            if getattr(self.settings_of(self.param), name) < 1:
                raise self.error(f"{name} is not given", expected)

    def require_maps(self, shape: Shape) -> None:
        """Raise LayerError unless the bottom has the axes (N, C, H, W)."""
        if len(shape) != 4:
            raise self.error(f"a bottom of shape {shape}", f"{self.type} takes 4 axes (N, C, H, W)")

    def require_same_shape(self, *shapes: Shape) -> None:
        """Raise LayerError unless all these bottoms have one shape."""
        if len(set(shapes)) > 1:
            raise self.error(f"bottoms of shapes {', '.join(map(str, shapes))}", "all must have the same shape")

    def for_each(self, values: Sequence[_Value], count: int, name: str, of: str) -> list[_Value]:
        """A list with a value for each of `count` things (`of`: "tops"); a single value (`name`: "shapes") is repeated."""
        if len(values) not in (1, count):
            raise self.error(f"{len(values)} {name} for {count} {of}", "give one for all, or one for each")
        return [*values] * (count // len(values))


def register(name: str, settings_field: str = "") -> Callable[[type[Layer]], type[Layer]]:
    """Class decorator: make a layer type known under `name`.

    settings_field  the type's `settings_field`; by default named like the type, else the base class's
    """

    def decorate(layer_type: type[Layer]) -> type[Layer]:
        layer_type.type = name
        layer_type.settings_field = settings_field or _FIELDS.get(name.lower(), layer_type.settings_field)
        _TYPES[name] = layer_type
        return layer_type

    return decorate


@functools.cache
def known_types() -> dict[str, type[Layer]]:
    """{name: class} of every layer type: all that the modules of caffe.layer_types register."""
    package = importlib.import_module("caffe.layer_types")
    for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
        importlib.import_module(module.name)
    return _TYPES


def layer_type_list() -> list[str]:
    """Names of all layer types, sorted."""
    return sorted(known_types())


def layer_type(name: str, where: str = "") -> type[Layer]:
    """The class of a layer type, whose attributes describe it: `caffe.layer_type("Scale").blob_specs(param)`.

    where  the layer that has the type, as the error names it: file, line and layer
    Raises LayerError, with the nearest known types, if there is no such type.
    """
    types = known_types()
    if name not in types:
        hint = nearest(name, types) or "caffe.layer_type_list() names the known ones"
        raise LayerError(where, f'unknown type "{name}"', do=hint)
    return types[name]
