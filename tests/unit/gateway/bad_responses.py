"""Bad input of /v1/responses, where nothing is stored."""

from typing import Any

from tests.support.responses import WEATHER
from tests.unit.gateway.bad_input import RESPONSES, USER, Bad

CALL: dict[str, Any] = {"type": "function_call", "call_id": "c1", "name": "f", "arguments": "{}"}
RESULT: dict[str, Any] = {"type": "function_call_output", "call_id": "c1", "output": "22"}
CUSTOM: dict[str, Any] = {"type": "custom", "name": "f"}
GRAMMAR = {"type": "grammar", "syntax": "regex", "definition": "a+"}
NAMED = {"type": "function", "name": "get_weather"}
SCHEMA = {"type": "json_schema", "name": "a", "schema": {"type": "object"}}


def bad(fields: dict[str, Any], param: str, says: str, code: str = "invalid_value", status: int = 400) -> Bad:
    return Bad(fields, param, says, code, over_grpc=False, status=status, path=RESPONSES)


def item(*items: Any, at: str, says: str, code: str = "invalid_value") -> Bad:
    """`at`: what of the input is at fault."""
    return bad({"input": list(items)}, f"input{at}", says, code)


def part(says: str, at: str = "type", **fields: Any) -> Bad:
    return item({"role": "user", "content": [fields]}, at=f"[0].content[0].{at}", says=says)


def tool(*tools: Any, at: str, says: str) -> Bad:
    return bad({"tools": list(tools)}, f"tools{at}", says)


def choice(value: Any, at: str, says: str) -> Bad:
    return bad({"tools": [WEATHER], "tool_choice": value}, f"tool_choice{at}", says)


BAD_RESPONSES = [
    # Values and limits, as of a chat.
    bad({"model": "gpt-9"}, "model", "does not exist", "model_not_found", 404),
    bad({"model": "m" * 100_000}, "model", "does not exist", "model_not_found", 404),
    bad({"max_output_tokens": 0}, "max_output_tokens", "from 1 to"),
    bad({"max_output_tokens": 2**31}, "max_output_tokens", "from 1 to"),
    bad({"max_output_tokens": 4096}, "max_output_tokens", "4096", "context_length_exceeded"),
    bad({"temperature": 2.5}, "temperature", "from 0 to 2, not 2.5"),
    bad({"top_p": 1.5}, "top_p", "from 0 to 1"),
    bad({"top_k": -2}, "top_k", "0 (off) or positive"),
    bad({"min_p": 2.0}, "min_p", "from 0 to 1"),
    bad({"frequency_penalty": -2.5}, "frequency_penalty", "from -2 to 2"),
    bad({"presence_penalty": 2.5}, "presence_penalty", "from -2 to 2"),
    bad({"repetition_penalty": 0.0}, "repetition_penalty", "from 0.01 to 100"),
    bad({"seed": 2**63}, "seed", "64-bit"),
    bad({"logit_bias": {"201088": 1.0}}, "logit_bias", "token 201088; the vocabulary ends at 201087"),
    bad({"logit_bias": {"x": 1}}, "logit_bias", "keys must be token ids"),
    bad({"stop": ["a", ""]}, "stop[1]", "not be empty"),
    bad({"stop": ["a"] * 5}, "stop", "5 elements; at most 4"),
    bad({"n": 2}, "n", "must be 1"),
    bad({"include": ["message.output_text.logprobs"], "top_logprobs": 21}, "top_logprobs", "from 0 to 20, not 21"),
    bad({"top_logprobs": 2}, "top_logprobs", "only allowed with"),
    bad({"thinking_token_budget": -1}, "thinking_token_budget", "from 0 to"),
    bad({"service_tier": "gold"}, "service_tier", "must be 'auto'"),
    bad({"priority": 2**31}, "priority", "signed 32-bit"),
    bad({"max_tool_calls": 0}, "max_tool_calls", "must be positive"),
    bad({"metadata": {str(i): "x" for i in range(17)}}, "metadata", "17 pairs; at most 16"),
    bad({"metadata": {"k" * 65: "x"}}, "metadata", "at most 64 characters"),
    bad({"metadata": {"k": "x" * 513}}, "metadata", "values 512"),
    # Wrong types and missing fields.
    bad({"model": None}, "model", "is required"),
    bad({"model": 5}, "model", "must be a string"),
    bad({"input": None}, "input", "at least one message"),
    bad({"input": []}, "input", "at least one message"),
    bad({"input": 5}, "input", "must be a string or an array"),
    bad({"input": {"role": "user"}}, "input", "must be a string or an array"),
    bad({"instructions": ["x"]}, "instructions", "must be a string"),
    bad({"temperature": "1"}, "temperature", "must be a number"),
    bad({"max_output_tokens": 5.0}, "max_output_tokens", "must be an integer"),
    bad({"stream": "yes"}, "stream", "must be true or false"),
    bad({"store": 1}, "store", "must be true or false"),
    bad({"background": "yes"}, "background", "must be true or false"),
    bad({"previous_response_id": 5}, "previous_response_id", "must be a string"),
    bad({"truncation": "middle"}, "truncation", "must be"),
    bad({"metadata": {"k": 5}}, "metadata.k", "must be a string"),
    bad({"include": "reasoning.encrypted_content"}, "include", "must be an array"),
    bad({"include": [5]}, "include[0]", "must be a string"),
    bad({"include": ["everything"]}, "include[0]", "must be one of"),
    bad({"reasoning": "high"}, "reasoning", "must be an object"),
    bad({"text": "json"}, "text", "must be an object"),
    bad({"tools": {}}, "tools", "must be an array"),
    bad({"tool_choice": 5}, "tool_choice", "must be"),
    # Known to OpenAI's clients, not served.
    bad({"conversation": "conv_1"}, "conversation", "use 'previous_response_id'"),
    bad({"prompt": {"id": "p"}}, "prompt", "no prompt templates"),
    bad({"context_management": [{"type": "compaction"}]}, "context_management", "'truncation'"),
    bad({"moderation": {}}, "moderation", "not supported"),
    bad({"reasoning": {"effort": "minimal"}}, "reasoning.effort", "'low', 'medium' or 'high'"),
    bad({"reasoning": {"context": "all_turns"}}, "reasoning.context", "'current_turn'"),
    bad({"reasoning": {"mode": "pro"}}, "reasoning.mode", "must be 'standard'"),
    bad({"text": {"verbosity": "low"}}, "text.verbosity", "must be 'medium'"),
    bad({"stream_options": {"include_obfuscation": True}}, "stream_options", "'stream': true"),
    # Not known to anybody, or to another API.
    bad({"inputs": "Hi"}, "inputs", "did you mean 'input'"),
    bad({"messages": [USER]}, "messages", "is not a known field"),
    bad({"max_tokens": 5}, "max_tokens", "is not a known field"),
    bad({"x" * 100_000: 1}, "x" * 200, "is not a known field"),
    # Where no store is.
    bad({"store": True}, "store", "no store"),
    bad({"background": True}, "background", "no store"),
    bad({"background": True, "store": False}, "background", "needs 'store': true"),
    bad({"previous_response_id": "resp_1"}, "previous_response_id", "no store"),
    item({"type": "item_reference", "id": "msg_1"}, at="[0].id", says="no store"),
    # Items.
    item("Hi", at="[0]", says="must be an object"),
    item(None, at="[0]", says="must be an object"),
    item({"role": "tool", "content": "x"}, at="[0].role", says="'user'"),
    item({"content": "x"}, at="[0].role", says="is required"),
    item({"role": "user"}, at="[0].content", says="is required"),
    item({"role": "user", "content": 5}, at="[0].content", says="must be a string or an array"),
    item({"type": "mcp_call"}, at="[0].type", says="'mcp_call' is not supported"),
    item({"type": 5}, at="[0].type", says="is not supported"),
    item({"type": "x" * 100_000}, at="[0].type", says="is not supported"),
    item({"type": "reasoning", "content": "x"}, at="[0].content", says="must be an array"),
    item({"type": "reasoning", "encrypted_content": "gAAA"}, at="[0].encrypted_content", says="not made by this"),
    item(USER, {"type": "function_call", "name": "f", "arguments": "{}"}, at="[1].call_id", says="is required"),
    item(USER, CALL | {"arguments": {}}, at="[1].arguments", says="must be a string"),
    item(USER, CALL | {"name": "f to=g"}, RESULT, at="[1].name", says="1 to 64 characters"),
    item(USER, CALL | {"name": "f<|call|>"}, RESULT, at="[1].name", says="1 to 64 characters"),
    item(USER, RESULT, at="[1].call_id", says="does not match"),
    item(USER, CALL, RESULT | {"call_id": "c9"}, at="[2].call_id", says="does not match"),
    item(USER, CALL, RESULT | {"output": 5}, at="[2].output", says="must be a string or an array"),
    item(USER, {"type": "custom_tool_call", "call_id": "c", "name": "f"}, at="[1].input", says="is required"),
    item({"type": "item_reference"}, at="[0].id", says="is required"),
    item(USER | {"phase": "first"}, at="[0].phase", says="'commentary' or 'final_answer'"),
    part("text alone", type="input_image", image_url="data:"),
    part("text alone", type="input_file", file_id="f"),
    part("is required", at="text", type="input_text"),
    part("must be a string", at="text", type="input_text", text=5),
    part("is required", text="x"),
    # Giant and endless.
    bad({"input": " a" * 5000}, "input", "4096", "context_length_exceeded"),
    bad({"input": "a" * 200_000}, "input", "200000", "context_length_exceeded"),
    bad({"instructions": " a" * 5000}, "input", "4096", "context_length_exceeded"),
    bad({"input": [USER] * 2000}, "input", "2000", "context_length_exceeded"),
    bad({"input": [USER] * 4097}, "input", "4097 items; at most 4096"),
    item({"role": "user", "content": [{"type": "input_text", "text": ""}] * 20_000}, at="", says="20000 parts"),
    item(CALL | {"arguments": "x" * 100_000}, at="", says="4096", code="context_length_exceeded"),
    # Tools.
    tool("f", at="[0]", says="must be an object"),
    tool({"name": "f"}, at="[0].type", says="is required"),
    tool({"type": "function"}, at="[0].name", says="is required"),
    tool({"type": "function", "function": {"name": "f"}}, at="[0].name", says="is required"),
    tool({"type": "function", "name": "two words"}, at="[0].name", says="1 to 64 characters"),
    tool({"type": "function", "name": "f<|channel|>"}, at="[0].name", says="1 to 64 characters"),
    tool({"type": "function", "name": "f", "parameters": []}, at="[0].parameters", says="must be an object"),
    tool(WEATHER, WEATHER, at="[1].name", says="another tool's"),
    tool({"type": "mcp", "server_url": "http://x"}, at="[0].type", says="does not run on this server"),
    tool({"type": "x" * 100_000}, at="[0].type", says="does not run on this server"),
    tool({"type": "namespace", "name": "maps"}, at="[0]", says="'name' and 'tools'"),
    tool(
        {"type": "namespace", "name": "maps", "tools": [{"type": "mcp"}]}, at="[0].tools[0].type", says="does not run"
    ),
    tool(CUSTOM | {"format": {"type": "json"}}, at="[0].format.type", says="'text' or 'grammar'"),
    tool(CUSTOM | {"format": {"type": "grammar", "syntax": "ebnf"}}, at="[0].format.syntax", says="'lark' or 'regex'"),
    tool(CUSTOM | {"format": {"type": "grammar", "syntax": []}}, at="[0].format.syntax", says="'lark' or 'regex'"),
    tool(CUSTOM | {"format": GRAMMAR | {"definition": 5}}, at="[0].format.definition", says="must be a string"),
    bad({"tools": [WEATHER] * 513}, "tools", "513 elements; at most 512"),
    # Which of them, and the answer's form.
    bad({"tool_choice": "required"}, "tool_choice", "no tools to call"),
    choice("any", "", "'auto', 'none', 'required'"),
    choice({"type": "web_search"}, "", "'function', 'custom' or 'allowed_tools'"),
    choice({"type": "function"}, ".name", "must be a string"),
    choice({"type": "function", "name": "other"}, ".name", "none of 'tools'"),
    choice({"type": "function", "function": NAMED}, ".name", "must be a string"),
    choice({"type": "allowed_tools", "mode": "none", "tools": [NAMED]}, ".mode", "'auto' or 'required'"),
    choice({"type": "allowed_tools", "mode": "auto", "tools": []}, ".tools", "at least one tool"),
    choice({"type": "allowed_tools", "mode": "auto", "tools": [NAMED, 5]}, ".tools[1].name", "must be a string"),
    bad({"text": {"format": {"type": "xml"}}}, "text.format.type", "'json_schema'"),
    bad({"text": {"format": {"type": "json_schema", "name": "a"}}}, "text.format.schema", "must be an object"),
    bad({"text": {"format": SCHEMA | {"name": "a b"}}}, "text.format.name", "1 to 64 characters"),
    bad({"text": {"format": {"type": "json_schema", "json_schema": SCHEMA}}}, "text.format.name", "must be"),
]
