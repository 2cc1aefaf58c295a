"""What the kernels of norm, dense product and sampling take on Hopper, in the variants of the real models."""

from collections.abc import Mapping
from typing import Any

from tests.kernels.hopper import Variant, compile_for_hopper

from chorus_kernels.linear.op import MAX_TOKENS, tile
from chorus_kernels.sampling.op import DRAW_WARPS, SCAN_WARPS, tile_size

VOCABULARY = 201088
KINDS = {"fp32": "*fp32", "i32": "*i32", "i64": "*i64", "bf16": "*bf16", "flag": "*i1", "int": "i32"}


def signature(**names: str) -> dict[str, str]:
    """Triton's types of the parameters, which are listed by kind."""
    return {name: KINDS[kind] for kind, listed in names.items() for name in listed.split()}


def linear(num_rows: int, depth: int, tokens: int, out: str) -> Variant:
    rows_per_program, chunk = tile(num_rows, depth)
    constants = {"K": depth, "HAS_BIAS": True, "HAS_RESIDUAL": True, "TOKENS": tokens}
    parameters = signature(bf16="x_ptr weight_ptr bias_ptr residual_ptr", int="N") | {"out_ptr": out}
    parameters["num_tokens"] = "1" if tokens == 1 else "i32"  # Triton specialises on ones
    kernel = "chorus_kernels.linear._kernel:linear_kernel"
    return Variant(kernel, parameters, constants | {"BN": rows_per_program, "BK": chunk}, divisible=["N"])


def sampling(kernel: str, parameters: Mapping[str, str], constants: Mapping[str, Any], num_warps: int = 4) -> Variant:
    module = "_kernel" if kernel in ("scan_kernel", "draw_kernel") else "_logits_kernel"
    name = f"chorus_kernels.sampling.{module}:{kernel}"
    return Variant(name, parameters, constants, num_warps=num_warps, divisible=["N"])


def draws(tile_columns: int, num_tiles: int) -> list[Variant]:
    variants = []
    flags = {"HAS_IDS": False, "MIN_TEMPERATURE": 1e-5, "TILE": tile_columns}
    for masked, truncated in [(False, False), (False, True), (True, True)]:
        shared = signature(
            fp32="logits_ptr temperature_ptr top_p_ptr stats_ptr",
            i64="seeds_ptr positions_ptr ids_ptr",
            i32="mask_ptr argmax_ptr",
            int="N mask_stride",
        )
        constants = flags | {"HAS_MASK": masked}
        variants.append(sampling("scan_kernel", shared, constants, SCAN_WARPS))
        of_draw = signature(fp32="min_p_ptr", i64="tokens_ptr top_k_ptr", flag="finite_ptr", int="num_tiles")
        constants = constants | {"LEAST_Z": -26.02, "NT_BLOCK": num_tiles, "TRUNCATED": truncated}
        variants.append(sampling("draw_kernel", shared | of_draw, constants, DRAW_WARPS))
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


def test_no_variant_spills() -> None:
    norm_constants = {"H": 2880, "EPS": 1e-5, "ADD": True, "BLOCK": 4096}
    rows = signature(bf16="x_ptr residual_ptr weight_ptr out_ptr new_residual_ptr")
    norm = Variant("chorus_kernels.norm_rope._kernel:rms_norm_kernel", rows, norm_constants)
    # QKV, attention output, output head; QKV for a few, the router.
    products = [
        linear(5120, 2880, 1, "*bf16"),
        linear(2880, 4096, 1, "*bf16"),
        linear(VOCABULARY, 2880, MAX_TOKENS, "*fp32"),
        linear(5120, 2880, 4, "*bf16"),
        linear(32, 2880, 2, "*fp32"),
    ]
    columns = tile_size(VOCABULARY)
    variants = [norm, *products, *draws(columns, 128), *around_draws(columns, 128)]
    for variant, compiled in zip(variants, compile_for_hopper(variants), strict=True):
        assert compiled.spilled == 0, variant
        # What a model's shape decides; and a single token, for which the dense product has a variant anyhow.
        assert set(compiled.specialised) <= {"N", "mask_stride", "num_tiles", "num_tokens"}, variant
        wide = not variant.kernel.endswith(("bias_kernel", "count_kernel", "penalty_kernel"))
        assert not wide or ".v4.b32" in compiled.ptx, variant
