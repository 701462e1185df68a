"""One release, every place's contract, asked by that place's own client: the same clips, the same answers."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from botocore.exceptions import ClientError

from tests.serving import clients
from tests.serving.clients import ASKS, VERTEX_ROUTE, ask_vertex, b64, sagemaker
from tests.serving.loopback import serving
from twophase.release.runtime import Pair
from twophase.serving.app import App
from twophase.serving.instances import Limits
from twophase.serving.multi_model import MultiModel
from twophase.serving.predictor import Predictor
from twophase.serving.tensorflow_serving import version_number

CLIPS = 50


@pytest.fixture(scope="module")
def server(release: Path) -> Iterator[httpx.Client]:
    with serving(
        App(Predictor(release), predict_routes=("/predict", "/invocations", "/score", VERTEX_ROUTE))
    ) as client:
        yield client


@pytest.fixture(scope="module")
def clips() -> list[bytes]:
    return clients.clips(CLIPS)


@pytest.mark.parametrize("ask", ASKS)
def test_the_same_clips_give_the_same_probabilities(server: httpx.Client, clips: list[bytes], ask: Any) -> None:
    expected = ask_vertex(server, clips)
    assert expected.shape == (CLIPS, 4)
    assert len(np.unique(expected.argmax(axis=1))) > 1
    assert np.abs(ask(server, clips) - expected).max() <= 1e-5


def test_tensors_of_samples_and_images(server: httpx.Client, release: Path) -> None:
    pcm = (0.1 * np.random.default_rng(1).normal(size=(3, 20_000))).astype(np.float32)
    images = np.random.default_rng(2).integers(0, 256, (3, 2, 61, 64), np.uint8)
    classifier = Pair(release).classifier
    expected = {
        "pcm": np.stack([classifier.clip_probabilities(row) for row in pcm]),
        "images": np.stack([classifier.image_probabilities(clip) for clip in images]),
    }
    for name, array, datatype in (("pcm", pcm, "FP32"), ("images", images, "UINT8")):
        head = {"name": name, "shape": list(array.shape), "datatype": datatype}
        wanted = [{"name": "probabilities"}, {"name": "labels"}]
        body = {"inputs": [head | {"data": array.ravel().tolist()}], "outputs": wanted}
        answer = server.post("/v2/models/pair/infer", json=body).json()
        probabilities, labels = answer["outputs"]
        assert labels["data"] == ["cello", "flute", "oboe", "none of these"]
        assert np.allclose(np.reshape(probabilities["data"], probabilities["shape"]), expected[name], atol=1e-6)
        binary = json.dumps({"inputs": [head | {"parameters": {"binary_data_size": array.nbytes}}]}).encode()
        headers = {"inference-header-content-length": str(len(binary))}
        answer = server.post("/v2/models/pair/infer", content=binary + array.tobytes(), headers=headers).json()
        assert np.allclose(np.reshape(answer["outputs"][2]["data"], (3, 4)), expected[name], atol=1e-6)
        columns = server.post("/v1/models/pair:predict", json={"inputs": {name: array.tolist()}}).json()["outputs"]
        assert np.allclose(columns["probabilities"], expected[name], atol=1e-6)


def test_metadata(server: httpx.Client, release: Path) -> None:
    found = Pair(release).manifest.id
    number = version_number(found)
    assert int(number) < 2**63
    status = server.get(f"/v1/models/pair/versions/{number}").json()["model_version_status"]
    assert status == [{"version": number, "state": "AVAILABLE", "status": {"error_code": "OK"}}]
    signatures = server.get("/v1/models/pair/metadata").json()["metadata"]["signature_def"]["signature_def"]
    assert set(signatures) == {"serving_default", "pcm", "images"}
    assert server.get("/v1/models").json() == {"models": [found]}
    model = server.get(f"/v2/models/pair/versions/{found}").json()
    assert model["versions"] == [found]
    assert [tensor["name"] for tensor in model["inputs"]] == ["audio_bytes", "pcm", "images"]
    assert "binary_tensor_data" in server.get("/v2").json()["extensions"]


def test_another_version_is_refused_not_guessed(server: httpx.Client) -> None:
    for path in ("/v1/models/pair/versions/3:predict", "/v2/models/pair/versions/r-000000000000/infer"):
        refused = server.post(path, json={"instances": []})
        assert refused.status_code == 404
        assert isinstance(refused.json()["error"], str)
    assert server.post("/v1/models/pair:classify", json={}).status_code == 501
    assert server.get("/predict").status_code == 405
    assert server.post("/nowhere").status_code == 404
    assert server.head("/ping").status_code == 200


def test_a_bad_line_does_not_cost_a_batch_its_others(server: httpx.Client, clips: list[bytes]) -> None:
    good = json.dumps(b64(clips[0]))
    body = "\n".join([good, "{", json.dumps({"b64": "AAAA"}), "", good])
    answer = server.post("/invocations", content=body, headers={"content-type": "application/jsonlines"})
    first, second, third, fourth = map(json.loads, answer.text.splitlines())
    assert first == fourth
    assert first["label"]
    assert second["error"]["code"] == third["error"]["code"] == 400


BAD_TENSORS = [
    {},
    {"inputs": []},
    {"inputs": [{"name": "pcm", "datatype": "FP32", "shape": [1, 2], "data": [1]}]},
    {"inputs": [{"name": "pcm", "datatype": "FP64", "shape": [1, 1], "data": [1]}]},
    {"inputs": [{"name": "pcm", "datatype": "FP32", "shape": [-1, 1], "data": [1]}]},
    {"inputs": [{"name": "pcm", "datatype": "FP32", "shape": [1], "data": [1]}]},
    {"inputs": [{"name": "pcm", "datatype": "FP32", "shape": [0, 1], "data": []}]},
    {"inputs": [{"name": "pcm", "datatype": "FP32", "shape": [1, 1], "parameters": {"binary_data_size": 4}}]},
    {"inputs": [{"name": "images", "datatype": "UINT8", "shape": [1, 1, 1, 1], "data": [1]}]},
    {"inputs": [{"name": "images", "datatype": "UINT8", "shape": [1, 1, 61, 64], "data": [256] * 3904}]},
    {"inputs": [{"name": "audio_bytes", "datatype": "BYTES", "shape": [1], "data": [3]}]},
    {"inputs": [{"name": "audio_bytes", "datatype": "BYTES", "shape": [2], "data": [["AAAA"], "AAAA"]}]},
    {"inputs": [{"name": "pcm", "datatype": "FP32", "shape": [1, 1], "data": [1]}], "outputs": [{"name": "x"}]},
    {"inputs": [{"name": "pcm", "datatype": "FP32", "shape": [1, 1], "data": [1]}], "parameters": {"release": "r-0"}},
]


@pytest.mark.parametrize("body", BAD_TENSORS)
def test_bad_tensors_are_refused(server: httpx.Client, body: Any) -> None:
    refused = server.post("/v2/models/pair/infer", json=body)
    assert refused.status_code in (400, 409)
    assert isinstance(refused.json()["error"], str)


def test_many_models_come_and_go(release: Path, clips: list[bytes], tmp_path: Path) -> None:
    """SageMaker's contract for endpoints of many models, and that two worker processes agree through their folder."""
    body = {"instances": [b64(clips[0])]}
    workers = [MultiModel(tmp_path), MultiModel(tmp_path)]
    with serving(App(workers[0])) as one, serving(App(workers[1])) as other:
        assert one.get("/ping").status_code == 200
        assert one.get("/models").json() == {"models": []}
        request = {"model_name": "a/b.tar.gz", "url": str(release)}
        assert one.post("/models", json=request).status_code == 200
        assert other.post("/models", json=request).status_code == 409
        described = other.get("/models/a%2Fb.tar.gz").json()
        assert described == {"modelName": "a/b.tar.gz", "modelUrl": str(release)}
        for worker in (one, other):
            answer = sagemaker(worker.base_url).invoke_endpoint(
                EndpointName="e", TargetModel="a/b.tar.gz", ContentType="application/json", Body=json.dumps(body)
            )
            assert len(json.load(answer["Body"])["predictions"]) == 1
        assert other.delete("/models/a%2Fb.tar.gz").status_code == 200
        for worker in (one, other):
            with pytest.raises(ClientError, match="404"):
                sagemaker(worker.base_url).invoke_endpoint(EndpointName="e", TargetModel="a/b.tar.gz", Body=b"{}")
        assert one.delete("/models/x").status_code == 404
        assert one.post("/models", json={"model_name": "x", "url": str(tmp_path)}).status_code == 400
        assert one.post("/models", json={"model_name": "x" * 300, "url": str(release)}).status_code == 400
        assert one.post("/models", json=[]).status_code == 400
        assert one.get("/models").json() == {"models": []}


def test_lines_are_bounded_too(release: Path) -> None:
    limits = Limits(instances=3)
    line = json.dumps({"pcm": [0.0]}) + "\n"
    with serving(App(Predictor(release, limits), limits=limits)) as client:
        headers = {"content-type": "application/x-ndjson"}
        assert client.post("/invocations", content=line * 3, headers=headers).status_code == 200
        assert client.post("/invocations", content=line * 4, headers=headers).status_code == 413


def test_lines_let_other_requests_through(release: Path) -> None:
    app, ended = App(Predictor(release)), []

    async def ask(name: str, content_type: bytes, body: bytes) -> None:
        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": body}

        async def send(message: dict[str, Any]) -> None:
            ended.extend([name] if message["type"] == "http.response.body" else [])

        headers = [(b"content-type", content_type)]
        await app({"type": "http", "method": "POST", "path": "/invocations", "headers": headers}, receive, send)

    async def both() -> None:
        line = json.dumps({"pcm": [0.0]}).encode() + b"\n"
        lines = asyncio.create_task(ask("lines", b"application/jsonlines", 9 * line))
        await asyncio.gather(
            lines, ask("one", b"application/json", json.dumps({"instances": [{"pcm": [0.0]}]}).encode())
        )

    asyncio.run(both())
    assert ended == ["one", "lines"]
