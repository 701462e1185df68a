"""Who this device is: its name, its gateway and its private key, which is made here and never leaves.

    STATE/identity.json        name, gateway, key, first sequence number; readable by its owner alone
    STATE/enrolling.json       a key whose enrolment is under way: a code answers the same key again

The key is on the disk before the gateway hears of its public half, so a crash or a lost response costs nothing: the
same command again ends what was begun.
"""

import os
import stat
from base64 import urlsafe_b64decode, urlsafe_b64encode
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

from twophase.errors import TwoPhaseError
from twophase.files import private, read_json, write_json

SCHEME = "direct+"
"""Before the address of a gateway, says that it is an endpoint's: direct.py, for development."""

FILE, ENROLLING = "identity.json", "enrolling.json"


@dataclass(frozen=True)
class Identity:
    """One device at one gateway."""

    device: str
    """Its name at the gateway; empty until it is enrolled."""
    gateway: str
    """The gateway's address."""
    private_key: str
    """Ed25519, 32 bytes in base64url."""
    next_sequence: int = 1
    """Clips are numbered from here, or from what the spool says."""

    @classmethod
    def make(cls, gateway: str) -> Self:
        """A new key, not enrolled yet."""
        return cls("", gateway, _text(os.urandom(32)))  # any 32 random bytes are an Ed25519 key: RFC 8032, 5.1.5

    @classmethod
    def read(cls, state: Path, name: str = FILE) -> Self:
        """The identity kept in a state folder. Raises `TwoPhaseError` when there is none."""
        path = state / name
        if not path.is_file():
            raise TwoPhaseError(f"{state}: is not enrolled; `twophase device enroll CODE --gateway URL` does that")
        try:
            found = cls(**read_json(path, "identity"))
            if len(urlsafe_b64decode(found.private_key + "==")) != 32:
                raise ValueError("the key has another length")
        except (TypeError, ValueError) as error:
            raise TwoPhaseError(f"{path}: is no identity ({error}); enrol the device again with a new code") from None
        return found

    def write(self, state: Path, name: str = FILE) -> None:
        """Keep it, for the owner of the folder alone."""
        private(state)
        write_json(state / name, asdict(self))
        (state / name).chmod(stat.S_IRUSR | stat.S_IWUSR)

    @property
    def secret(self) -> bytes:
        """The private key, 32 bytes."""
        return urlsafe_b64decode(self.private_key + "==")


def _text(data: bytes) -> str:
    return urlsafe_b64encode(data).rstrip(b"=").decode()
