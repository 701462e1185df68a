"""Releases on Azure Machine Learning, through azure-ai-ml.

    model NAME, version 3       the release, uploaded to the workspace's store; its tags say which
    environment twophase-server the server image with its routes; a version for each image
    online endpoint NAME        traffic and, in its tags, the history: one update changes both
    deployment version-3        version 3 as it runs

A deployment without traffic is asked by its name, so the golden windows are replayed before anybody is sent there.
Azure's batch endpoints run scripts on a cluster of their own; here a batch goes to the online endpoint, request by
request. Models are archived rather than deleted, as Azure's own tools do.
"""

import functools
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar, cast

import httpx
import orjson
import pybase64

from twophase.errors import TwoPhaseError, UsageError
from twophase.files import JSON, digest
from twophase.release.manifest import read
from twophase.targets.requests import Limits, body
from twophase.targets.target import SERVER_IMAGE, Status, Target, words_of
from twophase.targets.traffic import history, recorded

DEPLOYMENTS = 20
"""Most that Azure lets a managed online endpoint have."""
MACHINE = "Standard_DS3_v2"
_PORT, _DEPLOYMENT = 8080, "version-"
_Method = TypeVar("_Method", bound=Callable[..., Any])


def _in_words(method: _Method) -> _Method:
    """Turn the SDK's errors into one message with what to do."""

    @functools.wraps(method)
    def spoken(self: "AzureML", *args: Any, **kwargs: Any) -> Any:
        from azure.ai.ml.exceptions import MlException
        from azure.core.exceptions import AzureError, ClientAuthenticationError

        try:
            return method(self, *args, **kwargs)
        except ClientAuthenticationError as error:
            raise TwoPhaseError(
                f"Azure ML: {_said(error)}; sign in again (`az login`) and run the same command: what is done is kept"
            ) from error
        except (AzureError, MlException) as error:
            raise TwoPhaseError(
                f"Azure ML: {_said(error)}; see what it says and run the same command: what is done is kept"
            ) from error

    return cast(_Method, spoken)


class AzureML(Target):
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
        found = credential or DefaultAzureCredential()
        self._ml = MLClient(found, subscription, resource_group, workspace, enable_telemetry=False, show_progress=False)

    @_in_words
    def version_of(self, release_id: str) -> str | None:
        """The version of the model that carries the release as its tag."""
        return next((version for version, release in self._versions().items() if release == release_id), None)

    @_in_words
    def register(self, release: Path) -> str:
        """Upload the folder and count it as the model's next version."""
        from azure.ai.ml.entities import Model

        manifest = read(release)
        versions = self._versions()
        for version, known in versions.items():
            if known == manifest.id:
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

    @_in_words
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
        if version in deployed:
            return
        if len(deployed) == DEPLOYMENTS:
            raise TwoPhaseError(f"{self.model}: has {DEPLOYMENTS} deployments, Azure's limit; promote one first")
        routes = {"liveness_route": "/healthz", "readiness_route": "/healthz", "scoring_route": "/score"}
        probe = ProbeSettings(initial_delay=5, period=5, timeout=2, failure_threshold=30)
        self._ml.online_deployments.begin_create_or_update(
            ManagedOnlineDeployment(
                name=_named(version),
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
                request_settings=OnlineRequestSettings(request_timeout_ms=1000 * 60),
            )
        ).result()

    @_in_words
    def detach(self, version: str) -> None:
        """Delete the deployment; Azure refuses one that has traffic. The last one takes the endpoint with it."""
        if self._endpoint() is None:
            return
        if version in self._deployed():
            self._ml.online_deployments.begin_delete(_named(version), self.model).result()
        if not self._deployed():
            self._remove_endpoint()

    @_in_words
    def shift(self, shares: Mapping[str, int]) -> None:
        """One update of the endpoint, traffic and history together."""
        endpoint, deployed = self._endpoint(), self._deployed()
        if endpoint is None or shares.keys() - deployed or sum(shares.values()) != 100:
            raise UsageError(f"{words_of(shares)}: shares are per cent of what is deployed, and sum to 100")
        was = {name.removeprefix(_DEPLOYMENT): share for name, share in (endpoint.traffic or {}).items() if share}
        endpoint.traffic = {_named(version): shares.get(version, 0) for version in sorted(deployed, key=int)}
        others = {key: value for key, value in (endpoint.tags or {}).items() if value is not None}
        endpoint.tags = recorded(others, was, shares)
        self._ml.online_endpoints.begin_create_or_update(endpoint).result()

    @_in_words
    def ask(self, clips: list[bytes], version: str = "") -> list[JSON]:
        """The scoring route; a version is asked as its deployment.

        Not by the SDK's `invoke`: it keeps the deployment that was named once for every later call of the process.
        """
        url, key = self._scoring
        named = {"azureml-model-deployment": _named(version)} if version else {}
        headers = {"authorization": f"Bearer {key}", "content-type": "application/json", **named}
        try:
            answer = self._http.post(url, content=orjson.dumps(body(clips)), headers=headers)
        except httpx.TransportError as error:
            raise TwoPhaseError(f"{url}: does not answer ({error}); run the same command again") from None
        if not answer.is_success:
            raise TwoPhaseError(f"{url}: refused with {answer.status_code}: {answer.text[:300]}")
        return list(answer.json()["predictions"])

    def ask_batch(self, instances: Path) -> Iterator[JSON]:
        """One request a line, so that a refused one costs no other."""
        with instances.open("rb") as lines:
            for line in lines:
                try:
                    yield from self.ask([pybase64.b64decode(orjson.loads(line)["audio_bytes"]["b64"])])
                except TwoPhaseError as error:
                    yield {"error": {"message": str(error)}}

    @_in_words
    def status(self) -> Status:
        """What the registry, the endpoint, its deployments and its tags say."""
        versions, endpoint = self._versions(), self._endpoint()
        if endpoint is None:
            return Status(versions)
        traffic = endpoint.traffic or {}
        shares = {version: int(traffic.get(_named(version), 0)) for version in sorted(self._deployed(), key=int)}
        failure = "its provisioning failed" if endpoint.provisioning_state == "Failed" else ""
        return Status(versions, shares, history(endpoint.tags or {}), failure)

    @_in_words
    def delete(self) -> None:
        """Delete the endpoint with its deployments, and archive the model's versions."""
        if self._endpoint() is not None:
            self._remove_endpoint()
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

    def _versions(self) -> dict[str, str]:
        from azure.core.exceptions import ResourceNotFoundError

        try:
            found = {str(m.version): (m.tags or {}).get("release", "") for m in self._ml.models.list(name=self.model)}
        except ResourceNotFoundError:
            return {}
        return {version: found[version] for version in sorted(found, key=int)}

    def _endpoint(self) -> Any:
        from azure.core.exceptions import ResourceNotFoundError

        try:
            return self._ml.online_endpoints.get(self.model)
        except ResourceNotFoundError:
            return None

    def _deployed(self) -> set[str]:
        return {
            str(deployment.name).removeprefix(_DEPLOYMENT)
            for deployment in self._ml.online_deployments.list(self.model)
        }


def _named(version: str) -> str:
    return f"{_DEPLOYMENT}{version}"  # Azure takes names of 3 to 32 characters


def _said(error: Exception) -> str:
    """What the SDK says, without its colours and its layout."""
    return " ".join(re.sub(r"\x1b\[\d+m", "", str(error)).split())[:400] or type(error).__name__
