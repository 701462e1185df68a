"""The serving program: one release, a process a core, any cloud's contract, told by the environment.

Port: `SAGEMAKER_BIND_TO_PORT`, `AIP_HTTP_PORT`, `PORT`, else 8080. Release: `TWOPHASE_MODEL`, `AZUREML_MODEL_DIR`,
`AIP_STORAGE_URI`, else `/mnt/models` or `/opt/ml/model`, whichever is there. The port is opened after the release has
reproduced its golden windows. SIGTERM lets requests that are under way end.
"""

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from twophase.errors import TwoPhaseError, UsageError
from twophase.serving.app import App
from twophase.serving.predictor import Predictor

PORT_VARIABLES = ("SAGEMAKER_BIND_TO_PORT", "AIP_HTTP_PORT", "PORT")
MODEL_VARIABLES = ("TWOPHASE_MODEL", "AZUREML_MODEL_DIR", "AIP_STORAGE_URI")
MODEL_FOLDERS = ("/mnt/models", "/opt/ml/model")


def port_of(environment: Mapping[str, str]) -> int:
    """The port that the place asks for. Raises `UsageError` when it is no port."""
    name, value = next(((n, environment[n]) for n in PORT_VARIABLES if environment.get(n)), ("PORT", "8080"))
    if not value.isdecimal() or not 0 < int(value) < 65536:
        raise UsageError(f"{name}={value}: is no port; give a number from 1 to 65535")
    return int(value)


def release_of(environment: Mapping[str, str]) -> Path:
    """The release folder that the place names. Raises `UsageError` when there is none."""
    name = next((n for n in MODEL_VARIABLES if environment.get(n)), None)
    if name and "://" in environment[name]:
        raise UsageError(f"{name}={environment[name]}: is no folder; copy the release here and name its folder")
    candidates = [environment[name]] if name else list(MODEL_FOLDERS)
    for folder in map(Path, candidates):
        found = _release_in(folder)
        if found:
            return found
    raise UsageError(f"{' or '.join(candidates)}: holds no release; name a release folder in {MODEL_VARIABLES[0]}")


def serve(release: Path, port: int, host: str = "0.0.0.0") -> None:  # a container's server is reached from outside
    """Answer until SIGTERM or SIGINT. Raises when the release may not be served, or the port is taken."""
    from twophase.serving import workers

    end_on_signals()
    app = App(Predictor(release), *routes_of(os.environ))
    with listening(host, port) as listener:
        workers.run(app, listener, workers_of(os.environ), options())


def workers_of(environment: Mapping[str, str]) -> int:
    """How many processes answer: `TWOPHASE_WORKERS`, else one a core. Raises `UsageError` when that is no count."""
    value = environment.get("TWOPHASE_WORKERS") or str(len(os.sched_getaffinity(0)))
    if not value.isdecimal() or not 0 < int(value) <= 256:
        raise UsageError(f"TWOPHASE_WORKERS={value}: is no number of processes; give 1 to 256")
    return int(value)


def routes_of(environment: Mapping[str, str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Health and predict routes: the usual ones, and those that Vertex AI names in the environment."""
    health, predict = environment.get("AIP_HEALTH_ROUTE"), environment.get("AIP_PREDICT_ROUTE")
    return (
        ("/", "/healthz", "/ping", *([health] if health else [])),
        ("/predict", "/invocations", "/score", *([predict] if predict else [])),
    )


def options() -> dict[str, Any]:
    """How uvicorn is run by every server here."""
    return {
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
    """A bound socket, so that a taken port is one clear error. Port 0 takes a free one."""
    import socket

    bound = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((host, port))
    except OSError as error:
        bound.close()
        raise TwoPhaseError(f"{host}:{port}: cannot listen there ({error.strerror}); give another port") from None
    return bound


def _release_in(folder: Path) -> Path | None:
    """`folder`, or the one folder in it, that holds a release: Azure and SageMaker put a model's name in between."""
    candidates = [folder, *sorted(p for p in folder.iterdir() if p.is_dir())] if folder.is_dir() else []
    return next((c for c in candidates if (c / "assets.extra" / "release.json").is_file()), None)
