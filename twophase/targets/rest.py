"""Vertex AI's REST API, spoken by the command line: the SDK takes seconds to import, this starts at once.

The same against Google's cloud and the platform on this machine; only the address and the credentials differ. Google's
token is taken from `GOOGLE_OAUTH_ACCESS_TOKEN`, from gcloud, or from a service account.
"""

import builtins
import os
import subprocess
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx

from twophase.errors import TwoPhaseError
from twophase.files import JSON
from twophase.release.manifest import EXTRA, read
from twophase.targets.requests import Limits, body, refusal, sent

LIMITS = Limits("Vertex AI's shared endpoint", 1_500_000, 60)


class Vertex:
    """One project and region at one address."""

    def __init__(self, project: str, region: str, api_endpoint: str) -> None:
        """`api_endpoint` is an address such as `http://127.0.0.1:8470`, or empty for Google's own."""
        self.address = api_endpoint.rstrip("/") or f"https://{region}-aiplatform.googleapis.com"
        self.parent = f"projects/{project}/locations/{region}"
        self.local = self.address.startswith("http://")
        self.auth = Bearer((lambda: os.environ.get("TWOPHASE_TOKEN", "")) if self.local else _token)
        self._http = httpx.Client(base_url=f"{self.address}/v1/", auth=self.auth, timeout=60.0)

    def list(self, collection: str, field: str, **params: str) -> Iterator[JSON]:
        """Every item of a collection such as `{parent}/models`, page by page; `field` names the list in an answer."""
        token = ""
        while True:
            page = self.get(collection, **params, **({"pageToken": token} if token else {}))
            yield from page.get(field, [])
            token = page.get("nextPageToken", "")
            if not token:
                return

    def get(self, name: str, **params: str) -> JSON:
        """One resource."""
        return self._call("GET", name, params=params)

    def post(self, name: str, body: JSON) -> JSON:
        """Call a method, such as `{endpoint}:predict`."""
        return self._call("POST", name, json=body)

    def patch(self, name: str, body: JSON, **params: str) -> JSON:
        """Change the fields of a resource that `updateMask` names."""
        return self._call("PATCH", name, json=body, params=params)

    def delete(self, name: str) -> JSON:
        """Delete a resource, and wait until it is gone."""
        return self._finished(self._call("DELETE", name))

    def done(self, name: str, body: JSON) -> JSON:
        """Call a method that answers with an operation, and wait for its response."""
        return self._finished(self.post(name, body))

    def find(self, kind: str, display_name: str) -> JSON | None:
        """The one of `models`, `endpoints` or `batchPredictionJobs` of this name, models at their default version."""
        return next(self.list(f"{self.parent}/{kind}", kind, filter=f'display_name="{display_name}"'), None)

    def model(self, display_name: str) -> JSON:
        """The model of that name, at its default version. Raises `TwoPhaseError` naming those that there are."""
        return self._named("models", display_name)

    def endpoint(self, display_name: str) -> JSON:
        """The endpoint of that name. Raises `TwoPhaseError` naming those that there are."""
        return self._named("endpoints", display_name)

    def versions(self, model: JSON) -> builtins.list[JSON]:
        """The versions of a model, oldest first."""
        found = self.list(f"{model['name'].split('@')[0]}:listVersions", "models")
        return sorted(found, key=lambda version: int(version["versionId"]))

    def version(self, model: str, wanted: str) -> JSON:
        """A version of the model with that resource name, by its number, an alias, or its release `r-<12 hex>`.

        Raises `TwoPhaseError`.
        """
        if not wanted.startswith("r-"):
            return self.get(f"{model}@{wanted}")
        known = self.versions({"name": model})
        found = [version for version in known if version.get("labels", {}).get("release") == wanted]
        if not found:
            releases = ", ".join(version.get("labels", {}).get("release", version["versionId"]) for version in known)
            raise TwoPhaseError(f"{wanted}: is no version of {model}; there are {releases}")
        return found[-1]

    def upload(self, display_name: str, folder: Path, parent: str = "") -> JSON:
        """Have the platform on this machine copy a model folder in: as a new model, or as a version of `parent`.

        The version as it is then. Google's cloud reads buckets only: `vertex_sdk.py` stages folders there.
        """
        model: dict[str, Any] = {"displayName": display_name, "artifactUri": str(folder.absolute())}
        if (folder / EXTRA / "release.json").is_file():
            found = read(folder)
            model["labels"] = {"release": found.id, "front_end": found.fingerprint}
        made = self.done(f"{self.parent}/models:upload", {"model": model} | ({"parentModel": parent} if parent else {}))
        return self.get(f"{made['model']}@{made['modelVersionId']}")

    def unschedule(self, display_name: str) -> builtins.list[str]:
        """Delete the schedules of that name, which runs under way survive; their resource names."""
        found = self.list(f"{self.parent}/schedules", "schedules", filter=f'display_name="{display_name}"')
        names = [str(schedule["name"]) for schedule in found]
        for name in names:
            self.delete(name)
        return names

    def predict(self, endpoint: JSON, clips: Sequence[Path]) -> JSON:
        """Ask an endpoint about clip files, a request each; Vertex's answer with a prediction a clip."""
        answers = [self.post(f"{endpoint['name']}:predict", body([sent(clip, LIMITS)])) for clip in clips]
        return {**answers[-1], "predictions": [answer["predictions"][0] for answer in answers]}

    def _named(self, kind: str, display_name: str) -> JSON:
        found = self.find(kind, display_name)
        if found is None:
            names = sorted({item["displayName"] for item in self.list(f"{self.parent}/{kind}", kind)})
            raise TwoPhaseError(
                f"{display_name}: is none of the {kind} at {self.address}; "
                + (f"there are {', '.join(names)}" if names else "there are none yet: `twophase run` makes one")
            )
        return found

    def _finished(self, operation: JSON) -> JSON:
        """The response of an operation, once it has ended. Raises `TwoPhaseError` when it ended badly."""
        wait_s = 0.2
        while not operation.get("done"):
            time.sleep(wait_s)
            wait_s = min(2 * wait_s, 10.0)
            operation = self.get(operation["name"])
        if "error" in operation:
            raise TwoPhaseError(f"{self.address}: {operation['name']} failed: {operation['error'].get('message')}")
        return operation.get("response", {})

    def _call(self, method: str, name: str, **how: Any) -> JSON:
        try:
            answer = self._http.request(method, name, **how)
        except httpx.TransportError as error:
            raise TwoPhaseError(
                f"{self.address}: does not answer ({error}); start it with `twophase local up`, or give --api-endpoint"
            ) from None
        if answer.is_success:
            return answer.json()
        try:
            refused = answer.json()["error"]
            said, status = str(refused["message"]), str(refused.get("status", ""))
        except (ValueError, KeyError, TypeError, AttributeError):
            said, status = answer.text[:200], ""
        raise refusal(answer.status_code, said, f"{self.address}: {method} {name}", status)


class Bearer(httpx.Auth):
    """A token, and a new one when it has run out: they last an hour, batch jobs longer."""

    def __init__(self, get: Callable[[], str]) -> None:
        """`get` gives a token that is good for now, or nothing where none is needed."""
        self._get, self._token = get, get()

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        """Ask again once with another token where this one is refused: what is refused has changed nothing."""
        if self._token:
            request.headers["authorization"] = f"Bearer {self._token}"
        answer = yield request
        if answer.status_code == 401 and (token := self._get()) != self._token:
            self._token = token
            request.headers["authorization"] = f"Bearer {token}"
            yield request


def _token() -> str:
    """Raises `TwoPhaseError` when nobody is signed in here."""
    if token := os.environ.get("GOOGLE_OAUTH_ACCESS_TOKEN"):
        return token
    # gcloud first where both could: without a credentials file google-auth asks the network where it runs, for seconds
    ways = (_default, _gcloud) if os.environ.get("GOOGLE_APPLICATION_CREDENTIALS") else (_gcloud, _default)
    for way in ways:
        if token := way():
            return token
    raise TwoPhaseError(
        "no credentials for Google Cloud: run `gcloud auth login`, or name a service account's file in "
        "GOOGLE_APPLICATION_CREDENTIALS, or set GOOGLE_OAUTH_ACCESS_TOKEN, or name a local platform with --api-endpoint"
    )


def _gcloud() -> str:
    try:
        run = subprocess.run(["gcloud", "auth", "print-access-token"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return ""
    return run.stdout.strip()


def _default() -> str:
    """Of a service account: its file, or the machine's own in Google's cloud (google-auth, where it is installed)."""
    try:
        import google.auth
        import urllib3
        from google.auth.exceptions import GoogleAuthError
        from google.auth.transport.urllib3 import Request
    except ImportError:
        return ""
    try:
        credentials, _ = google.auth.default(scopes=["https://www.googleapis.com/auth/cloud-platform"])
        credentials.refresh(Request(urllib3.PoolManager()))
    except GoogleAuthError:
        return ""
    return str(credentials.token)
