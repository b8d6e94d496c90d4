"""The schema moves on while the ledger is written and read: what an upgrade under load must keep.

The load is this release's ledger code on two connections that write and one that reads. It
starts on the oldest schema that this code can still work on; where the last migration changed
the ledger's own tables, that is the newest one.
"""

from __future__ import annotations

import dataclasses
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from alembic.script import ScriptDirectory
from sqlalchemy import select
from sqlalchemy.exc import OperationalError, ProgrammingError

from service import migrate
from service.database import Database
from service.ids import new_id
from service.ledger import evidence, fsck
from service.ledger import service as ledger
from service.ledger.errors import BudgetExceeded
from service.ledger.models import LogHead
from tests.deploy.layout import Layout, wait_until
from tests.deploy.parts import DEPLOY
from tests.service.ledger import world as lw

WRITERS, WINDOWS = 2, 2
MIGRATIONS_MAX = 20  # the runbook: one that met a busy table is repeated

NEXT_REVISION = '''
"""What a next release may do to busy tables: a column with a default, an index, a table."""

import sqlalchemy as sa
from alembic import op

revision, down_revision = "next", "{head}"
branch_labels = depends_on = None


def upgrade() -> None:
    op.add_column("reservation", sa.Column("later", sa.Integer(), server_default="0"))
    op.create_index("ix_entry_later", "entry", ["log_id", "type"])
    op.create_table("later", sa.Column("id", sa.Integer(), primary_key=True))
'''


def url_of(layout: Layout, role: str) -> str:
    return layout.dsn(role).replace("postgresql", "postgresql+psycopg", 1)


def one_job(world: lw.World, acknowledged: Callable[[str, int], None] | None = None) -> str:
    """Reserve, charged windows, settle; each charge is told once its commit has returned."""
    plan, job = lw.plan(steps=10 * WINDOWS, margin_steps=0), new_id("ftjob-")
    with world.db.transaction() as session:
        lw.reserve(session, world, job=job, run_plan=plan)
        lw.start(session, job)
    for number in range(WINDOWS):
        charge = lw.window(number, first_step=10 * number, run_plan=plan)
        with world.db.transaction() as session:
            ledger.charge_window(session, job_id=job, epoch=1, charge=charge)
        if acknowledged is not None:
            acknowledged(job, number)
        with world.db.transaction() as session:
            ledger.finish_window(session, job_id=job, epoch=1, window=number, steps_run=10)
    with world.db.transaction() as session:
        ledger.settle(session, job_id=job, final_state="cancelled", artifact_digests={},
                      certificate_digest=None)  # fmt: skip
    return job


def on_oldest_schema(layout: Layout) -> tuple[str, lw.World]:
    """Migrates step by step until a job runs; that revision, and a hospital with entries in it."""
    scripts = ScriptDirectory.from_config(migrate._config())
    revisions = [script.revision for script in scripts.walk_revisions()][::-1]
    database = Database(url_of(layout, "rldp_app"))
    for revision in revisions:
        migrate.upgrade(url_of(layout, "rldp_owner"), revision)
        grant_the_app(layout)
        try:
            world = lw.open_world(database)
            one_job(world)
        except ProgrammingError:  # a table or column of a later revision
            continue
        return revision, world
    raise AssertionError("the ledger does not run on the newest schema")


def grant_the_app(layout: Layout) -> None:
    """`grants.sql` names tables of the newest schema; earlier ones get what it means for them."""
    app = "GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO rldp_app"
    layout.psql("rldp_owner", None, "GRANT USAGE ON SCHEMA public TO rldp_app", app)


def funded_population(world: lw.World) -> str:
    population = lw.add_population(world, code=new_id("pop_"))
    lw.grant(world, population, "100")
    return population


@dataclass
class Load:
    """Threads that work until told to stop, and what they saw."""

    world: lw.World
    stop: threading.Event = field(default_factory=threading.Event)
    paid: list[tuple[str, int]] = field(default_factory=list)
    reads: int = 0
    errors: list[BaseException] = field(default_factory=list)

    def write(self) -> None:
        own = dataclasses.replace(self.world, jobs=[])
        own.population = funded_population(own)
        while not self.stop.is_set():
            try:
                one_job(own, lambda job, number: self.paid.append((job, number)))
            except BudgetExceeded:
                own.population = funded_population(own)

    def read(self) -> None:
        while not self.stop.is_set():
            with self.world.db.reading() as session:
                ledger.epsilon_limits(session, self.world.population)
                head = session.scalars(
                    select(LogHead).where(LogHead.tenant_id == self.world.tenant)
                ).one()
                evidence.inclusion(session, head.log_id, 0, head.size)
            self.reads += 1

    def guarded(self, work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:
            self.errors.append(error)

    def wait_for_more(self) -> None:
        """Every thread goes on: so many more charges and reads than there are now."""
        paid, reads = len(self.paid) + 4 * WRITERS * WINDOWS, self.reads + 4

        def is_going_on() -> bool:
            assert not self.errors, self.errors
            return len(self.paid) >= paid and self.reads >= reads

        wait_until(is_going_on, "the load goes on")


@contextmanager
def under_load(world: lw.World) -> Iterator[Load]:
    load = Load(world)
    works = [*([load.write] * WRITERS), load.read]
    threads = [threading.Thread(target=load.guarded, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    try:
        load.wait_for_more()
        yield load
        load.wait_for_more()
    finally:
        load.stop.set()
        for thread in threads:
            thread.join(120)
    assert not any(thread.is_alive() for thread in threads)
    assert not load.errors, load.errors


def migrate_as_in_the_runbook(layout: Layout) -> None:
    """`rldp migrate`, again where it met a lock, then the grants."""
    for _ in range(MIGRATIONS_MAX):
        command, environment = layout._command("migrate")
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        if done.returncode == 0:
            layout.psql("rldp_owner", DEPLOY / "postgres" / "grants.sql")
            return
        assert "LockNotAvailable" in done.stdout + done.stderr, done.stdout + done.stderr
    raise AssertionError(f"no moment for the migration in {MIGRATIONS_MAX} attempts")


def migrate_to_the_next(layout: Layout, folder: Path) -> None:
    """A revision that this release does not know, applied as the next release's own `migrate`."""
    scripts, head = folder / "next-release", current_head()
    shutil.copytree(migrate.SCRIPTS, scripts, ignore=shutil.ignore_patterns("__pycache__"))
    (scripts / "versions" / "next.py").write_text(NEXT_REVISION.format(head=head))
    ours, migrate.SCRIPTS = migrate.SCRIPTS, scripts
    try:
        for _ in range(MIGRATIONS_MAX):
            try:
                return migrate.upgrade(url_of(layout, "rldp_owner"))
            except OperationalError as error:
                assert "lock timeout" in str(error), error
    finally:
        migrate.SCRIPTS = ours
    raise AssertionError(f"no moment for the migration in {MIGRATIONS_MAX} attempts")


def current_head() -> str:
    head = ScriptDirectory.from_config(migrate._config()).get_current_head()
    assert head is not None
    return head


def check_nothing_lost(load: Load) -> None:
    """Each charge that was acknowledged stands once, and what stands is what was spent."""
    assert len(set(load.paid)) == len(load.paid)
    with load.world.db.reading() as session:
        for job in sorted({job for job, _ in load.paid}):
            told = ledger.job_statement(session, job)
            windows = [w["window"] for w in told["windows"]]
            paid = [number for each, number in load.paid if each == job]
            assert windows[: len(paid)] == paid, (job, windows, paid)
            train = next(block for block in told["blocks"] if block["block"] == "train")
            assert int(train["spent_pico"]) == sum(int(w["charge"]) for w in told["windows"])
        assert fsck.check_all(session) == []


def upgrade_under_load(layout: Layout, *, beyond: Path | None = None) -> str:
    """From the oldest schema to this release's; the revision it began at.

    With a folder for its scripts, a next release migrates as well.
    """
    begun_at, world = on_oldest_schema(layout)
    with under_load(world) as load:
        migrate_as_in_the_runbook(layout)
        assert migrate.is_at_head(world.db)
        if beyond is not None:
            load.wait_for_more()
            migrate_to_the_next(layout, beyond)
            assert migrate.schema_state(world.db) == "ahead"
    check_nothing_lost(load)
    world.db.dispose()
    return begun_at
