"""Releases on Vertex AI, in Google's cloud or on this machine: one API at two addresses, so one target.

    model NAME                  its versions are the releases, told apart by the label `release`
    endpoint NAME               traffic and history, as `twophase.targets.traffic` moves them
    gs://PROJECT-twophase-staging/batch/NAME-<12 hex>/   a batch job's folder (`twophase.targets.jobs`)

An endpoint of Vertex AI cannot be asked for one of its versions. So a newcomer gets a small share before its golden
windows are replayed, and is asked until it has answered.
"""

import functools
import re
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import orjson

from twophase.errors import TwoPhaseError, UsageError
from twophase.files import JSON
from twophase.release.manifest import read
from twophase.targets.jobs import CANCELLED, CLIPS, FAILED, INSTANCES, NO_ANSWER, RUNNING, SUCCEEDED, Job, Jobs
from twophase.targets.requests import body
from twophase.targets.rest import LIMITS, Vertex
from twophase.targets.target import SERVER_IMAGE, Status
from twophase.targets.traffic import CANARY_PERCENT, MACHINE, TRIES, Traffic, history

_STATES = {"SUCCEEDED": SUCCEEDED, "FAILED": FAILED, "EXPIRED": FAILED, "CANCELLED": CANCELLED}


class VertexAI(Jobs):
    """One name in one project and region."""

    limits = LIMITS
    names = r".{1,128}"

    def __init__(self, model: str, project: str, region: str, api_endpoint: str, image: str = SERVER_IMAGE) -> None:
        """`api_endpoint` is the address of the platform on this machine, or empty for Google's cloud.

        `image` is the server image in Artifact Registry; the platform on this machine needs none.
        """
        super().__init__(model)
        self._place, self._image = (project, region, api_endpoint), image
        self._vertex = Vertex(*self._place)
        self._bucket_name = f"{project}-twophase-staging"

    def version_of(self, release_id: str) -> str | None:
        """The version that carries the release as its label."""
        return next((version for version, release in self._versions().items() if release == release_id), None)

    def front_end_of(self, version: str) -> str:
        """As the version's label has it."""
        found = self._vertex.version(self._vertex.model(self.model)["name"].partition("@")[0], version)
        return str(found.get("labels", {}).get("front_end", ""))

    def register(self, release: Path) -> str:
        """Upload a version: the platform copies the folder in, Google's cloud is sent it through a bucket."""
        if not self._vertex.local:
            from twophase.targets.vertex_sdk import Registry

            try:
                registry = Registry(*self._place)
            except ModuleNotFoundError as error:
                raise UsageError(f"vertex needs {error.name} for an upload; install twophase[pipelines]") from None
            return registry.register(release, self.model, self._image).rpartition("@")[2]
        known = self.version_of(read(release).id)
        if known is not None:
            return known
        parent = self._vertex.find("models", self.model)
        made = self._vertex.upload(self.model, release, parent["name"].partition("@")[0] if parent else "")
        return str(made["versionId"])

    def attach(self, version: str) -> None:
        """Deploy a version: alone with all the traffic, beside others without any."""
        shares, traffic = self.status().shares, Traffic(self._vertex, self.model)
        if not shares:
            traffic.split({version: 100})
        elif version not in shares:
            traffic.attach(version)

    def settle(self) -> None:
        """A deployment is on its endpoint only when it is done, so one under way would be begun a second time."""
        endpoint, wait_s = self._vertex.find("endpoints", self.model), 0.2
        if endpoint is None:
            return
        changes = f"{endpoint['name']}/operations"
        while not all(change.get("done") for change in self._vertex.list(changes, "operations")):
            time.sleep(wait_s)
            wait_s = min(2 * wait_s, 10.0)

    def detach(self, version: str) -> None:
        """Undeploy a version that has no traffic; the last one takes the endpoint with it."""
        endpoint = self._vertex.find("endpoints", self.model)
        if endpoint is None:
            return
        deployed = endpoint.get("deployedModels", [])
        gone = [d["id"] for d in deployed if d["modelVersionId"] == version]
        for identity in gone:
            self._vertex.done(f"{endpoint['name']}:undeployModel", {"deployedModelId": identity})
        if len(gone) == len(deployed):
            self._vertex.delete(endpoint["name"])

    def shift(self, shares: Mapping[str, int]) -> None:
        """One change of the endpoint, traffic and history together."""
        if shares.keys() - self.status().shares.keys():
            raise UsageError(f"{', '.join(shares)}: are not all deployed at {self.model}")
        Traffic(self._vertex, self.model).split(shares)

    def check(self, version: str, release: Path) -> None:
        """With a small share of the traffic, since it cannot be asked without."""
        found = self.status()
        if not found.shares.get(version) and found.live:
            self.shift({found.live: 100 - CANARY_PERCENT, version: CANARY_PERCENT})
        super().check(version, release)

    def ask(self, clips: list[bytes], version: str = "") -> list[JSON]:
        """`predict`; one version is asked until it answers."""
        endpoint = self._vertex.endpoint(self.model)
        ids = [d["id"] for d in endpoint.get("deployedModels", []) if d["modelVersionId"] == version]
        for _ in range(TRIES):
            answer = self._vertex.post(f"{endpoint['name']}:predict", body(clips))
            if not version or answer["deployedModelId"] in ids:
                return list(answer["predictions"])
        raise TwoPhaseError(f"{self.model}: version {version} answered none of {TRIES} requests")

    def start(self, folder: Path, name: str) -> str:
        """A batch prediction job; its results come in any order, so each line carries its number as the key."""
        live = self._live()
        keyed = folder / "keyed.jsonl"
        with (folder / INSTANCES).open("rb") as lines, keyed.open("wb") as file:
            for i, line in enumerate(lines):
                file.write(orjson.dumps({"key": str(i)} | orjson.loads(line), option=orjson.OPT_APPEND_NEWLINE))
        self._bucket.put(f"batch/{name}/{CLIPS}", folder / CLIPS)
        self._bucket.put(f"batch/{name}/{INSTANCES}", keyed)
        uri = f"gs://{self._bucket_name}/batch/{name}"
        model = self._vertex.model(self.model)["name"].partition("@")[0]
        resources = {"machineSpec": {"machineType": MACHINE}, "startingReplicaCount": 1, "maxReplicaCount": 1}
        job = self._vertex.post(
            f"{self._vertex.parent}/batchPredictionJobs",
            {
                "displayName": name,
                "model": f"{model}@{live}",
                "inputConfig": {"instancesFormat": "jsonl", "gcsSource": {"uris": [f"{uri}/{INSTANCES}"]}},
                "outputConfig": {"predictionsFormat": "jsonl", "gcsDestination": {"outputUriPrefix": f"{uri}/out"}},
                "instanceConfig": {"keyField": "key"},
                "dedicatedResources": resources,
            },
        )
        return str(job["name"])

    def find(self, name: str) -> str | None:
        """By its display name."""
        found = self._vertex.find("batchPredictionJobs", name)
        return str(found["name"]) if found else None

    def job(self, name: str) -> Job:
        """Its state in one of four words."""
        found = self._vertex.get(self._job_name(name))
        state = _STATES.get(found["state"].removeprefix("JOB_STATE_"), RUNNING)
        return Job(found["name"], state, found.get("error", {}).get("message", ""))

    def cancel(self, name: str) -> None:
        """Vertex AI keeps what was answered so far."""
        self._vertex.post(f"{self._job_name(name)}:cancel", {})

    def told(self, name: str) -> bytes:
        """What was uploaded beside the instances."""
        return self._bucket.get(f"{self._folder(name)}/{CLIPS}")

    def answers(self, name: str) -> Iterator[JSON]:
        """The lines of all its results, those of refused instances too, by their keys."""
        job = self._vertex.get(self._job_name(name))
        directory = job["outputInfo"]["gcsOutputDirectory"].removeprefix(f"gs://{self._bucket_name}/")
        found: dict[int, JSON] = {}
        for file in self._bucket.names(directory):
            for line in self._bucket.get(file).splitlines():
                result = orjson.loads(line)
                if "key" in result:
                    found[int(result["key"])] = result.get("prediction") or {"error": result.get("error", result)}
        return (found.get(i, NO_ANSWER) for i in range(1 + max(found, default=-1)))

    def forget(self, name: str) -> None:
        """Remove what the job read and wrote."""
        self._bucket.clear(f"{self._folder(name)}/")

    def _folder(self, name: str) -> str:
        (source,) = self._vertex.get(self._job_name(name))["inputConfig"]["gcsSource"]["uris"]
        folder, _, file = source.removeprefix(f"gs://{self._bucket_name}/").rpartition("/")
        if file != INSTANCES or not re.fullmatch(r"batch/.+-[0-9a-f]{12}", folder):
            raise UsageError(f"{name}: was not submitted from clips; its results are where its --to says")
        return str(folder)

    def _job_name(self, name: str) -> str:
        return name if "/" in name else f"{self._vertex.parent}/batchPredictionJobs/{name}"

    def status(self) -> Status:
        """What the model, its versions and the endpoint say."""
        endpoint = self._vertex.find("endpoints", self.model)
        if endpoint is None or self._vertex.find("models", self.model) is None:
            return Status(self._versions())
        return Status(self._versions(), Traffic(self._vertex, self.model).shares(), history(endpoint.get("labels", {})))

    def delete(self) -> None:
        """Delete the schedules of its pipeline, undeploy everything, then remove endpoint and model."""
        if not self._vertex.local:  # first: a run of theirs would bring all of it back
            self._vertex.unschedule(self.model)
        endpoint, model = self._vertex.find("endpoints", self.model), self._vertex.find("models", self.model)
        if endpoint is not None:
            if endpoint.get("deployedModels"):
                self._vertex.patch(endpoint["name"], {"trafficSplit": {}}, updateMask="trafficSplit")
            for deployed in endpoint.get("deployedModels", []):
                self._vertex.done(f"{endpoint['name']}:undeployModel", {"deployedModelId": deployed["id"]})
            self._vertex.delete(endpoint["name"])
        if model is not None:
            self._vertex.delete(model["name"].partition("@")[0])

    def _tidy(self, live: str, found: Status, do: Callable[[str, Callable[[], Any]], Any]) -> None:
        """The alias `default` too; a change that was cut off after the traffic moved is finished here."""
        do(f"give version {live} the alias default", lambda: Traffic(self._vertex, self.model).promote(live))

    @functools.cached_property
    def _bucket(self) -> "_Bucket":
        return _Bucket(self._vertex, self._bucket_name, *self._place[:2])

    def _versions(self) -> dict[str, str]:
        model = self._vertex.find("models", self.model)
        found = self._vertex.versions(model) if model else []
        return {str(v["versionId"]): v.get("labels", {}).get("release", "") for v in found}


class _Bucket:
    """The little of Cloud Storage's JSON API that a batch job needs, with the credentials of the Vertex client."""

    def __init__(self, vertex: Vertex, name: str, project: str, region: str) -> None:
        self._http = httpx.Client(
            base_url=vertex.address if vertex.local else "https://storage.googleapis.com", auth=vertex.auth, timeout=300
        )
        self._name = name
        if self._call("GET", f"/storage/v1/b/{name}", missing=True) is None:
            self._call("POST", "/storage/v1/b", params={"project": project}, json={"name": name, "location": region})

    def put(self, name: str, file: Path) -> None:
        how = {"uploadType": "media", "name": name}
        with file.open("rb") as data:
            self._call("POST", f"/upload/storage/v1/b/{self._name}/o", params=how, content=data)

    def get(self, name: str) -> bytes:
        answer = self._call(
            "GET", f"/storage/v1/b/{self._name}/o/{quote(name, safe='')}", missing=True, params={"alt": "media"}
        )
        if answer is None:
            raise TwoPhaseError(f"gs://{self._name}/{name}: is not there; a job's answers are removed once fetched")
        return answer.content

    def names(self, prefix: str) -> list[str]:
        found, token = list[str](), ""
        while True:
            more = {"pageToken": token} if token else {}
            page = self._call("GET", f"/storage/v1/b/{self._name}/o", params={"prefix": prefix, **more})
            listed = page.json() if page else {}
            found += [item["name"] for item in listed.get("items", [])]
            token = listed.get("nextPageToken", "")
            if not token:
                return found

    def clear(self, prefix: str) -> None:
        for name in self.names(prefix):
            self._call("DELETE", f"/storage/v1/b/{self._name}/o/{quote(name, safe='')}", missing=True)

    def _call(self, method: str, path: str, missing: bool = False, **how: object) -> httpx.Response | None:
        try:
            answer = self._http.request(method, path, **how)  # type: ignore[arg-type]
        except httpx.TransportError as error:
            raise TwoPhaseError(f"gs://{self._name}: does not answer ({error}); run the same command again") from None
        if missing and answer.status_code == 404:
            return None
        if not answer.is_success:
            raise TwoPhaseError(f"gs://{self._name}: refused with {answer.status_code}: {answer.text[:300]}")
        return answer
