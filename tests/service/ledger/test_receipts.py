"""Whoever writes gets signed receipts, and the verifier holds the log to them (10.4)."""

from __future__ import annotations

import base64
import json
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from service.cli.policy import write_policy
from service.ledger import service as ledger
from service.ledger.keys import load_keys
from service.ledger.publisher import make_publisher
from tests.deploy.test_verify_ledger import verifier
from tests.service.hospital import open_hospital
from tests.service.ledger import world as w
from tests.service.ledger.test_endpoints import Desk, open_desk


@dataclass
class Kept:
    """What clients saved of their answers, and what an auditor was given afterwards."""

    desk: Desk
    answers: dict[str, Any]
    folder: Path
    bundle: Path
    policy: Path


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kept]:
    """One write of each kind; each answer saved before any checkpoint covers it."""
    folder = tmp_path_factory.mktemp("receipts")
    (folder / "kept").mkdir()
    with open_hospital(folder) as hospital:
        desk = open_desk(hospital)
        answers = {name: answer.json() for name, answer in writes(desk).items()}
        for name, answer in answers.items():
            (folder / "kept" / f"{name}.json").write_text(json.dumps(answer, indent=1))
        make_publisher(hospital.settings, hospital.database).turn()
        bundle, policy = folder / "bundle.zip", folder / "policy.json"
        bundle.write_bytes(desk.get("/v1/ledger/bundle", who="auditor").content)
        write_policy(hospital.settings, out=policy, max_age_seconds=3600)
        yield Kept(desk, answers, folder / "kept", bundle, policy)


def writes(desk: Desk) -> dict[str, Any]:
    grant = {
        "population": desk.world.population,
        "epsilon": "8.5",
        "reason_code": "study_extension",
        "justification": "More patients were enrolled.",
    }
    people = {"code": "eye", "patients_public": 500, "patients_public_basis": "registry"}
    job = w.run_job(desk.world, run_plan=w.plan())
    with desk.world.db.transaction() as session:
        for unfinished in ("ftjob-open", "ftjob-cancelled"):
            w.reserve(session, desk.world, job=unfinished)
        ledger.settle(
            session,
            job_id="ftjob-cancelled",
            final_state="cancelled",
            artifact_digests={},
            certificate_digest=None,
        )
    made = {
        "population": desk.post("/v1/populations", people),
        "grant": desk.post("/v1/grants", grant),
        "release": desk.post("/v1/releases", {"job": job}),
    }
    place = made["grant"].json()["entry"]["idx"]
    made |= {
        "first_signature": desk.sign("steward", made["grant"].json()),
        "second_signature": desk.sign("steward2", made["grant"].json()),
        "release_signature": desk.sign("steward", made["release"].json()),
        "published": desk.sign("steward2", made["release"].json()),
        "redaction": desk.post(
            f"/v1/ledger/entries/{place}/redactions",
            {"path": "justification", "legal_ground": "entered_in_error"},
        ),
        "statement": desk.get(f"/v1/ledger/jobs/{job}/statement"),
    }
    for name, answer in made.items():
        assert answer.status_code in (200, 201), (name, answer.text)
    return made


def types_of(kept: Kept, name: str) -> list[str]:
    indexes = [receipt["idx"] for receipt in kept.answers[name]["receipts"]]
    entries = kept.desk.get("/v1/ledger/entries", limit=1000).json()["data"]
    types = {item["entry"]["idx"]: item["entry"]["type"] for item in entries}
    return [types[idx] for idx in indexes]


@pytest.mark.parametrize(
    ("name", "types"),
    [
        ("population", ["population.registered"]),
        ("grant", ["grant.proposed"]),
        ("first_signature", ["grant.proposed", "grant.approved"]),
        (
            "second_signature",
            ["grant.proposed", "grant.approved", "grant.approved", "grant.effective"],
        ),
        ("release", ["release.requested"]),
        (
            "published",
            ["release.requested", "release.approved", "release.approved", "release.published"],
        ),
        ("redaction", ["redaction"]),
        ("statement", ["reserve", "window.charge", "window.charge", "settle"]),
    ],
)
def test_an_answer_holds_receipts_of_what_was_written(
    kept: Kept, name: str, types: list[str]
) -> None:
    assert types_of(kept, name) == types


def test_a_repeated_write_is_answered_with_the_same_receipts(kept: Kept) -> None:
    again = kept.desk.sign("steward2", kept.answers["grant"]).json()["receipts"]
    first = kept.answers["second_signature"]["receipts"]
    assert [r["receipt"] for r in again] == [r["receipt"] for r in first]
    assert all(r["proof"] is None for r in first)
    assert all(r["proof"].startswith("c2sp.org/tlog-proof@v1\n") for r in again)


def verify(kept: Kept, *more: Any) -> tuple[int, dict[str, Any]]:
    arguments = verifier.argparse.Namespace(
        bundle=kept.bundle,
        policy=kept.policy,
        previous=[],
        receipt=[Path(path) for path in more],
        steward_key=[],
        artifact=[],
        max_age=None,
        proof=None,
        now=verifier.time.time(),
    )
    try:
        told = verifier.verify(arguments)
    except verifier.Failed as failed:
        return 1, {"problem": failed.problem, "index": failed.index}
    return {"ok": 0, "incomplete": 3}[told["verdict"]], told


def test_the_verifier_takes_the_folder_of_saved_answers(kept: Kept) -> None:
    _, without = verify(kept)
    code, told = verify(kept, kept.folder)
    saved = sum(len(answer["receipts"]) for answer in kept.answers.values())
    assert (code, told["receipts"] - without["receipts"]) == (0, saved)
    assert without["receipts"] > 0  # those of finished jobs are in the bundle


def test_the_bundle_holds_receipts_of_jobs_without_a_certificate_too(kept: Kept) -> None:
    entries = kept.desk.get("/v1/ledger/entries", limit=1000).json()["data"]
    for job, kinds in {
        "ftjob-open": ["reserve"],
        "ftjob-cancelled": ["reserve", "settle"],
    }.items():
        wanted = [
            item["entry"]["idx"]
            for item in entries
            if job in item["entry"]["idem"] and item["entry"]["type"] in kinds
        ]
        with zipfile.ZipFile(kept.bundle) as archive:
            lines = archive.read(f"receipts/{job}.txt").decode().splitlines()
        assert [int(line.partition(" ")[0]) for line in lines] == wanted
        assert len(wanted) == len(kinds)


def test_it_takes_single_files_of_every_form(kept: Kept, tmp_path: Path) -> None:
    receipt = kept.desk.get("/v1/ledger/receipts/3").json()
    forms = {"note.txt": receipt["receipt"], "proof.txt": receipt["proof"]}
    encoded = base64.b64encode(receipt["receipt"].encode()).decode()
    forms |= {"job.txt": f"3 {encoded}\n3 {encoded}\n", "answer.json": json.dumps([receipt])}
    for name, text in forms.items():
        (tmp_path / name).write_text(text)
    _, without = verify(kept)
    code, told = verify(kept, *(tmp_path / name for name in forms))
    assert (code, told["receipts"] - without["receipts"]) == (0, 5)


def test_an_entry_promised_and_then_replaced_is_named(kept: Kept, tmp_path: Path) -> None:
    keys = load_keys(kept.desk.hospital.settings)
    receipt = kept.answers["grant"]["receipts"][0]
    origin = receipt["receipt"].split("\n")[1]
    other = keys.sign_receipt(
        origin=origin, idx=receipt["idx"], leaf="ab" * 32, publish_by=receipt["publish_by"]
    )
    path = tmp_path / "other.json"
    path.write_text(json.dumps({"data": {"receipts": [{**receipt, "receipt": other.full}]}}))
    code, told = verify(kept, path)
    assert (code, told["index"]) == (1, receipt["idx"])


@pytest.mark.parametrize("content", [b"", b"{}", b'{"receipts": []}', b"{not json", b"[" * 10**5])
def test_a_file_without_a_receipt_is_no_evidence(
    kept: Kept, tmp_path: Path, content: bytes
) -> None:
    (tmp_path / "empty.json").write_bytes(content)
    with pytest.raises(verifier.Unreadable):
        verify(kept, tmp_path)
