"""Two hospitals with people and keys over one application, for tests of the HTTP surface."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
from fastapi import FastAPI
from fastapi.testclient import TestClient

from service.app import create_app
from service.auth.keys import issue_key
from service.database import Database, now_us
from service.ids import new_id, new_person_id
from service.models import metadata
from service.populations.models import Population
from service.settings import Settings
from service.tenants.models import Principal, Tenant

ROLES = ("submitter", "steward", "auditor", "admin")


@dataclass(frozen=True, kw_only=True)
class Person:
    """A principal and its key."""

    id: str
    tenant_id: str
    role: str
    key: str

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.key}"}


@dataclass(kw_only=True)
class Hospital:
    """The application, its database, and one person of each role in two tenants.

    `people` are of the first tenant, `others` of the second; `colleague` is a second
    submitter of the first.
    """

    app: FastAPI
    client: TestClient
    database: Database
    settings: Settings
    people: Mapping[str, Person]
    others: Mapping[str, Person]
    colleague: Person

    def population(self, person: Person, **changes: Any) -> str:
        """A population of the person's tenant, as the ledger would register it."""
        values = {
            "id": new_id("pop_"),
            "tenant_id": person.tenant_id,
            "code": new_id("pop_")[-12:],
            "unit": "patient",
            "relation": "add_remove",
            "patients_public": 1000,
            "patients_public_basis": "registry",
            "validation_fraction": "0",
            "overlap_with": None,
            "split_key": b"k" * 32,
            "created_by": person.id,
            "created_at": now_us(),
            "frozen": False,
        } | changes
        with self.database.transaction() as session:
            session.add(Population(**values))
        return str(values["id"])

    def dataset(self, steward: Person, **changes: Any) -> str:
        """A dataset made through the API."""
        body = {"population": self.population(steward)} | changes
        answer = self.client.post("/v1/datasets", json=body, headers=steward.headers)
        assert answer.status_code == 201, answer.text
        return str(answer.json()["id"])

    def upload(
        self, person: Person | None, content: bytes, *, name: str = "rows.jsonl", **fields: str
    ) -> httpx2.Response:
        """POST /v1/files; `unit_field=…` becomes `privacy[unit_field]`."""
        form = {"purpose": "fine-tune"} | fields
        if "unit_field" in form:
            form["privacy[unit_field]"] = form.pop("unit_field")
        return self.client.post(
            "/v1/files",
            files={"file": (name, content)},
            data=form,
            headers=person.headers if person else {},
        )


def jsonl(*rows: Any) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


GOOD_ROWS = jsonl(
    {"patient_id": "p1", "text": "First note."},
    {"patient_id": "p1", "text": "Second note of the same patient."},
    {"patient_id": "p2", "text": "Note of another patient."},
)


@contextmanager
def open_hospital(
    directory: Path, database: Database | None = None, **settings: Any
) -> Iterator[Hospital]:
    """Over `database`, whose tables must be there, or over a fresh SQLite file."""
    chosen = Settings(data_dir=directory / "data", **settings)
    chosen.data_dir.mkdir(exist_ok=True)
    used = database or Database(chosen.resolved_database_url)
    if database is None:
        metadata.create_all(used.engine)
    app = create_app(chosen, used)
    first, second = _people(used), _people(used)
    try:
        with TestClient(app) as client:
            yield Hospital(
                app=app,
                client=client,
                database=used,
                settings=chosen,
                people={role: first[role] for role in ROLES},
                others={role: second[role] for role in ROLES},
                colleague=first["colleague"],
            )
    finally:
        if database is None:
            used.dispose()


def _people(database: Database) -> dict[str, Person]:
    tenant_id = new_person_id("tn_")
    names = {role: role for role in ROLES} | {"colleague": "submitter"}
    made: dict[str, Person] = {}
    with database.transaction() as session:
        session.add(Tenant(id=tenant_id, created_at=now_us()))
        session.flush()
        for name, role in names.items():
            person_id = new_person_id("usr_")
            session.add(
                Principal(
                    id=person_id,
                    tenant_id=tenant_id,
                    role=role,
                    public_key=None,
                    created_at=now_us(),
                )
            )
            session.flush()
            key = issue_key(session, person_id)
            made[name] = Person(id=person_id, tenant_id=tenant_id, role=role, key=key.text)
    return made
