"""The changes that caffe.transforms.augmentation draws, made for a whole batch at once where it lies: on a GPU."""

from __future__ import annotations

import numpy as np
import torch

from caffe.transforms.augmentation import LEAST_BLUR, Augmentation, Changes, in_pixels, reach


def changed_batch(augmentation: Augmentation, images: torch.Tensor, changes: Changes) -> torch.Tensor:
    """N × channels × height × width, uint8, with their changes; noise is another than `Augmentation.changed` makes."""
    count, channels, height, width = images.shape
    augmentation.check(channels, images.dtype == torch.uint8)

    def there(array):
        return torch.as_tensor(np.asarray(array), dtype=torch.float32, device=images.device)

    pixels = images.float()
    if changes.factors is not None or changes.shifts is not None:
        means = pixels.mean((2, 3)).cpu().double().numpy()
        colours = there([augmentation.colours(mean, changes, index) for index, mean in enumerate(means)])
        pixels = torch.baddbmm(colours[:, :, -1:], colours[:, :, :-1], pixels.flatten(2)).view_as(pixels)
        pixels = pixels.round_().clamp_(0, 255)
    if changes.matrices is not None:
        # grid_sample's coordinates are -1 and 1 at the centres of the outermost pixels.
        to_pixels = np.stack([in_pixels(matrix, height, width) for matrix in changes.matrices])
        to_grid = np.array([2 / max(width - 1, 1), 2 / max(height - 1, 1)])
        ys, xs = np.mgrid[:height, :width].reshape(2, -1)
        places = there(np.stack([xs, ys, np.ones_like(xs)], 1))
        grid = places @ there(to_pixels * to_grid[:, None]).mT - 1
        grid = grid.view(count, height, width, 2)
        pixels = torch.nn.functional.grid_sample(pixels, grid, "bilinear", "reflection", align_corners=True).round_()
    if changes.blurs is not None:
        pixels = _blurred(pixels, there(changes.blurs)).round_()
    if changes.noises is not None:
        generator = torch.Generator(images.device).manual_seed(int(changes.seeds[0]))
        noise = torch.randn(pixels.shape, device=images.device, generator=generator)
        pixels = pixels.addcmul_(noise, there(changes.noises)[:, None, None, None]).round_().clamp_(0, 255)
    return pixels.to(torch.uint8)


def _blurred(pixels: torch.Tensor, sigmas: torch.Tensor) -> torch.Tensor:
    """Each image of a batch blurred by its own Gaussian, along one axis, then the other."""
    count, channels, height, width = pixels.shape
    far = min(reach(float(sigmas.max())), height - 1, width - 1)
    places = torch.arange(-far, far + 1, device=pixels.device)
    weights = torch.exp(-0.5 * (places / sigmas.clamp(min=1e-3)[:, None]) ** 2)
    weights[sigmas <= LEAST_BLUR] = (places == 0).float()
    weights[places.abs() > (3 * sigmas).ceil().clamp(min=1)[:, None]] = 0
    weights = (weights / weights.sum(1, keepdim=True)).repeat_interleave(channels, 0)[:, None]
    planes = pixels.reshape(1, count * channels, height, width)
    for kernel, padding in ((weights[:, :, None], (far, far, 0, 0)), (weights[:, :, :, None], (0, 0, far, far))):
        padded = torch.nn.functional.pad(planes, padding, "reflect")
        planes = torch.nn.functional.conv2d(padded, kernel, groups=count * channels)
    return planes.view_as(pixels)
