"""Releases on labelled clips, and the benchmarks."""

from pathlib import Path
from typing import Annotated

import typer

from twophase.cli.options import (
    WORKDIR,
    AsJson,
    Cost,
    DataPlace,
    Recall,
    Release,
    Workdir,
    data_place,
    print_json,
    progress,
    rule,
)

app = typer.Typer()


@app.command()
def evaluate(
    release: Release,
    data: DataPlace,
    as_json: AsJson = False,
) -> None:
    """Gate, classifier and the pair on labelled clips; what the release learned from is left out."""
    from twophase.training.examine import examine, show

    found = examine(release, data_place(data), progress("ask about clips"))
    if as_json:
        print_json(found)
    else:
        show(found)


@app.command()
def tune(release: Release, data: DataPlace, recall: Recall = None, cost: Cost = "", as_json: AsJson = False) -> None:
    """Choose another threshold on validation clips, without training: makes a new release beside the old."""
    from twophase.training.examine import tune as tuned

    found = tuned(release, data_place(data), rule(recall, cost), progress("tune"))
    if as_json:
        print_json(found)
    else:
        typer.echo(f"{found['release']}: {found['operating_point']}")


@app.command()
def compare(
    champion: Annotated[Path, typer.Argument(metavar="RELEASE", help="What there is.")],
    challenger: Annotated[Path, typer.Argument(metavar="RELEASE", help="What may take its place.")],
    data: DataPlace,
    as_json: AsJson = False,
) -> None:
    """Is the second release better than the first, worse, or not shown to be either? Overall and by label."""
    from twophase.training.examine import compare as compared

    verdict = compared(champion, challenger, data_place(data), progress("compare"))
    if as_json:
        print_json({"verdict": verdict.name, "words": verdict.words, "labels": verdict.labels})
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
