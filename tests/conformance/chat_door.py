"""A chat completion that is served, and what the model is shown of it."""

from typing import Any

from tests.conformance.rows import Door, Reply

from chorus_cluster.harmony.marked_text import decode_marked

DOOR = Door(
    "/v1/chat/completions",
    {"model": "fake-model", "messages": [{"role": "user", "content": "Hi"}], "seed": 1},
)
FUNCTION: dict[str, Any] = {"name": "get_weather", "parameters": {"type": "object"}}
TOOL = {"type": "function", "function": FUNCTION}
DECLARED = "namespace functions"
TOOLS = [TOOL, {"type": "function", "function": {"name": "get_time"}}]


def prompt_of(reply: Reply) -> str:
    return decode_marked(list(reply.requests[0].prompt_token_ids))


async def prompt(**fields: Any) -> str:
    return prompt_of(await DOOR.served(fields))
