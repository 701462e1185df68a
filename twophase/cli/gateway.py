"""`twophase gateway ...`: the devices' counterpart, and who may talk to it."""

import os
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from twophase.cli.deploy import ApiEndpoint, Project, Region, Settings, Where, place_of
from twophase.cli.options import LOCAL, AsJson, ModelName, print_json
from twophase.errors import UsageError

if TYPE_CHECKING:
    from twophase.gateway.store import Store

gateway_app = typer.Typer(name="gateway", no_args_is_help=True, help="What devices talk to.")

app = typer.Typer()
app.add_typer(gateway_app)

GatewayHome = Annotated[
    Path | None,
    typer.Option(help="The gateway's folder. Default: TWOPHASE_GATEWAY_HOME, or gateway in the platform's folder."),
]
Database = Annotated[
    str,
    typer.Option(
        envvar="TWOPHASE_GATEWAY_DATABASE", help="postgresql://... instead of SQLite in the gateway's folder."
    ),
]
Device = Annotated[str, typer.Argument(help="Name of the device.")]


@gateway_app.command("up")
def gateway_up(
    model: ModelName = "two-phase",
    home: GatewayHome = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on; 0 takes a free one.")] = 8443,
    certificate: Annotated[Path | None, typer.Option(help="Certificate chain for TLS, in PEM.")] = None,
    private_key: Annotated[Path | None, typer.Option(help="Its private key, in PEM.")] = None,
    behind_proxy: Annotated[bool, typer.Option(help="A proxy ends TLS for it: take plain HTTP from anywhere.")] = False,
    metrics_port: Annotated[int, typer.Option(help="Prometheus metrics on loopback; 0 for none.")] = 0,
    clips_per_day: Annotated[int, typer.Option(help="What one device may send.")] = 10_000,
    bytes_per_day: Annotated[int, typer.Option(help="What one device may send.")] = 1 << 30,
    keep_days: Annotated[float, typer.Option(help="How long sound and fetched answers are kept.")] = 30,
    news: Annotated[
        Path | None, typer.Option(help="Folder watched for new data: advice to retrain goes there.")
    ] = None,
    database: Database = "",
    target: Where = LOCAL,
    setting: Settings = None,
    project: Project = "",
    region: Region = "",
    api_endpoint: ApiEndpoint = "",
) -> None:
    """Answer devices until told to stop; ask the endpoint of --model at a place for them."""
    from twophase.gateway.classifier import TargetClassifier
    from twophase.gateway.intake import Quota
    from twophase.gateway.server import Address, run, tls

    if min(clips_per_day, bytes_per_day, keep_days) <= 0:
        raise UsageError("--clips-per-day, --bytes-per-day, --keep-days: have to be above 0")
    address = Address(host, port, certificate, private_key, behind_proxy, metrics_port)
    tls(address)  # what is refused is refused before a platform is started
    classifier = TargetClassifier(place_of(target, model, setting, (project, region, api_endpoint), None))
    quota = Quota(clips=clips_per_day, bytes=bytes_per_day)
    run(_home(home), classifier, address, quota, database, keep_days, news, said=lambda url: typer.echo(url, err=True))


@gateway_app.command("enroll", hidden=True)  # as the device spells it
@gateway_app.command("enrol")
def gateway_enrol(device: Device, home: GatewayHome = None, database: Database = "") -> None:
    """Make a one-time code that lets a device in under this name, for 24 hours.

    For a device that has lost its key, or its clips: the new key takes the place of the old.
    """
    from twophase.gateway import devices

    typer.echo(_store(home, database).do(lambda c: devices.expect(c, device)))


@gateway_app.command("devices")
def gateway_devices(home: GatewayHome = None, database: Database = "", as_json: AsJson = False) -> None:
    """Who is enrolled, when each was last heard, and how far its clips are."""
    from twophase.gateway import devices

    found = _store(home, database).do(devices.listed)
    if as_json:
        print_json(found)
        return
    from twophase.display import table

    states = ("receiving", "stored", "answered", "done")
    rows = [
        [item["device"], item["state"], _time(item["seen"]), item["gate"], *(item["clips"].get(s, 0) for s in states)]
        for item in found
    ]
    table(["device", "state", "last heard", "gate", *states], [[str(cell) for cell in row] for row in rows])


@gateway_app.command("revoke")
def gateway_revoke(device: Device, home: GatewayHome = None, database: Database = "") -> None:
    """Accept nothing more from a device; a new code lets it in again."""
    from twophase.gateway import devices

    _store(home, database).do(lambda c: devices.revoke(c, device))
    typer.echo(f"{device}: revoked")


@gateway_app.command("forget")
def gateway_forget(
    device: Device,
    sequence: Annotated[int | None, typer.Option(help="Only the clip of this number.")] = None,
    before: Annotated[datetime | None, typer.Option(help="Only clips that came before this time, UTC.")] = None,
    home: GatewayHome = None,
    database: Database = "",
) -> None:
    """Delete clips of a device, their answers and what it reported; its numbers stay used."""
    from twophase.gateway import retention

    time = None if before is None else before.replace(tzinfo=UTC).timestamp()
    number = retention.forget(_store(home, database), _home(home), device, sequence, time)
    typer.echo(f"{device}: {number} clips forgotten")


@gateway_app.command("events")
def gateway_events(home: GatewayHome = None, database: Database = "", as_json: AsJson = False) -> None:
    """What was refused, halted or recommended, oldest first."""
    from sqlalchemy import select

    from twophase.gateway.store import log

    found = [dict(row._mapping) for row in _store(home, database).do(lambda c: c.execute(select(log)).all())]
    if as_json:
        print_json(found)
        return
    from twophase.display import table

    table(["time", "what", "device", ""], [[_time(e["at"]), e["what"], e["device"], e["message"]] for e in found])


@gateway_app.command("field")
def gateway_field(home: GatewayHome = None, database: Database = "", as_json: AsJson = False) -> None:
    """How gates do in the field: escalation and recall of each with 95 % intervals, and how its scores moved.

    Drift: against its release's validation clips, in the likeliest mixture; change: against its first week here.
    """
    from dataclasses import asdict

    from twophase.gateway import field
    from twophase.gateway.published import published

    found = _store(home, database).do(lambda c: field.figures(c, lambda gate: published(_home(home), gate)))
    if as_json:
        print_json([asdict(item) for item in found])
        return
    from twophase.display import table

    def share(value: field.Share | None) -> str:
        return f"{value.value:.1%} ({value.low:.1%} to {value.high:.1%})" if value else "not known yet"

    def moved(value: float | None) -> str:
        return "not known yet" if value is None else f"{value:.3f}"

    rows = []
    for f in found:
        counts = [str(f.devices), f"{f.windows:,}", str(f.audited)]
        rows.append([f.gate, *counts, share(f.escalation), share(f.recall), moved(f.drift), moved(f.change)])
    table(["gate", "devices", "windows", "audited", "escalation", "recall", "drift", "change"], rows)


def _home(home: Path | None) -> Path:
    from twophase.local.process import default_home

    return home or Path(os.environ.get("TWOPHASE_GATEWAY_HOME") or default_home() / "gateway")


def _store(home: Path | None, database: str) -> "Store":
    from twophase.gateway.server import known_store

    return known_store(_home(home), database)


def _time(at: float | None) -> str:
    return "never" if at is None else datetime.fromtimestamp(at, UTC).isoformat(sep=" ", timespec="seconds")[:19]
