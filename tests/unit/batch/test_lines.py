import hashlib
import io
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.batch.rows import batch_row

from chorus_cluster.batch.lines import (
    BatchRequest,
    Line,
    RowError,
    custom_id_of,
    encode_error,
    encode_response,
    parse_record_header,
    parse_request,
    read_lines,
    record_prefix,
)
from chorus_cluster.batch.sender import Reply

FINGERPRINT = "0123456789abcdef"


def parse(content: bytes | None) -> BatchRequest | RowError:
    return parse_request(Line(7, content, 0, 0, True), max_line_bytes=1000)


@given(st.lists(st.binary(max_size=40)), st.integers(1, 30), st.binary(max_size=5))
def test_lines_are_those_of_the_file_and_the_longer_ones_are_left_out(
    pieces: list[bytes], limit: int, tail: bytes
) -> None:
    data = b"\n".join(pieces) + tail
    digest = hashlib.sha256()
    lines = list(read_lines(io.BytesIO(data), limit, digest))
    expected = data.split(b"\n") if data else []
    if expected and not expected[-1]:
        expected.pop()
    assert [line.content for line in lines] == [piece if len(piece) <= limit else None for piece in expected]
    assert [line.number for line in lines] == list(range(1, len(expected) + 1))
    assert [data[line.start : line.end] for line in lines] == [
        piece + (b"\n" if line.is_terminated else b"") for piece, line in zip(expected, lines, strict=True)
    ]
    assert b"".join(data[line.start : line.end] for line in lines) == data
    assert digest.digest() == hashlib.sha256(data).digest()


def test_a_valid_line_becomes_its_body() -> None:
    row = batch_row("a", temperature=0.5, note="😀 é")
    request = parse(b"\xef\xbb\xbf" + json.dumps(row).encode() + b"\r")
    assert isinstance(request, BatchRequest)
    assert request.custom_id == "a"
    assert json.loads(request.body) == row["body"]


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"custom_id": None}, "missing_custom_id"),
        ({"custom_id": ""}, "missing_custom_id"),
        ({"custom_id": 5}, "missing_custom_id"),
        ({"method": "GET"}, "invalid_method"),
        ({"url": "/v1/embeddings"}, "invalid_url"),
        ({"body": []}, "invalid_body"),
        ({"body": {"stream": True}}, "invalid_body"),
    ],
)
def test_a_wrong_field_is_named(change: dict[str, object], code: str) -> None:
    error = parse(json.dumps(batch_row("a") | change).encode())
    assert isinstance(error, RowError)
    assert error.code == code
    assert code.partition("_")[2] in error.message
    assert error.custom_id == ("a" if "custom_id" not in change else None)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b'{"custom_id": "a"', "at character 17"),
        (b"[]", "must be a JSON object"),
        (b'{"custom_id": "\xff"}', "not UTF-8 at byte 15"),
        (b'{"custom_id": NaN}', "NaN is not a JSON number"),
        (b'{"a":' * 200_000, "nested too deeply"),
        (b'{"a":' + b"1" * 5000 + b"}", "too many digits"),
        ('{"custom_id": "a"}'.encode("utf-16"), "not UTF-8"),
    ],
)
def test_what_is_no_json_object_says_why(content: bytes, words: str) -> None:
    error = parse(content)
    assert isinstance(error, RowError)
    assert error.code == "invalid_json_line"
    assert words in error.message
    assert custom_id_of(content) is None


def test_numbers_that_no_double_holds_are_refused_and_not_sent_as_infinity() -> None:
    error = parse(json.dumps(batch_row("a", seed=5)).encode().replace(b'"seed": 5', b'"seed": 1e999'))
    assert isinstance(error, RowError)
    assert error.code == "invalid_body"


def test_a_long_line_is_refused_with_the_limit() -> None:
    error = parse(None)
    assert isinstance(error, RowError)
    assert (error.code, error.message) == ("line_too_long", "line 7 is longer than 1000 bytes")


@given(st.text(min_size=1), st.integers(100, 599), st.dictionaries(st.text(), st.text()), st.text(max_size=8))
def test_a_record_is_one_line_that_the_journal_reads_back(
    custom_id: str, status: int, body: dict[str, str], request_id: str
) -> None:
    reply = Reply(status, json.dumps(body).encode(), request_id)
    succeeded, record = encode_response(FINGERPRINT, 12, custom_id, reply)
    assert json.loads(record) == {
        "id": f"batch_req_{FINGERPRINT}_12",
        "custom_id": custom_id,
        "response": {"status_code": status, "request_id": request_id, "body": body},
        "error": None,
    }
    assert record.startswith(record_prefix(FINGERPRINT))
    assert record.splitlines(keepends=True) == [record]
    header = parse_record_header(record[:-1])
    assert header is not None
    assert (header.fingerprint, header.line_number, header.succeeded) == (FINGERPRINT, 12, status == 200)
    assert succeeded == (status == 200)


@given(st.one_of(st.none(), st.text()), st.text())
def test_an_error_record_is_read_back_as_a_failure(custom_id: str | None, message: str) -> None:
    record = encode_error(FINGERPRINT, 3, RowError("invalid_url", message, custom_id))
    assert json.loads(record) == {
        "id": f"batch_req_{FINGERPRINT}_3",
        "custom_id": custom_id,
        "response": None,
        "error": {"code": "invalid_url", "message": message},
    }
    header = parse_record_header(record[:-1])
    assert header is not None
    assert not header.succeeded


@pytest.mark.parametrize("body", [b"<html>Bad Gateway</html>", b'{"a": NaN}', b'{"a": 1e999}', b"\xff", b"[" * 100_000])
def test_an_answer_that_is_no_json_becomes_an_error(body: bytes) -> None:
    succeeded, record = encode_response(FINGERPRINT, 3, "a", Reply(200, body))
    assert not succeeded
    assert json.loads(record)["error"]["code"] == "invalid_response"


@given(st.binary())
def test_no_other_line_passes_for_a_record(content: bytes) -> None:
    assert parse_record_header(content) is None
