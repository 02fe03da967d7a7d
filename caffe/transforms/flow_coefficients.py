"""Coefficients of FlowNet's augmentation (Dosovitskiy et al. 2015): how they are drawn, stored in blobs, and made affine maps.

A blob of coefficients is (N, 42, 1, 1), in the order of NAMES: the values of those whose default is 0, and the logarithms of
those whose default is 1, so that zeros change nothing and adding blobs composes changes. Source: augmentation_layer_base.cpp
of lmb-freiburg/flownet2.
"""

import math

import numpy as np

from caffe.errors import Error
from caffe.numerics import scalars
from caffe.numerics.generator import Generator
from caffe.proto import caffe_pb2

SPATIAL = {"mirror": 0, "dx": 0, "dy": 0, "angle": 0, "zoom_x": 1, "zoom_y": 1}
CHROMATIC = {"gamma": 1, "brightness": 0, "contrast": 1, "color1": 1, "color2": 1, "color3": 1}
EIGEN = {
    **{
        f"{change}_{mean}{axis}": int(change != "add")
        for mean in ("nomean", "withmean")
        for change in ("pow", "add", "mult")
        for axis in range(3)
    },
    **{"lmult_pow": 1, "lmult_add": 0, "lmult_mult": 1, "col_angle": 0},
}
EFFECTS = dict.fromkeys(
    (
        *("fog_amount", "fog_size", "motion_blur_angle", "motion_blur_size"),
        *("shadow_angle", "shadow_distance", "shadow_strength", "noise"),
    ),
    0,
)
DEFAULTS = {**SPATIAL, **CHROMATIC, **EIGEN, **EFFECTS}
NAMES = tuple(DEFAULTS)
_IS_FACTOR = np.array(list(DEFAULTS.values()), bool)

# {field of FlowAugmentationParameter: the coefficients that its numbers become}, in the order in which they are drawn.
_DRAWN: dict[str, dict[str, tuple[str, ...]]] = {
    "chromatic": {
        "gamma": ("gamma",),
        "brightness": ("brightness",),
        "contrast": ("contrast",),
        "color": ("color1", "color2", "color3"),
    },
    "eigen": {
        **{
            f"{field}_{change}": names
            for change in ("pow", "add", "mult")
            for field, names in (
                ("ladd", (f"{change}_nomean0",)),
                ("col", (f"{change}_nomean1", f"{change}_nomean2")),
            )
        },
        **{f"sat_{change}": (f"{change}_withmean1",) for change in ("pow", "add", "mult")},
        **{name: (name,) for name in ("lmult_pow", "lmult_mult", "lmult_add")},
        "col_rotate": ("col_angle",),
    },
    "effects": {name: (name,) for name in EFFECTS},
}
_SPATIAL_FIELDS = ("mirror", "translate", "translate_x", "translate_y", "rotate", "zoom", "squeeze")
_TRIALS = 50
"""How often a place is drawn whose corners shall lie inside the image."""

Coefficients = dict[str, float]


def to_blob(coefficients: Coefficients) -> np.ndarray:
    """Coefficients as they are stored: float32."""
    values = np.array([coefficients.get(name, default) for name, default in DEFAULTS.items()], np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(_IS_FACTOR, np.log(values), values).astype(np.float32)


def from_blob(stored: np.ndarray) -> Coefficients:
    """Coefficients from their blob; those that differ from their default by less than 0.001 are their default."""
    values = np.where(_IS_FACTOR, np.exp(stored.astype(np.float64)), stored)
    near = np.abs(values - _IS_FACTOR) < 1e-3
    return dict(zip(NAMES, np.where(near, _IS_FACTOR, values).tolist(), strict=True))


class Drawing:
    """Draws coefficients as a FlowAugmentationParameter says."""

    def __init__(self, param: caffe_pb2.FlowAugmentationParameter, schedule: caffe_pb2.CoeffScheduleParameter, where: str):
        self.param, self.schedule, self.where = param, schedule, where
        kinds = ("uniform", "gaussian", "bernoulli", "uniform_bernoulli", "gaussian_bernoulli")
        for field, value in param.ListFields():
            if isinstance(value, caffe_pb2.RandomGeneratorParameter) and value.rand_type not in kinds:
                raise Error(where, f'{field.name}.rand_type "{value.rand_type}"', f"it must be one of {', '.join(kinds)}")
        self.fields = {group: [name for name in names if param.HasField(name)] for group, names in _DRAWN.items()}
        self.fields["spatial"] = [name for name in _SPATIAL_FIELDS if param.HasField(name)]

    def share(self, passes: int) -> float:
        """What multiplies the spread in the pass of that number, from 1."""
        p = self.schedule
        progress = 2 / (1 + scalars.exp(-1.0986 * passes / p.half_life)) - 1
        return float(p.initial_coeff + (p.final_coeff - p.initial_coeff) * progress)

    def number(self, field: str, rng: Generator, share: float, default: float | None = None) -> float:
        """A number as the field of that name says; with `default`, that is the number where a *_bernoulli does not happen."""
        p = getattr(self.param, field)
        spread = max(0, p.spread * share if p.apply_schedule else p.spread)
        happens = not p.rand_type.endswith("bernoulli") or rng.random() < p.prob
        if p.rand_type == "bernoulli":
            return float(p.multiplier * happens)
        if not happens and default is not None:
            return default
        value = 0.0
        if happens:
            chance = rng.uniform(-1, 1) if p.rand_type.startswith("uniform") else float(rng.normal(0, 1, 1)[0])
            value = p.mean + spread * chance
        if p.exp:
            value = scalars.exp(value)
        return float(p.multiplier) * (math.copysign(math.floor(abs(value) + 0.5), value) if p.discretize else value)

    def draw(self, group: str, rng: Generator, share: float) -> Coefficients:
        """Draw coefficients of colours or effects: "chromatic", "eigen" or "effects"."""
        drawn: Coefficients = {}
        for field in self.fields[group]:
            for name in _DRAWN[group][field]:
                drawn[name] = self.number(field, rng, share, 0.0 if group == "effects" and name != "noise" else None)
        for change in ("pow", "add", "mult"):  # saturation changes both colour axes alike
            if f"{change}_withmean1" in drawn:
                drawn[f"{change}_withmean2"] = drawn[f"{change}_withmean1"]
        return drawn

    def draw_place(
        self, rng: Generator, share: float, given: Coefficients, size: tuple[int, int], crop: tuple[int, int]
    ) -> Coefficients:
        """Draw a place and add it to a given one, until the crop's corners lie in an image of `size`, both height and width.

        After 50 trials the given one is returned.
        """
        start = to_blob(given)
        for _ in range(_TRIALS):
            drawn = from_stored(to_blob(self._place(rng, share)) + start)
            if _lies_inside(affine(drawn, size, crop), size, crop):
                return drawn
        return given

    def _place(self, rng: Generator, share: float) -> Coefficients:
        drawn: Coefficients = {}
        for field in self.fields["spatial"]:
            if field == "mirror":
                drawn["mirror"] = float(self.number(field, rng, 0.0) != 0)
            elif field == "translate":
                drawn["dx"], drawn["dy"] = (self.number(field, rng, share, 0.0) for _ in range(2))
            elif field == "squeeze":
                value = self.number(field, rng, share, 1.0)
                drawn["zoom_x"], drawn["zoom_y"] = drawn.get("zoom_x", 1.0) * value, drawn.get("zoom_y", 1.0) / value
            elif field == "zoom":
                drawn["zoom_x"] = drawn["zoom_y"] = self.number(field, rng, share, 1.0)
            else:
                name = {"translate_x": "dx", "translate_y": "dy", "rotate": "angle"}[field]
                drawn[name] = self.number(field, rng, share, 0.0)
        return drawn


def from_stored(stored: np.ndarray) -> Coefficients:
    """Coefficients from their blob, as they are."""
    return dict(zip(NAMES, np.where(_IS_FACTOR, np.exp(stored.astype(np.float64)), stored).tolist(), strict=True))


def affine(coefficients: Coefficients, size: tuple[int, int], crop: tuple[int, int]) -> np.ndarray:
    """The map, 2 × 3, from pixels (x, y, 1) of a crop to those of its image of `size`, both height and width.

    Relative to the centre: mirrored, rotated by angle (radians), moved by dx and dy (in crops), and divided by the zoom.
    """
    c = coefficients
    height, width = crop
    angle = c.get("angle", 0.0)
    cosine, sine = (float(f(angle)) for f in (np.cos, np.sin))
    zoom = np.array([c.get("zoom_x", 1.0), c.get("zoom_y", 1.0)])
    turn = np.array([[cosine, -sine], [sine, cosine]])
    flip = -1 if c.get("mirror", 0.0) else 1
    start = np.array([-flip * width / 2, -height / 2])
    moved = np.array([c.get("dx", 0.0) * width, c.get("dy", 0.0) * height])
    linear = turn * [flip, 1] / zoom[:, None]
    shift = (turn @ start + moved) / zoom + np.array([size[1], size[0]]) / 2
    return np.concatenate([linear, shift[:, None]], 1)


def _lies_inside(matrix: np.ndarray, size: tuple[int, int], crop: tuple[int, int]) -> bool:
    """Whether the crop's corners lie in the image, one pixel away from its right and lower edge."""
    height, width = crop
    corners = np.array([[x, y, 1] for x in (0, width - 1) for y in (0, height - 1)])
    x, y = np.floor(matrix @ corners.T)
    return bool((x >= 0).all() and (x <= size[1] - 2).all() and (y >= 0).all() and (y <= size[0] - 2).all())
