"""Samples as token ids, fast enough to feed a GPU: the product's renderer, rewritten on a cache of encoded words.

`tests/unit/demo` holds it to the product's renderer, token by token. Completions follow gpt-oss's own habit: reasoning
on `analysis` if there is any, then the answer on `final`, or `commentary to=functions.NAME <|constrain|>json`.
"""

import datetime
import functools
import json
from collections.abc import Mapping
from typing import Any

import regex

import chorus_vocabulary as vocabulary
from chorus_cluster.harmony.encoding import load_encoding
from chorus_vocabulary.token_table import SPLIT_PATTERN
from demo.sample import Effort, Message, Sample, Target, Tool

_PIECES = regex.compile(SPLIT_PATTERN)
_IDENTITY = "You are ChatGPT, a large language model trained by OpenAI.\nKnowledge cutoff: 2024-06\n"
_CHANNELS = "# Valid channels: analysis, commentary, final. Channel must be included for every message."
_TOOLS_ON = "\nCalls to these tools must go to the commentary channel: 'functions'."
_TYPES = {"string": "string", "integer": "number", "number": "number", "boolean": "boolean"}


class Encoder:
    """Encodes text and whole samples. Not thread-safe."""

    def __init__(self) -> None:
        self.encoding = load_encoding()
        self._known: dict[str, list[int]] = {}
        self._system = functools.cache(self._system_message)

    def text(self, text: str) -> list[int]:
        ids: list[int] = []
        for piece in _PIECES.findall(text):
            known = self._known.get(piece)
            if known is None:
                known = self._known[piece] = self.encoding.encode(piece, disallowed_special=())
            ids += known
        return ids

    def prompt(self, sample: Sample) -> list[int]:
        """The ids that the gateway would send for `sample`, up to and with `<|start|>assistant`."""
        ids = list(self._system(bool(sample.tools), sample.effort, sample.date))
        messages = list(sample.messages)
        instructions = messages.pop(0).content if messages[0].role == "developer" else ""
        developer = _developer(instructions, sample.tools)
        if sample.schema is not None:
            developer += ("\n\n" if developer else "") + _response_format(sample.schema)
        if developer:
            ids += self._message("developer", "", self.text(developer))
        answers = [i for i, message in enumerate(messages) if message.role == "assistant" and not message.tool_call]
        for i, message in enumerate(messages):
            ids += self._turn(message, keep_reasoning=not answers or i > answers[-1])
        return [*ids, vocabulary.START, *self.text("assistant")]

    def _system_message(self, tools: bool, effort: Effort, date: datetime.date) -> list[int]:
        channels = _CHANNELS + (_TOOLS_ON if tools else "")
        text = f"{_IDENTITY}Current date: {date.isoformat()}\n\nReasoning: {effort}\n\n{channels}"
        return self._message("system", "", self.text(text))

    def completion(self, target: Target) -> list[int]:
        """The ids that the model must write after the prompt, the stop token included."""
        ids: list[int] = []
        if target.reasoning:
            ids += [vocabulary.CHANNEL, *self.text("analysis"), vocabulary.MESSAGE, *self.text(target.reasoning)]
            ids += [vocabulary.END, vocabulary.START, *self.text("assistant")]
        if target.tool_call is None:
            return [
                *ids,
                vocabulary.CHANNEL,
                *self.text("final"),
                vocabulary.MESSAGE,
                *self.text(target.content),
                vocabulary.RETURN,
            ]
        ids += [
            vocabulary.CHANNEL,
            *self.text(f"commentary to=functions.{target.tool_call.name} "),
            vocabulary.CONSTRAIN,
        ]
        return [*ids, *self.text("json"), vocabulary.MESSAGE, *self.text(target.tool_call.arguments), vocabulary.CALL]

    def _turn(self, message: Message, keep_reasoning: bool) -> list[int]:
        if message.role == "user":
            return self._message("user", "", self.text(message.content))
        if message.role == "tool":
            return self._message(f"functions.{message.name} to=assistant", "commentary", self.text(message.content))
        ids = (
            self._message("assistant", "analysis", self.text(message.reasoning))
            if message.reasoning and keep_reasoning
            else []
        )
        if message.tool_call is None:
            return ids + self._message("assistant", "final", self.text(message.content))
        ids += [vocabulary.START, *self.text(f"assistant to=functions.{message.tool_call.name}"), vocabulary.CHANNEL]
        ids += [*self.text("commentary "), vocabulary.CONSTRAIN, *self.text("json"), vocabulary.MESSAGE]
        return [*ids, *self.text(message.tool_call.arguments), vocabulary.CALL]

    def _message(self, author: str, channel: str, body: list[int]) -> list[int]:
        ids = [vocabulary.START, *self.text(author)]
        if channel:
            ids += [vocabulary.CHANNEL, *self.text(channel)]
        return [*ids, vocabulary.MESSAGE, *body, vocabulary.END]


def _developer(instructions: str, tools: tuple[Tool, ...]) -> str:
    parts = [f"# Instructions\n\n{instructions}"] if instructions else []
    if tools:
        declared = "".join(f"{_declaration(tool)}\n\n" for tool in tools)
        parts.append(f"# Tools\n\n## functions\n\nnamespace functions {{\n\n{declared}}} // namespace functions")
    return "\n\n".join(parts)


def _declaration(tool: Tool) -> str:
    head = (f"// {tool.description}\n" if tool.description else "") + f"type {tool.name} = "
    if tool.parameters is None:
        return f"{head}() => any;"
    lines = []
    for name, schema in tool.parameters["properties"].items():
        if "description" in schema:
            lines.append(f"// {schema['description']}\n")
        optional = "" if name in tool.parameters["required"] else "?"
        kind = " | ".join(f'"{value}"' for value in schema["enum"]) if "enum" in schema else _TYPES[schema["type"]]
        lines.append(f"{name}{optional}: {kind},\n")
    return f"{head}(_: {{\n{''.join(lines)}}}) => any;"


def _response_format(schema: Mapping[str, Any]) -> str:
    return f"# Response Formats\n\n## answer\n\n{json.dumps(schema, ensure_ascii=False, separators=(',', ':'))}"
