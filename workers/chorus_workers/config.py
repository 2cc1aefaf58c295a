"""How one worker is set up. The cluster's configuration is checked there and turned into this once."""

from dataclasses import dataclass
from typing import Literal

FAKE_MODEL_PREFIX = "fake:"
RunnerKind = Literal["reference", "triton"]
KvCacheDtype = Literal["auto", "fp8_e4m3"]


@dataclass(frozen=True, slots=True)
class WorkerConfig:
    """Settings of one worker (one engine, one or more shards).

    Errors: ValueError naming the field and what would be right.
    """

    # "demo", or the path of a checkpoint's folder. "fake:{json}" runs a FakeRunner: for tests and benchmarks only.
    model: str = "demo"
    # The name clients ask for.
    served_model_name: str = "chorus-demo"
    # Most tokens of prompt and answer together. None: what the model allows.
    max_model_len: int | None = None
    # Positions in a page of full-attention KV.
    block_size: int = 16
    # Pages of full-attention KV. None: what fits into memory.
    num_kv_blocks: int | None = None
    # Whether requests use KV again that earlier ones computed for the same beginning.
    prefix_cache: bool = True
    # Requests running at once.
    max_num_seqs: int = 32
    # Tokens computed in one step, over all requests.
    max_batched_tokens: int = 512
    # Seconds that a step should take while answers are being written: prompts get fewer tokens then. None: no limit.
    step_budget_s: float | None = None
    # Seconds that compiling a request's schema or grammar may take; it is refused then.
    grammar_timeout_s: float = 2.0
    # Requests waiting beyond the running ones; the next one is refused as OVERLOADED.
    max_queued_requests: int = 256
    num_shards: int = 1
    # host:port at which shard 0 awaits the others. The worker sets it as it starts them.
    shard_address: str | None = None
    # A stream's tokens after the first are merged into at most one message in this time, in seconds.
    merge_interval_s: float = 0.02
    # Port of the worker's own EngineService and VllmEngine. None: off. 0: any free one.
    grpc_port: int | None = None
    # The address it listens on. It has no authentication: open it to other hosts only where the network is trusted.
    grpc_host: str = "127.0.0.1"
    # CPU threads of the runner. None: what the runner takes.
    num_threads: int | None = None
    # "reference": PyTorch on CPUs. "triton": our kernels on a GPU.
    runner: RunnerKind = "reference"
    # How keys and values are kept. "auto": in the model's dtype. "fp8_e4m3": in half the memory, at some loss of
    # accuracy; runner "triton" only.
    kv_cache_dtype: KvCacheDtype = "auto"
    # Whether a request's logits are the same bits alone and among others, at some loss of speed; runner "triton" only.
    batch_invariant: bool = False
    # Ray actor that gathers metrics, as "name" or "namespace/name"; once a second it is sent
    # push(role: str, replica: str, page: str). None: metrics are not pushed.
    metrics_actor: str | None = None

    def __post_init__(self) -> None:
        if not self.model:
            raise ValueError('model is empty: give "demo" or the path of a checkpoint')
        _at_least("block_size", self.block_size, 1)
        _at_least("max_num_seqs", self.max_num_seqs, 1)
        _at_least("max_queued_requests", self.max_queued_requests, 0)
        _at_least("num_shards", self.num_shards, 1)
        _at_least("max_model_len", self.max_model_len, 2)
        _at_least("num_kv_blocks", self.num_kv_blocks, 1)
        _at_least("num_threads", self.num_threads, 1)
        _at_least("grpc_port", self.grpc_port, 0)
        if self.max_batched_tokens < self.max_num_seqs:
            raise ValueError(
                f"max_batched_tokens is {self.max_batched_tokens}: it must be at least max_num_seqs "
                f"({self.max_num_seqs}), so that every running request can decode in every step"
            )
        if self.step_budget_s is not None and not self.step_budget_s > 0:
            raise ValueError(f"step_budget_s is {self.step_budget_s}: it must be more than 0 seconds")
        if not self.grammar_timeout_s > 0:
            raise ValueError(f"grammar_timeout_s is {self.grammar_timeout_s}: it must be more than 0 seconds")
        if not 0 <= self.merge_interval_s <= 1:
            raise ValueError(f"merge_interval_s is {self.merge_interval_s}: it must be between 0 and 1 seconds")
        check_kv_cache_dtype(self.runner, self.kv_cache_dtype)
        check_batch_invariant(self.runner, self.batch_invariant)


def check_kv_cache_dtype(runner: RunnerKind, kv_cache_dtype: KvCacheDtype) -> None:
    """Errors: ValueError, if the runner can't keep KV so."""
    if runner == "reference" and kv_cache_dtype != "auto":
        raise ValueError(
            f"kv_cache_dtype is {kv_cache_dtype}: runner 'reference' keeps KV in float32 only; leave it auto, or take "
            "runner 'triton' on a GPU"
        )


def check_batch_invariant(runner: RunnerKind, batch_invariant: bool) -> None:
    """Errors: ValueError, if the runner can't be so."""
    if runner == "reference" and batch_invariant:
        raise ValueError("batch_invariant is on: it takes runner 'triton' on a GPU")


def _at_least(name: str, value: int | None, least: int) -> None:
    if value is not None and value < least:
        raise ValueError(f"{name} is {value}: it must be at least {least}")
