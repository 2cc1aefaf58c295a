"""The mixture's kernels compiled for Hopper at the models' shapes: registers, spills, and what must become what."""

from tests.kernels.hopper import Variant, compile_for_hopper

from chorus_kernels.moe import op

KERNELS = "chorus_kernels.moe._kernel:"
MATRICES = {"words_ptr": "*i32", "scales_ptr": "*i32", "units_ptr": "*fp32", "bias_ptr": "*bf16"}
SHARD = {"first_expert": "i32", "num_experts": "i32"}
SHAPE = {"HIDDEN": 2880, "INNER": 2880}
FORMULA = {"alpha": "fp32", "limit": "fp32"}
SORTED = {"order_ptr": "*i32", "tiles_ptr": "*i32", **MATRICES, "out_ptr": "*bf16", "num_tiles": "i32"}


def grouped_variants(num_slots: int) -> list[Variant]:
    tiles = op.grouped_tiles(num_slots, 32)
    constants = {**SHAPE, "BLOCK_N": tiles.rows, "BLOCK_M": tiles.slots, "BLOCK_S": tiles.steps}
    gate_up = {"x_ptr": "*bf16", **SORTED, **FORMULA}
    return [
        Variant(
            KERNELS + "grouped_gate_up_kernel", gate_up, {**constants, "TOP_K": 4}, tiles.num_warps, tiles.num_stages
        ),
        Variant(
            KERNELS + "grouped_down_kernel", {"hidden_ptr": "*bf16", **SORTED}, constants, tiles.num_warps,
            tiles.num_stages,
        ),
    ]  # fmt: skip


def test_kernels_compile_for_hopper() -> None:
    few = {"experts_ptr": "*i32", **MATRICES, "num_tokens": "i32", **SHARD}
    constants = {**SHAPE, "TOP_K": 4, "BLOCK_K": 4}
    decode = [
        Variant(
            KERNELS + "decode_gate_up_kernel", {"x_ptr": "*bf16", **few, "out_ptr": "*bf16", **FORMULA}, constants, 1, 1
        ),
        Variant(
            KERNELS + "decode_down_kernel", {"hidden_ptr": "*bf16", **few, "out_ptr": "*fp32"},
            {**constants, "SPLITS": op.down_splits(2880)}, 1, 1,
        ),
    ]  # fmt: skip
    # Every choice of tiles: means of 8, 32, 64 and 1,024 slots an expert.
    grouped = [variant for num_slots in (256, 1024, 2048, 32768) for variant in grouped_variants(num_slots)]
    rest = [
        Variant(
            KERNELS + "route_kernel",
            {
                "logits_ptr": "*bf16", "experts_ptr": "*i32", "weights_ptr": "*fp32", "num_tokens": "i32",
                "num_experts": "i32",
            },
            {"TOP_K": 4, "BLOCK_T": 1, "BLOCK_E": 128, "BLOCK_K": 4}, 1,
        ),
        Variant(
            KERNELS + "prepare_kernel",
            {
                "x_ptr": "*bf16", "experts_ptr": "*i32", "order_ptr": "*i32", "tiles_ptr": "*i32",
                "fragments_ptr": "*bf16", "num_slots": "i32", **SHARD, "num_tiles": "i32",
            },
            {"HIDDEN": 2880, "BLOCK_M": 64, "BLOCK_E": 128, "CHUNK": 4096, "BLOCK_H": 1024}, 8,
        ),
    ]  # fmt: skip
    results = compile_for_hopper(decode + grouped + rest)
    assert [result.spilled for result in results] == [0] * len(results)
    assert {name for result in results for name in result.specialised} <= SHARD.keys()
    for result in results[:2]:
        # What is loaded becomes the tensor cores' operands without an exchange between lanes.
        assert result.registers <= 128 and result.shared == 0 and result.ptx.count("mma.sync") == 16
    for result in results[2 : 2 + len(grouped)]:
        assert result.registers <= 128 and result.shared <= 113 * 1024 and "wgmma" in result.ptx
