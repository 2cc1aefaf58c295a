"""Every error a client can be told about.

    ChorusError
    ├── RequestError                the request can't be served as it is; sending it again won't help
    │   ├── InvalidRequest          a field is wrong: says which one and what would be right
    │   │   └── ContextTooLong      prompt and answer don't fit into the model's context
    │   ├── Unauthenticated         no API key, or none that is in force
    │   ├── PermissionDenied        the API key is not for this
    │   ├── ModelNotFound           no such model is served
    │   ├── ResponseNotFound        no such response is stored, or it is another owner's
    │   ├── PayloadTooLarge         the body is larger than the gateway reads
    │   └── ClientTooSlow           the client took too long to send its request, or to read its answer
    └── ServiceError                the request was fine; another attempt may succeed
        ├── Overloaded              every queue is full: retry after a while
        ├── Unavailable             no worker can take the request now
        ├── DeadlineExceeded        the request's deadline passed
        ├── RequestFailed           the request failed alone in the engine
        └── InternalError           anything else: logged here, opaque to the client

What each becomes at the two edges (`type`, `code` and `param` are fields of OpenAI's error body, which HTTP answers,
server-sent error events and failed batch lines share):

    error               gRPC status          HTTP   type                    code                       param
    ------------------  -------------------  ----   ---------------------   -----------------------    -----
    InvalidRequest      INVALID_ARGUMENT     400    invalid_request_error   invalid_value              field
    ContextTooLong      INVALID_ARGUMENT     400    invalid_request_error   context_length_exceeded    field
    Unauthenticated     UNAUTHENTICATED      401    invalid_request_error   invalid_api_key            -
    PermissionDenied    PERMISSION_DENIED    403    invalid_request_error   insufficient_permissions   -
    ModelNotFound       NOT_FOUND            404    invalid_request_error   model_not_found            model
    ResponseNotFound    NOT_FOUND            404    invalid_request_error   response_not_found         -
    PayloadTooLarge     INVALID_ARGUMENT     413    invalid_request_error   payload_too_large          -
    ClientTooSlow       DEADLINE_EXCEEDED    408    invalid_request_error   client_too_slow            -
    Overloaded          RESOURCE_EXHAUSTED   429    rate_limit_error        overloaded                 -
    Unavailable         UNAVAILABLE          503    server_error            unavailable                -
    DeadlineExceeded    DEADLINE_EXCEEDED    504    server_error            deadline_exceeded          -
    RequestFailed       INTERNAL             500    server_error            request_failed             -
    InternalError       INTERNAL             500    server_error            internal_error             -

A test holds the table to the classes. Overloaded and Unavailable may carry `retry_after_s`, which HTTP sends as
Retry-After and gRPC as trailing metadata `retry-after`.
"""

import math
from typing import Any, ClassVar

import grpc

# Characters of a client's own text that an error quotes.
_MAX_SHOWN_NAME = 200


class ChorusError(Exception):
    """Base of all of them. `message` goes to the client word for word, so it never quotes an unknown exception."""

    grpc_status: ClassVar[grpc.StatusCode] = grpc.StatusCode.INTERNAL
    http_status: ClassVar[int] = 500
    type: ClassVar[str] = "server_error"
    code: ClassVar[str] = "internal_error"

    message: str
    # The request's field at fault, dotted and with indices as in `messages[0].content`.
    field: str | None = None
    retry_after_s: float | None = None
    # In a client: what the server's log calls the request, if it said so.
    request_id: str | None = None

    def __init__(self, *args: object) -> None:
        # args are what the class was made from, so that pickling (errors cross process borders) makes an equal one.
        super().__init__(*args)
        self.message = str(args[0]) if args else ""

    def __str__(self) -> str:
        return self.message

    def body(self) -> dict[str, Any]:
        """OpenAI's error body: `{"error": {"message", "type", "param", "code"}}`."""
        return {"error": {"message": self.message, "type": self.type, "param": self.field, "code": self.code}}

    def retry_after_header(self) -> str | None:
        """Whole seconds for HTTP's Retry-After, rounded up and at least 1; None where retrying has no set time."""
        return None if self.retry_after_s is None else str(max(1, math.ceil(self.retry_after_s)))


class RequestError(ChorusError):
    grpc_status = grpc.StatusCode.INVALID_ARGUMENT
    http_status = 400
    type = "invalid_request_error"
    code = "invalid_value"


class InvalidRequest(RequestError):
    """`message` is a predicate of the field ("must be a string"); gRPC has no param, so the client reads both in one.

    `field` is None only where no field can be named (a body that is not JSON).
    """

    def __init__(self, field: str | None, message: str) -> None:
        super().__init__(field, message)
        self.field = field
        self.message = message if field is None else f"{field}: {message}"


class ContextTooLong(InvalidRequest):
    code = "context_length_exceeded"


class Unauthenticated(RequestError):
    grpc_status = grpc.StatusCode.UNAUTHENTICATED
    http_status = 401
    code = "invalid_api_key"


class PermissionDenied(RequestError):
    grpc_status = grpc.StatusCode.PERMISSION_DENIED
    http_status = 403
    code = "insufficient_permissions"


class ModelNotFound(RequestError):
    grpc_status = grpc.StatusCode.NOT_FOUND
    http_status = 404
    code = "model_not_found"
    field = "model"

    def __init__(self, model: str) -> None:
        super().__init__(model)
        # Shortened: gRPC carries the message in trailers, which have room for some 8 kB.
        self.message = f"The model {model[:_MAX_SHOWN_NAME]!r} does not exist here; GET /v1/models lists those that do."


class ResponseNotFound(RequestError):
    """`field`: the field that names the response, unless the path does."""

    grpc_status = grpc.StatusCode.NOT_FOUND
    http_status = 404
    code = "response_not_found"

    def __init__(self, id: str, field: str | None = None) -> None:
        super().__init__(id, field)
        self.field = field
        self.message = f"The response {id[:_MAX_SHOWN_NAME]!r} does not exist here, or no longer."


class PayloadTooLarge(RequestError):
    http_status = 413
    code = "payload_too_large"

    def __init__(self, limit_bytes: int) -> None:
        super().__init__(limit_bytes)
        self.message = f"The request body is larger than the limit of {limit_bytes} bytes."


class ClientTooSlow(RequestError):
    grpc_status = grpc.StatusCode.DEADLINE_EXCEEDED
    http_status = 408
    code = "client_too_slow"

    def __init__(self, message: str = "The client took too long to read its answer.") -> None:
        super().__init__(message)


class ServiceError(ChorusError):
    pass


class Overloaded(ServiceError):
    grpc_status = grpc.StatusCode.RESOURCE_EXHAUSTED
    http_status = 429
    type = "rate_limit_error"
    code = "overloaded"

    def __init__(self, retry_after_s: float, message: str = "All workers are busy and their queues are full.") -> None:
        super().__init__(retry_after_s, message)
        self.retry_after_s = retry_after_s
        self.message = message


class Unavailable(ServiceError):
    grpc_status = grpc.StatusCode.UNAVAILABLE
    http_status = 503
    code = "unavailable"

    def __init__(
        self, message: str = "No worker can take the request now.", retry_after_s: float | None = None
    ) -> None:
        super().__init__(message, retry_after_s)
        self.retry_after_s = retry_after_s


class DeadlineExceeded(ServiceError):
    grpc_status = grpc.StatusCode.DEADLINE_EXCEEDED
    http_status = 504
    code = "deadline_exceeded"

    def __init__(self, message: str = "The request's deadline passed.") -> None:
        super().__init__(message)


class RequestFailed(ServiceError):
    code = "request_failed"

    def __init__(self, message: str = "The model failed on this request.") -> None:
        super().__init__(message)


class InternalError(ServiceError):
    def __init__(self, message: str = "Internal error; see the server's log for this request id.") -> None:
        super().__init__(message)


def to_client_error(error: Exception) -> ChorusError:
    """The error to show for any exception: itself if it is ours, else an opaque InternalError."""
    return error if isinstance(error, ChorusError) else InternalError()
