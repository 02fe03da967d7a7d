"""FlowNet's changes of image batches (Dosovitskiy et al. 2015): affine maps and colours, on the batches' device.

Source of the formulas: data_augmentation_layer.cu of lmb-freiburg/flownet2.
"""

import torch
from torch import Tensor

_DARK = 1e-2
"""Extents of colours that are too small to be changed."""


def warp(x: Tensor, matrices: Tensor, size: tuple[int, int]) -> Tensor:
    """Crops of images (N, C, H, W): at each pixel the image's value at (N, 2, 3) matrices · (x, y, 1), bilinear.

    Places outside are moved to the edge, and as in the fork those less than 1.05 pixels from the right and the lower edge there.
    """
    height, width = x.shape[2:]
    across, down = (torch.arange(extent, device=x.device, dtype=torch.float32) for extent in size[::-1])
    of_x, of_y, shift = matrices[:, :, 0, None, None], matrices[:, :, 1, None, None], matrices[:, :, 2, None, None]
    places = of_x * across + of_y * down[:, None] + shift
    right, lower = (places[:, axis].clamp_max(extent - 1.05).clamp_min(0) for axis, extent in ((0, width), (1, height)))
    left, upper = right.floor(), lower.floor()
    alpha, beta = (right - left)[:, None], (lower - upper)[:, None]
    pixels = x.flatten(2)

    def at(row: Tensor, column: Tensor) -> Tensor:
        index = (row.long().clamp_max(height - 1) * width + column.long().clamp_max(width - 1)).flatten(1)[:, None]
        return pixels.gather(2, index.expand(-1, x.shape[1], -1)).view(*x.shape[:2], *size)

    above = (1 - alpha) * at(upper, left) + alpha * at(upper, left + 1)
    below = (1 - alpha) * at(upper + 1, left) + alpha * at(upper + 1, left + 1)
    return (1 - beta) * above + beta * below


def change_along(axes: Tensor, x: Tensor, top: Tensor, changes: dict[str, Tensor]) -> Tensor:
    """Change colours along axes (3, 3), rows of which are vectors: brightness along the first one, hue and saturation.

    x    the batch that the mean and the extents of the colours are of
    top  the images to change, (N, 3, H', W')
    changes  {name: (N, 1, 1)}, see flow_coefficients.EIGEN
    """

    def signed_power(value: Tensor, exponent: Tensor) -> Tensor:
        return torch.copysign(value.abs() ** exponent, value)

    def along(image: Tensor) -> Tensor:
        return torch.einsum("ac,nchw->nahw", axes, image)

    extent = along(x).abs().amax((0, 2, 3))
    wide = (extent > _DARK).tolist()
    unit = torch.where(extent > _DARK, extent, 1.0).view(1, 3, 1, 1)
    mean = x.mean((0, 2, 3)).view(1, 3, 1, 1)
    longest = torch.linalg.vector_norm(extent)
    of_mean = along(mean) / unit
    parts = list((along(top - mean) / unit).unbind(1))
    for axis, is_wide in enumerate(wide):
        if is_wide:
            powered = signed_power(parts[axis], changes[f"pow_nomean{axis}"])
            parts[axis] = (powered + changes[f"add_nomean{axis}"]) * changes[f"mult_nomean{axis}"]
        parts[axis] = parts[axis] + of_mean[:, axis]
    first, second, third = parts
    if wide[0]:
        first = (signed_power(first, changes["pow_withmean0"]) + changes["add_withmean0"]) * changes["mult_withmean0"]
    saturation = (second**2 + third**2).sqrt()
    coloured = saturation > _DARK
    other = (saturation ** changes["pow_withmean1"] + changes["add_withmean1"]).clamp_min(0) * changes["mult_withmean1"]
    cosine, sine = changes["col_angle"].cos(), changes["col_angle"].sin()
    second, third = cosine * second - sine * third, sine * second + cosine * third
    colour = torch.stack([first, second, third], 1) * unit
    length = torch.linalg.vector_norm(colour, dim=1) / longest.clamp_min(_DARK)
    factor = torch.where(coloured, other / saturation.clamp_min(_DARK), 1.0)
    colour = torch.cat([colour[:, :1], colour[:, 1:] * factor[:, None]], 1)
    now = torch.linalg.vector_norm(colour, dim=1)
    wanted = (length ** changes["lmult_pow"] + changes["lmult_add"]).clamp_min(0) * changes["lmult_mult"] * longest
    scaled = colour / now.clamp_min(_DARK)[:, None] * wanted[:, None]
    limited = torch.minimum(scaled, extent.view(1, 3, 1, 1))
    colour = torch.where(((now > _DARK) & (longest > _DARK))[:, None], limited, colour)
    return torch.einsum("ac,nahw->nchw", axes, colour)


def change_colours(images: Tensor, changes: dict[str, Tensor]) -> Tensor:
    """Multiply the channels of images (N, 3, H, W), keep their sum, and change gamma, brightness and contrast.

    changes  {name: (N, 1, 1)}, see flow_coefficients.CHROMATIC
    """
    factors = torch.stack([changes[name] for name in ("color1", "color2", "color3")], 1)
    coloured = images * factors
    coloured = coloured * (images.sum(1, keepdim=True) / (coloured.sum(1, keepdim=True) + 0.01))
    coloured = coloured.clamp(0, 1) ** changes["gamma"][:, None] + changes["brightness"][:, None]
    return 0.5 + (coloured - 0.5) * changes["contrast"][:, None]
