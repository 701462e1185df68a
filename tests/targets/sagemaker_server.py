"""SageMaker on loopback: moto's server, and what moto leaves out done for real by our server program.

moto keeps the control plane's records. It has no `UpdateEndpoint` and no deletion of packages, an approval costs a
package its metadata, its transform jobs do nothing and its endpoints answer a constant; here an endpoint's variants are
running servers of the releases that their model packages name, fetched from S3 as SageMaker unpacks them. An update
takes a while, during which there can be no other; it is undone where a container does not come up or an alarm goes off,
and is guarded only where the variants keep their names.
"""

import io
import json
import random
import tarfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import boto3
import httpx
import pytest
from moto.core.responses import ActionResult, EmptyResult
from moto.sagemaker.exceptions import AWSValidationException
from moto.sagemaker.models import FakeEndpoint
from moto.sagemaker.responses import SageMakerResponse
from moto.sagemakerruntime.responses import SageMakerRuntimeResponse
from moto.server import ThreadedMotoServer

from tests.serving.loopback import serving
from twophase.errors import TwoPhaseError
from twophase.serving.app import App
from twophase.serving.predictor import Predictor
from twophase.serving.source import release_in


class Containers:
    """A running server of each model that was asked so far."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self._folder, self._stack = folder, stack
        self._running: dict[str, httpx.Client] = {}

    def of(self, backend: Any, model: str) -> httpx.Client:
        if model not in self._running:
            (container,) = backend.describe_model(model).containers
            package = backend.describe_model_package(container["ModelPackageName"])
            url = package.inference_specification["Containers"][0]["ModelDataUrl"]
            bucket, _, key = url.removeprefix("s3://").partition("/")
            data = boto3.client("s3").get_object(Bucket=bucket, Key=key)["Body"].read()
            with tarfile.open(fileobj=io.BytesIO(data)) as archive:
                archive.extractall(self._folder / model, filter="data")
            app = App(Predictor(release_in(self._folder / model)))
            self._running[model] = self._stack.enter_context(serving(app))
        return self._running[model]


class Cloud:
    """What a test sees and decides of it."""

    def __init__(self, containers: Containers) -> None:
        self.containers = containers
        self.updates: list[Any] = []
        """The `DeploymentConfig` of every update, None where it had none."""
        self.alarm = ""
        """An alarm that is going off."""
        self.busy = 0
        """How often an endpoint still says that it is being updated."""


@contextmanager
def sagemaker(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cloud]:
    """A SageMaker, in boto3's environment too."""
    with ExitStack() as stack:
        containers = Containers(folder, stack)
        cloud = Cloud(containers)
        for name, method in _methods(cloud).items():
            monkeypatch.setattr(SageMakerResponse, name, method, raising=False)
        monkeypatch.setattr(SageMakerRuntimeResponse, "invoke_endpoint", _invoke(containers))
        server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
        server.start()
        stack.callback(server.stop)
        address = "http://{}:{}".format(*server.get_host_and_port())
        for name, value in {
            "AWS_ENDPOINT_URL": address,
            "AWS_ACCESS_KEY_ID": "x",
            "AWS_SECRET_ACCESS_KEY": "x",
            "AWS_DEFAULT_REGION": "eu-west-1",
            "AWS_MAX_ATTEMPTS": "1",
        }.items():
            monkeypatch.setenv(name, value)
        yield cloud
        httpx.post(f"{address}/moto-api/reset")


def _methods(cloud: Cloud) -> dict[str, Any]:
    containers, described = cloud.containers, SageMakerResponse.describe_endpoint
    updated = SageMakerResponse.update_model_package

    def describe_endpoint(self: Any) -> Any:
        endpoint = self.sagemaker_backend.endpoints.get(self._get_param("EndpointName"))
        if endpoint and endpoint.endpoint_status == "Updating":
            cloud.busy -= 1
            if cloud.busy < 0:
                endpoint.endpoint_status = "InService"
        return described(self)

    def update_endpoint(self: Any) -> Any:
        backend, name = self.sagemaker_backend, self._get_param("EndpointName")
        if name not in backend.endpoints:
            raise AWSValidationException(f"Could not find endpoint {name}.")
        endpoint: FakeEndpoint = backend.endpoints[name]
        if endpoint.endpoint_status == "Updating":
            raise AWSValidationException("Cannot update in-progress endpoint.")
        config = backend.describe_endpoint_config(self._get_param("EndpointConfigName"))
        guarded, variants = self._get_param("DeploymentConfig"), config["ProductionVariants"]
        cloud.updates.append(guarded)
        if guarded and {v["VariantName"] for v in variants} != {v["VariantName"] for v in endpoint.production_variants}:
            raise AWSValidationException("The new endpoint configuration must have the same variants.")
        endpoint.endpoint_status, cloud.busy, endpoint.failure_reason = "Updating", 1, None
        try:
            for variant in variants:
                containers.of(backend, variant["ModelName"])
        except (TwoPhaseError, tarfile.TarError, EOFError) as error:
            endpoint.failure_reason = f"The container did not pass the ping health check: {error}"
        if guarded and {"AlarmName": cloud.alarm} in guarded["AutoRollbackConfiguration"]["Alarms"]:
            endpoint.failure_reason = f"Alarm {cloud.alarm} went off"
        if not endpoint.failure_reason:
            endpoint.endpoint_config_name = config["EndpointConfigName"]
            endpoint.production_variants = endpoint._process_production_variants(variants)
        return ActionResult({"EndpointArn": endpoint.arn})

    def stop_transform_job(self: Any) -> Any:
        self.sagemaker_backend.transform_jobs[self._get_param("TransformJobName")].transform_job_status = "Stopped"
        return EmptyResult()

    def update_model_package(self: Any) -> Any:
        package = self.sagemaker_backend.describe_model_package(self._get_param("ModelPackageArn"))
        known = package.customer_metadata_properties or {}
        done = updated(self)
        package.customer_metadata_properties = known | (package.customer_metadata_properties or {})  # they are added
        return done

    def delete_model_package(self: Any) -> Any:
        backend, name = self.sagemaker_backend, self._get_param("ModelPackageName")
        gone = [arn for arn, package in backend.model_packages.items() if package.arn == name or arn == name]
        for arn in gone:
            del backend.model_packages[arn]
        return EmptyResult()

    def delete_model_package_group(self: Any) -> Any:
        self.sagemaker_backend.model_package_groups.pop(self._get_param("ModelPackageGroupName"), None)
        return EmptyResult()

    created = SageMakerResponse.create_transform_job

    def create_transform_job(self: Any) -> Any:
        asked = {name: self._get_param(name) for name in ("ModelName", "TransformInput", "TransformOutput")}
        s3, given, wanted = boto3.client("s3"), asked["TransformInput"], asked["TransformOutput"]
        bucket, _, key = given["DataSource"]["S3DataSource"]["S3Uri"].removeprefix("s3://").partition("/")
        server = containers.of(self.sagemaker_backend, asked["ModelName"])
        headers = {"content-type": given["ContentType"], "accept": wanted["Accept"]}
        answers = b""
        for line in s3.get_object(Bucket=bucket, Key=key)["Body"].read().splitlines():
            answer = server.post("/invocations", content=line, headers=headers)
            assert answer.status_code == 200, answer.text
            answers += answer.content.rstrip(b"\n") + b"\n"
        out_bucket, _, prefix = wanted["S3OutputPath"].removeprefix("s3://").partition("/")
        s3.put_object(Bucket=out_bucket, Key=f"{prefix}/{key.rpartition('/')[2]}.out", Body=answers)
        return created(self)

    return {
        "describe_endpoint": describe_endpoint,
        "update_endpoint": update_endpoint,
        "stop_transform_job": stop_transform_job,
        "update_model_package": update_model_package,
        "delete_model_package": delete_model_package,
        "delete_model_package_group": delete_model_package_group,
        "create_transform_job": create_transform_job,
    }


def _invoke(containers: Containers) -> Any:
    def invoke_endpoint(self: Any) -> Any:
        from moto.sagemaker.models import sagemaker_backends

        backend = sagemaker_backends[self.current_account][self.region]
        endpoint = backend.endpoints[self.path.split("/")[2]]
        variants = {v["VariantName"]: v.get("CurrentWeight", 0) for v in endpoint.production_variants}
        wanted = self.headers.get("x-amzn-sagemaker-target-variant")
        variant = wanted or random.choices(list(variants), list(variants.values()))[0]
        config = backend.describe_endpoint_config(endpoint.endpoint_config_name)
        model = next(v["ModelName"] for v in config["ProductionVariants"] if v["VariantName"] == variant)
        answer = containers.of(backend, model).post(
            "/invocations", content=self.raw_body, headers={"content-type": self.headers["content-type"]}
        )
        if answer.status_code != 200:
            error = {"Message": answer.text, "OriginalStatusCode": answer.status_code, "__type": "ModelError"}
            return 424, {"status": 424, "x-amzn-errortype": "ModelError"}, json.dumps(error)
        return 200, {"content-type": "application/json", "x-Amzn-Invoked-Production-Variant": variant}, answer.text

    return invoke_endpoint
