"""Whether a model, its KV and a step's work fit on a GPU; and if they don't, what is missing and what would fit.

Weights come first. KV gets a share of what they leave (`runner.config`), and a step's activations get the rest.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch

from chorus_workers.model.config import ModelConfig
from chorus_workers.model.weights import Shard
from chorus_workers.runner.base import RunnerInfo
from chorus_workers.runner.config import RunnerConfig, device_page_bytes, resolve
from chorus_workers.runner.kv_memory import kv_bytes, kv_bytes_per_token

_GIB = 1 << 30
_SMALLEST_MODEL, _SMALLEST_MODEL_BYTES = "gpt-oss-20b", 13_800_000_000
# Beside the weights: the KV of some requests, and a step's work.
_LEAST_BESIDE_WEIGHTS = 2 * _GIB
# By CUDA and Triton, which loads kernels' code; by cuBLAS, which makes room for its work. RuntimeErrors all.
_OUT_OF_MEMORY = ("out of memory", "CUBLAS_STATUS_ALLOC_FAILED")


@contextmanager
def explain_out_of_memory(message: str) -> Iterator[None]:
    """Within it, a GPU that runs out of memory is a ValueError with this message."""
    try:
        yield
    except RuntimeError as error:
        # PyTorch's own is one of them.
        if not isinstance(error, torch.OutOfMemoryError) and not any(words in str(error) for words in _OUT_OF_MEMORY):
            raise
        raise ValueError(f"out of GPU memory: {message}") from error


def check_weights(weight_bytes: int, free_bytes: int) -> None:
    """Errors: ValueError, if the weights alone don't fit."""
    if weight_bytes > free_bytes:
        raise ValueError(weights_do_not_fit(weight_bytes, free_bytes))


def weights_do_not_fit(weight_bytes: int, free_bytes: int) -> str:
    """What to say when weights that take so many bytes don't go into those that were free."""
    fits = f"a GPU with {_gib(weight_bytes + _LEAST_BESIDE_WEIGHTS)} free would do"
    if weight_bytes > _SMALLEST_MODEL_BYTES and free_bytes >= _SMALLEST_MODEL_BYTES + _LEAST_BESIDE_WEIGHTS:
        fits += f", and so would {_SMALLEST_MODEL} ({_gib(_SMALLEST_MODEL_BYTES)}) on this one"
    return (
        f"the weights take {_gib(weight_bytes)}, and the GPU has {_gib(free_bytes)} free: stop what else runs on it; "
        f"{fits}"
    )


@dataclass(frozen=True, slots=True)
class MemoryNeeds:
    """What a configuration makes of the bytes that are free beside a model's weights."""

    config: RunnerConfig
    model: ModelConfig
    free_bytes: int
    kv_dtype: torch.dtype

    def resolve(self) -> RunnerInfo:
        """Fills in what the configuration leaves open.

        Errors: ValueError naming the setting that can't be met, with how much memory it takes and what would fit.
        """
        num_blocks, wanted = self.num_blocks_that_fit, self.num_blocks_of_longest
        if self.config.num_blocks is None and num_blocks < wanted:
            raise ValueError(
                f"one request of max_model_len {self._max_model_len} takes {_gib(wanted * self._block_bytes)} of KV, "
                f"and {self._free}, of which pages may take {_gib(num_blocks * self._block_bytes)}: {self.that_fits()}"
            )
        page_bytes = device_page_bytes(self.config, self.model, self.free_bytes, self.kv_dtype)
        info = resolve(self.config, self.model, page_bytes, self.kv_dtype)
        asked = kv_bytes(self.model, info, self.kv_dtype)
        if asked > self.free_bytes:
            raise ValueError(
                f"num_blocks and max_num_seqs ask for {_gib(asked)} of KV, and {self._free}: {self.that_fits()}"
            )
        return info

    def step_does_not_fit(self, info: RunnerInfo) -> str:
        """What to say when the memory is not enough for these settings, though all KV is within what is free."""
        kv, step = kv_bytes(self.model, info, self.kv_dtype), self.step_bytes
        # Less than what was too much, whatever a step is taken to need.
        fewer = replace(self.config, num_blocks=info.num_blocks * 7 // 8)
        left = replace(self, config=fewer, free_bytes=max(self.free_bytes - step, 0))
        return (
            f"KV takes {_gib(kv)}, a step of max_batched_tokens {self.config.max_batched_tokens} about {_gib(step)}, "
            f"and {self._free}: {left.that_fits()}, or set a lower max_batched_tokens"
        )

    def that_fits(self) -> str:
        """Settings near those asked for that fit."""
        num_slots = self.config.num_slots
        while num_slots:
            needs = replace(self, config=replace(self.config, num_slots=num_slots))
            num_blocks = needs.num_blocks_that_fit
            if self.config.num_blocks is not None:
                num_blocks = min(num_blocks, self.config.num_blocks)
            if num_blocks >= self.num_blocks_of_longest:
                return f"max_num_seqs {num_slots} with num_blocks {num_blocks} would fit"
            num_slots //= 2
        if num_blocks:
            longest = num_blocks * self.config.block_size
            return f"max_num_seqs 1 with max_model_len {longest} would fit"
        return "take a larger GPU, or a smaller model"

    @property
    def num_blocks_that_fit(self) -> int:
        """Pages that fit beside the rings of so many slots."""
        return device_page_bytes(self.config, self.model, self.free_bytes, self.kv_dtype) // max(self._block_bytes, 1)

    @property
    def num_blocks_of_longest(self) -> int:
        return -(-self._max_model_len // self.config.block_size)

    @property
    def step_bytes(self) -> int:
        """About what the largest step takes: activations of one layer in bfloat16, and float32 logits twice."""
        model, config = self.model, self.config
        heads = 2 * (model.num_heads + 2 * model.num_kv_heads) + model.num_heads
        slots = model.num_experts_per_token * (model.intermediate_size + model.hidden_size)
        activations = 2 * config.max_batched_tokens * (6 * model.hidden_size + heads * model.head_dim + slots)
        return activations + 2 * 4 * config.num_slots * model.vocab_size

    @property
    def _max_model_len(self) -> int:
        return min(self.config.max_model_len or self.model.max_position, self.model.max_position)

    @property
    def _block_bytes(self) -> int:
        return self.config.block_size * kv_bytes_per_token(self.model, Shard(), self.kv_dtype)

    @property
    def _free(self) -> str:
        return f"the GPU has {_gib(self.free_bytes)} free beside the weights"


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / _GIB:.1f} GiB"
