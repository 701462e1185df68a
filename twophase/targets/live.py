"""What is live under a name, as Google's pipeline components want it: resource names, and a canary's traffic."""

from dataclasses import dataclass, field

from twophase.targets.google_errors import in_words
from twophase.targets.traffic import CANARY_PERCENT
from twophase.targets.vertex_sdk import Registry


@dataclass(frozen=True)
class Live:
    """Empty names where there is nothing yet."""

    parent: str = ""
    """The model that holds the versions: `projects/.../models/ID`."""
    endpoint: str = ""
    """The endpoint that serves it: `projects/.../endpoints/ID`."""
    traffic: dict[str, int] = field(default_factory=dict)
    """Percent of the requests by deployed model id."""

    def with_canary(self) -> dict[str, int]:
        """The traffic with a newcomer, which Vertex AI's API calls `0`: everything, or a share beside the live one."""
        live = max(self.traffic, key=lambda name: self.traffic[name], default=None)
        if live is None or not self.traffic[live]:
            return {"0": 100}
        return {"0": CANARY_PERCENT, live: 100 - CANARY_PERCENT}


def whats_live(project: str, region: str, api_endpoint: str, model: str) -> Live:
    """What there is under the display name `model`. Raises `TwoPhaseError` when the address cannot be asked."""
    from google.cloud import aiplatform

    registry = Registry(project, region, api_endpoint)  # points the SDK at the address
    named = f'display_name="{model}"'
    with in_words(registry.address):
        models, endpoints = aiplatform.Model.list(filter=named), aiplatform.Endpoint.list(filter=named)
    return Live(
        models[0].resource_name.split("@")[0] if models else "",
        endpoints[0].resource_name if endpoints else "",
        {name: int(share) for name, share in (endpoints[0].traffic_split or {}).items()} if endpoints else {},
    )
