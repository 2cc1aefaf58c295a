"""Errors go from the gateway through gRPC to a client and come out the same."""

import pickle
from typing import Any

import grpc
import pytest
from google.rpc.error_details_pb2 import ErrorInfo
from google.rpc.status_pb2 import Status
from tests.unit.test_errors import EXAMPLES

from chorus_cluster import errors
from chorus_cluster.client.failures import to_error
from chorus_cluster.gateway.grpc.status import DETAILS_KEY, status_details


class Failed(grpc.RpcError):
    def __init__(self, code: grpc.StatusCode, details: str | None, metadata: Any = None) -> None:
        self._parts = code, details, metadata

    def code(self) -> grpc.StatusCode:
        return self._parts[0]

    def details(self) -> str | None:
        return self._parts[1]

    def trailing_metadata(self) -> Any:
        return self._parts[2]


@pytest.mark.parametrize("error", EXAMPLES, ids=lambda error: type(error).__name__)
def test_every_error_comes_back(error: errors.ChorusError) -> None:
    metadata = (("x-request-id", "mine"), (DETAILS_KEY, status_details(error, "mine")))
    back = to_error(Failed(error.grpc_status, error.message, metadata))
    for one in (back, pickle.loads(pickle.dumps(back))):
        assert type(one) is type(error)
        assert (str(one), one.field, one.retry_after_s) == (error.message, error.field, error.retry_after_s)
        assert one.request_id == "mine"


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (grpc.StatusCode.INVALID_ARGUMENT, errors.InvalidRequest),
        (grpc.StatusCode.UNAUTHENTICATED, errors.Unauthenticated),
        (grpc.StatusCode.PERMISSION_DENIED, errors.PermissionDenied),
        (grpc.StatusCode.NOT_FOUND, errors.RequestError),
        (grpc.StatusCode.UNIMPLEMENTED, errors.RequestError),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, errors.Overloaded),
        (grpc.StatusCode.UNAVAILABLE, errors.Unavailable),
        (grpc.StatusCode.CANCELLED, errors.Unavailable),
        (grpc.StatusCode.DEADLINE_EXCEEDED, errors.DeadlineExceeded),
        (grpc.StatusCode.INTERNAL, errors.InternalError),
        (grpc.StatusCode.UNKNOWN, errors.InternalError),
    ],
)
def test_without_details_the_status_decides(code: grpc.StatusCode, kind: type[errors.ChorusError]) -> None:
    other = Status()
    other.details.add().Pack(ErrorInfo(reason="OVERLOADED", domain="elsewhere"))
    for metadata in (None, (), ((DETAILS_KEY, b"\xff"),), ((DETAILS_KEY, other.SerializeToString()),)):
        back = to_error(Failed(code, "the reason", metadata))
        assert type(back) is kind
        assert (back.message, back.field, back.request_id) == ("the reason", None, None)
        assert pickle.loads(pickle.dumps(back)).message == "the reason"
    assert to_error(Failed(code, None)).message == code.name
