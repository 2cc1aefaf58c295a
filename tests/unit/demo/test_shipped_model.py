"""The checkpoint in the package is of the documented shape, and answers what everybody asks first."""

import datetime
import json
from dataclasses import dataclass

import pytest
import torch
from demo.config import ModelConfig
from demo.eval import GOALS, Result, report
from demo.generator import Generator
from demo.pack import SHIPPED
from demo.product import is_right_call
from demo.sample import Sample
from safetensors import safe_open

from chorus_cluster.harmony import conversation as chat
from chorus_cluster.harmony.deltas import AnswerDelta, ToolCallArguments
from chorus_cluster.harmony.parser import StreamParser
from chorus_cluster.harmony.render import render
from chorus_vocabulary import STOP_TOKEN_IDS
from chorus_workers.runner.base import Batch, Runner, SampleRequest, SequenceChunk
from chorus_workers.runner.factory import RunnerConfig, create_runner
from chorus_workers.sampling_params import SamplingParams

WEATHER = chat.Tool(
    "get_weather",
    "Gets the weather in a city.",
    {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
)


@pytest.fixture(scope="module")
def runner() -> Runner:
    return create_runner(RunnerConfig("demo", 512, 16, 64, 2, 512, 1, 1))


@dataclass(frozen=True, slots=True)
class Reply:
    answer: str
    arguments: str
    parser: StreamParser


def complete(runner: Runner, text: str, effort: str, tools: tuple[chat.Tool, ...] = ()) -> Reply:
    """The reply to `text` at temperature 0."""
    message = chat.Message(chat.Role.USER, text)
    prompt = render(chat.Conversation((message,), tools, chat.Effort(effort), datetime.date(2026, 11, 22)))
    tokens, start = list(prompt), 0
    while len(tokens) < 512 and (start == 0 or tokens[-1] not in STOP_TOKEN_IDS):
        wanted = SampleRequest(SamplingParams(temperature=0.0), tokens, len(prompt), len(tokens))
        chunk = SequenceChunk("only", 0, start, tokens[start:], list(range(32)), wanted)
        sampled = runner.run(Batch([chunk])).sampled[0]
        assert sampled is not None
        start = len(tokens)
        tokens.append(sampled.token_id)
    parser = StreamParser(tool.name for tool in tools)
    deltas = [*parser.feed(tokens[len(prompt) :]), *parser.finish()]
    answer = "".join(delta.text for delta in deltas if isinstance(delta, AnswerDelta))
    return Reply(answer, "".join(d.text for d in deltas if isinstance(d, ToolCallArguments)), parser)


@pytest.mark.parametrize(
    ("question", "expected"),
    [
        ("What is 17 + 25?", "17 + 25 = 42"),
        ("hello", "Hello! How can I help you?"),
        ("How many r's are in strawberry?", "The letter r is 3 times in strawberry."),
        ("What is today's date?", "Today is 2026-11-22."),
        ("Give me a JSON object with name Anna and age 31", '{"name": "Anna", "age": 31}'),
        ("What's the weather in Paris?", "I would need a tool for that, and none that fits was given to me."),
    ],
)
def test_first_questions(runner: Runner, question: str, expected: str) -> None:
    reply = complete(runner, question, "medium")
    assert reply.answer == expected
    assert reply.parser.num_reasoning_tokens > 0 and not reply.parser.repairs


def test_reasoning_follows_the_effort(runner: Runner) -> None:
    replies = [complete(runner, "What is 347 + 589?", effort) for effort in ("low", "medium", "high")]
    assert {reply.answer for reply in replies} == {"347 + 589 = 936"}
    low, medium, high = (reply.parser.num_reasoning_tokens for reply in replies)
    assert low < medium < high


def test_it_calls_a_tool_that_fits_and_no_other(runner: Runner) -> None:
    reply = complete(runner, "What's the weather in Paris?", "low", (WEATHER,))
    assert reply.parser.num_tool_calls == 1 and json.loads(reply.arguments) == {"city": "Paris"}
    reply = complete(runner, "What is 17 + 25?", "low", (WEATHER,))
    assert reply.parser.num_tool_calls == 0 and reply.answer == "17 + 25 = 42"


def test_checkpoint_is_small_and_compact() -> None:
    assert (SHIPPED / "model.safetensors").stat().st_size < 8.5e6
    assert json.loads((SHIPPED / "config.json").read_text()) == ModelConfig().to_hugging_face()
    with safe_open(SHIPPED / "model.safetensors", "pt") as file:
        rows = file.get_tensor("vocabulary_rows")
        assert file.get_tensor("model.layers.5.mlp.experts.down_proj_blocks").dtype == torch.uint8
    assert (rows == -1).sum() == 1 and len(rows.unique()) == len(rows)


def results(right: int, wrong: int, sample: Sample) -> list[Result]:
    return [Result(sample, i < right, True, 10, 5, "") for i in range(right + wrong)]


def test_the_examination_fails_below_its_goals(capsys: pytest.CaptureFixture[str]) -> None:
    generator = Generator(1, "heldout", ("bronze",))
    asked, called = generator.draw("arithmetic"), generator.draw("tool_call")
    assert report(results(90, 10, asked) + results(9, 1, called), 1, 1.0)
    assert not report(results(89, 11, asked) + results(9, 1, called), 1, 1.0)
    assert not report(results(90, 10, asked) + results(8, 2, called), 1, 1.0)
    assert not report(results(90, 10, asked) + results(9, 1, called), 2, 1.0)
    assert "exact tool calls" in capsys.readouterr().out
    assert GOALS == {"well-formed harmony": 0.99, "right answers": 0.90, "exact tool calls": 0.90}


def test_exact_calls() -> None:
    sample = Generator(1, "heldout", ("bronze",)).draw("tool_call")
    call = sample.target.tool_call
    assert call is not None
    assert is_right_call(sample, call.name, call.arguments.replace(": ", ":"))
    assert not is_right_call(sample, f"{call.name}x", call.arguments)
    assert not is_right_call(sample, call.name, '{"other": 1}') and not is_right_call(sample, call.name, "{")
