"""A budget over time: every point is the balance that the entries give, whatever the period."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import event, select

from service.database import Database
from service.ledger import entries, repository
from service.ledger.burn_down import Burn, BurnDown, burn_down
from service.ledger.models import Entry
from service.ledger.views import budget_as_of, epsilon_limits
from service.populations.models import Population
from tests.service.ledger import world as w

DAY = timedelta(days=1)
Clock = Callable[[datetime], None]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    def put(time: datetime) -> None:
        monkeypatch.setattr(entries, "this_minute", lambda: f"{time:%Y-%m-%dT%H:%MZ}")

    return put


def now() -> datetime:
    return datetime.now(UTC)


def history(world: w.World, *, days: int, at: datetime) -> BurnDown:
    with world.db.reading() as session:
        population = session.get_one(Population, world.population)
        return burn_down(session, population, days=days, now=at)


def as_of_each_entry(world: w.World) -> list[tuple[datetime, dict[str, tuple[int, ...]]]]:
    """Time and balances by block after every entry, from the entries alone."""
    with world.db.reading() as session:
        rows = session.execute(
            select(Entry.idx, Entry.ts)
            .where(Entry.population_id == world.population)
            .order_by(Entry.idx)
        ).all()
        told = []
        for idx, ts in rows:
            budget = budget_as_of(session, world.population, idx)
            sums = {
                b.block: (b.limit_pico, b.held_pico, b.spent_pico, b.free_pico)
                for b in budget.blocks
            }
            told.append((datetime.fromisoformat(ts), sums))
    return told


def check(world: w.World, found: BurnDown) -> None:
    """Each point against the last entry before its time."""
    told = as_of_each_entry(world)
    for burn in found.burns:
        for point in burn.points[1:]:
            stood = [sums[burn.block] for at, sums in told if at < point.at] or [(0, 0, 0, 0)]
            if point.at == found.until:
                stood = [sums[burn.block] for _, sums in told]
            shown = (point.limit_pico, point.held_pico, point.spent_pico, point.free_pico)
            assert shown == stood[-1], (burn.block, point.at)


def train(found: BurnDown) -> Burn:
    return next(burn for burn in found.burns if burn.block == "train")


def three_days(world: w.World, clock: Clock) -> datetime:
    """A job today, two tomorrow, one the day after; the moment after the last."""
    w.run_job(world, run_plan=w.plan())
    start = now()
    for day, jobs in ((1, 2), (2, 1)):
        clock(start + day * DAY)
        for _ in range(jobs):
            w.run_job(world, run_plan=w.plan(), crash=day == 2)
    return start + 2 * DAY + timedelta(hours=1)


def test_every_point_is_the_balance_of_its_time(world: w.World, clock: Clock) -> None:
    end = three_days(world, clock)
    for days in (1, 2, 30, 366):
        found = history(world, days=days, at=end)
        check(world, found)
        spent = [point.spent_pico for point in train(found).points]
        assert spent == sorted(spent) and spent[-1] > spent[0]


def test_the_last_point_is_the_balance_now_and_the_first_stood_before(
    world: w.World, clock: Clock
) -> None:
    end = three_days(world, clock)
    whole, last_day = history(world, days=30, at=end), history(world, days=1, at=end)
    with world.db.reading() as session:
        block = epsilon_limits(session, world.population).blocks[0]
    for found in (whole, last_day):
        assert train(found).points[-1].spent_pico == block.spent_pico
        assert train(found).points[-1].free_pico == block.free_pico
    assert train(whole).points[0].limit_pico == 0  # before the grant
    assert 0 < train(last_day).points[0].spent_pico < block.spent_pico


def test_both_blocks_are_told(split_world: w.World, clock: Clock) -> None:
    w.run_job(split_world, run_plan=w.plan(validation=True))
    found = history(split_world, days=30, at=now() + DAY)
    assert {burn.block for burn in found.burns} == {"train", "validation"}
    check(split_world, found)
    assert all(burn.points[-1].spent_pico for burn in found.burns)


@pytest.mark.parametrize(
    ("later", "unit"),
    [(timedelta(0), "minute"), (timedelta(hours=7), "hour"), (15 * DAY, "day"), (400 * DAY, "day")],
)
def test_a_young_population_is_told_by_the_minute(
    world: w.World, later: timedelta, unit: str
) -> None:
    found = history(world, days=366, at=now() + later)
    assert found.unit == unit
    assert max(len(burn.points) for burn in found.burns) <= 370


def test_the_pace_is_what_was_spent_by_day_and_tells_the_end(world: w.World, clock: Clock) -> None:
    end = three_days(world, clock)
    burn = train(history(world, days=30, at=end))
    last = burn.points[-1]
    days = (last.at - burn.points[0].at) / DAY
    assert burn.spent_pico_per_day == int(last.spent_pico / days)
    assert burn.used_up_at is not None
    left = (last.limit_pico - last.spent_pico) / burn.spent_pico_per_day
    assert abs(burn.used_up_at - (end + left * DAY)) < timedelta(seconds=1)


def test_no_pace_from_a_few_hours_and_no_end_where_nothing_is_spent(world: w.World) -> None:
    young = train(history(world, days=30, at=now() + timedelta(hours=3)))
    assert (young.spent_pico_per_day, young.used_up_at) == (None, None)
    idle = train(history(world, days=30, at=now() + 9 * DAY))
    assert (idle.spent_pico_per_day, idle.used_up_at) == (0, None)


def test_before_any_entry_there_is_a_flat_line(db: Database) -> None:
    world = w.found(db)
    world.population = w.add_population(world)
    points = train(history(world, days=7, at=now() + DAY)).points
    assert [point.limit_pico for point in points] == [0, 0]


def test_a_period_reads_its_own_entries_only(world: w.World, clock: Clock) -> None:
    end = three_days(world, clock)
    read: list[object] = []

    def count(_c: object, _cursor: object, _s: str, parameters: object, *_: object) -> None:
        read.append(parameters)

    event.listen(world.db.engine, "after_cursor_execute", count)
    try:
        history(world, days=1, at=end)
    finally:
        event.remove(world.db.engine, "after_cursor_execute", count)
    with world.db.reading() as session:
        head = repository.head_of(session, world.tenant)
        assert head is not None
        from_yesterday = session.scalars(
            select(Entry.idx).where(Entry.ts >= f"{end - DAY:%Y-%m-%dT%H:%MZ}").order_by(Entry.idx)
        ).first()
        assert head.size < 2**10 and len(read) < 10 + 6
    assert any(from_yesterday in _values(parameters) for parameters in read)


def _values(parameters: object) -> tuple[object, ...]:
    return tuple(parameters.values() if isinstance(parameters, dict) else parameters)  # type: ignore[arg-type]
