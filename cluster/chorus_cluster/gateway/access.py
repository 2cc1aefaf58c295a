"""Who may ask for what, over HTTP and gRPC alike.

Without a key file everyone may do everything. With one, everything is closed but health, whatever routes there are or
come to be: what an HTTP request needs is decided on the path that the router will see, before it does.
"""

import time
from collections.abc import Callable
from typing import Final

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Send
from starlette.types import Scope as AsgiScope

from chorus_cluster.auth.key_file import KeyFile
from chorus_cluster.auth.keys import Scope
from chorus_cluster.errors import ChorusError, PermissionDenied, Unauthenticated
from chorus_cluster.gateway.http_io import error_response

OWNER: Final = "chorus.owner"
OPEN_PATHS: Final = ("/health",)
_SCOPES: Final = {"/metrics": Scope.METRICS}
# RFC 6455, 7.4.1.
_POLICY_VIOLATION: Final = 1008
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


class AccessMiddleware:
    """Lets a request through, with its owner in `scope[OWNER]`, or answers 401 or 403 itself."""

    def __init__(self, app: ASGIApp, access: Access) -> None:
        self._app = app
        self._access = access

    async def __call__(self, scope: AsgiScope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan" or scope["path"] in OPEN_PATHS:
            await self._app(scope, receive, send)
            return
        needed = _SCOPES.get(scope["path"], Scope.INFERENCE)
        try:
            scope[OWNER] = self._access.owner(Headers(scope=scope).get("authorization"), needed)
        except ChorusError as error:
            if scope["type"] == "websocket":
                await send({"type": "websocket.close", "code": _POLICY_VIOLATION})
            else:
                await error_response(error)(scope, receive, send)
            return
        await self._app(scope, receive, send)
