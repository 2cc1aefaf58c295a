"""What a client may read of an error."""

import re

# Signs of the inside: tracebacks, module and file names, and objects as Python writes them.
_INTERNALS = re.compile(
    r"Traceback|File \"|\.py\b|site-packages|(?i:pydantic|starlette|fastapi|uvicorn|grpc)"
    r"|chorus_(cluster|workers|kernels|protos)|_pb2|<class |<function |<[\w.]+ object|0x[0-9a-f]{6,}"
    r"|\w+(Error|Exception)\b|\b(None|True|False|NoneType)\b|(dict|list|tuple)\[|input_value"
)


def assert_tells_nothing_of_the_inside(text: str) -> None:
    """For error texts that quote nothing of the client's own."""
    found = _INTERNALS.search(text)
    assert found is None, f"{found and found[0]!r} in {text!r}"
