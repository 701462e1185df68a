"""Our server on loopback, in a thread of the test."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import uvicorn

from twophase.serving.server import listening, options


@contextmanager
def serving(app: Any) -> Iterator[httpx.Client]:
    """An ASGI program behind real HTTP."""
    program = uvicorn.Server(uvicorn.Config(app, **options()))
    with listening("127.0.0.1", 0) as bound:
        thread = threading.Thread(target=program.run, kwargs={"sockets": [bound]}, daemon=True)
        thread.start()
        bound.listen()  # a client that comes early waits in the backlog
        with httpx.Client(base_url=f"http://127.0.0.1:{bound.getsockname()[1]}", timeout=60) as client:
            yield client
        program.should_exit = True
        thread.join(timeout=10)
