"""Models and their versions, and endpoints: of Vertex AI, or of the platform on this machine."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from twophase.cli.options import LOCAL, US, ApiEndpoint, AsJson, Home, Project, Region, connect, print_json, print_table
from twophase.errors import UsageError

if TYPE_CHECKING:
    from twophase.targets.rest import Vertex
    from twophase.targets.traffic import Live

endpoints_app = typer.Typer(name="endpoints", no_args_is_help=True, help="Endpoints that answer.")
models_app = typer.Typer(name="models", no_args_is_help=True, help="Models of the registry.")
versions_app = typer.Typer(
    name="versions", no_args_is_help=True, help="Versions of a model, and which of them is live."
)

app = typer.Typer()
app.add_typer(endpoints_app)
app.add_typer(models_app)
app.add_typer(versions_app)

Model = Annotated[str, typer.Argument(help="Name of the model.")]
Version = Annotated[str, typer.Argument(help="A version by its number, an alias, or its release (r-...).")]
Folder = Annotated[Path, typer.Argument(help="A release folder, or another SavedModel.", metavar="RELEASE")]

_VERSION_COLUMNS = {
    "version": "versionId",
    "release": "labels.release",
    "aliases": "versionAliases",
    "made": "versionCreateTime",
}


@models_app.command("create")
def models_create(
    model: Model,
    release: Folder,
    project: Project = LOCAL,
    region: Region = US,
    api_endpoint: ApiEndpoint = "",
    home: Home = None,
    as_json: AsJson = False,
) -> None:
    """Make a model of its first version. Nothing is deployed by that."""
    vertex = connect(project, region, api_endpoint, home)
    if vertex.find("models", model):
        raise UsageError(f"{model}: is there already; `twophase versions create {model} {release}` adds a version")
    print_table([_upload(vertex, project, region, model, release)], as_json, _VERSION_COLUMNS)


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


@models_app.command("describe")
def models_describe(
    model: Model,
    project: Project = LOCAL,
    region: Region = US,
    api_endpoint: ApiEndpoint = "",
    home: Home = None,
) -> None:
    """A model at its default version, as Vertex AI's API tells it, in JSON."""
    print_json(connect(project, region, api_endpoint, home).model(model))


@models_app.command("delete")
def models_delete(
    model: Model,
    project: Project = LOCAL,
    region: Region = US,
    api_endpoint: ApiEndpoint = "",
    home: Home = None,
) -> None:
    """Delete a model with all its versions, none of which may be deployed."""
    vertex = connect(project, region, api_endpoint, home)
    vertex.delete(_resource(vertex, model))
    typer.echo(f"{model}: deleted")


@versions_app.command("create")
def versions_create(
    model: Model,
    release: Folder,
    project: Project = LOCAL,
    region: Region = US,
    api_endpoint: ApiEndpoint = "",
    home: Home = None,
    as_json: AsJson = False,
) -> None:
    """Register a release as the next version of a model. Nothing is deployed by that."""
    vertex = connect(project, region, api_endpoint, home)
    parent = _resource(vertex, model)
    print_table([_upload(vertex, project, region, model, release, parent)], as_json, _VERSION_COLUMNS)


@versions_app.command("list")
def versions_list(
    model: Model,
    project: Project = LOCAL,
    region: Region = US,
    api_endpoint: ApiEndpoint = "",
    home: Home = None,
    as_json: AsJson = False,
) -> None:
    """The versions of a model, oldest first."""
    vertex = connect(project, region, api_endpoint, home)
    print_table(vertex.versions(vertex.model(model)), as_json, _VERSION_COLUMNS)


@versions_app.command("history")
def versions_history(
    model: Model,
    project: Project = LOCAL,
    region: Region = US,
    api_endpoint: ApiEndpoint = "",
    home: Home = None,
    as_json: AsJson = False,
) -> None:
    """Which versions had the endpoint's traffic, and since when, oldest first."""
    from twophase.targets.traffic import Traffic

    vertex = connect(project, region, api_endpoint, home)
    traffic = Traffic(vertex, model)
    releases = {
        version["versionId"]: version.get("labels", {}).get("release", "")
        for version in vertex.versions({"name": traffic.model})
    }

    def entry(live: "Live") -> dict[str, Any]:
        named = {version: releases.get(version, "deleted") for version in live.shares}
        return {"since": live.since.isoformat(), "traffic": live.shares, "releases": named}

    entries = [entry(live) for live in traffic.history()]
    shown = [{**e, "releases": list(e["releases"].values())} for e in entries]
    columns = {"since": "since", "traffic": "traffic", "releases": "releases"}
    print_table(entries if as_json else shown, as_json, columns)


@versions_app.command("promote")
def versions_promote(
    model: Model,
    version: Version,
    project: Project = LOCAL,
    region: Region = US,
    api_endpoint: ApiEndpoint = "",
    home: Home = None,
) -> None:
    """Give a version all traffic and the alias `default`: gate and classifier at once.

    It is deployed where it is not. The version before stays deployed without traffic, for a rollback; older ones go.
    """
    from twophase.targets.traffic import Traffic

    traffic = Traffic(connect(project, region, api_endpoint, home), model)
    traffic.promote(version)
    typer.echo(f"{model}: {_shares(traffic.shares())}")


@versions_app.command("rollback")
def versions_rollback(
    model: Model,
    project: Project = LOCAL,
    region: Region = US,
    api_endpoint: ApiEndpoint = "",
    home: Home = None,
) -> None:
    """Go back to the version that had all traffic before, gate and classifier at once; this ends a canary too."""
    from twophase.targets.traffic import Traffic

    traffic = Traffic(connect(project, region, api_endpoint, home), model)
    traffic.rollback()
    typer.echo(f"{model}: {_shares(traffic.shares())}")


@versions_app.command("delete")
def versions_delete(
    model: Model,
    version: Version,
    project: Project = LOCAL,
    region: Region = US,
    api_endpoint: ApiEndpoint = "",
    home: Home = None,
) -> None:
    """Delete a version that is neither deployed nor the default."""
    vertex = connect(project, region, api_endpoint, home)
    name = _resource(vertex, model)
    number = vertex.version(name, version)["versionId"]
    vertex.delete(f"{name}@{number}:deleteVersion")
    typer.echo(f"{model}: version {number} deleted")


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


@endpoints_app.command("traffic")
def endpoints_traffic(
    model: Model,
    split: Annotated[
        list[str] | None, typer.Argument(help="Per cent by version, as in 3=90 4=10.", metavar="[VERSION=PERCENT]...")
    ] = None,
    project: Project = LOCAL,
    region: Region = US,
    api_endpoint: ApiEndpoint = "",
    home: Home = None,
    as_json: AsJson = False,
) -> None:
    """How a model's endpoint splits its traffic over versions; or split it so, for a canary.

    Versions that are named and not deployed are deployed first.
    """
    from twophase.targets.traffic import Traffic

    wanted = dict(map(_share, split or ()))
    traffic = Traffic(connect(project, region, api_endpoint, home), model)
    if wanted:
        traffic.split(wanted)
    shares = traffic.shares()
    print_json(shares) if as_json else typer.echo(f"{model}: {_shares(shares)}")


def _upload(vertex: "Vertex", project: str, region: str, model: str, folder: Path, parent: str = "") -> Any:
    if vertex.address.startswith("http://"):
        return vertex.upload(model, folder, parent)
    from twophase.targets.vertex_sdk import Registry  # Google's cloud reads buckets: the SDK stages the folder in one

    return vertex.get(Registry(project, region, "").register(folder, model))


def _resource(vertex: "Vertex", model: str) -> str:
    return str(vertex.model(model)["name"]).partition("@")[0]


def _share(text: str) -> tuple[str, int]:
    version, separator, share = text.partition("=")
    if not (version and separator and share.isdecimal()):
        raise UsageError(f"{text}: is not understood; VERSION=PERCENT is accepted, as in 3=90 4=10")
    return version, int(share)


def _shares(shares: dict[str, int]) -> str:
    return ", ".join(f"version {version}: {share}%" for version, share in shares.items()) or "nothing is deployed"
