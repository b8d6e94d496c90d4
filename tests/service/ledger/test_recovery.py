"""Two stewards end a halt; a restored backup never leaves a unit under-charged (T12)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, select

from service.ids import new_id
from service.ledger import bundle, fsck, guard, recovery
from service.ledger import service as ledger
from service.ledger.entries import log_of
from service.ledger.errors import (
    BudgetExceeded,
    ChargeRefused,
    LedgerHalted,
    LedgerNotFound,
    LogShrunk,
    ProposalClosed,
    SignatureInvalid,
)
from service.ledger.models import Account
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


class TestRecovery:
    @pytest.fixture
    def halted(self, tmp_path: Path) -> Halted:
        scene = restore_old_backup(tmp_path)
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
                    **terms,  # type: ignore[arg-type]
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

    def test_an_open_ledger_takes_no_proposal(self, tmp_path: Path) -> None:
        with pytest.raises(ProposalClosed):
            Halted(restore_old_backup(tmp_path)).propose()


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
            shown = desk.get(f"{route}/{made['id']}", "auditor").json()
            assert (shown["state"], shown["ledger"]) == ("effective", "open")
            budget = desk.get(f"/v1/budgets/{desk.world.population}").json()
            assert (budget["free_pico"], budget["spent_pico"]) == ("0", budget["limit"]["pico"])
            kinds = {kind["kind"] for kind in desk.get("/v1/ledger/anomalies").json()["data"]}
            assert "ledger_halted" not in kinds
