"""What rows of the table of bad input are made of."""

from dataclasses import dataclass
from typing import Any

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
TOKENIZE = "/tokenize"
DETOKENIZE = "/detokenize"
RESPONSES = "/v1/responses"
USER = {"role": "user", "content": "Hi"}
# What a row changes; its other fields are in order.
BODIES: dict[str, dict[str, Any]] = {
    CHAT: {"model": "fake-model", "messages": [USER]},
    COMPLETIONS: {"model": "fake-model", "prompt": "Hi"},
    TOKENIZE: {"prompt": "Hi"},
    DETOKENIZE: {"tokens": [1]},
    RESPONSES: {"model": "fake-model", "input": "Hi"},
}
Stub = "chat_pb2_grpc.ChatServiceAsyncStub"


@dataclass(frozen=True)
class Bad:
    fields: dict[str, Any]
    # The field at fault; a part of the message beside it.
    param: str
    says: str
    code: str = "invalid_value"
    # False: protobuf's types don't let it be said.
    over_grpc: bool = True
    status: int = 400
    path: str = CHAT

    @property
    def body(self) -> dict[str, Any]:
        return BODIES[self.path] | self.fields
