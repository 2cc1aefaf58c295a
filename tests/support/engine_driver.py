"""Drives an engine until all its requests have ended."""

from collections.abc import Sequence

from chorus_workers.engine.engine import Engine
from chorus_workers.engine.request import FinishReason, GenerationRequest

Answer = tuple[list[int], FinishReason]


def run(engine: Engine, requests: Sequence[GenerationRequest]) -> dict[str, Answer]:
    """Each request's tokens, and why it ended. All accounts must agree after every step, and no page be in use at the
    end."""
    for request in requests:
        engine.add(request)
    tokens: dict[str, list[int]] = {request.request_id: [] for request in requests}
    reasons: dict[str, FinishReason] = {}
    while engine.has_requests:
        output = engine.step()
        assert not output.refused
        for request_id, token_id in zip(output.request_ids, output.token_ids, strict=True):
            tokens[request_id].append(token_id)
        reasons |= {request_id: reason for request_id, (reason, _) in output.finished.items()}
        engine.check_integrity()
    assert engine.load().kv_usage == 0
    return {request_id: (tokens[request_id], reasons[request_id]) for request_id in tokens}
