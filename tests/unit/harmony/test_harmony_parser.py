"""The parser: every repair of docs/harmony.md, agreement with openai-harmony, independence of chunks."""

import json
import re
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openai_harmony import Role
from tests.fuzz import harmony as fuzz

from chorus_cluster.harmony.deltas import AnswerDelta, ReasoningDelta, ToolCallArguments, ToolCallStarted
from chorus_cluster.harmony.encoding import load_encoding
from chorus_cluster.harmony.parser import StreamParser
from chorus_cluster.harmony.repairs import Repair
from chorus_vocabulary import NUM_TEXT_TOKENS, RETURN, VOCABULARY_SIZE
from chorus_vocabulary.token_table import token_bytes, token_text

Event = tuple[str, str]
A, R, NAME, ARGUMENTS = "answer", "reasoning", "name 0", "arguments 0"
HM = "<|channel|>analysis<|message|>Hm.<|end|>"
FINAL = "<|start|>assistant<|channel|>final<|message|>"
CALL = "<|start|>assistant<|channel|>commentary to=functions.f <|constrain|>json<|message|>"

WELL_FORMED = [
    ("", []),
    (f"{HM}{FINAL}It is 4.<|return|>", [(R, "Hm."), (A, "It is 4.")]),
    (f"{HM}{FINAL}It is 4", [(R, "Hm."), (A, "It is 4")]),
    ("<|channel|>final <|constrain|>json<|message|>{}<|return|>", [(A, "{}")]),
    (f'{HM}{CALL}{{"a": 1}}<|call|>', [(R, "Hm."), (NAME, "f"), (ARGUMENTS, '{"a": 1}')]),
    (" to=functions.f<|channel|>commentary json<|message|>{}<|call|>", [(NAME, "f"), (ARGUMENTS, "{}")]),
    (
        f"<|channel|>commentary<|message|>Let me see.<|end|>{CALL}{{}}<|call|>",
        [(A, "Let me see."), (NAME, "f"), (ARGUMENTS, "{}")],
    ),
    (f"<|channel|>commentary<|message|>So.<|end|>{FINAL}4<|return|>", [(A, "So.\n\n4")]),
    ("<|channel|>final<|message|>Say <|im_end|>, assistant<|return|>", [(A, "Say <|im_end|>, assistant")]),
]

MALFORMED = [
    # Message boundaries.
    (f"{HM}{FINAL}4<|return|><|return|>", [(R, "Hm."), (A, "4")], ["redundant_end"]),
    ("<|end|><|channel|>final<|message|>4<|return|>", [(A, "4")], ["redundant_end", "missing_start"]),
    ("<|channel|>final<|message|>4<|endoftext|>", [(A, "4")], ["wrong_end"]),
    ("<|channel|>final<|message|>4<|call|>", [(A, "4")], ["wrong_end"]),
    (f"{HM}{CALL}{{}}<|end|>", [(R, "Hm."), (NAME, "f"), (ARGUMENTS, "{}")], ["wrong_end"]),
    (f"{HM}{CALL}{{}}<|return|>", [(R, "Hm."), (NAME, "f"), (ARGUMENTS, "{}")], ["wrong_end"]),
    (f"<|channel|>analysis<|message|>Hm.{FINAL}4<|return|>", [(R, "Hm."), (A, "4")], ["missing_end"]),
    (
        "<|channel|>analysis<|message|>Hm 7assistant<|channel|>final<|message|>4<|return|>",
        [(R, "Hm 7"), (A, "4")],
        ["missing_end"],
    ),
    (f"{HM}assistant<|channel|>final<|message|>4<|return|>", [(R, "Hm."), (A, "4")], ["missing_start"]),
    (f"{HM}<|channel|>final<|message|>4<|return|>", [(R, "Hm."), (A, "4")], ["missing_start"]),
    (f"{HM}It is 4.<|return|>", [(R, "Hm."), (A, "It is 4.")], ["missing_start"]),
    ("<|channel|>final<|message|>It<|end|> is 4.<|return|>", [(A, "It is 4.")], ["missing_start"]),
    (f"{HM}<|message|>4<|return|>", [(R, "Hm."), (A, "4")], ["missing_start", "missing_channel"]),
    (f"{HM}<|start|>{FINAL}4<|return|>", [(R, "Hm."), (A, "4")], ["doubled_start"]),
    (f"{HM}<|start|>assistant{FINAL}4<|return|>", [(R, "Hm."), (A, "4")], ["doubled_start"]),
    ("<|start|>assistant<|channel|>final<|message|>4<|return|>", [(A, "4")], ["doubled_start"]),
    ("assistant<|channel|>final<|message|>4<|return|>", [(A, "4")], ["doubled_start"]),
    # A lost `<|message|>`.
    (f"<|channel|>analysisHm.<|end|>{FINAL}4<|return|>", [(R, "Hm."), (A, "4")], ["missing_message"]),
    (f"{HM}<|start|>assistant<|channel|>finalIt is 4.<|return|>", [(R, "Hm."), (A, "It is 4.")], ["missing_message"]),
    (
        f"<|channel|>analysisHm, that would be a sum of two numbers.{FINAL}4<|return|>",
        [(R, "Hm, that would be a sum of two numbers."), (A, "4")],
        ["missing_end", "missing_message"],
    ),
    (
        '<|channel|>commentary to=functions.f <|constrain|>json{"a": 1}<|call|>',
        [(NAME, "f"), (ARGUMENTS, '{"a": 1}')],
        ["missing_message"],
    ),
    ("<|channel|>commentary to=functions.f{}<|call|>", [(NAME, "f"), (ARGUMENTS, "{}")], ["missing_message"]),
    ("<|channel|>commentary to=functions.f<|call|>", [(NAME, "f")], ["missing_message"]),
    (
        "Plain text, without any header at all.<|return|>",
        [(A, "Plain text, without any header at all.")],
        ["missing_message"],
    ),
    ("Plain", [(A, "Plain")], ["missing_message"]),
    # A cut inside a header.
    (f"{HM}<|start|>", [(R, "Hm.")], ["truncated_header"]),
    (f"{HM}<|start|>assistant<|channel|>comment", [(R, "Hm.")], ["truncated_header"]),
    (f"{HM}<|start|>assistant<|channel|>commentary to=functions.get_we", [(R, "Hm.")], ["truncated_header"]),
    (f"{HM}<|start|>assistant<|channel|>commentary to", [(R, "Hm.")], ["truncated_header"]),
    (f"{HM}<|start|>assistant to=functions.f<|channel|>commentary <|constrain|>", [(R, "Hm.")], ["truncated_header"]),
    # Channels.
    ("<|message|>4<|return|>", [(A, "4")], ["missing_channel"]),
    (f"{HM}<|start|>assistantfinal<|message|>4<|return|>", [(R, "Hm."), (A, "4")], ["missing_channel"]),
    ("analysis<|message|>Hm.<|end|>", [(R, "Hm.")], ["missing_channel"]),
    ("<|channel|><|message|>4<|return|>", [(A, "4")], ["missing_channel"]),
    (
        " to=functions.fcommentary <|constrain|>json<|message|>{}<|call|>",
        [(NAME, "f"), (ARGUMENTS, "{}")],
        ["missing_channel"],
    ),
    ("<|channel|>confidence<|message|>0.9<|return|>", [(A, "0.9")], ["unknown_channel"]),
    ("<|channel|>final_output<|message|>4<|return|>", [(A, "4")], ["unknown_channel"]),
    ("<|channel|>analysis_2<|message|>Hm.<|end|>", [(R, "Hm.")], ["unknown_channel"]),
    ("<|channel|><|channel|>final<|message|>4<|return|>", [(A, "4")], ["doubled_channel"]),
    ("<|channel|>analysis<|channel|>final<|message|>4<|return|>", [(A, "4")], ["doubled_channel"]),
    # Recipients.
    (
        " to=functions.f<|channel|>commentary to=functions.f json<|message|>{}<|call|>",
        [(NAME, "f"), (ARGUMENTS, "{}")],
        ["doubled_recipient"],
    ),
    (
        "<|channel|>commentary to=assistant to=functions.f json<|message|>{}<|call|>",
        [(NAME, "f"), (ARGUMENTS, "{}")],
        ["doubled_recipient"],
    ),
    (
        "<|channel|>commentary to=python to=functions.f json<|message|>{}<|call|>",
        [(NAME, "f"), (ARGUMENTS, "{}")],
        ["doubled_recipient"],
    ),
    (
        "<|channel|>commentary to=functions.f json<|constrain|>Protect<|channel|><|message|>{}<|call|>",
        [(R, "Protect"), (NAME, "f"), (ARGUMENTS, "{}")],
        ["unexpected_header_text"],
    ),
    ("<|channel|>commentary to=f json<|message|>{}<|call|>", [(NAME, "f"), (ARGUMENTS, "{}")], ["bare_recipient"]),
    ("<|channel|>commentary functions.f<|message|>{}<|call|>", [(NAME, "f"), (ARGUMENTS, "{}")], ["bare_recipient"]),
    ("<|channel|>commentary f json<|message|>{}<|call|>", [(NAME, "f"), (ARGUMENTS, "{}")], ["bare_recipient"]),
    (
        "<|channel|>commentary f<|constrain|>json<|message|>{}<|call|>",
        [(NAME, "f"), (ARGUMENTS, "{}")],
        ["bare_recipient"],
    ),
    (
        "<|channel|>analysis to=python code<|message|>1+1<|call|>",
        [(NAME, "python"), (ARGUMENTS, "1+1")],
        ["builtin_recipient"],
    ),
    (
        "<|channel|>analysis to=browser.search code<|message|>{}<|call|>",
        [(NAME, "browser.search"), (ARGUMENTS, "{}")],
        ["builtin_recipient"],
    ),
    ("<|channel|>final to=functions.f<|message|>{}<|call|>", [(NAME, "f"), (ARGUMENTS, "{}")], ["misplaced_call"]),
    ("<|channel|>analysis to=functions.f<|message|>{}<|call|>", [(NAME, "f"), (ARGUMENTS, "{}")], ["misplaced_call"]),
    (" to=functions.f<|message|>{}<|call|>", [(NAME, "f"), (ARGUMENTS, "{}")], ["missing_channel"]),
    (
        f"<|channel|>commentary to=functions.{'n' * 100} json<|message|>{{}}<|call|>",
        [(NAME, "n" * 64), (ARGUMENTS, "{}")],
        [],
    ),
    # Headers that end inside a word, or inside a token.
    ("finally it works<|return|>", [(A, "finally it works")], ["missing_message"]),
    ('<|channel|>commentary to=functions.f."x"<|call|>', [(NAME, "f."), (ARGUMENTS, '"x"')], ["missing_message"]),
    # Turns of others that the model made up.
    (f"{FINAL[18:]}4<|end|><|start|>user<|message|>And 5?<|end|>", [(A, "4"), (R, "And 5?")], ["foreign_role"]),
    (
        "<|start|>functions.f to=assistant<|channel|>commentary<|message|>ok<|end|>",
        [(R, "ok")],
        ["doubled_start", "foreign_role"],
    ),
    (
        f"{HM}<|start|>functions.f<|channel|>commentary <|constrain|>json<|message|>{{}}<|call|>",
        [(R, "Hm."), (NAME, "f"), (ARGUMENTS, "{}")],
        ["foreign_role"],
    ),
    (
        f"{HM}<|start|>user<|channel|>commentary json<|message|>{{}}<|call|>",
        [(R, "Hm.\n\n{}")],
        ["foreign_role", "wrong_end"],
    ),
    (
        f"{HM}<|start|>tool:f<|channel|>commentary <|constrain|>json<|message|>{{}}<|end|>",
        [(R, "Hm.\n\n{}")],
        ["foreign_role"],
    ),
    # Tokens where they don't belong.
    (
        "<|channel|>final<|message|>an\nassistant<|channel|> is here<|return|>",
        [(A, "an\nassistant is here")],
        ["unexpected_header_text", "stray_special"],
    ),
    ("<|channel|>final blah<|message|>4<|return|>", [(A, " blah\n\n4")], ["unexpected_header_text"]),
    (
        "<|channel|>commentary to=functions.f oh well json<|message|>{}<|call|>",
        [(R, " oh well json"), (NAME, "f"), (ARGUMENTS, "{}")],
        ["unexpected_header_text"],
    ),
    ("<|channel|>final<|message|>It<|message|> is<|constrain|> 4<|return|>", [(A, "It is 4")], ["stray_special"] * 2),
    ("<|channel|>final<|message|>It<|start|> is 4<|return|>", [(A, "It is 4")], ["stray_special"]),
    ("<|channel|>final<|message|>It<|channel|> is 4<|return|>", [(A, "It is 4")], ["stray_special"]),
    (
        "<|channel|>final<|message|>It<|start|> is<|channel|> 4<|return|>",
        [(A, "It is 4")],
        ["stray_special", "unexpected_header_text"],
    ),
    ("<|channel|>final<|message|>It<|reserved_200013|> is<|return|>", [(A, "It is")], ["stray_special"]),
    (f'{CALL[18:]}{{"a":<|start|> 1}}<|call|>', [(NAME, "f"), (ARGUMENTS, '{"a": 1}')], ["stray_special"]),
]


def encode(text: str) -> list[int]:
    ids: list[int] = load_encoding().encode(text, allowed_special="all")
    return ids


def parse(tokens: Sequence[int], chunk: int = 10**6) -> fuzz.Result:
    return fuzz.parse(tokens, iter(lambda: chunk, 0))


@pytest.mark.parametrize("chunk", [1, 10**6])
@pytest.mark.parametrize(("text", "events"), WELL_FORMED)
def test_well_formed(text: str, events: list[Event], chunk: int) -> None:
    result = parse(encode(text), chunk)
    assert result.events == events
    assert result.repairs == {}


@pytest.mark.parametrize("chunk", [1, 10**6])
@pytest.mark.parametrize(("text", "events", "repairs"), MALFORMED)
def test_repairs(text: str, events: list[Event], repairs: list[str], chunk: int) -> None:
    result = parse(encode(text), chunk)
    assert result.events == events
    assert result.repairs == Counter(repairs)


@pytest.mark.parametrize(
    ("header", "repairs"),
    [
        ("<|channel|>functions.f<|message|>", ["bare_recipient", "missing_channel"]),
        ("<|channel|>functions.f <|constrain|>json<|message|>", ["bare_recipient", "missing_channel"]),
        ("<|channel|>commentary to to=functions.f <|constrain|>json<|message|>", ["bare_recipient"]),
        ("<|channel|>commentary to==functions.f json<|message|>", ["bare_recipient"]),
        ("<|channel|>commentary=functions.f<|message|>", ["bare_recipient"]),
        ("<|channel|>commentary tofunctions.f json<|message|>", ["bare_recipient"]),
        ("functions.f<|message|>", ["bare_recipient", "missing_channel"]),
        (" to to=functions.f<|channel|>commentary <|constrain|>json<|message|>", ["bare_recipient"]),
        ("<|channel|>commentary to:functions.f <|constrain|>json<|message|>", ["bare_recipient"]),
        ("<|channel|>commentary to: functions.f json<|message|>", ["bare_recipient"]),
        ('<|channel|>commentary to="functions.f" <|constrain|>json<|message|>', ["bare_recipient"]),
        ("<|channel|>commentary to='functions.f'json<|message|>", ["bare_recipient"]),
        ('<|channel|>commentary to="functions.f<|message|>', ["bare_recipient"]),
        ('<|channel|>commentary to:"functions/f" json<|message|>', ["bare_recipient"]),
        ('<|channel|>commentary "functions.f" json<|message|>', ["bare_recipient"]),
        ("<|channel|>commentary to=functions/f <|constrain|>json<|message|>", ["bare_recipient"]),
        (" to:functions.f<|channel|>commentary <|constrain|>json<|message|>", ["bare_recipient"]),
        ('<|channel|>commentary to="f" json<|message|>', ["bare_recipient"]),
    ],
)
def test_a_call_outlives_damage_to_what_stands_before_its_name(header: str, repairs: list[str]) -> None:
    result = parse(encode(f"{HM}<|start|>assistant{header}{{}}<|call|>"), 1)
    assert result.events == [(R, "Hm."), (NAME, "f"), (ARGUMENTS, "{}")]
    assert result.repairs == Counter(repairs)


@pytest.mark.parametrize(("channel", "kind"), [("final", A), ("analysis", R)])
@pytest.mark.parametrize("text", [" search for it, it is easy", " functions.search does it"])
def test_a_text_that_begins_with_a_tool_s_name_is_no_call(channel: str, kind: str, text: str) -> None:
    result = fuzz.parse(encode(f"<|channel|>{channel}{text}<|end|>"), iter(lambda: 1, 0), ["search"])
    assert result.events == [(kind, text)]
    assert result.repairs == {"missing_message": 1}


def test_what_sticks_to_the_name_of_a_function_that_speaks_is_kept() -> None:
    tokens = [*encode(f"{HM}<|start|>functions.f"), *encode("Collect<|message|>it<|end|>")]
    result = fuzz.parse(tokens, iter(lambda: 1, 0), ["f"])
    assert "".join(text for kind, text in result.events if kind == R).replace("\n\n", " ") == "Hm. Collect it"


def test_a_function_that_speaks_is_not_called() -> None:
    spoken = f"{HM}<|start|>assistant functions.f to=assistant<|channel|>commentary<|message|>ok<|end|>"
    assert parse(encode(spoken)).calls() == []


@pytest.mark.parametrize(
    ("header", "repairs"),
    [
        ("<|channel|>commentary to=functions.get_weatherjson<|message|>", []),
        ("<|channel|>commentary to=get_weatherjson<|message|>", ["bare_recipient"]),
        (" to=functions.get_weather<|channel|>commentary to=.get_weatherjson<|message|>", ["doubled_recipient"]),
        (" to=functions.get_weathercommentary json<|message|>", ["missing_channel"]),
        ("<|channel|>commentary get_weather<|message|>", ["bare_recipient"]),
        ("<|channel|>commentary to=functions.get_weatherjson", ["missing_message"]),
    ],
)
def test_declared_tools_tell_a_name_from_what_sticks_to_it(header: str, repairs: list[str]) -> None:
    tokens = [token_id for part in re.split("(?=json|commentary)", header) for token_id in encode(part)]
    result = fuzz.parse([*tokens, *encode("{}<|call|>")], iter(lambda: 1, 0), ["get", "get_weather"])
    assert result.events == [(NAME, "get_weather"), (ARGUMENTS, "{}")]
    assert result.repairs == Counter(repairs)


def test_every_repair_is_tested() -> None:
    tested = {repair for _, _, repairs in MALFORMED for repair in repairs} | {Repair.INVALID_TOKEN}
    assert tested == set(Repair)


def test_every_repair_is_documented() -> None:
    page = (Path(__file__).parents[3] / "docs" / "harmony.md").read_text("utf-8")
    documented = re.findall(r"^\| `(\w+)` \|", page.partition("## Repairs")[2], re.MULTILINE)
    assert documented == [repair.value for repair in Repair]


def test_ids_outside_the_vocabulary_are_skipped() -> None:
    body = encode("<|channel|>final<|message|>It is")
    result = parse([-1, *body, VOCABULARY_SIZE, 2**40, -5, *encode(" 4")])
    assert result.events == [(A, "It is 4")]
    assert result.repairs == {"invalid_token": 4}


def test_deltas_of_a_stream_token_by_token() -> None:
    parser = StreamParser()
    text = f'{HM}{FINAL}Yes 𓀀<|end|>{CALL}{{"a"'
    deltas = [delta for token_id in encode(text) for delta in parser.feed([token_id])]
    assert deltas == [
        ReasoningDelta("Hm"),
        ReasoningDelta("."),
        AnswerDelta("Yes", (11,)),
        AnswerDelta(" ", (12,)),
        AnswerDelta("𓀀", (13, 14, 15, 16)),
        ToolCallStarted(0, "f"),
        ToolCallArguments(0, '{"'),
        ToolCallArguments(0, "a"),
        ToolCallArguments(0, '"'),
    ]
    assert parser.finish() == []
    assert (parser.num_reasoning_tokens, parser.num_tool_calls) == (2, 1)


def test_a_body_without_message_token_and_spaces_is_delivered_while_it_grows() -> None:
    parser = StreamParser()
    header, word = encode("<|channel|>final"), encode("漢字")
    assert parser.feed([*header, *word * 30]) == []
    deltas = parser.feed(word * 40)
    assert isinstance(deltas[0], AnswerDelta)
    assert "".join(d.text for d in deltas if isinstance(d, AnswerDelta)) == "漢字" * 70


def test_token_indices_spell_the_answer() -> None:
    tokens = encode(f"{HM}{FINAL}Größe: 漢字 🧑🏽‍🚀 assistant<|return|>")
    for chunk in (1, 3, 100):
        result = parse(tokens, chunk)
        assert b"".join(token_bytes(tokens[i]) for i in result.answer_indices).decode() == result.text(A)


def test_incomplete_utf8_is_replaced_at_the_end() -> None:
    half = encode("🧑")[:-1]
    result = parse([*encode("<|channel|>final<|message|>a"), *half], 1)
    assert result.events == [(A, "a\ufffd")]


def test_token_text() -> None:
    assert token_text(encode(" sunny")[0]) == " sunny"
    assert token_text(RETURN) == "<|return|>"
    assert token_bytes(NUM_TEXT_TOKENS - 1) == bytes(load_encoding()._inner.decode_bytes([NUM_TEXT_TOKENS - 1]))
    with pytest.raises(ValueError, match="201088"):
        token_bytes(VOCABULARY_SIZE)


MESSAGES = st.lists(
    st.tuples(
        st.sampled_from(["analysis", "commentary", "final", "call", "call after role"]),
        st.lists(st.integers(0, NUM_TEXT_TOKENS - 1), max_size=8),
        st.sampled_from(["", " json", "<|constrain|>json", " <|constrain|>json", " code", "<|constrain|>lark"]),
        st.from_regex(r"[A-Za-z_][A-Za-z0-9_-]{0,20}", fullmatch=True),
    ),
    min_size=1,
    max_size=4,
)


@settings(max_examples=400, deadline=None)
@given(MESSAGES, st.integers(1, 5))
def test_agrees_with_openai_harmony_on_well_formed_streams(
    messages: list[tuple[str, list[int], str, str]], chunk: int
) -> None:
    tokens: list[int] = []
    for form, body, content_type, name in messages:
        recipient = f" to=functions.{name}"
        header, end = {
            "call": (f"<|channel|>commentary{recipient}{content_type}", "<|call|>"),
            "call after role": (f"{recipient}<|channel|>commentary{content_type}", "<|call|>"),
        }.get(form, (f"<|channel|>{form}", "<|end|>"))
        tokens += encode(f"<|start|>assistant{header}<|message|>") + body + encode(end)
    tokens = tokens[2:]
    result = parse(tokens, chunk)
    assert result.repairs == {}
    theirs = load_encoding().parse_messages_from_completion_tokens(tokens, Role.ASSISTANT)
    texts: dict[str, list[str]] = {A: [], R: []}
    calls = []
    for message in theirs:
        text = message.content[0].text
        if message.recipient:
            calls.append((message.recipient.removeprefix("functions."), text))
        elif text:
            texts[R if message.channel == "analysis" else A].append(text)
    assert result.calls() == calls
    assert (result.text(A), result.text(R)) == ("\n\n".join(texts[A]), "\n\n".join(texts[R]))


@settings(max_examples=300, deadline=None)
@given(st.lists(st.integers(-1, VOCABULARY_SIZE) | st.integers(RETURN, RETURN + 10), max_size=40), st.integers(1, 7))
def test_survives_any_tokens_however_chunked(tokens: list[int], chunk: int) -> None:
    assert parse(tokens) == parse(tokens, chunk)
    json.dumps(parse(tokens).events).encode()


@pytest.mark.slow
def test_mutated_streams() -> None:
    repairs = fuzz.run(20_000, seed=20_240_805)
    assert set(repairs) >= set(Repair) - {Repair.BUILTIN_RECIPIENT, Repair.INVALID_TOKEN}


def test_cost_of_a_token() -> None:
    body = encode("The quick brown fox jumps over the lazy dog, and so on. " * 200)
    tokens = [*encode("<|channel|>final<|message|>"), *body]
    costs = []
    for _ in range(5):
        parser = StreamParser()
        start = time.process_time()
        for token_id in tokens:
            parser.feed((token_id,))
        costs.append((time.process_time() - start) / len(tokens))
    assert min(costs) < 5e-6


def test_a_header_that_does_not_end_costs_linear_time() -> None:
    newlines = encode("<|channel|>final") + encode("\n") * 20_000
    start = time.process_time()
    assert parse(newlines, chunk=100).events == []
    assert time.process_time() - start < 3  # 20 s if every token led to another look at all of it


def test_preambles_are_told_from_answers() -> None:
    parser = StreamParser(["f"])
    text = f"<|channel|>commentary<|message|>So.<|end|>{FINAL}4<|return|>"
    deltas = [*parser.feed(load_encoding().encode(text, allowed_special="all")), *parser.finish()]
    said = [
        (delta.text, delta.is_preamble, bool(delta.token_indices)) for delta in deltas if isinstance(delta, AnswerDelta)
    ]
    assert said == [("So.", True, True), ("\n\n", False, False), ("4", False, True)]
