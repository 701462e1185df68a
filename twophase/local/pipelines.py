"""PipelineService: compiled specs run on this machine, one after another, each in a process of its own.

A job that the platform's end interrupted is run again when the platform is back, and its cache answers for the steps
that had ended; without caching it has failed and says so. Needs kfp, in the job's process only.
"""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from twophase.errors import UsageError
from twophase.files import JSON, digest, read_json, write_json
from twophase.local import pipeline
from twophase.local.background import Background, Submit
from twophase.local.buckets import DEFAULT_BUCKET, Buckets
from twophase.local.query import selected
from twophase.local.resources import done, failed, missing, new_id, now, page
from twophase.local.store import Store
from twophase.serving.refusal import Refusal

_KIND = "pipelineJob"
_UNDER_WAY = {"PIPELINE_STATE_PENDING", "PIPELINE_STATE_RUNNING"}
_JOB_ID = re.compile(r"[a-z][-a-z0-9]{0,127}")


class Pipelines:
    """The pipeline job methods of PipelineService, by their names, and the runner behind them."""

    def __init__(self, store: Store, buckets: Buckets, folder: Path, submit: Submit) -> None:
        """`submit` runs a call in the control thread."""
        self._store, self._buckets, self._folder = store, buckets, folder
        self._running: tuple[str, subprocess.Popen[bytes]] | None = None
        waiting = []
        for body in reversed(store.resources(_KIND)):
            running = body["state"] == "PIPELINE_STATE_RUNNING"
            if body["state"] == "PIPELINE_STATE_PENDING" or (running and self._cached(body["name"])):
                waiting.append(body["name"])
            elif running:
                self._set(body["name"], "PIPELINE_STATE_FAILED", "the platform ended while this ran; submit it again")
        self._background: Background[str] = Background("pipelines", self._run, self._fail, submit)
        for name in waiting:
            self._background.put(name)

    def close(self) -> None:
        """End the job under way; those that wait are run at the next start."""
        self._background.close(self._kill)

    def create_pipeline_job(self, request: JSON) -> JSON:
        """Take a job on; its id, where the request names one, is new."""
        given = request.get("pipelineJob", {})
        if given.get("templateUri") and not given.get("pipelineSpec"):
            raise Refusal(501, "CreatePipelineJob: templateUri is not built here; send the compiled pipelineSpec")
        config = given.get("runtimeConfig", {})
        values = config.get("parameterValues", {})
        try:
            pipeline.checked(given.get("pipelineSpec", {}), values)
        except UsageError as error:
            raise Refusal(400, f"pipelineJob.runtimeConfig.parameterValues.{error}") from None
        except (KeyError, TypeError, AttributeError):
            raise Refusal(400, "pipelineJob.pipelineSpec: is no compiled pipeline; compile it with kfp first") from None
        identity = request.get("pipelineJobId") or f"pipeline-{new_id()}"
        if not _JOB_ID.fullmatch(identity):
            raise Refusal(400, f"pipelineJobId: {identity!r}; a-z first, then up to 127 of a-z, 0-9 and -")
        name = f"{request['parent']}/pipelineJobs/{identity}"
        if self._store.get(_KIND, name):
            raise Refusal(409, f"{name}: already exists; a job runs once, give the next one another id")
        root = self._buckets.folder(config.get("gcsOutputDirectory") or f"gs://{DEFAULT_BUCKET}/pipelines")
        job = self._job(name)
        shutil.rmtree(job, ignore_errors=True)
        job.mkdir(parents=True)
        plan = {
            "spec": given["pipelineSpec"],
            "arguments": values,
            "root": str(root),
            "caching": '"enableCache": true' in json.dumps(given["pipelineSpec"]),
        }
        write_json(job / "job.json", plan)
        time = now()
        body = {**given, "name": name, "createTime": time, "updateTime": time, "state": "PIPELINE_STATE_PENDING"}
        with self._store.transaction():
            self._store.put(_KIND, body)
        self._background.put(name)
        return self._with_tasks(body)

    def get_pipeline_job(self, request: JSON) -> JSON:
        """A job and the states of its tasks."""
        return self._with_tasks(self._get(request["name"]))

    def list_pipeline_jobs(self, request: JSON) -> JSON:
        """The jobs of a location, newest first."""
        found = selected(self._store.resources(_KIND, request["parent"]), request)
        return page(found, request, "pipelineJobs", self._with_tasks)

    def cancel_pipeline_job(self, request: JSON) -> JSON:
        """End a job with every process that it started."""
        body = self._get(request["name"])
        if body["state"] not in _UNDER_WAY:
            raise failed(f"{body['name']}: has ended ({body['state']}); only a job under way can be cancelled")
        self._set(body["name"], "PIPELINE_STATE_CANCELLED")
        if self._running and self._running[0] == body["name"]:
            self._kill()
        return {}

    def delete_pipeline_job(self, request: JSON) -> JSON:
        """Forget a job that has ended; its outputs stay."""
        body = self._get(request["name"])
        if body["state"] in _UNDER_WAY:
            raise failed(f"{body['name']}: is under way; cancel it first")
        with self._store.transaction():
            self._store.delete(_KIND, body["name"])
            operation = done(self._store, body["name"], "DeletePipelineJob", None)
        shutil.rmtree(self._job(body["name"]), ignore_errors=True)
        return operation

    def _run(self, name: str) -> None:
        if not self._background.change(lambda: self._advance(name, "PIPELINE_STATE_RUNNING")):
            return  # cancelled or deleted while it waited
        job = self._job(name)
        quiet = {"TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONUNBUFFERED": "1", "PYTHONWARNINGS": "ignore"}
        with (job / "log").open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "twophase.local.pipeline", str(job)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                env={**os.environ, **quiet},
            )
        self._running = (name, process)
        if self._background.stopping or self._background.change(lambda: self._get(name)["state"] not in _UNDER_WAY):
            self._kill()
        code = process.wait()
        self._running = None
        if self._background.stopping:
            return
        if code:
            said = (job / "log").read_text("utf-8", "replace").strip()
            steps = [f"{task}: {found.error}" for task, found in pipeline.tasks(said).items() if found.error]
            self._fail(name, "; ".join(steps) or said.rpartition("\n")[2] or f"the process ended with {code}")
        else:
            self._background.change(lambda: self._advance(name, "PIPELINE_STATE_SUCCEEDED"))

    def _fail(self, name: str, reason: str) -> None:
        self._background.change(lambda: self._advance(name, "PIPELINE_STATE_FAILED", reason))

    def _advance(self, name: str, state: str, reason: str = "") -> bool:
        """Change a job that has not ended meanwhile; whether it had not."""
        body = self._store.get(_KIND, name)
        if body is None or body["state"] not in _UNDER_WAY:
            return False
        self._set(name, state, reason)
        return True

    def _kill(self) -> None:
        if self._running:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._running[1].pid, signal.SIGTERM)

    def _set(self, name: str, state: str, reason: str = "") -> None:
        time = now()
        fields: dict[str, Any] = {"state": state, "updateTime": time}
        fields["startTime" if state == "PIPELINE_STATE_RUNNING" else "endTime"] = time
        if reason:
            fields["error"] = _status(reason)
        with self._store.transaction():
            self._store.put(_KIND, {**self._get(name), **fields})

    def _with_tasks(self, body: JSON) -> JSON:
        log = self._job(body["name"]) / "log"
        tasks = pipeline.tasks(log.read_text("utf-8", "replace")) if log.is_file() else {}
        details = []
        for i, (name, task) in enumerate(tasks.items(), 1):
            cut_off = task.state == "RUNNING" and body["state"] not in _UNDER_WAY
            detail = {"taskId": str(i), "taskName": name, "state": "CANCELLED" if cut_off else task.state}
            details.append(detail | ({"error": _status(task.error)} if task.error else {}))
        return {**body, "jobDetail": {"taskDetails": details}} if details else body

    def _get(self, name: str) -> JSON:
        body = self._store.get(_KIND, name)
        if body is None:
            raise missing(name)
        return body

    def _cached(self, name: str) -> bool:
        return bool(read_json(self._job(name) / "job.json", "pipeline plan")["caching"])

    def _job(self, name: str) -> Path:
        return self._folder / digest(name.encode())[:16]


def _status(message: str) -> JSON:
    """A failure as the API says it: FAILED_PRECONDITION, which is what asking again as it is would meet."""
    return {"code": 9, "message": message}
