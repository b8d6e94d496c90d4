"""The rules of jobs: estimate and create (service.md 8).

Planning runs before any transaction is open, since a calibration may take seconds;
creation is then one transaction: natural key, job, reservation, doorbell. A refused
budget rolls all of it back and is entered into the ledger by a second transaction.
"""

from __future__ import annotations

import hashlib
import json
import secrets
import statistics
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from sqlalchemy import bindparam, select, update
from sqlalchemy.orm import Session

from dp_core.accounting import step_pico
from dp_core.events import canonical_json
from dp_core.plan import RunPlan
from dp_core.plan_report import PlanReport, report_plan
from service import rows
from service.auth.subject import Subject
from service.database import Database
from service.idempotency import store as idempotency
from service.ids import new_id
from service.jobs import repository
from service.jobs.errors import DeviceTooSmall, JobError, ModelNotAllowed, PlanInfeasible
from service.jobs.estimate import (
    Terms,
    check_offered,
    device_speed,
    hyperparameters_of,
    plan_job,
)
from service.jobs.fit import require_fit
from service.jobs.lifecycle import Reason, State
from service.jobs.models import Job, NaturalKey
from service.jobs.outbox import NATURAL_KEY_SECONDS
from service.jobs.schemas import JobRequest
from service.jobs.transitions import SECOND, announce, clock_us
from service.jobs.views import Facts, job_answer, shown
from service.ledger import service as ledger
from service.ledger.entries import Receipt, insert_if_absent
from service.ledger.errors import BudgetExceeded, IdempotencyConflict, PopulationNotGranted
from service.models_catalog import BaseModelEntry, find_model
from service.settings import Settings

PRIORITY_VALUES = {"low": -1, "normal": 0, "high": 1}
SEED_BITS = 31
SPREADS = {"measured": 1.5, "estimated": 3.0}  # of predicted minutes, to either side
LOW_BATCH = 256  # below it, noise per step usually outweighs the signal


@dataclass(frozen=True, kw_only=True)
class Ordered:
    """What a request refers to, resolved."""

    request: JobRequest
    terms: Terms
    model: BaseModelEntry
    alpha_population: int


@dataclass(frozen=True, kw_only=True)
class Created:
    """The answer of a creation; `is_replayed` if an equal request made the job before.

    `reserved` is the receipt of a reservation made just now: no checkpoint covers it yet.
    """

    answer: dict[str, Any]
    is_replayed: bool
    reserved: Receipt | None = None


def order_of(
    session: Session, settings: Settings, subject: Subject, request: JobRequest
) -> Ordered:
    """Resolves file, dataset, population and model of a request.

    Raises:
        UnsupportedOption, PrivacyRequired, FieldInvalid: of the request itself.
        NotFound, FileInvalid, DatasetRequired: of its file.
        ModelNotAllowed: of its model.
        PopulationNotGranted: nobody has granted the population a budget yet.
    """
    check_offered(request)
    version, dataset, population = repository.training_data(session, subject, request.training_file)
    model = find_model(settings, request.model)
    if model is None:
        raise ModelNotAllowed()
    if population.alpha_star is None or population.delta is None:
        raise PopulationNotGranted(population_id=population.id, reason="has no effective grant")
    terms = Terms(
        population_id=population.id,
        patients_public=population.patients_public,
        validation_fraction=population.validation_fraction,
        delta=population.delta,
        unit="patient" if version.unit == "patient" else "record",
        records_are_unique_patients=dataset.records_are_unique_patients,
        dataset_version=version.id,
        base_model_digest=model.digest,
        tokens_per_row_max=model.context_tokens,
        model_parameters=model.parameters,
        flop_per_second=settings.device_gflops * 1e9,
        speed_source="measured" if "device_gflops" in settings.model_fields_set else "estimated",
    )
    return Ordered(
        request=request, terms=terms, model=model, alpha_population=population.alpha_star
    )


def natural_key(subject: Subject, ordered: Ordered) -> str:
    """Digest of who asks for what, before anything is generated (service.md 4.2)."""
    spec = ordered.request.model_dump(mode="json", exclude={"allow_duplicate"})
    document = [
        subject.tenant_id,
        subject.principal_id,
        ordered.terms.dataset_version,
        spec,
    ]
    text = json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def create_job(
    db: Database,
    settings: Settings,
    subject: Subject,
    request: JobRequest,
    idempotency_key: str | None = None,
) -> Created:
    """Plans, reserves and queues a job, or finds the one an equal request made.

    Under a key the first answer is given again for a day, whatever became of the job.

    Raises: as `order_of`, and
        PlanInfeasible: no noise level meets what is asked.
        DeviceTooSmall: a worker's device cannot hold the model.
        BudgetExceeded: a block has less left than the job may need; it names the refusal's entry.
        IdempotencyKeyReused, RequestInProgress: of the key.
    """
    keyed = _keyed(subject, request, idempotency_key)
    with db.reading() as session:
        if keyed and (answer := idempotency.kept_answer(session, keyed)):
            return Created(answer=answer, is_replayed=True)
        ordered = order_of(session, settings, subject, request)
        key = natural_key(subject, ordered)
        known = None if request.allow_duplicate else _job_under(session, subject, key)
        if known is not None and keyed is None:
            return Created(answer=job_answer(session, known), is_replayed=True)
    if known is not None and keyed and (twin := _twin(db, subject, keyed, key)):
        return twin
    seed = request.seed if request.seed is not None else secrets.randbits(SEED_BITS)
    plan = _fitting_plan(settings, ordered, seed=seed)
    try:
        with db.transaction() as session:
            if keyed and (kept := idempotency.take(session, keyed)):
                return Created(answer=kept, is_replayed=True)
            created = _insert(session, settings, subject, ordered, plan, key)
            if keyed:
                idempotency.keep(session, keyed, created.answer)
    except BudgetExceeded as refused:
        refused.entry = _record_refusal(db, subject, refused, key)
        raise
    return created


def _twin(db: Database, subject: Subject, keyed: idempotency.Keyed, key: str) -> Created | None:
    """The job of an equal request under a key of its own, without planning it again."""
    with db.transaction() as session:
        answer = idempotency.take(session, keyed)
        if answer is None:
            known = _job_under(session, subject, key)
            if known is None:  # it ended ten minutes ago, a moment ago
                session.rollback()
                return None
            answer = job_answer(session, known)
            idempotency.keep(session, keyed, answer)
    return Created(answer=answer, is_replayed=True)


def _keyed(
    subject: Subject, request: JobRequest, idempotency_key: str | None
) -> idempotency.Keyed | None:
    if idempotency_key is None:
        return None
    asked = request.model_dump(mode="json")
    return idempotency.keyed(subject, "POST /v1/fine_tuning/jobs", idempotency_key, asked)


def _job_under(session: Session, subject: Subject, key: str) -> Job | None:
    """The job of an equal request that lives, or ended less than ten minutes ago."""
    job_id = session.connection().execute(_JOB_OF_KEY, _identity(subject, key)).scalar()
    job = None if job_id is None else session.get(Job, job_id)
    if job is None:
        return None
    oldest = clock_us(session) - NATURAL_KEY_SECONDS * SECOND
    return job if job.finished_at is None or job.finished_at > oldest else None


_JOB_OF_KEY = select(NaturalKey.job_id).where(
    NaturalKey.tenant_id == bindparam("tenant_id"), NaturalKey.key == bindparam("key")
)


def _identity(subject: Subject, key: str) -> dict[str, str]:
    """The primary key of a natural key's row."""
    return {"tenant_id": subject.tenant_id, "key": key}


def _insert(
    session: Session,
    settings: Settings,
    subject: Subject,
    ordered: Ordered,
    plan: RunPlan,
    key: str,
) -> Created:
    """Natural key, job, reservation, doorbell, in the lock order of service.md 8."""
    now, job_id = clock_us(session), new_id("ftjob-")
    if not ordered.request.allow_duplicate:
        known = _take_key(session, subject, key, job_id, now)
        if known is not None:
            return Created(answer=job_answer(session, known), is_replayed=True)
    document, digest = plan.to_dict(), plan.digest()
    values = _job_row(settings, subject, ordered, plan, job_id, now)
    values |= {"plan": canonical_json(document).decode(), "plan_digest": digest}
    rows.add(session, (Job, [values]))
    job = Job(**values)  # apart from the session: the row is written
    blocks = ledger.block_reserves(plan, ordered.alpha_population)
    receipt = ledger.reserve(
        session,
        tenant_id=subject.tenant_id,
        actor=subject.principal_id,
        job_id=job_id,
        population_id=ordered.terms.population_id,
        plan=document,
        plan_digest=digest,
        blocks=blocks,
        job_limit=plan.job_limit,
    )
    announce(session, job, now)
    amounts = {row.block: row for row in ledger.unspent(job_id, blocks)}
    return Created(answer=shown(job, Facts(amounts=amounts)), is_replayed=False, reserved=receipt)


def _take_key(session: Session, subject: Subject, key: str, job_id: str, now: int) -> Job | None:
    identity, values = _identity(subject, key), {"job_id": job_id, "created_at": now}
    if insert_if_absent(session, NaturalKey, identity | values):
        return None
    known = _job_under(session, subject, key)
    if known is None:  # its job ended long ago
        session.execute(
            update(NaturalKey)
            .where(NaturalKey.tenant_id == subject.tenant_id, NaturalKey.key == key)
            .values(**values)
        )
    return known


def _job_row(
    settings: Settings,
    subject: Subject,
    ordered: Ordered,
    plan: RunPlan,
    job_id: str,
    now: int,
) -> dict[str, Any]:
    request = ordered.request
    spec = {
        "hyperparameters": hyperparameters_of(request).model_dump(mode="json"),
        "privacy": request.privacy.model_dump(mode="json"),
        "suffix": request.suffix,
    }
    return {
        "id": job_id,
        "tenant_id": subject.tenant_id,
        "created_by": subject.principal_id,
        "population_id": ordered.terms.population_id,
        "dataset_version_id": ordered.terms.dataset_version,
        "training_file_id": request.training_file,
        "model": request.model,
        "model_dir": str(ordered.model.directory.resolve()),
        "job_dir": str((settings.jobs_dir / job_id).resolve()),
        "spec": json.dumps(spec, sort_keys=True),
        "labels": dict(request.metadata or {}),
        "seed": plan.seed,
        "alpha_population": ordered.alpha_population,
        "priority": PRIORITY_VALUES[request.priority],
        "state": State.QUEUED.value,
        "reason_code": Reason.WAITING_FOR_WORKER.value,
        "cancel_requested": False,
        "epoch": 0,
        "attempt": 0,
        "lease_seconds": settings.lease_seconds,
        "not_before": now,
        "rung_at": now,
        "progress_at": now,
        "step": 0,
        "window_no": 0,
        "created_at": now,
        "state_at": now,
    }


def _record_refusal(
    db: Database, subject: Subject, refused: BudgetExceeded, key: str
) -> tuple[str, str]:
    """(log, idem) of the entry: at most one per equal request in ten minutes."""
    with db.transaction() as session:
        span = clock_us(session) // (NATURAL_KEY_SECONDS * SECOND)
        reference = f"refusal/{key[:32]}/{span}"
        try:
            log_id = ledger.record_refusal(
                session,
                tenant_id=subject.tenant_id,
                actor=subject.principal_id,
                population_id=refused.population_id,
                job_reference=reference,
                needed_pico=refused.requested_pico,
                free_pico=refused.available_pico,
            ).log
        except IdempotencyConflict as before:  # entered before, with another balance
            log_id = before.log_id
    return log_id, ledger.refusal_idem(reference)


def estimate_job(
    session: Session, settings: Settings, subject: Subject, request: JobRequest
) -> dict[str, Any]:
    """What the job would reserve and whether it fits; writes nothing (service.md 6.1).

    Raises: as `order_of`, except that an unfit plan or budget is an answer, not an error.
    """
    ordered = order_of(session, settings, subject, request)
    seed = request.seed if request.seed is not None else 0
    try:
        plan = _fitting_plan(settings, ordered, seed=seed)
    except PlanInfeasible as error:
        return _unfit(error, ["fewer_steps", "smaller_batch", "larger_epsilon"])
    except DeviceTooSmall as error:
        return _unfit(error, ["smaller_model", "shorter_rows", "smaller_adapter"])
    return _priced(session, subject, ordered, plan)


def _fitting_plan(settings: Settings, ordered: Ordered, *, seed: int) -> RunPlan:
    plan = plan_job(ordered.request, ordered.terms, seed=seed)
    require_fit(settings, ordered.model.shape, plan.adapter, plan.tokens_per_row)
    return plan


def _unfit(error: JobError, remedies: list[str]) -> dict[str, Any]:
    return {
        "object": "fine_tuning.job.estimate",
        "feasible": False,
        "reason": str(error),
        "remedies": remedies,
    }


def _priced(session: Session, subject: Subject, ordered: Ordered, plan: RunPlan) -> dict[str, Any]:
    alpha = ordered.alpha_population
    reserves = ledger.block_reserves(plan, alpha)
    budget = ledger.epsilon_limits(session, ordered.terms.population_id)
    free = {block.block: block.free_pico for block in budget.blocks}
    feasible = all(reserve.amount_pico <= free[reserve.block] for reserve in reserves)
    train = reserves[0]
    share = train.amount_pico / budget.limit_pico if budget.limit_pico else 0
    speed = device_speed(ordered.request, ordered.terms)
    report = report_plan(plan, population_alpha=alpha, speed=speed)
    minutes = _minutes(session, subject, ordered, plan, report)
    return {
        "object": "fine_tuning.job.estimate",
        "feasible": feasible,
        "rule": "pld_fixed_schedule" if plan.mode == "fixed_sigma" else "rdp_filter",
        "population": ordered.terms.population_id,
        "alpha_population": alpha,
        "alpha_job": plan.alpha_job,
        "delta": plan.delta,
        "epsilon_job": plan.epsilon_certified,
        "steps_max": plan.steps_planned,
        "steps_started_max": plan.steps_started_max,
        "batch_size": plan.batch_size_expected,
        "sampling_probability": plan.sampling_probability,
        "reserve_pico": str(train.amount_pico),
        "available_after_pico": str(free["train"] - train.amount_pico) if feasible else None,
        "population_share": f"{share:.3f}",
        "blocks": [
            {
                "block": reserve.block,
                "reserve_pico": str(reserve.amount_pico),
                "available_pico": str(free[reserve.block]),
            }
            for reserve in reserves
        ],
        "levels": [
            {
                "noise_multiplier": level,
                "step_pico": str(step_pico(plan.sampling_probability, level, alpha)),
            }
            for level in plan.noise_levels
        ],
        "noise_schedule": None if plan.noise_schedule is None else plan.noise_schedule.to_list(),
        "minutes": minutes,
        "plan": report.to_dict(),
        "warnings": _warnings(ordered, plan, minutes),
        "remedies": (
            [] if feasible else ["fewer_steps", "smaller_epsilon", "smaller_batch", "ask_grant"]
        ),
    }


def _minutes(
    session: Session, subject: Subject, ordered: Ordered, plan: RunPlan, report: PlanReport
) -> dict[str, Any]:
    """From the pace of finished runs of this model, else from the device's stated speed."""
    paces = repository.minutes_per_token(session, subject.tenant_id, ordered.request.model)
    if paces:
        tokens = plan.steps_planned * plan.batch_size_expected * plan.tokens_per_row
        middle, spread, source = statistics.median(paces) * tokens, 1.2, "past_runs"
    else:
        assert report.minutes is not None and report.speed_source is not None
        middle, source = report.minutes, report.speed_source
        spread = SPREADS[source]
    return {
        "low": max(1, int(middle * (2 - spread if source == "past_runs" else 1 / spread))),
        "high": max(1, int(middle * spread) + 1),
        "source": source,
    }


def _warnings(ordered: Ordered, plan: RunPlan, minutes: dict[str, Any]) -> list[str]:
    found = ["utility_low_batch"] if plan.batch_size_expected < LOW_BATCH else []
    granted = ordered.request.privacy.minutes_max
    if granted is not None and minutes["low"] > max(Decimal(granted), 1):
        found.append("minutes_above_limit")
    return found
