"""The id that a request carries through logs and back to its client, as x-request-id."""

import re
import uuid
from contextvars import ContextVar

_SANE = re.compile(r"[A-Za-z0-9._:-]{1,128}")

# Of the request that the current task works for; for log records.
request_id: ContextVar[str] = ContextVar("request_id", default="-")


def new_request_id(offered: str | None) -> str:
    """The client's own id for the request where it is sane, else a new one."""
    if offered is not None and _SANE.fullmatch(offered):
        return offered
    return uuid.uuid4().hex
