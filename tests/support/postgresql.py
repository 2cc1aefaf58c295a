"""A PostgreSQL server of the tests' own, from the system's package, on a socket in a folder of its own."""

import contextlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

# The server does not run as root; the package has made this user.
_USER = "postgres"


def find_programs() -> Path:
    """The folder of `initdb` and `pg_ctl`, which Debian leaves out of the path."""
    found = shutil.which("pg_ctl")
    if found is not None:
        return Path(found).resolve().parent
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    assert folders, "the store is tested on PostgreSQL: install the package postgresql"
    return folders[-1]


class Server:
    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._programs = find_programs()

    def url(self, database: str) -> str:
        return f"postgresql://{_USER}@/{database}?host={self._folder}"

    def run(self, program: str, *arguments: str) -> None:
        """Errors: AssertionError with what the program said."""
        user = _USER if os.getuid() == 0 else None
        # A file: pg_ctl's server would hold a pipe open.
        with (self._folder / "output").open("ab") as output:
            done = subprocess.run(
                [self._programs / program, *arguments],
                cwd=self._folder,
                stdout=output,
                stderr=subprocess.STDOUT,
                user=user,
                group=user,
                timeout=60,
            )
        assert done.returncode == 0, (self._folder / "output").read_text()

    def start(self) -> None:
        self.run("initdb", "--pgdata=data", f"--username={_USER}", "--auth=trust", "--encoding=UTF8", "--no-sync")
        self.resume()

    def resume(self) -> None:
        options = f"-k {self._folder} -c listen_addresses='' -c fsync=off -c max_connections=100"
        self.run("pg_ctl", "start", "--wait", "--pgdata=data", "--log=log", f"--options={options}")

    def stop(self) -> None:
        self.run("pg_ctl", "stop", "--wait", "--pgdata=data", "--mode=immediate")

    def new_database(self, name: str) -> str:
        """Its URL."""
        self.run(
            "psql", f"--host={self._folder}", f"--username={_USER}", "--quiet", f"--command=CREATE DATABASE {name}"
        )
        return self.url(name)


@contextlib.contextmanager
def running() -> Iterator[Server]:
    # Short, as sockets' paths must be, and open to the server's user, as pytest's folders aren't.
    folder = Path(tempfile.mkdtemp(prefix="chorus-pg-", dir="/tmp"))
    if os.getuid() == 0:
        shutil.chown(folder, _USER, _USER)
    server = Server(folder)
    try:
        server.start()
        yield server
        server.stop()
    finally:
        shutil.rmtree(folder)
