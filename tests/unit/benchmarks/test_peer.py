"""The peer's benchmark, over a vLLM that is none."""

import json
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from benchmarks import peer_vllm

FIRST_S, STEP_S = 0.5, 0.02


class Engine:
    """Takes a step a token, however many requests there are, on a clock of its own."""

    now = 0.0
    num_lost = 0

    def __init__(self, model: str, **options: object) -> None:
        assert model == "/models/mine"
        assert options == peer_vllm.OPTIONS | {"max_model_len": 99}

    def generate(self, prompts: list[dict[str, list[int]]], params: Any, use_tqdm: bool) -> list[Any]:
        assert params.ignore_eos and params.temperature == 1.0 and not use_tqdm
        Engine.now += FIRST_S + STEP_S * (params.max_tokens - 1)
        answer = SimpleNamespace(token_ids=[0] * (params.max_tokens - self.num_lost))
        return [SimpleNamespace(outputs=[answer]) for prompt in prompts if prompt["prompt_token_ids"]]


@pytest.fixture
def vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("vllm")
    module.__dict__.update(LLM=Engine, SamplingParams=SimpleNamespace, __version__="0.26.0")
    monkeypatch.setitem(sys.modules, "vllm", module)
    monkeypatch.setattr("os.environ", {})
    monkeypatch.setattr("time.perf_counter", lambda: Engine.now)
    options = ["--options", '{"max_model_len": 99}', "--points", "[[3, 7, 20]]"]
    monkeypatch.setattr(sys, "argv", ["peer_vllm.py", "--model", "/models/mine", *options])


def test_the_peer_s_lines_have_the_fields_of_ours(vllm: None, capsys: pytest.CaptureFixture[str]) -> None:
    peer_vllm.main()
    start, row = map(json.loads, capsys.readouterr().out.splitlines())
    assert start.keys() == {"model", "runner", "startup_s"}
    assert (row["runner"], row["bs"], row["isl"], row["osl"]) == ("vllm 0.26.0", 3, 7, 20)
    assert (row["total_s"], row["ttft_all_s"], row["tpot_ms"]) == (0.88, 0.5, 20.0)
    assert (row["out_tok_s"], row["decode_tok_s"], row["prefill_tok_s"]) == (68.2, 150.0, 42.0)


def test_fewer_tokens_than_asked_for_are_no_result(vllm: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Engine, "num_lost", 1)
    with pytest.raises(RuntimeError, match="60 tokens were drawn, not 4 times 16"):
        peer_vllm.main()


def test_passes_go_on_until_two_agree() -> None:
    times = iter([9.0, 5.0, 7.0, 5.05, 1.0])
    assert peer_vllm.settled(lambda: next(times)) == 5.0
    assert next(times) == 1.0
