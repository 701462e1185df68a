"""`twophase ...`: thin; every command is one call into the rooms, imported when it is called, so that `--help` is fast.

Results go to standard output, progress and errors to standard error. Exit codes: 0 done, 1 something about the input or
the machine that the message says how to mend, 2 wrong usage.
"""

import errno
import sys

import typer

from twophase.cli import (
    batch,
    containers,
    data,
    deploy,
    device,
    examine,
    gateway,
    local,
    pipeline,
    registry,
    release,
    submit,
)
from twophase.errors import TwoPhaseError

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="Two-phase predictions: a gate for the device and a classifier for the cloud, made and moved as one release.",
)
for room in (pipeline, submit, examine, data, release, containers, local, registry, deploy, batch, gateway, device):
    app.add_typer(room.app)


def main() -> None:
    """The `twophase` program."""
    try:
        app()
    except TwoPhaseError as error:
        typer.echo(f"twophase: {error}", err=True)
        sys.exit(error.exit_code)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        typer.echo("twophase: the disk is full; free some room and run again, what is finished is kept", err=True)
        sys.exit(1)
