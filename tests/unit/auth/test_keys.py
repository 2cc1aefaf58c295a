"""The key file's format, and finding a key."""

import datetime
import hashlib
import hmac
import math

import pytest
import yaml

from chorus_cluster.auth import keys
from chorus_cluster.auth.keys import KeyFileError, Scope, new_key, parse_keys

SHA = hashlib.sha256(b"secret").hexdigest()
OTHER = hashlib.sha256(b"other").hexdigest()


def test_an_entry_has_defaults() -> None:
    found = parse_keys(f"keys:\n  - {{id: laptop, sha256: {SHA.upper()}}}").find("secret")
    assert found is not None
    assert (found.id, found.owner, found.scopes, found.expires_unix_s) == (
        "laptop",
        "laptop",
        frozenset({Scope.INFERENCE}),
        math.inf,
    )


def test_an_entry_says_more() -> None:
    ring = parse_keys(
        f"keys:\n  - {{id: a, owner: alice, sha256: {SHA}, scopes: [metrics, inference], expires: 2027-03-01}}\n"
        f"  - {{id: b, owner: alice, sha256: {OTHER}, expires: 2027-03-01T12:00:00+02:00}}"
    )
    first, second = ring.find("secret"), ring.find("other")
    assert first is not None and second is not None and len(ring) == 2
    assert (first.owner, first.scopes) == ("alice", frozenset(Scope))
    assert first.expires_unix_s == datetime.datetime(2027, 3, 1, tzinfo=datetime.UTC).timestamp()
    assert second.expires_unix_s == first.expires_unix_s + 10 * 3600


@pytest.mark.parametrize("key", ["", "secre", "secret ", "Secret", SHA, "x" * 10_000, "\ud800", "señor"])
def test_nothing_else_is_a_key(key: str) -> None:
    assert parse_keys(f"keys:\n  - {{id: a, sha256: {SHA}}}").find(key) is None


@pytest.mark.parametrize("key", ["secret", "other", "neither"])
def test_every_hash_is_compared_whichever_fits(monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    ring = parse_keys(f"keys:\n  - {{id: a, sha256: {SHA}}}\n  - {{id: b, sha256: {OTHER}}}")
    compared = []
    compare = hmac.compare_digest
    monkeypatch.setattr(keys.hmac, "compare_digest", lambda a, b: compared.append(a) or compare(a, b))
    ring.find(key)
    assert [digest.hex() for digest in compared] == [SHA, OTHER]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("keys: [", r"it is no YAML \(line 1\)"),
        ("", "dictionary|mapping|instance"),
        ("keys: null", "^keys: "),
        ("key: []", "^(keys|key): "),
        ("keys:\n  - {id: a}", r"^keys\.0\.sha256: "),
        (f"keys:\n  - {{id: 'a b', sha256: {SHA}}}", r"^keys\.0\.id: "),
        (f"keys:\n  - {{id: 5, sha256: {SHA}}}", r"^keys\.0\.id: "),
        (f"keys:\n  - {{id: a, sha256: {SHA[:-1]}}}", r"^keys\.0\.sha256: "),
        (f"keys:\n  - {{id: a, sha256: {SHA}, scopes: [all]}}", r"^keys\.0\.scopes\.0: .*'inference' or 'metrics'"),
        (f"keys:\n  - {{id: a, sha256: {SHA}, scopes: []}}", r"^keys\.0\.scopes: "),
        (f"keys:\n  - {{id: a, sha256: {SHA}, expires: soon}}", r"^keys\.0\.expires: "),
        (f"keys:\n  - {{id: a, sha256: {SHA}, until: 2027-01-01}}", r"^keys\.0\.until: "),
        (f"keys:\n  - {{id: a, sha256: {SHA}}}\n  - {{id: a, sha256: {OTHER}}}", "two of them have equal ids"),
        (f"keys:\n  - {{id: a, sha256: {SHA}}}\n  - {{id: b, sha256: {SHA}}}", "two of them have equal hashes"),
        ("[" * 5000, "it is no YAML"),
    ],
)
def test_a_bad_file_is_refused_by_name_and_quotes_no_hash(text: str, message: str) -> None:
    with pytest.raises(KeyFileError, match=message) as error:
        parse_keys(text)
    assert SHA[:20] not in str(error.value)


def test_a_file_has_a_thousand_keys_at_most() -> None:
    entries = [{"id": f"k{n}", "sha256": f"{n:064x}"} for n in range(keys.MAX_KEYS + 1)]
    assert len(parse_keys(yaml.safe_dump({"keys": entries[1:]}))) == keys.MAX_KEYS
    with pytest.raises(KeyFileError, match="^keys: "):
        parse_keys(yaml.safe_dump({"keys": entries}))


def test_a_new_key_is_the_one_of_its_entry() -> None:
    key, entry = new_key("ci", "team-a", [Scope.METRICS])
    found = parse_keys(f"keys:\n{entry}").find(key)
    assert found is not None
    assert (found.id, found.owner, found.scopes) == ("ci", "team-a", frozenset({Scope.METRICS}))
    assert key not in entry and len(key) > 43
    assert new_key("ci")[0] != key
    for name in ("a b", "", "-a", "x" * 65):
        with pytest.raises(ValueError, match="up to 64 letters"):
            new_key(name)
