"""The gateway's process: one home, one address, until SIGTERM or SIGINT.

    home/gateway.sqlite   what it remembers, unless `--database` names a PostgreSQL
    home/clips/           what arrived
    home/jobs/            what is being uploaded as a batch job
    home/updates/         the update repository, as `twophase release publish` fills it
    home/.lock            held while it runs

Without a certificate it answers on loopback only, or behind a proxy that ends TLS for it.
"""

import ipaddress
import logging
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from twophase.errors import TwoPhaseError, UsageError
from twophase.files import disk_error, locked, private
from twophase.gateway.advice import give
from twophase.gateway.classifier import Classifier
from twophase.gateway.intake import Quota
from twophase.gateway.retention import expire
from twophase.gateway.store import Store
from twophase.serving.server import end_on_signals, listening, options

CONNECTIONS = 4_000
_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Address:
    """Where a gateway listens, and how it proves who it is."""

    host: str = "127.0.0.1"
    port: int = 8443
    certificate: Path | None = None
    private_key: Path | None = None
    behind_proxy: bool = False
    metrics_port: int = 0
    """On loopback; 0 for none."""


def open_store(home: Path, database: str = "") -> Store:
    """The database of a home, made when it is not there."""
    private(home)
    return Store(database or home / "gateway.sqlite")


def known_store(home: Path, database: str = "") -> Store:
    """The database of a gateway that was started there before. Raises `TwoPhaseError` where none was."""
    try:
        there = bool(database) or (home / "gateway.sqlite").is_file()
    except OSError as error:
        raise disk_error(home, error) from None
    if not there:
        raise TwoPhaseError(
            f"{home}: there is no gateway there; start it with `twophase gateway up --home {home}`, or give the --home "
            "or the --database of the one that runs"
        )
    return Store(database or home / "gateway.sqlite")


def run(
    home: Path,
    classifier: Classifier,
    address: Address,
    quota: Quota,
    database: str,
    keep_days: float,
    news: Path | None,
    said: Callable[[str], None],
) -> None:
    """Answer until told to stop; `said` is called with the address once it listens.

    Raises `TwoPhaseError` when the home is held or no folder to write in, the port taken, or the certificate of no use.
    """
    certificate = tls(address)
    scheme = "https" if certificate else "http"
    end_on_signals()
    home = home.absolute()
    with ExitStack() as held:
        try:
            held.enter_context(locked(home, "the gateway's folder"))
        except OSError as error:
            raise disk_error(home, error) from None
        bound = held.enter_context(listening(address.host, address.port))
        import uvicorn

        from twophase.gateway.app import Gateway

        store = open_store(home, database)
        bound.listen(2048)
        said(f"{scheme}://{address.host}:{bound.getsockname()[1]}")  # before anybody has trouble
        _every_hour(store, home, keep_days, news)
        gateway = Gateway(home, store, classifier, quota)
        if address.metrics_port:
            from prometheus_client import start_http_server

            start_http_server(address.metrics_port, "127.0.0.1", gateway.metrics.registry)
        try:
            uvicorn.Server(uvicorn.Config(gateway, **how(), **certificate)).run(sockets=[bound])
        finally:
            gateway.close()
            store.close()


def how() -> dict[str, Any]:
    """uvicorn's settings: uploads over bad links are streamed, where the other servers' protocol gathers requests."""
    return options() | {"http": "httptools", "limit_concurrency": CONNECTIONS, "timeout_keep_alive": 75}


def _every_hour(store: Store, home: Path, keep_days: float, news: Path | None) -> None:
    """Forget what is over, and give advice, now and every hour."""

    def work() -> None:
        while True:
            try:
                expire(store, home, keep_days)
                for item in give(store, home, news):
                    _logger.warning("%s: %s, %s", item.gate, item.do, item.why)
            except Exception:  # an hour later the disk may have room again
                _logger.exception("the hourly work failed")
            time.sleep(3600)

    threading.Thread(target=work, name="hourly", daemon=True).start()


def tls(address: Address) -> dict[str, Any]:
    """uvicorn's words for the certificate. Raises `UsageError` where others would be answered without one."""
    if address.certificate is None and address.private_key is None:
        if not address.behind_proxy and not _is_loopback(address.host):
            raise UsageError(
                f"--host {address.host}: others would talk to the gateway without TLS; give --certificate and "
                "--private-key, or --behind-proxy where a proxy ends TLS for it"
            )
        return {}
    for option, path in (("--certificate", address.certificate), ("--private-key", address.private_key)):
        if path is None or not path.is_file():
            raise UsageError(f"{option} {path}: is no file; give both --certificate and --private-key, in PEM")
    import ssl

    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(str(address.certificate), str(address.private_key))
    except (ssl.SSLError, OSError) as error:
        raise TwoPhaseError(
            f"{address.certificate}: cannot be used ({error}); give a certificate and its key"
        ) from None
    return {"ssl_certfile": str(address.certificate), "ssl_keyfile": str(address.private_key)}


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
