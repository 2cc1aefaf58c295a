"""Texts and conversations to token ids, and back, behind HTTP and gRPC alike."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from chorus_cluster.gateway.chat import ChatService, encode_prompt
from chorus_cluster.gateway.request import ChatRequest
from chorus_cluster.gateway.validate import check_model, check_token_ids
from chorus_cluster.harmony.marked_text import decode_marked
from chorus_protos.v1 import engine_pb2


@dataclass(frozen=True, slots=True)
class Tokenized:
    """`max_model_len`: how many tokens the model takes, answer included."""

    token_ids: Sequence[int]
    max_model_len: int


async def tokenize(service: ChatService, model: str, prompt: str | ChatRequest) -> Tokenized:
    """The token ids of a text, in which harmony's markup may be spelled out, or of what a chat request sends the model.

    `model`: empty for the one that is served. Errors: RequestError, Unavailable.
    """
    info = await _model(service, model)
    if isinstance(prompt, ChatRequest):
        return Tokenized(service.render(replace(prompt, model=info.model), info), info.max_model_len)
    return Tokenized(encode_prompt(prompt, "prompt", info) if prompt else (), info.max_model_len)


async def detokenize(service: ChatService, model: str, token_ids: Sequence[int]) -> str:
    """What tokens spell, with harmony's markup spelled out. Errors: as `tokenize`."""
    info = await _model(service, model)
    check_token_ids(token_ids, "tokens", info)
    return decode_marked(token_ids)


async def _model(service: ChatService, name: str) -> engine_pb2.ModelInfo:
    info = await service.models.get()
    if name:
        check_model(name, info)
    return info
