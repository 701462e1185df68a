"""New data starts exactly one run: told ten times, ten at once, and after a crash at any step of the way."""

import itertools
import json
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import functions_framework
import pytest
import requests
from cloudevents.http import CloudEvent

from pipelines import trigger
from pipelines.clients import Vertex
from pipelines.news import Reaction, Watch, is_news, react
from pipelines.submission import Submission
from pipelines.trigger import from_environment  # function.py, which is loaded here, puts another in its place
from pipelines.watching import watch_folder
from twophase.errors import TwoPhaseError, UsageError
from twophase.local.process import Address

Order = Callable[[str], Submission]


@pytest.fixture
def place(clips_bucket: Path, request: pytest.FixtureRequest) -> str:
    """A prefix of a bucket with two clips in it and what is written last, each test its own."""
    name = request.node.name.replace("[", "-").replace("]", "")
    (clips_bucket / name / "flute").mkdir(parents=True)
    for i in range(2):
        (clips_bucket / name / "flute" / f"{i}.wav").write_bytes(f"{name} {i}".encode())
    whole(clips_bucket / name)
    return f"gs://clips/{name}"


def whole(folder: Path) -> None:
    """Say that what lies in a folder is whole, in a way that never was before."""
    (folder / "_SUCCESS").write_text(str(next(_times)))


_times = itertools.count()


@pytest.fixture
def order(small_spec: dict[str, Any], place: str) -> Order:
    return lambda digest: Submission(small_spec, "", {"data": place, "data_digest": digest})


def runs_of(vertex: Vertex, place: str) -> list[Any]:
    found = vertex._sdk.PipelineJob.list()
    return [job for job in found if job.gca_resource.runtime_config.parameter_values["data"] == place]


def finalized(location: str) -> CloudEvent:
    bucket, _, name = location.removeprefix("gs://").partition("/")
    about = {
        "type": "google.cloud.storage.object.v1.finalized",
        "source": "//storage.googleapis.com/projects/_/buckets/b",
    }
    return CloudEvent(about, {"bucket": bucket, "name": name, "generation": "1"})


def app(platform: Address, small_spec: dict[str, Any], place: str, target: str = "on_new_data", fail: bool = False):
    """The function behind functions-framework's own HTTP server program."""
    told = {"spec": small_spec, "place": place, "address": platform.url, "fail": fail}
    os.environ["TEST_TRIGGER"] = json.dumps(told)
    return functions_framework.create_app(target, str(Path(__file__).parent / "function.py"))


def deliver(client: Any, event: CloudEvent) -> int:
    from cloudevents.conversion import to_structured

    headers, body = to_structured(event)
    return int(client.post("/", headers=headers, data=body).status_code)


def test_the_same_news_ten_times_is_one_run(platform, vertex: Vertex, small_spec, place: str) -> None:
    client = app(platform, small_spec, place).test_client()
    event = finalized(f"{place}/_SUCCESS")
    assert [deliver(client, event) for _ in range(10)] == [200] * 10
    (job,) = runs_of(vertex, place)
    vertex.wait(job.resource_name)
    assert deliver(client, event) == 200
    assert len(runs_of(vertex, place)) == 1, "also when it has ended"


def test_the_same_news_ten_at_once_is_one_run(platform, vertex: Vertex, small_spec, place: str) -> None:
    program = app(platform, small_spec, place)
    event, gate = finalized(f"{place}/_SUCCESS"), threading.Barrier(10)

    def one(_: int) -> int:
        gate.wait()
        return deliver(program.test_client(), event)

    with ThreadPoolExecutor(10) as pool:
        assert list(pool.map(one, range(10))) == [200] * 10
    assert len(runs_of(vertex, place)) == 1


REQUESTS = 3
"""What reacting asks of the API: is the job there, what was started lately, make the job."""


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("number", range(REQUESTS))
def test_a_crash_at_any_request_leaves_news_that_makes_one_run(
    vertex: Vertex, small_spec: dict[str, Any], tmp_path: Path, when: str, number: int
) -> None:
    """The process is gone before or after each request that it makes; the redelivered event makes it one run."""
    watch = Watch(str(tmp_path))
    (tmp_path / "1.wav").write_bytes(b"1")
    whole(tmp_path)

    def order(digest: str) -> Submission:
        return Submission(small_spec, "", {"data": str(tmp_path), "data_digest": digest})

    child = os.fork()
    if child == 0:
        _die(number, when)
        try:
            react(watch, vertex, order)
        finally:
            os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9, "it died where it should"
    assert len(runs_of(vertex, str(tmp_path))) == (number == REQUESTS - 1 and when == "after")
    assert react(watch, vertex, order).job
    assert not react(watch, vertex, order).started
    assert len(runs_of(vertex, str(tmp_path))) == 1


def _die(number: int, when: str) -> None:
    """End this process, without a word, before or after its request of that number."""
    sent, real = itertools.count(), requests.Session.request

    def dying(self: Any, *args: Any, **kwargs: Any) -> Any:
        last = next(sent) == number
        if last and when == "before":
            os._exit(9)
        answer = real(self, *args, **kwargs)
        if last:
            os._exit(9)
        return answer

    requests.Session.request = dying  # type: ignore[method-assign]


def test_a_run_that_failed_is_tried_again_so_often_and_no_more(vertex: Vertex, small_spec, place: str) -> None:
    def failing(digest: str) -> Submission:
        return Submission(small_spec, "", {"data": place, "data_digest": digest, "fail": True})

    watch = Watch(place, attempts=2)
    for attempt in (1, 2):
        found = react(watch, vertex, failing)
        assert found.started
        assert found.job.endswith("-2") == (attempt == 2)
        with pytest.raises(TwoPhaseError, match="failed"):
            vertex.wait(found.job)
    assert react(watch, vertex, failing) == Reaction(
        found.job.rpartition("/")[2].removesuffix("-2"), "failed 2 times; mend it and submit it by hand"
    )
    assert len(runs_of(vertex, place)) == 2


def folder_of(place: str, clips_bucket: Path) -> Path:
    return clips_bucket / place.rpartition("/")[2]


def test_new_clips_are_another_run_once_they_are_whole(vertex: Vertex, place: str, order: Order, clips_bucket) -> None:
    """Also for a sweep, which comes without news: clips that are being written are no reason for a run."""
    first = react(Watch(place), vertex, order)
    folder = folder_of(place, clips_bucket)
    (folder / "flute" / "new.wav").write_bytes(b"new")
    between = react(Watch(place), vertex, order)
    whole(folder)
    second = react(Watch(place), vertex, order)
    assert (first.started, between.started, second.started) == (True, False, True)
    assert len(runs_of(vertex, place)) == 2


def test_too_few_new_clips_wait_for_more(vertex: Vertex, place: str, order: Order, clips_bucket: Path) -> None:
    assert react(Watch(place), vertex, order).started
    folder = folder_of(place, clips_bucket)
    (folder / "flute" / "a.wav").write_bytes(b"a")
    whole(folder)
    held = react(Watch(place, new_clips=2), vertex, order)
    assert held == Reaction("", "1 new files are fewer than the 2 that a run is worth")
    (folder / "flute" / "b.wav").write_bytes(b"b")
    whole(folder)
    assert react(Watch(place, new_clips=2), vertex, order).started


def test_what_holds_one_place_back_does_not_hold_another(
    vertex: Vertex, place: str, order: Order, clips_bucket
) -> None:
    assert react(Watch(place), vertex, order).started
    other = folder_of(place, clips_bucket) / "other"
    other.mkdir()
    (other / "1.wav").write_bytes(b"1")
    whole(other)
    assert react(Watch(f"{place}/other", new_clips=1, runs_a_day=1), vertex, order).started


def test_the_same_files_elsewhere_are_other_news(vertex: Vertex, small_spec: dict[str, Any], tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        for file in ("1.wav", "_SUCCESS"):
            (tmp_path / name / file).write_bytes(b"1")
            os.utime(tmp_path / name / file, (1, 1))

        def order(digest: str, folder: Path = tmp_path / name) -> Submission:
            return Submission(small_spec, "", {"data": str(folder), "data_digest": digest})

        assert react(Watch(str(tmp_path / name)), vertex, order).started


@pytest.mark.parametrize("names", [(), ("1.wav",)])
def test_a_place_where_nothing_is_whole_starts_nothing(vertex: Vertex, order: Order, tmp_path: Path, names) -> None:
    for name in names:
        (tmp_path / name).touch()
    assert react(Watch(str(tmp_path)), vertex, order) == Reaction(
        "", "nothing is whole yet: there is no _SUCCESS or manifest.json"
    )


def test_what_the_pipeline_writes_below_the_place_changes_nothing(
    vertex, place: str, order: Order, clips_bucket
) -> None:
    watch = Watch(place, own=(f"{place}/two-phase",))
    assert react(watch, vertex, order).started
    own = folder_of(place, clips_bucket) / "two-phase/runs"
    own.mkdir(parents=True)
    whole(own)
    assert not react(watch, vertex, order).started


def test_a_day_has_so_many_runs(vertex: Vertex, place: str, order: Order) -> None:
    held = react(Watch(place, runs_a_day=0), vertex, order)
    assert "as many as may be" in held.words
    assert not runs_of(vertex, place)


@pytest.mark.parametrize(
    ("location", "expected"),
    [
        ("gs://b/clips/_SUCCESS", True),
        ("gs://b/clips/2026/manifest.json", True),
        ("gs://b/clips/flute/1.wav", False),
        ("gs://b/other/_SUCCESS", False),
        ("gs://b/clips-2/_SUCCESS", False),
        ("gs://b/clips/two-phase/runs/x/_SUCCESS", False),
    ],
)
def test_only_what_is_written_last_is_news_and_never_what_the_pipeline_wrote(location: str, expected: bool) -> None:
    assert is_news(Watch("gs://b/clips", own=("gs://b/clips/two-phase",)), location) is expected


@pytest.mark.parametrize(
    ("kind", "data", "location"),
    [
        ("google.cloud.storage.object.v1.finalized", {"bucket": "b", "name": "c/_SUCCESS"}, "gs://b/c/_SUCCESS"),
        ("Microsoft.Storage.BlobCreated", {"url": "https://a.blob.core.windows.net/c/d/_SUCCESS"}, "az://c/d/_SUCCESS"),
        ("Object Created", {"bucket": {"name": "b"}, "object": {"key": "c/_SUCCESS"}}, "s3://b/c/_SUCCESS"),
    ],
)
def test_events_of_three_clouds_are_understood(kind: str, data: dict[str, Any], location: str) -> None:
    assert trigger.location_of(CloudEvent({"type": kind, "source": "s"}, data)) == location


@pytest.mark.parametrize(("kind", "data"), [("google.cloud.storage.object.v1.finalized", {}), ("something.else", {})])
def test_another_event_is_refused_by_name(kind: str, data: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=kind):
        trigger.location_of(CloudEvent({"type": kind, "source": "s"}, data))


def test_an_event_that_is_none_is_not_asked_for_again(platform, vertex: Vertex, small_spec, place: str) -> None:
    client = app(platform, small_spec, place).test_client()
    assert deliver(client, CloudEvent({"type": "something.else", "source": "s"}, {})) == 200
    assert not runs_of(vertex, place)


def test_a_setting_that_is_missing_or_no_number_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("DATA", "gs://b/clips"), ("BUCKET", "gs://b"), ("IMAGE", "i"), ("PROJECT", "p")):
        monkeypatch.setenv(f"TWOPHASE_{name}", value)
    with pytest.raises(UsageError, match="TWOPHASE_REGION: is not set"):
        from_environment()
    monkeypatch.setenv("TWOPHASE_REGION", "us-central1")
    monkeypatch.setenv("TWOPHASE_RUNS_A_DAY", "few")
    with pytest.raises(UsageError, match="TWOPHASE_RUNS_A_DAY=few"):
        from_environment()


def test_training_runs_as_whom_the_steps_run_as(monkeypatch: pytest.MonkeyPatch) -> None:
    told = {"DATA": "gs://b/clips", "BUCKET": "gs://b", "IMAGE": "r.example/trainer:1", "PROJECT": "p"}
    told |= {"REGION": "us-central1", "SERVICE_ACCOUNT": "runner@p.iam.gserviceaccount.com"}
    for name, value in told.items():
        monkeypatch.setenv(f"TWOPHASE_{name}", value)
    _, _, order = from_environment()
    asked = order("digest")
    assert asked.service_account == told["SERVICE_ACCOUNT"]
    training = asked.spec["components"]["comp-train-gate"]["inputDefinitions"]["parameters"]
    assert training["service_account"]["defaultValue"] == told["SERVICE_ACCOUNT"]


def test_a_sweep_finds_what_was_missed(platform, vertex: Vertex, small_spec, place: str) -> None:
    client = app(platform, small_spec, place, "on_time").test_client()
    assert client.post("/", json={}).get_json()["started"] is True
    assert client.post("/", json={}).get_json()["started"] is False
    assert len(runs_of(vertex, place)) == 1


class Tasks(BaseHTTPRequestHandler):
    """Cloud Tasks' way with names: the first of a name is taken, the next is told that it is there."""

    names: dict[str, dict[str, Any]]

    def do_POST(self) -> None:
        task = json.loads(self.rfile.read(int(self.headers["content-length"])))["task"]
        code = 409 if task["name"] in self.names else 200
        self.names.setdefault(task["name"], task)
        self.send_response(code)
        self.send_header("content-length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    def log_message(self, *_: object) -> None:
        pass


def test_a_burst_of_news_puts_off_one_task(monkeypatch: pytest.MonkeyPatch) -> None:
    Tasks.names = {}
    server = ThreadingHTTPServer(("127.0.0.1", 0), Tasks)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    monkeypatch.setenv("TWOPHASE_TASKS_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("TWOPHASE_TASK_URL", "https://function.example")
    monkeypatch.setenv("TWOPHASE_TASK_ACCOUNT", "trigger@p.iam.gserviceaccount.com")
    queue = "projects/p/locations/r/queues/q"
    try:
        burst = {trigger.put_off(queue, "gs://b/clips", 300, lambda at=at: at) for at in (600.0, 601.0, 899.0)}
        later = trigger.put_off(queue, "gs://b/clips", 300, lambda: 900.0)
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
    assert len(burst) == 1
    assert set(Tasks.names) == burst | {later}
    assert Tasks.names[burst.pop()]["scheduleTime"] == "1970-01-01T00:15:00+00:00"


def test_a_folder_is_watched(vertex: Vertex, small_spec: dict[str, Any], tmp_path: Path) -> None:
    """What was missed first, then news."""
    (tmp_path / "flute").mkdir()
    (tmp_path / "flute" / "1.wav").write_bytes(b"1")
    whole(tmp_path)

    def order(digest: str) -> Submission:
        return Submission(small_spec, "", {"data": str(tmp_path), "data_digest": digest})

    stop = threading.Event()
    reactions = watch_folder(Watch(str(tmp_path)), vertex, order, 0.1, stop)
    assert next(reactions).started
    writer = threading.Thread(target=_write_until, args=(tmp_path, stop))
    writer.start()
    assert next(reactions).started
    stop.set()
    writer.join()


def test_a_sweep_starts_what_could_not_be_started(vertex: Vertex, small_spec: dict[str, Any], tmp_path: Path) -> None:
    """There is no news: what was in the way is gone."""
    (tmp_path / "clips").mkdir()
    whole(tmp_path / "clips")
    (tmp_path / "clips" / "1.wav").write_bytes(b"1")

    def order(digest: str) -> Submission:
        if not (tmp_path / "open").exists():
            raise TwoPhaseError("in the way")
        return Submission(small_spec, "", {"data": str(tmp_path), "data_digest": digest})

    reactions = watch_folder(Watch(str(tmp_path / "clips")), vertex, order, 0.1, sweep_s=0.2)
    assert next(reactions).words == "in the way"
    (tmp_path / "open").touch()
    assert next(reactions).started


def _write_until(folder: Path, stop: threading.Event) -> None:
    """The watcher starts when it is asked for its next reaction: write until it has seen one."""
    while not stop.wait(0.5):
        whole(folder)


def test_names_of_jobs_are_ids_that_vertex_takes(vertex: Vertex, place: str, order: Order) -> None:
    job = react(Watch(place), vertex, order).job.rpartition("/")[2]
    assert len(job) <= 128
    assert job.startswith("two-phase-")
