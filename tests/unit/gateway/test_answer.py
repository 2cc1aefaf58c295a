"""Engine responses to events, one response at a time."""

from collections.abc import Sequence

import pytest
from tests.support.chat import TOOL_CALL, encode

from chorus_cluster.gateway import events as ev
from chorus_cluster.gateway.answer import AnswerAssembler
from chorus_protos.v1 import engine_pb2

FINAL = "<|channel|>final<|message|>"
# Says something, then calls a tool.
PREAMBLE_AND_CALL = (
    "<|channel|>commentary<|message|>I look it up<|end|><|start|>assistant<|channel|>commentary to=functions.look"
    "<|message|>{}<|call|>"
)


def response(text: str, finish: int = 0, **fields: int) -> engine_pb2.GenerateResponse:
    return engine_pb2.GenerateResponse(token_ids=encode(text), finish_reason=finish, **fields)  # type: ignore[arg-type]


def feed(assembler: AnswerAssembler, *responses: engine_pb2.GenerateResponse) -> list[ev.Event]:
    return [event for item in responses for event in assembler.feed(item)]


def text_of(events: Sequence[ev.Event]) -> str:
    return "".join(event.text for event in events if isinstance(event, ev.Answer))


def reason_of(events: Sequence[ev.Event]) -> str:
    assert isinstance(events[-1], ev.Finished)
    return events[-1].reason


def test_what_a_stop_string_holds_back_comes_before_a_call() -> None:
    assembler = AnswerAssembler(num_prompt_tokens=1, stop=("up there",), new_id=lambda: "id")
    events = feed(assembler, response(PREAMBLE_AND_CALL, engine_pb2.FINISH_REASON_STOP))
    assert text_of(events) == "I look it up"
    kinds = [type(event) for event in ev.merge(events)]
    assert kinds == [ev.Answer, ev.ToolCallStart, ev.ToolCallArguments, ev.Finished]
    assert reason_of(events) == "tool_calls"


@pytest.mark.parametrize(
    ("stop", "text"), [("\n\n", "So.\n\nIt is 4."), (".\n", "So.\n\nIt is 4."), ("is", "So.\n\nIt ")]
)
def test_no_stop_string_matches_in_the_break_between_two_messages(stop: str, text: str) -> None:
    two = response(
        f"<|channel|>commentary<|message|>So.<|end|><|start|>assistant{FINAL}It is 4.<|return|>",
        engine_pb2.FINISH_REASON_STOP,
    )
    events = feed(AnswerAssembler(num_prompt_tokens=1, stop=(stop,)), two)
    assert (text_of(events), reason_of(events)) == (text, "stop")


def test_a_stop_string_that_only_the_end_completes() -> None:
    # The parser holds a last "assistant" back: it may be the role of another message.
    last = response(f"{FINAL}my\nassistant", engine_pb2.FINISH_REASON_LENGTH)
    events = feed(AnswerAssembler(num_prompt_tokens=1, stop=("\nassistant",)), last)
    assert (text_of(events), reason_of(events)) == ("my", "stop")
    events = feed(AnswerAssembler(num_prompt_tokens=1), last)
    assert (text_of(events), reason_of(events)) == ("my\nassistant", "length")


def test_a_call_that_the_limit_cut_off_is_not_a_finished_call() -> None:
    cut = TOOL_CALL.removesuffix('"}<|call|>')
    events = feed(AnswerAssembler(num_prompt_tokens=1), response(cut, engine_pb2.FINISH_REASON_LENGTH))
    assert reason_of(events) == "length"


def test_usage_counts_every_token_and_the_first_response_s_cached_ones() -> None:
    reasoning, answer = "<|channel|>analysis<|message|>Think<|end|>", f"<|start|>assistant{FINAL}Yes<|return|>"
    assembler = AnswerAssembler(num_prompt_tokens=9)
    feed(assembler, response(reasoning, num_cached_tokens=5), response(answer, engine_pb2.FINISH_REASON_STOP))
    num_tokens = len(encode(reasoning + answer))
    assert assembler.usage == ev.Usage(9, num_tokens, cached_tokens=5, reasoning_tokens=len(encode("Think")))


def test_log_probabilities_keep_to_their_tokens_over_several_responses() -> None:
    assembler = AnswerAssembler(num_prompt_tokens=1, with_logprobs=True)
    events: list[ev.Event] = []
    for number, token in enumerate(encode(f"{FINAL}One two 🦜 three<|return|>")):
        sampled = engine_pb2.TokenLogprob(token_id=token, logprob=-number)
        item = engine_pb2.GenerateResponse(token_ids=[token], logprobs=[engine_pb2.PositionLogprobs(sampled=sampled)])
        events += assembler.feed(item)
    entries = [entry for event in events if isinstance(event, ev.Answer) for entry in event.logprobs]
    assert b"".join(entry.sampled.token_bytes for entry in entries).decode() == "One two 🦜 three"
    first = len(encode(FINAL))
    assert [-entry.sampled.logprob for entry in entries] == list(range(first, first + len(entries)))


def logged(token: int, *top: int) -> engine_pb2.GenerateResponse:
    entries = [engine_pb2.TokenLogprob(token_id=other, logprob=-1) for other in top]
    sampled = engine_pb2.TokenLogprob(token_id=token, logprob=-1)
    position = engine_pb2.PositionLogprobs(sampled=sampled, top=entries)
    return engine_pb2.GenerateResponse(token_ids=[token], logprobs=[position])


def test_log_probabilities_wait_while_a_header_may_still_become_text() -> None:
    text = "one two three four five six seven eight"
    assembler = AnswerAssembler(num_prompt_tokens=1, with_logprobs=True)
    # The answer's <|message|> is lost: only the many words tell that this is no header.
    events = feed(assembler, *map(logged, encode(f"<|channel|>final {text}<|return|>")))
    entries = [entry for event in events if isinstance(event, ev.Answer) for entry in event.logprobs]
    assert text_of(events).strip() == text
    assert b"".join(entry.sampled.token_bytes for entry in entries).decode().strip() == text


def test_markup_is_no_alternative() -> None:
    (yes,), (end,), (no,) = encode("Yes"), encode("<|return|>"), encode("No")
    assembler = AnswerAssembler(num_prompt_tokens=1, with_logprobs=True)
    events = feed(assembler, response(FINAL), logged(yes, yes, end, no))
    # The first response had no log probabilities; those of the second are its own token's.
    (answer,) = [event for event in events if isinstance(event, ev.Answer)]
    assert [other.text for other in answer.logprobs[0].top] == ["Yes", "No"]
