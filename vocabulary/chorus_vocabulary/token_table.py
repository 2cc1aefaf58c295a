"""The bytes of every token, for decoding a stream token by token (openai-harmony only decodes through native calls)."""

import binascii
import functools
from array import array
from dataclasses import dataclass
from typing import Final

import chorus_vocabulary as vocabulary

SPECIAL_NAMES: Final = {
    vocabulary.START_OF_TEXT: "startoftext",
    vocabulary.ENDOFTEXT: "endoftext",
    vocabulary.RETURN: "return",
    vocabulary.CONSTRAIN: "constrain",
    vocabulary.CHANNEL: "channel",
    vocabulary.START: "start",
    vocabulary.END: "end",
    vocabulary.MESSAGE: "message",
    vocabulary.CALL: "call",
}

SPLIT_PATTERN: Final = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""How text is cut before bytes are merged inside the pieces (tiktoken's o200k_base)."""


@dataclass(frozen=True, slots=True)
class TokenTable:
    """Bytes of all text tokens, end to end: token `i` is `blob[offsets[i]:offsets[i + 1]]`.

    2.1 MB in all; a list of bytes objects would take 10.

    Attributes:
        blob: 1.3 MB.
        offsets: uint32 [NUM_TEXT_TOKENS + 1].
    """

    blob: bytes
    offsets: "array[int]"


@functools.cache
def load_token_table() -> TokenTable:
    """Return the process-wide table; the first call takes some 0.15 s.

    Raises:
        VocabularyError: the packaged table is damaged.
    """
    tokens = [binascii.a2b_base64(line.partition(b" ")[0]) for line in vocabulary.read_table().splitlines()]
    offsets = array("I", bytes(4))
    end = 0
    for token in tokens:
        end += len(token)
        offsets.append(end)
    return TokenTable(b"".join(tokens), offsets)


def token_bytes(token_id: int) -> bytes:
    """Return what a token spells; a special token spells its name, as in `<|return|>`.

    Raises:
        ValueError: the id is outside the vocabulary.
    """
    if not 0 <= token_id < vocabulary.VOCABULARY_SIZE:
        raise ValueError(f"token id {token_id} is outside the vocabulary of {vocabulary.VOCABULARY_SIZE}")
    if token_id >= vocabulary.NUM_TEXT_TOKENS:
        return f"<|{SPECIAL_NAMES.get(token_id, f'reserved_{token_id}')}|>".encode()
    table = load_token_table()
    return table.blob[table.offsets[token_id] : table.offsets[token_id + 1]]


def token_text(token_id: int) -> str:
    """Return what a token spells as text; bytes that are no UTF-8 of their own become U+FFFD.

    Raises:
        ValueError: the id is outside the vocabulary.
    """
    return token_bytes(token_id).decode(errors="replace")
