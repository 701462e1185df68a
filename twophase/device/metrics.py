"""`/metrics` in Prometheus's text format and `/status` as JSON, on loopback alone, for whoever watches this device."""

import json
import logging
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from twophase.errors import TwoPhaseError
from twophase.files import JSON

METRICS = {
    "twophase_device_windows": "Windows that the gate in use decided",
    "twophase_device_escalated": "Windows that it let through",
    "twophase_device_audited": "Rejected windows that go up as the audit sample",
    "twophase_device_lost": "Clips that the disk did not take",
    "twophase_device_clock_trusted": "Whether the clock is plausible",
    "twophase_device_trouble": "Tasks that cannot do their work now",
    "twophase_spool_waiting": "Clips that the gateway does not have",
    "twophase_spool_sent": "Clips that it has and has not answered",
    "twophase_spool_answers": "Answers kept on the device",
    "twophase_spool_refused": "Clips that the cloud will not take",
    "twophase_spool_damaged": "Clips that are not as they were written",
    "twophase_spool_bytes": "Bytes of the spool on the disk",
    "twophase_spool_max_bytes": "Their bound",
    "twophase_spool_events_total": "What happened to clips since the start, by event",
}
"""Every metric and what it says."""

log = logging.getLogger(__name__)


def serve(port: int, status: Callable[[], JSON], stop: threading.Event) -> None:
    """Answer on 127.0.0.1 until `stop`. Raises `OSError` when the port is taken."""

    class Handler(BaseHTTPRequestHandler):
        timeout = 10  # seconds; so that nobody holds a thread for ever

        def do_GET(self) -> None:
            if self.path not in ("/metrics", "/status"):
                self.send_error(404)
                return
            try:
                now = status()
            except TwoPhaseError as error:  # the disk fails
                self.send_error(503, explain=str(error))
                return
            if self.path == "/metrics":
                kind, text = "text/plain; version=0.0.4", _text(now)
            else:
                kind, text = "application/json", json.dumps(now)
            body = text.encode()
            self.send_response(200)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        def handle_error(self, request: Any, client_address: Any) -> None:
            if not isinstance(sys.exc_info()[1], OSError):  # else whoever asked is gone, which is for no log
                log.exception("metrics")

    with Server(("127.0.0.1", port), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        stop.wait()
        server.shutdown()


def _text(status: JSON) -> str:
    """A status in Prometheus's text format."""
    return "".join(_lines({**status, "trouble": len(status["trouble"])}))


def _lines(status: JSON) -> Iterator[str]:
    for name, says in METRICS.items():
        kind = "counter" if name.endswith("_total") else "gauge"
        yield f"# HELP {name} {says}\n# TYPE {name} {kind}\n"
        if name == "twophase_spool_events_total":
            yield from (f'{name}{{event="{event}"}} {n}\n' for event, n in sorted(status["spool"]["counts"].items()))
        else:
            place, _, field = name.removeprefix("twophase_").partition("_")
            yield f"{name} {int((status['spool'] if place == 'spool' else status)[field])}\n"
