"""What devices report: counters that count once, installations that fail, and reports that are none."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
from sqlalchemy import select

from tests.gateway.remote import Device
from tests.gateway.said import GATE, report, status
from twophase.gateway.store import Store, day, log


def test_reports_count_once_however_often_and_late_they_come(store: Store) -> None:
    for windows, escalated in ((100, 5), (100, 5), (400, 30), (100, 5)):
        report(store, "d0", status(windows, escalated, 1))
    (row,) = store.do(lambda c: c.execute(select(day)).all())
    assert (row.counters["windows"], row.counters["escalated"], sum(row.counters["scores"])) == (400, 30, 400)


def test_a_release_that_fails_is_halted_for_all(store: Store) -> None:
    def tried(name: str, state: str, release: str = "r-0000000000aa") -> list[str]:
        update = {"release": release, "state": state, "reason": "golden window 3"}
        return report(store, name, status(1, 0, 0, updates=[update]))

    assert [tried(f"d{i}", "installed") for i in range(10)] == [[]] * 10
    assert tried("d10", "failed") == tried("d10", "failed") == []  # one device's own trouble
    assert tried("d11", "failed") == ["r-0000000000aa"]
    assert tried("d12", "installed", "r-0000000000bb") == ["r-0000000000aa"]
    (event,) = store.do(lambda c: c.execute(select(log).where(log.c.what == "release halted")).all())
    assert "failed on 2 of 12 devices" in event.message


def test_a_device_without_the_root_is_told_it_once_there_is_one(
    gateway: tuple[Path, str], enrol: Callable[[str], Device]
) -> None:
    device, root = enrol("early"), gateway[0] / "updates" / "metadata" / "1.root.json"

    def told(**status: object) -> dict[str, Any]:
        return dict(device.send("PUT", "/v1/status", {"gate": None, **status}).raise_for_status().json())

    assert told(root=False)["root"] is None
    root.parent.mkdir()
    root.write_text("{}")
    assert told(root=False)["root"] == "{}"
    assert "root" not in told(root=True)
    assert "root" not in told()  # a device of before
    shutil.rmtree(root.parent)


def test_reports_are_checked(gateway: tuple[Path, str], enrol: Callable[[str], Device]) -> None:
    device = enrol("reporter")
    told = device.send("PUT", "/v1/status", status(10, 1, 1)).json()
    assert told["halted"] == []
    (figures,) = told["field"]  # of this device alone
    assert (figures["gate"], figures["devices"], figures["windows"], figures["recall"]) == (GATE, 1, 10, None)
    assert figures["escalation"]["low"] < 0.1 < figures["escalation"]["high"]
    elsewhere = status(1, 0, 0)
    elsewhere["periods"][0]["gate"] = "../../elsewhere"  # folders are named after gates
    wrong = (
        *(status(1, 2, 0), status(-1, 0, 0), elsewhere),
        *(status(1, 0, 0, updates=[{"release": "r"}]), status(1, 0, 0, root=None)),
    )
    for bad in ([], {}, {"gate": 1}, *wrong):
        assert device.send("PUT", "/v1/status", bad).status_code == 400
    with httpx.Client(base_url=gateway[1]) as http:
        assert http.put("/v1/status", json=status(1, 0, 0)).status_code == 401
