"""From logits to tokens on the device, with the semantics of `reference.py`, without a host round trip."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
import triton
from torch import Tensor

from chorus_kernels.dependent_launch import dependent_launch
from chorus_kernels.sampling._kernel import draw_kernel, scan_kernel
from chorus_kernels.sampling._logits_kernel import (
    bias_kernel,
    count_kernel,
    logprob_kernel,
    logprob_scan_kernel,
    penalty_kernel,
)
from chorus_kernels.sampling.philox import MAX_GUMBEL, MIN_GUMBEL
from chorus_kernels.sampling.reference import MIN_TEMPERATURE

SCAN_WARPS = 4
DRAW_WARPS = 8
# A thread; left to itself, the assembler takes fewer at times, and spills.
DRAW_REGISTERS = 208
# Entries of a bias or a history that a program handles.
_ENTRIES = 1024
_INTEGERS = (torch.int32, torch.int64)


@dataclass(frozen=True, slots=True)
class LogitBias:
    """E additions, each for another (row, column). rows, columns: int32 or int64 [E], an entry with a negative one is
    skipped; values: float32 [E]."""

    rows: Tensor
    columns: Tensor
    values: Tensor


@dataclass(frozen=True, slots=True)
class Penalties:
    """Penalties of P rows. rows: int64 [P], the rows of the logits, all different, negative to skip an entry; history:
    int32 or int64 [R, L], columns in the order in which they occurred, prompt first, negative for those that the logits
    don't have; history_rows: int64 [P], which history is whose; num_prompt_tokens, num_tokens: int32 [P], how much of a
    history is prompt, and how much is known at all; repetition, frequency, presence: float32 [P], off at 1, 0, 0;
    counts: int32 [P, N], scratch, zeros before and after."""

    rows: Tensor
    history: Tensor
    history_rows: Tensor
    num_prompt_tokens: Tensor
    num_tokens: Tensor
    repetition: Tensor
    frequency: Tensor
    presence: Tensor
    counts: Tensor


@dataclass(frozen=True, slots=True)
class TokenMask:
    """Which columns a row may draw. words: int32 [M, ceil(N / 32)], bit i % 32 (from the lowest) of word i // 32 set
    where column i is allowed; rows: int32 [S], the mask of each row of the logits, negative for none."""

    words: Tensor
    rows: Tensor


class Drawn(NamedTuple):
    """columns and their token_ids: int64 [S]; overruled: int32 [S], 1 where the mask forbade a column whose logit is
    larger than those of all that it allowed, None without a mask."""

    columns: Tensor
    token_ids: Tensor
    overruled: Tensor | None


@dataclass(frozen=True, slots=True)
class LatestTokens:
    """Where drawn tokens go besides: token_ids, int32 [M], gets a row's at slots[row]; slots: int64 [S], all
    different."""

    token_ids: Tensor
    slots: Tensor


def apply_bias_and_penalties(logits: Tensor, bias: LogitBias | None = None, penalties: Penalties | None = None) -> None:
    """Adds the bias, then penalises as `reference.apply_penalties` does, in place. logits: float32 [S, N], contiguous.

    Repetition r, for columns in the history: l / r if l > 0, else l r, kept finite; then, for those generated n times:
    l - n frequency - presence. A logit that is NaN or infinite stays so. The work grows with the histories, not with N.
    Errors: ValueError for other shapes, dtypes, strides or devices.
    """
    num_tokens = _check_logits(logits)[1]
    if bias is not None:
        _bias(logits, bias, num_tokens)
    if penalties is not None:
        _penalise(logits, penalties, num_tokens)


def _bias(logits: Tensor, bias: LogitBias, num_tokens: int) -> None:
    num_entries = bias.values.numel()
    for name, tensor in {"bias.rows": bias.rows, "bias.columns": bias.columns}.items():
        _check(name, tensor, (num_entries,), _INTEGERS, logits.device)
    _check("bias.values", bias.values, (num_entries,), (torch.float32,), logits.device)
    if num_entries:
        grid = (triton.cdiv(num_entries, _ENTRIES),)
        bias_kernel[grid](logits, bias.rows, bias.columns, bias.values, num_entries, num_tokens, BLOCK=_ENTRIES)


def _penalise(logits: Tensor, penalties: Penalties, num_tokens: int) -> None:
    num_entries, device = penalties.rows.numel(), logits.device
    for name in ("rows", "history_rows"):
        _check(f"penalties.{name}", getattr(penalties, name), (num_entries,), (torch.int64,), device)
    for name in ("num_prompt_tokens", "num_tokens"):
        _check(f"penalties.{name}", getattr(penalties, name), (num_entries,), (torch.int32,), device)
    for name in ("repetition", "frequency", "presence"):
        _check(f"penalties.{name}", getattr(penalties, name), (num_entries,), (torch.float32,), device)
    _check("penalties.counts", penalties.counts, (num_entries, num_tokens), (torch.int32,), device)
    history = penalties.history
    if history.ndim != 2:
        raise ValueError(f"penalties.history must be [R, L], not {list(history.shape)}")
    _check("penalties.history", history, tuple(history.shape), _INTEGERS, device)
    if num_entries == 0 or history.numel() == 0:
        return
    length = history.shape[1]
    grid = (triton.cdiv(length, _ENTRIES), num_entries)
    places = (penalties.rows, history, penalties.history_rows, penalties.num_prompt_tokens, penalties.num_tokens)
    count_kernel[grid](*places, penalties.counts, length, num_tokens, BLOCK=_ENTRIES)
    penalty_kernel[grid](
        logits,
        *places,
        penalties.counts,
        penalties.repetition,
        penalties.frequency,
        penalties.presence,
        length,
        num_tokens,
        BLOCK=_ENTRIES,
        # The reference rounds the product of count and frequency: no fused multiply-add.
        enable_fp_fusion=False,
    )


def sample(
    logits: Tensor,
    temperature: Tensor,
    top_k: Tensor,
    top_p: Tensor,
    min_p: Tensor,
    seeds: Tensor,
    positions: Tensor,
    token_ids: Tensor | None = None,
    *,
    token_mask: TokenMask | None = None,
    truncated: bool = True,
    latest: LatestTokens | None = None,
) -> Drawn:
    """Draws one column of each row, as `reference.sample` does: argmax over the tokens kept of z + g, where
    z = (logit - max) / temperature and g is the Gumbel noise of (seed, position, token id); the first of equals. A row
    whose temperature is below MIN_TEMPERATURE is greedy. A row's result depends on nothing but that row.

    logits: float32 [S, N]; temperature, top_p, min_p: float32 [S]; top_k: int32 or int64 [S]; off at top_k <= 0,
    top_p >= 1, min_p = 0; seeds: int64 [S, 2], of `split_seed`; positions: int64 [S]; token_ids: int64 [N], what the
    noise goes by, None where column i is token i; all contiguous. What the mask forbids is as if it were impossible.
    truncated=False promises that no row has top-k, top-p or min-p: a smaller kernel. latest: gets the token ids, too.

    Where a logit of the row is NaN or infinite, or the mask forbids every token, the column is 0, the id -1, and what
    `latest` gets 0; other rows are as ever. Errors: ValueError for other shapes, dtypes, strides or devices.
    """
    num_rows, num_tokens = _check_logits(logits)
    per_row = {"temperature": temperature, "top_p": top_p, "min_p": min_p, "top_k": top_k, "positions": positions}
    for name, values in per_row.items():
        dtypes = {"top_k": _INTEGERS, "positions": (torch.int64,)}.get(name, (torch.float32,))
        _check(name, values, (num_rows,), dtypes, logits.device)
    _check("seeds", seeds, (num_rows, 2), (torch.int64,), logits.device)
    mask_words = triton.cdiv(num_tokens, 32)
    if token_ids is not None:
        _check("token_ids", token_ids, (num_tokens,), (torch.int64,), logits.device)
    if token_mask is not None:
        num_masks = token_mask.words.shape[0]
        _check("token_mask.words", token_mask.words, (num_masks, mask_words), (torch.int32,), logits.device)
        _check("token_mask.rows", token_mask.rows, (num_rows,), (torch.int32,), logits.device)
    if latest is not None:
        _check("latest.token_ids", latest.token_ids, (latest.token_ids.numel(),), (torch.int32,), logits.device)
        _check("latest.slots", latest.slots, (num_rows,), (torch.int64,), logits.device)
    columns, drawn = (torch.empty(num_rows, dtype=torch.int64, device=logits.device) for _ in range(2))
    overruled = None if token_mask is None else torch.empty(num_rows, dtype=torch.int32, device=logits.device)
    if num_rows == 0:
        return Drawn(columns, drawn, overruled)
    tile = tile_size(num_tokens)
    num_tiles = triton.cdiv(num_tokens, tile)
    stats = torch.empty(num_rows, 4, num_tiles, dtype=torch.float32, device=logits.device)
    firsts = torch.empty(num_rows, num_tiles, dtype=torch.int32, device=logits.device)
    flags = {"HAS_IDS": token_ids is not None, "HAS_MASK": token_mask is not None}
    # Pointers that a variant doesn't read stand for themselves by another's.
    ids = positions if token_ids is None else token_ids
    mask, mask_rows = (firsts, firsts) if token_mask is None else (token_mask.words, token_mask.rows)
    scan_kernel[(num_tiles, num_rows)](
        logits,
        temperature,
        top_p,
        seeds,
        positions,
        ids,
        mask,
        mask_rows,
        stats,
        firsts,
        num_tokens,
        mask_words,
        MIN_TEMPERATURE=MIN_TEMPERATURE,
        TILE=tile,
        num_warps=SCAN_WARPS,
        **flags,
        **dependent_launch(logits.device),
    )
    draw_kernel[(num_rows,)](
        logits,
        temperature,
        top_k,
        top_p,
        min_p,
        seeds,
        positions,
        ids,
        mask,
        mask_rows,
        stats,
        firsts,
        columns,
        drawn,
        overruled,
        None if latest is None else latest.token_ids,
        None if latest is None else latest.slots,
        num_tokens,
        num_tiles,
        mask_words,
        MIN_TEMPERATURE=MIN_TEMPERATURE,
        LEAST_Z=MIN_GUMBEL - MAX_GUMBEL,
        HAS_LATEST=latest is not None,
        TRUNCATED=truncated,
        TILE=tile,
        NT_BLOCK=triton.next_power_of_2(num_tiles),
        num_warps=DRAW_WARPS,
        maxnreg=DRAW_REGISTERS,
        **flags,
        **dependent_launch(logits.device),
    )
    return Drawn(columns, drawn, overruled)


def top_logprobs(logits: Tensor, chosen: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Natural log probabilities of each row: the chosen column's, and the `count` likeliest columns with theirs, most
    likely first, the lower column first among equals.

    logits: float32 [S, N]; chosen: int64 [S]; both contiguous. Returns float32 [S], int64 [S, n] and float32 [S, n],
    n = min(count, N). Rows with NaN or infinite logits get numbers without a meaning. Errors: ValueError for other
    shapes, dtypes, strides or devices, and a negative count.
    """
    num_rows, num_tokens = _check_logits(logits)
    _check("chosen", chosen, (num_rows,), (torch.int64,), logits.device)
    if count < 0:
        raise ValueError(f"count must be at least 0, not {count}")
    count = min(count, num_tokens)
    device = logits.device
    chosen_logprobs = torch.empty(num_rows, dtype=torch.float32, device=device)
    columns = torch.empty(num_rows, count, dtype=torch.int64, device=device)
    logprobs = torch.empty(num_rows, count, dtype=torch.float32, device=device)
    if num_rows:
        tile = tile_size(num_tokens)
        num_tiles = triton.cdiv(num_tokens, tile)
        stats = torch.empty(num_rows, 2, num_tiles, dtype=torch.float32, device=device)
        firsts = torch.empty(num_rows, num_tiles, dtype=torch.int32, device=device)
        logprob_scan_kernel[(num_tiles, num_rows)](logits, stats, firsts, num_tokens, TILE=tile, num_warps=SCAN_WARPS)
        logprob_kernel[(num_rows,)](
            logits,
            chosen,
            stats,
            firsts,
            chosen_logprobs,
            columns,
            logprobs,
            num_tokens,
            num_tiles,
            count,
            TILE=tile,
            NT_BLOCK=triton.next_power_of_2(num_tiles),
            num_warps=DRAW_WARPS,
        )
    return chosen_logprobs, columns, logprobs


def tile_size(num_tokens: int) -> int:
    """Columns a tile: about 100 tiles of a real vocabulary, so that one row alone fills the device, while a tile looked
    at again costs little. A function of the vocabulary alone: sums don't depend on the batch."""
    return min(2048, max(128, 1 << (-(-num_tokens // 64) - 1).bit_length()))


def _check_logits(logits: Tensor) -> tuple[int, int]:
    if logits.ndim != 2 or logits.shape[0] >= 2**16 or not 0 < logits.shape[1] < 2**30:
        raise ValueError(f"logits must be [S, N] with S below 2^16 and N from 1 to 2^30, not {list(logits.shape)}")
    num_rows, num_tokens = logits.shape
    _check("logits", logits, (num_rows, num_tokens), (torch.float32,), logits.device)
    return num_rows, num_tokens


def _check(
    name: str, tensor: Tensor, shape: tuple[int, ...], dtypes: tuple[torch.dtype, ...], device: torch.device
) -> None:
    if tuple(tensor.shape) != shape or tensor.dtype not in dtypes:
        raise ValueError(f"{name} must be {list(shape)} of {dtypes}, not {list(tensor.shape)} of {tensor.dtype}")
    if not tensor.is_contiguous() or tensor.device != device:
        raise ValueError(f"{name} must be contiguous on {device}: strides {tensor.stride()} on {tensor.device}")
