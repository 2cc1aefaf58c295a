"""Steps that launch every variant of every kernel once, so that no request waits for a compiler.

A kernel has a variant for each choice of tile sizes, and these go by the number of tokens, or of sequences and pages. A
variant that Triton has compiled before comes from its cache on the disk (TRITON_CACHE_DIR).
"""

import logging
import time
from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from chorus_kernels.attention.tiles import DecodeTiles, decode_tiles, power_of_two
from chorus_workers.model.config import ModelConfig
from chorus_workers.runner.base import Batch, Runner, RunnerInfo, SampleRequest, SequenceChunk
from chorus_workers.sampling_params import SamplingParams

logger = logging.getLogger(__name__)

_PLAIN = SamplingParams(temperature=1.0, seed=0)
# The same, with everything that has a kernel of its own.
_EVERYTHING = replace(
    _PLAIN, top_k=2, top_p=0.5, min_p=0.1, logit_bias={0: 1.0}, repetition_penalty=1.1, num_top_logprobs=1
)


def warm_up(runner: Runner, config: ModelConfig) -> None:
    """Runs the steps. They write to the KV memory, which must not be in use yet."""
    begin = time.monotonic()
    num_columns = config.vocab_size if runner.token_ids is None else len(runner.token_ids)
    batches = list(warm_up_batches(config, runner.info, num_columns))
    for batch in batches:
        runner.run(batch)
    logger.info("warmed up in %.1f s, with %d steps", time.monotonic() - begin, len(batches))


def warm_up_batches(config: ModelConfig, info: RunnerInfo, num_columns: int) -> Iterator[Batch]:
    """The steps, those of prefill first and the largest of them at once, so that it is known early whether memory will
    do. What a step mixes doesn't matter: kernels don't know of their neighbours. num_columns: of the logits."""
    for num_tokens in reversed(_token_counts(info)):
        yield Batch(_prefill(num_tokens, info))
    # In the batch-invariant mode all decode divides its keys as the graphs' steps do.
    if not info.batch_invariant:
        for num_sequences, length in _decode_shapes(config, info):
            yield Batch([_chunk(slot, length - 1, 1, info) for slot in range(num_sequences)])
    for params in (_PLAIN, _EVERYTHING):
        for mask in (None, np.full(-(-num_columns // 32), -1, np.int32)):
            chunk = _chunk(0, 0, 2, info)
            sample = SampleRequest(params, chunk.token_ids, num_prompt_tokens=2, position=2, mask=mask)
            yield Batch([replace(chunk, sample=sample)])


def _token_counts(info: RunnerInfo) -> list[int]:
    """From 2 to the most that a step has: powers of two and what is halfway between them, where tile sizes change."""
    most = min(info.max_batched_tokens, info.num_slots * info.max_model_len)
    counts = {power + half for power in _powers_of_two(most) for half in (0, power // 2)}
    return sorted({count for count in counts if 2 <= count < most} | {most})


def _decode_shapes(config: ModelConfig, info: RunnerInfo) -> list[tuple[int, int]]:
    """Numbers of sequences, and lengths of the longest, that stand for all the ways to divide their keys."""
    lengths = [*_powers_of_two(info.max_model_len), info.max_model_len]
    shapes: dict[DecodeTiles, tuple[int, int]] = {}
    for num_sequences in range(1, info.num_slots + 1):
        for length in lengths:
            pages = -(-length // info.block_size) * info.block_size
            tiles = decode_tiles(num_sequences, config.num_kv_heads, pages, ring=False)
            splits = power_of_two(tiles.num_splits) if tiles.num_splits > 1 else 1
            shapes.setdefault(replace(tiles, num_splits=splits), (num_sequences, length))
    return list(shapes.values())


def _powers_of_two(most: int) -> list[int]:
    return [1 << exponent for exponent in range(most.bit_length())]


def _prefill(num_tokens: int, info: RunnerInfo) -> list[SequenceChunk]:
    """Chunks with so many tokens in all."""
    whole, rest = divmod(num_tokens, info.max_model_len)
    lengths = [info.max_model_len] * whole + [rest] * (rest > 0)
    return [_chunk(slot, 0, length, info) for slot, length in enumerate(lengths)]


def _chunk(slot: int, start: int, num_tokens: int, info: RunnerInfo) -> SequenceChunk:
    """Tokens of a sequence that draws none. All sequences have the same pages: what is written there is of no use."""
    num_pages = -(-(start + num_tokens) // info.block_size)
    return SequenceChunk("", slot, start, [0] * num_tokens, range(num_pages), None)
