"""Pages of a response's input items."""

from collections.abc import Sequence
from typing import Any, Final

from chorus_cluster.errors import InvalidRequest
from chorus_cluster.gateway.responses.items import Item

MAX_LISTED: Final = 100
DEFAULT_LISTED: Final = 20


def check_number(field: str, number: int, low: int, high: int) -> int:
    """Errors: InvalidRequest unless it is from `low` to `high`."""
    if not low <= number <= high:
        raise InvalidRequest(field, f"must be a whole number from {low} to {high}")
    return number


def page_of(items: Sequence[Item], limit: int, order: str, after: str | None) -> dict[str, Any]:
    """The list object of the `limit` items behind `after`. Errors: InvalidRequest."""
    if order not in ("asc", "desc"):
        raise InvalidRequest("order", "must be 'asc' or 'desc'")
    if order == "desc":
        items = items[::-1]
    if after is not None:
        ids = [item["id"] for item in items]
        if after not in ids:
            raise InvalidRequest("after", "is no item of this response")
        items = items[ids.index(after) + 1 :]
    page = [{"status": "completed", **item} for item in items[:limit]]
    return {
        "object": "list",
        "data": page,
        "first_id": page[0]["id"] if page else None,
        "last_id": page[-1]["id"] if page else None,
        "has_more": len(items) > limit,
    }
