"""Copies of mapped files to a device, by way of two pinned buffers.

A device copies at full speed, and beside the host's work, from pinned memory only. So one buffer is filled from the
file while the other one is on its way.
"""

from collections.abc import Callable

import torch
from torch import Tensor

_BUFFER_BYTES = 64 << 20


class Staging:
    """Copies tensors to one device, in the order of its current stream. On a CPU the buffers aren't pinned."""

    def __init__(
        self, device: torch.device, on_copied: Callable[[int], None] | None = None, buffer_bytes: int = _BUFFER_BYTES
    ) -> None:
        """on_copied: told the number of bytes whenever so many have left their file."""
        self._device, self._on_copied = device, on_copied
        self._buffers = [_Buffer(buffer_bytes, device) for _ in range(2)]

    def copy(self, source: Tensor) -> Tensor:
        """A tensor of the source's shape and dtype on the device. The copy is begun, and the source may go; whoever
        uses the result on the device's current stream finds it complete."""
        target = torch.empty(source.shape, dtype=source.dtype, device=self._device)
        from_bytes, to_bytes = (tensor.reshape(-1).view(torch.uint8) for tensor in (source, target))
        size = self._buffers[0].size
        for begin in range(0, from_bytes.shape[0], size):
            part = from_bytes[begin : begin + size]
            self._buffers[0].send(part, to_bytes[begin : begin + size])
            self._buffers.reverse()
            if self._on_copied is not None:
                self._on_copied(part.shape[0])
        return target


class _Buffer:
    def __init__(self, size: int, device: torch.device) -> None:
        self.size = size
        is_cuda = device.type == "cuda"
        self._bytes = torch.empty(size, dtype=torch.uint8, pin_memory=is_cuda)
        # When the buffer's last copy is done. On a CPU it is when it returns.
        self._sent = torch.cuda.Event() if is_cuda else None

    def send(self, source: Tensor, target: Tensor) -> None:
        """Begins to copy source, uint8 of at most `size` bytes, to target, as many on the device."""
        if self._sent is not None:
            self._sent.synchronize()
        staged = self._bytes[: source.shape[0]].copy_(source)
        target.copy_(staged, non_blocking=True)
        if self._sent is not None:
            self._sent.record()
