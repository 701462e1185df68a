"""Azure on loopback over TLS: a workspace in Resource Manager, its blob store, and endpoints that are our server.

What the SDK puts is kept and given back as succeeded; an online deployment starts our server on what was uploaded for
its model; the scoring address sends a request to the deployment that its header names, or by the traffic map.
"""

import datetime
import ipaddress
import json
import random
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tests.serving.loopback import serving
from twophase.errors import TwoPhaseError
from twophase.serving.app import App
from twophase.serving.predictor import Predictor
from twophase.serving.source import release_in


class Azure:
    """Resources by their id, blobs by their path."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self._folder, self._stack = folder, stack
        self.port = 0
        self.resources: dict[str, Any] = {}
        self._servers: dict[str, httpx.Client] = {}
        self.refuse_after: int | None = None

    def blob(self, method: str, path: str, body: bytes, headers: Any) -> tuple[int, dict[str, str], bytes]:
        file = self._folder / "blobs" / unquote(path).strip("/")
        if method == "PUT" and "comp=metadata" not in headers["x-query"]:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(body)
            return 201, {"etag": '"1"', "last-modified": "Sun, 22 Nov 2026 00:00:00 GMT"}, b""
        if method == "PUT":
            return 200, {"etag": '"1"', "last-modified": "Sun, 22 Nov 2026 00:00:00 GMT"}, b""
        if "comp=list" in headers["x-query"]:
            listing = (
                b"<?xml version='1.0'?><EnumerationResults ContainerName='c'><Blobs/><NextMarker/></EnumerationResults>"
            )
            return 200, {"content-type": "application/xml"}, listing
        return 404, {"x-ms-error-code": "BlobNotFound"}, b""

    def arm(self, method: str, path: str, query: str, body: Any) -> tuple[int, Any]:
        if path.startswith("/metadata"):
            return 200, [self._cloud()]
        path = path.rstrip("/")
        name = path.rpartition("/")[2]
        if method == "POST" and name.lower() == "listsecrets":
            return 200, {"secretsType": "Sas", "sasToken": "sv=1&sig=x"}
        if method == "POST" and name.lower() == "listkeys":
            return 200, {"primaryKey": "key", "secondaryKey": "key"}
        if path.endswith("/workspaces/w"):
            return 200, {"id": path, "name": "w", "location": "westeurope", "properties": {}}
        if path.endswith("/datastores/workspaceblobstore"):
            properties = {
                "datastoreType": "AzureBlob",
                "accountName": "account",
                "containerName": "c",
                "endpoint": f"localhost:{self.port}",
                "protocol": "https",
                "credentials": {"credentialsType": "Sas"},
                "isDefault": True,
            }
            return 200, {"id": path, "name": name, "properties": properties}
        if method == "PUT":
            return self._put(path, body)
        if method == "DELETE":
            for known in [k for k in self.resources if k == path or k.startswith(f"{path}/")]:
                del self.resources[known]
            return 200, {}
        if path in self.resources:
            return 200, self.resources[path]
        if name in ("versions", "deployments", "models"):
            listed = [r for k, r in self.resources.items() if k.rpartition("/")[0] == path]
            return 200, {"value": [r for r in listed if not r["properties"].get("isArchived")]}
        return 404, {"error": {"code": "ResourceNotFound", "message": f"{path} not found"}}

    def score(self, endpoint: str, body: bytes, headers: Any) -> tuple[int, dict[str, str], bytes]:
        if headers.get("authorization") != "Bearer key":
            return 401, {}, b'{"error": "no key"}'
        path = next(k for k in self.resources if k.endswith(f"/onlineEndpoints/{endpoint}"))
        traffic = {k: v for k, v in self.resources[path]["properties"].get("traffic", {}).items() if v}
        named = headers.get("azureml-model-deployment")
        chosen = named or random.choices(list(traffic), list(traffic.values()))[0]
        answer = self._servers[f"{path}/deployments/{chosen}"].post(
            "/score", content=body, headers={"content-type": headers["content-type"]}
        )
        return answer.status_code, {"content-type": "application/json"}, answer.content

    def _put(self, path: str, body: Any) -> tuple[int, Any]:
        properties = {**body.get("properties", {}), "provisioningState": "Succeeded"}
        if "/models/" in path:  # what Azure fills in by itself
            properties.setdefault("flavors", {})
        if "/deployments/" in path and not properties.get("scaleSettings"):
            properties["scaleSettings"] = {"scaleType": "Default"}
        if "/onlineEndpoints/" in path and "/deployments/" not in path:
            properties["scoringUri"] = f"https://localhost:{self.port}/score/{path.rpartition('/')[2]}"
            traffic = properties.get("traffic") or {}
            if traffic and sum(traffic.values()) not in (0, 100):
                return 400, {"error": {"code": "BadRequest", "message": f"traffic sums to {sum(traffic.values())}"}}
        self.resources[path] = {**body, "id": path, "name": path.rpartition("/")[2], "properties": properties}
        if "/deployments/" in path:
            model = self.resources[properties["model"].removeprefix("azureml:")]
            uploaded = model["properties"]["modelUri"].partition("/paths/")[2]
            try:
                predictor = Predictor(release_in(self._folder / "blobs" / "c" / uploaded))
            except TwoPhaseError as error:
                del self.resources[path]
                return 400, {"error": {"code": "ResourceNotReady", "message": f"the container ended: {error}"}}
            self._servers[path] = self._stack.enter_context(serving(App(predictor)))
        return 201, self.resources[path]

    def _cloud(self) -> Any:
        here = f"https://localhost:{self.port}"
        return {
            "name": "LoopbackCloud",
            "portal": here,
            "resourceManager": here,
            "authentication": {"loginEndpoint": here, "audiences": [here]},
            "suffixes": {"storage": f"localhost:{self.port}"},
        }


@contextmanager
def azure(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Azure]:
    """A cloud, in the SDK's environment."""
    with ExitStack() as stack:
        cloud = Azure(folder, stack)

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _do(self) -> None:
                length = int(self.headers.get("content-length") or 0)
                body, url = self.rfile.read(length), urlsplit(self.path)
                headers = {k.lower(): v for k, v in self.headers.items()} | {"x-query": url.query}
                if ".blob." in headers["host"]:
                    code, extra, data = cloud.blob(self.command, url.path, body, headers)
                elif url.path.startswith("/score/"):
                    code, extra, data = cloud.score(url.path.split("/")[2], body, headers)
                else:
                    code, answer = cloud.arm(self.command, url.path, url.query, json.loads(body) if body else None)
                    extra, data = {"content-type": "application/json"}, json.dumps(answer).encode()
                self.send_response(code)
                for name, value in {**extra, "content-length": str(len(data))}.items():
                    self.send_header(name, value)
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(data)

            do_GET = do_PUT = do_POST = do_PATCH = do_DELETE = do_HEAD = _do  # noqa: N815

            def log_message(self, *_: object) -> None:
                pass

        server = stack.enter_context(ThreadingHTTPServer(("127.0.0.1", 0), Handler))
        certificate = _certificate(folder)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        server.socket = context.wrap_socket(server.socket, server_side=True)
        cloud.port = server.server_port
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        stack.callback(thread.join)
        stack.callback(server.shutdown)
        for name, value in {
            "REQUESTS_CA_BUNDLE": str(certificate),
            "SSL_CERT_FILE": str(certificate),
            "ARM_CLOUD_METADATA_URL": f"https://localhost:{cloud.port}/metadata/endpoints?api-version=2019-05-01",
            "AZUREML_CURRENT_CLOUD": "LoopbackCloud",
        }.items():
            monkeypatch.setenv(name, value)
        resolve = socket.getaddrinfo

        def on_loopback(host: Any, *rest: Any, **more: Any) -> Any:
            return resolve("127.0.0.1" if str(host).endswith("localhost") else host, *rest, **more)

        monkeypatch.setattr(socket, "getaddrinfo", on_loopback)
        yield cloud


def _certificate(folder: Path) -> Path:
    """A key and a certificate that is its own authority, for localhost and its blob accounts."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    names = [
        x509.DNSName("localhost"),
        x509.DNSName("*.blob.localhost"),
        x509.IPAddress(ipaddress.ip_address("127.0.0.1")),
    ]
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    plain = serialization.NoEncryption()
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain)
    path = folder / "loopback.pem"
    path.write_bytes(made.public_bytes(serialization.Encoding.PEM) + pem)
    return path
