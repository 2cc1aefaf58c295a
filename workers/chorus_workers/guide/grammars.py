"""Grammars, compiled by llguidance beside the engine's loop, and the masks that they give.

llguidance speaks of text. It gets the tokens that the logits have columns for as a vocabulary of its own, numbered by
column; what is forced it splits into tokens as the model's tokenizer would. Tokens of markup are none of it.
"""

import math
import re
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from threading import Lock, Thread
from typing import TYPE_CHECKING

import llguidance
import numpy as np

from chorus_vocabulary import NUM_TEXT_TOKENS
from chorus_workers.guide.columns import Columns, TokenMask
from chorus_workers.guide.compilers import Compilation, Compilers
from chorus_workers.guide.json_schema import read_schema
from chorus_workers.guide.spec import Grammar, GrammarKind
from chorus_workers.guide.tokenizer import build_tokenizer

if TYPE_CHECKING:
    from llguidance._lib import JsonCompileOptions

# Compiled grammars that are kept for later requests.
_MAX_KEPT = 64
# Grammars that wait to be compiled, beyond which no request with new ones is taken on.
_MAX_QUEUED = 128
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
# A rule as EBNF has it; no line of Lark begins so.
_EBNF_RULE = re.compile(r"^[ \t]*[\w-]+[ \t]*::=", re.MULTILINE)
# Its translation is Python's work, and quadratic at worst: a third of a second.
_MAX_EBNF_LENGTH = 16 * 1024


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

    def __init__(
        self, columns: Columns, *, clock: Callable[[], float] = time.monotonic, timeout_s: float = math.inf
    ) -> None:
        """timeout_s: how long compiling one may take, until nobody waits for it any more."""
        self._columns = columns
        self._compilers = Compilers[Matcher](clock, timeout_s)
        self._kept: OrderedDict[Grammar, Compilation[Matcher]] = OrderedDict()
        self._tokenizer: llguidance.LLTokenizer | None = None
        self._loading = Lock()
        self._text = columns.only(token_id for token_id in columns.token_ids if token_id < NUM_TEXT_TOKENS)
        # llguidance's, behind those of the logits: stands for the end of a text.
        self._end_column = 0
        self._num_words = 0

    def load(self) -> None:
        """Begins to load what the first grammar would wait for: a second."""
        Thread(target=self._load, name="grammar-loading", daemon=True).start()

    def has_room_for(self, grammars: Iterable[Grammar]) -> bool:
        """Whether these are known, or the queue of those to compile isn't full."""
        return self._compilers.num_queued < _MAX_QUEUED or all(grammar in self._kept for grammar in grammars)

    def compile(self, grammar: Grammar) -> Compilation[Matcher]:
        """To a matcher at the beginning, which is to be copied. Errors, in its future: GrammarError."""
        if (kept := self._kept.get(grammar)) is not None:
            self._kept.move_to_end(grammar)
            return kept
        compilation = Compilation(lambda begin: self._compile(grammar, begin))
        self._kept[grammar] = compilation
        if len(self._kept) > _MAX_KEPT:
            self._kept.popitem(last=False)
        self._compilers.submit(compilation)
        return compilation

    def note_late(self) -> bool:
        """Notes which compilations take too long. Whether any has begun to since the last time."""
        return self._compilers.note_late()

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
        self._compilers.close()

    def _compile(self, grammar: Grammar, begin: Callable[[], None]) -> Matcher:
        tokenizer = self._load()
        # Loading is no grammar's fault.
        begin()
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
                self._tokenizer, self._end_column = build_tokenizer(self._columns.token_ids)
                self._num_words = -(-(self._end_column + 1) // 32)
            return self._tokenizer


def _write_json_schema(source: str) -> str:
    schema = read_schema(source)
    return llguidance.LLMatcher.grammar_from_json_schema(schema, overrides=_JSON_OPTIONS)


def _write_grammar(source: str) -> str:
    """Of Lark, or of EBNF, which llguidance translates to it."""
    if _EBNF_RULE.search(source) is None:
        return llguidance.LLMatcher.grammar_from_lark(source)
    if len(source) > _MAX_EBNF_LENGTH:
        raise ValueError(f"an EBNF grammar may have at most {_MAX_EBNF_LENGTH} characters; one in Lark may have more")
    try:
        return llguidance.grammar_from("ebnf", source)
    except ValueError as error:
        raise ValueError(str(error).removeprefix("Failed to convert the grammar from GBNF to Lark: ")) from None


_WRITERS: dict[GrammarKind, Callable[[str], str]] = {
    GrammarKind.JSON_SCHEMA: _write_json_schema,
    GrammarKind.REGEX: llguidance.LLMatcher.grammar_from_regex,
    GrammarKind.LARK: _write_grammar,
}


# What llguidance says in names of its own, by its beginning.
_PLAIN_WORDS = {
    "NoExtension": "no text fits it",
    "LexerTooComplex": "it is too complex",
    "ParserTooComplex": "it is too complex",
    "maximum recursion depth": "it nests too deeply",
    "Exceeds the limit": "a number in it is too large",
    "Resource '": "it refers to a schema elsewhere, and none is fetched",
}


def _shown(message: str) -> str:
    """The first line of what llguidance says, or plainer words for it."""
    line = message.strip().partition("\n")[0].strip().rstrip(":")
    for beginning, words in _PLAIN_WORDS.items():
        if line.startswith(beginning):
            return words
    return line if len(line) <= _MAX_MESSAGE_LENGTH else f"{line[:_MAX_MESSAGE_LENGTH]}…"
