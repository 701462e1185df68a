"""The old AI Platform API: gcloud itself where it is installed, and its requests as they were recorded everywhere."""

import json
import os
import shutil
import subprocess
import time
from pathlib import Path

import httpx
import pytest

from twophase.local.process import Address, down, up

MODEL = "/v1/projects/p/models/instrument_classification"
VERSION = {  # gcloud ai-platform versions create v1 --origin ... --runtime-version=2.1 --framework=tensorflow ...
    "name": "v1",
    "deploymentUri": "gs://clips-bucket/release",
    "runtimeVersion": "2.1",
    "framework": "TENSORFLOW",
    "pythonVersion": "3.7",
}


@pytest.fixture
def folder(tmp_path: Path, releases: tuple[Path, Path]) -> Path:
    """What `gs://clips-bucket` is mapped to: a release and a file of instances."""
    made = tmp_path / "bucket"
    shutil.copytree(releases[0], made / "release")
    image = [[0] * 64] * 61
    (made / "instances.json").write_text(json.dumps(image) + "\n")
    return made


@pytest.fixture
def address(home: Path, folder: Path) -> Address:
    return up(home, buckets={"clips-bucket": folder})


def test_life_of_a_model(address: Address, home: Path, folder: Path) -> None:
    with httpx.Client(base_url=address.url, timeout=30) as http:
        created = http.post(
            "/v1/projects/p/models", json={"name": "instrument_classification", "regions": ["us-central1"]}
        )
        assert created.json()["name"] == MODEL.removeprefix("/v1/")
        assert http.post("/v1/projects/p/models", json={"name": "instrument_classification"}).status_code == 409
        assert "no deployed model" in http.post(f"{MODEL}:predict", json={"instances": [0.0]}).text
        first = http.post(f"{MODEL}/versions", json=VERSION).json()
        assert first["done"]
        assert http.get(f"/v1/{first['name']}").json()["response"]["state"] == "READY"
        http.post(f"{MODEL}/versions", json={**VERSION, "name": "v2"})
        assert http.get(MODEL).json()["defaultVersion"]["name"].endswith("/v1")
        assert "set another as default" in http.delete(f"{MODEL}/versions/v1").text
        http.post(f"{MODEL}/versions/v2:setDefault", json={})
        assert [v.get("isDefault") for v in http.get(f"{MODEL}/versions").json()["versions"]] == [None, True]
        assert http.delete(f"{MODEL}/versions/v1").json()["done"]

        body = {
            "jobId": "job_1",
            "predictionInput": {
                "dataFormat": "JSON",
                "inputPaths": ["gs://clips-bucket/instances.json"],
                "outputPath": "gs://clips-bucket/out",
                "modelName": MODEL.removeprefix("/v1/"),
                "region": "us-central1",
            },
        }
        other = body["predictionInput"] | {"outputDataFormat": "CSV"}
        assert http.post("/v1/projects/p/jobs", json={**body, "predictionInput": other}).status_code == 501
        assert http.post("/v1/projects/p/jobs", json=body).json()["state"] == "QUEUED"
        assert http.post("/v1/projects/p/jobs", json=body).status_code == 409
        while http.get("/v1/projects/p/jobs/job_1").json()["state"] in ("QUEUED", "RUNNING"):
            time.sleep(0.05)
        job = http.get("/v1/projects/p/jobs").json()["jobs"][0]
        assert (job["state"], job["predictionOutput"]["predictionCount"]) == ("SUCCEEDED", "1")
        (result,) = (folder / "out").glob("prediction.results-*")
        assert json.loads(result.read_text())["label"]

        for verb, path, given, code in (
            ("POST", f"{MODEL}/versions", {"name": "v3"}, 400),
            ("POST", f"{MODEL}/versions", {**VERSION, "name": "v3", "deploymentUri": "gs://clips-bucket/no"}, 400),
            ("POST", f"{MODEL}/versions", {**VERSION, "name": "../v3"}, 400),
            ("POST", f"{MODEL}/versions", {**VERSION, "name": "v3", "typo": 1}, 400),
            ("POST", "/v1/projects/p/jobs", {"jobId": "t", "trainingInput": {}}, 400),
            ("GET", "/v1/projects/p/models/none", None, 404),
            ("DELETE", MODEL, None, 400),
            ("PATCH", MODEL, {}, 501),
        ):
            assert http.request(verb, path, json=given).json()["error"]["code"] == code
    down(home)
    with httpx.Client(base_url=up(home).url, timeout=30) as http:
        image = [[0] * 64] * 61
        answer = http.post(f"{MODEL}:predict", json={"instances": [image]}).json()
        assert (answer["modelVersionId"], answer["predictions"][0]["windows"]) == ("v2", 1)
        assert http.delete(f"{MODEL}/versions/v2").json()["done"]
        assert http.delete(MODEL).json()["done"]


def test_gcloud_recorded(address: Address) -> None:
    """Every request that gcloud 528 sent at these commands, and the fields of what it was answered."""
    image = [[0] * 64] * 61
    with httpx.Client(base_url=address.url, timeout=60) as http:
        for recorded in json.loads((Path(__file__).parent / "gcloud_requests.json").read_text()):
            for request in recorded["requests"]:
                body = request["body"]
                if body and "instances" in body:
                    body = {"instances": [image]}
                answer = http.request(request["method"], request["path"], json=body)
                assert answer.status_code == 200, (recorded["command"], answer.text)
                assert set(answer.json()) >= set(request["answer"]), recorded["command"]


@pytest.mark.skipif(
    not shutil.which("gcloud"), reason="gcloud is not installed; its recorded requests are replayed above"
)
def test_gcloud_word_for_word(address: Address, folder: Path, tmp_path: Path) -> None:
    environment = {
        **os.environ,
        **address.environment,
        "CLOUDSDK_CONFIG": str(tmp_path / "gcloud"),
        "CLOUDSDK_CORE_PROJECT": "p",
        "CLOUDSDK_CORE_DISABLE_PROMPTS": "1",
        "CLOUDSDK_AI_REGION": "us-central1",
    }

    def gcloud(line: str) -> str:
        ran = subprocess.run(["gcloud", *line.split()], env=environment, capture_output=True, text=True, check=False)
        assert ran.returncode == 0, ran.stderr
        return ran.stdout

    of = "--model instrument_classification"
    instances = folder / "instances.json"
    gcloud("ai-platform models create instrument_classification")
    gcloud(
        f"ai-platform versions create v1 {of} --origin gs://clips-bucket/release --runtime-version=2.1 "
        "--framework=tensorflow --python-version=3.7"
    )
    assert "READY" in gcloud(f"ai-platform versions list {of}")
    assert "LABEL" in gcloud(f"ai-platform predict {of} --json-instances={instances}")
    gcloud(f"ai-platform versions delete v1 {of}")
    gcloud("ai-platform models delete instrument_classification")

    image = "--container-image-uri=example.com/serve"
    gcloud(f"ai models upload --display-name=pair --artifact-uri=gs://clips-bucket/release {image}")
    model = gcloud("ai models list --format=value(name.basename())").strip()
    gcloud("ai endpoints create --display-name=pair")
    endpoint = gcloud("ai endpoints list --format=value(name.basename())").strip()
    gcloud(f"ai endpoints deploy-model {endpoint} --model={model} --display-name=d --traffic-split=0=100")
    request = tmp_path / "request.json"
    request.write_text(json.dumps({"instances": [json.loads(instances.read_text())]}))
    assert "confidence" in gcloud(f"ai endpoints predict {endpoint} --json-request={request}")
