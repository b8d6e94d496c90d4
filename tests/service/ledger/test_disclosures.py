"""Personal values beside the log: who reads them, and that erasure breaks no proof (T12, P12)."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography.exceptions import InvalidTag
from sqlalchemy import text

from service.ledger import disclosures, fsck
from service.ledger.disclosures import Vault
from service.ledger.errors import IdempotencyConflict, LedgerNotFound
from service.models import metadata
from tests.deploy.test_verify_ledger import verifier
from tests.service.hospital import Hospital, open_hospital
from tests.service.ledger import world as w
from tests.service.ledger.test_endpoints import Desk, code_of, open_desk

WHY = "Dr. Ümit Example asked for 2 more epochs; call her on 555-0199."
JOB_WHY = "Ms. Released Example wants the adapter."


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    """For tests that disturb no other."""
    with open_hospital(tmp_path_factory.mktemp("disclosures")) as hospital:
        yield open_desk(hospital)


@pytest.fixture
def own(hospital: Hospital) -> Desk:
    """For tests that change what others rest on."""
    return open_desk(hospital)


def ask(desk: Desk, **changes: Any) -> Any:
    """A grant with a justification, through the API."""
    body = {
        "population": desk.names["population"],
        "epsilon": "9",
        "reason_code": "study_extension",
        "justification": WHY,
    }
    return desk.post("/v1/grants", body | changes)


def bundle_files(desk: Desk, who: str) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(desk.get("/v1/ledger/bundle", who).content)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def verdict(desk: Desk, who: str, path: Path) -> int:
    path.write_bytes(desk.get("/v1/ledger/bundle", who).content)
    return int(verifier.main([str(path), "--json"]))


def everything(desk: Desk) -> bytes:
    """All that lies in the data folder and in every table, as bytes."""
    found = b"".join(
        path.read_bytes() for path in desk.hospital.settings.data_dir.rglob("*") if path.is_file()
    )
    with desk.hospital.database.reading() as session:
        for table in metadata.sorted_tables:
            rows = session.execute(table.select()).all()
            found += "\n".join(map(str, rows)).encode()
    return found


class TestDisclosure:
    def test_the_entry_holds_a_commitment_and_not_the_text(self, desk: Desk) -> None:
        idx = ask(desk).json()["entry"]["idx"]
        shown = desk.get("/v1/ledger/disclosures", idx=idx).json()["data"]
        assert [(one["path"], one["value"]) for one in shown] == [("justification", WHY)]
        body = desk.get(f"/v1/ledger/entries/{idx}").json()["entry"]
        secret = disclosures.Secret(
            path="justification", value=WHY, salt=bytes.fromhex(shown[0]["salt"])
        )
        assert (body["v"], body["data"]["disclosed"]) == (
            2,
            {"justification": secret.commitment},
        )
        assert len(secret.salt) == 16

    def test_a_proposal_without_one_is_the_entry_it_always_was(self, desk: Desk) -> None:
        idx = ask(desk, justification=None).json()["entry"]["idx"]
        body = desk.get(f"/v1/ledger/entries/{idx}").json()["entry"]
        assert body["v"] == 1
        assert "disclosed" not in body["data"]

    def test_equal_texts_have_different_commitments(self) -> None:
        first, second = (disclosures.commit(justification=WHY)[0] for _ in range(2))
        assert first.commitment != second.commitment
        assert WHY not in repr(first)

    def test_stewards_of_the_tenant_alone_read_it(self, desk: Desk) -> None:
        ask(desk)
        assert WHY in desk.get("/v1/ledger/disclosures", "steward2").json()["data"][0]["value"]
        for who in ("submitter", "auditor", "admin"):
            assert code_of(desk.get("/v1/ledger/disclosures", who)) == (403, "role_forbidden")
        assert code_of(desk.get("/v1/ledger/disclosures", "stranger")) == (404, "not_found")
        assert desk.get("/v1/ledger/disclosures", who=None).status_code == 401

    def test_no_other_answer_shows_it(self, desk: Desk) -> None:
        asked = ask(desk)
        answers = [asked.text, desk.get("/v1/grants").text, desk.get("/v1/ledger/entries").text]
        answers.append(desk.get("/v1/audits/access", "auditor").text)
        assert not [answer for answer in answers if "555-0199" in answer]

    def test_each_reading_is_entered(self, desk: Desk) -> None:
        desk.get("/v1/ledger/disclosures")
        rows = desk.get("/v1/audits/access", "auditor").json()["data"]
        assert "/v1/ledger/disclosures" in {row["route"] for row in rows}

    def test_a_refused_text_is_not_repeated(self, desk: Desk) -> None:
        for bad in ("555-0199\x07", "555-0199" * 300, ""):
            answer = ask(desk, justification=bad)
            assert code_of(answer) == (422, "field_invalid")
            assert "555-0199" not in answer.text

    def test_only_stewards_get_it_in_their_bundle(self, desk: Desk) -> None:
        ask(desk)
        lines = bundle_files(desk, "steward")["disclosures.jsonl"].splitlines()
        assert {json.loads(line)["value"] for line in lines} == {WHY}
        for who in ("auditor", "submitter"):
            assert "disclosures.jsonl" not in bundle_files(desk, who)

    def test_without_its_key_nothing_is_entered(self, own: Desk) -> None:
        path = own.hospital.settings.keys_dir / disclosures.KEY_FILE
        path.parent.mkdir(exist_ok=True)
        path.write_text("not a key")
        before = len(own.get("/v1/grants").json()["data"])
        assert code_of(ask(own)) == (503, "not_ready")
        assert len(own.get("/v1/grants").json()["data"]) == before
        assert ask(own, justification=None).status_code == 201

    def test_a_vault_with_another_key_opens_nothing(self, tmp_path: Path) -> None:
        value, wrapped = Vault(tmp_path / "a", make=True).seal(WHY, "log#1/justification")
        assert Vault(tmp_path / "a", make=False).open(value, wrapped, "log#1/justification") == WHY
        with pytest.raises(InvalidTag):
            Vault(tmp_path / "b", make=True).open(value, wrapped, "log#1/justification")
        with pytest.raises(InvalidTag):
            Vault(tmp_path / "a", make=False).open(value, wrapped, "log#2/justification")


class TestRedaction:
    def redact(self, desk: Desk, idx: int, who: str | None = "steward", **changes: Any) -> Any:
        body = {"path": "justification", "legal_ground": "gdpr_17_1_a"} | changes
        return desk.post(f"/v1/ledger/entries/{idx}/redactions", body, who)

    def test_drill_the_text_is_gone_and_every_proof_still_holds(
        self, own: Desk, tmp_path: Path
    ) -> None:
        grant = ask(own).json()
        idx = grant["entry"]["idx"]
        for steward in ("steward", "steward2"):
            assert own.sign(steward, grant).status_code == 201
        auditors = tmp_path / "before.zip"
        assert verdict(own, "auditor", auditors) == 0
        proof = own.get("/v1/proofs/inclusion", idx=idx).json()
        keys = everything(own)
        assert self.redact(own, idx).status_code == 201
        after = everything(own)
        assert WHY.encode() not in keys + after  # not even before: it lies there encrypted
        assert own.get("/v1/ledger/disclosures").json()["data"] == []
        with own.hospital.database.reading() as session:
            for table in ("disclosure", "disclosure_key"):
                assert session.execute(text(f"SELECT count(*) FROM {table}")).scalar() == 0
            assert fsck.check_all(session) == []
        for who in ("auditor", "steward"):
            path = tmp_path / f"{who}.zip"
            path.write_bytes(own.get("/v1/ledger/bundle", who).content)
            assert verifier.main([str(path), "--previous", str(auditors)]) == 0
        assert bundle_files(own, "steward")["disclosures.jsonl"] == b""
        again = own.get("/v1/proofs/inclusion", idx=idx, size=proof["size"]).json()
        assert again == proof
        assert again["leaf"] == grant["entry"]["leaf"]

    def test_a_release_is_redacted_like_a_grant(self, own: Desk, tmp_path: Path) -> None:
        job = w.run_job(own.world, run_plan=w.plan())
        asked = own.post("/v1/releases", {"job": job, "justification": JOB_WHY}).json()
        for steward in ("steward", "steward2"):
            own.sign(steward, asked)
        assert own.get(f"/v1/releases/{asked['id']}").json()["state"] == "published"
        assert self.redact(own, asked["entry"]["idx"]).status_code == 201
        assert verdict(own, "steward", tmp_path / "gone.zip") == 0
        assert JOB_WHY.encode() not in everything(own)

    def test_the_entry_says_what_was_erased_by_whom_and_why(self, desk: Desk) -> None:
        idx = ask(desk).json()["entry"]["idx"]
        at = self.redact(desk, idx).json()["entry"]["idx"]
        body = desk.get(f"/v1/ledger/entries/{at}").json()["entry"]
        assert (body["type"], body["actor"]) == ("redaction", desk.world.proposer)
        assert body["data"] == {
            "entry": idx,
            "ground": "gdpr_17_1_a",
            "log": body["log"],
            "path": "justification",
        }

    def test_the_same_again_changes_nothing_and_another_ground_conflicts(self, desk: Desk) -> None:
        idx = ask(desk).json()["entry"]["idx"]
        first = self.redact(desk, idx)
        assert self.redact(desk, idx).json() == first.json()
        other = self.redact(desk, idx, legal_ground="gdpr_17_1_b")
        assert code_of(other) == (409, "state_conflict")

    def test_only_stewards_of_the_tenant_may(self, desk: Desk) -> None:
        idx = ask(desk).json()["entry"]["idx"]
        for who in ("submitter", "auditor", "admin"):
            assert code_of(self.redact(desk, idx, who)) == (403, "role_forbidden")
        assert code_of(self.redact(desk, idx, "stranger")) == (404, "not_found")
        assert self.redact(desk, idx, None).status_code == 401
        assert desk.get("/v1/ledger/disclosures", idx=idx).json()["data"]

    def test_an_entry_without_the_value_cannot_be_redacted(self, desk: Desk) -> None:
        for idx in (0, 10_000, 2**60):
            assert code_of(self.redact(desk, idx)) == (404, "not_found")

    @pytest.mark.parametrize(
        "wrong", [{"legal_ground": "because"}, {"path": "epsilon"}, {"more": 1}]
    )
    def test_unknown_grounds_and_names_are_refused(self, desk: Desk, wrong: Any) -> None:
        idx = ask(desk).json()["entry"]["idx"]
        assert self.redact(desk, idx, **wrong).status_code in (400, 422)
        assert desk.get("/v1/ledger/disclosures", idx=idx).json()["data"]


class TestBothDatabases:
    def test_erasure_leaves_no_row_and_the_entry_as_it_was(
        self, world: w.World, tmp_path: Path
    ) -> None:
        vault = Vault(tmp_path, make=True)
        request = w.grants.GrantRequest(
            population_id=world.population,
            epsilon="9",
            delta=None,
            alpha_star=None,
            reason_code="study_extension",
            justification=WHY,
        )
        with world.db.transaction() as session:
            made = w.grants.propose(
                session,
                tenant_id=world.tenant,
                actor=world.proposer,
                request=request,
                vault=vault,
            )
            log, idx = made.log_id, made.idx
        with world.db.reading() as session:
            [shown] = disclosures.read(session, vault, log)
            assert (shown.idx, shown.value) == (idx, WHY)
        who = {"tenant_id": world.tenant, "actor": world.proposer}
        what: dict[str, Any] = {"log_id": log, "idx": idx, "path": "justification"}
        with world.db.transaction() as session:
            first = disclosures.redact(session, **who, **what, ground="gdpr_17_1_c")
        with world.db.transaction() as session:
            assert disclosures.redact(session, **who, **what, ground="gdpr_17_1_c") == first
            with pytest.raises(IdempotencyConflict):
                disclosures.redact(session, **who, **what, ground="other_law")
            with pytest.raises(LedgerNotFound):
                disclosures.redact(session, **who, **(what | {"path": "name"}), ground="other_law")
        with world.db.reading() as session:
            assert list(disclosures.read(session, vault, log)) == []
            assert fsck.check_all(session) == []
