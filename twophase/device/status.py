"""What a device says of itself: to its gateway, and to whoever asks here, whether its agent runs or not.

STATE/field.json    what the gateway last said of this device's gates: escalation and recall with intervals, drift
"""

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from twophase import __version__
from twophase.device import updates
from twophase.device.clock import Clock
from twophase.device.config import Config
from twophase.device.identity import Identity
from twophase.device.listener import Listener
from twophase.device.spool import Spool, opened
from twophase.errors import TwoPhaseError
from twophase.files import JSON, read_json, write_json


def report(listener: Listener, spool: Spool, state: Path) -> JSON:
    """What the gateway is told: `PUT /v1/status` of docs/gateway.md."""
    kept = spool.status()
    dropped = sum(n for name, n in kept["counts"].items() if name.startswith("dropped_"))
    failed = [{"release": r, "state": "failed", "reason": why} for r, why in updates.failed(state).items()]
    return {
        "gate": listener.gate.id,
        "twophase": __version__,
        "spool": {
            "clips": kept["waiting"] + kept["sent"],
            "bytes": kept["bytes"],
            "dropped": dropped,
            "damaged": kept["damaged"],
        },
        "periods": [asdict(tally) for tally in listener.tallies],
        "updates": [{"release": listener.gate.id, "state": "installed", "reason": ""}, *failed][:20],
    }


def told(state: Path, field: JSON) -> None:
    """Keep what the gateway said of this device's gates."""
    if field and field != field_of(state):
        write_json(state / "field.json", field)


def field_of(state: Path) -> JSON:
    """What the gateway last said of this device's gates; nothing before it did."""
    try:
        return read_json(state / "field.json", "gateway's figures")
    except TwoPhaseError:
        return []


def running(state: Path, config: Config) -> JSON | None:
    """The status of this device's agent; None when none answers, or another device's does."""
    from http.client import HTTPConnection, HTTPException

    connection = HTTPConnection("127.0.0.1", config.metrics_port or 9, timeout=2)
    try:
        connection.request("GET", "/status")
        status = json.loads(connection.getresponse().read())
        return status if status["device"] == Identity.read(state).device else None
    except (OSError, HTTPException, ValueError, KeyError, TypeError):
        return None
    finally:
        connection.close()


def resting(state: Path, config: Config) -> JSON:
    """The status of a device whose agent does not run. Raises `TwoPhaseError` when something else holds the spool."""
    identity = Identity.read(state)
    with opened(state / "spool", config.spool) as spool:
        kept: dict[str, Any] = spool.status()
    try:
        gate = updates.current(state)[0].name
    except TwoPhaseError:
        gate = ""
    trusted = Clock(state).trusted
    return {
        "device": identity.device,
        "gate": gate,
        "clock_trusted": trusted,
        "updates": updates.hindered(state) or "on",
        "field": field_of(state),
        "spool": kept,
    }


def clips(state: Path, config: Config) -> Iterator[JSON]:
    """What is known of every clip, answered or provisional. Raises `TwoPhaseError` while another process has them."""
    with opened(state / "spool", config.spool) as spool:
        yield from spool.answers()
