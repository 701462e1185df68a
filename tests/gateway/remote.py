"""A device as docs/gateway.md describes it, and a gateway's process: for tests, and for benchmarks/fleet.py."""

import base64
import hashlib
import os
import secrets
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import jwt
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

FRONT_END = "fe-0123456789ab"


def b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


class Key:
    """A device's key pair, and the proofs that it makes."""

    def __init__(self) -> None:
        self._private = Ed25519PrivateKey.generate()
        raw = self._private.public_key().public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
        self.jwk = {"kty": "OKP", "crv": "Ed25519", "x": b64(raw)}

    def proof(self, name: str | None, method: str, target: str, nonce: str, body: bytes | None, **more: str) -> str:
        who = {"kid": name} if name else {"jwk": self.jwk}
        claims = {"htm": method, "htu": target, "nonce": nonce, "jti": b64(secrets.token_bytes(16))}
        if body is not None:
            claims["body"] = b64(hashlib.sha256(body).digest())
        return jwt.encode(claims | more, self._private, "EdDSA", headers={"typ": "dpop+jwt", **who})


def announced(sequence: int, data: bytes, **more: Any) -> dict[str, Any]:
    """A clip as it is announced."""
    return {
        "sequence": sequence,
        "sha256": hashlib.sha256(data).hexdigest(),
        "bytes": len(data),
        "kind": "escalation",
        "gate": "r-0123456789ab",
        "front_end": FRONT_END,
        "score": 1.5,
        "windows": 2,
        "captured": "2026-03-01T12:00:00Z",
        "clock_trusted": True,
        **more,
    }


class Device:
    """One device's side of the protocol, without any memory but its key and its nonce."""

    def __init__(self, http: httpx.Client, key: Key | None = None, name: str | None = None) -> None:
        self.http, self.key, self.name, self.nonce = http, key or Key(), name, ""

    def send(self, method: str, target: str, value: Any = None, **how: Any) -> httpx.Response:
        """A signed request; signed again where the nonce was old."""
        body = how.pop("content", None) if method == "PATCH" else (httpx.Request("POST", "/", json=value).content)
        if method == "GET":
            body = b""
        for _ in range(2):
            proof = self.key.proof(self.name, method, target, self.nonce, None if method == "PATCH" else body)
            headers = {"dpop": proof, **how.get("headers", {})}
            answer = self.http.request(method, target, content=body, headers=headers)
            self.nonce = answer.headers.get("dpop-nonce", self.nonce)
            if "use_dpop_nonce" not in answer.headers.get("www-authenticate", ""):
                break
        return answer

    def enrol(self, code: str) -> httpx.Response:
        self.name = None
        answer = self.send("POST", "/v1/enrol", {"code": code})
        if answer.is_success:
            self.name = answer.json()["device"]
        return answer

    def announce(self, *clips: dict[str, Any]) -> httpx.Response:
        return self.send("POST", "/v1/clips", {"clips": list(clips)})

    def append(self, sequence: int, offset: int, data: bytes) -> httpx.Response:
        return self.send("PATCH", f"/v1/clips/{sequence}", content=data, headers={"upload-offset": str(offset)})

    def upload(self, sequence: int, data: bytes, **more: Any) -> str:
        """Announce and send a clip; its state after that."""
        state = self.announce(announced(sequence, data, **more)).raise_for_status().json()["clips"][0]
        if state["state"] != "receiving":
            return str(state["state"])
        answer = self.append(sequence, state["offset"], data[state["offset"] :])
        return str(answer.raise_for_status().json()["state"])

    def answers(self, wait: int = 0) -> list[dict[str, Any]]:
        return list(self.send("GET", f"/v1/answers?wait={wait}").raise_for_status().json()["answers"])

    def acknowledge(self, *sequences: int) -> None:
        self.send("POST", "/v1/answers", {"acknowledge": list(sequences)}).raise_for_status()


class Process:
    """A gateway in a process of its own, on a free port."""

    def __init__(self, home: Path, *arguments: str, env: dict[str, str] | None = None) -> None:
        """`env` is put over this process's own."""
        command = [sys.executable, "-m", "twophase", "gateway", "up", "--home", str(home), "--port", "0", *arguments]
        self._process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, **(env or {})})
        assert self._process.stderr is not None
        self.said = self._process.stderr.readline().strip()
        assert self.said.startswith("http"), self.said + self._process.stderr.read()

    def kill(self) -> None:
        self._process.kill()
        self._end()

    def stop(self) -> None:
        self._process.send_signal(signal.SIGTERM)
        self._end()

    def _end(self) -> None:
        self._process.wait()
        assert self._process.stderr is not None
        self._process.stderr.close()


@contextmanager
def serving(folder: Path) -> Iterator[str]:
    """The address of a platform in `folder` where an endpoint `two-phase` serves a stand-in release."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "serving"))
    from standin import make

    from twophase.audio.frontend import FRONT_END
    from twophase.local.process import down, up

    release = make(folder / "release", seed=1)
    url = up(folder / "home").url
    where = "projects/local/locations/us-central1"
    with httpx.Client(base_url=f"{url}/v1/", timeout=60) as http:

        def made(path: str, body: dict[str, Any]) -> Any:
            return http.post(path, json=body).raise_for_status().json()["response"]

        labels = {"front_end": FRONT_END.fingerprint}
        model = {"displayName": "two-phase", "artifactUri": str(release), "labels": labels}
        version = made(f"{where}/models:upload", {"model": model})["model"]
        endpoint = made(f"{where}/endpoints", {"displayName": "two-phase"})["name"]
        made(f"{endpoint}:deployModel", {"deployedModel": {"model": version}, "trafficSplit": {"0": 100}})
    yield url
    down(folder / "home")
