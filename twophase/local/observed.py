"""What can be seen from outside: Prometheus metrics, and an access log of one JSON object a line.

    home/access.log, home/access.log.1   the present file and the one before it, at most 16 MB each

Lines are gathered in memory and written once a second, off the event loop; a crash loses the last second of them.
"""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest

ROTATE_BYTES = 16 << 20
_BUCKETS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)


class Metrics:
    """Counters of one platform, told apart by endpoint and version."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        names = ("endpoint", "model", "version")
        self._requests = Counter(
            "twophase_predict_requests", "Prediction requests answered.", (*names, "code"), registry=self._registry
        )
        self._seconds = Histogram(
            "twophase_predict_seconds", "Time to answer.", names, buckets=_BUCKETS, registry=self._registry
        )
        self._others = Counter(
            "twophase_api_requests", "Other requests answered.", ("method", "code"), registry=self._registry
        )

    def predicted(self, endpoint: str, model: str, version: str, code: int, seconds: float) -> None:
        """Count one prediction request; model and version are empty where none was chosen."""
        self._requests.labels(endpoint, model, version, str(code)).inc()
        self._seconds.labels(endpoint, model, version).observe(seconds)

    def answered(self, method: str, code: int) -> None:
        """Count one request of another kind."""
        self._others.labels(method, str(code)).inc()

    def text(self) -> bytes:
        """Everything in Prometheus's text format."""
        return generate_latest(self._registry)


class AccessLog:
    """The access log. Lines are added and taken in the event loop, and written by `submit`'s thread."""

    def __init__(self, path: Path, submit: Callable[[Callable[[], None]], Any]) -> None:
        self._path, self._submit = path, submit
        self._lines: list[bytes] = []

    def add(self, **entry: Any) -> None:
        """Log one request."""
        if not self._lines:
            asyncio.get_running_loop().call_later(1.0, self.flush)
        self._lines.append(orjson.dumps(entry, option=orjson.OPT_APPEND_NEWLINE))

    def flush(self) -> None:
        """Have what was gathered written."""
        lines, self._lines = self._lines, []
        self._submit(lambda: self._write(lines))

    def _write(self, lines: list[bytes]) -> None:
        """Append lines; a disk that does not take them costs these lines and nothing else."""
        try:
            if self._path.is_file() and self._path.stat().st_size > ROTATE_BYTES:
                self._path.replace(self._path.with_name(f"{self._path.name}.1"))
            with self._path.open("ab") as file:
                file.writelines(lines)
        except OSError:
            return
