"""A failed call as an error of `chorus_cluster.errors`: the way back of what the gateway does to errors.

The `google.rpc.Status` in the call's trailing metadata says which one it was. Where there is none (the server was not
reached, or something else stood in the way), the gRPC status decides.
"""

from collections.abc import Iterator
from typing import Any, Final

import grpc
from google.protobuf.message import DecodeError, Message
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, RequestInfo, RetryInfo
from google.rpc.status_pb2 import Status

from chorus_cluster import errors

_DETAILS_KEY: Final = "grpc-status-details-bin"
_DOMAIN: Final = "chorus"
_BY_CODE: Final[dict[str, type[errors.ChorusError]]] = {
    error.code: error
    for error in (
        errors.InvalidRequest,
        errors.ContextTooLong,
        errors.Unauthenticated,
        errors.PermissionDenied,
        errors.ModelNotFound,
        errors.ResponseNotFound,
        errors.PayloadTooLarge,
        errors.ClientTooSlow,
        errors.Overloaded,
        errors.Unavailable,
        errors.DeadlineExceeded,
        errors.RequestFailed,
        errors.InternalError,
    )
}
_BY_STATUS: Final[dict[grpc.StatusCode, type[errors.ChorusError]]] = {
    grpc.StatusCode.INVALID_ARGUMENT: errors.InvalidRequest,
    grpc.StatusCode.UNAUTHENTICATED: errors.Unauthenticated,
    grpc.StatusCode.PERMISSION_DENIED: errors.PermissionDenied,
    grpc.StatusCode.NOT_FOUND: errors.RequestError,
    grpc.StatusCode.UNIMPLEMENTED: errors.RequestError,
    grpc.StatusCode.RESOURCE_EXHAUSTED: errors.Overloaded,
    grpc.StatusCode.UNAVAILABLE: errors.Unavailable,
    grpc.StatusCode.CANCELLED: errors.Unavailable,
    grpc.StatusCode.DEADLINE_EXCEEDED: errors.DeadlineExceeded,
}


def to_error(failed: grpc.RpcError) -> errors.ChorusError:
    """The error that a failed call stands for."""
    # Both kinds of calls have these; the type has neither.
    call: Any = failed
    message = call.details() or call.code().name
    details = {type(detail): detail for detail in _details(call.trailing_metadata() or ())}
    info: Any = details.get(ErrorInfo)
    kind = _BY_CODE.get(info.reason.lower()) if info is not None and info.domain == _DOMAIN else None
    bad_request: Any = details.get(BadRequest)
    field = bad_request.field_violations[0].field if bad_request is not None and bad_request.field_violations else None
    retry: Any = details.get(RetryInfo)
    request: Any = details.get(RequestInfo)
    return _make(
        kind or _BY_STATUS.get(call.code(), errors.InternalError),
        message,
        field,
        None if retry is None else retry.retry_delay.ToMilliseconds() / 1000,
        None if request is None else request.request_id,
    )


def _details(metadata: Any) -> Iterator[Message]:
    for key, value in metadata:
        if key != _DETAILS_KEY:
            continue
        try:
            packed = Status.FromString(value).details
        except DecodeError:
            # Of somebody else; the status says enough.
            return
        for detail in packed:
            for kind in (ErrorInfo, BadRequest, RetryInfo, RequestInfo):
                message = kind()
                if detail.Unpack(message):
                    yield message


def _make(
    kind: type[errors.ChorusError], message: str, field: str | None, retry_after_s: float | None, request_id: str | None
) -> errors.ChorusError:
    """An error that says what the server's said, and can be pickled as all of them can."""
    arguments: tuple[object, ...] = (message,)
    if issubclass(kind, errors.InvalidRequest):
        arguments = (field, message)
    elif kind is errors.ModelNotFound:
        arguments = ("",)
    elif kind is errors.PayloadTooLarge:
        arguments = (0,)
    elif kind is errors.Overloaded:
        arguments = (retry_after_s, message)
    error = kind(*arguments)
    error.message, error.field, error.retry_after_s = message, field, retry_after_s
    error.request_id = request_id
    return error
