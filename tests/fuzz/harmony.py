"""Mutate harmony streams and check that the parser loses nothing, leaks nothing and invents nothing.

    python -m tests.fuzz.harmony --streams 100000 --seed 7

A stream of whole messages is generated, then 1 to 5 edits are made to its tokens: drop, double, swap with the next,
insert a special token, cut. The words of its bodies are told apart by their spelling, so that a check can follow each
of them through the mutation. What is checked of each stream is listed in `check`.
"""

import argparse
import functools
import multiprocessing
import os
import random
import re
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import chorus_vocabulary as v
from chorus_cluster.harmony.deltas import AnswerDelta, Delta, ReasoningDelta, ToolCallArguments, ToolCallStarted
from chorus_cluster.harmony.encoding import load_encoding
from chorus_cluster.harmony.parser import StreamParser
from chorus_vocabulary.token_table import token_bytes

_WORD_LETTERS = 7
# Streams that a process checks before it takes the next.
_SHARE = 5_000
_ENDS = (v.END, v.RETURN, v.CALL, v.ENDOFTEXT)
_RESERVED = (200_013, 200_500)
_INSERTED = (v.START, v.CHANNEL, v.MESSAGE, v.CONSTRAIN, *_ENDS, *_RESERVED)
_TOOLS = ("get_weather", "search-web", "f2")


@dataclass(frozen=True)
class Part:
    """One message of a stream, well-formed or odd in a way that models are known for.

    Attributes:
        kind: "analysis", "answer", "call", or "foreign" (a turn of somebody else, which the model made up).
        tokens: from `<|start|>` (absent in the first message) to the end token.
        body: its text.
        name: the called tool's.
    """

    kind: str
    tokens: tuple[int, ...]
    body: str
    name: str = ""


@functools.cache
def encode(text: str) -> tuple[int, ...]:
    return tuple(load_encoding().encode(text, allowed_special="all"))


@functools.cache
def words() -> dict[int, str]:
    """Tokens that spell a word of seven letters, with or without a space before; none is part of another."""
    pattern = re.compile(rf" [a-z]{{{_WORD_LETTERS}}}|[A-Z][a-z]{{{_WORD_LETTERS - 1}}}")
    seen: dict[str, int] = {}
    for token_id in range(20_000, 120_000):
        text = token_bytes(token_id).decode(errors="replace")
        if pattern.fullmatch(text) and text.strip().lower() not in seen:
            seen[text.strip().lower()] = token_id
    return {token_id: token_bytes(token_id).decode().strip() for token_id in seen.values()}


@functools.cache
def _word_ids() -> tuple[int, ...]:
    return tuple(words())


@functools.cache
def _fillers() -> tuple[tuple[int, ...], ...]:
    """Text without words: punctuation, digits, and characters that are split over several tokens."""
    return tuple(map(encode, ("\n", ".", ": 1", " 😀", "漢", "🧑🏽‍🚀", '{"', '":', '"}', " –")))


def make_stream(rng: random.Random) -> list[Part]:
    """Return the messages of one completion; the first has no `<|start|>`, as the prompt ends with it."""
    parts = [_make_part(rng, "analysis")] if rng.random() < 0.85 else []
    for _ in range(rng.choice((0, 0, 1, 2))):
        parts.append(_make_part(rng, rng.choice(("analysis", "preamble", "call", "foreign", "odd"))))
    parts.append(_make_part(rng, rng.choice(("final", "final", "call"))))
    first = parts[0]
    if first.kind == "foreign":
        return make_stream(rng)
    return [Part(first.kind, first.tokens[2:], first.body, first.name), *parts[1:]]


def _make_part(rng: random.Random, form: str) -> Part:
    name = rng.choice(_TOOLS)
    if form == "call":
        header = rng.choice(
            (
                f"<|start|>assistant<|channel|>commentary to=functions.{name} <|constrain|>json<|message|>",
                f"<|start|>assistant to=functions.{name}<|channel|>commentary <|constrain|>json<|message|>",
                f"<|start|>assistant<|channel|>commentary to=functions.{name}<|constrain|>json<|message|>",
                f"<|start|>assistant<|channel|>commentary to=functions.{name} code<|message|>",
                f"<|start|>assistant<|channel|>commentary to=functions.{name}<|message|>",
                f"<|start|>assistant<|channel|>analysis to=functions.{name} code<|message|>",
                f"<|start|>assistant to=functions.{name}<|channel|>commentary to=functions.{name} json<|message|>",
                f'<|start|>assistant<|channel|>commentary to="functions.{name}" <|constrain|>json<|message|>',
                f"<|start|>assistant<|channel|>commentary to:functions.{name} <|constrain|>json<|message|>",
                f"<|start|>assistant<|channel|>commentary to=functions/{name} json<|message|>",
            )
        )
    elif form == "foreign":
        header = rng.choice(
            ("<|start|>user<|message|>", f"<|start|>functions.{name} to=assistant<|channel|>commentary<|message|>")
        )
    else:
        channel = {"preamble": "commentary", "odd": rng.choice(("", "confidence", "final_output"))}.get(form, form)
        header = f"<|start|>assistant<|channel|>{channel}<|message|>"
        if not channel:
            header = "<|start|>assistant<|message|>"
    body = _make_body(rng)
    end = {"call": v.CALL, "final": v.RETURN}.get(form, v.END)
    kind = "answer" if form in ("final", "preamble", "odd") else form
    text = b"".join(map(token_bytes, body)).decode()
    return Part(kind, (*encode(header), *body, end), text, name if form == "call" else "")


def _make_body(rng: random.Random) -> list[int]:
    body: list[int] = []
    for _ in range(rng.randrange(1, 12)):
        body += rng.choice(_fillers()) if rng.random() < 0.25 else (rng.choice(_word_ids()),)
    return body


def mutate(rng: random.Random, tokens: Sequence[int], num_edits: int) -> list[int]:
    """Return `tokens` after `num_edits` edits, most of them at special tokens."""
    mutated = list(tokens)
    for _ in range(num_edits):
        if not mutated:
            break
        special = [i for i, token_id in enumerate(mutated) if token_id >= v.NUM_TEXT_TOKENS]
        at = rng.choice(special) if special and rng.random() < 0.6 else rng.randrange(len(mutated))
        match rng.choice(("drop", "double", "swap", "insert", "cut")):
            case "drop":
                del mutated[at]
            case "double":
                mutated.insert(at, mutated[at])
            case "swap":
                mutated[at : at + 2] = mutated[at : at + 2][::-1]
            case "insert":
                mutated.insert(at, rng.choice(_INSERTED))
            case "cut":
                del mutated[at + 1 :]
    return mutated


@dataclass
class Result:
    """What a parser made of a stream, adjacent deltas of one kind merged."""

    events: list[tuple[str, str]]
    answer_indices: list[int]
    repairs: dict[str, int]
    num_reasoning_tokens: int

    def text(self, kind: str) -> str:
        return "".join(text for event, text in self.events if event == kind)

    def calls(self) -> list[tuple[str, str]]:
        names = [text for event, text in self.events if event.startswith("name")]
        return [(name, self.text(f"arguments {index}")) for index, name in enumerate(names)]


def parse(tokens: Sequence[int], chunks: Iterator[int], tools: Sequence[str] = ()) -> Result:
    """Feed `tokens` in pieces of the lengths in `chunks`; `tools` were declared."""
    parser = StreamParser(tools)
    result = Result([], [], {}, 0)
    position = 0
    while position < len(tokens):
        length = next(chunks)
        _collect(result, parser.feed(tokens[position : position + length]))
        position += length
    _collect(result, parser.finish())
    _collect(result, parser.finish())
    result.repairs = dict(parser.repairs)
    result.num_reasoning_tokens = parser.num_reasoning_tokens
    return result


def _collect(result: Result, deltas: list[Delta]) -> None:
    for delta in deltas:
        match delta:
            case ReasoningDelta(text):
                kind = "reasoning"
            case AnswerDelta(text, indices):
                kind = "answer"
                result.answer_indices += indices
            case ToolCallStarted(index, text):
                kind = f"name {index}"
            case ToolCallArguments(index, text):
                kind = f"arguments {index}"
        if result.events and result.events[-1][0] == kind:
            result.events[-1] = (kind, result.events[-1][1] + text)
        else:
            result.events.append((kind, text))


def check(parts: Sequence[Part], tokens: Sequence[int], rng: random.Random) -> Result:
    """Parse a mutated stream and check it.

    - Nothing is raised, and the result is the same at once, token by token, and in random chunks.
    - Every word of a body is delivered once, in the stream's order, unless it stands where a name of a header stands
      or sticks to the name of a tool that is called, or was about to be where the stream was cut, or that speaks.
    - A message whose tokens are intact is delivered exactly as what it was.
    - A call whose header is intact up to the tool's name is delivered.
    - No text holds markup, and names are such that they can be sent back.

    Raises:
        AssertionError: one of these does not hold.
    """
    tools = _TOOLS if rng.random() < 0.5 else ()
    result = parse(tokens, iter(lambda: len(tokens), 0), tools)
    assert result == parse(tokens, iter(lambda: 1, 0), tools), "depends on chunks"
    assert result == parse(tokens, iter(lambda: rng.randrange(1, 9), 0), tools), "depends on chunks"
    _check_words(tokens, result, sticky=not tools)
    _check_intact_messages(parts, tokens, result)
    _check_calls(parts, tokens, result, sticky=not tools)
    for event, text in result.events:
        assert "<|" not in text and "|>" not in text, "markup"
        assert not event.startswith("name") or re.fullmatch(r"[A-Za-z0-9_.-]{1,64}", text), "name"
    indices = result.answer_indices
    assert indices == sorted(set(indices)) and all(tokens[i] < v.NUM_TEXT_TOKENS for i in indices), "token indices"
    return result


def _check_words(tokens: Sequence[int], result: Result, *, sticky: bool) -> None:
    tokens = [token_id for token_id in tokens if token_id not in _RESERVED]
    sent = [(words()[tokens[i]], _is_header_name(tokens, i)) for i in range(len(tokens)) if tokens[i] in words()]
    names = " ".join(name for name, _ in result.calls())
    if sticky:
        runs = _texts(tokens)
        names += "".join(re.findall(r"to=\S+$", runs[-1]))
        names += "".join(run for run in runs if re.fullmatch(r"\s*functions\.\S+\s*", run))
    texts = " ".join(text for event, text in result.events if not event.startswith("name"))
    received = re.findall("|".join(word for word, _ in sent), texts) if sent else []
    pattern = "".join(f"(?:{word} )?" if may_be_name or word in names else f"{word} " for word, may_be_name in sent)
    assert re.fullmatch(pattern, "".join(f"{word} " for word in received)), f"words {sent} came as {received}"


def _texts(tokens: Sequence[int]) -> list[str]:
    """Return the texts between special tokens; those at the ends may be empty."""
    runs: list[list[bytes]] = [[]]
    for token_id in tokens:
        if token_id < v.NUM_TEXT_TOKENS:
            runs[-1].append(token_bytes(token_id))
        else:
            runs.append([])
    return [b"".join(run).decode(errors="replace") for run in runs]


def _is_header_name(tokens: Sequence[int], at: int) -> bool:
    """Tell whether the word stands where a header names its channel, content type or author.

    That is: alone between `<|channel|>` or `<|constrain|>` and what ends this part of the header properly.
    """
    start = at
    while start > 0 and tokens[start - 1] < v.NUM_TEXT_TOKENS:
        start -= 1
    end = at + 1
    while end < len(tokens) and tokens[end] < v.NUM_TEXT_TOKENS:
        end += 1
    opener = tokens[start - 1] if start else None
    closer = tokens[end] if end < len(tokens) else None
    text = b"".join(map(token_bytes, tokens[start:end])).decode(errors="replace")
    if opener in (v.CHANNEL, v.CONSTRAIN):
        is_name = re.fullmatch(r"\s*[\w.+/-]+(\s+to=.*|\s+json\s*|\s*)", text, re.DOTALL)
        is_first_word = len(b"".join(map(token_bytes, tokens[start : at + 1])).split()) == 1
        return bool(is_name) and is_first_word and ("to=" in text or closer in (v.MESSAGE, v.CONSTRAIN))
    return bool(re.match(r"\s*[\w.-]+\s+to=assistant", text))


def _check_intact_messages(parts: Sequence[Part], tokens: Sequence[int], result: Result) -> None:
    for number, part in enumerate(parts):
        position = _find(tokens, part.tokens, only_first=number == 0)
        if position is None:
            continue
        if part.kind == "call":
            assert (part.name, part.body) in result.calls(), f"call {part.name}({part.body!r})"
        else:
            kind = "answer" if part.kind == "answer" else "reasoning"
            assert part.body in result.text(kind), f"{kind} {part.body!r}"


def _check_calls(parts: Sequence[Part], tokens: Sequence[int], result: Result, *, sticky: bool) -> None:
    """Check the names of well-spelled calls; where the tools aren't known, text right after a name is `sticky`."""
    expected: Counter[str] = Counter()
    ends = [(part, _name_end(part)) for part in parts[1:] if part.kind == "call"]
    headers = {(part.tokens[:end], part.name) for part, end in ends if end is not None}
    for header, name in headers:
        for position in range(len(tokens) - len(header)):
            is_here = tuple(tokens[position : position + len(header)]) == header
            rest = tokens[position + len(header) :]
            is_complete = not sticky or (rest and rest[0] >= v.NUM_TEXT_TOKENS and rest[0] not in _RESERVED)
            if is_here and is_complete and any(t in (v.START, v.MESSAGE, *_ENDS) for t in rest):
                expected[name] += 1
    received = Counter(name for name, _ in result.calls())
    assert expected <= received, f"calls {expected} came as {received}"


def _name_end(part: Part) -> int | None:
    """Return the index after the tool's name in the header of a call; None if it is misspelled."""
    name = encode(f" to=functions.{part.name}")
    position = _find(part.tokens, name, only_first=False)
    return None if position is None else position + len(name)


def _find(tokens: Sequence[int], part: Sequence[int], *, only_first: bool) -> int | None:
    positions = range(1) if only_first else range(len(tokens) - len(part) + 1)
    return next((p for p in positions if tuple(tokens[p : p + len(part)]) == tuple(part)), None)


def run(num_streams: int, seed: int, first: int = 0) -> Counter[str]:
    """Check `num_streams` mutated streams from number `first` on; return how often each repair was needed.

    Raises:
        AssertionError: a check failed; says on which stream, with its seed.
    """
    repairs: Counter[str] = Counter()
    for number in range(first, first + num_streams):
        rng = random.Random(f"{seed}/{number}")
        parts = make_stream(rng)
        tokens = mutate(rng, [token_id for part in parts for token_id in part.tokens], rng.randrange(1, 6))
        try:
            repairs.update(check(parts, tokens, rng).repairs)
        except Exception as error:
            text = b"".join(map(token_bytes, tokens)).decode(errors="replace")
            raise AssertionError(f"stream {number} of seed {seed}: {error!r}\n{text!r}") from error
    return repairs


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--streams", type=int, default=20_000)
    arguments.add_argument("--seed", type=int, default=0)
    arguments.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    options = arguments.parse_args()
    start = time.perf_counter()
    shares = [
        (min(_SHARE, options.streams - first), options.seed, first) for first in range(0, options.streams, _SHARE)
    ]
    repairs: Counter[str] = Counter()
    with multiprocessing.Pool(options.processes) as pool:
        for share in pool.starmap(run, shares, chunksize=1):
            repairs.update(share)
    sys.stdout.write(f"{options.streams} streams held in {time.perf_counter() - start:.1f} s; repairs by class:\n")
    for repair, count in repairs.most_common():
        sys.stdout.write(f"{count:8d} {repair}\n")


if __name__ == "__main__":
    main()
