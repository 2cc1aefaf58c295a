"""Structural tags as guides, for gateways that spell harmony's headers out.

A tag is a message: it begins with a header, and ends with a token that ends messages. The guide may be narrower than
the tags, never wider: free text between tags is harmony's own messages, an empty `end` is the stop token that fits the
header, and an answer that must have a tag reasons at most once. What a guide can't say is refused.

As in vLLM, which holds a constraint back while the model reasons, reasoning may come before the tags, unless they begin
`from_first_token`.
"""

import json
from collections.abc import Collection, Iterable, Sequence

from pydantic import ValidationError
from pydantic_core import from_json

from chorus_protos.v1 import engine_pb2
from chorus_vocabulary import CALL, END, ENDOFTEXT, MESSAGE, RETURN, START, STOP_TOKEN_IDS
from chorus_workers.guide.tokenizer import encode_marked
from chorus_workers.vllm.tag_models import (
    AnyText,
    ConstString,
    Ebnf,
    JsonSchema,
    OneOf,
    Regex,
    StructuralTag,
    Structures,
    Tag,
    TagsWithSeparator,
    Text,
    TriggeredTags,
)

OPENING = "<|start|>assistant"
_ANALYSIS, _PREAMBLE, _FINAL = (f"<|channel|>{name}<|message|>" for name in ("analysis", "commentary", "final"))
_ENDS = {"<|end|>": END, "<|return|>": RETURN, "<|call|>": CALL, "<|endoftext|>": ENDOFTEXT}
_STOPS = frozenset(STOP_TOKEN_IDS)
_MAX_SHOWN_PATH = 200
# What pydantic finds wrong, in plainer words.
_WORDS = {
    "missing": "is missing",
    "extra_forbidden": "is not served",
    "literal_error": "must be {expected}",
    "none_required": "is not served",
    "model_type": "must be an object",
    "model_attributes_type": "must be an object",
    "dict_type": "must be an object",
    "list_type": "must be an array",
    "string_type": "must be a string",
    "bool_type": "must be a boolean",
    "too_short": "must have at least {min_length} elements",
    "too_long": "must have at most {max_length} elements",
    "string_too_long": "must have at most {max_length} characters",
    "union_tag_not_found": "must have a 'type'",
    "union_tag_invalid": "must be of one of the types {expected_tags}",
}


class TagError(Exception):
    """The tag can't be enforced. The message says why, for the client to read."""


def guide_from_tag(source: str, *, from_first_token: bool) -> engine_pb2.Guide:
    """The guide of a structural tag in JSON; without headers if the whole answer is one text. The first call takes a
    second. Errors: TagError."""
    form = _read(source)
    if isinstance(form, JsonSchema | Regex | Ebnf | ConstString):
        return engine_pb2.Guide(grammars=[grammar_of(form)], messages=[engine_pb2.GuidedMessage(grammar=0)])
    if isinstance(form, Tag):
        form = OneOf(type="or", elements=[form])
    tags = form.elements if isinstance(form, OneOf) else form.tags
    if isinstance(form, TagsWithSeparator) and form.separator != OPENING:
        raise TagError(f"format.separator must be {OPENING!r}: a guide's messages have nothing else between them")
    triggers = form.triggers if isinstance(form, TriggeredTags) else None
    if triggers is not None:
        _check_triggers(tags, triggers)
    is_free = isinstance(form, TriggeredTags) and not form.at_least_one
    builder = _Builder(stops_after_first=isinstance(form, OneOf) or form.stop_after_first)
    for i, tag in enumerate(tags):
        builder.add_tag(tag, f"format.{'elements' if isinstance(form, OneOf) else 'tags'}[{i}]")
    if is_free:
        builder.add_free(_FINAL, (END, *STOP_TOKEN_IDS), unless=triggers or ())
        builder.add_free(_PREAMBLE, (END,), unless=triggers or ())
    if is_free or not from_first_token:
        builder.add_free(_ANALYSIS, (END,), unless=(triggers or ()) if is_free else ())
    builder.check_has_end()
    builder.guide.reasons_once = not is_free
    return builder.guide


def grammar_of(text: Text) -> engine_pb2.Grammar:
    if isinstance(text, JsonSchema):
        return engine_pb2.Grammar(json_schema=json.dumps(text.json_schema))
    if isinstance(text, Regex):
        return engine_pb2.Grammar(regex=text.pattern)
    return engine_pb2.Grammar(lark=text.grammar if isinstance(text, Ebnf) else choices([text.value]))


def choices(texts: Iterable[str]) -> str:
    """A grammar in Lark that is one of some texts. JSON's strings are Lark's."""
    return "start: " + " | ".join(map(json.dumps, texts))


class _Builder:
    """Makes a guide's messages of tags; those that begin alike must be alike."""

    def __init__(self, *, stops_after_first: bool) -> None:
        self.guide = engine_pb2.Guide(opening=encode_marked(OPENING))
        self._stops_after_first = stops_after_first
        self._indices: dict[tuple[int, ...], int] = {}
        self._grammars: dict[bytes, int] = {}

    def add_tag(self, tag: Tag, field: str) -> None:
        text = tag.begin.removeprefix(OPENING)
        header = tuple(encode_marked(text))
        if not header or header[-1] != MESSAGE or {MESSAGE, START, END, *STOP_TOKEN_IDS} & set(header[:-1]):
            raise TagError(f"{field}.begin must be one of harmony's headers, such as {_FINAL!r}")
        grammar = None if isinstance(tag.content, AnyText) else self._add_grammar(grammar_of(tag.content))
        ends = self._ends(tag, text, field)
        self._add(header, ends, grammar, f"{field}.begin")

    def add_free(self, header: str, ends: Sequence[int], unless: Collection[str]) -> None:
        """A message of any text, unless there is one with that header, or one of these triggers would begin it."""
        token_ids = tuple(encode_marked(header))
        triggered = any(header.startswith(trigger.removeprefix(OPENING)) for trigger in unless)
        if not triggered and token_ids not in self._indices:
            self._add(token_ids, ends, None, header)

    def check_has_end(self) -> None:
        """Errors: TagError, where no message could end the answer."""
        messages = self.guide.messages
        if not any(_STOPS & set(message.end_token_ids) for message in messages if not message.is_reasoning):
            raise TagError("it needs a tag, other than reasoning, that may end the answer")

    def _ends(self, tag: Tag, header: str, field: str) -> list[int]:
        """The tokens that end a tag's message."""
        given = [tag.end] if isinstance(tag.end, str) else tag.end
        ends = {_ENDS.get(end) if end else (CALL if " to=" in header else RETURN) for end in given}
        if not ends or None in ends:
            raise TagError(f"{field}.end must be one of {', '.join(map(repr, _ENDS))}, or empty")
        if self._stops_after_first:
            ends.discard(END)
            if not ends:
                raise TagError(f"{field}.end must have a stop token, since the answer stops after it")
        elif header == _ANALYSIS and END in ends:
            ends = {END}
        return sorted(end for end in ends if end is not None)

    def _add_grammar(self, grammar: engine_pb2.Grammar) -> int:
        key = grammar.SerializeToString(deterministic=True)
        if key not in self._grammars:
            self._grammars[key] = len(self.guide.grammars)
            self.guide.grammars.append(grammar)
        return self._grammars[key]

    def _add(self, header: tuple[int, ...], ends: Sequence[int], grammar: int | None, field: str) -> None:
        is_reasoning = header == tuple(encode_marked(_ANALYSIS))
        message = engine_pb2.GuidedMessage(
            header=header, end_token_ids=ends, grammar=grammar, is_reasoning=is_reasoning
        )
        index = self._indices.setdefault(header, len(self.guide.messages))
        if index == len(self.guide.messages):
            self.guide.messages.append(message)
        elif self.guide.messages[index] != message:
            raise TagError(f"{field} is another tag's, which goes on otherwise")


def _read(source: str) -> Text | Tag | TriggeredTags | TagsWithSeparator | OneOf:
    try:
        value = from_json(source)
        if not isinstance(value, dict) or "structures" not in value:
            return StructuralTag.model_validate(value).format
        old = Structures.model_validate(value)
    except ValidationError as error:
        raise TagError(_first(error)) from None
    except ValueError as error:
        raise TagError(f"it is no JSON: {error}") from None
    tags = [
        Tag(begin=one.begin, content=JsonSchema(type="json_schema", json_schema=one.json_schema), end=one.end)
        for one in old.structures
    ]
    return TriggeredTags(type="triggered_tags", triggers=old.triggers, tags=tags)


def _first(error: ValidationError) -> str:
    """The first thing that is wrong, by its path, which names the kinds of formats on the way."""
    details = error.errors(include_url=False, include_input=False)[0]
    path = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in details["loc"])
    words = _WORDS.get(details["type"])
    expected = details.get("ctx", {})
    said = details["msg"] if words is None else words.format_map(expected)
    return f"{path.removeprefix('.')[:_MAX_SHOWN_PATH] or 'it'} {said}"


def _check_triggers(tags: Sequence[Tag], triggers: Sequence[str]) -> None:
    for i, tag in enumerate(tags):
        if not any(tag.begin.startswith(trigger) for trigger in triggers):
            raise TagError(f"format.tags[{i}].begin must begin with one of the triggers")
