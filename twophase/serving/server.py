"""The serving program: one release, a process a core, any cloud's contract, told by the environment.

Port: `SAGEMAKER_BIND_TO_PORT`, `AIP_HTTP_PORT`, `PORT`, else 8080. Release: as `source` says, or, where SageMaker sets
`SAGEMAKER_MULTI_MODEL=true`, those that it loads while the program runs. The port is opened after the release has
reproduced its golden windows. SIGTERM lets requests that are under way end.
"""

import os
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from twophase.errors import TwoPhaseError, UsageError
from twophase.serving.app import App
from twophase.serving.instances import LIMITS, Limits
from twophase.serving.multi_model import MultiModel
from twophase.serving.predictor import Predictor

PORT_VARIABLES = ("SAGEMAKER_BIND_TO_PORT", "AIP_HTTP_PORT", "PORT")


def port_of(environment: Mapping[str, str]) -> int:
    """The port that the place asks for. Raises `UsageError` when it is no port."""
    name, value = next(((n, environment[n]) for n in PORT_VARIABLES if environment.get(n)), ("PORT", "8080"))
    if not value.isdecimal() or not 0 < int(value) < 65536:
        raise UsageError(f"{name}={value}: is no port; give a number from 1 to 65535")
    return int(value)


def serve(release: Path, port: int, host: str = "0.0.0.0") -> None:  # a container's server is reached from outside
    """Answer until SIGTERM or SIGINT. Raises when the release may not be served, or the port is taken."""
    end_on_signals()
    _run(Predictor(release), port, host)


def serve_many(port: int, host: str = "0.0.0.0") -> None:
    """Answer for the releases that SageMaker loads while this runs, until SIGTERM or SIGINT."""
    end_on_signals()
    with tempfile.TemporaryDirectory(prefix="twophase-models-") as folder:
        _run(MultiModel(Path(folder)), port, host)


def _run(served: Predictor | MultiModel, port: int, host: str) -> None:
    from twophase.serving import workers

    app = App(served, *routes_of(os.environ), limits=limits_of(os.environ))
    with listening(host, port) as listener:
        workers.run(app, listener, workers_of(os.environ), options())


def workers_of(environment: Mapping[str, str]) -> int:
    """How many processes answer: `TWOPHASE_WORKERS`, else one a core. Raises `UsageError` when that is no count."""
    value = environment.get("TWOPHASE_WORKERS") or str(len(os.sched_getaffinity(0)))
    if not value.isdecimal() or not 0 < int(value) <= 256:
        raise UsageError(f"TWOPHASE_WORKERS={value}: is no number of processes; give 1 to 256")
    return int(value)


def limits_of(environment: Mapping[str, str]) -> Limits:
    """How much a request may ask for: `TWOPHASE_BODY_BYTES` of a body, else as many as a dedicated endpoint of Vertex.

    Raises `UsageError` when that is no size.
    """
    value = environment.get("TWOPHASE_BODY_BYTES") or str(LIMITS.body_bytes)
    if not value.isdecimal() or not 0 < int(value) <= 1 << 30:
        raise UsageError(f"TWOPHASE_BODY_BYTES={value}: is no size; give 1 to {1 << 30} bytes")
    return replace(LIMITS, body_bytes=int(value))


def routes_of(environment: Mapping[str, str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Health and predict routes: the usual ones, and those that Vertex AI names in the environment."""
    health, predict = environment.get("AIP_HEALTH_ROUTE"), environment.get("AIP_PREDICT_ROUTE")
    return (
        ("/", "/healthz", "/ping", *([health] if health else [])),
        ("/predict", "/invocations", "/score", *([predict] if predict else [])),
    )


def options() -> dict[str, Any]:
    """How uvicorn is run by every server here."""
    from twophase.serving.http import Connection

    return {
        "http": Connection,
        "lifespan": "off",
        "access_log": False,
        "log_level": "warning",
        "server_header": False,
        "proxy_headers": False,  # nothing here asks who the client is
        "ws": "none",
        "timeout_graceful_shutdown": 30,
        "backlog": 2048,
    }


def end_on_signals() -> None:
    """Let SIGTERM and SIGINT end the program in order, by way of its `finally`s, with exit code 0.

    uvicorn raises the signal again once it has drained; by default that would end the process on the spot.
    """
    import signal

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: sys.exit(0))


def listening(host: str, port: int) -> Any:
    """A bound socket, so that a taken port is one clear error. Port 0 takes a free one.

    The process may then have as many connections as the machine allows it: the usual soft limit of 1,024 open files is
    for programs that use `select`.
    """
    import resource
    import socket

    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    bound = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((host, port))
    except OSError as error:
        bound.close()
        raise TwoPhaseError(f"{host}:{port}: cannot listen there ({error.strerror}); give another port") from None
    return bound
