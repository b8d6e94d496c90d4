"""Strings planted in rows, fields, headers and queries come back nowhere (service.md S4)."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

from service.datasets.models import FileError
from service.logs import JsonLines
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


def test_cells_of_a_good_file_lie_in_its_version_and_nowhere_else(
    hospital: Hospital, caplog: pytest.LogCaptureFixture
) -> None:
    person = hospital.people["submitter"]
    content = jsonl({"patient_id": CANARY, "text": CANARY, "ward": CANARY + "ward"})
    uploaded = hospital.upload(person, content)
    assert uploaded.json()["status"] == "processed"
    assert_unseen(caplog, uploaded)
    holding = [
        path.name
        for path in Path(hospital.settings.data_dir).rglob("*")
        if path.is_file() and CANARY.encode() in path.read_bytes()
    ]
    assert holding == [path.name for path in hospital.settings.files_dir.iterdir()]
    (kept,) = hospital.settings.files_dir.iterdir()
    assert CANARY + "ward" not in kept.read_text()


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
