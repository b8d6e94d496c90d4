"""Two stewards end a halt; a restored backup never leaves a unit under-charged (T12)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import pytest
from sqlalchemy import delete, func, select

from service.artifacts.service import is_release_evident
from service.cli.policy import write_policy
from service.database import Database
from service.ids import new_id
from service.ledger import access, bundle, checkpoints, fsck, guard, notes, recovery, rotation
from service.ledger import service as ledger
from service.ledger.entries import log_of
from service.ledger.errors import (
    BudgetExceeded,
    ChargeRefused,
    KeySuperseded,
    LedgerHalted,
    LedgerNotFound,
    LogShrunk,
    ProposalClosed,
    SignatureInvalid,
)
from service.ledger.keys import adopt_next_log_key, load_keys, next_log_key
from service.ledger.models import Account, Cosignature, LedgerGuard, LogHead
from service.ledger.publisher import Publisher
from service.ledger.standing import Standing, standing_of
from service.settings import Settings
from service.witness.folder import trust
from tests.deploy.test_verify_ledger import verifier
from tests.service.hospital import open_hospital
from tests.service.ledger import world as w
from tests.service.ledger.backups import Scene, restore_old_backup
from tests.service.ledger.test_endpoints import open_desk


class Halted:
    """A database put back to an old backup, found out, and what its stewards do."""

    def __init__(self, scene: Scene, *, old_job: str = "") -> None:
        self.scene, self.world, self.old_job = scene, scene.world, old_job

    def propose(self) -> dict[str, Any]:
        world = self.world
        with world.db.transaction() as session:
            return recovery.propose(session, tenant_id=world.tenant, actor=world.proposer)

    def decide(self, made: dict[str, Any], steward: str, decision: str = "approve") -> Any:
        world = self.world
        with world.db.transaction() as session:
            return recovery.decide(
                session,
                tenant_id=world.tenant,
                restore_id=made["id"],
                approver=steward,
                decision=decision,  # type: ignore[arg-type]
                signature=world.sign(steward, made["entry"], decision),
            )

    def state(self) -> str:
        with self.world.db.reading() as session:
            return str(guard.state(session)["state"])

    def total(self, kind: str) -> int:
        with self.world.db.reading() as session:
            query = select(func.sum(Account.balance_pico)).where(Account.kind == kind)
            return session.scalar(query) or 0


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.ci)])
def db(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    """The same on both; PostgreSQL in CI, for its time."""
    context = w.sqlite_database(tmp_path) if request.param == "sqlite" else w.postgres_database()
    with context as database:
        yield database


class TestRecovery:
    @pytest.fixture
    def halted(self, tmp_path: Path, db: Database) -> Halted:
        scene = restore_old_backup(tmp_path, db)
        job = new_id("ftjob-")
        with scene.world.db.transaction() as session:  # before anybody looked
            w.reserve(session, scene.world, job=job)
            w.start(session, job)
        with pytest.raises(LogShrunk):
            scene.publisher.turn()
        return Halted(scene, old_job=job)

    def test_one_steward_moves_nothing_and_lifts_nothing(self, halted: Halted) -> None:
        spent = halted.total("spent")
        made = halted.propose()
        halted.decide(made, halted.world.proposer)
        with pytest.raises(LedgerHalted):
            halted.scene.publisher.turn()
        assert (halted.state(), halted.total("spent")) == ("halted", spent)

    def test_two_stewards_spend_all_and_the_halt_ends(self, halted: Halted, tmp_path: Path) -> None:
        world = halted.world
        limit = -halted.total("issuance")
        made = halted.propose()
        halted.decide(made, world.proposer)
        assert halted.decide(made, world.second)["state"] == "effective"
        assert halted.state() == "halted"  # until the publisher has left the lost log behind
        halted.scene.publisher.turn()
        assert halted.state() == "open"
        assert (halted.total("spent"), halted.total("budget"), halted.total("escrow")) == (
            limit,
            0,
            0,
        )
        self.nothing_is_left(halted)
        self.an_outsider_agrees(halted, tmp_path)
        halted.scene.make().turn()  # another process does not halt again
        assert halted.state() == "open"
        kept = list((tmp_path / "memory").glob("lost-*.checkpoint"))
        assert len(kept) == 1

    @staticmethod
    def nothing_is_left(halted: Halted) -> None:
        world = halted.world
        with pytest.raises(BudgetExceeded), world.db.transaction() as session:
            w.reserve(session, world, job=new_id("ftjob-"))
        with pytest.raises(ChargeRefused), world.db.transaction() as session:
            ledger.charge_window(session, job_id=halted.old_job, epoch=1, charge=w.window(0))
        with world.db.transaction() as session:
            ledger.settle(
                session,
                job_id=halted.old_job,
                final_state="failed",
                artifact_digests={},
                certificate_digest=None,
            )
        w.grant(world, world.population, "12")  # two people again
        with world.db.transaction() as session:
            w.reserve(session, world, job=new_id("ftjob-"))
            assert fsck.check_all(session) == []

    @staticmethod
    def an_outsider_agrees(halted: Halted, tmp_path: Path) -> None:
        publisher = halted.scene.publisher
        publisher.turn()
        out = tmp_path / "bundle.zip"
        with (
            halted.world.db.reading() as session,
            bundle.write_bundle(
                session, keys=publisher.keys, tenant_id=halted.world.tenant
            ) as archive,
        ):
            out.write_bytes(archive.read())
        assert verifier.main([str(out)]) == 0

    def test_a_rejection_leaves_it_halted_and_open_for_another_proposal(
        self, halted: Halted
    ) -> None:
        made = halted.propose()
        with pytest.raises(ProposalClosed):
            halted.propose()
        assert halted.decide(made, halted.world.second, "reject")["state"] == "rejected"
        with pytest.raises(ProposalClosed):
            halted.decide(made, halted.world.proposer)
        assert halted.propose()["id"] != made["id"]
        assert halted.state() == "halted"

    def test_a_wrong_signature_and_another_tenant_are_refused(self, halted: Halted) -> None:
        world, made = halted.world, halted.propose()
        other = w.found(world.db)
        terms = {"restore_id": made["id"], "decision": "approve"}
        forged = world.sign(world.second, made["entry"])
        for tenant, error in ((world.tenant, SignatureInvalid), (other.tenant, LedgerNotFound)):
            with pytest.raises(error), world.db.transaction() as session:
                recovery.decide(
                    session,
                    tenant_id=tenant,
                    approver=world.proposer,
                    signature=forged,
                    **terms,
                )

    def test_the_halt_waits_for_every_tenants_stewards(self, halted: Halted) -> None:
        other = w.found(halted.world.db)
        with halted.world.db.transaction() as session:
            log_of(session, other.tenant)
        made = halted.propose()
        halted.decide(made, halted.world.proposer)
        halted.decide(made, halted.world.second)
        with pytest.raises(LedgerHalted):
            halted.scene.publisher.turn()
        assert halted.state() == "halted"

    def test_a_lost_raise_that_is_signed_again_is_spent_with_the_rest(
        self, tmp_path: Path, db: Database
    ) -> None:
        """What was spent of a limit raised after the backup is in the books again."""
        raised: list[int] = []

        def lost(world: w.World) -> None:
            w.grant(world, world.population, "12")
            with db.reading() as session:
                raised.append(ledger.epsilon_limits(session, world.population).limit_pico or 0)

        halted = Halted(restore_old_backup(tmp_path, db, lost=lost))
        with pytest.raises(LogShrunk):
            halted.scene.publisher.turn()
        world, made = halted.world, halted.propose()
        known = {"population": world.population, "epsilon": "8", "delta": "1e-6"}
        assert made["limits"] == [known]  # two people have signed 12, and see it missing
        w.grant(world, world.population, "12")
        halted.decide(made, world.proposer)
        shown = halted.decide(made, world.second)
        assert (shown["state"], shown["limits"]) == ("effective", [known | {"epsilon": "12"}])
        halted.scene.publisher.turn()
        assert (halted.state(), halted.total("spent")) == ("open", raised[0])
        self.an_outsider_agrees(halted, tmp_path)

    def test_an_open_ledger_takes_no_proposal(self, tmp_path: Path, db: Database) -> None:
        with pytest.raises(ProposalClosed):
            Halted(restore_old_backup(tmp_path, db)).propose()


@dataclass
class Recovered:
    """A ledger after its recovery, whose witnesses do not know its new system log yet."""

    halted: Halted
    folder: Path
    job: str  # its release was witnessed before the backup
    size: int  # of the log when the backup was made
    early: Path  # the bundle of that time
    first_policy: Path

    @property
    def world(self) -> w.World:
        return self.halted.world

    def log(self) -> str:
        with self.world.db.reading() as session:
            return log_of(session, self.world.tenant)

    def standing(self, log_id: str | None = None) -> Standing:
        with self.world.db.reading() as session:
            return standing_of(session, log_id or self.log())

    def turn(self) -> None:
        self.halted.scene.make().turn()

    def trust(self) -> None:
        """The witnesses are told the vkey of `rldp ledger vkey --recovery 1`."""
        keys = self.halted.scene.make().keys
        vkey = notes.public_key(checkpoints.system_origin(keys, 1), notes.LOG_KEY, keys.log)
        for server in self.halted.scene.street.servers.values():
            object.__setattr__(server, "logs", [*server.logs, vkey])

    def bundle(self, name: str, **options: Any) -> Path:
        return write(self.world, self.halted.scene.make(), self.folder / name, **options)

    def policy(self, name: str, recovery: int = 1) -> Path:
        return policy(self.halted.scene, self.folder / name, recovery)


def write(world: w.World, publisher: Publisher, path: Path, **options: Any) -> Path:
    with (
        world.db.reading() as session,
        bundle.write_bundle(
            session, keys=publisher.keys, tenant_id=world.tenant, **options
        ) as archive,
    ):
        path.write_bytes(archive.read())
    return path


def policy(scene: Scene, path: Path, recovery: int) -> Path:
    """What an auditor holds; no witness is asked for, since none knows the new name yet."""
    witnesses = path.with_suffix(".witnesses")
    lines = [f"{server.verifier_key.text} http://w\n" for server in scene.street.servers.values()]
    witnesses.write_text("".join(lines))
    settings = Settings(data_dir=path.parent, witnesses=witnesses)
    write_policy(settings, out=path, max_age_seconds=3600, recovery=recovery)
    return path


def rotate(world: w.World, folder: Path, publisher: Publisher) -> None:
    """The log's key changes; the witnesses' part is in tests/deploy."""
    new = next_log_key(Settings(data_dir=folder), make=True)
    with world.db.transaction() as session:
        rotation.enter_log_key(session, publisher.keys, new)
    adopt_next_log_key(Settings(data_dir=folder))


def recovered(tmp_path: Path, db: Database, *, rotated_before: bool = False) -> Recovered:
    told: dict[str, Any] = {}

    def before(world: w.World, publisher: Publisher) -> None:
        told["job"] = w.run_job(world, run_plan=w.plan(mode="adaptive_sigma"))
        w.publish(world, told["job"])
        with db.transaction() as session:
            access.record(
                session,
                tenant_id=world.tenant,
                actor=world.auditor,
                role="auditor",
                route="/v1/budgets",
                status=200,
                shown="",
            )
        if rotated_before:
            rotate(world, tmp_path, publisher)
            return
        publisher.turn()
        with db.reading() as session:
            told["size"] = session.get_one(LogHead, log_of(session, world.tenant)).size
        told["early"] = write(world, publisher, tmp_path / "early.zip")

    scene = restore_old_backup(tmp_path, db, before)
    with pytest.raises(LogShrunk):
        scene.publisher.turn()
    halted = Halted(scene)
    made = halted.propose()
    halted.decide(made, scene.world.proposer)
    halted.decide(made, scene.world.second)
    first_policy = policy(scene, tmp_path / "first.json", 0)
    scene.make().turn()
    assert halted.state() == "open"
    return Recovered(
        halted=halted,
        folder=tmp_path,
        job=told["job"],
        size=told.get("size", 0),
        early=told.get("early", tmp_path),
        first_policy=first_policy,
    )


PROOF = "system.tlog-proof"


class TestAfterwards:
    """The system log has another name; what stood under the old one still stands."""

    def test_a_release_witnessed_before_stays_evident(self, tmp_path: Path, db: Database) -> None:
        after = recovered(tmp_path, db)
        with db.reading() as session:
            assert is_release_evident(session, after.job)
        standing = after.standing()
        assert standing.published == after.size < standing.integrated
        assert standing.witnesses == 2
        after.trust()
        after.turn()
        standing = after.standing()
        assert standing.published == standing.integrated

    def test_no_entry_counts_as_witnessed_by_a_log_that_does_not_name_it(
        self, tmp_path: Path, db: Database
    ) -> None:
        """The access log has not grown since, so the new system log says nothing of it."""
        after = recovered(tmp_path, db)
        after.trust()
        for _ in range(4):
            w.propose(after.world, after.world.population, str(11 + _))
            after.turn()
        with db.reading() as session:
            log_id = session.scalars(
                select(LogHead.log_id).where(LogHead.log_id.like("access/%"))
            ).one()
            place = checkpoints.newest(session, log_id)
            assert place is not None and place.system_idx is not None
            guarded = session.get_one(LedgerGuard, 1).quorum_size
            assert guarded is not None and guarded > place.system_idx
        assert after.standing(log_id).published == 1 + 1  # log.opened and the read
        with db.transaction() as session:
            old = checkpoints.system_logs(session)[1]
            session.execute(delete(Cosignature).where(Cosignature.log_id == old))
        assert after.standing(log_id).published == 0

    def test_the_bundle_from_before_can_be_made_again(
        self, tmp_path: Path, db: Database, capsys: pytest.CaptureFixture[str]
    ) -> None:
        after = recovered(tmp_path, db)
        again = after.bundle("again.zip", size=after.size)
        with ZipFile(again) as made, ZipFile(after.early) as early:
            assert made.namelist() == early.namelist()
            assert "entries.jsonl" in early.namelist()
            # Witnesses asked again put another time under the same checkpoint, and the
            # manifest holds the digest of that file; nothing else may differ.
            for name in set(early.namelist()) - {"manifest.json", PROOF}:
                assert made.read(name) == early.read(name), name
            unsigned, *_ = made.read(PROOF).partition("\n— witness".encode())
            assert early.read(PROOF).startswith(unsigned + b"\n")
        code = verifier.main([str(again), f"--policy={after.first_policy}"])
        assert code == 0, capsys.readouterr()

    def test_the_log_extends_what_an_auditor_kept_of_it(
        self, tmp_path: Path, db: Database, capsys: pytest.CaptureFixture[str]
    ) -> None:
        after = recovered(tmp_path, db)
        late = after.bundle("late.zip", since=after.size)
        policy = after.policy("second.json")
        code = verifier.main([str(late), f"--policy={policy}", f"--previous={after.early}"])
        assert code == 0, capsys.readouterr()
        assert verifier.main([str(late), f"--policy={after.first_policy}"]) == 1
        assert "another system log" in capsys.readouterr().out

    @pytest.mark.parametrize("rotated_before", [True, False])
    def test_keys_change_before_and_after_it(
        self,
        tmp_path: Path,
        db: Database,
        capsys: pytest.CaptureFixture[str],
        rotated_before: bool,
    ) -> None:
        first = load_keys(Settings(data_dir=tmp_path))
        after = recovered(tmp_path, db, rotated_before=rotated_before)
        if not rotated_before:
            publisher = after.halted.scene.make()
            rotate(after.world, tmp_path, publisher)
        after.turn()
        code = verifier.main(
            [str(after.bundle("b.zip")), f"--policy={after.policy('second.json')}"]
        )
        assert code == 0, capsys.readouterr()
        stale = after.halted.scene.make()
        stale.keys = first  # a host whose folder nobody has changed
        with pytest.raises(KeySuperseded):
            stale.turn()
        with db.reading() as session:
            assert fsck.check_all(session) == []

    def test_witnesses_pin_the_next_key_under_the_new_name(
        self, tmp_path: Path, db: Database
    ) -> None:
        after = recovered(tmp_path, db)
        after.trust()
        after.turn()
        publisher = after.halted.scene.make()
        new = next_log_key(Settings(data_dir=tmp_path), make=True)
        with db.reading() as session:
            origin = checkpoints.present_origin(session, publisher.keys)
        assert origin == checkpoints.system_origin(publisher.keys, 1)
        asked = (db, publisher.witnesses, origin, new, publisher.post)
        assert rotation.pinned_by(*asked) == set()
        vkey = notes.public_key(origin, notes.LOG_KEY, new)
        told = rotation.statement(publisher.keys, new, origin).full
        for name, server in after.halted.scene.street.servers.items():
            folder = tmp_path / f"{name}-folder"
            folder.mkdir()
            for known in server.logs:
                trust(folder, known.text)
            object.__setattr__(
                server, "logs", [*server.logs, trust(folder, vkey.text, rotation=told)]
            )
        assert len(rotation.pinned_by(*asked)) == 2


class TestOverHttp:
    def test_two_stewards_end_a_halt_by_the_routes(self, tmp_path: Path) -> None:
        route, body = "/v1/ledger/recoveries", {"rule": "charge_whole"}
        with open_hospital(tmp_path) as hospital:
            desk = open_desk(hospital)
            assert desk.post(route, body).status_code == 409  # not halted
            with hospital.database.transaction() as session:
                guard.halt(session, reason="log_shrunk", seen_size=99)
            for who in ("admin", "auditor", "submitter"):
                assert desk.post(route, body, who).status_code == 403
            assert desk.post(route, {"rule": "forget"}).status_code == 422
            made = desk.post(route, body).json()
            for who, person in (("steward", desk.world.proposer), ("steward2", desk.world.second)):
                shown = desk.get(f"{route}/{made['id']}", "auditor").json()
                assert (shown["state"], shown["ledger"]) == ("proposed", "halted")
                signed = {
                    "decision": "approve",
                    "signature": desk.world.sign(person, shown["entry"]),
                }
                answer = desk.post(f"{route}/{made['id']}/approvals", signed, who)
                assert answer.status_code == 201
            # proposed, approved twice, one population corrected, effective
            assert [one["idx"] for one in answer.json()["receipts"]] == [
                made["entry"]["idx"] + n for n in range(5)
            ]
            shown = desk.get(f"{route}/{made['id']}", "auditor").json()
            assert (shown["state"], shown["ledger"]) == ("effective", "open")
            budget = desk.get(f"/v1/budgets/{desk.world.population}").json()
            assert (budget["free_pico"], budget["spent_pico"]) == ("0", budget["limit"]["pico"])
            kinds = {kind["kind"] for kind in desk.get("/v1/ledger/anomalies").json()["data"]}
            assert "ledger_halted" not in kinds
