"""How the pipeline takes a release to Vertex AI: by the official SDK, in Google's cloud and on this machine alike.

A model of the registry holds every version of one pair; the version's label `release` names what it is. One endpoint of
the same name serves it. Going live is: deploy beside the live version with a small share of the traffic, replay the
golden windows through the endpoint until the newcomer has answered, then move all traffic to it and the alias
`default` with it; the version before stays deployed, for a rollback (`twophase.targets.traffic`). Where the newcomer
answers wrongly it is undeployed and the live version keeps what it had.

An endpoint on a plain http address is the local platform: it takes no credentials and speaks REST.
"""

import base64
import functools
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np

from twophase.errors import TwoPhaseError, UsageError
from twophase.files import new_directory
from twophase.release.golden import GOLDEN, PROBABILITY_TOLERANCE
from twophase.release.manifest import NONE, read, verify
from twophase.targets.google_errors import in_words
from twophase.targets.requests import wav
from twophase.targets.target import SERVER_IMAGE
from twophase.targets.traffic import CANARY_PERCENT, MACHINE, TRIES, before, history, recorded

_ENOUGH = 3

_Method = TypeVar("_Method", bound=Callable[..., Any])


class SmokeTestFailed(TwoPhaseError):
    """The deployed version does not answer as the release did when it was exported; traffic was left as it was."""


def _in_words(method: _Method) -> _Method:
    """Say what the SDK raises as everything here does that asks Google."""

    @functools.wraps(method)
    def spoken(self: "Registry", *args: Any, **kwargs: Any) -> Any:
        with in_words(self.address):
            return method(self, *args, **kwargs)

    return cast(_Method, spoken)


class Registry:
    """The models and endpoints of one project and region."""

    def __init__(self, project: str, region: str, api_endpoint: str) -> None:
        """`api_endpoint` is an address such as `http://127.0.0.1:8470`, or empty for Google's own."""
        from google.auth.credentials import AnonymousCredentials
        from google.cloud import aiplatform

        local = api_endpoint.startswith("http://")
        if local:  # the SDK stages a local folder in a bucket first: the platform's own
            os.environ["STORAGE_EMULATOR_HOST"] = api_endpoint
        self._project, self._region = project, region
        self._credentials = AnonymousCredentials() if local else None
        how = {"api_transport": "rest", "credentials": self._credentials} if local else {}
        try:
            aiplatform.init(project=project, location=region, api_endpoint=api_endpoint or None, **how)
        except ValueError:
            raise UsageError(f"--region {region}: the SDK knows none of that name; us-central1 is one") from None
        self._sdk = aiplatform
        self.address = api_endpoint or f"{region}-aiplatform.googleapis.com"

    @_in_words
    def champion(self, model: str, releases: Path) -> Path | None:
        """The folder of the release that has the endpoint's traffic, fetched into `releases`; None where none has."""
        endpoint = self._endpoint(model)
        live = max((endpoint.traffic_split or {}).items(), key=lambda item: item[1], default=None) if endpoint else None
        if endpoint is None or live is None or not live[1]:
            return None
        deployed = next(d for d in endpoint.list_models() if d.id == live[0])
        found = self._sdk.Model(f"{deployed.model}@{deployed.model_version_id}")
        folder = releases / str(found.labels.get("release", "not-named"))
        if not folder.is_dir():
            self._fetch(found, folder)
        return folder

    @_in_words
    def register(self, release: Path, model: str, image: str = SERVER_IMAGE) -> str:
        """Upload a release as the next version of `model`; return `projects/.../models/ID@VERSION`.

        `image` is the server's, where Vertex AI can pull it; the platform on this machine needs none. A release that is
        a version already is not uploaded again.
        """
        manifest = read(release)
        parent = self._model(model)
        if parent is not None:
            for version in parent.versioning_registry.list_versions():
                known = self._sdk.Model(f"{parent.resource_name}@{version.version_id}")
                if known.labels.get("release") == manifest.id:
                    return str(known.versioned_resource_name)
        self._stage()
        uploaded = self._sdk.Model.upload(
            display_name=model,
            artifact_uri=str(release),
            serving_container_image_uri=image,
            serving_container_predict_route="/predict",
            serving_container_health_route="/health",
            serving_container_ports=[8080],
            parent_model=parent.resource_name if parent else None,
            is_default_version=parent is None,
            labels={"release": manifest.id, "front_end": manifest.fingerprint},
            version_description=f"{manifest.id}, {len(manifest.labels)} labels",
        )
        return str(uploaded.versioned_resource_name)

    @_in_words
    def deploy(self, release: Path, version: str, model: str) -> str:
        """Make a registered version live and return the endpoint's resource name. Raises `SmokeTestFailed`."""
        chosen = self._sdk.Model(version)
        endpoint = self._endpoint(model) or self._sdk.Endpoint.create(display_name=model)
        self._settle(endpoint)
        new = self._deployed(endpoint, chosen)
        # What is at 100 % is live; a smaller share is a canary that an interrupted deployment left behind.
        if new is None or endpoint.traffic_split.get(new) != 100:
            try:
                if new is None:
                    endpoint.deploy(
                        chosen,
                        deployed_model_display_name=read(release).id,
                        traffic_percentage=CANARY_PERCENT if endpoint.traffic_split else 100,
                        machine_type=MACHINE,
                        min_replica_count=1,
                    )
                    new = self._deployed(endpoint, chosen)
                self._smoke(endpoint, release, new)
                endpoint.update(
                    traffic_split={d.id: 100 if d.id == new else 0 for d in endpoint.list_models()},
                    labels=recorded(endpoint.labels, {chosen.version_id: 100}),
                )
            except BaseException:
                self._take_back(endpoint, self._deployed(endpoint, chosen))  # also what was cut off while it came
                raise
        previous = before(history(endpoint.labels), chosen.version_id)
        for old in endpoint.list_models():  # a version may be there twice, by a step that was cut off and run again
            if old.id != new and old.model_version_id != previous:
                endpoint.undeploy(old.id)
        chosen.versioning_registry.add_version_aliases(["default"], chosen.version_id)
        return str(endpoint.resource_name)

    def _stage(self) -> None:
        """Name a bucket of our own for local folders: the SDK does not trust one that it finds by itself."""
        name = f"{self._project}-twophase-staging"
        bucket = self._storage().bucket(name)
        if not bucket.exists():
            bucket.create(location=self._region)  # Vertex AI reads models of its own region
        self._sdk.init(staging_bucket=f"gs://{name}")

    def _storage(self) -> Any:
        from google.cloud import storage

        how = {"client_options": {"api_endpoint": self.address}} if self.address.startswith("http://") else {}
        return storage.Client(project=self._project, credentials=self._credentials, **how)

    def _settle(self, endpoint: Any) -> None:
        """Wait for changes under way: what they deploy is on the endpoint only then, and would be deployed twice."""
        if self.address.startswith("http://"):  # the platform on this machine has done what it has answered
            return
        wait_s, of_it = 0.2, {"name": endpoint.resource_name}
        while not all(change.done for change in endpoint.api_client.list_operations(of_it).operations):
            time.sleep(wait_s)
            wait_s = min(2 * wait_s, 10.0)

    def _deployed(self, endpoint: Any, model: Any) -> Any:
        """The id under which a version is deployed, of several the one with most traffic; None where it is not."""
        ids = [
            d.id
            for d in endpoint.list_models()
            if d.model == model.resource_name and d.model_version_id == model.version_id
        ]
        return max(ids, key=lambda d: endpoint.traffic_split.get(d, 0), default=None)

    def _take_back(self, endpoint: Any, new: str | None) -> None:
        """Undeploy a canary, if it came, and give its share back to the version that has the most of the rest."""
        if new is None:
            return
        rest = {d: share for d, share in endpoint.traffic_split.items() if d != new and share}
        live = max(rest, key=lambda d: rest[d]) if rest else None
        endpoint.undeploy(new, traffic_split={live: 100} if live else {})

    def _fetch(self, model: Any, folder: Path) -> None:
        """Copy a version's release from where the cloud keeps it."""
        if not str(model.uri).startswith("gs://"):
            raise TwoPhaseError(
                f"{model.versioned_resource_name}: its release is neither at {folder} nor in a bucket ({model.uri}); "
                f"copy it to {folder} so that the new one can be compared with it"
            )
        bucket, _, prefix = str(model.uri).removeprefix("gs://").partition("/")
        with new_directory(folder) as aside:
            for blob in self._storage().list_blobs(bucket, prefix=prefix.rstrip("/") + "/"):
                name = blob.name.removeprefix(prefix.rstrip("/") + "/")
                (aside / name).parent.mkdir(parents=True, exist_ok=True)
                blob.download_to_filename(aside / name)
            verify(aside)

    def _smoke(self, endpoint: Any, release: Path, deployed: str) -> None:
        manifest = read(release)
        with np.load(release / GOLDEN, allow_pickle=False) as golden:
            windows, expected = golden["windows"], golden["classifier"]
        instances = [{"audio_bytes": {"b64": base64.b64encode(wav(w)).decode()}} for w in windows]
        answered = 0
        for _ in range(TRIES):
            reply = endpoint.predict(instances)
            if reply.deployed_model_id != deployed:
                continue
            names = (*manifest.labels, NONE)
            got = np.array([[p["probabilities"][name] for name in names] for p in reply.predictions])
            off = float(np.abs(got - expected).max())
            if not off <= PROBABILITY_TOLERANCE:
                raise SmokeTestFailed(
                    f"{manifest.id}: its golden windows come back off by {off:.4g} through {endpoint.display_name}, "
                    f"at most {PROBABILITY_TOLERANCE:g} is accepted; it was undeployed, the live one kept its traffic"
                )
            answered += 1
            if answered == _ENOUGH:
                return
        raise SmokeTestFailed(
            f"{manifest.id}: answered {answered} of {TRIES} requests to {endpoint.display_name}, {_ENOUGH} were "
            "expected; it was undeployed, the live version kept its traffic"
        )

    def _model(self, name: str) -> Any:
        found = self._sdk.Model.list(filter=f'display_name="{name}"')
        return self._sdk.Model(found[0].resource_name) if found else None

    def _endpoint(self, name: str) -> Any:
        found = self._sdk.Endpoint.list(filter=f'display_name="{name}"')
        return found[0] if found else None
