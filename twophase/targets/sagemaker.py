"""Releases on Amazon SageMaker, through boto3.

    s3://BUCKET/twophase/NAME/<release>/model.tar.gz       what SageMaker unpacks into /opt/ml/model
    model package group NAME                               its versions are the releases, with their approval status
    model NAME-v3, variant v3                              version 3 as it is deployed
    endpoint configuration NAME-<12 hex>                   which variants there are; named by them, never changed
    endpoint NAME                                          its tags hold the history

A version that is deployed is approved by that; one that somebody rejected is refused. Variants come and go by
`UpdateEndpoint`, which SageMaker does as a blue/green deployment; traffic moves by
`UpdateEndpointWeightsAndCapacities` between variants that run already, so promotion and rollback start nothing.
"""

import functools
import tarfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar, cast

import orjson

from twophase.errors import TwoPhaseError, UsageError
from twophase.files import JSON, digest_of
from twophase.release.manifest import read
from twophase.targets.requests import Limits, body
from twophase.targets.target import SERVER_IMAGE, Status, Target, words_of
from twophase.targets.traffic import history, recorded

VARIANTS = 10
"""Most that SageMaker lets an endpoint have."""
MACHINE = "ml.m5.large"
_LINES = "application/jsonlines"
MISSING = ("Could not find", "does not exist", "not found", "ResourceNotFound")
"""What SageMaker's errors say of what is not there; their codes do not tell."""
_Method = TypeVar("_Method", bound=Callable[..., Any])


def _in_words(method: _Method) -> _Method:
    """Turn boto3's errors into one message with what to do."""

    @functools.wraps(method)
    def spoken(self: "SageMaker", *args: Any, **kwargs: Any) -> Any:
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            return method(self, *args, **kwargs)
        except ClientError as error:
            said = error.response.get("Error", {})
            code, message = said.get("Code", ""), said.get("Message", str(error))
            todo = {
                "ExpiredTokenException": "sign in again and run the same command: what is done is kept",
                "ExpiredToken": "sign in again and run the same command: what is done is kept",
                "AccessDeniedException": "let this account do it, or use another",
                "AccessDenied": "let this account do it, or use another",
            }.get(code, "see what it says and run the same command again: what is done is kept")
            raise TwoPhaseError(f"SageMaker, {error.operation_name}: {message} ({code}); {todo}") from error
        except BotoCoreError as error:
            raise TwoPhaseError(
                f"SageMaker: {error}; see that you are signed in (`aws sts get-caller-identity`)"
            ) from error

    return cast(_Method, spoken)


@contextmanager
def _passing(*words: str) -> Iterator[None]:
    """Let errors pass that say one of these."""
    from botocore.exceptions import ClientError

    try:
        yield
    except ClientError as error:
        if not any(word in str(error) for word in words):
            raise


class SageMaker(Target):
    """One name in one account and region of AWS."""

    limits = Limits("SageMaker's InvokeEndpoint", 6 * 1024 * 1024, 60)

    def __init__(self, model: str, region: str, role: str, bucket: str = "", image: str = SERVER_IMAGE) -> None:
        """`role` is the ARN that SageMaker runs models as; `image` the server image in ECR.

        `bucket` is by default `sagemaker-REGION-ACCOUNT`, the one that SageMaker's own tools use. Credentials and, for
        another place than Amazon's, addresses are found where boto3 looks for them (`AWS_ENDPOINT_URL`).
        """
        import boto3
        from botocore.config import Config

        super().__init__(model)
        config = Config(retries={"mode": "standard"})
        make = functools.partial(boto3.client, region_name=region or None, config=config)
        self._make, self._region, self._role, self._image, self._named_bucket = make, region, role, image, bucket
        self._api = self._in_client("sagemaker")

    @_in_words
    def _in_client(self, service: str) -> Any:
        return self._make(service)

    @_in_words
    def version_of(self, release_id: str) -> str | None:
        """The package of the group that carries this release."""
        return next((v for v, package in self._packages() if package["release"] == release_id), None)

    @_in_words
    def register(self, release: Path) -> str:
        """Pack to S3, then make a version of the package group, which is what counts as registered."""
        manifest = read(release)
        known = self.version_of(manifest.id)
        if known is not None:
            return known
        key = f"{self._prefix}{manifest.id}/model.tar.gz"
        with TemporaryDirectory() as folder:
            packed = Path(folder) / "model.tar.gz"
            with tarfile.open(packed, "w:gz") as archive:
                archive.add(release, ".")
            self._s3.upload_file(str(packed), self._bucket, key)
        with _passing("already exists"):
            self._api.create_model_package_group(ModelPackageGroupName=self.model)
        made = self._api.create_model_package(
            ModelPackageGroupName=self.model,
            ModelPackageDescription=f"{manifest.id}, {len(manifest.labels)} labels",
            ModelApprovalStatus="PendingManualApproval",
            CustomerMetadataProperties={"release": manifest.id, "front_end": manifest.fingerprint},
            InferenceSpecification={
                "Containers": [{"Image": self._image, "ModelDataUrl": f"s3://{self._bucket}/{key}"}],
                "SupportedContentTypes": ["application/json", _LINES, "audio/wav", "application/octet-stream"],
                "SupportedResponseMIMETypes": ["application/json", _LINES],
            },
        )
        return str(made["ModelPackageArn"].rpartition("/")[2])

    @_in_words
    def attach(self, version: str) -> None:
        """Approve a version, make a model of it, and a variant of the endpoint."""
        self._approve(version)
        shares = self.status().shares
        if version in shares:
            return
        if len(shares) == VARIANTS:
            raise TwoPhaseError(
                f"{self.model}: has {VARIANTS} variants, SageMaker's limit; promote one to let others go"
            )
        package = dict(self._packages())[version]
        made = False
        with _passing(*MISSING):
            made = bool(self._api.describe_model(ModelName=self._named(version)))
        if not made:
            self._api.create_model(
                ModelName=self._named(version),
                Containers=[{"ModelPackageName": package["arn"]}],
                ExecutionRoleArn=self._role,
            )
        self._set_variants({**shares, version: 0 if any(shares.values()) else 100})

    @_in_words
    def detach(self, version: str) -> None:
        """Take the variant and its model away; the last one takes the endpoint with it."""
        shares = self.status().shares
        if shares.get(version) and len(shares) > 1:
            raise TwoPhaseError(f"{self.model}: version {version} has {shares[version]}% of the traffic; move it first")
        if version in shares:
            self._set_variants({v: share for v, share in shares.items() if v != version})
        with _passing(*MISSING):
            self._api.delete_model(ModelName=self._named(version))

    @_in_words
    def shift(self, shares: Mapping[str, int]) -> None:
        """Give the variants other weights."""
        found = self.status()
        unknown = shares.keys() - found.shares.keys()
        if unknown or sum(shares.values()) != 100:
            raise UsageError(f"{words_of(shares)}: shares are per cent of what is deployed, and sum to 100")
        self._api.update_endpoint_weights_and_capacities(
            EndpointName=self.model,
            DesiredWeightsAndCapacities=[
                {"VariantName": f"v{version}", "DesiredWeight": float(shares.get(version, 0))}
                for version in found.shares
            ],
        )
        self._wait()
        self._record(found.shares, shares)

    @_in_words
    def ask(self, clips: list[bytes], version: str = "") -> list[JSON]:
        """`InvokeEndpoint`; a version is asked as `TargetVariant`."""
        variant = {"TargetVariant": f"v{version}"} if version else {}
        answer = self._runtime.invoke_endpoint(
            EndpointName=self.model, ContentType="application/json", Body=orjson.dumps(body(clips)), **variant
        )
        return list(orjson.loads(answer["Body"].read())["predictions"])

    @_in_words
    def ask_batch(self, instances: Path) -> Iterator[JSON]:
        """A batch transform job of the live version, a record a line."""
        live = self._status().live
        if live is None:
            raise UsageError(f"{self.model}: has no live version; deploy one first")
        job = f"{self.model}-{digest_of([time.time_ns(), str(instances)])[:12]}"
        source, results = f"{self._prefix}batch/{job}/in.jsonl", f"{self._prefix}batch/{job}/out"
        self._s3.upload_file(str(instances), self._bucket, source)
        self._api.create_transform_job(
            TransformJobName=job,
            ModelName=self._named(live),
            MaxConcurrentTransforms=8,
            BatchStrategy="SingleRecord",  # a refused record costs no other one
            TransformInput={
                "DataSource": {"S3DataSource": {"S3DataType": "S3Prefix", "S3Uri": f"s3://{self._bucket}/{source}"}},
                "ContentType": _LINES,
                "SplitType": "Line",
            },
            TransformOutput={
                "S3OutputPath": f"s3://{self._bucket}/{results}",
                "Accept": _LINES,
                "AssembleWith": "Line",
            },
            TransformResources={"InstanceType": MACHINE, "InstanceCount": 1},
        )
        found = self._until(
            lambda: self._api.describe_transform_job(TransformJobName=job),
            lambda said: said["TransformJobStatus"] not in ("InProgress", "Stopping"),
        )
        if found["TransformJobStatus"] != "Completed":
            raise TwoPhaseError(
                f"{job}: {found['TransformJobStatus']}: {found.get('FailureReason', 'no reason given')}"
            )
        answers = self._s3.get_object(Bucket=self._bucket, Key=f"{results}/in.jsonl.out")["Body"]
        return (orjson.loads(line) for line in answers.iter_lines() if line)

    @_in_words
    def status(self) -> Status:
        """What the registry, the endpoint and its tags say."""
        versions = {version: package["release"] for version, package in self._packages()}
        endpoint = None
        with _passing(*MISSING):
            endpoint = self._api.describe_endpoint(EndpointName=self.model)
        if endpoint is None:
            return Status(versions)
        shares = {
            variant["VariantName"].removeprefix("v"): round(variant.get("CurrentWeight", 0.0))
            for variant in endpoint.get("ProductionVariants", [])
        }
        tags = self._api.list_tags(ResourceArn=endpoint["EndpointArn"])["Tags"]
        failed = endpoint["EndpointStatus"] in ("Failed", "OutOfService", "UpdateRollbackFailed")
        return Status(
            versions,
            shares,
            history({tag["Key"]: tag["Value"] for tag in tags}),
            endpoint.get("FailureReason") or endpoint["EndpointStatus"] if failed else "",
        )

    @_in_words
    def delete(self) -> None:
        """Endpoint, configurations, models, packages, group, and everything below the prefix in S3."""
        with _passing(*MISSING):
            self._api.delete_endpoint(EndpointName=self.model)
        for config in self._api.list_endpoint_configs(NameContains=f"{self.model}-")["EndpointConfigs"]:
            if self._ours(config["EndpointConfigName"]):
                self._api.delete_endpoint_config(EndpointConfigName=config["EndpointConfigName"])
        for version, package in self._packages():
            with _passing(*MISSING):
                self._api.delete_model(ModelName=self._named(version))
            self._api.delete_model_package(ModelPackageName=package["arn"])
        with _passing(*MISSING):
            self._api.delete_model_package_group(ModelPackageGroupName=self.model)
        for page in self._s3.get_paginator("list_objects_v2").paginate(Bucket=self._bucket, Prefix=self._prefix):
            for item in page.get("Contents", []):
                self._s3.delete_object(Bucket=self._bucket, Key=item["Key"])

    @functools.cached_property
    def _s3(self) -> Any:
        return self._in_client("s3")

    @functools.cached_property
    def _runtime(self) -> Any:
        return self._in_client("sagemaker-runtime")

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

    def _named(self, version: str) -> str:
        return f"{self.model}-v{version}"

    def _packages(self) -> list[tuple[str, JSON]]:
        """Version, and ARN and release, oldest first; the release is the first word of the description."""
        pages = self._api.get_paginator("list_model_packages").paginate(ModelPackageGroupName=self.model)
        found: list[tuple[str, JSON]] = []
        with _passing(*MISSING):
            for page in pages:
                for summary in page["ModelPackageSummaryList"]:
                    arn = summary["ModelPackageArn"]
                    release = summary.get("ModelPackageDescription", "").partition(",")[0]
                    found.append((arn.rpartition("/")[2], {"arn": arn, "release": release}))
        return sorted(found, key=lambda item: int(item[0]))

    def _approve(self, version: str) -> None:
        package = dict(self._packages()).get(version)
        if package is None:
            raise UsageError(f"{version}: is no version of {self.model}")
        state = self._api.describe_model_package(ModelPackageName=package["arn"])["ModelApprovalStatus"]
        if state == "Rejected":
            raise TwoPhaseError(f"{self.model}: version {version} was rejected in the registry; deploy another")
        if state != "Approved":
            self._api.update_model_package(ModelPackageArn=package["arn"], ModelApprovalStatus="Approved")

    def _set_variants(self, weights: Mapping[str, int]) -> None:
        """Have the endpoint run exactly these versions; no endpoint when there are none."""
        before = ""
        with _passing(*MISSING):
            before = self._api.describe_endpoint(EndpointName=self.model)["EndpointConfigName"]
        if not weights:
            self._api.delete_endpoint(EndpointName=self.model)
        else:
            variants = [
                {
                    "VariantName": f"v{version}",
                    "ModelName": self._named(version),
                    "InitialInstanceCount": 1,
                    "InstanceType": MACHINE,
                    "InitialVariantWeight": float(weight),
                }
                for version, weight in weights.items()
            ]
            name = f"{self.model}-{digest_of(variants)[:12]}"
            if not self._api.list_endpoint_configs(NameContains=name)["EndpointConfigs"]:
                self._api.create_endpoint_config(EndpointConfigName=name, ProductionVariants=variants)
            if name == before:
                return
            change = self._api.update_endpoint if before else self._api.create_endpoint
            try:
                change(EndpointName=self.model, EndpointConfigName=name)
                self._wait()
            except BaseException:
                if not before:  # a first endpoint that does not come up would be in the way of the next attempt
                    with _passing(*MISSING):
                        self._api.delete_endpoint(EndpointName=self.model)
                raise
            if not before:
                self._record({}, weights)
        if before:
            self._api.delete_endpoint_config(EndpointConfigName=before)

    def _wait(self) -> None:
        """Until the endpoint has settled. Raises `TwoPhaseError` when that is not in service."""
        found = self._until(
            lambda: self._api.describe_endpoint(EndpointName=self.model),
            lambda said: not said["EndpointStatus"].endswith("ing"),
        )
        if found["EndpointStatus"] != "InService":
            why = found.get("FailureReason", "no reason given")
            raise TwoPhaseError(f"{self.model}: its endpoint is {found['EndpointStatus']}: {why}")

    def _until(self, describe: Callable[[], JSON], ended: Callable[[JSON], bool]) -> JSON:
        wait_s = 0.5
        while not ended(found := describe()):
            time.sleep(wait_s)
            wait_s = min(2 * wait_s, 15.0)
        return found

    def _record(self, *states: Mapping[str, int]) -> None:
        arn = self._api.describe_endpoint(EndpointName=self.model)["EndpointArn"]
        was = {tag["Key"]: tag["Value"] for tag in self._api.list_tags(ResourceArn=arn)["Tags"]}
        tags = recorded(was, *states)
        if was.keys() - tags.keys():
            self._api.delete_tags(ResourceArn=arn, TagKeys=sorted(was.keys() - tags.keys()))
        new = [{"Key": key, "Value": value} for key, value in tags.items() if was.get(key) != value]
        if new:
            self._api.add_tags(ResourceArn=arn, Tags=new)

    def _ours(self, config: str) -> bool:
        rest = config.removeprefix(f"{self.model}-")
        return len(rest) == 12 and all(c in "0123456789abcdef" for c in rest)
