"""The traffic of an endpoint, put back to what somebody meant it to be.

Every meant change is told by the endpoint's own labels (`twophase.targets.traffic`). A canary that Google's component
has deployed, and that the run behind it never came to ask, is not.
"""

from collections.abc import Iterator


def put_back(project: str, region: str, api_endpoint: str, model: str) -> Iterator[tuple[str, dict[str, int]]]:
    """Undo what is not told of; yield each endpoint that was changed, with its per cent by version."""
    from google.cloud import aiplatform

    from twophase.targets.google_errors import in_words
    from twophase.targets.traffic import history
    from twophase.targets.vertex_sdk import Registry

    registry = Registry(project, region, api_endpoint)  # points the SDK at the address
    with in_words(registry.address):
        for endpoint in aiplatform.Endpoint.list(filter=f'display_name="{model}"'):
            told, deployed, now = history(endpoint.labels), endpoint.list_models(), endpoint.traffic_split
            if not told:
                continue
            split = {d.id: told[-1].shares.get(d.model_version_id, 0) for d in deployed}
            untold = [d.id for d in deployed if now.get(d.id) and not split[d.id]]
            if untold and sum(split.values()) == 100:
                endpoint.update(traffic_split=split)
                for name in untold:
                    endpoint.undeploy(name)
                yield endpoint.resource_name, told[-1].shares
