"""Batch prediction jobs by the official SDK, and what a kill in the middle leaves."""

import base64
import json
import os
import signal
import time
from pathlib import Path

import httpx
import numpy as np
import pytest
from google.auth.credentials import AnonymousCredentials
from google.cloud import aiplatform

from twophase.local.batch import SHARD
from twophase.local.process import Address, ensure_up, status

IMAGES = np.random.default_rng(0).integers(0, 256, (4, 61 * 64), np.uint8)
LOCATION = "projects/p/locations/us-central1"


def instance(i: int) -> dict:
    return {"images": {"b64": base64.b64encode(IMAGES[i % 4].tobytes()).decode()}}


def put(home: Path, name: str, lines: list[str]) -> str:
    path = home / "buckets" / "twophase" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")
    return f"gs://twophase/{name}"


def outputs(home: Path, job: dict, kind: str) -> list[dict]:
    folder = home / "buckets" / job["outputInfo"]["gcsOutputDirectory"].removeprefix("gs://")
    files = sorted(folder.glob(f"prediction.{kind}-*"))
    return [json.loads(line) for file in files for line in file.read_text().splitlines()]


def create(http: httpx.Client, release: Path, source: str, **more: object) -> dict:
    upload = {"model": {"displayName": "pair", "artifactUri": str(release)}}
    model = http.post(f"{LOCATION}/models:upload", json=upload).json()["response"]["model"]
    body = {
        "displayName": "job",
        "model": model,
        "inputConfig": {"instancesFormat": "jsonl", "gcsSource": {"uris": [source]}},
        "outputConfig": {"predictionsFormat": "jsonl", "gcsDestination": {"outputUriPrefix": "gs://twophase/out"}},
        **more,
    }
    return http.post(f"{LOCATION}/batchPredictionJobs", json=body).raise_for_status().json()


def client(address: Address) -> httpx.Client:
    return httpx.Client(base_url=f"{address.url}/v1/", timeout=60)


def ended(http: httpx.Client, name: str) -> dict:
    while True:
        job = http.get(name).json()
        if job["state"] not in ("JOB_STATE_PENDING", "JOB_STATE_RUNNING"):
            return job
        time.sleep(0.05)


def test_sdk_batch_predict(platform: Address, home: Path, releases: tuple[Path, Path]) -> None:
    aiplatform.init(
        project="p",
        location="us-central1",
        api_endpoint=platform.url,
        api_transport="rest",
        credentials=AnonymousCredentials(),
        staging_bucket="gs://twophase",
    )
    model = aiplatform.Model.upload(
        display_name="pair", artifact_uri=str(releases[0]), serving_container_image_uri="example.com/serve"
    )
    source = put(home, "in.jsonl", [json.dumps(instance(0)), "", "{", json.dumps(instance(1))])
    job = model.batch_predict(
        job_display_name="job",
        gcs_source=source,
        instances_format="jsonl",
        gcs_destination_prefix="gs://twophase/out",
        machine_type="n1-standard-2",
    )
    assert job.state.name == "JOB_STATE_SUCCEEDED"
    assert (job.completion_stats.successful_count, job.completion_stats.failed_count) == (2, 1)
    lines = [
        json.loads(x) for b in job.iter_outputs() for x in b.download_as_text().splitlines() if "results" in b.name
    ]
    assert [x["instance"] for x in lines] == [instance(0), instance(1)]
    assert lines[0]["prediction"]["label"]
    job.delete()


def test_file_list_and_keys(platform: Address, home: Path, releases: tuple[Path, Path]) -> None:
    from tests.local.test_sdk import wav

    clip = home / "buckets" / "twophase" / "clips" / "a.wav"
    clip.parent.mkdir(parents=True)
    clip.write_bytes(wav(np.sin(np.arange(16_000) / 6)))
    listed = put(
        home,
        "list.txt",
        ["gs://twophase/clips/a.wav", "gs://twophase/clips/b.wav", "gs://twophase/../x", "/x", f"gs://twophase/{clip}"],
    )
    with client(platform) as http:
        config = {"instancesFormat": "file-list", "gcsSource": {"uris": [listed]}}
        job = ended(http, create(http, releases[0], listed, inputConfig=config)["name"])
        assert job["completionStats"] == {"successfulCount": "1", "failedCount": "4", "incompleteCount": "0"}
        assert outputs(home, job, "results")[0]["instance"] == "gs://twophase/clips/a.wav"
        assert [e["error"]["code"] for e in outputs(home, job, "errors_stats")] == [404, 400, 404, 400]

        keyed = put(
            home, "keyed.jsonl", [json.dumps({**instance(i), "id": i}) for i in range(3)] + [json.dumps(instance(3))]
        )
        job = ended(http, create(http, releases[0], keyed, instanceConfig={"keyField": "id"})["name"])
        results = outputs(home, job, "results")
        assert [r.keys() for r in results] == [{"id", "prediction"}] * 3
        assert [r["id"] for r in results] == [0, 1, 2]
        assert "key_field" in outputs(home, job, "errors_stats")[0]["error"]["message"]


def test_killed_in_the_middle_every_input_is_answered_once(
    platform: Address, home: Path, releases: tuple[Path, Path]
) -> None:
    count = 12 * SHARD + 7
    source = put(home, "many.jsonl", [json.dumps({**instance(i), "id": i}) for i in range(count)])
    with client(platform) as http:
        name = create(http, releases[0], source, instanceConfig={"keyField": "id"})["name"]
        while int(http.get(name).json().get("completionStats", {}).get("successfulCount", 0)) < SHARD:
            time.sleep(0.01)
    os.kill(platform.pid, signal.SIGKILL)
    while status(home):
        time.sleep(0.01)
    with client(ensure_up(home)) as http:
        job = ended(http, name)
    assert job["state"] == "JOB_STATE_SUCCEEDED"
    assert [r["id"] for r in outputs(home, job, "results")] == list(range(count))


def test_cancel_and_refusals(platform: Address, home: Path, releases: tuple[Path, Path]) -> None:
    source = put(home, "many.jsonl", [json.dumps(instance(i)) for i in range(40 * SHARD)])
    with client(platform) as http:
        name = create(http, releases[0], source)["name"]
        assert "cancel it first" in http.delete(name).text
        assert http.post(f"{name}:cancel", json={}).json() == {}
        assert ended(http, name)["state"] == "JOB_STATE_CANCELLED"
        assert "has ended" in http.post(f"{name}:cancel", json={}).text
        assert http.delete(name).json()["done"]
        for more, words in (
            ({"inputConfig": {"instancesFormat": "csv"}}, "jsonl and file-list"),
            (
                {"inputConfig": {"instancesFormat": "jsonl", "gcsSource": {"uris": ["gs://twophase/no"]}}},
                "no such file",
            ),
            ({"outputConfig": {"predictionsFormat": "jsonl"}}, "outputUriPrefix"),
            ({"model": f"{LOCATION}/models/1"}, "not found"),
        ):
            with pytest.raises(httpx.HTTPStatusError) as refused:
                create(http, releases[0], source, **more)
            assert words in refused.value.response.text
