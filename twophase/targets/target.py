"""A place where releases go: one name there, its versions, and who of them answers how much of the traffic.

The protocol is the same for every place, so are its rules:

- A release is registered once. Its version's number counts up where the place counts, and is the release's own id where
  it does not.
- A version goes live beside the others without any traffic, reproduces its golden windows through the place itself, and
  only then gets a share. Where it fails it is taken away again, and the traffic is what it was.
- Every call that changes something can be made again: what is done already is left as it is. A deployment that was cut
  off, however that happened, is finished by the next call, which replays the golden windows again. `rollback` is the
  exception: a second one goes forth again.
- What had all the traffic before stays deployed without any, so that going back moves traffic and nothing else.

A place implements the lower half (`version_of` to `delete`); the upper half is the same everywhere. Batch jobs are
apart (`twophase.targets.jobs`): a place that has none asks its endpoint instead.
"""

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from twophase.errors import TwoPhaseError, UsageError
from twophase.files import JSON
from twophase.release.golden import GOLDEN, PROBABILITY_TOLERANCE
from twophase.release.manifest import NONE, read, verify
from twophase.targets.requests import Limits, requests, wav
from twophase.targets.traffic import Live, before

SERVER_IMAGE = "twophase/server:0.1.0"


@dataclass(frozen=True)
class Status:
    """What there is under a name."""

    versions: dict[str, str] = field(default_factory=dict)
    """The release of every registered version, oldest first."""
    shares: dict[str, int] = field(default_factory=dict)
    """Per cent of the traffic of every version that is deployed."""
    history: list[Live] = field(default_factory=list)
    """Who was live when, oldest first."""
    mirrored: dict[str, int] = field(default_factory=dict)
    """Per cent of the traffic that is copied to a version, which answers nobody by it."""
    failure: str = ""
    """Why the endpoint does not answer, in the place's own words."""

    @property
    def live(self) -> str | None:
        """The version with the most traffic."""
        return max((v for v in self.shares if self.shares[v]), key=lambda v: self.shares[v], default=None)

    @property
    def serving(self) -> dict[str, int]:
        """The shares of those that have any."""
        return {version: share for version, share in self.shares.items() if share}

    @property
    def alone(self) -> str | None:
        """The version with all the traffic."""
        return next((v for v, share in self.shares.items() if share == 100), None)

    def to_json(self) -> JSON:
        """For machines."""
        history = [{"since": entry.since.isoformat(), "shares": entry.shares} for entry in self.history]
        return {
            "versions": self.versions,
            "shares": self.shares,
            "history": history,
            "mirrored": self.mirrored,
            "failure": self.failure,
        }


class Target(ABC):
    """One name at one place."""

    limits: ClassVar[Limits]
    """What the place lets through in one request."""
    names: ClassVar[str] = r"[a-z][a-z0-9-]{1,30}[a-z0-9]"
    """The names that SageMaker, Azure ML and Kubernetes all take."""

    def __init__(self, model: str) -> None:
        """Raises `UsageError` when `model` is no name here."""
        if not re.fullmatch(self.names, model):
            raise UsageError(f"{model!r}: is no name; 3 to 32 of a-z, 0-9 and - are, beginning with a letter")
        self.model = model

    def deploy(
        self,
        release: Path,
        percent: int = 100,
        mirror: bool = False,
        dry_run: bool = False,
        say: Callable[[str], None] = lambda words: None,
    ) -> str:
        """Register a release and give it `percent` of the traffic, the rest to who of the others has most; its version.

        With `mirror` it gets a copy of that share instead, where the place does that. `say` is told each step before
        it is taken; with `dry_run` nothing is changed. Raises `TwoPhaseError`, and has then put the traffic back as it
        was.
        """
        if not 0 < percent <= 100:
            raise UsageError(f"{percent}: is no share of the traffic; give 1 to 100 per cent")

        def do(words: str, call: Callable[[], Any]) -> Any:
            say(words)
            return None if dry_run else call()

        manifest = verify(release)
        if not dry_run:
            self.settle()
        found = self._status()
        version = self.version_of(manifest.id)
        others = {v: share for v, share in found.shares.items() if v != version}
        live = max(others, key=lambda v: others[v]) if any(others.values()) else None
        if live is not None and (percent < 100 or mirror):
            self.refuse_split(percent, mirror)
        if mirror and live is None:
            raise UsageError(f"{self.model}: has no other version whose traffic could be copied; deploy one first")
        if version is None:
            registered = do(f"register {manifest.id} as a version of {self.model}", lambda: self.register(release))
            version = str(registered or "new")
        shares = {version: 100} if percent == 100 or live is None else {live: 100 - percent, version: percent}
        new = version not in found.shares
        try:
            if new:
                say(f"deploy version {version} without traffic")
            if not dry_run:
                self.attach(version)  # waits for one that another process has begun to deploy
            do(f"replay the golden windows through version {version}", lambda: self.check(version, release))
            if mirror:
                do(f"copy {percent}% of the traffic to version {version}", lambda: self.mirror(version, percent))
            elif found.serving == shares:
                say(f"version {version} has {shares[version]}% of the traffic already")
            else:
                do(f"split the traffic: {words_of(shares)}", lambda: self.shift(shares))
        except BaseException:
            if not dry_run:
                self._take_back(found, version if new else None)
            raise
        if shares[version] == 100 and not mirror:
            self._tidy(version, found, do)
        return version

    def promote(self, version: str) -> None:
        """Give a registered version all traffic. Raises `TwoPhaseError` when there is no such version."""
        self.settle()
        found = self._status()
        if version not in found.versions:
            known = ", ".join(found.versions) or "none"
            raise UsageError(f"{version}: is no version of {self.model}; there are {known}")
        self.attach(version)
        if found.alone != version:
            self.shift({version: 100})
        self._tidy(version, found, lambda words, call: call())

    def rollback(self) -> str:
        """Give all traffic to the version that had it all before, which ends a canary too; that version.

        Raises `UsageError` when the history tells of none.
        """
        found = self._status()
        to = before(found.history, found.alone)
        if to is None:
            raise UsageError(f"{self.model}: its history has no version to go back to; promote one by its number")
        self.promote(to)
        return to

    def check(self, version: str, release: Path) -> None:
        """Ask a deployed version the golden questions of its release. Raises `TwoPhaseError` when it differs."""
        manifest = read(release)
        with np.load(release / GOLDEN, allow_pickle=False) as golden:
            windows, expected = golden["windows"], golden["classifier"]
        predictions = self.ask([wav(window) for window in windows], version)
        names = (*manifest.labels, NONE)
        try:
            got = np.array([[p["probabilities"][name] for name in names] for p in predictions])
        except (KeyError, TypeError):
            raise TwoPhaseError(f"{self.model}: version {version} answers {str(predictions)[:200]}") from None
        off = float(np.abs(got - expected).max()) if got.shape == expected.shape else float("inf")
        if not off <= PROBABILITY_TOLERANCE:  # so that NaN is refused too
            raise TwoPhaseError(
                f"{self.model}: version {version} does not answer as {manifest.id} did when it was exported: off by "
                f"{off:.4g}, at most {PROBABILITY_TOLERANCE:g} is accepted; the live version was left as it was"
            )

    def predict(self, clips: Sequence[Path]) -> list[JSON]:
        """One prediction a clip, in order, in as few requests as the place's limits allow. Raises `TwoPhaseError`."""
        return [prediction for group in requests(clips, self.limits) for prediction in self.ask(group)]

    def front_end(self) -> str:
        """The fingerprint of the live version's front end. Raises `UsageError` when no version is live."""
        return self.front_end_of(self._live())

    def settle(self) -> None:  # noqa: B027  most places take one change after another by themselves
        """Wait for a change that was begun before and cut off, where the place takes none meanwhile."""

    def refuse_split(self, percent: int, mirror: bool) -> None:
        """Raise `UsageError` where a newcomer cannot have a share of the traffic, or a copy of it."""
        if mirror:
            raise UsageError(f"{self.model}: only azureml copies traffic; leave --mirror away for a canary")

    def mirror(self, version: str, percent: int) -> None:
        """Copy a share of the traffic to a deployed version that has none."""
        raise NotImplementedError

    @abstractmethod
    def batch(self, clips: Sequence[Path], output: Path, say: Callable[[str], None] = lambda words: None) -> int:
        """Ask about clips in bulk; `output` gets one line a clip, in order. How many were not answered.

        A line is `{"clip": path, "label": ..., "confidence": ..., ...}` or `{"clip": path, "error": ...}`.
        """

    @abstractmethod
    def version_of(self, release_id: str) -> str | None:
        """The version that a release is registered as."""

    @abstractmethod
    def front_end_of(self, version: str) -> str:
        """The fingerprint of a registered version's front end; empty where it was registered by other means."""

    @abstractmethod
    def register(self, release: Path) -> str:
        """Upload a release as the next version."""

    @abstractmethod
    def attach(self, version: str) -> None:
        """Deploy a version beside the others, without traffic where there are others; it answers when this returns.

        Nothing where it is deployed already, but to wait for it.
        """

    @abstractmethod
    def detach(self, version: str) -> None:
        """Take a version that has no traffic away; nothing where it is not there."""

    @abstractmethod
    def shift(self, shares: Mapping[str, int]) -> None:
        """Split the traffic by per cent over deployed versions, and add that to the history."""

    @abstractmethod
    def ask(self, clips: list[bytes], version: str = "") -> list[JSON]:
        """Ask about clips within the limits in one request, of one version or of who the traffic goes to."""

    @abstractmethod
    def status(self) -> Status:
        """What there is under the name; empty where there is nothing."""

    @abstractmethod
    def delete(self) -> None:
        """Remove everything under the name: endpoint, versions, what was uploaded."""

    def _status(self) -> Status:
        found = self.status()
        if found.failure:
            raise TwoPhaseError(
                f"{self.model}: its endpoint is in a failed state ({found.failure}); nothing was changed; mend it "
                "where it runs, or remove it with `twophase destroy` and deploy again"
            )
        return found

    def _live(self) -> str:
        live = self._status().live
        if live is None:
            raise UsageError(f"{self.model}: has no live version; deploy one first")
        return live

    def _take_back(self, found: Status, new: str | None) -> None:
        """Put the traffic back and take a newcomer away, as far as that goes: the reason why is already on its way."""
        was = found.serving
        with suppress(TwoPhaseError):
            if was and self.status().serving != was:
                self.shift(was)
        with suppress(TwoPhaseError):
            if new is not None:
                self.detach(new)

    def _tidy(self, live: str, found: Status, do: Callable[[str, Callable[[], Any]], Any]) -> None:
        """Take away what is older than the version before the live one."""
        previous = found.alone if found.alone not in (None, live) else before(found.history, live)
        for old in [version for version in found.shares if version not in (live, previous)]:
            do(f"take version {old} away, which has no traffic any more", partial(self.detach, old))


def words_of(shares: Mapping[str, int]) -> str:
    """Shares of the traffic as a person writes them."""
    return ", ".join(f"version {version} {share}%" for version, share in shares.items())
