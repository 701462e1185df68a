"""`twophase local ...`: Vertex AI on this machine."""

from pathlib import Path
from typing import Annotated

import typer

from twophase.cli.options import AsJson, Home, print_json
from twophase.errors import UsageError

app = typer.Typer(name="local", no_args_is_help=True, help="Vertex AI on this machine.")


@app.command("up")
def local_up(
    home: Home = None,
    port: Annotated[int | None, typer.Option(help="Default: the one it had last time, or any free one.")] = None,
    bucket: Annotated[list[str] | None, typer.Option(help="Map gs://NAME/ to a folder: NAME=DIR (repeat it).")] = None,
) -> None:
    """Start the platform in the background."""
    from twophase.local import process

    buckets = {}
    for pair in bucket or ():
        name, separator, folder = pair.partition("=")
        if not (name and separator and folder):
            raise UsageError(
                f"--bucket {pair}: is not understood; NAME=DIR is accepted, as in --bucket clips=/data/clips"
            )
        buckets[name] = Path(folder).resolve()
    typer.echo(process.up(home or process.default_home(), port, buckets).url)


@app.command("status")
def local_status(home: Home = None, as_json: AsJson = False) -> None:
    """Say whether the platform runs, and where. Exit code 1 when it does not."""
    from dataclasses import asdict

    from twophase.local import process

    found = process.status(home or process.default_home())
    if as_json:
        print_json({"running": found is not None, **(asdict(found) if found else {})})
    else:
        typer.echo(f"running at {found.url}, process {found.pid}" if found else "not running")
    if found is None:
        raise typer.Exit(1)


@app.command("down")
def local_down(home: Home = None) -> None:
    """Stop the platform; what is registered and deployed comes back with it."""
    from twophase.local import process

    found = process.down(home or process.default_home())
    typer.echo(f"stopped process {found.pid}" if found else "not running")


@app.command("gc")
def local_gc(home: Home = None) -> None:
    """Remove artifacts that no version, alias or endpoint needs any more."""
    from twophase.local import process

    removed = process.gc(home or process.default_home())
    typer.echo(f"{len(removed)} removed" + "".join(f"\n{name}" for name in removed))
