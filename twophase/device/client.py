"""The gateway's protocol as a device speaks it (docs/gateway.md): signed requests, and what their failures mean.

Every failure is one of three: `Away` (try again, and when), `NotThisKey` (try again rarely: the key is revoked or
unknown) or `Refused` (never try that again). Nothing is kept here. One thread, one client: it has one connection.

JWS's compact form is three lines here: PyJWT would be 3 MB more of the memory that a device may take.
"""

import hashlib
import json
import secrets
from base64 import urlsafe_b64encode
from collections.abc import Callable, Mapping
from email.utils import parsedate_to_datetime

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from twophase.device.identity import Identity
from twophase.device.link import Link
from twophase.errors import TwoPhaseError
from twophase.files import JSON


class NotThisKey(TwoPhaseError):
    """The gateway does not accept this device's key: it is unknown, revoked or replaced."""


class Client:
    """A connection to one gateway, as one device."""

    def __init__(
        self,
        identity: Identity,
        told_the_time: Callable[[float], object] = lambda seconds: None,
    ) -> None:
        """`told_the_time` is called with the gateway's time of each answer, in seconds since 1970."""
        self.identity, self._told_the_time, self._nonce = identity, told_the_time, ""
        self._key = Ed25519PrivateKey.from_private_bytes(identity.secret)
        self._link = Link(identity.gateway)

    def enrol(self, code: str) -> JSON:
        """Use a one-time code: {"device", "next_sequence", "root"}."""
        return self._ask("POST", "/v1/enrol", {"code": code})

    def announce(self, clips: list[JSON]) -> list[JSON]:
        """Tell about clips; how far each is, in that order, as many as the gateway takes now."""
        return list(self._ask("POST", "/v1/clips", {"clips": clips})["clips"])

    def upload(self, sequence: int, data: bytes, offset: int) -> JSON:
        """Send a clip's bytes from `offset` on; its state after that."""
        headers = {"Upload-Offset": str(offset), "Content-Type": "application/offset+octet-stream"}
        return self._send("PATCH", f"/v1/clips/{sequence}", data[offset:], headers, sign_body=False)

    def answers(self, wait_s: int) -> list[JSON]:
        """Answers that were not acknowledged; waits up to `wait_s` for the first."""
        return list(self._ask("GET", f"/v1/answers?wait={wait_s}&limit=100")["answers"])

    def acknowledge(self, sequences: list[int]) -> None:
        """These answers are kept here and need not be kept there."""
        self._ask("POST", "/v1/answers", {"acknowledge": sequences})

    def report(self, status: JSON) -> JSON:
        """Tell how this device does; what the gateway wants it to know."""
        return self._ask("PUT", "/v1/status", status)

    def replace_key(self, new: Identity) -> None:
        """Let the key of `new` take this one's place. Asked by the new key, it says that it has."""
        proof = Client(new).proof("PUT", "/v1/key", None, named=False)
        self._ask("PUT", "/v1/key", {"proof": proof})

    def proof(self, method: str, target: str, body: bytes | None, named: bool = True) -> str:
        """A proof of possession (RFC 9449's form) for one request; `named` by this device's name, or by its key."""
        public = _text(self._key.public_key().public_bytes_raw())
        who = {"kid": self.identity.device} if named else {"jwk": {"kty": "OKP", "crv": "Ed25519", "x": public}}
        claims = {"htm": method, "htu": target, "nonce": self._nonce, "jti": _text(secrets.token_bytes(16))}
        if body is not None:
            claims["body"] = _text(hashlib.sha256(body).digest())
        header = {"typ": "dpop+jwt", "alg": "EdDSA", **who}
        signed = ".".join(_text(json.dumps(part).encode()) for part in (header, claims))
        return f"{signed}.{_text(self._key.sign(signed.encode()))}"

    def _ask(self, method: str, target: str, value: JSON = None) -> JSON:
        body = b"" if value is None else json.dumps(value).encode()
        return self._send(method, target, body, {"Content-Type": "application/json"}, sign_body=True)

    def _send(self, method: str, target: str, body: bytes, headers: Mapping[str, str], sign_body: bool) -> JSON:
        for last in (False, True):
            proof = self.proof(method, target, body if sign_body else None, named=bool(self.identity.device))
            answer = self._link.exchange(method, target, body, {**headers, "DPoP": proof})
            self._nonce = answer.headers.get("DPoP-Nonce", self._nonce)
            self._told_the_time(_time(answer.headers.get("Date")))
            if last or answer.code != 401 or "use_dpop_nonce" not in answer.headers.get("WWW-Authenticate", ""):
                break
        try:
            value = json.loads(answer.body)
        except ValueError:
            value = None
        if answer.code == 200 and isinstance(value, dict):
            return value
        failure = self._link.failure(answer, value)
        raise NotThisKey(str(failure)) if answer.code == 401 else failure


def _text(data: bytes) -> str:
    return urlsafe_b64encode(data).rstrip(b"=").decode()


def _time(date: str | None) -> float:
    """Seconds since 1970 of a `Date` header; 0 for none."""
    try:
        return parsedate_to_datetime(date or "").timestamp()
    except ValueError:
        return 0.0
