"""Arrays that go to the device in one copy, and results that come back while the host does something else.

Copies have streams of their own: what a step needs goes up while the step before it runs, and what a step drew comes
down while the next one begins.
"""

from collections.abc import Mapping, Sequence
from functools import cache
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
        """Sends everything; what the current stream does from now on finds it there."""
        offsets = [0, *accumulate(-(-array.nbytes // _ALIGNMENT) * _ALIGNMENT for array in self._arrays)]
        host = torch.empty(offsets[-1], dtype=torch.uint8, pin_memory=device.type == "cuda")
        buffer = host.numpy()
        for array, offset in zip(self._arrays, offsets, strict=False):
            buffer[offset : offset + array.nbytes] = array.reshape(-1).view(np.uint8)
        sent = _to_device(host, device)
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
        if tensors and tensors[0].is_cuda:
            device = tensors[0].device
            stream = _download_stream(device)
            stream.wait_stream(torch.cuda.current_stream(device))
            with torch.cuda.stream(stream):
                self._tensors = [_to_pinned(tensor, stream) for tensor in tensors]
                self._done = torch.cuda.Event()
                self._done.record()

    def result(self) -> list[Tensor]:
        """The copies, once they are there."""
        if self._done is not None:
            self._done.synchronize()
        return self._tensors


def _to_device(host: Tensor, device: torch.device) -> Tensor:
    if device.type != "cuda":
        return host.to(device)
    current, stream = torch.cuda.current_stream(device), _upload_stream(device)
    with torch.cuda.stream(stream):
        sent = host.to(device, non_blocking=True)
    current.wait_stream(stream)
    # Or its memory could go to the next upload while this stream still reads.
    sent.record_stream(current)
    return sent


def _to_pinned(tensor: Tensor, stream: torch.cuda.Stream) -> Tensor:
    """A copy on the host, made by the stream, which is the current one."""
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    host.copy_(tensor, non_blocking=True)
    tensor.record_stream(stream)
    return host


@cache
def _upload_stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)


@cache
def _download_stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)
