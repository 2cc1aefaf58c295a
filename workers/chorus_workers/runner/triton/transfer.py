"""Arrays that go to the device in one copy, and results that come back while the host does something else."""

from collections.abc import Mapping, Sequence
from itertools import accumulate

import numpy as np
import torch
from numpy.typing import ArrayLike, DTypeLike
from torch import Tensor

# Each array begins at a multiple of 16 bytes, which is what kernels take pointers for.
_ALIGNMENT = 16
_DTYPES = {np.dtype(np.int32): torch.int32, np.dtype(np.int64): torch.int64, np.dtype(np.float32): torch.float32}


class Upload:
    """Gathers arrays of 32- or 64-bit integers or float32."""

    def __init__(self) -> None:
        self._arrays: list[np.ndarray[tuple[int, ...], np.dtype[np.generic]]] = []

    def add(self, values: ArrayLike, dtype: DTypeLike = np.int32) -> int:
        """Returns the array's number."""
        self._arrays.append(np.ascontiguousarray(values, dtype))
        return len(self._arrays) - 1

    def to(self, device: torch.device) -> "Sent":
        """Sends everything."""
        offsets = [0, *accumulate(-(-array.nbytes // _ALIGNMENT) * _ALIGNMENT for array in self._arrays)]
        host = torch.empty(offsets[-1], dtype=torch.uint8, pin_memory=device.type == "cuda")
        buffer = host.numpy()
        for array, offset in zip(self._arrays, offsets, strict=False):
            buffer[offset : offset + array.nbytes] = array.reshape(-1).view(np.uint8)
        sent = host.to(device, non_blocking=True)
        return Sent(
            sent[offset : offset + array.nbytes].view(_DTYPES[array.dtype]).view(array.shape)
            for array, offset in zip(self._arrays, offsets, strict=False)
        )


class Sent(tuple[Tensor, ...]):
    """The tensors of an upload, by the arrays' numbers."""

    def named(self, numbers: Mapping[str, int]) -> dict[str, Tensor]:
        return {name: self[number] for name, number in numbers.items()}


class Download:
    """Copies of tensors to the host, begun at once and waited for later."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self._tensors = list(tensors)
        self._done: torch.cuda.Event | None = None
        if any(tensor.is_cuda for tensor in tensors):
            self._tensors = [_to_pinned(tensor) for tensor in tensors]
            self._done = torch.cuda.Event()
            self._done.record()

    def result(self) -> list[Tensor]:
        """The copies, once they are there."""
        if self._done is not None:
            self._done.synchronize()
        return self._tensors


def _to_pinned(tensor: Tensor) -> Tensor:
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    return host.copy_(tensor, non_blocking=True)
