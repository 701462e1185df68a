"""`twophase batch ...`: batch jobs at any place that runs them; of files in buckets too, where that is Vertex AI."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from twophase.cli.deploy import ApiEndpoint, Project, Region, Settings, Where, asked, place_of
from twophase.cli.options import (
    LOCAL,
    AsJson,
    Home,
    one_of,
    print_json,
    print_table,
)
from twophase.errors import UsageError

if TYPE_CHECKING:
    from twophase.targets.jobs import Jobs
    from twophase.targets.rest import Vertex
    from twophase.targets.target import Target

app = typer.Typer(name="batch", no_args_is_help=True, help="Batch jobs: hundreds of clips at once, answers later.")

JobName = Annotated[str, typer.Argument(help="A job's id, or its whole name.", metavar="JOB")]

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
        list[str],
        typer.Argument(help="Clip files; or gs://BUCKET/FILE, or a prefix that ends in *.", metavar="SOURCE..."),
    ],
    target: Where = LOCAL,
    to: Annotated[str, typer.Option(help="Where results of gs:// sources go: gs://BUCKET/PREFIX.")] = "",
    input_format: Annotated[
        str, typer.Option("--format", help="jsonl (an instance a line), or file-list (a clip's gs:// name a line).")
    ] = "jsonl",
    key_field: Annotated[str, typer.Option(help="A field of the instances that results are told apart by.")] = "",
    version: Annotated[
        str, typer.Option(help="For gs:// sources, a version by its number, an alias, or its release.")
    ] = "default",
    setting: Settings = None,
    project: Project = "",
    region: Region = "",
    api_endpoint: ApiEndpoint = "",
    home: Home = None,
    as_json: AsJson = False,
) -> None:
    """Have a model answer clips, or files of instances in a bucket, and return at once with the job's name."""
    one_of("--format", input_format, ("jsonl", "file-list"))
    buckets = [source for source in sources if source.startswith("gs://")]
    if buckets and (len(buckets) < len(sources) or target not in ("local", "vertex") or not to):
        raise UsageError(
            f"{buckets[0]}: a job of files in buckets has no clip files beside them, a --to gs://BUCKET/PREFIX, and "
            "runs at local or vertex"
        )
    if to and not buckets:
        raise UsageError(f"--to {to}: is for gs:// sources; answers about clips come by `twophase batch fetch`")
    if not buckets:
        place = _jobs(target, place_of(target, model, setting, (project, region, api_endpoint), home))
        name = place.submit([Path(source) for source in sources])
        print_json({"name": name}) if as_json else typer.echo(name)
        return
    from twophase.targets.traffic import MACHINE

    vertex = _vertex(target, setting, (project, region, api_endpoint), home)
    parent = vertex.model(model)["name"].partition("@")[0]
    job = {
        "displayName": model,
        "model": f"{parent}@{vertex.version(parent, version)['versionId']}",
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
    job: Annotated[
        str, typer.Argument(help="A job's id, or its whole name. Default, at local and vertex: every job.")
    ] = "",
    target: Where = LOCAL,
    setting: Settings = None,
    project: Project = "",
    region: Region = "",
    api_endpoint: ApiEndpoint = "",
    home: Home = None,
    as_json: AsJson = False,
) -> None:
    """How far jobs are, newest first."""
    if target in ("local", "vertex"):
        vertex = _vertex(target, setting, (project, region, api_endpoint), home)
        if not job:
            jobs = list(vertex.list(f"{vertex.parent}/batchPredictionJobs", "batchPredictionJobs"))
            print_table(jobs, as_json, _COLUMNS)
            return
        found = vertex.get(job if "/" in job else f"{vertex.parent}/batchPredictionJobs/{job}")
        print_json(found) if as_json else print_table([found], False, _COLUMNS)
        return
    if not job:
        raise UsageError(f"{target}: lists no jobs here; name the one that `twophase batch submit` printed")
    told = _of(job, target, setting, (project, region, api_endpoint), home).job(job)
    print_json(told.to_json()) if as_json else typer.echo(f"{told.name}: {told.state} {told.why}".rstrip())


@app.command("fetch")
def batch_fetch(
    job: JobName,
    to: Annotated[Path, typer.Option(help="Write one line of JSON a clip there, in order.")] = Path(
        "predictions.jsonl"
    ),
    target: Where = LOCAL,
    setting: Settings = None,
    project: Project = "",
    region: Region = "",
    api_endpoint: ApiEndpoint = "",
    home: Home = None,
) -> None:
    """Write what a job of clips has answered, and remove what it kept at the place."""
    failed = _of(job, target, setting, (project, region, api_endpoint), home).fetch(job, to)
    typer.echo(f"{to}: {failed} clips not answered")


@app.command("cancel")
def batch_cancel(
    job: JobName,
    target: Where = LOCAL,
    setting: Settings = None,
    project: Project = "",
    region: Region = "",
    api_endpoint: ApiEndpoint = "",
    home: Home = None,
) -> None:
    """Stop a job that runs; what one of files in buckets has answered so far stays."""
    place = _of(job, target, setting, (project, region, api_endpoint), home)
    if (state := place.job(job).state) != "running":
        raise UsageError(f"{job}: has ended ({state}); there is nothing to cancel")
    place.cancel(job)
    typer.echo(f"{job}: cancelled")


def _vertex(target: str, given: list[str] | None, options: tuple[str, str, str], home: Path | None) -> "Vertex":
    from twophase.targets.places import OPTIONS, settings_of
    from twophase.targets.rest import Vertex

    known = settings_of(target, asked(target, given, options, home))
    return Vertex(*(known[name] for name in OPTIONS))


def _of(job: str, target: str, given: list[str] | None, options: tuple[str, str, str], home: Path | None) -> "Jobs":
    """The place of a job; where jobs have names like `MODEL-<12 hex>` the model is told by them."""
    return _jobs(target, place_of(target, re.sub(r"-[0-9a-f]{12}$", "", job)[-128:], given, options, home))


def _jobs(target: str, place: "Target") -> "Jobs":
    from twophase.targets.jobs import Jobs

    if not isinstance(place, Jobs):
        raise UsageError(
            f"{target}: runs no batch jobs; `twophase predict --to FILE` asks it about any number of clips"
        )
    return place
