"""`twophase release ...` and `twophase serve`: one release as it lies in a folder, and its way to devices."""

from pathlib import Path
from typing import Annotated

import typer

from twophase.cli.options import Release
from twophase.errors import UsageError

release_app = typer.Typer(name="release", no_args_is_help=True, help="Releases: the pair as one artifact.")

app = typer.Typer()
app.add_typer(release_app)

Repository = Annotated[Path, typer.Option(help="Folder of the update repository; made when it is not there.")]


@release_app.command("check")
def release_check(release: Release) -> None:
    """Compare every file with its digest, and both models with their golden answers."""
    from twophase.release import golden, manifest, runtime

    found = manifest.verify(release)
    golden.replay(runtime.Pair(release), release)
    typer.echo(f"{found.id}: whole; gate and classifier answer as they did when they were exported")


@release_app.command("sign")
def release_sign(
    repository: Repository,
    keys: Annotated[Path, typer.Option(help="Folder of the private keys, outside of any version-controlled tree.")],
    release: Annotated[
        Path | None, typer.Argument(help="A release folder; none to sign what is there again.", metavar="[RELEASE]")
    ] = None,
    percent: Annotated[int, typer.Option(help="Share of devices that its gate is for: 1, then 10, then 100.")] = 1,
    rotate: Annotated[str, typer.Option(help="Replace the key of root, targets, snapshot or timestamp.")] = "",
) -> None:
    """Sign a release's gate into an update repository, or widen its cohort; renew signatures; replace keys.

    Signatures hold for 30 days: run it without RELEASE more often than that.
    """
    from twophase.release import sign

    if release is not None and rotate:
        raise UsageError("RELEASE and --rotate exclude each other; give one of them")
    if release is not None:
        offer = sign.sign(release, repository, keys, percent)
        typer.echo(f"{offer.release}: number {offer.serial}, for {offer.percent}% of the devices")
    elif rotate:
        sign.rotate(repository, keys, rotate)
        typer.echo(f"{rotate}: has a new key; the old one is not accepted any more")
    else:
        sign.renew(repository, keys)
        typer.echo(f"{repository}: signed again for 30 days")


@release_app.command("publish")
def release_publish(
    repository: Repository,
    to: Annotated[Path, typer.Option(help="Folder that devices read: updates in the gateway's, or a static host's.")],
) -> None:
    """Copy an update repository to where devices read it, so that they see the old state or the new."""
    from twophase.release import sign

    typer.echo(f"{sign.publish(repository, to)} new files")


@app.command()
def serve(
    release: Release,
    port: Annotated[int, typer.Option()] = 8080,
) -> None:
    """Answer predictions of one release over HTTP."""
    from twophase.serving.server import serve as start

    start(release, port)
