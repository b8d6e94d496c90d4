"""Rings, tells, reaps, publishes: outbox, webhooks, expired jobs, signatures of the ledger.

Every turn of it may be lost or doubled; the rows tell what is left to do (service.md 8,
12). It never claims, charges or trains.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from service.database import Database
from service.datasets import retention
from service.gauges import registry_of, write_gauges
from service.jobs import leases, outbox, steering
from service.ledger.publisher import Publisher
from service.ledger.watch import Watch
from service.operations.acknowledgements import end_what_is_over
from service.settings import Settings
from service.webhooks import deliveries

logger = logging.getLogger(__name__)

SEND_SECONDS = 0.3
TELL_SECONDS = 1.0
REAP_SECONDS = 10.0
SWEEP_SECONDS = 3600.0
WATCH_SECONDS = 60.0
PUBLISH_SECONDS = 5.0  # an entry must be under a signed checkpoint within a minute


@dataclass(kw_only=True)
class Dispatcher:
    """One dispatcher. `ring` hands a job id to the broker; it may fail or do nothing."""

    db: Database
    settings: Settings
    ring: Callable[[str], None] | None  # None: no broker, workers poll
    publisher: Publisher | None = None  # None: another process signs the ledger
    _watch: Watch = field(init=False)
    _sender: deliveries.Sender = field(init=False)

    def __post_init__(self) -> None:
        self._watch = Watch(db=self.db)
        self._sender = deliveries.Sender(db=self.db, settings=self.settings)

    def run(self, stop: threading.Event) -> None:
        """Works until told to stop. An unreachable database or broker only delays.

        Webhooks leave from a thread of their own: a slow server of somebody else's rings no
        bell late.
        """
        threading.Thread(target=self._tell, args=(stop,), name="webhooks", daemon=True).start()
        reap_seconds = min(REAP_SECONDS, self.settings.lease_seconds / 4)
        watch_at = reap_at = sweep_at = publish_at = 0.0
        while not stop.is_set():
            if time.monotonic() >= watch_at:  # first, so that nothing broken is signed
                self._guarded(self.watch)
                watch_at = time.monotonic() + WATCH_SECONDS
            sent = self._guarded(self.send)
            if time.monotonic() >= reap_at:
                self._guarded(self.reap)
                self._guarded(self.look_at_known_alerts)
                reap_at = time.monotonic() + reap_seconds
            if time.monotonic() >= sweep_at:
                self._guarded(self.sweep)
                sweep_at = time.monotonic() + SWEEP_SECONDS
            if time.monotonic() >= publish_at:
                self._guarded(self.publish)
                publish_at = time.monotonic() + PUBLISH_SECONDS
            stop.wait(0 if sent else SEND_SECONDS)

    def _tell(self, stop: threading.Event) -> None:
        while not stop.is_set():
            stop.wait(0 if self._guarded(self._sender.turn) else TELL_SECONDS)

    def _guarded(self, turn: Callable[[], int]) -> int:
        """One turn; a bad one ends no dispatcher. Texts of errors stay inside."""
        try:
            return turn()
        except Exception as error:
            logger.warning("turn failed", extra={"code": type(error).__name__})
            return 0

    def send(self) -> int:
        """Sends what is due; the number of messages that left."""
        messages = outbox.take(self.db)
        sent: list[int] = []
        for message in messages:
            if not self._deliver(message):
                break
            sent.append(message.seq)
        kept = [message.seq for message in messages if message.seq not in sent]
        if sent:
            outbox.mark_sent(self.db, sent)
        if kept:
            outbox.give_back(self.db, kept)
            raise BrokerUnreachable()
        return len(sent)

    def _deliver(self, message: outbox.Message) -> bool:
        logger.info("job changed", extra={"job_id": message.job_id, "code": message.state})
        if message.topic != "doorbell" or self.ring is None:
            return True
        try:
            self.ring(message.job_id)
        except Exception as error:  # whatever the broker's library raises
            logger.warning("doorbell not sent", extra={"code": type(error).__name__})
            return False
        return True

    def reap(self) -> int:
        """Takes back jobs whose worker was not heard of, ends old holds, rings again, cleans up."""
        taken = leases.reap_expired(self.db, attempts_max=self.settings.attempts_max)
        for job_id in taken:
            logger.warning("lease expired", extra={"job_id": job_id})
        for job_id in steering.end_old_holds(self.db):
            logger.warning("held too long", extra={"job_id": job_id})
        outbox.ring_again(self.db)
        outbox.clean(self.db)
        deliveries.forget_old(self.db)
        return len(taken)

    def look_at_known_alerts(self) -> int:
        """Ends acknowledgements of what is over, so that it is news when it comes back.

        Where this process cannot see the API's data disk, an alert on it is news each time.
        """
        return end_what_is_over(self.db, self.settings.data_dir)

    def watch(self) -> int:
        """Checks the invariants, halts the ledger on a break, and writes the gauges."""
        found = self._watch.turn()
        write_gauges(registry_of(self.db), self.settings.data_dir / "metrics" / "rldp.prom")
        return found

    def publish(self) -> int:
        """Signs what has grown in the ledger and has it witnessed; halts it on a contradiction."""
        return 0 if self.publisher is None else self.publisher.turn()

    def sweep(self) -> int:
        """Erases uploads whose time is over; refunds nothing."""
        return retention.sweep(self.db, self.settings.files_dir)


class BrokerUnreachable(Exception):
    """The broker took no message; the outbox keeps them."""
