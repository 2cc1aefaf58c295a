from collections import Counter
from dataclasses import dataclass, field

from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families
from tests.unit.worker.conftest import fake_config, start_worker

from chorus_protos.v1 import engine_pb2
from chorus_workers.engine.stats import EngineLoad, EngineStats
from chorus_workers.metrics import build_registry
from chorus_workers.runner.base import RunnerInfo
from chorus_workers.worker import Worker


@dataclass
class View:
    info: RunnerInfo = RunnerInfo(100, 64, 4, 16, 2, 8, 1)
    load: EngineLoad = EngineLoad(2, 3, 40, 0.5)
    stats: EngineStats = field(default_factory=EngineStats)


def samples(page: str) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(page)
        for sample in family.samples
    }


def test_the_page_says_what_the_engine_counted() -> None:
    view = View()
    view.stats.num_generated_tokens = 7
    view.stats.finished["stop"] = 2
    view.stats.refused["overloaded"] = 1
    view.stats.queue_time.observe(0.003, 2)
    view.stats.queue_time.observe(100)
    page = samples(generate_latest(build_registry(view, Counter(overloaded=1, invalid_argument=4))).decode())
    expected = {
        ("chorus_requests_running", ()): 2,
        ("chorus_requests_waiting", ()): 3,
        ("chorus_kv_usage_ratio", ()): 0.5,
        ("chorus_outstanding_tokens", ()): 40,
        ("chorus_generated_tokens_total", ()): 7,
        ("chorus_preemptions_total", ()): 0,
        ("chorus_requests_finished_total", (("reason", "stop"),)): 2,
        ("chorus_requests_refused_total", (("reason", "invalid_argument"),)): 4,
        ("chorus_requests_refused_total", (("reason", "overloaded"),)): 2,
        ("chorus_queue_time_seconds_bucket", (("le", "0.0025"),)): 0,
        ("chorus_queue_time_seconds_bucket", (("le", "0.005"),)): 2,
        ("chorus_queue_time_seconds_bucket", (("le", "60.0"),)): 2,
        ("chorus_queue_time_seconds_bucket", (("le", "+Inf"),)): 3,
        ("chorus_queue_time_seconds_count", ()): 3,
        ("chorus_queue_time_seconds_sum", ()): 100.006,
        ("vllm:num_requests_running", ()): 2,
        ("vllm:num_requests_waiting", ()): 3,
        ("vllm:kv_cache_usage_perc", ()): 0.5,
        ("vllm:cache_config_info", (("block_size", "4"), ("num_gpu_blocks", "16"))): 1,
    }
    assert {key: page.get(key) for key in expected} == expected


async def test_a_worker_s_page_follows_its_requests(worker: Worker) -> None:
    request = engine_pb2.GenerateRequest(request_id="a", prompt_token_ids=[1, 2], max_tokens=5)
    assert [r async for r in worker.generate(request)][-1].finish_reason == engine_pb2.FINISH_REASON_LENGTH
    assert [r async for r in worker.generate(engine_pb2.GenerateRequest())][0].HasField("refusal")
    page = samples(worker.metrics_page())
    assert page["chorus_generated_tokens_total", ()] == 5
    assert page["chorus_prompt_tokens_total", ()] == 2
    assert page["chorus_requests_refused_total", (("reason", "invalid_argument"),)] == 1


async def test_cached_tokens_are_reported_and_counted(worker: Worker) -> None:
    for number, (salt, num_cached) in enumerate((("", 0), ("", 32), ("tenant", 0), ("tenant", 32))):
        request = engine_pb2.GenerateRequest(
            request_id=f"{number}", prompt_token_ids=range(1, 41), max_tokens=2, cache_salt=salt
        )
        first, *rest = [response async for response in worker.generate(request)]
        assert first.num_cached_tokens == num_cached
        assert not any(response.num_cached_tokens for response in rest)
    page = samples(worker.metrics_page())
    assert page["chorus_prefix_cache_queries_total", ()] == 160
    assert page["chorus_prefix_cache_hits_total", ()] == 64
    assert page["chorus_kv_usage_ratio", ()] == 0


async def test_the_prefix_cache_can_be_switched_off() -> None:
    worker = await start_worker(fake_config(prefix_cache=False))
    try:
        for number in range(2):
            request = engine_pb2.GenerateRequest(
                request_id=f"{number}", prompt_token_ids=range(1, 41), max_tokens=1, cache_salt="a"
            )
            assert [r.num_cached_tokens async for r in worker.generate(request)] == [0]
        assert samples(worker.metrics_page())["chorus_prefix_cache_hits_total", ()] == 0
    finally:
        await worker.shutdown()
