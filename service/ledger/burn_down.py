"""How the budget of a population was used up over time, and until when it lasts at this pace.

A report from the entries, never a decision. What it costs grows with the entries of the
period asked for and not with the log: times in a log never go back, so its first entry of
the period is found by halving, and what stood before is the balance now less what moved since.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from service.ledger import repository
from service.ledger.models import Account, Entry, LogHead, Posting
from service.populations.models import Population

DAYS_MAX = 366
PACE_SINCE = timedelta(days=1)  # a younger history says nothing about a pace
ZEROS = "0000-01-01T00:00Z"

Sums = dict[str, int]  # by kind of account


class Unit(NamedTuple):
    """A unit of time, the longest period shown by it, and how much of an entry's time names it."""

    name: str
    length: timedelta
    longest: timedelta
    digits: int


UNITS = (
    Unit("minute", timedelta(minutes=1), timedelta(hours=6), 16),
    Unit("hour", timedelta(hours=1), timedelta(days=14), 13),
    Unit("day", timedelta(days=1), timedelta(days=DAYS_MAX + 1), 10),
)


@dataclass(frozen=True, kw_only=True)
class Standing:
    """The balances of one block as they stood at the end of one unit of time."""

    at: datetime
    limit_pico: int
    held_pico: int
    spent_pico: int
    free_pico: int


@dataclass(frozen=True, kw_only=True)
class Burn:
    """One block. `used_up_at` is a forecast; None where no pace can be told, or none is spent."""

    block: str
    points: tuple[Standing, ...]  # the first at the period's begin, the last now
    spent_pico_per_day: int | None
    used_up_at: datetime | None


@dataclass(frozen=True, kw_only=True)
class BurnDown:
    """All blocks of a population over one period; `unit` is minute, hour or day."""

    since: datetime
    until: datetime
    unit: str
    burns: tuple[Burn, ...]


def burn_down(
    session: Session, population: Population, *, days: int, now: datetime | None = None
) -> BurnDown:
    """The last `days` days, or all there is of a younger population."""
    until = now or datetime.now(UTC)
    since = max(until - timedelta(days=days), _registered(population))
    unit = next(unit for unit in UNITS if until - since <= unit.longest)
    moved = _moved(session, population, since, unit.digits)
    sums = repository.balances(session, population.id)
    burns = []
    for block in population.blocks:
        of_block = [(min(at + unit.length, until), s) for at, name, s in moved if name == block]
        points = tuple(_standings(since, until, of_block, sums.get(block, {})))
        burns.append(_burn(block, points))
    return BurnDown(since=since, until=until, unit=unit.name, burns=tuple(burns))


def _registered(population: Population) -> datetime:
    return datetime.fromtimestamp(population.created_at // 60_000_000 * 60, UTC)


def _moved(
    session: Session, population: Population, since: datetime, digits: int
) -> list[tuple[datetime, str, Sums]]:
    """What was moved in each unit of time, oldest first: its begin, the block, the sums."""
    unit = func.substr(Entry.ts, 1, digits)
    found: dict[tuple[str, str], Sums] = {}
    for log_id in session.scalars(
        select(LogHead.log_id).where(repository.is_ledger_of(population.tenant_id))
    ).all():
        rows = session.execute(
            select(unit, Account.block, Account.kind, func.sum(Posting.amount_pico))
            .select_from(Entry)
            .join(Posting, (Posting.log_id == Entry.log_id) & (Posting.idx == Entry.idx))
            .join(Account, Account.id == Posting.account_id)
            .where(
                Entry.log_id == log_id,
                Entry.population_id == population.id,
                Entry.idx >= _first_at(session, log_id, f"{since:%Y-%m-%dT%H:%MZ}"),
            )
            .group_by(unit, Account.block, Account.kind)
        )
        for text, block, kind, amount in rows:
            of_unit = found.setdefault((text, block), {})
            of_unit[kind] = of_unit.get(kind, 0) + int(amount)
    return [
        (datetime.fromisoformat(text + ZEROS[digits:]), block, sums)
        for (text, block), sums in sorted(found.items())
    ]


def _first_at(session: Session, log_id: str, ts: str) -> int:
    """Index of the first entry of that minute or later; the size when there is none."""
    low = 0
    high = session.scalars(select(LogHead.size).where(LogHead.log_id == log_id)).one()
    while low < high:
        middle = (low + high) // 2
        at = select(Entry.ts).where(Entry.log_id == log_id, Entry.idx == middle)
        if session.scalars(at).one() < ts:
            low = middle + 1
        else:
            high = middle
    return low


def _standings(
    since: datetime, until: datetime, moved: list[tuple[datetime, Sums]], now: Sums
) -> Iterator[Standing]:
    kinds = ("issuance", "escrow", "spent", "budget")
    sums = {kind: now.get(kind, 0) - sum(s.get(kind, 0) for _, s in moved) for kind in kinds}
    yield _standing(since, sums)
    for at, amounts in moved:
        sums = {kind: sums[kind] + amounts.get(kind, 0) for kind in kinds}
        yield _standing(at, sums)
    if not moved or moved[-1][0] < until:
        yield _standing(until, sums)


def _standing(at: datetime, sums: Sums) -> Standing:
    return Standing(
        at=at,
        limit_pico=-sums["issuance"],
        held_pico=sums["escrow"],
        spent_pico=sums["spent"],
        free_pico=sums["budget"],
    )


def _burn(block: str, points: tuple[Standing, ...]) -> Burn:
    first, last = points[0], points[-1]
    spent, took = last.spent_pico - first.spent_pico, last.at - first.at
    pace = None if took < PACE_SINCE else int(spent / (took / timedelta(days=1)))
    used_up = None
    if pace:
        left = (last.limit_pico - last.spent_pico) / pace
        used_up = last.at + timedelta(days=left) if left < 365 * 100 else None
    return Burn(block=block, points=points, spent_pico_per_day=pace, used_up_at=used_up)


def to_dict(population: Population, found: BurnDown) -> dict[str, object]:
    """As the API answers it: amounts in pico as text, one row per point and block."""
    return {
        "object": "budget.history",
        "population": population.id,
        "unit": found.unit,
        "since": _text(found.since),
        "until": _text(found.until),
        "guarantee": False,
        "data": [
            {
                "at": _text(point.at),
                "block": burn.block,
                "limit_pico": str(point.limit_pico),
                "held_pico": str(point.held_pico),
                "spent_pico": str(point.spent_pico),
                "free_pico": str(point.free_pico),
            }
            for burn in found.burns
            for point in burn.points
        ],
        "pace": [
            {
                "block": burn.block,
                "spent_pico_per_day": _or_none(burn.spent_pico_per_day),
                "used_up_at": None if burn.used_up_at is None else _text(burn.used_up_at),
            }
            for burn in found.burns
        ],
    }


def _or_none(amount: int | None) -> str | None:
    return None if amount is None else str(amount)


def _text(time: datetime) -> str:
    return f"{time:%Y-%m-%dT%H:%M:%SZ}"
