"""One release asked by every place's own client; `ASKS` are those but Vertex's, which is what they are compared with.

Each takes a client of the server's address and clip files, and gives back probabilities, float [clips, labels + 1].
"""

import asyncio
import io
import json
from typing import Any

import boto3
import httpx
import numpy as np
import pybase64
import soundfile
from botocore.config import Config
from kserve import InferenceRESTClient, InferRequest, RESTConfig
from kserve.protocol.infer_type import InferInput

VERTEX_ROUTE = "/v1/endpoints/7/deployedModels/8:predict"
"""As Vertex AI sets `AIP_PREDICT_ROUTE` where a model does not say its own."""


def clips(count: int) -> list[bytes]:
    """Short clips of every accepted form, rate and number of channels."""
    random = np.random.default_rng(5)
    found = []
    for i in range(count):
        rate = (8_000, 16_000, 22_050, 44_100)[i % 4]
        shape = (int(rate * random.uniform(0.2, 2.5)), 1 + i % 2)
        out = io.BytesIO()
        sound = 0.2 * random.normal(size=shape).cumsum(axis=0).clip(-4, 4) / 4
        soundfile.write(out, sound.astype(np.float32), rate, format=("WAV", "FLAC", "OGG")[i % 3])
        found.append(out.getvalue())
    return found


def b64(data: bytes) -> dict[str, str]:
    return {"b64": pybase64.b64encode(data).decode()}


def table(predictions: list[dict[str, Any]]) -> np.ndarray:
    return np.array([list(p["probabilities"].values()) for p in predictions])


def sagemaker(address: httpx.URL) -> Any:
    """boto3's client of SageMaker's data plane, with the endpoint's own paths mapped to the container's."""
    client = boto3.client(
        "sagemaker-runtime",
        region_name="eu-west-1",
        endpoint_url=str(address).rstrip("/"),
        aws_access_key_id="x",
        aws_secret_access_key="x",
        config=Config(retries={"total_max_attempts": 1}),
    )

    def as_the_service_forwards(request: Any, **_: Any) -> None:
        target = request.headers.get("X-Amzn-SageMaker-Target-Model")
        path = (
            f"/models/{target.decode() if isinstance(target, bytes) else target}/invoke" if target else "/invocations"
        )
        request.url = f"{str(address).rstrip('/')}{path}"

    client.meta.events.register("before-send.sagemaker-runtime.*", as_the_service_forwards)
    return client


def ask_vertex(server: httpx.Client, clips: list[bytes]) -> np.ndarray:
    body = {"instances": [{"audio_bytes": b64(clip)} for clip in clips]}
    return table(server.post(VERTEX_ROUTE, json=body).json()["predictions"])


def ask_sagemaker_json(server: httpx.Client, clips: list[bytes]) -> np.ndarray:
    body = json.dumps({"instances": [b64(clip) for clip in clips]})
    answer = sagemaker(server.base_url).invoke_endpoint(
        EndpointName="e", ContentType="application/json", Accept="application/json", Body=body
    )
    return table(json.load(answer["Body"])["predictions"])


def ask_sagemaker_raw(server: httpx.Client, clips: list[bytes]) -> np.ndarray:
    client, types = sagemaker(server.base_url), ("audio/wav", "audio/flac", "application/octet-stream")
    answers = [
        client.invoke_endpoint(EndpointName="e", ContentType=types[i % 3], Body=clip)["Body"].read()
        for i, clip in enumerate(clips)
    ]
    return table([json.loads(answer)["predictions"][0] for answer in answers])


def ask_sagemaker_transform(server: httpx.Client, clips: list[bytes]) -> np.ndarray:
    """What batch transform sends for SplitType Line and BatchStrategy MultiRecord."""
    lines = b"".join(json.dumps({"audio_bytes": b64(clip)}).encode() + b"\n" for clip in clips)
    answer = sagemaker(server.base_url).invoke_endpoint(
        EndpointName="e", ContentType="application/jsonlines", Accept="application/jsonlines", Body=lines
    )
    assert answer["ContentType"] == "application/jsonlines"
    return table([json.loads(line) for line in answer["Body"].read().splitlines()])


def ask_azure(server: httpx.Client, clips: list[bytes]) -> np.ndarray:
    headers = {"authorization": "Bearer key", "azureml-model-deployment": "blue", "content-type": "application/json"}
    body = json.dumps({"instances": [{"audio_bytes": b64(clip)} for clip in clips]})
    return table(server.post("/score", content=body, headers=headers).json()["predictions"])


def ask_kserve_v1(server: httpx.Client, clips: list[bytes]) -> np.ndarray:
    body = {"instances": [b64(clip) for clip in clips]}

    async def ask() -> Any:
        async with InferenceRESTClient(RESTConfig(protocol="v1", verify=False)) as client:
            assert await client.is_server_live(str(server.base_url))
            assert await client.is_model_ready(str(server.base_url), "pair")
            return await client.infer(str(server.base_url), body, "pair")

    return table(asyncio.run(ask())["predictions"])


def ask_kserve_v2(server: httpx.Client, clips: list[bytes], binary: bool) -> np.ndarray:
    column = InferInput("audio_bytes", [len(clips)], "BYTES")
    given = clips if binary else [pybase64.b64encode(clip) for clip in clips]
    column.set_data_from_numpy(np.array(given, object), binary_data=binary)
    request = InferRequest("pair", [column], "request-1", parameters={"binary_data_output": binary})

    async def ask() -> Any:
        async with InferenceRESTClient(RESTConfig(protocol="v2", verify=False)) as client:
            base = str(server.base_url)
            assert await client.is_server_live(base)
            assert await client.is_server_ready(base)
            assert await client.is_model_ready(base, "pair")
            return await client.infer(base, request, "pair")

    answer = asyncio.run(ask())
    assert answer.id == "request-1"
    return answer.get_output_by_name("probabilities").as_numpy()


def ask_kserve_v2_json(server: httpx.Client, clips: list[bytes]) -> np.ndarray:
    return ask_kserve_v2(server, clips, binary=False)


def ask_kserve_v2_binary(server: httpx.Client, clips: list[bytes]) -> np.ndarray:
    return ask_kserve_v2(server, clips, binary=True)


def ask_tensorflow_serving_rows(server: httpx.Client, clips: list[bytes]) -> np.ndarray:
    body = {"signature_name": "serving_default", "instances": [{"audio_bytes": b64(clip)} for clip in clips]}
    return table(server.post("/v1/models/pair:predict", json=body).json()["predictions"])


def ask_tensorflow_serving_columns(server: httpx.Client, clips: list[bytes]) -> np.ndarray:
    body = {"signature_name": "serving_default", "inputs": {"audio_bytes": [b64(clip) for clip in clips]}}
    return np.array(server.post("/v1/models/pair:predict", json=body).json()["outputs"]["probabilities"])


ASKS = (
    ask_sagemaker_json,
    ask_sagemaker_raw,
    ask_sagemaker_transform,
    ask_azure,
    ask_kserve_v1,
    ask_kserve_v2_json,
    ask_kserve_v2_binary,
    ask_tensorflow_serving_rows,
    ask_tensorflow_serving_columns,
)
