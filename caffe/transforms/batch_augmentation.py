"""Apply the changes that caffe.transforms.augmentation draws to a whole batch on its device, a GPU."""

import numpy as np
import torch

from caffe.transforms.augmentation import LEAST_BLUR, Augmentation, Changes, blur_radius, pixel_matrices


def augment_batch(augmentation: Augmentation, images: torch.Tensor, changes: Changes) -> torch.Tensor:
    """Apply changes to N × channels × height × width, uint8."""
    count, channels, height, width = images.shape
    augmentation.check(channels, images.dtype == torch.uint8)

    def to_device(array: np.ndarray | list[np.ndarray]) -> torch.Tensor:
        return torch.as_tensor(np.asarray(array), dtype=torch.float32, device=images.device)

    pixels = images.float()
    if changes.factors is not None or changes.shifts is not None:
        means = pixels.mean((2, 3)).cpu().double().numpy()
        colours = to_device([augmentation.colour_matrix(mean, changes, index) for index, mean in enumerate(means.tolist())])
        pixels = torch.baddbmm(colours[:, :, -1:], colours[:, :, :-1], pixels.flatten(2)).view_as(pixels)
        pixels = pixels.round_().clamp_(0, 255)
    if changes.matrices is not None:
        # grid_sample's coordinates are -1 and 1 at the centres of the outermost pixels.
        to_pixels = pixel_matrices(changes.matrices, height, width)
        to_grid = np.array([2 / max(width - 1, 1), 2 / max(height - 1, 1)])
        ys, xs = np.mgrid[:height, :width].reshape(2, -1)
        places = to_device(np.stack([xs, ys, np.ones_like(xs)], 1))
        grid = (places @ to_device(to_pixels * to_grid[:, None]).mT - 1).view(count, height, width, 2)
        pixels = torch.nn.functional.grid_sample(pixels, grid, "bilinear", "reflection", align_corners=True).round_()
    if changes.blurs is not None:
        pixels = _blur(pixels, to_device(changes.blurs)).round_()
    if changes.noises is not None:
        noise = to_device([changes.noise(index, images.shape[1:]) for index in range(count)])
        pixels = pixels.add_(noise).round_().clamp_(0, 255)
    return pixels.to(torch.uint8)


def _blur(pixels: torch.Tensor, sigmas: torch.Tensor) -> torch.Tensor:
    """Blur each image of a batch by its own Gaussian, along one axis, then the other."""
    count, channels, height, width = pixels.shape
    far = min(blur_radius(float(sigmas.max())), height - 1, width - 1)
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
