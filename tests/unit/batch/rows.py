"""Batch files for tests."""

import json
from collections.abc import Iterable
from pathlib import Path

Row = dict[str, object]


def batch_row(custom_id: object, **body: object) -> Row:
    content = {"model": "demo", "messages": [{"role": "user", "content": str(custom_id)}], **body}
    return {"custom_id": custom_id, "method": "POST", "url": "/v1/chat/completions", "body": content}


def write_rows(path: Path, rows: Iterable[Row | bytes]) -> Path:
    """Writes rows (objects, or raw lines without newline), and returns the path."""
    lines = (row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows)
    path.write_bytes(b"".join(line + b"\n" for line in lines))
    return path


def read_records(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]
