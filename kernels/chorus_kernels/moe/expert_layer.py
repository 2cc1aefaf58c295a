"""One layer's experts as the ops of the mixture take them."""

from dataclasses import dataclass

import torch
from torch import Tensor

from chorus_kernels.moe.checks import check_floats, check_places
from chorus_kernels.moe.layout import PackedExperts


@dataclass(frozen=True, slots=True)
class ExpertLayer:
    """Experts first_expert to first_expert + E - 1 of a layer, for H columns, with I between the products.

    Errors: ValueError for other shapes, dtypes or devices than these, or tensors that aren't contiguous.
    """

    gate_up: PackedExperts  # E of [2 I, H], gate and up rows interleaved
    gate_up_bias: Tensor  # [E, 2 I], bfloat16 or float32
    down: PackedExperts  # E of [H, I]
    down_bias: Tensor  # [E, H], bfloat16 or float32
    alpha: float = 1.702
    limit: float = 7.0
    first_expert: int = 0

    def __post_init__(self) -> None:
        num_experts, inner, width = self.num_experts, self.inner, self.width
        if self.gate_up.num_rows != 2 * inner:
            raise ValueError(
                f"gate_up must be [{2 * inner}, H] matrices, not [{self.gate_up.num_rows}, {self.gate_up.num_columns}]"
            )
        if self.down.num_experts != num_experts or self.down.num_rows != width:
            raise ValueError(
                f"down must be {num_experts} matrices with {width} rows, "
                f"not {self.down.num_experts} with {self.down.num_rows}"
            )
        check_floats("gate_up_bias", self.gate_up_bias, (num_experts, 2 * inner), self.device)
        check_floats("down_bias", self.down_bias, (num_experts, width), self.device)
        check_places({"gate_up": self.gate_up.words, "down": self.down.words}, self.device)

    @property
    def num_experts(self) -> int:
        return self.gate_up.num_experts

    @property
    def width(self) -> int:
        """H."""
        return self.gate_up.num_columns

    @property
    def inner(self) -> int:
        """I."""
        return self.down.num_columns

    @property
    def device(self) -> torch.device:
        return self.gate_up.words.device
