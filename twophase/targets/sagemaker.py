"""Releases on Amazon SageMaker, through boto3.

    s3://BUCKET/twophase/NAME/<release>/model.tar.gz       what SageMaker unpacks into /opt/ml/model
    model package group NAME                               its versions are the releases, with their approval status
    model NAME-v3, variant v3                              version 3 as it is deployed
    endpoint configuration NAME-<12 hex>                   variants and weights; named by them, never changed
    endpoint NAME                                          its tags hold the history

A version that is deployed is approved by that; one that somebody rejected is refused. Variants come and go by
`UpdateEndpoint`, which SageMaker does as a blue/green deployment; traffic moves by
`UpdateEndpointWeightsAndCapacities` between variants that run already, so promotion and rollback start nothing.

Where alarms are named, traffic moves by `UpdateEndpoint` too: a second fleet with the new weights takes over, first
with one instance of each variant where there are more, and SageMaker goes back by itself when an alarm goes off. That
is offered for a change that keeps the names of variants, so not for their coming and going, when no request moves.
"""

import functools
import re
import tarfile
import time
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import orjson

from twophase.errors import TwoPhaseError, UsageError
from twophase.files import JSON, digest_of
from twophase.release.manifest import read
from twophase.targets.requests import Limits, body
from twophase.targets.sagemaker_errors import MISSING, in_words, passing
from twophase.targets.sagemaker_jobs import LINES, MACHINE, SageMakerJobs
from twophase.targets.target import SERVER_IMAGE, Status, words_of
from twophase.targets.traffic import history, recorded

VARIANTS = 10
"""Most that SageMaker lets an endpoint have."""
BAKING_S = 600
"""How long alarms are watched after each step of a guarded change."""
_CHANGING = ("Creating", "Updating", "SystemUpdating", "RollingBack", "Deleting")


class SageMaker(SageMakerJobs):
    """One name in one account and region of AWS."""

    limits = Limits("SageMaker's InvokeEndpoint", 6 * 1024 * 1024, 60)

    def __init__(
        self,
        model: str,
        region: str,
        role: str,
        bucket: str = "",
        image: str = SERVER_IMAGE,
        alarms: str = "",
        instances: str = "1",
    ) -> None:
        """`role` is the ARN that SageMaker runs models as; `image` the server image in ECR.

        `bucket` is by default `sagemaker-REGION-ACCOUNT`, the one that SageMaker's own tools use. `alarms` are names of
        CloudWatch alarms, with commas between, that call a move of traffic off; `instances` is how many a variant has.
        Credentials and, for another place than Amazon's, addresses are found where boto3 looks for them
        (`AWS_ENDPOINT_URL`).
        """
        import boto3
        from botocore.config import Config

        super().__init__(model)
        if not instances.isdecimal() or int(instances) < 1:
            raise UsageError(f"instances={instances}: is no number of machines; 1 or more is accepted")
        self._alarms, self._instances = [name for name in alarms.split(",") if name], int(instances)
        config = Config(retries={"mode": "standard"})
        make = functools.partial(boto3.client, region_name=region or None, config=config)
        self._make, self._region, self._role, self._image, self._named_bucket = make, region, role, image, bucket
        self._api = self._in_client("sagemaker")

    @in_words
    def version_of(self, release_id: str) -> str | None:
        """The package of the group that carries this release."""
        return next((v for v, package in self._packages() if package["release"] == release_id), None)

    @in_words
    def front_end_of(self, version: str) -> str:
        """As the package's metadata has it."""
        package = self._api.describe_model_package(ModelPackageName=dict(self._packages())[version]["arn"])
        return str(package.get("CustomerMetadataProperties", {}).get("front_end", ""))

    @in_words
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
        with passing("already exists"):
            self._api.create_model_package_group(ModelPackageGroupName=self.model)
        made = self._api.create_model_package(
            ModelPackageGroupName=self.model,
            ModelPackageDescription=f"{manifest.id}, {len(manifest.labels)} labels",
            ModelApprovalStatus="PendingManualApproval",
            CustomerMetadataProperties={"release": manifest.id, "front_end": manifest.fingerprint},
            InferenceSpecification={
                "Containers": [{"Image": self._image, "ModelDataUrl": f"s3://{self._bucket}/{key}"}],
                "SupportedContentTypes": ["application/json", LINES, "audio/wav", "application/octet-stream"],
                "SupportedResponseMIMETypes": ["application/json", LINES],
            },
        )
        return str(made["ModelPackageArn"].rpartition("/")[2])

    @in_words
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
        with passing(*MISSING):
            made = bool(self._api.describe_model(ModelName=self._named(version)))
        if not made:
            self._api.create_model(
                ModelName=self._named(version),
                Containers=[{"ModelPackageName": package["arn"]}],
                ExecutionRoleArn=self._role,
            )
        weights = {**shares, version: 0 if any(shares.values()) else 100}
        self._change(weights)
        if not shares:
            self._record({}, weights)

    @in_words
    def detach(self, version: str) -> None:
        """Take the variant and its model away; the last one takes the endpoint with it."""
        shares = self.status().shares
        if shares.get(version) and len(shares) > 1:
            raise TwoPhaseError(f"{self.model}: version {version} has {shares[version]}% of the traffic; move it first")
        rest = {v: share for v, share in shares.items() if v != version}
        if not rest:
            self._remove_endpoint()
        elif version in shares:
            self._change(rest)
        with passing(*MISSING):
            self._api.delete_model(ModelName=self._named(version))

    @in_words
    def settle(self) -> None:
        """SageMaker refuses to change an endpoint that is changing."""
        with passing(*MISSING):
            self._settled()

    @in_words
    def shift(self, shares: Mapping[str, int]) -> None:
        """Give the variants other weights, under the eyes of the alarms where there are some."""
        found = self.status()
        unknown = shares.keys() - found.shares.keys()
        if unknown or sum(shares.values()) != 100:
            raise UsageError(f"{words_of(shares)}: shares are per cent of what is deployed, and sum to 100")
        weights = {version: shares.get(version, 0) for version in found.shares}
        if self._alarms:
            self._change(weights, DeploymentConfig=self._guarded())
        else:
            self._api.update_endpoint_weights_and_capacities(
                EndpointName=self.model,
                DesiredWeightsAndCapacities=[
                    {"VariantName": f"v{version}", "DesiredWeight": float(weight)}
                    for version, weight in weights.items()
                ],
            )
            self._in_service()
        self._record(found.shares, shares)

    @in_words
    def ask(self, clips: list[bytes], version: str = "") -> list[JSON]:
        """`InvokeEndpoint`; a version is asked as `TargetVariant`."""
        variant = {"TargetVariant": f"v{version}"} if version else {}
        answer = self._runtime.invoke_endpoint(
            EndpointName=self.model, ContentType="application/json", Body=orjson.dumps(body(clips)), **variant
        )
        return list(orjson.loads(answer["Body"].read())["predictions"])

    @in_words
    def status(self) -> Status:
        """What the registry, the endpoint and its tags say."""
        versions = {version: package["release"] for version, package in self._packages()}
        endpoint = None
        with passing(*MISSING):
            endpoint = self._api.describe_endpoint(EndpointName=self.model)
        if endpoint is None:
            return Status(versions)
        variants = {v["VariantName"]: v.get("CurrentWeight", 0.0) for v in endpoint.get("ProductionVariants", [])}
        foreign = [name for name in variants if not re.fullmatch(r"v\d+", name)]
        if foreign:
            raise UsageError(
                f"{self.model}: is an endpoint that twophase did not make (variant {foreign[0]}); give another --model"
            )
        shares = {name[1:]: round(weight) for name, weight in variants.items()}
        tags = self._api.list_tags(ResourceArn=endpoint["EndpointArn"])["Tags"]
        failed = endpoint["EndpointStatus"] in ("Failed", "OutOfService", "UpdateRollbackFailed")
        return Status(
            versions,
            shares,
            history({tag["Key"]: tag["Value"] for tag in tags}),
            failure=endpoint.get("FailureReason") or endpoint["EndpointStatus"] if failed else "",
        )

    @in_words
    def delete(self) -> None:
        """Endpoint, configurations, models, packages, group, and everything below the prefix in S3."""
        self.settle()
        self.status()  # refuses an endpoint that is not ours
        self._remove_endpoint()
        ours = re.compile(rf"{self.model}-[0-9a-f]{{12}}")
        configs = self._api.get_paginator("list_endpoint_configs").paginate(NameContains=f"{self.model}-")
        for name in [c["EndpointConfigName"] for page in configs for c in page["EndpointConfigs"]]:
            if ours.fullmatch(name):
                self._api.delete_endpoint_config(EndpointConfigName=name)
        for version, package in self._packages():
            with passing(*MISSING):
                self._api.delete_model(ModelName=self._named(version))
            self._api.delete_model_package(ModelPackageName=package["arn"])
        with passing(*MISSING):
            self._api.delete_model_package_group(ModelPackageGroupName=self.model)
        self._clear(self._prefix)

    @functools.cached_property
    def _runtime(self) -> Any:
        return self._in_client("sagemaker-runtime")

    def _packages(self) -> list[tuple[str, JSON]]:
        """Version, and ARN and release, oldest first; the release is the first word of the description."""
        pages = self._api.get_paginator("list_model_packages").paginate(ModelPackageGroupName=self.model)
        found: list[tuple[str, JSON]] = []
        with passing(*MISSING):
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

    def _change(self, weights: Mapping[str, int], **how: Any) -> None:
        """Have the endpoint run exactly these versions with these weights. Raises `TwoPhaseError` when it does not."""
        before = ""
        with passing(*MISSING):
            before = self._api.describe_endpoint(EndpointName=self.model)["EndpointConfigName"]
        variants = [
            {
                "VariantName": f"v{version}",
                "ModelName": self._named(version),
                "InitialInstanceCount": self._instances,
                "InstanceType": MACHINE,
                "InitialVariantWeight": float(weight),
            }
            for version, weight in weights.items()
        ]
        # Weights move without their configuration, so a later one with the same weights is still another one.
        name = f"{self.model}-{digest_of([before, variants])[:12]}"
        if not self._api.list_endpoint_configs(NameContains=name)["EndpointConfigs"]:
            self._api.create_endpoint_config(EndpointConfigName=name, ProductionVariants=variants)
        change = self._api.update_endpoint if before else self._api.create_endpoint
        change(EndpointName=self.model, EndpointConfigName=name, **how)
        found = self._in_service()
        went_back = found["EndpointConfigName"] != name
        if before:
            self._api.delete_endpoint_config(EndpointConfigName=name if went_back else before)
        if went_back:
            why = found.get("FailureReason", "no reason given; an alarm may have gone off")
            raise TwoPhaseError(f"{self.model}: SageMaker went back to how the endpoint was: {why}")

    def _guarded(self) -> JSON:
        """Two fleets side by side, and back to the first when an alarm goes off."""
        routing: JSON = {"Type": "ALL_AT_ONCE", "WaitIntervalInSeconds": 0}
        if self._instances > 1:  # a canary is at most half of a variant's instances
            canary = {"Type": "INSTANCE_COUNT", "Value": 1}
            routing = {"Type": "CANARY", "CanarySize": canary, "WaitIntervalInSeconds": BAKING_S}
        return {
            "BlueGreenUpdatePolicy": {
                "TrafficRoutingConfiguration": routing,
                "TerminationWaitInSeconds": BAKING_S,
            },
            "AutoRollbackConfiguration": {"Alarms": [{"AlarmName": name} for name in self._alarms]},
        }

    def _settled(self) -> JSON:
        """The endpoint, once it is not changing any more."""
        wait_s = 0.1
        while (found := self._api.describe_endpoint(EndpointName=self.model))["EndpointStatus"] in _CHANGING:
            time.sleep(wait_s)
            wait_s = min(2 * wait_s, 15.0)
        return cast(JSON, found)

    def _in_service(self) -> JSON:
        """The endpoint, once it has settled. Raises `TwoPhaseError` when it is not in service then."""
        found = self._settled()
        if found["EndpointStatus"] != "InService":
            why = found.get("FailureReason", "no reason given")
            raise TwoPhaseError(f"{self.model}: its endpoint is {found['EndpointStatus']}: {why}")
        return found

    def _remove_endpoint(self) -> None:
        """Until it is gone: its name is not free before."""
        with passing(*MISSING):
            self._api.delete_endpoint(EndpointName=self.model)
            self._api.get_waiter("endpoint_deleted").wait(
                EndpointName=self.model, WaiterConfig={"Delay": 5, "MaxAttempts": 240}
            )

    def _record(self, *states: Mapping[str, int]) -> None:
        arn = self._api.describe_endpoint(EndpointName=self.model)["EndpointArn"]
        was = {tag["Key"]: tag["Value"] for tag in self._api.list_tags(ResourceArn=arn)["Tags"]}
        tags = recorded(was, *states)
        if was.keys() - tags.keys():
            self._api.delete_tags(ResourceArn=arn, TagKeys=sorted(was.keys() - tags.keys()))
        new = [{"Key": key, "Value": value} for key, value in tags.items() if was.get(key) != value]
        if new:
            self._api.add_tags(ResourceArn=arn, Tags=new)
