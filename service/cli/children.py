"""The three processes of a deployment, each in the foreground until a signal ends it.

They read everything from the environment, as the parent of `rldp up` sets it. A child of
`rldp up` dies with it: its launcher has tied it to the parent's life.
"""

from __future__ import annotations

import ipaddress
import os
import signal
import threading

import typer

from service.logs import configure_logging, logging_configuration
from service.settings import Settings


def run_api() -> None:
    """Serves HTTP on `settings.bind`.

    Raises:
        typer.BadParameter: an embedded service would listen beyond this host without TLS.
    """
    import uvicorn

    from service.app import create_app

    settings = Settings()
    host, port = bind_of(settings)
    configure_logging()
    uvicorn.run(
        create_app(settings),
        host=host,
        port=port,
        log_config=logging_configuration(),
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=5,
    )


def bind_of(settings: Settings) -> tuple[str, int]:
    """Host and port to listen on.

    Raises:
        typer.BadParameter: not host:port, or an address the embedded layout refuses.
    """
    host, _, port = settings.bind.rpartition(":")
    host = host.strip("[]")
    if not host or not port.isdecimal():
        raise typer.BadParameter("RLDP_BIND must be host:port.")
    if settings.environment == "embedded" and not _is_loopback(host):
        raise typer.BadParameter(
            "The embedded service speaks plain HTTP, hence listens on 127.0.0.1 only. "
            "Put a TLS proxy in front and set RLDP_ENVIRONMENT=production."
        )
    return host, int(port)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def run_dispatcher() -> None:
    """Sends the outbox and reaps until SIGTERM or SIGINT."""
    from service.database import Database
    from service.dispatcher import Dispatcher
    from service.ledger.publisher import make_publisher
    from service.worker.celery_app import make_app, ring

    configure_logging()
    settings = Settings()
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    app = make_app(settings)
    database = Database(settings.resolved_database_url)
    Dispatcher(
        db=database,
        settings=settings,
        ring=lambda job_id: ring(app, job_id),
        publisher=make_publisher(settings, database),
    ).run(stop)


def run_worker_process() -> None:
    """Answers doorbells and polls until SIGTERM; one job at a time."""
    from service.worker.celery_app import run_worker

    configure_logging()
    os.environ.setdefault("OMP_NUM_THREADS", str(os.cpu_count() or 1))
    run_worker(Settings())
