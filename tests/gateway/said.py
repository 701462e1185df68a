"""What tests say to a gateway in a device's name, without its HTTP: reports, and answered clips."""

import time

from sqlalchemy import insert

from twophase.gateway import reports
from twophase.gateway.store import Store, clip
from twophase.release.scores import BINS

GATE = "r-0123456789ab"


def status(windows: int, escalated: int, audited: int, at: int = 10, **more: object) -> dict:
    scores = [0] * BINS
    scores[at] = windows
    period = {"id": "1", "gate": GATE, "windows": windows, "escalated": escalated, "audited": audited, "scores": scores}
    return {"gate": GATE, "periods": [period], **more}


def report(store: Store, name: str, value: dict) -> list[str]:
    return store.do(lambda c: reports.report(c, name, reports.parse(value)))


def answered(store: Store, name: str, kind: str, wanted: int, not_wanted: int, first: int) -> None:
    rows = [
        {"device": name, "sequence": first + i, "state": "answered", "bytes": 1, "announced": time.time()}
        | {"sha256": "x", "stored": time.time(), "kind": kind, "gate": GATE, "wanted": i < wanted}
        for i in range(wanted + not_wanted)
    ]
    store.do(lambda c: c.execute(insert(clip), rows))
