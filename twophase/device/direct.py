"""For development: clips straight to an endpoint, without a gateway.

What a gateway is for is not there: no identity, no resuming, no batch jobs, no audit figures, no updates, and answers
that were not fetched when the program ends are asked for again. The endpoint is asked as it is: one that wants
credentials is for a gateway to ask. The spool and the uplink above it are the same, and see no difference.
"""

import json
import threading
from base64 import b64encode
from urllib.parse import urlsplit

from twophase.device.identity import SCHEME
from twophase.device.link import Link
from twophase.files import JSON


class Direct:
    """What `Client` is to a gateway, to an endpoint. Several threads may share one: they ask in turn."""

    def __init__(self, address: str) -> None:
        """`address`: `direct+http://127.0.0.1:8080/v1/models/NAME:predict`, or any such URL. Raises `UsageError`."""
        url = address.removeprefix(SCHEME)
        self._link, self._path, self._mutex = Link(url), urlsplit(url).path, threading.Lock()
        self._answers: dict[int, JSON] = {}

    def announce(self, clips: list[JSON]) -> list[JSON]:
        """Every clip is to be sent, but those whose answer waits."""
        return [
            {"sequence": n, "state": "answered"} if n in self._answers else {"state": "receiving", "offset": 0}
            for n in (clip["sequence"] for clip in clips)
        ]

    def upload(self, sequence: int, data: bytes, offset: int) -> JSON:
        """Ask the endpoint about a clip. Raises `Away`, or `Refused`."""
        body = {"instances": [{"audio_bytes": {"b64": b64encode(data).decode()}}]}
        with self._mutex:
            headers = {"Content-Type": "application/json"}
            answer = self._link.exchange("POST", self._path, json.dumps(body).encode(), headers)
        try:
            value = json.loads(answer.body)
        except ValueError:
            value = None
        if answer.code != 200 or not isinstance(value, dict) or not value.get("predictions"):
            raise self._link.failure(answer, value)
        self._answers[sequence] = {"sequence": sequence, "prediction": value["predictions"][0]}
        return {"sequence": sequence, "state": "answered"}

    def answers(self, wait_s: int) -> list[JSON]:
        """What was answered and not acknowledged."""
        return sorted(self._answers.values(), key=lambda answer: int(answer["sequence"]))

    def acknowledge(self, sequences: list[int]) -> None:
        """These need not be remembered."""
        for sequence in sequences:
            self._answers.pop(sequence, None)

    def report(self, status: JSON) -> JSON:
        """Nobody wants to know."""
        return {}
