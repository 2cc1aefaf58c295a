"""A request for a response, as it is after its body has been read."""

from dataclasses import dataclass
from typing import Any

from chorus_cluster.gateway.request import ChatRequest
from chorus_cluster.gateway.responses.items import Item
from chorus_cluster.gateway.responses.tools import Toolbox


@dataclass(frozen=True, slots=True)
class ResponseRequest:
    """`chat` has everything but the messages, which follow from `instructions`, what came before, and `items`."""

    chat: ChatRequest
    items: list[Item]
    toolbox: Toolbox
    # Fields of the response object that say what was asked for.
    echo: dict[str, Any]
    instructions: str | None = None
    previous_id: str | None = None
    # None: where there is a store.
    store: bool | None = None
    background: bool = False
    stream: bool = False
    # Whether the oldest items may be left out where they don't fit.
    truncate: bool = False
    # Whether reasoning items have `encrypted_content`.
    sealed_reasoning: bool = False
