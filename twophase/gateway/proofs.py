"""Proofs of possession: a JWT in the header `DPoP`, signed with a device's own key (docs/gateway.md has the claims).

Freshness comes from nonces that this process makes and ages by its own monotonic clock, so no device's clock is asked.
They are bound to a secret that ends with the process: after a restart every older proof is stale, and so the memory of
used `jti`s need not outlive it either.
"""

import hashlib
import hmac
import secrets
import time
from base64 import urlsafe_b64decode, urlsafe_b64encode
from dataclasses import dataclass
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from twophase.gateway.refused import Refused

NONCE_S = 300.0
"""How long a nonce can be used."""

_UNTIMED = {"verify_iat": False, "verify_exp": False, "verify_nbf": False, "verify_aud": False, "verify_iss": False}


class NotThisKey(Refused):
    """A proof by a key that is not accepted: unknown, revoked, replaced, or used again."""

    def __init__(self, why: str) -> None:
        """`why` is for the log; the sender is told nothing that it does not know."""
        super().__init__(
            401,
            "this device's key is not accepted here; ask the operator for a new enrolment code",
            WWW_Authenticate='DPoP error="invalid_token"',
        )
        self.why = why


@dataclass(frozen=True)
class Proof:
    """The header and the claims of a proof, not yet verified."""

    token: str
    kid: str
    """The device's name, or empty."""
    key: str
    """The key that came along: base64url of 32 bytes, or empty."""


def read(token: str | None) -> Proof:
    """Who a proof says it is from. Raises `Refused` when it is none."""
    try:
        header: dict[str, Any] = jwt.get_unverified_header(token or "")
        kid, jwk = header.get("kid", ""), header.get("jwk")
        if header.get("typ") != "dpop+jwt" or header.get("alg") != "EdDSA" or not isinstance(kid, str):
            raise ValueError("typ is dpop+jwt, alg EdDSA, kid the device's name")
        return Proof(token or "", kid, _key(jwk) if jwk is not None else "")
    except (jwt.InvalidTokenError, ValueError) as error:
        raise Refused(401, f"DPoP: is no proof ({error})", WWW_Authenticate='DPoP error="invalid_dpop_proof"') from None


def digest(body: bytes) -> str:
    """The claim `body`: base64url SHA-256 without padding."""
    return _text(hashlib.sha256(body).digest())


class Verifier:
    """Makes nonces, and tells a proof that is good for one request from every other."""

    def __init__(self) -> None:
        self._secret = secrets.token_bytes(32)
        self._used: set[tuple[str, str]] = set()
        self._used_before: set[tuple[str, str]] = set()
        self._turned = time.monotonic()

    def nonce(self) -> str:
        """A nonce to use next."""
        return self._sealed(int(time.monotonic()).to_bytes(8))

    def verify(self, proof: Proof, key: str, method: str, target: str, body: bytes | None) -> None:
        """Raise unless `proof` was made by `key` for exactly this request, lately and for the first time.

        `body` None is for uploads, whose content has a digest of its own. Raises `NotThisKey`, or `Refused` with
        `use_dpop_nonce` when only the nonce is missing or old.
        """
        claims = self.claims(proof, key, method, target)
        if body is not None and claims.get("body") != digest(body):
            raise NotThisKey("the proof is for another body")
        if not self._fresh(claims.get("nonce")):
            raise Refused(
                401, "DPoP: sign again with this response's DPoP-Nonce", WWW_Authenticate='DPoP error="use_dpop_nonce"'
            )
        self._use_once(key, claims["jti"])

    def claims(self, proof: Proof, key: str, method: str, target: str) -> dict[str, Any]:
        """The claims of a proof made by `key` for a request to `target`. Raises `NotThisKey`."""
        try:
            public = Ed25519PublicKey.from_public_bytes(_bytes(key))
            claims: dict[str, Any] = jwt.decode(proof.token, public, algorithms=["EdDSA"], options=_UNTIMED)  # type: ignore[arg-type]
        except (jwt.InvalidTokenError, ValueError) as error:
            raise NotThisKey(f"the signature does not hold ({error})") from None
        if (claims.get("htm"), claims.get("htu")) != (method, target):
            raise NotThisKey(f"the proof is for {claims.get('htm')} {claims.get('htu')}")
        if not isinstance(claims.get("jti"), str) or not 16 <= len(claims["jti"]) <= 64:
            raise NotThisKey("the proof has no jti of 16 to 64 characters")
        return claims

    def _fresh(self, nonce: Any) -> bool:
        if not isinstance(nonce, str) or not nonce.isascii():
            return False
        try:
            made = _bytes(nonce)[:8]
        except ValueError:
            return False
        return hmac.compare_digest(self._sealed(made), nonce) and time.monotonic() - int.from_bytes(made) <= NONCE_S

    def _use_once(self, key: str, jti: str) -> None:
        """A `jti` is remembered for as long as its nonce could be used, and at most twice that."""
        if time.monotonic() - self._turned > NONCE_S + 1:
            self._used_before, self._used, self._turned = self._used, set(), time.monotonic()
        if (key, jti) in self._used or (key, jti) in self._used_before:
            raise NotThisKey("the proof was used before")
        self._used.add((key, jti))

    def _sealed(self, made: bytes) -> str:
        return _text(made + hmac.digest(self._secret, made, "sha256")[:16])


def _key(jwk: Any) -> str:
    if not isinstance(jwk, dict) or (jwk.get("kty"), jwk.get("crv")) != ("OKP", "Ed25519"):
        raise ValueError("jwk is an Ed25519 key: kty OKP, crv Ed25519, x")
    if len(_bytes(str(jwk.get("x")))) != 32:
        raise ValueError("jwk.x is base64url of 32 bytes")
    return _text(_bytes(str(jwk["x"])))


def _text(data: bytes) -> str:
    return urlsafe_b64encode(data).rstrip(b"=").decode()


def _bytes(text: str) -> bytes:
    return urlsafe_b64decode(text + "=" * (-len(text) % 4))
