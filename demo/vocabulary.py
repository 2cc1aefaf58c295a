"""Words of the real vocabulary, and the few rows of it that the demo model keeps."""

import re
from collections import Counter
from collections.abc import Iterable
from functools import cache

from openai_harmony import HarmonyEncoding

from demo import pools

UNKNOWN = -1
# Where rare words are drawn from: ids grow with rarity.
RARE_IDS = range(2_000, 60_000)


@cache
def single_words(encoding: HarmonyEncoding, first: int, last: int) -> tuple[str, ...]:
    """The lower-case words that are one token with a space before, in order of their ids in [first, last)."""
    words = []
    for token in range(first, last):
        text = encoding.decode([token])
        if re.fullmatch(" [a-z]{3,12}", text):
            words.append(text[1:])
    return tuple(words)


def rare_words(encoding: HarmonyEncoding) -> tuple[str, ...]:
    """Words that no task uses: what the model shall take for unknown."""
    known = (
        set(pools.WORDS) | set(pools.COMMON) | {word for pair in pools.OPPOSITES for word in pair} | set(pools.TASKS)
    )
    known |= (
        {name.lower() for name in pools.NAMES + pools.CITIES + pools.COUNTRIES} | set(pools.COLORS) | set(pools.THINGS)
    )
    return tuple(word for word in single_words(encoding, RARE_IDS.start, RARE_IDS.stop) if word not in known)


def rows_of(documents: Iterable[list[int]], specials: Iterable[int], numbers: Iterable[int], least: int) -> list[int]:
    """The token ids to keep, sorted: those seen `least` times or more, the special tokens and all numbers; the row of
    UNKNOWN comes first."""
    counts = Counter(token for document in documents for token in document)
    kept = {token for token, count in counts.items() if count >= least}
    return [UNKNOWN, *sorted(kept | set(specials) | set(numbers))]
