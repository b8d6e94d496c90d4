"""A small hospital for ledger tests: people with keys, one granted population, one plan."""

from __future__ import annotations

import base64
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from sqlalchemy.orm import Session

import service.models
from dp_core.accounting import limit_pico, pld_epsilon
from dp_core.certificate import job_claim
from dp_core.events import Component, PoissonGaussian
from dp_core.noise_schedule import NoiseSchedule
from dp_core.plan import RunPlan, ValidationPlan
from dp_core.ports import ChunkCharge, QueryCharge
from service.certificates.service import build_certificate
from service.database import Database, now_us
from service.ids import new_id, new_person_id
from service.ledger import approvals, grants, releases
from service.ledger import service as ledger
from service.ledger.publisher import make_publisher
from service.populations import service as populations
from service.settings import Settings
from service.tenants.models import Principal, Tenant

POSTGRES_URL = os.environ.get(
    "RLDP_TEST_POSTGRES_URL", "postgresql+psycopg://root@127.0.0.1:5432/test"
)
WORKER = "wk_test"
FULL_NOISE = (
    Component(id="0.q_proj.A", sensitivity="0.3", std="0.5"),
    Component(id="0.q_proj.B", sensitivity="0.4", std="0.5"),
)


@contextmanager
def sqlite_database(directory: Path) -> Iterator[Database]:
    db = Database(f"sqlite:///{directory / 'ledger.db'}")
    service.models.metadata.create_all(db.engine)
    yield db
    db.dispose()


@contextmanager
def postgres_url() -> Iterator[str]:
    """The URL of a fresh, empty schema; skips loudly when no server answers."""
    name = f"t_{uuid.uuid4().hex}"
    engine = sqlalchemy.create_engine(POSTGRES_URL)
    try:
        with engine.begin() as connection:
            connection.execute(sqlalchemy.text(f"CREATE SCHEMA {name}"))
    except sqlalchemy.exc.OperationalError:
        engine.dispose()
        pytest.skip("no PostgreSQL at RLDP_TEST_POSTGRES_URL")
    try:
        joint = "&" if "?" in POSTGRES_URL else "?"
        yield f"{POSTGRES_URL}{joint}options=-csearch_path%3D{name}"
    finally:
        with engine.begin() as connection:
            connection.execute(sqlalchemy.text(f"DROP SCHEMA {name} CASCADE"))
        engine.dispose()


@contextmanager
def postgres_database() -> Iterator[Database]:
    with postgres_url() as url:
        db = Database(url)
        service.models.metadata.create_all(db.engine)
        try:
            yield db
        finally:
            db.dispose()


@dataclass
class World:
    """One tenant. `stewards` maps ids to private keys, which only tests hold."""

    db: Database
    tenant: str
    stewards: dict[str, Ed25519PrivateKey]
    submitter: str
    auditor: str
    admin: str
    population: str = ""
    jobs: list[str] = field(default_factory=list)

    @property
    def proposer(self) -> str:
        return next(iter(self.stewards))

    @property
    def second(self) -> str:
        return list(self.stewards)[1]

    def sign(self, steward: str, entry: dict[str, Any], decision: str = "approve") -> str:
        """What a steward's own tool does with the entry shown by the API."""
        text = approvals.signing_text(origin=entry["origin"], leaf=entry["leaf"], decision=decision)
        return base64.b64encode(self.stewards[steward].sign(text)).decode()


def found(db: Database, *, steward_count: int = 3) -> World:
    """A tenant with its people, before any population."""
    keys = {new_person_id("usr_"): Ed25519PrivateKey.generate() for _ in range(steward_count)}
    tenant = new_person_id("tn_")
    others = {role: new_person_id("usr_") for role in ("submitter", "auditor", "admin")}
    with db.transaction() as session:
        session.add(Tenant(id=tenant, created_at=now_us()))
        session.flush()
        for steward, key in keys.items():
            public = key.public_key().public_bytes_raw().hex()
            session.add(
                Principal(
                    id=steward,
                    tenant_id=tenant,
                    role="steward",
                    public_key=public,
                    created_at=now_us(),
                )
            )
        for role, person in others.items():
            session.add(Principal(id=person, tenant_id=tenant, role=role, created_at=now_us()))
    return World(db=db, tenant=tenant, stewards=keys, **others)


def add_population(
    world: World, *, code: str = "cardio", validation_fraction: str = "0", basis: str = "registry"
) -> str:
    with world.db.transaction() as session:
        population = populations.register(
            session,
            tenant_id=world.tenant,
            actor=world.proposer,
            code=code,
            unit="patient",
            patients_public=100_000,
            patients_public_basis=basis,
            validation_fraction=validation_fraction,
            overlap_with=[],
        )
        return population.id


def propose(world: World, population: str, epsilon: str = "8", **terms: Any) -> dict[str, Any]:
    request = grants.GrantRequest(
        population_id=population,
        epsilon=epsilon,
        delta=terms.get("delta"),
        alpha_star=terms.get("alpha_star"),
        reason_code="study_start",
    )
    with world.db.transaction() as session:
        made = grants.propose(
            session, tenant_id=world.tenant, actor=world.proposer, request=request
        )
        return grants.grant_to_dict(session, made)


def decide(
    world: World, grant: dict[str, Any], steward: str, decision: str = "approve"
) -> dict[str, Any]:
    with world.db.transaction() as session:
        decided = grants.decide(
            session,
            tenant_id=world.tenant,
            grant_id=grant["id"],
            approver=steward,
            decision=decision,  # type: ignore[arg-type]
            signature=world.sign(steward, grant["entry"], decision),
        )
        return grants.grant_to_dict(session, decided)


def grant(world: World, population: str, epsilon: str = "8") -> None:
    proposal = propose(world, population, epsilon, delta="1e-6")
    decide(world, proposal, world.proposer)
    assert decide(world, proposal, world.second)["state"] == "effective"


def open_world(db: Database, *, epsilon: str = "8", validation_fraction: str = "0") -> World:
    """A tenant with one granted population."""
    world = found(db)
    world.population = add_population(world, validation_fraction=validation_fraction)
    grant(world, world.population, epsilon)
    return world


@lru_cache(maxsize=16)
def plan(
    *,
    steps: int = 20,
    margin_steps: int = 20,
    validation: bool = False,
    mode: str = "fixed_sigma",
    noise_source: str = "os_entropy",
    epsilon: str = "3",
    schedule: tuple[tuple[str, int], ...] = (),
) -> RunPlan:
    """q 0.01 at sigma 1, windows of 10 steps; adaptive: a menu of two levels.

    `schedule`: (level, steps) of all steps that may be started, instead of sigma 1.
    """
    started = steps + margin_steps
    noise: dict[str, Any] = {
        "noise_levels": ("1.000",),
        "job_limit": started,
        "epsilon_certified": pld_epsilon(
            [PoissonGaussian(q="0.01", noise_multiplier="1.000", steps=started)], "1e-6"
        ),
    }
    if schedule:
        told = NoiseSchedule.from_list([{"level": x, "steps": n} for x, n in schedule])
        noise |= {
            "noise_levels": told.levels,
            "noise_schedule": told,
            "epsilon_certified": pld_epsilon(told.events("0.01"), "1e-6"),
        }
    if mode == "adaptive_sigma":
        noise = {
            "noise_levels": ("0.900", "1.000"),
            "alpha_job": 8,
            "epsilon_certified": epsilon,
            "job_limit": limit_pico(epsilon, "1e-6", 8),
        }
    held_out = ValidationPlan(
        fraction="0.1",
        sampling_probability="0.02",
        batch_size_expected=200,
        noise_multiplier="2.000",
        evaluations_max=8,
    )
    return RunPlan(
        unit="patient",
        patients_public=90_000 if validation else 100_000,
        target_epsilon="3",
        delta="1e-6",
        mode=mode,  # type: ignore[arg-type]
        sampling_probability="0.01",
        batch_size_expected=900,
        steps_planned=steps,
        steps_started_max=started,
        steps_per_chunk=10,
        validation=held_out if validation else None,
        validation_epsilon=pld_epsilon([held_out.event()], "1e-6") if validation else None,
        noise_source=noise_source,
        seed=7,
        controller_type="rldp",
        base_model_digest="0" * 64,
        dataset_version="dsv_test",
        **noise,
    )


def reserve(
    session: Session, world: World, *, job: str, run_plan: RunPlan | None = None
) -> ledger.Receipt:
    run_plan = run_plan or plan()
    view = ledger.epsilon_limits(session, world.population)
    assert view.alpha_star is not None
    return ledger.reserve(
        session,
        tenant_id=world.tenant,
        actor=world.submitter,
        job_id=job,
        population_id=world.population,
        plan=run_plan.to_dict(),
        plan_digest=run_plan.digest(),
        blocks=ledger.block_reserves(run_plan, view.alpha_star),
        job_limit=run_plan.job_limit,
    )


def window(
    number: int,
    *,
    epoch: int = 1,
    steps: int = 10,
    first_step: int = 0,
    run_plan: RunPlan | None = None,
    level: str | None = None,
    **changes: Any,
) -> ChunkCharge:
    run_plan = run_plan or plan()
    values: dict[str, Any] = {
        "plan_digest": run_plan.digest(),
        "attempt": epoch,
        "chunk_index": number,
        "first_step": first_step,
        "steps": steps,
        "q": run_plan.sampling_probability,
        "noise_multiplier": level or run_plan.noise_levels[0],
        "components": FULL_NOISE,
        "policy_digest": "ab" * 32,
    }
    return ChunkCharge(**(values | changes))


def query(number: int, *, epoch: int = 1, run_plan: RunPlan, step: int = 0) -> QueryCharge:
    assert run_plan.validation is not None
    return QueryCharge(
        plan_digest=run_plan.digest(),
        attempt=epoch,
        query_index=number,
        step=step,
        mechanism="clipped_loss",
        q=run_plan.validation.sampling_probability,
        noise_multiplier=run_plan.validation.noise_multiplier,
        sensitivity="3",
        std="6",
    )


def start(session: Session, job: str, epoch: int = 1) -> ledger.Receipt:
    return ledger.start_attempt(
        session, job_id=job, epoch=epoch, worker_key=WORKER, versions={"torch": "2.13.0"}
    )


def claim_of(run_plan: RunPlan, started: int) -> dict[str, Any]:
    """What the trainer says at the end of a job."""
    return job_claim(
        run_plan,
        steps_started=started,
        steps_finished=20,
        outcome="target_reached",
        layout_digest="e" * 64,
        groups=2,
        noise_source=run_plan.noise_source,
        policy="rldp",
        policy_digest="ab" * 32,
        second_opinion=None,
        versions={"torch": "2.13.0"},
        validation_before=None,
        validation_after=None,
    )


def run_job(world: World, *, run_plan: RunPlan, windows: int = 2, crash: bool = False) -> str:
    """A whole job in the ledger: reserve, charges, one lost attempt if wanted, settle."""
    job, epoch, number = new_id("ftjob-"), 1, 0
    with world.db.transaction() as session:
        reserve(session, world, job=job, run_plan=run_plan)
        start(session, job)
    if crash:
        with world.db.transaction() as session:
            lost = window(0, run_plan=run_plan, level=run_plan.worst_schedule.at(0)[0])
            ledger.charge_window(session, job_id=job, epoch=1, charge=lost)
        with world.db.transaction() as session:
            epoch, number = 2, 1
            start(session, job, epoch)
            ledger.abandon_window(
                session, job_id=job, epoch=2, window=0, reason_code="attempt_lost"
            )
    for done in range(windows):
        _one_window(world, job, run_plan, epoch, number + done, first_step=done * 10)
    digests = {"adapter_config.json": "c" * 64, "adapter_model.safetensors": "d" * 64}
    with world.db.transaction() as session:
        started = ledger.position(session, job_id=job, epoch=epoch).steps_started
        certificate = build_certificate(
            session,
            job_id=job,
            plan=run_plan.to_dict(),
            claim=claim_of(run_plan, started),
            artifact_digests=digests,
        )
        ledger.settle(
            session,
            job_id=job,
            final_state="succeeded",
            artifact_digests=digests,
            certificate_digest=certificate.digest,
        )
    world.jobs.append(job)
    return job


def _one_window(
    world: World, job: str, run_plan: RunPlan, epoch: int, number: int, *, first_step: int
) -> None:
    with world.db.transaction() as session:
        if run_plan.validation is not None:
            asked = ledger.position(session, job_id=job, epoch=epoch).next_query
            ledger.charge_query(
                session,
                job_id=job,
                epoch=epoch,
                charge=query(asked, epoch=epoch, run_plan=run_plan, step=first_step),
            )
        started = ledger.position(session, job_id=job, epoch=epoch).steps_started
        charge = window(
            number,
            epoch=epoch,
            first_step=first_step,
            run_plan=run_plan,
            level=run_plan.worst_schedule.at(started)[0],
        )
        if run_plan.mode == "adaptive_sigma":
            scaled = (Component(id="0.q_proj.A", sensitivity="1", std="9"),)
            charge = window(
                number,
                epoch=epoch,
                first_step=first_step,
                run_plan=run_plan,
                level=run_plan.noise_levels[number % 2],
                components=scaled,
            )
        ledger.charge_window(session, job_id=job, epoch=epoch, charge=charge)
    with world.db.transaction() as session:
        ledger.finish_window(session, job_id=job, epoch=epoch, window=number, steps_run=10)


def publish(world: World, job: str) -> str:
    """Releases a settled job with two signatures."""
    with world.db.transaction() as session:
        request = releases.request_release(
            session, tenant_id=world.tenant, actor=world.proposer, job_id=job
        )
        shown = releases.release_to_dict(session, request)
    for steward in (world.proposer, world.second):
        with world.db.transaction() as session:
            releases.decide(
                session,
                tenant_id=world.tenant,
                release_id=shown["id"],
                approver=steward,
                decision="approve",
                signature=world.sign(steward, shown["entry"]),
            )
    return str(shown["id"])


def sign_log(world: World, directory: Path) -> None:
    """What the dispatcher does every few seconds: checkpoints over all that stands."""
    make_publisher(Settings(data_dir=directory), world.db).turn()
