"""Stop strings, found in an answer's tokens.

Tokens spell bytes, and a text is in another where its UTF-8 is in the other's. So bytes are compared, and no token has
to end with a character.
"""

from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import aclosing

from chorus_protos.v1 import engine_pb2
from chorus_vocabulary import NUM_TEXT_TOKENS
from chorus_vocabulary.token_table import token_bytes


class StopStrings:
    """Follows one answer. Of several strings that one token completes, the first in their order is the match."""

    def __init__(self, strings: Iterable[str], *, skip_special_tokens: bool) -> None:
        """skip_special_tokens: whether special tokens are no text. Else their names are."""
        self._strings = [(string, string.encode()) for string in strings]
        # Bytes before a token that may belong to a match which it completes.
        self._most = max((len(encoded) for _, encoded in self._strings), default=1) - 1
        self._skips_special = skip_special_tokens
        self._tail = b""
        self.matched: str | None = None

    def find(self, token_ids: Sequence[int]) -> int | None:
        """Takes in the next tokens. How many of them there are up to the first match's end; None without a match."""
        if not self._strings:
            return None
        for i, token_id in enumerate(token_ids):
            if self._skips_special and token_id >= NUM_TEXT_TOKENS:
                continue
            text = self._tail + token_bytes(token_id)
            for string, encoded in self._strings:
                if encoded in text:
                    self.matched = string
                    return i + 1
            self._tail = text[-self._most :] if self._most else b""
        return None


async def until_stop(
    responses: AsyncGenerator[engine_pb2.GenerateResponse, None], stops: StopStrings
) -> AsyncGenerator[engine_pb2.GenerateResponse, None]:
    """The responses up to the token that completes a match, which ends the answer and its request."""
    async with aclosing(responses):
        async for response in responses:
            num_tokens = stops.find(response.token_ids)
            if num_tokens is not None:
                del response.token_ids[num_tokens:]
                del response.logprobs[num_tokens:]
                response.finish_reason = engine_pb2.FINISH_REASON_STOP
            yield response
            if num_tokens is not None:
                return
