"""Charges windows and queries before their noise is drawn (ledger.md 3, 8; privacy.md J1).

Guarantee: a charge and its entry commit together; epoch, window order, job limit, steps
and escrow are conditions of the updates, so that no interleaving passes a limit. Asked
again with equal content, the stored receipt is returned and nothing moves.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import CursorResult, Update, select, update
from sqlalchemy.orm import Session

from dp_core.accounting import step_pico
from dp_core.events import canonical_json
from dp_core.ports import ChunkCharge, JournalPosition, QueryCharge
from service.ledger import accounts, guard, repository, spend
from service.ledger.accounts import Overdrawn, name_of
from service.ledger.entries import (
    Draft,
    Movement,
    Receipt,
    append,
    find_receipt,
    insert_if_absent,
)
from service.ledger.errors import (
    ChargeRefused,
    EscrowExhausted,
    StaleEpoch,
)
from service.ledger.models import (
    Attempt,
    Reservation,
    ReservationBlock,
    WindowSettings,
)
from service.ledger.pricing import effective_noise_multiplier_holds, levels_of
from service.ledger.reservations import abandon_draft, abandon_open_window


def charge_window(session: Session, *, job_id: str, epoch: int, charge: ChunkCharge) -> Receipt:
    """Pays for one window of training steps: escrow -> spent, and the job's own limit.

    Raises:
        LedgerNotFound, ReservationClosed, StaleEpoch, IdempotencyConflict.
        LedgerHalted: the log does not extend what was signed or witnessed.
        EscrowExhausted: the job's limit, steps or escrow would be passed.
        ChargeRefused: the charge leaves its plan or its schedule, or windows come out of order.
    """
    held, attempt = repository.fenced_reservation(session, job_id, epoch)
    block = _block(session, job_id, "train")
    _check_terms(
        held, block, charge.plan_digest, charge.attempt, epoch, charge.q, charge.noise_multiplier
    )
    settings = charge.settings_document()
    if not effective_noise_multiplier_holds(settings, charge.noise_multiplier):
        raise ChargeRefused(job_id=job_id, reason="the settings give less noise than the level")
    cost = charge.steps * step_pico(charge.q, charge.noise_multiplier, held.alpha_star)
    job_cost = charge.steps * _job_step_price(held, charge.q, charge.noise_multiplier)
    draft = _window_draft(held, attempt, charge, cost, job_cost)
    repeated = find_receipt(session, held.log_id, draft)
    if repeated is not None:
        return repeated
    guard.require_charges(session)
    _check_order(held, block, charge)
    _check_schedule(session, held, block, charge)
    _count_window(session, held, charge.chunk_index, job_cost)
    _count_steps(session, block, charge.steps, cost)
    settings_row = {"digest": charge.settings_digest(), "body": canonical_json(settings).decode()}
    insert_if_absent(session, WindowSettings, settings_row)
    return _pay(session, held, draft, block.block, charge.q, charge.noise_multiplier, charge.steps)


def charge_query(session: Session, *, job_id: str, epoch: int, charge: QueryCharge) -> Receipt:
    """Pays for one noised query on the validation block.

    Raises: as `charge_window`.
    """
    held, attempt = repository.fenced_reservation(session, job_id, epoch)
    block = _block(session, job_id, "validation")
    _check_terms(
        held, block, charge.plan_digest, charge.attempt, epoch, charge.q, charge.noise_multiplier
    )
    settings = {"groups": [{"bound": charge.sensitivity, "std": charge.std}], "signals": []}
    if not effective_noise_multiplier_holds(settings, charge.noise_multiplier):
        raise ChargeRefused(job_id=job_id, reason="the query has less noise than its level")
    cost = step_pico(charge.q, charge.noise_multiplier, held.alpha_star)
    draft = _query_draft(held, attempt, charge, cost)
    repeated = find_receipt(session, held.log_id, draft)
    if repeated is not None:
        return repeated
    guard.require_charges(session)
    counted = update(Reservation).where(
        Reservation.job_id == job_id,
        Reservation.state == "open",
        Reservation.queries_charged == charge.query_index,
    )
    if _changed(session, counted.values(queries_charged=Reservation.queries_charged + 1)) != 1:
        raise ChargeRefused(job_id=job_id, reason="queries come out of order")
    _count_steps(session, block, 1, cost)
    return _pay(session, held, draft, block.block, charge.q, charge.noise_multiplier, 1)


def finish_window(
    session: Session, *, job_id: str, epoch: int, window: int, steps_run: int
) -> Receipt:
    """Notes the end of a window. Information only; refunds nothing. Idempotent.

    Raises:
        LedgerNotFound, StaleEpoch, IdempotencyConflict.
        ChargeRefused: the window is not open.
    """
    held, attempt = repository.fenced_reservation(session, job_id, epoch)
    draft = Draft(
        type="window.done",
        idem=f"{job_id}/window/{window}/done",
        actor=attempt.worker_key,
        population_id=held.population_id,
        job_id=job_id,
        data={"epoch": epoch, "job": job_id, "steps_run": steps_run, "window": window},
    )
    repeated = find_receipt(session, held.log_id, draft)
    if repeated is not None:
        return repeated
    closed = update(Reservation).where(
        Reservation.job_id == job_id, Reservation.open_window == window
    )
    values = {"open_window": None, "windows_done": Reservation.windows_done + 1}
    if _changed(session, closed.values(**values)) != 1:
        raise ChargeRefused(job_id=job_id, reason="the window is not open")
    return append(session, held.log_id, draft)


def abandon_window(
    session: Session, *, job_id: str, epoch: int, window: int, reason_code: str
) -> Receipt:
    """Marks a charged window as lost; it stays spent. By the next claim or a forced end.

    Raises:
        LedgerNotFound, StaleEpoch, IdempotencyConflict.
        ChargeRefused: the window is not open.
    """
    held = repository.locked_reservation(session, job_id)
    latest = repository.latest_attempt(session, job_id)
    if latest is None or epoch < latest.epoch:  # a forced end raises the epoch by itself
        raise StaleEpoch(job_id=job_id, epoch=epoch, latest=latest.epoch if latest else 0)
    draft = abandon_draft(
        held, actor=latest.worker_key, epoch=epoch, window=window, reason_code=reason_code
    )
    repeated = find_receipt(session, held.log_id, draft)
    if repeated is not None:
        return repeated
    if held.open_window != window:
        raise ChargeRefused(job_id=job_id, reason="the window is not open")
    return abandon_open_window(
        session, held, actor=latest.worker_key, epoch=epoch, reason_code=reason_code
    )


def position(session: Session, *, job_id: str, epoch: int) -> JournalPosition:
    """Spending over all attempts; the truth from which a resumed run starts."""
    held = repository.reservation_of(session, job_id)
    block = _block(session, job_id, "train")
    return JournalPosition(
        attempt=epoch,
        next_chunk=held.windows_charged,
        steps_started=block.steps_started,
        next_query=held.queries_charged,
        job_units=held.job_spent,
    )


def open_window(session: Session, job_id: str) -> int | None:
    """The charged window that is neither done nor abandoned, if there is one."""
    return session.scalar(select(Reservation.open_window).where(Reservation.job_id == job_id))


def _block(session: Session, job_id: str, name: str) -> ReservationBlock:
    block = repository.block_of(session, job_id, name)
    if block is None:
        raise ChargeRefused(job_id=job_id, reason=f"block {name} was not reserved")
    return block


def _check_terms(
    held: Reservation,
    block: ReservationBlock,
    plan_digest: str,
    attempt: int,
    epoch: int,
    q: str,
    level: str,
) -> None:
    if plan_digest != held.plan_digest:
        raise ChargeRefused(job_id=held.job_id, reason="another plan")
    if attempt != epoch:
        raise ChargeRefused(job_id=held.job_id, reason="another attempt")
    if q != block.q or level not in levels_of(block.levels):
        raise ChargeRefused(job_id=held.job_id, reason="rate or level outside the plan")


def _check_order(held: Reservation, block: ReservationBlock, charge: ChunkCharge) -> None:
    if not 1 <= charge.steps <= held.steps_per_window_max or not (
        0 <= charge.first_step <= block.steps_started
    ):
        raise ChargeRefused(job_id=held.job_id, reason="steps outside their bounds")
    if held.open_window is not None:
        raise ChargeRefused(job_id=held.job_id, reason=f"window {held.open_window} is still open")
    if charge.chunk_index != held.windows_charged:
        raise ChargeRefused(job_id=held.job_id, reason=f"the next window is {held.windows_charged}")


def _check_schedule(
    session: Session, held: Reservation, block: ReservationBlock, charge: ChunkCharge
) -> None:
    """Fixed mode: the level that was registered for exactly these started steps (A5).

    A job of one level is held by its menu; steps past the end are refused where they are
    counted.
    """
    end = block.steps_started + charge.steps
    if held.mode != "fixed_sigma" or len(levels_of(block.levels)) == 1 or end > block.steps_max:
        return
    level, steps = repository.schedule_of(session, held).at(block.steps_started)
    if charge.noise_multiplier != level or charge.steps > steps:
        raise ChargeRefused(
            job_id=held.job_id,
            reason=f"the schedule has level {level} for the next {steps} steps",
        )


def _job_step_price(held: Reservation, q: str, level: str) -> int:
    if held.mode == "fixed_sigma":
        return 1
    assert held.alpha_job is not None
    return step_pico(q, level, held.alpha_job)


def _window_draft(
    held: Reservation, attempt: Attempt, charge: ChunkCharge, cost: int, job_cost: int
) -> Draft:
    return Draft(
        type="window.charge",
        idem=f"{held.job_id}/window/{charge.chunk_index}",
        actor=attempt.worker_key,
        population_id=held.population_id,
        job_id=held.job_id,
        data={
            "charge": str(cost),
            "epoch": charge.attempt,
            "first_step": charge.first_step,
            "inputs": "dp",
            "job": held.job_id,
            "job_charge": str(job_cost),
            "level": charge.noise_multiplier,
            "policy": charge.policy_digest,
            "q": charge.q,
            "settings": charge.settings_digest(),
            "steps": charge.steps,
            "window": charge.chunk_index,
        },
        movements=_escrow_to_spent(held.job_id, "train", cost),
    )


def _query_draft(held: Reservation, attempt: Attempt, charge: QueryCharge, cost: int) -> Draft:
    return Draft(
        type="query.charge",
        idem=f"{held.job_id}/query/{charge.query_index}",
        actor=attempt.worker_key,
        population_id=held.population_id,
        job_id=held.job_id,
        data={
            "block": "validation",
            "charge": str(cost),
            "epoch": charge.attempt,
            "job": held.job_id,
            "level": charge.noise_multiplier,
            "mechanism": charge.mechanism,
            "q": charge.q,
            "query": charge.query_index,
            "scale": charge.std,
            "sensitivity": charge.sensitivity,
            "step": charge.step,
        },
        movements=_escrow_to_spent(held.job_id, "validation", cost),
    )


def _escrow_to_spent(job_id: str, block: str, cost: int) -> list[Movement]:
    return [
        Movement(account=name_of(block, "escrow", job_id), amount_pico=-cost),
        Movement(account=name_of(block, "spent"), amount_pico=cost),
    ]


def _changed(session: Session, statement: Update) -> int:
    result = session.execute(statement.execution_options(synchronize_session=False))
    assert isinstance(result, CursorResult)
    return result.rowcount


def _count_window(session: Session, held: Reservation, window: int, job_cost: int) -> None:
    counted = update(Reservation).where(
        Reservation.job_id == held.job_id,
        Reservation.state == "open",
        Reservation.windows_charged == window,
        Reservation.job_spent + job_cost <= Reservation.job_limit,
    )
    values: dict[str, Any] = {
        "windows_charged": window + 1,
        "open_window": window,
        "job_spent": Reservation.job_spent + job_cost,
    }
    if _changed(session, counted.values(**values)) != 1:
        reason = "steps_exhausted" if held.mode == "fixed_sigma" else "job_limit_reached"
        raise EscrowExhausted(job_id=held.job_id, reason=reason)


def _count_steps(session: Session, block: ReservationBlock, steps: int, cost: int) -> None:
    counted = update(ReservationBlock).where(
        ReservationBlock.job_id == block.job_id,
        ReservationBlock.block == block.block,
        ReservationBlock.steps_started + steps <= ReservationBlock.steps_max,
        ReservationBlock.spent_pico + cost <= ReservationBlock.reserved_pico,
    )
    values = {
        "steps_started": ReservationBlock.steps_started + steps,
        "spent_pico": ReservationBlock.spent_pico + cost,
    }
    if _changed(session, counted.values(**values)) != 1:
        raise EscrowExhausted(job_id=block.job_id, reason="steps_exhausted")


def _pay(
    session: Session, held: Reservation, draft: Draft, block: str, q: str, level: str, steps: int
) -> Receipt:
    spend.note(session, held, block=block, q=q, level=level, steps=steps)
    try:
        accounts.move(session, held.log_id, held.population_id, draft.movements)
    except Overdrawn:
        raise EscrowExhausted(job_id=held.job_id, reason="escrow_exhausted") from None
    return append(session, held.log_id, draft)
