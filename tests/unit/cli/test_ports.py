"""Ports that are picked before they are used."""

import socket
from pathlib import Path

import pytest

from chorus_cluster.cli import ports
from chorus_cluster.cli.ports import free_ports, free_range


def test_they_are_none_of_those_that_connections_get() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as client:
        given = client.getsockname()[1]
        picked = free_ports(50)
        assert len(set(picked)) == 50 and all(20_000 <= port < given for port in picked)


def test_ports_in_use_are_left_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    [first] = free_ports(1)
    (tmp_path / "range").write_text(f"{first + 2}\t60999\n")
    monkeypatch.setattr(ports, "_EPHEMERAL", tmp_path / "range")
    monkeypatch.setattr(ports, "_LOWEST", first)
    with socket.create_server(("", first)):
        # Of two, one is free; beyond them the system gives some.
        picked = free_ports(3)
    assert first not in picked and len(set(picked)) == 3


def test_where_the_range_leaves_nothing_the_system_gives_some(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "range").write_text("1024\t65535\n")
    monkeypatch.setattr(ports, "_EPHEMERAL", tmp_path / "range")
    assert len(set(free_ports(3))) == 3


def test_systems_without_the_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(ports, "_EPHEMERAL", tmp_path / "none")
    assert all(20_000 <= port < 32_768 for port in free_ports(3))


def test_ports_in_a_row_are_all_free(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    row = free_range(64)
    assert row is not None and len(row) == 64 and row[0] >= 20_000
    (tmp_path / "range").write_text(f"{row[-1] + 1}\t60999\n")
    monkeypatch.setattr(ports, "_EPHEMERAL", tmp_path / "range")
    monkeypatch.setattr(ports, "_LOWEST", row[0])
    with socket.create_server(("", row[5])):
        assert free_range(64) is None
        assert free_range(32) == row[32:]
    assert free_range(64) == row
