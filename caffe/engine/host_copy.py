"""Small results of a GPU that the host needs a little later: copied while the GPU goes on, without waiting for it."""

import torch
from torch import Tensor


class HostCopy:
    """A copy on the host of a tensor as it is now; of a tensor that is there already, the tensor itself.

    While the host waits for `item` or `.cpu()`, it gives a GPU nothing to do. A copy that was asked for after the forward pass
    has arrived long before the backward pass, which was started since, has ended.
    """

    def __init__(self, value: Tensor):
        value = value.detach()
        self._value, self._arrived = value, None
        if value.is_cuda:
            self._value = torch.empty(value.shape, dtype=value.dtype, pin_memory=True)
            self._value.copy_(value, non_blocking=True)
            self._arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._arrived.record(torch.cuda.current_stream(value.device))

    def wait(self) -> Tensor:
        """The copy, once it has arrived."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return self._value
