"""`twophase containers ...`: the project's images, built from the repository and pushed to a registry."""

import subprocess
from pathlib import Path
from typing import Annotated

import typer

from twophase import __version__
from twophase.errors import TwoPhaseError, UsageError

app = typer.Typer(
    name="containers", no_args_is_help=True, help="The project's images. Needs the repository and docker."
)

FOLDER = Path(__file__).parents[2] / "containers"

Names = Annotated[list[str] | None, typer.Argument(help="Such as trainer. Default: all.", metavar="[NAME]...")]


@app.command("build")
def containers_build(
    names: Names = None,
    option: Annotated[list[str] | None, typer.Option(help="A further option of `docker build` (repeat it).")] = None,
) -> None:
    """Build images from containers/NAME.Dockerfile, labelled with this commit."""
    for name in _chosen(names):
        revision = subprocess.run(["git", "rev-parse", "HEAD"], cwd=FOLDER, capture_output=True, text=True, check=False)
        given = {"VERSION": __version__, "REVISION": revision.stdout.strip() or "unknown"}
        arguments = [part for key, value in given.items() for part in ("--build-arg", f"{key}={value}")]
        dockerfile = FOLDER / f"{name}.Dockerfile"
        _docker("build", *(option or ()), *arguments, "-t", image(name), "-f", str(dockerfile), str(FOLDER.parent))
        typer.echo(image(name))


@app.command("push")
def containers_push(
    registry: Annotated[str, typer.Argument(help="Such as us-central1-docker.pkg.dev/PROJECT/twophase.")],
    names: Names = None,
) -> None:
    """Push built images to a registry, and print the names under which they can be pulled."""
    for name in _chosen(names):
        there = f"{registry.rstrip('/')}/{image(name).rpartition('/')[2]}"
        _docker("tag", image(name), there)
        _docker("push", there)
        typer.echo(there)


def image(name: str) -> str:
    """The name of an image on this machine."""
    return f"twophase/{name}:{__version__}{'-python3.11' if name == 'trainer' else ''}"


def _chosen(names: list[str] | None) -> list[str]:
    known = sorted(path.name.removesuffix(".Dockerfile") for path in FOLDER.glob("*.Dockerfile"))
    if not known:
        raise TwoPhaseError(f"{FOLDER}: has no Dockerfiles; images are built from a clone of the repository")
    for name in names or ():
        if name not in known:
            raise UsageError(f"{name}: is no image of this project; {', '.join(known)} are")
    return names or known


def _docker(*arguments: str) -> None:
    try:
        done = subprocess.run(["docker", *arguments], check=False)
    except FileNotFoundError:
        raise TwoPhaseError("docker: is not on PATH; install it, or another engine with its command line") from None
    if done.returncode:
        raise TwoPhaseError(f"docker {arguments[0]}: failed with {done.returncode}; it said why above")
