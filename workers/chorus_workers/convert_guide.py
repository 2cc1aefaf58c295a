"""A guide, from protobuf: the part of `convert` that is about what an answer may look like."""

from collections.abc import Sequence

from chorus_protos.v1 import engine_pb2
from chorus_workers.engine.request import Refusal, RefusalReason, Refused
from chorus_workers.guide.spec import Grammar, GrammarKind, GuidedMessage, GuideSpec
from chorus_workers.runner.base import RunnerInfo

MAX_MESSAGES = 4096
MAX_GRAMMARS = 1024
MAX_HEADER_TOKENS = 256
MAX_END_TOKENS = 16
MAX_GRAMMAR_BYTES = 256 * 1024


def guide_from_pb(guide: engine_pb2.Guide, info: RunnerInfo, stop_token_ids: frozenset[int]) -> GuideSpec:
    """Checks a guide and converts it. `stop_token_ids`: the request's, which end an answer without markup.

    Errors: Refused with INVALID_ARGUMENT, naming the field.
    """
    if not 0 < len(guide.messages) <= MAX_MESSAGES:
        raise _invalid("guide.messages", f"must have 1 to {MAX_MESSAGES} entries")
    if len(guide.grammars) > MAX_GRAMMARS:
        raise _invalid("guide.grammars", f"must have at most {MAX_GRAMMARS} entries")
    grammars = [_grammar(grammar, f"guide.grammars[{i}]") for i, grammar in enumerate(guide.grammars)]
    if not all(message.header for message in guide.messages):
        return _without_markup(guide, grammars, stop_token_ids)
    _check_tokens("guide.opening", guide.opening, MAX_HEADER_TOKENS, info)
    return GuideSpec(
        opening=tuple(guide.opening),
        messages=tuple(
            _message(message, f"guide.messages[{i}]", grammars, info) for i, message in enumerate(guide.messages)
        ),
        max_reasoning_tokens=guide.max_reasoning_tokens if guide.HasField("max_reasoning_tokens") else None,
        reasons_once=guide.reasons_once,
    )


def _without_markup(guide: engine_pb2.Guide, grammars: list[Grammar], stop_token_ids: frozenset[int]) -> GuideSpec:
    """Of an answer that is the text of one grammar."""
    if len(guide.messages) > 1:
        raise _invalid("guide.messages", "must have a header each, or be a single one")
    if guide.opening or guide.reasons_once or guide.HasField("max_reasoning_tokens"):
        raise _invalid("guide", "must have no opening and no limits of reasoning without a header")
    message = guide.messages[0]
    if message.end_token_ids or message.is_reasoning:
        raise _invalid("guide.messages[0]", "must have no end_token_ids and be no reasoning without a header")
    if (grammar := _grammar_of(message, "guide.messages[0]", grammars)) is None:
        raise _invalid("guide.messages[0].grammar", "must be set without a header")
    if not stop_token_ids:
        raise _invalid("sampling.stop_token_ids", "must not be empty: nothing else ends an answer without markup")
    return GuideSpec((), (GuidedMessage((), stop_token_ids, grammar),))


def _message(message: engine_pb2.GuidedMessage, field: str, grammars: list[Grammar], info: RunnerInfo) -> GuidedMessage:
    _check_tokens(f"{field}.header", message.header, MAX_HEADER_TOKENS, info)
    _check_tokens(f"{field}.end_token_ids", message.end_token_ids, MAX_END_TOKENS, info)
    grammar = _grammar_of(message, field, grammars)
    return GuidedMessage(tuple(message.header), frozenset(message.end_token_ids), grammar, message.is_reasoning)


def _grammar_of(message: engine_pb2.GuidedMessage, field: str, grammars: list[Grammar]) -> Grammar | None:
    if not message.HasField("grammar"):
        return None
    if message.grammar >= len(grammars):
        raise _invalid(f"{field}.grammar", f"must be less than the number of grammars, {len(grammars)}")
    return grammars[message.grammar]


def _grammar(grammar: engine_pb2.Grammar, field: str) -> Grammar:
    kind = grammar.WhichOneof("grammar")
    if kind is None:
        raise _invalid(field, "must be a JSON schema, a regular expression or a Lark grammar")
    source: str = getattr(grammar, kind)
    if len(source.encode()) > MAX_GRAMMAR_BYTES:
        raise _invalid(field, f"must have at most {MAX_GRAMMAR_BYTES} bytes")
    return Grammar(GrammarKind(kind), source)


def _check_tokens(field: str, token_ids: Sequence[int], most: int, info: RunnerInfo) -> None:
    if not 0 < len(token_ids) <= most:
        raise _invalid(field, f"must have 1 to {most} entries")
    if max(token_ids) >= info.vocab_size:
        raise _invalid(field, f"holds an id beyond the vocabulary's {info.vocab_size}")


def _invalid(field: str, message: str) -> Refused:
    return Refused(Refusal(RefusalReason.INVALID_ARGUMENT, f"{field} {message}", field=field))
