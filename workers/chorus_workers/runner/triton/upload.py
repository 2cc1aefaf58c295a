"""Arrays that go to the device in one copy."""

from collections.abc import Mapping
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
