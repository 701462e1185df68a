"""Azure on loopback over TLS: a workspace in Resource Manager, its blob store, and endpoints that are our server.

What the SDK puts is kept and given back as succeeded; an online deployment starts our server on what was uploaded for
its model; the scoring address sends a request to the deployment that its header names, or by the traffic map, and a
share of them to the deployment that mirrors. A batch job runs the uploaded scoring script in a process of its own, as
Azure's driver does: `init` once, `run` for each file. An archived model keeps its version, which cannot be another.
"""

import datetime
import ipaddress
import json
import os
import random
import socket
import ssl
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tests.serving.loopback import serving
from tests.targets.azurite import Blobs, azurite
from twophase.errors import TwoPhaseError
from twophase.serving.app import App
from twophase.serving.predictor import Predictor
from twophase.serving.source import release_in

DRIVER = "import azureml_score as s, sys; s.init(); s.run(sys.argv[1:3]); [s.run([name]) for name in sys.argv[3:]]"


class Azure:
    """Resources by their id, blobs by their path."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self._folder, self._stack = folder, stack
        self.port = 0
        self.blobs: Blobs | None = None
        """Where the store's blobs are, if that is not here."""
        self.resources: dict[str, Any] = {}
        self._servers: dict[str, httpx.Client] = {}
        self.mirrored: Counter[str] = Counter()
        """Requests that were copied, by deployment."""
        self.key = "key"
        """What opens the endpoint."""
        self.jobs_end = "Completed"
        """How batch jobs end; they run without an end where this is `Running`."""

    def blob(self, method: str, path: str, body: bytes, headers: Any) -> tuple[int, dict[str, str], bytes]:
        file = self._folder / "blobs" / unquote(path).strip("/")
        if method == "PUT" and "comp=metadata" not in headers["x-query"]:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(body)
            return 201, {"etag": '"1"', "last-modified": "Sun, 22 Nov 2026 00:00:00 GMT"}, b""
        if method == "PUT":
            return 200, {"etag": '"1"', "last-modified": "Sun, 22 Nov 2026 00:00:00 GMT"}, b""
        query = {name: value for name, (value, *_) in parse_qs(headers["x-query"]).items()}
        if query.get("comp") == "list":
            found = [blob.relative_to(file).as_posix() for blob in sorted(file.rglob("*")) if blob.is_file()]
            blobs = "".join(
                f"<Blob><Name>{escape(name)}</Name><Properties/></Blob>"
                for name in found
                if name.startswith(query.get("prefix", ""))
            )
            listing = f"""<?xml version='1.0'?><EnumerationResults ContainerName="store"><Blobs>{blobs}</Blobs>
                <NextMarker/></EnumerationResults>"""
            return 200, {"content-type": "application/xml"}, listing.encode()
        if method == "HEAD" or not file.is_file():  # the SDK asks before it uploads: always do
            return 404, {"x-ms-error-code": "BlobNotFound"}, b""
        if method == "DELETE":
            file.unlink()
            return 202, {}, b""
        data, told = file.read_bytes(), {"etag": '"1"', "last-modified": "Sun, 22 Nov 2026 00:00:00 GMT"}
        return 206, {**told, "content-range": f"bytes 0-{len(data) - 1}/{len(data)}"}, data

    def arm(self, method: str, path: str, query: str, body: Any) -> tuple[int, Any]:
        if path.startswith("/metadata"):
            return 200, [self._cloud()]
        if path.startswith("/batch/"):
            return 201, self._run(path.split("/")[2], body["properties"])
        path = path.rstrip("/")
        name = path.rpartition("/")[2]
        if method == "POST" and name.lower() == "listsecrets":
            return 200, {"secretsType": "Sas", "sasToken": self._sas}
        if method == "POST" and name == "startPendingUpload":
            # Azure gives a container to each; the store's own has room for all.
            uri = f"https://account.blob.localhost:{self._blob_port}/store"
            credential = {"credentialType": "SAS", "sasUri": f"{uri}?{self._sas}"}
            return 200, {"blobReferenceForConsumption": {"blobUri": uri, "credential": credential}}
        if method == "POST" and name == "cancel":
            self.resources[path.removesuffix("/cancel")]["properties"]["status"] = "Canceled"
            return 200, {}
        if method == "POST" and name.lower() == "listkeys":
            return 200, {"primaryKey": self.key, "secondaryKey": self.key}
        if path.endswith("/workspaces/w"):
            return 200, {"id": path, "name": "w", "location": "westeurope", "properties": {}}
        if path.endswith("/datastores/workspaceblobstore"):
            properties = {
                "datastoreType": "AzureBlob",
                "accountName": "account",
                "containerName": "store",
                "endpoint": f"localhost:{self._blob_port}",
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
            every = "listViewType=All" in query
            return 200, {"value": [r for r in listed if every or not r["properties"].get("isArchived")]}
        return 404, {"error": {"code": "ResourceNotFound", "message": f"{path} not found"}}

    def score(self, endpoint: str, body: bytes, headers: Any) -> tuple[int, dict[str, str], bytes]:
        if headers.get("authorization") != f"Bearer {self.key}":
            return 401, {}, b'{"error": "no key"}'
        path = next(k for k in self.resources if k.endswith(f"/onlineEndpoints/{endpoint}"))
        traffic = {k: v for k, v in self.resources[path]["properties"].get("traffic", {}).items() if v}
        for name, share in self.resources[path]["properties"].get("mirrorTraffic", {}).items():
            self.mirrored[name] += random.uniform(0, 100) < share
        named = headers.get("azureml-model-deployment")
        chosen = named or random.choices(list(traffic), list(traffic.values()))[0]
        answer = self._servers[f"{path}/deployments/{chosen}"].post(
            "/score", content=body, headers={"content-type": headers["content-type"]}
        )
        if answer.status_code != 200:
            return 424, {"ms-azureml-model-error-statuscode": str(answer.status_code)}, answer.content
        return 200, {"content-type": "application/json"}, answer.content

    def _put(self, path: str, body: Any) -> tuple[int, Any]:
        properties = {**body.get("properties", {}), "provisioningState": "Succeeded"}
        if "/models/" in path:  # what Azure fills in by itself
            properties.setdefault("flavors", {})
            known = self.resources.get(path, {"properties": properties})["properties"]
            if "modelUri" in properties and known["modelUri"] != properties["modelUri"]:
                return 409, {"error": {"code": "Conflict", "message": "an asset's path is immutable"}}
        if "/batchEndpoints/" in path and "/deployments/" not in path:
            properties["scoringUri"] = f"https://localhost:{self.port}/batch/{path.rpartition('/')[2]}"
        if "/onlineEndpoints/" in path and "/deployments/" in path and not properties.get("scaleSettings"):
            properties["scaleSettings"] = {"scaleType": "Default"}
        if "/onlineEndpoints/" in path and "/deployments/" not in path:
            properties["scoringUri"] = f"https://localhost:{self.port}/score/{path.rpartition('/')[2]}"
            traffic = properties.get("traffic") or {}
            if traffic and sum(traffic.values()) not in (0, 100):
                return 400, {"error": {"code": "BadRequest", "message": f"traffic sums to {sum(traffic.values())}"}}
            mirror = {name: share for name, share in (properties.get("mirrorTraffic") or {}).items() if share}
            if len(mirror) > 1 or any(share > 50 or traffic.get(name) for name, share in mirror.items()):
                return 400, {"error": {"code": "BadRequest", "message": f"cannot mirror {mirror}"}}
        self.resources[path] = {**body, "id": path, "name": path.rpartition("/")[2], "properties": properties}
        if "/onlineEndpoints/" in path and "/deployments/" in path:
            model = self.resources[properties["model"].removeprefix("azureml:")]
            try:
                predictor = Predictor(release_in(self.stored(model["properties"]["modelUri"])))
            except TwoPhaseError as error:
                del self.resources[path]
                return 400, {"error": {"code": "ResourceNotReady", "message": f"the container ended: {error}"}}
            self._servers[path] = self._stack.enter_context(serving(App(predictor)))
        return 201, self.resources[path]

    def stored(self, uri: str) -> Path:
        """Where the blobs of a datastore's path or of an address lie."""
        _, found, path = uri.partition("/paths/")
        name = path if found else urlsplit(uri).path.strip("/").removeprefix("store").strip("/")
        if self.blobs:
            self.blobs.pull(name, self._folder / "blobs/store")
        return self._folder / "blobs/store" / name

    def _run(self, endpoint: str, asked: Any) -> Any:
        """A batch job of the endpoint's one deployment, run to its end."""
        deployments = [r for k, r in self.resources.items() if f"/batchEndpoints/{endpoint}/deployments/" in k]
        deployed = deployments[-1]["properties"]
        (source,), (wanted,) = asked["inputData"].values(), asked["outputData"].values()
        given, output = self.stored(source["uri"]), self.stored(wanted["uri"])
        output.mkdir(parents=True)
        files = sorted(map(str, given.iterdir()))
        code = self.resources[deployed["codeConfiguration"]["codeId"].removeprefix("azureml:")]["properties"]["codeUri"]
        model = self.resources[deployed["model"]["assetId"].removeprefix("azureml:")]["properties"]["modelUri"]
        environment = {
            **os.environ,
            "AZUREML_MODEL_DIR": str(self.stored(model)),
            "AZUREML_BI_OUTPUT_PATH": str(output),
            "PYTHONPATH": f"{self.stored(code)}:{Path(__file__).parents[2]}",
            "TWOPHASE_PYTHON": sys.executable,
        }
        if self.jobs_end == "Completed":
            subprocess.run([sys.executable, "-c", DRIVER, *files], env=environment, check=True)
            if self.blobs:
                self.blobs.push(
                    output.relative_to(self._folder / "blobs/store").as_posix(), self._folder / "blobs/store"
                )
        endpoint_id = next(k for k in self.resources if k.endswith(f"/batchEndpoints/{endpoint}"))
        path = f"{endpoint_id.partition('/batchEndpoints/')[0]}/jobs/{asked['name']}"
        properties = {"jobType": "Pipeline", "status": self.jobs_end, "jobs": {}, "inputs": {}, "outputs": {}}
        self.resources[path] = {"id": path, "name": asked["name"], "properties": properties}
        return self.resources[path]

    @property
    def _sas(self) -> str:
        return self.blobs.sas if self.blobs else "sv=1&sig=x"

    @property
    def _blob_port(self) -> int:
        return self.blobs.port if self.blobs else self.port

    def _cloud(self) -> Any:
        here = f"https://localhost:{self.port}"
        return {
            "name": "LoopbackCloud",
            "portal": here,
            "resourceManager": here,
            "authentication": {"loginEndpoint": here, "audiences": [here]},
            "suffixes": {"storage": f"localhost:{self._blob_port}"},
        }


@contextmanager
def azure(folder: Path, monkeypatch: pytest.MonkeyPatch, blobs: str = "here") -> Iterator[Azure]:
    """A cloud, in the SDK's environment; its blobs are `here`, or in `azurite`."""
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
        if blobs == "azurite":
            cloud.blobs = stack.enter_context(azurite(certificate))
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
