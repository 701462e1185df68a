"""The platform over plain HTTP, and its process."""

import base64
import json
import os
import resource
import signal
import socket
import struct
import subprocess
import sys
import time
from pathlib import Path

import httpx
import numpy as np
import pytest

from twophase.errors import TwoPhaseError
from twophase.files import locked, write_json
from twophase.local.process import Address, announce, down, ensure_up, gc, status, up
from twophase.release.manifest import read

V1 = "/v1/projects/p/locations/l"


@pytest.fixture
def http(platform: Address) -> httpx.Client:
    with httpx.Client(base_url=platform.url, timeout=30) as client:
        yield client


def uploaded(http: httpx.Client, release: Path, **more: object) -> dict:
    body = {"model": {"displayName": "pair", "artifactUri": str(release)}, **more}
    return http.post(f"{V1}/models:upload", json=body).json()["response"]


@pytest.mark.parametrize(
    ("verb", "path", "body", "code", "words"),
    [
        ("GET", "/v1/nowhere", None, 404, "no method"),
        ("GET", f"{V1}/models/1", None, 404, "not found"),
        ("GET", f"{V1}/models?pageToken=%21", None, 400, "pageToken"),
        ("GET", f"{V1}/models?pageSize=x", None, 400, "pageSize"),
        ("GET", f"{V1}/models?other=1", None, 400, "no parameter"),
        ("GET", f"{V1}/models?filter=%28", None, 400, "filter"),
        ("GET", f"{V1}/models?filter=" + "NOT%20" * 5000, None, 400, "filter"),
        ("POST", f"{V1}/models:upload?model.display_name=a", b'{"model": 3}', 400, "no parameter"),
        ("POST", f"{V1}/models/m:mergeVersionAliases?version_aliases=a", b'{"versionAliases": 3}', 400, "Aliases"),
        ("POST", f"{V1}/models:upload", b"{", 400, "no JSON"),
        ("POST", f"{V1}/models:upload", b"[]", 400, "no JSON object"),
        ("POST", f"{V1}/models:upload", b'{"models": {}}', 400, 'no field named "models"'),
        ("POST", f"{V1}/models:upload", b'{"model": {"displayName": 3}}', 400, "displayName"),
        ("POST", f"{V1}/models:upload", b'{"model": {}}', 400, "displayName: is missing"),
        (
            "POST",
            f"{V1}/models:upload",
            b'{"model": {"displayName": "a", "artifactUri": "gs://twophase/../x"}}',
            400,
            "object",
        ),
        (
            "POST",
            f"{V1}/models:upload",
            b'{"model": {"displayName": "a", "artifactUri": "/etc"}}',
            400,
            "holds no model",
        ),
        ("POST", f"{V1}/models:upload", b'{"modelId": "../x", "model": {"displayName": "a"}}', 400, "resource id"),
        ("POST", f"{V1}/models:upload", b'{"model": {"displayName": "a", "versionAliases": ["1"]}}', 400, "no alias"),
        ("POST", f"{V1}/models:upload", b'{"model": {"displayName": "a"}, "parentModel": "x/y"}', 400, "parentModel"),
        ("POST", f"{V1}/endpoints", b"{}", 400, "displayName: is missing"),
        ("POST", f"{V1}/endpoints/1:predict", b"{}", 404, "not found"),
        ("POST", f"{V1}/customJobs", b"{}", 501, "CreateCustomJob"),
        ("POST", f"{V1}/endpoints/1:explain", b'{"instances": [1]}', 501, "Explain"),
        ("GET", f"{V1}/operations/1", None, 404, "not found"),
        ("POST", f"{V1}/models:upload", b" " * 10_000_001, 413, "10000000 bytes"),
    ],
)
def test_refusals(shared: httpx.Client, verb: str, path: str, body: bytes | None, code: int, words: str) -> None:
    error = shared.request(verb, path, content=body).json()["error"]
    assert error["code"] == code
    assert words in error["message"]


def test_traffic_split_rules(http: httpx.Client, releases: tuple[Path, Path]) -> None:
    model = uploaded(http, releases[0])["model"]
    endpoint = http.post(f"{V1}/endpoints", json={"displayName": "e"}).json()["response"]["name"]

    def deploy(split: dict[str, int]) -> httpx.Response:
        return http.post(f"/v1/{endpoint}:deployModel", json={"deployedModel": {"model": model}, "trafficSplit": split})

    assert "sums to 90" in deploy({"0": 90}).text
    assert "not deployed" in deploy({"0": 50, "7": 50}).text
    assert "deployedModels" not in http.get(f"/v1/{endpoint}").json()
    first = deploy({"0": 100}).json()["response"]["deployedModel"]["id"]
    second = deploy({}).json()["response"]["deployedModel"]["id"]
    assert http.get(f"/v1/{endpoint}").json()["trafficSplit"] == {first: 100}
    patch = {"trafficSplit": {first: 50, second: 49}}
    assert http.patch(f"/v1/{endpoint}?updateMask=traffic_split", json=patch).status_code == 400
    patch = {"trafficSplit": {first: 0, second: 100}}
    assert http.patch(f"/v1/{endpoint}?updateMask=trafficSplit", json=patch).json()["trafficSplit"][second] == 100
    undeploy = f"/v1/{endpoint}:undeployModel"
    assert "has 100% of the traffic" in http.post(undeploy, json={"deployedModelId": second}).text
    assert http.post(undeploy, json={"deployedModelId": first}).status_code == 200
    assert "undeploy them first" in http.delete(f"/v1/{endpoint}").text
    assert http.post(undeploy, json={"deployedModelId": second}).status_code == 200
    operation = http.delete(f"/v1/{endpoint}").json()
    assert http.get(f"/v1/{operation['name']}").json() == operation


def test_raw_predict_names_who_answered(http: httpx.Client, releases: tuple[Path, Path]) -> None:
    model = uploaded(http, releases[0])["model"]
    endpoint = http.post(f"{V1}/endpoints", json={"displayName": "e"}).json()["response"]["name"]
    deploy = {"deployedModel": {"model": model}, "trafficSplit": {"0": 100}}
    deployed = http.post(f"/v1/{endpoint}:deployModel", json=deploy).json()["response"]["deployedModel"]
    image = base64.b64encode(np.zeros(61 * 64, np.uint8).tobytes()).decode()
    answer = http.post(f"/v1/{endpoint}:rawPredict", json={"instances": [{"images": {"b64": image}}]})
    assert answer.headers["x-vertex-ai-deployed-model-id"] == deployed["id"]
    assert answer.json().keys() == {"predictions"}


def lying(**changed: int) -> dict:
    """A WAV of 1 s whose header says otherwise."""
    fields = {"size": 32_036, "coding": 1, "channels": 1, "rate": 16_000, "bits": 16, "data": 32_000} | changed
    size, coding, channels, rate, bits, data = fields.values()
    form = struct.pack("<IHHIIHH", 16, coding, channels, rate, 2 * rate % 2**32, 2, bits)
    head = b"RIFF" + struct.pack("<I", size) + b"WAVEfmt " + form + b"data" + struct.pack("<I", data)
    return {"b64": base64.b64encode(head + bytes(32_000)).decode()}


BAD_INSTANCES = [
    [{"pcm": [0.0]}] * 10_000,
    [lying(data=2**31)],
    [lying(rate=2**31)],
    [lying(rate=0)],
    [lying(channels=0)],
    [lying(channels=65_535)],
    [lying(coding=77)],
    [{"b64": base64.b64encode(b"fLaC" + bytes(40)).decode()}],
    [{"path": "../../etc/passwd"}],
    [[[0] * 64] * 60],
    [{"pcm": "x"}],
]


def test_predictions_that_nobody_should_ask_for(http: httpx.Client, releases: tuple[Path, Path]) -> None:
    model = uploaded(http, releases[0])["model"]
    endpoint = http.post(f"{V1}/endpoints", json={"displayName": "e"}).json()["response"]["name"]
    http.post(f"/v1/{endpoint}:deployModel", json={"deployedModel": {"model": model}, "trafficSplit": {"0": 100}})
    bodies = [json.dumps({"instances": instances}).encode() for instances in BAD_INSTANCES]
    for body in (*bodies, b"{", b'{"instances": [{"pcm": [NaN]}]}', b'{"instances": [{"pcm": [1e39]}]}'):
        refused = http.post(f"/v1/{endpoint}:predict", content=body)
        assert (refused.status_code, refused.json()["error"]["status"]) == (400, "INVALID_ARGUMENT"), body[:200]
    assert http.post(f"/v1/{endpoint}:predict", json={"instances": [lying()]}).status_code == 200


def test_web_pages_are_refused(shared: httpx.Client) -> None:
    body, origin = {"displayName": "e"}, {"origin": "https://example.com", "content-type": "text/plain"}
    assert shared.post(f"{V1}/endpoints", json=body, headers=origin).status_code == 403
    assert shared.get(f"{V1}/endpoints").json() == {"endpoints": []}


def test_two_thousand_idle_connections_hinder_nobody(home: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (512, hard))
    address = up(home)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 5_000)), hard))
    idle = [socket.create_connection(("127.0.0.1", address.port)) for _ in range(2_000)]
    assert httpx.get(f"{address.url}{V1}/models").json() == {"models": []}
    for connection in idle:
        connection.close()


def test_token_and_body_limit(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TWOPHASE_TOKEN", "secret")
    monkeypatch.setenv("TWOPHASE_BODY_BYTES", "1000")
    url = up(home).url
    assert gc(home) == []
    for headers in ({}, {"authorization": "Bearer other"}):
        assert httpx.post(f"{url}{V1}/endpoints/made-up:predict", headers=headers).status_code == 401
    with httpx.Client(base_url=url, headers={"authorization": "Bearer secret"}) as http:
        assert "made-up" not in http.get("/metrics").text
        assert http.post(f"{V1}/endpoints", content=b" " * 1001).status_code == 413


def test_pages_and_order(http: httpx.Client, releases: tuple[Path, Path]) -> None:
    model = uploaded(http, releases[0], modelId="m")["model"]
    for _ in range(4):
        uploaded(http, releases[0], parentModel=model)
    seen, token = [], ""
    while True:
        found = http.get(f"/v1/{model}:listVersions", params={"pageSize": 2, "pageToken": token}).json()
        seen += [v["versionId"] for v in found["models"]]
        token = found.get("nextPageToken", "")
        if not token:
            break
    assert seen == ["5", "4", "3", "2", "1"]
    ordered = http.get(f"/v1/{model}:listVersions", params={"orderBy": "version_create_time"}).json()["models"]
    assert [v["versionId"] for v in ordered] == seen[::-1]


def test_garbage_metrics_and_access_log(http: httpx.Client, home: Path, releases: tuple[Path, Path]) -> None:
    kept = uploaded(http, releases[0])["model"]
    gone = uploaded(http, releases[1])["model"]
    assert gc(home) == []
    http.delete(f"/v1/{gone}")
    (removed,) = gc(home)
    assert removed.startswith(read(releases[1]).id)
    assert [p.name[:14] for p in (home / "artifacts").iterdir()] == [read(releases[0]).id]

    endpoint = http.post(f"{V1}/endpoints", json={"displayName": "e"}).json()["response"]["name"]
    deploy = {"deployedModel": {"model": kept}, "trafficSplit": {"0": 100}}
    http.post(f"/v1/{endpoint}:deployModel", json=deploy)
    http.post(f"/v1/{endpoint}:predict", json={"instances": [[[0] * 64] * 61]})
    http.post(f"/v1/{endpoint}:predict", json={"instances": [1]})
    metrics = http.get("/metrics").text
    for code in (200, 400):
        labels = f'code="{code}",endpoint="{endpoint}",model="{kept}",version="1"'
        assert f"twophase_predict_requests_total{{{labels}}} 1.0" in metrics
    down(home)
    lines = [json.loads(line) for line in (home / "access.log").read_text().splitlines()]
    assert [e["code"] for e in lines if e["path"].endswith(":predict")] == [200, 400]


def test_one_platform_a_home(platform: Address, home: Path) -> None:
    assert ensure_up(home) == status(home) == platform
    again = subprocess.run(
        [sys.executable, "-m", "twophase.local", "--home", home], capture_output=True, text=True, check=False
    )
    assert again.returncode == 1
    assert f"process {platform.pid}" in again.stderr


def test_a_record_of_before_is_no_running_platform(home: Path) -> None:
    """Between the start of a platform and its first answer: it holds the home, the record is the last one's."""
    home.mkdir()
    write_json(home / "server.json", {"home": str(home), "pid": 2**22, "port": 1, "url": "http://x", "started": ""})
    with locked(home, "the platform's folder"):
        assert status(home) is None
        announce(home, 8080, "::1")
        assert status(home).url == "http://[::1]:8080"


def test_a_crash_leaves_no_platform_and_loses_nothing(home: Path, releases: tuple[Path, Path]) -> None:
    first = up(home)
    with httpx.Client(base_url=first.url) as http:
        model = uploaded(http, releases[0])["model"]
        os.kill(first.pid, signal.SIGKILL)
    while status(home):  # the kernel frees a killed process's lock a moment after the signal
        time.sleep(0.01)
    second = ensure_up(home)
    assert (second.port, second.pid) != (first.port, first.pid)
    assert httpx.get(f"{second.url}/v1/{model}").json()["versionId"] == "1"
    down(home)
    assert status(home) is None
    assert down(home) is None


def test_a_platform_that_cannot_start_says_why(tmp_path: Path) -> None:
    with pytest.raises(TwoPhaseError, match="no such folder"):
        up(tmp_path / "home", buckets={"some-bucket": tmp_path / "missing"})


def test_other_addresses_need_a_token(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "twophase.local", "--home", tmp_path, "--host", "0.0.0.0"]
    refused = subprocess.run(command, capture_output=True, text=True, check=False)
    assert refused.returncode == 2
    assert "--token" in refused.stderr
