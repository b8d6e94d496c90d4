"""No artifact leaves before two stewards signed and the entry stands (P9, P11)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from sqlalchemy import select, text

from service.artifacts.service import release_state
from service.certificates.service import build_certificate, visible_certificate
from service.ids import new_id
from service.ledger import fsck, releases
from service.ledger import service as ledger
from service.ledger.bundle import write_bundle
from service.ledger.errors import (
    LedgerBroken,
    LedgerNotFound,
    ProposalClosed,
    ProposalInvalid,
    SelfApproval,
)
from service.ledger.models import Entry
from service.ledger.publisher import make_publisher
from service.settings import Settings
from tests.deploy.test_verify_ledger import verifier
from tests.service.ledger import world as w


def ask(world: w.World, job: str) -> dict[str, object]:
    with world.db.transaction() as session:
        made = releases.request_release(
            session, tenant_id=world.tenant, actor=world.proposer, job_id=job
        )
        return releases.release_to_dict(session, made)


class TestRelease:
    def test_two_signatures_publish_digests_of_settle_and_certificate(self, world: w.World) -> None:
        job = w.run_job(world, run_plan=w.plan())
        w.publish(world, job)
        with world.db.reading() as session:
            assert release_state(session, job) == "published"
            entries = {
                e.type: json.loads(e.body)["data"]
                for e in session.scalars(select(Entry).where(Entry.job_id == job))
            }
            certificate = visible_certificate(session, world.tenant, job)
            assert fsck.check_all(session) == []
        assert entries["release.published"]["certificate"] == certificate.digest
        assert entries["release.published"]["artifacts"] == entries["settle"]["artifacts"]
        assert len(entries["release.published"]["approvals"]) == 2

    def test_before_the_second_signature_it_is_only_requested(self, world: w.World) -> None:
        job = w.run_job(world, run_plan=w.plan())
        shown = ask(world, job)
        assert (shown["state"], shown["verdict"]) == ("requested", "conditional")
        assert shown["reasons"] == ["no_external_witness"]
        with world.db.reading() as session:
            assert release_state(session, job) == "requested"

    def test_a_job_is_released_once(self, world: w.World) -> None:
        job = w.run_job(world, run_plan=w.plan())
        w.publish(world, job)
        with pytest.raises(ProposalClosed, match="published already"):
            ask(world, job)

    def test_a_running_job_is_not_released(self, world: w.World) -> None:
        with world.db.transaction() as session:
            w.reserve(session, world, job="ftjob-x")
        with pytest.raises(ProposalClosed, match="not settled"):
            ask(world, "ftjob-x")

    def test_a_job_without_certificate_is_not_released(self, world: w.World) -> None:
        with world.db.transaction() as session:
            w.reserve(session, world, job="ftjob-x")
            ledger.settle(
                session,
                job_id="ftjob-x",
                final_state="cancelled",
                artifact_digests={},
                certificate_digest=None,
            )
        with pytest.raises(ProposalInvalid, match="certificate"):
            ask(world, "ftjob-x")

    def test_another_tenants_job_is_not_found(self, world: w.World) -> None:
        job = w.run_job(world, run_plan=w.plan())
        with pytest.raises(LedgerNotFound):
            ask(w.found(world.db), job)

    def test_who_submitted_the_job_does_not_decide_on_it(self, world: w.World) -> None:
        world.submitter = world.second
        shown = ask(world, w.run_job(world, run_plan=w.plan()))
        with pytest.raises(SelfApproval), world.db.transaction() as session:
            releases.decide(
                session,
                tenant_id=world.tenant,
                release_id=str(shown["id"]),
                approver=world.second,
                decision="approve",
                signature=world.sign(world.second, shown["entry"]),  # type: ignore[arg-type]
            )


class TestCertificate:
    def test_reservations_are_named(self, world: w.World) -> None:
        job = w.run_job(world, run_plan=w.plan(noise_source="torch_generator"))
        with world.db.reading() as session:
            body = json.loads(visible_certificate(session, world.tenant, job).body)
        predicate = body["predicate"]
        assert predicate["verdict"] == "conditional"
        assert predicate["reasons"] == ["no_external_witness", "generator_not_os_entropy"]

    @pytest.mark.parametrize("is_told", [True, False])
    def test_a_size_counted_in_the_data_is_named_and_cannot_be_left_out(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_told: bool
    ) -> None:
        if not is_told:  # a service that hides it is found out by the log
            monkeypatch.setattr("service.certificates.service.EXACT_BASES", frozenset())
        with w.sqlite_database(tmp_path) as db:
            world = w.found(db)
            world.population = w.add_population(world, basis="counted")
            w.grant(world, world.population)
            job = w.run_job(world, run_plan=w.plan())
            shown = ask(world, job)
            told = ["no_external_witness", *(["size_declared_exact"] if is_told else [])]
            assert (shown["verdict"], shown["reasons"]) == ("conditional", told)
            publisher = make_publisher(Settings(data_dir=tmp_path), db)
            publisher.turn()
            path = tmp_path / "bundle.zip"
            with (
                db.reading() as session,
                write_bundle(session, keys=publisher.keys, tenant_id=world.tenant) as archive,
            ):
                path.write_bytes(archive.read())
        assert verifier.main([str(path)]) == (0 if is_told else 1)

    def test_every_number_is_text_or_integer(self, world: w.World) -> None:
        job = w.run_job(world, run_plan=w.plan())
        with world.db.reading() as session:
            body = visible_certificate(session, world.tenant, job).body

        def refuse(number: str) -> None:
            raise AssertionError(number)

        json.loads(body, parse_float=refuse)

    def test_a_claim_that_differs_from_the_ledger_is_refused(self, world: w.World) -> None:
        job, run_plan = new_id("ftjob-"), w.plan()
        with world.db.transaction() as session:
            w.reserve(session, world, job=job)
        claims = [w.claim_of(run_plan, 10), w.claim_of(run_plan, 0)]
        claims[1]["claim"]["epsilon"] = "0.1"
        for claim in claims:
            with pytest.raises(LedgerBroken), world.db.transaction() as session:
                build_certificate(
                    session,
                    job_id=job,
                    plan=run_plan.to_dict(),
                    claim=claim,
                    artifact_digests={"a": "c" * 64},
                )

    def test_a_ledger_that_does_not_add_up_gives_a_verdict_that_cannot_be_released(
        self, world: w.World
    ) -> None:
        with world.db.transaction() as session:
            w.reserve(session, world, job="ftjob-x")
            session.execute(text("UPDATE reservation SET job_spent = 1"))
            issued = build_certificate(
                session,
                job_id="ftjob-x",
                plan=w.plan().to_dict(),
                claim=w.claim_of(w.plan(), 0),
                artifact_digests={"a": "c" * 64},
            )
            ledger.settle(
                session,
                job_id="ftjob-x",
                final_state="succeeded",
                artifact_digests={"a": "c" * 64},
                certificate_digest=issued.digest,
            )
        assert (issued.verdict, "ledger_check_failed" in issued.reasons) == ("none", True)
        with pytest.raises(ProposalInvalid, match="allows no release"):
            ask(world, "ftjob-x")

    def test_asked_again_the_stored_one_is_returned(self, world: w.World) -> None:
        job = w.run_job(world, run_plan=w.plan())
        with world.db.transaction() as session:
            stored = visible_certificate(session, world.tenant, job)
            again = build_certificate(
                session, job_id=job, plan=w.plan().to_dict(), claim={}, artifact_digests={}
            )
        assert again.digest == stored.digest
