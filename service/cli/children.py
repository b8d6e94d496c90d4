"""The three processes of a deployment, each in the foreground until a signal ends it.

They read everything from the environment, as the parent of `rldp up` sets it. A child of
`rldp up` dies with it: its launcher has tied it to the parent's life.
"""

from __future__ import annotations

import gc
import ipaddress
import logging
import os
import signal
import threading
from types import FrameType
from typing import TYPE_CHECKING

import typer

from service.logs import configure_logging, logging_configuration
from service.settings import Settings
from service.traces import TracesUnavailable, open_traces

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

logger = logging.getLogger(__name__)

# Longer than clients and proxies keep an idle connection. Were it as long, as with the usual 5 s,
# both would now and then close and use one at the same moment, and a request would get no answer.
KEEP_ALIVE_SECONDS = 75


def run_api() -> None:
    """Serves HTTP on `settings.bind`.

    Raises:
        typer.BadParameter: an embedded service would listen beyond this host without TLS.
    """
    import uvicorn

    from service.app import create_app
    from service.heads import BoundedHeads
    from service.hub import hub_of

    settings = Settings()
    host, port = bind_of(settings)
    require_traces(settings)
    configure_logging()
    app = create_app(settings)
    serve_metrics(settings, app.state.metrics)
    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        http=BoundedHeads,
        log_config=logging_configuration(),
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=5,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
    )

    class Server(uvicorn.Server):
        """Ends the streams of open pages first; it would wait for them."""

        def handle_exit(self, sig: int, frame: FrameType | None) -> None:
            hub_of(app).close()
            super().handle_exit(sig, frame)

    gc.collect()
    gc.freeze()  # what start-up has made stays to the end: no collection need look at it again
    Server(config).run()


def serve_metrics(settings: Settings, registry: CollectorRegistry) -> None:
    """Answers Prometheus on its own port while the process lives; empty: not at all.

    On one machine a second installation finds the port taken and goes on without; in
    production that is an error.

    Raises:
        typer.BadParameter: not host:port, a refused address, or a port taken in production.
    """
    from service.gauges import serve

    if not settings.metrics_bind:
        return
    host, port = _address(settings, settings.metrics_bind, "RLDP_METRICS_BIND")
    try:
        serve(registry, host, port)
    except OSError:
        if settings.environment == "production":
            raise typer.BadParameter("RLDP_METRICS_BIND is taken or no address here.") from None
        logger.warning("no metrics: port taken", extra={"code": "metrics_port_taken"})


def require_traces(settings: Settings) -> None:
    """Refuses to start without what the settings ask for, rather than to trace nothing.

    Raises:
        typer.BadParameter: the extra `otel` is not installed.
    """
    try:
        open_traces(settings, "check").close()
    except TracesUnavailable as missing:
        raise typer.BadParameter(str(missing)) from None


def bind_of(settings: Settings) -> tuple[str, int]:
    """Host and port to listen on.

    Raises:
        typer.BadParameter: not host:port, or an address the embedded layout refuses.
    """
    return _address(settings, settings.bind, "RLDP_BIND")


def _address(settings: Settings, bind: str, variable: str) -> tuple[str, int]:
    host, _, port = bind.rpartition(":")
    host = host.strip("[]")
    if not host or not port.isdecimal():
        raise typer.BadParameter(f"{variable} must be host:port.")
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
    """Answers doorbells and polls until SIGTERM; one job at a time.

    On a host other than a job's first it lends its processes instead.
    """
    configure_logging()
    settings = Settings()
    os.environ.setdefault(
        "OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // settings.processes_per_job))
    )
    if settings.host_rank > 0:
        from service.worker.rank_agent import help_forever

        help_forever(settings)
        return
    require_traces(settings)
    from service.worker.celery_app import run_worker

    run_worker(settings)
