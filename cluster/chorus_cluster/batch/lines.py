"""Lines of batch files: reading them within bounds, requests from input lines, records for output lines.

Input lines and output records have the form of OpenAI's Batch API
(https://platform.openai.com/docs/guides/batch): `{"custom_id", "method", "url", "body"}` in,
`{"id", "custom_id", "response", "error"}` out.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, NoReturn, Protocol

from chorus_cluster.batch.sender import Reply

CHAT_COMPLETIONS_URL = "/v1/chat/completions"
MAX_LINE_BYTES = 128 * 2**20
_OK = 200
_SKIP_BYTES = 2**20
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"

JsonObject = dict[str, object]


class Digest(Protocol):
    """What `read_lines` needs of a hashlib object."""

    def update(self, data: bytes, /) -> None: ...


@dataclass(frozen=True, slots=True)
class Line:
    """A line of a file. `number` counts from 1; `content` has no newline and is None where the line is too long."""

    number: int
    content: bytes | None
    start: int
    end: int
    is_terminated: bool

    @property
    def is_blank(self) -> bool:
        return self.content is not None and not self.content.strip()


def read_lines(file: IO[bytes], max_line_bytes: int = MAX_LINE_BYTES, digest: Digest | None = None) -> Iterator[Line]:
    """The lines of a binary file, holding at most one in memory, and of a longer one only its first bytes.

    `digest` is fed every byte of the file. Newlines are `\\n`; a `\\r` before one is part of the content.
    """
    number, start = 0, 0
    while first := file.readline(max_line_bytes + 1):
        number += 1
        end = start + len(first)
        if digest is not None:
            digest.update(first)
        piece, is_long = first, len(first) > max_line_bytes and not first.endswith(b"\n")
        if is_long:
            first = b""
        while is_long and not piece.endswith(b"\n") and (piece := file.readline(_SKIP_BYTES)):
            end += len(piece)
            if digest is not None:
                digest.update(piece)
        content = None if is_long else first.removesuffix(b"\n")
        yield Line(number, content, start, end, piece.endswith(b"\n"))
        start = end


@dataclass(frozen=True, slots=True)
class BatchRequest:
    """A row that can be sent. `body` is JSON for the chat completions endpoint, whose validator has the last word."""

    custom_id: str
    body: bytes


@dataclass(frozen=True, slots=True)
class RowError:
    """Why a row has no response. `code` is for programs, `message` for people."""

    code: str
    message: str
    custom_id: str | None = None


class _InvalidLine(ValueError):
    """The message says what is wrong with the line."""


def _refuse_constant(name: str) -> NoReturn:
    raise _InvalidLine(f"{name} is not a JSON number")


def _load_object(content: bytes) -> JsonObject:
    try:
        value = json.loads(content.removeprefix(_BYTE_ORDER_MARK).decode("utf-8"), parse_constant=_refuse_constant)
    except UnicodeDecodeError as error:
        raise _InvalidLine(f"not UTF-8 at byte {error.start}") from error
    except json.JSONDecodeError as error:
        raise _InvalidLine(f"{error.msg} at character {error.pos}") from error
    except RecursionError as error:
        raise _InvalidLine("nested too deeply") from error
    except _InvalidLine:
        raise
    except ValueError as error:
        raise _InvalidLine("an integer has too many digits") from error
    if not isinstance(value, dict):
        raise _InvalidLine("a line must be a JSON object")
    return value


def custom_id_of(content: bytes) -> str | None:
    """The custom_id of an input line, or None where there is none to speak of."""
    try:
        custom_id = _load_object(content).get("custom_id")
    except _InvalidLine:
        return None
    return custom_id if isinstance(custom_id, str) and custom_id else None


def parse_request(line: Line, max_line_bytes: int = MAX_LINE_BYTES) -> BatchRequest | RowError:
    """The request on an input line, or what is wrong with the line. The body's fields are the server's to judge."""
    if line.content is None:
        return RowError("line_too_long", f"line {line.number} is longer than {max_line_bytes} bytes")
    try:
        fields = _load_object(line.content)
    except _InvalidLine as error:
        return RowError("invalid_json_line", f"line {line.number}: {error}")
    custom_id = fields.get("custom_id")
    if not isinstance(custom_id, str) or not custom_id:
        return RowError(
            "missing_custom_id", f"line {line.number}: custom_id must be a string of at least one character"
        )
    if fields.get("method") != "POST":
        return RowError("invalid_method", f'line {line.number}: method must be "POST"', custom_id)
    if fields.get("url") != CHAT_COMPLETIONS_URL:
        return RowError("invalid_url", f'line {line.number}: url must be "{CHAT_COMPLETIONS_URL}"', custom_id)
    body = fields.get("body")
    if not isinstance(body, dict):
        return RowError("invalid_body", f"line {line.number}: body must be a JSON object", custom_id)
    if body.get("stream"):
        return RowError("invalid_body", f"line {line.number}: body.stream must be false in a batch", custom_id)
    try:
        return BatchRequest(custom_id, json.dumps(body, allow_nan=False, separators=(",", ":")).encode())
    except RecursionError:
        return RowError("invalid_body", f"line {line.number}: body is nested too deeply", custom_id)
    except ValueError:  # 1e999 is valid JSON and an infinite float
        return RowError(
            "invalid_body", f"line {line.number}: body holds a number beyond the range of a double", custom_id
        )


def repeated_custom_id(line_number: int, custom_id: str) -> RowError:
    """The error of a row whose custom_id an earlier line has used."""
    message = f"line {line_number}: custom_id must be unique, and an earlier line has the same"
    return RowError("duplicate_custom_id", message, custom_id)


@dataclass(frozen=True, slots=True)
class RecordHeader:
    """What the journal reads back of a record: whose it is, and whether the request succeeded."""

    fingerprint: str
    line_number: int
    succeeded: bool


def record_prefix(fingerprint: str) -> bytes:
    """The first bytes of every record of a job; `fingerprint` is 16 hexadecimal digits."""
    return f'{{"id":"batch_req_{fingerprint}_'.encode()


def encode_error(fingerprint: str, line_number: int, error: RowError) -> bytes:
    """The record, with its newline, of a row without a response."""
    return _encode_record(fingerprint, line_number, error.custom_id, None, error)


def encode_response(fingerprint: str, line_number: int, custom_id: str, reply: Reply) -> tuple[bool, bytes]:
    """Whether the request succeeded, and its record; an answer that isn't JSON becomes an error."""
    try:
        body = json.loads(reply.body, parse_constant=_refuse_constant)
        request_id = reply.request_id or ""
        response: JsonObject = {"status_code": reply.status, "request_id": request_id, "body": body}
        return reply.status == _OK, _encode_record(fingerprint, line_number, custom_id, response, None)
    except (ValueError, RecursionError):
        message = f"the server answered with status {reply.status} and a body that is not JSON"
        return False, encode_error(fingerprint, line_number, RowError("invalid_response", message, custom_id))


def _encode_record(
    fingerprint: str, line_number: int, custom_id: str | None, response: JsonObject | None, error: RowError | None
) -> bytes:
    # ASCII on one line, with its keys in the order that parse_record_header expects.
    record = {
        "id": f"batch_req_{fingerprint}_{line_number}",
        "custom_id": custom_id,
        "response": response,
        "error": None if error is None else {"code": error.code, "message": error.message},
    }
    return json.dumps(record, separators=(",", ":"), allow_nan=False).encode() + b"\n"


_RECORD = re.compile(
    rb'\{"id":"batch_req_([0-9a-f]{16})_([1-9][0-9]{0,15})",'
    rb'"custom_id":(?:null|"(?:[^"\\]|\\.)*+"),'
    rb'"response":(?:null|\{"status_code":([0-9]{3}),)'
)


def parse_record_header(content: bytes) -> RecordHeader | None:
    """The header of a record (without its newline), or None where the line is not a whole record."""
    match = _RECORD.match(content)
    if match is None or not content.endswith(b"}") or b"\0" in content:
        return None
    return RecordHeader(match[1].decode(), int(match[2]), match[3] == b"200")
