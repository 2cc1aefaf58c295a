"""Launches of the experts' products for more tokens: slots sorted by expert, and tiles of them."""

from dataclasses import dataclass

import torch
import triton
from torch import Tensor

from chorus_kernels.dependent_launch import dependent_launch
from chorus_kernels.moe import _grouped_kernel
from chorus_kernels.moe.expert_layer import ExpertLayer
from chorus_kernels.moe.layout import STEP_COLUMNS

# What a program takes at a time: slots to sort, columns to copy.
_SORT_SLOTS = 4096
_COLUMNS = 1024


@dataclass(frozen=True, slots=True)
class Tiles:
    """Tile sizes of the grouped kernels: rows, slots and steps of 64 columns a program has at a time."""

    rows: int
    slots: int
    steps: int
    num_warps: int
    num_stages: int


def grouped_tiles(num_slots: int, num_experts: int) -> Tiles:
    """Tiles for so many slots over so many experts, by how many an expert gets on average (docs/performance.md)."""
    mean = -(-num_slots // num_experts)
    if mean <= 8:
        return Tiles(rows=128, slots=16, steps=2, num_warps=4, num_stages=5)
    if mean <= 24:
        return Tiles(rows=128, slots=32, steps=2, num_warps=4, num_stages=4)
    if mean <= 128:
        return Tiles(rows=128, slots=64, steps=1, num_warps=4, num_stages=5)
    return Tiles(rows=128, slots=128, steps=1, num_warps=4, num_stages=5)


def grouped_rows(x: Tensor, experts: Tensor, layer: ExpertLayer) -> Tensor:
    """What each of a token's experts says of it, in three launches. x: bfloat16 [T, H]; experts: int32 [T, K]. Returns
    bfloat16 [T K, H]."""
    num_tokens, top_k = experts.shape
    hidden_size, inner, num_experts, num_slots = layer.width, layer.inner, layer.num_experts, num_tokens * top_k
    gate_up, down = layer.gate_up, layer.down
    tiles = grouped_tiles(num_slots, num_experts)
    dependent = dependent_launch(x.device)
    num_tiles = triton.cdiv(num_slots, tiles.slots) + num_experts
    order = torch.empty(num_slots, dtype=torch.int32, device=x.device)
    tile_map = torch.empty(3, num_tiles, dtype=torch.int32, device=x.device)
    fragments = torch.empty(num_tokens, _whole_steps(hidden_size), dtype=torch.bfloat16, device=x.device)
    _grouped_kernel.prepare_kernel[(num_experts + num_tokens,)](
        x, experts, order, tile_map, fragments, num_slots, layer.first_expert, num_experts, num_tiles,
        HIDDEN=hidden_size, BLOCK_M=tiles.slots, BLOCK_E=triton.next_power_of_2(num_experts),
        CHUNK=min(_SORT_SLOTS, triton.next_power_of_2(num_slots)),
        BLOCK_H=min(_COLUMNS, triton.next_power_of_2(hidden_size)), num_warps=4 if num_slots <= 1024 else 8,
        **dependent,
    )  # fmt: skip
    hidden = torch.empty(num_slots, _whole_steps(inner), dtype=torch.bfloat16, device=x.device)
    rows = torch.empty(num_slots, hidden_size, dtype=torch.bfloat16, device=x.device)
    _grouped_kernel.grouped_gate_up_kernel[(triton.cdiv(2 * _whole_steps(inner), tiles.rows), num_tiles)](
        fragments, order, tile_map, gate_up.words, gate_up.scales, gate_up.units, layer.gate_up_bias, hidden,
        num_tiles, layer.alpha, layer.limit, HIDDEN=hidden_size, INNER=inner, TOP_K=top_k,
        BLOCK_N=tiles.rows, BLOCK_M=tiles.slots, BLOCK_S=tiles.steps,
        num_warps=tiles.num_warps, num_stages=tiles.num_stages, **dependent,
    )  # fmt: skip
    _grouped_kernel.grouped_down_kernel[(triton.cdiv(hidden_size, tiles.rows), num_tiles)](
        hidden, order, tile_map, down.words, down.scales, down.units, layer.down_bias, rows,
        num_tiles, HIDDEN=hidden_size, INNER=inner,
        BLOCK_N=tiles.rows, BLOCK_M=tiles.slots, BLOCK_S=tiles.steps,
        num_warps=tiles.num_warps, num_stages=tiles.num_stages, **dependent,
    )  # fmt: skip
    return rows


def _whole_steps(columns: int) -> int:
    return -(-columns // STEP_COLUMNS) * STEP_COLUMNS
