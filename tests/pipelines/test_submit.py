"""Asking for runs: what is sent, what is refused before anything is sent, how a run ends."""

import json
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
import yaml
from google.api_core.exceptions import Aborted
from google.cloud.aiplatform_v1 import types
from google.protobuf import json_format

from pipelines.clients import Vertex
from pipelines.compile import SPECS, read_spec, spec_path
from pipelines.cost import estimate
from pipelines.image_check import check_image
from pipelines.kubeflow import Kubeflow
from pipelines.places import Machines
from pipelines.refusals import AlreadyThere, NoAnswer, RunEndedBadly, in_words
from pipelines.submission import Submission, data_state, for_machine, for_vertex, to_repeat
from twophase.errors import TwoPhaseError, UsageError
from twophase.files import locked
from twophase.local.process import Address
from twophase.targets.batch import predict_batch
from twophase.targets.live import whats_live
from twophase.targets.rest import Vertex as RestVertex

PLACE = ("local", "us-central1")
IMAGE = "us-central1-docker.pkg.dev/p/twophase/trainer:0.1.0"


def test_a_run_is_watched_to_its_end(vertex: Vertex, small_spec: dict[str, Any]) -> None:
    seen: list[tuple[str, str]] = []
    name = vertex.submit(Submission(small_spec, "watched", {"data": "d"}))
    vertex.wait(name, lambda task, state: seen.append((task, state)))
    assert seen[-1] == ("try-it", "SUCCEEDED")
    assert vertex.get("watched").state.name == "PIPELINE_STATE_SUCCEEDED"


def test_an_id_is_asked_for_once(vertex: Vertex, small_spec: dict[str, Any]) -> None:
    vertex.submit(Submission(small_spec, "once", {"data": "d"}))
    with pytest.raises(AlreadyThere, match=r"once.*nothing was done"):
        vertex.submit(Submission(small_spec, "once", {"data": "d"}))


def test_a_run_that_fails_says_why(vertex: Vertex, small_spec: dict[str, Any]) -> None:
    name = vertex.submit(Submission(small_spec, "fails", {"data": "d", "fail": True}))
    with pytest.raises(RunEndedBadly, match=r"failed: try-it: d: is asked to fail; .*submit it again"):
        vertex.wait(name)


def test_a_run_that_is_cancelled_says_so(vertex: Vertex, small_spec: dict[str, Any], tmp_path: Path) -> None:
    waits = {"data": "d", "wait_for": str(tmp_path / "never")}
    name = vertex.submit(Submission(small_spec, "cancelled", waits))
    job = vertex.get("cancelled")
    while job.state.name == "PIPELINE_STATE_PENDING":
        time.sleep(0.05)
    job.cancel()
    with pytest.raises(RunEndedBadly, match="was cancelled"):
        vertex.wait(name)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"data": "d", "count": "three"}, "count: 'three' does not fit"),
        ({"data": "d", "count": True}, "count: True does not fit"),
        ({"data": 1}, "data: 1 does not fit"),
        ({"data": "d", "colour": "red"}, "colour: is no parameter of two-phase; it has count, data"),
        ({}, "data: two-phase needs it"),
    ],
)
def test_arguments_are_checked_against_the_spec(small_spec: dict[str, Any], arguments: dict[str, Any], words) -> None:
    with pytest.raises(UsageError, match=words):
        Submission(small_spec, "j", arguments)


def test_a_spec_of_another_version_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "old.yaml"
    text = spec_path("two_phase.local").read_text().replace("sdkVersion: kfp-", "sdkVersion: kfp-1.")
    path.write_text(text)
    with pytest.raises(TwoPhaseError, match=r"was compiled by kfp-1.*compile it again"):
        read_spec(path)
    path.write_text("no: spec")
    with pytest.raises(TwoPhaseError, match="is no compiled pipeline"):
        read_spec(path)


@pytest.mark.parametrize(
    ("bucket", "image", "data", "words"),
    [
        ("", IMAGE, "", "--bucket .none.: gs://BUCKET is accepted"),
        ("my-bucket", IMAGE, "", "--bucket my-bucket: gs://BUCKET"),
        ("gs://b", "twophase/trainer:0.1.0", "", "Vertex AI cannot pull it; push the trainer"),
        ("gs://b", IMAGE, "/data/clips", "lies on this machine; copy it to a bucket"),
    ],
)
def test_what_vertex_cannot_reach_is_said_first(bucket: str, image: str, data: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        for_vertex({"data": data}, bucket, image, "p", "us-central1")


def test_weights_on_this_machine_are_for_runs_on_this_machine(tmp_path: Path) -> None:
    weights = {"weights": str(tmp_path / "own.weights.h5")}
    with pytest.raises(UsageError, match=r"--weights .*lies on this machine"):
        for_vertex(weights, "gs://b", IMAGE, "p", "us-central1")
    assert for_machine(weights, tmp_path, *PLACE, "http://127.0.0.1:9").arguments["weights"] == weights["weights"]


def test_steps_in_the_cloud_run_in_the_pushed_image_with_images_in_the_bucket() -> None:
    asked = for_vertex({"data": ""}, "gs://b/", IMAGE, "p", "us-central1", Machines(spot=True))
    assert asked.root == "gs://b/two-phase/runs"
    assert asked.arguments["store"] == "gs://b/two-phase/images"
    assert "twophase/trainer:0.1.0-python3.11" not in json.dumps(asked.spec).replace(IMAGE, "")
    assert asked.arguments["server_image"] == "us-central1-docker.pkg.dev/p/twophase/server:0.1.0"
    assert "SPOT" in json.dumps(asked.spec)


@contextmanager
def serving(handler: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    """The address of a server that answers so."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class Captured(BaseHTTPRequestHandler):
    """Answers a pipeline job and a schedule as Vertex AI does, and keeps what was sent."""

    sent: list[tuple[str, dict[str, Any]]]

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.sent.append((self.path, body))
        url = urlsplit(self.path)
        (identity,) = parse_qs(url.query).get("pipelineJobId", ["1"])
        self._answer({**body, "name": f"{url.path.removeprefix('/v1/')}/{identity}"})

    def do_GET(self) -> None:
        name = f"{urlsplit(self.path).path.removeprefix('/v1/')}/1"
        (wanted,) = parse_qs(urlsplit(self.path).query)["filter"]
        self._answer({"schedules": [{"name": name}] if wanted == 'display_name="scheduled"' else []})

    def do_DELETE(self) -> None:
        self.sent.append((self.path, {}))
        name = urlsplit(self.path).path.removeprefix("/v1/")
        self._answer({"name": f"{name}/operations/1", "done": True, "response": {"@type": EMPTY}})

    def _answer(self, value: dict[str, Any]) -> None:
        data = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


EMPTY = "type.googleapis.com/google.protobuf.Empty"


def test_a_schedule_is_sent_as_its_dry_run_says_and_found_by_its_model() -> None:
    Captured.sent = []
    with serving(Captured) as address:
        vertex = Vertex("p", "us-central1", address)
        account = Machines(service_account="runner@p.iam.gserviceaccount.com")
        asked = for_vertex({"data": "", "model": "scheduled"}, "gs://b", IMAGE, "p", "us-central1", account)
        name = vertex.schedule(asked, "0 3 * * *")
        expected = vertex.request(asked, "0 3 * * *")
        rest = RestVertex("p", "us-central1", address)
        assert rest.unschedule("another") == []
        assert rest.unschedule("scheduled") == [name]
    (path, body), (deleted, _) = Captured.sent

    def message(schedule: dict[str, Any]) -> Any:
        return json_format.ParseDict(schedule, types.Schedule.pb()())

    assert urlsplit(path).path == f"/v1/{expected['parent']}/schedules"
    assert message(body) == message(expected["schedule"])
    assert message(body).cron == "0 3 * * *"
    assert message(body).create_pipeline_job_request.pipeline_job.service_account == account.service_account
    assert urlsplit(deleted).path == f"/v1/{name}"


def test_a_dry_run_prints_what_the_official_client_sends() -> None:
    """Every field: parsed as Google's own message type, the capture and the dry run are the same request."""
    Captured.sent = []
    with serving(Captured) as address:
        vertex = Vertex("p", "us-central1", address)
        asked = for_vertex(
            {"data": "", "quick": True},
            "gs://b",
            IMAGE,
            "p",
            "us-central1",
            Machines(
                service_account="runner@p.iam.gserviceaccount.com",
                network="projects/1/global/networks/n",
                encryption_key="projects/p/locations/us-central1/keyRings/r/cryptoKeys/k",
            ),
            labels={"team": "sound"},
        )
        vertex.submit(asked)
        expected = vertex.request(asked)
    (path, body), *more = Captured.sent
    assert not more
    sent = {
        "parent": urlsplit(path).path.removeprefix("/v1/").removesuffix("/pipelineJobs"),
        "pipelineJobId": parse_qs(urlsplit(path).query)["pipelineJobId"][0],
        "pipelineJob": body,
    }

    def message(request: dict[str, Any]) -> Any:
        return json_format.ParseDict(request, types.CreatePipelineJobRequest.pb()())

    assert message(sent) == message(expected)
    job = message(sent).pipeline_job
    assert job.service_account == asked.service_account
    assert job.network == asked.network
    assert job.encryption_spec.kms_key_name == asked.encryption_key
    assert job.labels["team"] == "sound"
    assert job.runtime_config.gcs_output_directory == asked.root


@pytest.mark.parametrize("name", [name for name in SPECS if name.startswith("two_phase")])
def test_every_spec_is_accepted_as_a_job(name: str) -> None:
    spec = next(yaml.safe_load_all(spec_path(name).read_text()))
    request = {"parent": "projects/p/locations/r", "pipelineJob": {"pipelineSpec": spec}}
    json_format.ParseDict(request, types.CreatePipelineJobRequest.pb()())


def test_a_schedule_lists_the_clips_anew_each_time() -> None:
    """Its arguments are those of today: an answer from the cache would leave out what came since."""
    asked = for_vertex({"data": ""}, "gs://b", IMAGE, "p", "us-central1")
    cached = {
        name: task["cachingOptions"].get("enableCache", False)
        for part in to_repeat(asked).spec["components"].values()
        for name, task in part.get("dag", {}).get("tasks", {}).items()
        if name in ("generate-data", "train-gate")
    }
    assert cached == {"generate-data": False, "train-gate": True}
    assert '"generate-data"' in json.dumps(asked.spec)


class Registry(BaseHTTPRequestHandler):
    """A registry of images, as the OCI's distribution specification has it: one image, and one that it hides."""

    def do_GET(self) -> None:
        code, word = {
            "/v2/p/twophase/trainer/manifests/1": (200, ""),
            "/v2/p/hidden/trainer/manifests/1": (401, "UNAUTHORIZED"),
        }.get(self.path, (404, "MANIFEST_UNKNOWN"))
        data = json.dumps({"errors": [{"code": word}]} if word else {"schemaVersion": 2}).encode()
        self.send_response(code)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


def test_a_workdir_that_a_run_holds_is_not_submitted_to(tmp_path: Path) -> None:
    with locked(tmp_path, "this workdir"), pytest.raises(TwoPhaseError, match=r"in use by process \d+"):
        for_machine({}, tmp_path, *PLACE, "http://127.0.0.1:9")
    assert for_machine({}, tmp_path, *PLACE, "http://127.0.0.1:9").arguments["workdir"] == str(tmp_path)


def test_an_image_that_was_not_pushed_is_named_with_the_command_that_pushes_it() -> None:
    with serving(Registry) as address:
        host = address.removeprefix("http://")
        check_image(f"{host}/p/twophase/trainer:1")
        check_image(f"{host}/p/hidden/trainer:1")  # may be there: whoever pulls it has credentials
        for missing in (f"{host}/p/twophase/trainer:2", f"{host}/p/twophase/trainer@sha256:{64 * '0'}"):
            with pytest.raises(TwoPhaseError, match=f"{missing}: .*twophase containers push {host}/p/twophase trainer"):
                check_image(missing)
    check_image("127.0.0.1:9/p/twophase/trainer:1")  # not reached from here


class Refusing(BaseHTTPRequestHandler):
    """Refuses whatever is asked for, in Google's shape."""

    code: int
    status = "X"

    def do_GET(self) -> None:
        self.rfile.read(int(self.headers.get("content-length", 0)))
        data = json.dumps({"error": {"code": self.code, "message": "because", "status": self.status}}).encode()
        self.send_response(self.code)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_POST(self) -> None:
        self.do_GET()

    def log_message(self, *_: object) -> None:
        pass


REFUSALS = [
    (401, "no credentials"),
    (403, r"not allowed \(because\); docs/vertex.md lists the roles"),
    (404, "because; see that project, region and bucket exist"),
    (429, "over a quota .*because.*ask for more"),
    (503, "does not answer .*because.*try again"),
    (400, "because"),
]


@pytest.mark.parametrize(("code", "words"), [*REFUSALS, (409, "a run of this id is there already")])
def test_what_a_cloud_refuses_comes_back_as_one_message(small_spec: dict[str, Any], code: int, words: str) -> None:
    Refusing.code = code
    with serving(Refusing) as address, pytest.raises(TwoPhaseError, match=words):
        Vertex(*PLACE, address).submit(Submission(small_spec, "j", {"data": "d"}))


def test_another_change_under_way_is_no_run_of_this_id(
    small_spec: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through REST it has the same code as a run that is there; through gRPC an exception of the same parent."""
    monkeypatch.setattr(Refusing, "code", 409, raising=False)
    monkeypatch.setattr(Refusing, "status", "ABORTED")
    with (
        serving(Refusing) as address,
        pytest.raises(TwoPhaseError, match=r"being changed .*because.*try again") as rest,
    ):
        Vertex(*PLACE, address).submit(Submission(small_spec, "j", {"data": "d"}))
    with pytest.raises(TwoPhaseError, match="try again") as grpc, in_words("p/r", "j"):
        raise Aborted("because")
    assert not {rest.type, grpc.type} & {AlreadyThere}


@pytest.mark.parametrize(("code", "words"), REFUSALS)
def test_a_batch_that_is_refused_says_so_in_one_message(code: int, words: str) -> None:
    Refusing.code = code
    with serving(Refusing) as address, pytest.raises(TwoPhaseError, match=f"{address}: .*{words}"):
        predict_batch("gs://b/x.jsonl", "gs://b/out", *PLACE, address, "two-phase")


class OutOfSight(BaseHTTPRequestHandler):
    """A run that succeeds, at an address that is away for a while after it was first looked at."""

    answers: list[int]

    def do_GET(self) -> None:
        code = self.answers.pop(0) if self.answers else 200
        state = "PIPELINE_STATE_RUNNING" if self.answers else "PIPELINE_STATE_SUCCEEDED"
        data = json.dumps({"name": "projects/1/locations/r/pipelineJobs/j", "state": state}).encode()
        self.send_response(code)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


def test_a_run_is_watched_through_a_lost_connection(capsys: pytest.CaptureFixture[str]) -> None:
    OutOfSight.answers = [200, 200, 504, 504]  # the SDK itself asks again after a 503
    with serving(OutOfSight) as address:
        Vertex(*PLACE, address).wait("projects/local/locations/us-central1/pipelineJobs/j")
    assert capsys.readouterr().err.count("does not answer") == 1
    assert not OutOfSight.answers


def test_patience_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipelines.refusals.PATIENCE_S", 0.0)
    OutOfSight.answers = [504, 200]
    with serving(OutOfSight) as address, pytest.raises(NoAnswer, match="does not answer"):
        Vertex(*PLACE, address).wait("projects/local/locations/us-central1/pipelineJobs/j")
    assert OutOfSight.answers == [200]


def test_two_that_ask_in_the_same_second_ask_for_two_runs(tmp_path: Path) -> None:
    asked = [for_machine({}, tmp_path, *PLACE, "http://127.0.0.1:9").job_id for _ in range(2)]
    assert asked[0] != asked[1]
    assert all(re.fullmatch(r"two-phase-\d{8}-\d{6}-[0-9a-f]{4}", job_id) for job_id in asked)


@pytest.mark.parametrize(("code", "words"), REFUSALS)
def test_a_step_that_may_not_look_what_is_live_says_so_in_one_message(code: int, words: str) -> None:
    Refusing.code = code
    with serving(Refusing) as address, pytest.raises(TwoPhaseError, match=f"{address}: .*{words}"):
        whats_live(*PLACE, address, "two-phase")


def test_a_registry_that_lacks_the_image_ends_a_submission_before_anything_is_asked_for(platform: Address) -> None:
    with serving(Registry) as address:
        image = f"{address.removeprefix('http://')}/p/twophase/trainer:2"
        done = twophase(*VERTEX[:5], "--bucket", "gs://clips", "--image", image, "--api-endpoint", platform.url, "-y")
    assert done.returncode == 1
    assert done.stderr.startswith(f"twophase: {image}: ")


def test_the_platform_that_is_not_there_is_named(small_spec: dict[str, Any]) -> None:
    with pytest.raises(TwoPhaseError, match=r"http://127.0.0.1:9: "):
        Vertex(*PLACE, "http://127.0.0.1:9").submit(Submission(small_spec, "j", {"data": "d"}))


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
def test_a_kubeflow_host_that_is_not_there_is_named(small_spec: dict[str, Any]) -> None:
    with pytest.raises(TwoPhaseError, match=r"http://127.0.0.1:9: is no Kubeflow Pipelines host"):
        Kubeflow("http://127.0.0.1:9").submit(Submission(small_spec, "j", {"data": "d"}))


def test_the_data_s_digest_follows_names_and_stamps(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "1.wav").write_bytes(b"x")
    first = data_state(str(tmp_path))
    assert first == data_state(str(tmp_path))
    (tmp_path / "a" / "2.wav").write_bytes(b"x")
    assert data_state(str(tmp_path))[1] == 2
    assert data_state(str(tmp_path))[0] != first[0]
    assert data_state("") == ("", 0)
    for missing in (tmp_path / "b", tmp_path / "labels.csv"):
        with pytest.raises(TwoPhaseError, match=f"{missing}: nothing lies there"):
            data_state(str(missing))


def test_an_estimate_names_machines_and_grows_with_the_clips(tmp_path: Path) -> None:
    few, many = (sum(line.dollars for line in estimate(n, Machines())) for n in (1_000, 1_000_000))
    assert 0 < few < many
    spot = estimate(1_000, Machines("g2-standard-8", "NVIDIA_L4", spot=True))
    assert next(line for line in spot if line.step == "train-gate").machine == "g2-standard-8 + 1 NVIDIA_L4 (spot)"
    (two,) = (line for line in estimate(1_000, Machines(replicas=2)) if line.step == "train-gate")
    (one,) = (line for line in estimate(1_000, Machines()) if line.step == "train-gate")
    assert (two.machine, two.dollars) == (f"2 x {one.machine}", 2 * one.dollars)
    with pytest.raises(TwoPhaseError, match=r"no \[machine_hour\] for cray-1; add its price"):
        estimate(1, Machines("cray-1"))
    (tmp_path / "prices.toml").write_text("not toml")
    with pytest.raises(TwoPhaseError, match=r"prices.toml: this price table cannot be read"):
        estimate(1, Machines(), tmp_path / "prices.toml")


def twophase(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "twophase", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)


VERTEX = ("submit", "--target", "vertex", "--project", "p", "--bucket", "gs://b", "--image", IMAGE)


def test_a_dry_run_needs_no_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("STORAGE_EMULATOR_HOST", raising=False)
    done = twophase(*VERTEX, "--dry-run", "--quick", "--label", "team=sound")
    assert done.returncode == 0, done.stderr
    request = json_format.ParseDict(json.loads(done.stdout), types.CreatePipelineJobRequest.pb()())
    assert request.parent == "projects/p/locations/us-central1"
    assert request.pipeline_job.labels["team"] == "sound"
    assert request.pipeline_job.runtime_config.parameter_values["quick"].bool_value


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("submit", "--target", "moon"), "--target moon: is not known; local or vertex or kubeflow"),
        (("submit", "--target", "vertex"), "--project: give the Google Cloud project"),
        (("submit", "--target", "kubeflow"), "--host: give the address"),
        (("submit", "--schedule", "0 3 * * *"), "--schedule: the platform on this machine has none; let cron call"),
        ((*VERTEX, "--schedule", "0 3 * * *", "--wait"), "--schedule and --wait exclude each other"),
        ((*VERTEX, "--backbone", "moon"), "--backbone moon: is not known; small or"),
        ((*VERTEX, "--weights", "imagenet"), "--weights imagenet: is not for the small network"),
        ((*VERTEX, "--label", "team"), "--label team: is not understood; NAME=VALUE"),
        (("containers", "build", "moon"), "moon: is no image of this project; "),
    ],
)
def test_wrong_usage_is_one_message_and_exit_code_2(arguments: tuple[str, ...], words: str) -> None:
    done = twophase(*arguments)
    assert done.returncode == 2
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_a_dry_run_starts_no_platform_and_makes_no_workdir(tmp_path: Path) -> None:
    places = ("--home", str(tmp_path / "home"), "--workdir", str(tmp_path / "work"))
    done = twophase("submit", "--dry-run", *places)
    assert done.returncode == 0, done.stderr
    request = json_format.ParseDict(json.loads(done.stdout), types.CreatePipelineJobRequest.pb()())
    assert request.pipeline_job.runtime_config.parameter_values["workdir"].string_value == str(tmp_path / "work")
    assert not list(tmp_path.iterdir())


def test_nothing_is_asked_for_where_nobody_agreed(platform: Address) -> None:
    """A bucket that is there (the platform's stands in for Google's), a cost that nobody could say yes to."""
    with serving(Registry) as address:
        image = f"{address.removeprefix('http://')}/p/twophase/trainer:1"
        place = ("--bucket", "gs://clips", "--image", image, "--server-image", image)
        done = twophase(*VERTEX[:5], *place, "--api-endpoint", platform.url)
    assert done.returncode == 2, done.stderr
    assert "give --yes" in done.stderr
    assert "in all" in done.stdout + done.stderr, "the estimate"
