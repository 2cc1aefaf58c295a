"""How long a request may take, as its client says in a header, or over gRPC in metadata of the same name."""

import math
import time
from typing import Final

from chorus_cluster.errors import InvalidRequest

TIMEOUT_FIELD: Final = "x-request-timeout-s"


def deadline_of(timeout_s: str) -> float:
    """Seconds since the epoch by which an answer must be whole that was asked for now. Errors: InvalidRequest."""
    try:
        seconds = float(timeout_s)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise InvalidRequest(TIMEOUT_FIELD, "must be a positive number of seconds")
    return time.time() + seconds
