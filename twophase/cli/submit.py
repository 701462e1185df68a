"""`twophase submit`, `unschedule` and `watch`: runs elsewhere, by hand, by the clock or for new data."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

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
from twophase.errors import TwoPhaseError, UsageError

app = typer.Typer()

Target = Annotated[str, typer.Option(help="Where it runs: local, vertex or kubeflow.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]


@app.command()
def submit(
    target: Target = "local",
    data: Data = "",
    wanted: Wanted = "",
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
    workdir: Workdir = WORKDIR,
    bucket: Annotated[str, typer.Option(help="Vertex: gs://BUCKET for outputs and images. Kubeflow: a URL.")] = "",
    image: Annotated[str, typer.Option(help="The trainer image, where it can be pulled from.")] = "",
    server_image: Annotated[
        str, typer.Option(help="Vertex: the image that serves the classifier. Default: ours, from beside --image.")
    ] = "",
    host: Annotated[str, typer.Option(help="Kubeflow: address of the Pipelines API.")] = "",
    namespace: Annotated[str, typer.Option(help="Kubeflow: where KServe serves.")] = "default",
    machine: Annotated[str, typer.Option(help="Vertex: machine type that training runs on.")] = "",
    accelerator: Annotated[str, typer.Option(help="Vertex: accelerator of that machine, such as NVIDIA_L4.")] = "",
    accelerator_count: Annotated[int, typer.Option(min=1, help="Vertex: so many of them.")] = 1,
    replicas: Annotated[int, typer.Option(min=1, help="Vertex: machines that fit each network together.")] = 1,
    spot: Annotated[bool, typer.Option("--spot", help="Vertex: train on machines that may be taken away.")] = False,
    service_account: Annotated[str, typer.Option(help="Whom the steps run as.")] = "",
    network: Annotated[str, typer.Option(help="Vertex: projects/NUMBER/global/networks/NAME to peer with.")] = "",
    encryption_key: Annotated[str, typer.Option(help="Vertex: the key that everything is encrypted with.")] = "",
    experiment: Annotated[str, typer.Option(help="The experiment that the run is counted to.")] = "",
    label: Annotated[list[str] | None, typer.Option(help="Vertex: NAME=VALUE (repeat it).")] = None,
    prices: Annotated[Path | None, typer.Option(help="Vertex: another price table than pipelines/prices.toml.")] = None,
    schedule: Annotated[str, typer.Option(help="Run at these times instead, as cron writes them.")] = "",
    wait: Annotated[bool, typer.Option("--wait", help="Watch the run; exit code 1 when it fails.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the request, and send nothing.")] = False,
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """Run the pipeline elsewhere: on the platform of this machine, on Vertex AI, or on Kubeflow.

    Says what a run on Vertex AI is likely to cost before it asks for one.
    """
    one_of("--target", target, ("local", "vertex", "kubeflow"))
    one_of("--on-bad-clip", on_bad_clip, ("skip", "fail"))
    backbone_and_weights(backbone, weights)
    if schedule and wait:
        raise UsageError("--schedule and --wait exclude each other: a schedule has no end; leave one of them out")
    if schedule and target == "local":
        raise UsageError("--schedule: the platform on this machine has none; let cron call `twophase submit`")
    if target == "vertex" and project == LOCAL:
        raise UsageError("--project: give the Google Cloud project that the run belongs to")
    if target == "kubeflow" and not host:
        raise UsageError("--host: give the address of the Kubeflow Pipelines API, such as http://localhost:8888")
    from pipelines import clients, image_check, kubeflow, submission
    from pipelines.places import Machines

    arguments: dict[str, Any] = {
        "data": data_place(data),
        "wanted": wanted,
        "on_bad_clip": on_bad_clip,
        "synth_per_label": per_label,
        "seed": seed,
        "quick": quick,
        "backbone": backbone,
        "weights": data_place(weights) if Path(weights).is_file() else weights,
        "rule": rule(recall, cost),
        "model": model,
    }
    client: clients.Vertex | kubeflow.Kubeflow
    if target == "vertex":
        chosen = Machines(
            machine or Machines.machine_type,
            accelerator,
            accelerator_count,
            replicas=replicas,
            spot=spot,
            service_account=service_account,
            network=network,
            encryption_key=encryption_key,
        )
        asked = submission.for_vertex(
            arguments,
            bucket,
            image,
            project,
            region,
            chosen,
            server_image,
            labels=_pairs("--label", label),
            experiment=experiment,
        )
        client = clients.Vertex(project, region, api_endpoint)
        if not dry_run:
            client.check_bucket(bucket)
            for needed in (image, asked.arguments["server_image"]):
                image_check.check_image(needed)
            _agree(submission.data_state(arguments["data"])[1] or 20 * per_label, chosen, prices, yes)
    elif target == "kubeflow":
        asked = submission.for_kubeflow(
            arguments,
            bucket,
            image,
            namespace,
            server_image,
            service_account=service_account,
            experiment=experiment,
        )
        client = kubeflow.Kubeflow(host)
    else:
        arguments["data_digest"], _ = submission.data_state(arguments["data"])  # before anything is started
        address = api_endpoint or (_address(home) if dry_run else platform(home))
        asked = submission.for_machine(arguments, workdir.resolve(), project, region, address)
        asked = replace(asked, labels={**asked.labels, **_pairs("--label", label)})
        client = clients.Vertex(project, region, address)
    if schedule:
        asked = submission.to_repeat(asked)
    if dry_run:
        print_json(client.request(asked, schedule))
        return
    name = client.schedule(asked, schedule) if schedule else client.submit(asked)
    typer.echo(client.console(name), err=True)
    if wait:
        client.wait(name, lambda task, state: typer.echo(f"{task}: {state.lower()}", err=True))
    if as_json:
        print_json({"name": name, "job_id": asked.job_id, "console": client.console(name)})
    else:
        typer.echo(name)


@app.command()
def watch(
    folder: Annotated[Path, typer.Argument(help="A folder that clips are put below.", metavar="DIR")],
    quick: Quick = False,
    seed: Seed = 0,
    model: ModelName = "two-phase",
    new_clips: Annotated[int, typer.Option(help="So many new files, or more, are worth a run.")] = 0,
    runs_a_day: Annotated[int, typer.Option(help="Most runs that are started a day.")] = 24,
    quiet: Annotated[float, typer.Option(help="Seconds without a change that end a burst of news.")] = 5.0,
    workdir: Workdir = WORKDIR,
    home: Home = None,
) -> None:
    """Start a run when new data is whole: when `_SUCCESS` or `manifest.json` is written below DIR, as the last file.

    Runs on the platform of this machine, one for each state of the data, until this command is stopped.
    """
    from pipelines.clients import Vertex
    from pipelines.news import Watch
    from pipelines.submission import Submission, for_machine
    from pipelines.watching import watch_folder

    place, kept = folder.resolve(), workdir.resolve()
    if not place.is_dir():
        raise TwoPhaseError(f"{folder}: is no folder; give the one that clips are put below")
    if kept.is_relative_to(place):
        raise UsageError(f"--workdir {workdir}: lies below {folder}, where it would be taken for clips; give another")
    address = platform(home)

    def order(digest: str) -> Submission:
        asked = {"data": str(place), "data_digest": digest, "quick": quick, "seed": seed, "model": model}
        return for_machine(asked, kept, LOCAL, US, address)

    watched = Watch(str(place), (str(kept),), new_clips, runs_a_day)
    for found in watch_folder(watched, Vertex(LOCAL, US, address), order, quiet):
        typer.echo(f"{found.job or '-'}: {found.words}")


@app.command()
def unschedule(
    model: Annotated[str, typer.Argument(help="Name of the model that the runs were for.")],
    project: Annotated[str, typer.Option(envvar="TWOPHASE_PROJECT", help="Google Cloud project.")],
    region: Region = US,
    api_endpoint: ApiEndpoint = "",
) -> None:
    """Delete the schedules on Vertex AI that `submit --schedule` made for a model. Runs under way go on."""
    from twophase.targets.rest import Vertex

    deleted = Vertex(project, region, api_endpoint).unschedule(model)
    typer.echo("\n".join(deleted) or f"{model}: has no schedule in {project}, {region}")


def _address(home: Path | None) -> str:
    """Where the platform of this machine is, or would be: it is not started."""
    from twophase.local import process

    home = home or process.default_home()
    found = process.status(home)
    return found.url if found else f"http://127.0.0.1:{process.last_port(home) or 'PORT'}"


def _agree(clips: int, machines: Any, prices: Path | None, yes: bool) -> None:
    """Show what a run is likely to cost, and ask."""
    from pipelines.cost import estimate
    from twophase.display import table

    lines = estimate(clips, machines, prices)
    rows = [[line.step, line.machine, f"{line.hours:.2f} h", f"${line.dollars:.2f}"] for line in lines]
    total = sum(line.dollars for line in lines)
    table(["step", "machine", "for about", "costs about"], [*rows, ["in all", "", "", f"${total:.2f}"]])
    _confirm("Ask for this run?", yes)


def _confirm(question: str, yes: bool) -> None:
    if yes:
        return
    if not sys.stdin.isatty():
        raise UsageError(f"{question} There is nobody to ask here; give --yes")
    if not typer.confirm(question):
        raise TwoPhaseError("nothing was done")


def _pairs(option: str, given: list[str] | None) -> dict[str, str]:
    pairs = {}
    for text in given or ():
        name, separator, value = text.partition("=")
        if not (name and separator):
            raise UsageError(f"{option} {text}: is not understood; NAME=VALUE is accepted")
        pairs[name] = value
    return pairs
