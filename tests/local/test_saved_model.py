"""SavedModels that are no releases, and models that lie in another place's buckets."""

import base64
import json
import os
import select
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest

from tests.local.test_batch import ended, outputs
from twophase.errors import TwoPhaseError
from twophase.local.process import Address, down, up
from twophase.local.saved_model import SavedModel, rows
from twophase.release.manifest import read

V1 = "/v1/projects/p/locations/l"


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two inputs, numbers and bytes; two outputs."""
    import tensorflow as tf

    @tf.function(input_signature=[tf.TensorSpec([None, 2], tf.float32, "x"), tf.TensorSpec([None], tf.string, "name")])
    def serve(x: "tf.Tensor", name: "tf.Tensor") -> dict:
        return {"sum": tf.reduce_sum(x, axis=1), "name": tf.strings.upper(name)}

    folder = tmp_path_factory.mktemp("saved")
    module = tf.Module()
    module.serve = serve
    tf.saved_model.save(module, str(folder), signatures={"serving_default": serve})
    return folder


def deployed(http: httpx.Client, artifact: str) -> httpx.Response:
    body = {"model": {"displayName": "m", "artifactUri": artifact}}
    made = http.post(f"{V1}/models:upload", json=body)
    if made.is_error:
        return made
    endpoint = http.post(f"{V1}/endpoints", json={"displayName": "m"}).json()["response"]["name"]
    deploy = {"deployedModel": {"model": made.json()["response"]["model"]}, "trafficSplit": {"0": 100}}
    http.post(f"/v1/{endpoint}:deployModel", json=deploy).raise_for_status()
    return httpx.Response(200, json={"endpoint": endpoint})


def worker_of(platform: Address) -> int:
    threads = Path(f"/proc/{platform.pid}/task").iterdir()
    (pid,) = [pid for thread in threads for pid in (thread / "children").read_text().split()]
    return int(pid)


def test_it_answers_and_survives_its_process(platform: Address, saved: Path) -> None:
    with httpx.Client(base_url=platform.url, timeout=120) as http:
        endpoint = deployed(http, str(saved)).json()["endpoint"]

        def ask(*instances: object) -> httpx.Response:
            return http.post(f"/v1/{endpoint}:predict", json={"instances": list(instances)})

        good = {"x": [1, 2], "name": {"b64": base64.b64encode(b"oboe").decode()}}
        assert ask(good, {"x": [3, 4], "name": "flute"}).json()["predictions"] == [
            {"sum": 3.0, "name": "OBOE"},
            {"sum": 7.0, "name": "FLUTE"},
        ]
        for wrong, words in (
            ([1.0, 2.0], "inputs name, x"),
            ({"x": [1, 2]}, "inputs name, x"),
            ({**good, "x": [1]}, "not what this model takes"),
            ({**good, "name": {"b64": "!"}}, "not what this model takes"),
            (None, "inputs name, x"),
        ):
            refused = ask(good, wrong)
            assert refused.status_code == 400
            assert words in refused.text
        first = worker_of(platform)
        os.kill(first, signal.SIGKILL)
        assert ask(good).status_code == 503
        assert ask(good).json()["predictions"] == [{"sum": 3.0, "name": "OBOE"}]
        ended = os.pidfd_open(worker_of(platform))
        (model,) = http.get(f"/v1/{endpoint}").json()["deployedModels"]
        http.post(f"/v1/{endpoint}:undeployModel", json={"deployedModelId": model["id"]}).raise_for_status()
        assert select.select([ended], [], [], 30)[0], "the process outlives what it was for"
        os.close(ended)


def test_batch_jobs(platform: Address, home: Path, saved: Path) -> None:
    bucket = home / "buckets" / "twophase"
    good = {"x": [1, 2], "name": "oboe"}
    (bucket / "in.jsonl").write_text("\n".join(json.dumps(line) for line in (good, {"x": 1}, {**good, "x": [3, 4]})))
    with httpx.Client(base_url=platform.url, timeout=60) as http:
        body = {"model": {"displayName": "m", "artifactUri": str(saved)}}
        model = http.post(f"{V1}/models:upload", json=body).json()["response"]["model"]
        job = {
            "displayName": "job",
            "model": model,
            "inputConfig": {"instancesFormat": "jsonl", "gcsSource": {"uris": ["gs://twophase/in.jsonl"]}},
            "outputConfig": {"predictionsFormat": "jsonl", "gcsDestination": {"outputUriPrefix": "gs://twophase/out"}},
        }
        for field, value, code in (("modelParameters", {"a": 1}, 400), ("generateExplanation", True, 501)):
            assert http.post(f"{V1}/batchPredictionJobs", json={**job, field: value}).status_code == code
        done = ended(http, f"/v1/{http.post(f'{V1}/batchPredictionJobs', json=job).json()['name']}")
        assert done["state"] == "JOB_STATE_SUCCEEDED", done
        assert outputs(home, done, "results") == [
            {"instance": good, "prediction": {"sum": 3.0, "name": "OBOE"}},
            {"instance": {**good, "x": [3, 4]}, "prediction": {"sum": 7.0, "name": "OBOE"}},
        ]
        (wrong,) = outputs(home, done, "errors_stats")
        assert "inputs name, x" in wrong["error"]["message"]


def test_without_tensorflow_it_says_what_is_missing(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(TwoPhaseError, match=r"twophase\[train\]"):
        SavedModel(saved)


def test_a_folder_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "saved_model.pb").write_bytes(b"nothing")
    with pytest.raises(TwoPhaseError, match="does not load"):
        SavedModel(tmp_path)


@pytest.fixture
def other(tmp_path: Path, releases: tuple[Path, Path]) -> Iterator[Address]:
    """Another place with buckets, which holds a release: a second platform."""
    shutil.copytree(releases[0], tmp_path / "cloud" / "release")
    yield up(tmp_path / "other", buckets={"some-cloud": tmp_path / "cloud"})
    down(tmp_path / "other")


@pytest.mark.filterwarnings("ignore")
def test_models_in_other_buckets_are_copied(
    other: Address, home: Path, releases: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", other.url)
    image = base64.b64encode(np.zeros(61 * 64, np.uint8).tobytes()).decode()
    with httpx.Client(base_url=up(home).url, timeout=120) as http:
        endpoint = deployed(http, "gs://some-cloud/release").json()["endpoint"]
        answer = http.post(f"/v1/{endpoint}:predict", json={"instances": [{"images": {"b64": image}}]}).json()
        assert answer["predictions"][0]["release"] == read(releases[0]).id
        for uri, words in (
            ("gs://some-cloud/no", "nothing is below"),
            ("gs://no-such-bucket/x", "--bucket no-such-bucket=DIR"),
        ):
            refused = deployed(http, uri)
            assert refused.status_code == 404
            assert words in refused.text
    assert list((home / "copies").iterdir()) == []


def test_outputs_that_are_no_rows_of_json() -> None:
    assert rows({"a": np.array([b"x", b"\xff"], object), "b": np.eye(2)}, 2) == [
        {"a": "x", "b": [1.0, 0.0]},
        {"a": {"b64": "/w=="}, "b": [0.0, 1.0]},
    ]
    for wrong, words in ((np.zeros(2, np.complex64), "no form"), (np.zeros(3), "one row"), (np.float32(1), "one row")):
        with pytest.raises(ValueError, match=words):
            rows({"a": wrong}, 2)
