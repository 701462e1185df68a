"""Releases on KServe, as one InferenceService, through the Kubernetes client.

    STORE/NAME/<release>/           the release; STORE is an address that both this machine and the cluster read
    config map NAME-versions        "3": the release of version 3, counted up
    InferenceService NAME           annotations: the version of each of its two revisions, and the history

KServe knows two revisions: the newest, and the last that had all the traffic. `canaryTrafficPercent` is the newest's
share; 0 pins the other. So a version is deployed as the newest with 0, and going back to one that is no longer there
starts it again. Tagged routes ask the newest without traffic.

That is serverless mode. Where the cluster's default, or the service that is there, is raw
(`twophase.targets.kserve_raw`), a share of the traffic is refused: a deployment replaces the pods, and one that fails
puts the release before back.
"""

import functools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar, cast

import httpx
import orjson

from twophase.errors import TwoPhaseError, UsageError
from twophase.files import JSON
from twophase.release.manifest import read
from twophase.targets.jobs import CLIPS, by_clip, write_answers, write_instances
from twophase.targets.kserve_raw import MODE, RAW, mode_of, replaced, stuck
from twophase.targets.requests import Limits, body, refusal, requests
from twophase.targets.store import MANIFEST, Store
from twophase.targets.target import SERVER_IMAGE, Status, Target, words_of
from twophase.targets.traffic import before, history, recorded

STORES = ("s3://", "gs://", "https://")
"""Azure's blobs are `https://ACCOUNT.blob.core.windows.net/CONTAINER/PATH` to KServe's storage initializer."""
GROUP, VERSION, PLURAL = "serving.kserve.io", "v1beta1", "inferenceservices"
_OURS = "twophase.dev/"
_NEWEST, _ROLLED_OUT = f"{_OURS}version", f"{_OURS}rolled-out"
_READY_S = 600.0
_Method = TypeVar("_Method", bound=Callable[..., Any])


def _in_words(method: _Method) -> _Method:
    """Turn the client's errors into one message with what to do."""

    @functools.wraps(method)
    def spoken(self: "KServe", *args: Any, **kwargs: Any) -> Any:
        from kubernetes.client.exceptions import ApiException
        from urllib3.exceptions import HTTPError

        try:
            return method(self, *args, **kwargs)
        except ApiException as error:
            try:
                why = orjson.loads(error.body)["message"]
            except (orjson.JSONDecodeError, KeyError, TypeError):
                why = error.reason
            raise TwoPhaseError(
                f"Kubernetes: {why} ({error.status}); see that KServe is installed and that you may use it "
                f"(`kubectl auth can-i update {PLURAL}.{GROUP}`), then run the same command again"
            ) from error
        except HTTPError as error:
            raise TwoPhaseError(f"Kubernetes: does not answer ({error}); see `kubectl cluster-info`") from error

    return cast(_Method, spoken)


class KServe(Target):
    """One name in one namespace of a cluster."""

    limits = Limits("the server", 10_000_000, 300)

    def __init__(
        self, model: str, namespace: str, store: str, image: str = SERVER_IMAGE, kubeconfig: str | None = None
    ) -> None:
        """`store` is where releases are kept for the cluster to read: an address that KServe knows.

        The cluster is the one of `kubeconfig`, of `KUBECONFIG`, or the one that this runs in.
        """
        from kubernetes import client, config
        from kubernetes.config import ConfigException

        super().__init__(model)
        if not store.startswith(STORES):
            raise UsageError(f"store={store}: is no address that KServe reads; {', '.join(STORES)}... are")
        settings = client.Configuration()
        try:
            config.load_kube_config(kubeconfig, client_configuration=settings)
        except ConfigException:
            try:
                config.load_incluster_config(client_configuration=settings)
            except ConfigException as error:
                raise TwoPhaseError(f"there is no cluster to talk to: {error}; name one in KUBECONFIG") from None
        api = client.ApiClient(settings)
        self._services, self._maps, self._apps = (
            client.CustomObjectsApi(api),
            client.CoreV1Api(api),
            client.AppsV1Api(api),
        )
        self._namespace, self._image, self._http = namespace, image, httpx.Client(timeout=self.limits.seconds)
        self._store = Store(f"{store.rstrip('/')}/{model}")

    @_in_words
    def version_of(self, release_id: str) -> str | None:
        """The version of the config map that is this release."""
        return next((version for version, release in self._versions().items() if release == release_id), None)

    @_in_words
    def front_end_of(self, version: str) -> str:
        """As the release's manifest has it, in the store."""
        manifest = orjson.loads(self._store.get(f"{self._versions()[version]}/{MANIFEST}"))
        return str(manifest["front_end"]["fingerprint"])

    @_in_words
    def register(self, release: Path) -> str:
        """Upload the release, then count it in the config map, which is what counts as registered."""
        identity = read(release).id
        known = self.version_of(identity)
        if known is not None:
            return known
        self._store.put(release, identity)
        versions = self._versions()
        version = str(1 + max(map(int, versions), default=0))
        data = {"data": versions | {version: identity}}
        if versions:
            self._maps.patch_namespaced_config_map(self._map, self._namespace, data)
        else:
            self._maps.create_namespaced_config_map(self._namespace, {"metadata": {"name": self._map}, **data})
        return version

    @_in_words
    def refuse_split(self, percent: int, mirror: bool) -> None:
        """Raw mode has no revisions to split traffic between."""
        super().refuse_split(percent, mirror)
        if self._raw():
            raise UsageError(
                f"{self.model}: is in KServe's raw mode, which cannot split traffic; give --percent 100, and pods are "
                "replaced one by one as new ones reproduce their golden windows, the release before coming back where "
                "they do not"
            )

    @_in_words
    def attach(self, version: str) -> None:
        """Make a version the newest revision, pinned to no traffic where there is another; in raw mode the only one."""
        release = self._versions().get(version)
        if release is None:
            raise UsageError(f"{version}: is no version of {self.model}")
        found = self._service()
        if found is None:
            body = self._written(version, release, None, {_NEWEST: version})
            body["metadata"]["annotations"] |= _keyed(recorded({}, {version: 100}))
            self._services.create_namespaced_custom_object(GROUP, VERSION, self._namespace, PLURAL, body)
        elif version in (shares := _shares(found)):
            if found["metadata"]["annotations"][_NEWEST] != version:
                return
        elif self._raw():
            self._replace(found, version)
        else:
            if len(shares) > 1 and shares[found["metadata"]["annotations"][_NEWEST]]:
                raise TwoPhaseError(
                    f"{self.model}: is between two versions ({words_of(shares)}), as many as KServe routes to; promote "
                    "one or roll back first"
                )
            live = next(v for v, share in shares.items() if share)
            self._patch(self._written(version, release, 0, {_NEWEST: version, _ROLLED_OUT: live}))
        self._wait()

    @_in_words
    def detach(self, version: str) -> None:
        """Make the version with the traffic the newest revision again; without one the service goes."""
        found = self._service()
        if found is None or found["metadata"]["annotations"].get(_NEWEST) != version:
            return
        shares = _shares(found)
        live = next((v for v, share in shares.items() if share and v != version), None)
        if self._raw():
            live = before(history(_unkeyed(found["metadata"]["annotations"])), version)
        if live is None:
            self._services.delete_namespaced_custom_object(GROUP, VERSION, self._namespace, PLURAL, self.model)
        elif self._raw():
            self._replace(found, live)
            self._wait()
        elif shares[version]:
            raise TwoPhaseError(f"{self.model}: version {version} has {shares[version]}% of the traffic; move it first")
        else:
            self._patch(self._written(live, self._versions()[live], 100, {_NEWEST: live, _ROLLED_OUT: live}))
            self._wait()

    @_in_words
    def shift(self, shares: Mapping[str, int]) -> None:
        """Give the newest revision its share; the rest is the other one's."""
        found = self._service()
        was = _shares(found) if found else {}
        if found is None or shares.keys() - was.keys() or sum(shares.values()) != 100:
            raise UsageError(f"{words_of(shares)}: shares are per cent of what is deployed, and sum to 100")
        if self._raw():
            return  # the only version there is has all of it
        annotations = found["metadata"]["annotations"]
        newest = annotations[_NEWEST]
        tags = recorded(_unkeyed(annotations), {v: s for v, s in was.items() if s}, shares)
        wanted: JSON = {"spec": {"predictor": {"canaryTrafficPercent": shares.get(newest, 0)}}}
        rolled_out = {_ROLLED_OUT: newest} if shares.get(newest) == 100 else {}
        self._patch({"metadata": {"annotations": {**_changed(annotations, tags), **rolled_out}}, **wanted})
        self._wait()

    @_in_words
    def ask(self, clips: list[bytes], version: str = "") -> list[JSON]:
        """KServe's V1 protocol, at the service's address or at the newest revision's own."""
        url = f"{self._url(version)}/v1/models/{self.model}:predict"
        return list(self._post(url, orjson.dumps(body(clips)), "application/json").json()["predictions"])

    @_in_words
    def batch(self, clips: Sequence[Path], output: Path, say: Callable[[str], None] = lambda words: None) -> int:
        """KServe has no batch jobs: the clips go in requests of JSON lines, where a bad one costs no other."""
        with TemporaryDirectory() as folder:
            write_instances(clips, self.limits, Path(folder))
            told = (Path(folder) / CLIPS).read_bytes()
        good = [Path(line["clip"]) for line in map(orjson.loads, told.splitlines()) if "error" not in line]
        return write_answers(by_clip(told, self._answered(good)), output)

    @_in_words
    def status(self) -> Status:
        """What the config map and the service say."""
        found = self._service()
        if found is None:
            return Status(self._versions())
        shares, failure = _shares(found), ""
        ready = _condition(found)
        if ready.get("status") == "False" and len(shares) == 1:  # of two, the other one answers
            failure = ready.get("message") or ready.get("reason") or "it is not ready"
        return Status(self._versions(), shares, history(_unkeyed(found["metadata"]["annotations"])), failure=failure)

    @_in_words
    def delete(self) -> None:
        """Service, config map, and everything below the store's folder."""
        if self._service() is not None:
            self._services.delete_namespaced_custom_object(GROUP, VERSION, self._namespace, PLURAL, self.model)
        if self._versions():
            self._maps.delete_namespaced_config_map(self._map, self._namespace)
        self._store.clear()

    @property
    def _map(self) -> str:
        return f"{self.model}-versions"

    def _versions(self) -> dict[str, str]:
        from kubernetes.client.exceptions import ApiException

        try:
            data = self._maps.read_namespaced_config_map(self._map, self._namespace).data or {}
        except ApiException as error:
            if error.status != 404:
                raise
            return {}
        return {version: data[version] for version in sorted(data, key=int)}

    def _service(self) -> JSON | None:
        from kubernetes.client.exceptions import ApiException

        try:
            found = self._services.get_namespaced_custom_object(GROUP, VERSION, self._namespace, PLURAL, self.model)
        except ApiException as error:
            if error.status != 404:
                raise
            return None
        if _NEWEST not in found["metadata"].get("annotations", {}):
            raise UsageError(f"{self.model}: is an InferenceService that twophase did not make; give another --model")
        return cast(JSON, found)

    def _patch(self, change: JSON) -> None:
        # a merge patch, by which null removes a field
        self._services.patch_namespaced_custom_object(GROUP, VERSION, self._namespace, PLURAL, self.model, change)

    def _raw(self) -> bool:
        return mode_of(self._service(), self._maps) == RAW

    def _replace(self, found: JSON, version: str) -> None:
        """Have the pods of a raw deployment be of another version, and add that to the history."""
        annotations = found["metadata"]["annotations"]
        tags = _changed(annotations, recorded(_unkeyed(annotations), _shares(found), {version: 100}))
        self._patch(self._written(version, self._versions()[version], None, {_NEWEST: version, **tags}))

    def _written(self, version: str, release: str, canary: int | None, annotations: JSON) -> JSON:
        container = {
            "name": "kserve-container",
            "image": self._image,
            "env": [{"name": "STORAGE_URI", "value": self._store.address(release)}],
            "ports": [{"containerPort": 8080, "name": "http1", "protocol": "TCP"}],
            "readinessProbe": {"httpGet": {"path": "/v2/health/ready", "port": 8080}},
            "resources": {"requests": {"cpu": "1", "memory": "256Mi"}, "limits": {"memory": "512Mi"}},
        }
        return {
            "apiVersion": f"{GROUP}/{VERSION}",
            "kind": "InferenceService",
            "metadata": {
                "name": self.model,
                "namespace": self._namespace,
                "annotations": {
                    MODE: mode_of(self._service(), self._maps),
                    "serving.kserve.io/enable-tag-routing": "true",
                    **annotations,
                },
            },
            "spec": {
                "predictor": {
                    "minReplicas": 1,
                    "containers": [container],
                    **({} if canary is None else {"canaryTrafficPercent": canary}),
                }
            },
        }

    def _wait(self) -> None:
        """Until what was written is what runs. Raises `TwoPhaseError` when it does not come up."""
        deadline, wait_s = time.monotonic() + _READY_S, 0.2
        while True:
            found = self._service() or {}
            status = found.get("status", {})
            if status.get("observedGeneration") == found.get("metadata", {}).get("generation"):
                newest = status.get("components", {}).get("predictor", {})
                if mode_of(found, self._maps) == RAW:
                    pods = self._apps.read_namespaced_deployment(f"{self.model}-predictor", self._namespace)
                    if replaced(pods):
                        return
                    if why := stuck(pods):
                        raise TwoPhaseError(f"{self.model}: its new pods do not come up: {why}")
                elif _condition(found).get("status") == "True" and newest.get("latestCreatedRevision") == newest.get(
                    "latestReadyRevision"
                ):
                    return
                if status.get("modelStatus", {}).get("transitionStatus") == "BlockedByFailedLoad":
                    why = status["modelStatus"].get("lastFailureInfo", {}).get("message", "no reason given")
                    raise TwoPhaseError(f"{self.model}: the newest revision does not come up: {why}")
            if time.monotonic() > deadline:
                raise TwoPhaseError(f"{self.model}: is not ready after {_READY_S:.0f} s: {status.get('conditions')}")
            time.sleep(wait_s)
            wait_s = min(2 * wait_s, 5.0)

    def _url(self, version: str) -> str:
        found = self._service()
        if found is None or "url" not in found.get("status", {}):
            raise UsageError(f"{self.model}: is not deployed; deploy a release first")
        if not version:
            return str(found["status"]["url"])
        tag = "latest" if found["metadata"]["annotations"].get(_NEWEST) == version else "prev"
        routes = found["status"].get("components", {}).get("predictor", {}).get("traffic", [])
        url = next((route.get("url") for route in routes if route.get("tag") == tag), None)
        if url is None and len(_shares(found)) > 1:
            raise TwoPhaseError(f"{self.model}: the cluster gives version {version} no route of its own")
        return str(url or found["status"]["url"])

    def _answered(self, clips: list[Path]) -> Iterator[JSON]:
        url = f"{self._url('')}/invocations"
        for group in requests(clips, self.limits):
            lines = [orjson.dumps(instance, option=orjson.OPT_APPEND_NEWLINE) for instance in body(group)["instances"]]
            answers = self._post(url, b"".join(lines), "application/jsonlines").content.splitlines()
            if len(answers) != len(lines):
                raise TwoPhaseError(f"{url}: gave {len(answers)} answers to {len(lines)} clips; run it again")
            yield from map(orjson.loads, answers)

    def _post(self, url: str, data: bytes, content_type: str) -> httpx.Response:
        try:
            answer = self._http.post(url, content=data, headers={"content-type": content_type})
        except httpx.TransportError as error:
            raise TwoPhaseError(f"{url}: does not answer ({error}); see that this machine reaches it") from None
        if not answer.is_success:
            raise refusal(answer.status_code, answer.text[:300], url)
        return answer


def _condition(service: JSON) -> dict[str, str]:
    """Whether the service is ready, and why not."""
    conditions: list[dict[str, str]] = service.get("status", {}).get("conditions", [])
    return next((condition for condition in conditions if condition["type"] == "Ready"), {})


def _shares(service: JSON) -> dict[str, int]:
    """Per cent by version: of the newest revision, and of the last that had all the traffic."""
    annotations = service["metadata"]["annotations"]
    newest, rolled_out = annotations[_NEWEST], annotations.get(_ROLLED_OUT, annotations[_NEWEST])
    canary = service["spec"]["predictor"].get("canaryTrafficPercent")
    share = 100 if canary is None or newest == rolled_out else int(canary)
    return {newest: 100} if share == 100 else {rolled_out: 100 - share, newest: share}


def _keyed(labels: Mapping[str, str]) -> dict[str, str]:
    return {f"{_OURS}{key}": value for key, value in labels.items()}


def _changed(annotations: Mapping[str, str], tags: Mapping[str, str]) -> dict[str, str | None]:
    """A merge patch of the annotations that makes the history these tags."""
    gone = dict.fromkeys(_keyed(_unkeyed(annotations)).keys() - _keyed(tags).keys())
    return {**gone, **_keyed(tags)}


def _unkeyed(annotations: Mapping[str, str]) -> dict[str, str]:
    """The history's labels among a service's annotations."""
    found = {key.removeprefix(_OURS): value for key, value in annotations.items() if key.startswith(f"{_OURS}live-")}
    return dict(sorted(found.items()))
