"""What was spent so far, as an epsilon: a report beside the guarantee, never a decision.

Charged steps are tallied by job, rate and level. When a job is settled its tallies are
folded into one row per block that holds their price at each order 2..64, so that the figure
of a population reads the open jobs and one row, however long its history is.
"""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import ColumnElement, TextClause, func, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from dp_core.accounting import charge_curve, epsilon_of_curve
from dp_core.events import PoissonGaussian
from service.ledger.models import TALLY_OPEN, Reservation, SpendCurve, SpendTally
from service.populations.models import Population


def note(
    session: Session, held: Reservation, *, block: str, q: str, level: str, steps: int
) -> None:
    """Adds charged steps to the job's tally, in the transaction of their charge."""
    make = sqlite.insert if session.get_bind().dialect.name == "sqlite" else postgresql.insert
    statement = make(SpendTally).values(
        job_id=held.job_id,
        block=block,
        q=q,
        noise_multiplier=level,
        population_id=held.population_id,
        steps=steps,
    )
    session.execute(
        statement.on_conflict_do_update(
            index_elements=["job_id", "block", "q", "noise_multiplier"],
            set_={"steps": SpendTally.steps + steps},
        )
    )


def fold(session: Session, held: Reservation) -> None:
    """Moves a settled job's tallies into the curves of its population.

    The caller holds the lock of the reservation, and settles in the same transaction.
    """
    of_job = (SpendTally.job_id == held.job_id, TALLY_OPEN)
    for block in session.scalars(select(SpendTally.block).where(*of_job).distinct()).all():
        events = _events(session, SpendTally.block == block, *of_job)
        _add(session, held.population_id, block, charge_curve(events))
    session.execute(
        update(SpendTally)
        .where(*of_job)
        .values(folded=1)
        .execution_options(synchronize_session=False)
    )


def of_population(session: Session, population: Population, block: str) -> str:
    """Epsilon so far of one block, at the population's delta; "0" before its first grant."""
    if population.delta is None:
        return "0"
    of_block = (SpendTally.population_id == population.id, SpendTally.block == block)
    recent = charge_curve(_events(session, *of_block, TALLY_OPEN))
    settled = session.get(SpendCurve, (population.id, block), populate_existing=True)
    if settled is not None:
        recent = [a + b for a, b in zip(recent, _sums(settled), strict=True)]
    return epsilon_of_curve(recent, population.delta)


def events_of_job(session: Session, job_id: str, block: str) -> list[PoissonGaussian]:
    """What a job was charged for on one block, whether or not it is settled."""
    return events_of_jobs(session, [job_id], block).get(job_id, [])


def events_of_jobs(
    session: Session, job_ids: Sequence[str], block: str
) -> dict[str, list[PoissonGaussian]]:
    """The same of several jobs, in one query; without those that were charged nothing."""
    rows = session.execute(
        select(SpendTally.job_id, SpendTally.q, SpendTally.noise_multiplier, SpendTally.steps)
        .where(SpendTally.job_id.in_(job_ids), SpendTally.block == block)
        .order_by(SpendTally.job_id, SpendTally.q, SpendTally.noise_multiplier)
    )
    found: dict[str, list[PoissonGaussian]] = {}
    for job_id, q, level, steps in rows:
        event = PoissonGaussian(q=q, noise_multiplier=level, steps=steps)
        found.setdefault(job_id, []).append(event)
    return found


def _events(
    session: Session, *conditions: ColumnElement[bool] | TextClause
) -> list[PoissonGaussian]:
    rows = session.execute(
        select(SpendTally.q, SpendTally.noise_multiplier, func.sum(SpendTally.steps))
        .where(*conditions)
        .group_by(SpendTally.q, SpendTally.noise_multiplier)
    )
    return [PoissonGaussian(q=q, noise_multiplier=s, steps=int(n)) for q, s, n in rows]


def _sums(row: SpendCurve) -> list[int]:
    return [int(part) for part in row.sums.split()]


def _add(session: Session, population_id: str, block: str, curve: list[int]) -> None:
    # two jobs may settle at once: whoever comes first makes the row, and both lock it
    make = sqlite.insert if session.get_bind().dialect.name == "sqlite" else postgresql.insert
    empty = " ".join("0" for _ in curve)
    session.execute(
        make(SpendCurve)
        .values(population_id=population_id, block=block, sums=empty)
        .on_conflict_do_nothing()
    )
    row = session.execute(
        select(SpendCurve)
        .where(SpendCurve.population_id == population_id, SpendCurve.block == block)
        .with_for_update()
        .execution_options(populate_existing=True)
    ).scalar_one()
    row.sums = " ".join(str(a + b) for a, b in zip(_sums(row), curve, strict=True))
    session.flush()
