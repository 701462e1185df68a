"""Runs on Vertex AI or on this machine's platform: asked for, watched, scheduled, by the official client.

Asking twice for the same id asks once, and the second is told so (`AlreadyThere`). Whatever a cloud refuses comes back
as one message that says what to do (refusals.py).
"""

import json
import tempfile
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from datetime import datetime
from pathlib import Path
from typing import Any

from pipelines.refusals import RunEndedBadly, in_words, patiently
from pipelines.submission import Submission
from twophase.errors import TwoPhaseError

ENDED = {"PIPELINE_STATE_SUCCEEDED", "PIPELINE_STATE_FAILED", "PIPELINE_STATE_CANCELLED"}


class Vertex:
    """Pipeline jobs of a project and region, through google-cloud-aiplatform: Google's, or this machine's platform."""

    def __init__(self, project: str, region: str, api_endpoint: str = "") -> None:
        """`api_endpoint` is an address such as `http://127.0.0.1:8470`, or empty for Google's own."""
        from twophase.targets.vertex_sdk import Registry

        Registry(project, region, api_endpoint)  # points the SDK at the address
        from google.cloud import aiplatform

        self._sdk, self.project, self.region, self.api_endpoint = aiplatform, project, region, api_endpoint
        self._parent = f"projects/{project}/locations/{region}"

    def request(self, submission: Submission, cron: str = "") -> dict[str, Any]:
        """The request as it would be sent, in proto-JSON: `CreatePipelineJobRequest`, with `cron` of a schedule."""
        from google.auth.credentials import AnonymousCredentials

        with self._in_words(submission.job_id):
            job = self._job(submission, AnonymousCredentials()).to_dict()  # nothing is sent
        for name, value in (("serviceAccount", submission.service_account), ("network", submission.network)):
            if value:
                job[name] = value
        if not cron:
            return {"parent": self._parent, "pipelineJobId": submission.job_id, "pipelineJob": job}
        schedule = {
            "displayName": submission.arguments.get("model", submission.name),  # by which `unschedule` finds it
            "cron": cron,
            "maxConcurrentRunCount": "1",
            "createPipelineJobRequest": {"parent": self._parent, "pipelineJob": job},
        }
        return {"parent": self._parent, "schedule": schedule}

    def submit(self, submission: Submission) -> str:
        """Ask for a run; return its resource name. Raises `AlreadyThere`, `TwoPhaseError`."""
        from google.cloud.aiplatform_v1 import types
        from google.protobuf import json_format

        with self._in_words(submission.job_id):
            job = self._job(submission)
            if submission.experiment:
                job.submit(
                    service_account=submission.service_account or None,
                    network=submission.network or None,
                    experiment=submission.experiment,
                )
                return str(job.resource_name)
            # Without it what is sent is what `request` says: `job.submit` would first ask Google for the project's
            # number, also where the platform is this machine's, and make buckets that nobody asked for.
            asked = json_format.ParseDict(self.request(submission), types.CreatePipelineJobRequest.pb()())
            made = job.api_client.create_pipeline_job(request=types.CreatePipelineJobRequest.wrap(asked))
        return str(made.name)

    def check_bucket(self, bucket: str) -> None:
        """Raise `TwoPhaseError` unless the bucket of `gs://BUCKET` is there and may be looked at."""
        from google.cloud import storage

        name = bucket.removeprefix("gs://").rstrip("/")
        with self._in_words(bucket):
            there = storage.Client(project=self.project).bucket(name).exists()
        if not there:
            raise TwoPhaseError(
                f"{bucket}: there is no such bucket; make it: gcloud storage buckets create gs://{name} "
                f"--location={self.region}"
            )

    def schedule(self, submission: Submission, cron: str) -> str:
        """Ask for a run at every time of `cron`, one at a time; return the schedule's resource name."""
        from google.cloud.aiplatform_v1 import types
        from google.protobuf import json_format

        asked = json_format.ParseDict(self.request(submission, cron), types.CreateScheduleRequest.pb()())
        with self._in_words(submission.job_id):
            schedules = self._sdk.PipelineJobSchedule(self._job(submission), submission.name).api_client
            made = schedules.create_schedule(request=types.CreateScheduleRequest.wrap(asked))
        return str(made.name)

    def get(self, job_id: str) -> Any:
        """The job of that id as the SDK has it, or None."""
        from google.api_core.exceptions import NotFound

        with self._in_words(job_id):
            try:
                return self._sdk.PipelineJob.get(job_id)
            except NotFound:
                return None

    def started(self, trigger: str) -> list[tuple[datetime, int]]:
        """When each run with the label `trigger` was asked for, and how many files it was asked for."""
        with self._in_words(trigger):
            found = self._sdk.PipelineJob.list(filter=f'labels.trigger="{trigger}"')
        return [(job.create_time, int(job.labels.get("files", 0))) for job in found]

    def wait(self, name: str, on_task: Callable[[str, str], object] = lambda task, state: None) -> None:
        """Watch a run to its end; `on_task` is called with each task's new state. Raises `RunEndedBadly`.

        A connection that is lost does not end it (`patiently`).
        """
        seen: dict[str, str] = {}
        pause_s, longest_s = 0.5, 1.0 if self.api_endpoint else 15.0  # a platform on this machine may be asked often

        job: Any = None

        def look() -> str:
            nonlocal job
            with self._in_words(name):
                if job is None:
                    job = self._sdk.PipelineJob.get(name)
                return str(job.state.name)  # asks

        while (state := patiently(look)) not in ENDED:
            self._tell(job, seen, on_task)
            time.sleep(pause_s)
            pause_s = min(1.5 * pause_s, longest_s)
        self._tell(job, seen, on_task)
        if state != "PIPELINE_STATE_SUCCEEDED":
            word = "was cancelled" if state.endswith("CANCELLED") else "failed"
            why = f": {job.gca_resource.error.message}" if job.gca_resource.error.message else ""
            raise RunEndedBadly(f"{name}: {word}{why}; what is finished is kept, submit it again to go on")

    def _tell(self, job: Any, seen: dict[str, str], on_task: Callable[[str, str], object]) -> None:
        for task in job.gca_resource.job_detail.task_details:
            if seen.get(task.task_name) != task.state.name:
                seen[task.task_name] = task.state.name
                on_task(task.task_name, task.state.name)

    def console(self, name: str) -> str:
        """Where a person looks at the run."""
        if self.api_endpoint:
            return f"{self.api_endpoint}/v1/{name}"
        return (
            f"https://console.cloud.google.com/vertex-ai/locations/{self.region}/pipelines/runs/"
            f"{name.rpartition('/')[2]}?project={self.project}"
        )

    def _job(self, submission: Submission, credentials: Any = None) -> Any:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "spec.json"
            path.write_text(json.dumps(submission.spec))
            return self._sdk.PipelineJob(
                display_name=submission.name,
                template_path=str(path),
                credentials=credentials,
                project=self.project,
                location=self.region,
                job_id=submission.job_id,
                pipeline_root=submission.root or "gs://twophase/runs",
                parameter_values=submission.arguments,
                labels=submission.labels,
                encryption_spec_key_name=submission.encryption_key or None,
            )

    def _in_words(self, what: str) -> AbstractContextManager[None]:
        return in_words(self.api_endpoint or f"{self.project}/{self.region}", what)
