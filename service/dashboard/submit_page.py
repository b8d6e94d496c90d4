"""What the page of a new job shows: files, models, the form, and what the job would cost."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from service.auth.subject import Subject
from service.dashboard.advice import REMEDIES, WARNINGS, Trouble, trouble_of
from service.dashboard.submit_form import (
    FormInvalid,
    SubmitForm,
    field_of_param,
    job_request,
    new_key,
)
from service.datasets.models import Dataset, DatasetVersion, File
from service.datasets.repository import visible_files
from service.jobs.service import estimate_job
from service.ledger.service import BlockBudget, epsilon_limits
from service.models_catalog import list_models
from service.populations.models import Population
from service.settings import Settings

FILES_SHOWN = 100
MENU = 4096  # right end of the batch slider; numbers beyond it can be typed


@dataclass(frozen=True, kw_only=True)
class ReadyFile:
    """A file that a job can train on, and whose budget pays."""

    id: str
    filename: str
    population: Population


@dataclass(frozen=True, kw_only=True)
class BlockCost:
    """One block before and after the job, as shares of its limit in [0, 1]."""

    block: str
    used: float  # spent and held before it
    cost: float
    left: float  # below 0 when the job does not fit

    @property
    def fits(self) -> bool:
        return self.left >= 0


@dataclass(frozen=True, kw_only=True)
class Cost:
    """The API's estimate, with its shares and words."""

    answer: Mapping[str, Any]
    population: Population | None  # None when no plan meets what is asked
    blocks: tuple[BlockCost, ...]
    jobs_after: int  # equal ones that still fit afterwards
    warnings: tuple[str, ...]
    remedies: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What the estimate part shows: a cost, or trouble, or neither before it was asked for."""

    form: SubmitForm
    key: str
    cost: Cost | None = None
    trouble: Trouble | None = None
    faults: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class SubmitPage:
    files: tuple[ReadyFile, ...]
    models: tuple[str, ...]
    estimate: Estimate
    batch_max: int
    epsilon_max: str


def submit_page(
    session: Session, settings: Settings, subject: Subject, form: SubmitForm, estimate: Estimate
) -> SubmitPage:
    """Everything on the page."""
    files = _ready_files(session, subject)
    chosen = next((one for one in files if one.id == form.file), files[0] if files else None)
    limit = chosen.population.epsilon_limit if chosen else None
    return SubmitPage(
        files=files,
        models=tuple(model.id for model in list_models(settings)),
        estimate=estimate,
        batch_max=min(MENU, chosen.population.patients_public) if chosen else MENU,
        epsilon_max=limit or "10",
    )


def estimate_of(
    session: Session,
    settings: Settings,
    subject: Subject,
    form: SubmitForm,
    trouble: Trouble | None = None,
) -> Estimate:
    """The price of what the form asks for, or why there is none.

    `trouble` of a submission that was refused is shown with the present price.
    """
    try:
        answer = estimate_job(session, settings, subject, job_request(form))
    except FormInvalid as error:
        return Estimate(
            form=form, key=new_key(), trouble=Trouble(message=str(error)), faults=error.faults
        )
    except Exception as error:
        met = trouble_of(error)
        if met is None:
            raise
        named = field_of_param(met.param)
        faults = {named: met.message} if named else {}
        return Estimate(form=form, key=new_key(), trouble=met, faults=faults)
    return Estimate(form=form, key=new_key(), cost=_cost(session, answer), trouble=trouble)


def _cost(session: Session, answer: Mapping[str, Any]) -> Cost:
    blocks = answer.get("blocks", ())  # none when no plan was found
    population = session.get_one(Population, answer["population"]) if blocks else None
    budgets = epsilon_limits(session, answer["population"]).blocks if blocks else ()
    of_block = {one.block: one for one in budgets}
    amounts = [(b["block"], int(b["reserve_pico"]), int(b["available_pico"])) for b in blocks]
    counts = [free // reserve for _, reserve, free in amounts if reserve]
    return Cost(
        answer=answer,
        population=population,
        blocks=tuple(_block(of_block[name], reserve, free) for name, reserve, free in amounts),
        jobs_after=max(0, min(counts, default=0) - 1),
        warnings=tuple(WARNINGS[code] for code in answer.get("warnings", ())),
        remedies=tuple(REMEDIES[code] for code in answer["remedies"]),
    )


def _block(budget: BlockBudget, reserve: int, free: int) -> BlockCost:
    limit = budget.limit_pico or 1
    return BlockCost(
        block=budget.block,
        used=(budget.spent_pico + budget.held_pico) / limit,
        cost=reserve / limit,
        left=(free - reserve) / limit,
    )


def _ready_files(session: Session, subject: Subject) -> tuple[ReadyFile, ...]:
    """Newest first."""
    rows = session.execute(
        visible_files(subject)
        .where(File.status == "processed")
        .join(DatasetVersion, DatasetVersion.file_id == File.id)
        .join(Dataset, Dataset.id == DatasetVersion.dataset_id)
        .join(Population, Population.id == Dataset.population_id)
        .where(DatasetVersion.state == "ready")
        .add_columns(Population)
        .order_by(File.created_at.desc())
        .limit(FILES_SHOWN)
    )
    return tuple(
        ReadyFile(id=file.id, filename=file.filename, population=population)
        for file, population in rows
    )


@dataclass(frozen=True, kw_only=True)
class DatasetChoice:
    """A dataset of the hospital, for the upload form."""

    dataset: Dataset
    population: Population


def dataset_choices(session: Session, subject: Subject) -> tuple[DatasetChoice, ...]:
    rows = session.execute(
        select(Dataset, Population)
        .join(Population, Population.id == Dataset.population_id)
        .where(Dataset.tenant_id == subject.tenant_id)
        .order_by(Population.code, Dataset.created_at)
        .limit(FILES_SHOWN)
    )
    return tuple(DatasetChoice(dataset=one, population=two) for one, two in rows)
