"""How the Triton runner keeps weights: on its device, in bfloat16, experts in MXFP4 as the kernels read them."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from chorus_kernels.linear.layout import tiled
from chorus_kernels.moe.layout import PackedExperts, empty_experts, pack_expert
from chorus_kernels.mxfp4 import BLOCK_SIZE
from chorus_workers.model.weights import Model, UnsupportedWeights
from chorus_workers.runner.triton.staging import Staging

logger = logging.getLogger(__name__)

# Of what is free beside the weights, tiles take no more: KV memory is of more use.
_TILES_SHARE = 0.05


class DeviceForm:
    """The `WeightForm` of a device. Tensors move one at a time, experts' matrices one expert at a time, so that loading
    takes little more of the device than the weights do."""

    def __init__(
        self,
        device: torch.device,
        dtype: torch.dtype = torch.bfloat16,
        on_copied: Callable[[int], None] | None = None,
    ) -> None:
        """on_copied: told the number of bytes whenever so many have left their file."""
        self._device, self._dtype = device, dtype
        self._staging = Staging(device, on_copied)

    def embedding(self, rows: Tensor) -> Tensor:
        return self.dense(rows)

    def dense(self, tensor: Tensor) -> Tensor:
        return self._staging.copy(tensor).to(self._dtype)

    def packed_experts(self, blocks: Tensor, scales: Tensor) -> PackedExperts:
        # The loader has looked for scales of 255, and can name their tensor.
        num_experts, num_rows, num_blocks = scales.shape
        packed = empty_experts(num_experts, num_rows, num_blocks * BLOCK_SIZE, self._device)
        scales = self._staging.copy(scales)
        for expert in range(num_experts):
            pack_expert(packed, expert, self._staging.copy(blocks[expert]), scales[expert])
        return packed

    def floating_experts(self, matrices: Tensor) -> PackedExperts:
        raise UnsupportedWeights("the Triton runner takes experts in MXFP4 only; the reference runner takes these")


@dataclass(frozen=True, slots=True)
class ProductTiles:
    """A model's dense products' weights in the order in which few tokens are multiplied with them fastest. cuBLAS,
    which multiplies more tokens, wants them plain: they are kept twice. None: there are no tiles of it."""

    qkv: Sequence[Tensor | None]  # by layer
    out: Sequence[Tensor | None]  # by layer
    head: Tensor | None

    @staticmethod
    def missing(num_layers: int) -> "ProductTiles":
        nothing = [None] * num_layers
        return ProductTiles(nothing, nothing, None)


def product_tiles(model: Model[PackedExperts]) -> ProductTiles:
    """On the model's device."""
    return ProductTiles(
        [tiled(layer.qkv) for layer in model.layers],
        [tiled(layer.out) for layer in model.layers],
        None if model.head is None else tiled(model.head),
    )


def product_tiles_within(free_bytes: int, model: Model[PackedExperts]) -> ProductTiles | None:
    """The same, unless they would take more than a small part of the bytes that are free, or don't find them."""
    weights = [weight for layer in model.layers for weight in (layer.qkv, layer.out)]
    if model.head is not None:
        weights.append(model.head)
    num_bytes = sum(weight.numel() * weight.element_size() for weight in weights)
    if num_bytes > _TILES_SHARE * free_bytes:
        return None
    try:
        return product_tiles(model)
    except torch.OutOfMemoryError:
        logger.warning("no tiles of dense weights are kept: their %.1f GB didn't fit", num_bytes / 1e9)
        return None
