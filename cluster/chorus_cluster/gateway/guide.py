"""What an answer may look like, for the engine: from the tools, the tool choice and the format that a request names.

Reasoning and preambles are free. A call's arguments follow the schema of a tool that is `strict`, its text the grammar
of a tool that has one, and the final message the output format. Without any of it, the guide still keeps headers to
those that harmony has. The answer to a raw prompt follows its output format as a whole.
"""

import functools
import json
from collections.abc import Mapping, Sequence
from typing import Any

from chorus_cluster.errors import InvalidRequest
from chorus_cluster.gateway.request import ChatRequest, OutputFormat
from chorus_cluster.harmony import headers
from chorus_cluster.harmony.conversation import Tool
from chorus_protos.v1 import engine_pb2
from chorus_vocabulary import CALL, END, RETURN

# Of one grammar, as the engine takes it.
MAX_GRAMMAR_BYTES = 256 * 1024
_FREE_OBJECT: Mapping[str, Any] = {"type": "object", "properties": {}, "additionalProperties": False}
# After a grammar's end only one token may come, so that nothing follows.
_AFTER_ANSWER, _AFTER_CALL = (RETURN,), (CALL,)


class Guided:
    """A request's guide, and what the client calls its parts."""

    def __init__(self, pb: engine_pb2.Guide | None, fields: Sequence[str] = ()) -> None:
        """fields: for each of the guide's messages with a grammar, by its index; empty for others."""
        self.pb = pb
        self._fields = fields

    def explain(self, error: InvalidRequest) -> InvalidRequest:
        """An error of the engine's in the client's terms, if it is about the guide."""
        prefix = "guide.messages["
        if error.field is None or not error.field.startswith(prefix):
            return error
        index = int(error.field.removeprefix(prefix).partition("]")[0])
        reason = error.message.removeprefix(f"{error.field}: ")
        return InvalidRequest(self._fields[index], f"can't be enforced: {reason}")


def build_guide(request: ChatRequest, *, header_guard: bool) -> Guided:
    """The guide of a chat. header_guard: whether an answer is guided that nothing else limits.

    Errors: `InvalidRequest` for a tool choice that the tools don't allow, and for what is too large.
    """
    tools = _callable_tools(request)
    must_call = request.tool_choice.mode == "required"
    held = [tool for tool in tools if tool.strict or tool.input_grammar]
    limited = must_call or held or request.output_format or request.tool_choice.names
    if not limited and request.max_reasoning_tokens is None:
        return Guided(_plain(tuple(tool.name for tool in tools)) if header_guard else None)
    builder = _Builder()
    # Who must call a tool and would rather not could go on with preambles and reasoning without end.
    builder.add_reasoning(has_preambles=bool(tools) and not must_call)
    builder.pb.reasons_once = must_call
    if not must_call:
        builder.add_answer(request.output_format)
    for tool in tools:
        builder.add_call(tool, _index(request, tool))
    if request.max_reasoning_tokens is not None:
        builder.pb.max_reasoning_tokens = request.max_reasoning_tokens
    return Guided(builder.pb, builder.fields)


def build_text_guide(output_format: OutputFormat | None) -> Guided:
    """The guide of an answer to a raw prompt: the format's text from its first token on, or anything.

    Errors: `InvalidRequest` for what is too large.
    """
    if output_format is None:
        return Guided(None)
    grammar = _grammar_of(output_format)
    _check_size(grammar, output_format.field)
    guide = engine_pb2.Guide(grammars=[grammar], messages=[engine_pb2.GuidedMessage(grammar=0)])
    return Guided(guide, [output_format.field])


def _callable_tools(request: ChatRequest) -> list[Tool]:
    choice = request.tool_choice
    if choice.mode == "none":
        return []
    known = {tool.name for tool in request.tools}
    for name in choice.names:
        if name not in known:
            raise InvalidRequest("tool_choice", f"names {name[:64]!r}, which is not among the tools")
    if choice.mode == "required" and not request.tools:
        raise InvalidRequest("tool_choice", "asks for a call, but there are no tools")
    return [tool for tool in request.tools if not choice.names or tool.name in choice.names]


def _index(request: ChatRequest, tool: Tool) -> int:
    return next(i for i, other in enumerate(request.tools) if other is tool)


@functools.lru_cache(maxsize=256)
def _plain(tool_names: tuple[str, ...]) -> engine_pb2.Guide:
    """The guide that keeps headers alone; it is not to be changed."""
    builder = _Builder()
    builder.add_reasoning(has_preambles=bool(tool_names))
    builder.add_answer(None)
    for name in tool_names:
        builder.add_call(Tool(name), 0)
    return builder.pb


class _Builder:
    def __init__(self) -> None:
        self.pb = engine_pb2.Guide(opening=headers.opening())
        self.fields: list[str] = []

    def add_reasoning(self, *, has_preambles: bool) -> None:
        self._add(headers.analysis_header(), (END,), is_reasoning=True)
        if has_preambles:
            self._add(headers.preamble_header(), (END,))

    def add_answer(self, output_format: OutputFormat | None) -> None:
        if output_format is None:
            for header in headers.final_headers(is_constrained=False):
                self._add(header, headers.answer_ends())
            return
        grammar = self._add_grammar(_grammar_of(output_format), output_format.field)
        for header in headers.final_headers(is_constrained=output_format.kind == "json_schema"):
            self._add(header, _AFTER_ANSWER, grammar, output_format.field)

    def add_call(self, tool: Tool, index: int) -> None:
        call_headers = headers.call_headers(tool.name, is_text=tool.input_grammar is not None)
        if tool.input_grammar is not None:
            field = f"tools[{index}].function.format.definition"
            held = engine_pb2.Grammar(**{tool.input_grammar.syntax: tool.input_grammar.definition})
        elif tool.strict:
            field = f"tools[{index}].function.parameters"
            schema = _FREE_OBJECT if tool.parameters is None else dict(tool.parameters)
            held = engine_pb2.Grammar(json_schema=json.dumps(schema))
        else:
            for header in call_headers:
                self._add(header, headers.answer_ends())
            return
        grammar = self._add_grammar(held, field)
        for header in call_headers:
            self._add(header, _AFTER_CALL, grammar, field)

    def _add_grammar(self, grammar: engine_pb2.Grammar, field: str) -> int:
        _check_size(grammar, field)
        self.pb.grammars.append(grammar)
        return len(self.pb.grammars) - 1

    def _add(
        self,
        header: Sequence[int],
        end_token_ids: Sequence[int],
        grammar: int | None = None,
        field: str = "",
        *,
        is_reasoning: bool = False,
    ) -> None:
        self.pb.messages.add(header=header, end_token_ids=end_token_ids, grammar=grammar, is_reasoning=is_reasoning)
        self.fields.append(field)


def _check_size(grammar: engine_pb2.Grammar, field: str) -> None:
    if grammar.ByteSize() > MAX_GRAMMAR_BYTES:
        raise InvalidRequest(field, f"takes {grammar.ByteSize()} bytes; at most {MAX_GRAMMAR_BYTES} are allowed")


def _grammar_of(output_format: OutputFormat) -> engine_pb2.Grammar:
    source = output_format.source
    if output_format.kind == "json_schema":
        return engine_pb2.Grammar(json_schema=source)
    if output_format.kind == "regex":
        return engine_pb2.Grammar(regex=source)
    if output_format.kind == "lark":
        return engine_pb2.Grammar(lark=source)
    # JSON's strings are Lark's.
    choices = " | ".join(json.dumps(choice) for choice in json.loads(source))
    return engine_pb2.Grammar(lark=f"start: {choices}")
