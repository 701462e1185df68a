"""Who answers at an endpoint and who did: canaries, promotion, rollback and history, by Vertex AI's API alone.

A change of traffic is one PATCH of the endpoint, and the same PATCH adds a label that tells of it:

    live-20261122t215030123456   3-100         version 3 has all traffic since then (UTC, with microseconds)
    live-20261123t081500000000   3-90_4-10     version 4 has a tenth of it

So traffic and history never disagree, on Google's cloud as on this machine. The alias `default` follows the version
that gets all traffic: a release moves as the pair that it is, gate and classifier. What had the traffic before stays
deployed without any, so that going back is one PATCH too; what is older is undeployed. Whatever cuts a change off, the
same call again finishes it.
"""

import itertools
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from twophase.errors import UsageError
from twophase.files import JSON
from twophase.targets.rest import Vertex

MACHINE = "n1-standard-2"
"""What a deployed version runs on; means nothing on this machine."""
CANARY_PERCENT = 10
"""What a newcomer gets before its golden windows are replayed: an endpoint cannot be asked for one of its versions."""
TRIES = 300
"""Requests until it must have answered; at a tenth of the traffic that is missed once in 10^13 deployments."""
KEPT = 48
"""Labels up to which the history grows, others' included: Google takes 64 a resource, AWS and Azure 50."""

_KEY, _TIME = "live-", "%Y%m%dt%H%M%S%f"


@dataclass(frozen=True)
class Live:
    """How traffic was split from a moment on."""

    since: datetime
    shares: dict[str, int]
    """Per cent by version; those without traffic are left out."""

    @property
    def alone(self) -> str | None:
        """The version that has all the traffic, if one has."""
        return next((version for version, share in self.shares.items() if share == 100), None)


def history(labels: Mapping[str, str]) -> list[Live]:
    """What an endpoint's labels tell of its traffic, oldest first."""
    found = []
    for key, value in sorted(labels.items()):
        if re.fullmatch(rf"{_KEY}\d{{8}}t\d{{12}}", key):
            since = datetime.strptime(key.removeprefix(_KEY), _TIME).replace(tzinfo=UTC)
            pairs = re.findall(r"(\d+)-(\d+)", value)
            found.append(Live(since, {version: int(share) for version, share in pairs}))
    return found


def recorded(labels: Mapping[str, str], *states: Mapping[str, int]) -> dict[str, str]:
    """An endpoint's labels once its traffic goes through `states`, each per cent by version.

    A state that is the last one already adds nothing; the oldest entries give way, also to labels of others. Times
    only grow, whatever the clock does.
    """
    entries = history(labels)
    for state in states:
        shares = {version: share for version, share in state.items() if share}
        if shares and (not entries or entries[-1].shares != shares):
            earliest = entries[-1].since + timedelta(microseconds=1) if entries else datetime.min.replace(tzinfo=UTC)
            entries.append(Live(max(datetime.now(UTC), earliest), shares))
    others = {key: value for key, value in labels.items() if not key.startswith(_KEY)}
    return others | {
        _KEY + entry.since.strftime(_TIME): "_".join(f"{version}-{share}" for version, share in entry.shares.items())
        for entry in entries[-max(2, KEPT - len(others)) :]
    }


def before(entries: list[Live], now: str | None) -> str | None:
    """The last version but `now` that had all the traffic."""
    return next((entry.alone for entry in reversed(entries) if entry.alone not in (None, now)), None)


class Traffic:
    """The endpoint that bears a model's name, and which of the model's versions answer there."""

    def __init__(self, vertex: Vertex, model: str) -> None:
        """Raises `TwoPhaseError` when there is no such model."""
        self._vertex, self._display_name = vertex, model
        self.model = vertex.model(model)["name"].partition("@")[0]

    def shares(self) -> dict[str, int]:
        """Per cent of the traffic by version, of every version that is deployed."""
        return _shares(self._vertex.endpoint(self._display_name))

    def history(self) -> list[Live]:
        """Who was live when, oldest first."""
        return history(self._vertex.endpoint(self._display_name).get("labels", {}))

    def promote(self, version: str) -> None:
        """Give a version, by number, alias or release, all traffic, and the alias `default` with it."""
        self.split({version: 100})

    def rollback(self) -> str:
        """Give all traffic to the version that had it all before, which ends a canary too; that version.

        Raises `UsageError` when the history tells of none.
        """
        now = Live(datetime.now(UTC), self.shares()).alone
        to = before(self.history(), now)
        if to is None:
            raise UsageError(
                f"{self._display_name}: its history has no version to go back to; "
                f"`twophase versions promote {self._display_name} VERSION` moves all traffic"
            )
        self.promote(to)
        return to

    def attach(self, version: str) -> None:
        """Deploy a version, by number, alias or release, beside the others, without traffic."""
        self._deploy(self._vertex.endpoint(self._display_name), self._vertex.version(self.model, version))

    def split(self, wanted: Mapping[str, int]) -> None:
        """Split the traffic by per cent over versions, each by number, alias or release; deploy those that are not."""
        if sum(wanted.values()) != 100 or min(wanted.values()) < 0:
            raise UsageError(f"{_words(wanted)}: sums to {sum(wanted.values())}; shares are per cent and sum to 100")
        versions = {name: self._vertex.version(self.model, name) for name in wanted}
        shares = {versions[name]["versionId"]: share for name, share in wanted.items() if share}
        endpoint = self._vertex.find("endpoints", self._display_name) or self._create()
        for version in versions.values():
            if version["versionId"] not in _ids(endpoint):
                endpoint = self._deploy(endpoint, version)
        found = {version: share for version, share in _shares(endpoint).items() if share}
        ids = _ids(endpoint)
        split = {ids[version]: share for version, share in shares.items()}
        if {d: int(share) for d, share in endpoint.get("trafficSplit", {}).items() if int(share)} != split:
            patch = {
                "trafficSplit": split,
                "labels": recorded(endpoint.get("labels", {}), found, shares),
                "etag": endpoint.get("etag", ""),
            }
            endpoint = self._vertex.patch(endpoint["name"], patch, updateMask="trafficSplit,labels")
        if len(shares) == 1:
            self._settle(endpoint, *shares)

    def _settle(self, endpoint: JSON, live: str) -> None:
        """What follows once one version has all traffic."""
        self._vertex.post(f"{self.model}@{live}:mergeVersionAliases", {"versionAliases": ["default"]})
        ids = _ids(endpoint)
        kept = {ids[live], ids.get(before(history(endpoint.get("labels", {})), live) or "")}
        for identity in [d["id"] for d in endpoint["deployedModels"]]:
            if identity not in kept:  # older, or deployed twice by a command that was cut off and given again
                self._vertex.done(f"{endpoint['name']}:undeployModel", {"deployedModelId": identity})

    def _create(self) -> JSON:
        made = self._vertex.done(f"{self._vertex.parent}/endpoints", {"displayName": self._display_name})
        return self._vertex.get(made["name"])

    def _deploy(self, endpoint: JSON, version: JSON) -> JSON:
        """Deploy a version beside the others, without traffic; the endpoint as it is then."""
        deployed = {
            "model": f"{self.model}@{version['versionId']}",
            "displayName": version.get("labels", {}).get("release", f"version-{version['versionId']}"),
            "dedicatedResources": {
                "machineSpec": {"machineType": MACHINE},
                "minReplicaCount": 1,
                "maxReplicaCount": 1,
            },
        }
        self._vertex.done(f"{endpoint['name']}:deployModel", {"deployedModel": deployed})
        return self._vertex.get(endpoint["name"])


def _ids(endpoint: JSON) -> dict[str, str]:
    """Deployed model by version; of several of one version the one with most traffic."""
    split = endpoint.get("trafficSplit", {})
    deployed = sorted(endpoint.get("deployedModels", []), key=lambda d: int(split.get(d["id"], 0)))
    return {d["modelVersionId"]: d["id"] for d in deployed}


def _shares(endpoint: JSON) -> dict[str, int]:
    split = endpoint.get("trafficSplit", {})
    deployed = sorted(endpoint.get("deployedModels", []), key=lambda d: int(d["modelVersionId"]))
    by_version = itertools.groupby(deployed, key=lambda d: str(d["modelVersionId"]))
    return {version: sum(int(split.get(d["id"], 0)) for d in group) for version, group in by_version}


def _words(shares: Mapping[str, int]) -> str:
    return " ".join(f"{version}={share}" for version, share in shares.items())
