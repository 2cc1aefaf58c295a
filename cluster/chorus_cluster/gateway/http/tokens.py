"""/tokenize and /detokenize, as vLLM has them: their bodies, and their routes."""

from typing import Any

from fastapi import FastAPI, Request
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response

from chorus_cluster.errors import InvalidRequest
from chorus_cluster.gateway.chat import ChatService
from chorus_cluster.gateway.http.io import json_response, read_body
from chorus_cluster.gateway.openai.models import Elements
from chorus_cluster.gateway.openai.parse import parse_body, parse_chat_body, parse_json
from chorus_cluster.gateway.request import ChatRequest
from chorus_cluster.gateway.tokens import detokenize, tokenize
from chorus_vocabulary.token_table import token_text


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
        openapi_extra=body_of(
            {"anyOf": [TokenizePrompt.model_json_schema(), {"$ref": "#/components/schemas/TokenizeChatRequest"}]}
        ),
        tags=["tokens"],
    )
    async def tokenize_body(request: Request) -> Response:
        """Token ids of a text, or of the prompt that a chat completion with this body would send the model."""
        body = await read_body(request.scope, request.receive, max_body_bytes)
        model, prompt, with_texts = parse_tokenize_body(parse_json(body))
        done = await tokenize(service, model, prompt)
        answer = {"count": len(done.token_ids), "max_model_len": done.max_model_len, "tokens": list(done.token_ids)}
        return json_response(answer | {"token_strs": [*map(token_text, done.token_ids)] if with_texts else None})

    @app.post(
        "/detokenize",
        response_model=None,
        responses={200: {"model": DetokenizeAnswer}, **errors},
        openapi_extra=body_of(DetokenizeBody.model_json_schema()),
        tags=["tokens"],
    )
    async def detokenize_body(request: Request) -> Response:
        """What token ids spell, special ones by their names."""
        value = parse_json(await read_body(request.scope, request.receive, max_body_bytes))
        body = parse_body(value, DetokenizeBody)
        return json_response({"prompt": await detokenize(service, body.model or "", body.tokens)})


def parse_tokenize_body(value: Any) -> tuple[str, str | ChatRequest, bool]:
    """The model (empty: the one that is served), what to tokenize, and whether tokens' texts are wanted.

    Errors: `InvalidRequest`.
    """
    if not isinstance(value, dict) or value.get("messages") is None:
        body = parse_body(value, TokenizePrompt)
        return body.model or "", body.prompt, bool(body.return_token_strs)
    if value.get("prompt") is not None:
        raise InvalidRequest("prompt", "is not allowed beside 'messages'")
    names = TokenizeChat.model_fields
    options = parse_body({name: item for name, item in value.items() if name in names}, TokenizeChat)
    if options.add_generation_prompt is False:
        raise InvalidRequest("add_generation_prompt", "must be true: the model is always asked to go on")
    chat = {name: item for name, item in value.items() if name not in names}
    chat["model"] = "" if chat.get("model") is None else chat["model"]
    request = parse_chat_body(chat).request
    return request.model, request, bool(options.return_token_strs)


def tokenize_chat_schema(chat: dict[str, Any]) -> dict[str, Any]:
    """The JSON schema of a chat completion's body with the options of /tokenize beside it."""
    options = TokenizeChat.model_json_schema()["properties"]
    return chat | {"title": "TokenizeChatRequest", "properties": chat["properties"] | options, "required": ["messages"]}


def body_of(schema: dict[str, Any]) -> dict[str, Any]:
    """A route's body, for the OpenAPI pages."""
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}
