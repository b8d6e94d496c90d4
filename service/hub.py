"""Tells open pages and streams that what they show has changed: one look a second.

A page names its topic: one job, or all of its hospital. The hub looks only while somebody
listens, and tells no content: the page then asks for its part under its own rights. Parts
of one topic are drawn once per change, however many read them.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from fastapi import FastAPI
from sqlalchemy import func, select
from sqlalchemy.orm import Session
from starlette.concurrency import run_in_threadpool

from service import row_fence
from service.database import Database, clock_us
from service.fleet import registry
from service.jobs.lifecycle import TERMINAL, State
from service.jobs.models import Job, JobEvent
from service.ledger.access import PREFIX
from service.ledger.models import Entry, LogHead
from service.operations.acknowledgements import change_mark

LOOK_SECONDS = 1.0
BEAT_SECONDS = 15.0  # a comment, so that proxies keep the connection
AGE_SECONDS = 600.0
STREAMS_MAX = 20  # of one person
PARTS_MAX = 256
MINUTE = 60_000_000
LIVE = sorted(state.value for state in State if state not in TERMINAL)


@dataclass(frozen=True)
class Topic:
    """All jobs and entries of a hospital, or one of its jobs.

    If asked for, the workers too, and what admins acknowledge.
    """

    tenant_id: str
    job_id: str | None = None
    with_workers: bool = False


class TooManyStreams(Exception):
    """The person has as many streams open as one may."""


@dataclass(eq=False)
class _Listener:
    topic: Topic
    principal_id: str
    changed: asyncio.Event = field(default_factory=asyncio.Event)


def hub_of(app: FastAPI) -> Hub:
    """The application's hub, made at first use."""
    state = app.state
    if getattr(state, "hub", None) is None:
        state.hub = Hub(state.database)
    hub: Hub = state.hub
    return hub


class Hub:
    """The listeners of one process. Used from its event loop; `part` from any thread."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._listeners: set[_Listener] = set()
        self._versions: dict[Topic, str] = {}
        self._parts: dict[tuple[Topic, str], tuple[str, bytes]] = {}
        self._locks: dict[tuple[Topic, str], threading.Lock] = {}
        self._guard = threading.Lock()
        self._task: asyncio.Task[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._is_closing = False

    def close(self) -> None:
        """Ends every stream, so that the server can end. From any thread, or a signal."""
        self._is_closing = True
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop is over already
                self._loop.call_soon_threadsafe(self._wake)

    def _wake(self) -> None:
        for one in self._listeners:
            one.changed.set()

    async def listen(self, topic: Topic, principal_id: str) -> AsyncIterator[bool]:
        """True when something changed, at first too; False as a sign of life.

        Ends after ten minutes: the page asks anew, and is asked for its session again.

        Raises:
            TooManyStreams: at once, before anything is sent.
        """
        with self._joined(topic, principal_id) as listener:
            end = asyncio.get_running_loop().time() + AGE_SECONDS
            yield True
            while asyncio.get_running_loop().time() < end:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(listener.changed.wait(), BEAT_SECONDS)
                if self._is_closing:
                    return
                is_change = listener.changed.is_set()
                listener.changed.clear()  # before it is told: what changes meanwhile is told next
                yield is_change

    def has_room(self, principal_id: str) -> bool:
        own = [one for one in self._listeners if one.principal_id == principal_id]
        return len(own) < STREAMS_MAX

    def part(self, topic: Topic, audience: str, draw: Callable[[], bytes]) -> bytes:
        """The part of a page that everybody of one audience sees alike, hence without forms.

        Drawn anew after a change; each time when nobody listens, since nothing is known then.
        """
        with self._lock_of(topic, audience):
            version = self._versions.get(topic)
            kept = self._parts.get((topic, audience))
            if version is not None and kept is not None and kept[0] == version:
                return kept[1]
            drawn = draw()
            if version is not None:
                self._parts[topic, audience] = (version, drawn)
            return drawn

    def _lock_of(self, topic: Topic, audience: str) -> threading.Lock:
        """Tabs ask at the same moment: one draws, the others wait for what it drew."""
        with self._guard:
            if len(self._locks) >= PARTS_MAX:
                self._locks, self._parts = {}, {}
            return self._locks.setdefault((topic, audience), threading.Lock())

    @contextlib.contextmanager
    def _joined(self, topic: Topic, principal_id: str) -> Iterator[_Listener]:
        if not self.has_room(principal_id):
            raise TooManyStreams
        listener = _Listener(topic, principal_id)
        self._listeners.add(listener)
        if self._task is None or self._task.done():
            self._loop = asyncio.get_running_loop()
            with row_fence.every_tenant():  # the task keeps this; who came first does not count
                self._task = self._loop.create_task(self._watch())
        try:
            yield listener
        finally:
            self._listeners.discard(listener)

    async def _watch(self) -> None:
        """Looks while somebody listens. A database that is away for a moment is asked again."""
        while self._listeners and not self._is_closing:
            topics = {one.topic for one in self._listeners}
            with contextlib.suppress(Exception):
                found = await run_in_threadpool(self._look, topics)
                before, self._versions = self._versions, found
                for one in self._listeners:
                    if before.get(one.topic) != found.get(one.topic):
                        one.changed.set()
            await asyncio.sleep(LOOK_SECONDS)
        self._versions, self._parts = {}, {}

    def _look(self, topics: set[Topic]) -> dict[Topic, str]:
        found = dict.fromkeys(topics, "")
        jobs = {topic.job_id: topic for topic in topics if topic.job_id is not None}
        tenants: dict[str, list[Topic]] = {}
        for topic in topics - set(jobs.values()):
            tenants.setdefault(topic.tenant_id, []).append(topic)
        with self._database.reading() as session:
            for said in _of_jobs(session, list(jobs)):
                found[jobs[said[0]]] += repr(said)
            for said in _of_tenants(session, list(tenants)):
                for topic in tenants[said[0]]:
                    found[topic] += repr(said)
            if any(topic.with_workers for topic in topics):
                told = _of_workers(session) + change_mark(session)
                for topic in topics:
                    found[topic] += told if topic.with_workers else ""
        return found


_PROGRESS = (Job.state, Job.reason_code, Job.epoch, Job.step, Job.window_no, Job.progress_at)


def _of_jobs(session: Session, ids: list[str]) -> Iterator[tuple[Any, ...]]:
    """Rows that begin with the job's id: its progress, newest event and newest entry."""
    if ids:
        asked = select(Job.id, *_PROGRESS).where(Job.id.in_(ids))
        events = select(JobEvent.job_id, func.max(JobEvent.seq)).where(JobEvent.job_id.in_(ids))
        entries = select(Entry.job_id, func.max(Entry.idx)).where(Entry.job_id.in_(ids))
        yield from map(tuple, session.execute(asked))
        yield from map(tuple, session.execute(events.group_by(JobEvent.job_id)))
        yield from map(tuple, session.execute(entries.group_by(Entry.job_id)))


def _of_tenants(session: Session, ids: list[str]) -> Iterator[tuple[Any, ...]]:
    """Rows that begin with the tenant's id: its live jobs, and the sizes of its ledgers.

    A job that ends leaves the first and adds to the second; so does every grant and release.
    """
    if ids:
        jobs = select(Job.tenant_id, Job.id, *_PROGRESS).where(
            Job.tenant_id.in_(ids), Job.state.in_(LIVE)
        )
        heads = select(LogHead.tenant_id, func.sum(LogHead.size)).where(
            LogHead.tenant_id.in_(ids), LogHead.log_id.not_like(f"{PREFIX}/%")
        )
        yield from map(tuple, session.execute(jobs.order_by(Job.id)))
        yield from map(tuple, session.execute(heads.group_by(LogHead.tenant_id)))


def _of_workers(session: Session) -> str:
    """Changes when a worker comes, goes, drains or falls silent, and with each minute."""
    now = clock_us(session)
    workers = [
        (one.id, one.left_at, one.draining, registry.is_deaf(one, now))
        for one in registry.known(session, now)
    ]
    return repr((workers, now // MINUTE))
