"""A batch prediction job, asked for and waited for through the official SDK; here and in Google's cloud the same."""

from dataclasses import asdict, dataclass
from typing import Any

from twophase.errors import TwoPhaseError
from twophase.targets.google_errors import in_words
from twophase.targets.traffic import MACHINE
from twophase.targets.vertex_sdk import Registry


@dataclass(frozen=True)
class Batch:
    """A job that has ended well: where its answers are, and how many instances were answered or not."""

    job: str
    output: str
    good: int
    bad: int

    def to_json(self) -> dict[str, Any]:
        """As the pipeline's log says it."""
        return asdict(self)


def predict_batch(
    source: str, destination: str, project: str, region: str, api_endpoint: str, model: str, machine: str = MACHINE
) -> Batch:
    """Ask the default version of `model` about the JSON lines at `source`; answers go below `destination`.

    Raises `TwoPhaseError` when there is no such model, the job fails, or Google refuses or does not answer.
    """
    from google.cloud import aiplatform

    with in_words(Registry(project, region, api_endpoint).address):  # which points the SDK there
        found = aiplatform.Model.list(filter=f'display_name="{model}"')
        if not found:
            raise TwoPhaseError(f"{model}: there is no such model in {project}/{region}; run the pipeline first")
        try:
            job = aiplatform.BatchPredictionJob.create(
                job_display_name=f"{model}-batch",
                model_name=found[0].resource_name,
                instances_format="jsonl",
                predictions_format="jsonl",
                gcs_source=source,
                gcs_destination_prefix=destination,
                machine_type=machine,
                sync=True,
            )
        except (RuntimeError, ValueError) as error:
            raise TwoPhaseError(f"{source}: the batch job did not end well: {error}") from error
        counts = job.completion_stats
    return Batch(
        job.resource_name,
        job.output_info.gcs_output_directory,
        int(counts.successful_count) if counts else 0,
        int(counts.failed_count) if counts else 0,
    )
