"""How the gateway says no: a `Refusal` with the headers that tell a device what to do about it."""

import random

from twophase.serving.refusal import Refusal

SPREAD_S = 30
"""Devices that are told to come back later are spread over this long."""


class Refused(Refusal):
    """A request that is not answered, and the headers that go with that."""

    def __init__(self, code: int, message: str, status: str | None = None, **headers: str) -> None:
        """`headers` are written with underscores: `Retry_After`."""
        super().__init__(code, message, status)
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}


def later(code: int, message: str, after_s: float = 1.0) -> Refused:
    """Come back in `after_s` seconds or a little more: each device a little more of its own."""
    return Refused(code, message, Retry_After=str(round(after_s + random.uniform(0, SPREAD_S))))
