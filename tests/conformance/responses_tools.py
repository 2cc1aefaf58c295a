"""/v1/responses: tools, which of them the model may call, and the form of its answer."""

import json
from typing import Any

from openai.types.responses.response_create_params import ToolChoice
from openai.types.responses.response_format_text_config_param import ResponseFormatTextConfigParam
from openai.types.responses.tool_param import ToolParam
from tests.conformance.responses_door import DOOR, MAPS, PATCH, PATCH_CALL, TEXT_CALL, TIME, guide, output, prompt
from tests.conformance.rows import Body, Row, types_of
from tests.support.chat import TOOL_CALL
from tests.support.responses import WEATHER

from chorus_cluster.harmony.marked_text import decode_marked

TOOLS = [WEATHER, TIME, PATCH, MAPS]
# What the model calls them.
NAMES = ("get_weather", "get_time", "apply_patch", "maps__get_time")
SCHEMA = {"type": "object", "properties": {"age": {"type": "integer"}}, "required": ["age"]}


async def functions() -> bool:
    call = (await output(TOOL_CALL, tools=[WEATHER]))[-1]
    return "type get_weather" in await prompt(tools=[WEATHER]) and call["type"] == "function_call"


async def strict() -> bool:
    plain, held = [[WEATHER | {"strict": each}] for each in (False, True)]
    return not (await guide(tools=plain)).grammars and len((await guide(tools=held)).grammars) == 1


async def custom() -> bool:
    call = (await output(PATCH_CALL, tools=[PATCH]))[-1]
    return (call["type"], call["input"]) == ("custom_tool_call", "*** Begin Patch")


async def custom_format() -> bool:
    lark = {"type": "grammar", "syntax": "lark", "definition": "start: /x+/"}
    regex = {"type": "grammar", "syntax": "regex", "definition": "x+"}
    (held,), (matched,) = [(await guide(tools=[PATCH | {"format": form}])).grammars for form in (lark, regex)]
    call = (await output(TEXT_CALL, tools=[PATCH | {"format": lark}]))[-1]
    return (held.lark, matched.regex, call["input"]) == ("start: /x+/", "x+", "xxx")


async def namespace() -> bool:
    script = TOOL_CALL.replace("get_weather", "maps__get_time")
    call = (await output(script, tools=[MAPS]))[-1]
    return (call["namespace"], call["name"]) == ("maps", "get_time")


async def headers(**fields: Any) -> list[str]:
    """Which messages the model may write; all, where none are named."""
    return [decode_marked(list(message.header)) for message in (await guide(tools=TOOLS, **fields)).messages]


async def callable_names(choice: Any) -> set[str]:
    spelled = await headers(tool_choice=choice)
    # A header goes on behind the name.
    return {name for name in NAMES if any(f"functions.{name}" in header for header in spelled)}


async def may_answer(choice: Any) -> bool:
    return any("final" in header for header in await headers(tool_choice=choice))


async def auto_and_none() -> bool:
    shown = ["get_weather" in await prompt(tools=[WEATHER], tool_choice=choice) for choice in ("auto", "none")]
    return shown == [True, False]


async def required() -> bool:
    return await may_answer(None) and not await may_answer("required")


async def named() -> bool:
    choice = {"type": "function", "name": "get_time"}
    inner = choice | {"namespace": "maps"}
    return (
        await callable_names(choice) == {"get_time"}
        and await callable_names(inner) == {"maps__get_time"}
        and not await may_answer(choice)
    )


async def named_custom() -> bool:
    choice = {"type": "custom", "name": "apply_patch"}
    return await callable_names(choice) == {"apply_patch"} and not await may_answer(choice)


async def allowed() -> bool:
    tools = [{"type": "function", "name": "get_time"}, {"type": "custom", "name": "apply_patch"}]
    choices = [{"type": "allowed_tools", "mode": mode, "tools": tools} for mode in ("auto", "required")]
    names = [await callable_names(choice) for choice in choices]
    return names == [{"get_time", "apply_patch"}] * 2 and [await may_answer(choice) for choice in choices] == [
        True,
        False,
    ]


async def text_format() -> bool:
    return await guide(text={"format": {"type": "text"}}) == await guide()


async def json_object() -> bool:
    (grammar,) = (await guide(text={"format": {"type": "json_object"}})).grammars
    return json.loads(grammar.json_schema) == {"type": "object"}


async def json_schema() -> bool:
    fields = {"text": {"format": {"type": "json_schema", "name": "person", "schema": SCHEMA}}}
    (grammar,) = (await guide(**fields)).grammars
    return json.loads(grammar.json_schema) == SCHEMA and "## person" in await prompt(**fields)


async def verbosity() -> bool:
    return (await DOOR.served({"text": {"verbosity": "medium"}})).body["text"]["verbosity"] == "medium"


def _runs_nowhere(*types: str) -> list[Row]:
    note = "runs nowhere here: a function does the same"
    return [DOOR.refused("tools", [{"type": type}], note, f"`{type}`", "tools[0].type") for type in types]


def _left_out(*types: str) -> Row:
    note = "agents declare them unasked; the model isn't told of them"
    samples: list[list[Body]] = [[{"type": type}] for type in types]
    return DOOR.ignored("tools", *samples, note=note, values=", ".join(f"`{type}`" for type in types))


def _forced(*types: str) -> list[Row]:
    note = "no such tool runs here"
    return [
        DOOR.refused("tool_choice", {"type": type}, note, f"`{type}`", beside={"tools": [WEATHER]}) for type in types
    ]


S = DOOR.supported
TOOL_ROWS = [
    S("tools", functions, values="`function`"),
    S("tools", strict, "arguments follow the schema", "strict functions"),
    S("tools", custom, "input is free text", "`custom`"),
    S(
        "tools",
        custom_format,
        "calls are text that follows it: `lark`, in llguidance's dialect, or `regex`",
        "custom tools with a grammar",
    ),
    S("tools", namespace, values="`namespace`"),
    _left_out("web_search", "web_search_2025_08_26", "web_search_preview", "web_search_preview_2025_03_11"),
    _left_out("image_generation", "tool_search"),
    *_runs_nowhere("file_search", "computer", "computer_use_preview", "mcp", "code_interpreter"),
    *_runs_nowhere("programmatic_tool_calling", "local_shell", "shell", "apply_patch"),
    S("tool_choice", auto_and_none, values="`auto`, `none`"),
    S("tool_choice", required, values="`required`"),
    S("tool_choice", named, "also one of a namespace", "`function`"),
    S("tool_choice", named_custom, values="`custom`"),
    S("tool_choice", allowed, "functions and custom tools", "`allowed_tools`"),
    *_forced("file_search", "web_search_preview", "web_search_preview_2025_03_11", "image_generation"),
    *_forced("computer", "computer_use_preview", "computer_use", "code_interpreter", "mcp"),
    *_forced("programmatic_tool_calling", "apply_patch", "shell"),
]
TEXT_ROWS = [
    S("text", text_format, values="`text`"),
    S("text", json_object, values="`json_object`"),
    S("text", json_schema, "the model is shown the schema", "`json_schema`"),
    S("text", verbosity, values="verbosity medium"),
    *(
        DOOR.refused("text", {"verbosity": each}, "gpt-oss knows no other", f"verbosity {each}", "text.verbosity")
        for each in ("low", "high")
    ),
]
EXPECTED_TOOLS = types_of(ToolParam)
EXPECTED_CHOICES = types_of(ToolChoice)
EXPECTED_FORMATS = types_of(ResponseFormatTextConfigParam)
