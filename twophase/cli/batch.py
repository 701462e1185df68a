"""`twophase batch ...`: batch prediction jobs of Vertex AI, or of the platform on this machine."""

from typing import Annotated

import typer

from twophase.cli.options import (
    LOCAL,
    US,
    ApiEndpoint,
    AsJson,
    Home,
    Project,
    Region,
    connect,
    one_of,
    print_json,
    print_table,
)

app = typer.Typer(name="batch", no_args_is_help=True, help="Batch prediction jobs.")

Job = Annotated[str, typer.Argument(help="A job's id, or its whole name.")]

_COLUMNS = {
    "job": "name",
    "state": "state",
    "answered": "completionStats.successfulCount",
    "refused": "completionStats.failedCount",
    "to do": "completionStats.incompleteCount",
    "output": "outputInfo.gcsOutputDirectory",
    "error": "error.message",
}


@app.command("submit")
def batch_submit(
    model: Annotated[str, typer.Argument(help="Name of the model.")],
    sources: Annotated[
        list[str], typer.Argument(help="gs://BUCKET/FILE, or a prefix that ends in *.", metavar="SOURCE...")
    ],
    to: Annotated[str, typer.Option(help="Where results go: gs://BUCKET/PREFIX.")],
    input_format: Annotated[
        str, typer.Option("--format", help="jsonl (an instance a line), or file-list (a clip's gs:// name a line).")
    ] = "jsonl",
    key_field: Annotated[str, typer.Option(help="A field of the instances that results are told apart by.")] = "",
    version: Annotated[str, typer.Option(help="A version by its number, an alias, or its release.")] = "default",
    project: Project = LOCAL,
    region: Region = US,
    api_endpoint: ApiEndpoint = "",
    home: Home = None,
    as_json: AsJson = False,
) -> None:
    """Have a model answer files of instances, and return at once with the job's name."""
    from twophase.targets.traffic import MACHINE

    one_of("--format", input_format, ("jsonl", "file-list"))
    vertex = connect(project, region, api_endpoint, home)
    name = vertex.model(model)["name"].partition("@")[0]
    job = {
        "displayName": model,
        "model": f"{name}@{vertex.version(name, version)['versionId']}",
        "inputConfig": {"instancesFormat": input_format, "gcsSource": {"uris": sources}},
        "outputConfig": {"predictionsFormat": "jsonl", "gcsDestination": {"outputUriPrefix": to}},
        "instanceConfig": {"keyField": key_field} if key_field else {},
        "dedicatedResources": {
            "machineSpec": {"machineType": MACHINE},
            "startingReplicaCount": 1,
            "maxReplicaCount": 1,
        },
    }
    made = vertex.post(f"{vertex.parent}/batchPredictionJobs", job)
    print_json(made) if as_json else typer.echo(made["name"])


@app.command("status")
def batch_status(
    job: Annotated[str, typer.Argument(help="A job's id, or its whole name. Default: every job.")] = "",
    project: Project = LOCAL,
    region: Region = US,
    api_endpoint: ApiEndpoint = "",
    home: Home = None,
    as_json: AsJson = False,
) -> None:
    """How far jobs are, newest first."""
    vertex = connect(project, region, api_endpoint, home)
    if job:
        found = vertex.get(_name(vertex.parent, job))
        print_json(found) if as_json else print_table([found], False, _COLUMNS)
    else:
        jobs = list(vertex.list(f"{vertex.parent}/batchPredictionJobs", "batchPredictionJobs"))
        print_table(jobs, as_json, _COLUMNS)


@app.command("cancel")
def batch_cancel(
    job: Job,
    project: Project = LOCAL,
    region: Region = US,
    api_endpoint: ApiEndpoint = "",
    home: Home = None,
) -> None:
    """Stop a job; what it has answered so far stays."""
    vertex = connect(project, region, api_endpoint, home)
    vertex.post(f"{_name(vertex.parent, job)}:cancel", {})
    typer.echo(f"{job}: cancelled")


def _name(parent: str, job: str) -> str:
    return job if "/" in job else f"{parent}/batchPredictionJobs/{job}"
