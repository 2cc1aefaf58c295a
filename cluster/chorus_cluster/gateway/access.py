"""Who may ask for what, over HTTP and gRPC alike.

Without a key file everyone may do everything. With one, everything is closed but health.
"""

import time
from collections.abc import Callable
from typing import Final

from chorus_cluster.auth.key_file import KeyFile
from chorus_cluster.auth.keys import Scope
from chorus_cluster.errors import PermissionDenied, Unauthenticated

_NO_KEY: Final = "This server takes requests with an API key only: Authorization: Bearer KEY."
_UNKNOWN_KEY: Final = "The API key is not known here."
_EXPIRED_KEY: Final = "The API key has expired."


class Access:
    """Checks API keys. `keys`: None where there are none. `clock` returns seconds since the epoch."""

    def __init__(self, keys: KeyFile | None = None, clock: Callable[[], float] = time.time) -> None:
        self._keys = keys
        self._clock = clock

    @property
    def asks_for_keys(self) -> bool:
        return self._keys is not None

    def owner(self, authorization: str | None, scope: Scope) -> str:
        """Returns whose key it is that the value of an `authorization` header names; empty where there are no keys.

        Errors: `Unauthenticated`; `PermissionDenied` if the key is in force and `scope` is not among what it may do.
        """
        if self._keys is None:
            return ""
        scheme, _, key = (authorization or "").strip().partition(" ")
        if scheme.lower() != "bearer" or not key.strip():
            raise Unauthenticated(_NO_KEY)
        found = self._keys.ring().find(key.strip())
        if found is None:
            raise Unauthenticated(_UNKNOWN_KEY)
        if self._clock() >= found.expires_unix_s:
            raise Unauthenticated(_EXPIRED_KEY)
        if scope not in found.scopes:
            raise PermissionDenied(f"The API key {found.id!r} lacks the scope {scope.value!r}.")
        return found.owner
