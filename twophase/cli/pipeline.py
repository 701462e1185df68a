"""The pipeline: run it here, write its specs."""

from pathlib import Path
from typing import Annotated

import typer

from twophase.cli.options import (
    LOCAL,
    US,
    WORKDIR,
    ApiEndpoint,
    AsJson,
    Backbone,
    Cost,
    Data,
    Home,
    ModelName,
    OnBadClip,
    PerLabel,
    Project,
    Quick,
    Recall,
    Region,
    Seed,
    Wanted,
    Weights,
    Workdir,
    backbone_and_weights,
    data_place,
    one_of,
    platform,
    print_json,
    rule,
)
from twophase.errors import UsageError

app = typer.Typer()


@app.command()
def run(
    data: Data = "",
    synth: Annotated[bool, typer.Option("--synth", help="Render clips, as without --data.")] = False,
    wanted: Wanted = "",
    workdir: Workdir = WORKDIR,
    quick: Quick = False,
    seed: Seed = 0,
    per_label: PerLabel = 40,
    on_bad_clip: OnBadClip = "skip",
    recall: Recall = None,
    cost: Cost = "",
    backbone: Backbone = "small",
    weights: Weights = "",
    model: ModelName = "two-phase",
    project: Project = LOCAL,
    region: Region = US,
    api_endpoint: ApiEndpoint = "",
    home: Home = None,
    as_json: AsJson = False,
) -> None:
    """From labelled clips to a deployed pair that answers: the whole pipeline, on this machine.

    Without --data it renders its own clips. Ends with the release, its version, its endpoint and a report to look at.
    """
    from pipelines.main_job import main_job
    from twophase.audio import sources
    from twophase.audio.dataset import place_of

    if data and synth:
        raise UsageError("--data and --synth exclude each other; give one of them")
    one_of("--on-bad-clip", on_bad_clip, ("skip", "fail"))
    backbone_and_weights(backbone, weights)
    if data:
        next(sources.listing(place_of(data)[0]), None)  # before anything is started: what cannot be reached says so
    outcome = main_job(
        workdir.resolve(),
        project=project,
        region=region,
        api_endpoint=api_endpoint or platform(home),
        model=model,
        data=data_place(data),
        wanted=wanted,
        quick=quick,
        seed=seed,
        synth_per_label=per_label,
        on_bad_clip=on_bad_clip,
        rule=rule(recall, cost),
        backbone=backbone,
        weights=weights,
    )
    if as_json:
        print_json(outcome.to_json())
    else:
        outcome.show()


@app.command("compile")
def compile_(folder: Annotated[Path, typer.Argument(help="Where the specs go.")] = Path("compiled")) -> None:
    """Write the pipeline specs."""
    from pipelines.compile import compile_all

    for path in compile_all(folder):
        typer.echo(str(path))
