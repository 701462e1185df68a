"""`twophase release ...` and `twophase serve`: one release as it lies in a folder."""

from typing import Annotated

import typer

from twophase.cli.options import Release

release_app = typer.Typer(name="release", no_args_is_help=True, help="Releases: the pair as one artifact.")

app = typer.Typer()
app.add_typer(release_app)


@release_app.command("check")
def release_check(release: Release) -> None:
    """Compare every file with its digest, and both models with their golden answers."""
    from twophase.release import golden, manifest, runtime

    found = manifest.verify(release)
    golden.replay(runtime.Pair(release), release)
    typer.echo(f"{found.id}: whole; gate and classifier answer as they did when they were exported")


@app.command()
def serve(
    release: Release,
    port: Annotated[int, typer.Option()] = 8080,
) -> None:
    """Answer predictions of one release over HTTP."""
    from twophase.serving.server import serve as start

    start(release, port)
