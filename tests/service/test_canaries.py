"""Strings planted in rows, fields, headers and queries come back nowhere (service.md S4)."""

from __future__ import annotations

import io
import logging
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from prometheus_client import generate_latest

from service.datasets import validation
from service.datasets.models import FileError
from service.idempotency.models import IdempotencyKey
from service.logs import JsonLines
from service.rate_limits import RateLimits
from service.sealing.files import SealedFile
from service.settings import Settings
from service.webhooks.models import WebhookDelivery
from tests.service.hospital import Hospital, jsonl

CANARY = "qzcanaryxk"
HEADERS = {"x-request-id": CANARY, "user-agent": CANARY, "x-any": CANARY, "host": f"{CANARY}.test"}

BAD_FILES = {
    "rows": jsonl(
        {"patient_id": {CANARY: CANARY}, "text": [CANARY]},
        {CANARY: CANARY},
        {"patient_id": CANARY, "messages": [{"role": CANARY, "content": CANARY}]},
        {"patient_id": CANARY, "text": CANARY, "prompt": CANARY},
    )
    + f'{{"{CANARY}": \n'.encode()
    + b"\xff"
    + CANARY.encode(),
    "table": f"{CANARY},text\n{CANARY},{CANARY}\n".encode(),
    "cells": f'patient_id,text\n{CANARY}\n,"{CANARY}\n{CANARY},{CANARY},{CANARY}\n'.encode(),
}


@pytest.fixture(autouse=True)
def everything_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)


def assert_unseen(caplog: pytest.LogCaptureFixture, *answers: Any) -> None:
    for answer in answers:
        assert CANARY not in answer.text
        assert CANARY not in str(answer.headers)
    ours = [r for r in caplog.records if not r.name.startswith(("httpx", "httpcore", "asyncio"))]
    assert any(record.name == "rldp.access" for record in ours)
    for record in ours:
        assert CANARY not in record.getMessage()
        assert CANARY not in JsonLines().format(record)


@pytest.mark.parametrize("name", sorted(BAD_FILES))
def test_cells_and_column_names_of_a_bad_file(
    hospital: Hospital, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    person = hospital.people["submitter"]
    uploaded = hospital.upload(person, BAD_FILES[name])
    assert uploaded.json()["status"] == "error"
    path = f"/v1/files/{uploaded.json()['id']}/validation"
    report = hospital.client.get(path, headers=person.headers | HEADERS)
    assert report.json()["errors_total"] > 0
    assert_unseen(caplog, uploaded, report)
    with hospital.database.reading() as session:
        assert session.query(FileError).count() > 0
        for row in session.query(FileError):
            assert CANARY not in f"{row.pointer}{row.code}{row.message}"
    assert list(hospital.settings.files_dir.iterdir()) == []


def holding_it(folder: Path) -> list[str]:
    """Files below a folder, database and logs included, in which it lies in clear."""
    return [
        path.name
        for path in folder.rglob("*")
        if path.is_file() and CANARY.encode() in path.read_bytes()
    ]


GOOD_FILES = {
    "jsonl": lambda row: jsonl(*[row] * 4000),
    "csv": lambda row: (
        f"{','.join(row)}\n".encode() + f"{','.join(row.values())}\n".encode() * 4000
    ),
    "parquet": lambda row: parquet_file(pa.table({name: [row[name]] * 4000 for name in row})),
}


def parquet_file(table: Any) -> bytes:
    target = io.BytesIO()
    pq.write_table(table, target, compression="none", use_dictionary=False)
    return target.getvalue()


@pytest.mark.parametrize("kind", sorted(GOOD_FILES))
def test_cells_of_a_good_file_lie_in_clear_nowhere(
    hospital: Hospital,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
) -> None:
    """While it arrives, while it is checked, and after; also when it is read and erased."""
    folder, person = hospital.settings.data_dir, hospital.people["submitter"]
    looks: list[str] = []
    write, keep = SealedFile.write, validation._Run.keep

    def writing(self: SealedFile, data: bytes) -> None:
        write(self, data)
        if "arriving" not in looks and self.size_bytes > 100_000:
            self._stream.flush()
            looks.append("arriving")
            assert holding_it(folder) == []

    def checking(self: Any, row: Any) -> None:
        keep(self, row)
        if self.writer.size_bytes > 100_000 and "checking" not in looks:
            self.writer._stream.flush()
            looks.append("checking")
            assert holding_it(folder) == []

    monkeypatch.setattr(SealedFile, "write", writing)
    monkeypatch.setattr(validation._Run, "keep", checking)
    row = {"patient_id": CANARY, "text": CANARY * 20, "ward": CANARY}
    content = GOOD_FILES[kind](row)
    assert CANARY.encode() in content
    uploaded = hospital.upload(person, content)
    assert uploaded.json()["status"] == "processed"
    assert {"arriving", "checking"} <= set(looks)
    assert len(list(hospital.settings.files_dir.iterdir())) == 1
    steward = hospital.people["steward"].headers
    path = f"/v1/files/{uploaded.json()['id']}"
    assert CANARY in hospital.client.get(f"{path}/content", headers=steward).text
    assert holding_it(folder) == []
    erased = hospital.client.delete(path, headers=steward)
    assert_unseen(caplog, uploaded, erased)
    assert holding_it(folder) == []


@pytest.mark.parametrize(
    "fields",
    [
        {"purpose": CANARY},
        {"dataset": CANARY},
        {CANARY: "x"},
        {"unit_field": CANARY * 20},
        {"expires_after[anchor]": CANARY},
        {"expires_after[anchor]": "created_at", "expires_after[seconds]": CANARY},
    ],
)
def test_form_fields(
    hospital: Hospital, caplog: pytest.LogCaptureFixture, fields: dict[str, str]
) -> None:
    answer = hospital.upload(hospital.people["submitter"], b"{}", **fields)
    assert answer.status_code in (400, 422)
    assert_unseen(caplog, answer)


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("GET", f"/v1/files/{CANARY}", None),
        ("GET", f"/v1/files?after={CANARY}", None),
        ("GET", f"/v1/files?{CANARY}=1", None),
        ("GET", f"/v1/files?limit={CANARY}", None),
        ("GET", f"/v1/models/{CANARY}/{CANARY}", None),
        ("GET", f"/{CANARY}", None),
        ("PUT", f"/v1/files/{CANARY}", None),
        ("DELETE", f"/v1/api_keys/{CANARY}", None),
        ("POST", "/v1/datasets", {CANARY: CANARY}),
        ("POST", "/v1/datasets", {"population": CANARY}),
        ("POST", "/v1/datasets", {"population": [CANARY], "unit_field": {CANARY: 1}}),
        ("POST", f"/v1/datasets/{CANARY}/versions", {"file": CANARY}),
        ("POST", "/v1/populations", {CANARY: CANARY, "code": CANARY}),
        ("POST", "/v1/populations", {"code": f"{CANARY} !", "patients_public": CANARY}),
        ("POST", "/v1/grants", {"population": CANARY, "epsilon": CANARY, "reason_code": CANARY}),
        ("POST", "/v1/grants", {"population": CANARY, "epsilon": "8", "reason_code": "correction"}),
        ("POST", "/v1/releases", {"job": CANARY}),
        ("POST", f"/v1/grants/{CANARY}/approvals", {"decision": CANARY, "signature": CANARY}),
        ("POST", "/v1/fine_tuning/jobs", {"model": CANARY, "training_file": CANARY}),
        ("POST", "/v1/fine_tuning/jobs", {CANARY: CANARY}),
        (
            "POST",
            "/v1/fine_tuning/jobs",
            {
                "model": CANARY,
                "training_file": CANARY,
                "suffix": CANARY,
                "metadata": {CANARY: CANARY},
                "privacy": {"target_epsilon": CANARY, "mode": CANARY, CANARY: 1},
                "controller": {"type": CANARY},
            },
        ),
        (
            "POST",
            "/v1/fine_tuning/jobs",
            {
                "model": CANARY,
                "training_file": CANARY,
                "privacy": {"target_epsilon": CANARY},
                "metadata": {CANARY: [CANARY]},
                "method": {"type": CANARY},
            },
        ),
        ("POST", "/v1/fine_tuning/jobs/estimate", {"model": CANARY, "training_file": CANARY}),
        ("GET", f"/v1/fine_tuning/jobs/{CANARY}", None),
        ("POST", f"/v1/fine_tuning/jobs/{CANARY}/cancel", None),
        ("GET", f"/v1/ledger/jobs/{CANARY}/statement", None),
        ("GET", f"/v1/budgets/{CANARY}", None),
        ("GET", f"/v1/certificates/{CANARY}", None),
    ],
)
@pytest.mark.parametrize("role", ["submitter", "steward"])
def test_paths_queries_bodies_and_headers_of_refused_requests(
    hospital: Hospital,
    caplog: pytest.LogCaptureFixture,
    role: str,
    method: str,
    path: str,
    body: Any,
) -> None:
    headers = hospital.people[role].headers | HEADERS
    answer = hospital.client.request(method, path, json=body, headers=headers)
    assert 400 <= answer.status_code < 500
    assert_unseen(caplog, answer)


def test_a_key_that_is_none(hospital: Hospital, caplog: pytest.LogCaptureFixture) -> None:
    for value in (f"Bearer rldp_{CANARY}_{CANARY}", f"Basic {CANARY}", CANARY):
        answer = hospital.client.get("/v1/files", headers={"Authorization": value})
        assert answer.status_code == 401
        assert_unseen(caplog, answer)


def test_keys_of_requests_and_what_webhooks_say(
    hospital: Hospital, caplog: pytest.LogCaptureFixture
) -> None:
    """Under an `Idempotency-Key`, in rate-limit headers, metrics and what is owed to webhooks."""
    steward = hospital.people["steward"]
    headers = steward.headers | HEADERS | {"Idempotency-Key": CANARY}
    hook = {"url": "https://example.org/in", "events": ["release.published", "grant.proposed"]}
    made = hospital.client.post("/v1/webhooks", json=hook, headers=headers)
    again = hospital.client.post("/v1/webhooks", json=hook, headers=headers)
    reused = hospital.client.post(
        "/v1/webhooks", json=hook | {"url": f"https://{CANARY}.test/"}, headers=headers
    )
    tested = hospital.client.post(f"/v1/webhooks/{made.json()['id']}/test", headers=headers)
    refused = hospital.client.patch(
        f"/v1/webhooks/{made.json()['id']}",
        json={"events": [CANARY]},
        headers=headers | {"If-Match": CANARY},
    )
    population = hospital.population(steward)
    grant = hospital.client.post(
        "/v1/grants",
        json={
            "population": population,
            "epsilon": "8",
            "delta": "1e-6",
            "reason_code": "study_start",
            "justification": CANARY,
        },
        headers=steward.headers | {"Idempotency-Key": f"{CANARY}-2"},
    )
    statuses = [made, again, reused, tested, refused, grant]
    assert [one.status_code for one in statuses] == [201, 201, 422, 201, 422, 201], grant.text
    assert_unseen(caplog, *statuses)
    assert CANARY not in generate_latest(hospital.app.state.metrics).decode()
    with hospital.database.reading() as session:
        kept = session.query(IdempotencyKey).all()
        owed = session.query(WebhookDelivery).all()
        assert len(kept) == 3 and {row.type for row in owed} == {"webhook.test", "grant.proposed"}
        for row in (*kept, *owed):
            assert CANARY not in str({c.name: getattr(row, c.name) for c in row.__table__.columns})


def test_wrong_keys_that_come_too_often(
    hospital: Hospital, caplog: pytest.LogCaptureFixture
) -> None:
    hospital.app.state.rate_limits = RateLimits(Settings(rate_limit_failures_per_minute=1))
    headers = HEADERS | {"Authorization": f"Bearer rldp_{CANARY}_{CANARY}"}
    answers = [hospital.client.get(f"/v1/files/{CANARY}", headers=headers) for _ in range(3)]
    assert answers[-1].status_code == 429
    assert_unseen(caplog, *answers)
    assert CANARY not in generate_latest(hospital.app.state.metrics).decode()
