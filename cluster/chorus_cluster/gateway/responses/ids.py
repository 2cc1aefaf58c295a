"""Ids of responses and items. That of an item in an output holds its response's, by which it is found again."""

import re
import secrets
from typing import Final

_PREFIXES: Final = {
    "message": "msg",
    "reasoning": "rs",
    "function_call": "fc",
    "custom_tool_call": "ctc",
    "function_call_output": "fco",
    "custom_tool_call_output": "ctco",
}
_RESPONSE: Final = re.compile(r"resp_[0-9a-f]{48}")
_OUTPUT_ITEM: Final = re.compile(r"[a-z]+_([0-9a-f]{48})[0-9a-f]{4}")


def new_response_id() -> str:
    return f"resp_{secrets.token_hex(24)}"


def is_response_id(text: str) -> bool:
    """Anything else was not made here, and may hold what a database refuses."""
    return _RESPONSE.fullmatch(text) is not None


def new_item_id(type: str) -> str:
    """Of an item that a client sent without one."""
    return f"{_PREFIXES[type]}_{secrets.token_hex(16)}"


def output_item_id(type: str, response_id: str, index: int) -> str:
    return f"{_PREFIXES[type]}_{response_id.removeprefix('resp_')}{index:04x}"


def response_of(item_id: str) -> str | None:
    """The id of the response whose output an item is, if it is one."""
    found = _OUTPUT_ITEM.fullmatch(item_id)
    return None if found is None else f"resp_{found[1]}"
