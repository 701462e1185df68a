"""The functions that a cloud calls when there is new data, for functions-framework; what they do is news.py's.

    on_new_data   a CloudEvent of a storage: Google's through Eventarc, Azure's, or S3's through EventBridge
    on_time       an HTTP call: a task that `on_new_data` put off, or the schedule's sweep

News often comes in bursts. Where a queue is named, `on_new_data` puts a task off to the end of the present stretch of
`TWOPHASE_QUIET_S` seconds instead of reacting; the task is named after that stretch, so a burst makes one. No function
sleeps. An exception makes the cloud deliver the event again, which is harmless.

Settings come from the environment (infra/ sets them):
TWOPHASE_DATA, TWOPHASE_BUCKET, TWOPHASE_IMAGE, TWOPHASE_PROJECT, TWOPHASE_REGION; and maybe TWOPHASE_SERVICE_ACCOUNT,
TWOPHASE_NEW_CLIPS, TWOPHASE_RUNS_A_DAY, TWOPHASE_API_ENDPOINT, TWOPHASE_QUEUE with TWOPHASE_TASK_URL and
TWOPHASE_TASK_ACCOUNT, TWOPHASE_QUIET_S.
"""

import json
import logging
import os
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import functions_framework

from pipelines.clients import Vertex
from pipelines.credentials import authorization
from pipelines.news import Reaction, Watch, is_news, react
from pipelines.places import Machines
from pipelines.submission import Submission, for_vertex
from twophase.errors import TwoPhaseError, UsageError
from twophase.files import digest

if TYPE_CHECKING:
    from cloudevents.http import CloudEvent

_log = logging.getLogger(__name__)


@functions_framework.cloud_event
def on_new_data(event: "CloudEvent") -> None:
    """React to an event of a storage, or put it off where news is gathered. What is no news is passed over."""
    watch, jobs, order = from_environment()
    try:
        location = location_of(event)
    except UsageError as error:  # it would be no other if it were delivered again
        _log.error("%s", error)
        return
    if not is_news(watch, location):
        _log.info("%s: is no news", location)
    elif queue := os.environ.get("TWOPHASE_QUEUE"):
        put_off(queue, watch.place, _number("QUIET_S", 300))
    else:
        _say(react(watch, jobs, order))


@functions_framework.http
def on_time(request: Any) -> dict[str, Any]:
    """React to what lies there now: a task that was put off, or a sweep."""
    return _say(react(*from_environment()))


def location_of(event: "CloudEvent") -> str:
    """The object that an event is about: Google's and Azure's storage events, or S3's through EventBridge, as URLs."""
    kind, data = event["type"], event.data or {}
    if isinstance(data, bytes):
        data = json.loads(data)
    try:
        if kind == "google.cloud.storage.object.v1.finalized":
            return f"gs://{data['bucket']}/{data['name']}"
        if kind == "Microsoft.Storage.BlobCreated":
            _, container, path = data["url"].removeprefix("https://").split("/", 2)
            return f"az://{container}/{path}"
        if kind in ("aws.s3.object_created", "Object Created"):
            return f"s3://{data['bucket']['name']}/{data['object']['key']}"
    except (KeyError, ValueError, TypeError) as error:
        raise UsageError(f"{kind}: this event lacks {error}; send it as the cloud sends it") from None
    raise UsageError(
        f"{kind}: is no event of new data; google.cloud.storage.object.v1.finalized, Microsoft.Storage.BlobCreated and "
        "S3's Object Created are"
    )


def put_off(queue: str, place: str, quiet_s: int, now: Callable[[], float] = time.time) -> str:
    """Have Cloud Tasks call `on_time` at the end of this stretch of time; return the task's name.

    `queue` is `projects/P/locations/R/queues/Q`. Raises `TwoPhaseError`: the news is then to be delivered again.
    """
    import httpx

    stretch = int(now() // quiet_s)
    name = f"{queue}/tasks/{digest(place.encode())[:16]}-{stretch}"
    at = datetime.fromtimestamp((stretch + 1) * quiet_s, UTC).isoformat()
    call = {
        "url": _setting("TASK_URL"),
        "httpMethod": "POST",
        "oidcToken": {"serviceAccountEmail": _setting("TASK_ACCOUNT")},
    }
    address = os.environ.get("TWOPHASE_TASKS_ENDPOINT", "https://cloudtasks.googleapis.com")
    headers = authorization() if address.startswith("https://") else {}
    body = {"task": {"name": name, "scheduleTime": at, "httpRequest": call}}
    try:
        answer = httpx.post(f"{address}/v2/{queue}/tasks", json=body, headers=headers)
    except httpx.TransportError as error:
        raise TwoPhaseError(f"{address}: does not answer ({error}); the event is to be delivered again") from None
    if answer.status_code != 409 and not answer.is_success:  # 409: this stretch has its task already
        raise TwoPhaseError(f"{queue}: refused a task with {answer.status_code}: {answer.text[:200]}")
    return name


def from_environment() -> tuple[Watch, Vertex, Callable[[str], Submission]]:
    """The watch, the address and the order that a function's settings describe (infra/ sets them)."""
    place, bucket, image = _setting("DATA"), _setting("BUCKET"), _setting("IMAGE")
    project, region = _setting("PROJECT"), _setting("REGION")
    watch = Watch(
        place,
        own=(f"{bucket.rstrip('/')}/two-phase",),
        new_clips=_number("NEW_CLIPS", 0),
        runs_a_day=_number("RUNS_A_DAY", 4),
    )
    machines = Machines(service_account=_setting("SERVICE_ACCOUNT", ""))

    def order(digest: str) -> Submission:
        return for_vertex({"data": place, "data_digest": digest}, bucket, image, project, region, machines)

    return watch, Vertex(project, region, _setting("API_ENDPOINT", "")), order


def _setting(name: str, default: str | None = None) -> str:
    found = os.environ.get(f"TWOPHASE_{name}", default)
    if found is None:
        raise UsageError(f"TWOPHASE_{name}: is not set; infra/trigger.tf says what the functions are told")
    return found


def _number(name: str, default: int) -> int:
    text = _setting(name, str(default))
    if not text.isdecimal():
        raise UsageError(f"TWOPHASE_{name}={text}: is no whole number")
    return int(text)


def _say(found: Reaction) -> dict[str, Any]:
    said = {"job": found.job, "started": found.started, "words": found.words}
    _log.info(json.dumps(said))
    return said
