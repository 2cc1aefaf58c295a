"""How a runner is set up, and what a configuration that leaves things open comes to."""

from dataclasses import dataclass
from pathlib import Path

import torch

from chorus_workers.config import KvCacheDtype, RunnerKind
from chorus_workers.model.config import ModelConfig
from chorus_workers.model.weights import Shard
from chorus_workers.runner.base import RunnerInfo
from chorus_workers.runner.kv_memory import kv_bytes_per_token, ring_bytes

DEMO_MODEL = "demo"
_DEMO_FOLDER = Path(__file__).parent.parent / "demo_model"
# Unless told otherwise, pages of KV take this share of a host's memory that is free at start; ...
_HOST_PAGES_SHARE = 0.25
# ... on a GPU all KV takes this share, and the rest is for a step's activations and logits, and for kernels; ...
_DEVICE_KV_SHARE = 0.85
# ... and pages no more than this many tokens a slot: a small model on a large machine needs no more.
_KV_TOKENS_PER_SLOT = 8192
# Snapshots of rings take this share of what the pages take, on top: one for each 1,024 tokens where half of the layers
# have a window of 128. There are at least as many as slots.
_SNAPSHOT_SHARE = 0.125
# Matrices of fewer elements are multiplied by one thread: more of them spend their time waiting for one another, and
# where other processes want the CPUs too, steps take ten times as long.
_SMALL_MATRIX = 1 << 19


@dataclass(frozen=True, slots=True)
class RunnerConfig:
    """What a runner is made from."""

    # "demo", or the path of a checkpoint's folder.
    model: str
    # Most tokens of a request. None: what the model allows.
    max_model_len: int | None
    # Positions in a page of KV.
    block_size: int
    # Pages of KV. None: by the memory that is free.
    num_blocks: int | None
    # Requests that may hold KV at once.
    num_slots: int
    max_batched_tokens: int
    num_shards: int = 1
    # CPU threads of a shard. None: one for a small model, else this shard's part of the machine's CPUs.
    num_threads: int | None = None
    # host:port at which shard 0 awaits the others. None: there are none.
    shard_address: str | None = None
    # Whether to reserve memory for snapshots.
    prefix_cache: bool = True
    runner: RunnerKind = "reference"
    kv_cache_dtype: KvCacheDtype = "auto"
    # Whether a request's logits are the same bits alone and among others.
    batch_invariant: bool = False

    @property
    def folder(self) -> Path:
        return _DEMO_FOLDER if self.model == DEMO_MODEL else Path(self.model)


def kv_dtype(kv_cache_dtype: KvCacheDtype, model_dtype: torch.dtype) -> torch.dtype:
    """What the setting means for a model."""
    return model_dtype if kv_cache_dtype == "auto" else torch.float8_e4m3fn


def host_page_bytes(free_bytes: int) -> int:
    """What pages may take of a host's memory. Rings and snapshots come on top, and are small beside it."""
    return int(free_bytes * _HOST_PAGES_SHARE)


def device_page_bytes(config: RunnerConfig, model: ModelConfig, free_bytes: int, kv_dtype: torch.dtype) -> int:
    """What pages may take of a GPU's memory, so that rings and snapshots fit beside them."""
    rings = config.num_slots * ring_bytes(model, Shard(), kv_dtype)
    left = int(free_bytes * _DEVICE_KV_SHARE) - rings
    if config.prefix_cache and rings:
        left = min(int(left / (1 + _SNAPSHOT_SHARE)), left - rings)
    return max(left, 0)


def resolve(
    config: RunnerConfig, model: ModelConfig, page_bytes: int, kv_dtype: torch.dtype = torch.float32
) -> RunnerInfo:
    """Fills in what the configuration leaves open. page_bytes: memory that a shard's pages may take.

    Errors: ValueError naming the setting that can't be met.
    """
    max_model_len = config.max_model_len or model.max_position
    if max_model_len > model.max_position:
        raise ValueError(f"max_model_len {max_model_len} is more than the model's {model.max_position} positions")
    longest = -(-max_model_len // config.block_size)
    num_blocks = config.num_blocks
    if num_blocks is None:
        block_bytes = config.block_size * kv_bytes_per_token(model, Shard(0, config.num_shards), kv_dtype)
        tokens = max(max_model_len, config.num_slots * min(max_model_len, _KV_TOKENS_PER_SLOT))
        wanted = -(-tokens // config.block_size)
        num_blocks = min(wanted, page_bytes // max(block_bytes, 1))
    if num_blocks < longest:
        raise ValueError(
            f"num_blocks {num_blocks} of {config.block_size} positions can't hold one request of max_model_len "
            f"{max_model_len}: it takes {longest}"
        )
    return RunnerInfo(
        vocab_size=model.vocab_size,
        max_model_len=max_model_len,
        block_size=config.block_size,
        num_blocks=num_blocks,
        num_slots=config.num_slots,
        max_batched_tokens=config.max_batched_tokens,
        num_shards=config.num_shards,
        num_snapshots=_resolve_snapshots(config, model, num_blocks),
        has_window_layers=model.window > 0,
    )


def _resolve_snapshots(config: RunnerConfig, model: ModelConfig, num_blocks: int) -> int:
    shard = Shard(0, config.num_shards)
    if not config.prefix_cache or not model.window:
        return 0
    page_bytes = num_blocks * config.block_size * kv_bytes_per_token(model, shard)
    by_memory = int(page_bytes * _SNAPSHOT_SHARE) // ring_bytes(model, shard)
    # More than one a page can't be of use.
    return min(max(by_memory, config.num_slots), num_blocks)


def resolve_threads(config: RunnerConfig, model: ModelConfig, num_cpus: int) -> int:
    """CPU threads for one shard."""
    if config.num_threads is not None:
        return config.num_threads
    if model.hidden_size * model.intermediate_size < _SMALL_MATRIX:
        return 1
    return max(1, num_cpus // config.num_shards)
