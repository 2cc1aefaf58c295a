"""The mixture's kernels compiled for Hopper at the models' shapes: registers, spills, and what must become what."""

import re

from tests.kernels.hopper import Variant, check_that_they_run_on_ampere, compile_for_hopper

from chorus_kernels.moe.few_tokens import SUM_REGISTERS
from chorus_kernels.moe.many_tokens import grouped_tiles

MODULE = "chorus_kernels.moe."
MATRICES = {"words_ptr": "*i32", "scales_ptr": "*i32", "units_ptr": "*fp32", "bias_ptr": "*bf16"}
SHARD = {"first_expert": "i32", "num_experts": "i32"}
SHAPE = {"HIDDEN": 2880, "INNER": 2880}
FORMULA = {"alpha": "fp32", "limit": "fp32"}
SORTED = {"order_ptr": "*i32", "tiles_ptr": "*i32", **MATRICES, "out_ptr": "*bf16", "num_tiles": "i32"}
# One for each choice of tiles: means of 8, 24, 128 and 1,024 slots an expert.
NUM_SLOTS = (256, 768, 4096, 32768)


def grouped_variants(num_slots: int) -> list[Variant]:
    tiles = grouped_tiles(num_slots, 32)
    constants = {**SHAPE, "BLOCK_N": tiles.rows, "BLOCK_M": tiles.slots, "BLOCK_S": tiles.steps}
    gate_up = {"x_ptr": "*bf16", **SORTED, **FORMULA}
    kernel = MODULE + "_grouped_kernel:grouped_"
    return [
        Variant(kernel + "gate_up_kernel", gate_up, {**constants, "TOP_K": 4}, tiles.num_warps, tiles.num_stages),
        Variant(
            kernel + "down_kernel", {"hidden_ptr": "*bf16", **SORTED}, constants, tiles.num_warps, tiles.num_stages
        ),
    ]


def few_token_variants() -> list[Variant]:
    few = {"experts_ptr": "*i32", **MATRICES, "num_tokens": "i32", **SHARD}
    constants = {**SHAPE, "TOP_K": 4, "BLOCK_K": 4}
    kernel = MODULE + "_decode_kernel:decode_"
    return [
        Variant(kernel + "gate_up_kernel", {"x_ptr": "*bf16", **few, "out_ptr": "*bf16", **FORMULA}, constants, 1, 1),
        Variant(kernel + "down_kernel", {"hidden_ptr": "*bf16", **few, "out_ptr": "*fp32"}, constants, 1, 1),
    ]


def test_few_tokens() -> None:
    for result in compile_for_hopper(few_token_variants()):
        # Twelve programs on each multiprocessor.
        assert result.spilled == 0 and result.registers <= 168 and set(result.specialised) <= SHARD.keys()
        before, loop, _ = re.split(
            r"^\$L__BB\d+_\d+:.*=>This Inner.*$|^.*bra\s+\$L__BB\d+_\d+;.*$", result.ptx, flags=re.M
        )[-3:]
        # What is loaded becomes the tensor cores' operands without an exchange between lanes.
        assert result.shared == 0 and "shfl" not in loop and loop.count("mma.sync") == 48
        # Around the loop, lanes tell one another which slots chose the expert.
        assert result.ptx.count("shfl.sync") <= 18
        assert loop.count("ld.global.L1::evict_first.L2::cache_hint.v4.b32") == 15
        assert loop.count("ld.global.v4.b32") == 24
        waiting, letting = (result.ptx.index("griddepcontrol." + what) for what in ("wait", "launch_dependents"))
        # The next kernel may begin only when what this one has waited for is there: down reads the choice of experts,
        # which gate-up has waited for, before its own wait.
        assert waiting < letting


def test_few_tokens_in_one_launch() -> None:
    matrices = {
        f"{name}_{part}_ptr": kind
        for name in ("up", "down")
        for part, kind in {"words": "*i32", "scales": "*i32", "units": "*fp32", "bias": "*bf16"}.items()
    }
    parameters = {
        "x_ptr": "*bf16", "experts_ptr": "*i32", "progress_ptr": "*i32", **matrices, "hidden_ptr": "*bf16",
        "out_ptr": "*fp32", "num_tokens": "i32", **SHARD, **FORMULA,
    }  # fmt: skip
    constants = {"SIZE": 2880, "TOP_K": 4, "BLOCK_K": 4}
    kernel = MODULE + "_decode_whole_kernel:decode_whole_kernel"
    [result] = compile_for_hopper([Variant(kernel, parameters, constants, 1, 1)])
    # Twelve programs on each multiprocessor, and one loop for both products.
    assert result.spilled == 0 and result.registers <= 168 and set(result.specialised) <= SHARD.keys()
    assert result.shared == 0 and result.ptx.count("mma.sync") == 48
    # What down waits for is acquired before it is read, and released after it was stored.
    acquired = result.ptx.rindex("ld.acquire.gpu")
    assert acquired < result.ptx.index("ld.global.v4.b32") < result.ptx.index("mma.sync")
    stored, counted = result.ptx.index("st.global"), result.ptx.index("atom.global.gpu.release")
    assert stored < result.ptx.index("bar", stored) < counted


def test_down_with_the_sum() -> None:
    parameters = {
        "hidden_ptr": "*bf16", "experts_ptr": "*i32", "shares_ptr": "*fp32", **MATRICES, "residual_ptr": "*bf16",
        "out_ptr": "*bf16", **SHARD,
    }  # fmt: skip
    constants = {**SHAPE, "TOP_K": 4, "BLOCK_K": 4}
    kernel = MODULE + "_decode_sum_kernel:decode_down_sum_kernel"
    [result] = compile_for_hopper([Variant(kernel, parameters, constants, 8, 1, max_registers=SUM_REGISTERS)])
    # Two programs on each multiprocessor.
    assert result.spilled == 0 and set(result.specialised) <= SHARD.keys()
    # Half of K in 24 steps. What is loaded becomes the tensor cores' operands without an exchange: shared memory has
    # the choice of experts before, and the sum over warps behind.
    assert result.ptx.count("mma.sync") == 4 * 24
    first, last = result.ptx.index("mma.sync"), result.ptx.rindex("mma.sync")
    assert "shared" not in result.ptx[first:last] and "shfl" not in result.ptx[first:last]
    ahead, behind = result.ptx.split("griddepcontrol.wait")
    # Two of six quads are on their way before the wait, each four loads of weights and one of scales.
    wide = "ld.global.L1::evict_first.L2::cache_hint.v4.b32"
    assert ahead.count(wide) == 10 and behind.count(wide) == 20 and behind.count("ld.global.v4.b32") == 48


def test_batches() -> None:
    variants = [variant for num_slots in NUM_SLOTS for variant in grouped_variants(num_slots)]
    assert len({grouped_tiles(num_slots, 32) for num_slots in NUM_SLOTS}) == 4
    for variant, result in zip(variants, compile_for_hopper(variants), strict=True):
        assert result.spilled == 0 and set(result.specialised) <= SHARD.keys()
        # Two programs on each multiprocessor, or more.
        assert result.registers * 32 * variant.num_warps <= 32768 and result.shared <= 113 * 1024
        # No pass of a loop leaves a product unfinished: the next one writes the registers that it reads. Tiles of more
        # than 16 slots have a second loop, for half of them.
        product = r"wgmma\.mma_async(?:(?!wgmma\.mma_async).)*?(?:wait_group\.sync\.aligned (\d+)|bra )"
        loops = 1 if variant.constants["BLOCK_M"] == 16 else 2
        assert re.findall(product, result.ptx, re.DOTALL) == ["0"] * loops, variant


def test_around_them() -> None:
    route = {
        "logits_ptr": "*bf16",
        "bias_ptr": "*bf16",
        "experts_ptr": "*i32",
        "weights_ptr": "*fp32",
        "progress_ptr": "*i32",
        "num_tokens": "i32",
    }
    prepare = {
        "x_ptr": "*bf16",
        "experts_ptr": "*i32",
        "order_ptr": "*i32",
        "tiles_ptr": "*i32",
        "fragments_ptr": "*bf16",
    }
    combine = {
        "rows_ptr": "*fp32", "experts_ptr": "*i32", "weights_ptr": "*fp32", "out_ptr": "*bf16", "residual_ptr": "*bf16",
        "norm_ptr": "*bf16", "addend_ptr": "*bf16", "sum_ptr": "*bf16",
    }  # fmt: skip
    variants = [
        Variant(
            MODULE + "_kernel:route_kernel",
            route | {"num_experts": "i32"},
            {"HAS_BIAS": True, "HAS_PROGRESS": True, "TOP_K": 4, "BLOCK_T": 1, "BLOCK_E": 128, "BLOCK_K": 4},
            1,
        ),
        Variant(
            MODULE + "_grouped_kernel:prepare_kernel",
            prepare | {"num_slots": "i32", **SHARD, "num_tiles": "i32"},
            {"HIDDEN": 2880, "BLOCK_M": 64, "BLOCK_E": 128, "CHUNK": 4096, "BLOCK_H": 1024},
            8,
        ),
        Variant(
            MODULE + "_kernel:combine_kernel",
            combine | SHARD,
            {
                "HIDDEN": 2880,
                "TOP_K": 4,
                "HAS_RESIDUAL": True,
                "NORM": True,
                "HAS_ADDEND": True,
                "EPS": 1e-5,
                "BLOCK_H": 4096,
            },  # fmt: skip
            8,
        ),
    ]
    for result in compile_for_hopper(variants):
        assert result.spilled == 0 and set(result.specialised) <= SHARD.keys()


def test_products_run_on_ampere() -> None:
    grouped = [variant for num_slots in NUM_SLOTS for variant in grouped_variants(num_slots)]
    check_that_they_run_on_ampere([*few_token_variants(), *grouped])
