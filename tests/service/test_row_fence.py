"""Row-level security on PostgreSQL: the fence holds by itself, without any filter of ours."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread

import pytest
from sqlalchemy import Table, func, insert, select, text, update
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from service import row_fence
from service.auth.subject import Subject
from service.database import Database, fence
from service.datasets import repository
from service.datasets.models import Dataset
from service.ledger.entries import Draft, append, open_log
from service.ledger.models import Entry, LogHead
from service.ledger.publisher import make_publisher
from service.models import metadata
from service.operations.fleet import fleet_of
from service.operations.queue import claim_order, waiting_jobs
from service.populations.models import Population
from service.settings import Settings
from tests.service.fenced import fenced_database
from tests.service.hospital import Hospital, open_hospital
from tests.service.jobs import world as jw
from tests.service.ledger import world as w


@pytest.fixture(scope="module")
def fenced() -> Iterator[Database]:
    with fenced_database() as database:
        yield database


@pytest.fixture(scope="module")
def two(fenced: Database, tmp_path_factory: pytest.TempPathFactory) -> tuple[w.World, w.World]:
    """Two hospitals, each with jobs, grants, files and ledger entries."""
    worlds = w.open_world(fenced), w.open_world(fenced)
    for world in worlds:
        jw.add_dataset(world, tmp_path_factory.mktemp("files"))
        w.run_job(world, run_plan=w.plan())
        jw.queue_job(world)
    make_publisher(Settings(data_dir=tmp_path_factory.mktemp("data")), fenced).turn()
    return worlds


@contextmanager
def request_of(tenant: str) -> Iterator[None]:
    """A request of this hospital."""
    with row_fence.request():
        row_fence.bind(tenant)
        yield


@pytest.fixture
def as_first(two: tuple[w.World, w.World]) -> Iterator[tuple[w.World, w.World]]:
    with request_of(two[0].tenant):
        yield two


def tenants_seen(session: Session, table: Table) -> set[str]:
    """Whose rows a query without any WHERE shows."""
    if "tenant_id" in table.c:
        return set(session.scalars(select(table.c.tenant_id)))
    names = session.scalars(select(table.c.log_id))
    return {name.split("/")[-2] for name in names}


FENCED = row_fence.BY_TENANT + row_fence.BY_LOG
FILLED = ("dataset", "dataset_version", "entry", "file", "job", "log_head", "population", "posting")


class TestReads:
    @pytest.mark.parametrize("name", FENCED)
    def test_a_query_without_where_shows_the_own_hospital_only(
        self, fenced: Database, two: tuple[w.World, w.World], name: str
    ) -> None:
        table, (first, second) = metadata.tables[name], two
        with fenced.reading() as session:
            everybody = tenants_seen(session, table)
        assert name not in FILLED or {first.tenant, second.tenant} <= everybody
        with request_of(first.tenant), fenced.reading() as session:
            seen = tenants_seen(session, table)
        assert seen <= {first.tenant, "system"}
        assert name not in FILLED or first.tenant in seen

    def test_before_the_caller_is_known_nothing_is_seen(
        self, fenced: Database, two: tuple[w.World, w.World]
    ) -> None:
        with row_fence.request(), fenced.reading() as session:
            for name in FENCED:
                assert tenants_seen(session, metadata.tables[name]) <= {"system"}, name

    def test_the_system_log_is_for_everybody_to_read(
        self, fenced: Database, as_first: tuple[w.World, w.World]
    ) -> None:
        with fenced.reading() as session:
            logs = session.scalars(select(LogHead.log_id).where(LogHead.tenant_id == "system"))
            (system,) = logs.all()
            entries = select(func.count()).where(Entry.log_id == system).select_from(Entry)
            assert (session.scalar(entries) or 0) > 0

    def test_a_session_that_began_too_early_is_told(
        self, fenced: Database, two: tuple[w.World, w.World]
    ) -> None:
        with row_fence.request(), fenced.reading() as session:
            count = select(func.count()).select_from(Population)
            assert session.scalar(count) == 0
            row_fence.bind(two[0].tenant)
            assert session.scalar(count) == 0, "what is open stays as it is"
            fence(session)
            assert session.scalar(count) == 1

    def test_a_snapshot_is_fenced_too(
        self, fenced: Database, as_first: tuple[w.World, w.World]
    ) -> None:
        with fenced.snapshot() as session:
            level = session.scalar(text("SHOW transaction_isolation"))
            assert level == "repeatable read"
            assert tenants_seen(session, metadata.tables["job"]) == {as_first[0].tenant}

    def test_without_transactions_a_connection_forgets_whose_it_was(
        self, fenced: Database, two: tuple[w.World, w.World]
    ) -> None:
        """One connection, used for one hospital after the other."""
        plain = fenced.engine.execution_options(isolation_level="AUTOCOMMIT")
        table = metadata.tables["job"]
        for tenant in (two[0].tenant, two[1].tenant, two[0].tenant):
            with request_of(tenant), Session(plain) as session:
                assert tenants_seen(session, table) == {tenant}
        with Session(plain) as session:
            assert len(tenants_seen(session, table)) == 2

    def test_a_look_at_keys_tells_nothing_and_opens_nothing_in_a_transaction(
        self, fenced: Database, two: tuple[w.World, w.World]
    ) -> None:
        table = metadata.tables["job"]
        plain = fenced.engine.execution_options(isolation_level="AUTOCOMMIT")
        with request_of(two[0].tenant), Session(plain) as session:
            assert tenants_seen(session, table) == {two[0].tenant}
        with row_fence.request(), row_fence.untold():
            with Session(plain) as session:  # the same connection, told nothing new
                assert session.scalar(text("SHOW app.tenant")) == two[0].tenant
            with fenced.transaction() as session:
                assert tenants_seen(session, table) == set()


class TestWrites:
    def test_a_row_for_another_hospital_is_refused(
        self, fenced: Database, as_first: tuple[w.World, w.World]
    ) -> None:
        first, second = as_first
        own = {"tenant_id": first.tenant, "key": "k" * 64, "job_id": "ftjob-x", "created_at": 1}
        table = metadata.tables["natural_key"]
        with fenced.transaction() as session:
            session.execute(insert(table).values(**own))
        with (
            pytest.raises(DBAPIError, match="row-level security"),
            fenced.transaction() as session,
        ):
            session.execute(insert(table).values(**own | {"tenant_id": second.tenant}))

    def test_a_row_cannot_be_given_away_and_others_are_not_changed(
        self, fenced: Database, as_first: tuple[w.World, w.World]
    ) -> None:
        first, second = as_first
        job = metadata.tables["job"]
        with fenced.transaction() as session:
            own = session.scalar(select(func.count()).where(job.c.tenant_id == first.tenant))
            changed = session.execute(update(job).values(priority=0))
            assert changed.rowcount == own  # type: ignore[attr-defined]
        with (
            pytest.raises(DBAPIError, match="row-level security"),
            fenced.transaction() as session,
        ):
            session.execute(update(job).values(tenant_id=second.tenant))

    @pytest.mark.parametrize("whose", ["another", "the system"])
    def test_no_request_appends_to_the_log_of(
        self, fenced: Database, as_first: tuple[w.World, w.World], whose: str
    ) -> None:
        with row_fence.every_tenant(), fenced.reading() as session:
            tenant = as_first[1].tenant if whose == "another" else "system"
            log = session.scalars(
                select(LogHead.log_id).where(
                    LogHead.tenant_id == tenant, LogHead.log_id.startswith(f"{tenant}/")
                )
            ).first()
        assert log is not None
        draft = Draft(type="log.opened", idem="forged", actor="usr_x", data={"origin": "x"})
        with pytest.raises(Exception, match=r"No row|row-level"), fenced.transaction() as session:
            append(session, log, draft)
        with (
            pytest.raises(DBAPIError, match="row-level security"),
            fenced.transaction() as session,
        ):
            open_log(session, tenant_id=as_first[1].tenant, log_id=f"{as_first[1].tenant}/2999")


class TestWhatWorksForAllHospitals:
    def test_outside_a_request_everything_is_seen(
        self, fenced: Database, two: tuple[w.World, w.World]
    ) -> None:
        assert row_fence.held() == row_fence.EVERYBODY
        with fenced.reading() as session:
            assert len(tenants_seen(session, metadata.tables["job"])) == 2

    def test_the_publisher_signs_every_log_though_a_request_asked(
        self, fenced: Database, as_first: tuple[w.World, w.World], tmp_path: Path
    ) -> None:
        with row_fence.every_tenant():
            w.run_job(as_first[1], run_plan=w.plan())
        publisher = make_publisher(Settings(data_dir=tmp_path), fenced)
        assert publisher.turn() >= 1

    def test_places_count_everybodys_jobs_and_the_fence_stands_again_behind_them(
        self, fenced: Database, as_first: tuple[w.World, w.World]
    ) -> None:
        first, _ = as_first
        reader = Subject(principal_id=first.proposer, tenant_id=first.tenant, role="steward")
        with fenced.reading() as session, row_fence.lifted(session):
            everybody = session.scalar(select(func.count()).select_from(claim_order())) or 0
        with fenced.reading() as session:
            own = session.scalar(select(func.count()).select_from(claim_order())) or 0
            lines = waiting_jobs(session, reader, fleet_of(session, reader), limit=9)
            assert tenants_seen(session, metadata.tables["job"]) == {first.tenant}
        assert len(lines) == own < everybody
        assert {line.job.tenant_id for line in lines} == {first.tenant}
        assert max(line.place or 0 for line in lines) <= everybody

    def test_a_process_of_the_release_before_sees_what_it_saw(
        self, fenced: Database, two: tuple[w.World, w.World]
    ) -> None:
        """It never says whose its transactions are."""
        with fenced.transaction() as session:
            session.execute(text("RESET app.tenant"))
            assert len(tenants_seen(session, metadata.tables["job"])) == 2


class TestTheRequest:
    def test_threads_and_tasks_of_a_request_are_bound_with_it(self) -> None:
        told: list[str] = []

        async def work() -> None:
            with row_fence.request():
                thread = contextvars.copy_context()
                row_fence.bind("tn_a")  # as a dependency does, after the thread's context was made
                told.append(thread.run(row_fence.held))
                with row_fence.every_tenant():
                    told.append(row_fence.held())
                told.append(row_fence.held())

        asyncio.run(work())
        assert told == ["tn_a", row_fence.EVERYBODY, "tn_a"]

    def test_a_thread_of_nobodys_is_not_a_request(self) -> None:
        told: list[str] = []
        with row_fence.request():
            thread = Thread(target=lambda: told.append(row_fence.held()))
            thread.start()
            thread.join()
        assert told == [row_fence.EVERYBODY]

    @pytest.mark.parametrize("tenant", ["", "*", "-", "tn_a'; DROP TABLE job; --", "x" * 41])
    def test_only_an_id_is_ever_told_to_the_database(self, tenant: str) -> None:
        with row_fence.request(), pytest.raises(AssertionError):
            row_fence.bind(tenant)


class TestOverHttp:
    """The filters of two routes are taken away; the database still shows nothing."""

    @pytest.fixture
    def hospital(self, fenced: Database, tmp_path: Path) -> Iterator[Hospital]:
        with open_hospital(tmp_path, fenced) as opened:
            yield opened

    def test_lists_and_objects_stay_apart_without_our_filters(
        self, hospital: Hospital, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        mine, seen, codes = walk_without_filters(hospital, monkeypatch)
        assert (seen, codes) == ({mine}, [200, 404])


def walk_without_filters(
    hospital: Hospital, monkeypatch: pytest.MonkeyPatch
) -> tuple[str, set[str], list[int]]:
    """The own dataset; what the list shows; the answers to the own one and another's."""
    mine = hospital.dataset(hospital.people["steward"])
    theirs = hospital.dataset(hospital.others["steward"])
    monkeypatch.setattr(repository, "visible_datasets", lambda _subject: select(Dataset))
    headers = hospital.people["steward"].headers
    listed = hospital.client.get("/v1/datasets", headers=headers).json()["data"]
    asked = (f"/v1/datasets/{one}" for one in (mine, theirs))
    codes = [hospital.client.get(path, headers=headers).status_code for path in asked]
    return mine, {row["id"] for row in listed}, codes


def test_where_there_is_no_fence_the_same_walk_leaks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control of the test above: our filters really are gone in it."""
    with open_hospital(tmp_path) as hospital:
        _, seen, codes = walk_without_filters(hospital, monkeypatch)
    assert (len(seen), codes) == (2, [200, 200])


def test_sqlite_is_untouched(tmp_path: Path) -> None:
    with w.sqlite_database(tmp_path) as database:
        world = w.open_world(database)
        with row_fence.request(), database.reading() as session:
            assert session.scalar(select(func.count()).select_from(Population)) == 1
            fence(session)
        assert world.population


def test_every_table_with_a_hospital_is_fenced_or_named_here() -> None:
    unfenced = {t.name for t in metadata.sorted_tables if "tenant_id" in t.c} - set(FENCED)
    assert unfenced == {"principal"}, "read before anybody knows whose request it is"
