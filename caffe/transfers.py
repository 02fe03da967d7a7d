"""Copies between the host and a GPU that neither waits for.

A plain copy waits until the GPU has done all that it was given before; meanwhile nobody gives it more to do.
"""

import torch
from torch import Tensor


def upload(value: Tensor, device: torch.device) -> Tensor:
    """A tensor of the host on a device."""
    return value.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else value.to(device)


class LateCopy:
    """A copy on the host of a tensor as it is now, for later.

    One that was asked for after the forward pass has arrived long before the backward pass, which was started since, has ended.
    """

    def __init__(self, value: Tensor):
        self._arrived: torch.cuda.Event | None = None
        if value.is_cuda:
            self._value = torch.empty(value.shape, dtype=value.dtype, pin_memory=True)
            self._value.copy_(value.detach(), non_blocking=True)
            self._arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._arrived.record(torch.cuda.current_stream(value.device))
        else:
            self._value = value.detach().clone()

    def wait(self) -> Tensor:
        """The copy, once it has arrived."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return self._value
