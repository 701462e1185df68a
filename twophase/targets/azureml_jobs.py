"""Batch jobs on Azure Machine Learning: a batch endpoint beside the online one, through azure-ai-ml.

    batch endpoint NAME-batch       made with the first job
    deployment version-3            version 3, with the scoring script `azureml_score.py`
    environment twophase-batch      a Dockerfile on the server image that adds what Azure's driver needs
    compute twophase-batch          a cluster that scales to nothing while there are no jobs; all models share it
    workspaceblobstore, twophase/NAME/batch/NAME-<12 hex>/    a job's folder: clips.jsonl, in/*.jsonl, out/*.jsonl

The instances go in files of a hundred lines, which the cluster answers side by side into files of the same names, line
by line. An answer belongs to a clip by its place, so none are handed out where one is missing.
"""

import functools
import itertools
import shutil
from abc import abstractmethod
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import orjson

from twophase.errors import TwoPhaseError, UsageError
from twophase.files import JSON, digest
from twophase.targets import azureml_score
from twophase.targets.azureml_errors import in_words
from twophase.targets.jobs import CANCELLED, CLIPS, FAILED, INSTANCES, RUNNING, SUCCEEDED, Job, Jobs, count_sent

MACHINE, CORES = "Standard_DS3_v2", 4
STORE = "workspaceblobstore"
"""The datastore that every workspace has."""
_SHARED, _LONGEST = "twophase-batch", 32
_LINES = 100
_STATES = {"Completed": SUCCEEDED, "Failed": FAILED, "NotResponding": FAILED, "Canceled": CANCELLED}
_DOCKERFILE = """\
FROM {image}
USER root
# Azure's driver, apart from the server: it takes no NumPy from 2.3.3 on.
RUN /usr/local/bin/python3 -m venv /opt/driver \\
 && /opt/driver/bin/pip install --no-cache-dir azureml-core "azureml-dataset-runtime[fuse]"
ENV PATH=/opt/driver/bin:$PATH
ENTRYPOINT []
"""


class AzureMLJobs(Jobs):
    """The batch side of one name in one workspace."""

    _ml: Any
    _credential: Any
    _image: str

    @in_words
    def start(self, folder: Path, name: str) -> str:
        """Invoke the batch endpoint's deployment of the live version, which is made if need be."""
        from azure.ai.ml import Input, Output

        live = self._live()
        self._ready(live)
        with (folder / CLIPS).open("rb") as clips:
            self._blobs.upload_blob(f"{self._folder(name)}{CLIPS}", clips, overwrite=True)
        with (folder / INSTANCES).open("rb") as lines:
            for number in itertools.count():
                part = b"".join(itertools.islice(lines, _LINES))
                if not part:
                    break
                self._blobs.upload_blob(f"{self._folder(name)}in/{_part(number)}", part, overwrite=True)
        paths = f"azureml://datastores/{STORE}/paths/{self._folder(name)}"
        job = self._ml.batch_endpoints.invoke(
            self._batch_endpoint,
            deployment_name=deployment(live),
            inputs={"clips": Input(type="uri_folder", path=f"{paths}in/")},
            outputs={"score": Output(type="uri_folder", path=f"{paths}out/")},
            job_name=name,
        )
        if job.name != name:
            raise TwoPhaseError(f"Azure ML: calls its job {job.name}, {name} was asked for; nobody waits for it")
        return name

    @in_words
    def find(self, name: str) -> str | None:
        """Jobs have the names that they were given."""
        return name if self._absent(self._ml.jobs.get, name) else None

    @in_words
    def job(self, name: str) -> Job:
        """The job's status in one of four words; why it failed is in its log alone."""
        found = self._ml.jobs.get(name)
        state = _STATES.get(found.status, RUNNING)
        return Job(name, state, f"see its log at {found.studio_url}" if state == FAILED else "")

    @in_words
    def cancel(self, name: str) -> None:
        """Azure keeps what was answered so far."""
        self._ml.jobs.begin_cancel(name).result()

    @in_words
    def told(self, name: str) -> bytes:
        """What was uploaded beside the instances."""
        return bytes(self._blobs.download_blob(f"{self._folder(name)}{CLIPS}").readall())

    @in_words
    def answers(self, name: str) -> Iterator[JSON]:
        """The lines of all its files, in order of their names; `TwoPhaseError` where one has not a line an instance."""
        asked = count_sent(self.told(name))
        found, out = list[bytes](), self._blobs.list_blob_names(name_starts_with=f"{self._folder(name)}out/")
        blobs = {blob.rpartition("/")[2]: blob for blob in out}  # at any depth: the driver decides on that
        for number, first in enumerate(range(0, asked, _LINES)):
            part, wanted = _part(number), min(_LINES, asked - first)
            lines = self._blobs.download_blob(blobs[part]).readall().splitlines() if part in blobs else []
            if len(lines) != wanted:
                raise TwoPhaseError(
                    f"{name}: its file out/{part} has {len(lines)} answers to {wanted} clips, so whose they are is not "
                    "known; submit the clips again"
                )
            found += lines
        return map(orjson.loads, found)

    @in_words
    def forget(self, name: str) -> None:
        """Remove what the job read and wrote."""
        for blob in list(self._blobs.list_blob_names(name_starts_with=self._folder(name))):
            self._blobs.delete_blob(blob)

    @abstractmethod
    def _absent(self, get: Any, *named: str) -> Any:
        """What `get` gives, or None where there is nothing of that name."""

    def _remove_batch(self, version: str = "") -> None:
        """Remove a version's batch deployment, or the whole batch endpoint; nothing where it is not there."""
        if self._absent(self._ml.batch_endpoints.get, self._batch_endpoint) is None:
            return
        if not version:
            self._ml.batch_endpoints.begin_delete(self._batch_endpoint).result()
        elif self._absent(self._ml.batch_deployments.get, deployment(version), self._batch_endpoint):
            self._ml.batch_deployments.begin_delete(deployment(version), self._batch_endpoint).result()

    def _ready(self, version: str) -> None:
        """Make cluster, endpoint and a version's deployment, as far as they are not there."""
        from azure.ai.ml.constants import BatchDeploymentOutputAction
        from azure.ai.ml.entities import (
            AmlCompute,
            BatchEndpoint,
            BatchRetrySettings,
            BuildContext,
            CodeConfiguration,
            Environment,
            ModelBatchDeployment,
            ModelBatchDeploymentSettings,
        )

        endpoint = self._batch_endpoint
        if len(endpoint) > _LONGEST:
            raise UsageError(f"{endpoint}: is {len(endpoint)} characters, Azure takes {_LONGEST} of a batch endpoint")
        if self._absent(self._ml.compute.get, _SHARED) is None:
            cluster = AmlCompute(name=_SHARED, size=MACHINE, min_instances=0, max_instances=4)
            self._ml.compute.begin_create_or_update(cluster).result()
        if self._absent(self._ml.batch_endpoints.get, endpoint) is None:
            self._ml.batch_endpoints.begin_create_or_update(BatchEndpoint(name=endpoint)).result()
        if self._absent(self._ml.batch_deployments.get, deployment(version), endpoint) is not None:
            return
        dockerfile = _DOCKERFILE.format(image=self._image)
        with TemporaryDirectory() as folder:
            context, code = Path(folder) / "image", Path(folder) / "code"
            context.mkdir()
            code.mkdir()
            (context / "Dockerfile").write_text(dockerfile)
            script = Path(shutil.copy(str(azureml_score.__file__), code))
            self._ml.batch_deployments.begin_create_or_update(
                ModelBatchDeployment(
                    name=deployment(version),
                    endpoint_name=endpoint,
                    model=f"azureml:{self.model}:{version}",
                    code_configuration=CodeConfiguration(code=str(code), scoring_script=script.name),
                    environment=Environment(
                        name=_SHARED, version=digest(dockerfile.encode())[:12], build=BuildContext(path=str(context))
                    ),
                    compute=_SHARED,
                    settings=ModelBatchDeploymentSettings(
                        mini_batch_size=1,
                        instance_count=1,
                        max_concurrency_per_instance=CORES,
                        output_action=BatchDeploymentOutputAction.SUMMARY_ONLY,
                        error_threshold=0,
                        retry_settings=BatchRetrySettings(max_retries=3, timeout=3600),
                    ),
                )
            ).result()

    @property
    def _batch_endpoint(self) -> str:
        return f"{self.model}-batch"

    def _folder(self, job: str) -> str:
        return f"twophase/{self.model}/batch/{job}/"

    @functools.cached_property
    def _blobs(self) -> Any:
        """The container of the workspace's store, with the secret that the workspace keeps of it or our identity."""
        from azure.storage.blob import ContainerClient

        store = self._ml.datastores.get(STORE, include_secrets=True)
        key = getattr(store.credentials, "account_key", None)
        secret = {"account_name": store.account_name, "account_key": key} if key else None
        return ContainerClient(
            f"{store.protocol}://{store.account_name}.blob.{store.endpoint}",
            store.container_name,
            credential=secret or getattr(store.credentials, "sas_token", None) or self._credential,
        )


def _part(number: int) -> str:
    """The file of a job's instances, or of the answers to them, by its number."""
    return f"{number:06}.jsonl"


def deployment(version: str) -> str:
    """A version's deployment, online or batch; Azure takes names of 3 to 32 characters."""
    return f"version-{version}"
