"""`twophase ...`: thin; every command is one call into the rooms, imported when it is called, so that `--help` is fast.

Results go to standard output, progress and errors to standard error. Exit codes: 0 done, 1 something about the input or
the machine that the message says how to mend, 2 wrong usage.
"""

import errno
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from twophase.errors import TwoPhaseError, UsageError

if TYPE_CHECKING:
    from twophase.targets.rest import Vertex

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="Two-phase predictions: a gate for the device and a classifier for the cloud, made and moved as one release.",
)
data_app = typer.Typer(no_args_is_help=True, help="Clips and their images.")
release_app = typer.Typer(no_args_is_help=True, help="Releases: the pair as one artifact.")
local_app = typer.Typer(no_args_is_help=True, help="Vertex AI on this machine.")
models_app = typer.Typer(no_args_is_help=True, help="Models of the registry.")
versions_app = typer.Typer(no_args_is_help=True, help="Versions of a model.")
endpoints_app = typer.Typer(no_args_is_help=True, help="Endpoints that answer.")
for name, sub in (
    ("data", data_app),
    ("release", release_app),
    ("local", local_app),
    ("models", models_app),
    ("versions", versions_app),
    ("endpoints", endpoints_app),
):
    app.add_typer(sub, name=name)

Data = Annotated[
    str, typer.Option("--data", help="A folder of label/clip files, or a labels.csv. Default: rendered clips.")
]
DataDir = Annotated[Path, typer.Option("--data", help="A folder of label/clip files, or a labels.csv.")]
DataPlace = Annotated[
    str, typer.Option("--data", help="A folder of label/clip files, a labels.csv, a tar, or a URL of one.")
]
Wanted = Annotated[
    str,
    typer.Option(
        help="Labels that the gate lets through: a file, one a line, or LABEL,LABEL. Default: wanted.txt of the data."
    ),
]
Workdir = Annotated[Path, typer.Option(help="Where everything is kept; a second run there pays only for what is new.")]
Seed = Annotated[int, typer.Option(help="Same seed and clips: same release.")]
Quick = Annotated[bool, typer.Option("--quick", help="Train briefly: to see that all works.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object for machines.")]
Recall = Annotated[float | None, typer.Option(help="Choose the threshold for this recall of wanted clips.")]
Cost = Annotated[str, typer.Option(help="Choose the threshold by costs, as in miss=5,call=0.1.")]
Backbone = Annotated[str, typer.Option(help="The classifier's network: small, or mobilenetv2.")]
Weights = Annotated[str, typer.Option(help="Pretrained weights for mobilenetv2: imagenet, or a .weights.h5 file.")]
OnBadClip = Annotated[
    str, typer.Option(help="What to do with clips that cannot be used: skip (and name them), or fail.")
]
PerLabel = Annotated[int, typer.Option(help="Rendered clips a label, where no --data is given.")]
ModelName = Annotated[str, typer.Option("--model", help="Name of the model and of its endpoint.")]
Project = Annotated[
    str, typer.Option(envvar="TWOPHASE_PROJECT", help="Google Cloud project; any name on this machine.")
]
Region = Annotated[str, typer.Option(envvar="TWOPHASE_REGION", help="Google Cloud region; any on this machine.")]
ApiEndpoint = Annotated[
    str,
    typer.Option(
        envvar="TWOPHASE_API_ENDPOINT", help="Address of Vertex AI's API. Default: the platform on this machine."
    ),
]
Home = Annotated[
    Path | None, typer.Option(help="The platform's folder. Default: TWOPHASE_HOME, or the user's data folder.")
]
Release = Annotated[Path, typer.Argument(help="A release folder.", metavar="RELEASE")]

LOCAL, US = "local", "us-central1"
WORKDIR = Path("twophase-work")


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

    if data and synth:
        raise UsageError("--data and --synth exclude each other; give one of them")
    _one_of("--on-bad-clip", on_bad_clip, ("skip", "fail"))
    outcome = main_job(
        workdir.resolve(),
        project=project,
        region=region,
        api_endpoint=api_endpoint or _platform(home),
        model=model,
        data=_data(data),
        wanted=wanted,
        quick=quick,
        seed=seed,
        synth_per_label=per_label,
        on_bad_clip=on_bad_clip,
        rule=_rule(recall, cost),
        backbone=backbone,
        weights=weights,
    )
    if as_json:
        _print_json(outcome.to_json())
    else:
        outcome.show()


@app.command()
def evaluate(
    release: Release,
    data: DataDir,
    as_json: AsJson = False,
) -> None:
    """Gate, classifier and the pair on labelled clips; what the release learned from is left out."""
    from twophase.training.examine import examine, show

    found = examine(release, data, _progress("ask about clips"))
    if as_json:
        _print_json(found)
    else:
        show(found)


@app.command()
def tune(release: Release, data: DataDir, recall: Recall = None, cost: Cost = "", as_json: AsJson = False) -> None:
    """Choose another threshold on validation clips, without training: makes a new release beside the old."""
    from twophase.training.examine import tune as tuned

    found = tuned(release, data, _rule(recall, cost), _progress("tune"))
    if as_json:
        _print_json(found)
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

    verdict = compared(challenger, champion, data, _progress("compare"))
    if as_json:
        _print_json({"verdict": verdict.name, "words": verdict.words})
    else:
        typer.echo(verdict.words)


@app.command()
def serve(
    release: Release,
    port: Annotated[int, typer.Option()] = 8080,
) -> None:
    """Answer predictions of one release over HTTP."""
    from twophase.serving.server import serve as start

    start(release, port)


@app.command("compile")
def compile_(folder: Annotated[Path, typer.Argument(help="Where the specs go.")] = Path("compiled")) -> None:
    """Write the pipeline specs."""
    from pipelines.compile import compile_all

    for path in compile_all(folder):
        typer.echo(str(path))


@app.command()
def predict(
    model: Annotated[str, typer.Argument(help="Name of the endpoint's model.")],
    clips: Annotated[list[Path], typer.Argument(help="Clip files.", metavar="CLIP...")],
    project: Project = LOCAL,
    region: Region = US,
    api_endpoint: ApiEndpoint = "",
    home: Home = None,
    as_json: AsJson = False,
) -> None:
    """Ask a deployed pair about clips."""
    vertex = _vertex(project, region, api_endpoint, home)
    answer = vertex.predict(vertex.endpoint(model), clips)
    if as_json:
        _print_json(answer)
        return
    for clip, found in zip(clips, answer["predictions"], strict=True):
        typer.echo(f"{found['confidence']:6.1%}  {found['label']:<20} {clip}")


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
            _print_json(result)
        else:
            benchmarks.show(result)


@data_app.command("synth")
def data_synth(
    folder: Annotated[Path, typer.Argument(help="A new folder.")],
    per_label: PerLabel = 40,
    seed: Seed = 0,
    label: Annotated[list[str] | None, typer.Option(help="Only these labels (repeat it).")] = None,
) -> None:
    """Render labelled clips from the General MIDI soundfont."""
    from twophase.audio import synth

    labels = tuple(label) if label else synth.LABELS + synth.OTHER_LABELS
    typer.echo(str(synth.write_clips(folder, per_label, seed, labels)))


@data_app.command("images")
def data_images(
    data: DataPlace,
    workdir: Workdir = WORKDIR,
    wanted: Wanted = "",
    png: Annotated[Path | None, typer.Option(help="Also write labelled PNG folders here.")] = None,
    sheet: Annotated[Path | None, typer.Option(help="Also write a contact sheet to this PNG file.")] = None,
    on_bad_clip: OnBadClip = "skip",
) -> None:
    """Make the images of a data folder, as the pipeline does; and pictures of them."""
    from twophase.audio import dataset, images, pictures

    _one_of("--on-bad-clip", on_bad_clip, ("skip", "fail"))
    found = dataset.read_source(_data(data), _wanted(wanted), workdir.resolve() / "digests.jsonl")
    made = images.make_all(workdir.resolve(), found, on_bad_clip, _progress("make images"))
    left_out = [*made.bad, *found.skipped]
    typer.echo(f"{len(made)} images of {len(made.clips)} clips; {len(left_out)} files left out")
    for name, reason in left_out:
        typer.echo(f"left out: {name}: {reason}")
    if png is not None:
        typer.echo(f"{pictures.export_png(made, png)} PNG files below {png}")
    if sheet is not None:
        pictures.contact_sheet(made, sheet)
        typer.echo(str(sheet))


@data_app.command("inspect")
def data_inspect(
    data: DataPlace,
    workdir: Workdir = WORKDIR,
    sheet: Annotated[Path | None, typer.Option(help="Also write a contact sheet to this PNG file.")] = None,
    as_json: AsJson = False,
) -> None:
    """Counts, durations, rates; silent, clipped, duplicate and unusable clips; and what to do about them."""
    from twophase.audio import inspection, pictures

    found, images = inspection.inspect(_data(data), workdir.resolve(), _progress("inspect"))
    if sheet is not None and images is not None:
        pictures.contact_sheet(images, sheet)
    if as_json:
        _print_json({**found.to_json(), "sheet": str(sheet) if sheet is not None and images is not None else None})
    else:
        inspection.show(found)


@data_app.command("forget")
def data_forget(
    wish: Annotated[
        str, typer.Argument(help="A clip's name or digest, a group, or a label.", metavar="CLIP|GROUP|LABEL")
    ],
    workdir: Workdir = WORKDIR,
    as_json: AsJson = False,
) -> None:
    """Take someone's clips out of images and next trainings, and say which releases still carry them."""
    from dataclasses import asdict

    from twophase.audio.forget import forget

    found = forget(workdir.resolve(), wish)
    if as_json:
        _print_json(asdict(found))
        return
    typer.echo(f"{len(found.clips)} clips are forgotten; {found.with_images} of them had images, which are deleted")
    typer.echo("the files themselves are yours to delete:\n  " + "\n  ".join(found.files))
    for release in found.releases:
        typer.echo(
            f"{release} learned from them: train again, then delete its versions and {workdir}/releases/{release}"
        )


@release_app.command("check")
def release_check(release: Release) -> None:
    """Compare every file with its digest, and both models with their golden answers."""
    from twophase.release import golden, manifest, runtime

    found = manifest.verify(release)
    golden.replay(runtime.Pair(release), release)
    typer.echo(f"{found.id}: whole; gate and classifier answer as they did when they were exported")


@local_app.command("up")
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


@local_app.command("status")
def local_status(home: Home = None, as_json: AsJson = False) -> None:
    """Say whether the platform runs, and where. Exit code 1 when it does not."""
    from dataclasses import asdict

    from twophase.local import process

    found = process.status(home or process.default_home())
    if as_json:
        _print_json({"running": found is not None, **(asdict(found) if found else {})})
    else:
        typer.echo(f"running at {found.url}, process {found.pid}" if found else "not running")
    if found is None:
        raise typer.Exit(1)


@local_app.command("down")
def local_down(home: Home = None) -> None:
    """Stop the platform; what is registered and deployed comes back with it."""
    from twophase.local import process

    found = process.down(home or process.default_home())
    typer.echo(f"stopped process {found.pid}" if found else "not running")


@local_app.command("gc")
def local_gc(home: Home = None) -> None:
    """Remove artifacts that no version, alias or endpoint needs any more."""
    from twophase.local import process

    removed = process.gc(home or process.default_home())
    typer.echo(f"{len(removed)} removed" + "".join(f"\n{name}" for name in removed))


@models_app.command("list")
def models_list(
    project: Project = LOCAL,
    region: Region = US,
    api_endpoint: ApiEndpoint = "",
    home: Home = None,
    as_json: AsJson = False,
) -> None:
    """The models of the registry, each at its default version."""
    vertex = _vertex(project, region, api_endpoint, home)
    found = list(vertex.list(f"{vertex.parent}/models", "models"))
    _print_table(
        found, as_json, {"model": "displayName", "version": "versionId", "release": "labels.release", "name": "name"}
    )


@versions_app.command("list")
def versions_list(
    model: Annotated[str, typer.Argument(help="Name of the model.")],
    project: Project = LOCAL,
    region: Region = US,
    api_endpoint: ApiEndpoint = "",
    home: Home = None,
    as_json: AsJson = False,
) -> None:
    """The versions of a model, oldest first."""
    vertex = _vertex(project, region, api_endpoint, home)
    found = vertex.versions(vertex.model(model))
    columns = {
        "version": "versionId",
        "release": "labels.release",
        "aliases": "versionAliases",
        "made": "versionCreateTime",
    }
    _print_table(found, as_json, columns)


@endpoints_app.command("list")
def endpoints_list(
    project: Project = LOCAL,
    region: Region = US,
    api_endpoint: ApiEndpoint = "",
    home: Home = None,
    as_json: AsJson = False,
) -> None:
    """The endpoints and how their traffic is split."""
    vertex = _vertex(project, region, api_endpoint, home)
    found = list(vertex.list(f"{vertex.parent}/endpoints", "endpoints"))
    _print_table(found, as_json, {"endpoint": "displayName", "traffic": "trafficSplit", "name": "name"})


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


def _platform(home: Path | None) -> str:
    from twophase.local import process

    return process.ensure_up(home or process.default_home()).url


def _vertex(project: str, region: str, api_endpoint: str, home: Path | None) -> "Vertex":
    from twophase.targets.rest import Vertex

    return Vertex(project, region, api_endpoint or _platform(home))


def _rule(recall: float | None, cost: str) -> str:
    from twophase.training.operating_point import parse_rule

    if recall is not None and cost:
        raise UsageError("--recall and --cost exclude each other; give one of them")
    rule = f"recall={recall}" if recall is not None else cost
    parse_rule(rule)
    return rule


def _wanted(text: str) -> tuple[str, ...] | None:
    from twophase.audio.dataset import parse_wanted

    return parse_wanted(text) if text else None


def _data(text: str) -> str:
    return text if not text or "://" in text else str(Path(text).expanduser().resolve())


def _one_of(option: str, value: str, accepted: tuple[str, ...]) -> None:
    if value not in accepted:
        raise UsageError(f"{option} {value}: is not known; {' or '.join(accepted)} is accepted")


def _progress(what: str) -> Any:
    from twophase.display import bar

    return bar(what)


def _print_json(value: Any) -> None:
    typer.echo(json.dumps(value))


def _print_table(items: list[Any], as_json: bool, columns: dict[str, str]) -> None:
    if as_json:
        _print_json(items)
        return
    from twophase.display import table

    def cell(item: Any, path: str) -> str:
        for key in path.split("."):
            item = item.get(key, "") if isinstance(item, dict) else ""
        if isinstance(item, dict):
            return ", ".join(f"{k}: {v}%" for k, v in item.items())
        return ", ".join(item) if isinstance(item, list) else str(item)

    table(list(columns), [[cell(item, path) for path in columns.values()] for item in items])
