"""The vocabulary: what the package ships, loaded without a network and whatever the home folder is like."""

import ctypes
import os
import platform
import struct
import subprocess
import sys
from pathlib import Path

import pytest

import chorus_vocabulary as vocabulary
from chorus_cluster.harmony import encoding

ENVIRONMENT = {"PYTHONPATH": os.pathsep.join(("cluster", "vocabulary", ".")), "PATH": os.environ["PATH"]}

PROBE = """
import socket, sys
from tests.unit.harmony.test_harmony_vocabulary import deny_sockets
from chorus_cluster.harmony.encoding import load_encoding
deny_sockets()
try:
    socket.socket()
except PermissionError:
    pass
else:
    sys.exit("sockets still work: the test proves nothing")
print(load_encoding().encode("harmony"))
"""


class _FilterProgram(ctypes.Structure):
    _fields_ = [("len", ctypes.c_ushort), ("filter", ctypes.c_void_p)]


def deny_sockets() -> None:
    """Make socket(2) fail with EPERM in this process for good, also for native code (a seccomp filter)."""
    syscall_number = {"x86_64": 41, "aarch64": 198}[platform.machine()]
    load, jump_if_equal, give_back = 0x20, 0x15, 0x06
    deny, allow = 0x00050000 | 1, 0x7FFF0000
    program = (
        (load, 0, 0, 0),
        (jump_if_equal, 0, 1, syscall_number),
        (give_back, 0, 0, deny),
        (give_back, 0, 0, allow),
    )
    code = b"".join(struct.pack("HBBI", *instruction) for instruction in program)
    buffer = ctypes.create_string_buffer(code, len(code))
    libc = ctypes.CDLL(None, use_errno=True)
    set_no_new_privileges, set_seccomp, filter_mode = 38, 22, 2
    filter_program = _FilterProgram(len(program), ctypes.addressof(buffer))
    if libc.prctl(set_no_new_privileges, 1, 0, 0, 0) or libc.prctl(
        set_seccomp, filter_mode, ctypes.byref(filter_program), 0, 0
    ):
        raise OSError(ctypes.get_errno(), "this kernel refuses seccomp filters")


def load_without_network(**environment: str) -> str:
    """Load the vocabulary in a process without sockets; return what it printed."""
    run = subprocess.run(
        [sys.executable, "-c", PROBE],
        env=ENVIRONMENT | environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    return run.stdout


@pytest.mark.parametrize("home", ["", "/proc/nowhere"])
def test_loads_without_network_and_home(home: str, tmp_path: Path) -> None:
    assert load_without_network(HOME=home, TMPDIR=str(tmp_path)) == "[71, 90047]\n"
    assert (tmp_path / f"chorus-{os.getuid()}" / "o200k_base.tiktoken").exists()


def test_repairs_a_damaged_cache(tmp_path: Path) -> None:
    table = tmp_path / "chorus" / "o200k_base.tiktoken"
    table.parent.mkdir()
    table.write_bytes(b"AA== 0\n")
    assert load_without_network(XDG_CACHE_HOME=str(tmp_path)) == "[71, 90047]\n"
    assert table.read_bytes() == vocabulary.read_table()
    assert [entry.name for entry in table.parent.iterdir()] == [table.name]


def test_a_damaged_package_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vocabulary, "TABLE_SHA256", "0" * 64)
    with pytest.raises(vocabulary.VocabularyError, match="damaged: reinstall"):
        vocabulary.read_table()


def test_ignores_and_restores_the_base_variable(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TIKTOKEN_ENCODINGS_BASE", str(tmp_path / "absent"))
    assert encoding._load_encoding.__wrapped__().encode("harmony") == [71, 90047]
    assert os.environ["TIKTOKEN_ENCODINGS_BASE"] == str(tmp_path / "absent")


def test_refuses_when_nothing_is_writable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoding, "_cache_folders", lambda: [Path("/proc/nowhere")])
    with pytest.raises(vocabulary.VocabularyError, match="/proc/nowhere"):
        encoding._unpack_table()


def test_nothing_is_left_to_load_after_warm_up() -> None:
    probe = (
        "import time\n"
        "from chorus_cluster.harmony.warm_up import warm_up\n"
        "from chorus_cluster.harmony.parser import StreamParser\n"
        "from chorus_cluster.harmony.conversation import Conversation, Message, Role\n"
        "from chorus_cluster.harmony.render import render\n"
        "warm_up()\n"
        "start = time.process_time()\n"
        "StreamParser().feed(render(Conversation((Message(Role.USER, '\u6f22' * 300),))))\n"
        "print(time.process_time() - start)\n"
    )
    run = subprocess.run([sys.executable, "-c", probe], env=ENVIRONMENT, capture_output=True, text=True, check=True)
    assert float(run.stdout) < 0.03  # any one of them takes longer to load


def test_special_ids_are_those_of_openai_harmony() -> None:
    harmony = encoding.load_encoding()
    for name in ("return", "constrain", "channel", "start", "end", "message", "call", "endoftext"):
        assert harmony.encode(f"<|{name}|>", allowed_special="all") == [getattr(vocabulary, name.upper())]
    assert not harmony.is_special_token(vocabulary.NUM_TEXT_TOKENS - 1)
    assert all(map(harmony.is_special_token, range(vocabulary.NUM_TEXT_TOKENS, vocabulary.VOCABULARY_SIZE)))
