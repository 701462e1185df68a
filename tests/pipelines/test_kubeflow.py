"""Kubeflow's own client, asked by ours: what reaches the Pipelines API is the spec with its arguments."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import kfp_server_api
import pytest

from pipelines.kubeflow import Kubeflow
from pipelines.refusals import RunEndedBadly
from pipelines.submission import for_kubeflow
from twophase.errors import UsageError

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning", "ignore::DeprecationWarning")


class Api(BaseHTTPRequestHandler):
    """The little of Kubeflow Pipelines' API v2beta1 that a run and a schedule need."""

    sent: list[tuple[str, dict[str, Any]]]
    state = "SUCCEEDED"
    away = 0
    """So many questions for a run are not answered."""

    def do_GET(self) -> None:
        if "/healthz" in self.path:
            self._answer({"multi_user": False})
        elif "/runs/" in self.path:
            Api.away -= 1
            self._answer({"run_id": "run-1", "state": self.state}, 200 if Api.away < 0 else 503)
        else:
            self._answer({"experiments": [{"experiment_id": "e-1", "display_name": "two-phase"}]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        Api.sent.append((self.path.partition("?")[0], body))
        named = {"experiments": {"experiment_id": "e-1"}, "runs": {"run_id": "run-1"}}
        self._answer(named.get(self.path.partition("?")[0].rpartition("/")[2], {"recurring_run_id": "again-1"}))

    def _answer(self, value: dict[str, Any], code: int = 200) -> None:
        data = json.dumps(value).encode()
        self.send_response(code)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def host():
    Api.sent, Api.state, Api.away = [], "SUCCEEDED", 0
    server = ThreadingHTTPServer(("127.0.0.1", 0), Api)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_run_and_a_schedule_carry_the_spec_and_its_arguments(host: str) -> None:
    asked = for_kubeflow(
        {"data": "", "quick": True}, "s3://b", "registry.example/trainer:1", "models", service_account="a"
    )
    client = Kubeflow(host)
    assert client.submit(asked) == "run-1"
    client.wait("run-1")
    assert client.schedule(asked, "0 3 * * *") == "again-1"
    sent = {path.rpartition("/")[2]: body for path, body in Api.sent}
    run = sent["runs"]
    assert run["runtime_config"]["parameters"] == asked.arguments
    assert run["runtime_config"]["pipeline_root"] == "s3://b/two-phase/runs"
    assert run["pipeline_spec"]["pipelineInfo"] == asked.spec["pipelineInfo"]
    assert asked.arguments["releases"] == "s3://b/two-phase/releases"
    images = {e["container"]["image"] for e in asked.spec["deploymentSpec"]["executors"].values()}
    assert images == {"registry.example/trainer:1"}
    again, expected = sent["recurringruns"], client.request(asked, "0 3 * * *")
    assert again["trigger"] == expected["trigger"] == {"cron_schedule": {"cron": "0 3 * * *"}}
    assert again["service_account"] == run["service_account"] == expected["service_account"] == "a"
    assert expected["experiment"] == "two-phase"
    assert again["max_concurrency"] == expected["max_concurrency"]
    known = set(kfp_server_api.V2beta1Run.attribute_map.values())
    assert run.keys() <= known


def test_a_run_that_fails_there_fails_here(host: str) -> None:
    Api.state = "FAILED"
    with pytest.raises(RunEndedBadly, match="run-1: ended as FAILED"):
        Kubeflow(host).wait("run-1")


def test_a_run_is_watched_through_a_lost_connection(host: str, capsys: pytest.CaptureFixture[str]) -> None:
    Api.away = 2
    Kubeflow(host).wait("run-1")
    assert capsys.readouterr().err.count("does not answer") == 1


def test_a_bucket_is_needed() -> None:
    with pytest.raises(UsageError, match=r"--bucket .none.: s3://BUCKET"):
        for_kubeflow({"data": ""}, "", "i", "n")
