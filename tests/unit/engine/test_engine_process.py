"""The engine's own process: its start, its end, and what happens when either side dies."""

import asyncio
import fcntl
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import replace

import psutil
import pytest
import uvloop

from chorus_workers.config import WorkerConfig
from chorus_workers.engine import client, process
from chorus_workers.engine.client import AsyncEngine, EngineStartError
from chorus_workers.engine.messages import Abort, Decoder, Failed, Submit, encode
from chorus_workers.engine.output import StepOutput
from chorus_workers.engine.process import Link
from chorus_workers.engine.request import FinishReason, GenerationRequest, RefusalReason, Refused
from chorus_workers.engine.stream import EngineDeadError, TokenChunk, TokenStream
from chorus_workers.runner.base import RunnerError
from chorus_workers.runner.fake import FakeModel, FakeRunner
from chorus_workers.sampling_params import SamplingParams

MODEL = FakeModel(step_time_s=0.002, body=9)


def config(model: FakeModel = MODEL, **settings: object) -> WorkerConfig:
    return replace(WorkerConfig(model=model.to_config()), **settings)  # type: ignore[arg-type]


@asynccontextmanager
async def running(settings: WorkerConfig) -> AsyncIterator[AsyncEngine]:
    engine = await AsyncEngine.start(settings)
    try:
        yield engine
    finally:
        await engine.close()


def ask(request_id: str = "a", max_tokens: int = 100_000) -> GenerationRequest:
    return GenerationRequest(request_id, [1, 2], SamplingParams(), max_tokens, arrival_time=time.monotonic())


async def read_all(stream: TokenStream) -> list[TokenChunk]:
    chunks = [await stream.read()]
    while chunks[-1].finish_reason is None:
        chunks.append(await stream.read())
    return chunks


async def wait_for(condition: Callable[[], bool], timeout_s: float = 5.0) -> None:
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.005)


def test_it_runs_on_the_event_loop_of_a_serve_replica() -> None:
    uvloop = pytest.importorskip("uvloop", reason="Ray Serve runs on it where it is installed")

    async def ask_one() -> list[TokenChunk]:
        async with running(config()) as engine:
            return await read_all(engine.submit(ask(max_tokens=3)))

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        chunks = runner.run(asyncio.wait_for(ask_one(), 30))
    assert [token for chunk in chunks for token in chunk.token_ids] == [9, 9, 9]


def is_gone(pid: int) -> bool:
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


async def test_a_stream_s_first_token_comes_alone_and_the_rest_merged() -> None:
    async with running(config(merge_interval_s=0.05)) as engine:
        started_at = time.monotonic()
        chunks = await read_all(engine.submit(ask(max_tokens=101)))
        elapsed = time.monotonic() - started_at
        assert [len(chunk.token_ids) for chunk in chunks][0] == 1
        assert sum(len(chunk.token_ids) for chunk in chunks) == 101
        # One chunk in 50 ms, but for the first, the one with the fourth token, and the last.
        assert len(chunks) <= elapsed / 0.05 + 3
        assert engine.num_streams == 0


async def test_the_first_token_after_a_harmony_header_does_not_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "_EXIT_TIMEOUT_S", 0.1)
    async with running(config(FakeModel(step_time_s=60), merge_interval_s=1.0)) as engine:
        stream = engine.submit(ask())

        def draw(token_id: int) -> None:
            engine._dispatch(StepOutput(request_ids=[stream.engine_id], token_ids=[token_id]))

        draw(1)
        assert (await stream.read()).token_ids == [1]
        draw(2)
        draw(3)
        assert stream in engine._held
        draw(4)
        assert stream not in engine._held
        assert (await stream.read()).token_ids == [2, 3, 4]


async def test_held_tokens_are_delivered_when_due_even_if_no_step_follows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "_EXIT_TIMEOUT_S", 0.1)
    async with running(config(FakeModel(step_time_s=60), merge_interval_s=0.1)) as engine:
        stream = engine.submit(ask())
        for token_id in (1, 2):
            engine._dispatch(StepOutput(request_ids=[stream.engine_id], token_ids=[token_id]))
            async with asyncio.timeout(10):
                assert (await stream.read()).token_ids == [token_id]


async def test_without_merging_every_step_is_delivered() -> None:
    async with running(config(FakeModel(step_time_s=0.01, body=9), merge_interval_s=0.0)) as engine:
        chunks = await read_all(engine.submit(ask(max_tokens=20)))
        assert len(chunks) >= 10


async def test_two_streams_don_t_mix() -> None:
    async with running(config(FakeModel(step_time_s=0.001))) as engine:
        a = [t for c in await read_all(engine.submit(ask("a", 30))) for t in c.token_ids]
        both = [engine.submit(ask("b", 30)), engine.submit(replace(ask("c", 30), params=SamplingParams(seed=1)))]
        b, c = await asyncio.gather(*(read_all(stream) for stream in both))
        assert [t for chunk in b for t in chunk.token_ids] == a
        assert [t for chunk in c for t in chunk.token_ids] != a


async def test_closing_a_stream_frees_its_memory_within_a_step() -> None:
    async with running(config(FakeModel(step_time_s=0.05, body=9))) as engine:
        stream = engine.submit(ask())
        await stream.read()
        await wait_for(lambda: engine.load.num_running == 1)
        stream.close()
        await wait_for(lambda: engine.load.num_running == 0 and engine.load.kv_usage == 0)
        assert engine.stats.finished == {"abort": 1}


async def test_an_id_may_come_again_at_once_after_its_stream_was_closed() -> None:
    async with running(config()) as engine:
        first = engine.submit(ask("a"))
        with pytest.raises(Refused) as caught:
            engine.submit(ask("a"))
        assert caught.value.refusal.field == "request_id"
        first.close()
        assert sum(len(chunk.token_ids) for chunk in await read_all(engine.submit(ask("a", 10)))) == 10


async def test_abort_by_id_ends_the_stream() -> None:
    async with running(config()) as engine:
        stream = engine.submit(ask("a"))
        await stream.read()
        engine.abort("a")
        engine.abort("unknown")
        assert (await read_all(stream))[-1].finish_reason == FinishReason.ABORT


async def test_the_scheduler_s_refusal_comes_out_of_the_stream() -> None:
    async with running(config(max_model_len=10)) as engine:
        stream = engine.submit(replace(ask(), prompt_token_ids=[1] * 10))
        with pytest.raises(Refused) as caught:
            await stream.read()
        assert caught.value.refusal.reason == RefusalReason.INVALID_ARGUMENT
        assert engine.num_streams == 0


async def test_an_idle_engine_uses_no_cpu() -> None:
    async with running(config()) as engine:
        await read_all(engine.submit(ask(max_tokens=5)))
        before = sum(psutil.Process(engine.pid).cpu_times()[:2])
        await asyncio.sleep(0.5)
        assert sum(psutil.Process(engine.pid).cpu_times()[:2]) - before < 0.05


async def test_a_configuration_that_can_t_be_loaded_is_named() -> None:
    with pytest.raises(EngineStartError, match="a fake model has no 'bodi'"):
        await AsyncEngine.start(WorkerConfig(model='fake:{"bodi": 3}'))


async def test_killing_the_engine_process_ends_all_streams_at_once() -> None:
    deaths: list[str] = []
    async with running(config()) as engine:
        engine.on_death = deaths.append
        streams = [engine.submit(ask(str(i))) for i in range(3)]
        for stream in streams:
            await stream.read()
        engine.check_health()
        os.kill(engine.pid, signal.SIGKILL)
        async with asyncio.timeout(5):
            for stream in streams:
                with pytest.raises(EngineDeadError):
                    await read_all(stream)
        with pytest.raises(EngineDeadError):
            engine.check_health()
        with pytest.raises(Refused) as caught:
            engine.submit(ask())
        assert caught.value.refusal.reason == RefusalReason.UNAVAILABLE
    assert deaths == ["the engine process ended unexpectedly"]


async def test_a_lost_device_ends_the_engine_with_its_reason() -> None:
    deaths: list[str] = []
    async with running(config(replace(MODEL, fail_at_step=5))) as engine:
        engine.on_death = deaths.append
        with pytest.raises(EngineDeadError, match="the fake device is lost"):
            await read_all(engine.submit(ask()))
        await wait_for(lambda: is_gone(engine.pid))
    assert deaths == ["RunnerError: the fake device is lost"]


def test_a_failure_is_told_before_a_runner_that_can_t_end_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    ended = threading.Event()

    class Stuck(FakeRunner):
        def close(self) -> None:
            ended.wait(10)

    monkeypatch.setattr(process, "load_runner", lambda _: Stuck(replace(MODEL, fail_at_step=1)))
    ours, theirs = socket.socketpair()
    with ours, theirs, ThreadPoolExecutor(1) as pool:
        running = pool.submit(process.run, theirs)
        link = Link(ours)
        link.send(config())
        told = link.receive(wait=True)
        link.send(Submit(ask()))
        ours.settimeout(5)
        decoder = Decoder()
        while not isinstance(told[-1], Failed):
            told.extend(decoder.feed(ours.recv(1 << 20)))
        assert told[-1] == Failed("RunnerError: the fake device is lost")
        ended.set()
        with pytest.raises(RunnerError):
            running.result(10)


async def test_a_step_that_hangs_fails_health(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "_STEP_TIMEOUT_S", 0.1)
    monkeypatch.setattr(client, "_EXIT_TIMEOUT_S", 0.1)
    async with running(config(FakeModel(step_time_s=60))) as engine:
        await asyncio.sleep(0.2)
        engine.check_health()
        engine.submit(ask())
        await asyncio.sleep(0.2)
        with pytest.raises(EngineDeadError, match="silent"):
            engine.check_health()


async def test_a_request_after_a_long_pause_finds_a_healthy_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "_STEP_TIMEOUT_S", 0.5)
    async with running(config(FakeModel(step_time_s=0.3, body=9))) as engine:
        await asyncio.sleep(0.6)
        stream = engine.submit(ask())
        engine.check_health()
        await stream.read()
        engine.submit(ask("b"))
        engine.check_health()


async def test_closing_ends_the_process_and_its_streams() -> None:
    deaths: list[str] = []
    async with running(config()) as engine:
        engine.on_death = deaths.append
        stream = engine.submit(ask())
        await stream.read()
        await engine.close()
        with pytest.raises(EngineDeadError):
            await read_all(stream)
        assert is_gone(engine.pid)
    assert not deaths


@pytest.mark.parametrize(
    "scenario",
    [
        test_a_stream_s_first_token_comes_alone_and_the_rest_merged,
        test_killing_the_engine_process_ends_all_streams_at_once,
        test_closing_ends_the_process_and_its_streams,
    ],
)
def test_it_is_the_same_on_uvloop_which_serve_s_replicas_use(
    scenario: Callable[[], Coroutine[None, None, None]],
) -> None:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(scenario())


@pytest.fixture
def many_descriptors() -> Iterator[None]:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(limits[0], 2048), limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, limits)


@pytest.mark.usefixtures("many_descriptors")
def test_the_engine_s_end_of_the_socket_may_have_any_number() -> None:
    """A replica with many open files passes on a descriptor that select() can't take."""
    ours, theirs = socket.socketpair()
    high = socket.socket(fileno=fcntl.fcntl(theirs.fileno(), fcntl.F_DUPFD_CLOEXEC, 1024))
    theirs.close()
    large = encode(Failed("x" * 10_000_000))
    received = bytearray()

    def replica() -> None:
        ours.sendall(encode(Abort("a")))
        while data := ours.recv(1 << 20):
            received.extend(data)

    with ours, high:
        link = Link(high)
        thread = threading.Timer(0.05, replica)
        thread.start()
        assert link.receive(wait=True) == [Abort("a")]
        link.send(Failed("x" * 10_000_000))
        link.drain(timeout_s=10)
        high.shutdown(socket.SHUT_WR)
        thread.join()
    assert received == large


REPLICA = """
import asyncio, sys
from chorus_workers.config import WorkerConfig
from chorus_workers.engine.client import AsyncEngine
from chorus_workers.engine.request import GenerationRequest
from chorus_workers.sampling_params import SamplingParams

async def main():
    engine = await AsyncEngine.start(WorkerConfig(model=sys.argv[1]))
    if sys.argv[2] == "busy":
        engine.submit(GenerationRequest("a", [1], SamplingParams()))
        await asyncio.sleep(0.2)
    print(engine.pid, flush=True)
    await asyncio.sleep(60)

asyncio.run(main())
"""


@pytest.mark.parametrize("state", ["idle", "busy"])
async def test_the_engine_does_not_outlive_its_replica_not_even_in_a_long_step(state: str) -> None:
    model = FakeModel(step_time_s=60, body=9).to_config()
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(
        [sys.executable, "-c", REPLICA, model, state], stdout=subprocess.PIPE, env=environment
    ) as replica:
        assert replica.stdout is not None
        pid = int(await asyncio.to_thread(replica.stdout.readline))
        assert not is_gone(pid)
        replica.kill()
    await wait_for(lambda: is_gone(pid))
