"""Taking down what a pipeline made under a name: what costs money or answers, in the order in which it can go.

Schedules first, so that nothing comes back; then the endpoint with what is deployed to it; then the model with its
versions. A takedown that was cut off is finished by the next. Buckets, images and past runs are kept.
"""

import contextlib
from typing import Any

from pipelines.refusals import in_words


class Takedown:
    """What there is of a model in a project and region."""

    def __init__(self, project: str, region: str, api_endpoint: str, model: str) -> None:
        """`api_endpoint` is an address such as `http://127.0.0.1:8470`, or empty for Google's own."""
        from twophase.targets.vertex import Registry

        self.address = Registry(project, region, api_endpoint).address  # points the SDK at the address
        self._local, self._model = bool(api_endpoint), model

    def find(self) -> list[tuple[str, str]]:
        """What would be deleted: kinds and resource names."""
        with in_words(self.address, self._model):
            return [(kind, item.resource_name) for kind, item in self._doomed()]

    def delete(self) -> None:
        """Delete it. Raises `TwoPhaseError` naming what could not be deleted."""
        from google.api_core.exceptions import NotFound

        with in_words(self.address, self._model):
            doomed = self._doomed()
        for kind, item in doomed:
            with in_words(self.address, item.resource_name), contextlib.suppress(NotFound):
                item.delete(force=True) if kind == "endpoint" else item.delete()

    def _doomed(self) -> list[tuple[str, Any]]:
        from google.cloud import aiplatform

        named = f'display_name="{self._model}"'
        schedules = [] if self._local else aiplatform.PipelineJobSchedule.list(filter=named)
        return [
            *(("schedule", item) for item in schedules),
            *(("endpoint", item) for item in aiplatform.Endpoint.list(filter=named)),
            *(("model", item) for item in aiplatform.Model.list(filter=named)),
        ]
