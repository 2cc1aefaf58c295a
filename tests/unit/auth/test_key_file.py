"""A key file that changes under a running server."""

import logging
import os
from pathlib import Path

import pytest

from chorus_cluster.auth.key_file import KeyFile
from chorus_cluster.auth.keys import KeyFileError, new_key


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def write(path: Path, *entries: str) -> None:
    """Whole, as `mv` does."""
    fresh = path.with_suffix(".new")
    fresh.write_text("keys:\n" + "".join(entries) if entries else "keys: []")
    os.replace(fresh, path)


def test_keys_come_and_go_within_a_second(tmp_path: Path, clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    path = tmp_path / "keys.yaml"
    (old, old_entry), (new, new_entry) = new_key("old"), new_key("new")
    write(path, old_entry)
    file = KeyFile(path, clock)
    assert file.ring().find(old) is not None
    write(path, old_entry, new_entry)
    assert file.ring().find(new) is None, "it is looked at once a second"
    clock.now = 1.0
    assert file.ring().find(new) is not None and file.ring().find(old) is not None
    write(path, new_entry)
    clock.now = 2.0
    assert file.ring().find(old) is None and file.ring().find(new) is not None
    write(path)
    clock.now = 3.0
    assert file.ring().find(new) is None
    assert [record.message.rpartition("has ")[2] for record in caplog.records] == [
        "2 API keys now",
        "1 API keys now",
        "0 API keys now",
    ]


def test_a_file_written_in_place_counts_too(tmp_path: Path, clock: Clock) -> None:
    path = tmp_path / "keys.yaml"
    (old, old_entry), (new, new_entry) = new_key("key"), new_key("key")
    path.write_text(f"keys:\n{old_entry}")
    file = KeyFile(path, clock)
    path.write_text(f"keys:\n{new_entry}")
    clock.now = 1.0
    assert file.ring().find(old) is None and file.ring().find(new) is not None


def test_a_mounted_secret_is_swapped_behind_a_link(tmp_path: Path, clock: Clock) -> None:
    """As Kubernetes does it: keys.yaml -> ..data/keys.yaml, and ..data -> the folder of the day."""
    keys = []
    for day in ("monday", "tuesday"):
        (tmp_path / day).mkdir()
        key, entry = new_key(day)
        write(tmp_path / day / "keys.yaml", entry)
        keys.append(key)
    (tmp_path / "data").symlink_to("monday")
    (tmp_path / "keys.yaml").symlink_to("data/keys.yaml")
    file = KeyFile(tmp_path / "keys.yaml", clock)
    (tmp_path / "fresh").symlink_to("tuesday")
    os.replace(tmp_path / "fresh", tmp_path / "data")
    clock.now = 1.0
    assert file.ring().find(keys[0]) is None and file.ring().find(keys[1]) is not None


@pytest.mark.parametrize("spoil", ["invalid", "missing", "not UTF-8", "huge", "a folder"])
def test_what_can_t_be_used_changes_nothing_and_is_said_once(
    tmp_path: Path, clock: Clock, caplog: pytest.LogCaptureFixture, spoil: str
) -> None:
    path = tmp_path / "keys.yaml"
    key, entry = new_key("key")
    write(path, entry)
    file = KeyFile(path, clock)
    path.unlink()
    if spoil == "a folder":
        path.mkdir()
    elif spoil != "missing":
        path.write_bytes({"invalid": b"keys: 5", "not UTF-8": b"\xff", "huge": b"#" * 2**21}[spoil])
    for clock.now in (1.0, 2.0, 3.0):
        assert file.ring().find(key) is not None
    (record,) = caplog.records
    assert record.levelno == logging.ERROR
    assert str(path) in record.message and "the keys that it had before stay in force" in record.message
    if path.is_dir():
        path.rmdir()
    fresh, entry = new_key("key")
    write(path, entry)
    clock.now = 4.0
    assert file.ring().find(key) is None and file.ring().find(fresh) is not None


def test_a_server_does_not_start_on_what_can_t_be_used(tmp_path: Path) -> None:
    with pytest.raises(KeyFileError, match=r"can't read .*keys\.yaml: No such file"):
        KeyFile(tmp_path / "keys.yaml")
    (tmp_path / "keys.yaml").write_text("keys: 5")
    with pytest.raises(KeyFileError, match=r"keys\.yaml: keys: "):
        KeyFile(tmp_path / "keys.yaml")
