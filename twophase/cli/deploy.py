"""`twophase deploy`, `destroy`, `predict` and `target ...`: one release at any place, by the same words."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from twophase.cli.options import (
    LOCAL,
    AsJson,
    Home,
    ModelName,
    Release,
    platform,
    print_json,
    running,
)
from twophase.errors import UsageError

if TYPE_CHECKING:
    from twophase.targets.target import Target

target_app = typer.Typer(name="target", no_args_is_help=True, help="What is deployed at a place, and its traffic.")

app = typer.Typer()
app.add_typer(target_app)

Where = Annotated[str, typer.Option("--target", help="local, vertex, sagemaker, azureml or kserve.")]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", help="What the place needs to know: NAME=VALUE (repeat it), or TWOPHASE_NAME."),
]
# These are empty where they are not given: only so is it seen that one was given which the place does not have.
Project = Annotated[
    str, typer.Option(help="Of vertex, and any name at local. Default: TWOPHASE_PROJECT, or local at local.")
]
Region = Annotated[
    str,
    typer.Option(
        help="Of vertex and sagemaker, any at local. Default: TWOPHASE_REGION, or us-central1; AWS's own at sagemaker."
    ),
]
ApiEndpoint = Annotated[
    str,
    typer.Option(
        help="Address of Vertex AI's API, for vertex and local. Default: TWOPHASE_API_ENDPOINT, or the place's own."
    ),
]
Model = Annotated[str, typer.Argument(help="Name of the model and of its endpoint.")]


@app.command()
def deploy(
    release: Release,
    target: Where = LOCAL,
    model: ModelName = "two-phase",
    percent: Annotated[int, typer.Option(help="Share of the traffic; less than 100 is a canary.")] = 100,
    mirror: Annotated[
        bool, typer.Option("--mirror", help="Copy that share to it, and let nobody have its answers (azureml).")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and change nothing.")] = False,
    setting: Settings = None,
    project: Project = "",
    region: Region = "",
    api_endpoint: ApiEndpoint = "",
    home: Home = None,
    as_json: AsJson = False,
) -> None:
    """Take a release to a place: register it, replay its golden windows there, give it traffic.

    Run it again after a failure: what is done already is left as it is.
    """
    from twophase.release.manifest import read

    read(release)  # what is no release is said before a platform is started
    place = place_of(target, model, setting, (project, region, api_endpoint), home, start=not dry_run)
    version = place.deploy(release, percent, mirror, dry_run, lambda words: typer.echo(words, err=True))
    if as_json:
        print_json({"target": target, "model": model, "version": version, "dry_run": dry_run})
    elif not dry_run:
        typer.echo(f"{model}: version {version} has its traffic at {target}")


@app.command()
def destroy(
    model: Model,
    target: Where = LOCAL,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    setting: Settings = None,
    project: Project = "",
    region: Region = "",
    api_endpoint: ApiEndpoint = "",
    home: Home = None,
) -> None:
    """Remove a model from a place: its endpoint, all its versions, and what was uploaded."""
    place = place_of(target, model, setting, (project, region, api_endpoint), home)
    if not yes:
        typer.confirm(f"Remove {model} and all its versions from {target}?", abort=True)
    place.delete()
    typer.echo(f"{model}: is removed from {target}")


@app.command()
def predict(
    model: Model,
    clips: Annotated[list[Path], typer.Argument(help="Clip files.", metavar="CLIP...")],
    target: Where = LOCAL,
    to: Annotated[Path | None, typer.Option(help="Write one line of JSON a clip there, in order.")] = None,
    batch_from: Annotated[int, typer.Option(help="From so many clips on it is a batch job.")] = 200,
    setting: Settings = None,
    project: Project = "",
    region: Region = "",
    api_endpoint: ApiEndpoint = "",
    home: Home = None,
    as_json: AsJson = False,
) -> None:
    """Ask a deployed pair about clips: a few at once, hundreds by a batch job."""
    place = place_of(target, model, setting, (project, region, api_endpoint), home)
    if len(clips) >= batch_from:
        output = to or Path("predictions.jsonl")
        failed = place.batch(clips, output, lambda words: typer.echo(words, err=True))
        typer.echo(f"{len(clips)} clips, {failed} of them not answered: {output}")
        return
    predictions = place.predict(clips)
    if to:
        _write(to, clips, predictions)
    if as_json:
        print_json({"predictions": predictions})
        return
    for clip, found in zip(clips, predictions, strict=True):
        typer.echo(f"{found['confidence']:6.1%}  {found['label']:<20} {clip}")


@target_app.command("status")
def target_status(
    model: Model,
    target: Where = LOCAL,
    setting: Settings = None,
    project: Project = "",
    region: Region = "",
    api_endpoint: ApiEndpoint = "",
    home: Home = None,
    as_json: AsJson = False,
) -> None:
    """Versions, traffic, and who was live when. Exit code 1 when the endpoint is in a failed state."""
    found = place_of(target, model, setting, (project, region, api_endpoint), home).status()
    if as_json:
        print_json(found.to_json())
    else:
        for version, release in found.versions.items():
            share = f"{found.shares[version]}%" if version in found.shares else ""
            if copied := found.mirrored.get(version):
                share += f" (and a copy of {copied}%)"
            typer.echo(f"{version:>4}  {release}  {share}")
        typer.echo(found.failure or ("in service" if found.shares else "nothing is deployed"))
    if found.failure:
        raise typer.Exit(1)


@target_app.command("promote")
def target_promote(
    model: Model,
    version: Annotated[str, typer.Argument(help="A version by its number.")],
    target: Where = LOCAL,
    setting: Settings = None,
    project: Project = "",
    region: Region = "",
    api_endpoint: ApiEndpoint = "",
    home: Home = None,
) -> None:
    """Give a version all traffic."""
    place_of(target, model, setting, (project, region, api_endpoint), home).promote(version)
    typer.echo(f"{model}: version {version} has all traffic at {target}")


@target_app.command("rollback")
def target_rollback(
    model: Model,
    target: Where = LOCAL,
    setting: Settings = None,
    project: Project = "",
    region: Region = "",
    api_endpoint: ApiEndpoint = "",
    home: Home = None,
) -> None:
    """Give all traffic to the version that had it before, which ends a canary too."""
    version = place_of(target, model, setting, (project, region, api_endpoint), home).rollback()
    typer.echo(f"{model}: version {version} has all traffic at {target}")


def place_of(
    target: str,
    model: str,
    given: list[str] | None,
    options: tuple[str, str, str],
    home: Path | None,
    start: bool = True,
) -> "Target":
    """A name at a place; `options` are project, region and API endpoint. Raises `UsageError` for what it has not.

    The platform on this machine is started where it is asked and does not run; without `start` that is refused.
    """
    from twophase.targets.places import place

    return place(target, model, asked(target, given, options, home, start))


def asked(
    target: str, given: list[str] | None, options: tuple[str, str, str], home: Path | None, start: bool = True
) -> dict[str, str]:
    """The settings that were asked for by hand, by `--set` or their own options, and the address of the platform."""
    from twophase.targets.places import OPTIONS

    if target != "local" and home is not None:
        raise UsageError(f"--home {home}: means nothing to {target}; it is the folder of the platform on this machine")
    settings = {}
    for pair in given or ():
        name, separator, value = pair.partition("=")
        if not (name and separator and value):
            raise UsageError(f"--set {pair}: is not understood; NAME=VALUE is accepted")
        settings[name] = value
    settings |= {name: value for name, value in zip(OPTIONS, options, strict=True) if value}
    if target == "local" and not ("api_endpoint" in settings or os.environ.get("TWOPHASE_API_ENDPOINT")):
        settings["api_endpoint"] = platform(home) if start else running(home)
    return settings


def _write(output: Path, clips: list[Path], predictions: list[dict[str, object]]) -> None:
    import orjson

    from twophase.files import replacing

    with replacing(output) as file:
        for clip, found in zip(clips, predictions, strict=True):
            file.write(orjson.dumps({"clip": str(clip), **found}, option=orjson.OPT_APPEND_NEWLINE))
