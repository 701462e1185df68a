"""The platform's process: one home, one address, until SIGTERM or SIGINT.

The home's lock is taken first, the port second, and `server.json` is written once both are held and every endpoint is
back; whoever reads it finds a platform that answers.
"""

import ipaddress
import os
from collections.abc import Mapping
from pathlib import Path

from twophase.errors import TwoPhaseError, UsageError
from twophase.files import locked
from twophase.local.process import announce, last_port
from twophase.serving.server import end_on_signals, limits_of, listening, options


def run(
    home: Path,
    port: int | None = None,
    host: str = "127.0.0.1",
    buckets: Mapping[str, Path] | None = None,
    token: str | None = None,
) -> None:
    """Answer until told to stop. Raises `TwoPhaseError` when the home is held, or the port taken."""
    if not token and not _is_loopback(host):
        raise UsageError(f"--host {host}: others could reach the platform there; give a --token too, or use 127.0.0.1")
    limits = limits_of(os.environ)
    end_on_signals()
    home = home.absolute()
    with locked(home, "the platform's folder"):
        import uvicorn

        from twophase.local.app import Platform  # a second of imports, which a refused start does not pay for

        wanted = last_port(home) if port is None else port
        try:
            bound = listening(host, wanted)
        except TwoPhaseError:
            if port is not None:
                raise
            bound = listening(host, 0)
        with bound:
            platform = Platform(home, buckets, limits, token)
            bound.listen(2048)  # from here on a client waits for an answer instead of being turned away
            announce(home, bound.getsockname()[1], host)
            try:
                uvicorn.Server(uvicorn.Config(platform, **options())).run(sockets=[bound])
            finally:
                platform.close()


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
