"""What operators watch, for Prometheus: a scrape endpoint and a file for a textfile collector.

Every series is declared in `service/metrics.py`; none is computed from patients' data. All
but the request times are read from rows at each scrape, so every process answers the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from prometheus_client import CollectorRegistry, Histogram, disable_created_metrics
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import start_http_server, write_to_textfile
from prometheus_client.registry import Collector
from sqlalchemy import BigInteger, cast, func, select
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from service.database import Database, now_us
from service.jobs.lifecycle import CLAIMABLE, LEASED, STATES, Reason
from service.jobs.models import Job
from service.ledger import accounts, guard
from service.ledger.findings import INVARIANTS
from service.ledger.models import Attempt, Cosignature, Reservation, SignedCheckpoint
from service.metrics import OPERATIONS, require_operation

SECOND_US = 1_000_000
HTTP_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 60.0)
Sample = tuple[tuple[str, ...], float]  # values of the declared labels, in their order

disable_created_metrics()  # type: ignore[no-untyped-call]


class Rows(Collector):
    """Reads the series of ledger and queue at each scrape. Labels: closed sets, opaque ids."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def describe(self) -> Iterable[Metric]:
        """Nothing is read before the first scrape."""
        return []

    def collect(self) -> Iterator[Metric]:
        """All series; `rldp_database_up` alone when the database does not answer."""
        try:
            with self._database.reading() as session:
                found = [_family(name, read(session)) for name, read in READERS.items()]
        except SQLAlchemyError:  # its text may quote a row
            yield _family("rldp_database_up", [((), 0)])
            return
        yield from found
        yield _family("rldp_database_up", [((), 1)])


def _family(name: str, samples: Iterable[Sample]) -> Metric:
    declared = require_operation(name)
    kind = CounterMetricFamily if declared.kind == "counter" else GaugeMetricFamily
    made = kind(name, declared.meaning, labels=declared.labels)
    for labels, value in samples:
        made.add_metric(labels, value)
    return made


def _broken(session: Session) -> Iterator[Sample]:
    broken = guard.broken_invariants(session)
    return (((name,), int(name in broken)) for name in INVARIANTS)


def _halted(session: Session) -> list[Sample]:
    return [((), int(guard.state(session)["state"] == "halted"))]


def _age(then: int | None) -> list[Sample]:
    """Whole seconds since; nothing as long as there is nothing to be old."""
    return [] if then is None else [((), max(0, now_us() // SECOND_US - then))]


def _checkpoint_age(session: Session) -> list[Sample]:
    signed_us = session.scalar(select(func.max(SignedCheckpoint.created_at)))
    return _age(None if signed_us is None else signed_us // SECOND_US)


def _witness_age(session: Session) -> list[Sample]:
    return _age(session.scalar(select(func.max(Cosignature.signed_at))))


def _jobs(session: Session) -> Iterator[Sample]:
    rows = session.execute(select(Job.state, func.count()).group_by(Job.state))
    counted: dict[str, int] = {row[0]: row[1] for row in rows}
    return (((state,), counted.get(state, 0)) for state in sorted(STATES))


def _queue_wait(session: Session) -> list[Sample]:
    oldest = session.scalar(
        select(func.min(Job.created_at)).where(Job.state.in_(CLAIMABLE), Job.not_before <= now_us())
    )
    return _age(None if oldest is None else oldest // SECOND_US)


def _heartbeat_age(session: Session) -> list[Sample]:
    lease_us = cast(Job.lease_seconds, BigInteger) * SECOND_US  # beyond 35 minutes no INTEGER
    heard = Job.lease_expires_at - lease_us
    quietest = session.scalar(select(func.min(heard)).where(Job.state.in_(LEASED)))
    return _age(None if quietest is None else quietest // SECOND_US)


def _leases_lost(session: Session) -> list[Sample]:
    lost = Attempt.ended_reason == Reason.LEASE_EXPIRED.value
    return [((), session.scalar(select(func.count()).select_from(Attempt).where(lost)) or 0)]


def _windows(session: Session) -> list[Sample]:
    row = session.execute(
        select(
            func.sum(Reservation.windows_charged),
            func.sum(Reservation.windows_done),
            func.sum(Reservation.windows_abandoned),
        )
    ).one()
    return [
        ((outcome,), int(number or 0))
        for outcome, number in zip(("charged", "done", "abandoned"), row, strict=True)
    ]


def _budgets(session: Session) -> Iterator[Sample]:
    yield from accounts.used_ratios(session).items()


READERS: dict[str, Callable[[Session], Iterable[Sample]]] = {
    "rldp_invariant_broken": _broken,
    "rldp_ledger_halted": _halted,
    "rldp_checkpoint_age_seconds": _checkpoint_age,
    "rldp_witness_age_seconds": _witness_age,
    "rldp_jobs": _jobs,
    "rldp_queue_wait_seconds": _queue_wait,
    "rldp_worker_heartbeat_age_seconds": _heartbeat_age,
    "rldp_lease_lost": _leases_lost,
    "rldp_windows": _windows,
    "rldp_budget_used_ratio": _budgets,
}


def registry_of(database: Database) -> CollectorRegistry:
    """A registry of our own: the library's default one tells of memory and files."""
    made = CollectorRegistry()
    made.register(Rows(database))
    return made


def http_seconds(registry: CollectorRegistry) -> Histogram:
    """The times of this process's requests, by route template, method and status."""
    declared = OPERATIONS["rldp_http_seconds"]
    return Histogram(
        declared.name,
        declared.meaning,
        labelnames=declared.labels,
        registry=registry,
        buckets=HTTP_BUCKETS,
    )


def write_gauges(registry: CollectorRegistry, path: Path) -> None:
    """Replaces the file whole, so that a collector never reads half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_to_textfile(str(path), registry)


def serve(registry: CollectorRegistry, host: str, port: int) -> Callable[[], None]:
    """Answers scrapes on a port of its own, in a thread; returns what ends it.

    Raises:
        OSError: the port is taken.
    """
    server, thread = start_http_server(port, addr=host, registry=registry)

    def stop() -> None:
        server.shutdown()
        server.server_close()
        thread.join()

    return stop
