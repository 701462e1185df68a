"""Letting this device in at a gateway, and giving it another key. Both can be repeated after a crash at any moment."""

from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from twophase.device.client import Client, NotThisKey
from twophase.device.direct import Direct
from twophase.device.identity import ENROLLING, SCHEME, Identity
from twophase.device.updates import believe
from twophase.errors import TwoPhaseError
from twophase.files import JSON


def enrol(state: Path, gateway: str, code: str) -> Identity:
    """Make a key, use a one-time code, and keep what the gateway says; a new code gives an enrolled device a new key.

    Raises `TwoPhaseError` when the gateway is away or refuses the code.
    """
    pending = _pending(state, gateway)
    said: JSON = Client(pending).enrol(code)
    identity = replace(pending, device=str(said["device"]), next_sequence=int(said["next_sequence"]))
    if said.get("root"):
        believe(state, str(said["root"]))
    identity.write(state)
    (state / ENROLLING).unlink()
    return identity


def rotate(state: Path) -> Identity:
    """Replace this device's key by a new one that is made here."""
    old = Identity.read(state)
    made = _pending(state, old.gateway)
    if made.private_key == old.private_key:  # left by a crash, after it came into use
        (state / ENROLLING).unlink()
        made = _pending(state, old.gateway)
    pending = replace(made, device=old.device, next_sequence=old.next_sequence)
    try:
        Client(old).replace_key(pending)
    except NotThisKey:  # unless the answer to an earlier try was lost: then the new key is the one
        Client(pending).replace_key(pending)
    pending.write(state)
    (state / ENROLLING).unlink()
    return pending


def directly(state: Path, url: str) -> Identity:
    """For development: let clips go straight to an endpoint, without a gateway. Raises `UsageError`."""
    Direct(url)
    identity = replace(Identity.make(SCHEME + url), device="direct")
    identity.write(state)
    return identity


def _pending(state: Path, gateway: str) -> Identity:
    """The key whose enrolment is under way, made when there is none."""
    with suppress(TwoPhaseError):
        kept = Identity.read(state, ENROLLING)
        if kept.gateway == gateway:
            return kept
    made = Identity.make(gateway)
    made.write(state, ENROLLING)
    return made
