"""openai-harmony's encoding of the vocabulary.

openai-harmony reads its table from the folder that `TIKTOKEN_ENCODINGS_BASE` names, and would download it if the
variable were unset. The table is therefore unpacked to a cache folder once, and the variable is set only while loading.
"""

import contextlib
import functools
import hashlib
import os
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from openai_harmony import HarmonyEncoding, HarmonyEncodingName, load_harmony_encoding

from chorus_vocabulary import TABLE_NAME, TABLE_SHA256, VocabularyError, read_table

_BASE_VARIABLE: Final = "TIKTOKEN_ENCODINGS_BASE"

_load_lock = threading.Lock()


def load_encoding() -> HarmonyEncoding:
    """Return the process-wide harmony encoding; the first call takes some 0.3 s and 80 MB.

    Raises:
        VocabularyError: the packaged table is damaged, or no folder is writable.
    """
    with _load_lock:
        return _load_encoding()


@functools.cache
def _load_encoding() -> HarmonyEncoding:
    with _environment(_BASE_VARIABLE, str(_unpack_table())):
        return load_harmony_encoding(HarmonyEncodingName.HARMONY_GPT_OSS)


def _unpack_table() -> Path:
    """Return a folder that holds the table, unpacking it to the first usable cache folder if none does."""
    table: bytes | None = None
    refusals: list[str] = []
    for folder in _cache_folders():
        try:
            if _holds_table(folder):
                return folder
            if table is None:
                table = read_table()
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            _write_atomically(folder / TABLE_NAME, table)
        except OSError as error:
            refusals.append(f"{folder} ({error.strerror})")
        else:
            return folder
    raise VocabularyError(f"no folder to unpack the vocabulary to; tried {', '.join(refusals)}; set XDG_CACHE_HOME")


def _cache_folders() -> Iterator[Path]:
    """Candidates, best first; the last ones serve containers whose root is read-only."""
    if cache_home := os.environ.get("XDG_CACHE_HOME"):
        yield Path(cache_home) / "chorus"
    if home := os.environ.get("HOME"):
        yield Path(home) / ".cache" / "chorus"
    for base in (tempfile.gettempdir, lambda: "/dev/shm"):
        with contextlib.suppress(FileNotFoundError):  # gettempdir's word for "nothing is writable"
            yield Path(base()) / f"chorus-{os.getuid()}"


def _holds_table(folder: Path) -> bool:
    """Check the content, not the name: the folder may be shared, and an earlier write may have been cut."""
    try:
        return hashlib.sha256((folder / TABLE_NAME).read_bytes()).hexdigest() == TABLE_SHA256
    except FileNotFoundError:
        return False


def _write_atomically(path: Path, data: bytes) -> None:
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
        os.replace(name, path)
    except OSError:
        os.unlink(name)
        raise


@contextlib.contextmanager
def _environment(name: str, value: str) -> Iterator[None]:
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
