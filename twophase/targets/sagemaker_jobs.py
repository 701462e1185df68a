"""Batch jobs on SageMaker, which are its transform jobs, and what one name keeps in S3, through boto3.

    s3://BUCKET/twophase/NAME/batch/NAME-<12 hex>/    a job's folder: clips.jsonl, in.jsonl, out/in.jsonl.out

There is a line of answers for each line of instances, in their order. An answer belongs to a clip by its place, so none
are handed out where one is missing.
"""

import functools
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import orjson

from twophase.errors import TwoPhaseError
from twophase.files import JSON
from twophase.targets.jobs import CANCELLED, CLIPS, FAILED, INSTANCES, RUNNING, SUCCEEDED, Job, Jobs, count_sent
from twophase.targets.sagemaker_errors import MISSING, in_words, passing

MACHINE = "ml.m5.large"
LINES = "application/jsonlines"
_STATES = {"Completed": SUCCEEDED, "Failed": FAILED, "Stopped": CANCELLED}


class SageMakerJobs(Jobs):
    """The batch side of one name in one account and region, and its place in S3."""

    _api: Any
    _make: Callable[..., Any]
    _named_bucket: str

    @in_words
    def start(self, folder: Path, name: str) -> str:
        """A batch transform job, a record a line; the server answers a bad record with an error, not with a failure."""
        live = self._live()
        for file in (CLIPS, INSTANCES):
            self._s3.upload_file(str(folder / file), self._bucket, f"{self._folder(name)}{file}")
        uri = f"s3://{self._bucket}/{self._folder(name)}"
        self._api.create_transform_job(
            TransformJobName=name,
            ModelName=self._named(live),
            MaxConcurrentTransforms=8,
            BatchStrategy="SingleRecord",
            TransformInput={
                "DataSource": {"S3DataSource": {"S3DataType": "S3Prefix", "S3Uri": f"{uri}{INSTANCES}"}},
                "ContentType": LINES,
                "SplitType": "Line",
            },
            TransformOutput={"S3OutputPath": f"{uri}out", "Accept": LINES, "AssembleWith": "Line"},
            TransformResources={"InstanceType": MACHINE, "InstanceCount": 1},
        )
        return name

    @in_words
    def find(self, name: str) -> str | None:
        """Jobs have the names that they were given."""
        found: str | None = None
        with passing(*MISSING):
            found = self._api.describe_transform_job(TransformJobName=name)["TransformJobName"]
        return found

    @in_words
    def job(self, name: str) -> Job:
        """`DescribeTransformJob`."""
        found = self._api.describe_transform_job(TransformJobName=name)
        return Job(name, _STATES.get(found["TransformJobStatus"], RUNNING), found.get("FailureReason", ""))

    @in_words
    def cancel(self, name: str) -> None:
        """`StopTransformJob`."""
        self._api.stop_transform_job(TransformJobName=name)

    @in_words
    def told(self, name: str) -> bytes:
        """What was uploaded beside the instances."""
        return self._object(f"{self._folder(name)}{CLIPS}")

    @in_words
    def answers(self, name: str) -> Iterator[JSON]:
        """One file of results for the one file of input; `TwoPhaseError` where it has not a line an instance."""
        asked = count_sent(self.told(name))
        file = f"{self._folder(name)}out/{INSTANCES}.out"
        lines = list(filter(None, self._object(file).splitlines()))  # SageMaker ends lines that end already
        if len(lines) != asked:
            raise TwoPhaseError(
                f"{name}: {file} has {len(lines)} answers to {asked} clips, so whose they are is not known; submit the "
                "clips again"
            )
        return map(orjson.loads, lines)

    @in_words
    def forget(self, name: str) -> None:
        """Remove what the job read and wrote."""
        self._clear(self._folder(name))

    @in_words
    def _in_client(self, service: str) -> Any:
        return self._make(service)

    @functools.cached_property
    def _s3(self) -> Any:
        return self._in_client("s3")

    @functools.cached_property
    def _bucket(self) -> str:
        if self._named_bucket:
            return self._named_bucket
        name = f"sagemaker-{self._api.meta.region_name}-{self._in_client('sts').get_caller_identity()['Account']}"
        with suppress(self._s3.exceptions.BucketAlreadyOwnedByYou):
            region = self._api.meta.region_name
            where = {} if region == "us-east-1" else {"CreateBucketConfiguration": {"LocationConstraint": region}}
            self._s3.create_bucket(Bucket=name, **where)
        return name

    @property
    def _prefix(self) -> str:
        return f"twophase/{self.model}/"

    def _folder(self, job: str) -> str:
        return f"{self._prefix}batch/{job}/"

    def _object(self, key: str) -> bytes:
        return bytes(self._s3.get_object(Bucket=self._bucket, Key=key)["Body"].read())

    def _clear(self, prefix: str) -> None:
        for page in self._s3.get_paginator("list_objects_v2").paginate(Bucket=self._bucket, Prefix=prefix):
            for item in page.get("Contents", []):
                self._s3.delete_object(Bucket=self._bucket, Key=item["Key"])

    def _named(self, version: str) -> str:
        return f"{self.model}-v{version}"
