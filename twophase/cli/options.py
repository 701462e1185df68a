"""What the commands share: their options, and how they print, show progress and find the platform."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from twophase.errors import TwoPhaseError, UsageError

if TYPE_CHECKING:
    from twophase.targets.rest import Vertex

Data = Annotated[
    str, typer.Option("--data", help="A folder of label/clip files, or a labels.csv. Default: rendered clips.")
]
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
Cost = Annotated[
    str,
    typer.Option(
        help="Choose threshold and rejection by the costs of a miss, a wrong label, a call and a byte, as in "
        "miss=5,wrong=2,call=0.1,byte=1e-6; what is left out costs nothing."
    ),
]
Backbone = Annotated[str, typer.Option(help="The classifier's network: small, large, or mobilenetv2.")]
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


def platform(home: Path | None) -> str:
    """The address of the platform on this machine, which is started when it does not run."""
    from twophase.local import process

    return process.ensure_up(home or process.default_home()).url


def running(home: Path | None) -> str:
    """The same address where it runs already: nothing is started. Raises `TwoPhaseError` where it does not run."""
    from twophase.local import process

    found = process.status(home or process.default_home())
    if found is None:
        raise TwoPhaseError(
            "the platform on this machine does not run; start it with `twophase local up`, then ask again"
        )
    return found.url


def connect(project: str, region: str, api_endpoint: str, home: Path | None) -> "Vertex":
    """A client of Vertex AI, or of the platform on this machine."""
    from twophase.targets.rest import Vertex

    return Vertex(project, region, api_endpoint or platform(home))


def rule(recall: float | None, cost: str) -> str:
    """How the threshold is chosen, as the rooms read it."""
    from twophase.training.operating_point import parse_rule

    if recall is not None and cost:
        raise UsageError("--recall and --cost exclude each other; give one of them")
    rule = f"recall={recall}" if recall is not None else cost
    parse_rule(rule)
    return rule


def wanted_labels(text: str) -> tuple[str, ...] | None:
    """The wanted labels, or None where the data says them."""
    from twophase.audio.dataset import parse_wanted

    return parse_wanted(text) if text else None


def data_place(text: str) -> str:
    """A folder with its whole path; a URL as it is."""
    return text if not text or "://" in text else str(Path(text).expanduser().resolve())


def one_of(option: str, value: str, accepted: tuple[str, ...]) -> None:
    """Refuse a value that an option does not accept."""
    if value not in accepted:
        raise UsageError(f"{option} {value}: is not known; {' or '.join(accepted)} is accepted")


def backbone_and_weights(backbone: str, weights: str) -> None:
    """Refuse a network that is not known, and weights that it cannot start from, before any work is done."""
    from twophase.training.networks import BACKBONES

    one_of("--backbone", backbone, BACKBONES)
    if backbone != "mobilenetv2":
        if weights not in ("", "random"):
            raise UsageError(
                f"--weights {weights}: is not for the {backbone} network; leave it out, or give --backbone mobilenetv2"
            )
    elif weights not in ("", "random", "imagenet") and not Path(weights).is_file():
        raise UsageError(f"--weights {weights}: is no file; give imagenet or a .weights.h5 file")


def progress(what: str) -> Any:
    """A progress bar on standard error."""
    from twophase.display import bar

    return bar(what)


def print_json(value: Any) -> None:
    """One JSON object for machines."""
    typer.echo(json.dumps(value))


def print_table(items: list[Any], as_json: bool, columns: dict[str, str]) -> None:
    """Items of an API as a table, a column for each dotted path; or as they came, for machines."""
    if as_json:
        print_json(items)
        return
    from twophase.display import table

    def cell(item: Any, path: str) -> str:
        for key in path.split("."):
            item = item.get(key, "") if isinstance(item, dict) else ""
        if isinstance(item, dict):
            return ", ".join(f"{k}: {v}%" for k, v in item.items())
        return ", ".join(item) if isinstance(item, list) else str(item)

    table(list(columns), [[cell(item, path) for path in columns.values()] for item in items])
