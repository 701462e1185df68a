"""Batch prediction jobs: one after another, each in processes of its own, resumed when the platform comes back.

A job is `JOB_STATE_PENDING`, then `RUNNING`, then `SUCCEEDED`, `FAILED` or `CANCELLED`, and each step is committed
before it is acted on.
"""

import contextlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from twophase.files import JSON, digest, read_json
from twophase.local import batch, saved_model
from twophase.local.artifacts import Artifacts, is_release
from twophase.local.background import Background, Submit
from twophase.local.buckets import Buckets
from twophase.local.models import Models
from twophase.local.query import selected
from twophase.local.resources import done, failed, missing, new_id, now, page
from twophase.local.store import Store
from twophase.serving.refusal import Refusal

_KIND = "batchPredictionJob"
KINDS = (_KIND, "ml.job")
"""What is run here: Vertex's jobs, and the old AI Platform's."""
_ARTIFACT = "artifact"
"""The one field of a stored job that is not the API's."""
_ENDED = {"JOB_STATE_SUCCEEDED", "JOB_STATE_FAILED", "JOB_STATE_CANCELLED"}
_NOT_BUILT = ("unmanagedContainerModel", "generateExplanation", "modelMonitoringConfig")
_Job = tuple[str, str]
"""A job's kind and name."""


class BatchJobs:
    """The batch prediction methods of JobService, by their names, and the runner behind them."""

    def __init__(
        self, store: Store, models: Models, artifacts: Artifacts, buckets: Buckets, folder: Path, submit: Submit
    ) -> None:
        """`submit` runs a call in the control thread. Jobs that had not ended go on."""
        self._store, self._models, self._artifacts, self._buckets = store, models, artifacts, buckets
        self._folder = folder
        self._running: list[subprocess.Popen[bytes]] = []
        under_way = [(k, b["name"]) for k in KINDS for b in reversed(store.resources(k)) if b["state"] not in _ENDED]
        self._background: Background[_Job] = Background("batch", self._run, self._fail, submit)
        for job in under_way:
            self._background.put(job)

    def close(self) -> None:
        """Stop working; what is under way goes on at the next start."""
        self._background.close(self._end_processes)

    def create_batch_prediction_job(self, request: JSON) -> JSON:
        """Take a job on: what it names has to be there."""
        given = request.get("batchPredictionJob", {})
        if not given.get("displayName"):
            raise Refusal(400, "batchPredictionJob.displayName: is missing; give the job a name")
        for field in _NOT_BUILT:
            if given.get(field):
                raise Refusal(501, f"CreateBatchPredictionJob: {field} is not built here; leave it out")
        model, version = self._models.resolve(given.get("model", ""))
        artifact = self._models.artifact(model, version)
        if artifact is None:
            raise failed(f"{model}@{version}: has no artifact; upload a version with an artifact_uri")
        source, destination = given.get("inputConfig", {}), given.get("outputConfig", {})
        if source.get("instancesFormat") not in ("jsonl", "file-list"):
            raise Refusal(
                400, f"inputConfig.instancesFormat: {source.get('instancesFormat')}; jsonl and file-list are accepted"
            )
        if destination.get("predictionsFormat") != "jsonl":
            raise Refusal(
                400, f"outputConfig.predictionsFormat: {destination.get('predictionsFormat')}; jsonl is accepted"
            )
        prefix = destination.get("gcsDestination", {}).get("outputUriPrefix", "")
        if not prefix.startswith("gs://"):
            raise Refusal(400, f"outputConfig.gcsDestination.outputUriPrefix: {prefix!r}; give gs://BUCKET/PREFIX")
        name = f"{request['parent']}/batchPredictionJobs/{new_id()}"
        time = now()
        body = {
            **given,
            "name": name,
            "model": model,
            "modelVersionId": str(version),
            "outputInfo": {"gcsOutputDirectory": f"{prefix.rstrip('/')}/{_output_name(given['displayName'], time)}"},
        }
        return self.enqueue(_KIND, body, artifact)

    def enqueue(self, kind: str, body: JSON, artifact: str) -> JSON:
        """Take on a job whose body has all of a batchPredictionJob's fields; results go to its `outputInfo`."""
        if not is_release(artifact):
            saved_model.require_tensorflow()
            saved_model.refuse_parameters(body.get("modelParameters"))
        self._inputs(body["inputConfig"].get("gcsSource", {}).get("uris", []))
        self._buckets.folder(body["outputInfo"]["gcsOutputDirectory"])
        if self._store.one("SELECT 1 FROM resource WHERE name = ?", body["name"]):
            raise Refusal(409, f"{body['name']}: already exists; give the job another id")
        job = self._folder_of(body["name"])
        shutil.rmtree(job, ignore_errors=True)
        time = now()
        body = {**body, "state": "JOB_STATE_PENDING", "createTime": time, "updateTime": time, _ARTIFACT: artifact}
        with self._store.transaction():
            self._store.put(kind, body)
        self._background.put((kind, body["name"]))
        return self.read(kind, body["name"])

    def get_batch_prediction_job(self, request: JSON) -> JSON:
        """A job and how far it is."""
        return self.read(_KIND, request["name"])

    def read(self, kind: str, name: str) -> JSON:
        """A job as the API answers it."""
        return self._with_progress(self._get(kind, name))

    def list_batch_prediction_jobs(self, request: JSON) -> JSON:
        """The jobs of a location, newest first."""
        found = selected(self._store.resources(_KIND, request["parent"]), request)
        return page(found, request, "batchPredictionJobs", self._with_progress)

    def cancel_batch_prediction_job(self, request: JSON) -> JSON:
        """Stop a job under way."""
        return self.cancel(_KIND, request["name"])

    def cancel(self, kind: str, name: str) -> JSON:
        """Stop a job; the shards that it has finished stay."""
        body = self._get(kind, name)
        if body["state"] in _ENDED:
            raise failed(f"{name}: has ended ({body['state']}); only a job under way can be cancelled")
        self._set(kind, name, state="JOB_STATE_CANCELLED", endTime=now())
        if any(str(self._folder_of(name)) in process.args for process in self._running):  # type: ignore[operator]
            self._end_processes()
        return {}

    def delete_batch_prediction_job(self, request: JSON) -> JSON:
        """Forget a job that has ended; its outputs stay."""
        body = self._get(_KIND, request["name"])
        if body["state"] not in _ENDED:
            raise failed(f"{body['name']}: is under way; cancel it first")
        with self._store.transaction():
            self._store.delete(_KIND, body["name"])
            operation = done(self._store, body["name"], "DeleteBatchPredictionJob", None)
        shutil.rmtree(self._folder_of(body["name"]), ignore_errors=True)
        return operation

    def artifacts_in_use(self) -> set[str]:
        """The artifacts that jobs under way need."""
        return {b[_ARTIFACT] for kind in KINDS for b in self._store.resources(kind) if b["state"] not in _ENDED}

    def _run(self, which: _Job) -> None:
        kind, name = which
        job = self._folder_of(name)
        body = self._background.change(lambda: self._store.get(kind, name))
        if body is None or body["state"] in _ENDED:
            return  # cancelled or deleted while it waited
        if not (job / "plan.json").is_file():
            self._plan(kind, body, job)
        started = {"state": "JOB_STATE_RUNNING", "startTime": body.get("startTime") or now()}
        if not self._background.change(lambda: self._advance(kind, name, **started)):
            return
        self._running = list(_processes(job, is_release(body[_ARTIFACT])))
        if self._background.stopping or self._background.change(lambda: self._get(kind, name)["state"] in _ENDED):
            self._end_processes()  # told to end while they were being started
        words = [process.communicate()[1].decode("utf-8", "replace").strip() for process in self._running]
        codes = [process.returncode for process in self._running]
        if self._background.stopping:
            return
        wrong = [
            w.splitlines()[-1] if w else f"a process ended with {c}" for w, c in zip(words, codes, strict=True) if c
        ]
        if wrong:
            self._fail(which, wrong[0])
        else:
            ended = {"state": "JOB_STATE_SUCCEEDED", "endTime": now()}
            self._background.change(lambda: self._advance(kind, name, **ended))

    def _fail(self, which: _Job, reason: str) -> None:
        ended: JSON = {"state": "JOB_STATE_FAILED", "endTime": now(), "error": {"code": 9, "message": reason}}
        self._background.change(lambda: self._advance(*which, **ended))

    def _plan(self, kind: str, body: JSON, job: Path) -> None:
        """Fix what a job does. It reads every input once, so it is not the control thread's work."""
        inputs = self._inputs(body["inputConfig"]["gcsSource"]["uris"])
        total, starts = batch.index(inputs)
        config = body.get("instanceConfig", {})
        plan = batch.Plan(
            model=str(self._artifacts.path(body[_ARTIFACT])),
            inputs=inputs,
            format=body["inputConfig"]["instancesFormat"],
            buckets={bucket: str(self._buckets.folder(f"gs://{bucket}")) for bucket in self._buckets.names()},
            output=str(self._buckets.folder(body["outputInfo"]["gcsOutputDirectory"])),
            total=total,
            starts=starts,
            echo=kind == _KIND,
            key_field=config.get("keyField", ""),
            included=config.get("includedFields", []),
            excluded=config.get("excludedFields", []),
            parameters=body.get("modelParameters"),
        )
        batch.write_plan(job, plan)

    def _advance(self, kind: str, name: str, **fields: Any) -> bool:
        """Change a job that has not ended meanwhile; whether it had not."""
        body = self._store.get(kind, name)
        if body is None or body["state"] in _ENDED:
            return False
        self._set(kind, name, **fields)
        return True

    def _set(self, kind: str, name: str, **fields: Any) -> None:
        with self._store.transaction():
            self._store.put(kind, {**self._get(kind, name), **fields, "updateTime": now()})

    def _end_processes(self) -> None:
        for process in self._running:
            with contextlib.suppress(ProcessLookupError):
                process.terminate()

    def _inputs(self, uris: list[str]) -> list[tuple[str, int, int]]:
        if not uris:
            raise Refusal(400, "inputConfig.gcsSource.uris: is empty; name the input files, gs://BUCKET/PATH")
        found = []
        for uri in uris:
            paths = [self._buckets.folder(uri)]
            if uri.endswith("*"):
                bucket, _, prefix = uri[:-1].removeprefix("gs://").partition("/")
                paths = [self._buckets.path(bucket, name) for name in self._buckets.objects(bucket, prefix)]
            for path in paths:
                if not uri.startswith("gs://") or not path.is_file():
                    raise Refusal(
                        404, f"{uri}: there is no such file; give gs://BUCKET/PATH, or a prefix that ends in *"
                    )
                stat = path.stat()
                found.append((str(path), stat.st_size, stat.st_mtime_ns))
        return found

    def _with_progress(self, body: JSON) -> JSON:
        job = self._folder_of(body["name"])
        body = {name: value for name, value in body.items() if name != _ARTIFACT}
        if body["state"] == "JOB_STATE_PENDING" or not (job / "plan.json").is_file():
            return body
        answered, refused = batch.progress(job)
        total = batch.Plan(**read_json(job / "plan.json", "batch plan")).total
        stats = {"successfulCount": answered, "failedCount": refused, "incompleteCount": total - answered - refused}
        return {**body, "completionStats": {name: str(count) for name, count in stats.items()}}

    def _get(self, kind: str, name: str) -> JSON:
        body = self._store.get(kind, name)
        if body is None:
            raise missing(name)
        return body

    def _folder_of(self, name: str) -> Path:
        return self._folder / digest(name.encode())[:16]


def _processes(job: Path, release: bool) -> Iterator[subprocess.Popen[bytes]]:
    """The processes of a job: one a core for a release, one for TensorFlow, which spreads over the cores itself."""
    count = len(os.sched_getaffinity(0)) if release else 1
    for i in range(count):
        yield subprocess.Popen(
            [sys.executable, "-m", "twophase.local.batch", str(job), str(i), str(count)],
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env={**os.environ, **saved_model.QUIET},
        )


def _output_name(display_name: str, time: str) -> str:
    """As Vertex names it: `prediction-<model>-<time>`."""
    return f"prediction-{re.sub('[^A-Za-z0-9_-]+', '_', display_name)}-{re.sub('[^0-9TZ]', '_', time)}"
