"""The pipeline that asks the registered pair about many clips at once: JSON lines in, JSON lines out.

Each line of `source` is an instance as the endpoint takes them: `{"audio_bytes": {"b64": "..."}}`.
"""

from typing import Any

from kfp import dsl

from pipelines.places import Place
from twophase.targets.traffic import MACHINE


def batch_prediction(place: Place) -> Any:
    """The pipeline as `place` runs it."""

    @dsl.pipeline(name="batch-prediction", description="Many clips, asked about at once.")
    def pipeline(
        source: str,
        destination: str,
        api_endpoint: str = "",
        project: str = "local",
        region: str = "us-central1",
        model: str = "two-phase",
        machine_type: str = MACHINE,
    ) -> None:
        """`source` is `gs://BUCKET/FILE.jsonl`, `destination` `gs://BUCKET/PREFIX`."""
        named = {"project": project, "region": region, "api_endpoint": api_endpoint, "model": model}
        with place.guard(named):
            place.predict(source, destination, named, machine_type)

    return pipeline
