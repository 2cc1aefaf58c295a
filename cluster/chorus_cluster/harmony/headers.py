"""The headers that gpt-oss was trained to write, as token ids: what comes after `<|start|>assistant`.

A call is addressed behind the channel, as the model writes it, or behind the role, as prompts have it. Its content type
may be marked as a constraint, or be missing; where a call is no JSON, it is the one of calls of Python. Source: the
harmony response format guide, and openai-harmony's renderer.
"""

import functools
from typing import Final

from chorus_vocabulary import CALL, END, ENDOFTEXT, RETURN, START

from .encoding import load_encoding

OPENING: Final = "assistant"
# Stop tokens end an answer and a call, whichever of them it is; openai-harmony's own parser has no preference.
_STOPS: Final = (END, RETURN, CALL, ENDOFTEXT)


@functools.lru_cache(maxsize=4096)
def _encode(text: str) -> tuple[int, ...]:
    return tuple(load_encoding().encode(text, allowed_special="all"))


def opening() -> tuple[int, ...]:
    """What comes before the header of every message but the first."""
    return (START, *_encode(OPENING))


def analysis_header() -> tuple[int, ...]:
    return _encode("<|channel|>analysis<|message|>")


def preamble_header() -> tuple[int, ...]:
    """Of what the model tells the user before it calls a tool."""
    return _encode("<|channel|>commentary<|message|>")


def final_headers(*, is_constrained: bool) -> tuple[tuple[int, ...], ...]:
    """Headers of the answer; where it is to be JSON, the model may say so."""
    plain = _encode("<|channel|>final<|message|>")
    return (plain, _encode("<|channel|>final <|constrain|>json<|message|>")) if is_constrained else (plain,)


def call_headers(name: str, *, is_text: bool = False) -> tuple[tuple[int, ...], ...]:
    """Headers of calls of the function `name`, which is of letters, digits, underscores and dashes. is_text: whether
    the calls are no JSON."""
    # No token spans a space before a word, so what is the same for all names is encoded once.
    recipient, channel = _encode(f" to=functions.{name}"), _encode("<|channel|>commentary")
    content_types = (" code", "") if is_text else (" <|constrain|>json", " json", "")
    types = [_encode(f"{content_type}<|message|>") for content_type in content_types]
    return tuple((*start, *end) for start in ((*channel, *recipient), (*recipient, *channel)) for end in types)


def answer_ends() -> tuple[int, ...]:
    """What may end a body after which the answer may be over."""
    return _STOPS
