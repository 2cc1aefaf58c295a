"""The services of `chorus.v1` on a gRPC server, such that bytes which are no message get a clear status.

grpc answers those with UNKNOWN and the text of an exception, before any method is called. Here they reach the method as
a `Malformed`, and become the InvalidRequest that malformed JSON becomes.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from chorus_cluster.errors import InvalidRequest
from chorus_protos.v1 import chat_pb2_grpc, completion_pb2_grpc, responses_pb2_grpc


@dataclass(frozen=True, slots=True)
class Malformed:
    """Stands for a request that can't be decoded."""

    def error(self) -> InvalidRequest:
        return InvalidRequest(None, "The request is not a valid protobuf message of its type.")


def add_chat_service(servicer: Any, server: Any) -> None:
    """Does what the generated `add_ChatServiceServicer_to_server` does; Serve imports it by its name."""
    registrar: Any = _Registrar(server)
    chat_pb2_grpc.add_ChatServiceServicer_to_server(servicer, registrar)


def add_completion_service(servicer: Any, server: Any) -> None:
    """As `add_chat_service`."""
    registrar: Any = _Registrar(server)
    completion_pb2_grpc.add_CompletionServiceServicer_to_server(servicer, registrar)


def add_responses_service(servicer: Any, server: Any) -> None:
    """As `add_chat_service`."""
    registrar: Any = _Registrar(server)
    responses_pb2_grpc.add_ResponsesServiceServicer_to_server(servicer, registrar)


class _Registrar:
    """Takes the generated code's handlers, and passes them on with deserializers that don't fail."""

    def __init__(self, server: Any) -> None:
        self._server = server

    def add_generic_rpc_handlers(self, generic_rpc_handlers: Sequence[Any]) -> None:
        """Left to the call below: the same handlers come there by name."""

    def add_registered_method_handlers(self, service_name: str, method_handlers: Mapping[str, Any]) -> None:
        handlers = {
            name: handler._replace(request_deserializer=_forgiving(handler.request_deserializer))
            for name, handler in method_handlers.items()
        }
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service_name, handlers),))
        self._server.add_registered_method_handlers(service_name, handlers)


def _forgiving(deserialize: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    def deserialize_or_mark(data: bytes) -> Any:
        try:
            return deserialize(data)
        except DecodeError:
            return Malformed()

    return deserialize_or_mark
