"""Models, versions, endpoints and predictions: of Vertex AI, or of the platform on this machine."""

from pathlib import Path
from typing import Annotated

import typer

from twophase.cli.options import LOCAL, US, ApiEndpoint, AsJson, Home, Project, Region, connect, print_json, print_table

endpoints_app = typer.Typer(name="endpoints", no_args_is_help=True, help="Endpoints that answer.")
models_app = typer.Typer(name="models", no_args_is_help=True, help="Models of the registry.")
versions_app = typer.Typer(name="versions", no_args_is_help=True, help="Versions of a model.")

app = typer.Typer()
app.add_typer(endpoints_app)
app.add_typer(models_app)
app.add_typer(versions_app)


@models_app.command("list")
def models_list(
    project: Project = LOCAL,
    region: Region = US,
    api_endpoint: ApiEndpoint = "",
    home: Home = None,
    as_json: AsJson = False,
) -> None:
    """The models of the registry, each at its default version."""
    vertex = connect(project, region, api_endpoint, home)
    found = list(vertex.list(f"{vertex.parent}/models", "models"))
    print_table(
        found, as_json, {"model": "displayName", "version": "versionId", "release": "labels.release", "name": "name"}
    )


@versions_app.command("list")
def versions_list(
    model: Annotated[str, typer.Argument(help="Name of the model.")],
    project: Project = LOCAL,
    region: Region = US,
    api_endpoint: ApiEndpoint = "",
    home: Home = None,
    as_json: AsJson = False,
) -> None:
    """The versions of a model, oldest first."""
    vertex = connect(project, region, api_endpoint, home)
    found = vertex.versions(vertex.model(model))
    columns = {
        "version": "versionId",
        "release": "labels.release",
        "aliases": "versionAliases",
        "made": "versionCreateTime",
    }
    print_table(found, as_json, columns)


@endpoints_app.command("list")
def endpoints_list(
    project: Project = LOCAL,
    region: Region = US,
    api_endpoint: ApiEndpoint = "",
    home: Home = None,
    as_json: AsJson = False,
) -> None:
    """The endpoints and how their traffic is split."""
    vertex = connect(project, region, api_endpoint, home)
    found = list(vertex.list(f"{vertex.parent}/endpoints", "endpoints"))
    print_table(found, as_json, {"endpoint": "displayName", "traffic": "trafficSplit", "name": "name"})


@app.command()
def predict(
    model: Annotated[str, typer.Argument(help="Name of the endpoint's model.")],
    clips: Annotated[list[Path], typer.Argument(help="Clip files.", metavar="CLIP...")],
    project: Project = LOCAL,
    region: Region = US,
    api_endpoint: ApiEndpoint = "",
    home: Home = None,
    as_json: AsJson = False,
) -> None:
    """Ask a deployed pair about clips."""
    vertex = connect(project, region, api_endpoint, home)
    answer = vertex.predict(vertex.endpoint(model), clips)
    if as_json:
        print_json(answer)
        return
    for clip, found in zip(clips, answer["predictions"], strict=True):
        typer.echo(f"{found['confidence']:6.1%}  {found['label']:<20} {clip}")
