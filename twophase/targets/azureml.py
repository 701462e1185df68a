"""Releases on Azure Machine Learning, through azure-ai-ml.

    model NAME, version 3       the release, uploaded to the workspace's store; its tags say which
    environment twophase-server the server image with its routes; a version for each image
    online endpoint NAME        traffic, mirrored traffic and, in its tags, the history: one update changes all
    deployment version-3        version 3 as it runs

A deployment without traffic is asked by its name, so the golden windows are replayed before anybody is sent there.
Models are archived rather than deleted, as Azure's own tools do: an archived version keeps its number, and is restored
when its release is registered again. Batch jobs are `twophase.targets.azureml_jobs`.
"""

import functools
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import httpx
import orjson

from twophase.errors import TwoPhaseError, UsageError
from twophase.files import JSON, digest
from twophase.release.manifest import read
from twophase.targets.azureml_errors import in_words
from twophase.targets.azureml_jobs import CORES, MACHINE, AzureMLJobs, deployment
from twophase.targets.requests import Limits, body, refusal
from twophase.targets.target import SERVER_IMAGE, Status, words_of
from twophase.targets.traffic import history, recorded

DEPLOYMENTS = 20
"""Most that Azure lets a managed online endpoint have."""
MOST_MIRRORED = 50
"""Per cent of the traffic that Azure copies at most."""
_PORT = 8080


class AzureML(AzureMLJobs):
    """One name in one workspace."""

    limits = Limits("Azure ML's online endpoint", 1_500_000, 180)

    def __init__(
        self,
        model: str,
        subscription: str,
        resource_group: str,
        workspace: str,
        image: str = SERVER_IMAGE,
        credential: Any = None,
    ) -> None:
        """`credential` is by default the one that azure-identity finds: a service's variables, or `az login`."""
        from azure.ai.ml import MLClient
        from azure.identity import DefaultAzureCredential

        super().__init__(model)
        self._image, self._http = image, httpx.Client(timeout=self.limits.seconds)
        self._credential = credential or DefaultAzureCredential()
        self._ml = MLClient(
            self._credential, subscription, resource_group, workspace, enable_telemetry=False, show_progress=False
        )

    @in_words
    def version_of(self, release_id: str) -> str | None:
        """The version of the model that carries the release as its tag."""
        return next((version for version, release in self._versions().items() if release == release_id), None)

    @in_words
    def front_end_of(self, version: str) -> str:
        """As the model's tag has it."""
        return str((self._ml.models.get(self.model, version).tags or {}).get("front_end", ""))

    @in_words
    def register(self, release: Path) -> str:
        """Upload the folder and count it as the model's next version, or restore the version that it was."""
        from azure.ai.ml.constants import ListViewType
        from azure.ai.ml.entities import Model

        manifest = read(release)
        versions = self._versions(ListViewType.ALL)
        for version, known in versions.items():
            if known == manifest.id:
                self._ml.models.restore(self.model, version)
                return version
        made = self._ml.models.create_or_update(
            Model(
                path=str(release),
                name=self.model,
                version=str(1 + max(map(int, versions), default=0)),
                type="custom_model",
                tags={"release": manifest.id, "front_end": manifest.fingerprint},
            )
        )
        return str(made.version)

    @in_words
    def settle(self) -> None:
        """Azure refuses to change an endpoint that is changing."""
        if self._endpoint() is not None:
            _settled(self._endpoint)

    @in_words
    def attach(self, version: str) -> None:
        """Make the endpoint if need be, and a deployment; Azure gives it no traffic by itself."""
        from azure.ai.ml.entities import (
            Environment,
            ManagedOnlineDeployment,
            ManagedOnlineEndpoint,
            OnlineRequestSettings,
            ProbeSettings,
        )

        if version not in self._versions():
            raise UsageError(f"{version}: is no version of {self.model}")
        if self._endpoint() is None:
            self._ml.online_endpoints.begin_create_or_update(
                ManagedOnlineEndpoint(name=self.model, auth_mode="key")
            ).result()
        deployed = self._deployed()
        if version in deployed:  # made again where that failed
            if _settled(lambda: self._ml.online_deployments.get(deployment(version), self.model)) == "Succeeded":
                return
        elif len(deployed) == DEPLOYMENTS:
            raise TwoPhaseError(f"{self.model}: has {DEPLOYMENTS} deployments, Azure's limit; promote one first")
        routes = {"liveness_route": "/healthz", "readiness_route": "/healthz", "scoring_route": "/score"}
        probe = ProbeSettings(initial_delay=5, period=5, timeout=2, failure_threshold=30)
        self._ml.online_deployments.begin_create_or_update(
            ManagedOnlineDeployment(
                name=deployment(version),
                endpoint_name=self.model,
                model=f"azureml:{self.model}:{version}",
                environment=Environment(
                    name="twophase-server",
                    version=digest(self._image.encode())[:12],
                    image=self._image,
                    inference_config={name: {"path": path, "port": _PORT} for name, path in routes.items()},
                ),
                instance_type=MACHINE,
                instance_count=1,
                liveness_probe=probe,
                readiness_probe=probe,
                request_settings=OnlineRequestSettings(  # Azure's defaults are 5 s, and one request at a time
                    request_timeout_ms=1000 * self.limits.seconds, max_concurrent_requests_per_instance=8 * CORES
                ),
            )
        ).result()

    @in_words
    def detach(self, version: str) -> None:
        """Delete the deployment; Azure refuses one that has traffic. The last one takes the endpoint with it."""
        endpoint = self._endpoint()
        if endpoint is None:
            return
        if deployment(version) in (endpoint.mirror_traffic or {}):
            endpoint.mirror_traffic = {}
            self._ml.online_endpoints.begin_create_or_update(endpoint).result()
        if version in self._deployed():
            self._ml.online_deployments.begin_delete(deployment(version), self.model).result()
        self._remove_batch(version)
        if not self._deployed():
            self._remove_endpoint()

    @in_words
    def shift(self, shares: Mapping[str, int]) -> None:
        """One update of the endpoint, traffic and history together."""
        endpoint, deployed = self._endpoint(), self._deployed()
        if endpoint is None or shares.keys() - deployed or sum(shares.values()) != 100:
            raise UsageError(f"{words_of(shares)}: shares are per cent of what is deployed, and sum to 100")
        was = {name.removeprefix(deployment("")): share for name, share in (endpoint.traffic or {}).items() if share}
        endpoint.traffic = {deployment(version): shares.get(version, 0) for version in sorted(deployed, key=int)}
        endpoint.mirror_traffic = {
            name: share for name, share in (endpoint.mirror_traffic or {}).items() if not endpoint.traffic.get(name)
        }
        others = {key: value for key, value in (endpoint.tags or {}).items() if value is not None}
        endpoint.tags = recorded(others, was, shares)
        self._ml.online_endpoints.begin_create_or_update(endpoint).result()

    def refuse_split(self, percent: int, mirror: bool) -> None:
        """Azure copies at most half of the traffic."""
        if mirror and percent > MOST_MIRRORED:
            raise UsageError(f"{percent}: Azure ML copies at most {MOST_MIRRORED}% of the traffic; give --percent 10")

    @in_words
    def mirror(self, version: str, percent: int) -> None:
        """One update of the endpoint; a deployment cannot have live and copied requests."""
        endpoint = self._endpoint()
        if (endpoint.traffic or {}).get(deployment(version)):
            raise UsageError(f"{self.model}: version {version} has traffic of its own, which cannot be copied to it")
        endpoint.mirror_traffic = {deployment(version): percent}
        self._ml.online_endpoints.begin_create_or_update(endpoint).result()

    @in_words
    def ask(self, clips: list[bytes], version: str = "") -> list[JSON]:
        """The scoring route; a version is asked as its deployment.

        Not by the SDK's `invoke`: it keeps the deployment that was named once for every later call of the process.
        """
        answer = self._post(orjson.dumps(body(clips)), version)
        if answer.status_code in (
            401,
            404,
        ):  # the key was changed, or the endpoint made again, since they were asked for
            self.__dict__.pop("_scoring", None)
            answer = self._post(orjson.dumps(body(clips)), version)
        if not answer.is_success:
            # of what the container answers, success apart, Azure makes 424, and names the container's own status
            code = int(answer.headers.get("ms-azureml-model-error-statuscode", answer.status_code))
            raise refusal(code, answer.text[:300], str(answer.url))
        return list(answer.json()["predictions"])

    def _post(self, content: bytes, version: str) -> httpx.Response:
        url, key = self._scoring
        named = {"azureml-model-deployment": deployment(version)} if version else {}
        headers = {"authorization": f"Bearer {key}", "content-type": "application/json", **named}
        try:
            return self._http.post(url, content=content, headers=headers)
        except httpx.TransportError as error:
            raise TwoPhaseError(f"{url}: does not answer ({error}); run the same command again") from None

    @in_words
    def status(self) -> Status:
        """What the registry, the endpoint, its deployments and its tags say."""
        versions, endpoint = self._versions(), self._endpoint()
        if endpoint is None:
            return Status(versions)
        traffic = endpoint.traffic or {}
        shares = {version: int(traffic.get(deployment(version), 0)) for version in sorted(self._deployed(), key=int)}
        mirrored = {
            name.removeprefix(deployment("")): share for name, share in (endpoint.mirror_traffic or {}).items() if share
        }
        failure = "its provisioning failed" if endpoint.provisioning_state == "Failed" else ""
        return Status(versions, shares, history(endpoint.tags or {}), mirrored, failure)

    @in_words
    def delete(self) -> None:
        """Delete both endpoints with their deployments, and archive the model's versions."""
        if self._endpoint() is not None:
            self._deployed()  # refuses an endpoint that is not ours
            self._remove_endpoint()
        self._remove_batch()
        for version in self._versions():
            self._ml.models.archive(self.model, version)

    def _remove_endpoint(self) -> None:
        self._ml.online_endpoints.begin_delete(self.model).result()
        self.__dict__.pop("_scoring", None)  # the next one has another key

    @functools.cached_property
    def _scoring(self) -> tuple[str, str]:
        """The endpoint's address and key."""
        endpoint = self._endpoint()
        if endpoint is None:
            raise UsageError(f"{self.model}: is not deployed; deploy a release first")
        return str(endpoint.scoring_uri), str(self._ml.online_endpoints.get_keys(self.model).primary_key)

    def _versions(self, view: Any = None) -> dict[str, str]:
        """The release of every version, oldest first; by default of those that are not archived."""
        from azure.core.exceptions import ResourceNotFoundError

        how = {"list_view_type": view} if view else {}
        try:
            models = [m for m in self._ml.models.list(name=self.model, **how) if str(m.version).isdecimal()]
        except ResourceNotFoundError:
            return {}
        found = {str(m.version): (m.tags or {}).get("release", "") for m in models}
        return {version: found[version] for version in sorted(found, key=int)}

    def _endpoint(self) -> Any:
        return self._absent(self._ml.online_endpoints.get, self.model)

    def _absent(self, get: Any, *named: str) -> Any:
        from azure.core.exceptions import ResourceNotFoundError

        try:
            return get(*named)
        except ResourceNotFoundError:
            return None

    def _deployed(self) -> set[str]:
        """Versions that have a deployment, whether it runs or not. Raises `UsageError` where others are there too."""
        names = [str(found.name) for found in self._ml.online_deployments.list(self.model)]
        foreign = [name for name in names if not name.removeprefix(deployment("")).isdecimal()]
        if foreign:
            raise UsageError(
                f"{self.model}: is an endpoint that twophase did not make (deployment {foreign[0]}); give another "
                "--model"
            )
        return {name.removeprefix(deployment("")) for name in names}


def _settled(get: Callable[[], Any]) -> str:
    """How the last change of a resource ended, which another process may have begun."""
    wait_s = 0.5
    while (state := str(get().provisioning_state)) in ("Creating", "Updating", "Scaling", "Deleting"):
        time.sleep(wait_s)
        wait_s = min(2 * wait_s, 15.0)
    return state
