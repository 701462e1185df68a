"""`twophase device ...`: what runs next to the microphone."""

import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from twophase.cli.options import AsJson, print_json
from twophase.errors import TwoPhaseError, UsageError

if TYPE_CHECKING:
    from twophase.device.config import Config

device_app = typer.Typer(name="device", no_args_is_help=True, help="What runs next to the microphone.")

app = typer.Typer()
app.add_typer(device_app)

State = Annotated[
    Path | None,
    typer.Option(help="The device's folder. Default: TWOPHASE_DEVICE_STATE, or twophase/device in the user's data."),
]
ConfigFile = Annotated[Path | None, typer.Option("--config", help="Settings. Default: device.toml in the folder.")]


@device_app.command("enroll")
def device_enroll(
    code: Annotated[str, typer.Argument(help="One-time code of `twophase gateway enrol`.")] = "",
    gateway: Annotated[str, typer.Option(help="The gateway's address: https://HOST[:PORT].")] = "",
    gate: Annotated[Path | None, typer.Option(help="A release whose gate to begin with.", metavar="RELEASE")] = None,
    direct: Annotated[
        str, typer.Option(help="For development: no gateway, but the URL at which an endpoint predicts.")
    ] = "",
    rotate: Annotated[bool, typer.Option("--rotate", help="Give an enrolled device a new key.")] = False,
    state: State = None,
) -> None:
    """Make a key on this device and let it in at a gateway."""
    from twophase.device import enrol, updates

    place = _state(state)
    if bool(code) + bool(direct) + rotate != 1 or bool(code) != bool(gateway):
        raise UsageError(
            "enroll: give a CODE and --gateway, or --rotate for a device that is enrolled, or --direct URL"
        )
    if direct:
        enrol.directly(place, direct)
        typer.echo(f"for development: clips go straight to {direct}; a device in the field needs a gateway")
    else:
        identity = enrol.rotate(place) if rotate else enrol.enrol(place, gateway, code)
        typer.echo(f"{identity.device} is enrolled at {identity.gateway}")
        if why := updates.hindered(place):
            typer.echo(f"updates: {why}")
    if gate:
        typer.echo(f"{updates.install(place, gate)} is the gate")


@device_app.command("run")
def device_run(
    source: Annotated[
        str, typer.Option(help="- for PCM on standard input, a FIFO, microphone[:DEVICE], a clip, a folder of clips.")
    ] = "",
    verbose: Annotated[bool, typer.Option("--verbose", help="Log to standard error too.")] = False,
    as_json: AsJson = False,
    state: State = None,
    config: ConfigFile = None,
) -> None:
    """Listen, keep what the gate lets through, send it when there is a connection; until told to stop.

    PCM is 16-bit, mono, 16 kHz: `arecord -q -t raw -f S16_LE -r 16000 -c 1 | twophase device run`.
    """
    from dataclasses import replace

    from twophase.device.agent import Agent, log_to

    place = _state(state)
    settings = _settings(place, config)
    log_to(place, verbose or sys.stderr.isatty())
    signal.signal(signal.SIGTERM, _end)
    agent = Agent(place, replace(settings, source=source or settings.source), print_json if as_json else _say)
    try:
        agent.run()
    except KeyboardInterrupt:
        raise typer.Exit from None


@device_app.command("status")
def device_status(
    clips: Annotated[bool, typer.Option("--clips", help="Each clip with its answer, provisional or final.")] = False,
    as_json: AsJson = False,
    state: State = None,
    config: ConfigFile = None,
) -> None:
    """What the device has heard, keeps and waits for; escalation and recall in the field, as its gateway knows them."""
    from twophase.device import status as device

    place = _state(state)
    settings = _settings(place, config)
    if clips:
        for clip in device.clips(place, settings):
            print_json(clip) if as_json else _say({"event": "answered", **clip})
        return
    status = device.running(place, settings) or device.resting(place, settings)
    if as_json:
        print_json(status)
        return
    spool, field = status.pop("spool"), status.pop("field")
    for name, value in {**status, **spool}.items():
        typer.echo(f"{name:14} {value}")
    for gate in field:
        shares = " ".join(f"{name} {_share(gate[name])}" for name in ("escalation", "recall"))
        moved = " ".join(f"{name} {gate[name]:.2f}" for name in ("drift", "change") if gate[name] is not None)
        typer.echo(f"in the field   {gate['gate']}: {shares} {moved}".rstrip())


@device_app.command("send")
def device_send(
    wait: Annotated[float, typer.Option(help="Seconds to wait for answers.")] = 60.0,
    as_json: AsJson = False,
    state: State = None,
    config: ConfigFile = None,
) -> None:
    """Send what waits now, and fetch the answers; for a device whose `run` is not running."""
    from twophase.device.agent import send_all

    place = _state(state)

    def answered(kept: dict[str, object]) -> None:
        if not as_json:
            _say({"event": "answered", **kept})

    status = send_all(place, _settings(place, config), answered, wait)
    if as_json:
        print_json(status)
    else:
        typer.echo(f"{status['waiting']} wait, {status['sent']} are sent, {status['answers']} are answered")


@device_app.command("update")
def device_update(
    url: Annotated[str, typer.Option(help="A static host of the repository. Default: the gateway's.")] = "",
    as_json: AsJson = False,
    state: State = None,
    config: ConfigFile = None,
) -> None:
    """Look for a newer gate now; what is fetched has to decide its golden windows here before it is used."""
    from dataclasses import asdict

    from twophase.device.updates import update

    place = _state(state)
    outcome = update(place, url or _settings(place, config).update.url)
    if as_json:
        print_json(asdict(outcome))
    else:
        typer.echo(" ".join(filter(None, (outcome.state, outcome.release, outcome.reason))))
    if outcome.state == "failed":
        raise TwoPhaseError(f"{outcome.release}: the gate in use stays")
    if outcome.state == "waiting":
        raise TwoPhaseError("nothing was looked for; the gate in use stays")


def _state(given: Path | None) -> Path:
    """The device's folder."""
    data = os.environ.get("XDG_DATA_HOME") or "~/.local/share"
    named = os.environ.get("TWOPHASE_DEVICE_STATE") or f"{data}/twophase/device"
    return (given or Path(named)).expanduser().absolute()


def _settings(state: Path, given: Path | None) -> "Config":
    from twophase.device.config import read

    if given and not given.is_file():
        raise UsageError(f"--config {given}: is no file")
    return read(given or state / "device.toml")


def _share(share: dict[str, float] | None) -> str:
    return f"{share['value']:.1%} ({share['low']:.1%} to {share['high']:.1%})" if share else "not known yet"


def _say(event: dict[str, object]) -> None:
    """One event as a line for people."""
    if event["event"] == "updated":
        typer.echo(f"update {event['state']} {event['release']} {event['reason']}")
        return
    answer = event.get("answer")
    label = f"{answer['label']} {answer['confidence']:.0%}" if isinstance(answer, dict) else "provisional: let through"
    if answer is None and event["kind"] == "audit":
        label = "provisional: rejected, audit sample"
    typer.echo(f"{event['sequence']:>9}  {event['captured']}  score {event['score']:+.2f}  {label}")


def _end(number: int, frame: object) -> NoReturn:
    signal.signal(number, signal.SIG_IGN)  # once is enough: the second would cut short what the first ends well
    raise KeyboardInterrupt
