"""`twophase submit`, `watch` and `destroy`: runs elsewhere, by hand or for new data; and taking it all down."""

import sys
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
    from dataclasses import replace

    from pipelines import clients, image_check, kubeflow, submission
    from pipelines.places import Machines

    one_of("--target", target, ("local", "vertex", "kubeflow"))
    one_of("--on-bad-clip", on_bad_clip, ("skip", "fail"))
    arguments: dict[str, Any] = {
        "data": data_place(data),
        "wanted": wanted,
        "on_bad_clip": on_bad_clip,
        "synth_per_label": per_label,
        "seed": seed,
        "quick": quick,
        "backbone": backbone,
        "weights": weights,
        "rule": rule(recall, cost),
        "model": model,
    }
    client: clients.Vertex | kubeflow.Kubeflow
    if target == "vertex":
        if project == LOCAL:
            raise UsageError("--project: give the Google Cloud project that the run belongs to")
        chosen = Machines(
            machine or Machines.machine_type,
            accelerator,
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
        if not host:
            raise UsageError("--host: give the address of the Kubeflow Pipelines API, such as http://localhost:8888")
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
        address = api_endpoint or platform(home)
        asked = submission.for_machine(arguments, workdir.resolve(), project, region, address)
        asked = replace(asked, labels={**asked.labels, **_pairs("--label", label)})
        client = clients.Vertex(project, region, address)
    if schedule:
        asked = submission.to_repeat(asked)
    if dry_run:
        print_json(client.request(asked))
        return
    name = client.schedule(asked, schedule) if schedule else client.submit(asked)
    typer.echo(client.console(name), err=True)
    if wait and not schedule:
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
def destroy(
    model: ModelName = "two-phase",
    project: Project = LOCAL,
    region: Region = US,
    api_endpoint: ApiEndpoint = "",
    home: Home = None,
    yes: Yes = False,
) -> None:
    """Take down what costs money or answers: schedules, the endpoint, the model with its versions. Buckets are kept."""
    from pipelines.takedown import Takedown

    address = api_endpoint or (platform(home) if project == LOCAL else "")
    found = Takedown(project, region, address, model)
    doomed = found.find()
    if not doomed:
        typer.echo(f"{model}: there is nothing of it at {found.address}")
        return
    typer.echo("\n".join(f"{kind}  {name}" for kind, name in doomed), err=True)
    _confirm(f"Delete these {len(doomed)}, for ever?", yes)
    found.delete()
    typer.echo(f"{len(doomed)} deleted")


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
