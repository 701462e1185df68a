"""What answers now: which releases are in memory, and which of them each endpoint sends a request to.

Written by the control thread, read by the event loop: a route is built whole and takes the old one's place in one
assignment, so a request meets the old or the new and never a gap. Releases are loaded before they are routed to and
let go only after, and one release in many places is loaded once.
"""

import logging
import random
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Protocol

from twophase.errors import TwoPhaseError
from twophase.local.artifacts import Artifacts, is_release
from twophase.local.resources import failed, missing
from twophase.local.saved_model import SavedModel
from twophase.serving.predictor import Predictor
from twophase.serving.refusal import Refusal

_log = logging.getLogger(__name__)


class Answers(Protocol):
    """A version in memory: a release's `Predictor`, or a `SavedModel` in a process of its own."""

    async def answer(self, body: bytes, content_type: bytes = ...) -> list[Any]:
        """The predictions that a request's body asks for. Raises `Refusal`."""


@dataclass(frozen=True)
class Target:
    """A deployed model as the data plane sees it."""

    deployed_model_id: str
    artifact: str
    model: str
    version: str
    display_name: str


@dataclass(frozen=True)
class _Route:
    targets: tuple[tuple[Target, Answers | None], ...]
    """Those with traffic; no predictor where an artifact was damaged while the platform was down."""
    weights: tuple[int, ...]
    """Running sums of their shares in per cent."""
    artifacts: frozenset[str]
    """What has to stay in memory: also that of targets without traffic, which may get some at any time."""


class Live:
    """Loaded releases and the endpoints that lead to them."""

    def __init__(self, artifacts: Artifacts) -> None:
        self._artifacts = artifacts
        self._predictors: dict[str, Answers] = {}
        self._routes: dict[str, _Route] = {}

    def load(self, artifact: str) -> None:
        """Bring an artifact into memory: verified, and its golden windows reproduced. Raises `Refusal`."""
        if artifact in self._predictors:
            return
        kind = Predictor if is_release(artifact) else SavedModel
        try:
            self._predictors[artifact] = kind(self._artifacts.path(artifact))
        except TwoPhaseError as error:
            raise failed(str(error)) from None

    def restore(self, artifact: str, name: str) -> None:
        """`load` after a restart: what does not load is logged, and its requests are refused."""
        try:
            self.load(artifact)
        except Refusal as refusal:
            _log.error("%s: does not answer: %s", name, refusal)

    def route(self, endpoint: str, targets: list[Target], split: dict[str, int]) -> None:
        """Send an endpoint's requests to `targets` by per cent from now on, and let go of what nothing uses."""
        weighted = [(t, self._predictors.get(t.artifact)) for t in targets if split.get(t.deployed_model_id)]
        weights = tuple(accumulate(split[t.deployed_model_id] for t, _ in weighted))
        self._routes[endpoint] = _Route(tuple(weighted), weights, frozenset(t.artifact for t in targets))
        self.let_go()

    def forget(self, endpoint: str) -> None:
        """An endpoint that is no more."""
        self._routes.pop(endpoint, None)
        self.let_go()

    def choose(self, endpoint: str) -> tuple[Target, Answers]:
        """Who answers the next request. Raises `Refusal` 404, or 400 when nothing is deployed there."""
        route = self._routes.get(endpoint)
        if route is None:
            raise missing(endpoint)
        if not route.weights:
            raise failed(f"{endpoint}: no deployed model has traffic there; deploy one with a traffic split")
        ((target, predictor),) = random.choices(route.targets, cum_weights=route.weights)
        if predictor is None:
            raise Refusal(503, f"{target.model}@{target.version}: its artifact could not be loaded; deploy it again")
        return target, predictor

    def let_go(self) -> None:
        """Free the releases that no endpoint leads to."""
        used = frozenset[str]().union(*(route.artifacts for route in self._routes.values()))
        for artifact in self._predictors.keys() - used:
            del self._predictors[artifact]
