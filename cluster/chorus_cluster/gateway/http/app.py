"""The HTTP surface: chat completions, responses, completions and models as OpenAI's, the tokenizer as vLLM's, health,
metrics, and the OpenAPI pages."""

from collections.abc import Awaitable, Callable
from typing import Any

from fastapi import FastAPI, Request
from fastapi.openapi.utils import get_openapi
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.routing import Match, Route

from chorus_cluster.errors import ChorusError, ModelNotFound
from chorus_cluster.gateway.access import Access
from chorus_cluster.gateway.chat import ChatService
from chorus_cluster.gateway.deadline import TIMEOUT_FIELD, deadline_of
from chorus_cluster.gateway.http.access import OPEN_PATHS, OWNER, AccessMiddleware
from chorus_cluster.gateway.http.generation import GenerationResponse
from chorus_cluster.gateway.http.io import RequestMiddleware, error_response, json_response, read_body
from chorus_cluster.gateway.http.responses import add_response_routes
from chorus_cluster.gateway.http.slow_clients import ClientTimeoutMiddleware
from chorus_cluster.gateway.http.tokens import add_token_routes, body_of, tokenize_chat_schema
from chorus_cluster.gateway.openai import models as wire
from chorus_cluster.gateway.openai.chat import ChatForm
from chorus_cluster.gateway.openai.chunks import ChatCompletionChunk, event_stream
from chorus_cluster.gateway.openai.completions import (
    CompletionBody,
    CompletionForm,
    TextCompletion,
    TextCompletionChunk,
)
from chorus_cluster.gateway.openai.parse import DEFAULT_MAX_BODY_BYTES, parse_chat_body, parse_json
from chorus_cluster.gateway.responses.models import ResponsesBody
from chorus_cluster.gateway.responses.service import ResponsesService
from chorus_cluster.gateway.slow_clients import DEFAULT_CLIENT_TIMEOUT_S
from chorus_protos.v1 import engine_pb2

_ERRORS: dict[int | str, dict[str, Any]] = {
    400: {"model": wire.ErrorBody, "description": "The request can't be served as it is; `param` names the field."},
    401: {"model": wire.ErrorBody, "description": "No API key, or none that is in force, where keys are asked for."},
    403: {"model": wire.ErrorBody, "description": "The API key is not for this."},
    404: {"model": wire.ErrorBody, "description": "No such model, or no such response."},
    408: {"model": wire.ErrorBody, "description": "The body did not come in time."},
    413: {"model": wire.ErrorBody, "description": "The body is too large."},
    429: {"model": wire.ErrorBody, "description": "All queues are full; Retry-After says when to come back."},
    500: {"model": wire.ErrorBody, "description": "The request failed."},
    503: {"model": wire.ErrorBody, "description": "No worker can take the request."},
    504: {"model": wire.ErrorBody, "description": f"The time that {TIMEOUT_FIELD} gave has passed."},
}
# The schemas that no route's annotations name: bodies that we read ourselves, and chunks.
_UNNAMED_SCHEMAS: dict[str, type[BaseModel]] = {
    "ChatCompletionRequest": wire.ChatCompletionBody,
    "CompletionRequest": CompletionBody,
    "ResponseRequest": ResponsesBody,
    "ChatCompletionChunk": ChatCompletionChunk,
    "TextCompletionChunk": TextCompletionChunk,
}
_KEY_ERRORS: dict[int | str, dict[str, Any]] = {status: _ERRORS[status] for status in (401, 403)}
_TIMEOUT_PARAMETER = {
    "name": TIMEOUT_FIELD,
    "in": "header",
    "description": "Seconds after which the request ends, answered or not.",
    "schema": {"type": "number", "exclusiveMinimum": 0},
}


def build_http_app(
    service: ChatService,
    *,
    responses: ResponsesService | None = None,
    metrics_page: Callable[[], Awaitable[bytes]] | None = None,
    access: Access | None = None,
    max_body_bytes: int = DEFAULT_MAX_BODY_BYTES,
    client_timeout_s: float = DEFAULT_CLIENT_TIMEOUT_S,
    sends_request_id: bool = True,
) -> FastAPI:
    """Builds the application that serves `service`.

    `responses` serves /v1/responses; by default, without a store. `metrics_page` makes the body of /metrics; by default
    this gateway's own metrics. `access` decides who may ask; by default, everyone. `client_timeout_s`: how long a
    client may take to send its request, and read nothing of its answer. `sends_request_id` is off where the server
    around it adds x-request-id to responses.
    """
    app = FastAPI(title="Chorus", version="1", description="Chat completions by gpt-oss models.")
    # The last one added is the outermost.
    access = access or Access()
    app.add_middleware(AccessMiddleware, access=access)
    app.add_middleware(ClientTimeoutMiddleware, timeout_s=client_timeout_s)
    app.add_middleware(RequestMiddleware, metrics=service.metrics, sends_request_id=sends_request_id)
    app.add_exception_handler(ChorusError, _on_error)
    app.add_exception_handler(HTTPException, _on_http_exception)
    _add_chat_route(app, service, max_body_bytes)
    add_response_routes(
        app,
        responses or ResponsesService(service),
        max_body_bytes,
        _deadline,
        created=_generation_extra("ResponseRequest"),
        errors=_ERRORS,
    )
    _add_completion_route(app, service, max_body_bytes)
    _add_model_routes(app, service)
    add_token_routes(
        app, service, max_body_bytes, {status: _ERRORS[status] for status in (400, 401, 403, 404, 408, 413, 503)}
    )
    _add_operations_routes(app, service, metrics_page)
    app.openapi = lambda: _openapi(app, access)  # type: ignore[method-assign]
    return app


def _generation_extra(body: str) -> dict[str, Any]:
    """What the OpenAPI pages say of a route that reads a body of this schema itself."""
    return body_of({"$ref": f"#/components/schemas/{body}"}) | {"parameters": [_TIMEOUT_PARAMETER]}


def _add_chat_route(app: FastAPI, service: ChatService, max_body_bytes: int) -> None:
    @app.post(
        "/v1/chat/completions",
        response_model=None,
        responses={200: {"model": wire.ChatCompletion, "content": event_stream("ChatCompletionChunk")}, **_ERRORS},
        openapi_extra=_generation_extra("ChatCompletionRequest"),
        tags=["chat"],
        summary="Create a chat completion",
    )
    async def create_chat_completion(request: Request) -> Response:
        """With `stream`, the answer is a stream of server-sent events that ends with `data: [DONE]`."""
        deadline = _deadline(request)
        body = await read_body(request.scope, request.receive, max_body_bytes)
        parsed = parse_chat_body(parse_json(body))
        return GenerationResponse(ChatForm(service, parsed), deadline, request.scope[OWNER])


def _add_completion_route(app: FastAPI, service: ChatService, max_body_bytes: int) -> None:
    @app.post(
        "/v1/completions",
        response_model=None,
        responses={200: {"model": TextCompletion, "content": event_stream("TextCompletionChunk")}, **_ERRORS},
        openapi_extra=_generation_extra("CompletionRequest"),
        tags=["completions"],
        summary="Complete raw prompts",
    )
    async def create_completion(request: Request) -> Response:
        """Without harmony: the model goes on from the prompt as it is."""
        deadline = _deadline(request)
        body = await read_body(request.scope, request.receive, max_body_bytes)
        return GenerationResponse(CompletionForm(service, parse_json(body)), deadline, request.scope[OWNER])


def _deadline(request: Request) -> float | None:
    """Seconds since the epoch by which the answer must be whole; None: no limit."""
    text = request.headers.get(TIMEOUT_FIELD)
    return None if text is None else deadline_of(text)


def _add_model_routes(app: FastAPI, service: ChatService) -> None:
    @app.get(
        "/v1/models",
        response_model=None,
        responses={200: {"model": wire.ModelList}, **_KEY_ERRORS, 503: _ERRORS[503]},
        tags=["models"],
    )
    async def list_models() -> Response:
        info = await service.models.get()
        return json_response({"object": "list", "data": [_model_body(info, service.started_at)]})

    @app.get(
        "/v1/models/{model:path}",
        response_model=None,
        responses={200: {"model": wire.Model}, **_KEY_ERRORS, 404: _ERRORS[404], 503: _ERRORS[503]},
        tags=["models"],
    )
    async def get_model(model: str) -> Response:
        info = await service.models.get()
        if model != info.model:
            raise ModelNotFound(model)
        return json_response(_model_body(info, service.started_at))


def _model_body(info: engine_pb2.ModelInfo, created: int) -> dict[str, Any]:
    return {
        "id": info.model,
        "object": "model",
        "created": created,
        "owned_by": "chorus",
        "max_model_len": info.max_model_len,
    }


def _add_operations_routes(
    app: FastAPI, service: ChatService, metrics_page: Callable[[], Awaitable[bytes]] | None
) -> None:
    @app.get("/health", response_model=None, responses={503: _ERRORS[503]}, tags=["operations"])
    async def health() -> Response:
        """200 while a worker answers."""
        await service.check_health()
        return json_response({"status": "ok"})

    @app.get(
        "/metrics",
        response_model=None,
        response_class=Response,
        responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}, **_KEY_ERRORS},
        tags=["operations"],
    )
    async def metrics() -> Response:
        """Prometheus' text format."""
        page = service.metrics.exposition() if metrics_page is None else await metrics_page()
        return Response(page, media_type=CONTENT_TYPE_LATEST)


async def _on_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ChorusError)
    return error_response(error)


async def _on_http_exception(request: Request, error: Exception) -> Response:
    """Unknown paths and methods."""
    assert isinstance(error, HTTPException)
    code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "http_error")
    message = f"{error.detail}: {request.method} {request.url.path}"
    body = {"error": {"message": message, "type": "invalid_request_error", "param": None, "code": code}}
    headers = dict(error.headers or {})
    if error.status_code == 405:
        # The framework's own names the methods of the first route that has the path.
        headers["Allow"] = ", ".join(sorted(_methods_of(request)))
    return json_response(body, error.status_code, headers)


def _methods_of(request: Request) -> set[str]:
    """What may be done with a request's path."""
    routes = (route for route in request.app.routes if isinstance(route, Route))
    return {
        method for route in routes if route.matches(request.scope)[0] != Match.NONE for method in route.methods or ()
    }


def _openapi(app: FastAPI, access: Access) -> dict[str, Any]:
    """FastAPI's schema, with the bodies that we parse ourselves, and without errors of its own."""
    if app.openapi_schema is None:
        schema = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
        schemas = schema.setdefault("components", {}).setdefault("schemas", {})
        for name, model in _UNNAMED_SCHEMAS.items():
            body = model.model_json_schema(ref_template="#/components/schemas/{model}")
            schemas.update(body.pop("$defs", {}))
            schemas[name] = body
        schemas["TokenizeChatRequest"] = tokenize_chat_schema(schemas["ChatCompletionRequest"])
        # FastAPI names these wherever a path has a parameter; ours are any string.
        for operations in schema["paths"].values():
            for operation in operations.values():
                operation["responses"].pop("422", None)
        for name in ("HTTPValidationError", "ValidationError"):
            schemas.pop(name, None)
        schema["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        schema["security"] = [{"key": []}] if access.asks_for_keys else [{}, {"key": []}]
        for path in OPEN_PATHS:
            schema["paths"][path]["get"]["security"] = []
        app.openapi_schema = schema
    return app.openapi_schema
