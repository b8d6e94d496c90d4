"""Opens and closes the escrow of a job (ledger.md 4, 8): reserve, refuse, attempt, settle."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from dp_core.events import canonical_json
from dp_core.plan import RunPlan
from service import rows
from service.database import now_us
from service.ledger import accounts, guard, repository, spend
from service.ledger.accounts import Overdrawn, name_of
from service.ledger.entries import (
    SYSTEM,
    Draft,
    Movement,
    Receipt,
    append,
    find_receipt,
    log_of,
    newest_log,
    open_ledger,
)
from service.ledger.errors import (
    BudgetExceeded,
    IdempotencyConflict,
    LedgerNotFound,
    PopulationNotGranted,
    ReservationClosed,
    ReservationMismatch,
    StaleEpoch,
)
from service.ledger.models import Attempt, Reservation, ReservationBlock
from service.ledger.pricing import BlockReserve, check_blocks, reserve_data
from service.populations.models import Population
from service.webhooks import events

CODE = re.compile(r"[a-z0-9_]{1,40}")


def checked_code(text: str) -> str:
    """A code from a closed list, never free text: entries must not carry the latter."""
    assert CODE.fullmatch(text), "codes in entries are lower-case words"
    return text


def reserve(
    session: Session,
    *,
    tenant_id: str,
    actor: str,
    job_id: str,
    population_id: str,
    plan: Mapping[str, Any],
    plan_digest: str,
    blocks: Sequence[BlockReserve],
    job_limit: int,
) -> Receipt:
    """Holds the worst case of a job in escrow, or refuses before anything is written.

    Idempotent by job. On any error the caller must let its transaction roll back.

    Raises:
        LedgerNotFound: no such population of this tenant.
        PopulationNotGranted: no effective grant, or frozen.
        ReservationMismatch: plan, population and blocks do not fit each other.
        LedgerHalted: the log is broken, or too few witnesses watch it.
        BudgetExceeded: a block has less free than the job may need.
    """
    population, log_id = _population_and_log(session, tenant_id, population_id)
    if population.frozen:
        raise PopulationNotGranted(population_id=population_id, reason="is frozen")
    if population.alpha_star is None:
        raise PopulationNotGranted(population_id=population_id, reason="has no effective grant")
    run_plan = RunPlan.from_dict(plan)
    _check_fits(run_plan, plan_digest, population, job_limit)
    check_blocks(run_plan, population.alpha_star, blocks)
    draft = _reserve_draft(run_plan, plan_digest, population, blocks, job_id, actor)
    budgets = [name_of(block.block, "budget") for block in blocks]
    free = accounts.lock(session, log_id, population_id, budgets)
    repeated = find_receipt(session, log_id, draft)
    if repeated is not None:
        return repeated
    guard.require_reservations(session)
    _hold(session, population_id, job_id, blocks, free)
    receipt = append(session, log_id, draft, is_new=True)
    held = _reservation(run_plan, plan_digest, population, job_id, actor, receipt)
    of_blocks = [_reservation_block(job_id, block) for block in blocks]
    rows.add(session, (Reservation, [held]), (ReservationBlock, of_blocks))
    _tell_of_threshold(session, population, blocks, free)
    return receipt


def _population_and_log(
    session: Session, tenant_id: str, population_id: str
) -> tuple[Population, str]:
    """The tenant's population, and its ledger.

    Raises:
        LedgerNotFound: no such population of this tenant.
    """
    found = session.execute(
        select(Population, newest_log(tenant_id).scalar_subquery()).where(
            Population.id == population_id, Population.tenant_id == tenant_id
        )
    ).first()
    if found is None:
        raise LedgerNotFound("population")
    population, log_id = found
    return population, log_id if log_id is not None else open_ledger(session, tenant_id)


def _tell_of_threshold(
    session: Session, population: Population, blocks: Sequence[BlockReserve], free: Sequence[int]
) -> None:
    """Webhooks hear of it when this reservation takes a block's free fifth."""
    assert population.limit_pico is not None
    for block, before in zip(blocks, free, strict=True):
        if (before - block.amount_pico) * 5 <= population.limit_pico < before * 5:
            told = {"id": population.id, "block": block.block, "state": "used_80_percent"}
            events.emit(session, population.tenant_id, "budget.threshold", told)


def _check_fits(plan: RunPlan, plan_digest: str, population: Population, job_limit: int) -> None:
    assert population.delta is not None
    if plan.digest() != plan_digest:
        raise ReservationMismatch("plan_digest", "not the digest of this plan")
    if plan.job_limit != job_limit:
        raise ReservationMismatch("job_limit", "not the plan's")
    if Decimal(plan.delta) > Decimal(population.delta):
        raise ReservationMismatch("delta", "larger than the population's")
    if plan.patients_public > population.patients_public:
        raise ReservationMismatch("patients_public", "more than the population declares")
    held_out = plan.validation
    if held_out is not None and (
        "validation" not in population.blocks
        or Decimal(held_out.fraction) != Decimal(population.validation_fraction)
    ):
        raise ReservationMismatch("validation", "not the population's validation block")


def _reserve_draft(
    plan: RunPlan,
    plan_digest: str,
    population: Population,
    blocks: Sequence[BlockReserve],
    job_id: str,
    actor: str,
) -> Draft:
    assert population.alpha_star is not None
    movements = []
    for block in blocks:
        movements += [
            Movement(account=name_of(block.block, "budget"), amount_pico=-block.amount_pico),
            Movement(account=name_of(block.block, "escrow", job_id), amount_pico=block.amount_pico),
        ]
    return Draft(
        type="reserve",
        idem=f"{job_id}/reserve",
        actor=actor,
        population_id=population.id,
        job_id=job_id,
        data=reserve_data(
            job_id=job_id,
            plan=plan,
            digest=plan_digest,
            alpha_star=population.alpha_star,
            blocks=blocks,
        ),
        movements=movements,
    )


def _hold(
    session: Session,
    population_id: str,
    job_id: str,
    blocks: Sequence[BlockReserve],
    free: Sequence[int],
) -> None:
    """Moves the amounts into escrow. `free` is what each block's locked budget holds."""
    for block, left in zip(blocks, free, strict=True):
        if left < block.amount_pico:  # so that a refusal has written nothing at all
            raise _exceeded(population_id, block, left)
    amounts = {block.block: block.amount_pico for block in blocks}
    try:
        accounts.fill_escrows(session, population_id, job_id, amounts)
    except Overdrawn as short:
        block = next(b for b in blocks if name_of(b.block, "budget") == short.account)
        raise _exceeded(population_id, block, short.available_pico) from None


def _exceeded(population_id: str, block: BlockReserve, free: int) -> BudgetExceeded:
    return BudgetExceeded(
        population_id=population_id,
        block=block.block,
        requested_pico=block.amount_pico,
        available_pico=free,
    )


def _reservation(
    plan: RunPlan,
    plan_digest: str,
    population: Population,
    job_id: str,
    actor: str,
    receipt: Receipt,
) -> dict[str, Any]:
    return {
        "job_id": job_id,
        "tenant_id": population.tenant_id,
        "population_id": population.id,
        "log_id": receipt.log,
        "reserved_idx": receipt.idx,
        "settled_idx": None,
        "actor": actor,
        "plan_digest": plan_digest,
        "mode": plan.mode,
        "alpha_star": population.alpha_star,
        "alpha_job": plan.alpha_job,
        "steps_per_window_max": plan.steps_per_chunk,
        "job_limit": plan.job_limit,
        "job_spent": 0,
        "windows_charged": 0,
        "windows_done": 0,
        "windows_abandoned": 0,
        "open_window": None,
        "queries_charged": 0,
        "state": "open",
    }


def unspent(job_id: str, blocks: Sequence[BlockReserve]) -> list[ReservationBlock]:
    """What `reserve` has just written of a job's blocks, by name; apart from any session."""
    made = [ReservationBlock(**_reservation_block(job_id, block)) for block in blocks]
    return sorted(made, key=lambda row: row.block)


def _reservation_block(job_id: str, block: BlockReserve) -> dict[str, Any]:
    return {
        "job_id": job_id,
        "block": block.block,
        "q": block.q,
        "levels": canonical_json(list(block.levels)).decode(),
        "steps_max": block.steps_max,
        "steps_started": 0,
        "reserved_pico": block.amount_pico,
        "spent_pico": 0,
    }


def record_refusal(
    session: Session,
    *,
    tenant_id: str,
    actor: str,
    population_id: str,
    job_reference: str,
    needed_pico: int,
    free_pico: int,
) -> Receipt:
    """Enters a refusal with its numbers; costs nothing (P3). Idempotent by `job_reference`."""
    repository.visible_population(session, tenant_id, population_id)
    draft = Draft(
        type="reserve.refused",
        idem=refusal_idem(job_reference),
        actor=actor,
        population_id=population_id,
        data={"free": str(free_pico), "needed": str(needed_pico)},
    )
    return append(session, log_of(session, tenant_id), draft)


def refusal_idem(job_reference: str) -> str:
    """The key under which the refusal of a request stands."""
    return f"{job_reference}/refused"


def start_attempt(
    session: Session, *, job_id: str, epoch: int, worker_key: str, versions: Mapping[str, str]
) -> Receipt:
    """Enters a new try; from here on older epochs can write nothing.

    Raises:
        LedgerNotFound, ReservationClosed.
        StaleEpoch: `epoch` is not above the latest one (the latest itself: same receipt).
    """
    held = repository.locked_reservation(session, job_id)
    draft = Draft(
        type="attempt.started",
        idem=f"{job_id}/attempt/{epoch}",
        actor=worker_key,
        population_id=held.population_id,
        job_id=job_id,
        data={"epoch": epoch, "job": job_id, "versions": dict(versions), "worker": worker_key},
    )
    latest = repository.latest_attempt(session, job_id)
    if latest is not None and epoch < latest.epoch:
        raise StaleEpoch(job_id=job_id, epoch=epoch, latest=latest.epoch)
    repeated = find_receipt(session, held.log_id, draft)
    if repeated is not None:
        return repeated
    if held.state != "open":
        raise ReservationClosed(job_id=job_id)
    if latest is not None:
        latest.ended_reason = latest.ended_reason or "superseded"
    session.add(Attempt(job_id=job_id, epoch=epoch, worker_key=worker_key, started_at=now_us()))
    return append(session, held.log_id, draft)


def end_attempt(session: Session, *, job_id: str, epoch: int, reason_code: str) -> None:
    """Notes beside the log why an attempt ended; the first reason stands."""
    session.execute(
        update(Attempt)
        .where(Attempt.job_id == job_id, Attempt.epoch == epoch, Attempt.ended_reason.is_(None))
        .values(ended_reason=checked_code(reason_code))
        .execution_options(synchronize_session=False)
    )


def settle(
    session: Session,
    *,
    job_id: str,
    final_state: str,
    artifact_digests: Mapping[str, str],
    certificate_digest: str | None,
) -> Receipt:
    """Closes the job: windows never started go back, started ones stay spent (P2).

    A window still open is abandoned first. Idempotent by job.

    Raises:
        LedgerNotFound: the job reserved nothing.
        IdempotencyConflict: it was settled with other content.
    """
    held = repository.locked_reservation(session, job_id)
    wanted = {
        "artifacts": dict(artifact_digests),
        "certificate": certificate_digest,
        "state": checked_code(final_state),
    }
    if held.state == "settled":
        return _settled_before(session, held, wanted)
    if held.open_window is not None:
        abandon_open_window(
            session, held, actor=SYSTEM, epoch=_epoch(session, job_id), reason_code="job_ended"
        )
    draft = _settle_draft(session, held, wanted)
    spend.fold(session, held)
    accounts.move(session, held.log_id, held.population_id, draft.movements)
    receipt = append(session, held.log_id, draft)
    held.state, held.settled_idx = "settled", receipt.idx
    session.flush()
    return receipt


def _settled_before(session: Session, held: Reservation, wanted: Mapping[str, Any]) -> Receipt:
    entry = next(
        body for body in repository.entries_of_job(session, held.job_id) if body["type"] == "settle"
    )
    if any(entry["data"][key] != value for key, value in wanted.items()):
        raise IdempotencyConflict(log_id=held.log_id, idem=f"{held.job_id}/settle")
    return Receipt(log=held.log_id, idx=entry["idx"], leaf=entry["leaf"], ts=entry["ts"])


def _epoch(session: Session, job_id: str) -> int:
    latest = repository.latest_attempt(session, job_id)
    return 0 if latest is None else latest.epoch


def _settle_draft(session: Session, held: Reservation, wanted: Mapping[str, Any]) -> Draft:
    job_id = held.job_id
    movements, returned, started = [], {}, {}
    for block in repository.blocks_of(session, job_id):
        escrow = name_of(block.block, "escrow", job_id)
        rest = accounts.balance(session, held.population_id, escrow)
        returned[block.block] = str(rest)
        started[block.block] = block.steps_started
        movements += [
            Movement(account=escrow, amount_pico=-rest),
            Movement(account=name_of(block.block, "budget"), amount_pico=rest),
        ]
    return Draft(
        type="settle",
        idem=f"{job_id}/settle",
        actor=SYSTEM,
        population_id=held.population_id,
        job_id=job_id,
        data={
            **wanted,
            "job": job_id,
            "job_spent": str(held.job_spent),
            "returned": returned,
            "steps_started": started,
            "windows": {
                "abandoned": held.windows_abandoned,
                "charged": held.windows_charged,
                "done": held.windows_done,
            },
        },
        movements=movements,
    )


def abandon_open_window(
    session: Session, held: Reservation, *, actor: str, epoch: int, reason_code: str
) -> Receipt:
    """Marks the open window as lost. It stays spent (ledger.md 8, crash rules)."""
    window = held.open_window
    assert window is not None
    receipt = append(
        session,
        held.log_id,
        abandon_draft(held, actor=actor, epoch=epoch, window=window, reason_code=reason_code),
    )
    session.execute(
        update(Reservation)
        .where(Reservation.job_id == held.job_id, Reservation.open_window == window)
        .values(open_window=None, windows_abandoned=Reservation.windows_abandoned + 1)
        .execution_options(synchronize_session=False)
    )
    session.refresh(held)
    return receipt


def abandon_draft(
    held: Reservation, *, actor: str, epoch: int, window: int, reason_code: str
) -> Draft:
    return Draft(
        type="window.abandoned",
        idem=f"{held.job_id}/window/{window}/abandoned",
        actor=actor,
        population_id=held.population_id,
        job_id=held.job_id,
        data={
            "epoch": epoch,
            "job": held.job_id,
            "reason": checked_code(reason_code),
            "window": window,
        },
    )
