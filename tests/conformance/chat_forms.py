"""/v1/chat/completions: the parameters that hold an answer to a form."""

import json
from typing import Any

from tests.conformance.chat_door import DECLARED, DOOR, FUNCTION, TOOL, TOOLS, prompt

from chorus_cluster.harmony.marked_text import decode_marked
from chorus_protos.v1 import engine_pb2

SCHEMA = {"type": "object", "properties": {"age": {"type": "integer"}}, "required": ["age"]}

# One of each kind.
STRUCTURED: dict[str, Any] = {
    "json": SCHEMA,
    "json_object": True,
    "regex": "a+",
    "choice": ["a"],
    "grammar": "start: /a/",
}


async def tool_choice() -> bool:
    shown = [DECLARED in await prompt(tools=[TOOL], tool_choice=choice) for choice in ("auto", "none")]
    return shown == [True, False]


async def guide(**fields: Any) -> engine_pb2.Guide:
    """What holds the answer to its form."""
    (request,) = (await DOOR.served(fields)).requests
    return request.guide


async def may_answer(**fields: Any) -> bool:
    """Whether the answer may be another message than reasoning or a call."""
    spelled = [decode_marked(list(message.header)) for message in (await guide(tools=TOOLS, **fields)).messages]
    return any("final" in header for header in spelled)


async def callable_names(**fields: Any) -> set[str]:
    spelled = [decode_marked(list(message.header)) for message in (await guide(tools=TOOLS, **fields)).messages]
    return {name for name in ("get_weather", "get_time") if any(f"functions.{name}" in header for header in spelled)}


async def required() -> bool:
    return await may_answer() and not await may_answer(tool_choice="required")


async def named() -> bool:
    choice = {"type": "function", "function": {"name": "get_time"}}
    return await callable_names(tool_choice=choice) == {"get_time"} and not await may_answer(tool_choice=choice)


async def allowed() -> bool:
    tools = [{"type": "function", "function": {"name": "get_time"}}]
    choice = {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": tools}}
    return await callable_names(tool_choice=choice) == {"get_time"} and await may_answer(tool_choice=choice)


async def strict() -> bool:
    plain, held = [[{"type": "function", "function": FUNCTION | {"strict": each}}] for each in (False, True)]
    return not (await guide(tools=plain)).grammars and len((await guide(tools=held)).grammars) == 1


async def text_format() -> bool:
    return await guide(response_format={"type": "text"}) == await guide()


async def json_object() -> bool:
    (grammar,) = (await guide(response_format={"type": "json_object"})).grammars
    return json.loads(grammar.json_schema) == {"type": "object"}


async def json_schema() -> bool:
    fields = {"response_format": {"type": "json_schema", "json_schema": {"name": "person", "schema": SCHEMA}}}
    (grammar,) = (await guide(**fields)).grammars
    return json.loads(grammar.json_schema) == SCHEMA and "## person" in await prompt(**fields)


async def structured_outputs() -> bool:
    held = [(await guide(structured_outputs={kind: form})).grammars for kind, form in STRUCTURED.items()]
    return all(len(grammars) == 1 for grammars in held)


async def thinking_token_budget() -> bool:
    return (await guide(thinking_token_budget=9)).max_reasoning_tokens == 9


S = DOOR.supported
TOOL_ROWS = [
    S("tools", strict, "arguments follow the schema", "`strict`"),
    S("tool_choice", tool_choice, values="`auto`, `none`"),
    S("tool_choice", required, values="`required`"),
    S("tool_choice", named, values="`function`"),
    S("tool_choice", allowed, values="`allowed_tools`"),
    DOOR.refused(
        "tool_choice", {"type": "custom", "custom": {"name": "f"}}, "functions only", "`custom`", "tool_choice.type"
    ),
]
FORMAT_ROWS = [
    S("response_format", text_format, values="`text`"),
    S("response_format", json_object, values="`json_object`"),
    S("response_format", json_schema, "the model is shown the schema", "`json_schema`"),
    S("structured_outputs", structured_outputs, "as vLLM's", "`json`, `json_object`, `regex`, `choice`, `grammar`"),
    S("thinking_token_budget", thinking_token_budget, "as vLLM's: most tokens of reasoning"),
]
