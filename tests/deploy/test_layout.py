"""The production layout without containers: each part is killed in turn, and nothing is lost.

Two API processes, a dispatcher, three workers, a witness, PostgreSQL and Redis, with the
settings, keys, roles and grants of deploy/. Oracle after each kill: the stand-alone verifier
on the bundle that an auditor downloads.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy
from sqlalchemy.exc import ProgrammingError

from service.database import Database
from service.demo.client import Access, ApiProblem, DemoClient
from service.demo.stages import ENDED, Ground
from service.ledger import fsck
from tests.deploy.layout import APIS, WORKERS, Layout, wait_until
from tests.deploy.parts import DEPLOY
from tests.deploy.upgrade import current_head, migrate_to_the_next, upgrade_under_load
from tests.integration.small_job import open_ground, request_for

STEPS = 8
KILLED = (APIS[0], "dispatcher", WORKERS[0], "redis", "witness", "postgres", APIS[1])


@pytest.fixture
def layout(tmp_path: Path) -> Iterator[Layout]:
    made = Layout(tmp_path)
    try:
        yield made
    finally:
        made.stop()


def submit(client: DemoClient, ground: Ground, seed: int) -> str:
    body: dict[str, Any] = request_for(ground.file, steps=STEPS) | {"seed": seed}
    return str(client.call("submitter", "POST", "/fine_tuning/jobs", json=body)["id"])


def job_of(client: DemoClient, job: str) -> dict[str, Any]:
    return dict(client.call("submitter", "GET", f"/fine_tuning/jobs/{job}"))


def verify(client: DemoClient, layout: Layout, name: str) -> None:
    """The auditor's bundle under the stand-alone verifier, and the service's own check."""
    bundle = layout.root / f"{name}.zip"
    client.download_when_ready("auditor", "/ledger/bundle", bundle)
    done = subprocess.run(
        [sys.executable, str(DEPLOY / "verifier" / "verify_ledger.py"), str(bundle)],
        capture_output=True,
        text=True,
    )
    assert done.returncode in (0, 3), f"after {name}: {done.stdout}{done.stderr}"
    assert "FAIL" not in done.stdout, done.stdout
    database = Database(layout.dsn("rldp_app").replace("postgresql", "postgresql+psycopg", 1))
    with database.reading() as session:
        assert fsck.check_all(session) == []
    database.dispose()


def statement(client: DemoClient, job: str) -> dict[str, Any]:
    return dict(client.call("auditor", "GET", f"/ledger/jobs/{job}/statement"))


def check_job(client: DemoClient, job: str) -> None:
    """Succeeded; each window paid once, in order; what was paid is what was spent."""
    assert job_of(client, job)["state"] == "succeeded"
    told = statement(client, job)
    windows = told["windows"]
    assert [w["window"] for w in windows] == list(range(len(windows)))
    assert sum(w["steps"] for w in windows) >= STEPS
    train = next(block for block in told["blocks"] if block["block"] == "train")
    assert int(train["spent_pico"]) == sum(int(w["charge"]) for w in windows)


def refuse_what_the_app_role_may_not(layout: Layout) -> None:
    """Neither rewriting an entry nor dropping the trigger that guards it."""
    engine = sqlalchemy.create_engine(
        layout.dsn("rldp_app").replace("postgresql", "postgresql+psycopg", 1)
    )
    for statement_text in (
        "UPDATE entry SET body = 'x'",
        "DELETE FROM posting",
        "DROP TRIGGER entry_no_change ON entry",
        "ALTER TABLE entry DISABLE TRIGGER ALL",
        "CREATE TABLE mine (a int)",
    ):
        refused = pytest.raises(ProgrammingError, match=r"permission denied|must be owner")
        with refused, engine.begin() as connection:
            connection.execute(sqlalchemy.text(statement_text))
    engine.dispose()


def fence_hospitals_from_each_other(layout: Layout) -> None:
    """Row-level security holds for the app role; the autoscaler's reader counts all jobs."""
    logs = "SELECT count(*) FROM log_head WHERE tenant_id <> 'system'"
    assert count(layout, "rldp_app", logs) > 0
    assert count(layout, "rldp_app", "SET app.tenant = 'tn_nobody'", logs) == 0
    jobs = "SELECT count(id) FROM job"
    assert count(layout, "rldp_reader", jobs) == count(layout, "rldp_owner", jobs) > 0


def count(layout: Layout, role: str, *statements: str) -> int:
    """What the last of the statements counts, all on one connection."""
    engine = sqlalchemy.create_engine(
        layout.dsn(role).replace("postgresql", "postgresql+psycopg", 1)
    )
    with engine.connect() as connection:
        found = 0
        for one in statements:
            result = connection.execute(sqlalchemy.text(one))
            found = int(result.scalar_one()) if result.returns_rows else 0
    engine.dispose()
    return found


def start_all(layout: Layout) -> tuple[Access, dict[str, DemoClient], Ground]:
    for name in ("redis", "witness"):
        layout.start(name)
    access = layout.first_hospital()
    for name in ("dispatcher", *APIS, *WORKERS):
        layout.start(name)
    clients = {api: layout.client(access, api) for api in APIS}
    return access, clients, open_ground(clients[APIS[1]], layout.root)


def kill_each(
    layout: Layout, clients: dict[str, DemoClient], ground: Ground, killed: Sequence[str]
) -> None:
    for seed, name in enumerate(killed, start=100):
        client = clients[APIS[1] if name == APIS[0] else APIS[0]]
        jobs = [submit(client, ground, 10 * seed + number) for number in range(2)]

        def is_running(job: str = jobs[0], asked: DemoClient = client) -> bool:
            return job_of(asked, job)["state"] in ("running", *ENDED)

        wait_until(is_running, f"a job runs before {name} is killed")
        layout.kill(name)
        layout.start(name)

        def are_over(asked: DemoClient = client, mine: list[str] = jobs) -> bool:
            return all(job_of(asked, job)["state"] in ENDED for job in mine)

        wait_until(are_over, f"the jobs end after {name} was killed")
        for job in jobs:
            check_job(client, job)
        verify(client, layout, name)


def upgrade_while_jobs_run(layout: Layout, clients: dict[str, DemoClient], ground: Ground) -> None:
    """The next release's migration comes while both APIs answer and every worker has a job."""
    client = clients[APIS[0]]
    jobs = [submit(client, ground, 5000 + number) for number in range(len(WORKERS))]

    def states() -> set[str]:
        return {str(job_of(client, job)["state"]) for job in jobs}

    wait_until(lambda: bool(states() & {"running", *ENDED}), "a job runs before the upgrade")
    migrate_to_the_next(layout, layout.root)
    layout.psql("rldp_owner", DEPLOY / "postgres" / "grants.sql")
    assert all(layout.is_ready(api) for api in APIS), "ahead, and ready"
    jobs.append(submit(clients[APIS[1]], ground, 5999))
    wait_until(lambda: states() <= set(ENDED), "the jobs end after the upgrade")
    for job in jobs:
        check_job(client, job)
    verify(client, layout, "upgrade")


def walk(layout: Layout, killed: Sequence[str]) -> None:
    """Start, try what is forbidden, back up, kill in turn, upgrade, restore what is too old."""
    layout.make()
    _, clients, ground = start_all(layout)
    refuse_what_the_app_role_may_not(layout)
    first = submit(clients[APIS[0]], ground, 1)
    wait_until(lambda: job_of(clients[APIS[0]], first)["state"] in ENDED, "the first job ends")
    check_job(clients[APIS[0]], first)
    fence_hospitals_from_each_other(layout)
    backup = layout.root / "backup.dump"
    words = ["-Fc", "-f", str(backup), layout.dsn("rldp_owner")]
    subprocess.run([str(layout.bin / "pg_dump"), *words], check=True)
    kill_each(layout, clients, ground, killed)
    upgrade_while_jobs_run(layout, clients, ground)
    restore_old_backup(layout, clients, ground, backup)
    for client in clients.values():
        client.close()


@pytest.mark.faults
@pytest.mark.timeout(1800)
def test_nothing_is_lost_when_each_part_is_killed_and_an_old_backup_freezes_the_ledger(
    layout: Layout,
) -> None:
    walk(layout, KILLED)


@pytest.mark.ci
@pytest.mark.timeout(600)
def test_nothing_is_lost_when_worker_and_database_are_killed(layout: Layout) -> None:
    walk(layout, (WORKERS[0], "postgres"))


@pytest.mark.ci
@pytest.mark.timeout(600)
def test_the_next_release_migrates_while_this_one_writes(layout: Layout, tmp_path: Path) -> None:
    layout.make_bare()
    begun_at = upgrade_under_load(layout, beyond=tmp_path)
    print(f"migrated under load from {begun_at} to {current_head()} and beyond")


def restore_old_backup(
    layout: Layout, clients: dict[str, DemoClient], ground: Ground, backup: Path
) -> None:
    """The drill of the runbook with a backup that is too old: the dispatcher must notice."""
    for name in ("dispatcher", *APIS, *WORKERS):
        layout._end(name)
    words = ["--clean", "--if-exists", "--no-owner", "-d", layout.dsn("rldp_owner"), str(backup)]
    subprocess.run([str(layout.bin / "pg_restore"), *words], check=True)
    for name in ("dispatcher", *APIS, *WORKERS):
        layout.start(name)

    def is_refused() -> bool:
        try:
            submit(clients[APIS[0]], ground, 9000)
        except ApiProblem as problem:
            assert (problem.status, problem.code) == (503, "ledger_halted")
            return True
        return False

    wait_until(is_refused, "the ledger is frozen", 60)
