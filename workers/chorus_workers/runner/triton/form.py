"""How the Triton runner keeps weights: on its device, in bfloat16, experts in MXFP4 as the kernels read them."""

import torch
from torch import Tensor

from chorus_kernels.moe.layout import PackedExperts, pack_experts
from chorus_workers.model.weights import UnsupportedWeights


class DeviceForm:
    """The `WeightForm` of a device. Tensors move one at a time, experts' matrices one expert at a time."""

    def __init__(self, device: torch.device, dtype: torch.dtype = torch.bfloat16) -> None:
        self._device, self._dtype = device, dtype

    def embedding(self, rows: Tensor) -> Tensor:
        return self.dense(rows)

    def dense(self, tensor: Tensor) -> Tensor:
        return tensor.to(self._device, self._dtype).contiguous()

    def packed_experts(self, blocks: Tensor, scales: Tensor) -> PackedExperts:
        return pack_experts(blocks.to(self._device), scales.to(self._device))

    def floating_experts(self, matrices: Tensor) -> PackedExperts:
        raise UnsupportedWeights("the Triton runner takes experts in MXFP4 only; the reference runner takes these")
