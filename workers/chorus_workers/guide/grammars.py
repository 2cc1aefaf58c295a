"""Grammars, compiled by llguidance beside the engine's loop, and the masks that they give.

llguidance speaks of text. It gets the tokens that the logits have columns for as a vocabulary of its own, numbered by
column; what is forced it splits into tokens as the model's tokenizer would. Tokens of markup are none of it.
"""

from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Lock
from typing import TYPE_CHECKING

import llguidance
import numpy as np

from chorus_vocabulary import NUM_TEXT_TOKENS
from chorus_vocabulary.token_table import SPLIT_PATTERN, load_token_table
from chorus_workers.guide.columns import Columns, TokenMask
from chorus_workers.guide.json_schema import read_schema
from chorus_workers.guide.spec import Grammar, GrammarKind

if TYPE_CHECKING:
    from llguidance._lib import JsonCompileOptions

# Compiled grammars that are kept for later requests.
_MAX_KEPT = 64
_NUM_COMPILERS = 2
_MAX_MESSAGE_LENGTH = 300
# Between two tokens of JSON, as in `{"a": 1}` and where lines are indented: without a bound, a model that is unsure may
# write white space until its limit.
_WHITE_SPACE = r"[ \t]?(\r?\n[ \t]{0,32})?"
_JSON_OPTIONS: "JsonCompileOptions" = {
    "whitespace_pattern": _WHITE_SPACE,
    "json_allow_general_unicode_escapes": True,
    "lenient": False,
}
# Half a second to compile and some 15 ms a mask, at most; a state of the lexer takes 1 to 2 KB.
_LIMITS = llguidance.LLParserLimits(
    initial_lexer_fuel=20_000_000, max_lexer_states=100_000, max_grammar_size=500_000, verbose_errors=False
)
_END = "<|end of text|>"


class GrammarError(Exception):
    """A grammar can't be used. The message says why, for the client to read."""


class Matcher:
    """Follows one body through its grammar."""

    __slots__ = ("_matcher",)

    def __init__(self, matcher: llguidance.LLMatcher) -> None:
        self._matcher = matcher

    @property
    def native(self) -> llguidance.LLMatcher:
        return self._matcher

    def copy(self) -> "Matcher":
        """Another one, at the beginning of another body."""
        return Matcher(self._matcher.deep_copy())

    def consume(self, column: int) -> None:
        """Errors: GrammarError for a token that the grammar forbids here."""
        self._matcher.consume_token(column)
        self.check()

    def check(self) -> None:
        """Errors: GrammarError, if it has become too complex to go on."""
        if self._matcher.is_error():
            raise GrammarError(_shown(self._matcher.get_error()))


class Grammars:
    """Compiles grammars in threads of its own, and computes masks."""

    def __init__(self, columns: Columns) -> None:
        self._columns = columns
        self._compilers = ThreadPoolExecutor(_NUM_COMPILERS, thread_name_prefix="grammar")
        self._kept: OrderedDict[Grammar, Future[Matcher]] = OrderedDict()
        self._tokenizer: llguidance.LLTokenizer | None = None
        self._loading = Lock()
        self._text = columns.only(token_id for token_id in columns.token_ids if token_id < NUM_TEXT_TOKENS)
        # Behind the columns: bytes that no column spells alone, which merges begin with; and the end of a text.
        self._end_column = 0
        self._num_words = 0

    def load(self) -> None:
        """Begins to load what the first grammar would wait for: a second."""
        self._compilers.submit(self._load)

    def compile(self, grammar: Grammar) -> "Future[Matcher]":
        """To a matcher at the beginning, which is to be copied. Errors, in the future: GrammarError."""
        if (kept := self._kept.get(grammar)) is not None:
            self._kept.move_to_end(grammar)
            return kept
        future = self._compilers.submit(self._compile, grammar)
        self._kept[grammar] = future
        if len(self._kept) > _MAX_KEPT:
            self._kept.popitem(last=False)
        return future

    def mask(self, matcher: Matcher) -> tuple[TokenMask, bool]:
        """Which text tokens may come, and whether the text may end. Some 20 us: threads of llguidance's own were no
        faster on a host of 16 cores, for 8 to 128 matchers.

        Errors: GrammarError, if the grammar has become too complex to go on.
        """
        mask = np.empty(self._num_words, np.int32)
        matcher.native.unsafe_compute_mask_ptr(mask.ctypes.data, mask.nbytes)
        matcher.check()
        word, bit = divmod(self._end_column, 32)
        return mask[: self._columns.num_words] & self._text, bool((mask[word] >> bit) & 1)

    def close(self) -> None:
        """Ends the threads, when they have done what they are at."""
        self._compilers.shutdown(wait=False, cancel_futures=True)

    def _compile(self, grammar: Grammar) -> Matcher:
        tokenizer = self._load()
        try:
            written = _WRITERS[grammar.kind](grammar.source)
        except ValueError as error:
            raise GrammarError(_shown(str(error))) from None
        matcher = Matcher(llguidance.LLMatcher(tokenizer, written, log_level=0, limits=_LIMITS))
        matcher.check()
        # What can't give a first mask can't be used, and it is better said now.
        matcher.native.compute_bitmask()
        matcher.check()
        return matcher

    def _load(self) -> llguidance.LLTokenizer:
        with self._loading:
            if self._tokenizer is None:
                self._tokenizer = self._build_tokenizer()
            return self._tokenizer

    def _build_tokenizer(self) -> llguidance.LLTokenizer:
        table, token_ids = load_token_table(), self._columns.token_ids
        columns = {
            table.blob[table.offsets[token_id] : table.offsets[token_id + 1]]: column
            for column, token_id in enumerate(token_ids)
            if token_id < NUM_TEXT_TOKENS
        }
        end = len(token_ids)
        for byte in map(int.to_bytes, range(256)):
            if byte not in columns:
                columns[byte] = end
                end += 1
        self._end_column, self._num_words = end, -(-(end + 1) // 32)
        tokenizer: llguidance.LLTokenizer = llguidance.LLTokenizer.from_tiktoken(  # type: ignore[attr-defined]
            encoder=columns,
            special_tokens={_END: end},
            pattern=SPLIT_PATTERN,
            eos_token=end,
            n_vocab=end + 1,
            slices=llguidance.LLTokenizer.json_slices(),
        )
        return tokenizer


def _write_json_schema(source: str) -> str:
    schema = read_schema(source)
    return llguidance.LLMatcher.grammar_from_json_schema(schema, overrides=_JSON_OPTIONS)


_WRITERS: dict[GrammarKind, Callable[[str], str]] = {
    GrammarKind.JSON_SCHEMA: _write_json_schema,
    GrammarKind.REGEX: llguidance.LLMatcher.grammar_from_regex,
    GrammarKind.LARK: llguidance.LLMatcher.grammar_from_lark,
}


# What llguidance says in names of its own, by its beginning.
_PLAIN_WORDS = {
    "NoExtension": "no text fits it",
    "LexerTooComplex": "it is too complex",
    "ParserTooComplex": "it is too complex",
    "Resource '": "it refers to a schema elsewhere, and none is fetched",
}


def _shown(message: str) -> str:
    """The first line of what llguidance says, or plainer words for it."""
    line = message.strip().partition("\n")[0].strip().rstrip(":")
    for beginning, words in _PLAIN_WORDS.items():
        if line.startswith(beginning):
            return words
    return line if len(line) <= _MAX_MESSAGE_LENGTH else f"{line[:_MAX_MESSAGE_LENGTH]}…"
