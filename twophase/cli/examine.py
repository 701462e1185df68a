"""Releases on labelled clips, and the benchmarks."""

from pathlib import Path
from typing import Annotated

import typer

from twophase.cli.options import WORKDIR, AsJson, Cost, DataDir, Recall, Release, Workdir, print_json, progress, rule

app = typer.Typer()


@app.command()
def evaluate(
    release: Release,
    data: DataDir,
    as_json: AsJson = False,
) -> None:
    """Gate, classifier and the pair on labelled clips; what the release learned from is left out."""
    from twophase.training.examine import examine, show

    found = examine(release, data, progress("ask about clips"))
    if as_json:
        print_json(found)
    else:
        show(found)


@app.command()
def tune(release: Release, data: DataDir, recall: Recall = None, cost: Cost = "", as_json: AsJson = False) -> None:
    """Choose another threshold on validation clips, without training: makes a new release beside the old."""
    from twophase.training.examine import tune as tuned

    found = tuned(release, data, rule(recall, cost), progress("tune"))
    if as_json:
        print_json(found)
    else:
        typer.echo(f"{found['release']}: {found['operating_point']}")


@app.command()
def compare(
    challenger: Annotated[Path, typer.Argument(metavar="RELEASE")],
    champion: Annotated[Path, typer.Argument(metavar="RELEASE")],
    data: DataDir,
    as_json: AsJson = False,
) -> None:
    """Is the first release better than the second, worse, or not shown to be either?"""
    from twophase.training.examine import compare as compared

    verdict = compared(challenger, champion, data, progress("compare"))
    if as_json:
        print_json({"verdict": verdict.name, "words": verdict.words})
    else:
        typer.echo(verdict.words)


@app.command()
def bench(
    name: Annotated[str, typer.Argument(help="One benchmark; all of them without it.", metavar="[NAME]")] = "",
    release: Annotated[
        Path | None, typer.Option(help="For benchmarks that ask a release. Default: the newest of the workdir.")
    ] = None,
    workdir: Workdir = WORKDIR,
    as_json: AsJson = False,
) -> None:
    """Measure what this project promises, beside its peers, on this machine. Needs the repository."""
    from twophase import bench as benchmarks

    chosen = benchmarks.names() if not name else [name]
    for result in (benchmarks.run(one, release, workdir) for one in chosen):
        if as_json:
            print_json(result)
        else:
            benchmarks.show(result)
