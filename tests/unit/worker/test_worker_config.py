import pytest

from chorus_workers.config import WorkerConfig


def test_the_defaults_hold_together() -> None:
    WorkerConfig()
    WorkerConfig(runner="triton", kv_cache_dtype="fp8_e4m3")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model": ""}, "model is empty"),
        ({"block_size": 0}, "block_size is 0: it must be at least 1"),
        ({"max_num_seqs": 0}, "max_num_seqs is 0"),
        ({"max_queued_requests": -1}, "max_queued_requests is -1"),
        ({"max_model_len": 1}, "max_model_len is 1"),
        ({"num_kv_blocks": 0}, "num_kv_blocks is 0"),
        ({"num_shards": 0}, "num_shards is 0"),
        ({"num_threads": 0}, "num_threads is 0"),
        ({"max_num_seqs": 64, "max_batched_tokens": 63}, "at least max_num_seqs"),
        ({"batch_invariant": True}, "batch_invariant is on: it takes runner 'triton' on a GPU"),
        ({"kv_cache_dtype": "fp8_e4m3"}, "kv_cache_dtype is fp8_e4m3: runner 'reference' keeps KV in float32 only"),
        ({"grammar_timeout_s": 0.0}, "grammar_timeout_s is 0.0"),
        ({"merge_interval_s": -0.1}, "merge_interval_s is -0.1"),
        ({"merge_interval_s": float("nan")}, "merge_interval_s is nan"),
    ],
)
def test_a_wrong_value_is_named(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        WorkerConfig(**settings)  # type: ignore[arg-type]
