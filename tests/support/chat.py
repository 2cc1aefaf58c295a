"""Harmony written out, and small helpers for tests of the gateway."""

import asyncio
from collections.abc import Callable

from chorus_cluster.harmony.encoding import load_encoding

ANSWER = (
    "<|channel|>analysis<|message|>The user greets.<|end|>"
    "<|start|>assistant<|channel|>final<|message|>Hello there, friend.<|return|>"
)
TOOL_CALL = (
    "<|channel|>analysis<|message|>Need weather.<|end|>"
    "<|start|>assistant<|channel|>commentary to=functions.get_weather <|constrain|>json"
    '<|message|>{"city": "Paris"}<|call|>'
)


def encode(text: str) -> list[int]:
    """Token ids of harmony written out, markup included."""
    return load_encoding().encode(text, allowed_special="all")


async def eventually(condition: Callable[[], bool]) -> None:
    """Waits for what happens in a few event loop steps; the test's timeout ends it otherwise."""
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.001)
