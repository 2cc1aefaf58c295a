"""Enum values of `chorus.v1`, by the words that the Responses API has for them."""

from collections.abc import Mapping
from typing import Any, Final

from chorus_protos.v1 import chat_pb2
from chorus_protos.v1 import responses_pb2 as pb

Numbers = Mapping[str, int]

ROLES: Final = {
    "system": chat_pb2.ROLE_SYSTEM,
    "developer": chat_pb2.ROLE_DEVELOPER,
    "user": chat_pb2.ROLE_USER,
    "assistant": chat_pb2.ROLE_ASSISTANT,
}
EFFORTS: Final = {
    "low": chat_pb2.REASONING_EFFORT_LOW,
    "medium": chat_pb2.REASONING_EFFORT_MEDIUM,
    "high": chat_pb2.REASONING_EFFORT_HIGH,
}
TOOL_CHOICES: Final = {
    "auto": chat_pb2.TOOL_CHOICE_AUTO,
    "none": chat_pb2.TOOL_CHOICE_NONE,
    "required": chat_pb2.TOOL_CHOICE_REQUIRED,
}
PHASES: Final = {
    "commentary": pb.MESSAGE_PHASE_COMMENTARY,
    "final_answer": pb.MESSAGE_PHASE_FINAL_ANSWER,
}
ITEM_STATUSES: Final = {
    "in_progress": pb.ITEM_STATUS_IN_PROGRESS,
    "completed": pb.ITEM_STATUS_COMPLETED,
    "incomplete": pb.ITEM_STATUS_INCOMPLETE,
}
STATUSES: Final = {
    "queued": pb.RESPONSE_STATUS_QUEUED,
    "in_progress": pb.RESPONSE_STATUS_IN_PROGRESS,
    "completed": pb.RESPONSE_STATUS_COMPLETED,
    "incomplete": pb.RESPONSE_STATUS_INCOMPLETE,
    "failed": pb.RESPONSE_STATUS_FAILED,
    "cancelled": pb.RESPONSE_STATUS_CANCELLED,
}
ERROR_CODES: Final = {
    "server_error": pb.RESPONSE_ERROR_CODE_SERVER_ERROR,
    "rate_limit_exceeded": pb.RESPONSE_ERROR_CODE_RATE_LIMIT_EXCEEDED,
}
INCOMPLETE_REASONS: Final = {"max_output_tokens": pb.INCOMPLETE_REASON_MAX_OUTPUT_TOKENS}
SERVICE_TIERS: Final = {
    "default": pb.SERVICE_TIER_DEFAULT,
    "flex": pb.SERVICE_TIER_FLEX,
    "priority": pb.SERVICE_TIER_PRIORITY,
    "scale": pb.SERVICE_TIER_SCALE,
}
TRUNCATIONS: Final = {"disabled": pb.TRUNCATION_DISABLED, "auto": pb.TRUNCATION_AUTO}
ORDERS: Final = {"asc": pb.LIST_ORDER_ASC, "desc": pb.LIST_ORDER_DESC}


def word(numbers: Numbers, number: int) -> str | None:
    """None for the enum's zero; "", which no field may hold, for a number that is not known."""
    if number == 0:
        return None
    return next((name for name, known in numbers.items() if known == number), "")


def text(value: Any) -> str:
    """Of a field that is kept as clients sent it, and not looked at: "" if it is no text."""
    return value if isinstance(value, str) else ""
