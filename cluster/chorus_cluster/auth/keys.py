"""API keys: who may ask for what. The file holds hashes only.

    keys:
      - id: laptop                # in logs; unique
        owner: alice              # whose data the key reaches; the id, if not given
        sha256: 5e884898da28…     # of the key, in hex
        scopes: [inference]       # what it may do; this, if not given
        expires: 2027-03-01       # a day or a time, in UTC if it says no other; never, if not given

Keys are 256 random bits (`chorus new-key` draws them), which nobody guesses from a hash, however fast: salts and slow
hashes are for passwords. A key of one's own choice must be as random.
"""

import datetime
import hashlib
import hmac
import math
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, ClassVar

import yaml
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

# Every one is compared with what a client sent, some 0.2 us each.
MAX_KEYS = 1_000
# Of what a client sends: longer is no key.
_MAX_KEY_LENGTH = 512
_PREFIX = "chorus-"
_NAME = r"^[A-Za-z0-9][A-Za-z0-9._@-]{0,63}$"
_SHA256 = r"^[0-9a-fA-F]{64}$"


class KeyFileError(ValueError):
    """The key file can't be used; the message says where and why, and quotes no hash."""


class Scope(StrEnum):
    """What a key may do."""

    INFERENCE = "inference"
    """Ask models: everything but what another scope names."""
    METRICS = "metrics"
    """Read /metrics."""


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A key, without the key itself. `expires_unix_s`: seconds since the epoch."""

    id: str
    owner: str
    scopes: frozenset[Scope]
    digest: bytes
    expires_unix_s: float = math.inf


@dataclass(frozen=True, slots=True)
class _Entry:
    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    id: Annotated[str, Field(strict=True, pattern=_NAME)]
    sha256: Annotated[str, Field(strict=True, pattern=_SHA256)]
    owner: Annotated[str, Field(strict=True, pattern=_NAME)] | None = None
    scopes: Annotated[list[Scope], Field(min_length=1)] | None = None
    expires: datetime.datetime | datetime.date | None = None


@dataclass(frozen=True, slots=True)
class _File:
    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    keys: Annotated[list[_Entry], Field(max_length=MAX_KEYS)]


class KeyRing:
    """The keys of one file."""

    def __init__(self, keys: Sequence[ApiKey]) -> None:
        self._keys = tuple(keys)

    def __len__(self) -> int:
        return len(self._keys)

    def find(self, key: str) -> ApiKey | None:
        """The entry of a key that a client sent. How long it takes doesn't tell how near the key was to one."""
        if len(key) > _MAX_KEY_LENGTH:
            return None
        digest = _digest(key)
        found = None
        for candidate in self._keys:
            if hmac.compare_digest(candidate.digest, digest):
                found = candidate
        return found


def parse_keys(text: str) -> KeyRing:
    """Reads a key file. Errors: KeyFileError."""
    try:
        values = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        raise KeyFileError(f"it is no YAML{f' (line {mark.line + 1})' if mark else ''}") from None
    try:
        file = TypeAdapter(_File).validate_python(values)
    except ValidationError as error:
        raise KeyFileError("; ".join(map(_describe, error.errors(include_url=False, include_input=False)))) from None
    keys = [_to_key(entry) for entry in file.keys]
    for what, names in (("ids", [key.id for key in keys]), ("hashes", [key.digest.hex() for key in keys])):
        if len(set(names)) != len(names):
            raise KeyFileError(f"keys: two of them have equal {what}")
    return KeyRing(keys)


def new_key(id: str, owner: str | None = None, scopes: Sequence[Scope] = ()) -> tuple[str, str]:
    """A new key, and its entry for the file, in YAML. Errors: ValueError for names that the file would not take."""
    for name in (id,) if owner is None else (id, owner):
        if not re.fullmatch(_NAME, name):
            raise ValueError(f"{name!r}: up to 64 letters, digits and . _ @ -, beginning with a letter or a digit")
    key = _PREFIX + secrets.token_urlsafe(32)
    entry: dict[str, object] = {"id": id, "sha256": _digest(key).hex()}
    if owner is not None:
        entry["owner"] = owner
    if scopes:
        entry["scopes"] = [scope.value for scope in scopes]
    return key, yaml.safe_dump([entry], sort_keys=False)


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode(errors="surrogatepass")).digest()


def _to_key(entry: _Entry) -> ApiKey:
    return ApiKey(
        entry.id,
        entry.id if entry.owner is None else entry.owner,
        frozenset(entry.scopes or (Scope.INFERENCE,)),
        bytes.fromhex(entry.sha256),
        math.inf if entry.expires is None else _unix_s(entry.expires),
    )


def _unix_s(moment: datetime.date) -> float:
    """Of a day, its beginning."""
    if not isinstance(moment, datetime.datetime):
        moment = datetime.datetime.combine(moment, datetime.time())
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=datetime.UTC)
    return moment.timestamp()


def _describe(details: object) -> str:
    assert isinstance(details, dict)
    path = ".".join(str(part) for part in details["loc"] if part not in ("datetime", "date"))
    return f"{path}: {details['msg']}" if path else str(details["msg"])
