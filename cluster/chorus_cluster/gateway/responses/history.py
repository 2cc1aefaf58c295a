"""What a request refers to: the responses that it goes on from, and items of stored ones."""

from collections.abc import Sequence
from typing import Final

from chorus_cluster.errors import ContextTooLong, InvalidRequest, ResponseNotFound
from chorus_cluster.gateway.responses.ids import is_response_id, response_of
from chorus_cluster.gateway.responses.items import Item
from chorus_cluster.gateway.responses.request import ResponseRequest
from chorus_cluster.store.models import ACTIVE_STATUSES
from chorus_cluster.store.responses import Link, ResponseStore

NO_STORE: Final = "this server keeps no responses: it has no store (store.url)"
_PREVIOUS: Final = "previous_response_id"


class History:
    """Finds it in a store, if there is one; whatever is another owner's is not found."""

    def __init__(self, store: ResponseStore | None) -> None:
        self._store = store

    async def before(self, request: ResponseRequest, owner: str) -> list[Item]:
        """The items of the previous response and of all before it, oldest first.

        Errors: ResponseNotFound, InvalidRequest, Unavailable.
        """
        id = request.previous_id
        if id is None:
            return []
        if self._store is None:
            raise InvalidRequest(_PREVIOUS, NO_STORE)
        chain = await self._store.chain(id, owner) if is_response_id(id) else None
        if chain is None:
            raise ResponseNotFound(id, _PREVIOUS)
        if chain.is_cut and not request.truncate:
            raise ContextTooLong(_PREVIOUS, "goes on from more than any context holds")
        if not chain.is_whole and not chain.is_cut:
            raise InvalidRequest(_PREVIOUS, "goes on from a response that was deleted or has expired")
        if chain.links[-1].status in ACTIVE_STATUSES:
            raise InvalidRequest(_PREVIOUS, "is of a response that has not ended yet")
        return items_of(chain.links)

    async def input_items(self, id: str, owner: str) -> list[Item]:
        """What the model was given for a response. Errors: ResponseNotFound, Unavailable."""
        chain = await self._store.chain(id, owner) if self._store is not None and is_response_id(id) else None
        if chain is None:
            raise ResponseNotFound(id)
        return [*items_of(chain.links[:-1]), *chain.links[-1].input_items]

    async def resolved(self, items: Sequence[Item], owner: str) -> list[Item]:
        """The items, with what is referred to in the place of references. Errors: InvalidRequest, Unavailable."""
        outputs: dict[str, dict[str, Item]] = {}
        found = []
        for i, item in enumerate(items):
            if item["type"] == "item_reference":
                item = await self._referred(item["id"], f"input[{i}].id", owner, outputs)
            found.append(item)
        return found

    async def _referred(self, item_id: str, field: str, owner: str, outputs: dict[str, dict[str, Item]]) -> Item:
        """`outputs`: items by their ids, of the responses that were read already."""
        if self._store is None:
            raise InvalidRequest(field, NO_STORE)
        id = response_of(item_id)
        if id is not None and id not in outputs:
            stored = await self._store.get(id, owner)
            outputs[id] = {} if stored is None else {item["id"]: item for item in stored.body["output"]}
        if id is None or item_id not in outputs[id]:
            raise InvalidRequest(field, "is of no item in the output of a stored response")
        return outputs[id][item_id]


def items_of(links: Sequence[Link]) -> list[Item]:
    return [item for link in links for item in (*link.input_items, *link.output)]
