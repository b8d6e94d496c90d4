"""The privacy journal of a run, kept in the service's ledger.

A charge commits under the attempt's fence before its permit exists. After a lost commit
reply the same charge is sent again: the ledger answers with the same receipt, or the
fence refuses (service.md 9.3).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from dp_core.errors import BudgetExhausted, JournalRefused, JournalUnavailable, StaleAttempt
from dp_core.ports import ChunkCharge, ChunkPermit, JournalPosition, QueryCharge, QueryPermit
from service.database import Database
from service.jobs.errors import FencedOut
from service.jobs.lifecycle import CHARGING, FINISHING, State
from service.jobs.runtime import fence
from service.ledger import service as ledger
from service.ledger.errors import EscrowExhausted, LedgerError, StaleEpoch

T = TypeVar("T")
ATTEMPTS = 4
PAUSE_SECONDS = 0.5


class LedgerJournal:
    """`dp_core.ports.PrivacyJournal` over the database, for one job and epoch."""

    def __init__(self, db: Database, *, job_id: str, epoch: int) -> None:
        self._db, self._job_id, self._epoch = db, job_id, epoch

    def open_chunk(self, charge: ChunkCharge) -> ChunkPermit:
        """Commits the window's charge under the fence, then grants its steps."""
        receipt = self._fenced(
            lambda session: ledger.charge_window(
                session, job_id=self._job_id, epoch=self._epoch, charge=charge
            ),
            states=CHARGING,
        )
        return ChunkPermit(
            attempt=charge.attempt,
            chunk_index=charge.chunk_index,
            first_step=charge.first_step,
            steps=charge.steps,
            reference=receipt.reference,
        )

    def close_chunk(self, permit: ChunkPermit, steps_run: int) -> None:
        """Notes the window's end; refunds nothing."""
        self._fenced(
            lambda session: ledger.finish_window(
                session,
                job_id=self._job_id,
                epoch=self._epoch,
                window=permit.chunk_index,
                steps_run=steps_run,
            )
        )

    def charge_query(self, charge: QueryCharge) -> QueryPermit:
        """Commits the charge of one validation query, then grants its one release."""
        receipt = self._fenced(
            lambda session: ledger.charge_query(
                session, job_id=self._job_id, epoch=self._epoch, charge=charge
            )
        )
        return QueryPermit(
            attempt=charge.attempt, query_index=charge.query_index, reference=receipt.reference
        )

    def position(self) -> JournalPosition:
        """Spending so far, from the ledger and nowhere else."""
        return self._translated(self._read_position)

    def _read_position(self) -> JournalPosition:
        with self._db.reading() as session:
            return ledger.position(session, job_id=self._job_id, epoch=self._epoch)

    def _fenced(self, write: Callable[[Session], T], *, states: frozenset[State] = FINISHING) -> T:
        def transaction() -> T:
            with self._db.transaction() as session:
                fence(session, self._job_id, self._epoch, states=states)
                return write(session)

        return self._translated(transaction)

    def _translated(self, work: Callable[[], T]) -> T:
        """Runs, repeats after a database error, and speaks dp_core's errors."""
        for attempt in range(ATTEMPTS):
            try:
                return work()
            except (FencedOut, StaleEpoch):
                raise StaleAttempt("Another attempt owns the job.") from None
            except EscrowExhausted:
                raise BudgetExhausted(
                    "The job's escrow or limit holds no further window."
                ) from None
            except LedgerError as error:
                raise JournalRefused(str(error)) from None
            except DBAPIError:
                time.sleep(PAUSE_SECONDS * 2**attempt)
        raise JournalUnavailable("The ledger does not answer; no step runs on an unknown charge.")
