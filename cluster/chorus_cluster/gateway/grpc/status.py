"""Errors as `google.rpc.Status`, the form in which gRPC libraries read details.

Its messages are those of google/rpc/error_details.proto: ErrorInfo with our code as reason, BadRequest with the field
at fault, RetryInfo, RequestInfo. What they say stands in plain trailing metadata too.
"""

from typing import Final

from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, RequestInfo, RetryInfo
from google.rpc.status_pb2 import Status

from chorus_cluster.errors import ChorusError

# The trailing metadata that carries it.
DETAILS_KEY: Final = "grpc-status-details-bin"
_DOMAIN: Final = "chorus"
_NANOSECONDS: Final = 1_000_000_000


def status_details(error: ChorusError, request_id: str) -> bytes:
    """A serialized Status of the error, with the code and message that the call ends with."""
    status = Status(code=error.grpc_status.value[0], message=error.message)
    details: list[Message] = [ErrorInfo(reason=error.code.upper(), domain=_DOMAIN), RequestInfo(request_id=request_id)]
    if error.field is not None:
        violation = BadRequest.FieldViolation(field=error.field, description=error.message)
        details.append(BadRequest(field_violations=[violation]))
    if error.retry_after_s is not None:
        seconds, rest = divmod(int(error.retry_after_s * _NANOSECONDS), _NANOSECONDS)
        details.append(RetryInfo(retry_delay=Duration(seconds=seconds, nanos=rest)))
    for detail in details:
        status.details.add().Pack(detail)
    serialized: bytes = status.SerializeToString()
    return serialized
