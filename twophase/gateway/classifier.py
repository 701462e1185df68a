"""Whom the gateway asks: an endpoint for a few clips, a batch prediction job for many.

`Classifier` is all that the gateway knows of a target. `VertexClassifier` speaks Vertex AI's REST API and the little of
Cloud Storage that a job needs, to Google's cloud and to the platform on this machine alike.
"""

import time
from base64 import b64encode
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import quote

import httpx
import orjson

from twophase.errors import TwoPhaseError
from twophase.files import JSON
from twophase.targets.rest import Vertex

_MACHINE = "n1-standard-2"
_PART_BYTES = 32 << 20
_AGAIN = frozenset({401, 403, 404, 408, 409, 429})
"""Refusals that say nothing about the clip: credentials, an endpoint that is just replaced, a limit."""


class Away(TwoPhaseError):
    """The classifier cannot be asked now; nothing is known about the clip."""


class Classifier(Protocol):
    """What answers clips. Every method may raise `Away`; an answer is `{"prediction": ...}` or `{"error": ...}`."""

    def front_end(self) -> str:
        """The fingerprint of the front end that it speaks."""

    def predict(self, clip: Path) -> JSON:
        """Its answer to one clip."""

    def submit(self, job: str, clips: Iterable[tuple[str, Path]]) -> str:
        """Start one batch job about clips by their keys; the job's name. `job` is the gateway's own id for it."""

    def find(self, job: str) -> str | None:
        """The name of the job that was started with this id, if it was."""

    def ended(self, name: str) -> str | None:
        """Whether a job has ended: None while it goes on, else empty, or why it failed."""

    def answers(self, name: str) -> Iterator[tuple[str, JSON]]:
        """The answers of a job that has ended, by key."""

    def clean(self, job: str) -> None:
        """Remove what a job was given, and what it wrote."""


class VertexClassifier:
    """An endpoint of Vertex AI and the model version that it serves. Use it from one thread at a time."""

    def __init__(self, project: str, region: str, api_endpoint: str, endpoint: str, bucket: str) -> None:
        """`endpoint` is a display name; batch jobs read and write `gs://bucket/gateway/`."""
        self._where = (project, region, api_endpoint)
        self._name, self._bucket = endpoint, bucket
        local = api_endpoint.startswith("http://")  # the platform on this machine, which keeps buckets too
        self._storage = api_endpoint.rstrip("/") if local else "https://storage.googleapis.com"
        self._client: Vertex | None = None
        self._asked = 0.0
        self._front_end = ""

    def front_end(self) -> str:
        """See `Classifier`; looked up at most every minute."""
        if not self._front_end or time.monotonic() - self._asked > 60:
            _, _, version = self._live()
            self._front_end = str(self._get(version).get("labels", {}).get("front_end", ""))
            self._asked = time.monotonic()
        return self._front_end

    def predict(self, clip: Path) -> JSON:
        """See `Classifier`."""
        vertex, endpoint, _ = self._live()
        answer = self._send(
            "POST",
            f"{vertex.address}/v1/{endpoint}:rawPredict",
            content=clip.read_bytes(),
            headers={"content-type": "application/octet-stream"},
        )
        if answer.is_success:
            return {"prediction": answer.json()["predictions"][0]}
        return {"error": _error(answer)}

    def submit(self, job: str, clips: Iterable[tuple[str, Path]]) -> str:
        """See `Classifier`."""
        vertex, _, version = self._live()
        uris = [self._upload(f"{_folder(job)}/in-{i:05}.jsonl", part) for i, part in enumerate(_parts(clips))]
        body = {
            "displayName": job,
            "model": version,
            "inputConfig": {"instancesFormat": "jsonl", "gcsSource": {"uris": uris}},
            "outputConfig": {
                "predictionsFormat": "jsonl",
                "gcsDestination": {"outputUriPrefix": f"gs://{self._bucket}/{_folder(job)}/out"},
            },
            "instanceConfig": {"keyField": "key"},
            "dedicatedResources": {"machineSpec": {"machineType": _MACHINE}, "startingReplicaCount": 1},
        }
        return str(self._checked("POST", f"{vertex.address}/v1/{vertex.parent}/batchPredictionJobs", json=body)["name"])

    def find(self, job: str) -> str | None:
        """See `Classifier`."""
        vertex = self._vertex()
        where = f"{vertex.address}/v1/{vertex.parent}/batchPredictionJobs"
        found = self._checked("GET", where, params={"filter": f'display_name="{job}"'})
        return next((str(item["name"]) for item in found.get("batchPredictionJobs", [])), None)

    def ended(self, name: str) -> str | None:
        """See `Classifier`."""
        found = self._get(name)
        state = found["state"].removeprefix("JOB_STATE_")
        if state in ("SUCCEEDED", "PARTIALLY_SUCCEEDED"):
            return ""
        if state in ("FAILED", "CANCELLED", "EXPIRED"):
            return str(found.get("error", {}).get("message") or state)
        return None

    def answers(self, name: str) -> Iterator[tuple[str, JSON]]:
        """See `Classifier`."""
        folder = self._get(name)["outputInfo"]["gcsOutputDirectory"].partition(f"gs://{self._bucket}/")[2]
        for found in self._objects(f"{folder}/prediction."):
            for line in self._read(found).splitlines():
                item = orjson.loads(line)
                if "key" in item:
                    yield item["key"], {k: item[k] for k in ("prediction", "error") if k in item}

    def clean(self, job: str) -> None:
        """See `Classifier`."""
        for found in self._objects(f"{_folder(job)}/"):
            self._send("DELETE", self._object(found))

    def _vertex(self) -> Vertex:
        if self._client is None:
            try:
                self._client = Vertex(*self._where)
            except TwoPhaseError as error:  # no credentials yet
                raise Away(str(error)) from None
            self._http = httpx.Client(auth=self._client.auth, timeout=60.0)
        return self._client

    def _live(self) -> tuple[Vertex, str, str]:
        """The client, the endpoint, and the model version that has most of its traffic."""
        vertex = self._vertex()
        try:
            endpoint = vertex.endpoint(self._name)
        except TwoPhaseError as error:
            raise Away(str(error)) from None
        split = endpoint.get("trafficSplit") or {}
        deployed = max(endpoint.get("deployedModels", []), key=lambda d: int(split.get(d["id"], 0)), default=None)
        if deployed is None:
            raise Away(f"{self._name}: nothing is deployed at this endpoint")
        return vertex, str(endpoint["name"]), f"{deployed['model']}@{deployed['modelVersionId']}"

    def _get(self, name: str) -> JSON:
        vertex = self._vertex()
        return self._checked("GET", f"{vertex.address}/v1/{name}")

    def _upload(self, name: str, content: bytes) -> str:
        where = f"{self._storage}/upload/storage/v1/b/{self._bucket}/o"
        self._checked("POST", where, params={"uploadType": "media", "name": name}, content=content)
        return f"gs://{self._bucket}/{name}"

    def _objects(self, prefix: str) -> Iterator[str]:
        token = ""
        while True:
            params = {"prefix": prefix, **({"pageToken": token} if token else {})}
            page = self._checked("GET", f"{self._storage}/storage/v1/b/{self._bucket}/o", params=params)
            yield from (item["name"] for item in page.get("items", []))
            token = page.get("nextPageToken", "")
            if not token:
                return

    def _read(self, name: str) -> bytes:
        answer = self._send("GET", self._object(name), params={"alt": "media"})
        if not answer.is_success:
            raise Away(f"gs://{self._bucket}/{name}: {_error(answer)['message']}")
        return answer.content

    def _object(self, name: str) -> str:
        return f"{self._storage}/storage/v1/b/{self._bucket}/o/{quote(name, safe='')}"

    def _checked(self, method: str, url: str, **how: Any) -> JSON:
        answer = self._send(method, url, **how)
        if not answer.is_success:
            raise Away(f"{method} {url}: {_error(answer)['message']}")
        return answer.json()

    def _send(self, method: str, url: str, **how: Any) -> httpx.Response:
        """An answer that says something about what was asked. Raises `Away` for every other."""
        self._vertex()
        try:
            answer = self._http.request(method, url, **how)
        except httpx.TransportError as error:
            raise Away(f"{url}: does not answer ({error})") from None
        except TwoPhaseError as error:  # the credentials have run out
            raise Away(str(error)) from None
        if answer.status_code >= 500 or answer.status_code in _AGAIN:
            raise Away(f"{url}: {_error(answer)['message']}")
        return answer


def _parts(clips: Iterable[tuple[str, Path]]) -> Iterator[bytes]:
    """The lines of a job's input, in files of about 32 MB."""
    part = bytearray()
    for key, path in clips:
        part += orjson.dumps({"key": key, "audio_bytes": {"b64": b64encode(path.read_bytes()).decode()}}) + b"\n"
        if len(part) >= _PART_BYTES:
            yield bytes(part)
            part.clear()
    if part:
        yield bytes(part)


def _folder(job: str) -> str:
    return f"gateway/{job}"


def _error(answer: httpx.Response) -> JSON:
    try:
        error = answer.json()["error"]
        return {"code": int(error["code"]), "message": str(error["message"]), "status": str(error["status"])}
    except (ValueError, KeyError, TypeError):
        return {"code": answer.status_code, "message": answer.text[:200], "status": "UNKNOWN"}
