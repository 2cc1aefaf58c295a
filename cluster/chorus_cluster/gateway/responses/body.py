"""The response object, at each stage of its life."""

from typing import Any, Final

from chorus_cluster.errors import ChorusError, Overloaded
from chorus_cluster.gateway import events as ev

Body = dict[str, Any]

TERMINAL_EVENTS: Final = {
    "completed": "response.completed",
    "incomplete": "response.incomplete",
    "failed": "response.failed",
}


def new_body(id: str, created: int, echo: Body, *, status: str) -> Body:
    """A response that has no output yet. `created`: seconds since the epoch."""
    return {
        "id": id,
        "object": "response",
        "created_at": created,
        "status": status,
        "completed_at": None,
        "error": None,
        "incomplete_details": None,
        "output": [],
        "usage": None,
        **echo,
    }


def finished_body(body: Body, output: list[Body], finished: ev.Finished, now: int) -> Body:
    """The model has come to an end, its own or the limit's."""
    is_cut = finished.reason == "length"
    return body | {
        "status": "incomplete" if is_cut else "completed",
        "completed_at": None if is_cut else now,
        "incomplete_details": {"reason": "max_output_tokens"} if is_cut else None,
        "output": output,
        "usage": usage_body(finished.usage),
    }


def failed_body(body: Body, error: ChorusError, output: list[Body] | None = None) -> Body:
    """`output`: what there was of it; by default what `body` has."""
    code = "rate_limit_exceeded" if isinstance(error, Overloaded) else "server_error"
    return body | {
        "status": "failed",
        "error": {"code": code, "message": error.message},
        "output": body["output"] if output is None else output,
    }


def usage_body(usage: ev.Usage) -> Body:
    return {
        "input_tokens": usage.prompt_tokens,
        # What a prefix cache takes up costs nothing here, and is not counted.
        "input_tokens_details": {"cached_tokens": usage.cached_tokens, "cache_write_tokens": 0},
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    }
