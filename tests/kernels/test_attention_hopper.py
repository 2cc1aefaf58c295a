"""The attention kernels at gpt-oss's shapes, compiled for Hopper: what an H100 must be able to keep in registers."""

from dataclasses import replace
from typing import Any

from tests.kernels.hopper import Variant, check_that_they_run_on_ampere, compile_for_hopper

from chorus_kernels.attention import tiles
from chorus_kernels.attention.tiles import decode_tiles

MODULE = "chorus_kernels.attention."
SHAPE = {"NUM_HEADS": 64, "NUM_KV_HEADS": 8, "HEAD_DIM": 64}
WINDOW = 128
STRIDES = [
    *("q_stride", "qkv_stride", "part_stride", "block_stride", "q_token_stride", "q_head_stride"),
    *("k_token_stride", "k_head_stride", "v_token_stride", "v_head_stride"),
]
TYPES = {
    **dict.fromkeys(("cos_sin", "partial", "stats"), "*fp32"),
    **dict.fromkeys(("block_tables", "lengths", "rows", "cu_tokens", "starts", "tiles"), "*i32"),
    **dict.fromkeys((*STRIDES, "table_stride", "num_rows", "num_splits"), "i32"),
    "scale": "fp32",
    # Keys and values of a memory of many gigabytes lie further apart.
    "part_stride": "i64",
}


def variant(
    kernel: str,
    parameters: str,
    constants: dict[str, Any],
    num_warps: int,
    num_stages: int = 3,
    max_registers: int | None = None,
) -> Variant:
    """Pointers are bfloat16 where TYPES doesn't say otherwise."""
    signature = {name: TYPES.get(name, "*bf16") for name in parameters.split()} | dict.fromkeys(constants, "constexpr")
    return Variant(
        MODULE + kernel,
        signature,
        constants,
        num_warps=num_warps,
        num_stages=num_stages,
        max_registers=max_registers,
        divisible=[name for name in STRIDES if name in signature],
    )


def decode(*, ring: bool, fused: bool, split: bool) -> Variant:
    plan = decode_tiles(1, 8, WINDOW if ring else 131072, ring=ring)
    constants = {
        **SHAPE,
        "BLOCK_SIZE": WINDOW if ring else 16,
        "RING": ring,
        "FUSED": fused,
        "SPLIT": split,
        "SPLIT_MIN": plan.split_min,
        "BLOCK_M": 16,
        "BLOCK_N": plan.block_keys,
        "BLOCK_D": 64,
    }
    parameters = (
        "q cos_sin kv block_tables lengths sinks out partial stats scale q_stride table_stride part_stride block_stride"
    )
    return variant("_kernel:decode_attention_kernel", parameters, constants, plan.num_warps, plan.num_stages)


def combine() -> Variant:
    plan = decode_tiles(1, 8, 131072, ring=False)
    constants = {"NUM_HEADS": 64, "HEAD_DIM": 64, "SPLIT_MIN": plan.split_min, "BLOCK_N": plan.block_keys}
    constants |= {"BLOCK_S": 64, "BLOCK_D": 64}
    return variant("_kernel:combine_splits_kernel", "partial stats lengths out num_splits", constants, 4)


def prefill(window: int) -> Variant:
    constants = {
        **SHAPE,
        "BLOCK_SIZE": window or 16,
        "WINDOW": window,
        "BLOCK_M": tiles.PREFILL_ROWS,
        "BLOCK_N": tiles.PREFILL_KEYS,
        "BLOCK_D": 64,
    }
    parameters = (
        "q k v kv block_tables cu_tokens starts sinks tiles out scale q_token_stride q_head_stride k_token_stride "
        "k_head_stride v_token_stride v_head_stride table_stride part_stride block_stride"
    )
    return variant(
        "_kernel:prefill_attention_kernel",
        parameters,
        constants,
        tiles.PREFILL_WARPS,
        tiles.prefill_stages(window or None),
        tiles.PREFILL_REGISTERS,
    )


def rope(to_memory: bool, block_rows: int) -> Variant:
    constants = {**SHAPE, "BLOCK_SIZE": 16, "TO_MEMORY": to_memory, "BLOCK_R": block_rows, "BLOCK_H": 32}
    parameters = "qkv cos_sin q k v kv rows num_rows qkv_stride part_stride block_stride"
    return variant("_write_kernel:rope_kernel", parameters, constants, 2 if block_rows == 16 else 4)


def write_kv() -> Variant:
    constants = {"NUM_KV_HEADS": 8, "HEAD_DIM": 64, "BLOCK_SIZE": WINDOW, "BLOCK_R": 64, "BLOCK_D": 64}
    parameters = (
        "k v kv rows num_rows k_token_stride k_head_stride v_token_stride v_head_stride part_stride block_stride"
    )
    return variant("_write_kernel:write_kv_kernel", parameters, constants, 4)


def with_fp8_kv(variant: Variant) -> Variant:
    """Over fp8 memory. Where a chunk's own keys and values pass by the memory, they are fp8, too."""
    by_memory = variant.constants.get("WINDOW") == 0 or variant.constants.get("TO_MEMORY")
    names = [name for name in ("k", "v", "kv") if name in variant.signature and not (by_memory and name != "kv")]
    return replace(variant, signature={**variant.signature, **dict.fromkeys(names, "*fp8e4nv")})


DECODE = [
    decode(ring=False, fused=False, split=True),
    decode(ring=False, fused=True, split=True),
    decode(ring=False, fused=True, split=False),
    decode(ring=True, fused=False, split=False),
    decode(ring=True, fused=True, split=False),
]
PREFILL = [prefill(0), prefill(WINDOW)]
WRITE = [rope(True, 16), rope(True, 64), rope(False, 64), write_kv()]


def test_decode_kernels_fit_hopper() -> None:
    results = compile_for_hopper([*DECODE, combine()])
    for result in results:
        # Five programs of four warps on each multiprocessor.
        assert result.spilled == 0 and result.registers <= 96 and result.shared <= 45 * 1024
        assert set(result.specialised) <= set(STRIDES)
    for result in results[:-1]:
        assert "mma.sync.aligned.m16n8k16" in result.ptx and "cp.async.cg.shared.global" in result.ptx


def test_prefill_and_write_kernels_fit_hopper() -> None:
    results = compile_for_hopper([*PREFILL, *WRITE])
    for result in results:
        assert result.spilled == 0 and set(result.specialised) <= set(STRIDES)
    for result in results[:2]:
        # Two programs of eight warps on each multiprocessor, on the matrix units of Hopper.
        assert result.registers <= 128 and result.shared <= 113 * 1024
        assert "wgmma.mma_async" in result.ptx
    for result in results[2:]:
        assert result.registers <= 64
        # Halves of a head, or heads, in loads and stores of 16 bytes.
        assert "ld.global.v4.b32" in result.ptx and "st.global.v4.b32" in result.ptx


def test_kernels_over_fp8_memory_fit_hopper() -> None:
    results = compile_for_hopper([with_fp8_kv(variant) for variant in (*DECODE, *PREFILL, *WRITE)])
    for result in results:
        assert result.spilled == 0
        # The one way from float16 to bfloat16 that takes a single instruction is the slow one.
        assert "cvt.bf16.f16" not in result.ptx and "cvt.rn.bf16.f16" not in result.ptx
    for result in results[: len(DECODE)]:
        # Four programs of four warps on each multiprocessor.
        assert result.registers <= 120 and result.shared <= 45 * 1024
        assert "mma.sync.aligned.m16n8k16" in result.ptx and "cp.async.cg.shared.global" in result.ptx
    for result in results[len(DECODE) : len(DECODE) + len(PREFILL)]:
        assert result.registers <= 128 and result.shared <= 113 * 1024
        assert "wgmma.mma_async" in result.ptx
    for result in results[len(DECODE) + len(PREFILL) :]:
        assert result.registers <= 64
    # The last only copies what is rounded already.
    assert ["cvt.rn.satfinite.e4m3x2.f32" in result.ptx for result in results[-len(WRITE) :]] == [True] * 3 + [False]


def test_kernels_over_fp8_memory_compile_for_ada() -> None:
    """The oldest GPUs that have the conversions (L40S)."""
    variants = [with_fp8_kv(variant) for variant in (DECODE[1], DECODE[4], *PREFILL, WRITE[0], WRITE[3])]
    results = compile_for_hopper([replace(variant, capability=89) for variant in variants])
    # Of its 99 KiB; decode with two programs on a multiprocessor.
    assert all(result.shared <= 99 * 1024 for result in results)
    assert all(result.spilled == 0 and result.shared <= 49 * 1024 for result in results[:2])


def test_kernels_run_on_ampere() -> None:
    check_that_they_run_on_ampere([*DECODE, combine(), *PREFILL, *WRITE])
