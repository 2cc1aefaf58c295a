"""Masks on their way to the device."""

from collections.abc import Sequence

import torch
from torch import Tensor

from chorus_kernels.sampling.op import TokenMask
from chorus_workers.runner.base import SampleRequest


class MaskUpload:
    """One buffer on each side, used again and again: a draw begins when the one before it is done, and so are its
    copies. They go by the stream that draws, since a draw waits for them anyway."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._host, self._sent = self._buffers(0)

    def send(self, requests: Sequence[SampleRequest]) -> TokenMask | None:
        """The requests' masks; None, if they have none."""
        masks = [(row, request.mask) for row, request in enumerate(requests) if request.mask is not None]
        if not masks:
            return None
        num_words, num_rows = len(masks[0][1]), len(requests)
        # Behind the masks, in as many words as it takes, which mask is whose.
        size = len(masks) * num_words + num_rows
        if self._host.numel() < size:
            self._host, self._sent = self._buffers(2 * size)
        host = self._host.numpy()
        rows = host[len(masks) * num_words : size]
        rows.fill(-1)
        for number, (row, mask) in enumerate(masks):
            host[number * num_words : (number + 1) * num_words] = mask
            rows[row] = number
        sent = self._sent[:size]
        sent.copy_(self._host[:size], non_blocking=True)
        return TokenMask(sent[: len(masks) * num_words].view(len(masks), num_words), sent[len(masks) * num_words :])

    def _buffers(self, size: int) -> tuple[Tensor, Tensor]:
        host = torch.empty(size, dtype=torch.int32, pin_memory=self._device.type == "cuda")
        return host, torch.empty(size, dtype=torch.int32, device=self._device)
