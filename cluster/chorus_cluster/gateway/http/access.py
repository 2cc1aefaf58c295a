"""API keys on HTTP: what a request needs is decided on the path that the router will see, before it does.

So everything is closed but health, whatever routes there are or come to be.
"""

from typing import Final

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Send
from starlette.types import Scope as AsgiScope

from chorus_cluster.auth.keys import Scope
from chorus_cluster.errors import ChorusError
from chorus_cluster.gateway.access import Access
from chorus_cluster.gateway.http.io import error_response

OWNER: Final = "chorus.owner"
OPEN_PATHS: Final = ("/health",)
_SCOPES: Final = {"/metrics": Scope.METRICS}
# RFC 6455, 7.4.1.
_POLICY_VIOLATION: Final = 1008


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
