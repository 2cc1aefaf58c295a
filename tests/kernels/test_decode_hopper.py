"""What the kernels of norm, dense product and sampling take on Hopper, in the variants of the real models."""

from collections.abc import Mapping
from typing import Any

from tests.kernels.hopper import Variant, check_that_they_run_on_ampere, compile_for_hopper

from chorus_kernels.linear import op
from chorus_kernels.sampling.op import DRAW_REGISTERS, DRAW_WARPS, SCAN_WARPS, tile_size

VOCABULARY = 201088
KINDS = {"fp32": "*fp32", "i32": "*i32", "i64": "*i64", "bf16": "*bf16", "int": "i32"}


def signature(**names: str) -> dict[str, str]:
    """Triton's types of the parameters, which are listed by kind."""
    return {name: KINDS[kind] for kind, listed in names.items() for name in listed.split()}


def linear(
    depth: int, halves: int, out: str, dependent: bool = True, tiled: bool = False, hold_next: bool = False
) -> Variant:
    constants = {"K": depth, "HAS_BIAS": True, "HAS_RESIDUAL": True, "HALVES": halves, "TILED": tiled}
    constants |= {"HOLD_NEXT": hold_next}
    parameters = signature(bf16="x_ptr weight_ptr bias_ptr residual_ptr", int="N num_tokens") | {"out_ptr": out}
    kernel = "chorus_kernels.linear._kernel:linear_kernel"
    return Variant(kernel, parameters, constants, num_stages=1, divisible=["N"], dependent=dependent)


def vector(depth: int, num_tokens: int, out: str, norm: bool) -> Variant:
    constants = {
        "K": depth, "TOKENS": num_tokens, "ROWS": 4, "BLOCK": 1024, "AHEAD": -(-depth // 1024) // 2, "EPS": 1e-5,
        "HAS_NORM": norm, "HAS_BIAS": True, "HAS_RESIDUAL": not norm,
    }  # fmt: skip
    parameters = signature(bf16="x_ptr norm_ptr weight_ptr bias_ptr residual_ptr", int="N") | {"out_ptr": out}
    kernel = "chorus_kernels.linear._vector_kernel:vector_kernel"
    registers = {1: 80, 2: 96}[num_tokens]
    return Variant(kernel, parameters, constants, num_stages=1, divisible=["N"], max_registers=registers)


def sampling(
    kernel: str,
    parameters: Mapping[str, str],
    constants: Mapping[str, Any],
    num_warps: int = 4,
    max_registers: int | None = None,
) -> Variant:
    module = "_kernel" if kernel in ("scan_kernel", "draw_kernel") else "_logits_kernel"
    name = f"chorus_kernels.sampling.{module}:{kernel}"
    return Variant(name, parameters, constants, num_warps=num_warps, divisible=["N"], max_registers=max_registers)


def draws(tile_columns: int, num_tiles: int) -> list[Variant]:
    variants = []
    flags = {"HAS_IDS": False, "MIN_TEMPERATURE": 1e-5, "TILE": tile_columns}
    for masked, truncated in [(False, False), (False, True), (True, True)]:
        shared = signature(
            fp32="logits_ptr temperature_ptr top_p_ptr stats_ptr",
            i64="seeds_ptr positions_ptr ids_ptr",
            i32="mask_ptr mask_rows_ptr argmax_ptr",
            int="N mask_stride",
        )
        constants = flags | {"HAS_MASK": masked}
        variants.append(sampling("scan_kernel", shared, constants, SCAN_WARPS))
        of_draw = signature(
            fp32="min_p_ptr",
            i64="columns_ptr drawn_ptr slots_ptr top_k_ptr",
            i32="latest_ptr overruled_ptr",
            int="num_tiles",
        )
        constants = constants | {"HAS_LATEST": True, "LEAST_Z": -26.02, "NT_BLOCK": num_tiles, "TRUNCATED": truncated}
        variants.append(sampling("draw_kernel", shared | of_draw, constants, DRAW_WARPS, DRAW_REGISTERS))
    return variants


def around_draws(tile_columns: int, num_tiles: int) -> list[Variant]:
    places = signature(
        i64="rows_ptr history_rows_ptr", i32="history_ptr num_prompt_ptr num_tokens_ptr counts_ptr", int="N"
    ) | {"history_stride": "i32"}
    penalties = signature(fp32="logits_ptr repetition_ptr frequency_ptr presence_ptr")
    bias = signature(fp32="logits_ptr values_ptr", i64="rows_ptr tokens_ptr", int="num_entries N")
    scan = signature(fp32="logits_ptr stats_ptr", i32="argmax_ptr", int="N")
    listed = signature(fp32="chosen_logprob_ptr logprobs_ptr", i64="chosen_ptr ids_ptr", int="num_tiles count")
    columns = {"TILE": tile_columns}
    return [
        sampling("bias_kernel", bias, {"BLOCK": 1024}),
        sampling("count_kernel", places, {"BLOCK": 1024}),
        sampling("penalty_kernel", places | penalties, {"BLOCK": 1024}),
        sampling("logprob_scan_kernel", scan, columns, SCAN_WARPS),
        sampling("logprob_kernel", scan | listed, columns | {"NT_BLOCK": num_tiles}, DRAW_WARPS),
    ]


def norms() -> list[Variant]:
    module, constants = "chorus_kernels.norm_rope._kernel:", {"H": 2880, "EPS": 1e-5, "BLOCK": 4096}
    plain = signature(bf16="x_ptr weight_ptr out_ptr")
    with_router = signature(bf16="x_ptr norm_ptr weight_ptr bias_ptr normed_ptr", fp32="out_ptr", int="N")
    return [
        Variant(module + "rms_norm_kernel", plain, constants),
        Variant(
            module + "norm_linear_kernel",
            with_router | {"factor": "fp32"},
            constants | {"BLOCK_N": 4},
            divisible=["N"],
        ),
    ]


def test_no_variant_spills() -> None:
    columns = tile_size(VOCABULARY)
    variants = [*norms(), *draws(columns, 128), *around_draws(columns, 128)]
    for variant, compiled in zip(variants, compile_for_hopper(variants), strict=True):
        assert compiled.spilled == 0, variant
        # What a model's shape decides.
        assert set(compiled.specialised) <= {"N", "mask_stride", "num_tiles"}, variant
        wide = not variant.kernel.endswith(("bias_kernel", "count_kernel", "penalty_kernel"))
        assert not wide or ".v4.b32" in compiled.ptx, variant


def test_dense_products_load_ahead_and_exchange_nothing() -> None:
    # QKV or the output head, and attention's output; up to 8 and up to 16 tokens; of rows, and of tiles.
    shapes = [(2880, 1, "*bf16"), (2880, 2, "*fp32"), (4096, 1, "*bf16"), (4096, 2, "*bf16")]
    variants = [linear(*shape) for shape in shapes] + [linear(*shape, tiled=True) for shape in shapes if shape[1] == 1]
    for variant, compiled in zip(variants, compile_for_hopper(variants), strict=True):
        depth, halves = variant.constants["K"], variant.constants["HALVES"]
        assert compiled.spilled == 0 and compiled.registers <= 168 and set(compiled.specialised) <= {"N"}
        blocks = -(-depth // 32 // 4)
        ahead, behind = compiled.ptx.split("griddepcontrol.wait")
        # Of a warp's quarter of K, 512 columns of weights are on their way before the kernel waits, and nothing is
        # stored; after it come the rest, and the tokens'.
        wide = "ld.global.L1::evict_first.L2::cache_hint.v4.b32"
        assert ahead.count(wide) == 16 and "st.global" not in ahead
        assert compiled.ptx.count(wide) >= blocks and behind.count("ld.global.v4.b32") >= halves * blocks
        # Two for each block of 32 columns, in whole chunks of eight blocks.
        assert compiled.ptx.count("mma.sync") == 2 * 8 * -(-blocks // 8)
        # What lanes and warps exchange is the sum over the warps, [16, 8] of each.
        assert compiled.shared <= 2048 and compiled.ptx.count("shfl.sync") <= 8


def test_dense_products_that_hold_the_next_kernel() -> None:
    """As QKV, of tiles: the next kernel is let begin when the last weights have been asked for."""
    (compiled,) = compile_for_hopper([linear(2880, 1, "*bf16", tiled=True, hold_next=True)])
    assert compiled.spilled == 0 and compiled.registers <= 96
    wide = "ld.global.L1::evict_first.L2::cache_hint.v4.b32"
    assert compiled.ptx.index("griddepcontrol.launch_dependents") > compiled.ptx.rindex(wide)


def test_dense_products_of_one_or_two_tokens() -> None:
    # QKV with its norm, attention's output, and the output head.
    shapes = [(2880, 1, "*bf16", True), (4096, 1, "*bf16", False), (2880, 1, "*fp32", False)]
    shapes += [(depth, 2, *rest) for depth, _, *rest in shapes]
    for shape, compiled in zip(shapes, compile_for_hopper([vector(*shape) for shape in shapes]), strict=True):
        assert compiled.spilled == 0 and set(compiled.specialised) <= {"N"}, shape
        blocks = -(-shape[0] // 1024)
        ahead, behind = compiled.ptx.split("griddepcontrol.wait")
        # A lane's 16 bytes of each of four rows.
        wide = "ld.global.L1::evict_first.L2::cache_hint.v4.b32"
        assert ahead.count(wide) == 4 * (blocks // 2) and compiled.ptx.count(wide) == 4 * blocks
        assert behind.index("griddepcontrol.launch_dependents") > behind.rindex(wide)
        assert compiled.shared <= 256


def test_dense_products_that_begin_late() -> None:
    """As QKV, whose early loads would hold up the sum before it."""
    variants = [linear(2880, halves, "*bf16", dependent=False) for halves in (1, 2)]
    for compiled in compile_for_hopper(variants):
        assert compiled.spilled == 0 and compiled.registers <= 168 and "griddepcontrol" not in compiled.ptx


def test_batch_invariant_products_use_one_instruction() -> None:
    """Whatever their tiles: else a token's bits would depend on how many there are."""
    parameters = signature(bf16="x_ptr weight_ptr bias_ptr residual_ptr", int="num_tokens N") | {"out_ptr": "*bf16"}
    variants = []
    for rows, columns, width, num_warps, num_stages in (*op._INVARIANT_TILES.values(), op._INVARIANT_LARGE):
        constants = {"K": 2880, "HAS_BIAS": True, "HAS_RESIDUAL": True}
        constants |= {"ROWS": rows, "TOKENS": columns, "BLOCK_K": width}
        kernel = "chorus_kernels.linear._invariant_kernel:invariant_kernel"
        variants.append(Variant(kernel, parameters, constants, num_warps, num_stages, divisible=["N"]))
    for variant, compiled in zip(variants, compile_for_hopper(variants), strict=True):
        assert compiled.spilled == 0 and set(compiled.specialised) <= {"N"}, variant
        assert "wgmma.mma_async" in compiled.ptx and "mma.sync.aligned.m16" not in compiled.ptx, variant
        # What a multiprocessor of an H100 has for a program.
        assert compiled.shared <= 227 * 1024, variant


def test_kernels_run_on_ampere() -> None:
    columns = tile_size(VOCABULARY)
    products = [linear(2880, 1, "*bf16", tiled=True), linear(4096, 2, "*bf16"), vector(2880, 1, "*bf16", True)]
    check_that_they_run_on_ampere([*norms(), *draws(columns, 128), *around_draws(columns, 128), *products])
