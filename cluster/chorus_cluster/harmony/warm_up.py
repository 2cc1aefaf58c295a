"""Load what the first request would otherwise wait for."""

from chorus_vocabulary.token_table import load_token_table

from .encoding import load_encoding
from .long_runs import load_patterns


def warm_up() -> None:
    """Load the encoding, the token table and the long-run patterns: some 0.5 s of CPU and 85 MB, once a process.

    Raises:
        VocabularyError: the packaged table is damaged, or no folder is writable.
    """
    load_encoding()
    load_token_table()
    load_patterns()
