"""Publishes the logs: signs checkpoints, gathers cosignatures, and halts on a rewritten past.

One turn (ledger.md 10, 19): compare the database with the newest checkpoint kept outside
it; on the first turn ask the witnesses whether they have seen more; sign what has grown;
have it cosigned. Any contradiction halts the ledger before something is signed on top.
Turns of several processes may overlap; each step is safe to repeat.
"""

from __future__ import annotations

import functools
import logging
import os
import time
import uuid
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from sqlalchemy import select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from service import row_fence
from service.database import Database
from service.ledger import anchors, checkpoints, guard, merkle, notes, recovery, tiles
from service.ledger.anchors import Ask, Tsa, TsaUnreachable, ask_over_http, load_tsa
from service.ledger.errors import LedgerBroken, LedgerHalted, LogShrunk
from service.ledger.keys import LedgerKeys, load_keys
from service.ledger.models import Cosignature, SignedCheckpoint
from service.ledger.witnesses import (
    Cosigned,
    Post,
    Witness,
    WitnessUnreachable,
    cosign,
    load_witnesses,
    post_over_http,
)
from service.settings import Settings

logger = logging.getLogger(__name__)

COSIGN_AGAIN_SECONDS = 300
MEMORY_FILE = "system.checkpoint"
OVERTAKEN_MAX = 5  # by other publishers, in one question to a witness


@dataclass(kw_only=True)
class Publisher:
    """One publisher. `folder` lies outside the database and outlives a restored backup."""

    db: Database
    keys: LedgerKeys
    witnesses: Sequence[Witness] = ()
    quorum: int = 0
    folder: Path
    post: Post = post_over_http
    tsa: Tsa | None = None
    ask_tsa: Ask = ask_over_http
    reload: Callable[[], LedgerKeys] | None = None  # so that a rotation needs no restart
    _has_asked: bool = field(default=False, init=False)

    def turn(self, *, only: str | None = None) -> int:
        """One round over all logs, or over one; how many checkpoints were signed.

        Raises:
            LogShrunk: a log does not extend what was signed or witnessed; it is halted now.
            KeySuperseded: the log's key was rotated, and this host has the old one still.
        """
        with row_fence.every_tenant():
            try:
                return self._turn(only)
            except LogShrunk as broken:
                with self.db.transaction() as session:
                    guard.halt(session, reason=broken.reason, seen_size=broken.seen_size)
                logger.error("ledger halted", extra={"code": broken.reason})
                raise

    def _recover_if_settled(self) -> None:
        """Ends a halt once the stewards of every ledger have settled the loss.

        The file that remembers the lost past is put aside first, never deleted: a crash
        after that leaves the halt in the database, and the next turn does it again.
        """
        with self.db.transaction() as session:
            if not recovery.is_settled(session):
                return
            path = self.folder / MEMORY_FILE
            if path.exists():
                path.replace(path.with_name(f"lost-{uuid.uuid4().hex}.checkpoint"))
            recovery.lift(session, self.keys)
        logger.warning("ledger recovered", extra={"code": "ledger_recovered"})

    def turn_quietly(self) -> None:
        """A turn for its effect alone: a halt stands, the dispatcher tells again."""
        with suppress(LedgerHalted):
            self.turn()

    def _turn(self, only: str | None) -> int:
        if self.reload is not None:
            self.keys = self.reload()
        self._recover_if_settled()
        self._compare_with_memory()
        if self.witnesses and not self._has_asked:
            self._gather(must_ask=True)
            self._has_asked = True
        with self.db.transaction() as session:
            guard.configure(session, quorum=self.quorum)
            guard.require_charges(session)  # nothing is signed on top of a lost past
            signed = checkpoints.publish(session, self.keys, only=only)
        self._remember()
        if self.witnesses:
            self._gather(must_ask=False)
        if self.tsa is not None:
            self._stamp(self.tsa)
        return len(signed)

    def _stamp(self, tsa: Tsa) -> None:
        """Has due checkpoints stamped; one that fails is due again with the next turn."""
        with self.db.reading() as session:
            waiting = anchors.due(session)
        for signed in waiting:
            try:
                row = anchors.stamp(signed, tsa, self.ask_tsa)
            except TsaUnreachable:
                logger.warning("time stamp missing", extra={"code": "tsa_unreachable"})
                return
            with self.db.transaction() as session:
                anchors.keep(session, row)

    def _newest(self, session: Session) -> SignedCheckpoint | None:
        system = checkpoints.system_log(session)
        return None if system is None else checkpoints.newest(session, system)

    def _gather(self, *, must_ask: bool) -> None:
        """Brings the newest checkpoint before each witness that has not signed it lately."""
        with self.db.reading() as session:
            newest = self._newest(session)
            if newest is None:
                return
            fresh = _fresh(session, newest)
        due = [w for w in self.witnesses if must_ask or w.key.name not in fresh]
        for witness in due:
            self._ask(witness, newest)
        with self.db.transaction() as session:
            names = {w.key.name for w in self.witnesses} & _fresh(session, newest)
            if self.quorum and len(names) >= self.quorum:
                guard.note_quorum(session, size=newest.size)

    def _ask(self, witness: Witness, newest: SignedCheckpoint) -> None:
        """Brings a checkpoint before a witness, or a later one that another process signed.

        Between our look and the witness's answer another publisher may have signed and brought
        more. Only a witness that has seen more than the database holds by then is evidence.
        """
        for _ in range(OVERTAKEN_MAX):
            try:
                made = self._cosigned(witness, newest)
            except WitnessUnreachable:
                break
            except LogShrunk as broken:
                with self.db.reading() as session:
                    later = self._newest(session)
                if later is None or later.size < broken.seen_size or later.size <= newest.size:
                    raise
                newest = later
                continue
            with self.db.transaction() as session:
                _store(session, newest, made)
            return
        logger.warning("witness unreachable", extra={"code": "witness_unreachable"})

    def _cosigned(self, witness: Witness, newest: SignedCheckpoint) -> Cosigned:
        with self.db.reading() as session:
            known = _known_size(session, newest.log_id, witness.key.name)

        def prove(old: int, size: int) -> list[str]:
            with self.db.reading() as session:
                read = tiles.node_reader(session, newest.log_id)
                return merkle.consistency_path(old, size, read)

        return cosign(
            witness,
            log_id=newest.log_id,
            checkpoint=notes.parse_checkpoint(notes.parse_note(newest.note).text),
            note=newest.note,
            known_size=known,
            prove=prove,
            post=self.post,
        )

    def _compare_with_memory(self) -> None:
        """The newest checkpoint kept in a file must still be a beginning of the system log."""
        path = self.folder / MEMORY_FILE
        if not path.exists():
            return
        kept = notes.parse_checkpoint(notes.parse_note(path.read_text(encoding="utf-8")).text)
        with self.db.reading() as session:
            system = checkpoints.system_log(session)
            head = None if system is None else checkpoints.head_of(session, system)
            if head is None or head.size < kept.size:
                size = 0 if head is None else head.size
                raise LogShrunk(log_id=system or "system", size=size, seen_size=kept.size)
            try:
                root = merkle.root_at(kept.size, tiles.node_reader(session, head.log_id))
            except LedgerBroken:
                root = ""
            if (head.origin, root) != (kept.origin, kept.root):
                raise LogShrunk(log_id=head.log_id, size=head.size, seen_size=kept.size)

    def _remember(self) -> None:
        with self.db.reading() as session:
            newest = self._newest(session)
        if newest is None:
            return
        path = self.folder / MEMORY_FILE
        if path.exists() and path.read_text(encoding="utf-8") == newest.note:
            return
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        partial = path.with_name(f".{MEMORY_FILE}.{uuid.uuid4().hex}")
        with partial.open("w", encoding="utf-8") as stream:
            stream.write(newest.note)
            stream.flush()
            os.fsync(stream.fileno())
        partial.replace(path)


def make_publisher(settings: Settings, db: Database, post: Post = post_over_http) -> Publisher:
    """The publisher of a deployment.

    Raises:
        SigningKeyUnusable, WitnessFileInvalid, TsaFileInvalid.
    """
    return Publisher(
        db=db,
        keys=load_keys(settings),
        reload=functools.partial(load_keys, settings),
        witnesses=load_witnesses(settings.witnesses),
        quorum=settings.witness_quorum,
        folder=settings.data_dir / "checkpoints",
        post=post,
        tsa=load_tsa(settings),
    )


def _known_size(session: Session, log_id: str, witness: str) -> int:
    """How much of the log this witness has signed, as far as we know."""
    newest = (
        select(Cosignature.size)
        .where(Cosignature.log_id == log_id, Cosignature.witness == witness)
        .order_by(Cosignature.size.desc())
        .limit(1)
    )
    return session.scalar(newest) or 0


def _fresh(session: Session, newest: SignedCheckpoint) -> set[str]:
    """Witnesses whose cosignature of the newest checkpoint is young enough to show life."""
    since = int(time.time()) - COSIGN_AGAIN_SECONDS
    rows = session.scalars(
        select(Cosignature.witness).where(
            Cosignature.log_id == newest.log_id,
            Cosignature.size == newest.size,
            Cosignature.signed_at >= since,
        )
    )
    return set(rows)


def _store(session: Session, newest: SignedCheckpoint, made: Cosigned) -> None:
    make = sqlite.insert if session.get_bind().dialect.name == "sqlite" else postgresql.insert
    statement = make(Cosignature).values(
        log_id=newest.log_id,
        size=newest.size,
        witness=made.witness,
        line=made.line,
        signed_at=made.signed_at,
    )
    session.execute(
        statement.on_conflict_do_update(
            index_elements=["log_id", "size", "witness"],
            set_={"line": made.line, "signed_at": made.signed_at},
            where=Cosignature.signed_at < made.signed_at,
        )
    )
