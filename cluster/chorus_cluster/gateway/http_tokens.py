"""/tokenize and /detokenize, as vLLM has them: their bodies, and their routes."""

from typing import Any, TypeVar

from fastapi import FastAPI, Request
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.responses import Response

from chorus_cluster.errors import InvalidRequest
from chorus_cluster.gateway.chat import ChatService
from chorus_cluster.gateway.http_io import json_response, read_body
from chorus_cluster.gateway.http_models import Elements
from chorus_cluster.gateway.parse import parse_chat_body, parse_json, to_invalid_request, unknown_field
from chorus_cluster.gateway.request import ChatRequest
from chorus_cluster.gateway.tokens import detokenize, tokenize
from chorus_cluster.harmony.token_table import token_text

Body = TypeVar("Body", bound=BaseModel)


class _Options(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")

    return_token_strs: bool | None = Field(default=None, description="Whether `token_strs` says what each spells.")
    add_special_tokens: bool | None = Field(default=None, description="Changes nothing: gpt-oss has none to add.")


class TokenizePrompt(_Options):
    model: str | None = Field(default=None, description="Default: the one that is served.")
    prompt: str = Field(description="Names of special tokens stand for these, as in `<|start|>user<|message|>`.")


class TokenizeChat(_Options):
    """Beside these: the fields of a chat completion, whose prompt is meant."""

    add_generation_prompt: bool | None = Field(default=None, description="Only true.")


class DetokenizeBody(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")

    model: str | None = Field(default=None, description="Default: the one that is served.")
    tokens: Elements[int]


class TokenizeAnswer(BaseModel):
    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None


class DetokenizeAnswer(BaseModel):
    prompt: str


def add_token_routes(
    app: FastAPI, service: ChatService, max_body_bytes: int, errors: dict[int | str, dict[str, Any]]
) -> None:
    """`errors`: what the routes may answer besides 200, for the OpenAPI pages."""

    @app.post(
        "/tokenize",
        response_model=None,
        responses={200: {"model": TokenizeAnswer}, **errors},
        openapi_extra=_body_of(TokenizePrompt, "ChatCompletionRequest"),
        tags=["tokens"],
    )
    async def tokenize_body(request: Request) -> Response:
        """Token ids of a text, or of the prompt that a chat completion with this body would send the model; beside its
        fields, `return_token_strs` and `add_generation_prompt` (only true) may stand."""
        body = await read_body(request.scope, request.receive, max_body_bytes)
        model, prompt, with_texts = parse_tokenize_body(parse_json(body))
        done = await tokenize(service, model, prompt)
        answer = {"count": len(done.token_ids), "max_model_len": done.max_model_len, "tokens": list(done.token_ids)}
        return json_response(answer | {"token_strs": [*map(token_text, done.token_ids)] if with_texts else None})

    @app.post(
        "/detokenize",
        response_model=None,
        responses={200: {"model": DetokenizeAnswer}, **errors},
        openapi_extra=_body_of(DetokenizeBody),
        tags=["tokens"],
    )
    async def detokenize_body(request: Request) -> Response:
        """What token ids spell, special ones by their names."""
        value = _object(parse_json(await read_body(request.scope, request.receive, max_body_bytes)))
        body = _validated(DetokenizeBody, value)
        return json_response({"prompt": await detokenize(service, body.model or "", body.tokens)})


def parse_tokenize_body(value: Any) -> tuple[str, str | ChatRequest, bool]:
    """The model (empty: the one that is served), what to tokenize, and whether tokens' texts are wanted.

    Errors: `InvalidRequest`.
    """
    value = _object(value)
    if "messages" not in value:
        body = _validated(TokenizePrompt, value)
        return body.model or "", body.prompt, bool(body.return_token_strs)
    if "prompt" in value:
        raise InvalidRequest("prompt", "is not allowed beside 'messages'")
    names = TokenizeChat.model_fields
    options = _validated(TokenizeChat, {name: item for name, item in value.items() if name in names})
    if options.add_generation_prompt is False:
        raise InvalidRequest("add_generation_prompt", "must be true: the model is always asked to go on")
    chat = {"model": ""} | {name: item for name, item in value.items() if name not in names}
    request = parse_chat_body(chat).request
    return request.model, request, bool(options.return_token_strs)


def _object(value: Any) -> dict[str, Any]:
    """null means absent."""
    if not isinstance(value, dict):
        raise InvalidRequest(None, "The request body must be a JSON object.")
    return {name: item for name, item in value.items() if item is not None}


def _validated(model: type[Body], value: dict[str, Any]) -> Body:
    for name in value:
        if name not in model.model_fields:
            raise unknown_field(name, model.model_fields)
    try:
        return model.model_validate(value)
    except ValidationError as error:
        raise to_invalid_request(error, value) from None


def _body_of(model: type[BaseModel], *others: str) -> dict[str, Any]:
    schemas = [model.model_json_schema(), *({"$ref": f"#/components/schemas/{name}"} for name in others)]
    schema = {"anyOf": schemas} if others else schemas[0]
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}
