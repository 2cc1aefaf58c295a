"""The ways in which a model's harmony goes wrong, and which the parser repairs: the labels of the repairs metric.

What each repair delivers as what: docs/harmony.md.
"""

from enum import StrEnum


class Repair(StrEnum):
    """One class of malformed harmony."""

    # Message boundaries.
    REDUNDANT_END = "redundant_end"
    WRONG_END = "wrong_end"
    MISSING_END = "missing_end"
    MISSING_START = "missing_start"
    DOUBLED_START = "doubled_start"
    MISSING_MESSAGE = "missing_message"
    TRUNCATED_HEADER = "truncated_header"
    # What a header says.
    MISSING_CHANNEL = "missing_channel"
    UNKNOWN_CHANNEL = "unknown_channel"
    DOUBLED_CHANNEL = "doubled_channel"
    DOUBLED_RECIPIENT = "doubled_recipient"
    BARE_RECIPIENT = "bare_recipient"
    BUILTIN_RECIPIENT = "builtin_recipient"
    MISPLACED_CALL = "misplaced_call"
    FOREIGN_ROLE = "foreign_role"
    UNEXPECTED_HEADER_TEXT = "unexpected_header_text"
    # Single tokens.
    STRAY_SPECIAL = "stray_special"
    INVALID_TOKEN = "invalid_token"
