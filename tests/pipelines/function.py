"""The trigger's function as functions-framework loads it, with a small pipeline for the one that takes minutes."""

import json
import os

from pipelines import trigger
from pipelines.clients import Vertex
from pipelines.news import Watch
from pipelines.submission import Submission

_told = json.loads(os.environ["TEST_TRIGGER"])


def _order(digest: str) -> Submission:
    return Submission(_told["spec"], "", {"data": _told["place"], "data_digest": digest, "fail": _told["fail"]})


trigger.from_environment = lambda: (
    Watch(_told["place"], own=(f"{_told['place']}/runs",)),
    Vertex("local", "us-central1", _told["address"]),
    _order,
)
on_new_data = trigger.on_new_data
on_time = trigger.on_time
