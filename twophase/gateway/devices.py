"""Who may talk to the gateway: devices by name, one-time codes that let them in, keys that are replaced and revoked.

Names are the operator's; keys are the devices' own, and only their public halves are here. Codes are kept as hashes.
Every function is one call in a transaction of `Store`.
"""

import hashlib
import re
import secrets
import time
from base64 import b32encode
from typing import Any

from sqlalchemy import Connection, delete, func, insert, select, update

from twophase.errors import TwoPhaseError
from twophase.gateway.proofs import NotThisKey
from twophase.gateway.refused import Refused
from twophase.gateway.store import clip, code, device, note

CODE_S = 24 * 3600.0
"""How long an enrolment code can be used."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")


def expect(c: Connection, name: str) -> str:
    """A one-time code that lets a device in under `name`; where that is one already, its new key replaces the old."""
    if not _NAME.fullmatch(name):
        raise TwoPhaseError(
            f"{name!r}: is no device name; 1 to 63 of A-Z, a-z, 0-9, . _ - are, a letter or digit first"
        )
    text = b32encode(secrets.token_bytes(13)).decode().rstrip("=")[:20]
    if c.scalar(select(device.c.name).where(device.c.name == name)) is None:
        c.execute(insert(device).values(name=name, state="expected"))
    c.execute(insert(code).values(hash=_hash(text), device=name, expires=time.time() + CODE_S))
    return "-".join(text[i : i + 5] for i in range(0, 20, 5))


def enrol(c: Connection, text: str, key: str) -> dict[str, Any]:
    """Let a device in with its code and its new public key; the same two again answer the same again."""
    known = c.execute(select(code).where(code.c.hash == _hash(text))).one_or_none()
    if known is None or known.expires < time.time() or known.key not in (None, key):
        why = "unknown" if known is None else "used by another key" if known.key not in (None, key) else "expired"
        raise Unwelcome("" if known is None else known.device, f"enrolment with a code that is {why}")
    if known.key is None:
        if c.scalar(select(device.c.name).where(device.c.key == key, device.c.name != known.device)):
            raise Unwelcome(known.device, "enrolment with the key of another device")
        c.execute(update(code).where(code.c.hash == known.hash).values(key=key))
        c.execute(
            update(device).where(device.c.name == known.device).values(key=key, state="active", enrolled=time.time())
        )
        note(c, "enrolled", known.device, "")
    else:
        present = c.execute(select(device.c.key, device.c.state).where(device.c.name == known.device)).one()
        if tuple(present) != (key, "active"):
            raise Unwelcome(known.device, "enrolment again, with a key that was replaced or revoked")
    last = c.scalar(select(func.max(clip.c.sequence)).where(clip.c.device == known.device))
    return {"device": known.device, "next_sequence": (last or 0) + 1}


class Unwelcome(Refused):
    """An enrolment that is not let in."""

    def __init__(self, device: str, why: str) -> None:
        super().__init__(403, "this enrolment code is unknown, used or expired; ask the operator for a new one")
        self.device, self.why = device, why


def key_of(c: Connection, name: str) -> str:
    """The key that a device signs with now. Raises `NotThisKey` when it has none that is accepted."""
    found = c.execute(select(device.c.key, device.c.state, device.c.seen).where(device.c.name == name)).one_or_none()
    if found is None or found.key is None:
        raise NotThisKey("there is no such device")
    if found.state != "active":
        raise NotThisKey("the device is revoked")
    if time.time() - (found.seen or 0) > 60:
        c.execute(update(device).where(device.c.name == name).values(seen=time.time()))
    return str(found.key)


def replace_key(c: Connection, name: str, old: str, new: str) -> None:
    """Put a device's new key in the place of the one that signed the request; the same again changes nothing."""
    owner = c.execute(select(device.c.name).where(device.c.key == new)).scalar_one_or_none()
    if owner not in (None, name):
        raise NotThisKey("its new key is another device's")
    changed = c.execute(
        update(device)
        .where(device.c.name == name, device.c.key.in_((old, new)), device.c.state == "active")
        .values(key=new)
    )
    if changed.rowcount != 1:
        raise NotThisKey("the key was replaced meanwhile")
    note(c, "key replaced", name, "")


def revoke(c: Connection, name: str) -> None:
    """Accept nothing more from a device, nor the codes that wait for it. Raises `TwoPhaseError` when there is none."""
    if not c.execute(update(device).where(device.c.name == name).values(state="revoked")).rowcount:
        raise TwoPhaseError(f"{name}: is no device here; see `twophase gateway devices`")
    c.execute(delete(code).where(code.c.device == name))
    note(c, "revoked", name, "")


def report(c: Connection, name: str, status: dict[str, Any]) -> None:
    """Keep the last status that a device sent."""
    c.execute(update(device).where(device.c.name == name).values(status=status))


def listed(c: Connection) -> list[dict[str, Any]]:
    """Every device with its state, when it was last heard, and its clips by state."""
    counts: dict[str, dict[str, int]] = {}
    for owner, state, number in c.execute(
        select(clip.c.device, clip.c.state, func.count()).group_by(clip.c.device, clip.c.state)
    ):
        counts.setdefault(owner, {})[state] = number
    rows = c.execute(select(device).order_by(device.c.name))
    return [
        {
            "device": row.name,
            "state": row.state,
            "seen": row.seen,
            "gate": (row.status or {}).get("gate") or "",
            "clips": counts.get(row.name, {}),
        }
        for row in rows
    ]


def _hash(text: str) -> str:
    """Codes are read out and typed: case, spaces and dashes do not count."""
    return hashlib.sha256(re.sub(r"[\s-]", "", text).upper().encode()).hexdigest()
