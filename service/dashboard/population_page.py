"""What the page of one population shows: its budget, the burn-down, its newest entries."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import select
from sqlalchemy.orm import Session

from service.auth.subject import Subject
from service.dashboard.burn_chart import BurnChart, burn_charts
from service.dashboard.overview import Budget, LedgerLine, budget_of, line_of
from service.ledger import repository
from service.ledger.burn_down import burn_down
from service.ledger.models import Entry

ENTRIES_SHOWN = 12
PERIODS = (7, 30, 90, 366)  # days
READ_THE_LEDGER = frozenset({"submitter", "steward", "auditor"})


@dataclass(frozen=True, kw_only=True)
class PopulationPage:
    """`entries` is empty for an admin, who reads balances but not the ledger."""

    budget: Budget
    charts: tuple[BurnChart, ...]
    days: int
    periods: tuple[int, ...]
    entries: tuple[LedgerLine, ...]


def population_page(
    session: Session, subject: Subject, population_id: str, *, days: int
) -> PopulationPage:
    """Everything on the page.

    Raises:
        LedgerNotFound: absent, or another tenant's.
    """
    population = repository.visible_population(session, subject.tenant_id, population_id)
    entries: tuple[LedgerLine, ...] = ()
    if subject.role in READ_THE_LEDGER:
        head = repository.head_of(session, subject.tenant_id)
        newest = (
            select(Entry)
            .where(Entry.population_id == population.id)
            .where(Entry.log_id == (head.log_id if head else ""))
            .order_by(Entry.idx.desc())
            .limit(ENTRIES_SHOWN)
        )
        entries = tuple(line_of(entry) for entry in session.scalars(newest))
    return PopulationPage(
        budget=budget_of(session, population),
        charts=burn_charts(burn_down(session, population, days=days)),
        days=days,
        periods=PERIODS,
        entries=entries,
    )
