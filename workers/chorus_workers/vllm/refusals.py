"""Refusals in the words of vLLM's protocol."""

from typing import Final, NoReturn

from chorus_protos.v1 import engine_pb2
from chorus_workers.engine.request import Refusal, RefusalReason, Refused

SAMPLING: Final = "sampling_params"
# Our names of fields that are called otherwise there.
_THEIR_NAMES: Final = {"prompt_token_ids": "tokenized.input_ids", "max_tokens": f"{SAMPLING}.max_tokens"}


def invalid(field: str, message: str) -> NoReturn:
    """Errors: Refused, always."""
    raise Refused(Refusal(RefusalReason.INVALID_ARGUMENT, f"{field} {message}", field=field))


def refusal_to_vllm(refusal: engine_pb2.Refusal, constraint: str | None) -> engine_pb2.Refusal:
    """The refusal with the field's name in vLLM's protocol, in the message too. `constraint`: the one that the request
    has, of which its guide was made."""
    field = refusal.field
    named = engine_pb2.Refusal()
    named.CopyFrom(refusal)
    if field.startswith("guide.") and constraint is not None:
        named.field = f"{SAMPLING}.{constraint}"
        named.message = f"{named.field} can't be enforced: {refusal.message.removeprefix(f'{field} ')}"
        return named
    named.field = _THEIR_NAMES.get(field, field.replace("sampling.", f"{SAMPLING}.", 1))
    if field and refusal.message.startswith(field):
        named.message = named.field + refusal.message[len(field) :]
    return named
